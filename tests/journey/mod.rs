//! The journey oracle: random hosts and random packets. For each packet, the simulator predicts who receives it, with which
//! addresses, and whether the answer arrives. The kernel decides.
//!
//! The variable `JOURNEYS` sets the number of packets, `JOURNEY_SEED` the seed of the first host. A wrong prediction that
//! counts as proved fails the test, with the seed of its host.

mod network;
mod packets;
mod rules;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fastrand::Rng;
use portfwd::engine::{Engine, Options, Scope, Storage};
use portfwd::iptables::command::Variant;
use portfwd::model::Protocol;
use portfwd::ruleset::confidence::Confidence;
use portfwd::ruleset::host::Host;
use portfwd::ruleset::read;
use portfwd::ruleset::region::{Field, Packet};
use portfwd::ruleset::set::address_of;
use portfwd::ruleset::simulate::{AnswerEnd, End, Journey, Simulator, first};
use portfwd::store::State;

use self::network::{From, Network, Seen, Shot, interface, is_direct, peer_of};
use self::rules::Setup;
use crate::support::{feed, privileged};

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
    assert!(counts.packets > 500, "the machine is too slow: {counts:?}");
    assert!(counts.delivered * 10 > counts.packets && counts.answered * 20 > counts.packets, "{counts:?}");
    if counts.packets > 5_000 {
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

/// Configures the host in the calling thread's namespace.
fn configure(network: &mut Network, setup: &Setup) {
    network.reset();
    network.run(
        "nft flush ruleset; for t in iptables ip6tables; do for f in nat filter mangle raw; do
           $t-legacy -t $f -S > /dev/null 2>&1 && printf '*%s\nCOMMIT\n' $f | $t-legacy-restore; done; done
         ip route flush table main proto boot; ip -6 route flush table main proto boot
         ip route flush table 7 2>/dev/null || :; ip -6 route flush table 7 2>/dev/null || :
         for p in 100 101; do ip rule del prio $p 2>/dev/null || :; ip -6 rule del prio $p 2>/dev/null || :; done
         conntrack -F 2>/dev/null",
    );
    for (option, v6) in [("-4", false), ("-6", true)] {
        let lines = setup.routing.iter().filter(|line| line.starts_with("-6 ") == v6);
        let text: String = lines.map(|line| format!("{}\n", line.trim_start_matches("-6 "))).collect();
        network.host.run(|| feed("ip", &[option, "-batch", "-"], &text)).expect("the host");
    }
    let portfwd = || {
        if let Some((backend, case)) = &setup.portfwd {
            let desired = case.desired().expect("checked");
            let mut engine = Engine::open(Storage::Memory, *backend, Scope::Full).expect("opens");
            let after = State { desired: desired.into(), ..State::default() };
            engine.commit(after, Options::default()).unwrap_or_else(|error| panic!("{error:?}\n{}", case.text()));
        }
    };
    network.host.run(portfwd).expect("the host");
    if !setup.nft.is_empty() {
        network.host.run(|| feed("nft", &["-f", "-"], &setup.nft)).expect("the host");
    }
    if let Some((variant, v4, v6)) = &setup.iptables {
        let suffix = if *variant == Variant::Nft { "nft" } else { "legacy" };
        for (program, text) in [("iptables", v4), ("ip6tables", v6)] {
            if !text.is_empty() {
                let restore = format!("{program}-{suffix}-restore");
                network.host.run(|| feed(&restore, &["--noflush"], text)).expect("the host");
            }
        }
    }
    let write = || {
        for (path, value) in &setup.settings {
            std::fs::write(format!("/proc/sys/{path}"), value).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
    };
    network.host.run(write).expect("the host");
}

fn try_host(network: &mut Network, seed: u64, counts: &mut Counts) {
    let mut rng = Rng::with_seed(seed);
    let setup = rules::setup(&mut rng);
    configure(network, &setup);
    let (rules, facts) = network.host.run(|| read::live(None)).expect("the host").expect("readable");
    let host = Host::new(rules, Some(facts));
    let simulator = Simulator::new(&host);
    let mut ports = setup.ports.clone();
    if let Some(desired) = setup.portfwd.as_ref().and_then(|(_, case)| case.desired()) {
        ports.extend(desired.bindings.iter().flat_map(|owned| [owned.rule.ports.first(), owned.rule.ports.last()]));
    }
    let shots: Vec<Shot> = (20_000..)
        .map_while(|port| packets::shot(&mut rng, &ports, port).map_or(Some(None), |shot| Some(Some(shot))))
        .flatten()
        .take(PACKETS)
        .collect();
    let journeys: Vec<Journey<'_>> = shots.iter().map(|shot| simulator.journey(packet_of(shot))).collect();
    let seen = network.send(&shots);
    let mut answers: Vec<(usize, Shot)> = Vec::new();
    for (index, ((shot, journey), seen)) in shots.iter().zip(&journeys).zip(&seen).enumerate() {
        counts.packets += 1;
        let proved = journey.trace.confidence() == Confidence::Proved;
        let unknown = journey.trace.confidence() == Confidence::Unknown;
        counts.unknown += u64::from(!proved);
        for construct in &setup.constructs {
            let entry = counts.constructs.entry(construct).or_default();
            entry.1 += 1;
            entry.2 += u64::from(!proved);
        }
        if !proved {
            let reason = journey
                .trace
                .guesses
                .first()
                .map_or_else(|| "a rule or the order of chains".into(), ToString::to_string);
            *counts.reasons.entry(format!("{reason}{}", if unknown { "" } else { " (likely)" })).or_default() += 1;
            continue;
        }
        if !is_predicted(&journey.trace, *seen) {
            fail(seed, &setup, &host, shot, journey, &format!("the packet: {seen:?}"));
        }
        counts.delivered += u64::from(seen.is_some());
        if let Some(seen) = seen
            && let Some(answer) = answer_of(shot, seen)
        {
            answers.push((index, answer));
        }
    }
    for construct in &setup.constructs {
        counts.constructs.entry(construct).or_default().0 += 1;
    }
    let sent: Vec<Shot> = answers.iter().map(|(_, answer)| *answer).collect();
    for ((index, _), seen) in answers.iter().zip(network.send(&sent)) {
        let journey = &journeys[*index];
        let Some(answer) = journey.answer.as_ref().filter(|answer| answer.confidence() == Confidence::Proved) else {
            continue;
        };
        counts.answers += 1;
        let predicted = match &answer.trace {
            Some(trace) => is_predicted(trace, seen),
            // The answer does not pass the host. Whether it arrives depends only on the sender.
            None => continue,
        };
        // The sender accepts an answer from the address that it sent to.
        let shot = &shots[*index];
        let arrived = seen.is_some_and(|seen| {
            (seen.source, seen.destination) == (shot.destination, shot.source)
                && (seen.at == shot.from
                    || matches!((seen.at, shot.from), (From::Peer(a), From::Peer(b)) if interface(a) == interface(b)))
        });
        counts.answered += u64::from(arrived);
        if !predicted || arrived != (answer.end == AnswerEnd::Arrives) {
            fail(seed, &setup, &host, shot, journey, &format!("the answer: {seen:?}, arrived {arrived}"));
        }
    }
}

/// Returns the packet as the simulator gets it.
fn packet_of(shot: &Shot) -> Packet {
    let input = match shot.from {
        From::Host => None,
        From::Peer(peer) => Some(interface(peer)),
    };
    let end = |socket: SocketAddr| (socket.ip(), socket.port());
    first(input, shot.protocol.number(), end(shot.source), end(shot.destination))
}

/// Returns true if a packet was received where a trace ends, with the trace's addresses.
fn is_predicted(trace: &portfwd::ruleset::simulate::PacketTrace<'_>, seen: Option<Seen>) -> bool {
    let address = |field| address_of(trace.packet.get(field)?, trace.packet.family);
    // The kernel may choose the port of a rewritten source. Then the simulator does not predict it.
    let is_port = |field, port: u16| trace.packet.get(field).is_none_or(|known| known == u128::from(port));
    let is_same = |seen: &Seen| {
        Some(seen.destination.ip()) == address(Field::Destination)
            && Some(seen.source.ip()) == address(Field::Source)
            && is_port(Field::Port, seen.destination.port())
            && is_port(Field::SourcePort, seen.source.port())
    };
    match (trace.end, seen) {
        (End::Dropped(..) | End::Refused(_), None) => true,
        (End::Arrives, Some(seen)) => seen.at == From::Host && is_same(&seen),
        (End::Leaves(Some(link), gateway), Some(seen)) => {
            let From::Peer(peer) = seen.at else { return false };
            let next = gateway.or(address(Field::Destination));
            // Several peers are behind the bridge.
            let there = next.and_then(peer_of).is_none_or(|expected| expected == peer);
            link.name == interface(peer) && there && is_same(&seen)
        }
        // No peer has the address.
        (End::Leaves(Some(_), None), None) => address(Field::Destination).is_some_and(|to| peer_of(to).is_none()),
        _ => false,
    }
}

/// Returns the answer that the receiver of a packet sends. Raw answers of other protocols do not belong to the connection.
fn answer_of(shot: &Shot, seen: &Seen) -> Option<Shot> {
    let possible = match seen.at {
        // The kernel itself answers TCP on the host.
        From::Host => shot.protocol == Protocol::Udp,
        // An answer to an address of the peer's own network does not pass the host.
        From::Peer(peer) => {
            matches!(shot.protocol, Protocol::Udp | Protocol::Tcp) && !is_direct(peer, seen.source.ip())
        }
    };
    possible.then_some(Shot {
        from: seen.at,
        protocol: shot.protocol,
        source: seen.destination,
        destination: seen.source,
    })
}

fn fail(seed: u64, setup: &Setup, host: &Host, shot: &Shot, journey: &Journey<'_>, kernel: &str) -> ! {
    let answer = journey.answer.as_ref().and_then(|answer| answer.trace.as_ref());
    let answer = answer.map(|trace| trace.render(host).to_string()).unwrap_or_default();
    let portfwd = setup.portfwd.as_ref().map(|(backend, case)| format!("{backend:?}\n{}", case.text()));
    panic!(
        "JOURNEY_SEED={seed} JOURNEYS=1\n{shot:?}\nkernel: {kernel}\n{}\nanswer: {answer}\n# portfwd {}\n# nft\n{}\n# iptables\n{:?}\n# routing\n{}\n# settings\n{}",
        journey.render(host),
        portfwd.unwrap_or_default(),
        setup.nft,
        setup.iptables.as_ref().map(|(variant, v4, v6)| (
            variant,
            v4.lines().collect::<Vec<_>>(),
            v6.lines().collect::<Vec<_>>()
        )),
        setup.routing.join("\n"),
        setup.settings.iter().map(|(path, value)| format!("{path}={value}")).collect::<Vec<_>>().join(" "),
    );
}
