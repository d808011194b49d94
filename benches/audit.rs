//! The audit of many foreign rules, compared with `iptables-save`, which only prints them.

use portfwd::iptables::command::Variant;

use crate::effort::Effort;
use crate::host::{Host, iptables};
use crate::peer;
use crate::race::Race;
use crate::table::{Report, Row, Target};

const OURS: &str = "portfwd audit --json";

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    let count = effort.most();
    for variant in Variant::ALL {
        let mut costs = Vec::new();
        for count in [count / 10, count] {
            let host = Host::new();
            let rules = host.file("rules", &peer::iptables::docker(count));
            host.run(&iptables(variant, "-restore"), &["-w", &rules]);
            let save = format!("iptables-{}-save", variant.name());
            let mut race = Race::default();
            race.enter(OURS, || host.portfwd(&["audit", "--json"]));
            race.enter(save.clone(), || host.run(&iptables(variant, "-save"), &[]));
            let results = race.run(&format!("audit/{}/{count}", variant.name()), effort.loads(count));
            costs.push((results.of(OURS).clone(), results.of(&save).clone(), save));
        }
        if let [(few, ..), (many, theirs, save)] = costs.as_slice() {
            let most = Target { seconds: Some(1.0), ..Target::default() };
            report.rows.push(Row::new("audit of foreign rules", count, many, save, theirs).target(most));
            let what = format!("growth of audit, iptables-{}", variant.name());
            report.rows.push(Row::new(what, count, many, "portfwd audit, N / 10", few));
        }
    }
}
