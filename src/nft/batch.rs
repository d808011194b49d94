//! A batch of netlink messages that the kernel commits as one transaction, and the subject of each message.
//!
//! A refusal names a message by its number, and a place in it. The batch translates both to an object of the program.

use nftnl_sys::libc;

use super::message::{HEADER, key};
use super::program::{Element, Key, Rule, TABLE};
use crate::sys::netlink::message::{self, put_message_with};
use crate::sys::netlink::{Attributes, Message, flag};

/// The subject of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The message that begins or ends the batch.
    Batch,
    /// portfwd's table, `inet portfwd`.
    Table,
    /// A chain, or all rules of a chain.
    Chain(&'a str),
    /// A rule of a chain.
    Rule(&'a str, &'a Rule),
    /// A map, by its name.
    Map(&'a str),
    /// Elements of a map, in the order of the message.
    Elements(&'a str, &'a [(Key, Element)]),
}

/// The sequence number, the byte range and the subject of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry<'a> {
    seq: u32,
    start: usize,
    end: usize,
    kind: u16,
    subject: Subject<'a>,
}

/// A batch of messages.
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

    /// Writes a message: the header of the family and the attributes that `put` appends.
    pub(super) fn write(&mut self, kind: u16, flags: u16, subject: Subject<'a>, put: impl FnOnce(&mut Vec<u8>)) {
        let (start, seq) = (self.bytes.len(), self.next());
        put_message_with(&mut self.bytes, kind, flags | flag::REQUEST, seq, put);
        self.entries.push(Entry { seq, start, end: self.bytes.len(), kind, subject });
    }

    /// Requests an acknowledgement of the last message.
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
    /// Returns the bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Replaces the generation of the batch. The changes must be valid at the new generation.
    pub fn move_to(&mut self, generation: u32) {
        // The value of the first attribute of the first message.
        if let Some(number) = self.bytes.get_mut(24..28) {
            number.copy_from_slice(&generation.to_be_bytes());
        }
    }

    /// Returns the number of messages, including begin and end.
    pub fn message_count(&self) -> usize {
        self.entries.len()
    }

    /// Returns the sequence number of the message that the kernel acknowledges after the commit.
    pub fn last(&self) -> u32 {
        self.entries.iter().rev().nth(1).map_or(0, |entry| entry.seq)
    }

    /// Returns the subject of a message.
    pub fn subject(&self, seq: u32) -> Option<&Subject<'_>> {
        self.entries.iter().find(|entry| entry.seq == seq).map(|entry| &entry.subject)
    }

    /// Returns the element at a position in a message: the position that the kernel reports for a refused element.
    pub fn element_at(&self, seq: u32, offset: u32) -> Option<(&str, &Key, &Element)> {
        let entry = self.entries.iter().find(|entry| entry.seq == seq)?;
        let Subject::Elements(map, elements) = &entry.subject else { return None };
        let index = element_index(self.bytes.get(entry.start..entry.end)?, usize::try_from(offset).ok()?)?;
        let (key, element) = elements.get(index)?;
        Some((map, key, element))
    }

    /// Returns a line for each message, for `-v`: number, size and subject.
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

/// Returns the index of the first element of a message that ends behind `offset`.
fn element_index(message: &[u8], offset: usize) -> Option<usize> {
    let header = message::HEADER + HEADER;
    let mut attributes = Attributes::behind(message, header).spans();
    let (end, _, list) = attributes.find(|(_, kind, _)| *kind == key::ELEMENTS_LIST)?;
    let start = header + end - list.len();
    Attributes::new(list).spans().position(|(end, _, _)| offset < start + end)
}
