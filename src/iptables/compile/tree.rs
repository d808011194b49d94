//! Splits chains with thousands of rules, so that a packet traverses only tens of rules.
//!
//! ```text
//! -A PORTFWD-DOCKER            -p tcp -j PORTFWD.1f0a2-t
//! -A PORTFWD.1f0a2-t           -p tcp --dport 4096:8191 -j PORTFWD.1f0a2-t4096-8191
//! -A PORTFWD.1f0a2-t4096-8191 -p tcp --dport 4096:4607 -j PORTFWD.1f0a2-t4096-4607
//! ```
//! A chain with more than [`MAX_CHAIN_RULES`] rules is split in three steps:
//!
//! 1. by protocol,
//! 2. by blocks of ports: all ports into 16 blocks, each block into 8 smaller blocks, and so on down to single ports,
//! 3. by ranges of destination addresses, then of source addresses, into at most [`FAN_OUT`] parts at a time.
//!
//! Rules that span several blocks stay in the chain, after the jumps to the blocks. Jumps are at most 14 deep.
//! nf_tables allows a depth of 16 (`NFT_JUMP_STACK_SIZE` in include/net/netfilter/nf_tables.h).
//!
//! If a packet matches no rule of a chain, the packet returns from the jump. So a packet traverses the rules in the
//! same order as in one long chain, but skips the rules that the condition of a jump excludes.
//!
//! Blocks of ports begin at multiples of their size, so a new forward usually changes only one chain. A new forward
//! changes more chains in three cases: it splits a chain, its port is outside of all existing blocks, or thousands of
//! addresses share one port.
//!
//! The measurement had 60,000 forwards of single ports (iptables 1.8.9, Linux 6.18). A new connection through the last
//! forward takes longer than with one forward: 1.035 times with iptables-legacy, and 1.05 times with iptables-nft. With
//! at most 8 rules in a chain, the factors were 1.036 and 1.032, but loading took 1.5 and 2.2 times as long.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::iptables::program::{Chain, PREFIX};
use crate::iptables::rule::{Match, Rule, Transport};
use crate::model::{PortRange, Protocol};

/// The maximum number of rules in one chain. A chain with more rules is split.
const MAX_CHAIN_RULES: usize = 64;

/// The sizes of port blocks. Each size is a multiple of the next size.
const BLOCKS: [u32; 6] = [65_536, 4_096, 512, 64, 8, 1];

/// The maximum number of parts if rules are split by addresses.
const FAN_OUT: usize = 16;

/// One of the two addresses in the IP header.
#[derive(Debug, Clone, Copy)]
enum AddressField {
    Destination,
    Source,
}

impl AddressField {
    fn network(self, rule: &Rule) -> Option<IpNetwork> {
        match self {
            Self::Destination => rule.destination,
            Self::Source => rule.source,
        }
    }
}

/// A tree of chains during compilation.
pub(super) struct Tree<'a> {
    chains: &'a mut BTreeMap<Arc<str>, Chain>,
    /// The prefix of all chain names in this tree.
    prefix: String,
}

impl<'a> Tree<'a> {
    /// Creates an empty tree. The chain names of the tree contain five hexadecimal digits of a hash of `name`. If other
    /// chains use these digits, the tree takes the next unused number. A hash does not depend on other trees, so the
    /// names stay the same.
    pub(super) fn new(chains: &'a mut BTreeMap<Arc<str>, Chain>, name: &str) -> Self {
        let prefix = |number: u64| format!("{PREFIX}.{:05x}-", number & 0xf_ffff);
        let taken = |prefix: &str| {
            let next = chains.range(Arc::<str>::from(prefix)..).next();
            next.is_some_and(|(name, _)| name.starts_with(prefix))
        };
        let mut number = hash(name);
        while taken(&prefix(number)) {
            number += 1;
        }
        Self { chains, prefix: prefix(number) }
    }

