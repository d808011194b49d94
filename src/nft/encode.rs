//! Changes encoded into one batch of netlink messages.
//!
//! ```text
//! batch begin (generation)  delete/add table  delete rules  delete elements  delete chains  delete maps
//!                           add maps  add chains  add elements  add rules  batch end
//! ```
//! Elements travel up to 180 in a message, everything else in a message of its own; only the last message asks for an
//! acknowledgement. For each message the batch remembers what it was about, so that a refusal can be reported as the
//! forward it came from.
//!
//! Be aware: what is encoded here is read back by [`super::decode`]; the round trip is a test with a kernel.

use std::ptr::NonNull;

use nftnl::{MsgType, NlMsg, ProtoFamily};
use nftnl_sys::{self as sys, libc};

use super::diff::{Changes, Elements};
use super::expr::{Expr, Value};
use super::message::{HEADER, KIND, key};
use super::program::{Chain, ChainType, Element, Hook, Key, Rule, Shape, TABLE};
use super::user_data;
use crate::sys::ffi::{self, Buffer, c_text};
use crate::sys::netlink::message::{self, netfilter_header, put_message};
use crate::sys::netlink::{Attributes, flag, put_attribute, put_nested, put_text};

/// `NFNL_BATCH_GENID` in include/uapi/linux/netfilter/nfnetlink.h: the generation that the batch was made for.
const BATCH_GENERATION: u16 = 1;

/// The number of elements that always fit into one message. An element has at most 260 bytes: a key of 64, data of 20, user
/// data of 136, and their headers. Their list has at most 65,535.
const ELEMENTS_PER_MESSAGE: usize = 180;

/// What a message of a batch is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The begin or end of the batch.
    Batch,
    /// The table.
    Table,
    /// A chain, or all its rules.
    Chain(&'a str),
    /// A rule of a chain, as printed by the program.
    Rule(&'a str, &'a Rule),
    /// A map.
    Map(&'a str),
    /// Elements of a map, in the order in which they are in the message.
    Elements(&'a str, &'a [(Key, Element)]),
}

/// A message of a batch: where it is, and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry<'a> {
    seq: u32,
    start: usize,
    end: usize,
    kind: u16,
    subject: Subject<'a>,
}

/// Messages that the kernel carries out together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<'a> {
    bytes: Vec<u8>,
    entries: Vec<Entry<'a>>,
}

impl Batch<'_> {
    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Moves it to another generation: nothing that it was decided on has changed until then.
    pub fn move_to(&mut self, generation: u32) {
        // The first message is the begin, and the generation the first thing that it says.
        if let Some(number) = self.bytes.get_mut(24..28) {
            number.copy_from_slice(&generation.to_be_bytes());
        }
    }

    /// How many messages it has, begin and end included.
    pub fn message_count(&self) -> usize {
        self.entries.len()
    }

    /// The number of the message that is acknowledged when all was done.
    pub fn last(&self) -> u32 {
        self.entries.iter().rev().nth(1).map_or(0, |entry| entry.seq)
    }

    /// What the message `seq` is about.
    pub fn subject(&self, seq: u32) -> Option<&Subject<'_>> {
        self.entries.iter().find(|entry| entry.seq == seq).map(|entry| &entry.subject)
    }

    /// The element of message `seq` that begins at `offset` in it, which is where the kernel points when it refuses one.
    pub fn element_at(&self, seq: u32, offset: u32) -> Option<(&str, &Key, &Element)> {
        let entry = self.entries.iter().find(|entry| entry.seq == seq)?;
        let Subject::Elements(map, elements) = &entry.subject else { return None };
        let index = element_index(self.bytes.get(entry.start..entry.end)?, usize::try_from(offset).ok()?)?;
        let (key, element) = elements.get(index)?;
        Some((map, key, element))
    }

    /// One line a message, for `-v`: number, size and subject.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.entries.iter().map(|entry| {
            let size = entry.end - entry.start;
            let deletes = [libc::NFT_MSG_DELTABLE, libc::NFT_MSG_DELCHAIN, libc::NFT_MSG_DELRULE];
            let deletes_more = [libc::NFT_MSG_DELSET, libc::NFT_MSG_DELSETELEM];
            let is = |message: &i32| i32::from(entry.kind & 0xff) == *message;
            let verb = if deletes.iter().chain(&deletes_more).any(is) { "delete" } else { "add" };
            let what = match &entry.subject {
                Subject::Batch => return format!("{:>6} {size:>6} bytes  batch", entry.seq),
                Subject::Table => format!("table inet {TABLE}"),
                Subject::Chain(name) => format!("chain {name}"),
                Subject::Rule(chain, rule) => format!("rule {chain} {rule}"),
                Subject::Map(name) => format!("map {name}"),
                Subject::Elements(map, elements) => format!("element {map}, {} of them", elements.len()),
            };
            format!("{:>6} {size:>6} bytes  {verb} {what}", entry.seq)
        })
    }
}

