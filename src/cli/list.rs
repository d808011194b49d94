//! `portfwd list`: what the kernel really holds, and where that is not what was asked.

use std::fmt::Display;
use std::io::Write;

use super::json::{self, List, Listed, Other};
use super::{Global, Output, failure};
use crate::engine::BackendId;
use crate::engine::timing::Phase;
use crate::model::error::printable;
use crate::model::{Asked, Binding, Comment, Counter, Held, Owned};

#[derive(Debug, clap::Args)]
pub struct ListArgs {}

pub fn run(_args: &ListArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let mut engine = global.read(output)?;
    let live = engine.live()?;
    output.timing.add(engine.timing());
    let lifted = output.timing.of(Phase::Plan, || live.lift());
    let generation = live.generation();
    drop(live);
    let asked = &engine.state().asked;
    let forwards = output.timing.of(Phase::Plan, || forwards(&lifted, asked));
    let mut networks = others(&lifted.asked.networks, &asked.networks);
    // A network that neither masquerades nor isolates leaves nothing in a kernel that could be missed.
    let silent =
        |rule: &str| asked.networks.iter().any(|n| !n.rule.masquerade && !n.rule.isolate && n.rule.to_string() == rule);
    networks.retain(|network| network.state != "missing" || !silent(&network.rule));
    let masquerades = others(&lifted.asked.masquerades, &asked.masquerades);
    let snats = others(&lifted.asked.snats, &asked.snats);
    let netmaps = others(&lifted.asked.netmaps, &asked.netmaps);
    // Of iptables a name says its table itself.
    let place = if engine.id() == BackendId::Nft { " in our table" } else { "" };
    for name in &lifted.foreign {
        writeln!(output.stderr, "warning: {name}{place} is not ours; `portfwd apply` removes it")?;
    }
    for home in engine.stale_backends() {
        let backend = if home == BackendId::Nft { "nft" } else { "iptables" };
        writeln!(
            output.stderr,
            "warning: {home} holds rules of ours too; `--backend {backend}` lists them, the next change moves them here"
        )?;
    }
    let differs = forwards.iter().any(|forward| forward.state != "live")
        || [&networks, &masquerades, &snats, &netmaps].into_iter().flatten().any(|other| other.state != "live");
    if let Some(note) = since(engine.state().committed, generation).filter(|_| differs) {
        writeln!(output.stderr, "note: {note}")?;
    }
    if global.json {
        let version = json::VERSION;
        let waiting = engine.state().unconfirmed.as_ref();
        let confirm_within = waiting.map(|waiting| failure::whole_seconds(waiting.until.left().unwrap_or_default()));
        let forwards = forwards.as_slice();
        let list = List { version, generation, confirm_within, forwards, networks, masquerades, snats, netmaps };
        output.timing.of(Phase::Print, || json::print(&list, output.stdout))?;
        return Ok(0);
    }
    let others = [networks, masquerades, snats, netmaps].concat();
    output.timing.of(Phase::Print, || print(&forwards, &others, output.stdout))?;
    Ok(0)
}

/// What became of the kernel's rules since our last commit. Who did it the kernel tells only those who listen then.
fn since(committed: Option<u32>, now: Option<u32>) -> Option<String> {
    let (ours, now) = (committed?, now?);
    match now.checked_sub(ours) {
        None => {
            Some(format!("our last commit was generation {ours} of the rules, which are at {now}: they began anew"))
        }
        Some(0) => None,
        Some(1) => Some("others committed once since we did".into()),
        Some(times) => Some(format!("others committed {times} times since we did")),
    }
}

/// What the kernel holds, and behind it what was asked and is not there. Both are in normal form, so they are compared in
/// one walk.
fn forwards<'a>(lifted: &'a Held, asked: &'a Asked) -> Vec<Listed<'a>> {
    let mut foreign = lifted.asked.less(asked).into_iter().peekable();
    let missing = asked.less(&lifted.asked);
    let mut forwards = Vec::with_capacity(lifted.asked.bindings.len() + missing.len());
    for (owned, counter) in lifted.asked.bindings.iter().zip(&lifted.counters) {
        let is_foreign = foreign.next_if(|foreign| std::ptr::eq(*foreign, owned)).is_some();
        let state = if is_foreign { "foreign" } else { "live" };
        forwards.push(Listed { owned, state, counter: *counter });
    }
    forwards.extend(missing.into_iter().map(|owned| Listed { owned, state: "missing", counter: Counter::default() }));
    forwards
}

fn others<T: Display + PartialEq>(live: &[Owned<T>], asked: &[Owned<T>]) -> Vec<Other> {
    let other = |owned: &Owned<T>, state| Other { set: owned.set.to_string(), state, rule: owned.rule.to_string() };
    let mut others: Vec<Other> =
        live.iter().map(|owned| other(owned, if asked.contains(owned) { "live" } else { "foreign" })).collect();
    others.extend(asked.iter().filter(|owned| !live.contains(owned)).map(|owned| other(owned, "missing")));
    others
}

fn print(forwards: &[Listed<'_>], others: &[Other], stdout: &mut dyn Write) -> anyhow::Result<()> {
    use tabled::builder::Builder;
    use tabled::settings::{Alignment, Style, object::Columns};
    let mut table = Builder::with_capacity(forwards.len() + 1, 7);
    table.push_record(["LISTEN", "TO", "SET", "STATE", "PACKETS", "BYTES", "COMMENT"]);
    for Listed { owned, state, counter } in forwards {
        let rule = &owned.rule;
        table.push_record([
            rule.listen().to_string(),
            target(rule),
            owned.set.to_string(),
            (*state).to_owned(),
            counter.packets.to_string(),
            counter.bytes.to_string(),
            printable(rule.comment.as_ref().map(Comment::as_str).unwrap_or_default()),
        ]);
    }
    let mut table = table.build();
    table.with(Style::blank()).modify(Columns::new(4..6), Alignment::right());
    let mut stdout = json::pieces(stdout);
    for line in table.to_string().lines() {
        writeln!(stdout, "{}", line.trim())?;
    }
    for other in others {
        writeln!(stdout, "{}  [{}, {}]", other.rule, other.set, other.state)?;
    }
    stdout.flush()?;
    Ok(())
}

/// The target, and what is unusual about the forward; a redirect of all addresses is one forward a family, and says which.
fn target(rule: &Binding) -> String {
    let (to, options) = (rule.target(), rule.options());
    let both = rule.address.is_none() && rule.from.is_none() && rule.to.address.is_none();
    if both { format!("{to} ({}){options}", rule.family) } else { format!("{to}{options}") }
}
