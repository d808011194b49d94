//! The commands for nft(8), and the interfaces that they need.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;

use super::gaps::Failures;
use super::syntax::{Block, Item, Table, Token, is_name, render};
use crate::sys::netlink::Socket;
use crate::sys::rtnetlink::{NewLink, Rtnetlink};
use crate::sys::sandbox::Sandbox;

/// The reason for rules that nft prints as comments.
pub(super) const XT: &str = "nft cannot load rules of iptables extensions; give the output of iptables-save too";

/// The largest number of interfaces that a text may name.
const MAX_LINKS: usize = 1000;

/// What a command declares: a table, or one of its blocks.
pub(super) struct Place {
    pub(super) table: usize,
    pub(super) block: Option<usize>,
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
pub(super) fn name<'a>(block: &Block<'a>) -> Option<(String, &'a str)> {
    let (Token::Word(name), kind) = block.head.tokens.split_last()? else { return None };
    is_name(name).then(|| (render(kind), *name))
}

/// Returns the commands for everything but rules.
pub(super) fn declarations(tables: &[Table<'_>], failures: &mut Failures) -> (Vec<String>, Vec<Place>) {
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
            let Some((body, elements)) = body(block, rank, failures, table) else { continue };
            commands.push(format!("add {kind} {place} {name}{body}"));
            commands.extend(elements.iter().map(|elements| format!("add element {place} {name} {{ {elements} }}")));
            places.resize_with(commands.len(), || Place { table: table_at, block: Some(at) });
        }
    }
    (commands, places)
}

/// Returns the braces of a declaration, and groups of elements. Returns `None` if nft could not load them.
fn body(block: &Block<'_>, rank: usize, failures: &mut Failures, table: &Table<'_>) -> Option<(String, Vec<String>)> {
    let (mut body, mut elements) = (String::new(), Vec::new());
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
            Some("elements" | "elements=") => {
                let inside = item.tokens.iter().position(|token| *token == Token::Open)?;
                let tokens = item.tokens.get(inside + 1..item.tokens.len().checked_sub(1)?)?;
                elements = groups(&without_times(tokens));
                continue;
            }
            _ => item.text(),
        };
        body.extend([&text, "; "]);
    }
    Some((if body.is_empty() { String::new() } else { format!(" {{ {body}}}") }, elements))
}

/// Splits a list of elements after commas. nft cannot send a large set at once.
fn groups(elements: &[Token<'_>]) -> Vec<String> {
    const BYTES: usize = 8000;
    let (mut groups, mut group) = (Vec::new(), String::new());
    for element in elements.split_inclusive(|token| matches!(token, Token::Word(word) if word.ends_with(','))) {
        if group.len() > BYTES {
            groups.push(std::mem::take(&mut group));
        }
        group.extend([&render(element), " "]);
    }
    groups.extend(Some(group).filter(|group| !group.is_empty()));
    groups
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
pub(super) fn is_rule(item: &Item<'_>) -> bool {
    !matches!(item.first(), Some("type" | "policy" | "comment" | "flags"))
}

/// Returns each rule with the place of its chain, as words of a command.
pub(super) fn each_rule<'a, 'b>(tables: &'b mut [Table<'a>]) -> impl Iterator<Item = (String, &'b mut Item<'a>)> {
    tables.iter_mut().flat_map(|table| {
        let place = format!("{} {}", table.family.name(), table.name);
        let chains = table.blocks.iter_mut().filter(|block| block.head.first() == Some("chain"));
        chains.flat_map(move |block| {
            let place = format!("{place} {}", name(block).map_or("?", |(_, name)| name));
            block.items.iter_mut().filter(|item| is_rule(item)).map(move |item| (place.clone(), item))
        })
    })
}

/// Returns true if a token is the name of a refused set. `place` is the place of a chain.
fn asks(refused: &HashSet<String>, place: &str, token: &Token<'_>) -> bool {
    let table = place.rsplit_once(' ').map_or("", |(table, _)| table);
    matches!(token, Token::Word(word) if word.starts_with('@') && refused.contains(&format!("{table} {word}")))
}

/// Returns true if the text has the command that printed it, and the command left out the elements of sets.
pub(super) fn is_terse(text: &str) -> bool {
    let commands = text.lines().take_while(|line| line.starts_with('#') || line.trim().is_empty());
    let is_option =
        |word: &str| word == "--terse" || word.starts_with('-') && !word.starts_with("--") && word.contains('t');
    commands.filter(|line| line.contains("nft ")).any(|line| line.split_ascii_whitespace().any(is_option))
}

/// Returns the commands for the rules that nft can load, and marks the other ones.
pub(super) fn rules(tables: &mut [Table<'_>], terse: bool) -> Vec<String> {
    let mut commands = Vec::new();
    let is_set = |token: &Token<'_>| matches!(token, Token::Word(word) if word.starts_with('@') && !word.contains(','));
    let refused = tables
        .iter()
        .flat_map(|table| table.blocks.iter().filter(|block| block.refused).map(move |block| (table, block)));
    // A set that has only a part of its elements would give wrong verdicts.
    let refused: HashSet<String> = refused
        .filter_map(|(table, block)| Some(format!("{} {} @{}", table.family.name(), table.name, name(block)?.1)))
        .collect();
    for (place, item) in each_rule(tables) {
        let is_xt = |pair: &[Token<'_>]| matches!(pair, [Token::Word("xt"), Token::Word("match" | "target")]);
        if item.xt || item.tokens.windows(2).any(is_xt) {
            item.broken = Some(XT.into());
        } else if !refused.is_empty() && item.tokens.iter().any(|token| asks(&refused, &place, token)) {
            item.broken = Some("its set or flowtable was not read".into());
        } else if terse && item.tokens.iter().any(is_set) {
            item.broken = Some("`nft -t` does not print the elements of sets; use `nft list ruleset`".into());
        } else if item.broken.is_none() {
            commands.push(format!("add rule {place} {}", item.text()));
        }
    }
    commands
}

/// Creates the interfaces that rules and sets name, because nft looks up their numbers. Returns the names of all interfaces
/// by their numbers.
pub(super) fn links(sandbox: &Sandbox, tables: &[Table<'_>]) -> io::Result<HashMap<u32, String>> {
    let mut names = BTreeSet::new();
    for item in tables.iter().flat_map(|table| &table.blocks).flat_map(|block| &block.items) {
        names_of_links(&item.tokens, &mut names);
    }
    let links = Rtnetlink::over(Socket::over(Box::new(sandbox.route()?)));
    for name in names.into_iter().filter(|name| name != "lo").take(MAX_LINKS) {
        // If the interface is missing, nft refuses the line with a message.
        drop(links.add_bridge(NewLink { name: &name, mac: None }));
    }
    Ok(links.links()?.complete()?.into_iter().map(|link| (link.index, link.name)).collect())
}

pub(super) fn names_of_links(tokens: &[Token<'_>], names: &mut BTreeSet<String>) {
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
