//! Rows for reports: forwards in order of precedence, and rules that rewrite sources.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::findings::addresses::loopback;
use super::forwards::Forward;
use crate::model::{Counter, Family};
use crate::ruleset::describe;
use crate::ruleset::fold;
use crate::ruleset::host::Host;
use crate::ruleset::index::RegionIndex;
use crate::ruleset::region::{Field, LOCAL, Region};
use crate::ruleset::set::Set;
use crate::ruleset::table::{At, Case, Hook, Rewrite};
use crate::ruleset::view::{Fate, Step, Translation};

/// A row: a NAT rule or one element of its map, with the packets of one path to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The address family of the packets. `None` means both.
    pub family: Option<Family>,
    /// How it rewrites.
    pub translation: Translation,
    /// Protocols, `tcp`; none: all.
    pub protocol: Option<String>,
    /// Destination addresses. `local` means every address of the host. `None` means all.
    pub address: Option<String>,
    /// Destination ports, for example `80` or `{ 80, 443 }`. `None` means all.
    pub ports: Option<String>,
    /// The ingress interface.
    pub input: Option<String>,
    /// The egress interface.
    pub output: Option<String>,
    /// Sources.
    pub from: Option<String>,
    /// All other conditions in nft(8) syntax. Conditions that are not understood are in brackets.
    pub conditions: Vec<String>,
    /// Earlier rules that take some of these packets, with their effect.
    pub except: Vec<String>,
    /// The new destination or source. Empty for the interface's address or this host.
    pub to: String,
    /// The hooks, each with the index in the path of the hook.
    pub hooks: Vec<(Hook, usize)>,
    /// True if the row is certain: all conditions are understood, and the order of chains is known.
    pub sure: bool,
    /// True if all conditions are understood, also those of earlier rules that take packets of the row.
    pub understood: bool,
    /// Who made it.
    pub owner: String,
    /// Table, chain, and handle or line of the rule.
    pub rule: String,
    /// Its place.
    pub at: At,
    /// Its comment.
    pub comment: Option<String>,
    /// The rule's counter. A rule with a map counts for all of its elements.
    pub counter: Option<Counter>,
}

/// The maximum number of exceptions in a row.
const MOST: usize = 8;

/// Returns the forwards of a host in order of precedence. A rule that several jumps reach with different packets has several
/// rows.
pub fn forwards(host: &Host) -> Vec<Row> {
    let exceptions = Exceptions::new(host);
    let mut rows = Vec::new();
    for forward in Forward::all(&host.view) {
        for steps in forward.apart() {
            let Some((_, _, first)) = steps.first() else { continue };
            let mut row = Row::new(host, forward.family, forward.at, &first.region);
            row.translation = forward.translation;
            row.to = describe::target(forward.to);
            for (hook, number, step) in &steps {
                row.hooks.push((*hook, *number));
                row.understood &= step.region.is_known();
                row.sure &= !step.tied;
            }
            row.hooks.dedup_by_key(|(hook, _)| *hook);
            for (hook, number, step) in &steps {
                let (words, understood) = exceptions.of(&forward.steps, forward.family, *hook, *number, step);
                row.understood &= understood;
                row.except.extend(words);
            }
            row.sure &= row.understood;
            row.except.sort_unstable();
            row.except.dedup();
            let own = host.rules.at(forward.at).filter(|_| row.owner == "portfwd");
            let actions = own.and_then(|(_, _, rule)| Some(rule.cases.get(forward.at.case)?.actions.clone()));
            let case = actions.map(|actions| Case { region: first.region.clone(), actions });
            if case.is_some() {
                row.to = own_target(&first.region, forward.to);
            }
            rows.push((row, case));
        }
    }
    rows.sort_by_key(|(row, _)| (row.family, row.hooks.first().copied()));
    join(&mut rows);
    rows.into_iter().map(|(row, _)| row).collect()
}

