//! The transport under a netlink socket: the kernel, or recorded answers in tests and fuzzers.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mnl::Bus;
use nix::libc;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Type};

use crate::sys::ffi;

/// The longest time to wait for a message.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A transport of datagrams to the kernel and back.
pub trait Wire {
    /// Sends one or more messages as one datagram.
    ///
    /// # Errors
    /// Fails if the system call fails.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Receives a datagram of whole messages into `buffer` and returns its length.
    ///
    /// # Errors
    /// Fails if the system call fails, if the datagram is longer than `buffer`, and if no datagram arrives within 30
    /// seconds.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Reserves buffer space to send a datagram of `size` bytes.
    ///
    /// # Errors
    /// Fails if the system call fails. If the kernel grants less, the send fails instead.
    fn reserve(&mut self, size: usize) -> io::Result<()>;

    /// Enables the strict verification of rtnetlink requests, which also lets the kernel filter dumps.
    ///
    /// # Errors
    /// Fails on kernels before Linux 4.20.
    fn check_strictly(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Opens a second socket in the same network namespace that receives the notifications of multicast `groups`, with
    /// `space` bytes for notifications that were not received yet.
    ///
    /// # Errors
    /// Fails if the system call fails, and if the thread has left the namespace of this socket.
    fn subscribe(&self, groups: u32, space: usize) -> io::Result<Box<dyn Notifications>> {
        let _ = (groups, space);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A subscription to the notifications of multicast groups.
pub trait Notifications {
    /// Receives a datagram of whole notifications into `buffer` without waiting, and returns its length.
    ///
    /// # Errors
    /// Fails with [`io::ErrorKind::WouldBlock`] if there is none. After any other error notifications may be lost.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// A netlink socket of the kernel.
pub struct Kernel(socket2::Socket);

impl Kernel {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails if the kernel does not have the family or an option.
    pub fn open(bus: Bus) -> io::Result<Self> {
        Self::over(Self::unbound(bus)?)
    }

    /// Opens a socket that is not bound yet. Allocates no memory, so a forked child may call this function.
    ///
    /// # Errors
    /// Fails if the kernel does not have the family.
    pub fn unbound(bus: Bus) -> io::Result<OwnedFd> {
        let family = Domain::from(libc::AF_NETLINK);
        socket2::Socket::new(family, Type::RAW.cloexec(), Some(Protocol::from(bus as i32))).map(OwnedFd::from)
    }

    /// Configures and binds a socket that may be from another network namespace.
    ///
    /// # Errors
    /// Fails if the kernel does not have an option.
    pub fn over(unbound: OwnedFd) -> io::Result<Self> {
        let kernel = Self(unbound.into());
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            ffi::enable(&kernel.0, option)?;
        }
        kernel.0.set_read_timeout(Some(TIMEOUT))?;
        kernel.bind(0)?;
        Ok(kernel)
    }

    /// Joins multicast groups, at a port that the kernel chooses.
    fn bind(&self, groups: u32) -> io::Result<()> {
        Ok(bind(self.0.as_raw_fd(), &NetlinkAddr::new(0, groups))?)
    }

    /// Receives a datagram from the kernel and skips those of other processes.
    fn receive_from_kernel(&self, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        loop {
            let mut buffers = [IoSliceMut::new(buffer)];
            let received = recvmsg::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffers, None, flags)?;
            if received.flags.contains(MsgFlags::MSG_TRUNC) {
                return Err(io::Error::other("a netlink message is longer than the buffer"));
            }
            if received.address.is_some_and(|from| from.pid() == 0) {
                return Ok(received.bytes);
            }
        }
    }
}

impl Wire for Kernel {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.send(bytes).map(drop)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_from_kernel(buffer, MsgFlags::empty())
    }

    fn reserve(&mut self, size: usize) -> io::Result<()> {
        // Only CAP_NET_ADMIN in the first user namespace may exceed the limit of the system.
        if setsockopt(&self.0, sockopt::SndBufForce, &size).is_err() {
            setsockopt(&self.0, sockopt::SndBuf, &size)?;
        }
        Ok(())
    }

    fn check_strictly(&mut self) -> io::Result<()> {
        ffi::enable(&self.0, libc::NETLINK_GET_STRICT_CHK)
    }

    fn subscribe(&self, groups: u32, space: usize) -> io::Result<Box<dyn Notifications>> {
        let protocol = self.0.protocol()?;
        let kernel = Self(socket2::Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), protocol)?);
        let [own, new] = [self, &kernel].map(|kernel| ffi::namespace_cookie(&kernel.0));
        if own? != new? {
            return Err(io::Error::other("the thread has left the network namespace"));
        }
        // Only CAP_NET_ADMIN in the first user namespace may exceed the limit of the system.
        if setsockopt(&kernel.0, sockopt::RcvBufForce, &space).is_err() {
            setsockopt(&kernel.0, sockopt::RcvBuf, &space)?;
        }
        kernel.bind(groups)?;
        Ok(Box::new(kernel))
    }
}

impl Notifications for Kernel {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_from_kernel(buffer, MsgFlags::MSG_DONTWAIT)
    }
}
