use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use portfwd::lab::Netns;
use serde_json::Value;

use crate::support::{Net, Said};

/// Findings about services at boot and about portfwd's own state.
mod boot;
/// NAT statements that portfwd does not understand.
mod claims;
/// Tests of `audit` without root, with dumps and with its options.
mod cli;
/// Findings about filters, sources, neighbours and packets that bypass a forward.
mod filter;
/// Findings about interfaces, routes, sysctls, sockets and connections.
mod host;
/// Findings about precedence between forwards and about single rules.
mod order;
/// Reports about portfwd's own rules.
mod own;
/// Findings about several tools on one host.
mod tools;

/// A host with a fault, and a similar host without the fault.
struct Fault {
    /// The id of the finding, such as `F13`.
    id: &'static str,
    /// The script for sh(1) that makes the fault in the host's namespace. The script can use [`SHELL_FUNCTIONS`].
    fault_script: &'static str,
    /// The confidence, the severity and the start of the affected rule's place. The place is empty if no rule is
    /// affected.
    found: [&'static str; 3],
    /// The script for sh(1) that makes a similar host without the fault.
    near_miss_script: &'static str,
}

/// Shell functions for the scripts of tests. They make nft(8) chains, load iptables rules and set sysctls. Each chain
/// has its own table.
const SHELL_FUNCTIONS: &str = "
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

/// A script that resets the host: no rules, a default route through the client, forwarding enabled.
const RESET: &str = "
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

/// Runs a script in the host's namespace. Panics if it fails.
#[track_caller]
fn run(net: &Net, script: &str) -> String {
    let text = format!("{SHELL_FUNCTIONS}{script}");
    let said: Said = net.in_host(|| Command::new("sh").args(["-ec", &text]).output().expect("sh").into());
    assert_eq!(said.code, 0, "{script}: {said:?}");
    said.stdout
}

/// Resets the host and runs a script. Panics if the script fails.
#[track_caller]
fn reset_and_run(net: &Net, script: &str) {
    run(net, &format!("{RESET}{script}"));
}

/// Returns the findings that have the given id.
fn findings_of(net: &Net, id: &str) -> Vec<Value> {
    let said = net.ok(&["audit", "--json", "--only", id]);
    let Value::Array(found) = json(&said.stdout)["findings"].clone() else { panic!("{said:?}") };
    assert!(found.iter().all(|finding| finding["id"] == id), "{said:?}");
    found
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns the confidence, the severity and the first place of a finding.
fn summary(finding: &Value) -> [&str; 3] {
    let text = |value: &'static str| finding[value].as_str().unwrap_or_default();
    [text("confidence"), text("severity"), finding["places"][0]["rule"].as_str().unwrap_or_default()]
}

/// Makes the fault. Checks that `audit` reports exactly one finding with the fault's id, and returns the finding.
#[track_caller]
fn expect_fault(net: &Net, fault: &Fault) -> Value {
    reset_and_run(net, fault.fault_script);
    expect_finding(net, fault.id, fault.found)
}

/// Checks that `audit` reports exactly one finding with this id, and returns the finding.
#[track_caller]
fn expect_finding(net: &Net, id: &str, wanted: [&str; 3]) -> Value {
    let all = findings_of(net, id);
    let [one] = all.as_slice() else { panic!("{id}: {all:#?}") };
    let [confidence, severity, place] = summary(one);
    assert_eq!([confidence, severity], wanted[..2], "{one:#}");
    assert!(place.starts_with(wanted[2]) && place.is_empty() == wanted[2].is_empty(), "{one:#}");
    one.clone()
}

/// Makes the similar host without the fault. Checks that `audit` reports no finding with the fault's id.
#[track_caller]
fn expect_no_fault(net: &Net, fault: &Fault) {
    reset_and_run(net, fault.near_miss_script);
    expect_none(net, fault.id);
}

/// Checks that `audit` reports no finding with this id.
#[track_caller]
fn expect_none(net: &Net, id: &str) {
    let all = findings_of(net, id);
    assert!(all.is_empty(), "{id}: {all:#?}");
}

/// Checks each fault on a host with the fault and on a similar host without it.
fn check_all(net: &Net, faults: &[Fault]) {
    for fault in faults {
        expect_fault(net, fault);
        expect_no_fault(net, fault);
    }
}

/// Checks that a connection attempt times out. A reachable server would answer long before the timeout.
#[track_caller]
fn expect_timeout(from: &Netns, to: &str) {
    let to = to.parse().expect("address");
    let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(400)).map(drop);
    let kind = from.run(connect).expect("the namespace").map_err(|error| error.kind());
    assert_eq!(kind, Err(ErrorKind::TimedOut));
}

/// Runs the fix of a finding. Panics if it fails.
#[track_caller]
fn apply_fix(net: &Net, finding: &Value) {
    let fix = finding["fix"].as_str().expect("a fix");
    // In a fix, the text after two spaces is an explanation for people.
    run(net, fix.split("  ").next().unwrap_or(fix));
}
