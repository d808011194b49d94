//! Converts a program back to the model. The inverse of [`super::compile`].
//!
//! A rule, map or element is foreign if portfwd cannot convert it. Another program added such an object to portfwd's
//! table.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::compile::{FILTER_FORWARD, NAT_OUTPUT, NAT_POSTROUTING, NAT_PREROUTING, sources_name, sources_shape};
use super::element;
use super::expr::{Cmp, Expr, Header, Immediate, MetaKey, Nat, NatFlag};
use super::map::{AddressScope, MapId, MapRole};
use super::program::{Element, Key, Program, Rule};
use crate::model::label::{self, Sources};
use crate::model::rule_comment::{NETMAP, parse_comment, parse_network};
use crate::model::{
    Binding, Counter, DesiredState, Family, IfName, Masquerade, Mode, Netmap, Network, Observed, Pool, PortRange,
    SetName, SetRule, Snat,
};

/// Converts a program to the model. The result also contains the counters, and the names of objects that portfwd did
/// not create.
pub fn lift(program: &Program) -> Observed {
    let mut lifted = Observed::default();
    if program.flagged {
        lifted.foreign.push("a flag of the table, such as `dormant`,".into());
    }
    let sources = sources(program);
    let mut ids: Vec<(MapId, &BTreeMap<Key, Element>)> = Vec::new();
    for (name, map) in &program.maps {
        match name.parse::<MapId>() {
            Ok(id) if id.shape() == map.shape => ids.push((id, &map.elements)),
            _ if Family::ALL.iter().any(|f| name == sources_name(*f) && map.shape == sources_shape(*f)) => {}
            _ => lifted.foreign.push(format!("map {name}")),
        }
    }
    let mut found: Vec<(SetRule<Binding>, Counter)> = Vec::new();
    let mut ranges: HashMap<SetRule<Binding>, (Counter, usize)> = HashMap::new();
    let primary = |id: &MapId| id.role == MapRole::Targets && id.scope != AddressScope::AnyLoopback;
    for (id, elements) in ids.iter().filter(|(id, _)| primary(id)) {
        let labels = program.maps.get(&id.labels().to_string()).map(|map| &map.elements);
        for (key, element) in *elements {
            match read_binding(id, key, element, labels, &sources) {
                Some(owned) if owned.rule.is_exact() => found.push((owned, element.counter)),
                Some(owned) => {
                    let (sum, count) = ranges.entry(owned).or_default();
                    sum.add(element.counter);
                    *count += 1;
                }
                None => {
                    lifted.foreign.push(format!("an element of map {id}"));
                    let binding = element::read_foreign(id, key, element);
                    lifted.foreign_bindings.extend(binding.map(|binding| (binding, element.counter)));
                }
            }
        }
    }
    // A port range with a missing element counts as a missing binding.
    let complete = ranges.into_iter().filter(|(owned, (_, count))| *count == element::count(&owned.rule));
    found.extend(complete.map(|(owned, (sum, _))| (owned, sum)));
    merge_loopback(&ids, &mut found, &mut lifted.foreign);
    found.sort_by(|(a, _), (b, _)| (&a.set, a.rule.sort_key()).cmp(&(&b.set, b.rule.sort_key())));
    lifted.counters = found.iter().map(|(_, counter)| *counter).collect();
    lifted.desired.bindings = found.into_iter().map(|(owned, _)| owned).collect();
    lift_rules(program, &mut lifted);
    lifted.desired.normalize();
    lifted
}

/// Reads the binding of an element, including the options in the element's labels.
fn read_binding(
    id: &MapId,
    key: &Key,
    element: &Element,
    labels: Option<&BTreeMap<Key, Element>>,
    sources: &Sources,
) -> Option<SetRule<Binding>> {
    let mut owned = element::read(id, key, element)?;
    if let Some(label) = labels.and_then(|labels| labels.get(key)) {
        label::decode(&label.data, sources, &mut owned.rule)?;
    }
    Some(owned)
}

/// Reads the IDs and addresses from the maps of source addresses.
fn sources(program: &Program) -> Sources {
    let of_family = |family: Family| {
        let elements = program.maps.get(sources_name(family)).map(|map| map.elements.iter());
        elements.into_iter().flatten()
    };
    let elements = Family::ALL.into_iter().flat_map(of_family);
    Sources::from_elements(
        elements.filter_map(|(key, element)| Some((label::source_id(&key.0)?, address(&element.data)?))),
    )
}

