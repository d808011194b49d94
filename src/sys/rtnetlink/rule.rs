//! Routing rules, which choose the routing table for a packet.
//!
//! Source: `FRA_…` and `struct fib_rule_hdr` in include/uapi/linux/fib_rules.h.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleHeader, RuleMessage};

use super::socket::{Dump, Rtnetlink, number_of};
use crate::model::Family;
use crate::sys::netlink::Attributes;

/// The bytes of `struct fib_rule_hdr`.
const HEADER: usize = 12;

/// Kinds of attributes, `FRA_…`.
mod kind {
    pub const PRIORITY: u16 = 6;
    pub const SUPPRESS_PREFIX_LENGTH: u16 = 14;
    pub const TABLE: u16 = 15;
    pub const PROTOCOL: u16 = 21;
}

/// A routing rule, as in `ip rule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The priority. The kernel applies rules in ascending order.
    pub priority: u32,
    /// The number of the table.
    pub table: u32,
    /// True if the rule looks up every packet in `table` and has no other action.
    pub unconditional: bool,
}

impl Rule {
    /// Reads `struct fib_rule_hdr` and its attributes. A rule with an unknown attribute is not unconditional.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let header = RuleHeader::parse(body).ok()?;
        let attributes = Attributes::behind(body, HEADER);
        let for_all = [header.dst_len, header.src_len, header.tos] == [0; 3] && header.flags.is_empty();
        let plain = attributes.iter().all(|(kind, value)| match kind {
            kind::PRIORITY | kind::TABLE | kind::PROTOCOL => true,
            // The value -1 suppresses no route.
            kind::SUPPRESS_PREFIX_LENGTH => value == [0xff; 4],
            _ => false,
        });
        Some(Self {
            priority: attributes.u32(kind::PRIORITY).unwrap_or(0),
            // The header has only 8 bits for the table.
            table: attributes.u32(kind::TABLE).unwrap_or(header.table.into()),
            unconditional: for_all && plain && header.action == RuleAction::ToTable,
        })
    }
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
