//! nft(8) scripts for the benches: one with a map, and one with a rule for each forward.

use super::target;

/// The name of the nft(8) table.
pub const TABLE: &str = "rival";

/// The start of a base chain in nft(8) syntax. The caller appends the rule of the chain.
const PREROUTING: &str = "chain c { type nat hook prerouting priority -105;\n fib daddr type local";

/// Returns the map element of forward `n`.
pub fn element(n: u32) -> String {
    format!("tcp . {n} comment \"bench\" : {} . 80", target(n))
}

/// Returns a table with one map and one rule that looks the port up in the map. This layout is the fastest.
pub fn map(count: u32) -> String {
    let elements: Vec<String> = (1..=count).map(element).collect();
    let elements = elements.join(",\n");
    format!(
        "table inet {TABLE} {{\n map m {{ type inet_proto . inet_service : ipv4_addr . inet_service; counter;\n elements = {{ {elements} }}\n }}\n {PREROUTING} meta nfproto ipv4 dnat ip to meta l4proto . th dport map @m\n }}\n}}\n"
    )
}

/// Returns a table with one rule for each forward.
pub fn rules(count: u32) -> String {
    let rule = |n| format!("tcp dport {n} counter dnat ip to {}:80 comment \"bench\"\n", target(n));
    let rules: String = (1..=count).map(rule).collect();
    format!("table inet {TABLE} {{\n chain f {{\n{rules}}}\n {PREROUTING} jump f\n }}\n}}\n")
}
