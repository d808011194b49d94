//! Reads the table `inet portfwd` from netlink dumps into a program. Only [`has_chain`] reads other tables, for chain
//! names.
//!
//! The kernel sends a dump in several parts. Other programs may commit between two parts. First, portfwd tries to read
//! the whole table in one generation. If a commit interrupts this attempt, portfwd monitors the commits (see
//! `watch.rs`). The result is valid if no commit changed portfwd's table:
//! - In a dump of chains, rules or maps, the kernel finds its position by counting objects. Older kernels also count
//!   the objects of other tables. A commit to another table can therefore make the kernel skip objects. portfwd repeats
//!   such a small dump until no commit interrupts the dump.
//! - In a dump of elements, the kernel counts only the elements of one map (`nf_tables_dump_set`). Commits to other
//!   tables do not affect this dump.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nftnl_sys::libc;

use super::message::key;
use super::program::{Base, Chain, ChainType, Element, Hook, Key, Map, Program, Rule, Shape, TABLE};
use super::transaction::{Connection, KernelError, PATIENCE, names};
use crate::sys::netlink::{Dump, put_attribute, put_nested};

/// The maximum number of attempts for a dump of chains, rules or maps. portfwd does not pause between attempts, because
/// such a dump is shorter than most pauses between two commits.
const DUMP_ATTEMPTS: u32 = 100;

/// The pause before portfwd reads its whole table again.
const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// Reads portfwd's table. Returns the program and the generation of the rules.
///
/// # Errors
/// [`KernelError::Interrupted`] if other programs kept changing portfwd's table for [`PATIENCE`]. If portfwd cannot
/// monitor the commits, a change to any table counts.
///
/// [`KernelError::NotPermitted`] without CAP_NET_ADMIN in the user namespace that owns the network namespace.
pub fn decode(connection: &mut Connection) -> Result<(Program, u32), KernelError> {
    decode_with(connection, &elements, PATIENCE)
}

