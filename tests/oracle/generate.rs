//! Generators for random rule sets and random packets. Many packets are at the edges of address and port ranges.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;
use ipnetwork::IpNetwork;
use portfwd::config::{self, Source};
use portfwd::engine::Choice as Backend;
use portfwd::iptables::limits;
use portfwd::lab::Topology;
use portfwd::model::{Binding, DesiredState, Family, Packet, Protocol, RuleSet, netmap};
use portfwd::sys::tracking::{Untracked, rewrites_ports};

/// The tables of a rule-set file. The generator checks each new table, so any subset is valid.
pub type Tables = Vec<String>;

/// A rule set as text: its settings and its tables. The tables can be split into two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    pub settings: String,
    pub tables: Tables,
}

impl Case {
    /// Returns the case without the tables that the backend refuses.
    pub fn for_backend(mut self, backend: Backend) -> Self {
        if backend == Backend::Nft {
            return self;
        }
        let kept = self.settings.lines().filter(|line| !line.starts_with("priority"));
        self.settings = kept.map(|line| format!("{line}\n")).collect();
        let fits = |table: &String| {
            let alone = Self { settings: String::new(), tables: vec![table.clone()] };
            alone.desired().is_some_and(|desired| limits::find(&desired).is_empty())
        };
        self.tables.retain(fits);
        self
    }

    /// Returns one file with the settings and all tables.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.settings, self.tables.join("\n"))
    }

    /// Returns the desired state, or `None` if the case has a conflict.
    pub fn desired(&self) -> Option<DesiredState> {
        load(&[("oracle", &self.text())]).map(|(desired, _)| desired)
    }

    /// Returns the desired state and the rule sets of the file.
    pub fn written(&self) -> Option<(DesiredState, Vec<RuleSet>)> {
        load(&[("oracle", &self.text())])
    }

    /// Returns the desired state of two files with half of the tables each. `swapped` reverses the order of the files.
    pub fn asked_from_two(&self, swapped: bool) -> Option<DesiredState> {
        let half = |odd: usize| -> String {
            let half = self.tables.iter().enumerate().filter(|(index, _)| index % 2 == odd);
            half.map(|(_, table)| format!("{table}\n")).collect()
        };
        let (one, other) = (format!("{}\n{}", self.settings, half(0)), half(1));
        let mut files = [("one", one.as_str()), ("other", other.as_str())];
        if swapped {
            files.reverse();
        }
        load(&files).map(|(desired, _)| desired)
    }
}

fn load(files: &[(&str, &str)]) -> Option<(DesiredState, Vec<RuleSet>)> {
    let mut sets = Vec::new();
    for (name, text) in files {
        let source = Source { path: format!("{name}.toml").into(), text: (*text).to_owned() };
        let (loaded, problems) = config::load(&Arc::new(source));
        sets.push(loaded.filter(|_| problems.is_empty())?);
    }
    let desired = config::merge(DesiredState::default(), &sets).ok()?;
    Some((desired, sets.into_iter().map(|loaded| loaded.set).collect()))
}

const TARGETS: [&str; 8] =
    ["172.17.0.2", "172.17.0.3", "10.1.0.2", "10.1.0.9", "10.9.0.2", "fd00:17::2", "fd00:a::2", "fd00:9::2"];
