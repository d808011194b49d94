//! What passes through: neighbours of a target, isolated networks, and loopback addresses on a wire.
//!
//! ```text
//! -A PORTFWD.FORWARD -m conntrack --ctstate NEW -m connlabel --label 121 -m connlabel ! --label 117 -m connlabel ! --label 119 -j PORTFWD.HAIRPIN
//! -A PORTFWD.HAIRPIN -i eth0 -o eth0 -m connlabel --label 120 --set
//! -A PORTFWD.FORWARD -d 172.17.0.0/16 ! -i docker0 -o docker0 -m conntrack --ctstate INVALID,NEW,UNTRACKED -m comment --comment "web: isolate docker0 DOCKER" -j PORTFWD.ISOLATE
//! -A PORTFWD.ISOLATE -m connlabel --label 117 -j DROP
//! -A PORTFWD.ISOLATE -m connlabel ! --label 121 -j DROP
//! -A PORTFWD.PREROUTING ! -i lo -s 127.0.0.0/8 -j DROP
//! ```
//! A neighbour comes in by the interface that leads to its target. iptables cannot compare the two, so there is a rule for every
//! interface of the host, and for those that rule sets name and that may come later.
//!
//! All of it is in the table `mangle`, which every packet meets whatever a filter accepts. The guard need not come before
//! connection tracking, as in nftables it does: what is dropped before its connection is confirmed leaves none.

use std::collections::BTreeSet;

use super::conditions::interface;
use super::host::Host;
use crate::iptables::limits;
use crate::iptables::program::{Chain, Contents};
use crate::iptables::rule::{Match, Rule, States, Target};
use crate::model::label::{FORWARDED, MASQUERADE, SKIP_HAIRPIN, UNMATCHED};
use crate::model::rule_comment::{ISOLATE, format_comment, format_network};
use crate::model::{Asked, Family, IfName, address};

/// The chain with a rule for every interface that a neighbour may come in and go out by.
pub const HAIRPIN: &str = "PORTFWD.HAIRPIN";
/// The chain that decides on what is sent into an isolated network.
const ISOLATED: &str = "PORTFWD.ISOLATE";

/// Whether a network of the family is isolated.
pub(super) fn isolates(asked: &Asked, family: Family) -> bool {
    let networks = asked.networks.iter().filter(|owned| owned.rule.isolate);
    networks.flat_map(|owned| &owned.rule.subnets).any(|subnet| Family::of_network(*subnet) == family)
}

/// The rules about what passes through. Adds the chains that they jump to.
pub(super) fn rules(asked: &Asked, family: Family, hairpin: bool, host: &Host, mangle: &mut Contents) -> Vec<Rule> {
    let mut rules = Vec::new();
    if hairpin {
        let label = |bit, not| Match::Label { bit, not };
        let mark = Rule::jump(HAIRPIN).with(Match::State(States::New));
        rules.push(mark.with(label(FORWARDED, false)).with(label(UNMATCHED, true)).with(label(SKIP_HAIRPIN, true)));
        let back = |name: &IfName| Rule {
            input: interface(name, false),
            output: interface(name, false),
            ..Rule::default().with(Match::SetLabel(MASQUERADE))
        };
        let marks: Vec<Rule> = interfaces(asked, host).iter().map(back).collect();
        mangle.chains.insert(HAIRPIN.into(), Chain::from(marks));
    }
    if isolates(asked, family) {
        for owned in asked.networks.iter().filter(|owned| owned.rule.isolate) {
            let remark = format_comment(&owned.set, Some(&format_network(ISOLATE, &owned.rule)));
            for subnet in owned.rule.subnets.iter().filter(|subnet| Family::of_network(**subnet) == family) {
                let rule = Rule {
                    destination: Some(*subnet),
                    input: interface(&owned.rule.name, true),
                    output: interface(&owned.rule.name, false),
                    ..Rule::jump(ISOLATED)
                };
                rules.push(rule.with(Match::State(States::Unknown)).with(Match::Comment(remark.as_str().into())));
            }
        }
        let drop = |bit, not| Rule::to(Target::Drop).with(Match::Label { bit, not });
        mangle.chains.insert(ISOLATED.into(), Chain::from(vec![drop(UNMATCHED, false), drop(FORWARDED, true)]));
    }
    rules
}

/// The interfaces that are there, and those that rule sets name.
fn interfaces(asked: &Asked, host: &Host) -> BTreeSet<IfName> {
    let networks = asked.networks.iter().map(|owned| &owned.rule.name);
    let forwards = asked.bindings.iter().filter_map(|owned| owned.rule.interface.as_ref());
    let masquerades = asked.masquerades.iter().filter_map(|owned| owned.rule.out.as_ref());
    let snats = asked.snats.iter().filter_map(|owned| owned.rule.out.as_ref());
    let named = networks.chain(forwards).chain(masquerades).chain(snats);
    let nameable = |name: &&IfName| limits::of_interface(name).is_none();
    named.chain(&host.interfaces).filter(nameable).cloned().collect()
}

/// Keeps loopback addresses off the wire where a forward opens them. IPv6 needs none: the kernel drops ::1 from a wire by itself.
pub(super) fn guard(asked: &Asked, family: Family) -> Vec<Rule> {
    let opens = |binding: &crate::model::Binding| binding.loopback && binding.to.address.is_some();
    let Ok(lo) = IfName::try_from("lo".to_owned()) else { return Vec::new() };
    if family == Family::Ipv6 || !asked.bindings.iter().any(|owned| opens(&owned.rule)) {
        return Vec::new();
    }
    let network = Some(address::loopback(Family::Ipv4));
    let guard = || Rule { input: interface(&lo, true), ..Rule::to(Target::Drop) };
    vec![Rule { source: network, ..guard() }, Rule { destination: network, ..guard() }]
}
