//! Where in a long chain a packet is asked about, without asking every rule.

use std::collections::HashMap;

use super::region::{Field, Packet};
use super::ruleset::Chain;

/// The most numbers of a field that a case is found by.
const FEW: u128 = 16;

/// How many cases a chain has before it is worth it.
const MANY: usize = 32;

/// The number of a rule and that of its case.
pub type Entry = (usize, usize);

/// Finds the cases of a chain that a packet may be in.
#[derive(Debug, Clone, Default)]
pub struct Index {
    ports: HashMap<u128, Vec<Entry>>,
    addresses: HashMap<u128, Vec<Entry>>,
    rest: Vec<Entry>,
}

impl Index {
    /// Looks at a chain; `None` where it is short.
    pub fn new(chain: &Chain) -> Option<Self> {
        let entries = || {
            let rules = chain.rules.iter().enumerate();
            rules.flat_map(|(rule, one)| one.cases.iter().enumerate().map(move |(case, it)| ((rule, case), it)))
        };
        entries().nth(MANY)?;
        let mut index = Self::default();
        for (entry, case) in entries() {
            let (port, address) = (case.region.get(Field::Port), case.region.get(Field::Destination));
            let numbers = |set: &super::set::Set| {
                set.ranges().iter().flat_map(|(first, last)| *first..=*last).collect::<Vec<_>>()
            };
            let (by, set) = match (port.size() <= FEW, address.size() <= FEW) {
                (true, _) => (&mut index.ports, port),
                (_, true) => (&mut index.addresses, address),
                _ => {
                    index.rest.push(entry);
                    continue;
                }
            };
            for number in numbers(set) {
                by.entry(number).or_default().push(entry);
            }
        }
        Some(index)
    }

    /// The cases that a packet may be in, in order. `None` where not enough is known of it to leave any out.
    pub fn entries(&self, packet: &Packet) -> Option<Vec<Entry>> {
        let (port, address) = (packet.get(Field::Port)?, packet.get(Field::Destination)?);
        let found = |by: &HashMap<u128, Vec<Entry>>, number| by.get(&number).cloned().unwrap_or_default();
        let mut all = found(&self.ports, port);
        all.extend(found(&self.addresses, address));
        all.extend(&self.rest);
        all.sort_unstable();
        Some(all)
    }
}
