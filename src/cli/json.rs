//! The shapes of `--json`, one for each command that prints data. Every one carries `version`; a shape that changes in
//! a way that breaks readers gets the next number.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

use crate::engine::{Plan, Sign, Step, Words};
use crate::model::binding::TargetText;
use crate::model::error::is_invisible;
use crate::model::{Binding, Counter, Family, Owned, PortRange, SetName, Source};

/// The number of all shapes here.
pub const VERSION: u32 = 1;

/// What `list` prints.
#[derive(Debug, Serialize)]
pub struct List<'a> {
    /// [`VERSION`].
    pub version: u32,
    /// The generation of the rules that was read; null of iptables, which has none.
    pub generation: Option<u32>,
    /// In how many seconds all of it is taken back unless it is confirmed, 0 where that is over; null where nothing waits.
    pub confirm_within: Option<u64>,
    /// The forwards.
    pub forwards: &'a [Listed<'a>],
    /// The networks.
    pub networks: Vec<Other>,
    /// The masquerades.
    pub masquerades: Vec<Other>,
    /// The source NAT.
    pub snats: Vec<Other>,
    /// The 1:1 translations.
    pub netmaps: Vec<Other>,
}

/// A forward that is listed, described when it is printed: where there are thousands, one at a time is in memory.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// The forward, and the rule set that it belongs to.
    pub owned: &'a Owned<Binding>,
    /// `live`, `missing` or `foreign`.
    pub state: &'static str,
    /// What it counted.
    pub counter: Counter,
}

impl Serialize for Listed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Forward::new(self).serialize(serializer)
    }
}

/// One forward of `list`.
#[derive(Serialize)]
struct Forward<'a> {
    /// The rule set that it belongs to.
    set: &'a str,
    /// `live`, `missing` or `foreign`.
    state: &'static str,
    /// The family of its packets.
    family: Family,
    /// The protocol.
    protocol: &'static str,
    /// The address it listens at; null: every address of this host.
    address: Option<std::net::IpAddr>,
    /// The ports it listens at, `80` or `8000-8010`.
    #[serde(serialize_with = "text")]
    ports: PortRange,
    /// Only what arrives here.
    interface: Option<&'a str>,
    /// Only these clients.
    from: Option<ipnetwork::IpNetwork>,
    /// Where it leads, `172.17.0.3:80`.
    #[serde(serialize_with = "text")]
    to: TargetText<'a>,
    /// What the target sees as the client: `keep`, `masquerade` or an address.
    #[serde(serialize_with = "text")]
    source: Source,
    /// Whether clients in the target's own network are masqueraded.
    hairpin: bool,
    /// Whether it also serves this host at its loopback addresses.
    loopback: bool,
    /// The remark.
    comment: Option<&'a str>,
    /// New connections that met it.
    packets: u64,
    /// Bytes of their first packets.
    bytes: u64,
}

impl<'a> Forward<'a> {
    /// Describes one.
    fn new(listed: &Listed<'a>) -> Self {
        let Listed { owned, state, counter } = *listed;
        let binding = &owned.rule;
        Self {
            set: owned.set.as_str(),
            state,
            family: binding.family,
            protocol: binding.protocol.name(),
            address: binding.address,
            ports: binding.ports,
            interface: binding.interface.as_ref().map(crate::model::IfName::as_str),
            from: binding.from,
            to: binding.target(),
            source: binding.source,
            hairpin: binding.hairpin,
            loopback: binding.loopback,
            comment: binding.comment.as_ref().map(crate::model::Comment::as_str),
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

/// Writes the text form of something without a copy of it.
fn text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// A network, masquerade, source NAT or 1:1 translation of `list`.
#[derive(Debug, Clone, Serialize)]
pub struct Other {
    /// The rule set that it belongs to.
    pub set: String,
    /// `live`, `missing` or `foreign`.
    pub state: &'static str,
    /// The rule.
    pub rule: String,
}

/// What `plan`, and every command that changes, prints.
#[derive(Debug, Serialize)]
pub struct Changes<'a> {
    /// [`VERSION`].
    pub version: u32,
    /// Whether it was only planned, or done.
    pub done: bool,
    /// What becomes of each rule.
    pub changes: Vec<Change<'a>>,
    /// In how many seconds it is taken back unless it is confirmed; left out where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_within: Option<u64>,
}

/// What becomes of one rule.
#[derive(Debug, Serialize)]
pub struct Change<'a> {
    /// `add`, `change` or `remove`.
    pub action: &'static str,
    /// The rule set.
    pub set: Option<&'a str>,
    /// The rule as it was.
    pub before: Option<String>,
    /// The rule as it will be.
    pub after: Option<String>,
}

impl<'a> Changes<'a> {
    /// No change of a rule, but of whether those that are there stay.
    pub fn confirmed(confirm_within: Option<u64>) -> Self {
        Self { version: VERSION, done: confirm_within.is_none(), changes: Vec::new(), confirm_within }
    }

    /// Describes a plan.
    pub fn new(plan: &'a Plan, done: bool) -> Self {
        Self { version: VERSION, done, changes: plan.steps.iter().map(Change::new).collect(), confirm_within: None }
    }
}

impl<'a> Change<'a> {
    fn new(step: &'a Step) -> Self {
        let action = match step.sign {
            Sign::Add => "add",
            Sign::Change => "change",
            Sign::Remove => "remove",
        };
        let text = |words: &Option<Words>| words.as_ref().map(ToString::to_string);
        let set = step.set.as_ref().map(SetName::as_str);
        Self { action, set, before: text(&step.before), after: text(&step.after) }
    }
}

/// Prints a shape on a line of its own.
pub fn print(value: &impl Serialize, to: &mut dyn Write) -> io::Result<()> {
    let mut to = pieces(to);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut to, Visible))?;
    writeln!(to)?;
    to.flush()
}

/// Has what is printed written in large pieces. Of stdout alone a piece is a kibibyte at most, or a line.
pub fn pieces(to: &mut dyn Write) -> BufWriter<&mut dyn Write> {
    BufWriter::with_capacity(64 * 1024, to)
}

/// JSON on one line in which characters that nobody sees are escaped: it may end on a terminal, and names and comments are of
/// anybody. serde_json escapes those below U+0020 by itself.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        // Most text is of characters that everybody sees, and that is soon told.
        if fragment.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return to.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_invisible(*c)) {
            let (plain, behind) = rest.split_at(at);
            to.write_all(plain.as_bytes())?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(to, "\\u{unit:04x}")?;
            }
            rest = behind.get(c.len_utf8()..).unwrap_or_default();
        }
        to.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_sees_is_escaped_and_read_back_as_it_was() {
        let text = "ü\"\\\n\u{7f}\u{9b}31m\u{202e}\u{200d}\u{e0041}\u{1f600}";
        let mut out = Vec::new();
        print(&text, &mut out).expect("printed");
        let out = String::from_utf8(out).expect("text");
        assert_eq!(out, "\"ü\\\"\\\\\\n\\u007f\\u009b31m\\u202e\\u200d\\udb40\\udc41\u{1f600}\"\n");
        assert_eq!(serde_json::from_str::<String>(&out).expect("JSON"), text);
    }
}
