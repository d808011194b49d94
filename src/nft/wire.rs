//! The sockets: one that carries questions and answers, and one that hears what everybody commits.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};

use super::ffi;

/// `NFNLGRP_NFTABLES` in include/uapi/linux/netfilter/nfnetlink.h, as a bit of a socket's groups.
const GROUP: u32 = 1 << (7 - 1);

/// The room for notices that were not heard yet, in bytes as the kernel counts them: about 10,000 rules of others. Twice of
/// it is taken at most, and only as long as they wait.
const ROOM: usize = 8 << 20;

/// What carries questions to the kernel and its answers back: a socket, or what was recorded of one.
pub trait Wire {
    /// Sends a question or a batch.
    ///
    /// # Errors
    /// The system's.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Receives whole messages into `room` and says how many bytes they are.
    ///
    /// # Errors
    /// The system's; also where nothing came for long.
    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize>;

    /// Makes room to send `size` bytes at once.
    ///
    /// # Errors
    /// The system's. That it grants no more room is no error here; the send says so.
    fn prepare(&mut self, size: usize) -> io::Result<()>;

    /// A number of the network namespace that is spoken about.
    fn namespace_cookie(&self) -> Option<u64>;

    /// Has the kernel tell of every commit from now on.
    ///
    /// # Errors
    /// The system's. What was recorded has none.
    fn watch(&self) -> io::Result<Box<dyn Notices>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Wire for mnl::Socket {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        Self::send(self, bytes).map(drop)
    }

    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.recv_raw(room)
    }

    fn prepare(&mut self, size: usize) -> io::Result<()> {
        ffi::prepare(self, size)
    }

    fn namespace_cookie(&self) -> Option<u64> {
        ffi::namespace_cookie(self)
    }

    fn watch(&self) -> io::Result<Box<dyn Notices>> {
        join(self.namespace_cookie())
    }
}

/// Where the kernel's notices come from: a socket, or what was recorded of one.
pub trait Notices {
    /// Gives whole notices without waiting for them.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where nothing more was said; the system's, after which some may be lost.
    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize>;
}

/// A socket that has joined the group.
struct Group(OwnedFd);

impl Notices for Group {
    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            let (length, from) = recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), room)?;
            // Others may send to the group too; what they say is nothing that the kernel did.
            if from.is_some_and(|from| from.pid() == 0) {
                return Ok(length);
            }
        }
    }
}

/// Joins the group in the network namespace that the thread is in, which must be that of this `cookie`.
///
/// # Errors
/// The system's; also where the thread is in another namespace by now.
fn join(cookie: Option<u64>) -> io::Result<Box<dyn Notices>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    if ffi::namespace_cookie(&socket) != cookie {
        return Err(io::Error::other("the thread has left the network namespace"));
    }
    // Without privileges in the first namespace it gets as much as everybody.
    if setsockopt(&socket, sockopt::RcvBufForce, &ROOM).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &ROOM)?;
    }
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
    Ok(Box::new(Group(socket)))
}
