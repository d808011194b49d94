//! A program lifted back into the model; the other direction of [`super::compile`].
//!
//! Chains are walked from the built-in ones, so what no packet reaches is not there. What cannot be lifted is counted as
//! foreign: somebody else put it into our chains.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::compile::{HAIRPIN, Homes, Host, Place, SAME, SOURCES, compile_all, number_bits, rules_of};
use super::program::{Contents, Half, Hook, PREFIX, Program, Table};
use super::rule::{DestinationPort, Match, Rule, Target, Transport};
use crate::model::error::printable;
use crate::model::label::{self, LOOPBACK, MASQUERADE, OURS, Sources};
use crate::model::rule_comment::{NETMAP, read_comment, read_network};
use crate::model::{
    Asked, Binding, ChainName, Comment, Counter, Destination, Family, Held, IfName, Masquerade, Netmap, Network, Owned,
    PortMap, SetName, Snat, Source,
};

/// Lifts a program.
pub fn lift(program: &Program) -> Held {
    let mut held = Held::default();
    let mut rest = Rest::default();
    let mut homes = HashMap::new();
    let mut found: Vec<(Owned<Binding>, Counter)> = Vec::new();
    for family in Family::ALL {
        let half = program.of(family);
        let forwards = Forwards::read(half, family);
        homes.extend(forwards.homes.clone());
        found.extend(forwards.whole());
        rest.read(half, family);
    }
    found.sort_by(|(a, _), (b, _)| (&a.set, a.rule.sort_key()).cmp(&(&b.set, b.rule.sort_key())));
    (held.asked.bindings, held.counters) = found.into_iter().unzip();
    rest.put(&mut held.asked);
    held.asked.normalize();
    held.foreign.extend(strangers(program, &held.asked, homes));
    held.foreign.sort_unstable();
    held.foreign.dedup();
    held
}

/// Names the rules in our chains that what was lifted does not account for, and chains that it has no use for.
///
/// `homes` are the chains that forwards to each target are in. A network that neither masquerades nor isolates leaves nothing
/// but that to be lifted.
fn strangers(program: &Program, asked: &Asked, homes: HashMap<IpAddr, Option<ChainName>>) -> Vec<String> {
    // What the whole of a name that was cut is cannot be told, nor then what else is ours.
    let Some(homes) = homes.into_iter().map(|(target, chain)| Some((target, chain?))).collect::<Option<Homes>>() else {
        return Vec::new();
    };
    let shifts = Family::ALL.into_iter().any(|family| {
        let chains = program.of(family).nat.chains.values();
        chains.flat_map(|chain| &chain.rules).any(
            |rule| matches!(&rule.target, Some(Target::Dnat(to)) if matches!(to.port, DestinationPort::Shift { .. })),
        )
    });
    let hairpin = Family::ALL.into_iter().filter_map(|family| program.of(family).mangle.chains.get(HAIRPIN));
    let back = |rule: &Arc<Rule>| Some(rule.input.as_ref().filter(|_| rule.input == rule.output)?.name.clone());
    let interfaces = hairpin.flat_map(|chain| &chain.rules).filter_map(back).collect();
    let expected = compile_all(asked, &Host { interfaces, shifts }, &homes);
    let mut strange = Vec::new();
    for (family, table) in Family::ALL.into_iter().flat_map(|family| Table::ALL.map(|table| (family, table))) {
        let expected = &expected.of(family).of(table).chains;
        for (name, chain) in &program.of(family).of(table).chains {
            let place = format!("in table {} of {family}", table.name());
            let Some(known) = expected.get(name) else {
                strange.push(printable(&format!("chain {name} {place}")));
                continue;
            };
            if known.rules == chain.rules {
                continue;
            }
            let known: HashSet<&Arc<Rule>> = known.rules.iter().collect();
            for rule in chain.rules.iter().filter(|rule| !known.contains(rule)) {
                let mut text = String::new();
                rule.put(family, &mut text);
                strange.push(printable(&format!("rule `{}` of chain {name} {place}", text.trim())));
            }
        }
    }
    strange
}

/// The chain that a built-in chain jumps to, if it does.
fn entry(contents: &Contents, hook: Hook) -> &[Arc<Rule>] {
    let chain = contents.hooks.get(&hook).and_then(|_| contents.chains.get(hook.entry().as_str()));
    chain.map(|chain| chain.rules.as_slice()).unwrap_or_default()
}

/// How many jumps deep forwards are looked for; ours are no deeper than 14.
const DEEPEST: u8 = 16;

/// Where forwards are looked for from.
struct Root<'a> {
    /// Whose rules without a comment are.
    owner: Option<&'a Arc<str>>,
    /// The chain name of the forwards; none where it is cut.
    chain: Option<ChainName>,
}

