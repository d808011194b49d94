//! Netlink messages: requests, answers, and errors with their extended acknowledgements.
//!
//! ```text
//! length: u32   kind: u16   flags: u16   sequence: u32   port: u32   header of the family   attributes
//! ```
//! Source: include/uapi/linux/netlink.h.

use std::fmt;
use std::io;

use super::attributes::{Attributes, text};
use crate::model::error::printable;

/// The bytes of the header of netlink.
pub const HEADER: usize = 16;

/// `NLMSG_ERROR`: an error, or an acknowledgement if its number is 0.
pub const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub const DONE: u16 = 3;

/// Flags of messages, `NLM_F_…`.
pub mod flag {
    /// Marks a message to the kernel as a request.
    pub const REQUEST: u16 = 0x1;
    /// Requests an acknowledgement, `NLMSG_ERROR` with number 0.
    pub const ACK: u16 = 0x4;
    /// Marks answers of a dump during which the objects changed.
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    /// Requests all objects: `NLM_F_ROOT` and `NLM_F_MATCH`.
    pub const DUMP: u16 = 0x300;
    /// Replaces an existing object.
    pub const REPLACE: u16 = 0x100;
    /// Fails if the object exists.
    pub const EXCL: u16 = 0x200;
    /// Creates the object if it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Marks errors that repeat only the header of the refused message.
    pub(super) const CAPPED: u16 = 0x100;
}

/// A request to the kernel. The socket adds the sequence number and sends the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The kind of the message.
    pub kind: u16,
    /// `NLM_F_…`, without the flags that the socket adds: `REQUEST`, `ACK` and `DUMP`.
    pub flags: u16,
    /// The header of the family and the attributes.
    pub body: Vec<u8>,
}

impl Request {
    /// Makes a request without further flags.
    pub fn new(kind: u16, body: Vec<u8>) -> Self {
        Self { kind, flags: 0, body }
    }

    /// Makes a request with netfilter's header, `struct nfgenmsg`. Attributes are appended to its body.
    pub fn netfilter(kind: u16, family: u8, resource: u16) -> Self {
        Self::new(kind, netfilter_header(family, resource).to_vec())
    }
}

/// Returns netfilter's header, `struct nfgenmsg`.
pub fn netfilter_header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Appends a message. The body is the header of the family, followed by the attributes.
pub fn put_message(bytes: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, body: &[u8]) {
    put_message_with(bytes, kind, flags, seq, |bytes| bytes.extend(body));
}

/// Appends a message with the body that `put` appends.
pub fn put_message_with(bytes: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, put: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(seq.to_ne_bytes());
    bytes.extend([0; 4]);
    put(bytes);
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    if let Some(place) = bytes.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_ne_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A received message, whose body borrows from the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// The kind of the message.
    pub kind: u16,
    /// The flags, `NLM_F_…` in netlink.h.
    pub flags: u16,
    /// The sequence number of the request.
    pub seq: u32,
    /// The bytes after the header of netlink: the header of the family and the attributes.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Splits the first message off `bytes`. Returns `None` if there is no whole message.
    pub fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let body = bytes.get(HEADER..length)?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
        let seq = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Self { kind, flags, seq, body }, rest))
    }

    /// Returns the attributes after the family's header of `header` bytes.
    pub fn attributes(self, header: usize) -> Attributes<'a> {
        Attributes::behind(self.body, header)
    }

    /// Returns the number of bytes, including the header.
    pub fn size(self) -> usize {
        HEADER + self.body.len()
    }

    /// Reads the error of an `NLMSG_ERROR` or an `NLMSG_DONE`. Returns `None` if the message reports success or
    /// has another kind.
    ///
    /// Source: `struct nlmsgerr`, `enum nlmsgerr_attrs`; `netlink_dump_done` in net/netlink/af_netlink.c.
    pub fn refusal(self) -> Option<Refusal> {
        const REASON: u16 = 1;
        const OFFSET: u16 = 2;
        let number = i32::from_ne_bytes(*self.body.first_chunk()?);
        if number == 0 || ![ERROR, DONE].contains(&self.kind) {
            return None;
        }
        // An error repeats the refused message behind its number; the end of a dump does not.
        let refused = if self.kind == ERROR { self.body.get(4..).unwrap_or_default() } else { &[] };
        let repeated = match refused.first_chunk().and_then(|length| usize::try_from(u32::from_ne_bytes(*length)).ok())
        {
            None => 0,
            Some(_) if self.flags & flag::CAPPED > 0 => HEADER,
            Some(length) => length.checked_next_multiple_of(4).unwrap_or(usize::MAX),
        };
        let details = self.attributes(repeated.saturating_add(4));
        Some(Refusal {
            seq: refused.get(8..12).and_then(|seq| seq.try_into().ok()).map_or(self.seq, u32::from_ne_bytes),
            error: io::Error::from_raw_os_error(number.saturating_neg()),
            reason: details.get(REASON).and_then(text).filter(|text| !text.is_empty()).map(|text| printable(&text)),
            offset: details.u32(OFFSET),
        })
    }
}

