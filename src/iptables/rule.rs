//! A rule: what it matches and what it does, in the words of iptables(8).
//!
//! Prints as iptables-restore reads it; [`Rule::parse`] reads what iptables-save prints.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::words;
use crate::model::{Comment, Family, IfName, Mode, Pool, PortRange, Protocol};

/// The interface that a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Interface {
    /// Whether it is any other one.
    pub not: bool,
    /// Its name.
    pub name: IfName,
}

/// The protocol that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One with ports.
    Ports(Protocol),
    /// The ICMP of IPv4.
    Icmp,
}

/// States of connection tracking, as `--ctstate` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum States {
    /// The first packet of a connection, and those before an answer.
    New,
    /// What does not belong to a connection that was let through before.
    Unknown,
}

impl States {
    fn text(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Unknown => "INVALID,NEW,UNTRACKED",
        }
    }
}

/// What a rule asks besides addresses, interfaces and ports; in the order of its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// The destination is one of this host's addresses.
    LocalDestination,
    /// The source is any of the family's. iptables leaves `-s 0.0.0.0/0` out; this it keeps.
    Everyone,
    /// An address is in this range.
    Range {
        /// Whether the source's; otherwise the destination's.
        source: bool,
        /// The lowest address.
        first: IpAddr,
        /// The highest.
        last: IpAddr,
    },
    /// The connection is in one of these states.
    State(States),
    /// The connection has this label, or has not.
    Label {
        /// The label's bit.
        bit: u8,
        /// Whether it must not be there.
        not: bool,
    },
    /// Always matches, and gives the connection this label.
    SetLabel(u8),
    /// Always matches; whose the rule is.
    Comment(Arc<str>),
}

/// Where a rule sends the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// What becomes of the port.
    pub port: DestinationPort,
}

/// What becomes of a destination's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationPort {
    /// It stays.
    Keep,
    /// It becomes this one.
    One(u16),
    /// `LO-HI/BASE`: ports from `base` on become those of the range, one to one.
    Shift {
        /// The range that they become.
        to: PortRange,
        /// The first port that is shifted.
        base: u16,
    },
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Asks another chain, and comes back if that decides nothing.
    Jump(Arc<str>),
    /// Goes back to the chain that asked.
    Return,
    /// Drops the packet.
    Drop,
    /// Rewrites the destination.
    Dnat(Destination),
    /// Sends it to this host, and to another port if one is given.
    Redirect(Option<u16>),
    /// Rewrites the source to one of a pool.
    Snat(Pool, Option<Mode>),
    /// Rewrites the source to the address of the interface it leaves by.
    Masquerade,
    /// Rewrites the network of an address.
    Netmap(IpNetwork),
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The source is in this network.
    pub source: Option<IpNetwork>,
    /// The destination is.
    pub destination: Option<IpNetwork>,
    /// It arrived here.
    pub input: Option<Interface>,
    /// It leaves here.
    pub output: Option<Interface>,
    /// The protocol.
    pub protocol: Option<Transport>,
    /// The destination's port.
    pub ports: Option<PortRange>,
    /// The whole range of ports that the rule is only a part of.
    pub part_of: Option<PortRange>,
    /// What else it asks.
    pub matches: Vec<Match>,
    /// What it does; none: it only sets labels.
    pub target: Option<Target>,
    /// The words of a rule that is none of ours; all else is empty then.
    pub foreign: Option<String>,
}

impl Rule {
    /// A rule that jumps to a chain.
    pub fn jump(chain: &str) -> Self {
        Self::to(Target::Jump(chain.into()))
    }

    /// A rule that does this with everything.
    pub fn to(target: Target) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    /// The same rule with one more thing to ask, last.
    #[must_use]
    pub fn with(mut self, more: Match) -> Self {
        self.matches.push(more);
        self
    }

    /// Its comment, if it has one.
    pub fn comment(&self) -> Option<&Arc<str>> {
        self.matches.iter().find_map(|found| match found {
            Match::Comment(text) => Some(text),
            _ => None,
        })
    }

    /// The labels that it sets.
    pub fn labels(&self) -> impl Iterator<Item = u8> {
        self.matches.iter().filter_map(|found| match found {
            Match::SetLabel(bit) => Some(*bit),
            _ => None,
        })
    }

    /// The chain that it asks, if it asks one.
    pub fn asks(&self) -> Option<&Arc<str>> {
        match &self.target {
            Some(Target::Jump(chain)) => Some(chain),
            _ => None,
        }
    }

