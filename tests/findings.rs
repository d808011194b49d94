use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use portfwd::lab::Netns;
use serde_json::Value;

use crate::support::{Net, Said};

/// What services at boot, and our own state, make of the rules.
mod boot;
/// Without root, in dumps, and what the options say.
mod cli;
/// What filters, sources, neighbours and ways beside a forward make of it.
mod filter;
/// Interfaces, routes, settings, sockets and connections.
mod host;
/// Which forward wins, and what single rules look like.
mod order;
/// Tools beside each other.
mod tools;

/// A fault, and what a host is like that nearly has it.
struct Fault {
    /// What finds it.
    id: &'static str,
    /// Makes the fault: a script for sh(1) in the host's namespace, with the words of [`WORDS`].
    made_by: &'static str,
    /// The confidence, the severity and how the place of the rule that suffers begins; empty where there is no rule.
    found: [&'static str; 3],
    /// Makes the host that nearly has it.
    nearly: &'static str,
}

/// What scripts begin with: chains of nft(8) in a table of their own, and rules of iptables.
const WORDS: &str = "
    nat() { nft \"table ip t { chain pre { type nat hook prerouting priority dstnat; $1
 }; }\"; }
    nat6() { nft \"table ip6 t { chain pre { type nat hook prerouting priority dstnat; $1
 }; }\"; }
    post() { nft \"table ip t { chain post { type nat hook postrouting priority srcnat; $1
 }; }\"; }
    filter() { nft \"table inet f { chain $1 { type filter hook $1 priority filter; $2
 }; }\"; }
    xt() { printf '*%s\\n%s\\nCOMMIT\\n' \"$1\" \"$2\" | iptables-nft-restore --noflush; }
    xt6() { printf '*%s\\n%s\\nCOMMIT\\n' \"$1\" \"$2\" | ip6tables-nft-restore --noflush; }
    iptables() { iptables-nft \"$@\"; }
    ip6tables() { ip6tables-nft \"$@\"; }
    sys() { echo \"$2\" > /proc/sys/net/$1; }
";

/// What makes the host as it was: no rules, a default route by the client, and packets are passed on.
const AFRESH: &str = "
    nft flush ruleset
    ip link del group 7 2> /dev/null || :
    ip route flush proto boot
    ip -6 route flush proto boot
    while ip rule del pref 100 2> /dev/null; do :; done
    sys ipv4/ip_forward 0
    sys ipv4/ip_forward 1
    sys ipv6/conf/all/forwarding 1
    for of in all eth0 docker0; do sys ipv4/conf/$of/route_localnet 0; sys ipv4/conf/$of/rp_filter 0; done
    ip route add default via 192.0.2.2
    ip -6 route add default via 2001:db8::2
    conntrack -F 2> /dev/null
";

/// Runs a script in the host's namespace; it must succeed.
#[track_caller]
fn run(net: &Net, script: &str) -> String {
    let text = format!("{WORDS}{script}");
    let said: Said = net.in_host(|| Command::new("sh").args(["-ec", &text]).output().expect("sh").into());
    assert_eq!(said.code, 0, "{script}: {said:?}");
    said.stdout
}

/// Makes the host anew, as a script says.
#[track_caller]
fn make(net: &Net, script: &str) {
    run(net, &format!("{AFRESH}{script}"));
}

/// What the audit finds of one kind.
fn finds(net: &Net, id: &str) -> Vec<Value> {
    let said = net.ok(&["audit", "--json", "--only", id]);
    let Value::Array(found) = json(&said.stdout)["findings"].clone() else { panic!("{said:?}") };
    assert!(found.iter().all(|finding| finding["id"] == id), "{said:?}");
    found
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Confidence, severity and the first place of a finding.
fn shape(finding: &Value) -> [&str; 3] {
    let text = |value: &'static str| finding[value].as_str().unwrap_or_default();
    [text("confidence"), text("severity"), finding["places"][0]["rule"].as_str().unwrap_or_default()]
}

/// Makes a host with the fault, where exactly this is found; what it says is returned.
#[track_caller]
fn found(net: &Net, fault: &Fault) -> Value {
    make(net, fault.made_by);
    expect(net, fault.id, fault.found)
}

/// Exactly one of this kind is found.
#[track_caller]
fn expect(net: &Net, id: &str, wanted: [&str; 3]) -> Value {
    let all = finds(net, id);
    let [one] = all.as_slice() else { panic!("{id}: {all:#?}") };
    let [confidence, severity, place] = shape(one);
    assert_eq!([confidence, severity], wanted[..2], "{one:#}");
    assert!(place.starts_with(wanted[2]) && place.is_empty() == wanted[2].is_empty(), "{one:#}");
    one.clone()
}

/// Makes the host that nearly has the fault, where nothing of the kind is found.
#[track_caller]
fn not_found(net: &Net, fault: &Fault) {
    make(net, fault.nearly);
    none(net, fault.id);
}

/// Nothing of this kind is found.
#[track_caller]
fn none(net: &Net, id: &str) {
    let all = finds(net, id);
    assert!(all.is_empty(), "{id}: {all:#?}");
}

/// Both, of each.
fn all(net: &Net, faults: &[Fault]) {
    for fault in faults {
        found(net, fault);
        not_found(net, fault);
    }
}

/// Nothing answers here; somebody who did would do it at once.
#[track_caller]
fn silent(from: &Netns, to: &str) {
    let to = to.parse().expect("address");
    let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(400)).map(drop);
    let kind = from.run(connect).expect("the namespace").map_err(|error| error.kind());
    assert_eq!(kind, Err(ErrorKind::TimedOut));
}

/// The command that a finding says mends it, which must succeed.
#[track_caller]
fn mend(net: &Net, finding: &Value) {
    let fix = finding["fix"].as_str().expect("a fix");
    // What stands behind two spaces is for people.
    run(net, fix.split("  ").next().unwrap_or(fix));
}
