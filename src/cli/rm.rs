//! `portfwd rm`: removes forwards.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Failure, Global, Output, add, change};
use crate::engine::{Options, Scope};
use crate::model::{Asked, Binding, Listen, Protocol, SetName};

#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Where they listen, with the ports as `add` got them; without a protocol,
    /// all of them
    #[arg(value_name = "LISTEN", required = true)]
    listens: Vec<String>,
    /// The rule set that they are removed from
    #[arg(long, value_name = "NAME", default_value = "cli")]
    set: String,
    /// Let the connections that use it finish, instead of ending them
    #[arg(long)]
    keep_connections: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &RmArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let mut listens = Vec::with_capacity(args.listens.len());
    for text in &args.listens {
        listens.push(add::parse("LISTEN", text, str::parse::<Listen>)?);
    }
    let set = add::parse("--set", &args.set, str::parse::<SetName>)?;
    let mut engine = global.change(args.dry_run, Scope::Full, output)?;
    let mut after = engine.state().clone();
    // All are looked for before one is removed, so that naming one twice is naming it once.
    let mut gone = BTreeSet::new();
    for listen in &listens {
        gone.append(&mut find(&after.asked, &set, listen)?);
    }
    let mut at = 0..;
    Arc::make_mut(&mut after.asked).bindings.retain(|_| at.next().is_none_or(|at| !gone.contains(&at)));
    if args.dry_run {
        return change::preview(&mut engine, &after, global, output);
    }
    let outcome = engine.commit(after, Options { keep_connections: args.keep_connections })?;
    change::report(&engine, &outcome, global, output)?;
    if !global.json {
        change::details(&outcome, output)?;
    }
    Ok(0)
}

/// How many bindings a message names at most.
const NAMED: usize = 5;

/// Finds the bindings of a set whose ports are exactly a range of `listen`, by their places in what is asked.
///
/// A range that was given as one is removed as one: what listens at other ports of it stays.
fn find(asked: &Asked, set: &SetName, listen: &Listen) -> Result<BTreeSet<usize>, Failure> {
    let mut found = BTreeSet::new();
    // Where protocols are named, each of them must be there.
    let any = [None];
    let named: Vec<Option<Protocol>> = listen.protocols.iter().copied().map(Some).collect();
    for protocol in if named.is_empty() { &any[..] } else { &named } {
        let same = |binding: &Binding| {
            binding.address == listen.address && protocol.is_none_or(|protocol| protocol == binding.protocol)
        };
        let there: Vec<(usize, &Binding)> = (asked.bindings.iter().enumerate())
            .filter(|(_, owned)| owned.set == *set && same(&owned.rule))
            .map(|(at, owned)| (at, &owned.rule))
            .collect();
        for range in listen.ports.ranges() {
            let exact = |(_, binding): &&(usize, &Binding)| binding.ports == *range;
            found.extend(there.iter().filter(exact).map(|(at, _)| *at));
            if !there.iter().any(|entry| exact(&entry)) {
                let (address, protocols) = (listen.address, protocol.iter().copied().collect());
                let asked_for = Listen { address, ports: (*range).into(), protocols };
                let near = there.iter().map(|(_, binding)| *binding).filter(|binding| binding.ports.overlaps(*range));
                return Err(missing(&asked_for, set, near));
            }
        }
    }
    Ok(found)
}

/// Says that nothing listens at exactly these ports, what listens at some of them, and what to write to remove that.
fn missing<'a>(listen: &Listen, set: &SetName, near: impl Iterator<Item = &'a Binding>) -> Failure {
    let mut near: Vec<&Binding> = near.collect();
    near.sort_by_key(|binding| (binding.ports.first(), binding.ports.last(), binding.protocol));
    let text = |binding: &&Binding| {
        Listen { address: binding.address, ports: binding.ports.into(), protocols: vec![binding.protocol] }.to_string()
    };
    let mut texts: Vec<String> = near.iter().map(text).collect();
    // Those that differ only in interface or clients are neighbours, and removed by the same words.
    texts.dedup();
    if texts.is_empty() {
        return Failure::NotFound {
            what: format!("nothing listens at `{listen}` in the rule set `{set}`"),
            help: "see `portfwd list`; name another set with `--set`".into(),
        };
    }
    let list = texts.iter().take(NAMED).map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ");
    let more = texts.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let option = if *set == SetName::cli() { String::new() } else { format!(" --set {set}") };
    let command = texts.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(" ");
    let part =
        near.iter().all(|binding| listen.ports.single_range().is_some_and(|range| binding.ports.contains(range)));
    let what = if part {
        format!("in the rule set `{set}`, `{listen}` is only a part of {list}{more}")
    } else {
        format!("nothing listens at `{listen}` as a whole in the rule set `{set}`, but at ports of it do {list}{more}")
    };
    Failure::NotFound {
        what,
        help: format!("remove each as it was added, `portfwd rm{option} {command}`, and add what shall stay"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Forward, Owned};

    fn asked(listens: &[&str]) -> Asked {
        let mut asked = Asked::default();
        for listen in listens {
            let forward = Forward::new(listen.parse().expect(listen), "10.0.0.1".parse().expect("target"));
            let own = |rule| Owned { set: SetName::cli(), rule };
            asked.bindings.extend(forward.bindings().expect("valid").into_iter().map(own));
        }
        asked
    }

    #[test]
    fn only_what_listens_at_exactly_these_ports_is_found() {
        let asked = asked(&["8000-8010", "8005", "8005/udp", "192.0.2.1:8005", "90,95-99"]);
        for (listen, expected) in [
            ("8000-8010", &[0][..]),
            ("8005", &[1, 2]),
            ("8005/tcp", &[1]),
            ("8005/tcp,udp", &[1, 2]),
            ("192.0.2.1:8005", &[3]),
            ("90,95-99", &[4, 5]),
        ] {
            let found = find(&asked, &SetName::cli(), &listen.parse().expect(listen)).expect(listen);
            assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{listen}");
        }
    }

    #[test]
    fn what_is_near_is_named_with_what_to_write() {
        let asked = asked(&["8000-8010", "8005", "90/udp", "192.0.2.1:1-9", "20", "30", "40"]);
        for (listen, named, command) in [
            ("1-65535", "`20/tcp`, `30/tcp`, `40/tcp`, `90/udp`, `8000-8010/tcp` and 1 more", "rm 20/tcp 30/tcp"),
            ("8001", "in the rule set `cli`, `8001` is only a part of `8000-8010/tcp`", "rm 8000-8010/tcp`"),
            ("90/tcp,udp", "nothing listens at `90/tcp` in the rule set `cli`", "portfwd list"),
            ("192.0.2.1:9", "is only a part of `192.0.2.1:1-9/tcp`", "rm 192.0.2.1:1-9/tcp`"),
            ("50", "nothing listens at `50` in the rule set `cli`", "portfwd list"),
        ] {
            let failure = find(&asked, &SetName::cli(), &listen.parse().expect(listen)).expect_err(listen);
            let Failure::NotFound { what, help } = failure else { panic!("{failure:?}") };
            assert!(what.contains(named) && help.contains(command), "{listen}: {what}: {help}");
        }
        let other: SetName = "web".parse().expect("name");
        assert!(find(&asked, &other, &"8005".parse().expect("listen")).is_err());
    }
}
