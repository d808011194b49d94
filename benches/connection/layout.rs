//! The layouts of others with the same forwards, on the bench's network: from everywhere to port 80 of one target behind eth1.
//!
//! What their documents and sources say of Docker's iptables and nftables backends, and of CRI-O's hostports; what has no part
//! in a connection from outside is left out.

use std::net::Ipv4Addr;
use std::ops::Range;

use super::net::TARGET;

/// The interface that the target is behind, where Docker has a bridge, and its network.
const BRIDGE: &str = "eth1";
const NETWORK: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 0);

/// Docker's iptables backend: all ports of all containers in chain DOCKER of table nat, one after the other.
pub fn docker_iptables(ports: Range<u16>) -> String {
    let rule =
        |port| format!("-A DOCKER ! -i {BRIDGE} -p tcp -m tcp --dport {port} -j DNAT --to-destination {TARGET}:80\n");
    let rules: String = ports.map(rule).collect();
    format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n\
         -A FORWARD -o {BRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -o {BRIDGE} -j DOCKER\n-A FORWARD -i {BRIDGE} ! -o {BRIDGE} -j ACCEPT\n\
         -A DOCKER -d {TARGET}/32 ! -i {BRIDGE} -o {BRIDGE} -p tcp -m tcp --dport 80 -j ACCEPT\n\
         -A DOCKER ! -i {BRIDGE} -o {BRIDGE} -j DROP\nCOMMIT\n\
         *nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A POSTROUTING -s {NETWORK}/16 ! -o {BRIDGE} -j MASQUERADE\n{rules}COMMIT\n"
    )
}

/// Docker's nftables backend: the same in a chain of its own table.
pub fn docker_nft(ports: Range<u16>) -> String {
    let rule =
        |port| format!("iifname != \"{BRIDGE}\" tcp dport {port} counter dnat to {TARGET}:80 comment \"DNAT\"\n");
    let rules: String = ports.map(rule).collect();
    format!(
        "table ip docker-bridges {{\n\
         map filter-forward-in-jumps {{ type ifname : verdict; elements = {{ \"{BRIDGE}\" : jump filter-forward-in }} }}\n\
         map nat-postrouting-out-jumps {{ type ifname : verdict; elements = {{ \"{BRIDGE}\" : jump nat-postrouting-out }} }}\n\
         chain filter-FORWARD {{ type filter hook forward priority 0; oifname vmap @filter-forward-in-jumps; }}\n\
         chain nat-PREROUTING {{ type nat hook prerouting priority -100; fib daddr type local counter jump nat-prerouting-and-output; }}\n\
         chain nat-OUTPUT {{ type nat hook output priority -100; ip daddr != 127.0.0.0/8 fib daddr type local counter jump nat-prerouting-and-output; }}\n\
         chain nat-POSTROUTING {{ type nat hook postrouting priority 100; iifname vmap @nat-postrouting-out-jumps; }}\n\
         chain raw-PREROUTING {{ type filter hook prerouting priority -300; ip daddr {TARGET} iifname != \"{BRIDGE}\" counter drop; }}\n\
         chain filter-forward-in {{ ct state established,related counter accept\nip daddr {TARGET} tcp dport 80 counter accept\ncounter drop; }}\n\
         chain nat-postrouting-out {{ oifname != \"{BRIDGE}\" ip saddr {NETWORK}/16 counter masquerade; }}\n\
         chain nat-prerouting-and-output {{\n{rules}}}\n}}\n"
    )
}

/// CRI-O's hostports: one map for ports of an address and one for ports of all.
pub fn crio(ports: Range<u16>) -> String {
    let element = |port| format!("tcp . {port} comment \"bench\" : {TARGET} . 80");
    let elements = ports.map(element).collect::<Vec<_>>().join(",\n");
    format!(
        "table ip crio-hostports {{\n\
         map hostports {{ type inet_proto . inet_service : ipv4_addr . inet_service; elements = {{ {elements} }} }}\n\
         map hostipports {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}\n\
         set hairpins {{ type ipv4_addr . ipv4_addr; elements = {{ {TARGET} . {TARGET} }} }}\n\
         chain hostports {{ dnat ip addr . port to ip daddr . meta l4proto . th dport map @hostipports\n\
         dnat ip addr . port to meta l4proto . th dport map @hostports; }}\n\
         chain prerouting {{ type nat hook prerouting priority -100; fib daddr type local goto hostports; }}\n\
         chain output {{ type nat hook output priority -100; fib daddr type local goto hostports; }}\n\
         chain masquerading {{ type nat hook postrouting priority 100; ct status dnat ip saddr . ip daddr @hairpins masquerade; }}\n}}\n"
    )
}

/// One forward as nobody could write it with less.
pub fn plain_nft(port: u16) -> String {
    format!(
        "table ip plain {{ chain c {{ type nat hook prerouting priority -100; fib daddr type local tcp dport {port} dnat to {TARGET}:80; }}; }}\n"
    )
}
