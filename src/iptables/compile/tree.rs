//! Thousands of rules, laid out so that a packet meets tens of them.
//!
//! ```text
//! -A PORTFWD-DOCKER            -p tcp -j PORTFWD.1f0a2-t
//! -A PORTFWD.1f0a2-t           -p tcp --dport 4096:8191 -j PORTFWD.1f0a2-t4096-8191
//! -A PORTFWD.1f0a2-t4096-8191 -p tcp --dport 4096:4607 -j PORTFWD.1f0a2-t4096-4607
//! ```
//! A chain of more rules than [`LEAF`] is split: by protocol, then by blocks of ports, the whole space into 16, each of those
//! into 8, and so on down to one port; where one port has too many still, by ranges of destinations, then of sources, 16 at a
//! time. What spans several blocks stays in the chain, behind the jumps to the blocks. No jump is more than 14 deep, and 16 are
//! what nf_tables allows (`NFT_JUMP_STACK_SIZE` in include/net/netfilter/nf_tables.h).
//!
//! A jump comes back where nothing matched, so the rules that a packet meets are those it would meet in one long chain, in the
//! same order, but for those that a jump's own condition rules out.
//!
//! Blocks of ports begin at multiples of their size, so one more forward usually changes the chain it falls into and no other;
//! more where that chain is split by it, where it lies outside of all ports so far, and where thousands of addresses share one
//! port.
//!
//! Measured with 60,000 forwards of single ports, iptables 1.8.9, Linux 6.18, a new connection through the last of them
//! against one forward: 1.035 times with iptables-legacy, 1.05 with iptables-nft; leaves of 8 gave 1.036 and 1.032, but took
//! 1.5 and 2.2 times as long to load.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::iptables::program::{Chain, PREFIX};
use crate::iptables::rule::{Match, Rule, Transport};
use crate::model::{PortRange, Protocol};

/// How many rules a chain has at most before it is split.
const LEAF: usize = 64;

/// The sizes of blocks of ports, each a multiple of the next.
const BLOCKS: [u32; 6] = [65_536, 4_096, 512, 64, 8, 1];

/// How many parts addresses are split into at once.
const PARTS: usize = 16;

/// An address of a packet.
#[derive(Debug, Clone, Copy)]
enum End {
    Destination,
    Source,
}

impl End {
    fn of(self, rule: &Rule) -> Option<IpNetwork> {
        match self {
            Self::Destination => rule.destination,
            Self::Source => rule.source,
        }
    }
}

/// Chains that are being laid out.
pub(super) struct Tree<'a> {
    chains: &'a mut BTreeMap<Arc<str>, Chain>,
    /// What the names of all its chains begin with.
    prefix: String,
}

impl<'a> Tree<'a> {
    /// Begins one. Its chains' names begin with five digits that stand for `name` and are in no other name yet: so that
    /// another tree changes none of them.
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

    /// Lays rules out in a chain: adds to `out` what it holds itself, and to the tree what it jumps to. Those that may match
    /// the same packet must be in the order in which they are to be asked.
    pub(super) fn lay_out(&mut self, mut rules: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        // Stable, so what competes for a port stays in order.
        rules.sort_by_key(|rule| (protocol(rule), rule.ports));
        self.fill(rules, chain, out);
    }

