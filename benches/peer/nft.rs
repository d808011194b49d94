//! In the words of nft(8): a map, a rule for each forward, and the same as JSON.

use serde_json::{Value, json};

use super::target;

/// The table with the map, ready for one more element.
pub const TABLE: &str = "rival";

/// A base chain that sends what is for this host through `rest`.
const PREROUTING: &str = "chain c { type nat hook prerouting priority -105;\n fib daddr type local";

/// One element of the map.
pub fn element(n: u32) -> String {
    format!("tcp . {n} comment \"bench\" : {} . 80", target(n))
}

/// Elements for so many ports as one command.
pub fn add_elements(ports: &[u32]) -> String {
    let elements: Vec<String> = ports.iter().map(|port| element(*port)).collect();
    format!("add element inet {TABLE} m {{ {} }}\n", elements.join(",\n"))
}

/// The same the other way.
pub fn delete_elements(ports: &[u32]) -> String {
    let elements: Vec<String> = ports.iter().map(|port| format!("tcp . {port}")).collect();
    format!("delete element inet {TABLE} m {{ {} }}\n", elements.join(", "))
}

/// One map, and one rule that asks it: the fastest layout there is.
pub fn map(count: u32) -> String {
    let elements: Vec<String> = (1..=count).map(element).collect();
    let elements = elements.join(",\n");
    format!(
        "table inet {TABLE} {{\n map m {{ type inet_proto . inet_service : ipv4_addr . inet_service; counter;\n elements = {{ {elements} }}\n }}\n {PREROUTING} meta nfproto ipv4 dnat ip to meta l4proto . th dport map @m\n }}\n}}\n"
    )
}

/// One rule for each forward, as most others write them.
pub fn rules(count: u32) -> String {
    format!("table inet {TABLE} {{\n chain f {{\n{}}}\n {PREROUTING} jump f\n }}\n}}\n", chain(count))
}

/// The chain of the forwards emptied and written again with one more of them: what Docker's nftables backend does for each
/// port that it publishes.
pub fn rewrite(count: u32) -> String {
    format!("flush chain inet {TABLE} f\ntable inet {TABLE} {{\n chain f {{\n{}}}\n}}\n", chain(count))
}

fn chain(count: u32) -> String {
    let rule = |n| format!("tcp dport {n} counter dnat ip to {}:80 comment \"bench\"\n", target(n));
    (1..=count).map(rule).collect()
}

/// The rule for each forward as libnftables-json(5). There is no map: nft 1.0.6 reads none with an address and a port as its
/// data, not even one that it printed itself.
pub fn json(count: u32) -> String {
    let dport =
        |n: u32| json!({"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": n}});
    let dnat = |n: u32| json!({"dnat": {"family": "ip", "addr": target(n).to_string(), "port": 80}});
    let rule = |chain: &str, comment: &str, expr: Vec<Value>| json!({"add": {"rule": {"family": "inet", "table": TABLE, "chain": chain, "comment": comment, "expr": expr}}});
    let local =
        json!({"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}});
    let head = [
        json!({"add": {"table": {"family": "inet", "name": TABLE}}}),
        json!({"add": {"chain": {"family": "inet", "table": TABLE, "name": "f"}}}),
        json!({"add": {"chain": {"family": "inet", "table": TABLE, "name": "c", "type": "nat", "hook": "prerouting", "prio": -105, "policy": "accept"}}}),
        rule("c", "to forwards", vec![local, json!({"jump": {"target": "f"}})]),
    ];
    let forwards = (1..=count).map(|n| rule("f", "bench", vec![dport(n), json!({"counter": null}), dnat(n)]));
    json!({"nftables": head.into_iter().chain(forwards).collect::<Vec<_>>()}).to_string()
}