    /// Adds its text, with a blank before each word.
    pub fn put(&self, family: Family, out: &mut String) {
        // Writing to a `String` cannot fail.
        let written = self.write(family, out);
        debug_assert!(written.is_ok());
    }

    fn write(&self, family: Family, out: &mut String) -> fmt::Result {
        if let Some(words) = &self.foreign {
            return write!(out, " {words}");
        }
        if let Some(source) = self.source {
            write!(out, " -s {source}")?;
        }
        if let Some(destination) = self.destination {
            write!(out, " -d {destination}")?;
        }
        for (flag, interface) in [(" -i ", &self.input), (" -o ", &self.output)] {
            if let Some(Interface { not, name }) = interface {
                out.push_str(if *not { " !" } else { "" });
                out.push_str(flag);
                words::put(name.as_str(), out);
            }
        }
        match self.protocol {
            Some(Transport::Ports(protocol)) => write!(out, " -p {protocol}")?,
            Some(Transport::Icmp) => out.push_str(" -p icmp"),
            None => {}
        }
        if let Some(ports) = self.ports {
            // Only UDP-Lite has no match of its own.
            let lite = self.protocol == Some(Transport::Ports(Protocol::Udplite));
            out.push_str(if lite { " -m multiport --dports " } else { " --dport " });
            put_ports(ports, out)?;
        }
        if let Some(whole) = self.part_of {
            out.push_str(" -m multiport --dports ");
            put_ports(whole, out)?;
        }
        for found in &self.matches {
            found.write(family, out)?;
        }
        match &self.target {
            Some(target) => target.write(out),
            None => Ok(()),
        }
    }

    /// Reads a rule; the other direction of [`Rule::put`]. What is not written as we write it is kept as foreign words.
    pub fn parse(text: &str, family: Family, names: &LabelNames) -> Self {
        let read = words::split(text).and_then(|words| Reader::new(&words, family, names).rule());
        read.unwrap_or_else(|| Self { foreign: Some(text.trim().to_owned()), ..Self::default() })
    }
}

fn put_ports(ports: PortRange, out: &mut String) -> fmt::Result {
    if ports.is_single() { write!(out, "{}", ports.first()) } else { write!(out, "{}:{}", ports.first(), ports.last()) }
}

impl Match {
    fn write(&self, family: Family, out: &mut String) -> fmt::Result {
        match self {
            Self::LocalDestination => out.write_str(" -m addrtype --dst-type LOCAL"),
            Self::Everyone => write!(out, " -m iprange --src-range {}", everyone(family)),
            Self::Range { source, first, last } => {
                write!(out, " -m iprange --{}-range {first}-{last}", if *source { "src" } else { "dst" })
            }
            Self::State(states) => write!(out, " -m conntrack --ctstate {}", states.text()),
            Self::Label { bit, not } => {
                write!(out, " -m connlabel{} --label {bit}", if *not { " !" } else { "" })
            }
            Self::SetLabel(bit) => write!(out, " -m connlabel --label {bit} --set"),
            Self::Comment(text) => {
                out.push_str(" -m comment --comment ");
                words::put(text, out);
                Ok(())
            }
        }
    }
}

/// All addresses of a family as a range.
fn everyone(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "0.0.0.0-255.255.255.255",
        Family::Ipv6 => "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

impl Target {
    fn write(&self, out: &mut String) -> fmt::Result {
        match self {
            Self::Jump(chain) => {
                out.push_str(" -j ");
                words::put(chain, out);
                Ok(())
            }
            Self::Return => out.write_str(" -j RETURN"),
            Self::Drop => out.write_str(" -j DROP"),
            Self::Dnat(destination) => write!(out, " -j DNAT --to-destination {destination}"),
            Self::Redirect(None) => out.write_str(" -j REDIRECT"),
            Self::Redirect(Some(port)) => write!(out, " -j REDIRECT --to-ports {port}"),
            Self::Snat(pool, mode) => {
                write!(out, " -j SNAT --to-source {pool}")?;
                out.write_str(match mode {
                    None => "",
                    Some(Mode::Random) => " --random",
                    Some(Mode::FullyRandom) => " --random-fully",
                    Some(Mode::Persistent) => " --persistent",
                })
            }
            Self::Masquerade => out.write_str(" -j MASQUERADE"),
            Self::Netmap(network) => write!(out, " -j NETMAP --to {network}"),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, DestinationPort::Keep) => return write!(f, "{address}"),
            (IpAddr::V4(address), _) => write!(f, "{address}")?,
            (IpAddr::V6(address), _) => write!(f, "[{address}]")?,
        }
        match self.port {
            DestinationPort::Keep => Ok(()),
            DestinationPort::One(port) => write!(f, ":{port}"),
            DestinationPort::Shift { to, base } => write!(f, ":{}-{}/{base}", to.first(), to.last()),
        }
    }
}

