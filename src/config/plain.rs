//! Stretches of a file that are nothing but forwards written in the plainest way, as programs write them by the thousand:
//!
//! ```toml
//! [[forward]]
//! listen = "8080"
//! to = "172.17.0.3:80"
//! ```
//! They are read without the tables that TOML is read into otherwise, which takes two thirds of the time that 60,000 of them take
//! (measured, Linux 6.18). Whatever is not as plain, or not valid, is not read here; a test holds both ways against each
//! other.

use std::str::FromStr;

use super::forward::FORWARD_KEYS;
use super::part::{Part, Span};
use super::reader::Reader;
use crate::model::{Forward, Listen, Protocol, Target, prefix};

/// The texts of a table by their keys, each with its place.
type Texts<'a> = [Option<(&'a str, Span)>; FORWARD_KEYS.len()];

/// Reads a stretch; nothing where it is not plain, or has a mistake. The places are those in the file of `reader`.
pub(super) fn read(reader: &Reader, text: &str) -> Option<Part> {
    let mut part = Part::default();
    let mut table: Option<Texts<'_>> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        let line = line.strip_suffix('\n').unwrap_or(line);
        if line == "[[forward]]" {
            if let Some(texts) = table.replace(Texts::default()) {
                part.forwards.push(forward(&texts)?);
            }
        } else if !line.is_empty() {
            let (key, value) = line.split_once(" = \"")?;
            let value = value.strip_suffix('"')?;
            // With its quotes.
            let span = reader.span(begin + key.len() + 3..begin + line.len());
            let slot = table.as_mut()?.get_mut(FORWARD_KEYS.iter().position(|known| *known == key)?)?;
            if slot.is_some() || !value.bytes().all(is_plain) {
                return None;
            }
            *slot = Some((value, span));
        }
    }
    part.forwards.push(forward(&table?)?);
    Some(part)
}

/// Whether a byte stands for itself between quotes.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// A forward, and the place where it says what it listens at.
fn forward(texts: &Texts<'_>) -> Option<(Forward, Span)> {
    let [listen, to, protocol, interface, from, source, hairpin, loopback, comment] = texts;
    // These are no texts.
    if hairpin.is_some() || loopback.is_some() {
        return None;
    }
    let (listen, span) = listen.clone()?;
    let mut forward = Forward::new(listen.parse::<Listen>().ok()?, to.as_ref()?.0.parse::<Target>().ok()?);
    forward.interface = optional(interface)?;
    forward.comment = optional(comment)?;
    forward.source = optional(source)?.unwrap_or_default();
    forward.protocols.extend(optional::<Protocol>(protocol)?);
    if let Some((from, _)) = from {
        forward.from.push(prefix::parse(from).ok()?);
    }
    forward.bindings().is_ok().then_some((forward, span))
}

/// A text that need not be there; nothing at all where it is not valid.
fn optional<T: FromStr>(text: &Option<(&str, Span)>) -> Option<Option<T>> {
    text.as_ref().map(|(text, _)| text.parse().ok()).map_or(Some(None), |parsed| parsed.map(Some))
}
