//! The transport under a netlink socket: the kernel, or recorded answers in tests and fuzzers.

use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mnl::Bus;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::sys::ffi;

/// The time limit of a receive.
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
pub struct Kernel {
    bus: Bus,
    socket: mnl::Socket,
}

impl Kernel {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails if the kernel does not have the family or an option.
    pub fn open(bus: Bus) -> io::Result<Self> {
        let kernel = Self::unbound(bus)?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            ffi::enable(&kernel.socket, option)?;
        }
        let timeout = TimeVal::new(TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&ffi::descriptor(&kernel.socket), sockopt::ReceiveTimeout, &timeout)?;
        kernel.bind(0)?;
        Ok(kernel)
    }

    fn unbound(bus: Bus) -> io::Result<Self> {
        let socket = mnl::Socket::open(bus)?;
        fcntl(ffi::descriptor(&socket), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(Self { bus, socket })
    }

    /// Joins multicast groups, at a port that the kernel chooses.
    fn bind(&self, groups: u32) -> io::Result<()> {
        self.socket.bind(groups, 0)
    }

    /// Receives a datagram from the kernel and skips those of other processes.
    fn receive_from_kernel(&self, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        loop {
            let mut buffers = [IoSliceMut::new(buffer)];
            let received = recvmsg::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffers, None, flags)?;
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
        self.socket.send(bytes).map(drop)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_from_kernel(buffer, MsgFlags::empty())
    }

    fn reserve(&mut self, size: usize) -> io::Result<()> {
        let socket = ffi::descriptor(&self.socket);
        // Only CAP_NET_ADMIN in the first user namespace may exceed the limit of the system.
        if setsockopt(&socket, sockopt::SndBufForce, &size).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &size)?;
        }
        Ok(())
    }

    fn check_strictly(&mut self) -> io::Result<()> {
        ffi::enable(&self.socket, libc::NETLINK_GET_STRICT_CHK)
    }

    fn subscribe(&self, groups: u32, space: usize) -> io::Result<Box<dyn Notifications>> {
        let kernel = Self::unbound(self.bus)?;
        let [own, new] = [self, &kernel].map(|kernel| ffi::namespace_cookie(&ffi::descriptor(&kernel.socket)));
        if own? != new? {
            return Err(io::Error::other("the thread has left the network namespace"));
        }
        let socket = ffi::descriptor(&kernel.socket);
        // Only CAP_NET_ADMIN in the first user namespace may exceed the limit of the system.
        if setsockopt(&socket, sockopt::RcvBufForce, &space).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &space)?;
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