/// Returns the index of the first element of a message that ends behind `offset`.
fn element_index(message: &[u8], offset: usize) -> Option<usize> {
    let header = message::HEADER + HEADER;
    let mut attributes = Attributes::behind(message, header).spans();
    let (end, _, list) = attributes.find(|(_, kind, _)| *kind == key::ELEMENTS_LIST)?;
    let start = header + end - list.len();
    Attributes::new(list).spans().position(|(end, _, _)| offset < start + end)
}

/// Encodes changes that were decided on at `generation`; the kernel refuses them at any other.
pub fn encode(changes: &Changes, generation: u32) -> Batch<'_> {
    let batch = Batch { bytes: Vec::new(), entries: Vec::new() };
    let mut writer = Writer { batch, buffer: Buffer::new(), next: 1 };
    writer.edge(libc::NFNL_MSG_BATCH_BEGIN, Some(generation));
    let table = nftnl::Table::new(c_text(TABLE), ProtoFamily::Inet);
    if changes.delete_table {
        writer.push(&table, MsgType::Del, Subject::Table);
    }
    if changes.add_table {
        writer.push(&table, MsgType::Add, Subject::Table);
    }
    for name in &changes.empty_chains {
        let chain = nftnl::Chain::new(c_text(name), &table);
        writer.push(&nftnl::Rule::new(&chain), MsgType::Del, Subject::Chain(name));
    }
    for elements in &changes.delete_elements {
        writer.delete_elements(elements);
    }
    for name in &changes.delete_chains {
        let chain = nftnl::Chain::new(c_text(name), &table);
        writer.push(&chain, MsgType::Del, Subject::Chain(name));
    }
    for name in &changes.delete_maps {
        writer.delete_map(name);
    }
    for (name, shape) in &changes.add_maps {
        writer.add_map(name, shape);
    }
    for (name, chain) in &changes.add_chains {
        writer.push(&chain_object(name, chain, &table), MsgType::Add, Subject::Chain(name));
    }
    for elements in &changes.add_elements {
        writer.add_elements(elements);
    }
    for (name, rules) in &changes.add_rules {
        let chain = nftnl::Chain::new(c_text(name), &table);
        for rule in rules {
            writer.push(&rule_object(rule, &chain), MsgType::Add, Subject::Rule(name, rule));
        }
    }
    writer.finish()
}

fn chain_object<'a>(name: &str, chain: &Chain, table: &'a nftnl::Table) -> nftnl::Chain<'a> {
    let mut object = nftnl::Chain::new(c_text(name), table);
    if let Some(base) = chain.base {
        let hook = match base.hook {
            Hook::Prerouting => nftnl::Hook::PreRouting,
            Hook::Forward => nftnl::Hook::Forward,
            Hook::Output => nftnl::Hook::Out,
            Hook::Postrouting => nftnl::Hook::PostRouting,
        };
        object.set_hook(hook, base.priority);
        object.set_type(match base.chain_type {
            ChainType::Filter => nftnl::ChainType::Filter,
            ChainType::Nat => nftnl::ChainType::Nat,
        });
        object.set_policy(nftnl::Policy::Accept);
    }
    object
}

fn rule_object<'a>(rule: &Rule, chain: &'a nftnl::Chain<'a>) -> nftnl::Rule<'a> {
    let mut object = nftnl::Rule::new(chain);
    for expr in &rule.exprs {
        object.add_expr(expr);
    }
    if let Some(comment) = &rule.comment {
        // At most 32 bytes of a set's name, a word, 15 of an interface and 28 of a chain: it always fits.
        let fits = object.set_comment(c_text(comment));
        debug_assert!(fits.is_ok(), "{comment}");
    }
    object
}

impl nftnl::expr::Expression for Expr {
    fn to_expr(&self, _rule: &nftnl::Rule) -> NonNull<sys::nftnl_expr> {
        let mut expr = ffi::Expression::new(self.name());
        for (attribute, value) in self.attributes() {
            match value {
                Value::U32(number) => expr.number(attribute, number),
                Value::Bytes(bytes) => expr.bytes(attribute, &bytes),
                Value::Name(name) => expr.text(attribute, &name),
            }
        }
        expr.pointer()
    }
}

/// Writes messages one behind the other and numbers them from 1.
struct Writer<'a> {
    batch: Batch<'a>,
    buffer: Buffer,
    next: u32,
}

impl<'a> Writer<'a> {
    fn edge(&mut self, kind: i32, generation: Option<u32>) {
        let kind = u16::try_from(kind).unwrap_or(0);
        self.write(kind, 0, netfilter_header(0, KIND >> 8), Subject::Batch, |body| {
            if let Some(generation) = generation {
                put_attribute(body, BATCH_GENERATION, &generation.to_be_bytes());
            }
        });
    }

