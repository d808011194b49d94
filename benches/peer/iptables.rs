//! iptables(8) rules for the benches, with one rule for each forward.

use std::fmt::Write as _;
use std::time::Instant;

use ::iptables::IPTables;
use portfwd::iptables::command::Variant;

use super::target;
use crate::host::Host;
use crate::race::Cost;

/// The chain of table nat that holds the forwards.
const CHAIN: &str = "RIVAL";

fn rule(n: u32) -> String {
    format!("-p tcp --dport {n} -j DNAT --to-destination {}:80", target(n))
}

/// Returns `count` forwards in the format of iptables-save(8).
pub fn rules(count: u32) -> String {
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j {CHAIN}\n");
    for n in 1..=count {
        writeln!(text, "-A {CHAIN} {}", rule(n)).expect("text grows");
    }
    text + "COMMIT\n"
}

/// Appends the rule of forward `n` with the crate `iptables`, which starts one process.
pub fn append(host: &Host, variant: Variant, n: u32) -> Cost {
    let cmd = match variant {
        Variant::Nft => "/usr/sbin/iptables-nft",
        Variant::Legacy => "/usr/sbin/iptables-legacy",
    };
    let append = || {
        let start = Instant::now();
        let iptables = IPTables { cmd, has_check: true, has_wait: true, is_numeric: false };
        iptables.append("nat", CHAIN, &rule(n)).expect("appended");
        start.elapsed().as_secs_f64()
    };
    Cost::seconds(host.namespace.run(append).expect("the namespace"))
}

/// Returns Docker's rules for one bridge and one container. Table nat has a rule for each port, and table filter has
/// the rules of the bridge.
pub fn docker(count: u32) -> String {
    let mut text = String::from(
        "*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n\
         -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -o docker0 -j DOCKER\n\
         -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -j ACCEPT\nCOMMIT\n\
         *nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n",
    );
    for port in 1..=count {
        let rule =
            format!("-A DOCKER ! -i docker0 -p tcp -m tcp --dport {port} -j DNAT --to-destination 172.17.0.2:80");
        text += &(rule + "\n");
    }
    text + "COMMIT\n"
}
