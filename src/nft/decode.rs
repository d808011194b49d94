//! The kernel's dumps decoded into a program. Only our own table is asked for, and never another's elements.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use nftnl_sys::libc;

use super::program::{Base, Chain, ChainType, Element, Hook, Key, Map, Program, Shape, TABLE};
use super::transaction::{Connection, KernelError, names};
use crate::netfilter::netlink::{NESTED, put_attribute};

/// How often a dump is begun again because somebody committed meanwhile, or because a map was being rearranged.
const ATTEMPTS: u32 = 200;

/// How long the kernel is left to itself before a dump is begun again.
const PAUSE: Duration = Duration::from_millis(2);

/// Attributes that name an object in a question. Source: include/uapi/linux/netfilter/nf_tables.h.
mod key {
    pub const TABLE_NAME: u16 = 1;
    pub const TABLE_FLAGS: u16 = 2;
    pub const CHAIN_TABLE: u16 = 1;
    pub const RULE_TABLE: u16 = 1;
    pub const SET_TABLE: u16 = 1;
    pub const ELEMENTS_TABLE: u16 = 1;
    pub const ELEMENTS_SET: u16 = 2;
    pub const ELEMENTS_LIST: u16 = 3;
    pub const ELEMENT: u16 = 1;
    pub const ELEMENT_KEY: u16 = 1;
    pub const DATA_VALUE: u16 = 1;
}

/// Reads our table, and the generation of which that is the truth.
///
/// # Errors
/// [`KernelError::Interrupted`] where others committed so often that no dump came to its end undisturbed;
/// [`KernelError::NotPermitted`] without CAP_NET_ADMIN in the namespace's owner.
pub fn decode(connection: &mut Connection) -> Result<(Program, u32), KernelError> {
    decode_with(connection, elements)
}

fn decode_with(connection: &mut Connection, elements: ReadElements) -> Result<(Program, u32), KernelError> {
    for _ in 0..ATTEMPTS {
        let before = connection.generation()?;
        match program(connection, elements) {
            Ok(program) if connection.generation()? == before => return Ok((program, before)),
            Ok(_) => {}
            Err(KernelError::Interrupted) => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Err(KernelError::Interrupted)
}

/// Reads our table, but of its maps no elements; the generation is that of [`decode`].
///
/// # Errors
/// As [`decode`].
pub fn structure(connection: &mut Connection) -> Result<(Program, u32), KernelError> {
    decode_with(connection, |_, _| Ok(BTreeMap::new()))
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
    let mut list = Vec::new();
    for key in keys {
        let mut element = Vec::new();
        put_attribute(&mut element, key::ELEMENT_KEY | NESTED, &value(&key.0));
        put_attribute(&mut list, key::ELEMENT | NESTED, &element);
    }
    let mut attributes = names(&[(key::ELEMENTS_TABLE, TABLE), (key::ELEMENTS_SET, map)]);
    put_attribute(&mut attributes, key::ELEMENTS_LIST | NESTED, &list);
    let mut found = BTreeMap::new();
    let asked = connection.get("elements", libc::NFT_MSG_GETSETELEM, &attributes, |message| {
        message.elements(|key, data, (text, span), counter| {
            found.insert(key, Element { data: data.into(), comment: text.into(), span, counter });
        })
    })?;
    Ok(asked.then_some(found))
}

fn value(bytes: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::with_capacity(bytes.len() + 4);
    put_attribute(&mut attribute, key::DATA_VALUE, bytes);
    attribute
}

type ReadElements = fn(&mut Connection, &str) -> Result<BTreeMap<Key, Element>, KernelError>;

fn program(connection: &mut Connection, elements: ReadElements) -> Result<Program, KernelError> {
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
    chains(connection, &mut program)?;
    rules(connection, &mut program)?;
    maps(connection, &mut program, elements)?;
    Ok(program)
}

fn chains(connection: &mut Connection, program: &mut Program) -> Result<(), KernelError> {
    let ours = names(&[(key::CHAIN_TABLE, TABLE)]);
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
            program.chains.insert(record.name, Chain { base, rules: Vec::new() });
        }
        Some(())
    })
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

fn rules(connection: &mut Connection, program: &mut Program) -> Result<(), KernelError> {
    let ours = names(&[(key::RULE_TABLE, TABLE)]);
    connection.dump("rules", libc::NFT_MSG_GETRULE, &ours, |message| {
        let (chain, rule) = message.rule()?;
        // A chain that came after the chains were read: the generation will tell, and all is read again.
        if let Some(chain) = program.chains.get_mut(&chain) {
            chain.rules.push(rule);
        }
        Some(())
    })
}

fn maps(connection: &mut Connection, program: &mut Program, elements: ReadElements) -> Result<(), KernelError> {
    let mut shapes: BTreeMap<String, Option<Shape>> = BTreeMap::new();
    let ours = names(&[(key::SET_TABLE, TABLE)]);
    connection.dump("maps", libc::NFT_MSG_GETSET, &ours, |message| {
        let (name, shape) = message.set()?;
        shapes.insert(name, shape);
        Some(())
    })?;
    for (name, shape) in shapes {
        let foreign = Shape { key: Vec::new(), data: Vec::new() };
        let elements = match &shape {
            Some(_) => elements(connection, &name)?,
            None => BTreeMap::new(),
        };
        program.maps.insert(name, Map { shape: shape.unwrap_or(foreign), elements });
    }
    Ok(())
}

fn elements(connection: &mut Connection, map: &str) -> Result<BTreeMap<Key, Element>, KernelError> {
    let mut found = Vec::new();
    let mut comments: HashMap<String, Arc<str>> = HashMap::new();
    let of_map = names(&[(key::ELEMENTS_TABLE, TABLE), (key::ELEMENTS_SET, map)]);
    connection.dump("elements", libc::NFT_MSG_GETSETELEM, &of_map, |message| {
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
    let count = found.len();
    let elements: BTreeMap<_, _> = found.into_iter().collect();
    // After many insertions the kernel rearranges a hash map in the background. A dump that spans that gives some elements
    // twice and leaves out as many others, without a word and in the same generation (seen on Linux 6.18).
    if elements.len() == count { Ok(elements) } else { Err(KernelError::Interrupted) }
}