impl<'a> Root<'a> {
    fn of(jump: &'a Rule) -> Self {
        let name = jump.asks().and_then(|name| name.strip_prefix(PREFIX)?.strip_prefix('-'));
        let chain = name.and_then(|name| match name.split_once('.') {
            Some((_, behind)) if behind.len() == 8 => None,
            Some((name, _)) => name.parse().ok(),
            None => name.parse().ok(),
        });
        Self { owner: jump.comment(), chain }
    }
}

/// The forwards of a family.
struct Forwards<'a> {
    half: &'a Half,
    family: Family,
    sources: Sources,
    /// What is served at other than loopback addresses, or at one of them alone.
    found: HashMap<Owned<Binding>, Found>,
    /// The rules about loopback addresses, without comments.
    loopback: HashMap<Rule, Counter>,
    /// The chain that forwards to a target are in; none where its name is cut.
    homes: HashMap<IpAddr, Option<ChainName>>,
}

/// What there is of a binding.
#[derive(Default)]
struct Found {
    /// How many rules.
    rules: usize,
    /// Whether one of them is about all its ports.
    all_ports: bool,
    /// What they counted.
    sum: Counter,
}

impl<'a> Forwards<'a> {
    fn read(half: &'a Half, family: Family) -> Self {
        let sources = Sources::read(sources(&half.nat));
        let (found, loopback, homes) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut forwards = Self { half, family, sources, found, loopback, homes };
        let local = |jump: &Rule| jump.destination == Some(crate::model::address::loopback(family));
        let jumps = |hook| entry(&half.nat, hook).iter().filter(|rule| rule.asks().is_some());
        for jump in jumps(Hook::Prerouting).filter(|jump| !local(jump)) {
            forwards.walk(jump, &Root::of(jump), Place::Outside, DEEPEST, &mut HashSet::new());
        }
        for jump in jumps(Hook::Output).filter(|jump| local(jump)) {
            forwards.walk(jump, &Root::of(jump), Place::Loopback, DEEPEST, &mut HashSet::new());
        }
        forwards
    }

    /// Reads the chain that a rule jumps to, and those behind it that were not met yet: ours are jumped to once.
    fn walk(&mut self, jump: &'a Rule, root: &Root<'a>, place: Place, depth: u8, met: &mut HashSet<&'a str>) {
        let half = self.half;
        let chain = jump.asks().and_then(|name| half.nat.chains.get_key_value(name));
        let (Some((name, chain)), Some(deeper)) = (chain, depth.checked_sub(1)) else { return };
        if !met.insert(name) {
            return;
        }
        for (at, rule) in chain.rules.iter().enumerate() {
            if rule.asks().is_some() {
                self.walk(rule, root, place, deeper, met);
            } else {
                // What is none of ours is not accounted for by what was lifted.
                let _: Option<()> = self.leaf(rule, root, place, chain.counter(at));
            }
        }
    }

    fn leaf(&mut self, rule: &Rule, root: &Root<'_>, place: Place, counter: Counter) -> Option<()> {
        let (set, remark) = read_comment(rule.comment().or(root.owner)?)?;
        if let Some(Target::Dnat(to)) = &rule.target {
            self.homes.insert(to.address, root.chain.clone());
        }
        if place == Place::Loopback {
            self.loopback.insert(without_comment(rule), counter);
            if rule.destination.is_none() {
                // It belongs to a forward that is found outside.
                return Some(());
            }
        }
        let all_ports = rule.part_of.is_none();
        let rule = binding(rule, self.family, place, &self.sources, remark)?;
        let found = self.found.entry(Owned { set, rule }).or_default();
        found.rules += 1;
        found.all_ports |= all_ports;
        found.sum.add(counter);
        Some(())
    }

    /// The forwards of which no rule is missing.
    fn whole(mut self) -> Vec<(Owned<Binding>, Counter)> {
        let mut whole = Vec::with_capacity(self.found.len());
        for (owned, Found { rules: count, all_ports, mut sum }) in std::mem::take(&mut self.found) {
            let rule = &owned.rule;
            let place = if rule.serves_others() { Place::Outside } else { Place::Loopback };
            // Where this host's iptables shifts ranges, one rule is about all ports; otherwise there is one for each.
            let rules = |place, shifts| {
                let mut rules = Vec::new();
                rules_of(rule, place, None, &self.sources, shifts, |rule| rules.push(rule));
                rules
            };
            let mut there =
                all_ports && count == 1 && rules(place, true).len() == 1 || count == rules(place, false).len();
            if there && rule.loopback && rule.serves_others() {
                let counters = |shifts| -> Option<Vec<Counter>> {
                    rules(Place::Loopback, shifts).iter().map(|rule| self.loopback.get(rule).copied()).collect()
                };
                let counters = counters(true).or_else(|| counters(false));
                there = counters.is_some();
                counters.into_iter().flatten().for_each(|counter| sum.add(counter));
            }
            if there {
                whole.push((owned, sum));
            }
        }
        whole
    }
}

