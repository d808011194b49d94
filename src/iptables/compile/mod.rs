//! The model compiled to a program. Pure.
//!
//! An excerpt, as it is written for one network and one forward:
//! ```text
//! *nat
//! -A PREROUTING -j PORTFWD.PREROUTING
//! -A PORTFWD.PREROUTING -m connlabel --label 121 --set
//! -A PORTFWD.PREROUTING -m addrtype --dst-type LOCAL -m comment --comment web -j PORTFWD-DOCKER
//! -A PORTFWD.PREROUTING -m connlabel --label 117 --set
//! -A PORTFWD-DOCKER -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.3:80
//! -A PORTFWD.POSTROUTING -o lo -j RETURN
//! -A PORTFWD.POSTROUTING -m connlabel --label 120 -j MASQUERADE
//! -A PORTFWD.POSTROUTING -s 172.17.0.0/16 ! -o docker0 -m comment --comment "web: network docker0 DOCKER" -j MASQUERADE
//! *mangle
//! -A FORWARD -j PORTFWD.FORWARD
//! -A PORTFWD.FORWARD -m conntrack --ctstate NEW -m connlabel --label 121 … -j PORTFWD.HAIRPIN
//! -A PORTFWD.HAIRPIN -i eth0 -o eth0 -m connlabel --label 120 --set
//! ```
//! Rules are in the order of precedence, so a packet's first match is the forward that wins. `forward.rs` makes the rules of
//! forwards and the chains that they live in, `tree.rs` lays thousands of them out so that a packet meets tens, `passing.rs`
//! sees to what passes through (hairpin, isolated networks, the guard of loopback addresses), `leaving.rs` to what leaves.

mod conditions;
mod forward;
mod host;
mod leaving;
mod passing;
mod tree;

pub(super) use forward::{Homes, Place, rules_of};
pub use host::Host;
pub(super) use leaving::{SAME, SOURCES, number_bits};
pub use passing::HAIRPIN;

use super::limits::{self, Limit};
use super::program::{Attached, Chain, Contents, Half, Hook, Program};
use super::rule::{Match, Rule};
use crate::model::label::{MasqueradeNeeds, Sources};
use crate::model::{Asked, Family, SetName};

/// Why a model cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A rule set asks what iptables cannot do.
    #[error("in the rule set `{0}`, {1}")]
    Limit(SetName, Limit),
}

/// Compiles all that is asked.
///
/// # Errors
/// The first thing that iptables cannot do.
pub fn compile(asked: &Asked, host: &Host) -> Result<Program, CompileError> {
    if let Some((set, limit)) = limits::find(asked).into_iter().next() {
        return Err(CompileError::Limit(set, limit));
    }
    Ok(compile_all(asked, host, &Homes::new()))
}

/// Compiles all that is asked, whether iptables can do it or not.
pub(super) fn compile_all(asked: &Asked, host: &Host, homes: &Homes) -> Program {
    let of = |family| half(asked, family, host, homes);
    Program { ipv4: of(Family::Ipv4), ipv6: of(Family::Ipv6) }
}

fn half(asked: &Asked, family: Family, host: &Host, homes: &Homes) -> Half {
    let mut half = Half::default();
    let sources = Sources::of(asked);
    let masqueraded = MasqueradeNeeds::new(asked, |of| of == family);
    let (hairpin, isolated) = (masqueraded.hairpin, passing::isolates(asked, family));
    let forwards = forward::chains(asked, family, &sources, host.shifts, homes, &mut half.nat);
    let inward = leaving::inward(asked, family);
    let mut arriving: Vec<Rule> = forwards.outside.iter().chain(&inward).cloned().collect();
    let mut sent = forwards.loopback;
    if !(sent.is_empty() && arriving.is_empty()) {
        sent.extend(forward::own_loopback(family));
        sent.extend(arriving.iter().cloned());
    }
    if !arriving.is_empty() && (hairpin || isolated) {
        arriving.insert(0, Rule::default().with(Match::SetLabel(crate::model::label::FORWARDED)));
        arriving.push(Rule::default().with(Match::SetLabel(crate::model::label::UNMATCHED)));
    }
    let leaving = leaving::rules(asked, family, &sources, masqueraded.any(), &mut half.nat);
    attach(&mut half.nat, Hook::Prerouting, arriving);
    attach(&mut half.nat, Hook::Output, sent);
    attach(&mut half.nat, Hook::Postrouting, leaving);
    let through = passing::rules(asked, family, hairpin, host, &mut half.mangle);
    attach(&mut half.mangle, Hook::Forward, through);
    attach(&mut half.mangle, Hook::Prerouting, passing::guard(asked, family));
    half
}

/// Puts rules into the chain that a built-in chain jumps to, where there are any.
fn attach(contents: &mut Contents, hook: Hook, rules: Vec<Rule>) {
    if !rules.is_empty() {
        contents.chains.insert(hook.entry().into(), Chain::from(rules));
        contents.hooks.insert(hook, Attached::ONCE);
    }
}
