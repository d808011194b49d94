//! The audit of many foreign rules, compared with `iptables-save`, which only prints them.

use portfwd::iptables::command::Variant;

use crate::effort::Effort;
use crate::host::{Host, iptables};
use crate::peer;
use crate::race::Race;
use crate::table::{Report, Row, Target};

const OURS: &str = "portfwd audit --json";
const TENTH: &str = "portfwd audit, N / 10";

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    let count = effort.most();
    for variant in Variant::ALL {
        let [many, few] = [count, count / 10].map(|count| {
            let host = Host::new();
            let rules = host.file("rules", &peer::iptables::docker(count));
            host.run(&iptables(variant, "-restore"), &["--wait=60", &rules]);
            host
        });
        let mut race = Race::default();
        race.enter(OURS, || many.portfwd(&["audit", "--json"]));
        race.enter(TENTH, || few.portfwd(&["audit", "--json"]));
        let save = format!("iptables-{}-save", variant.name());
        race.enter(&save, || many.run(&iptables(variant, "-save"), &[]));
        let results = race.run(&format!("audit/{}/{count}", variant.name()), effort.loads(count));
        let ours = results.of(OURS);
        let most = Target { seconds: Some(1.0), ..Target::default() };
        report.rows.push(Row::new("audit of foreign rules", count, ours, &save, results.of(&save)).target(most));
        let what = format!("growth of audit, iptables-{}", variant.name());
        report.rows.push(Row::new(what, count, ours, TENTH, results.of(TENTH)));
    }
}