fn without_comment(rule: &Rule) -> Rule {
    let matches = rule.matches.iter().filter(|found| !matches!(found, Match::Comment(_))).cloned().collect();
    Rule { matches, ..rule.clone() }
}

/// Reads a rule back into the binding that it is all or a part of; the other direction of [`rules_of`].
fn binding(rule: &Rule, family: Family, place: Place, sources: &Sources, remark: Option<&str>) -> Option<Binding> {
    let Some(Transport::Ports(protocol)) = rule.protocol else { return None };
    let port = rule.ports?;
    let ports = rule.part_of.unwrap_or(port);
    let everyone = rule.matches.contains(&Match::Everyone);
    let (address, to) = match rule.target.as_ref()? {
        Target::Dnat(to) => (Some(to.address), to.port),
        Target::Redirect(None) => (None, DestinationPort::Keep),
        Target::Redirect(Some(port)) => (None, DestinationPort::One(*port)),
        _ => return None,
    };
    let mapped = match to {
        DestinationPort::Keep => PortMap::kept(ports),
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
        from: if everyone { everybody(family) } else { rule.source },
        protocol,
        ports,
        to: Destination { address, port: mapped },
        source: Source::Keep,
        hairpin: true,
        loopback: place == Place::Loopback,
        comment: remark.map(|text| Comment::try_from(text.to_owned())).transpose().ok()?,
    };
    let own: Vec<u8> = rule.labels().collect();
    match place {
        Place::Outside if own.is_empty() => {}
        Place::Outside => {
            let all: Vec<u8> = own.iter().copied().chain([OURS]).collect();
            label::read(&label::bits(&all), sources, &mut binding)?;
        }
        // What every such connection gets says nothing.
        Place::Loopback if own.is_empty() || own == [MASQUERADE] => {}
        Place::Loopback => label::read(&label::bits(&own), sources, &mut binding)?,
    }
    let claims = own.contains(&LOOPBACK) || place == Place::Loopback;
    (binding.loopback == claims && binding.to.address.is_none_or(|to| Family::of(to) == family)).then_some(binding)
}