/// Joins the rows of portfwd's own table that are one forward: the rules of a large range are in several maps.
fn join(rows: &mut Vec<(Row, Option<Case>)>) {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (number, (row, _)) in rows.iter().enumerate().filter(|(_, (_, case))| case.is_some()) {
        let hooks: Vec<Hook> = row.hooks.iter().map(|(hook, _)| *hook).collect();
        let group = (row.family, row.at.table, row.protocol.clone(), hooks, row.except.clone());
        groups.entry(group).or_default().push(number);
    }
    let mut gone = BTreeSet::new();
    for mut group in groups.into_values() {
        let case = |number: usize| rows.get(number).and_then(|(_, case)| case.as_ref());
        group.sort_by_key(|number| case(*number).and_then(|case| case.region.get(Field::Port).first()));
        let mut numbers = group.into_iter();
        let Some(mut kept) = numbers.next() else { continue };
        for number in numbers {
            let both = rows
                .get(kept)
                .zip(rows.get(number))
                .and_then(|((_, a), (_, b))| fold::joined(a.as_ref()?, b.as_ref()?));
            let Some(case) = both else {
                kept = number;
                continue;
            };
            // The row of the rule that the kernel evaluates first stays.
            gone.insert(kept.max(number));
            kept = kept.min(number);
            if let Some((row, old)) = rows.get_mut(kept) {
                row.ports = Some(describe::set(Field::Port, case.region.get(Field::Port), Family::Ipv4));
                row.to = fold::rewrite(&case).map_or_else(String::new, |(_, to)| own_target(&case.region, to));
                *old = Some(case);
            }
        }
    }
    let mut number = 0..;
    rows.retain(|_| number.next().is_none_or(|number| !gone.contains(&number)));
    join_loopback(rows);
}

/// Joins the two rows of a forward of portfwd that also serves loopback addresses.
fn join_loopback(rows: &mut Vec<(Row, Option<Case>)>) {
    let of_loopback = |(row, case): &(Row, Option<Case>)| {
        let address = case.as_ref().map(|case| case.region.get(Field::Destination));
        row.family.is_some_and(|family| address == Some(&loopback(family)))
    };
    // The rules for loopback addresses and the other rules have the same elements.
    let key = |row: &Row| (row.family, row.at.table, row.protocol.clone(), row.ports.clone(), row.to.clone());
    let mut found: BTreeMap<_, usize> = BTreeMap::new();
    for (number, row) in rows.iter().enumerate().filter(|(_, row)| of_loopback(row)) {
        found.insert(key(&row.0), number);
    }
    let mut gone = BTreeSet::new();
    for (row, case) in rows.iter_mut().filter(|row| row.1.is_some() && !of_loopback(row)) {
        let Some(number) = found.get(&key(row)).filter(|_| row.from.is_none() && case.is_some()) else { continue };
        gone.insert(*number);
        row.except.retain(|words| !["ip daddr 127.0.0.0/8 passes", "ip6 daddr ::1 passes"].contains(&words.as_str()));
    }
    let mut number = 0..;
    rows.retain(|_| number.next().is_none_or(|number| !gone.contains(&number)));
}

/// Returns the target of a forward of portfwd as the user wrote it, without the base port of a range.
fn own_target(region: &Region, to: &Rewrite) -> String {
    let first = region.get(Field::Port).first();
    match to.base {
        Some(base) if first == Some(base.into()) => describe::target(&Rewrite { base: None, ..to.clone() }),
        _ => describe::target(to),
    }
}

/// Returns the rules that rewrite sources, in order of precedence.
pub fn sources(host: &Host) -> Vec<Row> {
    let exceptions = Exceptions::new(host);
    let mut rows = Vec::new();
    for way in host.view.ways.iter().filter(|way| matches!(way.hook, Hook::Input | Hook::Postrouting)) {
        for (number, step, translation, to) in way.translations() {
            let mut row = Row::new(host, way.family, step.at, &step.region);
            row.translation = translation;
            row.to = describe::target(to);
            row.hooks.push((way.hook, number));
            let (words, understood) = exceptions.of(&[], way.family, way.hook, number, step);
            row.except = words;
            row.understood = understood && step.region.is_known();
            row.sure = row.understood && !step.tied;
            rows.push(row);
        }
    }
    join_families(&mut rows);
    rows
}

/// Joins the IPv4 row and the IPv6 row of a rule, if they differ only in the family.
fn join_families(rows: &mut Vec<Row>) {
    let mut of_ipv6: HashMap<At, Vec<usize>> = HashMap::new();
    for (number, row) in rows.iter().enumerate().filter(|(_, row)| row.family == Some(Family::Ipv6)) {
        of_ipv6.entry(row.at).or_default().push(number);
    }
    let mut gone = BTreeSet::new();
    for number in 0..rows.len() {
        let Some(row) = rows.get(number).filter(|row| row.family == Some(Family::Ipv4)) else { continue };
        let hook = |row: &Row| row.hooks.first().map(|(hook, _)| *hook);
        let same = |other: &&usize| {
            rows.get(**other).is_some_and(|other| {
                let as_ipv4 = Row { family: row.family, hooks: row.hooks.clone(), ..other.clone() };
                hook(row) == hook(other) && as_ipv4 == *row
            })
        };
        if let Some(other) = of_ipv6.get(&row.at).and_then(|others| others.iter().find(same)) {
            gone.insert(*other);
            if let Some(row) = rows.get_mut(number) {
                row.family = None;
            }
        }
    }
    let mut number = 0..;
    rows.retain(|_| number.next().is_none_or(|number| !gone.contains(&number)));
}

