//! A netlink socket of any family: requests with their acknowledgements, and dumps.
//!
//! Be aware: each method reads the answers to its request to their end, so a socket belongs to one thread.

use std::io;

use mnl::Bus;

use super::message::{DONE, ERROR, Message, Refusal, Request, flag, messages, put_message};
use super::traffic::Traffic;
use super::wire::{Kernel, Notifications, Wire};

/// The longest datagram that a socket receives. The kernel limits the datagrams of a dump to 32 KiB, unless a single message
/// is longer. Source: `netlink_dump` in net/netlink/af_netlink.c.
const BUFFER: usize = 128 * 1024;

/// An error of a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request could not be sent.
    #[error("sending to the kernel failed")]
    Send(#[source] io::Error),
    /// The answer could not be received.
    #[error("receiving from the kernel failed")]
    Receive(#[source] io::Error),
    /// The kernel refused the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Drops the extended acknowledgement and keeps the error number.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Send(error) | Error::Receive(error) | Error::Refused(Refusal { error, .. }) => error,
        }
    }
}

/// The consistency of the objects of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an interrupted dump may lack objects or contain objects twice"]
pub enum Dump {
    /// The objects did not change during the dump.
    Complete,
    /// The objects changed during the dump: `NLM_F_DUMP_INTR`. The caller may retry.
    Interrupted,
}

/// An open netlink socket.
pub struct Socket {
    wire: Box<dyn Wire>,
    buffer: Vec<u8>,
    next: u32,
    traffic: Traffic,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails if the kernel does not have the family.
    pub fn open(bus: Bus) -> io::Result<Self> {
        Ok(Self::over(Box::new(Kernel::open(bus)?)))
    }

    /// Makes a socket over any transport. The answers may be arbitrary bytes.
    pub fn over(wire: Box<dyn Wire>) -> Self {
        Self { wire, buffer: vec![0; BUFFER], next: 1, traffic: Traffic::default() }
    }

    /// Returns the numbers of messages and bytes since the socket was opened, without notifications.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Enables the strict verification of rtnetlink requests, which also lets the kernel filter dumps.
    ///
    /// # Errors
    /// Fails on kernels before Linux 4.20.
    pub fn check_strictly(&mut self) -> io::Result<()> {
        self.wire.check_strictly()
    }

    /// Reserves buffer space to send a datagram of `size` bytes.
    ///
    /// # Errors
    /// Fails if the system call fails. If the kernel grants less, the send fails instead.
    pub fn reserve(&mut self, size: usize) -> io::Result<()> {
        self.wire.reserve(size)
    }

    /// Opens a second socket in the same network namespace that receives the notifications of multicast groups.
    ///
    /// # Errors
    /// As for [`Wire::subscribe`].
    pub fn subscribe(&self, groups: u32, space: usize) -> io::Result<Box<dyn Notifications>> {
        self.wire.subscribe(groups, space)
    }

    /// Sends a request and waits for its acknowledgement.
    ///
    /// # Errors
    /// [`Error`].
    pub fn request(&mut self, request: &Request) -> Result<(), Error> {
        self.get(request, |_| {})
    }

