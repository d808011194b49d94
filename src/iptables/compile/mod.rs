//! Compiles the model to a program, without I/O.
//!
//! An excerpt of the rules for one network and one forward:
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
//! The rules are in the order of precedence, so the first rule that matches a packet belongs to the winning forward.
//!
//! | file | content |
//! | --- | --- |
//! | `forward.rs` | rules and chains of forwards |
//! | `tree.rs` | splits chains with thousands of rules, so that a packet traverses only tens of rules |
//! | `passing.rs` | hairpin NAT, isolated networks, protection of loopback addresses |
//! | `leaving.rs` | source NAT, masquerading, 1:1 translations |
//! | `conditions.rs` | shared matches |
//! | `host.rs` | properties of the host |

mod conditions;
mod forward;
mod host;
mod leaving;
mod passing;
mod tree;

pub(super) use forward::{AddressScope, ChainsByTarget, binding_rules};
pub use host::Host;
pub(super) use leaving::{SAME, SOURCES, source_number_bits};
pub use passing::HAIRPIN;

use super::limits::{self, Limit};
use super::program::{Chain, Contents, FamilyRules, Hook, HookJump, Program};
use super::rule::{Match, Rule};
use crate::model::label::{MasqueradeNeeds, Sources};
use crate::model::{DesiredState, Family, SetName};

/// An error during the compilation of the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A rule set uses a feature that iptables does not support.
    #[error("in the rule set `{0}`, {1}")]
    Limit(SetName, Limit),
}

/// Compiles the desired state to a program.
///
/// # Errors
/// [`CompileError::Limit`] with the first feature that iptables does not support.
pub fn compile(desired: &DesiredState, host: &Host) -> Result<Program, CompileError> {
    if let Some((set, limit)) = limits::find(desired).into_iter().next() {
        return Err(CompileError::Limit(set, limit));
    }
    Ok(compile_unchecked(desired, host, &ChainsByTarget::new()))
}

/// Compiles the desired state without a check for unsupported features.
pub(super) fn compile_unchecked(desired: &DesiredState, host: &Host, by_target: &ChainsByTarget) -> Program {
    let rules = |family| family_rules(desired, family, host, by_target);
    Program { ipv4: rules(Family::Ipv4), ipv6: rules(Family::Ipv6) }
}

fn family_rules(desired: &DesiredState, family: Family, host: &Host, by_target: &ChainsByTarget) -> FamilyRules {
    let mut half = FamilyRules::default();
    let sources = Sources::of_state(desired);
    let masqueraded = MasqueradeNeeds::new(desired, |other| other == family);
    let (hairpin, isolated) = (masqueraded.hairpin, passing::isolates(desired, family));
    let forwards = forward::chains(desired, family, &sources, host.shifts, by_target, &mut half.nat);
    let inward = leaving::inward(desired, family);
    let mut prerouting: Vec<Rule> = forwards.non_loopback.iter().chain(&inward).cloned().collect();
    let mut output = forwards.loopback;
    if !(output.is_empty() && prerouting.is_empty()) {
        output.push(forward::return_loopback(family));
        output.extend(prerouting.iter().cloned());
    }
    if !prerouting.is_empty() && (hairpin || isolated) {
        prerouting.insert(0, Rule::default().with_match(Match::SetLabel(crate::model::label::FORWARDED)));
        prerouting.push(Rule::default().with_match(Match::SetLabel(crate::model::label::UNMATCHED)));
    }
    let postrouting = leaving::rules(desired, family, &sources, masqueraded.any(), &mut half.nat);
    add_hook(&mut half.nat, Hook::Prerouting, prerouting);
    add_hook(&mut half.nat, Hook::Output, output);
    add_hook(&mut half.nat, Hook::Postrouting, postrouting);
    let forwarded = passing::rules(desired, family, hairpin, host, &mut half.mangle);
    add_hook(&mut half.mangle, Hook::Forward, forwarded);
    add_hook(&mut half.mangle, Hook::Prerouting, passing::guard(desired, family));
    half
}

/// Adds portfwd's chain for a built-in chain, and the jump to portfwd's chain. Does nothing if there are no rules.
fn add_hook(contents: &mut Contents, hook: Hook, rules: Vec<Rule>) {
    if !rules.is_empty() {
        contents.chains.insert(hook.portfwd_chain().into(), Chain::from(rules));
        contents.hooks.insert(hook, HookJump::ONCE);
    }
}