/// The names of labels' bits on this host, from connlabel.conf: iptables-save prints them in the place of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelNames(Vec<(String, u8)>);

impl LabelNames {
    /// Reads `BIT NAME` lines. What is none is a comment.
    pub fn read(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let bit = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), bit))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn bit(&self, text: &str) -> Option<u8> {
        let named = self.0.iter().find(|(name, _)| name == text).map(|(_, bit)| *bit);
        named.or_else(|| text.parse().ok())
    }
}

/// Reads the words of a rule.
struct Reader<'a> {
    words: std::slice::Iter<'a, String>,
    family: Family,
    names: &'a LabelNames,
    rule: Rule,
}

impl<'a> Reader<'a> {
    fn new(words: &'a [String], family: Family, names: &'a LabelNames) -> Self {
        Self { words: words.iter(), family, names, rule: Rule::default() }
    }

    fn next(&mut self) -> Option<&'a str> {
        self.words.next().map(String::as_str)
    }

    /// Whether the next word is this one; takes it then.
    fn takes(&mut self, word: &str) -> bool {
        let is = self.words.as_slice().first().is_some_and(|next| next == word);
        if is {
            self.words.next();
        }
        is
    }

    fn rule(mut self) -> Option<Rule> {
        while let Some(word) = self.next() {
            match word {
                "-s" => self.rule.source = Some(self.network()?),
                "-d" => self.rule.destination = Some(self.network()?),
                "-i" => self.rule.input = Some(self.interface(false)?),
                "-o" => self.rule.output = Some(self.interface(false)?),
                "!" => match self.next()? {
                    "-i" => self.rule.input = Some(self.interface(true)?),
                    "-o" => self.rule.output = Some(self.interface(true)?),
                    _ => return None,
                },
                "-p" => self.rule.protocol = Some(transport(self.next()?)?),
                "--dport" => self.rule.ports = Some(ports(self.next()?)?),
                "-m" => self.extension()?,
                "-j" => {
                    self.rule.target = Some(self.target()?);
                    return self.words.as_slice().is_empty().then_some(self.rule);
                }
                _ => return None,
            }
        }
        Some(self.rule)
    }

    fn network(&mut self) -> Option<IpNetwork> {
        let network: IpNetwork = self.next()?.parse().ok()?;
        (Family::of_network(network) == self.family).then_some(network)
    }

    fn interface(&mut self, not: bool) -> Option<Interface> {
        Some(Interface { not, name: IfName::try_from(self.next()?.to_owned()).ok()? })
    }

    fn extension(&mut self) -> Option<()> {
        let found = match self.next()? {
            // The match of the protocol's own, which `--dport` belongs to.
            "tcp" | "udp" | "sctp" | "dccp" => return Some(()),
            "multiport" => {
                let range = if self.takes("--dports") { ports(self.next()?)? } else { return None };
                let slot = if self.rule.ports.is_none() { &mut self.rule.ports } else { &mut self.rule.part_of };
                return slot.replace(range).is_none().then_some(());
            }
            "addrtype" => (self.takes("--dst-type") && self.next()? == "LOCAL").then_some(Match::LocalDestination)?,
            "iprange" => {
                let source = match self.next()? {
                    "--src-range" => true,
                    "--dst-range" => false,
                    _ => return None,
                };
                self.range(source)?
            }
            "conntrack" if self.takes("--ctstate") => {
                let text = self.next()?;
                Match::State([States::New, States::Unknown].into_iter().find(|states| states.text() == text)?)
            }
            "connlabel" => {
                let not = self.takes("!");
                let bit = if self.takes("--label") { self.names.bit(self.next()?)? } else { return None };
                match (not, self.takes("--set")) {
                    (false, true) => Match::SetLabel(bit),
                    (not, false) => Match::Label { bit, not },
                    (true, true) => return None,
                }
            }
            "comment" if self.takes("--comment") => Match::Comment(self.next()?.into()),
            _ => return None,
        };
        self.rule.matches.push(found);
        Some(())
    }

    fn range(&mut self, source: bool) -> Option<Match> {
        let text = self.next()?;
        if source && text == everyone(self.family) {
            return Some(Match::Everyone);
        }
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        let same = Family::of(first) == self.family && Family::of(last) == self.family;
        same.then_some(Match::Range { source, first, last })
    }

    fn target(&mut self) -> Option<Target> {
        Some(match self.next()? {
            "RETURN" => Target::Return,
            "DROP" => Target::Drop,
            "MASQUERADE" => Target::Masquerade,
            "DNAT" if self.takes("--to-destination") => Target::Dnat(destination(self.next()?, self.family)?),
            "REDIRECT" if self.takes("--to-ports") => Target::Redirect(Some(self.next()?.parse().ok()?)),
            "REDIRECT" => Target::Redirect(None),
            "SNAT" if self.takes("--to-source") => {
                let pool: Pool = Pool::try_from(self.next()?.to_owned()).ok()?;
                let mode = match self.words.as_slice().first().map(String::as_str) {
                    None => None,
                    Some("--random") => Some(Mode::Random),
                    Some("--random-fully") => Some(Mode::FullyRandom),
                    Some("--persistent") => Some(Mode::Persistent),
                    Some(_) => return None,
                };
                self.words.next();
                (pool.family() == self.family).then_some(Target::Snat(pool, mode))?
            }
            "NETMAP" if self.takes("--to") => Target::Netmap(self.network()?),
            chain if chain.starts_with(super::program::PREFIX) => Target::Jump(chain.into()),
            _ => return None,
        })
    }
}

