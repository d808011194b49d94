//! Measures the audit of N foreign rules in Docker's layout. The peer is `iptables-nft-save`, which only prints the
//! rules.

use portfwd::iptables::command::Variant;

use crate::effort::Effort;
use crate::host::{Host, iptables};
use crate::peer;
use crate::race::Race;
use crate::table::{Report, Row, Target};

const AUDIT: &str = "portfwd audit --json";
const SAVE: &str = "iptables-nft-save";

/// Compares `portfwd audit --json` with `iptables-nft-save`.
pub fn bench(effort: Effort, report: &mut Report) {
    let (count, host) = (effort.most(), Host::new());
    let rules = host.file("rules", &peer::iptables::docker(count));
    host.run(&iptables(Variant::Nft, "-restore"), &["--wait=60", &rules]);
    let mut race = Race::default();
    race.enter(AUDIT, || host.portfwd(&["audit", "--json"]));
    race.enter(SAVE, || host.run(&iptables(Variant::Nft, "-save"), &[]));
    let results = race.run(&format!("audit/{count}"), effort.loads(count));
    let row = Row::new("audit of foreign rules", count, results.of(AUDIT), SAVE, results.of(SAVE));
    report.rows.push(row.target(Target::time(1.5)));
}
