//! Compares the addition of 206 ports in one command with the addition of one port, on a host with N forwards.

use crate::effort::Effort;
use crate::host::Host;
use crate::peer;
use crate::race::Race;
use crate::table::{Report, Row, Target};

/// The number of ports that the container in moby#53466 publishes.
const MORE: u32 = 206;
const FIRST: u32 = 61_000;

const ONE: &str = "portfwd add, one more port";
const LIST: &str = "portfwd add, a list of 206 ports";
const RANGE: &str = "portfwd add, a range of 206 ports";

/// Compares `portfwd add` of 206 ports with `portfwd add` of one port.
pub fn bench(effort: Effort, report: &mut Report) {
    let (count, host) = (effort.most(), Host::new());
    host.portfwd(&["apply", &host.file("bench.toml", &peer::rule_set(count))]);
    // The list contains only every second port, because neighbouring ports form a range.
    let list = (0..MORE).map(|n| (FIRST + 2 * n).to_string()).collect::<Vec<_>>().join(",");
    let range = format!("{FIRST}-{}", FIRST + MORE - 1);
    let mut race = Race::default();
    for (name, listen) in [(ONE, FIRST.to_string()), (LIST, list), (RANGE, range)] {
        let host = &host;
        race.enter(name, move || {
            let cost = host.portfwd(&["add", &listen, "10.9.9.9:80"]);
            host.portfwd(&["rm", &listen]);
            cost
        });
    }
    let results = race.run(&format!("ports/{count}"), effort.loads(count));
    for name in [LIST, RANGE] {
        let row = Row::new(name, count, results.of(name), ONE, results.of(ONE));
        report.rows.push(row.target(Target::time(2.0)));
    }
}
