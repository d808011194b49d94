//! Ports, ranges of ports and lists of ranges: `80`, `8000-8010`, `80,443,9000-9010`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ParseError;

const HELP: &str = "write ports as `80`, `8000-8010` or `80,443,9000-9010`, each from 1 to 65535";

/// A contiguous range of ports, both ends included. Contains at least one port and never port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Returns the range from `first` to `last`, both included, or `None` if it is reversed or begins at 0.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self { first, last })
    }

    /// Returns the range of one port, or `None` for port 0.
    pub fn single(port: u16) -> Option<Self> {
        Self::new(port, port)
    }

    /// Returns the lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// Returns the highest port, which is part of the range.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Returns the number of ports: 1 to 65,535.
    pub fn width(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Returns true if the range has exactly one port.
    pub fn is_single(self) -> bool {
        self.first == self.last
    }

    /// Returns true if both ranges have a port in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Returns true if `self` contains every port of `other`.
    pub fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for PortRange {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (parse_port(first)?, parse_port(last)?),
            None => (parse_port(text)?, parse_port(text)?),
        };
        Self::new(first, last).ok_or_else(|| {
            ParseError::new(
                format!("the range `{first}-{last}` is reversed"),
                format!("write the lower port first: `{last}-{first}`"),
            )
        })
    }
}

fn parse_port(text: &str) -> Result<u16, ParseError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseError::new(format!("`{text}` is not a port"), HELP));
    }
    match text.parse() {
        Ok(0) => Err(ParseError::new("port 0 is not a port", HELP)),
        Ok(port) => Ok(port),
        Err(_) => Err(ParseError::new(format!("port {text} is above 65535"), HELP)),
    }
}

impl TryFrom<String> for PortRange {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

/// A list of port ranges, as a user writes it. Contains at least one range, and no two ranges overlap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ports(Ranges);

/// The storage of [`Ports`]. Nearly all forwards have one range, which needs no allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Ranges {
    One(PortRange),
    /// At least two ranges.
    List(Box<[PortRange]>),
}

impl Ports {
    /// Returns the ranges in the order of the text.
    pub fn ranges(&self) -> &[PortRange] {
        match &self.0 {
            Ranges::One(range) => std::slice::from_ref(range),
            Ranges::List(ranges) => ranges,
        }
    }

    /// Returns the range if the list has exactly one.
    pub fn single_range(&self) -> Option<PortRange> {
        match self.0 {
            Ranges::One(range) => Some(range),
            Ranges::List(_) => None,
        }
    }
}

impl From<PortRange> for Ports {
    fn from(range: PortRange) -> Self {
        Self(Ranges::One(range))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges().iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

impl FromStr for Ports {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if !text.contains(',') {
            return Ok(text.parse::<PortRange>()?.into());
        }
        let mut ranges = Vec::new();
        for part in text.split(',') {
            ranges.push(part.parse::<PortRange>()?);
        }
        let mut sorted = ranges.clone();
        sorted.sort_unstable();
        for pair in sorted.windows(2) {
            if let [a, b] = pair
                && a.overlaps(*b)
            {
                return Err(ParseError::new(
                    format!("the ports `{a}` and `{b}` of one list overlap"),
                    "write every port once",
                ));
            }
        }
        Ok(Self(Ranges::List(ranges.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_both_ways() {
        for text in ["80", "8000-8010", "80,443,9000-9010", "1-65535"] {
            assert_eq!(text.parse::<Ports>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn invalid_ports_are_named() {
        for (text, what) in [
            ("", "`` is not a port"),
            ("0", "port 0 is not a port"),
            ("65536", "port 65536 is above 65535"),
            ("99999999999", "port 99999999999 is above 65535"),
            ("+80", "`+80` is not a port"),
            ("90-80", "the range `90-80` is reversed"),
            ("80-", "`` is not a port"),
            ("80,", "`` is not a port"),
            ("80,80", "the ports `80` and `80` of one list overlap"),
            ("80,70-90", "the ports `70-90` and `80` of one list overlap"),
        ] {
            assert_eq!(text.parse::<Ports>().expect_err(text).to_string(), what);
        }
    }

    #[test]
    fn the_widest_range_has_65535_ports() {
        assert_eq!(PortRange::new(1, 65535).map(PortRange::width), Some(65535));
        assert_eq!(PortRange::new(0, 1), None);
    }
}
