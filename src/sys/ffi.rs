//! The only unsafe file: system calls and library functions that have no safe interface, behind safe functions.
#![expect(unsafe_code, reason = "the crate's only door to C")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use mnl::mnl_sys;
use nix::libc;

/// Returns the file descriptor of a socket.
pub(super) fn descriptor(socket: &mnl::Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket owns the descriptor, keeps it open, and is borrowed as long as the result.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// Switches on an option of a netlink socket, `NETLINK_…`.
///
/// # Errors
/// Fails if the kernel does not have the option.
pub(super) fn enable(socket: &mnl::Socket, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the socket is open; the option's value is an int that outlives the call.
    let result =
        unsafe { mnl_sys::mnl_socket_setsockopt(socket.as_raw_socket(), option, (&raw const on).cast_mut().cast(), 4) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the cookie of the network namespace that a socket belongs to (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn namespace_cookie(socket: &impl AsFd) -> Option<u64> {
    let mut cookie: u64 = 0;
    let mut size = libc::socklen_t::try_from(size_of::<u64>()).ok()?;
    // SAFETY: the socket is open; the kernel writes at most `size` bytes into `cookie`.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        let socket = socket.as_fd().as_raw_fd();
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut size)
    };
    (result == 0).then_some(cookie)
}
