//! Tables, chains, sets and whatever else is in a dump, one after the other.

use std::collections::{HashMap, HashSet};

use super::lower;
use super::statement;
use super::value::Json;
use crate::ruleset::table::{self, Action, Base, Chain, Gap, Hook, Kind, Ruleset, Table, TableFamily, Tool};

/// The most gaps that are told of.
const GAPS: usize = 200;

/// The elements of a named set or map.
#[derive(Debug)]
pub struct Named<'a> {
    /// Its elements.
    pub elements: Json<'a>,
    /// Whether packets add and remove elements.
    pub changes: bool,
}

/// The sets and maps of a table, by name.
pub type Sets<'a> = HashMap<String, Named<'a>>;

/// What has been read so far.
#[derive(Debug)]
pub struct Builder<'a> {
    rules: Ruleset,
    tables: HashMap<(TableFamily, String), usize>,
    /// Those of each table.
    sets: Vec<Sets<'a>>,
    /// The chains that have been listed, of each table.
    chains: Vec<HashSet<String>>,
    /// Whether a rule of iptables-nft is in it, of each table.
    foreign: Vec<bool>,
    /// The names of sets that rules add elements to.
    changing: HashSet<&'a str>,
    /// How many ranges there may still be.
    left: usize,
}

impl<'a> Builder<'a> {
    /// Nothing of this text yet.
    pub fn new(text: &'a str, most: usize) -> Self {
        Self {
            rules: Ruleset::default(),
            tables: HashMap::new(),
            sets: Vec::new(),
            chains: Vec::new(),
            foreign: Vec::new(),
            changing: changing(text),
            left: most,
        }
    }

    /// All rules.
    pub fn finish(mut self) -> Ruleset {
        for (table, foreign) in self.rules.tables.iter_mut().zip(self.foreign) {
            if foreign || is_of_iptables(table) {
                table.tool = Tool::IptablesNft;
            } else {
                // Of other tables nobody expects anything else.
                table.native.clear();
            }
        }
        self.rules
    }

    /// An object that is no rule.
    pub fn object(&mut self, key: &str, mut object: Json<'a>) -> Result<(), String> {
        match key {
            "metainfo" => {
                if object.get("json_schema_version").and_then(Json::number).is_some_and(|version| version != 1) {
                    self.gap(
                        "the whole dump",
                        "its `json_schema_version` is not 1, which is the one that is understood",
                    );
                }
            }
            "table" => {
                let name = name(key, &object, "name")?;
                let at = self.table(key, &object, &name)?;
                self.flags(at, &object);
            }
            "chain" => self.chain(&object)?,
            "set" | "map" => {
                let name = name(key, &object, "name")?;
                let at = self.table_of(key, &object)?;
                let changes =
                    self.changing.contains(&*name) || object.get("flags").is_some_and(|flags| flags.names("dynamic"));
                let elements = take(&mut object, "elem");
                if let Some(sets) = self.sets.get_mut(at) {
                    sets.insert(name, Named { elements, changes });
                }
            }
            "flowtable" => {
                let at = self.table_of(key, &object)?;
                let devices = object.get("dev").map(devices).unwrap_or_default();
                if let Some(table) = self.rules.tables.get_mut(at) {
                    table.flow_devices.extend(devices);
                }
            }
            "counter" | "quota" | "limit" | "ct helper" | "ct timeout" | "ct expectation" | "secmark" | "synproxy"
            | "tunnel" | "meter" => {}
            "add" | "insert" | "create" | "delete" | "replace" | "flush" | "list" | "reset" | "rename" => {
                let why = "it is a command for `nft -j -f`, and tells nothing of what there is";
                self.gap(&format!("command `{key}`"), why);
            }
            _ => self.gap(&format!("object `{}`", Json::Text(key.into()).words()), "it is not known"),
        }
        Ok(())
    }