    /// Sends requests in one datagram and returns the kernel's result for each.
    ///
    /// # Errors
    /// Fails if the requests cannot be sent or a result cannot be received.
    pub fn request_all(&mut self, requests: &[Request]) -> Result<Vec<Result<(), Refusal>>, Error> {
        let first = self.next;
        let mut bytes = Vec::new();
        for request in requests {
            let seq = self.number();
            put_message(&mut bytes, request.kind, request.flags | flag::REQUEST | flag::ACK, seq, &request.body);
        }
        self.send(&bytes, requests.len())?;
        let mut results: Vec<Option<Result<(), Refusal>>> = requests.iter().map(|_| None).collect();
        while results.iter().any(Option::is_none) {
            self.receive(|message| {
                let index = usize::try_from(message.seq.wrapping_sub(first)).ok()?;
                let result = results.get_mut(index).filter(|_| message.kind == ERROR)?;
                *result = Some(message.refusal().map_or(Ok(()), Err));
                None::<()>
            })?;
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Sends a request with an acknowledgement and passes each message of the answer to `each`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn get(&mut self, request: &Request, each: impl FnMut(Message<'_>)) -> Result<(), Error> {
        match self.exchange(request, flag::ACK, each)? {
            Dump::Complete | Dump::Interrupted => Ok(()),
        }
    }

    /// Requests all objects and passes each message of the answer to `each`.
    ///
    /// # Errors
    /// [`Error`], also if the dump fails after some messages.
    pub fn dump(&mut self, request: &Request, each: impl FnMut(Message<'_>)) -> Result<Dump, Error> {
        self.exchange(request, flag::DUMP, each)
    }

    fn exchange(&mut self, request: &Request, flags: u16, mut each: impl FnMut(Message<'_>)) -> Result<Dump, Error> {
        let seq = self.number();
        let mut bytes = Vec::new();
        put_message(&mut bytes, request.kind, request.flags | flag::REQUEST | flags, seq, &request.body);
        self.send(&bytes, 1)?;
        let mut dump = Dump::Complete;
        loop {
            let end = self.receive(|message| {
                if message.seq != seq {
                    return None;
                }
                if message.flags & flag::DUMP_INTERRUPTED > 0 {
                    dump = Dump::Interrupted;
                }
                match message.kind {
                    DONE | ERROR => Some(message.refusal().map_or(Ok(()), Err)),
                    _ => {
                        each(message);
                        None
                    }
                }
            })?;
            if let Some(end) = end {
                return Ok(end.map(|()| dump)?);
            }
        }
    }

    /// Returns the next sequence number.
    pub fn number(&mut self) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        number
    }

    /// Sends `count` messages as one datagram. The caller reads their answers.
    ///
    /// # Errors
    /// [`Error::Send`].
    pub fn send(&mut self, bytes: &[u8], count: usize) -> Result<(), Error> {
        self.traffic.sent.add(count, bytes.len());
        self.wire.send(bytes).map_err(Error::Send)
    }

    /// Receives a datagram and passes its messages to `each` until `each` returns a value.
    ///
    /// # Errors
    /// [`Error::Receive`].
    pub fn receive<T>(&mut self, mut each: impl FnMut(Message<'_>) -> Option<T>) -> Result<Option<T>, Error> {
        let received = loop {
            match self.wire.receive(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received.map_err(Error::Receive)?,
            }
        };
        let mut found = None;
        for message in messages(self.buffer.get(..received).unwrap_or_default()) {
            self.traffic.received.add(1, message.size());
            if found.is_none() {
                found = each(message);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::sys::netlink::attributes::put_attribute;

    /// Answers with recorded datagrams.
    struct Recorded(VecDeque<io::Result<Vec<u8>>>);

    impl Wire for Recorded {
        fn send(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let answer = self.0.pop_front().unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
            buffer[..answer.len()].copy_from_slice(&answer);
            Ok(answer.len())
        }

        fn reserve(&mut self, _: usize) -> io::Result<()> {
            Ok(())
        }
    }

    fn socket(answers: impl IntoIterator<Item = Vec<u8>>) -> Socket {
        Socket::over(Box::new(Recorded(answers.into_iter().map(Ok).collect())))
    }

    fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_message(&mut bytes, kind, flags, seq, body);
        bytes
    }

    fn error(seq: u32, number: i32, reason: &str) -> Vec<u8> {
        let mut body = number.to_ne_bytes().to_vec();
        put_message(&mut body, 20, 0, seq, &[]);
        put_attribute(&mut body, 1, reason.as_bytes());
        message(ERROR, 0, seq, &body)
    }

    /// Returns the bodies of a dump and its result.
    fn dump(answers: impl IntoIterator<Item = Vec<u8>>) -> (Vec<Vec<u8>>, Result<Dump, Error>) {
        let mut bodies = Vec::new();
        let result = socket(answers).dump(&Request::new(20, Vec::new()), |message| bodies.push(message.body.to_vec()));
        (bodies, result)
    }

    fn errno(error: Error) -> Option<i32> {
        io::Error::from(error).raw_os_error()
    }

    #[test]
    fn a_dump_ends_with_done_and_skips_answers_to_other_requests() {
        let one = [message(20, 2, 1, &[1; 4]), message(20, 2, 9, &[2; 4]), message(DONE, 2, 9, &[0; 4])].concat();
        let two = [message(20, 2, 1, &[3; 4]), message(DONE, 2, 1, &[0; 4]), message(20, 2, 1, &[4; 4])].concat();
        let (bodies, result) = dump([one, two]);
        assert_eq!((bodies, result.expect("whole")), (vec![vec![1; 4], vec![3; 4]], Dump::Complete));
    }

    #[test]
    fn an_interrupted_dump_is_reported_wherever_the_flag_is() {
        for (object, done) in [(flag::DUMP_INTERRUPTED, 0), (0, flag::DUMP_INTERRUPTED)] {
            let (bodies, result) = dump([[message(20, object, 1, &[1; 4]), message(DONE, done, 1, &[0; 4])].concat()]);
            assert_eq!((bodies.len(), result.expect("whole")), (1, Dump::Interrupted));
        }
        let other = message(20, flag::DUMP_INTERRUPTED, 9, &[]);
        assert_eq!(dump([[other, message(DONE, 0, 1, &[0; 4])].concat()]).1.expect("whole"), Dump::Complete);
    }

    #[test]
    fn a_dump_that_fails_at_its_end_or_its_beginning_is_an_error() {
        for end in [message(DONE, 2, 1, &(-105i32).to_ne_bytes()), error(1, -105, "")] {
            let (bodies, result) = dump([[message(20, 2, 1, &[1; 4]), end].concat()]);
            assert_eq!((bodies.len(), errno(result.expect_err("failed"))), (1, Some(105)));
        }
        // A dump without an end waits for another datagram.
        assert!(matches!(dump([message(20, 2, 1, &[1; 4])]).1, Err(Error::Receive(_))));
    }

    #[test]
    fn a_refused_request_has_the_kernels_explanation() {
        let refused = socket([error(1, -22, "bad")]).request(&Request::new(20, Vec::new())).expect_err("refused");
        assert!(refused.to_string().starts_with("bad ("), "{refused}");
        assert_eq!(errno(refused), Some(22));
        assert!(socket([error(1, 0, "")]).request(&Request::new(20, Vec::new())).is_ok());
    }

    #[test]
    fn each_of_several_requests_has_its_result() {
        let answers = [[error(2, -2, ""), error(9, -1, "")].concat(), [error(1, 0, ""), error(3, 0, "")].concat()];
        let requests = vec![Request::new(20, Vec::new()); 3];
        let mut socket = socket(answers);
        let results = socket.request_all(&requests).expect("answered");
        let errnos: Vec<_> =
            results.into_iter().map(|result| result.err().and_then(|e| e.error.raw_os_error())).collect();
        assert_eq!(errnos, [None, Some(2), None]);
        assert_eq!((socket.traffic().sent.messages, socket.traffic().received.messages), (3, 4));
        assert_eq!(socket.number(), 4);
    }

    #[test]
    fn a_signal_does_not_end_a_request() {
        let answers = [Err(io::ErrorKind::Interrupted.into()), Ok(error(1, 0, ""))];
        let mut socket = Socket::over(Box::new(Recorded(answers.into())));
        assert!(socket.request(&Request::new(20, Vec::new())).is_ok());
    }

    #[test]
    fn answers_cut_short_are_receive_errors() {
        let whole = [message(20, 2, 1, &[1; 12]), error(1, -22, "bad\0")].concat();
        for end in 0..whole.len() {
            assert!(matches!(dump([whole[..end].to_vec()]).1, Err(Error::Receive(_))), "{end}");
        }
        assert!(matches!(dump([whole]).1, Err(Error::Refused(_))));
    }

    #[test]
    fn the_kernel_answers_on_every_bus() {
        // RTM_GETLINK, the controller of generic netlink, NFT_MSG_GETGEN.
        for (bus, kind, body) in [
            (Bus::Route, 18, vec![0; 16]),
            (Bus::Generic, 0x10, vec![3, 0, 0, 0]),
            (Bus::Netfilter, 10 << 8 | 1, vec![0; 4]),
        ] {
            let mut socket = Socket::open(bus).expect("a socket");
            let result = socket.dump(&Request::new(kind, body), |_| {});
            assert!(matches!(result, Ok(_) | Err(Error::Refused(_))), "{bus:?} {result:?}");
        }
        let mut socket = Socket::open(Bus::Route).expect("a socket");
        socket.check_strictly().expect("Linux 4.20");
        let mut links = 0;
        let dump = socket.dump(&Request::new(18, vec![0; 16]), |_| links += 1).expect("links");
        assert!(links > 0 && dump == Dump::Complete);
        // A link that does not exist.
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let missing = socket.request(&Request::new(18, body)).expect_err("no such link");
        assert_eq!(errno(missing), Some(nix::libc::ENODEV));
    }
}
