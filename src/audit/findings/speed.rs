//! Measures the time of each finding on a host with many forwards. Run with
//! `cargo test --release --lib audit::findings::speed -- --ignored --nocapture`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::context::Context;
use super::hosts::{self, facts, nat};
use super::{Check, checks};
use crate::ruleset::host::Host;

/// Returns a host with one chain of forwards, each of one port.
fn host(number: usize, source: &str) -> Host {
    let mut rules = String::from("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n");
    for at in 0..number {
        let (port, host) = (1 + at % 65_000, 2 + at % 250);
        let written = writeln!(
            rules,
            "[{}:0] -A PREROUTING {source} -p tcp -m tcp --dport {port} -j DNAT --to-destination 172.17.0.{host}:80",
            at % 2
        );
        assert!(written.is_ok());
    }
    hosts::host(&nat(&rules), facts())
}

fn time(check: &'static Check, context: &Context<'_>) -> (Duration, usize) {
    let start = Instant::now();
    let found = (check.find)(context, &check.kind).len();
    (start.elapsed(), found)
}

#[test]
#[ignore = "a measurement; run with --release"]
fn sixty_thousand_forwards_of_one_port() {
    for (what, source) in [("unguarded", ""), ("of docker", "-m addrtype --dst-type LOCAL ! -i docker0")] {
        let (few, many) = (host(6_000, source), host(60_000, source));
        // As in an audit, the first finding computes what several findings need.
        let (few, many) = (Context::new(&few), Context::new(&many));
        let (mut of_few, mut of_many) = (Duration::ZERO, Duration::ZERO);
        for check in checks() {
            let ((short, _), (long, found)) = (time(check, &few), time(check, &many));
            let growth = long.as_secs_f64() / short.as_secs_f64();
            eprintln!("{what} {}: {long:?}, {growth:.1} times the time of 6,000; {found} found", check.kind.id);
            of_few += short;
            of_many += long;
        }
        let growth = of_many.as_secs_f64() / of_few.as_secs_f64();
        eprintln!("{what} all: {of_many:?}, {growth:.1} times the time of 6,000");
        assert!(growth < 30.0, "{growth}");
    }
}

#[test]
#[ignore = "a measurement; run with --release"]
fn eight_thousand_overlapping_ranges() {
    let mut rules = String::new();
    for at in 0..8000_u32 {
        // A multiplicative generator of numbers without a pattern.
        let (first, more) = (at.wrapping_mul(2_654_435_761) % 60_000, at.wrapping_mul(40_503) % 3_000);
        let last = (first + more).min(65_535);
        let target = format!("10.0.{}.{}", at / 250, at % 250 + 1);
        rules += &format!("-A PREROUTING -p tcp -m tcp --dport {first}:{last} -j DNAT --to-destination {target}\n");
    }
    let start = Instant::now();
    let host = hosts::host(&nat(&rules), facts());
    let found = super::all(&host, |_| true).len();
    let time = start.elapsed();
    eprintln!("{time:?}, {found} findings");
    assert!(time < Duration::from_secs(2), "{time:?}");
}