    /// A rule.
    pub fn rule(&mut self, object: &Json<'a>) -> Result<(), String> {
        let chain = name("rule", object, "chain")?;
        let Some(statements) = object.get("expr") else { return Err("expected the key `expr` in `rule`".into()) };
        let at = self.table_of("rule", object)?;
        let (Some(table), Some(sets)) = (self.rules.tables.get(at), self.sets.get(at)) else { return Ok(()) };
        let place = lower::Place { table, sets, left: self.left };
        let lowered = lower::rule(place, object, statements.list());
        self.left = lowered.left;
        if let Some(foreign) = self.foreign.get_mut(at) {
            *foreign |= lowered.foreign;
        }
        if lowered.too_many {
            let handle = lowered.rule.handle.map(|handle| format!(" handle {handle}")).unwrap_or_default();
            let what = format!("{table} {chain}{handle}");
            self.gap(&what, "with the elements of all sets and maps that are asked there are too many cases");
        }
        if !self.chains.get(at).is_some_and(|known| known.contains(&chain)) {
            self.gap(
                &format!("chain {chain}"),
                "rules of it are in the dump, but it is not, so where it is attached is not known",
            );
        }
        if let Some(table) = self.rules.tables.get_mut(at) {
            let rules = &mut table.chains.entry(&chain).rules;
            let number = rules.len();
            rules.push(lowered.rule);
            if statements.list().iter().any(statement::is_native)
                && let Some(chain) = table.chains.position(&chain)
            {
                table.native.push((chain, number));
            }
        }
        Ok(())
    }

    fn gap(&mut self, what: &str, why: &str) {
        let gap = Gap { what: what.to_owned(), why: why.to_owned() };
        if self.rules.gaps.len() < GAPS && !self.rules.gaps.contains(&gap) {
            self.rules.gaps.push(gap);
        }
    }

    /// The table that an object is in, which need not have been listed: `nft -j list chain` does not.
    fn table_of(&mut self, key: &str, object: &Json<'a>) -> Result<usize, String> {
        let name = name(key, object, "table")?;
        self.table(key, object, &name)
    }

    fn table(&mut self, key: &str, object: &Json<'a>, name: &str) -> Result<usize, String> {
        let family = match object.text_of("family") {
            Some("ip") => TableFamily::Ip,
            Some("ip6") => TableFamily::Ip6,
            Some("inet") => TableFamily::Inet,
            Some("arp") => TableFamily::Arp,
            Some("bridge") => TableFamily::Bridge,
            Some("netdev") => TableFamily::Netdev,
            _ => return Err(format!("expected a family of nft(8) as `family` of `{key}`")),
        };
        let known = (family, name.to_owned());
        if let Some(at) = self.tables.get(&known) {
            return Ok(*at);
        }
        let at = self.rules.tables.len();
        self.rules.tables.push(Table::new(family, name, Tool::Nft));
        self.sets.push(Sets::new());
        self.chains.push(HashSet::new());
        self.foreign.push(false);
        self.tables.insert(known, at);
        Ok(at)
    }

    fn flags(&mut self, at: usize, object: &Json<'a>) {
        let Some(table) = self.rules.tables.get_mut(at) else { return };
        let flags = object.get("flags").map(Json::list).unwrap_or_default();
        table.dormant = flags.iter().any(|flag| flag.text() == Some("dormant"));
        let known = |flag: &Json<'_>| matches!(flag.text(), Some("dormant" | "owner" | "persist"));
        if !flags.iter().all(known) {
            // nft 1.0.6 prints the flags of a table as whatever is at some place in its memory, often the name of a table.
            let what = format!("table {table}");
            self.gap(&what, "its flags are not known, so it may be dormant (nft 1.0.6 prints flags of tables wrongly)");
        }
    }

    fn chain(&mut self, object: &Json<'a>) -> Result<(), String> {
        let chain = name("chain", object, "name")?;
        let at = self.table_of("chain", object)?;
        let base = match object.get("hook") {
            None => None,
            Some(hook) => match base(hook, object)? {
                Ok(base) => Some(base),
                Err(why) => {
                    self.gap(&format!("chain {chain}"), &why);
                    None
                }
            },
        };
        if let (Some(table), Some(known)) = (self.rules.tables.get_mut(at), self.chains.get_mut(at)) {
            let entry: &mut Chain = table.chains.entry(&chain);
            entry.base = base;
            entry.handle = object.get("handle").and_then(Json::number);
            known.insert(chain);
        }
        Ok(())
    }
}

