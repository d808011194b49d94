//! Prints a picture as text: a block for each namespace, with tables of its links, routes, neighbours and processes.
//!
//! ```text
//! namespace red
//!   LINK      KIND  STATE  MAC                BRIDGE  OTHER END          ADDRESS
//!   lo        -     UP     -                  -       -                  127.0.0.1/8
//!   veth-red  veth  UP     ba:5d:1c:00:11:22  -       veth-blue in blue  192.168.15.1/24
//!
//!   ROUTE            VIA  DEV
//!   192.168.15.0/24  -    veth-red
//!
//!   NEIGHBOUR     MAC                DEV       STATE
//!   192.168.15.2  6e:00:aa:01:02:03  veth-red  REACHABLE
//! ```
//! Other programs choose the names of links. Control characters in them are escaped before they reach a terminal.

use std::fmt;

use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use super::{Link, NamespaceView, Peer, Picture};
use crate::model::error::printable;

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, space) in self.spaces.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            block(space, f)?;
        }
        Ok(())
    }
}

fn block(space: &NamespaceView, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let state = if space.here { space.forwards() } else { Some("missing") };
    writeln!(f, "{}{}", space.title(), state.map(|state| format!(": {state}")).unwrap_or_default())?;
    for container in &space.containers {
        writeln!(f, "  container {container} (network host)")?;
    }
    let tables = [links(space), routes(space), neighbours(space), processes(space)];
    for (index, table) in tables.into_iter().flatten().enumerate() {
        if index > 0 {
            writeln!(f)?;
        }
        for line in table.lines() {
            writeln!(f, "  {}", line.trim_end())?;
        }
    }
    for step in &space.missing {
        writeln!(f, "  missing: {}", printable(&step.to_string()))?;
    }
    Ok(())
}

/// Returns a table, or `None` if it has no rows.
fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let mut builder = Builder::with_capacity(rows.len() + 1, N);
    builder.push_record(head);
    rows.into_iter().for_each(|row| builder.push_record(row));
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    Some(table.to_string())
}

fn or_none<T: fmt::Display>(cell: Option<&T>) -> String {
    cell.map_or_else(|| "-".into(), |cell| printable(&cell.to_string()))
}

fn links(space: &NamespaceView) -> Option<String> {
    let row = |link: &Link| {
        let addresses: Vec<String> = link.addresses.iter().map(ToString::to_string).collect();
        let addresses = if addresses.is_empty() { "-".into() } else { addresses.join("\n") };
        let (name, kind, mac) = (printable(&link.name), or_none(link.kind.as_ref()), or_none(link.mac.as_ref()));
        let (bridge, end) = (or_none(link.bridge.as_ref()), or_none(link.peer.as_ref()));
        [name, kind, link.state.to_string(), mac, bridge, end, addresses]
    };
    let head = ["LINK", "KIND", "STATE", "MAC", "BRIDGE", "OTHER END", "ADDRESS"];
    table(head, space.links.iter().map(row).collect())
}

fn routes(space: &NamespaceView) -> Option<String> {
    let rows = space.shown_routes().map(|route| {
        let kind = if route.kind == "unicast" { String::new() } else { format!("{} ", route.kind) };
        [format!("{kind}{}", route.destination()), or_none(route.via.as_ref()), or_none(route.dev.as_ref())]
    });
    table(["ROUTE", "VIA", "DEV"], rows.collect())
}

fn neighbours(space: &NamespaceView) -> Option<String> {
    let rows = space.neighbours.iter().map(|neighbour| {
        let (address, mac) = (neighbour.address.to_string(), or_none(neighbour.mac.as_ref()));
        [address, mac, printable(&neighbour.dev), neighbour.state.clone()]
    });
    table(["NEIGHBOUR", "MAC", "DEV", "STATE"], rows.collect())
}

fn processes(space: &NamespaceView) -> Option<String> {
    let rows = space
        .processes
        .iter()
        .map(|process| [process.pid.to_string(), or_none(process.inside.as_ref()), printable(&process.name)]);
    table(["PROCESS", "INSIDE", "NAME"], rows.collect())
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { namespace, name } => match &namespace.0 {
                Some(namespace) => write!(f, "{name} in {namespace}"),
                None => write!(f, "{name} in the host"),
            },
            Self::Elsewhere => f.write_str("outside the lab"),
        }
    }
}
