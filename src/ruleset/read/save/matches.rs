//! What a rule of iptables(8) asks for, as a region.
//!
//! What is not understood stays in its own words.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::iptables::quoting::Words;
use crate::model::Family;
use crate::ruleset::read::xt;
use crate::ruleset::region::{Condition, DST_NAT, Field, Region, SRC_NAT, State, states};
use crate::ruleset::set::{Set, number_of};

/// Kinds of addresses by their names in `-m addrtype`, in the order of `RTN_…` in include/uapi/linux/rtnetlink.h.
const KINDS: [&str; 12] = [
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
    "THROW",
    "NAT",
    "XRESOLVE",
];

/// Protocols by their names in iptables-save(8), which takes those of its own list and prints numbers for others.
const PROTOCOLS: [(&str, u128); 13] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipencap", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("sctp", 132),
    ("udplite", 136),
];

/// A rule of which some words have been read.
pub(super) struct Reading {
    family: Family,
    region: Region,
    /// What is asked for that is one or the other: each makes regions of one.
    either: Vec<Either>,
    comment: Option<String>,
    /// The match whose options follow.
    module: String,
    not: bool,
}

/// Something that is asked for in two ways, of which one is enough.
enum Either {
    /// States of connections, bits of their status, and whether neither shall be so.
    StateOrStatus(Set, u128, bool),
    /// The port on this side or the other, and whether neither shall be so.
    Port(Set, bool),
}

impl Either {
    /// The packets of a region that it is about, in regions that are apart.
    fn of(&self, region: &Region) -> Vec<Region> {
        match self {
            Self::StateOrStatus(states, bits, not) => xt::states_or_status(region, states, *bits, *not),
            Self::Port(ports, true) => {
                vec![region.clone().with(Field::SourcePort, &ports.not()).with(Field::Port, &ports.not())]
            }
            Self::Port(ports, false) => vec![
                region.clone().with(Field::Port, ports),
                region.clone().with(Field::SourcePort, ports).with(Field::Port, &ports.not()),
            ],
        }
    }
}

type Read<T> = Result<T, &'static str>;

impl Reading {
    pub(super) fn new(family: Family) -> Self {
        Self { family, region: Region::all(), either: Vec::new(), comment: None, module: String::new(), not: false }
    }

    /// The packets that were asked for, in regions that are apart, and the comment.
    pub(super) fn end(self) -> Read<(Vec<Region>, Option<String>)> {
        if self.not {
            return Err("a `!` stands before nothing");
        }
        let mut regions = vec![self.region];
        for either in &self.either {
            regions = regions.iter().flat_map(|region| either.of(region)).collect();
        }
        Ok((regions, self.comment))
    }

    /// Reads a word, and what belongs to it.
    pub(super) fn word(&mut self, word: &str, words: &mut Words<'_>) -> Read<()> {
        if word == "!" {
            self.not = true;
            return Ok(());
        }
        let value = |words: &mut Words<'_>| words.next().map(str::to_owned).ok_or("an option has no value");
        match word {
            "-m" | "--match" => {
                self.module = value(words)?;
                if !self.has_options(words) {
                    self.unknown("", words);
                }
                return Ok(());
            }
            "-s" | "--source" | "--src" => self.addresses(Field::Source, &value(words)?)?,
            "-d" | "--destination" | "--dst" => self.addresses(Field::Destination, &value(words)?)?,
            "-i" | "--in-interface" => self.narrow(Field::Input, Set::interface(&value(words)?, '+')),
            "-o" | "--out-interface" => self.narrow(Field::Output, Set::interface(&value(words)?, '+')),
            "-p" | "--protocol" => {
                let protocol = protocol(&value(words)?).ok_or("its protocol is not known")?;
                self.narrow(Field::Protocol, protocol);
            }
            "--dport" | "--destination-port" => self.ports(Field::Port, &value(words)?)?,
            "--sport" | "--source-port" => self.ports(Field::SourcePort, &value(words)?)?,
            "--dports" | "--destination-ports" => self.ports(Field::Port, &value(words)?)?,
            "--sports" | "--source-ports" => self.ports(Field::SourcePort, &value(words)?)?,
            "--comment" => self.comment = Some(value(words)?),
            _ => return self.of_module(word, words),
        }
        self.not = false;
        Ok(())
    }