    /// Writes an object of libnftnl.
    fn push(&mut self, message: &impl NlMsg, kind: MsgType, subject: Subject<'a>) {
        let bytes = self.buffer.write(message, self.next, kind).to_vec();
        self.append(&bytes, subject);
    }

    fn add_map(&mut self, name: &'a str, shape: &Shape) {
        let id = self.next;
        self.object(libc::NFT_MSG_NEWSET, NEW, Subject::Map(name), |body| {
            put_text(body, key::SET_TABLE, TABLE);
            put_text(body, key::SET_NAME, name);
            let number = |body: &mut Vec<u8>, kind, number: u32| put_attribute(body, kind, &number.to_be_bytes());
            let flags = if shape.data.is_empty() { 0 } else { libc::NFT_SET_MAP.unsigned_abs() };
            number(body, key::SET_FLAGS, flags);
            number(body, key::SET_KEY_TYPE, Shape::type_id(&shape.key));
            number(body, key::SET_KEY_LENGTH, Shape::length(&shape.key).into());
            if !shape.data.is_empty() {
                number(body, key::SET_DATA_TYPE, Shape::type_id(&shape.data));
                number(body, key::SET_DATA_LENGTH, Shape::length(&shape.data).into());
            }
            number(body, key::SET_ID, id);
            put_nested(body, key::SET_EXPRESSION, |counter| put_text(counter, key::EXPRESSION_NAME, "counter"));
        });
    }

    fn delete_map(&mut self, name: &'a str) {
        self.object(libc::NFT_MSG_DELSET, 0, Subject::Map(name), |body| {
            put_text(body, key::SET_TABLE, TABLE);
            put_text(body, key::SET_NAME, name);
        });
    }

    fn add_elements(&mut self, elements: &'a Elements) {
        self.elements(libc::NFT_MSG_NEWSETELEM, NEW, elements, |body, element| {
            if !element.data.is_empty() {
                put_nested(body, key::ELEMENT_DATA, |data| put_attribute(data, key::DATA_VALUE, &element.data));
            }
            let user_data = user_data::write(&element.comment, element.span);
            if !user_data.is_empty() {
                put_attribute(body, key::ELEMENT_USER_DATA, &user_data);
            }
        });
    }

    fn delete_elements(&mut self, elements: &'a Elements) {
        self.elements(libc::NFT_MSG_DELSETELEM, 0, elements, |_, _| {});
    }

    /// Writes elements: their keys, and the attributes that `put` appends.
    fn elements(&mut self, kind: i32, flags: u16, elements: &'a Elements, put: impl Fn(&mut Vec<u8>, &Element)) {
        for some in elements.elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.object(kind, flags, Subject::Elements(&elements.map, some), |body| {
                put_text(body, key::ELEMENTS_TABLE, TABLE);
                put_text(body, key::ELEMENTS_SET, &elements.map);
                put_nested(body, key::ELEMENTS_LIST, |list| {
                    for (bytes, element) in some {
                        put_nested(list, key::ELEMENT, |body| {
                            put_nested(body, key::ELEMENT_KEY, |data| put_attribute(data, key::DATA_VALUE, &bytes.0));
                            put(body, element);
                        });
                    }
                });
            });
        }
    }

    /// Writes a message about an object of table `inet portfwd`.
    fn object(&mut self, kind: i32, flags: u16, subject: Subject<'a>, put: impl FnOnce(&mut Vec<u8>)) {
        let family = u8::try_from(libc::NFPROTO_INET).unwrap_or(0);
        let kind = KIND | u16::try_from(kind).unwrap_or(0);
        self.write(kind, flags, netfilter_header(family, 0), subject, put);
    }

    fn write(
        &mut self,
        kind: u16,
        flags: u16,
        header: [u8; HEADER],
        subject: Subject<'a>,
        put: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut body = header.to_vec();
        put(&mut body);
        let mut bytes = Vec::new();
        put_message(&mut bytes, kind, flags, self.next, &body);
        self.append(&bytes, subject);
    }

    /// Appends a message; no message asks for an acknowledgement until [`Writer::finish`] says so.
    fn append(&mut self, message: &[u8], subject: Subject<'a>) {
        let start = self.batch.bytes.len();
        self.batch.bytes.extend(message);
        self.set_ack(start, false);
        let kind = message.get(4..6).and_then(|kind| kind.try_into().ok()).map_or(0, u16::from_ne_bytes);
        let end = self.batch.bytes.len();
        self.batch.bytes.resize(end.next_multiple_of(4), 0);
        self.batch.entries.push(Entry { seq: self.next, start, end, kind, subject });
        self.next += 1;
    }

    fn set_ack(&mut self, start: usize, on: bool) {
        if let Some(flags) = self.batch.bytes.get_mut(start + 6..start + 8)
            && let Ok(now) = <[u8; 2]>::try_from(&*flags)
        {
            let now = u16::from_ne_bytes(now) | flag::REQUEST;
            let now = if on { now | flag::ACK } else { now & !flag::ACK };
            flags.copy_from_slice(&now.to_ne_bytes());
        }
    }

    fn finish(mut self) -> Batch<'a> {
        if let Some(last) = self.batch.entries.last() {
            self.set_ack(last.start, true);
        }
        self.edge(libc::NFNL_MSG_BATCH_END, None);
        self.batch
    }
}

