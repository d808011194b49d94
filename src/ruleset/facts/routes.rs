//! Finds the route of a packet among many routes and for many packets.
//!
//! The index is built at the first lookup: for each table, family and prefix length, the best route of each prefix. So a
//! lookup costs one access for each prefix length.
//!
//! For IPv4, the kernel keeps the local and the main table in one trie until the rules change for the first time. Until then
//! a route of the main table wins over a shorter one of the local table (`fib_lookup` in include/net/ip_fib.h, measured on
//! Linux 6.18). IPv6 has two tables from the start.
//!
//! Limit: the tables stay apart after the rule is deleted, which the kernel does not report. Then this index merges them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::OnceLock;

use super::{Facts, Flow, Link, Lookup, Route};
use crate::model::Family;
use crate::ruleset::region::Truth;
use crate::ruleset::set::number_of;
use crate::sys::rtnetlink::{Effect, Rule};

/// The priorities and tables of the rules that every host has: this host's addresses, the main table, the default table.
const USUAL: [(u32, u32); 3] = [(0, LOCAL), (32766, MAIN), (32767, 253)];

/// `RT_TABLE_LOCAL`.
const LOCAL: u32 = 255;

/// `RT_TABLE_MAIN`.
const MAIN: u32 = 254;

/// `RTN_THROW`: the lookup continues with the next rule.
const THROW: u8 = 9;

/// `RTN_BLACKHOLE`: routes of this kind and above refuse packets.
const REFUSES: u8 = 6;

/// An index of routes, and of interfaces by their numbers. All indexes are equal because their content is derived.
#[derive(Debug, Default)]
pub struct RouteIndex(OnceLock<Index>);

impl Clone for RouteIndex {
    /// Returns an empty index, because most copies are changed.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for RouteIndex {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for RouteIndex {}

/// The index of the best route of each prefix of one length.
type Prefixes = HashMap<u128, usize>;

#[derive(Debug)]
struct Index {
    /// The routes of each table and family, longest prefixes first.
    tables: HashMap<(u32, Family), Vec<(u8, Prefixes)>>,
    /// The position of each interface in the list, by its number.
    links: HashMap<u32, usize>,
    /// The size of the facts when the index was built.
    made_of: (usize, usize, bool, [usize; 2]),
}

fn made_of(facts: &Facts) -> (usize, usize, bool, [usize; 2]) {
    let rules = Family::ALL.map(|family| facts.rules(family).len());
    (facts.links.len(), facts.routes.len(), facts.policy_routing, rules)
}

/// Returns true if IPv4 has one trie for the local and the main table.
fn is_merged(facts: &Facts) -> bool {
    let rules = facts.rules(Family::Ipv4);
    if rules.is_empty() {
        return !facts.policy_routing;
    }
    rules.len() == USUAL.len()
        && rules.iter().zip(USUAL).all(|(rule, usual)| rule.unconditional && (rule.priority, rule.table) == usual)
}

fn bits(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    }
}

/// Returns the first bits of an address. All prefixes of length 0 are equal.
fn prefix(number: u128, family: Family, length: u8) -> u128 {
    number.checked_shr(u32::from(bits(family).saturating_sub(length))).unwrap_or(0)
}

impl Index {
    fn new(facts: &Facts) -> Self {
        let mut tables: HashMap<(u32, Family), BTreeMap<u8, Prefixes>> = HashMap::new();
        let merged = is_merged(facts);
        for (number, route) in facts.routes.iter().enumerate() {
            let (family, length) = (Family::of_network(route.to), route.to.prefix());
            let table = if merged && (family, route.table) == (Family::Ipv4, LOCAL) { MAIN } else { route.table };
            let bits = prefix(number_of(route.to.ip()), family, length);
            let prefixes = tables.entry((table, family)).or_default().entry(length).or_default();
            let best = prefixes.entry(bits).or_insert(number);
            // The kernel takes the first of equal routes.
            let key = |route: &Route| (Reverse(route.table), route.metric);
            if facts.routes.get(*best).is_some_and(|best| key(route) < key(best)) {
                *best = number;
            }
        }
        let tables = tables.into_iter().map(|(table, lengths)| (table, lengths.into_iter().rev().collect())).collect();
        // The first of several equal numbers wins, as in the list.
        let links = facts.links.iter().enumerate().rev().map(|(at, link)| (link.index, at)).collect();
        Self { tables, links, made_of: made_of(facts) }
    }

    /// Returns the index of a table's best route to an address.
    fn best(&self, table: u32, address: IpAddr) -> Option<usize> {
        let (family, number) = (Family::of_address(address), number_of(address));
        let mut lengths = self.tables.get(&(table, family))?.iter();
        lengths.find_map(|(length, routes)| routes.get(&prefix(number, family, *length)).copied())
    }

    /// Looks up an address with the usual rules.
    fn usual(&self, routes: &[Route], address: IpAddr) -> Option<usize> {
        let mut found = USUAL.iter().filter_map(|(_, table)| self.best(*table, address));
        found.find(|number| routes.get(*number).is_some_and(|route| route.kind != THROW))
    }

