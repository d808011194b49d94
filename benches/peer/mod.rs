//! The same forwards in the words of everybody: forward number `n` sends port `n` to port 80 of the address [`target`].
//!
//! Unfair to nobody that we know of: all have a counter for each forward, and nftables' also a comment, as ours.

pub mod iptables;
pub mod nft;
pub mod portmap;

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// A target for forward number `n`.
pub fn target(n: u32) -> Ipv4Addr {
    let [.., a, b] = (n >> 6).to_be_bytes();
    let host = u8::try_from(n & 63).unwrap_or(0);
    Ipv4Addr::new(10, a, b, host + 1)
}

/// So many forwards as a rule set of ours.
pub fn rule_set(count: u32) -> String {
    let mut text = String::new();
    for n in 1..=count {
        let written = writeln!(text, "[[forward]]\nlisten = \"{n}\"\nto = \"{}:80\"", target(n));
        written.expect("text grows");
    }
    text
}
