//! The JSON output of commands. Each output has a `version`, which increases with every incompatible change.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

use crate::engine::{Plan, Sign, Step, Words};
use crate::model::binding::TargetText;
use crate::model::error::is_invisible;
use crate::model::{Binding, Counter, Family, PortRange, SetName, Source};

/// The version of the JSON output of all commands.
pub const VERSION: u32 = 1;

/// The JSON output of `list`.
#[derive(Debug, Serialize)]
pub struct List<'a> {
    /// The version of the JSON format, [`VERSION`].
    pub version: u32,
    /// The nftables generation of the live rules; null with iptables, which has none.
    pub generation: Option<u32>,
    /// Seconds until the rollback of the pending change. 0 after the deadline; null if no change is pending.
    pub confirm_within: Option<u64>,
    /// Live forwards, followed by the missing ones.
    pub forwards: &'a [Listed<'a>],
    /// Rules of `[[network]]`.
    pub networks: Vec<Other>,
    /// Rules of `[[masquerade]]`.
    pub masquerades: Vec<Other>,
    /// Rules of `[[snat]]`.
    pub snats: Vec<Other>,
    /// Rules of `[[netmap]]`.
    pub netmaps: Vec<Other>,
    /// The chains of table `inet portfwd` that lack rules.
    pub damaged_chains: Vec<&'a str>,
}

/// A forward in a list. It becomes JSON only when it is printed, which saves memory with thousands of forwards.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// The name of the rule set. An element of another program has none.
    pub set: Option<&'a SetName>,
    /// The forward.
    pub rule: &'a Binding,
    /// The state of the rule: `live`, `ineffective`, `missing` or `foreign`.
    pub state: &'static str,
    /// The reason that an `ineffective` forward has no effect.
    pub reason: Option<&'a str>,
    /// The packet and byte counters of the forward; zero if the forward is missing.
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
    /// The rule set; null for an element that another program added to a map of portfwd.
    set: Option<&'a str>,
    /// The state of the rule: `live`, `ineffective`, `missing` or `foreign`.
    state: &'static str,
    /// The reason that an `ineffective` forward has no effect; otherwise null.
    reason: Option<&'a str>,
    family: Family,
    protocol: &'static str,
    /// The destination address; null matches every address of this host.
    address: Option<std::net::IpAddr>,
    /// The destination ports, such as `80` or `8000-8010`.
    #[serde(serialize_with = "text")]
    ports: PortRange,
    /// The ingress interface; null matches all.
    interface: Option<&'a str>,
    /// The client prefix; null matches all.
    from: Option<ipnetwork::IpNetwork>,
    /// The target, such as `172.17.0.3:80`.
    #[serde(serialize_with = "text")]
    to: TargetText<'a>,
    /// The source that the target sees: `keep`, `masquerade` or an address.
    #[serde(serialize_with = "text")]
    source: Source,
    /// True if clients in the target's own network are masqueraded.
    hairpin: bool,
    /// True if the forward also serves clients on this host at loopback addresses.
    loopback: bool,
    comment: Option<&'a str>,
    /// The number of new connections.
    packets: u64,
    /// The size of the first packets of all connections, in bytes.
    bytes: u64,
}

impl<'a> Forward<'a> {
    fn new(listed: &Listed<'a>) -> Self {
        let Listed { set, rule: binding, state, reason, counter } = *listed;
        Self {
            set: set.map(SetName::as_str),
            state,
            reason,
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

/// Serializes the `Display` text of a value without a copy.
fn text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// A network, masquerade, snat or netmap of `list`.
#[derive(Debug, Clone, Serialize)]
pub struct Other {
    /// The name of the rule set.
    pub set: String,
    /// The state of the rule: `live`, `ineffective`, `missing` or `foreign`.
    pub state: &'static str,
    /// The reason that an `ineffective` rule has no effect; otherwise null.
    pub reason: Option<String>,
    /// The rule as text.
    pub rule: String,
}

/// The JSON output of `plan` and of all commands that change rules.
#[derive(Debug, Serialize)]
pub struct Changes<'a> {
    /// The version of the JSON format, [`VERSION`].
    pub version: u32,
    /// True if the changes were made, false if they were only planned.
    pub done: bool,
    /// One entry for each changed rule.
    pub changes: Vec<Change<'a>>,
    /// Seconds until the rollback of the pending change; left out if none is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_within: Option<u64>,
}

/// The change of one rule.
#[derive(Debug, Serialize)]
pub struct Change<'a> {
    /// The kind of change: `add`, `change` or `remove`.
    pub action: &'static str,
    /// The name of the rule set; null if the change belongs to none.
    pub set: Option<&'a str>,
    /// The old rule; null for `add`.
    pub before: Option<String>,
    /// The new rule; null for `remove`.
    pub after: Option<String>,
}

impl<'a> Changes<'a> {
    /// Returns the output of `confirm`, which changes no rule.
    pub fn confirmed(confirm_within: Option<u64>) -> Self {
        Self { version: VERSION, done: confirm_within.is_none(), changes: Vec::new(), confirm_within }
    }

    /// Converts a plan. `done` is true after its commit.
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

/// Prints a value as one line of JSON.
pub fn print(value: &impl Serialize, to: &mut dyn Write) -> io::Result<()> {
    let mut to = buffered(to);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut to, Visible))?;
    writeln!(to)?;
    to.flush()
}

/// Wraps a writer in a buffer of 64 KiB, because stdout itself writes at most 1 KiB or one line at once.
pub fn buffered(to: &mut dyn Write) -> BufWriter<&mut dyn Write> {
    BufWriter::with_capacity(64 * 1024, to)
}

/// A compact JSON format that escapes invisible characters. Names and comments may come from untrusted sources, and a
/// terminal may print the JSON. serde_json itself escapes only characters below U+0020.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        // Fast path: most text is printable ASCII.
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
    fn invisible_characters_are_escaped_and_can_be_parsed_again() {
        let text = "ü\"\\\n\u{7f}\u{9b}31m\u{202e}\u{200d}\u{e0041}\u{1f600}";
        let mut out = Vec::new();
        print(&text, &mut out).expect("printed");
        let out = String::from_utf8(out).expect("text");
        assert_eq!(out, "\"ü\\\"\\\\\\n\\u007f\\u009b31m\\u202e\\u200d\\udb40\\udc41\u{1f600}\"\n");
        assert_eq!(serde_json::from_str::<String>(&out).expect("JSON"), text);
    }
}
