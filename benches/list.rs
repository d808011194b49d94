//! All forwards with their counters, as JSON, compared with what else lists as many.

use portfwd::iptables::command::Variant;

use crate::effort::Effort;
use crate::host::{Host, iptables};
use crate::peer::{self, nft};
use crate::race::Race;
use crate::table::{Report, Row, Target};

const OURS: &str = "portfwd list --json";
const JSON: &str = "nft -j list ruleset";

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    let count = effort.most();
    let (ours, map) = (Host::new(), Host::new());
    ours.portfwd(&["apply", &ours.file("bench.toml", &peer::rule_set(count))]);
    let mut race = Race::default();
    map.run("nft", &["-f", &map.file("rival", &nft::map(count))]);
    race.enter(OURS, || ours.portfwd(&["list", "--json"]));
    race.enter(JSON, || map.run("nft", &["-j", "list", "ruleset"]));
    race.enter("nft list ruleset", || map.run("nft", &["list", "ruleset"]));
    for variant in Variant::ALL {
        let host = Host::new();
        host.run(
            &iptables(variant, "-restore"),
            &["--wait=60", "--noflush", &host.file("rival", &peer::iptables::rules(count))],
        );
        let name = format!("iptables-{}-save -c", variant.name());
        race.enter(name, move || host.run(&iptables(variant, "-save"), &["-c"]));
    }
    let results = race.run(&format!("list/{count}"), effort.loads(count));
    let most = Target { time: Some(0.2), memory: Some(0.2), ..Target::default() };
    report.rows.push(Row::new("list with counters", count, results.of(OURS), JSON, results.of(JSON)).target(most));
    report.against_all("list with counters", count, OURS, &results, &[JSON]);
}
