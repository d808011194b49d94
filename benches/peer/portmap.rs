//! The portmap plugin of the Container Network Interface, where it is installed, with the version of it that works with
//! iptables, whichever this host's is.

use std::fmt::Write as _;
use std::path::Path;

use portfwd::lab::Netns;
use serde_json::json;

use super::target;
use crate::race::Cost;
use crate::race::process::{Start, run_with};

/// Where distributions and Kubernetes put it.
const PLACES: [&str; 2] = ["/opt/cni/bin/portmap", "/usr/lib/cni/portmap"];

/// Where it is, if it is anywhere.
pub fn program() -> Option<&'static str> {
    PLACES.into_iter().find(|path| Path::new(path).exists())
}

/// Its layout with so many containers, each with one port: a chain of three rules and a rule that leads there.
pub fn layout(count: u32) -> String {
    let mut chains = String::new();
    let mut rules = String::new();
    for n in 1..=count {
        let (chain, to) = (format!("CNI-DN-{n:021x}"), target(n));
        let written = writeln!(chains, ":{chain} - [0:0]").and_then(|()| {
            writeln!(
                rules,
                "-A {chain} -s {to}/24 -p tcp -m tcp --dport {n} -j CNI-HOSTPORT-SETMARK\n\
                 -A {chain} -s 127.0.0.1/32 -p tcp -m tcp --dport {n} -j CNI-HOSTPORT-SETMARK\n\
                 -A {chain} -p tcp -m tcp --dport {n} -j DNAT --to-destination {to}:80\n\
                 -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"bench\\\" id: \\\"{n}\\\"\" -m multiport --dports {n} -j {chain}"
            )
        });
        written.expect("text grows");
    }
    format!(
        "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-MASQ - [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n{chains}\
         -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
         -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
         -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000\n\
         {rules}COMMIT\n"
    )
}

/// Adds (`ADD`) or removes (`DEL`) a container with this one port.
pub fn call(namespace: &Netns, program: &str, command: &str, port: u32) -> Cost {
    let input = json!({
        "cniVersion": "0.4.0",
        "name": "bench",
        "type": "portmap",
        "snat": true,
        "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": {
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eth0", "sandbox": "/proc/self/ns/net"}],
            "ips": [{"version": "4", "address": format!("{}/24", target(port)), "interface": 0}],
        },
    })
    .to_string();
    let environment = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "bench"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/usr/lib/cni"),
    ];
    run_with(namespace, program, &[], Start { environment: &environment, input: &input })
}
