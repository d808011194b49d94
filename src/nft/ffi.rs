//! The only unsafe file: what the safe types of `nftnl` and `mnl` do not have, with a safe face.
//!
//! Missing there are named maps with data, concatenated keys, comments and counters of elements, expressions with
//! 32-bit registers, and the options of the socket. What is here does nothing but carry plain data into libnftnl's
//! objects; what the kernel answers never gets there (see [`super::message`]).
#![expect(unsafe_code, reason = "the crate's only door to libnftnl and libmnl")]

use std::ffi::{CStr, CString, c_void};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::{io, slice};

use mnl::mnl_sys;
use nftnl::{MsgType, NlMsg, nft_nlmsg_maxsize};
use nftnl_sys::{self as sys, libc};

use super::expr::{Expr, Value};
use super::program::{Key, Shape};
use super::user_data;

/// Memory for messages in both directions, aligned for netlink headers.
pub(super) struct Buffer(Vec<u64>);

impl Buffer {
    /// Room for the largest message, and for whatever the kernel puts into one reply.
    pub(super) fn new() -> Self {
        // glibc has a piece of 128 KiB from the kernel, zeroed where it is touched, and that is a page or two. The 68 KiB that
        // it takes it would zero itself, page by page.
        const FRESH: usize = 128 * 1024;
        let bytes = usize::try_from(nft_nlmsg_maxsize()).map_or(FRESH, |bytes| bytes.max(FRESH));
        Self(vec![0; bytes.div_ceil(8)])
    }

    /// The memory as bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the vector owns 8 bytes for each of its words, and every pattern of bits is a valid u8 and u64.
        unsafe { slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 8) }
    }

    /// Writes a message and gives its bytes.
    pub(super) fn write(&mut self, message: &impl NlMsg, seq: u32, kind: MsgType) -> &[u8] {
        // SAFETY: `new` made room for the largest possible message, which is all that `write` asks for.
        unsafe { message.write(self.0.as_mut_ptr().cast(), seq, kind) };
        let bytes = self.bytes();
        let length = bytes.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length));
        bytes.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default()
    }
}

fn or_abort<T>(pointer: *mut T) -> NonNull<T> {
    // Like Box: a host that has no memory left for a few bytes cannot be helped from here.
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

impl nftnl::expr::Expression for Expr {
    fn to_expr(&self, _rule: &nftnl::Rule) -> NonNull<sys::nftnl_expr> {
        let name = CString::new(self.name()).unwrap_or_default();
        // SAFETY: the name ends with a zero. For a name that libnftnl does not know it gives null.
        let expr = or_abort(unsafe { sys::nftnl_expr_alloc(name.as_ptr()) });
        for (attribute, value) in self.attributes() {
            // SAFETY: `expr` is ours and alive; bytes and names outlive the calls, which copy them.
            unsafe {
                match &value {
                    Value::U32(number) => sys::nftnl_expr_set_u32(expr.as_ptr(), attribute, *number),
                    Value::Bytes(bytes) => {
                        sys::nftnl_expr_set(expr.as_ptr(), attribute, bytes.as_ptr().cast(), length(bytes));
                    }
                    Value::Name(name) => {
                        let name = CString::new(name.as_str()).unwrap_or_default();
                        sys::nftnl_expr_set_str(expr.as_ptr(), attribute, name.as_ptr());
                    }
                }
            }
        }
        expr
    }
}

/// A set of libnftnl; freed with everything that was put into it.
struct SetObject(NonNull<sys::nftnl_set>);

impl SetObject {
    fn new() -> Self {
        // SAFETY: takes no arguments.
        Self(or_abort(unsafe { sys::nftnl_set_alloc() }))
    }

    fn number(&mut self, attribute: sys::nftnl_set_attr, number: u32) {
        // SAFETY: the set is ours and alive.
        unsafe { sys::nftnl_set_set_u32(self.0.as_ptr(), narrow(attribute), number) };
    }

    fn text(&mut self, attribute: sys::nftnl_set_attr, text: &CStr) {
        // SAFETY: the set is ours and alive; the text is copied. Without memory for it the message lacks the name and
        // the kernel refuses it.
        unsafe { sys::nftnl_set_set_str(self.0.as_ptr(), narrow(attribute), text.as_ptr()) };
    }
}

impl Drop for SetObject {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { sys::nftnl_set_free(self.0.as_ptr()) };
    }
}

