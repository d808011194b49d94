//! The socket of rtnetlink(7): requests, and dumps that are repeated if objects change during the dump.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;

use mnl::Bus;
use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::model::Family;
use crate::sys::netlink::{self, Error, Request, Socket, flag};

/// The number of attempts at a dump during which objects change.
pub(super) const ATTEMPTS: usize = 5;

/// A socket of rtnetlink, for the network namespace that the thread was in when it opened the socket.
pub struct Rtnetlink {
    socket: RefCell<Socket>,
}

/// All objects of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump<T> {
    /// The objects that were read.
    pub objects: Vec<T>,
    /// The number of messages with an unknown format.
    pub unread: usize,
    /// True if objects changed during every attempt, so an object may be missing or occur twice.
    pub interrupted: bool,
}

impl<T> Dump<T> {
    /// Returns the objects if none can be missing because of a change during the dump.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] otherwise.
    pub fn complete(self) -> io::Result<Vec<T>> {
        if self.interrupted {
            let reason = format!("the objects changed during each of {ATTEMPTS} attempts to read them");
            return Err(io::Error::new(io::ErrorKind::Interrupted, reason));
        }
        Ok(self.objects)
    }
}

/// The behaviour of a request if the object exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfPresent {
    /// The request fails with EEXIST.
    Fail,
    /// The request replaces the object.
    Replace,
}

impl IfPresent {
    pub(super) fn flags(self) -> u16 {
        match self {
            Self::Fail => flag::CREATE | flag::EXCL,
            Self::Replace => flag::CREATE | flag::REPLACE,
        }
    }
}

impl Rtnetlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails if the process may not open netlink sockets.
    pub fn open() -> io::Result<Self> {
        Ok(Self::over(Socket::open(Bus::Route)?))
    }

    /// Uses a socket that is open.
    pub fn over(socket: Socket) -> Self {
        Self { socket: RefCell::new(socket) }
    }

    /// Sends a request and waits for its acknowledgement.
    pub(super) fn request(&self, message: &RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.socket.borrow_mut().request(&encoded(message, flags)).map_err(explained)
    }

    /// Requests one object and reads it. Returns `None` if the kernel acknowledges the request without an object.
    pub(super) fn get<T>(
        &self,
        message: &RouteNetlinkMessage,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let request = encoded(message, 0);
        let mut object = None;
        self.socket.borrow_mut().get(&request, |answer| {
            if answer.kind == answer_kind(&request) {
                object = read(answer.body);
            }
        })?;
        Ok(object)
    }

    /// Requests all objects of an address family and reads them. Returns no objects if the kernel lacks the family.
    pub(super) fn dump<T>(
        &self,
        message: &RouteNetlinkMessage,
        family: AddressFamily,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Dump<T>> {
        const UNKNOWN_FAMILY: [i32; 2] = [nix::libc::EOPNOTSUPP, nix::libc::EAFNOSUPPORT];
        let request = encoded(message, 0);
        let mut dump = Dump { objects: Vec::new(), unread: 0, interrupted: false };
        for _ in 0..ATTEMPTS {
            dump = Dump { objects: Vec::new(), unread: 0, interrupted: false };
            let end = self.socket.borrow_mut().dump(&request, |answer| {
                // The kernel answers for other families if it does not have this one.
                let of_family = family == AddressFamily::Unspec || answer.body.first() == Some(&family.into());
                if answer.kind == answer_kind(&request) && of_family {
                    match read(answer.body) {
                        Some(object) => dump.objects.push(object),
                        None => dump.unread += 1,
                    }
                }
            });
            match end {
                Ok(netlink::Dump::Complete) => return Ok(dump),
                Ok(netlink::Dump::Interrupted) => dump.interrupted = true,
                Err(error) if error_number(&error).is_some_and(|number| UNKNOWN_FAMILY.contains(&number)) => {
                    return Ok(dump);
                }
                Err(error) => return Err(explained(error)),
            }
        }
        Ok(dump)
    }
}

/// Returns the kind of the answers to a request. The kinds of an object are `RTM_NEW…`, `RTM_DEL…` and `RTM_GET…`, in this
/// order.
pub(super) fn answer_kind(request: &Request) -> u16 {
    request.kind.saturating_sub(2)
}

pub(super) fn encoded(message: &RouteNetlinkMessage, flags: u16) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.serialize(&mut body);
    Request { flags, ..Request::new(message.message_type(), body) }
}

/// Returns the kernel's error number if the kernel refused the request.
pub(super) fn error_number(error: &Error) -> Option<i32> {
    match error {
        Error::Refused(refusal) => refusal.error.raw_os_error(),
        Error::Send(_) | Error::Receive(_) => None,
    }
}

/// Makes an error that contains the kernel's explanation. An error without one keeps its number.
pub(super) fn explained(error: Error) -> io::Error {
    match error {
        Error::Refused(refusal) if refusal.reason.is_some() => io::Error::new(refusal.error.kind(), refusal),
        other => other.into(),
    }
}

pub(super) fn number_of(family: Family) -> AddressFamily {
    match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    }
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
