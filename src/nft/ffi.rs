//! The only unsafe file: what the safe types of `nftnl` and `mnl` do not have, with a safe face.
//!
//! Missing there are named maps with data, concatenated keys, comments and counters of elements, expressions with
//! 32-bit registers, everything that reads a dump, and the options of the socket. What is here does nothing but carry
//! plain data into libnftnl's objects and out of them.
#![expect(unsafe_code, reason = "the crate's only door to libnftnl and libmnl")]

use std::ffi::{CStr, CString, c_void};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::{io, slice};

use mnl::mnl_sys;
use nftnl::{MsgType, NlMsg, nft_nlmsg_maxsize};
use nftnl_sys::{self as sys, libc};

use super::expr::{Expr, Read, Value};
use super::program::{Key, Shape};
use super::user_data::{self, Span};
use crate::model::Counter;

/// Memory for messages in both directions, aligned for netlink headers.
pub(super) struct Buffer(Vec<u64>);

impl Buffer {
    /// Room for the largest message, and for whatever the kernel puts into one reply.
    pub(super) fn new() -> Self {
        let bytes = usize::try_from(nft_nlmsg_maxsize()).unwrap_or(1 << 17);
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

/// An expression of libnftnl, to read from.
struct ExprRef(NonNull<sys::nftnl_expr>);

impl ExprRef {
    fn get(&self, attribute: u16) -> Option<&[u8]> {
        let mut length = 0;
        // SAFETY: the expression lives as long as the object it was parsed into, which outlives every ExprRef. libnftnl
        // gives null or a pointer to `length` bytes inside of the expression.
        unsafe {
            if !sys::nftnl_expr_is_set(self.0.as_ptr(), attribute) {
                return None;
            }
            let data = sys::nftnl_expr_get(self.0.as_ptr(), attribute, &raw mut length);
            (!data.is_null()).then(|| slice::from_raw_parts(data.cast(), usize::try_from(length).unwrap_or(0)))
        }
    }

    fn read(&self) -> Expr {
        let name = attribute(sys::NFTNL_EXPR_NAME);
        Expr::read(&self.name(name).unwrap_or_default(), self)
    }
}

impl Read for ExprRef {
    fn number(&self, attribute: u16) -> Option<u32> {
        self.get(attribute)?.try_into().ok().map(u32::from_ne_bytes)
    }

    fn bytes(&self, attribute: u16) -> Option<Vec<u8>> {
        self.get(attribute).map(<[u8]>::to_vec)
    }

    fn name(&self, attribute: u16) -> Option<String> {
        let mut length = 0;
        // SAFETY: as in `get`; names end with a zero. libnftnl reports no length for some of them, so it is not used.
        unsafe {
            if attribute != self::attribute(sys::NFTNL_EXPR_NAME) && !sys::nftnl_expr_is_set(self.0.as_ptr(), attribute)
            {
                return None;
            }
            let data = sys::nftnl_expr_get(self.0.as_ptr(), attribute, &raw mut length);
            let text = NonNull::new(data.cast_mut())?;
            Some(CStr::from_ptr(text.as_ptr().cast()).to_string_lossy().into_owned())
        }
    }
}

const fn attribute(number: u32) -> u16 {
    assert!(number <= 0xffff, "attribute numbers are small");
    #[expect(clippy::cast_possible_truncation, reason = "checked in the line above")]
    let narrow = number as u16;
    narrow
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

    fn get_number(&self, attribute: sys::nftnl_set_attr) -> u32 {
        // SAFETY: the set is ours and alive; absent attributes read as 0.
        unsafe { sys::nftnl_set_get_u32(self.0.as_ptr(), narrow(attribute)) }
    }

    fn get_text(&self, attribute: sys::nftnl_set_attr) -> Option<String> {
        // SAFETY: the set is ours and alive; the text is inside of it, ends with a zero and is copied.
        unsafe {
            let text = sys::nftnl_set_get_str(self.0.as_ptr(), narrow(attribute));
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
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

/// A chain as a dump gives it.
pub(super) struct ChainRecord {
    pub(super) table: String,
    pub(super) name: String,
    /// Type, hook and priority of a base chain.
    pub(super) base: Option<(String, u32, i32)>,
}

/// A message of the kernel's, to be parsed. Its header's length is that of the bytes.
#[derive(Clone, Copy)]
pub(super) struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    /// The first message in `bytes` and what is behind it; `None` where there is no whole one.
    ///
    /// `bytes` must begin at a multiple of four, as what [`Buffer`] holds and what follows a message does.
    pub(super) fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        if length < 20 || !bytes.as_ptr().addr().is_multiple_of(4) {
            return None;
        }
        let message = bytes.get(..length)?;
        Some((Self(message), bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
    }

    /// All of it.
    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    fn header(self) -> *const libc::nlmsghdr {
        self.0.as_ptr().cast()
    }

    /// Reads a chain.
    pub(super) fn chain(self) -> Option<ChainRecord> {
        // SAFETY: the message is whole and aligned (`split`), which is all that libnftnl's parser relies on. The object
        // is ours, is read while alive, and freed once.
        unsafe {
            let chain = or_abort(sys::nftnl_chain_alloc());
            let parsed = sys::nftnl_chain_nlmsg_parse(self.header(), chain.as_ptr()) == 0;
            let text = |attribute: u32| text(sys::nftnl_chain_get_str(chain.as_ptr(), attribute_of(attribute)));
            let number = |attribute: u32| sys::nftnl_chain_get_u32(chain.as_ptr(), attribute_of(attribute));
            let record = parsed.then(|| ChainRecord {
                table: text(sys::NFTNL_CHAIN_TABLE).unwrap_or_default(),
                name: text(sys::NFTNL_CHAIN_NAME).unwrap_or_default(),
                base: text(sys::NFTNL_CHAIN_TYPE).map(|kind| {
                    let priority = sys::nftnl_chain_get_s32(chain.as_ptr(), attribute_of(sys::NFTNL_CHAIN_PRIO));
                    (kind, number(sys::NFTNL_CHAIN_HOOKNUM), priority)
                }),
            });
            sys::nftnl_chain_free(chain.as_ptr());
            record
        }
    }

    /// Reads a rule: its chain's name, its expressions, its comment.
    pub(super) fn rule(self) -> Option<(String, super::program::Rule)> {
        // SAFETY: as in `chain`; the expressions are inside of the rule and read while it is alive.
        unsafe {
            let rule = or_abort(sys::nftnl_rule_alloc());
            let parsed = sys::nftnl_rule_nlmsg_parse(self.header(), rule.as_ptr()) == 0;
            let record = parsed.then(|| {
                let chain = text(sys::nftnl_rule_get_str(rule.as_ptr(), attribute_of(sys::NFTNL_RULE_CHAIN)));
                let mut size = 0;
                let data =
                    sys::nftnl_rule_get_data(rule.as_ptr(), attribute_of(sys::NFTNL_RULE_USERDATA), &raw mut size);
                let (comment, _) = bytes(data, size).map(user_data::read).unwrap_or_default();
                let comment = (!comment.is_empty()).then(|| comment.to_owned());
                let mut exprs = Vec::new();
                let iterator = or_abort(sys::nftnl_expr_iter_create(rule.as_ptr()));
                while let Some(expr) = NonNull::new(sys::nftnl_expr_iter_next(iterator.as_ptr())) {
                    exprs.push(ExprRef(expr).read());
                }
                sys::nftnl_expr_iter_destroy(iterator.as_ptr());
                (chain.unwrap_or_default(), super::program::Rule { exprs, comment })
            });
            sys::nftnl_rule_free(rule.as_ptr());
            record
        }
    }

    /// Reads a set or map: its name and, where it is of a kind that we make, its shape.
    pub(super) fn set(self) -> Option<(String, Option<Shape>)> {
        let set = SetObject::new();
        // SAFETY: as in `chain`.
        let parsed = unsafe { sys::nftnl_set_nlmsg_parse(self.header(), set.0.as_ptr()) } == 0;
        if !parsed {
            return None;
        }
        let flags = set.get_number(sys::NFTNL_SET_FLAGS);
        let map = libc::NFT_SET_MAP.unsigned_abs();
        let fields = |attribute| Shape::fields(set.get_number(attribute));
        let shape = (flags & !map == 0).then(|| {
            let data = if flags & map > 0 { fields(sys::NFTNL_SET_DATA_TYPE)? } else { Vec::new() };
            Some(Shape { key: fields(sys::NFTNL_SET_KEY_TYPE)?, data })
        });
        Some((set.get_text(sys::NFTNL_SET_NAME)?, shape.flatten()))
    }

    /// Reads elements: keys, data, comments and spans, counters.
    pub(super) fn elements(self, mut each: impl FnMut(Key, &[u8], (&str, Option<Span>), Counter)) -> bool {
        let set = SetObject::new();
        // SAFETY: as in `chain`; the elements and their parts are inside of the set, which lives to the end.
        unsafe {
            if sys::nftnl_set_elems_nlmsg_parse(self.header(), set.0.as_ptr()) != 0 {
                return false;
            }
            let iterator = or_abort(sys::nftnl_set_elems_iter_create(set.0.as_ptr()));
            while let Some(element) = NonNull::new(sys::nftnl_set_elems_iter_next(iterator.as_ptr())) {
                let get = |attribute| {
                    let mut size = 0;
                    let data = sys::nftnl_set_elem_get(element.as_ptr(), attribute_of(attribute), &raw mut size);
                    bytes(data, size)
                };
                let Some(key) = get(sys::NFTNL_SET_ELEM_KEY) else { continue };
                let data = get(sys::NFTNL_SET_ELEM_DATA).unwrap_or_default();
                let remark = get(sys::NFTNL_SET_ELEM_USERDATA).map(user_data::read).unwrap_or_default();
                let mut size = 0;
                let expr = attribute_of(sys::NFTNL_SET_ELEM_EXPR);
                let counter = sys::nftnl_set_elem_get(element.as_ptr(), expr, &raw mut size);
                let counter = NonNull::new(counter.cast_mut().cast()).map_or_else(Counter::default, counted);
                each(Key(key.into()), data, remark, counter);
            }
            sys::nftnl_set_elems_iter_destroy(iterator.as_ptr());
        }
        true
    }
}

/// Reads a counter expression; what is none counted nothing.
fn counted(expr: NonNull<sys::nftnl_expr>) -> Counter {
    let expr = ExprRef(expr);
    let number =
        |number| expr.get(attribute_of(number)).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
    if expr.name(attribute(sys::NFTNL_EXPR_NAME)).as_deref() != Some("counter") {
        return Counter::default();
    }
    Counter {
        packets: number(sys::NFTNL_EXPR_CTR_PACKETS).unwrap_or(0),
        bytes: number(sys::NFTNL_EXPR_CTR_BYTES).unwrap_or(0),
    }
}

/// # Safety
/// Null, or a text that ends with a zero.
unsafe fn text(text: *const std::ffi::c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// # Safety
/// Null, or `size` bytes that live for `'a`.
unsafe fn bytes<'a>(data: *const c_void, size: u32) -> Option<&'a [u8]> {
    let size = usize::try_from(size).ok()?;
    // SAFETY: the caller's promise.
    (!data.is_null()).then(|| unsafe { slice::from_raw_parts(data.cast(), size) })
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
pub(super) fn namespace_cookie(socket: &mnl::Socket) -> Option<u64> {
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
    use crate::model::{PortMap, PortRange};
    use crate::nft::expr::one_of_each;
    use nftnl::expr::Expression;

    #[test]
    fn libnftnl_keeps_every_expression() {
        let table = nftnl::Table::new(c"t", nftnl::ProtoFamily::Inet);
        let chain = nftnl::Chain::new(c"c", &table);
        let rule = nftnl::Rule::new(&chain);
        for expr in one_of_each() {
            let object = expr.to_expr(&rule);
            assert_eq!(ExprRef(object).read(), expr);
            // SAFETY: made above, freed once.
            unsafe { sys::nftnl_expr_free(object.as_ptr()) };
        }
    }

    #[test]
    fn broken_messages_are_no_messages() {
        let mut buffer = Buffer::new();
        let bytes = buffer.bytes();
        for length in [0u32, 3, 19, u32::MAX, i32::MAX.unsigned_abs()] {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(Message::split(bytes).is_none());
        }
        bytes[..4].copy_from_slice(&33u32.to_ne_bytes());
        let (message, rest) = Message::split(&bytes[..33]).expect("whole");
        assert_eq!((message.bytes().len(), rest.len()), (33, 0));
    }

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
