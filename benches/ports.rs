//! Many more ports on a busy host in one command, as a container with 206 published ports asks for them, compared with one
//! more, and with what others do for them.

use crate::effort::Effort;
use crate::floor;
use crate::host::Host;
use crate::peer::{self, nft};
use crate::race::{Cost, Race};
use crate::table::{Report, Row, Target};

/// How many: those of the container in a report to Docker about them (moby#53466).
const MORE: u32 = 206;
const FIRST: u32 = 61_000;

const ONE: &str = "portfwd add, one more port";
const LIST: &str = "portfwd add, a list of 206 ports";
const RANGE: &str = "portfwd add, a range of 206 ports";
const FILE: &str = "portfwd apply, a file of 206 forwards";

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    let count = effort.most();
    // No two beside each other, so that no range can stand for them.
    let ports: Vec<u32> = (0..MORE).map(|n| FIRST + 2 * n).collect();
    let rule_set = peer::rule_set(count);
    let forward = |port: &u32| format!("[[forward]]\nlisten = \"{port}\"\nto = \"10.9.9.9:80\"\n");
    let more: String = ports.iter().map(forward).collect();
    let (ours, map) = (Host::new(), Host::new());
    let mut race = Race::default();
    enter_ours(&mut race, &ours, &rule_set, &more, &ports);
    enter_elements(&mut race, &map, count, &ports);
    enter_docker(&mut race, count);
    floor::enter(&mut race, &rule_set, &(rule_set.clone() + &more));
    let results = race.run(&format!("ports/{count}"), effort.loads(count));
    let floor = results.of(floor::NAME);
    for name in [LIST, RANGE, FILE] {
        let row = Row::new(format!("206 more: {name}"), count, results.of(name), ONE, results.of(ONE));
        // What a range sends is not what the floor sends.
        let row = if name == RANGE { row } else { row.floor(results.of(name), floor) };
        report.rows.push(row.target(Target::time(2.0)));
    }
    for (peer, theirs) in results.but(&[ONE, LIST, RANGE, FILE, floor::NAME]) {
        let row = Row::new(format!("206 more: {LIST}"), count, results.of(LIST), peer, theirs);
        report.rows.push(row.floor(results.of(LIST), floor).target(Target::time(1.0)));
    }
}

fn enter_ours<'a>(race: &mut Race<'a>, host: &'a Host, rule_set: &str, more: &str, ports: &[u32]) {
    host.portfwd(&["apply", &host.file("bench.toml", rule_set)]);
    let list = ports.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let range = format!("{FIRST}-{}", FIRST + MORE - 1);
    for (name, listen) in [(ONE, FIRST.to_string()), (LIST, list), (RANGE, range)] {
        race.enter(name, move || {
            let cost = host.portfwd(&["add", &listen, "10.9.9.9:80"]);
            host.portfwd(&["rm", &listen]);
            cost
        });
    }
    let more = more.to_owned();
    race.enter(FILE, move || {
        let cost = host.portfwd(&["apply", &host.file("more.toml", &more)]);
        host.portfwd(&["apply", &host.file("more.toml", "")]);
        cost
    });
}

/// The same as elements of a map of nft(8)'s: a command for each, and one for all.
fn enter_elements<'a>(race: &mut Race<'a>, host: &'a Host, count: u32, ports: &[u32]) {
    host.run("nft", &["-f", &host.file("rival", &nft::map(count))]);
    let remove = host.file("remove", &nft::delete_elements(ports));
    let undo = remove.clone();
    let each: Vec<String> = ports.iter().map(|port| nft::add_elements(&[*port])).collect();
    race.enter("nft add element, 206 times", move || {
        let costs: Vec<Cost> = each.iter().map(|add| host.run("nft", &[add])).collect();
        host.run("nft", &["-f", &undo]);
        let peaks = costs.iter().filter_map(|cost| cost.kilobytes);
        Cost { seconds: costs.iter().map(|cost| cost.seconds).sum(), kilobytes: peaks.reduce(f64::max) }
    });
    let batch = host.file("batch", &nft::add_elements(ports));
    race.enter("nft -f, one batch", move || {
        let cost = host.run("nft", &["-f", &batch]);
        host.run("nft", &["-f", &remove]);
        cost
    });
}

/// Docker's nftables backend writes the chain with all ports again for each of the 206; one of them is measured.
fn enter_docker(race: &mut Race<'_>, count: u32) {
    let host = Host::new();
    host.run("nft", &["-f", &host.file("rival", &nft::rules(count))]);
    let rewrite = host.file("rewrite", &nft::rewrite(count + 1));
    race.enter("Docker's nftables chain, one of the 206", move || host.run("nft", &["-f", &rewrite]));
}
