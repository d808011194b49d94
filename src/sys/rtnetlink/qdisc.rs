//! Queueing disciplines, which can hold filters and drop packets.
//!
//! Source: `TCA_…` and `struct tcmsg` in include/uapi/linux/rtnetlink.h.

use std::io;

use netlink_packet_route::tc::{TcHeader, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::socket::{Dump, Rtnetlink};
use crate::sys::netlink::Attributes;

/// The bytes of `struct tcmsg`.
const HEADER: usize = 20;

/// `TCA_KIND`.
const KIND: u16 = 1;

/// A queueing discipline of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// The index of the interface.
    pub index: u32,
    /// The kind, as in tc(8), for example `fq_codel` or `clsact`.
    pub kind: String,
}

impl Qdisc {
    /// Reads `struct tcmsg` and its attributes.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let header = TcHeader::parse(body).ok()?;
        let kind = Attributes::behind(body, HEADER).text(KIND)?;
        Some(Self { index: u32::try_from(header.index).ok()?, kind })
    }
}

impl Rtnetlink {
    /// Returns the queueing disciplines of all interfaces. Discards the answers for other kinds of objects.
    ///
    /// # Errors
    /// Fails if the kernel does not answer to the end.
    pub fn qdiscs(&self) -> io::Result<Dump<Qdisc>> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        self.dump(&request, AddressFamily::Unspec, Qdisc::read)
    }
}
