//! Puts the rules that the kernel returned into the places of the text.

use std::collections::{BTreeMap, BTreeSet};

use super::commands::{is_rule, name, names_of_links};
use super::gaps::Failures;
use super::syntax::{Item, Table, Token};
use crate::ruleset::region::Region;
use crate::ruleset::table::{self, Action, Base, Case, Hook, Kind, Rule, Ruleset, TableFamily, Tool};

/// Puts the rules that were read into the places of the text.
pub(super) fn merge(tables: &[Table<'_>], mut read: Ruleset, mut failures: Failures) -> Ruleset {
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
        let mut unknown: Vec<(&str, &Item<'_>)> = Vec::new();
        let mut chains: BTreeMap<&str, Vec<&Item<'_>>> = BTreeMap::new();
        for block in parts().flat_map(|part| &part.blocks).filter(|block| block.head.first() == Some("chain")) {
            let Some((_, name)) = name(block) else { continue };
            chains.entry(name).or_default().extend(block.items.iter().filter(|item| is_rule(item)));
            let chain = target.chains.entry(name);
            chain.handle = block.head.handle.or(chain.handle);
            if block.refused || block.items.iter().any(|item| !is_rule(item) && item.broken.is_some()) {
                // Packets traverse the chain on the host of the text, so what happens there is unknown.
                chain.base = block.items.iter().find_map(base);
                unknown.extend(block.items.iter().find(|item| item.first() == Some("type")).map(|item| (name, item)));
            }
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
        for (name, hook) in unknown {
            target.chains.entry(name).rules.insert(0, placed(None, hook));
        }
        merged.tables.push(target);
    }
    merged.gaps.extend(failures.end());
    merged
}

/// Reads `type nat hook prerouting priority dstnat + 5`, for a chain that nft refused. A priority without a number counts
/// as 0.
fn base(item: &Item<'_>) -> Option<Base> {
    let words: Vec<&str> =
        item.tokens.iter().filter_map(|token| if let Token::Word(word) = token { Some(*word) } else { None }).collect();
    let after = |word: &str| words.iter().skip_while(|known| **known != word).nth(1).copied();
    let kind = match after("type")? {
        "nat" => Kind::Nat,
        "route" => Kind::Route,
        _ => Kind::Filter,
    };
    use Hook::{Egress, Forward, Ingress, Input, Output, Postrouting, Prerouting};
    let hooks = [Ingress, Prerouting, Input, Forward, Output, Postrouting, Egress];
    let hook = hooks.into_iter().find(|hook| Some(hook.name()) == after("hook"))?;
    let priority = after("priority").and_then(|number| number.parse().ok()).unwrap_or(0);
    Some(Base { kind, hook, priority, drops: false, devices: Vec::new() })
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
