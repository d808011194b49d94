//! The audit of many foreign rules, of a host and of a dump, compared with `iptables-save`: whole processes, alternating, in one
//! run, in a network namespace that is made for it.
//!
//! Prints for each number of rules N the medians, in seconds, the ratio, and the peak of memory in megabytes. Growth is that of
//! the last row over the one before.

use portfwd::lab::Netns;

use crate::apply::{peak, run};
use crate::{host, median};

const NUMBERS: [u32; 2] = [6_000, 60_000];
const ROUNDS: usize = 5;

/// Measures and prints.
pub fn bench() {
    println!(
        "{:<24} {:>18} {:>12} {:>8} {:>12}",
        "audit/variant/N", "iptables-save (s)", "portfwd (s)", "ratio", "memory (MB)"
    );
    for variant in ["nft", "legacy"] {
        let mut times = Vec::new();
        for count in NUMBERS {
            times.push(with(variant, count));
        }
        if let [few, many] = times.as_slice() {
            println!("{:<24} growth {:.1}", format!("audit/{variant}"), many / few);
        }
    }
}

/// Docker's layout: one rule a port in table nat, and one in table filter.
fn rules(count: u32) -> String {
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
        text +=
            &format!("-A DOCKER ! -i docker0 -p tcp -m tcp --dport {port} -j DNAT --to-destination 172.17.0.2:80\n");
    }
    text + "COMMIT\n"
}

fn with(variant: &str, count: u32) -> f64 {
    let namespace = Netns::new().expect("run as root");
    let directory = tempfile::tempdir().expect("directory");
    let state = directory.path().join("state").to_string_lossy().into_owned();
    let path = directory.path().join("rules");
    std::fs::write(&path, rules(count)).expect("written");
    run(&namespace, &format!("/usr/sbin/iptables-{variant}-restore"), &[&path.to_string_lossy()]);
    let save = format!("/usr/sbin/iptables-{variant}-save");
    let audit = ["--state-dir", &state, "audit", "--json"];
    let (mut mine, mut rival) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        rival.push(run(&namespace, &save, &[]));
        mine.push(run(&namespace, host::ours(), &audit));
    }
    let memory = peak(&namespace, host::ours(), &audit).map_or_else(|| "-".into(), |peak| format!("{:.0}", peak / 1e3));
    let (rival, mine) = (median(rival), median(mine));
    let name = format!("audit/{variant}/{count}");
    println!("{name:<24} {rival:>18.4} {mine:>12.4} {:>8.2} {memory:>12}", mine / rival);
    mine
}
