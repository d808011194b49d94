//! Converts a program back to the model. The inverse of [`super::compile`].
//!
//! portfwd reads only chains that packets can reach from the built-in chains. A rule is foreign if portfwd cannot
//! convert it. Another program added such a rule to portfwd's chains.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::compile::{
    AddressScope, ChainsByTarget, HAIRPIN, Host, SAME, SOURCES, binding_rules, compile_unchecked, source_number_bits,
};
use super::program::{Contents, FamilyRules, Hook, PREFIX, Program, Table};
use super::rule::{DestinationPort, Match, Rule, Target, Transport};
use crate::model::error::printable;
use crate::model::label::{self, FORWARDED, LOOPBACK, MASQUERADE, Sources};
use crate::model::rule_comment::{NETMAP, parse_comment, parse_network};
use crate::model::{
    Binding, ChainName, Comment, Counter, DesiredState, Destination, Family, IfName, Masquerade, Netmap, Network,
    Observed, PortMap, SetName, SetRule, Snat, Source,
};

/// Converts a program to the model. The result also contains the counters, and the names of objects that portfwd did
/// not create.
pub fn lift(program: &Program) -> Observed {
    let mut held = Observed::default();
    let mut others = OtherRules::default();
    let mut chains = HashMap::new();
    let mut found: Vec<(SetRule<Binding>, Counter)> = Vec::new();
    for family in Family::ALL {
        let half = program.family(family);
        let forwards = Forwards::read(half, family);
        chains.extend(forwards.chains.clone());
        found.extend(forwards.complete());
        others.read(half, family);
    }
    found.sort_by(|(a, _), (b, _)| (&a.set, a.rule.sort_key()).cmp(&(&b.set, b.rule.sort_key())));
    (held.desired.bindings, held.counters) = found.into_iter().unzip();
    others.add_to(&mut held.desired);
    held.desired.normalize();
    held.foreign.extend(foreign_rules(program, &held.desired, chains));
    held.foreign.sort_unstable();
    held.foreign.dedup();
    held
}

/// Compiles the lifted state again. Returns the names of rules and chains that the compiled program lacks.
///
/// `chains` contains the chain of the forwards to each target. The lifted state can lack such a chain, because a
/// network without masquerading and isolation has no rules.
fn foreign_rules(program: &Program, desired: &DesiredState, chains: HashMap<IpAddr, Option<ChainName>>) -> Vec<String> {
    // If the name of a chain was shortened, the full name and the expected rules are unknown.
    let known = chains.into_iter().map(|(target, chain)| Some((target, chain?)));
    let Some(chains) = known.collect::<Option<ChainsByTarget>>() else { return Vec::new() };
    let shifts = Family::ALL.into_iter().any(|family| {
        let chains = program.family(family).nat.chains.values();
        chains.flat_map(|chain| &chain.rules).any(
            |rule| matches!(&rule.target, Some(Target::Dnat(to)) if matches!(to.port, DestinationPort::Shift { .. })),
        )
    });
    let hairpin_chains = Family::ALL.into_iter().filter_map(|family| program.family(family).mangle.chains.get(HAIRPIN));
    let interface = |rule: &Arc<Rule>| Some(rule.input.as_ref().filter(|_| rule.input == rule.output)?.name.clone());
    let interfaces = hairpin_chains.flat_map(|chain| &chain.rules).filter_map(interface).collect();
    let expected = compile_unchecked(desired, &Host { interfaces, shifts }, &chains);
    let mut foreign = Vec::new();
    for (family, table) in Family::ALL.into_iter().flat_map(|family| Table::ALL.map(|table| (family, table))) {
        let expected = &expected.family(family).table(table).chains;
        for (name, chain) in &program.family(family).table(table).chains {
            let table_name = format!("in table {} of {family}", table.name());
            let Some(known) = expected.get(name) else {
                foreign.push(printable(&format!("chain {name} {table_name}")));
                continue;
            };
            if known.rules == chain.rules {
                continue;
            }
            let known: HashSet<&Arc<Rule>> = known.rules.iter().collect();
            for rule in chain.rules.iter().filter(|rule| !known.contains(rule)) {
                let mut text = String::new();
                rule.write_to(&mut text);
                foreign.push(printable(&format!("rule `{}` of chain {name} {table_name}", text.trim())));
            }
        }
    }
    foreign
}

