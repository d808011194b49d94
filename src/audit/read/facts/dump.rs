//! Asking rtnetlink(7) for all of a kind: every interface, every route.
//!
//! It is spoken here by hand and not over the crate `rtnetlink`, whose answers end alike whether they are whole, were refused
//! at their end (`NLMSG_DONE` with a reason) or could not be heard any more, and which does not tell that they are torn.
//! Only few attributes are looked at, so that one that a newer kernel writes otherwise costs nothing.
//!
//! Source: include/uapi/linux/netlink.h, include/uapi/linux/rtnetlink.h.

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::sys::netlink::{Received, attributes, messages, open};

/// Flags of a question, and of an answer that is torn: what it is about was changed meanwhile. `NLM_F_DUMP_INTR`.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const TORN: u16 = 0x10;

/// Kinds of messages that are none of rtnetlink's.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The kernel makes its answers at most 32 KiB long, if one message of them is not longer. Source: `netlink_dump` in
/// net/netlink/af_netlink.c.
const ANSWER: usize = 128 * 1024;

/// How often it is asked again where answers are torn.
const ATTEMPTS: usize = 5;

/// What can be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject {
    /// The kind of the question, `RTM_GET…`.
    question: u16,
    /// The kind of what is answered, `RTM_NEW…`.
    answer: u16,
    /// How long the header is that stands before the attributes.
    header: usize,
}

/// The interfaces, `struct ifinfomsg`.
pub(super) const LINKS: Subject = Subject { question: 18, answer: 16, header: 16 };
/// The addresses, `struct ifaddrmsg`.
pub(super) const ADDRESSES: Subject = Subject { question: 22, answer: 20, header: 8 };
/// The routes, `struct rtmsg`.
pub(super) const ROUTES: Subject = Subject { question: 26, answer: 24, header: 12 };
/// The neighbours, `struct ndmsg`.
pub(super) const NEIGHBOURS: Subject = Subject { question: 30, answer: 28, header: 12 };
/// The rules of which table of routes is asked, `struct fib_rule_hdr`.
pub(super) const RULES: Subject = Subject { question: 34, answer: 32, header: 12 };

/// One thing of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    header: &'a [u8],
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The same from its bytes; none where they are too few.
    pub(super) fn new(subject: Subject, body: &'a [u8]) -> Option<Self> {
        let (header, attributes) = body.split_at_checked(subject.header)?;
        Some(Self { header, attributes })
    }

    /// A byte of the header.
    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.header.get(at).copied()
    }

    /// Two bytes of the header.
    pub(super) fn short(&self, at: usize) -> Option<u16> {
        self.header.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
    }

    /// Four bytes of the header.
    pub(super) fn word(&self, at: usize) -> Option<u32> {
        word(self.header.get(at..at + 4)?)
    }

    /// What is behind the header.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        attributes(self.attributes)
    }
}

/// A number of four bytes.
pub(super) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer<T> {
    /// What was read.
    pub(super) found: Vec<T>,
    /// How many things were not understood.
    pub(super) unread: usize,
    /// Whether it changed while it was told, each time that it was asked for.
    pub(super) torn: bool,
}

/// A conversation about the network namespace that the thread was in when it was opened.
pub(super) struct Kernel {
    socket: Socket,
    next: u32,
}

impl Kernel {
    /// Opens one.
    ///
    /// # Errors
    /// Where no socket can be had.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: open(NETLINK_ROUTE)?, next: 1 })
    }

    /// Asks for all of a kind and an address family, with these attributes in the question. `read` adds what it reads of one
    /// thing, and gives nothing where it does not understand it. What the kernel does not have at all is none.
    ///
    /// # Errors
    /// Where the kernel does not tell, or not to the end.
    pub(super) fn all<T>(
        &mut self,
        subject: Subject,
        family: u8,
        attributes: &[u8],
        read: impl Fn(Message<'_>, &mut Vec<T>) -> Option<()>,
    ) -> io::Result<Answer<T>> {
        let mut answer = self.once(subject, family, attributes, &read)?;
        for _ in 1..ATTEMPTS {
            if !answer.torn {
                break;
            }
            answer = self.once(subject, family, attributes, &read)?;
        }
        Ok(answer)
    }

    fn once<T>(
        &mut self,
        subject: Subject,
        family: u8,
        attributes: &[u8],
        read: impl Fn(Message<'_>, &mut Vec<T>) -> Option<()>,
    ) -> io::Result<Answer<T>> {
        let seq = self.next;
        self.next += 1;
        self.socket.send(&question(subject, family, seq, attributes), 0)?;
        let mut answer = Answer { found: Vec::new(), unread: 0, torn: false };
        let mut buffer = Vec::with_capacity(ANSWER);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            if let Some(end) = take(&buffer, seq, subject, family, &mut answer, &read) {
                return end.map(|()| answer);
            }
        }
    }
}