    fn of_module(&mut self, word: &str, words: &mut Words<'_>) -> Read<()> {
        let mut value = || words.next().ok_or("an option has no value");
        match (self.module.as_str(), word) {
            ("multiport", "--ports") => {
                let ports = ports(value()?)?;
                self.either.push(Either::Port(ports, self.not));
            }
            ("addrtype", "--dst-type") => self.narrow(Field::DestinationKind, kinds(value()?)?),
            ("addrtype", "--src-type") => self.narrow(Field::SourceKind, kinds(value()?)?),
            ("conntrack", "--ctstate") | ("state", "--state") => self.states(value()?)?,
            ("conntrack", "--ctorigdst") => self.addresses(Field::OriginalDestination, value()?)?,
            ("conntrack", "--ctorigdstport") => self.ports(Field::OriginalPort, value()?)?,
            ("conntrack", "--ctproto") => {
                let protocol = protocol(value()?).ok_or("its protocol is not known")?;
                self.narrow(Field::Protocol, protocol);
            }
            ("conntrack", "--ctdir") => {
                let back = value()? == "REPLY";
                self.narrow(Field::Direction, Set::single(back.into()));
            }
            ("mark", "--mark") => self.mark(Field::Mark, value()?)?,
            ("connmark", "--mark") => self.mark(Field::ConnectionMark, value()?)?,
            ("iprange", "--src-range") => self.range(Field::Source, value()?)?,
            ("iprange", "--dst-range") => self.range(Field::Destination, value()?)?,
            _ => {
                self.unknown(word, words);
                return Ok(());
            }
        }
        self.not = false;
        Ok(())
    }

    /// Whether a match whose name was read says the rest by options: then each of those is read by itself.
    fn has_options(&self, words: &Words<'_>) -> bool {
        let of_ours = ["tcp", "udp", "sctp", "dccp", "udplite", "multiport", "addrtype", "conntrack", "state", "mark"];
        let of_ours = of_ours.contains(&self.module.as_str())
            || ["connmark", "iprange", "comment", "icmp", "icmp6"].contains(&self.module.as_str());
        of_ours || words.peek().is_some_and(|next| next == "!" || next.starts_with("--"))
    }

    /// Keeps what is not understood, up to the next match or the target.
    fn unknown(&mut self, word: &str, words: &mut Words<'_>) {
        let mut text = format!("{}{}{word}", if self.module.is_empty() { "" } else { "-m " }, self.module);
        if !word.is_empty() && !self.module.is_empty() {
            text = format!("-m {} {}{word}", self.module, if self.not { "! " } else { "" });
        }
        while let Some(next) =
            words.peek().filter(|next| !matches!(*next, "-m" | "--match" | "-j" | "-g" | "--jump" | "--goto"))
        {
            text = format!("{text} {next}");
            words.next();
        }
        self.not = false;
        self.region.add_condition(Condition::Unknown(text.into()));
    }

    fn narrow(&mut self, field: Field, set: Set) {
        self.region.narrow(field, &if self.not { set.not() } else { set });
    }

    /// Addresses, networks, and lists of them.
    fn addresses(&mut self, field: Field, text: &str) -> Read<()> {
        let mut all = Set::none();
        for one in text.split(',') {
            match network(one, self.family) {
                Some(network) => all = all.or(&Set::network(network)),
                None => return self.masked(field, one),
            }
        }
        self.narrow(field, all);
        Ok(())
    }

