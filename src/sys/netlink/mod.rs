//! Netlink, the kernel's interface for rules, links, routes, connections and sockets: one socket, one reader and one writer
//! of attributes for every family.
//!
//! ```text
//! Request ──Socket::request, get, dump──▶ Wire ──▶ kernel
//! Message, Attributes ◀──────────────────────────────┘
//! ```
//! Source: include/uapi/linux/netlink.h.

pub mod attributes;
pub mod message;
pub mod socket;
pub mod traffic;
pub mod wire;

pub use mnl::Bus;

pub use self::attributes::{Attributes, NESTED, put_attribute, put_nested, put_text};
pub use self::message::{Message, Refusal, Request, flag};
pub use self::socket::{Dump, Error, Socket};

// Below is the former interface, until its users have moved.

use std::io;

use netlink_sys::SocketAddr;

/// The bytes of a message before its attributes: the header of netlink, and that of netfilter.
pub const HEADERS: usize = 20;

/// Makes a message of a header, netfilter's header and attributes.
pub fn message(kind: u16, flags: u16, family: u8, resource: u16, seq: u32, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADERS + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(seq.to_ne_bytes());
    message.extend([0; 4]);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    message
}

/// Opens a conversation with a part of the kernel, `NETLINK_…`, about the network namespace of the calling thread.
///
/// # Errors
/// Where no socket can be had.
pub fn open(part: isize) -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(part)?;
    socket.bind_auto()?;
    // Nobody but the kernel is heard from here on.
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// `NLM_F_REQUEST` and `NLM_F_ACK`, the flags of what [`ask`] asks: the acknowledgement says where the answer ends.
pub const QUESTION: u16 = 1 | 4;

/// Sends a question of one answer at most, and gives what is behind netlink's header in that; none where it is only
/// acknowledged.
///
/// # Errors
/// The kernel's, and those of the conversation.
pub fn ask(kernel: &netlink_sys::Socket, question: &[u8]) -> io::Result<Option<Vec<u8>>> {
    const ERROR: u16 = 2;
    kernel.send(question, 0)?;
    let mut found = None;
    loop {
        let (answer, _) = match kernel.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?,
        };
        for received in messages(&answer) {
            if received.kind != ERROR {
                found.get_or_insert_with(|| received.body.to_vec());
                continue;
            }
            let code = received.body.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
            return match code {
                Some(0) => Ok(found),
                code => Err(io::Error::from_raw_os_error(code.unwrap_or(0).saturating_neg())),
            };
        }
    }
}

/// A message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// Its kind.
    pub kind: u16,
    /// `NLM_F_…`.
    pub flags: u16,
    /// The number of the question that it answers.
    pub seq: u32,
    /// What is behind netlink's header.
    pub body: &'a [u8],
}

/// The messages that were received at once; what is cut short at the end is left out.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
        let body = bytes.get(16..length)?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
        let seq = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, flags, seq, body })
    })
}

/// The attributes in some bytes, without the flags in their kinds; what is cut short at the end is left out.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let value = bytes.get(4..length)?;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
