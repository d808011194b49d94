//! Encodes changes as one batch of netlink messages.
//!
//! ```text
//! batch begin (generation)  delete/add table  delete rules  delete elements  delete chains  delete maps
//!                           add maps  add chains  add elements  add rules  batch end
//! ```
//! A message contains up to 180 elements, or one object of another kind. The kernel acknowledges only the last change.
//! libnftnl writes tables, chains and rules. This file writes maps and elements, because `nftnl` has no maps with data.
//!
//! Be aware: [`super::decode`] reads the encoded objects back. A test compares the encoder with the decoder, with a
//! kernel in between.

use std::ptr::NonNull;

use nftnl::{MsgType, NlMsg, ProtoFamily};
use nftnl_sys::{self as sys, libc};

use super::batch::{Batch, Subject};
use super::diff::{Changes, Elements};
use super::expr::{Expr, Value};
use super::message::{KIND, key};
use super::program::{Chain, ChainType, Element, Hook, Rule, Shape, TABLE};
use super::user_data;
use crate::sys::ffi::{self, Buffer, c_text};
use crate::sys::netlink::message::netfilter_header;
use crate::sys::netlink::{Message, flag, put_attribute, put_nested, put_text};

/// The attribute with the generation for which the batch is valid. Source: `NFNL_BATCH_GENID` in
/// include/uapi/linux/netfilter/nfnetlink.h.
const BATCH_GENERATION: u16 = 1;

/// The number of elements that always fit into one message. An element has at most 260 bytes: a key of 64 bytes, data
/// of 20 bytes, user data of 136 bytes, and their headers. The attribute with the list of elements has at most 65,535
/// bytes.
const ELEMENTS_PER_MESSAGE: usize = 180;

/// Encodes changes as a batch for one generation of the rules. The kernel refuses the batch at any other generation.
pub fn encode(changes: &Changes, generation: u32) -> Batch<'_> {
    let mut writer = Writer { batch: Batch::default(), buffer: Buffer::new() };
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
    writer.batch.acknowledge();
    writer.edge(libc::NFNL_MSG_BATCH_END, None);
    writer.batch
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
        // A rule comment always fits. It has at most a rule set name (32 bytes), a word, an interface name (15 bytes)
        // and a chain name (28 bytes).
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

/// A writer for the messages of a batch.
struct Writer<'a> {
    batch: Batch<'a>,
    buffer: Buffer,
}

impl<'a> Writer<'a> {
    /// Writes the message that begins or ends the batch.
    fn edge(&mut self, kind: i32, generation: Option<u32>) {
        self.batch.write(u16::try_from(kind).unwrap_or(0), 0, Subject::Batch, |body| {
            body.extend(netfilter_header(0, KIND >> 8));
            if let Some(generation) = generation {
                put_attribute(body, BATCH_GENERATION, &generation.to_be_bytes());
            }
        });
    }

    /// Writes an object of libnftnl as a message. The message does not request an acknowledgement.
    fn push(&mut self, message: &impl NlMsg, kind: MsgType, subject: Subject<'a>) {
        let bytes = self.buffer.write(message, self.batch.next(), kind);
        if let Some((message, _)) = Message::split(bytes) {
            self.batch.write(message.kind, message.flags & !flag::ACK, subject, |body| body.extend(message.body));
        }
    }

    fn add_map(&mut self, name: &'a str, shape: &Shape) {
        let id = self.batch.next();
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

    /// Writes messages with the keys of elements. `put` appends more attributes to each element.
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

    /// Writes a message about an object of the table `inet portfwd`.
    fn object(&mut self, kind: i32, flags: u16, subject: Subject<'a>, put: impl FnOnce(&mut Vec<u8>)) {
        self.batch.write(KIND | u16::try_from(kind).unwrap_or(0), flags, subject, |body| {
            body.extend(netfilter_header(u8::try_from(libc::NFPROTO_INET).unwrap_or(0), 0));
            put(body);
        });
    }
}

/// The flags of a message that creates an object. The kernel refuses the message if the object exists.
const NEW: u16 = flag::CREATE | flag::EXCL;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Counter, DesiredState, Forward, PortMap, PortRange, RuleSet, SetName};
    use crate::nft::compile::compile;
    use crate::nft::diff::diff;
    use crate::nft::message::HEADER;
    use crate::nft::program::Key;
    use crate::nft::program::Program;
    use crate::nft::user_data::Span;
    use crate::sys::netlink::message::messages;

    fn desired(listens: impl IntoIterator<Item = String>) -> Program {
        let mut set = RuleSet::new(SetName::cli());
        for listen in listens {
            set.forwards.push(Forward::new(listen.parse().expect("listen"), "10.0.0.1".parse().expect("target")));
        }
        let mut desired = DesiredState::default();
        desired.add(&set).expect("valid");
        compile(&desired).expect("compiles")
    }

    #[test]
    fn one_more_forward_encodes_to_one_element() {
        let before = desired((1000..2000).map(|port| port.to_string()));
        let after = desired((1000..2001).map(|port| port.to_string()));
        let changes = diff(&before, &after);
        let batch = encode(&changes, 7);
        assert_eq!(batch.message_count(), 3);
        assert!(matches!(batch.subject(2), Some(Subject::Elements(_, elements)) if elements.len() == 1));
        assert!(batch.bytes().len() < 200, "{}", batch.bytes().len());
    }

    #[test]
    fn first_message_has_the_generation_and_last_change_is_acknowledged() {
        let changes = diff(&Program::default(), &desired(["80".into()]));
        let batch = encode(&changes, 0x0102_0304);
        assert_eq!(batch.bytes()[20..28], [8, 0, 1, 0, 1, 2, 3, 4]);
        let mut moved = batch.clone();
        moved.move_to(0x0506_0708);
        assert_eq!(moved, encode(&changes, 0x0506_0708));
        let numbers: Vec<u32> = messages(batch.bytes()).map(|message| message.seq).collect();
        assert_eq!(numbers, (1..=batch.last() + 1).collect::<Vec<_>>());
        let acks: Vec<u32> = messages(batch.bytes())
            .filter(|message| message.flags & flag::ACK > 0)
            .map(|message| message.seq)
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
        let lists: Vec<_> = messages(batch.bytes())
            .filter_map(|message| Some(message.attributes(HEADER).nested(key::ELEMENTS_LIST)?.iter().count()))
            .collect();
        assert_eq!(lists, [ELEMENTS_PER_MESSAGE, 1]);
    }

    #[test]
    fn a_byte_offset_in_a_message_identifies_the_element() {
        let program = desired((1..=400).map(|port| port.to_string()));
        let changes = diff(&Program::default(), &program);
        let batch = encode(&changes, 1);
        let subjects = (1..=batch.last()).filter_map(|seq| Some((seq, batch.subject(seq)?)));
        let mut elements = subjects.filter_map(|(seq, subject)| match subject {
            Subject::Elements(_, elements) => Some((seq, elements)),
            _ => None,
        });
        let (seq, elements) = elements.next().expect("elements");
        let mut found = Vec::new();
        for offset in (0..).step_by(4) {
            match batch.element_at(seq, offset) {
                Some((_, key, _)) => found.push(key),
                None => break,
            }
        }
        found.dedup();
        assert_eq!(found, elements.iter().map(|(key, _)| key).collect::<Vec<_>>());
        assert_eq!(batch.element_at(seq, u32::MAX), None);
    }
}