/// Returns the rules of portfwd's chain for a built-in chain. Returns no rules if the built-in chain does not jump to
/// portfwd's chain.
fn entry_rules(contents: &Contents, hook: Hook) -> &[Arc<Rule>] {
    let chain = contents.hooks.get(&hook).and_then(|_| contents.chains.get(hook.portfwd_chain().as_str()));
    chain.map(|chain| chain.rules.as_slice()).unwrap_or_default()
}

/// The maximum depth of jumps in the search for forwards. portfwd's jumps are at most 14 deep.
const MAX_JUMP_DEPTH: u8 = 16;

/// The properties that all rules of a chain of forwards share.
struct Root<'a> {
    /// The comment for rules without their own comment.
    default_comment: Option<&'a Arc<str>>,
    /// The chain name from the rule set; `None` if the name was shortened.
    chain: Option<ChainName>,
}

impl<'a> Root<'a> {
    fn from_jump(jump: &'a Rule) -> Self {
        let name = jump.jump_target().and_then(|name| name.strip_prefix(PREFIX)?.strip_prefix('-'));
        let chain = name.and_then(|name| match name.split_once('.') {
            Some((_, suffix)) if suffix.len() == 8 => None,
            Some((name, _)) => name.parse().ok(),
            None => name.parse().ok(),
        });
        Self { default_comment: jump.comment(), chain }
    }
}

/// The forwards of a family, read from the family's chains.
struct Forwards<'a> {
    half: &'a FamilyRules,
    family: Family,
    sources: Sources,
    /// The bindings that serve non-loopback addresses, or one loopback address.
    found: HashMap<SetRule<Binding>, Found>,
    /// The rules for loopback addresses, without comments, and their counters.
    loopback: HashMap<Rule, Counter>,
    /// The chain name of the forwards to each target. `None` if the name was shortened.
    chains: HashMap<IpAddr, Option<ChainName>>,
}

/// The rules that were found for a binding.
#[derive(Default)]
struct Found {
    /// The number of rules that belong to the binding.
    rules: usize,
    /// True if one rule serves all ports of the binding.
    all_ports: bool,
    /// The sum of the rules' counters.
    sum: Counter,
}

impl<'a> Forwards<'a> {
    fn read(half: &'a FamilyRules, family: Family) -> Self {
        let sources = Sources::from_elements(sources(&half.nat));
        let (found, loopback, chains) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut forwards = Self { half, family, sources, found, loopback, chains };
        let is_loopback = |jump: &Rule| jump.destination == Some(crate::model::address::loopback(family));
        let jumps = |hook| entry_rules(&half.nat, hook).iter().filter(|rule| rule.jump_target().is_some());
        for jump in jumps(Hook::Prerouting).filter(|jump| !is_loopback(jump)) {
            let root = Root::from_jump(jump);
            forwards.walk(jump, &root, AddressScope::NonLoopback, MAX_JUMP_DEPTH, &mut HashSet::new());
        }
        for jump in jumps(Hook::Output).filter(|jump| is_loopback(jump)) {
            let root = Root::from_jump(jump);
            forwards.walk(jump, &root, AddressScope::Loopback, MAX_JUMP_DEPTH, &mut HashSet::new());
        }
        forwards
    }