impl Row {
    fn new(host: &Host, family: Family, at: At, region: &Region) -> Self {
        let (known, place) = (host.rules.at(at), host.place(at));
        let region = &short(host, family, region);
        let rule = known.map(|(_, _, rule)| rule);
        let words = |field| {
            let set = region.get(field);
            (!set.is_all()).then(|| describe::set(field, set, family))
        };
        // A condition that every packet of the hook fulfils is not printed.
        let interface = |field| {
            words(field).filter(|_| !Set::single(0).not().eq(region.get(field)) && region.get(field).only() != Some(0))
        };
        Self {
            family: Some(family),
            translation: Translation::Dnat,
            protocol: words(Field::Protocol),
            address: address(host, family, region),
            ports: words(Field::Port),
            input: interface(Field::Input),
            output: interface(Field::Output),
            from: words(Field::Source),
            conditions: conditions(region, family),
            except: Vec::new(),
            to: String::new(),
            hooks: Vec::new(),
            sure: true,
            understood: true,
            owner: place.owner,
            rule: place.rule,
            at,
            comment: rule.and_then(|rule| rule.comment.as_deref()).map(str::to_owned),
            counter: rule.and_then(|rule| rule.counter),
        }
    }
}

/// Returns the destination addresses of a region. Prints `local` instead of the list of all addresses of the host.
fn address(host: &Host, family: Family, region: &Region) -> Option<String> {
    let (set, kind) = (region.get(Field::Destination), region.get(Field::DestinationKind));
    let all = || set.is_all() || host.facts.as_ref().is_some_and(|facts| facts.local(family) == *set);
    let words = || describe::set(Field::Destination, set, family);
    if kind.only() == Some(LOCAL) {
        return Some(if all() { "local".into() } else { format!("local {}", words()) });
    }
    match (set.is_all(), kind.is_all()) {
        (true, true) => None,
        (false, true) => Some(words()),
        (true, false) => Some(format!("type {}", describe::set(Field::DestinationKind, kind, family))),
        (false, false) => Some(format!("type {} {}", describe::set(Field::DestinationKind, kind, family), words())),
    }
}

/// Returns a region without the host's addresses if it already requires local addresses.
fn short(host: &Host, family: Family, region: &Region) -> Region {
    let mut region = region.clone();
    let Some(facts) = &host.facts else { return region };
    for (kind, address) in [(Field::DestinationKind, Field::Destination), (Field::SourceKind, Field::Source)] {
        if region.get(kind).only() == Some(LOCAL) && *region.get(address) == facts.local(family) {
            region.forget(address);
        }
    }
    region
}

/// Returns all conditions of a region except addresses, ports, protocols and interfaces.
fn conditions(region: &Region, family: Family) -> Vec<String> {
    let mut rest = region.clone();
    for field in [
        Field::Protocol,
        Field::Destination,
        Field::DestinationKind,
        Field::Port,
        Field::Input,
        Field::Output,
        Field::Source,
    ] {
        rest.forget(field);
    }
    let words = describe::region(&rest, family);
    if words.is_empty() { Vec::new() } else { vec![words] }
}

/// Finds, for each path, the earlier steps that take packets of a later step.
struct Exceptions<'a> {
    host: &'a Host,
    ways: BTreeMap<(Family, Hook), (Vec<usize>, RegionIndex<'a>)>,
}

impl<'a> Exceptions<'a> {
    fn new(host: &'a Host) -> Self {
        let ways = host.view.ways.iter().map(|way| {
            let others = || way.steps.iter().enumerate().filter(|(_, step)| !matches!(step.fate, Fate::Rewritten(..)));
            let numbers = others().map(|(number, _)| number).collect();
            ((way.family, way.hook), (numbers, RegionIndex::new(others().map(|(_, step)| &step.region))))
        });
        Self { host, ways: ways.collect() }
    }