/// iptables prints the names that it knows, and the numbers of all others.
fn transport(text: &str) -> Option<Transport> {
    let number = text.parse().ok();
    if text == "icmp" || number == Some(1) {
        return Some(Transport::Icmp);
    }
    let protocol = number.map_or_else(|| text.parse().ok(), Protocol::from_number);
    protocol.map(Transport::Ports)
}

fn ports(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    PortRange::new(first.parse().ok()?, last.parse().ok()?)
}

fn destination(text: &str, family: Family) -> Option<Destination> {
    let (address, port) = match (text.strip_prefix('['), family) {
        (Some(rest), Family::Ipv6) => rest.split_once("]:").map(|(address, port)| (address, Some(port)))?,
        (None, Family::Ipv4) => text.split_once(':').map_or((text, None), |(address, port)| (address, Some(port))),
        (None, Family::Ipv6) => (text, None),
        (Some(_), Family::Ipv4) => return None,
    };
    let address: IpAddr = address.parse().ok()?;
    let port = match port {
        None => DestinationPort::Keep,
        Some(text) => match text.split_once('/') {
            None => DestinationPort::One(text.parse().ok()?),
            Some((to, base)) => DestinationPort::Shift { to: to.parse().ok()?, base: base.parse().ok()? },
        },
    };
    (Family::of(address) == family).then_some(Destination { address, port })
}