    /// Reads the chain that `jump` jumps to, and all chains below. Skips visited chains, because portfwd jumps to each
    /// of its chains only once.
    fn walk(
        &mut self,
        jump: &'a Rule,
        root: &Root<'a>,
        scope: AddressScope,
        depth: u8,
        visited: &mut HashSet<&'a str>,
    ) {
        let half = self.half;
        let chain = jump.jump_target().and_then(|name| half.nat.chains.get_key_value(name));
        let (Some((name, chain)), Some(deeper)) = (chain, depth.checked_sub(1)) else { return };
        if !visited.insert(name) {
            return;
        }
        for (index, rule) in chain.rules.iter().enumerate() {
            if rule.jump_target().is_some() {
                self.walk(rule, root, scope, deeper, visited);
            } else {
                // `foreign_rules` reports the rules that cannot be read.
                let _: Option<()> = self.add_rule(rule, root, scope, chain.counter(index));
            }
        }
    }

    fn add_rule(&mut self, rule: &Rule, root: &Root<'_>, scope: AddressScope, counter: Counter) -> Option<()> {
        let (set, remark) = parse_comment(rule.comment().or(root.default_comment)?)?;
        if let Some(Target::Dnat(to)) = &rule.target {
            self.chains.insert(to.address, root.chain.clone());
        }
        if scope == AddressScope::Loopback {
            self.loopback.insert(without_comment(rule), counter);
            if rule.destination.is_none() {
                // A rule without a destination address belongs to a forward that also has a rule for non-loopback
                // addresses.
                return Some(());
            }
        }
        let all_ports = rule.part_of.is_none();
        let rule = read_binding(rule, self.family, scope, &self.sources, remark)?;
        let found = self.found.entry(SetRule { set, rule }).or_default();
        found.rules += 1;
        found.all_ports |= all_ports;
        found.sum.add(counter);
        Some(())
    }

    /// Returns the bindings whose rules are complete, with the sums of the counters.
    fn complete(mut self) -> Vec<(SetRule<Binding>, Counter)> {
        let mut bindings = Vec::with_capacity(self.found.len());
        for (owned, Found { rules: count, all_ports, mut sum }) in std::mem::take(&mut self.found) {
            let rule = &owned.rule;
            let scope = if rule.serves_non_loopback() { AddressScope::NonLoopback } else { AddressScope::Loopback };
            // If iptables can shift port ranges, one rule serves all ports of a range. Otherwise each port has its own
            // rule.
            let rules = |scope, shifts| {
                let mut rules = Vec::new();
                binding_rules(rule, scope, None, &self.sources, shifts, |rule| rules.push(rule));
                rules
            };
            let mut complete =
                all_ports && count == 1 && rules(scope, true).len() == 1 || count == rules(scope, false).len();
            if complete && rule.loopback && rule.serves_non_loopback() {
                let counters = |shifts| -> Option<Vec<Counter>> {
                    rules(AddressScope::Loopback, shifts).iter().map(|rule| self.loopback.get(rule).copied()).collect()
                };
                let counters = counters(true).or_else(|| counters(false));
                complete = counters.is_some();
                counters.into_iter().flatten().for_each(|counter| sum.add(counter));
            }
            if complete {
                bindings.push((owned, sum));
            }
        }
        bindings
    }
}

fn without_comment(rule: &Rule) -> Rule {
    let matches = rule.matches.iter().filter(|found| !matches!(found, Match::Comment(_))).cloned().collect();
    Rule { matches, ..rule.clone() }
}

