//! The model compiled to a program. Pure.
//!
//! In the words of nft(8), with one network and one forward in it:
//! ```text
//! table inet portfwd {
//!     map DOCKER-ip-ports { type inet_proto . inet_service : ipv4_addr . inet_service; counter; … }
//!     chain DOCKER          { meta nfproto ipv4 ct label set 121 dnat ip to meta l4proto . th dport map @DOCKER-ip-ports }
//!     chain nat-prerouting  { type nat hook prerouting priority -105;    fib daddr type local jump DOCKER }
//!     chain nat-output      { type nat hook output priority -105;        ip daddr 127.0.0.0/8 return
//!                                                                        ip6 daddr ::1 return
//!                                                                        fib daddr type local jump DOCKER }
//!     chain filter-forward  { type filter hook forward priority 5;       ct state new ct label & (121, 119, 117) == 121
//!                                                                        fib daddr . iif oif exists ct label set 120 }
//!     chain nat-postrouting { type nat hook postrouting priority 95;     oifname "lo" return
//!                                                                        ct label 120 masquerade
//!                                                                        ip saddr 172.17.0.0/16 oifname != "docker0" masquerade }
//! }
//! ```
//! Forwards are map elements; a rule is needed for each map, and there is one map for each class and kind, so the
//! number of rules does not grow with the number of forwards. Rules are in the order of precedence, so a packet's first
//! match is the forward that wins.
//!
//! `forward.rs` makes the maps and their chains, `run.rs` lays the maps out in chains, `lookup.rs` makes the rules that look a
//! map up, `clients.rs` those for many client prefixes, `hairpin.rs` the way back for neighbours of a target, `guard.rs` what
//! a loopback forward needs, `netmap.rs`, `isolate.rs` and `source.rs` the rest, of the parts in `expressions.rs`.

mod clients;
mod expressions;
mod forward;
mod guard;
mod hairpin;
mod isolate;
mod lookup;
mod netmap;
mod run;
mod samples;
mod source;

pub use samples::samples;
pub(super) use source::{sources_name, sources_shape};

use super::program::{Base, Chain, ChainType, Hook, Program, Rule};
use crate::model::label::{MasqueradeNeeds, Sources};
use crate::model::{Asked, SetName};

/// Where loopback addresses on a wire are dropped: at the earliest, before connection tracking (-200), so that what
/// belongs to no connection is never tracked as one, and destinations are still those on the wire.
pub const GUARD_PRIORITY: i32 = -300;
/// Where we look at packets that pass through: just after everybody's ordinary filters.
pub const FORWARD_PRIORITY: i32 = 5;

/// The base chain that drops loopback addresses from a wire.
pub const GUARD_PREROUTING: &str = "guard-prerouting";
/// The base chain that serves what arrives.
pub const NAT_PREROUTING: &str = "nat-prerouting";
/// The base chain that serves this host itself.
pub const NAT_OUTPUT: &str = "nat-output";
/// The base chain that sees what passes through.
pub const FILTER_FORWARD: &str = "filter-forward";
/// The base chain that rewrites sources.
pub const NAT_POSTROUTING: &str = "nat-postrouting";

/// Why a model cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// One table can run at one priority only.
    #[error("the rule sets `{0}` and `{1}` ask for different priorities")]
    Priorities(SetName, SetName),
}

/// Compiles all that is asked. Nothing asked is no table.
///
/// # Errors
/// Where two sets want what one table cannot do.
pub fn compile(asked: &Asked) -> Result<Program, CompileError> {
    let mut program = Program::default();
    if asked.is_empty() {
        return Ok(program);
    }
    program.table = true;
    let priority = asked.priority().map_err(|(one, other)| CompileError::Priorities(one, other))?;
    let sources = Sources::of(asked);
    let jumps = forward::maps_and_chains(asked, &sources, &mut program);
    let mut add = |name: &str, chain_type, hook, priority, rules: Vec<Rule>| {
        if !rules.is_empty() {
            let base = Some(Base { chain_type, hook, priority });
            program.chains.insert(name.into(), Chain { base, rules });
        }
    };
    let inward: Vec<Rule> = jumps.outside.into_iter().chain(netmap::inward(asked)).collect();
    let output = if inward.is_empty() && jumps.loopback.is_empty() {
        Vec::new()
    } else {
        jumps.loopback.into_iter().chain(forward::own_loopback()).chain(inward.iter().cloned()).collect()
    };
    let rewritten = MasqueradeNeeds::new(asked, |_| true);
    let mut passing = isolate::rules(asked);
    if rewritten.hairpin {
        passing.insert(0, hairpin::mark());
    }
    add(GUARD_PREROUTING, ChainType::Filter, Hook::Prerouting, GUARD_PRIORITY, guard::rules(asked));
    add(NAT_OUTPUT, ChainType::Nat, Hook::Output, priority.value(), output);
    add(NAT_PREROUTING, ChainType::Nat, Hook::Prerouting, priority.value(), inward);
    add(FILTER_FORWARD, ChainType::Filter, Hook::Forward, FORWARD_PRIORITY, passing);
    let leaving = source::rules(asked, &sources, rewritten.any(), &mut program);
    if !leaving.is_empty() {
        let base = Base { chain_type: ChainType::Nat, hook: Hook::Postrouting, priority: priority.source_priority() };
        program.chains.insert(NAT_POSTROUTING.into(), Chain { base: Some(base), rules: leaving });
    }
    Ok(program)
}