/// Iterates over the messages of a datagram, up to the first message that is cut short.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (message, rest) = Message::split(bytes)?;
        bytes = rest;
        Some(message)
    })
}

/// The kernel's error for a request.
#[derive(Debug)]
pub struct Refusal {
    /// The sequence number of the refused message.
    pub seq: u32,
    /// The kernel's error number.
    pub error: io::Error,
    /// The kernel's explanation (extended acknowledgement).
    pub reason: Option<String>,
    /// The position of the fault in the refused message.
    pub offset: Option<u32>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{reason} ({})", self.error),
            None => self.error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::attributes::put_attribute;

    fn error(flags: u16, number: i32, repeated: &[u8]) -> Vec<u8> {
        let mut body = number.to_ne_bytes().to_vec();
        body.extend(repeated);
        put_attribute(&mut body, 1, b"in use\x1b\0");
        put_attribute(&mut body, 2, &96u32.to_ne_bytes());
        let mut bytes = Vec::new();
        put_message(&mut bytes, ERROR, flags, 42, &body);
        bytes
    }

    fn read(bytes: &[u8]) -> Message<'_> {
        Message::split(bytes).expect("whole").0
    }

    #[test]
    fn written_messages_are_read_back() {
        let mut bytes = Vec::new();
        let request = Request::netfilter(0x0100, 2, 7);
        put_message(&mut bytes, request.kind, 5, 42, &request.body);
        put_message(&mut bytes, 0x0102, 0, 43, &[1]);
        let first = Message { kind: 0x0100, flags: 5, seq: 42, body: &[2, 0, 0, 7] };
        let second = Message { kind: 0x0102, flags: 0, seq: 43, body: &[1] };
        assert_eq!(messages(&bytes).collect::<Vec<_>>(), [first, second]);
        assert_eq!((first.size(), second.size(), bytes.len()), (20, 17, 40));
        for end in 0..bytes.len() {
            let whole = usize::from(end >= 20) + usize::from(end >= 37);
            assert_eq!(messages(&bytes[..end]).count(), whole, "{end}");
        }
    }

    #[test]
    fn a_length_that_no_message_can_have_is_no_message() {
        let mut bytes = [0; 64];
        for length in [0u32, 3, 15, 65, i32::MAX.unsigned_abs(), u32::MAX] {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(Message::split(&bytes).is_none(), "{length}");
        }
    }

    #[test]
    fn an_error_is_read_with_its_extended_acknowledgement() {
        let mut refused = Vec::new();
        put_message(&mut refused, 7, 0, 41, &[0; 8]);
        // A capped error repeats only the header, which still contains the length of the whole message.
        for (flags, repeated) in [(flag::CAPPED, &refused[..HEADER]), (0, &refused[..])] {
            let bytes = error(flags, -17, repeated);
            let refusal = read(&bytes).refusal().expect("an error");
            assert_eq!((refusal.seq, refusal.error.raw_os_error(), refusal.offset), (41, Some(17), Some(96)));
            assert_eq!(refusal.reason.as_deref(), Some("in use\\u{1b}"));
            assert!(refusal.to_string().starts_with("in use"), "{refusal}");
            for end in 0..bytes.len() {
                let _ = Message { body: bytes.get(HEADER..end).unwrap_or_default(), ..read(&bytes) }.refusal();
            }
        }
        assert!(read(&error(flag::CAPPED, 0, &refused[..HEADER])).refusal().is_none());
        let endless = error(0, i32::MIN, &[0xff; HEADER]);
        let refusal = read(&endless).refusal().expect("an error");
        assert_eq!((refusal.error.raw_os_error(), refusal.reason), (Some(i32::MAX), None));
    }

    #[test]
    fn a_dump_may_end_with_an_error_and_its_reason() {
        for (number, errno) in [(0i32, None), (-2, Some(2))] {
            let mut body = number.to_ne_bytes().to_vec();
            put_attribute(&mut body, 1, b"gone\0");
            let refusal = Message { kind: DONE, flags: 0, seq: 9, body: &body }.refusal();
            let read = refusal.map(|refusal| (refusal.seq, refusal.error.raw_os_error(), refusal.reason));
            assert_eq!(read, errno.map(|errno| (9, Some(errno), Some("gone".into()))));
        }
        assert!(Message { kind: 16, flags: 0, seq: 9, body: &[0xff; 4] }.refusal().is_none());
    }
}