/// Reads the binding that a rule belongs to. The inverse of [`binding_rules`].
fn read_binding(
    rule: &Rule,
    family: Family,
    scope: AddressScope,
    sources: &Sources,
    remark: Option<&str>,
) -> Option<Binding> {
    let Some(Transport::Ports(protocol)) = rule.protocol else { return None };
    let port = rule.ports?;
    let ports = rule.part_of.unwrap_or(port);
    let any_source = rule.matches.contains(&Match::any_source(family));
    let (address, to) = match rule.target.as_ref()? {
        Target::Dnat(to) => (Some(to.address), to.port),
        Target::Redirect(None) => (None, DestinationPort::Keep),
        Target::Redirect(Some(port)) => (None, DestinationPort::One(*port)),
        _ => return None,
    };
    let mapped = match to {
        DestinationPort::Keep => PortMap::identity(ports),
        DestinationPort::One(to) if rule.part_of.is_some() => {
            PortMap::Shift(to.checked_sub(port.first().checked_sub(ports.first())?)?)
        }
        DestinationPort::One(to) => PortMap::One(to),
        DestinationPort::Shift { to, base } => {
            (base == ports.first() && to.width() == ports.width()).then_some(PortMap::Shift(to.first()))?
        }
    };
    let mut binding = Binding {
        family,
        address: rule.destination.map(|network| network.ip()),
        interface: rule.input.as_ref().filter(|input| !input.not).map(|input| input.name.clone()),
        from: if any_source { family_network(family) } else { rule.source },
        protocol,
        ports,
        to: Destination { address, port: mapped },
        source: Source::Keep,
        hairpin: true,
        loopback: scope == AddressScope::Loopback,
        comment: remark.map(|text| Comment::try_from(text.to_owned())).transpose().ok()?,
    };
    let own: Vec<u8> = rule.labels().collect();
    match scope {
        AddressScope::NonLoopback if own.is_empty() => {}
        AddressScope::NonLoopback => {
            let all: Vec<u8> = own.iter().copied().chain([FORWARDED]).collect();
            label::decode(&label::to_bits(&all), sources, &mut binding)?;
        }
        // `iptables::compile` gives the connection label `MASQUERADE` to every connection from this host that a
        // loopback forward sends to another host.
        AddressScope::Loopback if own.is_empty() || own == [MASQUERADE] => {}
        AddressScope::Loopback => label::decode(&label::to_bits(&own), sources, &mut binding)?,
    }
    let loopback = own.contains(&LOOPBACK) || scope == AddressScope::Loopback;
    (binding.loopback == loopback && binding.to.address.is_none_or(|to| Family::of_address(to) == family))
        .then_some(binding)
}