// The last address, 192.0.3.9, is also in a network with a netmap.
const LISTENS: [&str; 9] = ["", "", "", "", "192.0.2.1:", "192.0.2.2:", "[2001:db8::1]:", "127.0.0.1:", "192.0.3.9:"];
const FROMS: [&str; 16] = [
    "198.51.100.0/24",
    "198.51.100.128/25",
    "198.51.0.0/16",
    "198.51.100.130",
    "198.51.100.129",
    "0.0.0.0/0",
    "198.18.0.2",
    "198.18.0.0/23",
    "172.17.0.0/16",
    "127.0.0.0/8",
    "2001:db8:c::/48",
    "2001:db8:c:1::/64",
    "2001:db8:c:1::7",
    "2001:2::/32",
    "fd00:17::/64",
    "::/0",
];
const INTERFACES: [&str; 4] = ["eth0", "eth1", "docker0", "br-a"];
const PROTOCOLS: [&[&str]; 6] = [&["tcp"], &["udp"], &["tcp", "udp"], &["udp", "sctp"], &["sctp"], &["udplite"]];
const SOURCES: [&str; 6] = ["keep", "keep", "masquerade", "198.18.0.1", "203.0.113.77", "2001:db8::77"];

/// Returns a random item of a list.
fn choose<'a, T: ?Sized>(rng: &mut Rng, list: &[&'a T]) -> &'a T {
    list[rng.usize(..list.len())]
}

/// Makes a rule set of up to `max_tables` tables.
///
/// With `early`, the priorities of destination NAT and source NAT are before those of most programs.
pub fn case(rng: &mut Rng, max_tables: usize, early: bool) -> Case {
    let keep = if rng.u8(..12) == 0 { "ip_forward = \"keep\"\n" } else { "" };
    let priorities = if early { -109..-100 } else { -199..50 };
    let priority = if rng.u8(..4) == 0 { format!("priority = {}\n", rng.i32(priorities)) } else { String::new() };
    let mut case = Case { settings: format!("[settings]\n{keep}{priority}"), tables: Vec::new() };
    // The compiler handles many different client prefix lengths in another way than a few lengths.
    let many_prefixes = rng.u8(..3) == 0;
    // With few ports, forwards compete for the same packets.
    let ports = if rng.bool() { 1000..1030 } else { 1000..1006 };
    // Networks with their own chains spread similar forwards over several chains.
    let networks = rng.u8(0..3);
    for _ in 0..rng.usize(1..=max_tables) {
        let table = match rng.u8(..20) {
            0 => masquerade(rng),
            1 => snat(rng),
            2 => netmap_table(rng),
            kind if kind < 3 + networks => network(rng),
            _ => forward(rng, many_prefixes, ports.clone()),
        };
        case.tables.push(table);
        if case.desired().is_none() {
            case.tables.pop();
        }
    }
    case
}

