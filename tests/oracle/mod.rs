//! The packet oracle: applies random rule sets, sends random packets, and compares where each packet arrives with
//! [`portfwd::model::meaning`].
//!
//! Some rule sets compete with a rival: foreign NAT rules at the hooks and priorities that most programs use. The rival
//! must not get packets that portfwd rewrites.
//!
//! The oracle also checks for each rule set:
//! - the compiled rules lift to the same model,
//! - two files in either order give the same desired state,
//! - a change from another rule set ends in the same rules, and the plan is empty afterwards.
//!
//! The tests use nftables, iptables-nft and iptables-legacy. The iptables cases leave out tables that iptables refuses
//! ([`portfwd::iptables::limits`]).
//!
//! `ORACLE_CASES` sets the minimum number of packets and `ORACLE_SEED` the seed; the tests print both. A mismatch is
//! shrunk and printed as a rule-set file and one packet for `portfwd try FILE --packet PACKET`.

pub mod generate;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;
use portfwd::engine::{Choice as Backend, Engine, Options, Scope, Storage};
use portfwd::iptables::command::Variant;
use portfwd::lab::{self, Capture, Selection, Topology};
use portfwd::model::meaning::{DropReason, Fate, Meaning, meaning};
use portfwd::model::{DesiredState, Packet};
use portfwd::store::State;

use crate::support::{self, privileged};
use generate::Case;

/// The maximum number of tables in a rule set.
const MAX_TABLES: usize = 14;
/// The number of packets for each rule set.
const PACKETS: usize = 120;

fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")),
        Err(_) => default,
    }
}

#[test]
fn packets_follow_the_rule_sets_with_nftables() {
    oracle(Backend::Nft, 6_000);
}

#[test]
fn packets_follow_the_rule_sets_with_iptables_nft() {
    oracle(Backend::Variant(Variant::Nft), 3_000);
}

#[test]
fn packets_follow_the_rule_sets_with_iptables_legacy() {
    oracle(Backend::Variant(Variant::Legacy), 3_000);
}

fn oracle(backend: Backend, cases: u64) {
    if !privileged() {
        return;
    }
    let (cases, seed) = (number_from_env("ORACLE_CASES", cases), number_from_env("ORACLE_SEED", 1));
    println!("oracle: {backend:?}, seed {seed}, at least {cases} packets");
    let (done, next) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (done, next) = (&done, &next);
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                while (done.load(Ordering::Relaxed) as u64) < cases {
                    let round = next.fetch_add(1, Ordering::Relaxed) as u64;
                    let rng = &mut Rng::with_seed(seed.wrapping_mul(1_000_003) + round);
                    let sent = try_rule_set(rng, done, backend);
                    done.fetch_add(sent, Ordering::Relaxed);
                }
            });
        }
    });
    let (packets, sets) = (done.load(Ordering::Relaxed), next.load(Ordering::Relaxed));
    println!("oracle: {backend:?}, {packets} packets met {sets} rule sets as expected, in {:?}", start.elapsed());
}

