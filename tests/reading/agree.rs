//! All readers agree on every match and target of iptables-extensions(8), or one of them answers that it does not know.
//!
//! Each rule of a table is loaded with both variants of iptables. iptables-nft is then read from the kernel, from
//! iptables-nft-save and from `nft -j`, iptables-legacy from iptables-legacy-save. Random packets compare the answers.

mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Command;

use fastrand::Rng;
use portfwd::lab::Netns;
use portfwd::model::Family;
use portfwd::nft::transaction::Connection;
use portfwd::ruleset::describe;
use portfwd::ruleset::read::nft::{Ipsets, Numbers, read_with};
use portfwd::ruleset::read::{json, save};
use portfwd::ruleset::region::{DST_NAT, Field, Packet, SRC_NAT, State, Truth};
use portfwd::ruleset::table::{Action, Rule, Ruleset};

use self::table::{Known, MATCHES, MATCHES_OF_IPV6, TARGETS};
use super::{name, number};
use crate::support::privileged;

/// The names of the matches in iptables-extensions(8) 1.8.9.
const MANUAL: &str = "addrtype ah bpf cgroup cluster comment connbytes connlabel connlimit connmark conntrack cpu dccp \
    devgroup dscp dst ecn esp eui64 frag hashlimit hbh helper hl icmp icmp6 ipcomp iprange ipv6header ipvs length limit mac \
    mark mh multiport nfacct osf owner physdev pkttype policy quota rateest realm recent rpfilter rt sctp set socket srh \
    state statistic string tcp tcpmss time tos ttl u32 udp";

struct Entry {
    rule: String,
    table: &'static str,
    chain: &'static str,
    known: Known,
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().expect("the program starts");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned()),
    }
}

/// Splits arguments at spaces. The bytecode of `-m bpf` is the only argument with a space.
fn arguments(rule: &str) -> Vec<&str> {
    const BYTECODE: &str = "1,6 0 0 1";
    match rule.split_once(BYTECODE) {
        Some((before, after)) => before.split_whitespace().chain([BYTECODE]).chain(after.split_whitespace()).collect(),
        None => rule.split_whitespace().collect(),
    }
}

/// Loads each entry with a comment that names it. Returns the errors of entries that were refused.
fn load(program: &str, entries: &[Entry]) -> BTreeMap<usize, String> {
    let mut refused = BTreeMap::new();
    for (number, entry) in entries.iter().enumerate() {
        let comment = format!("entry-{number}");
        let (matches, target) = entry.rule.split_once("-j ").expect("a target");
        let target = format!("-j {target}");
        let mut words = vec!["-w", "-t", entry.table, "-A", entry.chain];
        words.extend(arguments(matches));
        words.extend(["-m", "comment", "--comment", &comment]);
        words.extend(arguments(&target));
        if let Err(error) = run(program, &words) {
            refused.insert(number, error);
        }
    }
    refused
}

/// Returns the rules by the numbers of their entries. A reader may find several rules of one comment.
fn by_entry(rules: &Ruleset) -> HashMap<usize, Rule> {
    let chains = rules.tables.iter().flat_map(|table| table.chains.iter());
    let rules = chains.flat_map(|chain| &chain.rules);
    let number = |rule: &Rule| rule.comment.as_deref()?.strip_prefix("entry-")?.parse().ok();
    rules.filter_map(|rule| Some((number(rule)?, rule.clone()))).collect()
}

/// Returns the rules of `nft -j` by the numbers of their entries. nft does not print comments of iptables, so the handles of
/// the live rules identify them.
fn by_handle(json: &Ruleset, live: &Ruleset) -> HashMap<usize, Rule> {
    let rules = |rules: &Ruleset| -> Vec<(String, Rule)> {
        let of = |table: &portfwd::ruleset::table::Table| {
            let rules = table.chains.iter().flat_map(|chain| chain.rules.clone());
            rules.map(|rule| (format!("{table} {:?}", rule.handle), rule)).collect::<Vec<_>>()
        };
        rules.tables.iter().flat_map(of).collect()
    };
    let mut json: HashMap<String, Rule> = rules(json).into_iter().collect();
    let number = |rule: &Rule| rule.comment.as_deref()?.strip_prefix("entry-")?.parse().ok();
    rules(live).into_iter().filter_map(|(key, rule)| Some((number(&rule)?, json.remove(&key)?))).collect()
}

/// The answer of a reader for one packet. `None`: the reader does not know.
fn answer(rule: &Rule, packet: &Packet) -> Option<Vec<String>> {
    for case in &rule.cases {
        match case.region.has(packet) {
            Truth::No => {}
            Truth::Maybe => return None,
            Truth::Yes => {
                // A reject whose answer the reader does not know is described as an error.
                let unknown = |action: &Action| {
                    matches!(action, Action::Unknown(_) | Action::MarkUnknown { .. })
                        || describe::action(action).ends_with("an error")
                };
                let known = !case.actions.iter().any(unknown);
                return known.then(|| case.actions.iter().map(describe::action).collect());
            }
        }
    }
    // A rule that does nothing is no rule.
    Some(Vec::new())
}