fn network(rng: &mut Rng) -> String {
    let (name, subnets) =
        if rng.bool() { ("docker0", r#""172.17.0.0/16", "fd00:17::/64""#) } else { ("br-a", r#""10.1.0.0/24""#) };
    let chain = choose(rng, &["DOCKER", "DOCKER", "OTHER"]);
    format!(
        "[[network]]\nname = \"{name}\"\nsubnet = [{subnets}]\nchain = \"{chain}\"\nmasquerade = {}\nisolate = {}\n",
        rng.bool(),
        rng.bool()
    )
}

/// Returns the key `from`, the key `out`, or both.
fn from_and_out(rng: &mut Rng) -> String {
    let from =
        choose(rng, &["10.1.0.0/24", "10.1.0.2", "172.17.0.0/16", "198.51.100.0/24", "fd00:a::/64", "fd00:17::2"]);
    let out = choose(rng, &["eth0", "eth1", "docker0"]);
    match rng.u8(..3) {
        0 => format!("from = \"{from}\"\n"),
        1 => format!("out = \"{out}\"\n"),
        _ => format!("from = \"{from}\"\nout = \"{out}\"\n"),
    }
}

fn masquerade(rng: &mut Rng) -> String {
    format!("[[masquerade]]\n{}", from_and_out(rng))
}

fn snat(rng: &mut Rng) -> String {
    let to = choose(
        rng,
        &[
            "203.0.113.5",
            "203.0.113.8-203.0.113.15",
            "203.0.113.5:20000-60000",
            "203.0.113.8-203.0.113.15:20000-60000",
            "2001:db8:5::5",
            "[2001:db8:5::5-2001:db8:5::9]:20000-60000",
        ],
    );
    let mode = choose(rng, &["", "", "mode = \"random\"\n", "mode = \"fully-random\"\n", "mode = \"persistent\"\n"]);
    format!("[[snat]]\n{}to = \"{to}\"\n{mode}", from_and_out(rng))
}

fn netmap_table(rng: &mut Rng) -> String {
    let (listen, to) = *choose(
        rng,
        &[
            &("192.0.3.0/24", "10.1.0.0/24"),
            &("192.0.3.9/32", "10.9.0.2/32"),
            &("192.0.4.0/28", "172.17.0.0/28"),
            &("2001:db8:3::/64", "fd00:a::/64"),
        ],
    );
    format!("[[netmap]]\nlisten = \"{listen}\"\nto = \"{to}\"\n")
}

fn ports(rng: &mut Rng, space: Range<u16>) -> String {
    let first = rng.u16(space);
    match rng.u8(..24) {
        // This list has more ports than portfwd puts into one iptables chain.
        23 => (0..70).map(|number| (first + number * 3).to_string()).collect::<Vec<_>>().join(","),
        other => few_ports(rng, first, other % 6),
    }
}

fn few_ports(rng: &mut Rng, first: u16, kind: u8) -> String {
    match kind {
        0..=2 => first.to_string(),
        3 | 4 => format!("{first}-{}", first + rng.u16(1..12)),
        _ => format!("{first},{}-{}", first + 3, first + 3 + rng.u16(0..6)),
    }
}

fn forward(rng: &mut Rng, many_prefixes: bool, space: Range<u16>) -> String {
    let ports = ports(rng, space);
    let target = choose(rng, &TARGETS);
    let width = ports.split_once('-').and_then(|(a, b)| Some(b.parse::<u16>().ok()? - a.parse::<u16>().ok()?));
    let end = match (rng.u8(..5), width) {
        (0, _) => String::new(),
        (1 | 2, Some(width)) => format!("{}-{}", 3000, 3000 + width),
        (1, None) if !ports.contains(',') => format!("{0}-{0}", 3000),
        _ => rng.u16(2000..2010).to_string(),
    };
    let to = match (rng.u8(..6), target.contains(':'), end.as_str()) {
        (0, _, "") => ":2100".to_owned(),
        (0, _, end) => format!(":{end}"),
        (_, _, "") => target.to_owned(),
        (_, true, end) => format!("[{target}]:{end}"),
        (_, false, end) => format!("{target}:{end}"),
    };
    let mut text = format!("[[forward]]\nlisten = \"{}{ports}\"\nto = \"{to}\"\n", choose(rng, &LISTENS));
    let protocols: Vec<String> = choose(rng, &PROTOCOLS).iter().map(|protocol| format!("\"{protocol}\"")).collect();
    text += &format!("protocol = [{}]\n", protocols.join(", "));
    if rng.u8(..4) == 0 {
        text += &format!("interface = \"{}\"\n", choose(rng, &INTERFACES));
    }
    if many_prefixes && rng.bool() || rng.u8(..3) == 0 {
        let mut from: Vec<String> = (0..rng.usize(1..4)).map(|_| format!("\"{}\"", choose(rng, &FROMS))).collect();
        from.dedup();
        text += &format!("from = [{}]\n", from.join(", "));
    }
    text += &format!("source = \"{}\"\n", choose(rng, &SOURCES));
    if rng.u8(..4) == 0 {
        text += "hairpin = false\n";
    }
    if rng.u8(..3) == 0 {
        text += "loopback = true\n";
    }
    text
}

/// Returns a random packet near the bindings. Returns `None` if the test network cannot send the packet.
pub fn packet(rng: &mut Rng, desired: &DesiredState, topology: &Topology, source_port: u16) -> Option<Packet> {
    let aim = rng.choice(&desired.bindings).map(|owned| &owned.rule);
    let family = match aim {
        Some(binding) if rng.u8(..8) > 0 => binding.family,
        _ => *rng.choice(&Family::ALL)?,
    };
    let interface = interface(rng, aim, topology);
    let protocol = protocol(rng, aim, desired);
    let destination = SocketAddr::new(destination(rng, aim, desired, topology, family)?, port(rng, aim));
    let source = source(rng, desired, topology, family, interface.is_none(), destination.ip())?;
    let interface = interface.and_then(|name| name.parse().ok());
    let packet = Packet { protocol, source: SocketAddr::new(source, source_port), destination, interface };
    sendable(&packet, topology).then_some(packet)
}

/// Returns true if a packet can be sent, reaches the host, and is not dropped by the host's routing.
pub fn sendable(packet: &Packet, topology: &Topology) -> bool {
    let (source, destination) = (packet.source.ip(), packet.destination.ip());
    let host = &topology.plan;
    // The first address of a network is for all routers (RFC 4291, 2.6.1). The last IPv4 address is the broadcast
    // address.
    let edge = |address: IpAddr| {
        let last = |own: &IpNetwork| own.is_ipv4() && own.prefix() < 31 && own.broadcast() == address;
        let first = |own: &IpNetwork| own.network() == address && own.ip() != address;
        host.interfaces.iter().any(|here| here.addresses.iter().any(|own| last(own) || first(own)))
    };
    if Family::of_address(source) != Family::of_address(destination)
        || edge(source)
        || edge(destination)
        || topology.sender(packet).is_none()
    {
        return false;
    }
    let Some(arrives) = &packet.interface else {
        // A packet from a loopback address can only go to loopback addresses.
        return host.owns(source) && (destination.is_loopback() || !source.is_loopback());
    };
    let Some(here) = host.interfaces.iter().find(|here| here.name == *arrives) else { return false };
    // A sender does not route packets for its own network. It cannot send without an address of the packet's family.
    let on_link = here.addresses.iter().any(|own| own.contains(destination));
    let has_family = here.addresses.iter().any(|own| own.is_ipv4() == destination.is_ipv4());
    has_family && !host.owns(source) && !destination.is_loopback() && (host.owns(destination) || !on_link)
}

fn interface(rng: &mut Rng, aim: Option<&Binding>, topology: &Topology) -> Option<String> {
    let named = aim.and_then(|binding| binding.interface.as_ref()).map(ToString::to_string);
    let all: Vec<String> = topology.plan.interfaces.iter().map(|here| here.name.to_string()).collect();
    match rng.u8(..10) {
        0..=2 => None,
        3..=5 if named.is_some() => named,
        // A packet from the target's network is a hairpin packet.
        6 | 7 => aim
            .and_then(|binding| topology.subnet_of(binding.to.address?))
            .map(|subnet| subnet.bridge.clone())
            .or_else(|| rng.choice(&all).cloned()),
        _ => rng.choice(&all).cloned(),
    }
}

fn protocol(rng: &mut Rng, aim: Option<&Binding>, desired: &DesiredState) -> Protocol {
    let any = *rng.choice(&Protocol::ALL).expect("there are some");
    let wanted = match aim {
        Some(binding) if rng.u8(..10) > 0 => binding.protocol,
        _ => any,
    };
    // Without a UDP-Lite forward, the network checks UDP-Lite checksums and treats all of them as wrong.
    let has_udplite = desired.bindings.iter().any(|owned| owned.rule.protocol == Protocol::Udplite);
    match rewrites_ports(wanted) {
        Err(Untracked::Checksum(_)) if has_udplite => wanted,
        Err(_) => Protocol::Tcp,
        Ok(()) => wanted,
    }
}

fn port(rng: &mut Rng, aim: Option<&Binding>) -> u16 {
    let Some(binding) = aim else { return rng.u16(1000..1040) };
    let (first, last) = (binding.ports.first(), binding.ports.last());
    match rng.u8(..8) {
        0 | 1 => first,
        2 | 3 => last,
        4 => first - 1,
        5 => last + 1,
        6 => rng.u16(first..=last),
        // The packet goes to the target port. No rule may touch packets that are routed to the target port.
        _ => binding.target_port(first),
    }
}

fn destination(
    rng: &mut Rng,
    aim: Option<&Binding>,
    desired: &DesiredState,
    topology: &Topology,
    family: Family,
) -> Option<IpAddr> {
    let host = &topology.plan;
    let own: Vec<IpAddr> = host
        .interfaces
        .iter()
        .flat_map(|here| here.addresses.iter().map(IpNetwork::ip))
        .filter(|ip| Family::of_address(*ip) == family)
        .collect();
    let others: Vec<IpAddr> = (topology.targets.keys().copied())
        .chain(topology.uplinks.iter().flat_map(|uplink| uplink.address))
        .chain(topology.subnets.iter().filter_map(|subnet| subnet.neighbour))
        .filter(|ip| Family::of_address(*ip) == family)
        .collect();
    let mapped: Vec<IpAddr> = (desired.netmaps.iter())
        .flat_map(|owned| others.iter().map(|inside| netmap::translate(*inside, owned.rule.listen)))
        .filter(|ip| Family::of_address(*ip) == family)
        .collect();
    let loopback = if family == Family::Ipv4 { ["127.0.0.1", "127.0.0.5"] } else { ["::1", "::1"] };
    match rng.u8(..12) {
        0..=3 => aim.and_then(|binding| binding.address).or_else(|| rng.choice(&own).copied()),
        4..=6 => rng.choice(&own).copied(),
        7 => rng.choice(&others).copied(),
        8 => aim.and_then(|binding| binding.to.address),
        9 => rng.choice(&mapped).copied().or_else(|| rng.choice(&own).copied()),
        _ => loopback[rng.usize(..2)].parse().ok(),
    }
}

fn source(
    rng: &mut Rng,
    desired: &DesiredState,
    topology: &Topology,
    family: Family,
    from_host: bool,
    destination: IpAddr,
) -> Option<IpAddr> {
    let of_family = |ip: &IpAddr| Family::of_address(*ip) == family;
    if from_host {
        let own = topology.plan.interfaces.iter().flat_map(|here| here.addresses.iter().map(IpNetwork::ip));
        let own: Vec<IpAddr> = own.filter(of_family).collect();
        let use_loopback = destination.is_loopback() && rng.u8(..4) > 0;
        let loopback = if family == Family::Ipv4 { "127.0.0.1" } else { "::1" };
        return if use_loopback { loopback.parse().ok() } else { rng.choice(&own).copied() };
    }
    let mut all: Vec<IpAddr> = topology.uplinks.iter().flat_map(|uplink| uplink.address).collect();
    all.extend(topology.targets.keys());
    all.extend(topology.subnets.iter().filter_map(|subnet| subnet.neighbour));
    for from in desired.bindings.iter().filter_map(|owned| owned.rule.from) {
        all.extend(edges(from));
    }
    all.retain(of_family);
    rng.choice(&all).copied()
}

/// Returns the first and the last address of a prefix, and the addresses before and after the prefix.
fn edges(from: IpNetwork) -> Vec<IpAddr> {
    if from.prefix() < 8 {
        return Vec::new();
    }
    match (from.network(), from.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let (first, last) = (u32::from(first), u32::from(last));
            [first - 1, first, last, last + 1].map(|bits| std::net::Ipv4Addr::from(bits).into()).to_vec()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let (first, last) = (u128::from(first), u128::from(last));
            [first - 1, first, last, last + 1].map(|bits| std::net::Ipv6Addr::from(bits).into()).to_vec()
        }
        _ => Vec::new(),
    }
}
