//! The kernel's dumps decoded into a program. Only our own table is asked for, and never another's elements.
//!
//! A dump comes in parts, and between two of them others may commit. All is read in one generation where that can be had;
//! where it cannot, others are watched (see `watch.rs`), and what is read holds if none of them touched our table:
//! - The kernel finds the place in a dump of chains, rules or maps by counting objects, those of other tables included
//!   where it is older. A commit of others in between can make it leave some out, so each of these dumps, which are small,
//!   must still come undisturbed, and is begun again by itself.
//! - In a dump of elements it counts those of that one map (`nf_tables_dump_set`), which no other table's commit moves.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nftnl_sys::libc;

use super::message::key;
use super::program::{Base, Chain, ChainType, Element, Hook, Key, Map, Program, Rule, Shape, TABLE};
use super::transaction::{Connection, KernelError, PATIENCE, names};
use crate::sys::netlink::{Dump, put_attribute, put_nested};

/// How often a dump of chains, rules or maps is begun again by itself, at once: it takes less time than most pauses between
/// two commits of others.
const ATTEMPTS: u32 = 100;

/// How long the kernel is left to itself before all is read again.
const PAUSE: Duration = Duration::from_millis(2);

/// Reads our table, and the generation of which that is the truth.
///
/// # Errors
/// [`KernelError::Interrupted`] where others changed our table again and again, for [`PATIENCE`], or anything where they
/// cannot be watched; [`KernelError::NotPermitted`] without CAP_NET_ADMIN in the namespace's owner.
pub fn decode(connection: &mut Connection) -> Result<(Program, u32), KernelError> {
    decode_with(connection, &elements, PATIENCE)
}

fn decode_with(
    connection: &mut Connection,
    elements: &ReadElements<'_>,
    patience: Duration,
) -> Result<(Program, u32), KernelError> {
    if !connection.is_watching()
        && let Some(found) = or_again(undisturbed(connection, elements))?
    {
        return Ok(found);
    }
    let until = Instant::now() + patience;
    loop {
        let found = match connection.watch()? {
            true => watched(connection, elements),
            false => undisturbed(connection, elements),
        };
        if let Some(found) = or_again(found)? {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(KernelError::Interrupted);
        }
        std::thread::sleep(PAUSE);
    }
}

type Found = Result<Option<(Program, u32)>, KernelError>;

/// Takes an interruption as a reason to read again.
fn or_again(found: Found) -> Found {
    match found {
        Err(KernelError::Interrupted) => Ok(None),
        other => other,
    }
}

/// Reads all in one generation.
fn undisturbed(connection: &mut Connection, elements: &ReadElements<'_>) -> Found {
    let before = connection.generation()?;
    let program = program(connection, elements)?;
    Ok((connection.generation()? == before).then_some((program, before)))
}

/// Reads all while others commit, but not to our table.
fn watched(connection: &mut Connection, elements: &ReadElements<'_>) -> Found {
    let program = program(connection, elements)?;
    Ok(connection.still()?.map(|generation| (program, generation)))
}

/// How long [`structure`] is tried: it looks at what was committed already, and takes little time.
const GLANCE: Duration = Duration::from_secs(1);

/// Reads our table, but of its maps no elements; the generation is that of [`decode`].
///
/// # Errors
/// As [`decode`], but sooner.
pub fn structure(connection: &mut Connection) -> Result<(Program, u32), KernelError> {
    decode_with(connection, &|_, _| Ok(BTreeMap::new()), GLANCE)
}

/// Reads our table, but of its elements only those whose keys one of two programs has; the generation is that of [`decode`].
/// Those that it is thought to hold, as `left` has them, are asked for together.
///
/// # Errors
/// As [`decode`].
pub fn near(connection: &mut Connection, wanted: &Program, left: &Program) -> Result<(Program, u32), KernelError> {
    let elements = |connection: &mut Connection, map: &str| {
        let [left, wanted] = [left, wanted].map(|program| program.maps.get(map).map(|map| &map.elements));
        let there: Vec<&Key> = left.into_iter().flat_map(BTreeMap::keys).collect();
        let is_there = |key: &&Key| left.is_some_and(|left| left.contains_key(*key));
        let new: Vec<&Key> = wanted.into_iter().flat_map(BTreeMap::keys).filter(|key| !is_there(key)).collect();
        let mut found = BTreeMap::new();
        for some in there.chunks(KEYS_PER_QUESTION).chain(new.chunks(1)) {
            those_there(connection, map, some, &mut found)?;
        }
        Ok(found)
    };
    decode_with(connection, &elements, PATIENCE)
}

/// Reads those of at most [`KEYS_PER_QUESTION`] elements that there are. The kernel says only that one is missing, so then
/// each is asked for by itself.
fn those_there(
    connection: &mut Connection,
    map: &str,
    keys: &[&Key],
    found: &mut BTreeMap<Key, Element>,
) -> Result<(), KernelError> {
    match elements_by_key(connection, map, keys.iter().copied())? {
        Some(all) => found.extend(all),
        None if keys.len() > 1 => keys.chunks(1).try_for_each(|key| those_there(connection, map, key, found))?,
        None => {}
    }
    Ok(())
}

