//! A batch of netlink messages. The kernel commits a batch as one transaction.
//!
//! If the kernel refuses a message, it reports the message's number and the position of the fault. The batch finds the
//! object of the program at that position.

use nftnl_sys::libc;

use super::message::{HEADER, key};
use super::program::{Element, Key, Rule, TABLE};
use crate::sys::netlink::message::{self, put_message_with};
use crate::sys::netlink::{Attributes, Message, flag};

/// The object that a netlink message adds or deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The message that begins or ends the batch.
    Batch,
    /// portfwd's table, `inet portfwd`.
    Table,
    /// A chain, or all rules of a chain.
    Chain(&'a str),
    /// A rule, with the name of its chain.
    Rule(&'a str, &'a Rule),
    /// The name of a map.
    Map(&'a str),
    /// The name of a map and some of its elements, in the order of the message.
    Elements(&'a str, &'a [(Key, Element)]),
}

/// The sequence number, the byte range, the type and the subject of a netlink message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry<'a> {
    seq: u32,
    start: usize,
    end: usize,
    kind: u16,
    subject: Subject<'a>,
}

/// A batch of netlink messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch<'a> {
    bytes: Vec<u8>,
    entries: Vec<Entry<'a>>,
}

impl<'a> Batch<'a> {
    /// Returns the sequence number of the next message. The first message has number 1.
    pub(super) fn next(&self) -> u32 {
        u32::try_from(self.entries.len() + 1).unwrap_or(u32::MAX)
    }

    /// Appends a message to the batch. `put` writes the body of the message.
    pub(super) fn write(&mut self, kind: u16, flags: u16, subject: Subject<'a>, put: impl FnOnce(&mut Vec<u8>)) {
        let (start, seq) = (self.bytes.len(), self.next());
        put_message_with(&mut self.bytes, kind, flags | flag::REQUEST, seq, put);
        self.entries.push(Entry { seq, start, end: self.bytes.len(), kind, subject });
    }

    /// Sets `NLM_F_ACK` in the last message, so that the kernel acknowledges this message.
    pub(super) fn acknowledge(&mut self) {
        let start = self.entries.last().map_or(0, |entry| entry.start);
        if let Some((message, _)) = self.bytes.get(start..).and_then(Message::split) {
            let flags = message.flags | flag::ACK;
            if let Some(place) = self.bytes.get_mut(start + 6..start + 8) {
                place.copy_from_slice(&flags.to_ne_bytes());
            }
        }
    }
}

impl Batch<'_> {
    /// Returns the messages of the batch as bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes a new generation into the batch. The caller must ensure that the changes are valid at this generation.
    pub fn move_to(&mut self, generation: u32) {
        // Bytes 24 to 27 of a batch contain the generation.
        if let Some(number) = self.bytes.get_mut(24..28) {
            number.copy_from_slice(&generation.to_be_bytes());
        }
    }

    /// Returns the number of messages in the batch, including the begin and end messages.
    pub fn message_count(&self) -> usize {
        self.entries.len()
    }

    /// Returns the sequence number of the message that the kernel acknowledges after the commit.
    pub fn last(&self) -> u32 {
        self.entries.iter().rev().nth(1).map_or(0, |entry| entry.seq)
    }

    /// Returns the subject of the message with the sequence number `seq`.
    pub fn subject(&self, seq: u32) -> Option<&Subject<'_>> {
        self.entries.iter().find(|entry| entry.seq == seq).map(|entry| &entry.subject)
    }

    /// Returns the element at byte `offset` of a message. The kernel reports such an offset for a refused element.
    pub fn element_at(&self, seq: u32, offset: u32) -> Option<(&str, &Key, &Element)> {
        let entry = self.entries.iter().find(|entry| entry.seq == seq)?;
        let Subject::Elements(map, elements) = &entry.subject else { return None };
        let index = element_index(self.bytes.get(entry.start..entry.end)?, usize::try_from(offset).ok()?)?;
        let (key, element) = elements.get(index)?;
        Some((map, key, element))
    }

    /// Returns one line of text for each message, with number, size and subject. The option `-v` prints these lines.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.entries.iter().map(|entry| {
            let size = entry.end - entry.start;
            let deletes = [libc::NFT_MSG_DELTABLE, libc::NFT_MSG_DELCHAIN, libc::NFT_MSG_DELRULE];
            let deletes_more = [libc::NFT_MSG_DELSET, libc::NFT_MSG_DELSETELEM];
            let is_kind = |message: &i32| i32::from(entry.kind & 0xff) == *message;
            let verb = if deletes.iter().chain(&deletes_more).any(is_kind) { "delete" } else { "add" };
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

/// Returns the index of the first element that ends after byte `offset` of the message.
fn element_index(message: &[u8], offset: usize) -> Option<usize> {
    let header = message::HEADER + HEADER;
    let mut attributes = Attributes::behind(message, header).spans();
    let (end, _, list) = attributes.find(|(_, kind, _)| *kind == key::ELEMENTS_LIST)?;
    let start = header + end - list.len();
    Attributes::new(list).spans().position(|(end, _, _)| offset < start + end)
}