/// The comment of a binding, shared by all rules that carry it.
pub fn shared_comment(set: &crate::model::SetName, remark: Option<&Comment>) -> Arc<str> {
    crate::netfilter::comment::comment(set, remark.map(Comment::as_str)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, family: Family) -> Rule {
        Rule::parse(text, family, &LabelNames::default())
    }

    /// What iptables-save 1.8.9 prints of rules like ours, both variants alike.
    const SAVED: [&str; 22] = [
        "-m iprange --dst-range 10.0.0.1-10.0.0.9 -j PORTFWD.0a-0123456789ab",
        "-j PORTFWD.PREROUTING",
        "-i eth0 -o eth0 -m connlabel --label \"120\" --set",
        "-m conntrack --ctstate NEW -m connlabel --label \"121\" -m connlabel ! --label \"119\" -j PORTFWD.HAIRPIN",
        "-d 10.0.0.0/8 ! -i docker0 -o docker0 -m conntrack --ctstate INVALID,NEW,UNTRACKED -m comment --comment \"web: isolate docker0 DOCKER\" -j PORTFWD.ISOLATE",
        "-m addrtype --dst-type LOCAL -m comment --comment web -j PORTFWD-DOCKER",
        "-p tcp -m tcp --dport 1000:1999 -j PORTFWD.0a-t1000-1999",
        "-d 192.0.2.1/32 -i eth0 -p tcp -m tcp --dport 80 -m comment --comment \"cli: a \\\"b\\\" \\'c\\' \\\\ d\" -j DNAT --to-destination 10.0.0.2:80",
        "-s 198.51.100.0/24 -p udp -m udp --dport 1000:1001 -j DNAT --to-destination 10.0.0.2",
        "-p tcp -m tcp --dport 1000:1010 -j DNAT --to-destination 10.0.0.2:2000-2010/1000",
        "-p tcp -m tcp --dport 1003 -m multiport --dports 1000:1010 -j REDIRECT --to-ports 2003",
        "-p sctp -m sctp --dport 9 -m iprange --src-range 0.0.0.0-255.255.255.255 -j REDIRECT",
        "-p dccp -m dccp --dport 9 -j REDIRECT",
        "-p udplite -m multiport --dports 9 -j DNAT --to-destination 10.0.0.2",
        "-s 10.0.0.0/24 -o eth0 -p tcp -j SNAT --to-source 203.0.113.5-203.0.113.9:1024-2047 --random",
        "-s 10.0.0.0/24 -o eth0 -p icmp -j SNAT --to-source 203.0.113.5:1024-2047 --random-fully",
        "-o eth0 -j SNAT --to-source 203.0.113.5 --persistent",
        "-s 10.0.0.0/24 ! -o eth0 -j MASQUERADE",
        "-s 10.0.0.0/24 -j NETMAP --to 192.0.2.0/24",
        "-o lo -j RETURN",
        "! -i lo -s 127.0.0.0/8 -j DROP",
        "-d 127.0.0.0/8 -m comment --comment \"\" -j DROP",
    ];

    #[test]
    fn what_iptables_save_prints_is_read_and_written_back() {
        for text in SAVED {
            let rule = read(text, Family::Ipv4);
            assert_eq!(rule.foreign, None, "{text}");
            let mut again = String::new();
            rule.put(Family::Ipv4, &mut again);
            assert_eq!(read(&again, Family::Ipv4), rule, "{text}: {again}");
        }
        for text in [
            "-d 2001:db8::1/128 -p tcp -m tcp --dport 1000 -j DNAT --to-destination [fd00::2]:80",
            "-p tcp -m tcp --dport 1000:1010 -j DNAT --to-destination [fd00::2]:2000-2010/1000",
            "-m iprange --src-range ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff -j DNAT --to-destination fd00::2",
            "-s fd00::/64 -o eth0 -p tcp -j SNAT --to-source [2001:db8::5-2001:db8::9]:1024-2047 --random",
            "-s fd00::/64 -j NETMAP --to 2001:db8::/64",
        ] {
            let rule = read(text, Family::Ipv6);
            assert_eq!(rule.foreign, None, "{text}");
            let mut again = String::new();
            rule.put(Family::Ipv6, &mut again);
            assert_eq!(read(&again, Family::Ipv6), rule, "{text}: {again}");
        }
    }

    #[test]
    fn what_is_not_written_like_ours_is_kept_in_its_words() {
        for text in [
            "-p tcp -m tcp --dport 80 -j DOCKER",
            "-p tcp -m tcp --sport 80 -j DROP",
            "-m mark --mark 0x1 -j RETURN",
            "-j DNAT --to-destination 10.0.0.2:80-90",
            "-j DNAT --to-destination 10.0.0.2:80 --random",
            "-s fd00::/64 -j DROP",
            "! -s 10.0.0.0/8 -j DROP",
            "-j",
            "-m",
            "-m comment --comment \"open",
        ] {
            let rule = read(text, Family::Ipv4);
            assert_eq!(rule.foreign.as_deref(), Some(text));
            let mut again = String::new();
            rule.put(Family::Ipv4, &mut again);
            assert_eq!(again.trim(), text);
        }
    }

    #[test]
    fn labels_may_have_names() {
        let names = LabelNames::read("# bits\n117\tasked\n5 eth-in\nnot a line\n");
        let rule = Rule::parse("-m connlabel --label \"asked\" --set", Family::Ipv4, &names);
        assert_eq!(rule, Rule::default().with(Match::SetLabel(117)));
        assert!(Rule::parse("-m connlabel --label \"other\"", Family::Ipv4, &names).foreign.is_some());
    }
}
