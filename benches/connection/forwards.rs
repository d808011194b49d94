//! Forwards to port 80 of the target, and the ports of the last ones.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::net::{CLIENT, HOST, TARGET};

/// The port of the only forward of [`one`].
const ONE: u16 = 8080;
/// The first port of the other rule sets.
const FIRST: u16 = 1_024;
/// The number of forwards that connections use: the last ones of a rule set.
const LAST: u16 = 16;
/// The ports of a range; not a power of two, so that some ranges hold aligned blocks and some do not.
const WIDTH: u16 = 20;

/// A rule set and the ports of its last forwards.
pub struct Forwards {
    /// The rule set, in TOML.
    pub text: String,
    /// The ports that connections go to.
    pub last: Vec<u16>,
}

/// Returns the forward of port 8080 alone.
pub fn one() -> Forwards {
    Forwards { text: forward(&ONE.to_string(), ""), last: vec![ONE] }
}

/// Returns `count` forwards of single ports.
pub fn singles(count: u16) -> Forwards {
    let ports = FIRST..FIRST + count;
    let last = ports.clone().skip((count - LAST).into()).collect();
    Forwards { text: ports.map(|port| forward(&port.to_string(), "")).collect(), last }
}

/// Returns `count` forwards of port ranges, all to port 80.
pub fn ranges(count: u16) -> Forwards {
    let firsts = || (0..count).map(|n| FIRST + n * WIDTH);
    let range = |first: u16| forward(&format!("{first}-{}", first + (WIDTH - 1)), "");
    Forwards { text: firsts().map(range).collect(), last: firsts().skip((count - LAST).into()).collect() }
}

/// Returns `count` forwards in each of twenty classes: with or without an address, with or without an interface, and four
/// client prefixes or none. The last forwards have no address, interface or prefix, so their precedence is the lowest.
pub fn classes(count: u16) -> Forwards {
    let mut text = String::new();
    let ports = FIRST + LAST..FIRST + LAST + count;
    for address in [format!("{HOST}:"), String::new()] {
        for interface in ["interface = \"eth0\"\n", ""] {
            for length in [32, 24, 16, 8, 0] {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
                let prefix = Ipv4Addr::from(CLIENT.to_bits() & mask);
                let from = if length == 0 { String::new() } else { format!("from = [\"{prefix}/{length}\"]\n") };
                for port in ports.clone() {
                    text += &forward(&format!("{address}{port}"), &format!("{interface}{from}"));
                }
            }
        }
    }
    let last: Vec<u16> = (FIRST..FIRST + LAST).collect();
    text.extend(last.iter().map(|port| forward(&port.to_string(), "")));
    Forwards { text, last }
}

/// Returns a table of nft(8) with one rule for each of [`singles`], as Docker's nftables backend writes them.
pub fn rules(count: u16) -> String {
    let mut rules = String::new();
    for port in FIRST..FIRST + count {
        writeln!(rules, "tcp dport {port} counter dnat to {TARGET}:80").expect("text grows");
    }
    format!(
        "table ip rival {{\n chain f {{\n{rules}}}\n \
         chain c {{ type nat hook prerouting priority -100; fib daddr type local jump f; }}\n}}\n"
    )
}

fn forward(listen: &str, more: &str) -> String {
    format!("[[forward]]\nlisten = \"{listen}\"\nto = \"{TARGET}:80\"\n{more}")
}
