//! The matches of a rule: one type for portfwd's rules and the rules of other programs.
//!
//! [`parse::matches`] reads the matches of a rule from text. [`Match::decode`] reads the structure that the kernel stores for
//! one extension. Both return the same values for the same match.

mod decode;
#[cfg(test)]
mod encode;
pub(crate) mod parse;
mod write;

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::Family;

/// The side of a packet that a match compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Only the source.
    Source,
    /// Only the destination.
    Destination,
    /// The source or the destination (`-m multiport --ports`).
    Either,
}

/// A set of conntrack states: the bits of `XT_CONNTRACK_STATE_…` in include/uapi/linux/netfilter/xt_conntrack.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct States(pub(crate) u16);

impl States {
    /// `INVALID`: packets that conntrack cannot assign to a connection.
    pub const INVALID: u16 = 1;
    /// `SNAT`: the source was rewritten.
    pub const SNAT: u16 = 1 << 6;
    /// `DNAT`: the destination was rewritten.
    pub const DNAT: u16 = 1 << 7;
    /// `UNTRACKED`: packets that conntrack skips.
    pub const UNTRACKED: u16 = 1 << 8;
    /// Packets of a connection before its first reply.
    pub const NEW: Self = Self(1 << 3);
    /// Packets that belong to no established connection.
    pub const NOT_ESTABLISHED: Self = Self(Self::INVALID | 1 << 3 | Self::UNTRACKED);

    /// The names in the order of iptables-save(8), with their bits.
    pub(crate) const NAMES: [(&'static str, u16); 7] = [
        ("INVALID", Self::INVALID),
        ("NEW", 1 << 3),
        ("RELATED", 1 << 2),
        ("ESTABLISHED", 1 << 1),
        ("UNTRACKED", Self::UNTRACKED),
        ("SNAT", Self::SNAT),
        ("DNAT", Self::DNAT),
    ];
}

/// An address and the bits of it that a match compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MaskedAddress {
    /// The address. Bits outside the mask are ignored.
    pub address: IpAddr,
    /// The mask, as an address of the same family.
    pub mask: IpAddr,
}

/// A match of iptables(8) or iptables-extensions(8).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// `-s`, `-d`: the packet has an address in one of these networks.
    Address {
        /// True for the source, false for the destination.
        source: bool,
        /// True if the match is negated with `!`.
        not: bool,
        /// The networks. iptables-save prints one.
        networks: Box<[MaskedAddress]>,
    },
    /// `-i`, `-o`: the packet arrives or leaves through an interface.
    Interface {
        /// True for the ingress interface, false for the egress interface.
        input: bool,
        /// True if the match is negated with `!`.
        not: bool,
        /// The name. A `+` at the end matches every ending.
        name: Box<str>,
    },
    /// `-p`: the packet has this transport protocol.
    Protocol {
        /// True if the match is negated with `!`.
        not: bool,
        /// The number of the protocol.
        number: u8,
    },
    /// `--sport`, `--dport` of `-m tcp`, `udp`, `sctp` and `dccp`.
    Port {
        /// The number of the protocol.
        protocol: u8,
        /// True for the source, false for the destination.
        source: bool,
        /// True if the match is negated with `!`.
        not: bool,
        /// The first and last port.
        ports: (u16, u16),
    },
    /// `-m multiport`: the packet has one of these ports.
    Multiport {
        /// The side of the packet.
        side: Side,
        /// True if the match is negated with `!`.
        not: bool,
        /// The first and last port of each range.
        ranges: Box<[(u16, u16)]>,
    },
    /// `-m tcp --tcp-flags`: the flags under the mask are exactly these.
    TcpFlags {
        /// True if the match is negated with `!`.
        not: bool,
        /// The flags that are compared.
        mask: u8,
        /// The flags of the mask that are set.
        set: u8,
    },
    /// `-m addrtype`: the address has one of these types.
    AddressType {
        /// True for the source, false for the destination.
        source: bool,
        /// True if the match is negated with `!`.
        not: bool,
        /// The types, one bit for each `RTN_…` of include/uapi/linux/rtnetlink.h.
        kinds: u16,
    },
    /// `-m conntrack --ctstate`, `-m state`: the connection is in one of these states.
    State {
        /// True if the match is negated with `!`.
        not: bool,
        /// The states, of which one is enough.
        states: States,
    },
    /// `-m conntrack --ctorigdst`: the destination of the connection's first packet.
    OriginalDestination {
        /// True if the match is negated with `!`.
        not: bool,
        /// The network of the address.
        network: MaskedAddress,
    },
    /// `-m conntrack --ctorigdstport`: the destination port of the connection's first packet.
    OriginalPort {
        /// True if the match is negated with `!`.
        not: bool,
        /// The first and last port.
        ports: (u16, u16),
    },
    /// `-m conntrack --ctstatus`: the status of the connection has one of these bits.
    Status {
        /// True if the match is negated with `!`.
        not: bool,
        /// `IPS_…` of include/uapi/linux/netfilter/nf_conntrack_common.h.
        bits: u16,
    },
    /// `-m conntrack --ctdir`: the packet has this direction.
    Direction {
        /// True for packets in the direction of the answers.
        reply: bool,
    },
    /// `-m mark`, `-m connmark`: the mark under the mask is this value.
    Mark {
        /// True for the mark of the connection, false for the mark of the packet.
        connection: bool,
        /// True if the match is negated with `!`.
        not: bool,
        /// The value of the compared bits.
        value: u32,
        /// The bits that are compared.
        mask: u32,
    },
    /// `-m iprange`: the address is in a range.
    Range {
        /// True for the source, false for the destination.
        source: bool,
        /// True if the match is negated with `!`.
        not: bool,
        /// The lowest address of the range.
        first: IpAddr,
        /// The highest address of the range.
        last: IpAddr,
    },
    /// `-m connlabel`: the connection has a label.
    Label {
        /// The number of the label.
        bit: u8,
        /// True if the match is negated with `!`.
        not: bool,
    },
    /// `-m connlabel --set`: always matches, and sets a label of the connection.
    SetLabel(u8),
    /// `-m comment`: always matches.
    Comment(Arc<str>),
    /// A match that portfwd does not understand, as text.
    Unknown(Arc<str>),
}