/// Merges the maps for any loopback address into `found`, the bindings from all other maps.
///
/// Adds the counters of loopback elements to the bindings. Removes a binding if its loopback elements are missing. Adds
/// loopback elements and labels without a binding to `foreign`.
fn merge_loopback(
    ids: &[(MapId, &BTreeMap<Key, Element>)],
    found: &mut Vec<(SetRule<Binding>, Counter)>,
    foreign: &mut Vec<String>,
) {
    let any_loopback = |id: &MapId| id.scope == AddressScope::AnyLoopback && id.role == MapRole::Targets;
    let mut unclaimed: BTreeMap<(String, Key), &Element> = BTreeMap::new();
    for (id, elements) in ids.iter().filter(|(id, _)| any_loopback(id)) {
        unclaimed.extend(elements.iter().map(|(key, element)| ((id.to_string(), key.clone()), element)));
    }
    found.retain_mut(|(SetRule { rule, .. }, sum)| {
        if !rule.loopback || !rule.serves_non_loopback() {
            return true;
        }
        // A binding does not contain its chain name, so portfwd searches the maps of all chains.
        let of_class = |id: &&MapId| **id == MapId::for_binding(rule, id.kind, id.chain.clone()).any_loopback();
        let mut parts = 0;
        for id in ids.iter().map(|(id, _)| id).filter(|id| any_loopback(id)).filter(of_class) {
            for (key, wanted) in element::elements(id, rule, &"".into(), &[]) {
                let entry = (id.to_string(), key);
                if let Some(element) = unclaimed.remove(&entry).filter(|element| element.data == wanted.data) {
                    sum.add(element.counter);
                    parts += 1;
                }
            }
        }
        parts == element::count(rule)
    });
    foreign.extend(unclaimed.keys().map(|(name, _)| format!("an element of map {name}")));
    for (id, elements) in ids.iter().filter(|(id, _)| id.role == MapRole::Labels) {
        let targets = ids.iter().find(|(other, _)| *other == id.targets()).map(|(_, elements)| *elements);
        let strays = elements.keys().filter(|key| !targets.is_some_and(|targets| targets.contains_key(*key)));
        foreign.extend(strays.map(|_| format!("an element of map {id}")));
    }
}

/// The matches, the constants and the NAT expression of a rule.
#[derive(Default)]
struct Parts<'a> {
    subnet: Option<IpNetwork>,
    out: Option<IfName>,
    constants: Vec<&'a Immediate>,
    nat: Option<&'a Nat>,
}

fn lift_rules(program: &Program, lifted: &mut Observed) {
    let mut networks: BTreeMap<(SetName, IfName), Network> = BTreeMap::new();
    let mut netmaps: BTreeMap<SetRule<Netmap>, usize> = BTreeMap::new();
    let chains = [NAT_PREROUTING, NAT_OUTPUT, NAT_POSTROUTING, FILTER_FORWARD];
    for chain in chains {
        for rule in program.chains.get(chain).map(|chain| chain.rules.as_slice()).unwrap_or_default() {
            // A rule of portfwd without a comment belongs to no rule set.
            let Some(comment) = &rule.comment else { continue };
            if read_rule(rule, comment, &mut networks, &mut netmaps, &mut lifted.desired).is_none() {
                lifted.foreign.push(format!("rule \"{comment}\" of chain {chain}"));
            }
        }
    }
    lifted.desired.networks = networks.into_iter().map(|((set, _), rule)| SetRule { set, rule }).collect();
    // A 1:1 translation has three rules: at prerouting, output and postrouting. If one rule is missing, the translation
    // counts as missing. A rule set may contain the same translation twice.
    lifted.desired.netmaps =
        netmaps.into_iter().flat_map(|(netmap, count)| std::iter::repeat_n(netmap, count / 3)).collect();
}

fn read_rule(
    rule: &Rule,
    comment: &str,
    networks: &mut BTreeMap<(SetName, IfName), Network>,
    netmaps: &mut BTreeMap<SetRule<Netmap>, usize>,
    desired: &mut DesiredState,
) -> Option<()> {
    let (set, remark) = parse_comment(comment)?;
    let parts = read_parts(rule)?;
    match remark {
        Some(NETMAP) => {
            let (matched, translated) = (parts.subnet?, netmap_network(&parts)?);
            let outward = parts.nat.is_some_and(|nat| nat.source);
            let (listen, to) = if outward { (translated, matched) } else { (matched, translated) };
            *netmaps.entry(SetRule { set, rule: Netmap { listen, to } }).or_default() += 1;
        }
        Some(remark) => parse_network(set, remark, parts.subnet?, networks)?,
        None => match parts.nat {
            Some(_) => desired.snats.push(SetRule { set, rule: read_snat(&parts)? }),
            None => desired.masquerades.push(SetRule { set, rule: Masquerade { from: parts.subnet, out: parts.out } }),
        },
    }
    Some(())
}

