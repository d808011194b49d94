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

use std::ffi::CString;

use nftnl::{MsgType, NlMsg, ProtoFamily};
use nftnl_sys::libc;

use super::diff::{Changes, Elements};
use super::ffi::{Buffer, ELEMENTS_PER_MESSAGE, ElementsJob, ElementsMessage, MapMessage};
use super::program::{Chain, ChainType, Element, Hook, Key, Rule, TABLE};
use crate::sys::netlink::{message, put_attribute};

/// `NFNL_BATCH_GENID` in include/uapi/linux/netfilter/nfnetlink.h: the generation that the batch was made for.
const BATCH_GENERATION: u16 = 1;

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

/// Which element of a message begins at or before `offset` and ends behind it.
fn element_index(message: &[u8], offset: usize) -> Option<usize> {
    const LIST: u16 = 3; // NFTA_SET_ELEM_LIST_ELEMENTS
    let mut at = 20;
    loop {
        let (length, kind) = attribute(message, at)?;
        if kind & 0x3fff == LIST {
            break;
        }
        at += length.next_multiple_of(4);
    }
    at += 4;
    let mut index = 0;
    loop {
        let (length, _) = attribute(message, at)?;
        if offset < at + length {
            return Some(index);
        }
        at += length.next_multiple_of(4);
        index += 1;
    }
}

/// Length and type of the attribute at `at`.
pub(super) fn attribute(message: &[u8], at: usize) -> Option<(usize, u16)> {
    let head: [u8; 4] = message.get(at..at.checked_add(4)?)?.try_into().ok()?;
    let [a, b, c, d] = head;
    let length = usize::from(u16::from_ne_bytes([a, b]));
    (length >= 4 && at + length <= message.len()).then_some((length, u16::from_ne_bytes([c, d])))
}

/// Encodes changes that were decided on at `generation`; the kernel refuses them at any other.
pub fn encode(changes: &Changes, generation: u32) -> Batch<'_> {
    encode_in(&mut Buffer::new(), changes, generation)
}

/// The same, each message first in a buffer that is there.
pub(super) fn encode_in<'a>(buffer: &mut Buffer, changes: &'a Changes, generation: u32) -> Batch<'a> {
    let mut writer = Writer { batch: Batch { bytes: Vec::new(), entries: Vec::new() }, buffer, next: 1 };
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
        writer.elements(elements, ElementsJob::Delete);
    }
    for name in &changes.delete_chains {
        let chain = nftnl::Chain::new(c_text(name), &table);
        writer.push(&chain, MsgType::Del, Subject::Chain(name));
    }
    for name in &changes.delete_maps {
        let shape = super::program::Shape { key: Vec::new(), data: Vec::new() };
        writer.map(name, &shape, MsgType::Del);
    }
    for (name, shape) in &changes.add_maps {
        writer.map(name, shape, MsgType::Add);
    }
    for (name, chain) in &changes.add_chains {
        writer.push(&chain_object(name, chain, &table), MsgType::Add, Subject::Chain(name));
    }
    for elements in &changes.add_elements {
        writer.elements(elements, ElementsJob::Add);
    }
    for (name, rules) in &changes.add_rules {
        let chain = nftnl::Chain::new(c_text(name), &table);
        for rule in rules {
            writer.push(&rule_object(rule, &chain), MsgType::Add, Subject::Rule(name, rule));
        }
    }
    writer.finish()
}

/// Our names hold no zero bytes: they are validated text, or were read from a kernel as text with a closing zero.
pub(super) fn c_text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
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

/// Writes messages one behind the other and numbers them from 1.
struct Writer<'a, 'b> {
    batch: Batch<'a>,
    buffer: &'b mut Buffer,
    next: u32,
}

impl<'a> Writer<'a, '_> {
    fn edge(&mut self, kind: i32, generation: Option<u32>) {
        let mut attributes = Vec::new();
        if let Some(generation) = generation {
            put_attribute(&mut attributes, BATCH_GENERATION, &generation.to_be_bytes());
        }
        let kind = u16::try_from(kind).unwrap_or(0);
        let resource = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or(0);
        let bytes = message(kind, request_flags(), 0, resource, self.next, &attributes);
        self.append(&bytes, Subject::Batch);
    }

    fn push(&mut self, message: &impl NlMsg, kind: MsgType, subject: Subject<'a>) {
        let bytes = self.buffer.write(message, self.next, kind).to_vec();
        self.append(&bytes, subject);
    }

    fn map(&mut self, name: &'a str, shape: &super::program::Shape, kind: MsgType) {
        let id = self.next;
        let message = MapMessage { table: &c_text(TABLE), name: &c_text(name), id, shape };
        self.push(&message, kind, Subject::Map(name));
    }

    fn elements(&mut self, elements: &'a Elements, job: ElementsJob) {
        for chunk in elements.elements.chunks(ELEMENTS_PER_MESSAGE) {
            let message = ElementsMessage { table: &c_text(TABLE), map: &c_text(&elements.map), job, elements: chunk };
            let kind = if job == ElementsJob::Delete { MsgType::Del } else { MsgType::Add };
            self.push(&message, kind, Subject::Elements(&elements.map, chunk));
        }
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
        let ack = u16::try_from(libc::NLM_F_ACK).unwrap_or(0);
        if let Some(flags) = self.batch.bytes.get_mut(start + 6..start + 8)
            && let Ok(now) = <[u8; 2]>::try_from(&*flags)
        {
            let now = u16::from_ne_bytes(now);
            let flags_now = if on { now | ack } else { now & !ack };
            flags.copy_from_slice(&(flags_now | request_flags()).to_ne_bytes());
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

fn request_flags() -> u16 {
    u16::try_from(libc::NLM_F_REQUEST).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Asked, Forward, RuleSet, SetName};
    use crate::nft::compile::compile;
    use crate::nft::diff::diff;
    use crate::nft::program::Program;

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