    fn fill(&mut self, rules: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        if rules.len() <= LEAF {
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
                self.by_port(rules, chain, out);
                continue;
            };
            let guard = Rule { protocol: Some(Transport::Ports(protocol)), ..Rule::default() };
            let name = format!("{}{}", self.prefix, letter(protocol));
            self.child(guard, name, rules, out);
        }
    }

    /// Splits the rules of one protocol into the blocks of the smallest block that holds them all.
    fn by_port(&mut self, rules: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        let Some(protocol) = rules.first().and_then(|rule| protocol(rule)) else {
            out.extend(rules);
            return;
        };
        let ends = |rule: &Rule| rule.ports.map_or((0, u32::from(u16::MAX)), |p| (p.first().into(), p.last().into()));
        let lowest = rules.iter().map(|rule| ends(rule).0).min().unwrap_or(0);
        let highest = rules.iter().map(|rule| ends(rule).1).max().unwrap_or(0);
        let Some(size) = BLOCKS.into_iter().find(|size| lowest / size != highest / size) else {
            self.by_class(rules, chain, out);
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
            // Port 0 is never asked for, but the first block begins there.
            let ports = ports.and_then(|(first, last)| PortRange::new(first.max(1), last));
            if rules.len() == 1 || ports.is_none() {
                out.extend(rules);
                continue;
            }
            let guard = Rule { protocol: Some(Transport::Ports(protocol)), ports, ..Rule::default() };
            let range = if size == 1 { format!("{}", range.0) } else { format!("{}-{}", range.0, range.1) };
            let name = format!("{}{}{range}", self.prefix, letter(protocol));
            self.child(guard, name, rules, out);
        }
        if wider.len() <= LEAF {
            out.extend(wider);
        } else {
            self.by_class(wider, chain, out);
        }
    }

    /// Splits rules of the same ports by addresses, those of each class by themselves: within one they never overlap.
    fn by_class(&mut self, rules: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        let class =
            |rule: &Rule| (rule.destination.is_some(), rule.input.is_some(), rule.source.map(|source| source.prefix()));
        let mut rules = rules.into_iter().peekable();
        while let Some(first) = rules.next() {
            let of = class(&first);
            let mut group = vec![first];
            group.extend(std::iter::from_fn(|| rules.next_if(|rule| class(rule) == of)));
            if group.len() <= LEAF {
                out.extend(group);
            } else {
                self.by_address(group, chain, out);
            }
        }
    }

    /// Splits rules that never overlap into as many parts as a chain may have, by the order of one of their addresses.
    fn by_address(&mut self, mut group: Vec<Arc<Rule>>, chain: &str, out: &mut Vec<Arc<Rule>>) {
        for end in [End::Destination, End::Source] {
            let mut networks: Vec<IpNetwork> = group.iter().filter_map(|rule| end.of(rule)).collect();
            networks.sort_unstable();
            networks.dedup();
            if networks.len() < 2 || group.iter().any(|rule| end.of(rule).is_none()) {
                continue;
            }
            // What has the same address stays together, and in order.
            group.sort_by_key(|rule| end.of(rule));
            let mut rules = group.into_iter().peekable();
            for (number, part) in networks.chunks(part_size(networks.len())).enumerate() {
                let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
                let inside: Vec<Arc<Rule>> =
                    std::iter::from_fn(|| rules.next_if(|rule| end.of(rule).is_some_and(|of| of <= *last))).collect();
                let source = matches!(end, End::Source);
                let range = Match::Range { source, first: first.network(), last: last.broadcast() };
                let name = format!("{}{:012x}", self.prefix, hash(&format!("{chain} {end:?} {number}")) >> 16);
                self.child_of_address(Rule::default().with(range), name, inside, out);
            }
            return;
        }
        // Only interfaces tell them apart, which no range covers.
        out.extend(group);
    }

    /// Adds a chain that is asked where `guard` matches.
    fn child(&mut self, guard: Rule, name: String, rules: Vec<Arc<Rule>>, out: &mut Vec<Arc<Rule>>) {
        let mut inside = Vec::new();
        self.fill(rules, &name, &mut inside);
        self.put(guard, name, inside, out);
    }

    /// The same, of rules that have their ports in common.
    fn child_of_address(&mut self, guard: Rule, name: String, rules: Vec<Arc<Rule>>, out: &mut Vec<Arc<Rule>>) {
        let mut inside = Vec::new();
        self.by_class(rules, &name, &mut inside);
        self.put(guard, name, inside, out);
    }

    fn put(&mut self, mut guard: Rule, mut name: String, inside: Vec<Arc<Rule>>, out: &mut Vec<Arc<Rule>>) {
        // Two hashes may be the same; no other two names can.
        while let Entry::Occupied(_) = self.chains.entry(name.as_str().into()) {
            name = format!("{}{:012x}", self.prefix, hash(&name) >> 16);
        }
        guard.target = Rule::jump(&name).target;
        self.chains.insert(name.into(), Chain::from(inside));
        out.push(guard.into());
    }
}

fn protocol(rule: &Rule) -> Option<Protocol> {
    match rule.protocol {
        Some(Transport::Ports(protocol)) => Some(protocol),
        _ => None,
    }
}

/// What stands for a protocol in the name of a chain; no hexadecimal digit, so that no hash looks like it.
fn letter(protocol: Protocol) -> char {
    match protocol {
        Protocol::Tcp => 't',
        Protocol::Udp => 'u',
        Protocol::Sctp => 's',
        Protocol::Dccp => 'k',
        Protocol::Udplite => 'l',
    }
}

/// How many of so many addresses one part holds: the least power of [`PARTS`], times a leaf, that leaves no more than
/// [`PARTS`] parts.
fn part_size(count: usize) -> usize {
    let mut size = LEAF;
    while size * PARTS < count {
        size *= PARTS;
    }
    size.min(count.div_ceil(2))
}

