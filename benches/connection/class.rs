//! Classes of forwards, and rule sets with many forwards in each of them.

use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use super::net::{CLIENT, HOST, TARGET};

/// How many forwards of each class can be told from every other class's by their port.
pub const OWN: u16 = 16;

/// The first port that is one class's own.
const FIRST_OWN: u16 = 1_024;
/// The first port that every class has a forward of.
const FIRST_COMMON: u16 = 20_000;

/// What a forward is asked with besides its port.
#[derive(Debug, Clone, Copy)]
pub struct Class {
    /// Whether it has an address.
    pub address: bool,
    /// Whether it has an interface.
    pub interface: bool,
    /// The length of its client prefix, if it has one.
    pub from: Option<u8>,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.address {
            words.push("address".to_owned());
        }
        if self.interface {
            words.push("interface".to_owned());
        }
        words.extend(self.from.map(|length| format!("from{length}")));
        f.write_str(if words.is_empty() { "-" } else { "" })?;
        f.write_str(&words.join("-"))
    }
}

/// All classes with client prefixes of these lengths and without, in the order of precedence.
pub fn classes(lengths: &[u8]) -> Vec<Class> {
    let mut lengths: Vec<Option<u8>> = lengths.iter().copied().map(Some).chain([None]).collect();
    lengths.sort_unstable_by_key(|length| std::cmp::Reverse(*length));
    let mut classes = Vec::new();
    for address in [true, false] {
        for interface in [true, false] {
            classes.extend(lengths.iter().map(|from| Class { address, interface, from: *from }));
        }
    }
    classes
}

/// The ports that only the class with this place in [`classes`] has.
pub fn own_ports(place: usize) -> Vec<u16> {
    let place = u16::try_from(place).expect("a few hundred classes");
    let first = FIRST_OWN + place * OWN;
    (first..first + OWN).collect()
}

/// A rule set with `count` forwards in each class. The client meets each of them but for the ports that they have in
/// common, where it meets the class that is asked first. A class's own ports come last.
pub fn rule_set(classes: &[Class], count: u16) -> String {
    let mut text = String::new();
    for (place, class) in classes.iter().enumerate() {
        let common = FIRST_COMMON..FIRST_COMMON + count.saturating_sub(OWN);
        for port in common.chain(own_ports(place)) {
            forward(&mut text, *class, port);
        }
    }
    text
}

/// How many ports a range has, and how far apart their beginnings are: some hold whole blocks, some only single ports.
const WIDTH: u16 = 20;

/// A rule set with so many ranges of ports, all sent to one port.
pub fn ranges(count: u16) -> String {
    let mut text = String::new();
    for first in (0..count).map(range) {
        let last = first + (WIDTH - 1);
        let written = writeln!(text, "[[forward]]\nlisten = \"{first}-{last}\"\nto = \"{TARGET}:80\"");
        written.expect("text grows");
    }
    text
}

/// The ports that the last of so many ranges begin with.
pub fn last_ranges(count: u16) -> Vec<u16> {
    (count.saturating_sub(OWN)..count).map(range).collect()
}

fn range(number: u16) -> u16 {
    FIRST_OWN + number * WIDTH
}

/// A rule set with so many forwards of single ports.
pub fn singles(count: u16) -> String {
    let mut text = String::new();
    for port in all_singles(count) {
        forward(&mut text, Class { address: false, interface: false, from: None }, port);
    }
    text
}

/// The first, middle or last ports of so many.
pub fn some_singles(count: u16, first: u16) -> Vec<u16> {
    (FIRST_OWN + first..FIRST_OWN + (first + OWN).min(count)).collect()
}

/// All of these ports.
pub fn all_singles(count: u16) -> std::ops::Range<u16> {
    FIRST_OWN..FIRST_OWN + count
}

/// A rule set with one forward, of the simplest class.
pub fn one_forward(port: u16) -> String {
    let mut text = String::new();
    forward(&mut text, Class { address: false, interface: false, from: None }, port);
    text
}

fn forward(text: &mut String, class: Class, port: u16) {
    let address = if class.address { format!("{HOST}:") } else { String::new() };
    let interface = if class.interface { "interface = \"eth0\"\n" } else { "" };
    let from = class.from.map_or_else(String::new, |length| {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        format!("from = [\"{}/{length}\"]\n", Ipv4Addr::from(CLIENT.to_bits() & mask))
    });
    let written = writeln!(text, "[[forward]]\nlisten = \"{address}{port}\"\nto = \"{TARGET}:80\"\n{interface}{from}");
    written.expect("text grows");
}
