//! The packet oracle: random rule sets, really applied; random packets, really sent; where each arrives must be what
//! [`portfwd::model::meaning`] says.
//!
//! Some rule sets have a rival at the places that most other programs take: what ours rewrite it must not get.
//!
//! For every rule set it also holds that what was compiled is lifted to the same model, that two files in either order
//! ask the same, that the way there by another rule set ends in the same rules, and that a plan is empty then.
//!
//! The same holds of the same cases with nftables, iptables-nft and iptables-legacy, but for what rule sets ask that iptables
//! refuses ([`portfwd::iptables::limits`]), which is left out.
//!
//! `ORACLE_CASES` is how many packets are sent at least, `ORACLE_SEED` where the dice begin; both are printed. A mismatch is
//! shrunk and printed as a rule-set file and one packet for `portfwd try FILE --packet PACKET`.

mod generate;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;
use portfwd::engine::{Choice as Backend, Engine, Options, Scope, Storage};
use portfwd::iptables::command::Variant;
use portfwd::lab::{self, Capture, Selection, Topology};
use portfwd::model::meaning::{Dropped, Fate, Meaning, meaning};
use portfwd::model::{Asked, Packet};
use portfwd::store::State;

use crate::support::{self, privileged};
use generate::Case;

/// How many tables a rule set has at most, and how many packets meet it.
const TABLES: usize = 14;
const PACKETS: usize = 120;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")),
        Err(_) => default,
    }
}

#[test]
fn packets_go_where_the_rule_sets_say() {
    oracle(Backend::Nft, 6_000);
}

#[test]
fn packets_go_there_with_iptables_nft() {
    oracle(Backend::Variant(Variant::Nft), 3_000);
}

#[test]
fn packets_go_there_with_iptables_legacy() {
    oracle(Backend::Variant(Variant::Legacy), 3_000);
}

fn oracle(backend: Backend, cases: u64) {
    if !privileged() {
        return;
    }
    let (cases, seed) = (number("ORACLE_CASES", cases), number("ORACLE_SEED", 1));
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
                    let sent = one_rule_set(rng, done, backend);
                    done.fetch_add(sent, Ordering::Relaxed);
                }
            });
        }
    });
    let (packets, sets) = (done.load(Ordering::Relaxed), next.load(Ordering::Relaxed));
    println!("oracle: {backend:?}, {packets} packets met {sets} rule sets as expected, in {:?}", start.elapsed());
}

/// Tries one rule set and gives the number of packets that were sent. `done` is how many went right before.
fn one_rule_set(rng: &mut Rng, done: &AtomicUsize, backend: Backend) -> usize {
    let rivalled = rng.u8(..6) == 0;
    let case = generate::case(rng, TABLES, rivalled).for_backend(backend);
    let Some((asked, sets)) = case.written() else { return 0 };
    let orders = [false, true].map(|swapped| case.asked_from_two(swapped));
    assert_eq!(orders[0], orders[1], "{}", case.text());
    let bindings: Vec<_> = asked.bindings.iter().map(|owned| &owned.rule).collect();
    let topology = Topology::build(&asked, &bindings).unwrap_or_else(|error| panic!("{error}\n{}", case.text()));
    // Most hosts with containers have it on.
    let switched = rng.u8(..3) == 0;
    topology.host.run(|| lab::set_bridge_netfilter(switched)).expect("the host's namespace").expect("switched");
    let before = generate::case(rng, TABLES, false).for_backend(backend);
    let before = if rng.bool() { before.asked() } else { None };
    // The way to a target that this network lacks cannot be told.
    let before = before.filter(|before| before.bindings.iter().all(|owned| !owned.rule.loopback));
    let packets: Vec<Packet> = (0u16..)
        .map(|index| 20_000 + index)
        .take(PACKETS)
        .filter_map(|port| generate::packet(rng, &asked, &topology, port))
        .collect();
    let capture = Capture::open(&topology).expect("packets get through");
    topology.host.run(|| incrementally(before, &asked, &case, backend)).expect("the host's namespace");
    // Who comes first must not matter.
    let rival_first = rivalled && rng.bool();
    if rival_first {
        topology.host.run(|| rival(backend)).expect("the host's namespace");
    }
    let applied = lab::apply(&topology, &asked, backend);
    let (_, host) = applied.unwrap_or_else(|error| panic!("{error:?}\n{}", case.text()));
    if rivalled && !rival_first {
        topology.host.run(|| rival(backend)).expect("the host's namespace");
    }
    let sightings = capture.send(&packets).expect("sends");
    for (packet, observation) in packets.iter().zip(&sightings) {
        let Meaning { forward, fate } = meaning(&sets, &host, packet);
        // What we rewrite nobody rewrites after us; the rest is the rival's.
        let ours = forward.is_some() && !matches!(fate, Fate::Leaves { seen, .. } if seen.first == packet.source.ip());
        if (ours || !rivalled)
            && !observation.matches_fate(packet, &fate)
            && visible(packet, &fate, &topology, switched)
        {
            let against = if rivalled { " (against a rival)" } else { "" };
            explain(
                &case,
                packet,
                backend,
                &format!("after {} packets: {observation:?} is not {fate:?}{against}", done.load(Ordering::Relaxed)),
            );
        }
    }
    packets.len()
}

