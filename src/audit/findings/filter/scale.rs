//! Measures the time of the filter findings with many forwards. The time must grow linearly.

use std::fmt::Write as _;
use std::time::Instant;

use super::super::context::Context;
use super::super::hosts::{facts, find, host};
use super::CHECKS;
use crate::ruleset::host::Host;
use crate::ruleset::simulate::{Simulator, first};

/// Docker's rules for many containers: each publishes a port, most use port 80, and each has an accept rule.
fn docker(forwards: usize, masquerades: bool, from: &str) -> Host {
    let target = |at: usize| format!("172.17.{}.{}", 1 + at / 250, 2 + at % 250);
    let (mut accepts, mut dnats, mut masks) = (String::new(), String::new(), String::new());
    for at in 0..forwards {
        let (to, port) = (target(at), 1024 + at);
        writeln!(accepts, "-A DOCKER -d {to}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT")
            .expect("text");
        writeln!(dnats, "-A DOCKER ! -i docker0{from} -p tcp -m tcp --dport {port} -j DNAT --to-destination {to}:80")
            .expect("text");
        if masquerades {
            writeln!(masks, "-A POSTROUTING -s {to}/32 -d {to}/32 -p tcp -m tcp --dport 80 -j MASQUERADE")
                .expect("text");
        }
    }
    let rules = format!(
        "*filter\n:INPUT DROP\n:FORWARD DROP\n:DOCKER -\n-A FORWARD -o docker0 -j DOCKER\n{accepts}COMMIT\n\
         *nat\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n:DOCKER -\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n{masks}{dnats}COMMIT\n"
    );
    host(&rules, facts())
}

/// `cargo test --release --lib audit::findings::filter::scale -- --ignored --nocapture`
#[test]
#[ignore = "measures: run with --release"]
fn many_forwards_take_time_in_proportion() {
    let mut before: Option<Vec<f64>> = None;
    for forwards in [6_000, 60_000] {
        let host = docker(forwards, true, "");
        let begin = Instant::now();
        let simulator = Simulator::new(&host);
        let lead = |at: usize| {
            let to = ([192, 0, 2, 1].into(), u16::try_from(1024 + at).unwrap_or(u16::MAX));
            simulator.simulate(first(Some("eth0"), 6, ([203, 0, 113, 9].into(), 50_000), to))
        };
        assert!(lead(7).is_sure());
        let built = begin.elapsed();
        let begin = Instant::now();
        let sure = (0..forwards).filter(|at| lead(*at).is_sure()).count();
        assert_eq!(sure, forwards);
        let each = begin.elapsed().as_secs_f64() / f64::from(u32::try_from(forwards).expect("few"));
        eprintln!("{forwards} forwards: index {built:?}, a trace {:.2} µs", each * 1e6);
        let mut times = Vec::new();
        for check in CHECKS {
            // The minimum of three runs excludes other load on the machine.
            let runs = (0..3).map(|_| {
                let begin = Instant::now();
                let found = (check.find)(&Context::new(&host), &check.kind);
                (begin.elapsed(), found)
            });
            let (took, found) = runs.min_by_key(|(took, _)| *took).expect("three");
            eprintln!("  {} {took:?}, {} findings", check.kind.id, found.len());
            assert!(found.len() < 10, "they are grouped");
            times.push(took.as_secs_f64());
        }
        if let Some(before) = before.replace(times.clone()) {
            for (check, (less, more)) in CHECKS.iter().zip(before.iter().zip(&times)) {
                eprintln!("  {}: ten times as many take {:.1} times as long", check.kind.id, more / less);
                assert!(more / less < 40.0 || *more < 0.05, "{} grows faster than forwards", check.kind.id);
            }
        }
    }
}

#[test]
fn many_forwards_of_one_fault_are_one_finding() {
    let host = docker(300, false, "");
    for check in CHECKS {
        let found = (check.find)(&Context::new(&host), &check.kind);
        assert!(found.len() <= 1, "{}: {found:?}", check.kind.id);
    }
    assert!(find(&host, "F19")[0].message.starts_with("300 forwards ("));
}

/// Runs with `scale` as the first test does. F25 needs source lists. Several sizes tell the growth of caches from quadratic
/// growth.
#[test]
#[ignore = "measures: run with --release"]
fn lists_of_sources_take_time_in_proportion() {
    let check = CHECKS.iter().find(|check| check.kind.id == "F25").expect("one of this family");
    for forwards in [6_000, 15_000, 30_000, 60_000] {
        let host = docker(forwards, false, " -s 198.51.100.0/24");
        let run = || {
            let begin = Instant::now();
            assert!((check.find)(&Context::new(&host), &check.kind).is_empty());
            let all = begin.elapsed();
            let begin = Instant::now();
            assert_eq!(crate::audit::forwards::Forward::all(&host.view).len(), forwards);
            (all, begin.elapsed())
        };
        let (all, listed) = (0..5).map(|_| run()).min().expect("five");
        eprintln!("{forwards} restricted forwards: F25 {all:?}, of it to list forwards {listed:?}");
        let each = all.as_secs_f64() / f64::from(u32::try_from(forwards).expect("few"));
        assert!(each < 20e-6, "{:.1} µs each", each * 1e6);
    }
}
