//! Routing rules, which choose the routing table for a packet.
//!
//! Source: `FRA_…` and `struct fib_rule_hdr` in include/uapi/linux/fib_rules.h.

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleFlags, RuleHeader, RuleMessage};

use super::socket::{Dump, Rtnetlink, ip, number_of};
use crate::model::Family;
use crate::sys::netlink::Attributes;

/// The bytes of `struct fib_rule_hdr`.
const HEADER: usize = 12;

/// Kinds of attributes, `FRA_…`.
mod kind {
    pub const DESTINATION: u16 = 1;
    pub const SOURCE: u16 = 2;
    pub const INPUT: u16 = 3;
    pub const GOTO: u16 = 4;
    pub const PRIORITY: u16 = 6;
    pub const MARK: u16 = 10;
    pub const SUPPRESS_PREFIX_LENGTH: u16 = 14;
    pub const TABLE: u16 = 15;
    pub const MARK_MASK: u16 = 16;
    pub const OUTPUT: u16 = 17;
    pub const VRF: u16 = 19;
    pub const PROTOCOL: u16 = 21;
    pub const IP_PROTOCOL: u16 = 22;
    pub const SOURCE_PORTS: u16 = 23;
    pub const PORTS: u16 = 24;
}

/// The effect of a routing rule on a packet that matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Effect {
    /// Looks up the packet in the rule's table.
    #[default]
    Lookup,
    /// Continues at the first rule with this priority.
    Goto(u32),
    /// Continues at the next rule.
    Continue,
    /// Drops the packet (`blackhole`, `unreachable`, `prohibit`).
    Refuse,
}

/// A routing rule, as in `ip rule`. The packet must match all selectors that are not `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The priority. The kernel applies rules in ascending order.
    pub priority: u32,
    /// The number of the table.
    pub table: u32,
    /// True if the rule looks up every packet in `table` and has no other action.
    pub unconditional: bool,
    /// The effect.
    pub effect: Effect,
    /// True for `not`: packets match if they do not match the selectors.
    pub inverted: bool,
    /// The source network.
    pub from: Option<IpNetwork>,
    /// The destination network.
    pub to: Option<IpNetwork>,
    /// The name of the ingress interface. Packets of this host arrive by `lo`.
    pub input: Option<String>,
    /// The name of the interface that a socket is bound to.
    pub output: Option<String>,
    /// The value and the mask of the packet mark.
    pub mark: Option<(u32, u32)>,
    /// The transport protocol.
    pub protocol: Option<u8>,
    /// The first and last source port.
    pub source_ports: Option<(u16, u16)>,
    /// The first and last destination port.
    pub ports: Option<(u16, u16)>,
    /// Ignores routes whose prefix has at most this length.
    pub suppress: Option<u32>,
    /// True if the rule selects the table of a VRF. The rule matches only packets of a VRF.
    pub vrf: bool,
    /// True if the rule has a selector or an action that is not read.
    pub unknown: bool,
}

impl Rule {
    /// Reads `struct fib_rule_hdr` and its attributes. A rule with an unknown attribute is not unconditional.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let header = RuleHeader::parse(body).ok()?;
        let attributes = Attributes::behind(body, HEADER);
        let for_all = [header.dst_len, header.src_len, header.tos] == [0; 3] && header.flags.is_empty();
        // The value -1 suppresses no route.
        let is_no_suppression = |value: &[u8]| value == [0xff; 4];
        let plain = attributes.iter().all(|(kind, value)| match kind {
            kind::PRIORITY | kind::TABLE | kind::PROTOCOL => true,
            kind::SUPPRESS_PREFIX_LENGTH => is_no_suppression(value),
            _ => false,
        });
        let known = attributes.iter().all(|(kind, value)| match kind {
            kind::DESTINATION | kind::SOURCE | kind::INPUT | kind::GOTO | kind::PRIORITY | kind::MARK => true,
            kind::SUPPRESS_PREFIX_LENGTH | kind::TABLE | kind::MARK_MASK | kind::OUTPUT | kind::VRF => true,
            kind::PROTOCOL | kind::IP_PROTOCOL | kind::SOURCE_PORTS | kind::PORTS => true,
            // The kernel sends the group and the realm of every rule. These values mean none.
            13 => is_no_suppression(value),
            11 => value == [0; 4],
            _ => false,
        });
        let effect = match header.action {
            RuleAction::ToTable => Some(Effect::Lookup),
            RuleAction::Goto => attributes.u32(kind::GOTO).map(Effect::Goto),
            RuleAction::Nop => Some(Effect::Continue),
            RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => Some(Effect::Refuse),
            _ => None,
        };
        let mark = (attributes.u32(kind::MARK).unwrap_or(0), attributes.u32(kind::MARK_MASK));
        Some(Self {
            priority: attributes.u32(kind::PRIORITY).unwrap_or(0),
            // The header has only 8 bits for the table.
            table: attributes.u32(kind::TABLE).unwrap_or(header.table.into()),
            unconditional: for_all && plain && header.action == RuleAction::ToTable,
            effect: effect.unwrap_or_default(),
            inverted: header.flags.contains(RuleFlags::Invert),
            from: network(attributes.get(kind::SOURCE), header.src_len)?,
            to: network(attributes.get(kind::DESTINATION), header.dst_len)?,
            input: attributes.text(kind::INPUT),
            output: attributes.text(kind::OUTPUT),
            mark: match mark {
                (0, None | Some(0)) => None,
                (value, mask) => Some((value, mask.unwrap_or(u32::MAX))),
            },
            protocol: attributes.u8(kind::IP_PROTOCOL).filter(|protocol| *protocol > 0),
            source_ports: attributes.get(kind::SOURCE_PORTS).and_then(range),
            ports: attributes.get(kind::PORTS).and_then(range),
            suppress: attributes.u32(kind::SUPPRESS_PREFIX_LENGTH).filter(|length| *length != u32::MAX),
            vrf: attributes.u8(kind::VRF).is_some_and(|vrf| vrf > 0),
            unknown: !known || header.tos > 0 || effect.is_none(),
        })
    }
}

/// Reads a network. Returns `Some(None)` if the rule has none, and `None` if it is malformed.
fn network(address: Option<&[u8]>, length: u8) -> Option<Option<IpNetwork>> {
    let address: Option<IpAddr> = match address {
        Some(address) => Some(ip(address)?),
        None if length == 0 => None,
        None => return None,
    };
    match address {
        Some(address) if length > 0 => IpNetwork::new(address, length).ok().map(Some),
        _ => Some(None),
    }
}

/// Reads `struct fib_rule_port_range`.
fn range(bytes: &[u8]) -> Option<(u16, u16)> {
    let (first, last) = bytes.split_first_chunk()?;
    Some((u16::from_ne_bytes(*first), u16::from_ne_bytes(*last.first_chunk()?)))
}

impl Rtnetlink {
    /// Returns the routing rules. A kernel without support for them has none.
    ///
    /// # Errors
    /// Fails if the kernel does not answer to the end.
    pub fn rules(&self, family: Family) -> io::Result<Dump<Rule>> {
        let mut message = RuleMessage::default();
        message.header.family = number_of(family);
        self.dump(&RouteNetlinkMessage::GetRule(message), number_of(family), Rule::read)
    }
}