    /// Adds the rules of `chain` to `out`. Adds the chains that these rules jump to to the tree. Rules that may match
    /// the same packet must be in the order of precedence.
    pub(super) fn add_rules(&mut self, mut rules: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        // The sort is stable, so rules of the same port keep their order.
        rules.sort_by_key(|rule| (protocol(rule), rule.ports));
        self.split_by_protocol(rules, chain, out);
    }

    fn split_by_protocol(&mut self, rules: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        if rules.len() <= MAX_CHAIN_RULES {
            out.extend(rules);
            return;
        }
        let mut protocols: BTreeMap<Option<Protocol>, Vec<Arc<Rule>>> = BTreeMap::new();
        for rule in rules {
            protocols.entry(protocol(&rule)).or_default().push(rule);
        }
        let several = protocols.len() > 1;
        for (protocol, rules) in protocols {
            let Some(protocol) = protocol.filter(|_| several) else {
                self.split_by_port(rules, chain, out);
                continue;
            };
            let jump = Rule { protocol: Some(Transport::Ports(protocol)), ..Rule::default() };
            let name = format!("{}{}", self.prefix, protocol_letter(protocol));
            self.add_child(jump, name, rules, out);
        }
    }

    /// Splits the rules of one protocol into blocks of ports. The block size is the largest size that separates the
    /// rules.
    fn split_by_port(&mut self, rules: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        let Some(protocol) = rules.first().and_then(|rule| protocol(rule)) else {
            out.extend(rules);
            return;
        };
        let ends = |rule: &Rule| rule.ports.map_or((0, u32::from(u16::MAX)), |p| (p.first().into(), p.last().into()));
        let lowest = rules.iter().map(|rule| ends(rule).0).min().unwrap_or(0);
        let highest = rules.iter().map(|rule| ends(rule).1).max().unwrap_or(0);
        let Some(size) = BLOCKS.into_iter().find(|size| lowest / size != highest / size) else {
            self.split_by_class(rules, chain, out);
            return;
        };
        let mut blocks: BTreeMap<u32, Vec<Arc<Rule>>> = BTreeMap::new();
        let mut wider = Vec::new();
        for rule in rules {
            let (first, last) = ends(&rule);
            if first / size == last / size {
                blocks.entry(first / size).or_default().push(rule);
            } else {
                wider.push(rule);
            }
        }
        for (block, rules) in blocks {
            let range = (block * size, block * size + (size - 1));
            let ports = u16::try_from(range.0).ok().zip(u16::try_from(range.1).ok());
            // The first block begins at port 0, but a rule cannot match port 0.
            let ports = ports.and_then(|(first, last)| PortRange::new(first.max(1), last));
            if rules.len() == 1 || ports.is_none() {
                out.extend(rules);
                continue;
            }
            let jump = Rule { protocol: Some(Transport::Ports(protocol)), ports, ..Rule::default() };
            let range = if size == 1 { format!("{}", range.0) } else { format!("{}-{}", range.0, range.1) };
            let name = format!("{}{}{range}", self.prefix, protocol_letter(protocol));
            self.add_child(jump, name, rules, out);
        }
        if wider.len() <= MAX_CHAIN_RULES {
            out.extend(wider);
        } else {
            self.split_by_class(wider, chain, out);
        }
    }

    /// Splits rules of the same ports by addresses. Each class of rules is split separately, because rules of one class
    /// never overlap.
    fn split_by_class(&mut self, rules: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        let class =
            |rule: &Rule| (rule.destination.is_some(), rule.input.is_some(), rule.source.map(|source| source.prefix()));
        let mut rules = rules.into_iter().peekable();
        while let Some(first) = rules.next() {
            let first_class = class(&first);
            let mut group = vec![first];
            group.extend(std::iter::from_fn(|| rules.next_if(|rule| class(rule) == first_class)));
            if group.len() <= MAX_CHAIN_RULES {
                out.extend(group);
            } else {
                self.split_by_address(group, chain, out);
            }
        }
    }

