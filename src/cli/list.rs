//! `portfwd list`: prints the live rules with counters, and the drift from the desired state.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;

use super::json::{self, List, Listed, Other};
use super::{Global, Output, failure};
use crate::engine::timing::Phase;
use crate::engine::{BackendId, Engine, Obstacles};
use crate::model::error::printable;
use crate::model::{Binding, Comment, Counter, DesiredState, Observed, SetRule};

#[derive(Debug, clap::Args)]
pub struct ListArgs {}

pub fn run(_args: &ListArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let mut engine = global.read(output)?;
    let live = engine.live()?;
    output.timing.add(engine.timing());
    let lifted = output.timing.measure(Phase::Plan, || live.lift());
    let generation = live.generation();
    let obstacles = output.timing.measure(Phase::Plan, || Obstacles::of(&live, &lifted));
    drop(live);
    let desired = &engine.state().desired;
    let forwards = output.timing.measure(Phase::Plan, || forwards(&lifted, desired, &obstacles));
    let reason = obstacles.of_all();
    let mut networks = other_rules(&lifted.desired.networks, &desired.networks, reason);
    // A network that neither masquerades nor isolates has no rules in the kernel, so it cannot be missing.
    let has_no_rules = |rule: &str| {
        desired.networks.iter().any(|n| !n.rule.masquerade && !n.rule.isolate && n.rule.to_string() == rule)
    };
    networks.retain(|network| network.state != "missing" || !has_no_rules(&network.rule));
    let masquerades = other_rules(&lifted.desired.masquerades, &desired.masquerades, reason);
    let snats = other_rules(&lifted.desired.snats, &desired.snats, reason);
    let netmaps = other_rules(&lifted.desired.netmaps, &desired.netmaps, reason);
    // With iptables, `name` already contains the table.
    let place = if engine.id() == BackendId::Nft { " in table inet portfwd" } else { "" };
    for name in &lifted.foreign {
        writeln!(output.stderr, "warning: {name}{place} is foreign; `portfwd apply` removes it")?;
    }
    warn_about_stale_backends(&engine, output)?;
    let differs = forwards.iter().any(|forward| forward.state != "live")
        || [&networks, &masquerades, &snats, &netmaps].into_iter().flatten().any(|other| other.state != "live");
    if let Some(note) = changes_since(engine.state().committed, generation).filter(|_| differs) {
        writeln!(output.stderr, "note: {note}")?;
    }
    let others = [networks.as_slice(), &masquerades, &snats, &netmaps].concat();
    warn_about_obstacles(&forwards, &others, output)?;
    for fault in obstacles.damaged_chains.values() {
        writeln!(output.stderr, "warning: {fault} in table inet portfwd; `portfwd restore` repairs it")?;
    }
    if global.json {
        let version = json::VERSION;
        let waiting = engine.state().unconfirmed.as_ref();
        let confirm_within =
            waiting.map(|waiting| failure::seconds_rounded_up(waiting.until.left().unwrap_or_default()));
        let forwards = forwards.as_slice();
        let damaged_chains = obstacles.damaged_chains.keys().map(String::as_str).collect();
        let list = List {
            version,
            generation,
            confirm_within,
            forwards,
            networks,
            masquerades,
            snats,
            netmaps,
            damaged_chains,
        };
        output.timing.measure(Phase::Print, || json::print(&list, output.stdout))?;
        return Ok(0);
    }
    output.timing.measure(Phase::Print, || print(&forwards, &others, output.stdout))?;
    Ok(0)
}

/// Warns about rules of portfwd in backends that are not in use. Returns true if there are such rules.
pub(super) fn warn_about_stale_backends(engine: &Engine, output: &mut Output<'_>) -> std::io::Result<bool> {
    let stale = engine.stale_backends();
    for backend in &stale {
        let name = if *backend == BackendId::Nft { "nft" } else { "iptables" };
        writeln!(
            output.stderr,
            "warning: {backend} also has rules of portfwd; `--backend {name}` lists them, the next change moves them to {}",
            engine.id()
        )?;
    }
    Ok(!stale.is_empty())
}

/// Returns a note about the commits of other programs since generation `committed`, portfwd's last commit.
///
/// The note names no program. The kernel names a program only in the notification of its commit.
fn changes_since(committed: Option<u32>, now: Option<u32>) -> Option<String> {
    let (committed, now) = (committed?, now?);
    match now.checked_sub(committed) {
        None => Some(format!(
            "nftables was reset since portfwd's last change: its generation was {committed}, and is {now}"
        )),
        Some(0) => None,
        Some(1) => Some("another program changed nftables once since portfwd's last change".into()),
        Some(times) => Some(format!("other programs changed nftables {times} times since portfwd's last change")),
    }
}

