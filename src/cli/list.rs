//! `portfwd list`: what the kernel really holds, and where that is not what was asked.

use std::collections::HashMap;
use std::fmt::Display;

use super::json::{self, Forward, List, Other};
use super::{Global, Output, failure};
use crate::engine::Home;
use crate::model::error::printable;
use crate::model::{Asked, Binding, Held, Owned};

#[derive(Debug, clap::Args)]
pub struct ListArgs {}

pub fn run(_args: &ListArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let mut engine = global.engine(false, output)?;
    let live = engine.live()?;
    let lifted = live.lift();
    let asked = &engine.state().asked;
    let forwards = forwards(&lifted, asked);
    let mut networks = others(&lifted.asked.networks, &asked.networks);
    // A network that neither masquerades nor isolates leaves nothing in a kernel that could be missed.
    let silent =
        |rule: &str| asked.networks.iter().any(|n| !n.rule.masquerade && !n.rule.isolate && n.rule.to_string() == rule);
    networks.retain(|network| network.state != "missing" || !silent(&network.rule));
    let masquerades = others(&lifted.asked.masquerades, &asked.masquerades);
    let snats = others(&lifted.asked.snats, &asked.snats);
    let netmaps = others(&lifted.asked.netmaps, &asked.netmaps);
    // Of iptables a name says its table itself.
    let place = if engine.home() == Home::Nft { " in our table" } else { "" };
    for name in &lifted.foreign {
        writeln!(output.stderr, "warning: {name}{place} is not ours; `portfwd apply` removes it")?;
    }
    for home in engine.elsewhere() {
        let backend = if home == Home::Nft { "nft" } else { "iptables" };
        writeln!(
            output.stderr,
            "warning: {home} holds rules of ours too; `--backend {backend}` lists them, the next change moves them here"
        )?;
    }
    let differs = forwards.iter().any(|forward| forward.state != "live")
        || [&networks, &masquerades, &snats, &netmaps].into_iter().flatten().any(|other| other.state != "live");
    if let Some(note) = since(engine.state().committed, live.generation()).filter(|_| differs) {
        writeln!(output.stderr, "note: {note}")?;
    }
    if global.json {
        let (version, generation) = (json::VERSION, live.generation());
        let waiting = engine.state().unconfirmed.as_ref();
        let confirm_within = waiting.map(|waiting| failure::whole_seconds(waiting.until.left().unwrap_or_default()));
        let list = List { version, generation, confirm_within, forwards, networks, masquerades, snats, netmaps };
        json::print(&list, output.stdout)?;
        return Ok(0);
    }
    print(&forwards, &[networks, masquerades, snats, netmaps].concat(), output)?;
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

fn forwards<'a>(lifted: &'a Held, asked: &'a Asked) -> Vec<Forward<'a>> {
    let mut wanted: HashMap<&Owned<Binding>, bool> = asked.bindings.iter().map(|owned| (owned, false)).collect();
    let mut forwards = Vec::with_capacity(lifted.asked.bindings.len());
    for (owned, counter) in lifted.asked.bindings.iter().zip(&lifted.counters) {
        let state = match wanted.get_mut(owned) {
            Some(found) => {
                *found = true;
                "live"
            }
            None => "foreign",
        };
        forwards.push(Forward::new(owned.set.as_str(), state, &owned.rule, counter.packets, counter.bytes));
    }
    for owned in asked.bindings.iter().filter(|owned| wanted.get(owned) == Some(&false)) {
        forwards.push(Forward::new(owned.set.as_str(), "missing", &owned.rule, 0, 0));
    }
    forwards
}

fn others<T: Display + PartialEq>(live: &[Owned<T>], asked: &[Owned<T>]) -> Vec<Other> {
    let other = |owned: &Owned<T>, state| Other { set: owned.set.to_string(), state, rule: owned.rule.to_string() };
    let mut others: Vec<Other> =
        live.iter().map(|owned| other(owned, if asked.contains(owned) { "live" } else { "foreign" })).collect();
    others.extend(asked.iter().filter(|owned| !live.contains(owned)).map(|owned| other(owned, "missing")));
    others
}

fn print(forwards: &[Forward<'_>], others: &[Other], output: &mut Output<'_>) -> anyhow::Result<()> {
    use tabled::builder::Builder;
    use tabled::settings::{Alignment, Style, object::Columns};
    let mut table = Builder::with_capacity(forwards.len() + 1, 7);
    table.push_record(["LISTEN", "TO", "SET", "STATE", "PACKETS", "BYTES", "COMMENT"]);
    for forward in forwards {
        table.push_record([
            listen(forward),
            target(forward),
            forward.set.to_owned(),
            forward.state.to_owned(),
            forward.packets.to_string(),
            forward.bytes.to_string(),
            printable(forward.comment.unwrap_or_default()),
        ]);
    }
    let mut table = table.build();
    table.with(Style::blank()).modify(Columns::new(4..6), Alignment::right());
    for line in table.to_string().lines() {
        writeln!(output.stdout, "{}", line.trim())?;
    }
    for other in others {
        writeln!(output.stdout, "{}  [{}, {}]", other.rule, other.set, other.state)?;
    }
    Ok(())
}

/// The target, and what is unusual about the forward; a redirect of all addresses is one forward a family, and says which.
fn target(forward: &Forward<'_>) -> String {
    let both = forward.address.is_none() && forward.from.is_none() && forward.to.starts_with(':');
    let mut text = if both { format!("{} ({})", forward.to, forward.family) } else { forward.to.clone() };
    text.push_str(&forward.options);
    text
}

fn listen(forward: &Forward<'_>) -> String {
    let mut text = match forward.address {
        Some(std::net::IpAddr::V4(address)) => format!("{address}:"),
        Some(std::net::IpAddr::V6(address)) => format!("[{address}]:"),
        None => String::new(),
    };
    text.push_str(&format!("{}/{}", forward.ports, forward.protocol));
    if let Some(interface) = forward.interface {
        text.push_str(&format!(" on {interface}"));
    }
    if let Some(from) = forward.from {
        text.push_str(&format!(" from {from}"));
    }
    text
}