    /// Splits rules by destination address or by source address, into at most [`FAN_OUT`] parts. The rules must not
    /// overlap.
    fn split_by_address(&mut self, mut group: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        for field in [AddressField::Destination, AddressField::Source] {
            let mut networks: Vec<IpNetwork> = group.iter().filter_map(|rule| field.network(rule)).collect();
            networks.sort_unstable();
            networks.dedup();
            if networks.len() < 2 || group.iter().any(|rule| field.network(rule).is_none()) {
                continue;
            }
            // The sort is stable, so rules of the same address keep their order.
            group.sort_by_key(|rule| field.network(rule));
            let mut rules = group.into_iter().peekable();
            for (number, part) in networks.chunks(part_size(networks.len())).enumerate() {
                let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
                let in_part = |rule: &Arc<Rule>| field.network(rule).is_some_and(|network| network <= *last);
                let part_rules: Vec<Arc<Rule>> = std::iter::from_fn(|| rules.next_if(in_part)).collect();
                let source = matches!(field, AddressField::Source);
                let range = Match::Range { source, not: false, first: first.network(), last: last.broadcast() };
                let name = format!("{}{:012x}", self.prefix, hash(&format!("{chain} {field:?} {number}")) >> 16);
                self.add_address_child(Rule::default().with_match(range), name, part_rules, out);
            }
            return;
        }
        // The rules differ only in their interfaces. iptables cannot match ranges of interfaces, so the rules are not
        // split.
        out.extend(group);
    }

    /// Adds a chain with `rules`, and a rule that jumps to the chain. `jump` contains the conditions of that rule.
    fn add_child(&mut self, jump: Rule, name: String, rules: Vec<Arc<Rule>>, out: &mut Vec<Arc<Rule>>) {
        let mut child = Vec::new();
        self.split_by_protocol(rules, &name, &mut child);
        self.insert_chain(jump, name, child, out);
    }

    /// Adds a chain like [`Tree::add_child`], but for rules of the same ports.
    fn add_address_child(&mut self, jump: Rule, name: String, rules: Vec<Arc<Rule>>, out: &mut Vec<Arc<Rule>>) {
        let mut child = Vec::new();
        self.split_by_class(rules, &name, &mut child);
        self.insert_chain(jump, name, child, out);
    }

    fn insert_chain(&mut self, mut jump: Rule, mut name: String, rules: Vec<Arc<Rule>>, out: &mut Vec<Arc<Rule>>) {
        // A name with a hash may already exist. All other chain names are unique.
        while let Entry::Occupied(_) = self.chains.entry(name.as_str().into()) {
            name = format!("{}{:012x}", self.prefix, hash(&name) >> 16);
        }
        jump.target = Rule::jump(&name).target;
        self.chains.insert(name.into(), Chain::from(rules));
        out.push(jump.into());
    }
}

fn protocol(rule: &Rule) -> Option<Protocol> {
    match rule.protocol {
        Some(Transport::Ports(protocol)) => Some(protocol),
        _ => None,
    }
}

/// Returns the letter of a protocol for chain names. The letter is not a hexadecimal digit, so names with a letter
/// differ from names with a hash.
fn protocol_letter(protocol: Protocol) -> char {
    match protocol {
        Protocol::Tcp => 't',
        Protocol::Udp => 'u',
        Protocol::Sctp => 's',
        Protocol::Dccp => 'k',
        Protocol::Udplite => 'l',
    }
}

/// Returns the number of addresses in each part if `count` addresses are split. The number is [`MAX_CHAIN_RULES`] times
/// a power of [`FAN_OUT`]. The smallest such number with at most [`FAN_OUT`] parts is chosen. There are always at least
/// two parts.
fn part_size(count: usize) -> usize {
    let mut size = MAX_CHAIN_RULES;
    while size * FAN_OUT < count {
        size *= FAN_OUT;
    }
    size.min(count.div_ceil(2))
}