/// Returns the live forwards, then the elements of other programs, then the missing forwards. Both states are
/// normalized, so one pass compares them.
fn forwards<'a>(lifted: &'a Observed, desired: &'a DesiredState, obstacles: &'a Obstacles) -> Vec<Listed<'a>> {
    let live = &lifted.desired;
    let mut foreign = live.less(desired).into_iter().peekable();
    let missing = desired.less(live);
    let mut forwards = Vec::with_capacity(live.bindings.len() + lifted.foreign_bindings.len() + missing.len());
    let listed = |owned: &'a SetRule<Binding>, state, reason, counter| {
        let (set, rule) = (Some(&owned.set), &owned.rule);
        Listed { set, rule, state, reason, counter }
    };
    for (owned, counter) in live.bindings.iter().zip(&lifted.counters) {
        let is_foreign = foreign.next_if(|foreign| std::ptr::eq(*foreign, owned)).is_some();
        let reason = obstacles.of_binding(live, owned).filter(|_| !is_foreign);
        let state = match (is_foreign, reason) {
            (true, _) => "foreign",
            (false, Some(_)) => "ineffective",
            (false, None) => "live",
        };
        forwards.push(listed(owned, state, reason, *counter));
    }
    let elements = lifted.foreign_bindings.iter();
    forwards.extend(elements.map(|(rule, counter)| {
        let (set, state, reason, counter) = (None, "foreign", None, *counter);
        Listed { set, rule, state, reason, counter }
    }));
    forwards.extend(missing.into_iter().map(|owned| listed(owned, "missing", None, Counter::default())));
    forwards
}

/// Returns the live rules of one kind, followed by the missing ones. With a `reason`, no live rule has an effect.
fn other_rules<T: Display + PartialEq>(
    live: &[SetRule<T>],
    desired: &[SetRule<T>],
    reason: Option<&str>,
) -> Vec<Other> {
    let other = |owned: &SetRule<T>, state, reason: Option<&str>| Other {
        set: owned.set.to_string(),
        state,
        reason: reason.map(str::to_owned),
        rule: owned.rule.to_string(),
    };
    let live_rule = |owned| match (desired.contains(owned), reason) {
        (false, _) => other(owned, "foreign", None),
        (true, Some(_)) => other(owned, "ineffective", reason),
        (true, None) => other(owned, "live", None),
    };
    let mut rules: Vec<Other> = live.iter().map(live_rule).collect();
    rules.extend(desired.iter().filter(|owned| !live.contains(owned)).map(|owned| other(owned, "missing", None)));
    rules
}

/// Warns once for each reason that rules have no effect.
fn warn_about_obstacles(forwards: &[Listed<'_>], others: &[Other], output: &mut Output<'_>) -> std::io::Result<()> {
    let reasons = forwards.iter().filter_map(|forward| forward.reason);
    let reasons = reasons.chain(others.iter().filter_map(|other| other.reason.as_deref()));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    reasons.for_each(|reason| *counts.entry(reason).or_default() += 1);
    for (reason, count) in counts {
        let rules = if count == 1 { "1 rule is" } else { &format!("{count} rules are") };
        // A rule set can forbid portfwd to set this sysctl, so `restore` may not repair it.
        let command = match reason.strip_suffix(" is 0") {
            Some(sysctl) => format!("sysctl -w {sysctl}=1"),
            None => "portfwd restore".to_owned(),
        };
        writeln!(output.stderr, "warning: {rules} ineffective: {reason}; `{command}` repairs it")?;
    }
    Ok(())
}

fn print(forwards: &[Listed<'_>], others: &[Other], stdout: &mut dyn Write) -> anyhow::Result<()> {
    use tabled::builder::Builder;
    use tabled::settings::{Alignment, Style, object::Columns};
    let mut table = Builder::with_capacity(forwards.len() + 1, 7);
    table.push_record(["LISTEN", "TO", "SET", "STATE", "PACKETS", "BYTES", "COMMENT"]);
    for Listed { set, rule, state, counter, .. } in forwards {
        table.push_record([
            rule.listen().to_string(),
            target(rule),
            set.map_or_else(|| "-".to_owned(), ToString::to_string),
            (*state).to_owned(),
            counter.packets.to_string(),
            counter.bytes.to_string(),
            printable(rule.comment.as_ref().map(Comment::as_str).unwrap_or_default()),
        ]);
    }
    let mut table = table.build();
    table.with(Style::blank()).modify(Columns::new(4..6), Alignment::right());
    let mut stdout = json::buffered(stdout);
    for line in table.to_string().lines() {
        writeln!(stdout, "{}", line.trim())?;
    }
    for other in others {
        writeln!(stdout, "{}  [{}, {}]", other.rule, other.set, other.state)?;
    }
    stdout.flush()?;
    Ok(())
}

/// Returns the target and the options of a forward. A redirect without an address has one binding for each address
/// family, so this function adds the family.
fn target(rule: &Binding) -> String {
    let (to, options) = (rule.target(), rule.options());
    let needs_family = rule.address.is_none() && rule.from.is_none() && rule.to.address.is_none();
    if needs_family { format!("{to} ({}){options}", rule.family) } else { format!("{to}{options}") }
}