/// Tries one rule set and returns the number of packets sent. `done` is the number of correct packets so far.
fn try_rule_set(rng: &mut Rng, done: &AtomicUsize, backend: Backend) -> usize {
    let with_rival = rng.u8(..6) == 0;
    let case = generate::case(rng, MAX_TABLES, with_rival).for_backend(backend);
    let Some((desired, sets)) = case.written() else { return 0 };
    let orders = [false, true].map(|swapped| case.asked_from_two(swapped));
    assert_eq!(orders[0], orders[1], "{}", case.text());
    let bindings: Vec<_> = desired.bindings.iter().map(|owned| &owned.rule).collect();
    let topology = Topology::build(&desired, &bindings).unwrap_or_else(|error| panic!("{error}\n{}", case.text()));
    // Most hosts with containers have bridge netfilter enabled.
    let bridge_netfilter = rng.u8(..3) == 0;
    topology.host.run(|| lab::set_bridge_netfilter(bridge_netfilter)).expect("the host's namespace").expect("switched");
    let before = generate::case(rng, MAX_TABLES, false).for_backend(backend);
    let before = if rng.bool() { before.desired() } else { None };
    // The test network may lack the target of an earlier loopback forward, so the route to the target is unknown. The
    // test skips such earlier states.
    let before = before.filter(|before| before.bindings.iter().all(|owned| !owned.rule.loopback));
    let packets: Vec<Packet> = (0u16..)
        .map(|index| 20_000 + index)
        .take(PACKETS)
        .filter_map(|port| generate::packet(rng, &desired, &topology, port))
        .collect();
    let sight = Capture::open(&topology).expect("packets get through");
    topology.host.run(|| apply_incrementally(before, &desired, &case, backend)).expect("the host's namespace");
    // Foreign NAT chains must not get portfwd's packets, whichever chains are registered first.
    let rival_first = with_rival && rng.bool();
    if rival_first {
        topology.host.run(|| add_rival(backend)).expect("the host's namespace");
    }
    let applied = lab::apply(&topology, &desired, backend);
    let (_, host) = applied.unwrap_or_else(|error| panic!("{error:?}\n{}", case.text()));
    if with_rival && !rival_first {
        topology.host.run(|| add_rival(backend)).expect("the host's namespace");
    }
    let sightings = sight.send(&packets).expect("sends");
    for (packet, sighting) in packets.iter().zip(&sightings) {
        let Meaning { forward, fate } = meaning(&sets, &host, packet);
        // Foreign NAT rules may rewrite only packets that portfwd has not rewritten.
        let rewritten =
            forward.is_some() && !matches!(fate, Fate::Sent { source: seen, .. } if seen.first == packet.source.ip());
        if (rewritten || !with_rival)
            && !sighting.matches_fate(packet, &fate)
            && visible(packet, &fate, &topology, bridge_netfilter)
        {
            let against = if with_rival { " (against a rival)" } else { "" };
            fail_with_minimal_case(
                &case,
                packet,
                backend,
                &format!("after {} packets: {sighting:?} is not {fate:?}{against}", done.load(Ordering::Relaxed)),
            );
        }
    }
    packets.len()
}

/// Adds foreign NAT rules at the priorities of Docker and most other programs, after portfwd's default priorities.
///
/// Some foreign rules redirect packets to a port of this host. Others rewrite the source to an address that is used
/// nowhere else.
fn add_rival(backend: Backend) {
    if let Backend::Variant(variant) = backend {
        for family in ["iptables", "ip6tables"] {
            let ports = |chain: &str| {
                let rule =
                    |protocol| format!("-A {chain} -p {protocol} --dport 990:3100 -j REDIRECT --to-ports 9999\n");
                ["tcp", "udp", "sctp"].map(rule).concat()
            };
            let to = if family == "iptables" { "203.0.113.200" } else { "2001:db8:ffff::1" };
            let (arriving, sent) = (ports("PREROUTING"), ports("OUTPUT"));
            let text = format!("*nat\n{arriving}{sent}-A POSTROUTING ! -o lo -j SNAT --to-source {to}\nCOMMIT\n");
            support::feed(&format!("{family}-{}-restore", variant.name()), &["--noflush", "--wait"], &text);
        }
        return;
    }
    let rules = "add table inet rival
        add chain inet rival in { type nat hook prerouting priority -100; }
        add chain inet rival own { type nat hook output priority -100; }
        add chain inet rival out { type nat hook postrouting priority 100; }
        add rule inet rival in meta l4proto { tcp, udp, sctp } th dport 990-3100 redirect to :9999
        add rule inet rival own meta l4proto { tcp, udp, sctp } th dport 990-3100 redirect to :9999
        add rule inet rival out oifname != lo meta nfproto ipv4 snat ip to 203.0.113.200
        add rule inet rival out oifname != lo meta nfproto ipv6 snat ip6 to 2001:db8:ffff::1";
    let output = Command::new("nft").arg(rules).output().expect("nft is installed");
    assert!(output.status.success(), "{output:?}");
}