/// The network of every address of a family.
fn everybody(family: Family) -> Option<IpNetwork> {
    let any: IpAddr = match family {
        Family::Ipv4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::Ipv6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNetwork::new(any, 0).ok()
}

/// The numbers of the addresses that labels name.
fn sources(nat: &Contents) -> Vec<(u32, IpAddr)> {
    let mut found = Vec::new();
    // From one chain to the next; each is jumped to once.
    let (mut next, mut met) = (vec![(SOURCES, 0)], HashSet::new());
    while let Some((name, number)) = next.pop() {
        let chain = nat.chains.get(name).filter(|_| met.insert(name));
        for rule in chain.map(|chain| chain.rules.as_slice()).unwrap_or_default() {
            let number = number | number_bits(rule);
            match &rule.target {
                Some(Target::Snat(pool, _)) => found.push((number, pool.first())),
                Some(Target::Jump(behind)) => next.push((behind, number)),
                _ => {}
            }
        }
    }
    found
}

/// Everything but forwards, of both families.
#[derive(Default)]
struct Rest {
    networks: BTreeMap<(SetName, IfName), Network>,
    /// Arriving, sent by this host, and leaving: with one of them missing it is not there. A set may say it twice.
    netmaps: BTreeMap<Owned<Netmap>, usize>,
    masquerades: Vec<Owned<Masquerade>>,
    /// Those without a prefix, of each family.
    for_both: BTreeMap<Owned<Masquerade>, [usize; 2]>,
    snats: Vec<Owned<Snat>>,
}

impl Rest {
    fn read(&mut self, half: &Half, family: Family) {
        let of = [
            (&half.nat, Hook::Prerouting),
            (&half.nat, Hook::Output),
            (&half.nat, Hook::Postrouting),
            (&half.mangle, Hook::Forward),
        ];
        for (contents, hook) in of {
            for rule in entry(contents, hook) {
                // Rules of our own making that no set asked for have no comment; forwards are read elsewhere.
                let Some(comment) = rule.comment().filter(|_| !leads_to_forwards(rule, hook)) else { continue };
                let _: Option<()> = self.rule(rule, comment, family, hook);
            }
        }
    }

    fn rule(&mut self, rule: &Rule, comment: &str, family: Family, hook: Hook) -> Option<()> {
        let (set, remark) = read_comment(comment)?;
        let out = rule.output.as_ref().filter(|out| !out.not).map(|out| out.name.clone());
        match (&rule.target, remark) {
            (_, Some(SAME)) => {}
            (Some(Target::Netmap(to)), Some(NETMAP)) if hook == Hook::Postrouting => {
                *self.netmaps.entry(Owned { set, rule: Netmap { listen: *to, to: rule.source? } }).or_default() += 1;
            }
            (Some(Target::Netmap(to)), Some(NETMAP)) => {
                let netmap = Netmap { listen: rule.destination?, to: *to };
                *self.netmaps.entry(Owned { set, rule: netmap }).or_default() += 1;
            }
            (_, Some(remark)) => {
                read_network(set, remark, rule.source.or(rule.destination)?, &mut self.networks)?;
            }
            (Some(Target::Snat(pool, mode)), None) => {
                self.snats.push(Owned { set, rule: Snat { from: rule.source, out, to: *pool, mode: *mode } });
            }
            (Some(Target::Masquerade), None) => {
                let everyone = rule.matches.contains(&Match::Everyone).then(|| everybody(family)).flatten();
                let masquerade = Owned { set, rule: Masquerade { from: rule.source.or(everyone), out } };
                if masquerade.rule.from.is_some() {
                    self.masquerades.push(masquerade);
                } else {
                    let [ipv4, ipv6] = self.for_both.entry(masquerade).or_default();
                    *(if family == Family::Ipv4 { ipv4 } else { ipv6 }) += 1;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn put(self, asked: &mut Asked) {
        asked.networks = self.networks.into_iter().map(|((set, _), rule)| Owned { set, rule }).collect();
        let times = |(netmap, count)| std::iter::repeat_n(netmap, count / 3);
        asked.netmaps = self.netmaps.into_iter().flat_map(times).collect();
        asked.masquerades = self.masquerades;
        let both = |(rule, [ipv4, ipv6]): (Owned<Masquerade>, [usize; 2])| std::iter::repeat_n(rule, ipv4.min(ipv6));
        asked.masquerades.extend(self.for_both.into_iter().flat_map(both));
        asked.snats = self.snats;
    }
}

/// Whether a rule of an entry chain leads to forwards: its comment says whose those without one are.
fn leads_to_forwards(rule: &Rule, hook: Hook) -> bool {
    rule.asks().is_some() && matches!(hook, Hook::Prerouting | Hook::Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::compile::compile;
    use crate::model::{Forward, RuleSet};

    fn asked(count: u16) -> Asked {
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
        let mut asked = Asked::default();
        asked.add(&set).expect("valid");
        asked.settings.clear();
        asked.normalize();
        asked
    }

    #[test]
    fn what_was_compiled_is_lifted() {
        for (count, shifts) in [(0, true), (0, false), (3_000, true)] {
            let asked = asked(count);
            let host = Host { shifts, ..Host::default() };
            let held = lift(&compile(&asked, &host).expect("compiles"));
            assert_eq!(held.foreign, Vec::<String>::new());
            assert_eq!(held.asked, asked);
        }
    }

    #[test]
    fn one_port_of_a_shifted_range_is_not_the_range() {
        let asked = asked(0);
        let mut program = compile(&asked, &Host::default()).expect("compiles");
        let count = lift(&program).asked.bindings.len();
        for chain in program.ipv4.nat.chains.values_mut() {
            let mut first = true;
            let whole = |rule: &Rule| rule.part_of.is_none_or(|of| of.first() != 1006);
            chain.rules.retain(|rule| whole(rule) || std::mem::take(&mut first));
        }
        let held = lift(&program);
        assert!(held.asked.bindings.iter().all(|owned| owned.rule.ports.first() != 1006), "{program}");
        assert_eq!(held.asked.bindings.len(), count - 1);
    }

    #[test]
    fn chains_in_a_circle_have_an_end() {
        let mut program = compile(&asked(0), &Host { shifts: true, ..Host::default() }).expect("compiles");
        let nat = &mut program.ipv4.nat;
        for name in nat.chains.keys().cloned().collect::<Vec<_>>() {
            let jumps: Vec<Arc<Rule>> = nat.chains.keys().map(|name| Rule::jump(name).into()).collect();
            nat.chains.get_mut(&name).expect("there").rules.splice(0..0, jumps);
        }
        lift(&program);
    }

    #[test]
    fn what_no_packet_reaches_is_not_there() {
        let asked = asked(0);
        let mut program = compile(&asked, &Host { shifts: true, ..Host::default() }).expect("compiles");
        program.ipv4.nat.hooks.remove(&Hook::Prerouting);
        program.ipv4.nat.hooks.remove(&Hook::Output);
        assert!(lift(&program).asked.bindings.iter().all(|owned| owned.rule.family == Family::Ipv6));
    }
}
