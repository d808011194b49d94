//! Reads the text of `nft list ruleset`.
//!
//! ```text
//! text ──syntax──▶ tables, blocks, items ──commands──▶ nft in a sandbox ──netlink──▶ ruleset ──places──▶ ruleset with lines
//! ```
//! Only nft(8) knows its syntax. So the host's nft loads the text into a network namespace that nothing else uses
//! ([`crate::sys::sandbox`]), and the netlink reader reads the rules there. Each rule becomes one command. If nft refuses a
//! rule, the rule is kept as an unknown one in its place, and a gap contains the reason.
//!
//! Be aware: the text is hostile. It reaches nft through standard input, as commands that this module makes.

mod load;
mod syntax;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use self::load::Loader;
use self::syntax::{Block, Item, Table, Token, is_name, render};
use super::nft;
use crate::model::error::printable;
use crate::nft::transaction::{Connection, KernelError};
use crate::ruleset::region::Region;
use crate::ruleset::table::{self, Action, Case, Gap, Rule, Ruleset, TableFamily, Tool};
use crate::sys::netlink::Socket;
use crate::sys::process::{self, ProcessError};
use crate::sys::rtnetlink::{NewLink, Rtnetlink};
use crate::sys::sandbox::{Sandbox, SandboxError};

/// The largest size of a text in bytes.
pub const MAX_TEXT: usize = 64 << 20;

/// The largest number of interfaces that a text may name.
const MAX_LINKS: usize = 1000;

/// The largest number of gaps that name one rule each.
const MAX_GAPS: usize = 100;

/// The reason for rules that nft prints as comments.
const XT: &str = "nft cannot load rules of iptables extensions; give the output of iptables-save too";