/// Another program's NAT at the places that Docker and most others take, after ours by default: all that it can get goes to
/// a port of this host, or leaves with an address that nobody else gives.
fn rival(backend: Backend) {
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

/// Whether it can be seen in this network where a packet goes: somebody must be there. And where bridges ask netfilter, it
/// must be none that a bridge takes into its own hands ([`lab::set_bridge_netfilter`]): one that goes back to the port it
/// came from, or one that this host does not forward.
fn visible(packet: &Packet, fate: &Fate, topology: &Topology, switched: bool) -> bool {
    let to = match fate {
        Fate::Leaves { to, .. } => to,
        Fate::Dropped(Dropped::NotForwarded) => return !switched,
        Fate::Dropped(_) | Fate::Here { .. } => return true,
    };
    let Some(receiver) = topology.namespace_of(to.ip()) else { return false };
    let sender = topology.sender(packet).filter(|_| packet.interface.is_some());
    !(switched && sender.is_some_and(|sender| std::ptr::eq(sender, receiver)))
}

/// Goes from one rule set to another, and checks that this is where it ends.
fn incrementally(before: Option<Asked>, asked: &Asked, case: &Case, backend: Backend) {
    let mut engine = Engine::open(Storage::Memory, backend, Scope::Full).expect("opens");
    for step in before.into_iter().chain([asked.clone()]) {
        let after = State { asked: step.into(), ..engine.state().clone() };
        engine.commit(after, Options::default()).unwrap_or_else(|error| panic!("{error:?}\n{}", case.text()));
    }
    let plan = engine.plan_rules(&asked.clone().into()).expect("plans");
    assert!(plan.is_empty(), "{:?}\n{}", plan.steps, case.text());
    let mut lifted = engine.live().expect("reads").lift();
    let mut wanted = asked.clone();
    wanted.settings.clear();
    // A network that neither masquerades nor isolates leaves nothing in a kernel.
    wanted.networks.retain(|owned| owned.rule.masquerade || owned.rule.isolate);
    wanted.normalize();
    lifted.asked.normalize();
    assert_eq!(lifted.foreign, Vec::<String>::new(), "{}", case.text());
    assert_eq!(lifted.asked, wanted, "{}", case.text());
    // The network goes back to what it was, for the rules alone to be there when packets come.
    engine.commit(State::default(), Options::default()).expect("flushes");
}

/// Shrinks a mismatch to the tables that it takes, and fails with what anyone can replay.
fn explain(case: &Case, packet: &Packet, backend: Backend, found: &str) -> ! {
    let mut small = case.clone();
    let alone = mismatches(&small, packet, backend);
    if alone {
        let mut index = 0;
        while index < small.pieces.len() {
            let mut fewer = small.clone();
            fewer.pieces.remove(index);
            if mismatches(&fewer, packet, backend) {
                small = fewer;
            } else {
                index += 1;
            }
        }
    }
    let path = std::env::temp_dir().join(format!("oracle-{}.toml", packet.source.port()));
    std::fs::write(&path, small.text()).expect("written");
    let again = if alone { "" } else { "(only in company of the other packets of its run)\n" };
    panic!(
        "MISMATCH {found}\n{again}{}\nreplay with ({backend:?}): portfwd try {} --packet '{packet}'\n",
        small.text(),
        path.display()
    );
}

/// Whether a packet alone does not go where a rule set says.
fn mismatches(case: &Case, packet: &Packet, backend: Backend) -> bool {
    let Some((asked, written)) = case.written() else { return false };
    let bindings: Vec<_> = asked.bindings.iter().map(|owned| &owned.rule).collect();
    let sendable = Topology::build(&asked, &bindings).is_ok_and(|topology| generate::sendable(packet, &topology));
    let trial = || lab::try_out(&asked, &written, &Selection::Packets(vec![packet.clone()]), backend).expect("tried");
    sendable && !trial().reports.iter().all(lab::Report::is_as_expected)
}
