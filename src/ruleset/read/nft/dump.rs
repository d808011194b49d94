//! What the kernel tells of tables, chains, rules, sets and elements, as plain data.
//!
//! Source of the numbers of attributes: include/uapi/linux/netfilter/nf_tables.h.

use nftnl_sys::libc;

use super::Numbers;
use super::parallel::{self, Ahead};
use crate::nft::message::{Message, data_value};
use crate::nft::transaction::{Connection, KernelError, names};
use crate::sys::netlink::Attributes;

/// A table by its family, `NFPROTO_…`, and its name.
pub(super) type TableKey = (u8, String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) key: TableKey,
    pub(super) dormant: bool,
}

/// How a base chain is attached, in the kernel's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) kind: String,
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) drops: bool,
    pub(super) devices: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) table: TableKey,
    pub(super) name: String,
    pub(super) handle: Option<u64>,
    pub(super) base: Option<Base>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) table: TableKey,
    pub(super) chain: String,
    pub(super) handle: Option<u64>,
    /// The attributes of its expressions, one behind the other; none where it was read ahead.
    exprs: Box<[u8]>,
    pub(super) user_data: Box<[u8]>,
    /// What it is, where it was read already.
    pub(super) ahead: Option<Ahead>,
}

/// An expression: its name and its attributes.
#[derive(Clone)]
pub(super) struct Expr<'a> {
    pub(super) name: String,
    pub(super) attributes: Attributes<'a>,
}

impl<'a> Expr<'a> {
    /// Reads one; one without a name that can be read has none.
    pub(super) fn of(attributes: Attributes<'a>) -> Self {
        Self {
            name: attributes.text(EXPR_NAME).unwrap_or_default(),
            attributes: attributes.nested(EXPR_DATA).unwrap_or_default(),
        }
    }
}

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;

impl Rule {
    /// Its expressions; none where it was read ahead.
    pub(super) fn exprs(&self) -> impl Iterator<Item = Expr<'_>> {
        Attributes::new(&self.exprs).iter().map(|(_, expr)| Expr::of(Attributes::new(expr)))
    }

    /// It was read: its bytes are of no use any more.
    pub(super) fn read(&mut self, ahead: Ahead) {
        (self.exprs, self.user_data, self.ahead) = (Box::default(), Box::default(), Some(ahead));
    }
}

/// `NFT_SET_ANONYMOUS`.
const ANONYMOUS: u32 = 1;
/// `NFT_SET_INTERVAL`.
const INTERVAL: u32 = 4;
/// `NFT_SET_EVAL`.
const EVAL: u32 = 0x20;
/// `NFT_SET_OBJECT`.
const OBJECT: u32 = 0x40;

/// A set or a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) table: TableKey,
    pub(super) name: String,
    /// Whether it is a part of a rule.
    pub(super) anonymous: bool,
    /// Whether its elements are ends of intervals, or where there are several fields, have two keys.
    pub(super) interval: bool,
    /// Whether packets change what is in it.
    pub(super) changing: bool,
    /// Whether it gives objects, not data.
    pub(super) objects: bool,
    /// The bytes of a key.
    pub(super) key_length: usize,
    /// The bytes of the fields of a key, where it tells.
    pub(super) fields: Vec<usize>,
}

/// What a map gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    Value(Box<[u8]>),
    Verdict(Verdict),
}

/// A verdict: its code, and the chain where it leads to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) code: u32,
    pub(super) chain: Option<String>,
}

/// `NFT_JUMP`.
pub(super) const JUMP: u32 = (-3i32).cast_unsigned();
/// `NFT_GOTO`.
pub(super) const GOTO: u32 = (-4i32).cast_unsigned();

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Box<[u8]>,
    /// The last key of a range.
    pub(super) key_end: Option<Box<[u8]>>,
    /// Whether the interval before it ends before it.
    pub(super) ends: bool,
    /// Whether it stands for all that is not there.
    pub(super) catch_all: bool,
    pub(super) data: Option<Data>,
    /// Whether it may say no for other reasons than its key.
    pub(super) doubtful: bool,
}

/// All but elements.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub(super) tables: Vec<Table>,
    pub(super) chains: Vec<Chain>,
    pub(super) rules: Vec<Rule>,
    pub(super) sets: Vec<Set>,
    /// The devices of flowtables.
    pub(super) flow_devices: Vec<(TableKey, Vec<String>)>,
}