fn narrow(number: sys::nftnl_set_attr) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// `add map` and `delete map`.
pub(super) struct MapMessage<'a> {
    pub(super) table: &'a CStr,
    pub(super) name: &'a CStr,
    pub(super) id: u32,
    pub(super) shape: &'a Shape,
}

// SAFETY: a set without elements is a few hundred bytes.
unsafe impl NlMsg for MapMessage<'_> {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, kind: MsgType) {
        let mut set = SetObject::new();
        set.text(sys::NFTNL_SET_TABLE, self.table);
        set.text(sys::NFTNL_SET_NAME, self.name);
        let (message, flags) = match kind {
            MsgType::Del => (libc::NFT_MSG_DELSET, 0),
            MsgType::Add => {
                describe(&mut set, self.shape);
                set.number(sys::NFTNL_SET_ID, self.id);
                (libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
            }
        };
        // SAFETY: the caller gives room for the largest message; the set is alive.
        unsafe {
            let header = header(buf, message, flags, seq);
            sys::nftnl_set_nlmsg_build_payload(header, set.0.as_ptr());
        }
    }
}

fn describe(set: &mut SetObject, shape: &Shape) {
    let mut flags = 0;
    if !shape.data.is_empty() {
        flags |= libc::NFT_SET_MAP.unsigned_abs();
        set.number(sys::NFTNL_SET_DATA_TYPE, Shape::type_id(&shape.data));
        set.number(sys::NFTNL_SET_DATA_LEN, Shape::length(&shape.data).into());
    }
    set.number(sys::NFTNL_SET_FLAGS, flags);
    set.number(sys::NFTNL_SET_KEY_TYPE, Shape::type_id(&shape.key));
    set.number(sys::NFTNL_SET_KEY_LEN, Shape::length(&shape.key).into());
    // SAFETY: the name ends with a zero; the set takes the expression over and frees it.
    unsafe {
        let counter = or_abort(sys::nftnl_expr_alloc(c"counter".as_ptr()));
        sys::nftnl_set_add_expr(set.0.as_ptr(), counter.as_ptr());
    }
}

/// What to do with elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementsJob {
    /// Add them; a key that is there already is an error.
    Add,
    /// Delete them by their keys.
    Delete,
}

/// `add element` and `delete element`, at most [`ELEMENTS_PER_MESSAGE`] in one.
pub(super) struct ElementsMessage<'a> {
    pub(super) table: &'a CStr,
    pub(super) map: &'a CStr,
    pub(super) job: ElementsJob,
    pub(super) elements: &'a [(Key, super::program::Element)],
}

/// So many elements always fit: one is at most 260 bytes (a key of 64, data of 20, user data of 136, and their headers),
/// and the list that holds them at most 65,535.
pub(super) const ELEMENTS_PER_MESSAGE: usize = 180;

// SAFETY: bounded by ELEMENTS_PER_MESSAGE, which `write` checks.
unsafe impl NlMsg for ElementsMessage<'_> {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, _kind: MsgType) {
        assert!(self.elements.len() <= ELEMENTS_PER_MESSAGE, "messages are cut by their writer");
        let mut set = SetObject::new();
        set.text(sys::NFTNL_SET_TABLE, self.table);
        set.text(sys::NFTNL_SET_NAME, self.map);
        for (key, element) in self.elements {
            let object = ElementObject::new(key);
            if self.job == ElementsJob::Add {
                let user_data = user_data::write(&element.comment, element.span);
                if !user_data.is_empty() {
                    object.set(sys::NFTNL_SET_ELEM_USERDATA, &user_data);
                }
                if !element.data.is_empty() {
                    object.set(sys::NFTNL_SET_ELEM_DATA, &element.data);
                }
            }
            // SAFETY: both are alive; the set takes the element over and frees it.
            unsafe { sys::nftnl_set_elem_add(set.0.as_ptr(), object.0.as_ptr()) };
        }
        let (message, flags) = match self.job {
            ElementsJob::Add => (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | libc::NLM_F_EXCL),
            ElementsJob::Delete => (libc::NFT_MSG_DELSETELEM, 0),
        };
        // SAFETY: the caller gives room for the largest message; the set is alive.
        unsafe {
            let header = header(buf, message, flags, seq);
            sys::nftnl_set_elems_nlmsg_build_payload(header, set.0.as_ptr());
        }
    }
}