fn decode_with(
    connection: &mut Connection,
    elements: &ReadElements<'_>,
    patience: Duration,
) -> Result<(Program, u32), KernelError> {
    if !connection.is_watching()
        && let Some(found) = retry_if_interrupted(read_in_one_generation(connection, elements))?
    {
        return Ok(found);
    }
    let until = Instant::now() + patience;
    loop {
        let found = match connection.watch()? {
            true => read_while_watching(connection, elements),
            false => read_in_one_generation(connection, elements),
        };
        if let Some(found) = retry_if_interrupted(found)? {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(KernelError::Interrupted);
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// A program and its generation. `None` if portfwd must read the table again.
type Found = Result<Option<(Program, u32)>, KernelError>;

/// Turns [`KernelError::Interrupted`] into `None`.
fn retry_if_interrupted(found: Found) -> Found {
    match found {
        Err(KernelError::Interrupted) => Ok(None),
        other => other,
    }
}

/// Reads portfwd's table. Returns `None` if the generation changed during the read.
fn read_in_one_generation(connection: &mut Connection, elements: &ReadElements<'_>) -> Found {
    let before = connection.generation()?;
    let program = program(connection, elements)?;
    Ok((connection.generation()? == before).then_some((program, before)))
}

/// Reads portfwd's table while portfwd monitors commits. Returns `None` if a commit changed portfwd's table.
fn read_while_watching(connection: &mut Connection, elements: &ReadElements<'_>) -> Found {
    let program = program(connection, elements)?;
    Ok(connection.still()?.map(|generation| (program, generation)))
}

/// The time limit of [`decode_structure`]. The limit is short, because a dump without elements is short.
const STRUCTURE_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads portfwd's table without the elements of its maps. Returns the program and the generation of the rules.
///
/// # Errors
/// As [`decode`], but [`KernelError::Interrupted`] after one second.
pub fn decode_structure(connection: &mut Connection) -> Result<(Program, u32), KernelError> {
    decode_with(connection, &|_, _| Ok(BTreeMap::new()), STRUCTURE_TIMEOUT)
}

/// Reads portfwd's table, but only the elements whose keys `wanted` or `left` contains. Returns the program and the
/// generation of the rules.
///
/// `left` is the program that the kernel probably contains. portfwd requests the keys of `left` in groups, and all
/// other keys one by one.
///
/// # Errors
/// As [`decode`].
pub fn decode_partial(
    connection: &mut Connection,
    wanted: &Program,
    left: &Program,
) -> Result<(Program, u32), KernelError> {
    let elements = |connection: &mut Connection, map: &str| {
        let [left, wanted] = [left, wanted].map(|program| program.maps.get(map).map(|map| &map.elements));
        let expected: Vec<&Key> = left.into_iter().flat_map(BTreeMap::keys).collect();
        let is_expected = |key: &&Key| left.is_some_and(|left| left.contains_key(*key));
        let new: Vec<&Key> = wanted.into_iter().flat_map(BTreeMap::keys).filter(|key| !is_expected(key)).collect();
        let mut found = BTreeMap::new();
        for keys in expected.chunks(KEYS_PER_REQUEST).chain(new.chunks(1)) {
            existing_elements(connection, map, keys, &mut found)?;
        }
        Ok(found)
    };
    decode_with(connection, &elements, PATIENCE)
}

/// Adds the existing elements among at most [`KEYS_PER_REQUEST`] keys to `found`. If one key is missing, the kernel
/// refuses the whole request. portfwd then requests each key separately.
fn existing_elements(
    connection: &mut Connection,
    map: &str,
    keys: &[&Key],
    found: &mut BTreeMap<Key, Element>,
) -> Result<(), KernelError> {
    match elements_by_key(connection, map, keys.iter().copied())? {
        Some(all) => found.extend(all),
        None if keys.len() > 1 => keys.chunks(1).try_for_each(|key| existing_elements(connection, map, key, found))?,
        None => {}
    }
    Ok(())
}

/// Returns true if any table contains a chain whose name starts with `prefix`.
///
/// # Errors
/// If the kernel refuses the dump.
pub fn has_chain(connection: &mut Connection, prefix: &str) -> Result<bool, KernelError> {
    let mut found = false;
    connection.dump_all("chains", libc::NFT_MSG_GETCHAIN, |message| {
        found |= message.chain()?.name.starts_with(prefix);
        Some(())
    })?;
    Ok(found)
}

/// The maximum number of keys in one request. The kernel returns each element in its own message. A socket buffer of
/// default size would lose further messages.
pub const KEYS_PER_REQUEST: usize = 16;

/// Reads at most [`KEYS_PER_REQUEST`] elements of a map by their keys. The cost of one element is constant. Returns
/// `None` if one of the elements does not exist.
///
/// # Errors
/// If the kernel refuses the request for another reason than a missing element.
pub fn elements_by_key<'a>(
    connection: &mut Connection,
    map: &str,
    keys: impl IntoIterator<Item = &'a Key>,
) -> Result<Option<BTreeMap<Key, Element>>, KernelError> {
    let mut attributes = names(&[(key::ELEMENTS_TABLE, TABLE), (key::ELEMENTS_SET, map)]);
    put_nested(&mut attributes, key::ELEMENTS_LIST, |list| {
        for wanted in keys {
            put_nested(list, key::ELEMENT, |element| {
                put_nested(element, key::ELEMENT_KEY, |data| put_attribute(data, key::DATA_VALUE, &wanted.0));
            });
        }
    });
    let mut found = BTreeMap::new();
    let exist = connection.get("elements", libc::NFT_MSG_GETSETELEM, &attributes, |message| {
        message.elements(|key, data, (text, span), counter| {
            found.insert(key, Element { data: data.into(), comment: text.into(), span, counter });
        })
    })?;
    Ok(exist.then_some(found))
}

/// A function that reads all elements of a map. The text is the name of the map.
type ReadElements<'a> = dyn Fn(&mut Connection, &str) -> Result<BTreeMap<Key, Element>, KernelError> + 'a;

fn program(connection: &mut Connection, elements: &ReadElements<'_>) -> Result<Program, KernelError> {
    let mut program = Program::default();
    let request = names(&[(key::TABLE_NAME, TABLE)]);
    let exists = connection.get("table inet portfwd", libc::NFT_MSG_GETTABLE, &request, |message| {
        let flags = message.attributes().get(key::TABLE_FLAGS).unwrap_or_default();
        program.flagged |= flags.iter().any(|byte| *byte != 0);
        // `NFT_TABLE_F_DORMANT` in include/uapi/linux/netfilter/nf_tables.h is bit 0 of a big-endian number.
        program.dormant |= flags.last().is_some_and(|byte| byte & 1 != 0);
        Some(())
    })?;
    if !exists {
        return Ok(program);
    }
    program.table = true;
    program.chains = retry_dump(connection, chains)?;
    for (chain, rule) in retry_dump(connection, rules)? {
        // The chain of the rule is missing if another program added the chain after the dump of chains. In this case,
        // the caller reads the table again.
        if let Some(chain) = program.chains.get_mut(&chain) {
            chain.rules.push(rule);
        }
    }
    for (name, shape) in retry_dump(connection, shapes)? {
        let foreign = Shape { key: Vec::new(), data: Vec::new() };
        let elements = match &shape {
            Some(_) => elements(connection, &name)?,
            None => BTreeMap::new(),
        };
        program.maps.insert(name, Map { shape: shape.unwrap_or(foreign), elements });
    }
    Ok(program)
}

/// Repeats a dump until no commit interrupts the dump. If portfwd does not monitor commits, the dump runs only once,
/// because the caller must then read the whole table again.
fn retry_dump<T>(
    connection: &mut Connection,
    dump: impl Fn(&mut Connection) -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    for _ in 1..DUMP_ATTEMPTS {
        match dump(connection) {
            Err(KernelError::Interrupted) if connection.is_watching() => {}
            other => return other,
        }
    }
    dump(connection)
}

fn chains(connection: &mut Connection) -> Result<BTreeMap<String, Chain>, KernelError> {
    let request = names(&[(key::CHAIN_TABLE, TABLE)]);
    let mut chains = BTreeMap::new();
    connection.dump("chains", libc::NFT_MSG_GETCHAIN, &request, |message| {
        let record = message.chain()?;
        // Older kernels ignore the table in the request and return the chains of all tables.
        if record.table == TABLE {
            let base = record.base.map(|(kind, hook, priority)| base(&kind, hook, priority));
            let base = match base {
                None => None,
                Some(Some(base)) => Some(base),
                // The type or the hook of this base chain is unknown. The placeholder differs from all of portfwd's
                // chains.
                Some(None) => Some(Base { chain_type: ChainType::Filter, hook: Hook::Forward, priority: i32::MIN }),
            };
            chains.insert(record.name, Chain { base, rules: Vec::new() });
        }
        Some(())
    })?;
    Ok(chains)
}

fn base(kind: &str, hook: u32, priority: i32) -> Option<Base> {
    let chain_type = match kind {
        "filter" => ChainType::Filter,
        "nat" => ChainType::Nat,
        _ => return None,
    };
    let hook = match i32::try_from(hook).ok()? {
        libc::NF_INET_PRE_ROUTING => Hook::Prerouting,
        libc::NF_INET_FORWARD => Hook::Forward,
        libc::NF_INET_LOCAL_OUT => Hook::Output,
        libc::NF_INET_POST_ROUTING => Hook::Postrouting,
        _ => return None,
    };
    Some(Base { chain_type, hook, priority })
}

fn rules(connection: &mut Connection) -> Result<Vec<(String, Rule)>, KernelError> {
    let request = names(&[(key::RULE_TABLE, TABLE)]);
    let mut rules = Vec::new();
    connection.dump("rules", libc::NFT_MSG_GETRULE, &request, |message| {
        rules.push(message.rule()?);
        Some(())
    })?;
    Ok(rules)
}

/// Reads the names and shapes of all maps and sets in portfwd's table. A shape is `None` if portfwd creates no such
/// map.
fn shapes(connection: &mut Connection) -> Result<BTreeMap<String, Option<Shape>>, KernelError> {
    let request = names(&[(key::SET_TABLE, TABLE)]);
    let mut shapes = BTreeMap::new();
    connection.dump("maps", libc::NFT_MSG_GETSET, &request, |message| {
        let (name, shape) = message.set()?;
        shapes.insert(name, shape);
        Some(())
    })?;
    Ok(shapes)
}

fn elements(connection: &mut Connection, map: &str) -> Result<BTreeMap<Key, Element>, KernelError> {
    let mut found = Vec::new();
    let mut comments: HashMap<String, Arc<str>> = HashMap::new();
    let request = names(&[(key::ELEMENTS_TABLE, TABLE), (key::ELEMENTS_SET, map)]);
    let watching = connection.is_watching();
    let dump = connection.dump_through("elements", libc::NFT_MSG_GETSETELEM, &request, |message| {
        message.elements(|key, data, (text, span), counter| {
            let comment = match comments.get(text) {
                Some(comment) => Arc::clone(comment),
                None => {
                    let comment: Arc<str> = text.into();
                    comments.insert(text.to_owned(), Arc::clone(&comment));
                    comment
                }
            };
            found.push((key, Element { data: data.into(), comment, span, counter }));
        })
    })?;
    if dump == Dump::Interrupted && !watching {
        return Err(KernelError::Interrupted);
    }
    let count = found.len();
    let elements: BTreeMap<_, _> = found.into_iter().collect();
    // After many insertions, the kernel resizes a hash map in the background. A dump during the resize returns some
    // elements twice and skips the same number of other elements. The kernel reports neither an error nor a new
    // generation (seen on Linux 6.18).
    if elements.len() == count { Ok(elements) } else { Err(KernelError::Interrupted) }
}