/// The number of what names the table in messages about all of these.
const TABLE: u16 = 1;

impl Dump {
    /// Asks for the tables of all families and what is in them. `numbers` are what rules name by them.
    pub(super) fn read(connection: &mut Connection, numbers: Numbers<'_>) -> Result<Self, KernelError> {
        let mut dump = Self::default();
        connection.dump_all("tables", libc::NFT_MSG_GETTABLE, |message| {
            dump.tables.push(table(message)?);
            Some(())
        })?;
        connection.dump_all("chains", libc::NFT_MSG_GETCHAIN, |message| {
            dump.chains.push(chain(message)?);
            Some(())
        })?;
        parallel::rules(connection, &mut dump, numbers)?;
        connection.dump_all("sets", libc::NFT_MSG_GETSET, |message| {
            dump.sets.push(set(message)?);
            Some(())
        })?;
        // Before Linux 4.16 there are none, and no such question.
        let flowtables = connection.dump_all("flowtables", GETFLOWTABLE, |message| {
            dump.flow_devices.push(flowtable(message)?);
            Some(())
        });
        match flowtables {
            Err(KernelError::Socket(_, error)) if error.raw_os_error() == Some(libc::EINVAL) => {}
            other => other?,
        }
        Ok(dump)
    }
}

/// `NFT_MSG_GETRULE`.
pub(super) const GETRULE: i32 = libc::NFT_MSG_GETRULE;

/// `NFT_MSG_GETFLOWTABLE`.
const GETFLOWTABLE: i32 = 23;

fn key(message: Message<'_>) -> Option<TableKey> {
    Some((message.family(), message.attributes().text(TABLE)?))
}

pub(super) fn table(message: Message<'_>) -> Option<Table> {
    const FLAGS: u16 = 2;
    const DORMANT: u32 = 1;
    let flags = message.attributes().be_u32(FLAGS).unwrap_or(0);
    Some(Table { key: key(message)?, dormant: flags & DORMANT > 0 })
}

pub(super) fn chain(message: Message<'_>) -> Option<Chain> {
    const HANDLE: u16 = 2;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const DROP: u32 = 0;
    let chain = message.attributes();
    let base = match chain.nested(HOOK) {
        Some(hook) => Some(Base {
            kind: chain.text(TYPE)?,
            hook: hook.be_u32(HOOK_NUMBER)?,
            priority: i32::from_ne_bytes(hook.be_u32(HOOK_PRIORITY)?.to_ne_bytes()),
            drops: chain.be_u32(POLICY) == Some(DROP),
            devices: devices(hook),
        }),
        None => None,
    };
    Some(Chain { table: key(message)?, name: chain.text(NAME)?, handle: chain.be_u64(HANDLE), base })
}