/// The flags of a message that adds what must not exist yet.
const NEW: u16 = flag::CREATE | flag::EXCL;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Asked, Counter, Forward, PortMap, PortRange, RuleSet, SetName};
    use crate::nft::compile::compile;
    use crate::nft::diff::diff;
    use crate::nft::program::Program;
    use crate::nft::user_data::Span;
    use crate::sys::netlink::Message;

    fn asked(listens: impl IntoIterator<Item = String>) -> Program {
        let mut set = RuleSet::new(SetName::cli());
        for listen in listens {
            set.forwards.push(Forward::new(listen.parse().expect("listen"), "10.0.0.1".parse().expect("target")));
        }
        let mut asked = Asked::default();
        asked.add(&set).expect("valid");
        compile(&asked).expect("compiles")
    }

    #[test]
    fn one_more_forward_is_one_element() {
        let before = asked((1000..2000).map(|port| port.to_string()));
        let after = asked((1000..2001).map(|port| port.to_string()));
        let changes = diff(&before, &after);
        let batch = encode(&changes, 7);
        assert_eq!(batch.message_count(), 3);
        assert!(matches!(batch.subject(2), Some(Subject::Elements(_, elements)) if elements.len() == 1));
        assert!(batch.bytes().len() < 200, "{}", batch.bytes().len());
    }

    #[test]
    fn the_generation_is_in_the_first_message_and_the_last_is_acknowledged() {
        let changes = diff(&Program::default(), &asked(["80".into()]));
        let batch = encode(&changes, 0x0102_0304);
        assert_eq!(batch.bytes()[20..28], [8, 0, 1, 0, 1, 2, 3, 4]);
        let mut moved = batch.clone();
        moved.move_to(0x0506_0708);
        assert_eq!(moved, encode(&changes, 0x0506_0708));
        let acks: Vec<u32> = (batch.entries.iter())
            .filter(|entry| batch.bytes[entry.start + 6] & 4 > 0)
            .map(|entry| entry.seq)
            .collect();
        assert_eq!(acks, [batch.last()]);
    }

    #[test]
    fn the_largest_elements_fit_into_one_message() {
        let element = Element {
            data: [3; 20].into(),
            comment: "x".repeat(124).into(),
            span: Some(Span { ports: PortRange::new(1, 2).expect("range"), to: PortMap::Keep }),
            counter: Counter::default(),
        };
        let elements = vec![(Key([1; 64].into()), element); ELEMENTS_PER_MESSAGE + 1];
        let shape = Shape { key: Vec::new(), data: Vec::new() };
        let add_elements = vec![Elements { map: "m".into(), shape, elements }];
        let changes = Changes { add_elements, ..Changes::default() };
        let batch = encode(&changes, 1);
        let [_, full, last, _] = batch.entries.as_slice() else { panic!("{:?}", batch.entries) };
        let list = |entry: &Entry<'_>| {
            let (message, _) = Message::split(&batch.bytes[entry.start..entry.end]).expect("whole");
            message.attributes(HEADER).nested(key::ELEMENTS_LIST).expect("a list").iter().count()
        };
        assert_eq!((list(full), list(last)), (ELEMENTS_PER_MESSAGE, 1));
    }

    #[test]
    fn an_offset_names_the_element() {
        let program = asked((1..=400).map(|port| port.to_string()));
        let changes = diff(&Program::default(), &program);
        let batch = encode(&changes, 1);
        let entry =
            batch.entries.iter().find(|entry| matches!(entry.subject, Subject::Elements(..))).expect("elements");
        let Subject::Elements(_, elements) = &entry.subject else { panic!("elements") };
        let mut found = Vec::new();
        for offset in (0..).step_by(4) {
            match batch.element_at(entry.seq, offset) {
                Some((_, key, _)) => found.push(key),
                None => break,
            }
        }
        found.dedup();
        assert_eq!(found, elements.iter().map(|(key, _)| key).collect::<Vec<_>>());
        assert_eq!(batch.element_at(entry.seq, u32::MAX), None);
    }
}
