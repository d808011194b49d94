//! Compiles the rules of the table `mangle`: hairpin NAT, isolated networks, and the guard for loopback addresses.
//!
//! ```text
//! -A PORTFWD.FORWARD -m conntrack --ctstate NEW -m connlabel --label 121 -m connlabel ! --label 117 -m connlabel ! --label 119 -j PORTFWD.HAIRPIN
//! -A PORTFWD.HAIRPIN -i eth0 -o eth0 -m connlabel --label 120 --set
//! -A PORTFWD.FORWARD -d 172.17.0.0/16 ! -i docker0 -o docker0 -m conntrack --ctstate INVALID,NEW,UNTRACKED -m comment --comment "web: isolate docker0 DOCKER" -j PORTFWD.ISOLATE
//! -A PORTFWD.ISOLATE -m connlabel --label 117 -j DROP
//! -A PORTFWD.ISOLATE -m connlabel ! --label 121 -j DROP
//! -A PORTFWD.PREROUTING ! -i lo -s 127.0.0.0/8 -j DROP
//! ```
//! A packet of a hairpin client enters and leaves by the same interface. iptables cannot compare two interfaces, so
//! each interface of the host has one rule. An interface that only a rule set contains also has a rule, because the
//! interface may be created later.
//!
//! The table `mangle` sees every packet, even if the table `filter` accepts the packet. The guard of the nftables
//! backend runs before connection tracking. This guard may run after connection tracking, because conntrack does not
//! keep a connection whose first packet is dropped.

use std::collections::BTreeSet;

use super::conditions::interface_match;
use super::host::Host;
use crate::iptables::limits;
use crate::iptables::program::{Chain, Contents};
use crate::iptables::rule::{Match, Rule, States, Target};
use crate::model::label::{FORWARDED, MASQUERADE, SKIP_HAIRPIN, UNMATCHED};
use crate::model::rule_comment::{ISOLATE, format_comment, format_network};
use crate::model::{DesiredState, Family, IfName, address};

/// The chain that labels hairpin connections, with one rule for each interface.
pub const HAIRPIN: &str = "PORTFWD.HAIRPIN";
/// The chain that drops packets to isolated networks.
const ISOLATED: &str = "PORTFWD.ISOLATE";

/// Returns true if an isolated network has a subnet of the family.
pub(super) fn isolates(desired: &DesiredState, family: Family) -> bool {
    let networks = desired.networks.iter().filter(|owned| owned.rule.isolate);
    networks.flat_map(|owned| &owned.rule.subnets).any(|subnet| Family::of_network(*subnet) == family)
}

/// Returns the rules for the chain `FORWARD`. Adds the chains that these rules jump to.
pub(super) fn rules(
    desired: &DesiredState,
    family: Family,
    hairpin: bool,
    host: &Host,
    mangle: &mut Contents,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    if hairpin {
        let label = |bit, not| Match::Label { bit, not };
        let jump = Rule::jump(HAIRPIN).with_match(Match::State { not: false, states: States::NEW });
        let labels = [label(FORWARDED, false), label(UNMATCHED, true), label(SKIP_HAIRPIN, true)];
        rules.push(labels.into_iter().fold(jump, Rule::with_match));
        let hairpin_rule = |name: &IfName| Rule {
            input: interface_match(name, false),
            output: interface_match(name, false),
            ..Rule::default().with_match(Match::SetLabel(MASQUERADE))
        };
        let hairpin_rules: Vec<Rule> = interfaces(desired, host).iter().map(hairpin_rule).collect();
        mangle.chains.insert(HAIRPIN.into(), Chain::from(hairpin_rules));
    }
    if isolates(desired, family) {
        for owned in desired.networks.iter().filter(|owned| owned.rule.isolate) {
            let remark = format_comment(&owned.set, Some(&format_network(ISOLATE, &owned.rule)));
            for subnet in owned.rule.subnets.iter().filter(|subnet| Family::of_network(**subnet) == family) {
                let rule = Rule {
                    destination: Some(*subnet),
                    input: interface_match(&owned.rule.name, true),
                    output: interface_match(&owned.rule.name, false),
                    ..Rule::jump(ISOLATED)
                };
                let rule = rule.with_match(Match::State { not: false, states: States::NOT_ESTABLISHED });
                rules.push(rule.with_match(Match::Comment(remark.as_str().into())));
            }
        }
        let drop = |bit, not| Rule::with_target(Target::Drop).with_match(Match::Label { bit, not });
        mangle.chains.insert(ISOLATED.into(), Chain::from(vec![drop(UNMATCHED, false), drop(FORWARDED, true)]));
    }
    rules
}

/// Returns the interfaces of the host and of the rule sets, except interfaces that iptables cannot match.
fn interfaces(desired: &DesiredState, host: &Host) -> BTreeSet<IfName> {
    let networks = desired.networks.iter().map(|owned| &owned.rule.name);
    let forwards = desired.bindings.iter().filter_map(|owned| owned.rule.interface.as_ref());
    let masquerades = desired.masquerades.iter().filter_map(|owned| owned.rule.out.as_ref());
    let snats = desired.snats.iter().filter_map(|owned| owned.rule.out.as_ref());
    let named = networks.chain(forwards).chain(masquerades).chain(snats);
    let supported = |name: &&IfName| limits::of_interface(name).is_none();
    named.chain(&host.interfaces).filter(supported).cloned().collect()
}

/// Returns the rules that drop packets from other hosts with loopback addresses. Returns no rules if no forward needs
/// the guard. IPv6 needs no guard, because the kernel drops packets with ::1 from a network.
pub(super) fn guard(desired: &DesiredState, family: Family) -> Vec<Rule> {
    let opens = |binding: &crate::model::Binding| binding.loopback && binding.to.address.is_some();
    let Ok(lo) = IfName::try_from("lo".to_owned()) else { return Vec::new() };
    if family == Family::Ipv6 || !desired.bindings.iter().any(|owned| opens(&owned.rule)) {
        return Vec::new();
    }
    let network = Some(address::loopback(Family::Ipv4));
    let guard = || Rule { input: interface_match(&lo, true), ..Rule::with_target(Target::Drop) };
    vec![Rule { source: network, ..guard() }, Rule { destination: network, ..guard() }]
}
