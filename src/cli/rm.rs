//! `portfwd rm`: removes forwards.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Failure, Global, Output, add, change};
use crate::engine::{Options, Scope};
use crate::model::{Binding, DesiredState, Listen, Protocol, SetName};

#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Ports of the forwards, exactly as in `add`; without a protocol, of all
    /// protocols
    #[arg(value_name = "LISTEN", required = true)]
    listens: Vec<String>,
    /// Remove the forwards from this rule set
    #[arg(long, value_name = "NAME", default_value = "cli")]
    set: String,
    /// Do not drop the connections that use these forwards
    #[arg(long)]
    keep_connections: bool,
    /// Show what would change, and change nothing
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
    // Finds all bindings before it removes the first one, so that a repeated argument is no error.
    let mut removed = BTreeSet::new();
    for listen in &listens {
        removed.append(&mut find(&after.desired, &set, listen)?);
    }
    let mut indices = 0..;
    Arc::make_mut(&mut after.desired).bindings.retain(|_| indices.next().is_none_or(|index| !removed.contains(&index)));
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

/// The most bindings that a message names.
const MAX_NAMED: usize = 5;

/// Returns the indices of the bindings of `set` whose ports equal one of the port ranges of `listen`.
///
/// A binding is removed as a whole or not at all: `rm 80` does not shorten `80-90`.
///
/// # Errors
/// Fails if a port range or a protocol of `listen` has no such binding.
fn find(desired: &DesiredState, set: &SetName, listen: &Listen) -> Result<BTreeSet<usize>, Failure> {
    let mut found = BTreeSet::new();
    let any = [None];
    // Each protocol in `listen` must have a binding.
    let named: Vec<Option<Protocol>> = listen.protocols.iter().copied().map(Some).collect();
    for protocol in if named.is_empty() { &any[..] } else { &named } {
        let same = |binding: &Binding| {
            binding.address == listen.address && protocol.is_none_or(|protocol| protocol == binding.protocol)
        };
        let candidates: Vec<(usize, &Binding)> = (desired.bindings.iter().enumerate())
            .filter(|(_, owned)| owned.set == *set && same(&owned.rule))
            .map(|(index, owned)| (index, &owned.rule))
            .collect();
        for range in listen.ports.ranges() {
            let is_exact = |(_, binding): &&(usize, &Binding)| binding.ports == *range;
            found.extend(candidates.iter().filter(is_exact).map(|(index, _)| *index));
            if !candidates.iter().any(|entry| is_exact(&entry)) {
                let (address, protocols) = (listen.address, protocol.iter().copied().collect());
                let missing = Listen { address, ports: (*range).into(), protocols };
                let overlapping = candidates.iter().map(|(_, binding)| *binding);
                let overlapping = overlapping.filter(|binding| binding.ports.overlaps(*range));
                return Err(not_found(&missing, set, overlapping));
            }
        }
    }
    Ok(found)
}

/// Returns the error for ports without a forward. The error names overlapping forwards, and the command that removes
/// them.
fn not_found<'a>(listen: &Listen, set: &SetName, overlapping: impl Iterator<Item = &'a Binding>) -> Failure {
    let mut overlapping: Vec<&Binding> = overlapping.collect();
    overlapping.sort_by_key(|binding| (binding.ports.first(), binding.ports.last(), binding.protocol));
    let text = |binding: &&Binding| {
        Listen { address: binding.address, ports: binding.ports.into(), protocols: vec![binding.protocol] }.to_string()
    };
    let mut texts: Vec<String> = overlapping.iter().map(text).collect();
    // Bindings that differ only in interface or clients have the same text, and one command removes them all.
    texts.dedup();
    if texts.is_empty() {
        return Failure::NotFound {
            what: format!("there is no forward for `{listen}` in the rule set `{set}`"),
            help: "`portfwd list` shows all forwards; choose another rule set with `--set`".into(),
        };
    }
    let list = texts.iter().take(MAX_NAMED).map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ");
    let more = texts.len().saturating_sub(MAX_NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let option = if *set == SetName::cli() { String::new() } else { format!(" --set {set}") };
    let command = texts.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(" ");
    let is_part = overlapping
        .iter()
        .all(|binding| listen.ports.single_range().is_some_and(|range| binding.ports.contains(range)));
    let what = if is_part {
        format!("`{listen}` is only a part of {list}{more} in the rule set `{set}`")
    } else {
        format!(
            "there is no forward for exactly `{listen}` in the rule set `{set}`, but for some of its ports: {list}{more}"
        )
    };
    Failure::NotFound {
        what,
        help: format!("remove whole forwards, `portfwd rm{option} {command}`, then add the ports to keep"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Forward, SetRule};

    fn desired(listens: &[&str]) -> DesiredState {
        let mut desired = DesiredState::default();
        for listen in listens {
            let forward = Forward::new(listen.parse().expect(listen), "10.0.0.1".parse().expect("target"));
            let own = |rule| SetRule { set: SetName::cli(), rule };
            desired.bindings.extend(forward.bindings().expect("valid").into_iter().map(own));
        }
        desired
    }

    #[test]
    fn only_bindings_with_exactly_the_given_ports_are_found() {
        let desired = desired(&["8000-8010", "8005", "8005/udp", "192.0.2.1:8005", "90,95-99"]);
        for (listen, expected) in [
            ("8000-8010", &[0][..]),
            ("8005", &[1, 2]),
            ("8005/tcp", &[1]),
            ("8005/tcp,udp", &[1, 2]),
            ("192.0.2.1:8005", &[3]),
            ("90,95-99", &[4, 5]),
        ] {
            let found = find(&desired, &SetName::cli(), &listen.parse().expect(listen)).expect(listen);
            assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{listen}");
        }
    }

    #[test]
    fn the_error_names_overlapping_forwards_and_the_command_to_remove_them() {
        let desired = desired(&["8000-8010", "8005", "90/udp", "192.0.2.1:1-9", "20", "30", "40"]);
        for (listen, named, command) in [
            ("1-65535", "`20/tcp`, `30/tcp`, `40/tcp`, `90/udp`, `8000-8010/tcp` and 1 more", "rm 20/tcp 30/tcp"),
            ("8001", "`8001` is only a part of `8000-8010/tcp` in the rule set `cli`", "rm 8000-8010/tcp`"),
            ("90/tcp,udp", "there is no forward for `90/tcp` in the rule set `cli`", "portfwd list"),
            ("192.0.2.1:9", "is only a part of `192.0.2.1:1-9/tcp`", "rm 192.0.2.1:1-9/tcp`"),
            ("50", "there is no forward for `50` in the rule set `cli`", "portfwd list"),
        ] {
            let failure = find(&desired, &SetName::cli(), &listen.parse().expect(listen)).expect_err(listen);
            let Failure::NotFound { what, help } = failure else { panic!("{failure:?}") };
            assert!(what.contains(named) && help.contains(command), "{listen}: {what}: {help}");
        }
        let other: SetName = "web".parse().expect("name");
        assert!(find(&desired, &other, &"8005".parse().expect("listen")).is_err());
    }
}
