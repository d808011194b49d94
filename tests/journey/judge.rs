//! Configures the host, sends packets, and compares what the kernel does with the predictions.

use std::net::SocketAddr;

use portfwd::engine::{Engine, Options, Scope, Storage};
use portfwd::iptables::command::Variant;
use portfwd::model::Protocol;
use portfwd::ruleset::confidence::Confidence;
use portfwd::ruleset::host::Host;
use portfwd::ruleset::read;
use portfwd::ruleset::region::{Field, Packet};
use portfwd::ruleset::set::address_of;
use portfwd::ruleset::simulate::{AnswerEnd, End, Journey, PacketTrace, Simulator, first};
use portfwd::store::State;

use super::network::{From, Network, Seen, Shot, interface, is_direct, peer_of};
use super::rules::Setup;
use crate::support::feed;

/// The result of one packet.
#[derive(Debug)]
pub enum Verdict {
    /// The prediction was right. `answer` is true if the answer arrived, and `None` if the test does not know.
    Right { delivered: bool, answer: Option<bool> },
    /// The simulator does not know. The text is the reason.
    Unknown(String),
    /// The prediction counts as proved and was wrong. The text shows both.
    Wrong(String),
}

/// Configures the host, and reads its rules and facts.
pub fn configure(network: &mut Network, setup: &Setup) -> Host {
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
    let (rules, facts) = network.host.run(|| read::live(None)).expect("the host").expect("readable");
    Host::new(rules, Some(facts))
}

/// Sends packets and then their answers. Returns the result of each packet.
pub fn send(network: &mut Network, host: &Host, shots: &[Shot]) -> Vec<Verdict> {
    let simulator = Simulator::new(host);
    let journeys: Vec<Journey<'_>> = shots.iter().map(|shot| simulator.journey(packet_of(shot))).collect();
    let seen = network.send(shots);
    let all = || shots.iter().zip(&journeys).zip(&seen);
    let mut results: Vec<Verdict> = all().map(|((_, journey), seen)| judge_packet(host, journey, *seen)).collect();
    let answers: Vec<(usize, Shot)> = all()
        .enumerate()
        .filter(|(index, _)| matches!(results[*index], Verdict::Right { .. }))
        .filter_map(|(index, ((shot, _), seen))| Some((index, answer_of(shot, seen.as_ref()?)?)))
        .collect();
    let sent: Vec<Shot> = answers.iter().map(|(_, answer)| *answer).collect();
    for ((index, _), seen) in answers.iter().zip(network.send(&sent)) {
        results[*index] = judge_answer(host, &journeys[*index], &shots[*index], seen);
    }
    results
}

fn judge_packet(host: &Host, journey: &Journey<'_>, seen: Option<Seen>) -> Verdict {
    let answer = journey.answer.as_ref().map_or(Confidence::Proved, |answer| answer.confidence());
    if journey.trace.confidence() != Confidence::Proved {
        Verdict::Unknown(reason(&journey.trace))
    } else if !is_predicted(&journey.trace, seen) {
        Verdict::Wrong(format!("{}kernel: the packet: {seen:?}", journey.render(host)))
    } else if answer != Confidence::Proved {
        let trace = journey.answer.as_ref().and_then(|answer| answer.trace.as_ref());
        Verdict::Unknown(trace.map_or_else(|| "the answer".to_owned(), reason))
    } else {
        Verdict::Right { delivered: seen.is_some(), answer: None }
    }
}

fn judge_answer(host: &Host, journey: &Journey<'_>, shot: &Shot, seen: Option<Seen>) -> Verdict {
    let Some(answer) = &journey.answer else { return Verdict::Wrong("a packet without an answer".into()) };
    // An answer that does not pass the host depends on the sender only.
    let Some(trace) = &answer.trace else { return Verdict::Right { delivered: true, answer: None } };
    // The sender accepts an answer from the address that it sent to.
    let arrived = seen.is_some_and(|seen| {
        let there = match (seen.at, shot.from) {
            (From::Peer(a), From::Peer(b)) => interface(a) == interface(b),
            (a, b) => a == b,
        };
        there && (seen.source, seen.destination) == (shot.destination, shot.source)
    });
    if is_predicted(trace, seen) && arrived == (answer.end == AnswerEnd::Arrives) {
        return Verdict::Right { delivered: true, answer: Some(arrived) };
    }
    let packet = journey.trace.render(host);
    Verdict::Wrong(format!(
        "{packet}answer: {}predicted: {:?}\nkernel: the answer: {seen:?}, arrived: {arrived}",
        trace.render(host),
        answer.end
    ))
}

fn reason(trace: &PacketTrace<'_>) -> String {
    trace.guesses.first().map_or_else(|| "a rule, or the order of chains".into(), ToString::to_string)
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
fn is_predicted(trace: &PacketTrace<'_>, seen: Option<Seen>) -> bool {
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
