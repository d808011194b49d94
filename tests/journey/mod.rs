//! The journey oracle: random hosts and random packets. For each packet, the simulator predicts who receives it, with which
//! addresses, and whether the answer arrives. The kernel decides.
//!
//! The variable `JOURNEYS` sets the number of packets, `JOURNEY_SEED` the seed of the first host. A wrong prediction that
//! counts as proved fails the test, with the seed of its host.

mod judge;
mod minimal;
mod network;
mod packets;
mod rules;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;

use self::judge::Verdict;
use self::network::{Network, Shot};
use crate::support::privileged;

/// The number of packets for each host.
const PACKETS: usize = 50;

/// The limit of the short run.
const SHORT: Duration = Duration::from_secs(15);

/// The counts of a run.
#[derive(Debug, Default)]
struct Counts {
    hosts: u64,
    packets: u64,
    unknown: u64,
    delivered: u64,
    answers: u64,
    answered: u64,
    /// For each construct, the hosts that have it, their packets, and the unknown ones of these.
    constructs: BTreeMap<&'static str, (u64, u64, u64)>,
    /// The reasons of unknown verdicts.
    reasons: BTreeMap<String, u64>,
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

#[test]
fn explain_predicts_every_journey() {
    if !privileged() {
        return;
    }
    let wanted = number_from_env("JOURNEYS");
    let seed = number_from_env("JOURNEY_SEED").unwrap_or_else(|| fastrand::u64(..1 << 40));
    println!("JOURNEY_SEED={seed}");
    let (mut network, mut counts, start) = (Network::new(), Counts::default(), Instant::now());
    loop {
        let done = wanted.map_or(start.elapsed() > SHORT, |wanted| counts.packets >= wanted);
        if done {
            break;
        }
        let host_seed = seed.wrapping_add(counts.hosts);
        try_host(&mut network, host_seed, &mut counts);
        counts.hosts += 1;
        if counts.hosts.is_multiple_of(200) {
            println!(
                "{} hosts, {} packets, {} unknown, {:?}",
                counts.hosts,
                counts.packets,
                counts.unknown,
                start.elapsed()
            );
        }
    }
    report(&counts, start.elapsed());
    assert!(counts.packets >= 200 || wanted.is_some(), "the machine is too slow: {counts:?}");
    let usual = counts.delivered * 10 > counts.packets && counts.answered * 20 > counts.packets;
    assert!(usual || counts.packets < 1000, "{counts:?}");
    if counts.packets > 20_000 {
        assert!(counts.unknown * 100 <= counts.packets * 8, "more than 8 % are unknown: {counts:?}");
        for (construct, (hosts, ..)) in &counts.constructs {
            assert!(hosts * 50 >= counts.hosts, "{construct} occurs in less than 2 % of the hosts");
        }
    }
}

fn report(counts: &Counts, time: Duration) {
    let share = |part: u64, all: u64| format!("{:.1} %", 100.0 * part as f64 / all.max(1) as f64);
    println!(
        "{} packets on {} hosts in {time:?}: {} unknown ({}), {} delivered, {} answers, {} of them arrive",
        counts.packets,
        counts.hosts,
        counts.unknown,
        share(counts.unknown, counts.packets),
        counts.delivered,
        counts.answers,
        counts.answered
    );
    for (construct, (hosts, packets, unknown)) in &counts.constructs {
        println!(
            "  {:<28} {:>7} of hosts, {:>7} unknown",
            construct,
            share(*hosts, counts.hosts),
            share(*unknown, *packets)
        );
    }
    for (reason, count) in &counts.reasons {
        println!("  unknown {:>7}: {reason}", share(*count, counts.packets));
    }
}

/// Sends random packets through a random host, and compares each with its prediction.
fn try_host(network: &mut Network, seed: u64, counts: &mut Counts) {
    let mut rng = Rng::with_seed(seed);
    let setup = rules::setup(&mut rng);
    let mut ports = setup.ports.clone();
    if let Some(desired) = setup.portfwd.as_ref().and_then(|(_, case)| case.desired()) {
        ports.extend(desired.bindings.iter().flat_map(|owned| [owned.rule.ports.first(), owned.rule.ports.last()]));
    }
    let shots: Vec<Shot> = (20_000..).filter_map(|port| packets::shot(&mut rng, &ports, port)).take(PACKETS).collect();
    let host = judge::configure(network, &setup);
    let results = judge::send(network, &host, &shots);
    for construct in &setup.constructs {
        counts.constructs.entry(construct).or_default().0 += 1;
    }
    for (shot, result) in shots.iter().zip(results) {
        counts.packets += 1;
        let unknown = match result {
            Verdict::Wrong(_) => minimal::fail(network, seed, setup, *shot),
            Verdict::Unknown(reason) => {
                *counts.reasons.entry(reason).or_default() += 1;
                true
            }
            Verdict::Right { delivered, answer } => {
                counts.delivered += u64::from(delivered);
                counts.answers += u64::from(answer.is_some());
                counts.answered += u64::from(answer == Some(true));
                false
            }
        };
        counts.unknown += u64::from(unknown);
        for construct in &setup.constructs {
            let entry = counts.constructs.entry(construct).or_default();
            entry.1 += 1;
            entry.2 += u64::from(unknown);
        }
    }
}