/// Returns true if the test network has a receiver for the packet and can observe where it goes.
///
/// With bridge netfilter ([`lab::set_bridge_netfilter`]), a bridge handles two kinds of packets itself. These are
/// packets back out of their ingress port, and packets that this host does not forward. The test cannot observe them.
fn visible(packet: &Packet, fate: &Fate, topology: &Topology, bridge_netfilter: bool) -> bool {
    let to = match fate {
        Fate::Sent { to, .. } => to,
        Fate::Dropped(DropReason::NotForwarded) => return !bridge_netfilter,
        Fate::Dropped(_) | Fate::Local { .. } => return true,
    };
    let Some(receiver) = topology.namespace_of(to.ip()) else { return false };
    let sender = topology.sender(packet).filter(|_| packet.interface.is_some());
    !(bridge_netfilter && sender.is_some_and(|sender| std::ptr::eq(sender, receiver)))
}

/// Commits one rule set after the other. Then checks the plan and the lifted rules.
fn apply_incrementally(before: Option<DesiredState>, desired: &DesiredState, case: &Case, backend: Backend) {
    let mut engine = Engine::open(Storage::Memory, backend, Scope::Full).expect("opens");
    for step in before.into_iter().chain([desired.clone()]) {
        let after = State { desired: step.into(), ..engine.state().clone() };
        engine.commit(after, Options::default()).unwrap_or_else(|error| panic!("{error:?}\n{}", case.text()));
    }
    let plan = engine.plan_rules(&desired.clone().into()).expect("plans");
    assert!(plan.is_empty(), "{:?}\n{}", plan.steps, case.text());
    let mut lifted = engine.live().expect("reads").lift();
    let mut wanted = desired.clone();
    wanted.settings.clear();
    // A network without `masquerade` and without `isolate` has no rules in the kernel.
    wanted.networks.retain(|owned| owned.rule.masquerade || owned.rule.isolate);
    wanted.normalize();
    lifted.desired.normalize();
    assert_eq!(lifted.foreign, Vec::<String>::new(), "{}", case.text());
    assert_eq!(lifted.desired, wanted, "{}", case.text());
    // This commit removes the rules, so that later packets meet only the rules of `lab::apply`.
    engine.commit(State::default(), Options::default()).expect("flushes");
}

/// Shrinks a mismatch to the tables that it needs. Panics with a case that can be replayed.
fn fail_with_minimal_case(case: &Case, packet: &Packet, backend: Backend, found: &str) -> ! {
    let mut small = case.clone();
    let reproducible = mismatches(&small, packet, backend);
    if reproducible {
        let mut index = 0;
        while index < small.tables.len() {
            let mut fewer = small.clone();
            fewer.tables.remove(index);
            if mismatches(&fewer, packet, backend) {
                small = fewer;
            } else {
                index += 1;
            }
        }
    }
    let path = std::env::temp_dir().join(format!("oracle-{}.toml", packet.source.port()));
    std::fs::write(&path, small.text()).expect("written");
    let again = if reproducible { "" } else { "(only together with the other packets of its run)\n" };
    panic!(
        "MISMATCH {found}\n{again}{}\nreplay with ({backend:?}): portfwd try {} --packet '{packet}'\n",
        small.text(),
        path.display()
    );
}

/// Sends a packet alone. Returns true if the packet does not go where the rule set requires.
fn mismatches(case: &Case, packet: &Packet, backend: Backend) -> bool {
    let Some((desired, written)) = case.written() else { return false };
    let bindings: Vec<_> = desired.bindings.iter().map(|owned| &owned.rule).collect();
    let sendable = Topology::build(&desired, &bindings).is_ok_and(|topology| generate::sendable(packet, &topology));
    let trial = || lab::try_out(&desired, &written, &Selection::Packets(vec![packet.clone()]), backend).expect("tried");
    sendable && !trial().reports.iter().all(lab::Report::is_as_expected)
}
