//! Compiles the model to a program, without I/O.
//!
//! The table for one network and one forward, as nft(8) text:
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
//! Each forward is stored in map elements. There is one map for each class and kind of binding, and one rule for each
//! map. So the number of rules does not grow with the number of forwards. The rules are in the order of precedence, so
//! the first rule that matches a packet belongs to the winning forward.
//!
//! | file | content |
//! | --- | --- |
//! | `forward.rs` | maps and chains of forwards |
//! | `run.rs` | assigns maps to chains |
//! | `lookup.rs` | rules that look up maps |
//! | `clients.rs` | chains for many client prefixes |
//! | `hairpin.rs` | hairpin NAT |
//! | `guard.rs` | protection of loopback addresses |
//! | `netmap.rs` | 1:1 translations |
//! | `isolate.rs` | isolated networks |
//! | `source.rs` | source NAT and masquerading |
//! | `representatives.rs` | bindings that represent all bindings |
//! | `expressions.rs` | shared expressions |

mod clients;
mod expressions;
mod forward;
mod guard;
mod hairpin;
mod isolate;
mod lookup;
mod netmap;
mod representatives;
mod run;
mod source;

pub use representatives::{representatives, same_shape};
pub(super) use source::{sources_name, sources_shape};

use super::program::{Base, Chain, ChainType, Hook, Program, Rule};
use crate::model::label::{MasqueradeNeeds, Sources};
use crate::model::{DesiredState, SetName};

/// The priority of the guard. The guard runs before connection tracking (-200), so conntrack does not see the dropped
/// packets. The guard sees the original destination addresses.
pub const GUARD_PRIORITY: i32 = -300;
/// The priority of [`FILTER_FORWARD`]. The chain runs just after filter chains of the usual priority 0.
pub const FORWARD_PRIORITY: i32 = 5;

/// The base chain that drops packets with loopback addresses from other hosts.
pub const GUARD_PREROUTING: &str = "guard-prerouting";
/// The base chain that rewrites the destination of incoming packets.
pub const NAT_PREROUTING: &str = "nat-prerouting";
/// The base chain that rewrites the destination of packets from this host.
pub const NAT_OUTPUT: &str = "nat-output";
/// The base chain that labels hairpin connections and isolates networks.
pub const FILTER_FORWARD: &str = "filter-forward";
/// The base chain that rewrites source addresses.
pub const NAT_POSTROUTING: &str = "nat-postrouting";

/// An error during the compilation of the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Two rule sets have different priorities, but the table can have only one priority.
    #[error("the rule sets `{0}` and `{1}` have different priorities")]
    Priorities(SetName, SetName),
}

/// Compiles the desired state to a program. An empty desired state needs no table.
///
/// # Errors
/// If two rule sets have different priorities.
pub fn compile(desired: &DesiredState) -> Result<Program, CompileError> {
    let mut program = Program::default();
    if desired.is_empty() {
        return Ok(program);
    }
    program.table = true;
    let priority = desired.priority().map_err(|(one, other)| CompileError::Priorities(one, other))?;
    let sources = Sources::of_state(desired);
    let jumps = forward::maps_and_chains(desired, &sources, &mut program);
    let mut add = |name: &str, chain_type, hook, priority, rules: Vec<Rule>| {
        if !rules.is_empty() {
            let base = Some(Base { chain_type, hook, priority });
            program.chains.insert(name.into(), Chain { base, rules });
        }
    };
    let inward: Vec<Rule> = jumps.non_loopback.into_iter().chain(netmap::inward(desired)).collect();
    let output = if inward.is_empty() && jumps.loopback.is_empty() {
        Vec::new()
    } else {
        jumps.loopback.into_iter().chain(forward::return_loopback()).chain(inward.iter().cloned()).collect()
    };
    let masqueraded = MasqueradeNeeds::new(desired, |_| true);
    let mut forwarded = isolate::rules(desired);
    if masqueraded.hairpin {
        forwarded.insert(0, hairpin::mark());
    }
    add(GUARD_PREROUTING, ChainType::Filter, Hook::Prerouting, GUARD_PRIORITY, guard::rules(desired));
    add(NAT_OUTPUT, ChainType::Nat, Hook::Output, priority.value(), output);
    add(NAT_PREROUTING, ChainType::Nat, Hook::Prerouting, priority.value(), inward);
    add(FILTER_FORWARD, ChainType::Filter, Hook::Forward, FORWARD_PRIORITY, forwarded);
    let outgoing = source::rules(desired, &sources, masqueraded.any(), &mut program);
    if !outgoing.is_empty() {
        let base = Base { chain_type: ChainType::Nat, hook: Hook::Postrouting, priority: priority.source_priority() };
        program.chains.insert(NAT_POSTROUTING.into(), Chain { base: Some(base), rules: outgoing });
    }
    Ok(program)
}