/// Reads a source NAT rule. The rule loads its addresses and ports into registers as constants.
fn read_snat(parts: &Parts<'_>) -> Option<Snat> {
    let nat = parts.nat.filter(|nat| nat.source)?;
    let constant = |register| parts.constants.iter().find(|constant| constant.to == register).map(|found| &found.data);
    let port = |register| Some(u16::from_be_bytes(constant(register)?.as_slice().try_into().ok()?));
    let first = address(constant(nat.address.first)?)?;
    let last = nat.address.last.map_or(Some(first), |last| address(constant(last)?))?;
    let ports = match nat.port {
        None => None,
        Some(range) => {
            let first = port(range.first)?;
            Some(PortRange::new(first, range.last.map_or(Some(first), port)?)?)
        }
    };
    let mode = match nat.flag {
        NatFlag::None => None,
        NatFlag::Random => Some(Mode::Random),
        NatFlag::FullyRandom => Some(Mode::FullyRandom),
        NatFlag::Persistent => Some(Mode::Persistent),
        NatFlag::Prefix => return None,
    };
    // A rule without a source address matches only the family. `read_parts` returns a family match as a network with
    // prefix length 0.
    let from = parts.subnet.filter(|subnet| subnet.prefix() > 0);
    Some(Snat { from, out: parts.out.clone(), to: Pool::new(first, last, ports)?, mode })
}

/// Returns the new network in a rule for a 1:1 translation.
fn netmap_network(parts: &Parts<'_>) -> Option<IpNetwork> {
    let nat = parts.nat.filter(|nat| nat.flag == NatFlag::Prefix)?;
    let first = parts.constants.iter().rev().find(|constant| constant.to == nat.address.first)?;
    IpNetwork::new(address(&first.data)?, parts.subnet?.prefix()).ok()
}

/// Reads the matched network, the egress interface, the constants and the NAT expression of a rule.
fn read_parts(rule: &Rule) -> Option<Parts<'_>> {
    let mut parts = Parts::default();
    let mut exprs = rule.exprs.iter().peekable();
    while let Some(expr) = exprs.next() {
        match expr {
            Expr::Meta(meta) if meta.key == MetaKey::OifName => {
                let Some(Expr::Cmp(cmp)) = exprs.next() else { return None };
                if cmp.equal {
                    parts.out = Some(IfName::from_bytes(&cmp.data).ok()?);
                }
            }
            Expr::Meta(meta) if meta.key == MetaKey::NfProto => {
                let Some(Expr::Cmp(cmp)) = exprs.next() else { return None };
                parts.subnet = family_network(cmp);
            }
            Expr::Payload(payload) if payload.header == Header::Network => {
                let full = payload.length.checked_mul(8)?;
                let length = match exprs.peek() {
                    Some(Expr::Bitwise(bitwise)) => bitwise.mask.iter().map(|byte| byte.count_ones()).sum(),
                    _ => full,
                };
                if length != full {
                    exprs.next();
                }
                let Some(Expr::Cmp(cmp)) = exprs.next() else { return None };
                parts.subnet = Some(IpNetwork::new(address(&cmp.data)?, u8::try_from(length).ok()?).ok()?);
            }
            Expr::Immediate(constant) => parts.constants.push(constant),
            Expr::Nat(nat) => parts.nat = Some(nat),
            _ => {}
        }
    }
    Some(parts)
}