/// Returns the network that contains all addresses of a family.
fn family_network(family: Family) -> Option<IpNetwork> {
    let any: IpAddr = match family {
        Family::Ipv4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::Ipv6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNetwork::new(any, 0).ok()
}

/// Reads the source addresses of forwards and the IDs of these addresses.
fn sources(nat: &Contents) -> Vec<(u32, IpAddr)> {
    let mut found = Vec::new();
    let (mut next, mut visited) = (vec![(SOURCES, 0)], HashSet::new());
    while let Some((name, number)) = next.pop() {
        let chain = nat.chains.get(name).filter(|_| visited.insert(name));
        for rule in chain.map(|chain| chain.rules.as_slice()).unwrap_or_default() {
            let number = number | source_number_bits(rule);
            match &rule.target {
                Some(Target::Snat(pool, _)) => found.push((number, pool.first())),
                Some(Target::Jump(chain)) => next.push((chain, number)),
                _ => {}
            }
        }
    }
    found
}

/// The rules of both families that do not belong to forwards.
#[derive(Default)]
struct OtherRules {
    networks: BTreeMap<(SetName, IfName), Network>,
    /// The number of rules of each 1:1 translation. A complete translation has three rules, in `PREROUTING`, `OUTPUT`
    /// and `POSTROUTING`. If one rule is missing, the translation counts as missing. A rule set may contain the same
    /// translation twice.
    netmaps: BTreeMap<SetRule<Netmap>, usize>,
    masquerades: Vec<SetRule<Masquerade>>,
    /// The masquerades without a prefix. For each masquerade, the numbers of its IPv4 rules and its IPv6 rules.
    both_families: BTreeMap<SetRule<Masquerade>, [usize; 2]>,
    snats: Vec<SetRule<Snat>>,
}

impl OtherRules {
    fn read(&mut self, half: &FamilyRules, family: Family) {
        let hooks = [
            (&half.nat, Hook::Prerouting),
            (&half.nat, Hook::Output),
            (&half.nat, Hook::Postrouting),
            (&half.mangle, Hook::Forward),
        ];
        for (contents, hook) in hooks {
            for rule in entry_rules(contents, hook) {
                // A rule of portfwd without a comment belongs to no rule set. `Forwards` reads the jumps to forwards.
                let Some(comment) = rule.comment().filter(|_| !is_forward_jump(rule, hook)) else { continue };
                let _: Option<()> = self.add_rule(rule, comment, family, hook);
            }
        }
    }

    fn add_rule(&mut self, rule: &Rule, comment: &str, family: Family, hook: Hook) -> Option<()> {
        let (set, remark) = parse_comment(comment)?;
        let out = rule.output.as_ref().filter(|out| !out.not).map(|out| out.name.clone());
        match (&rule.target, remark) {
            (_, Some(SAME)) => {}
            (Some(Target::Netmap(to)), Some(NETMAP)) if hook == Hook::Postrouting => {
                *self.netmaps.entry(SetRule { set, rule: Netmap { listen: *to, to: rule.source? } }).or_default() += 1;
            }
            (Some(Target::Netmap(to)), Some(NETMAP)) => {
                let netmap = Netmap { listen: rule.destination?, to: *to };
                *self.netmaps.entry(SetRule { set, rule: netmap }).or_default() += 1;
            }
            (_, Some(remark)) => {
                parse_network(set, remark, rule.source.or(rule.destination)?, &mut self.networks)?;
            }
            (Some(Target::Snat(pool, mode)), None) => {
                self.snats.push(SetRule { set, rule: Snat { from: rule.source, out, to: *pool, mode: *mode } });
            }
            (Some(Target::Masquerade), None) => {
                let any_source =
                    rule.matches.contains(&Match::any_source(family)).then(|| family_network(family)).flatten();
                let masquerade = SetRule { set, rule: Masquerade { from: rule.source.or(any_source), out } };
                if masquerade.rule.from.is_some() {
                    self.masquerades.push(masquerade);
                } else {
                    let [ipv4, ipv6] = self.both_families.entry(masquerade).or_default();
                    *(if family == Family::Ipv4 { ipv4 } else { ipv6 }) += 1;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn add_to(self, desired: &mut DesiredState) {
        desired.networks = self.networks.into_iter().map(|((set, _), rule)| SetRule { set, rule }).collect();
        let times = |(netmap, count)| std::iter::repeat_n(netmap, count / 3);
        desired.netmaps = self.netmaps.into_iter().flat_map(times).collect();
        desired.masquerades = self.masquerades;
        let both = |(rule, [ipv4, ipv6]): (SetRule<Masquerade>, [usize; 2])| std::iter::repeat_n(rule, ipv4.min(ipv6));
        desired.masquerades.extend(self.both_families.into_iter().flat_map(both));
        desired.snats = self.snats;
    }
}

/// Returns true if a rule jumps to a chain of forwards. The comment of the jump applies to rules in the chain without
/// their own comment.
fn is_forward_jump(rule: &Rule, hook: Hook) -> bool {
    rule.jump_target().is_some() && matches!(hook, Hook::Prerouting | Hook::Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::compile::compile;
    use crate::model::{Forward, RuleSet};

    fn desired(count: u16) -> DesiredState {
        let mut set = RuleSet::new(SetName::cli());
        let unusual = [
            ("1000", "10.0.0.2", "masquerade", true, false),
            ("1001-1005/udp", "10.0.0.2", "192.0.2.9", true, false),
            ("1006-1009", "10.0.0.2:2006-2009", "192.0.2.10", true, true),
            ("1010", "fd00::2", "2001:db8::9", true, false),
            ("1011", "fd00::2", "keep", false, false),
            ("1012", "10.0.0.2", "keep", true, true),
            ("1013", "10.0.0.2", "keep", false, true),
            ("192.0.2.1:1014", "10.0.0.2", "masquerade", true, true),
            ("127.0.0.1:1015", "10.0.0.2", "keep", true, true),
            ("127.0.0.1:1016", "10.0.0.2", "masquerade", true, true),
            ("127.0.0.1:1017-1019", "10.0.0.2:3017-3019", "192.0.2.9", true, true),
            ("1020", ":1021", "keep", true, true),
            ("[::1]:1022", ":1021", "keep", true, true),
            ("1023-1025", ":2023-2025", "keep", true, true),
            ("1026-1029", ":2023", "keep", true, false),
            ("[2001:db8::1]:1030-1039", "[fd00::2]:2030-2039", "keep", true, false),
        ];
        for (listen, to, source, hairpin, loopback) in unusual {
            let mut forward = Forward::new(listen.parse().expect(listen), to.parse().expect(to));
            forward.source = source.parse().expect(source);
            (forward.hairpin, forward.loopback) = (hairpin, loopback);
            set.forwards.push(forward);
        }
        for port in 2_000..2_000 + count {
            let to = format!("10.1.{}.{}", port / 250, port % 250 + 1);
            let listen = if port % 3 == 0 { format!("{port}/udp") } else { format!("{port}") };
            let mut forward = Forward::new(listen.parse().expect("listen"), to.parse().expect("target"));
            forward.comment = (port % 7 == 0).then(|| format!("p {port}").parse().expect("comment"));
            forward.from = if port % 5 == 0 { vec!["0.0.0.0/0".parse().expect("prefix")] } else { Vec::new() };
            set.forwards.push(forward);
        }
        let mut desired = DesiredState::default();
        desired.add(&set).expect("valid");
        desired.settings.clear();
        desired.normalize();
        desired
    }

    #[test]
    fn lift_inverts_compile() {
        for (count, shifts) in [(0, true), (0, false), (3_000, true)] {
            let desired = desired(count);
            let host = Host { shifts, ..Host::default() };
            let held = lift(&compile(&desired, &host).expect("compiles"));
            assert_eq!(held.foreign, Vec::<String>::new());
            assert_eq!(held.desired, desired);
        }
    }

    #[test]
    fn a_shifted_range_with_missing_ports_is_not_lifted() {
        let desired = desired(0);
        let mut program = compile(&desired, &Host::default()).expect("compiles");
        let count = lift(&program).desired.bindings.len();
        for chain in program.ipv4.nat.chains.values_mut() {
            let mut first = true;
            let other = |rule: &Rule| rule.part_of.is_none_or(|range| range.first() != 1006);
            chain.rules.retain(|rule| other(rule) || std::mem::take(&mut first));
        }
        let held = lift(&program);
        assert!(held.desired.bindings.iter().all(|owned| owned.rule.ports.first() != 1006), "{program}");
        assert_eq!(held.desired.bindings.len(), count - 1);
    }

    #[test]
    fn lifting_a_cycle_of_chains_terminates() {
        let mut program = compile(&desired(0), &Host { shifts: true, ..Host::default() }).expect("compiles");
        let nat = &mut program.ipv4.nat;
        for name in nat.chains.keys().cloned().collect::<Vec<_>>() {
            let jumps: Vec<Arc<Rule>> = nat.chains.keys().map(|name| Rule::jump(name).into()).collect();
            nat.chains.get_mut(&name).expect("there").rules.splice(0..0, jumps);
        }
        lift(&program);
    }

    #[test]
    fn unreachable_chains_are_not_lifted() {
        let desired = desired(0);
        let mut program = compile(&desired, &Host { shifts: true, ..Host::default() }).expect("compiles");
        program.ipv4.nat.hooks.remove(&Hook::Prerouting);
        program.ipv4.nat.hooks.remove(&Hook::Output);
        assert!(lift(&program).desired.bindings.iter().all(|owned| owned.rule.family == Family::Ipv6));
    }
}