    /// Returns the exceptions of a step as text, and whether they are certain. Packets that earlier steps of the same
    /// forward take are no exception.
    fn of(
        &self,
        own: &[(Hook, usize, &Step)],
        family: Family,
        hook: Hook,
        number: usize,
        step: &Step,
    ) -> (Vec<String>, bool) {
        let mut sure = true;
        let mut words = Vec::new();
        let Some((numbers, overlaps)) = self.ways.get(&(family, hook)) else { return (words, sure) };
        let Some(way) = self.host.view.way(family, hook) else { return (words, sure) };
        let end = numbers.partition_point(|other| *other < number);
        for found in overlaps.meeting_before(&step.region, end) {
            let Some(other) = numbers.get(found).and_then(|at| way.steps.get(*at)) else { continue };
            let fate = match &other.fate {
                Fate::GoOn(to) if *to <= number => continue,
                Fate::GoOn(_) => "passes",
                Fate::Dropped => "is dropped",
                Fate::Unknown(_) => "is unknown",
                Fate::Rewritten(..) => continue,
            };
            let earlier = own.iter().take(MOST).filter(|(at, own, _)| *at == hook && numbers.get(found) > Some(own));
            let both = other.region.and(&step.region);
            if earlier.into_iter().any(|(_, _, own)| !own.tied && own.region.covers(&both)) {
                continue;
            }
            sure &= other.region.is_known() && !matches!(other.fate, Fate::Unknown(_));
            if words.len() < MOST {
                let region = describe::region(&short(self.host, family, &other.region), family);
                words.push(format!("{} {fate}", if region.is_empty() { "all" } else { &region }));
            }
        }
        (words, sure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::read::save;

    fn rows(rules: &str) -> Vec<String> {
        let chains = ":PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:A -\n:B -\n";
        let rules = save::parse(&format!("*nat\n{chains}{rules}COMMIT\n"), None).expect("a dump");
        let row = |row: Row| {
            let hooks: Vec<&str> = row.hooks.iter().map(|(hook, _)| hook.name()).collect();
            let (ports, input) = (row.ports.unwrap_or_default(), row.input.unwrap_or_default());
            format!("{ports} {input} {} {}", hooks.join("+"), row.except.join("; ")).trim_end().to_owned()
        };
        forwards(&Host::new(rules, None)).into_iter().map(row).collect()
    }

    #[test]
    fn a_rule_that_is_reached_in_two_ways_is_two_rows() {
        let to = "-A A -p tcp -j DNAT --to-destination 10.0.0.1:80\n";
        let jumps = "-A PREROUTING -p tcp --dport 81 -j A\n-A PREROUTING -p tcp --dport 82 -j A\n";
        assert_eq!(rows(&format!("{jumps}{to}")), ["81  prerouting", "82  prerouting"]);
        let sent = jumps.replace("PREROUTING", "OUTPUT");
        assert_eq!(rows(&format!("{jumps}{sent}{to}")), ["81  prerouting+output", "82  prerouting+output"]);
        let one = "-A OUTPUT -p tcp --dport 82 -j A\n";
        assert_eq!(rows(&format!("{jumps}{one}{to}")), ["81  prerouting", "82  prerouting+output"]);
        // A step after one that takes all packets receives none.
        let all = "-A PREROUTING -p tcp -j A\n";
        assert_eq!(rows(&format!("{all}{jumps}{to}")), ["  prerouting"]);
    }

    #[test]
    fn docker_leaves_loopback_out_of_what_this_host_sends() {
        let rules = "-A PREROUTING -m addrtype --dst-type LOCAL -j A\n\
                     -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j A\n\
                     -A A ! -i docker0 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80\n";
        assert_eq!(rows(rules), ["80 != docker0 prerouting+output"]);
    }

    #[test]
    fn what_a_rule_took_before_is_no_exception_of_itself() {
        let rules = "-A PREROUTING -i eth0 -g A\n-A PREROUTING -g A\n-A A -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1\n";
        assert_eq!(rows(rules), ["80 eth0 prerouting", "80  prerouting"]);
        // The step rewrites all packets, so none of them continues.
        let rules = "-A PREROUTING -p tcp -m tomorrow -g A\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2\n\
                     -A A -p tcp -j DNAT --to-destination 10.0.0.1\n";
        assert_eq!(rows(rules), ["  prerouting", "80  prerouting"]);
        let rules = "-A PREROUTING -p tcp -m tomorrow -g A\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2\n\
                     -A A -p tcp -m today -j DNAT --to-destination 10.0.0.1\n";
        assert_eq!(rows(rules), ["  prerouting", "80  prerouting meta l4proto tcp [-m tomorrow] passes"]);
    }
}
