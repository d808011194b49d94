//! What a rule asks besides addresses, interfaces and ports: matches of extensions, in the words of iptables-extensions(8)
//! and back.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use super::words::{self, Words};
use crate::model::Family;

/// States of connection tracking, as `--ctstate` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum States {
    /// The first packet of a connection, and those before an answer.
    New,
    /// What does not belong to a connection that was let through before.
    Unknown,
}

impl States {
    fn text(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Unknown => "INVALID,NEW,UNTRACKED",
        }
    }
}

/// What a rule asks besides addresses, interfaces and ports; in the order of its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// The destination is one of this host's addresses.
    LocalDestination,
    /// The source is any of the family's. iptables leaves `-s 0.0.0.0/0` out; this it keeps.
    Everyone,
    /// An address is in this range.
    Range {
        /// Whether the source's; otherwise the destination's.
        source: bool,
        /// The lowest address.
        first: IpAddr,
        /// The highest.
        last: IpAddr,
    },
    /// The connection is in one of these states.
    State(States),
    /// The connection has this label, or has not.
    Label {
        /// The label's bit.
        bit: u8,
        /// Whether it must not be there.
        not: bool,
    },
    /// Always matches, and gives the connection this label.
    SetLabel(u8),
    /// Always matches; whose the rule is.
    Comment(Arc<str>),
}

impl Match {
    /// Adds its text, with a blank before each word.
    pub(super) fn write(&self, family: Family, out: &mut String) -> fmt::Result {
        match self {
            Self::LocalDestination => out.write_str(" -m addrtype --dst-type LOCAL"),
            Self::Everyone => write!(out, " -m iprange --src-range {}", everyone(family)),
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
                words::put(text, out);
                Ok(())
            }
        }
    }

    /// Reads the words behind `-m NAME`; the other direction of [`Match::write`]. `None` where they are not written as we
    /// write them.
    pub(super) fn read(name: &str, words: &mut Words<'_>, family: Family, names: &LabelNames) -> Option<Self> {
        match name {
            "addrtype" if words.takes("--dst-type") => (words.next()? == "LOCAL").then_some(Self::LocalDestination),
            "iprange" if words.takes("--src-range") => Self::range(words.next()?, true, family),
            "iprange" if words.takes("--dst-range") => Self::range(words.next()?, false, family),
            "conntrack" if words.takes("--ctstate") => {
                let text = words.next()?;
                [States::New, States::Unknown].into_iter().find(|states| states.text() == text).map(Self::State)
            }
            "connlabel" => {
                let not = words.takes("!");
                let bit = if words.takes("--label") { names.bit(words.next()?)? } else { return None };
                match (not, words.takes("--set")) {
                    (false, true) => Some(Self::SetLabel(bit)),
                    (not, false) => Some(Self::Label { bit, not }),
                    (true, true) => None,
                }
            }
            "comment" if words.takes("--comment") => Some(Self::Comment(words.next()?.into())),
            _ => None,
        }
    }

    fn range(text: &str, source: bool, family: Family) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
        if Family::of(first) != family || Family::of(last) != family {
            return None;
        }
        // However its ends are written.
        let all = source && format!("{first}-{last}") == everyone(family);
        Some(if all { Self::Everyone } else { Self::Range { source, first, last } })
    }
}

/// All addresses of a family as a range.
fn everyone(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "0.0.0.0-255.255.255.255",
        Family::Ipv6 => "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

/// The names of labels' bits on this host, from connlabel.conf: iptables-save prints them in the place of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelNames(Vec<(String, u8)>);

impl LabelNames {
    /// Reads `BIT NAME` lines. What is none is a comment.
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
