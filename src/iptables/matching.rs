//! Writes and reads the matches of extensions, in the syntax of iptables-extensions(8).

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use super::quoting::{self, Words};
use crate::model::Family;

/// The conntrack states in a `--ctstate` match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum States {
    /// Packets of a connection before its first reply.
    New,
    /// Packets that belong to no established connection.
    NotEstablished,
}

impl States {
    fn text(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::NotEstablished => "INVALID,NEW,UNTRACKED",
        }
    }
}

/// A match of an iptables extension. The variants are in the order of the matches in a rule's text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// The destination is one of this host's addresses.
    LocalDestination,
    /// Any source address of the family, written as a range. iptables omits `-s 0.0.0.0/0`, but keeps the range.
    AnySource,
    /// The source or destination address is in a range.
    Range {
        /// True for the source, false for the destination.
        source: bool,
        /// The lowest address.
        first: IpAddr,
        /// The highest address.
        last: IpAddr,
    },
    /// The connection is in one of the given states.
    State(States),
    /// The connection has a label.
    Label {
        /// The number of the label.
        bit: u8,
        /// True if the match is negated with `!`.
        not: bool,
    },
    /// Always matches, and sets a label of the connection.
    SetLabel(u8),
    /// Always matches. Contains a comment: the name of the rule set and a remark.
    Comment(Arc<str>),
}

impl Match {
    /// Appends the match as text, with a space before each word.
    pub(super) fn write(&self, family: Family, out: &mut String) -> fmt::Result {
        match self {
            Self::LocalDestination => out.write_str(" -m addrtype --dst-type LOCAL"),
            Self::AnySource => write!(out, " -m iprange --src-range {}", all_addresses(family)),
            Self::Range { source, first, last } => {
                write!(out, " -m iprange --{}-range {first}-{last}", if *source { "src" } else { "dst" })
            }
            Self::State(states) => write!(out, " -m conntrack --ctstate {}", states.text()),
            Self::Label { bit, not } => {
                write!(out, " -m connlabel{} --label {bit}", if *not { " !" } else { "" })
            }
            Self::SetLabel(bit) => write!(out, " -m connlabel --label {bit} --set"),
            Self::Comment(text) => {
                out.push_str(" -m comment --comment ");
                quoting::push_quoted(text, out);
                Ok(())
            }
        }
    }

    /// Reads a match from the words after `-m NAME`. The inverse of [`Match::write`]. Returns `None` if portfwd does
    /// not write such a match.
    pub(super) fn read(name: &str, words: &mut Words<'_>, family: Family, names: &LabelNames) -> Option<Self> {
        match name {
            "addrtype" if words.take_if("--dst-type") => (words.next()? == "LOCAL").then_some(Self::LocalDestination),
            "iprange" if words.take_if("--src-range") => Self::range(words.next()?, true, family),
            "iprange" if words.take_if("--dst-range") => Self::range(words.next()?, false, family),
            "conntrack" if words.take_if("--ctstate") => {
                let text = words.next()?;
                [States::New, States::NotEstablished].into_iter().find(|states| states.text() == text).map(Self::State)
            }
            "connlabel" => {
                let not = words.take_if("!");
                let bit = if words.take_if("--label") { names.bit(words.next()?)? } else { return None };
                match (not, words.take_if("--set")) {
                    (false, true) => Some(Self::SetLabel(bit)),
                    (not, false) => Some(Self::Label { bit, not }),
                    (true, true) => None,
                }
            }
            "comment" if words.take_if("--comment") => Some(Self::Comment(words.next()?.into())),
            _ => None,
        }
    }

    fn range(text: &str, source: bool, family: Family) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
        if Family::of_address(first) != family || Family::of_address(last) != family {
            return None;
        }
        // The comparison uses printed addresses, so every spelling of an address in `text` matches.
        let all = source && format!("{first}-{last}") == all_addresses(family);
        Some(if all { Self::AnySource } else { Self::Range { source, first, last } })
    }
}

/// Returns the range of all addresses of a family as text.
fn all_addresses(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "0.0.0.0-255.255.255.255",
        Family::Ipv6 => "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

/// The label names of this host, from connlabel.conf. iptables-save prints these names instead of label numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelNames(Vec<(String, u8)>);

impl LabelNames {
    /// Reads lines of the form `BIT NAME` and ignores all other lines.
    pub fn read(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let bit = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), bit))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn bit(&self, text: &str) -> Option<u8> {
        let named = self.0.iter().find(|(name, _)| name == text).map(|(_, bit)| *bit);
        named.or_else(|| text.parse().ok())
    }
}