/// Returns the network with all addresses of a family. The family comes from a `meta nfproto` match.
fn family_network(family: &Cmp) -> Option<IpNetwork> {
    match family.data.as_slice() {
        [2] => IpNetwork::new(Ipv4Addr::UNSPECIFIED.into(), 0).ok(),
        [10] => IpNetwork::new(Ipv6Addr::UNSPECIFIED.into(), 0).ok(),
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChainName, Forward, RuleSet};
    use crate::nft::compile::compile;
    use crate::nft::expr::{Payload, Register};

    /// Returns forwards that need additional labels, or that have loopback listeners.
    fn labelled_forwards() -> Vec<Forward> {
        let mut forwards = Vec::new();
        for (listen, to, source, hairpin, loopback) in [
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
        ] {
            let mut forward = Forward::new(listen.parse().expect(listen), to.parse().expect(to));
            forward.source = source.parse().expect(source);
            (forward.hairpin, forward.loopback) = (hairpin, loopback);
            forwards.push(forward);
        }
        forwards
    }

    #[test]
    fn a_rule_with_an_oversized_header_field_is_foreign() {
        let long = Payload { header: Header::Network, offset: 12, length: u32::MAX, to: Register::word32(0) };
        let rule = Rule { exprs: vec![Expr::Payload(long)], comment: Some("web".into()) };
        let chain = crate::nft::program::Chain { base: None, rules: vec![rule] };
        let chains = [(NAT_POSTROUTING.to_owned(), chain)].into();
        let held = lift(&Program { table: true, chains, ..Program::default() });
        assert_eq!(held.foreign, [format!("rule \"web\" of chain {NAT_POSTROUTING}")]);
    }

    #[test]
    fn lift_inverts_compile() {
        let mut set = RuleSet::new("web".parse().expect("name"));
        for (listen, to) in [
            ("8080", "172.17.0.3:80"),
            ("8080/udp", "172.17.0.3:80"),
            ("192.0.2.1:53/udp", "10.0.0.2"),
            ("[2001:db8::1]:8000-8010", "fd00::2"),
            ("8000-8010", "10.0.0.2:9000-9010"),
            ("8011-8020", "10.0.0.2:80"),
            ("9000-9100", "172.17.0.9"),
            ("80", ":8080"),
            ("81-90", ":8081-8090"),
        ] {
            let mut forward = Forward::new(listen.parse().expect(listen), to.parse().expect(to));
            set.forwards.push(forward.clone());
            forward.interface = Some("eth0".parse().expect("name"));
            forward.comment = Some("why: because".parse().expect("comment"));
            if listen.starts_with("80") {
                forward.from = vec!["10.0.0.0/8".parse().expect("prefix"), "10.1.0.0/16".parse().expect("prefix")];
            }
            set.forwards.push(forward);
        }
        set.forwards.extend(labelled_forwards());
        for (from, out, to, mode) in [
            (Some("10.0.0.0/24"), None, "203.0.113.5", None),
            (None, Some("eth0"), "203.0.113.5-203.0.113.9:1024-2047", Some(Mode::FullyRandom)),
            (None, Some("eth1"), "203.0.113.5:1024", Some(Mode::Random)),
            (Some("fd00::/64"), Some("eth0"), "2001:db8::5-2001:db8::9", Some(Mode::Persistent)),
            (None, Some("eth1"), "[2001:db8::5-2001:db8::9]:1-2", None),
        ] {
            let from = from.map(|from| from.parse().expect(from));
            let out = out.map(|out| out.parse().expect(out));
            set.snats.push(Snat { from, out, to: to.parse().expect(to), mode });
        }
        for (listen, to) in
            [("192.0.2.0/24", "10.0.0.0/24"), ("192.0.2.7/32", "10.0.9.9/32"), ("2001:db8::/64", "fd00::/64")]
        {
            set.netmaps.push(Netmap { listen: listen.parse().expect(listen), to: to.parse().expect(to) });
        }
        for (name, masquerade, isolate) in [("docker0", true, false), ("br1", false, true), ("br2", true, true)] {
            set.networks.push(Network {
                name: name.parse().expect("name"),
                subnets: vec!["172.17.0.0/16".parse().expect("subnet"), "fd00:17::/64".parse().expect("subnet")],
                masquerade,
                chain: ChainName::docker(),
                isolate,
            });
        }
        let out: IfName = "eth0".parse().expect("name");
        for (from, out) in [
            (Some("10.0.0.0/24"), Some(out.clone())),
            (Some("0.0.0.0/0"), None),
            (Some("10.0.0.7/32"), None),
            (None, Some(out)),
        ] {
            set.masquerades.push(Masquerade { from: from.map(|from| from.parse().expect("prefix")), out });
        }
        let mut desired = DesiredState::default();
        desired.add(&set).expect("valid");
        let lifted = lift(&compile(&desired).expect("compiles"));
        desired.normalize();
        desired.settings.clear();
        assert_eq!(lifted.foreign, Vec::<String>::new());
        assert_eq!(lifted.desired, desired);
    }

    #[test]
    fn maps_of_other_programs_are_foreign() {
        let mut program = Program { table: true, ..Program::default() };
        let shape = MapId::for_binding(
            &Forward::new("80".parse().expect("listen"), "10.0.0.1".parse().expect("to")).bindings().expect("valid")[0],
            super::super::map::Kind::Ports,
            ChainName::forwards(),
        )
        .shape();
        for name in ["blocked", "ip-ranges"] {
            let map = crate::nft::program::Map { shape: shape.clone(), elements: BTreeMap::new() };
            program.maps.insert(name.into(), map);
        }
        assert_eq!(lift(&program).foreign, ["map blocked", "map ip-ranges"]);
    }
}