/// The reason that a text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Something that is not in a table, or a command that reads a file or sets a variable.
    #[error("line {line}: `{}` is not in the output of `nft list ruleset`", printable(&.word.chars().take(120).collect::<String>()))]
    Command {
        /// The line number.
        line: usize,
        /// The text.
        word: String,
    },
    /// A malformed table.
    #[error("line {line}: {why}")]
    Shape {
        /// The line number.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The text is too long.
    #[error("its {0} bytes are more than the maximum of {MAX_TEXT} for the text of `nft list ruleset`")]
    TooLong(usize),
    /// There is no nft, or it cannot be run.
    #[error("only nft can read the text of `nft list ruleset`")]
    Nft(#[from] ProcessError),
    /// The host does not allow the namespaces.
    #[error("only nft can read the text of `nft list ruleset`, and portfwd runs it in namespaces of its own")]
    Sandbox(#[from] SandboxError),
    /// The network namespace could not be used.
    #[error("cannot use the network namespace for the text of `nft list ruleset`")]
    Namespace(#[from] io::Error),
    /// The rules could not be read from the network namespace.
    #[error("cannot read back the text of `nft list ruleset`")]
    Kernel(#[from] KernelError),
}

impl TextError {
    /// Returns true if the reason is this host, not the text.
    pub fn is_of_host(&self) -> bool {
        !matches!(self, Self::Command { .. } | Self::Shape { .. } | Self::TooLong(_))
    }
}

/// Returns true if a text looks like the output of nft(8): a line begins a table.
pub fn is_one(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_start);
    lines.any(|line| line.strip_prefix("table").is_some_and(|rest| rest.starts_with([' ', '\t']) && rest.contains('{')))
}

/// Reads a text. The text may contain handles.
///
/// # Errors
/// [`TextError`].
pub fn parse(text: &str) -> Result<Ruleset, TextError> {
    if text.len() > MAX_TEXT {
        return Err(TextError::TooLong(text.len()));
    }
    let mut tables = syntax::parse(text)?;
    let nft = process::find("nft")?;
    let sandbox = Sandbox::new()?;
    let links = links(&sandbox, &tables)?;
    let loader = Loader::new(&sandbox, nft);
    let mut failures = Failures::default();
    let (commands, places) = declarations(&tables, &mut failures);
    let refused = loader.load(&commands)?;
    let mut plain = Vec::new();
    for (place, message) in places.into_iter().zip(refused) {
        let Some(message) = message else { continue };
        let Place { table, block } = place;
        let Some(table) = tables.get(table) else { continue };
        let Some(block) = block.and_then(|block| table.blocks.get(block)) else {
            failures.add(table, table.line, "the table", &message);
            continue;
        };
        failures.add(table, block.head.line, &render(&block.head.tokens), &message);
        if block.head.first() == Some("chain") {
            // The rules of the chain may still be jumped to.
            plain.extend(
                name(block).map(|(_, name)| format!("add chain {} {} {name}", table.family.name(), table.name)),
            );
        }
    }
    loader.load(&plain)?;
    let commands = rules(&mut tables);
    let refused = loader.load(&commands)?;
    let loaded = each_rule(&mut tables).filter(|(_, item)| item.broken.is_none());
    for ((_, item), message) in loaded.zip(refused) {
        item.broken = message.map(Cow::from);
    }
    let mut connection = Connection::over(Box::new(sandbox.netfilter()?));
    let numbers = nft::Numbers { links: &links, ipsets: &nft::Ipsets::default() };
    let read = nft::read_with(&mut connection, numbers)?;
    Ok(merge(&tables, read, failures))
}

/// The objects of a text that could not be read.
#[derive(Default)]
struct Failures {
    gaps: Vec<Gap>,
    more: usize,
}

impl Failures {
    fn add(&mut self, table: &Table<'_>, line: usize, text: &str, why: &str) {
        if self.gaps.len() == MAX_GAPS {
            self.more += 1;
            return;
        }
        let text: String = text.chars().take(160).collect();
        let what = format!("{} {}, line {line}: `{text}`", table.family.name(), table.name);
        self.gaps.push(Gap { what, why: why.to_owned() });
    }

    fn end(mut self) -> Vec<Gap> {
        if self.more > 0 {
            let what = format!("{} more lines", self.more);
            self.gaps.push(Gap { what, why: "nft refused them".into() });
        }
        self.gaps
    }
}

/// What a command declares: a table, or one of its blocks.
struct Place {
    table: usize,
    block: Option<usize>,
}

/// The blocks other than chains, as commands of nft(8), in the order in which nft needs them.
const KINDS: [&str; 11] = [
    "counter",
    "quota",
    "limit",
    "secmark",
    "synproxy",
    "ct helper",
    "ct timeout",
    "ct expectation",
    "flowtable",
    "set",
    "map",
];

/// Returns the kind and name of a block.
fn name<'a>(block: &Block<'a>) -> Option<(String, &'a str)> {
    let (Token::Word(name), kind) = block.head.tokens.split_last()? else { return None };
    is_name(name).then(|| (render(kind), *name))
}

/// Returns the commands for everything but rules.
fn declarations(tables: &[Table<'_>], failures: &mut Failures) -> (Vec<String>, Vec<Place>) {
    let (mut commands, mut places) = (Vec::new(), Vec::new());
    for (table_at, table) in tables.iter().enumerate() {
        let place = format!("{} {}", table.family.name(), table.name);
        let flags = table.items.iter().find(|item| item.first() == Some("flags"));
        let dormant = flags.is_some_and(|flags| flags.text().contains("dormant"));
        // The flag `owner` would remove the table as soon as nft ends.
        commands.push(format!("add table {place}{}", if dormant { " { flags dormant; }" } else { "" }));
        places.push(Place { table: table_at, block: None });
        for item in &table.items {
            if !matches!(item.first(), Some("flags" | "comment")) {
                failures.add(table, item.line, &item.text(), "nft prints no such line in a table");
            }
        }
        let mut ordered: Vec<(usize, usize)> = Vec::new();
        for (at, block) in table.blocks.iter().enumerate() {
            let kind = name(block).map(|(kind, _)| kind);
            let rank = match kind.as_deref() {
                Some("chain") => Some(0),
                Some(kind) => KINDS.iter().position(|known| *known == kind).map(|rank| rank + 1),
                None => None,
            };
            match rank {
                Some(rank) => ordered.push((rank, at)),
                None => {
                    failures.add(table, block.head.line, &block.head.text(), "portfwd does not know such an object")
                }
            }
        }
        ordered.sort_unstable();
        for (rank, at) in ordered {
            let Some(block) = table.blocks.get(at) else { continue };
            let Some((kind, name)) = name(block) else { continue };
            match body(block, rank, failures, table) {
                Some(body) => {
                    commands.push(format!("add {kind} {place} {name}{body}"));
                    places.push(Place { table: table_at, block: Some(at) });
                }
                None => continue,
            }
        }
    }
    (commands, places)
}

/// Returns the braces of a declaration. Returns `None` if nft could not load them.
fn body(block: &Block<'_>, rank: usize, failures: &mut Failures, table: &Table<'_>) -> Option<String> {
    let mut body = String::new();
    for item in &block.items {
        if rank == 0 && is_rule(item) {
            continue;
        }
        if let Some(why) = &item.broken {
            failures.add(table, item.line, &item.text(), why);
            return None;
        }
        let text = match item.first() {
            Some("comment") => continue,
            // Elements stay as long as this process reads them. Hardware is not needed to read a text.
            Some("timeout") if rank > 0 && block.head.first() != Some("ct") => continue,
            Some("flags") if block.head.first() == Some("flowtable") => continue,
            Some("elements") => render(&without_times(&item.tokens)),
            _ => item.text(),
        };
        body.extend([&text, "; "]);
    }
    Some(if body.is_empty() { String::new() } else { format!(" {{ {body}}}") })
}

/// Removes the timeouts of elements.
fn without_times<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut tokens = tokens.iter();
    while let Some(token) = tokens.next() {
        match token {
            Token::Word("timeout" | "expires") => {
                if let Some(Token::Word(time)) = tokens.next()
                    && time.ends_with(',')
                {
                    kept.push(Token::Word(","));
                }
            }
            token => kept.push(*token),
        }
    }
    kept
}

/// Returns true if an item of a chain is a rule, not a property of the chain.
fn is_rule(item: &Item<'_>) -> bool {
    !matches!(item.first(), Some("type" | "policy" | "comment" | "flags"))
}

/// Returns each rule with the place of its chain, as words of a command.
fn each_rule<'a, 'b>(tables: &'b mut [Table<'a>]) -> impl Iterator<Item = (String, &'b mut Item<'a>)> {
    tables.iter_mut().flat_map(|table| {
        let place = format!("{} {}", table.family.name(), table.name);
        let chains = table.blocks.iter_mut().filter(|block| block.head.first() == Some("chain"));
        chains.flat_map(move |block| {
            let place = format!("{place} {}", name(block).map_or("?", |(_, name)| name));
            block.items.iter_mut().filter(|item| is_rule(item)).map(move |item| (place.clone(), item))
        })
    })
}

/// Returns the commands for the rules that nft can load, and marks the other ones.
fn rules(tables: &mut [Table<'_>]) -> Vec<String> {
    let mut commands = Vec::new();
    for (place, item) in each_rule(tables) {
        let is_xt = |pair: &[Token<'_>]| matches!(pair, [Token::Word("xt"), Token::Word("match" | "target")]);
        if item.xt || item.tokens.windows(2).any(is_xt) {
            item.broken = Some(XT.into());
        } else if item.broken.is_none() {
            commands.push(format!("add rule {place} {}", item.text()));
        }
    }
    commands
}

/// Creates the interfaces that rules and sets name, because nft looks up their numbers. Returns the names of all interfaces
/// by their numbers.
fn links(sandbox: &Sandbox, tables: &[Table<'_>]) -> io::Result<HashMap<u32, String>> {
    let mut names = BTreeSet::new();
    for item in tables.iter().flat_map(|table| &table.blocks).flat_map(|block| &block.items) {
        names_of_links(&item.tokens, &mut names);
    }
    let links = Rtnetlink::over(Socket::over(Box::new(sandbox.route()?)));
    for name in names.into_iter().filter(|name| name != "lo").take(MAX_LINKS) {
        // Without its interface, nft refuses the line and says so.
        drop(links.add_bridge(NewLink { name: &name, mac: None }));
    }
    Ok(links.links()?.complete()?.into_iter().map(|link| (link.index, link.name)).collect())
}

fn names_of_links(tokens: &[Token<'_>], names: &mut BTreeSet<String>) {
    let has = |words: &[&str]| tokens.iter().any(|token| matches!(token, Token::Word(word) if words.contains(word)));
    let devices = has(&["devices", "devices="]);
    if !devices && !has(&["device", "iif", "oif", "sdif", "iface_index", "elements", "elements="]) {
        return;
    }
    let (mut inside, mut after_device) = (false, false);
    for token in tokens {
        let name = match token {
            Token::Quoted(name) => name,
            // `device eth0` and `devices = { eth0, eth1 }` may have no quotes.
            Token::Word(word) if after_device || devices && inside => word.trim_end_matches(','),
            _ => "",
        };
        after_device = *token == Token::Word("device");
        inside = (inside || *token == Token::Open) && *token != Token::Close;
        let characters = |name: &str| name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%*=,".contains(&byte));
        if (1..16).contains(&name.len()) && characters(name) && name != "." && name != ".." {
            names.insert(name.to_owned());
        }
    }
}

/// Puts the rules that were read into the places of the text.
fn merge(tables: &[Table<'_>], mut read: Ruleset, mut failures: Failures) -> Ruleset {
    let mut merged = Ruleset { gaps: std::mem::take(&mut read.gaps), ..Ruleset::default() };
    for table in tables {
        let is_same = |(family, name): (TableFamily, &str)| (family, name) == (table.family, table.name);
        if merged.tables.iter().any(|known| is_same((known.family, &known.name))) {
            // The text names the table twice.
            continue;
        }
        let parts = || tables.iter().filter(|part| is_same((part.family, part.name)));
        let found = read.tables.iter_mut().find(|known| is_same((known.family, &known.name)));
        let new = || table::Table::new(table.family, table.name, Tool::Nft);
        let mut target = found.map_or_else(new, |found| std::mem::replace(found, new()));
        // A rule that nft translated from iptables is not a rule that iptables cannot print.
        target.native.clear();
        // The devices are in the text, even if this kernel has no flowtables.
        for item in parts()
            .flat_map(|part| &part.blocks)
            .filter(|block| block.head.first() == Some("flowtable"))
            .flat_map(|block| &block.items)
        {
            let mut names = BTreeSet::new();
            if item.first().is_some_and(|first| first.starts_with("devices")) {
                names_of_links(&item.tokens, &mut names);
            }
            target.flow_devices.extend(names);
        }
        target.flow_devices.sort_unstable();
        target.flow_devices.dedup();
        let mut chains: BTreeMap<&str, Vec<&Item<'_>>> = BTreeMap::new();
        for block in parts().flat_map(|part| &part.blocks).filter(|block| block.head.first() == Some("chain")) {
            let Some((_, name)) = name(block) else { continue };
            chains.entry(name).or_default().extend(block.items.iter().filter(|item| is_rule(item)));
            let chain = target.chains.entry(name);
            chain.handle = block.head.handle.or(chain.handle);
        }
        for (name, items) in chains {
            let chain = target.chains.entry(name);
            let loaded = std::mem::take(&mut chain.rules);
            let in_order = loaded.len() == items.iter().filter(|item| item.broken.is_none()).count();
            let mut loaded = loaded.into_iter();
            for item in items {
                let other = (!in_order).then_some("nft made other rules of this chain");
                if let Some(why) = item.broken.as_deref().or(other) {
                    failures.add(table, item.line, &item.text(), why);
                }
                let rule = match &item.broken {
                    None if in_order => loaded.next(),
                    _ => None,
                };
                chain.rules.push(placed(rule, item));
            }
        }
        merged.tables.push(target);
    }
    merged.gaps.extend(failures.end());
    merged
}

/// Returns a rule with its place in the text. A rule that was not loaded is unknown.
fn placed(rule: Option<Rule>, item: &Item<'_>) -> Rule {
    let text = item.text();
    let rule = rule.unwrap_or_else(|| {
        let actions = [Action::Unknown(text.as_str().into())].into();
        Rule { cases: vec![Case { region: Region::all(), actions }], ..Rule::default() }
    });
    Rule { handle: item.handle, line: Some(item.line), words: Some(text.into()), ..rule }
}