/// Whether a table of any family has a chain whose name begins so.
///
/// # Errors
/// Where the kernel does not tell.
pub fn has_chain(connection: &mut Connection, prefix: &str) -> Result<bool, KernelError> {
    let mut found = false;
    connection.dump_all("chains", libc::NFT_MSG_GETCHAIN, |message| {
        found |= message.chain()?.name.starts_with(prefix);
        Some(())
    })?;
    Ok(found)
}

/// How many elements may be asked for at once: each comes in a message of its own, and more of them than a socket of
/// ordinary size holds would be lost.
pub const KEYS_PER_QUESTION: usize = 16;

/// Reads at most [`KEYS_PER_QUESTION`] elements of a map by their keys, at constant cost each. `None` where the kernel lacks one of them.
///
/// # Errors
/// Where the kernel does not tell.
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
    let asked = connection.get("elements", libc::NFT_MSG_GETSETELEM, &attributes, |message| {
        message.elements(|key, data, (text, span), counter| {
            found.insert(key, Element { data: data.into(), comment: text.into(), span, counter });
        })
    })?;
    Ok(asked.then_some(found))
}

type ReadElements<'a> = dyn Fn(&mut Connection, &str) -> Result<BTreeMap<Key, Element>, KernelError> + 'a;

fn program(connection: &mut Connection, elements: &ReadElements<'_>) -> Result<Program, KernelError> {
    let mut program = Program::default();
    let ours = names(&[(key::TABLE_NAME, TABLE)]);
    let there = connection.get("our table", libc::NFT_MSG_GETTABLE, &ours, |message| {
        let flags = message.attributes().get(key::TABLE_FLAGS).unwrap_or_default();
        program.flagged |= flags.iter().any(|byte| *byte != 0);
        Some(())
    })?;
    if !there {
        return Ok(program);
    }
    program.table = true;
    program.chains = steadily(connection, chains)?;
    for (chain, rule) in steadily(connection, rules)? {
        // A chain that came after the chains were read: that will be told, and all is read again.
        if let Some(chain) = program.chains.get_mut(&chain) {
            chain.rules.push(rule);
        }
    }
    for (name, shape) in steadily(connection, shapes)? {
        let foreign = Shape { key: Vec::new(), data: Vec::new() };
        let elements = match &shape {
            Some(_) => elements(connection, &name)?,
            None => BTreeMap::new(),
        };
        program.maps.insert(name, Map { shape: shape.unwrap_or(foreign), elements });
    }
    Ok(program)
}

/// Does a dump until it comes undisturbed. Without a watch there is no use in that: all must be read again.
fn steadily<T>(
    connection: &mut Connection,
    dump: impl Fn(&mut Connection) -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    for _ in 1..ATTEMPTS {
        match dump(connection) {
            Err(KernelError::Interrupted) if connection.is_watching() => {}
            other => return other,
        }
    }
    dump(connection)
}

fn chains(connection: &mut Connection) -> Result<BTreeMap<String, Chain>, KernelError> {
    let ours = names(&[(key::CHAIN_TABLE, TABLE)]);
    let mut chains = BTreeMap::new();
    connection.dump("chains", libc::NFT_MSG_GETCHAIN, &ours, |message| {
        let record = message.chain()?;
        // Older kernels give the chains of all tables whatever was asked for.
        if record.table == TABLE {
            let base = record.base.map(|(kind, hook, priority)| base(&kind, hook, priority));
            let base = match base {
                None => None,
                Some(Some(base)) => Some(base),
                // A chain of a kind that we never make: kept as one that differs from all of ours.
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
    let ours = names(&[(key::RULE_TABLE, TABLE)]);
    let mut rules = Vec::new();
    connection.dump("rules", libc::NFT_MSG_GETRULE, &ours, |message| {
        rules.push(message.rule()?);
        Some(())
    })?;
    Ok(rules)
}

/// The maps and sets, and their shapes where they are of a kind that we make.
fn shapes(connection: &mut Connection) -> Result<BTreeMap<String, Option<Shape>>, KernelError> {
    let ours = names(&[(key::SET_TABLE, TABLE)]);
    let mut shapes = BTreeMap::new();
    connection.dump("maps", libc::NFT_MSG_GETSET, &ours, |message| {
        let (name, shape) = message.set()?;
        shapes.insert(name, shape);
        Some(())
    })?;
    Ok(shapes)
}

fn elements(connection: &mut Connection, map: &str) -> Result<BTreeMap<Key, Element>, KernelError> {
    let mut found = Vec::new();
    let mut comments: HashMap<String, Arc<str>> = HashMap::new();
    let of_map = names(&[(key::ELEMENTS_TABLE, TABLE), (key::ELEMENTS_SET, map)]);
    let watching = connection.is_watching();
    let dump = connection.dump_through("elements", libc::NFT_MSG_GETSETELEM, &of_map, |message| {
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
    // After many insertions the kernel rearranges a hash map in the background. A dump that spans that gives some elements
    // twice and leaves out as many others, without a word and in the same generation (seen on Linux 6.18).
    if elements.len() == count { Ok(elements) } else { Err(KernelError::Interrupted) }
}