    /// Looks up a packet with the rules of its family, as `fib_rules_lookup` in net/core/fib_rules.c does.
    fn lookup(&self, facts: &Facts, flow: &Flow) -> (Option<usize>, bool, bool) {
        let rules = facts.rules(Family::of_address(flow.destination));
        let mut sure = !facts.special_routes && (!rules.is_empty() || !facts.policy_routing);
        if rules.is_empty() {
            return (self.usual(&facts.routes, flow.destination), false, sure);
        }
        let mut from = 0;
        for rule in rules {
            if rule.priority < from {
                continue;
            }
            match matches(rule, facts, flow) {
                Truth::Yes => {}
                Truth::No => continue,
                Truth::Maybe => {
                    sure = false;
                    continue;
                }
            }
            match rule.effect {
                Effect::Continue => {}
                // The kernel only allows a jump to a later rule.
                Effect::Goto(priority) => from = priority,
                Effect::Refuse => return (None, true, sure),
                Effect::Lookup => {
                    let found = self.best(rule.table, flow.destination);
                    let route = found.and_then(|number| facts.routes.get(number));
                    let suppressed = |route: &Route| {
                        let short = rule.suppress.is_some_and(|most| u32::from(route.to.prefix()) <= most);
                        // A route that refuses packets is not suppressed.
                        short && route.kind < REFUSES
                    };
                    if route.is_some_and(|route| route.kind != THROW && !suppressed(route)) {
                        return (found, false, sure);
                    }
                }
            }
        }
        (None, false, sure)
    }
}

/// Returns true if a rule matches a packet: `fib_rule_match` in net/core/fib_rules.c and `fib4_rule_match` in
/// net/ipv4/fib_rules.c.
fn matches(rule: &Rule, facts: &Facts, flow: &Flow) -> Truth {
    if rule.vrf {
        let has_vrf = facts.links.iter().any(|link| link.kind.as_deref() == Some("vrf"));
        return if has_vrf { Truth::Maybe } else { Truth::No };
    }
    fn holds<W, T>(wanted: &Option<W>, value: Option<T>, is: impl Fn(&W, T) -> bool) -> Truth {
        match (wanted, value) {
            (None, _) => Truth::Yes,
            (Some(_), None) => Truth::Maybe,
            (Some(wanted), Some(value)) => is(wanted, value).into(),
        }
    }
    let within = |(first, last): &(u16, u16), port: u16| (*first..=*last).contains(&port);
    let is_link = |name: &String, index: u32| facts.named(name).is_some_and(|link| link.index == index);
    let selectors = [
        holds(&rule.from, flow.source, |from, source| from.contains(source)),
        holds(&rule.to, Some(flow.destination), |to, destination| to.contains(destination)),
        holds(&rule.mark, flow.mark, |(value, mask), mark| (value ^ mark) & mask == 0),
        holds(&rule.input, flow.input, is_link),
        // No socket of a traced packet is bound to an interface.
        Truth::from(rule.output.is_none()),
        holds(&rule.protocol, flow.protocol, |wanted, protocol| *wanted == protocol),
        holds(&rule.source_ports, flow.source_port, within),
        holds(&rule.ports, flow.port, within),
    ];
    let all = selectors.into_iter().fold(if rule.unknown { Truth::Maybe } else { Truth::Yes }, Truth::and);
    if rule.inverted { !all } else { all }
}

impl RouteIndex {
    /// Returns the route to an address with the usual rules.
    pub(super) fn route<'a>(&self, facts: &'a Facts, address: IpAddr) -> Option<&'a Route> {
        let number = self.with(facts, |index| index.usual(&facts.routes, address))?;
        facts.routes.get(number)
    }

    /// Returns the routes of a packet.
    pub(super) fn lookup<'a>(&self, facts: &'a Facts, flow: &Flow) -> Lookup<'a> {
        let (number, refused, sure) = self.with(facts, |index| index.lookup(facts, flow));
        let rest = number.and_then(|number| facts.routes.get(number..)).unwrap_or_default();
        // The next hops of a route follow each other.
        let key = |route: &Route| (route.to, route.table, route.metric, route.kind);
        let hops = rest.first().map_or(0, |first| rest.iter().take_while(|route| key(route) == key(first)).count());
        Lookup { routes: rest.get(..hops).unwrap_or_default(), refused, sure }
    }

    /// Returns the interface with a number.
    pub(super) fn link<'a>(&self, facts: &'a Facts, number: u32) -> Option<&'a Link> {
        let at = self.with(facts, |index| index.links.get(&number).copied())?;
        facts.links.get(at)
    }

    /// Uses the index, or a new one if the number of routes, interfaces or rules has changed.
    fn with<T>(&self, facts: &Facts, ask: impl Fn(&Index) -> T) -> T {
        let made = self.0.get_or_init(|| Index::new(facts));
        if made.made_of == made_of(facts) { ask(made) } else { ask(&Index::new(facts)) }
    }
}