/// The devices of a hook, each once.
fn devices(hook: Attributes<'_>) -> Vec<String> {
    const DEVICE: u16 = 3;
    const DEVICES: u16 = 4;
    let one = hook.text(DEVICE);
    let mut all: Vec<String> = one.into_iter().chain(device_names(hook, DEVICES)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn device_names(hook: Attributes<'_>, list: u16) -> Vec<String> {
    // `NFTA_DEVICE_PREFIX`, since Linux 6.16: all whose names begin so.
    const PREFIX: u16 = 2;
    let list = hook.nested(list).unwrap_or_default();
    let name = |(kind, value): (u16, &[u8])| {
        let name = String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        if kind == PREFIX { name + "*" } else { name }
    };
    list.iter().map(name).collect()
}

fn flowtable(message: Message<'_>) -> Option<(TableKey, Vec<String>)> {
    const HOOK: u16 = 3;
    const DEVICES: u16 = 3;
    let hook = message.attributes().nested(HOOK).unwrap_or_default();
    Some((key(message)?, device_names(hook, DEVICES)))
}

pub(super) fn rule(message: Message<'_>) -> Option<Rule> {
    const CHAIN: u16 = 2;
    const HANDLE: u16 = 3;
    const EXPRESSIONS: u16 = 4;
    const USER_DATA: u16 = 7;
    let rule = message.attributes();
    let bytes = |kind| rule.get(kind).unwrap_or_default().into();
    Some(Rule {
        table: key(message)?,
        chain: rule.text(CHAIN)?,
        handle: rule.be_u64(HANDLE),
        exprs: bytes(EXPRESSIONS),
        user_data: bytes(USER_DATA),
        ahead: None,
    })
}

pub(super) fn set(message: Message<'_>) -> Option<Set> {
    const NAME: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_LENGTH: u16 = 5;
    const DESCRIPTION: u16 = 9;
    const CONCATENATION: u16 = 2;
    const FIELD_LENGTH: u16 = 1;
    let set = message.attributes();
    let flags = set.be_u32(FLAGS).unwrap_or(0);
    let fields = set.nested(DESCRIPTION).and_then(|description| description.nested(CONCATENATION)).unwrap_or_default();
    // The header calls it bits, but bytes it is: `nft_set_desc_concat_parse` in net/netfilter/nf_tables_api.c.
    let length = |field: &[u8]| usize::try_from(Attributes::new(field).be_u32(FIELD_LENGTH)?).ok();
    Some(Set {
        table: key(message)?,
        name: set.text(NAME)?,
        anonymous: flags & ANONYMOUS > 0,
        interval: flags & INTERVAL > 0,
        changing: flags & EVAL > 0,
        objects: flags & OBJECT > 0,
        key_length: usize::try_from(set.be_u32(KEY_LENGTH)?).ok()?,
        fields: fields.iter().map(|(_, field)| length(field)).collect::<Option<_>>()?,
    })
}

/// Asks for the elements of a set, in the order in which the kernel gives them.
pub(super) fn elements(connection: &mut Connection, set: &Set) -> Result<Vec<Element>, KernelError> {
    const SET: u16 = 2;
    let (family, table) = &set.table;
    let of_set = names(&[(TABLE, table), (SET, &set.name)]);
    let mut found = Vec::new();
    connection
        .dump_of("elements", libc::NFT_MSG_GETSETELEM, *family, &of_set, |message| elements_of(message, &mut found))?;
    Ok(found)
}

/// Reads the elements in a message.
pub(super) fn elements_of(message: Message<'_>, found: &mut Vec<Element>) -> Option<()> {
    const LIST: u16 = 3;
    let list = message.attributes().nested(LIST).unwrap_or_default();
    for (_, bytes) in list.iter() {
        found.push(element(Attributes::new(bytes))?);
    }
    Some(())
}

fn element(element: Attributes<'_>) -> Option<Element> {
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const EXPRESSION: u16 = 7;
    const KEY_END: u16 = 10;
    const EXPRESSIONS: u16 = 11;
    const INTERVAL_END: u32 = 1;
    const CATCH_ALL: u32 = 2;
    let flags = element.be_u32(FLAGS).unwrap_or(0);
    let catch_all = flags & CATCH_ALL > 0;
    let key = match element.get(KEY) {
        Some(_) => data_value(element, KEY)?.into(),
        None if catch_all => Box::default(),
        None => return None,
    };
    let key_end = match element.get(KEY_END) {
        Some(_) => Some(data_value(element, KEY_END)?.into()),
        None => None,
    };
    let data = match element.nested(DATA) {
        Some(data) => Some(match verdict(data) {
            Some(verdict) => Data::Verdict(verdict),
            None => Data::Value(data_value(element, DATA)?.into()),
        }),
        None => None,
    };
    let one = element.nested(EXPRESSION).map(Expr::of);
    let more = element.nested(EXPRESSIONS).unwrap_or_default();
    let more = more.iter().map(|(_, expr)| Expr::of(Attributes::new(expr)));
    let doubtful = one.into_iter().chain(more).any(|expr| !matches!(expr.name.as_str(), "counter" | "last"));
    Some(Element { key, key_end, ends: flags & INTERVAL_END > 0, catch_all, data, doubtful })
}

/// Reads a verdict in some data.
pub(super) fn verdict(data: Attributes<'_>) -> Option<Verdict> {
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    const CHAIN: u16 = 2;
    let verdict = data.nested(VERDICT)?;
    Some(Verdict { code: verdict.be_u32(CODE)?, chain: verdict.text(CHAIN) })
}
