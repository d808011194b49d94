//! The common shape of netlink messages about netfilter: a header, a family, attributes, which may hold attributes. What
//! writes it and what reads it, in one place.
//!
//! Source: include/uapi/linux/netlink.h, include/uapi/linux/netfilter/nfnetlink.h.

use std::io;

use netlink_sys::{Socket, SocketAddr};

/// The bytes of a message before its attributes: the header of netlink, and that of netfilter.
pub const HEADERS: usize = 20;

/// Set in the kind of an attribute that holds attributes. `NLA_F_NESTED`.
pub const NESTED: u16 = 1 << 15;

/// Adds an attribute.
pub fn put_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

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
pub fn open(part: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(part)?;
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
pub fn ask(kernel: &Socket, question: &[u8]) -> io::Result<Option<Vec<u8>>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        put_attribute(&mut inner, 1, b"abcde");
        put_attribute(&mut inner, 2, &[]);
        put_attribute(&mut outer, 3 | NESTED, &inner);
        let mut two = message(0x0100, 5, 2, 7, 42, &outer);
        two.extend(message(0x0102, 5, 2, 7, 43, &[]));
        let received: Vec<_> = messages(&two).collect();
        assert_eq!(received.iter().map(|one| (one.kind, one.seq)).collect::<Vec<_>>(), [(0x0100, 42), (0x0102, 43)]);
        assert_eq!(received[0].flags, 5);
        assert_eq!(received[0].body.get(..4), Some(&[2, 0, 0, 7][..]));
        let outer: Vec<_> = attributes(&received[0].body[4..]).collect();
        assert_eq!(outer.len(), 1);
        assert_eq!(attributes(outer[0].1).collect::<Vec<_>>(), [(1, &b"abcde"[..]), (2, &[][..])]);
        for end in 0..two.len() {
            messages(&two[..end]).for_each(|message| attributes(message.body).for_each(drop));
        }
    }
}
