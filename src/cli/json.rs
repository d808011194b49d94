//! The shapes of `--json`, one for each command that prints data. Every one carries `version`; a shape that changes in
//! a way that breaks readers gets the next number.

use std::io::{self, Write};

use serde::Serialize;

use crate::engine::{Plan, Sign, Step, Words};
use crate::model::{Binding, Family, SetName};

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
    pub forwards: Vec<Forward<'a>>,
    /// The networks.
    pub networks: Vec<Other>,
    /// The masquerades.
    pub masquerades: Vec<Other>,
    /// The source NAT.
    pub snats: Vec<Other>,
    /// The 1:1 translations.
    pub netmaps: Vec<Other>,
}

/// One forward of `list`.
#[derive(Debug, Serialize)]
pub struct Forward<'a> {
    /// The rule set that it belongs to.
    pub set: &'a str,
    /// `live`, `missing` or `foreign`.
    pub state: &'static str,
    /// The family of its packets.
    pub family: Family,
    /// The protocol.
    pub protocol: &'static str,
    /// The address it listens at; null: every address of this host.
    pub address: Option<std::net::IpAddr>,
    /// The ports it listens at, `80` or `8000-8010`.
    pub ports: crate::model::PortRange,
    /// Only what arrives here.
    pub interface: Option<&'a str>,
    /// Only these clients.
    pub from: Option<ipnetwork::IpNetwork>,
    /// Where it leads, `172.17.0.3:80`.
    pub to: String,
    /// What the target sees as the client: `keep`, `masquerade` or an address.
    pub source: String,
    /// Whether clients in the target's own network are masqueraded.
    pub hairpin: bool,
    /// Whether it also serves this host at its loopback addresses.
    pub loopback: bool,
    /// The last three in words, where they are not as usual; for people.
    #[serde(skip)]
    pub options: String,
    /// The remark.
    pub comment: Option<&'a str>,
    /// New connections that met it.
    pub packets: u64,
    /// Bytes of their first packets.
    pub bytes: u64,
}

impl<'a> Forward<'a> {
    /// Describes a binding.
    pub fn new(set: &'a str, state: &'static str, binding: &'a Binding, packets: u64, bytes: u64) -> Self {
        Self {
            set,
            state,
            family: binding.family,
            protocol: binding.protocol.name(),
            address: binding.address,
            ports: binding.ports,
            interface: binding.interface.as_ref().map(crate::model::IfName::as_str),
            from: binding.from,
            to: binding.target().to_string(),
            source: binding.source.to_string(),
            hairpin: binding.hairpin,
            loopback: binding.loopback,
            options: binding.options().to_string(),
            comment: binding.comment.as_ref().map(crate::model::Comment::as_str),
            packets,
            bytes,
        }
    }
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
    // A terminal's lines are looked for in every piece otherwise, and a shape has millions.
    let mut to = io::BufWriter::with_capacity(1 << 16, to);
    serde_json::to_writer(&mut to, value)?;
    writeln!(to)?;
    to.flush()
}
