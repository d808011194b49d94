//! Finding the route that packets for an address take, among many and for many addresses.
//!
//! Made when the first way is asked for: for each table, family and length of prefix what the first bits of addresses lead
//! to. So one way costs a look-up for each length that there is, however many routes there are.
//!
//! Of IPv4 the kernel keeps the local and the main table as one until it gets the first rule that is not a usual one: so
//! long a route of the main table wins over a shorter one of the local table (`fib_lookup` in include/net/ip_fib.h,
//! measured, Linux 6.18). Of IPv6 it asks one after the other.
//!
//! Be aware: once they were parted they stay so, even where that rule is gone. Then both are taken for one here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::OnceLock;

use super::{Facts, Link, Route};
use crate::model::Family;
use crate::ruleset::set::number_of;

/// The tables that the usual rules ask, in this order: this host's addresses, the main one, the default one.
const ASKED: [u32; 3] = [255, 254, 253];

/// `RTN_THROW`: asks the next table.
const THROW: u8 = 9;

/// What finds routes, and interfaces by their numbers. All are equal: what they find is not theirs.
#[derive(Debug, Default)]
pub struct RouteIndex(OnceLock<Index>);

impl Clone for RouteIndex {
    /// One that is not made yet, for a copy is mostly changed.
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

/// Prefixes of one length by their bits: the numbers of their best routes.
type Prefixes = HashMap<u128, usize>;

#[derive(Debug)]
struct Index {
    /// Of each of [`ASKED`], by family; longest prefixes first.
    tables: [[Vec<(u8, Prefixes)>; 2]; 3],
    /// The numbers in the list of interfaces by the kernel's.
    links: HashMap<u32, usize>,
    /// How much it was made of, and whether there were other rules than the usual ones.
    made_of: (usize, usize, bool),
}

fn made_of(facts: &Facts) -> (usize, usize, bool) {
    (facts.links.len(), facts.routes.len(), facts.policy_routing)
}

fn bits(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    }
}

/// The first bits of an address; all prefixes of length 0 are alike.
fn prefix(number: u128, family: Family, length: u8) -> u128 {
    number.checked_shr(u32::from(bits(family).saturating_sub(length))).unwrap_or(0)
}

fn at(family: Family) -> usize {
    usize::from(family == Family::Ipv6)
}

impl Index {
    fn new(facts: &Facts) -> Self {
        let mut tables: [[BTreeMap<u8, Prefixes>; 2]; 3] = Default::default();
        for (number, route) in facts.routes.iter().enumerate() {
            let (family, length) = (Family::of_network(route.to), route.to.prefix());
            let one = family == Family::Ipv4 && !facts.policy_routing && route.table == 255;
            let table = if one { 254 } else { route.table };
            let table = ASKED.iter().position(|asked| *asked == table).and_then(|at| tables.get_mut(at));
            let Some(table) = table.and_then(|families| families.get_mut(at(family))) else { continue };
            let bits = prefix(number_of(route.to.ip()), family, length);
            let best = table.entry(length).or_default().entry(bits).or_insert(number);
            // Of equal ones the first is asked, as in the kernel.
            let key = |route: &Route| (Reverse(route.table), route.metric);
            if facts.routes.get(*best).is_some_and(|best| key(route) < key(best)) {
                *best = number;
            }
        }
        let tables = tables.map(|table| table.map(|lengths| lengths.into_iter().rev().collect()));
        // The first of a number is the one, as in a list.
        let links = facts.links.iter().enumerate().rev().map(|(at, link)| (link.index, at)).collect();
        Self { tables, links, made_of: made_of(facts) }
    }

    fn best(&self, routes: &[Route], address: IpAddr) -> Option<usize> {
        let (family, number) = (Family::of_address(address), number_of(address));
        for table in &self.tables {
            let lengths = table.get(at(family)).into_iter().flatten();
            let mut found = lengths.filter_map(|(length, routes)| routes.get(&prefix(number, family, *length)));
            match found.next().and_then(|number| Some((*number, routes.get(*number)?))) {
                Some((number, route)) if route.kind != THROW => return Some(number),
                _ => {}
            }
        }
        None
    }
}

impl RouteIndex {
    /// The route for an address, by what the usual rules ask: within a table that of the longest prefix, of several the one
    /// of the least metric.
    pub(super) fn route<'a>(&self, facts: &'a Facts, address: IpAddr) -> Option<&'a Route> {
        let number = self.with(facts, |index| index.best(&facts.routes, address))?;
        facts.routes.get(number)
    }

    /// The interface of a number.
    pub(super) fn link<'a>(&self, facts: &'a Facts, number: u32) -> Option<&'a Link> {
        let at = self.with(facts, |index| index.links.get(&number).copied())?;
        facts.links.get(at)
    }

    /// Asks the index; another one where there are more or fewer routes or interfaces than when it was made.
    fn with<T>(&self, facts: &Facts, ask: impl Fn(&Index) -> T) -> T {
        let made = self.0.get_or_init(|| Index::new(facts));
        if made.made_of == made_of(facts) { ask(made) } else { ask(&Index::new(facts)) }
    }
}
