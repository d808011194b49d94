//! The forwards of a bench, in the language of each program. Forward `n` sends port `n` to port 80 of the address
//! [`target`].
//!
//! Each forward has a counter in every language. In nftables each forward also has a comment, like portfwd's elements.

pub mod iptables;
pub mod nft;

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Returns the target address of forward `n`.
pub fn target(n: u32) -> Ipv4Addr {
    let [.., a, b] = (n >> 6).to_be_bytes();
    let host = u8::try_from(n & 63).unwrap_or(0);
    Ipv4Addr::new(10, a, b, host + 1)
}

/// Returns `count` forwards as a rule set of portfwd.
pub fn rule_set(count: u32) -> String {
    let mut text = String::new();
    for n in 1..=count {
        let written = writeln!(text, "[[forward]]\nlisten = \"{n}\"\nto = \"{}:80\"", target(n));
        written.expect("text grows");
    }
    text
}
