//! Reads what `nft -j list ruleset` prints.
//!
//! ```text
//! text ──elements──▶ objects: tables, chains, sets ──┐
//! text ──elements──▶ rules ──────────────────────────┴─lower─▶ ruleset
//! ```
//! The text is walked twice, element by element: a rule can only be brought into the normal form when the sets that it asks
//! are known, and to keep all rules as JSON until then would take more memory than to read them again takes time. A rule
//! that asks a map becomes one case for each of its elements, so their number has a limit: see [`MOST`].
//!
//! Source of the schema: libnftables-json(5), and what nft 1.0.6 prints where that is silent (measured).
//!
//! Be aware: nft(8) prints expressions of iptables-nft only as `xt` with a name, so what such a rule asks and where it leads
//! is unknown here; of a dormant table nft 1.0.6 prints the flag wrongly, or ends in the middle of it (measured); and it does
//! not print that rules add elements to a set, so all sets that any rule adds to are taken as not known. The next header of
//! IPv6 (`ip6 nexthdr`) is taken to be the transport protocol, as it is where there are no extension headers.

mod key;
mod lookup;
mod lower;
mod nat;
mod number;
mod object;
mod statement;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use self::object::Builder;
use self::value::{Json, Text};
use super::super::table::Ruleset;

/// The most ranges of all regions of a dump together, where the room that a case takes besides counts as some more: about
/// 1,500,000 cases. Rules beyond are unknown, and the gaps say so.
pub const MOST: usize = 40_000_000;

/// Why a dump cannot be read. Lines and columns count from 1, columns in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// There is nothing.
    #[error("this is empty: expected what `nft -j list ruleset` prints")]
    Empty,
    /// It ends too early.
    #[error("line {line} column {column}: this is cut off: {why}{hint}")]
    CutOff {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
        /// What was expected.
        why: String,
        /// What may have cut it off.
        hint: &'static str,
    },
    /// It is something else.
    #[error("line {line} column {column}: this is not what `nft -j list ruleset` prints: {why}")]
    Wrong {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
        /// What was expected.
        why: String,
    },
}

/// What is said of a text that ends where nft 1.0.6 ends when a table is dormant.
const DORMANT: &str =
    "; nft 1.0.6 stops so at a table that is dormant: use a newer one, or `portfwd audit` on the host itself";

impl JsonError {
    fn new(error: &serde_json::Error, text: &str) -> Self {
        let (line, column) = (error.line(), error.column());
        let mut why = error.to_string();
        if let Some(at) = why.rfind(" at line ") {
            why.truncate(at);
        }
        if error.is_eof() {
            let hint = if text.trim_end().ends_with("\"flags\":") { DORMANT } else { "" };
            Self::CutOff { line, column, why, hint }
        } else {
            Self::Wrong { line, column, why }
        }
    }
}

/// Reads a dump.
///
/// What is not understood is kept as unknown where it is in a rule, and as a gap where it is an object of its own.
///
/// # Errors
/// [`JsonError`] where the text is cut off, is no JSON, or is not of the shape of such a dump.
pub fn parse(text: &str) -> Result<Ruleset, JsonError> {
    parse_within(text, MOST)
}

fn parse_within(text: &str, most: usize) -> Result<Ruleset, JsonError> {
    if text.trim().is_empty() {
        return Err(JsonError::Empty);
    }
    let mut builder = Builder::new(text, most);
    for pass in [Pass::Objects, Pass::Rules] {
        let mut from = serde_json::Deserializer::from_str(text);
        let read = Document { builder: &mut builder, pass }.deserialize(&mut from);
        read.and_then(|()| from.end()).map_err(|error| JsonError::new(&error, text))?;
    }
    Ok(builder.finish())
}

/// Which elements are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Objects,
    Rules,
}

/// The whole text.
struct Document<'b, 'a> {
    builder: &'b mut Builder<'a>,
    pass: Pass,
}

impl<'a> DeserializeSeed<'a> for Document<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Document<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the key `nftables`")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut from: A) -> Result<(), A::Error> {
        let mut found = false;
        while let Some(Text(key)) = from.next_key()? {
            if key == "nftables" {
                found = true;
                from.next_value_seed(Elements { builder: &mut *self.builder, pass: self.pass })?;
            } else {
                from.next_value::<IgnoredAny>()?;
            }
        }
        if found { Ok(()) } else { Err(A::Error::custom("expected an object with the key `nftables`")) }
    }
}

/// The array of all elements.
struct Elements<'b, 'a> {
    builder: &'b mut Builder<'a>,
    pass: Pass,
}

impl<'a> DeserializeSeed<'a> for Elements<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for Elements<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects as the value of `nftables`")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut from: A) -> Result<(), A::Error> {
        while from.next_element_seed(Element { builder: &mut *self.builder, pass: self.pass })?.is_some() {}
        Ok(())
    }
}

/// One element: an object whose key tells what it is.
struct Element<'b, 'a> {
    builder: &'b mut Builder<'a>,
    pass: Pass,
}

impl<'a> DeserializeSeed<'a> for Element<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Element<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object such as `{\"table\": …}`")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut from: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = from.next_key()? {
            if (key == "rule") != (self.pass == Pass::Rules) {
                from.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: Json<'a> = from.next_value()?;
            let read = if key == "rule" { self.builder.rule(&value) } else { self.builder.object(&key, value) };
            read.map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