    /// An address with a mask that is no prefix.
    fn masked(&mut self, field: Field, text: &str) -> Read<()> {
        let (address, mask) = text.split_once('/').ok_or("an address is not one")?;
        let number = |text: &str| {
            let address: IpAddr = text.parse().ok()?;
            (Family::of_address(address) == self.family).then(|| number_of(address))
        };
        let (value, mask) = number(address).zip(number(mask)).ok_or("an address is not one of its family")?;
        self.region.add_condition(Condition::Bits { field, mask, value: value & mask, not: self.not });
        Ok(())
    }

    fn range(&mut self, field: Field, text: &str) -> Read<()> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse().ok().map(number_of);
        let (first, last) = number(first).zip(number(last)).ok_or("a range of addresses is `FIRST-LAST`")?;
        self.narrow(field, Set::range(first, last));
        Ok(())
    }

    fn ports(&mut self, field: Field, text: &str) -> Read<()> {
        self.narrow(field, ports(text)?);
        Ok(())
    }

    fn mark(&mut self, field: Field, text: &str) -> Read<()> {
        let (value, mask) = mark(text).ok_or("a mark is `VALUE[/MASK]`")?;
        self.region.add_condition(Condition::Bits { field, mask, value, not: self.not });
        Ok(())
    }

    /// States of connections; `DNAT` and `SNAT` among them are bits of its status, and any of a list is enough.
    fn states(&mut self, text: &str) -> Read<()> {
        let (mut named, mut status) = (Vec::new(), 0);
        for one in text.split(',') {
            match one {
                "NEW" => named.push(State::New),
                "ESTABLISHED" => named.push(State::Established),
                "RELATED" => named.push(State::Related),
                "INVALID" => named.push(State::Invalid),
                "UNTRACKED" => named.push(State::Untracked),
                "DNAT" => status |= DST_NAT,
                "SNAT" => status |= SRC_NAT,
                _ => return Err("a state is not known"),
            }
        }
        match status {
            0 => self.narrow(Field::State, states(named)),
            bits => self.either.push(Either::StateOrStatus(states(named), bits, self.not)),
        }
        Ok(())
    }
}

/// An address or network of a family, as iptables prints it.
pub(super) fn network(text: &str, family: Family) -> Option<IpNetwork> {
    let network: IpNetwork = match text.split_once('/') {
        Some((address, mask)) if mask.contains(['.', ':']) => {
            IpNetwork::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()?
        }
        _ => text.parse().ok()?,
    };
    (Family::of_network(network) == family).then_some(network)
}

/// `80,8000:8010`; an end that is left out is the first or the last there is.
fn ports(text: &str) -> Read<Set> {
    let mut all = Vec::new();
    for one in text.split(',') {
        let (first, last) = one.split_once(':').unwrap_or((one, one));
        let port = |text: &str, open: u16| if text.is_empty() { Some(open) } else { text.parse().ok() };
        let (first, last) = port(first, 0).zip(port(last, u16::MAX)).ok_or("a port is a number up to 65535")?;
        all.push((first.into(), last.into()));
    }
    Ok(Set::from_ranges(all))
}

/// The numbers of a protocol by name or number; all of `all` and of 0.
fn protocol(text: &str) -> Option<Set> {
    if matches!(text, "all" | "0") {
        return Some(Set::ALL);
    }
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    named.or_else(|| text.parse::<u8>().ok().map(u128::from)).map(Set::single)
}

fn kinds(text: &str) -> Read<Set> {
    let mut numbers = Vec::new();
    for one in text.split(',') {
        let number = (0u128..).zip(KINDS).find(|(_, name)| *name == one).ok_or("a type of addresses is not known")?.0;
        numbers.push((number, number));
    }
    Ok(Set::from_ranges(numbers))
}

/// `0x1/0xff`: value and mask; all bits without one.
pub(super) fn mark(text: &str) -> Option<(u128, u128)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let mask = mask.map_or(Some(u32::MAX), number)?;
    Some((number(value)?.into(), mask.into()))
}