impl Match {
    /// The destination is one of this host's addresses.
    pub const LOCAL_DESTINATION: Self = Self::AddressType { source: false, not: false, kinds: 1 << 2 };

    /// Returns the match of any source address, as a range. iptables omits `-s 0.0.0.0/0`, but keeps the range.
    pub fn any_source(family: Family) -> Self {
        let (first, last) = all_addresses(family);
        Self::Range { source: true, not: false, first, last }
    }
}

/// Returns the first and the last address of a family.
pub(crate) fn all_addresses(family: Family) -> (IpAddr, IpAddr) {
    match family {
        Family::Ipv4 => (std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::Ipv4Addr::BROADCAST.into()),
        Family::Ipv6 => (std::net::Ipv6Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::from(u128::MAX).into()),
    }
}

/// The label names of this host, from connlabel.conf. iptables-save prints these names instead of label numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelNames(Vec<(String, u8)>);

impl LabelNames {
    /// Reads lines of the form `BIT NAME` and ignores all other lines.
    pub fn read(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let bit = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), bit))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// Returns the number of a label from its name or number.
    fn bit(&self, text: &str) -> Option<u8> {
        let named = self.0.iter().find(|(name, _)| name == text).map(|(_, bit)| *bit);
        named.or_else(|| text.parse().ok()).filter(|bit| *bit <= MAX_LABEL)
    }
}

/// `XT_CONNLABEL_MAXBIT` in include/uapi/linux/netfilter/xt_connlabel.h.
const MAX_LABEL: u8 = 127;

/// The matches that portfwd can name in both notations. `-m NAME` without options matches every packet of the protocol.
const PLAIN: [&str; 8] = ["tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "comment"];

/// The names of address types in `-m addrtype`, in the order of `RTN_…` in include/uapi/linux/rtnetlink.h.
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

/// The names of status bits in `--ctstatus`.
const STATUS: [(&str, u16); 5] = [("NONE", 0), ("EXPECTED", 1), ("SEEN_REPLY", 2), ("ASSURED", 4), ("CONFIRMED", 8)];

/// The names of TCP flags in `--tcp-flags`.
const TCP_FLAGS: [(&str, u8); 8] =
    [("FIN", 1), ("SYN", 2), ("RST", 4), ("PSH", 8), ("ACK", 16), ("URG", 32), ("ALL", 63), ("NONE", 0)];

/// The protocols with a match of the same name that compares ports.
const WITH_PORTS: [(&str, u8); 5] = [("tcp", 6), ("udp", 17), ("dccp", 33), ("sctp", 132), ("udplite", 136)];
