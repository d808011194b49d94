//! Rule sets for the connection bench, and the ports of their last forwards. Each forward goes to port 80 of the
//! target.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::net::{CLIENT, HOST, TARGET};

/// The port of the only forward in the rule set of [`one`].
const ONE: u16 = 8080;
/// The first port of the rule sets with many forwards.
const FIRST: u16 = 1_024;
/// The number of forwards that the client connects to. They are the last forwards of a rule set.
const LAST: u16 = 16;
/// The number of ports in a range. A range of 20 ports contains a whole block of 16 ports only at some positions.
const WIDTH: u16 = 20;

/// A rule set and the ports of its last forwards.
pub struct Forwards {
    /// The rule set, in TOML.
    pub text: String,
    /// The ports that the client connects to.
    pub last: Vec<u16>,
}

/// Returns a rule set with one forward, of port 8080.
pub fn one() -> Forwards {
    Forwards { text: forward(&ONE.to_string(), ""), last: vec![ONE] }
}

/// Returns `count` forwards of one port each.
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

/// Returns `count` forwards in each of twenty classes. A class has an address or none, an interface or none, and one of
/// four client prefix lengths or none.
///
/// The last forwards have no address, interface or prefix, so their precedence is the lowest.
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

/// Returns an nft(8) table with one rule for each forward of [`singles`]. The rules have the form of Docker's nftables
/// backend.
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