fn packet(rng: &mut Rng, family: Family) -> Packet {
    let mut pick = |from: &[u128]| from[rng.usize(..from.len())];
    let four = [number("10.0.0.1"), number("10.0.0.9"), number("10.9.0.2"), number("10.9.0.3"), number("192.0.2.1")];
    let six = [number("fd00::1"), number("fd00::2"), number("fd00::9"), number("fd00:0:0:1::2"), number("2001:db8::1")];
    let addresses = if family == Family::Ipv4 { four } else { six };
    let ports = [1, 53, 79, 80, 90, 100, 443, 450, 9000, 65535];
    let names = [name("eth0"), name("eth1"), name("lo"), name("br0")];
    Packet::new(family)
        .with(Field::Input, pick(&names))
        .with(Field::Output, pick(&names))
        .with(Field::Source, pick(&addresses))
        .with(Field::Destination, pick(&addresses))
        .with(Field::Protocol, pick(&[6, 6, 17, 17, 33, 132, 132, 136, 1, 58, 41, 50, 51, 89, 108, 112, 115, 135, 143]))
        .with(Field::SourcePort, pick(&ports))
        .with(Field::Port, pick(&ports))
        .with(Field::SourceKind, pick(&[1, 2, 3]))
        .with(Field::DestinationKind, pick(&[1, 2, 3, 5]))
        .with(Field::State, pick(&State::ALL.map(State::number)))
        .with(Field::Mark, pick(&[0, 7, 0x10, 0x30]))
        .with(Field::ConnectionMark, pick(&[0, 7, 0x10, 0x30]))
        .with(Field::Status, pick(&[0, 1, 2, 4, 8, DST_NAT, SRC_NAT, DST_NAT | SRC_NAT | 2]))
        .with(Field::OriginalDestination, pick(&addresses))
        .with(Field::OriginalPort, pick(&ports))
        .with(Field::Direction, pick(&[0, 1]))
        .with(Field::Label, pick(&[0, 1 << 125, 1 << 7, u128::MAX]))
        .with(Field::TcpFlags, pick(&[0, 1, 2, 4, 6, 16, 17, 18, 0xc2]))
}