/// How a base chain is attached: an error where the dump is broken, and inside of that one where it is not understood.
fn base(hook: &Json<'_>, object: &Json<'_>) -> Result<Result<Base, String>, String> {
    let priority = match object.get("prio") {
        Some(Json::Number(number)) => i32::try_from(*number).ok(),
        Some(Json::Negative(number)) => i32::try_from(*number).ok(),
        _ => None,
    };
    let Some(priority) = priority else { return Err("expected a number of 32 bits as `prio` of `chain`".into()) };
    let hook = match hook.text() {
        Some("ingress") => Hook::Ingress,
        Some("prerouting") => Hook::Prerouting,
        Some("input") => Hook::Input,
        Some("forward") => Hook::Forward,
        Some("output") => Hook::Output,
        Some("postrouting") => Hook::Postrouting,
        Some("egress") => Hook::Egress,
        _ => return Ok(Err(format!("it is attached to a hook that is not known, `{}`", hook.words()))),
    };
    let kind = match object.text_of("type") {
        Some("filter") => Kind::Filter,
        Some("nat") => Kind::Nat,
        Some("route") => Kind::Route,
        _ => return Ok(Err("it is of a type that is not known".to_owned())),
    };
    let drops = match object.text_of("policy") {
        None | Some("accept") => false,
        Some("drop") => true,
        _ => return Ok(Err("it has a policy that is not known".to_owned())),
    };
    let devices = object.get("dev").map(devices).unwrap_or_default();
    Ok(Ok(Base { kind, hook, priority, drops, devices }))
}

fn devices(of: &Json<'_>) -> Vec<String> {
    of.list().iter().filter_map(Json::text).map(str::to_owned).collect()
}

fn name(key: &str, object: &Json<'_>, part: &str) -> Result<String, String> {
    let text = object.text_of(part).filter(|text| !text.is_empty());
    text.map(str::to_owned).ok_or_else(|| format!("expected a name as `{part}` of `{key}`"))
}

/// Takes the value of a key out of an object.
fn take<'a>(object: &mut Json<'a>, key: &str) -> Json<'a> {
    match object {
        Json::Object(pairs) => {
            let found = pairs.iter_mut().find(|(known, _)| known == key);
            found.map_or(Json::Null, |(_, value)| std::mem::replace(value, Json::Null))
        }
        _ => Json::Null,
    }
}

/// The names of the sets and maps that rules of a text add elements to: wherever `"set": "@…"` or `"map": "@…"` is. nft 1.0.6
/// does not print the flag `dynamic`, and a set may be asked before the rule that adds to it is read.
fn changing(text: &str) -> HashSet<&str> {
    let mut found = HashSet::new();
    for key in ["\"set\"", "\"map\""] {
        for (at, _) in text.match_indices(key) {
            let behind = text.get(at + key.len()..).unwrap_or_default();
            let name = behind.trim_start().strip_prefix(':').and_then(|behind| behind.trim_start().strip_prefix("\"@"));
            found.extend(name.and_then(|name| name.split('"').next()));
        }
    }
    found
}

/// Whether a table is one of iptables-nft by its name and its base chains.
fn is_of_iptables(table: &Table) -> bool {
    matches!(table.family, TableFamily::Ip | TableFamily::Ip6)
        && table.chains.iter().any(|chain| match (&chain.base, table::base_of_iptables(&table.name, &chain.name)) {
            (Some(base), Some((kind, hook, priority))) => {
                (base.kind, base.hook, base.priority) == (kind, hook, priority)
            }
            _ => false,
        })
}

/// What becomes of a packet that is sent to a chain, or nothing known where there is no such chain.
pub fn to_chain(table: &Table, name: &str, to: impl FnOnce(std::sync::Arc<str>) -> Action) -> Action {
    match table.chains.named(name) {
        Some(chain) => to(std::sync::Arc::clone(&chain.name)),
        None => Action::Unknown(format!("chain {name}, which is not in the dump").into()),
    }
}