/// Takes what a datagram says into the answer to the question of this number. Gives how it ends, where it does.
fn take<T>(
    datagram: &[u8],
    seq: u32,
    subject: Subject,
    family: u8,
    answer: &mut Answer<T>,
    read: impl Fn(Message<'_>, &mut Vec<T>) -> Option<()>,
) -> Option<io::Result<()>> {
    for message in messages(datagram).filter(|message| message.seq == seq) {
        answer.torn |= message.flags & TORN > 0;
        if let Some(end) = ended(&message) {
            return Some(end);
        }
        if message.kind != subject.answer {
            continue;
        }
        let message = Message::new(subject, message.body);
        // A question about a family that the kernel does not have is answered with those that it has.
        if family != 0 && message.and_then(|message| message.byte(0)).is_some_and(|of| of != family) {
            continue;
        }
        if message.and_then(|message| read(message, &mut answer.found)).is_none() {
            answer.unread += 1;
        }
    }
    None
}

/// What a message says about the end of an answer; nothing where it is none.
fn ended(message: &Received<'_>) -> Option<io::Result<()>> {
    if !matches!(message.kind, ERROR | DONE) {
        return None;
    }
    let number = message.body.get(..4).and_then(word).map_or(0, u32::cast_signed);
    let unknown = [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT].iter().any(|errno| *errno as i32 == number.saturating_neg());
    if number >= 0 || unknown { Some(Ok(())) } else { Some(Err(io::Error::from_raw_os_error(number.saturating_neg()))) }
}

fn question(subject: Subject, family: u8, seq: u32, attributes: &[u8]) -> Vec<u8> {
    let length = 16 + subject.header + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(subject.question.to_ne_bytes());
    message.extend((REQUEST | DUMP).to_ne_bytes());
    message.extend(seq.to_ne_bytes());
    message.extend([0; 4]);
    message.push(family);
    message.resize(16 + subject.header, 0);
    message.extend(attributes);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_question_is_answered() {
        let mut kernel = Kernel::open().expect("rtnetlink");
        let read = |message: Message<'_>, found: &mut Vec<(u8, usize)>| {
            found.push((message.byte(0)?, message.attributes().count()));
            Some(())
        };
        for subject in [LINKS, ADDRESSES, ROUTES, NEIGHBOURS, RULES] {
            let answer = kernel.all(subject, 0, &[], read).expect("an answer");
            assert_eq!((answer.unread, answer.torn), (0, false), "{subject:?}");
        }
        let links = kernel.all(LINKS, 0, &[], read).expect("an answer").found;
        assert!(links.iter().any(|(_, attributes)| *attributes > 5), "{links:?}");
        // One that is not understood is counted.
        let unread = kernel.all(LINKS, 0, &[], |_, _: &mut Vec<()>| None).expect("an answer");
        assert_eq!(unread, Answer { found: Vec::new(), unread: links.len(), torn: false });
    }

    /// A message as the kernel sends it.
    fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(16 + body.len()).expect("short").to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(seq.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn what_is_no_answer_to_the_question_is_left_out_and_a_torn_one_is_known() {
        let route = |kind, seq, family: u8| message(kind, 2, seq, &[family; 12]);
        let take = |datagram: &[u8]| {
            let mut answer = Answer { found: Vec::new(), unread: 0, torn: false };
            let read = |message: Message<'_>, found: &mut Vec<u8>| {
                found.push(message.byte(0)?);
                Some(())
            };
            let end = take(datagram, 7, ROUTES, 2, &mut answer, read);
            (end.map(|end| end.is_ok()), answer)
        };
        let whole = |found: &[u8]| Answer { found: found.into(), unread: 0, torn: false };
        let done = message(DONE, 2, 7, &[0; 4]);
        let some = [route(24, 7, 2), route(24, 6, 2), route(25, 7, 2), route(24, 7, 10), route(24, 7, 2)].concat();
        assert_eq!(take(&some), (None, whole(&[2, 2])));
        assert_eq!(take(&[some, done.clone()].concat()), (Some(true), whole(&[2, 2])));
        // What another question's answer says of its end is nothing to this one.
        assert_eq!(take(&message(DONE, 2, 6, &[0; 4])), (None, whole(&[])));
        assert_eq!(take(&[route(24, 7, 2), message(DONE, 2, 7, &[0xff; 4])].concat()), (Some(false), whole(&[2])));
        let short = [message(24, 2, 7, &[2; 8]), done].concat();
        assert_eq!(take(&short), (Some(true), Answer { unread: 1, ..whole(&[]) }));
        for torn in [message(24, 2 | TORN, 7, &[2; 12]), message(DONE, 2 | TORN, 7, &[0; 4])] {
            assert!(take(&torn).1.torn);
        }
    }

    #[test]
    fn an_answer_ends_with_a_reason_or_without() {
        let message = |kind, number: i32, bytes: &mut Vec<u8>| {
            bytes.extend(number.to_ne_bytes());
            ended(&Received { kind, flags: 0, seq: 1, body: bytes })
                .map(|end| end.map_err(|error| error.raw_os_error()))
        };
        let said = |kind, number| message(kind, number, &mut Vec::new());
        assert_eq!(said(DONE, 0), Some(Ok(())));
        assert_eq!(said(DONE, -(Errno::ENOBUFS as i32)), Some(Err(Some(Errno::ENOBUFS as i32))));
        assert_eq!(said(ERROR, -(Errno::EPERM as i32)), Some(Err(Some(Errno::EPERM as i32))));
        assert_eq!(said(ERROR, -(Errno::EAFNOSUPPORT as i32)), Some(Ok(())));
        assert_eq!(said(16, 0), None);
        assert_eq!(said(ERROR, i32::MIN).map(|end| end.is_err()), Some(true));
    }

    #[test]
    fn what_is_cut_short_is_not_understood() {
        let body = [2; 20];
        for length in 0..12 {
            assert!(Message::new(ROUTES, &body[..length]).is_none());
        }
        let message = Message::new(ROUTES, &body).expect("long enough");
        assert_eq!(
            (message.byte(11), message.byte(12), message.short(11), message.word(9)),
            (Some(2), None, None, None)
        );
    }
}