/// Loads entries with both variants and compares all readers. Returns the number of rules that were compared.
fn compare(family: Family, entries: &[Entry]) -> usize {
    let (word, id) = if family == Family::Ipv4 { ("iptables", "hash:ip") } else { ("ip6tables", "hash:ip") };
    let inet = if family == Family::Ipv4 { "inet" } else { "inet6" };
    let job = || {
        let ipset = run("ipset", &["create", "portfwd-a", id, "family", inet, "skbinfo"]);
        let refused = ["nft", "legacy"].map(|variant| load(&format!("{word}-{variant}"), entries));
        let numbers = Numbers { links: &HashMap::new(), ipsets: &Ipsets::of_kernel() };
        let live = read_with(&mut Connection::open().expect("netlink"), numbers).expect("readable");
        let saved = |variant: &str| run(&format!("{word}-{variant}-save"), &[]).expect("a dump");
        let texts = [saved("nft"), saved("legacy"), run("nft", &["-j", "list", "ruleset"]).expect("JSON")];
        (ipset, refused, live, texts)
    };
    let (ipset, refused, live, texts) = Netns::new().expect("namespace").run(job).expect("the namespace");
    if let Err(error) = ipset {
        eprintln!("not tried: ipset: {error}");
    }
    let parsed = |text: &str| save::parse(text, Some(family)).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let json = json::parse(&texts[2]).expect("JSON");
    let readers = [
        ("iptables-nft live", by_entry(&live)),
        ("iptables-nft-save", by_entry(&parsed(&texts[0]))),
        ("iptables-legacy", by_entry(&parsed(&texts[1]))),
        ("nft -j", by_handle(&json, &live)),
    ];
    let (mut compared, mut faults) = (0, Vec::new());
    for (number, entry) in entries.iter().enumerate() {
        for (variant, refused) in ["nft", "legacy"].iter().zip(&refused) {
            if let Some(error) = refused.get(&number) {
                eprintln!("not tried: {word}-{variant} {}: {error}", entry.rule);
            }
        }
        let has = |reader: &str| match reader {
            "iptables-legacy" => !refused[1].contains_key(&number),
            _ => !refused[0].contains_key(&number),
        };
        for (reader, rules) in readers.iter().filter(|(reader, _)| has(reader)) {
            if !rules.contains_key(&number) {
                faults.push(format!("{reader}: no rule for {}", entry.rule));
            }
        }
        let found: Vec<(&str, &Rule)> =
            readers.iter().filter_map(|(reader, rules)| Some((*reader, rules.get(&number)?))).collect();
        compared += usize::from(found.len() > 1);
        faults.extend(differences(family, entry, &found));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    compared
}

/// Compares the answers of several readers for one rule.
fn differences(family: Family, entry: &Entry, found: &[(&str, &Rule)]) -> Vec<String> {
    let shown = |rule: &Rule| {
        let case = |case: &portfwd::ruleset::table::Case| {
            let actions: Vec<String> = case.actions.iter().map(describe::action).collect();
            format!("{} => {}", describe::region(&case.region, family), actions.join(", "))
        };
        rule.cases.iter().map(case).collect::<Vec<_>>().join(" | ")
    };
    let all = || found.iter().map(|(reader, rule)| format!("\n    {reader}: {}", shown(rule))).collect::<String>();
    let mut rng = Rng::with_seed(7);
    let (mut certain, mut matched) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..4000 {
        let packet = packet(&mut rng, family);
        let answers: Vec<(&str, Option<Vec<String>>)> =
            found.iter().map(|(reader, rule)| (*reader, answer(rule, &packet))).collect();
        let mut known = answers.iter().filter_map(|(reader, answer)| Some((*reader, answer.as_ref()?)));
        if let Some((first, expected)) = known.next()
            && let Some((other, _)) = known.find(|(_, answer)| *answer != expected)
        {
            return vec![format!("{}: {first} and {other} differ for {packet:?}{}", entry.rule, all())];
        }
        for (reader, answer) in answers {
            match answer {
                None => _ = certain.insert((reader, false)),
                Some(actions) => _ = matched.insert((reader, !actions.is_empty())),
            }
        }
    }
    let mut faults = Vec::new();
    for (reader, _) in found.iter().filter(|(reader, _)| *reader != "nft -j") {
        match entry.known {
            Known::Yes if certain.contains(&(*reader, false)) => {
                faults.push(format!("{}: {reader} does not understand it{}", entry.rule, all()));
            }
            Known::No if !certain.contains(&(*reader, false)) => {
                faults.push(format!("{}: {reader} is certain{}", entry.rule, all()));
            }
            _ => {}
        }
        // No connection has the status `NONE`.
        let acts = found.iter().filter(|(reader, _)| *reader != "nft -j");
        let acts = acts.flat_map(|(_, rule)| &rule.cases).any(|case| !case.actions.is_empty());
        let tried = matched.contains(&(*reader, true)) || entry.rule.contains("--ctstatus NONE");
        if entry.known == Known::Yes && acts && !tried {
            faults.push(format!("{}: no packet matches for {reader}{}", entry.rule, all()));
        }
    }
    faults
}

#[test]
fn readers_agree_on_every_match() {
    if !privileged() {
        return;
    }
    let listed: BTreeSet<&str> = MATCHES.iter().chain(MATCHES_OF_IPV6).map(|(name, ..)| *name).collect();
    let missing: Vec<&str> = MANUAL.split_whitespace().filter(|name| !listed.contains(name)).collect();
    assert!(missing.is_empty(), "no entry for {missing:?}");
    let mut compared = 0;
    for (family, matches, targets) in [
        (Family::Ipv4, MATCHES, ["ACCEPT", "DROP", "DNAT --to-destination 10.9.0.9"]),
        (Family::Ipv6, MATCHES_OF_IPV6, ["ACCEPT", "DROP", "DNAT --to-destination fd00::9"]),
    ] {
        for target in targets {
            let nat = target.starts_with("DNAT");
            let entries = matches.iter().filter_map(|(_, rule, chain, known)| {
                let (table, chain) = match (nat, *chain) {
                    // The nat chain of incoming packets has no egress interface.
                    (true, "FORWARD") if rule.contains("-o ") => return None,
                    (true, "FORWARD" | "PREROUTING") => ("nat", "PREROUTING"),
                    (true, chain) => ("nat", chain),
                    (false, chain) => ("mangle", chain),
                };
                Some(Entry { rule: format!("{rule} -j {target}"), table, chain, known: *known })
            });
            compared += compare(family, &entries.collect::<Vec<_>>());
        }
    }
    assert!(compared > 250, "only {compared} rules were compared");
}

#[test]
fn readers_agree_on_every_target() {
    if !privileged() {
        return;
    }
    let entries = TARGETS.iter().map(|(table, chain, rule, known)| {
        let rule = if rule.starts_with("-j") { format!("-s 10.0.0.1 {rule}") } else { (*rule).to_owned() };
        Entry { rule, table, chain, known: *known }
    });
    let compared = compare(Family::Ipv4, &entries.collect::<Vec<_>>());
    assert!(compared > 40, "only {compared} rules were compared");
}
