//! The live rules of nf_tables, of all tables, whoever made them: nft(8), iptables(8) of variant nft, programs.
//!
//! ```text
//! kernel ──dump──▶ tables, chains, rules, sets ──reach──▶ elements ──rule──▶ ruleset
//! ```
//! Nothing is changed, and of the elements of sets only those are asked for that rules of NAT need (`reach.rs`).
//!
//! Be aware: what the kernel says is input from outside, and any bytes are a ruleset or an error.

mod act;
mod dump;
mod ipset;
mod load;
mod lookup;
mod parallel;
mod reach;
mod rule;
mod test;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

pub(super) use act::with_prefix;
use dump::{Dump, Element, TableKey};
pub use ipset::Ipsets;
use parallel::{Ahead, Marks};
use reach::Reached;

use crate::nft::transaction::{Connection, KernelError};
use crate::ruleset::table::{Base, Gap, Hook, Kind, Ruleset, Table, TableFamily, Tool, base_of_iptables};

/// How long it is tried while others commit.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the kernel is left to itself before all is read again.
const PAUSE: Duration = Duration::from_millis(2);

/// How often the elements of a set are asked for again where the answer has some twice.
const ATTEMPTS: usize = 4;

/// What rules name by numbers alone.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a> {
    /// The names of interfaces.
    pub links: &'a HashMap<u32, String>,
    /// The names of sets of ipset(8).
    pub ipsets: &'a Ipsets,
}

/// Reads all rules. What they name by its number is not known.
///
/// # Errors
/// [`KernelError::Interrupted`] where others committed again and again, for five seconds; [`KernelError::NotPermitted`]
/// without `CAP_NET_ADMIN` in the namespace's owner; [`KernelError::NoNfTables`].
pub fn read(connection: &mut Connection) -> Result<Ruleset, KernelError> {
    read_with(connection, Numbers { links: &HashMap::new(), ipsets: &Ipsets::default() })
}

/// Reads all rules, with the names of what they name by its number.
///
/// # Errors
/// As [`read`].
pub fn read_with(connection: &mut Connection, numbers: Numbers<'_>) -> Result<Ruleset, KernelError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match undisturbed(connection, numbers) {
            Ok(Some((dump, reached))) => return Ok(ruleset(dump, &reached, numbers)),
            Ok(None) | Err(KernelError::Interrupted) if Instant::now() < until => std::thread::sleep(PAUSE),
            Ok(None) => return Err(KernelError::Interrupted),
            Err(error) => return Err(error),
        }
    }
}

/// Reads all in one generation; `None` where somebody committed meanwhile.
fn undisturbed(connection: &mut Connection, numbers: Numbers<'_>) -> Result<Option<(Dump, Reached)>, KernelError> {
    let before = connection.generation()?;
    let dump = Dump::read(connection, numbers)?;
    let reached = reach::reach(&dump, |set| elements(connection, set))?;
    Ok((connection.generation()? == before).then_some((dump, reached)))
}

/// Asks for the elements of a set. While the kernel rearranges a hash map a dump gives some of them twice and leaves out as
/// many others; and packets may put more into it at any time.
fn elements(connection: &mut Connection, set: &dump::Set) -> Result<Vec<Element>, KernelError> {
    for _ in 0..ATTEMPTS {
        let found = dump::elements(connection, set)?;
        let keys: HashSet<_> = found.iter().map(|element| (&element.key, &element.key_end, element.ends)).collect();
        if keys.len() == found.len() {
            return Ok(found);
        }
    }
    Err(KernelError::Interrupted)
}

