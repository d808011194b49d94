//! The only unsafe file: system calls and library functions that have no safe interface, behind safe functions.
#![expect(unsafe_code, reason = "the crate's only door to C")]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{self, NonNull};
use std::{io, slice};

use nftnl::{MsgType, NlMsg, nft_nlmsg_maxsize};
use nftnl_sys as sys;
use nix::libc;
use nix::unistd::{ForkResult, Pid};

/// Switches on an option of a netlink socket, `NETLINK_…`.
///
/// # Errors
/// Fails if the kernel does not have the option.
pub(super) fn enable(socket: &impl AsFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the socket is open; the option's value is an int of `size` bytes that outlives the call.
    let result = unsafe { libc::setsockopt(socket, libc::SOL_NETLINK, option, (&raw const on).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Forks this process. The child calls `job` and ends with the code that `job` returns. Returns the PID of the child.
///
/// Another thread of this process may hold a lock during the fork, so `job` must take no lock and must not panic.
pub(super) fn fork(job: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the child makes system calls and allocates memory only, which glibc allows after a fork, and then ends.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        // SAFETY: `_exit` runs no handlers of this process.
        ForkResult::Child => unsafe { libc::_exit(job()) },
    }
}

/// Lets the child of a command call `prepare` before it becomes the program. The rules of [`fork`] apply to `prepare`.
pub(super) fn before_exec(command: &mut Command, prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: `prepare` makes system calls only.
    unsafe { command.pre_exec(prepare) };
}

/// Takes over file descriptors that a message brought.
pub(super) fn received(descriptors: &[RawFd]) -> Vec<OwnedFd> {
    // SAFETY: the kernel made the descriptors for this message, and nothing else owns them.
    descriptors.iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(*descriptor) }).collect()
}

/// Returns the cookie of the network namespace that a socket belongs to (`SO_NETNS_COOKIE`). Returns `None` before Linux
/// 5.14.
pub(super) fn namespace_cookie(socket: &impl AsFd) -> io::Result<Option<u64>> {
    let mut cookie: u64 = 0;
    let mut size = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: the socket is open; the kernel writes at most `size` bytes into `cookie`.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        let socket = socket.as_fd().as_raw_fd();
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut size)
    };
    if result == 0 {
        return Ok(Some(cookie));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOPROTOOPT) { Ok(None) } else { Err(error) }
}

/// Opens a process by its number (`pidfd_open`, Linux 5.3).
pub(super) fn pidfd_open(process: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: the system call takes two numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    match RawFd::try_from(result) {
        // SAFETY: the kernel made the descriptor, and nothing else owns it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends SIGKILL to a process.
pub(super) fn pidfd_kill(process: BorrowedFd<'_>) -> io::Result<()> {
    let info = ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and the kernel reads no siginfo from a null pointer.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Memory for one message of libnftnl, aligned for the header of netlink.
pub(crate) struct Buffer(Vec<u64>);

impl Buffer {
    /// Allocates space for the longest message.
    pub(crate) fn new() -> Self {
        Self(vec![0; usize::try_from(nft_nlmsg_maxsize()).unwrap_or(usize::MAX).div_ceil(8)])
    }

    /// Writes a message and returns its bytes.
    pub(crate) fn write(&mut self, message: &impl NlMsg, seq: u32, kind: MsgType) -> &[u8] {
        // SAFETY: `new` allocates space for the longest message, which is all that `write` requires.
        unsafe { message.write(self.0.as_mut_ptr().cast(), seq, kind) };
        // SAFETY: the vector owns 8 bytes for each of its words, and every pattern of bits is a valid u8.
        let bytes: &[u8] = unsafe { slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 8) };
        let length = bytes.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length));
        bytes.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default()
    }
}

/// An expression of libnftnl under construction.
pub(crate) struct Expression(NonNull<sys::nftnl_expr>);

impl Expression {
    /// Makes an expression without attributes. Ends the process if libnftnl does not know the name or has no memory.
    pub(crate) fn new(name: &str) -> Self {
        let name = c_text(name);
        // SAFETY: the name ends with a zero.
        let expr = unsafe { sys::nftnl_expr_alloc(name.as_ptr()) };
        Self(NonNull::new(expr).unwrap_or_else(|| std::process::abort()))
    }

    /// Sets an attribute to a number, in host byte order.
    pub(crate) fn number(&mut self, attribute: u16, number: u32) {
        // SAFETY: the expression is alive.
        unsafe { sys::nftnl_expr_set_u32(self.0.as_ptr(), attribute, number) };
    }

    /// Sets the bytes of a register: at most 64, the size of all registers.
    pub(crate) fn bytes(&mut self, attribute: u16, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        assert!(length <= 64, "a value is longer than all registers");
        // SAFETY: the expression is alive; the bytes are copied and not longer than the registers of libnftnl.
        unsafe { sys::nftnl_expr_set(self.0.as_ptr(), attribute, bytes.as_ptr().cast(), length) };
    }

    /// Sets an attribute to a text, which libnftnl copies.
    pub(crate) fn text(&mut self, attribute: u16, text: &str) {
        let text = c_text(text);
        // SAFETY: the expression is alive; the text ends with a zero and is copied.
        unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attribute, text.as_ptr()) };
    }

    /// Returns the pointer. The caller must free the expression, or pass it to a rule, which frees it.
    pub(crate) fn pointer(self) -> NonNull<sys::nftnl_expr> {
        self.0
    }
}

/// Returns a text for C. A text with a zero byte becomes empty; no name has a zero byte.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}