/// An element of libnftnl that is about to be handed to a set.
struct ElementObject(NonNull<sys::nftnl_set_elem>);

impl ElementObject {
    fn new(key: &Key) -> Self {
        // SAFETY: takes no arguments.
        let object = Self(or_abort(unsafe { sys::nftnl_set_elem_alloc() }));
        object.set(sys::NFTNL_SET_ELEM_KEY, &key.0);
        object
    }

    fn set(&self, attribute: u32, bytes: &[u8]) {
        let attribute = self::attribute_of(attribute);
        // SAFETY: the element is alive; the bytes are copied, at most as many as a register has.
        unsafe { sys::nftnl_set_elem_set(self.0.as_ptr(), attribute, bytes.as_ptr().cast(), length(bytes)) };
    }
}

fn attribute_of(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Writes the headers of a message about our family.
///
/// # Safety
/// `buf` has room for the largest message.
unsafe fn header(buf: *mut c_void, message: i32, flags: i32, seq: u32) -> *mut libc::nlmsghdr {
    let message = u16::try_from(message).unwrap_or(u16::MAX);
    let family = u16::try_from(libc::NFPROTO_INET).unwrap_or(u16::MAX);
    let flags = u16::try_from(flags).unwrap_or(0);
    // SAFETY: the caller's promise.
    unsafe { sys::nftnl_nlmsg_build_hdr(buf.cast(), message, family, flags, seq) }
}

/// Sets up a socket: errors with their reasons and without the whole message, and room to send a batch of `size` bytes.
///
/// # Errors
/// Where the kernel does not know an option. That it grants no more room to an unprivileged sender is no error here;
/// the send says so.
pub(super) fn prepare(socket: &mnl::Socket, size: usize) -> io::Result<()> {
    let on: libc::c_int = 1;
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        // SAFETY: the socket is open; the option's value is an int that outlives the call.
        let result = unsafe {
            mnl_sys::mnl_socket_setsockopt(socket.as_raw_socket(), option, (&raw const on).cast_mut().cast(), 4)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let room = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_SNDBUF, libc::SO_SNDBUFFORCE] {
        // SAFETY: as above. Refusal is fine: see the doc comment.
        unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const room).cast(), 4);
        }
    }
    let patience = libc::timeval { tv_sec: 30, tv_usec: 0 };
    // SAFETY: as above; without the option we would wait for ever for an answer that never comes.
    unsafe {
        let size = libc::socklen_t::try_from(size_of::<libc::timeval>()).unwrap_or(0);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const patience).cast(), size);
    }
    Ok(())
}

/// The kernel's cookie of the network namespace that a socket was made in (SO_NETNS_COOKIE, Linux 5.14).
pub(super) fn namespace_cookie(socket: &impl AsRawFd) -> Option<u64> {
    let mut cookie: u64 = 0;
    let mut size = libc::socklen_t::try_from(size_of::<u64>()).ok()?;
    // SAFETY: the socket is open; the kernel writes at most `size` bytes into `cookie`.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut size)
    };
    (result == 0).then_some(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Counter, PortMap, PortRange};
    use crate::nft::user_data::Span;

    #[test]
    fn the_largest_elements_fit_into_one_message() {
        let key = Key([1; 56].into());
        let element = super::super::program::Element {
            data: [3; 20].into(),
            comment: "x".repeat(124).into(),
            span: Some(Span { ports: PortRange::new(1, 2).expect("range"), to: PortMap::Keep }),
            counter: Counter::default(),
        };
        let elements = vec![(key, element); ELEMENTS_PER_MESSAGE];
        let message = ElementsMessage { table: c"t", map: c"m", job: ElementsJob::Add, elements: &elements };
        let mut buffer = Buffer::new();
        let bytes = buffer.write(&message, 1, MsgType::Add).to_vec();
        assert!(bytes.len() < usize::from(u16::MAX), "{}", bytes.len());
    }
}