/// Returns the 64-bit FNV-1a hash.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::rule::Interface;
    use proptest::prelude::*;
    use std::net::IpAddr;
    use std::net::Ipv4Addr;

    /// The fields of a packet that rules of forwards match.
    #[derive(Debug, Clone)]
    struct Packet {
        protocol: Protocol,
        port: u16,
        source: IpAddr,
        destination: IpAddr,
        interface: &'static str,
    }

    fn matches(rule: &Rule, packet: &Packet) -> bool {
        rule.protocol.is_none_or(|protocol| protocol == Transport::Ports(packet.protocol))
            && rule.ports.is_none_or(|ports| (ports.first()..=ports.last()).contains(&packet.port))
            && rule.source.is_none_or(|source| source.contains(packet.source))
            && rule.destination.is_none_or(|destination| destination.contains(packet.destination))
            && rule.input.as_ref().is_none_or(|input| input.name.as_str() == packet.interface)
            && rule.matches.iter().all(|found| match found {
                Match::Range { source: true, not: false, first, last } => (*first..=*last).contains(&packet.source),
                Match::Range { source: false, not: false, first, last } => {
                    (*first..=*last).contains(&packet.destination)
                }
                _ => true,
            })
    }

    /// Returns the first matching rule that is not a jump. Adds the number of traversed rules to `traversed`.
    fn walk<'a>(
        rules: &'a [Arc<Rule>],
        chains: &'a BTreeMap<Arc<str>, Chain>,
        packet: &Packet,
        traversed: &mut usize,
    ) -> Option<&'a Rule> {
        for rule in rules {
            *traversed += 1;
            if matches(rule, packet) {
                match rule.jump_target() {
                    None => return Some(rule),
                    Some(next) => {
                        if let Some(found) = walk(&chains[next].rules, chains, packet, traversed) {
                            return Some(found);
                        }
                    }
                }
            }
        }
        None
    }

    fn build(rules: Vec<Rule>) -> (Vec<Arc<Rule>>, BTreeMap<Arc<str>, Chain>) {
        let (mut chains, mut root) = (BTreeMap::new(), Vec::new());
        let rules = rules.into_iter().map(Arc::new).collect();
        Tree::new(&mut chains, "X").add_rules(rules, "PORTFWD-X", &mut root);
        (root, chains)
    }

    fn rule(protocol: Protocol, first: u16, last: u16) -> Rule {
        Rule {
            protocol: Some(Transport::Ports(protocol)),
            ports: PortRange::new(first, last),
            target: Some(crate::iptables::rule::Target::Redirect(Some(first))),
            ..Rule::default()
        }
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    fn packet(protocol: Protocol, port: u16) -> Packet {
        Packet { protocol, port, source: address(1), destination: address(2), interface: "eth0" }
    }

    /// Returns the highest number of rules that one of the packets traverses.
    fn max_traversed(rules: &[Rule], packets: impl Iterator<Item = Packet>) -> usize {
        let (root, chains) = build(rules.to_vec());
        assert!(chains.keys().all(|name| name.len() <= 28), "chain names have at most 28 bytes");
        let traversed = |packet: Packet| {
            let mut count = 0;
            assert!(walk(&root, &chains, &packet, &mut count).is_some(), "{packet:?}");
            count
        };
        packets.map(traversed).max().unwrap_or(0)
    }

    #[test]
    fn a_packet_traverses_few_of_60_000_rules_for_single_ports() {
        let all_ports = |protocol| (1..=30_000).map(move |port| rule(protocol, port * 2, port * 2));
        let rules: Vec<Rule> = all_ports(Protocol::Tcp).chain(all_ports(Protocol::Udp)).collect();
        let both = |port: u16| [Protocol::Tcp, Protocol::Udp].map(|protocol| packet(protocol, port * 2));
        let packets = (1..=30_000).flat_map(both);
        assert!(max_traversed(&rules, packets) <= 2 + 16 + 8 + 8 + MAX_CHAIN_RULES);
    }

    #[test]
    fn a_packet_traverses_few_of_8_000_rules_for_ranges() {
        let rules: Vec<Rule> = (0..8_000).map(|n| rule(Protocol::Tcp, n * 8 + 5, n * 8 + 11)).collect();
        let packets = (0..8_000).map(|n| packet(Protocol::Tcp, n * 8 + 10));
        let traversed = max_traversed(&rules, packets);
        assert!(traversed <= 2 * (16 + 8 + 8 + MAX_CHAIN_RULES), "{traversed}");
    }

    #[test]
    fn a_packet_traverses_few_of_20_000_rules_for_addresses_of_one_port() {
        for field in [AddressField::Destination, AddressField::Source] {
            let with = |number: u32| {
                let network = Some(IpNetwork::from(address(number * 77)));
                let rule = rule(Protocol::Tcp, 80, 80);
                match field {
                    AddressField::Destination => Rule { destination: network, ..rule },
                    AddressField::Source => Rule { source: network, ..rule },
                }
            };
            let rules: Vec<Rule> = (1..20_000).map(with).collect();
            let packets = (1..20_000).map(|number| {
                let address = address(number * 77);
                let packet = packet(Protocol::Tcp, 80);
                match field {
                    AddressField::Destination => Packet { destination: address, ..packet },
                    AddressField::Source => Packet { source: address, ..packet },
                }
            });
            let traversed = max_traversed(&rules, packets);
            assert!(traversed <= 3 * FAN_OUT + MAX_CHAIN_RULES, "{field:?}: {traversed}");
        }
    }

    #[test]
    fn a_new_rule_changes_one_chain() {
        let rules: Vec<Rule> = (1..=20_000).map(|port| rule(Protocol::Tcp, port * 3, port * 3)).collect();
        let more = rules.iter().cloned().chain([rule(Protocol::Tcp, 100, 100)]).collect();
        let ((root, before), (same, after)) = (build(rules), build(more));
        assert_eq!(root, same);
        assert!(before.keys().eq(after.keys()));
        assert_eq!(before.iter().zip(&after).filter(|(before, after)| before != after).count(), 1);
    }

    /// Generates rules of many classes in the order of precedence. The target of each rule has a unique number.
    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let fields = (0u32..40, 0u32..40, 0u32..4, 0u16..6, any::<[bool; 4]>());
        proptest::collection::vec(fields, 100..700).prop_map(|all| {
            let mut rules: Vec<Rule> = Vec::new();
            for (destination, source, length, port, [named, on, udp, from]) in all {
                let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
                let source = IpNetwork::new(address(source << 26), 4 + u8::try_from(length).unwrap_or(0)).ok();
                let mut rule = rule(protocol, 1000 + port, 1000 + port);
                rule.destination = named.then(|| IpNetwork::from(address(destination)));
                rule.input = on.then(|| Interface { not: false, name: "eth0".parse().expect("name") });
                let network = |source: IpNetwork| IpNetwork::new(source.network(), source.prefix()).ok();
                rule.source = source.filter(|_| from).and_then(network);
                let same = |other: &&Rule| {
                    (&other.destination, &other.input, other.source, other.protocol, other.ports)
                        == (&rule.destination, &rule.input, rule.source, rule.protocol, rule.ports)
                };
                if rules.iter().find(same).is_none() {
                    rules.push(rule);
                }
            }
            let class = |rule: &Rule| {
                let length = rule.source.map(|source| source.prefix());
                (rule.destination.is_none(), rule.input.is_none(), std::cmp::Reverse(length))
            };
            rules.sort_by_key(class);
            for (number, rule) in (1..).zip(&mut rules) {
                rule.target = Some(crate::iptables::rule::Target::Redirect(Some(number)));
            }
            rules
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_first_match_is_the_same_as_in_one_long_chain(
            rules in rules(),
            packets in proptest::collection::vec((0u32..40, any::<u32>(), 0u16..7, any::<[bool; 2]>()), 200),
        ) {
            let (root, chains) = build(rules.clone());
            for (destination, source, port, [udp, on]) in packets {
                let packet = Packet {
                    protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                    port: 1000 + port,
                    source: address(source),
                    destination: address(destination),
                    interface: if on { "eth0" } else { "eth1" },
                };
                let expected = rules.iter().find(|rule| matches(rule, &packet));
                prop_assert_eq!(walk(&root, &chains, &packet, &mut 0), expected);
            }
        }
    }
}