/// Brings what was read into the one form.
fn ruleset(dump: Dump, reached: &Reached, numbers: Numbers<'_>) -> Ruleset {
    let mut tables = Vec::with_capacity(dump.tables.len());
    let mut gaps = Vec::new();
    let mut places: HashMap<&TableKey, usize> = HashMap::new();
    for table in &dump.tables {
        let (family, name) = &table.key;
        let Some(family) = family_of(*family) else { continue };
        places.insert(&table.key, tables.len());
        tables.push(Table { dormant: table.dormant, ..Table::new(family, name, Tool::Nft) });
    }
    for chain in &dump.chains {
        let Some(table) = places.get(&chain.table).and_then(|place| tables.get_mut(*place)) else { continue };
        let base = chain.base.as_ref().and_then(|base| base_of(base, table.family));
        if let (Some(unknown), None) = (&chain.base, &base) {
            let why = format!("base chains of type {} at hook {} are not known", unknown.kind, unknown.hook);
            gaps.push(Gap { what: format!("chain {} of table {table}", chain.name), why });
        }
        let entry = table.chains.entry(&chain.name);
        (entry.handle, entry.base) = (chain.handle, base);
    }
    let mut compat: HashSet<TableKey> = HashSet::new();
    for mut rule in dump.rules {
        let Some(table) = places.get(&rule.table).and_then(|place| tables.get_mut(*place)) else { continue };
        let context = rule::Context {
            family: table.family,
            names: reached.sets.get(&rule.table),
            sets: &dump.sets,
            elements: &reached.elements,
            numbers,
        };
        let Ahead { rule: read, marks } = rule
            .ahead
            .take()
            .unwrap_or_else(|| Ahead { rule: rule::read(&rule, &context), marks: Marks::of(rule.exprs()) });
        let chain = table.chains.entry(&rule.chain);
        let number = chain.rules.len();
        chain.rules.push(read);
        if marks.native
            && let Some(at) = table.chains.position(&rule.chain)
        {
            table.native.push((at, number));
        }
        if marks.compat {
            compat.insert(rule.table);
        }
    }
    for (key, devices) in &dump.flow_devices {
        let Some(table) = places.get(key).and_then(|place| tables.get_mut(*place)) else { continue };
        table.flow_devices.extend(devices.iter().cloned());
        table.flow_devices.sort_unstable();
        table.flow_devices.dedup();
    }
    for (key, place) in &places {
        if let Some(table) = tables.get_mut(*place)
            && is_of_iptables(table, compat.contains(*key))
        {
            table.tool = Tool::IptablesNft;
        }
    }
    // Of other tables nobody expects anything else.
    tables.iter_mut().filter(|table| table.tool == Tool::Nft).for_each(|table| table.native.clear());
    Ruleset { tables, gaps, saved: false }
}

/// Whether a table is one that iptables(8) shows: it has such a name, and something that only iptables(8) makes, or a base
/// chain that is exactly one of theirs.
fn is_of_iptables(table: &Table, compat: bool) -> bool {
    let theirs = matches!(&*table.name, "filter" | "nat" | "mangle" | "raw" | "security")
        && matches!(table.family, TableFamily::Ip | TableFamily::Ip6);
    let exact = || {
        table.chains.iter().any(|chain| {
            let base = chain.base.as_ref().map(|base| (base.kind, base.hook, base.priority));
            base.is_some() && base == base_of_iptables(&table.name, &chain.name)
        })
    };
    theirs && (compat || exact())
}

/// A family by `NFPROTO_…` in include/uapi/linux/netfilter.h.
fn family_of(number: u8) -> Option<TableFamily> {
    Some(match number {
        1 => TableFamily::Inet,
        2 => TableFamily::Ip,
        3 => TableFamily::Arp,
        5 => TableFamily::Netdev,
        7 => TableFamily::Bridge,
        10 => TableFamily::Ip6,
        _ => return None,
    })
}

/// How a base chain is attached; `None` where it is so in a way that is not known.
fn base_of(base: &dump::Base, family: TableFamily) -> Option<Base> {
    let kind = match base.kind.as_str() {
        "filter" => Kind::Filter,
        "nat" => Kind::Nat,
        "route" => Kind::Route,
        _ => return None,
    };
    // `NF_INET_…`, `NF_NETDEV_…`, `NF_ARP_…`, by family.
    let hook = match (family, base.hook) {
        (TableFamily::Netdev, 0) => Hook::Ingress,
        (TableFamily::Netdev, 1) => Hook::Egress,
        (TableFamily::Arp, 0) => Hook::Input,
        (TableFamily::Arp, 1) => Hook::Output,
        (TableFamily::Arp, 2) => Hook::Forward,
        (TableFamily::Netdev | TableFamily::Arp, _) => return None,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 2) => Hook::Forward,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        (_, 5) => Hook::Ingress,
        _ => return None,
    };
    let (priority, drops, devices) = (base.priority, base.drops, base.devices.clone());
    Some(Base { kind, hook, priority, drops, devices })
}