/// FNV-1a of 64 bits.
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

    /// A packet, as far as rules of forwards look at one.
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
                Match::Range { source: true, first, last } => (*first..=*last).contains(&packet.source),
                Match::Range { source: false, first, last } => (*first..=*last).contains(&packet.destination),
                _ => true,
            })
    }

    /// The first rule that decides on a packet, and how many it met on the way.
    fn walk<'a>(
        rules: &'a [Arc<Rule>],
        chains: &'a BTreeMap<Arc<str>, Chain>,
        packet: &Packet,
        met: &mut usize,
    ) -> Option<&'a Rule> {
        for rule in rules {
            *met += 1;
            if matches(rule, packet) {
                match rule.asks() {
                    None => return Some(rule),
                    Some(next) => {
                        if let Some(found) = walk(&chains[next].rules, chains, packet, met) {
                            return Some(found);
                        }
                    }
                }
            }
        }
        None
    }

    fn lay_out(rules: Vec<Rule>) -> (Vec<Arc<Rule>>, BTreeMap<Arc<str>, Chain>) {
        let (mut chains, mut root) = (BTreeMap::new(), Vec::new());
        let rules = rules.into_iter().map(Arc::new).collect();
        Tree::new(&mut chains, "X").lay_out(rules, "PORTFWD-X", &mut root);
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

    /// The most rules that a packet to any of these meets.
    fn most(rules: &[Rule], packets: impl Iterator<Item = Packet>) -> usize {
        let (root, chains) = lay_out(rules.to_vec());
        assert!(chains.keys().all(|name| name.len() <= 28), "names that iptables takes");
        let met = |packet: Packet| {
            let mut met = 0;
            assert!(walk(&root, &chains, &packet, &mut met).is_some(), "{packet:?}");
            met
        };
        packets.map(met).max().unwrap_or(0)
    }

    #[test]
    fn among_60_000_single_ports_a_packet_meets_tens() {
        let of = |protocol| (1..=30_000).map(move |port| rule(protocol, port * 2, port * 2));
        let rules: Vec<Rule> = of(Protocol::Tcp).chain(of(Protocol::Udp)).collect();
        let packets = (1..=30_000).flat_map(|port| [Protocol::Tcp, Protocol::Udp].map(|of| packet(of, port * 2)));
        assert!(most(&rules, packets) <= 2 + 16 + 8 + 8 + LEAF);
    }

    #[test]
    fn among_ranges_that_span_blocks_too() {
        let rules: Vec<Rule> = (0..8_000).map(|n| rule(Protocol::Tcp, n * 8 + 5, n * 8 + 11)).collect();
        let packets = (0..8_000).map(|n| packet(Protocol::Tcp, n * 8 + 10));
        let most = most(&rules, packets);
        assert!(most <= 2 * (16 + 8 + 8 + LEAF), "{most}");
    }

    #[test]
    fn among_thousands_of_addresses_or_clients_of_one_port_too() {
        for end in [End::Destination, End::Source] {
            let with = |number: u32| {
                let network = Some(IpNetwork::from(address(number * 77)));
                let rule = rule(Protocol::Tcp, 80, 80);
                match end {
                    End::Destination => Rule { destination: network, ..rule },
                    End::Source => Rule { source: network, ..rule },
                }
            };
            let rules: Vec<Rule> = (1..20_000).map(with).collect();
            let packets = (1..20_000).map(|number| {
                let at = address(number * 77);
                let packet = packet(Protocol::Tcp, 80);
                match end {
                    End::Destination => Packet { destination: at, ..packet },
                    End::Source => Packet { source: at, ..packet },
                }
            });
            let most = most(&rules, packets);
            assert!(most <= 3 * PARTS + LEAF, "{end:?}: {most}");
        }
    }

    #[test]
    fn one_more_changes_one_chain() {
        let rules: Vec<Rule> = (1..=20_000).map(|port| rule(Protocol::Tcp, port * 3, port * 3)).collect();
        let more = rules.iter().cloned().chain([rule(Protocol::Tcp, 100, 100)]).collect();
        let ((root, before), (same, after)) = (lay_out(rules), lay_out(more));
        assert_eq!(root, same);
        assert!(before.keys().eq(after.keys()));
        assert_eq!(before.iter().zip(&after).filter(|(before, after)| before != after).count(), 1);
    }

    /// Rules of many classes, in the order of precedence, each with a number of its own in its target.
    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let one = (0u32..40, 0u32..40, 0u32..4, 0u16..6, any::<[bool; 4]>());
        proptest::collection::vec(one, 100..700).prop_map(|all| {
            let mut rules: Vec<Rule> = Vec::new();
            for (destination, source, length, port, [named, on, udp, from]) in all {
                let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
                let source = IpNetwork::new(address(source << 26), 4 + u8::try_from(length).unwrap_or(0)).ok();
                let mut rule = rule(protocol, 1000 + port, 1000 + port);
                rule.destination = named.then(|| IpNetwork::from(address(destination)));
                rule.input = on.then(|| Interface { not: false, name: "eth0".parse().expect("name") });
                let whole = |source: IpNetwork| IpNetwork::new(source.network(), source.prefix()).ok();
                rule.source = source.filter(|_| from).and_then(whole);
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
        fn the_first_match_is_that_of_one_long_chain(
            rules in rules(),
            packets in proptest::collection::vec((0u32..40, any::<u32>(), 0u16..7, any::<[bool; 2]>()), 200),
        ) {
            let (root, chains) = lay_out(rules.clone());
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
