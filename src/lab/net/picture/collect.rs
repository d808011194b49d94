//! Reads the live state of a lab: each namespace of its journal from inside, and the peers of its veth pairs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;

use super::dump::{self, Dump};
use super::{Link, NamespaceView, Peer, Picture, process};
use crate::config::Source;
use crate::lab::Netns;
use crate::lab::error::into_io;
use crate::lab::net::description::{Attachment, Lab};
use crate::lab::net::error::{NetError, permitted};
use crate::lab::net::executor::Executor;
use crate::lab::net::journal::{Journal, Journals};
use crate::lab::net::name::LabName;
use crate::lab::net::plan::{Location, Step};
use crate::lab::net::presence::Presence;
use crate::lab::net::read;
use crate::sys::rtnetlink::Rtnetlink;

/// Reads the live state of a lab.
///
/// # Errors
/// [`NetError::Unknown`] if there is no such lab. [`NetError::NotPermitted`] if its namespaces may not be entered.
/// Other variants if the journal cannot be read or the kernel refuses a request.
pub fn read_picture(name: &LabName, journals: &Journals) -> Result<Picture, NetError> {
    let journal = journals.read(name)?.ok_or_else(|| NetError::Unknown(name.clone()))?;
    collect(&journal, journals).map_err(|error| permitted(error, NetError::Inspect))
}

/// A namespace that exists, with its dump.
struct LiveNamespace<'a> {
    location: &'a Location,
    namespace: &'a Netns,
    dump: Dump,
}

fn collect(journal: &Journal, journals: &Journals) -> io::Result<Picture> {
    let mut executor = Executor::new(journal.host.find()?, journals);
    let (mut missing, mut here) = (Vec::new(), Vec::new());
    for entry in &journal.entries {
        let present = executor.presence(entry)? == Presence::Present;
        if present { &mut here } else { &mut missing }.push(&entry.step);
    }
    let locations = locations(journal);
    let mut insides = Vec::new();
    for location in &locations {
        let Some(namespace) = executor.namespace(location) else { continue };
        let dump = namespace.run(dump::read_dump).map_err(into_io)??;
        insides.push(LiveNamespace { location, namespace, dump });
    }
    let processes = process::list()?;
    let mut spaces = Vec::new();
    for location in &locations {
        let missing =
            missing.iter().filter(|step| step.locations().any(|of| of == *location)).map(|step| (*step).clone());
        let mut space = empty(location, missing.collect());
        if let Some(inside) = insides.iter().find(|inside| inside.location == location) {
            fill(&mut space, inside, &insides, &here)?;
            let place = process::namespace_file(inside.namespace)?;
            let ours = processes.iter().filter(|(of, _)| *of == place && location.0.is_some());
            space.processes = ours.map(|(_, process)| process.clone()).collect();
        }
        spaces.push(space);
    }
    let lab = description(journal);
    for space in &mut spaces {
        lab.iter().for_each(|lab| name_containers(space, lab));
    }
    let touched = touched_links(&spaces, journal, lab.as_ref());
    spaces.iter_mut().filter(|space| space.location == Location::HOST).for_each(|host| retain_links(host, &touched));
    spaces.retain(|space| space.location != Location::HOST || !space.is_empty());
    Ok(Picture { lab: journal.name.clone(), host: journal.host.name().map(str::to_owned), spaces })
}

/// Returns the host and the namespaces of a lab, in the order of creation.
fn locations(journal: &Journal) -> Vec<Location> {
    let mut locations = vec![Location::HOST];
    for location in journal.entries.iter().flat_map(|entry| entry.step.locations()) {
        if !locations.contains(&location) {
            locations.push(location);
        }
    }
    locations
}

/// Returns the view of a namespace that does not exist.
fn empty(location: &Location, missing: Vec<Step>) -> NamespaceView {
    NamespaceView {
        location: location.clone(),
        network: None,
        containers: Vec::new(),
        publish: Vec::new(),
        here: false,
        forwards_ipv4: false,
        forwards_ipv6: false,
        links: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
        processes: Vec::new(),
        missing,
    }
}

fn fill(
    space: &mut NamespaceView,
    inside: &LiveNamespace<'_>,
    all: &[LiveNamespace<'_>],
    here: &[&Step],
) -> io::Result<()> {
    space.here = true;
    let switch = |path: &str| fs::read_to_string(path).is_ok_and(|value| value.trim() != "0");
    let forwards = || (switch("/proc/sys/net/ipv4/ip_forward"), switch("/proc/sys/net/ipv6/conf/all/forwarding"));
    (space.forwards_ipv4, space.forwards_ipv6) = inside.namespace.run(forwards).map_err(into_io)?;
    let numbered = inside.namespace.run(|| namespace_numbers(inside, all)).map_err(into_io)??;
    for seen in &inside.dump.links {
        let mut link = seen.link.clone();
        link.bridge = match inside.dump.link(seen.controller) {
            Some(bridge) if bridge.kind.as_deref() != Some("openvswitch") => Some(bridge.name.clone()),
            // With Open vSwitch, the controller of a port does not identify the bridge: all bridges share one, or the port
            // has none. A present step of the lab names the bridge.
            _ => here.iter().find_map(|step| joined_bridge(step, &space.location, &link)),
        };
        if link.kind.as_deref() == Some("veth") {
            let there = match seen.peer_namespace {
                None => Some(inside),
                Some(number) => numbered.iter().find(|(other, _)| *other == number).map(|(_, other)| *other),
            };
            let end = there.and_then(|there| {
                let end = there.dump.link(seen.peer_index)?;
                Some(Peer::Link { namespace: there.location.clone(), name: end.name.clone() })
            });
            link.peer = Some(end.unwrap_or(Peer::Elsewhere));
        }
        space.links.push(link);
    }
    space.routes.clone_from(&inside.dump.routes);
    space.neighbours.clone_from(&inside.dump.neighbours);
    Ok(())
}

/// Returns the other namespaces by the number that this one has for them, as far as its veth pairs need them. Call this
/// inside the namespace.
///
/// The host comes first in `all`, because most namespaces have only a pair to the host.
fn namespace_numbers<'a, 'b>(
    inside: &LiveNamespace<'_>,
    all: &'a [LiveNamespace<'b>],
) -> io::Result<Vec<(i32, &'a LiveNamespace<'b>)>> {
    let mut wanted: BTreeSet<i32> = inside.dump.links.iter().filter_map(|seen| seen.peer_namespace).collect();
    let mut numbered = Vec::new();
    let links = Rtnetlink::open()?;
    for other in all {
        if wanted.is_empty() {
            break;
        }
        if let Some(number) = links.namespace_number(other.namespace)? {
            wanted.remove(&number);
            numbered.push((number, other));
        }
    }
    Ok(numbered)
}

/// Returns the bridge, if the step made this link a port of it.
fn joined_bridge(step: &Step, location: &Location, link: &Link) -> Option<String> {
    match step {
        Step::Join(at, port, bridge) if at == location && port.as_str() == link.name => Some(bridge.to_string()),
        Step::OvsPort(port, bridge) if *location == Location::HOST && port.as_str() == link.name => {
            Some(bridge.to_string())
        }
        _ => None,
    }
}

/// Reads the description from the journal.
fn description(journal: &Journal) -> Option<Lab> {
    let text = journal.description.clone();
    read(&Arc::new(Source { path: format!("{}.toml", journal.name).into(), text })).ok()
}

/// Adds the containers that use a namespace, with their published ports.
fn name_containers(space: &mut NamespaceView, lab: &Lab) {
    let containers = lab.containers.iter();
    match &space.location.0 {
        Some(name) => {
            let own = containers.clone().find(|container| container.name == *name);
            space.network = own.map(|container| container.network);
            let publish = own.iter().flat_map(|container| &container.publish);
            space.publish = publish.map(ToString::to_string).collect();
        }
        None => {
            let guests = containers.filter(|container| container.network == Attachment::Host);
            space.containers = guests.map(|container| container.name.clone()).collect();
        }
    }
}

/// Returns the host's links that a lab touches.
///
/// These are the links that it created, the ports of its bridges, and the peers of its veth pairs. If there are any,
/// the egress links of the host's default routes belong to them too.
fn touched_links(spaces: &[NamespaceView], journal: &Journal, lab: Option<&Lab>) -> BTreeSet<String> {
    let bridges = lab.iter().flat_map(|lab| &lab.bridges).filter(|bridge| bridge.namespace.is_none());
    let mut names: BTreeSet<String> = bridges.map(|bridge| bridge.name.to_string()).collect();
    for entry in &journal.entries {
        let links = match &entry.step {
            Step::Bridge(location, link) => vec![(location, link)],
            Step::OvsBridge(link) => vec![(&Location::HOST, link)],
            Step::Veth(ends) => ends.iter().map(|(location, link)| (location, link)).collect(),
            _ => Vec::new(),
        };
        names.extend(
            links.iter().filter(|(location, _)| **location == Location::HOST).map(|(_, link)| link.to_string()),
        );
    }
    let others = spaces.iter().filter(|space| space.location != Location::HOST);
    for link in others.flat_map(|space| &space.links) {
        if let Some(Peer::Link { namespace: Location(None), name }) = &link.peer {
            names.insert(name.clone());
        }
    }
    let Some(host) = spaces.iter().find(|space| space.location == Location::HOST) else { return names };
    let joined = host.links.iter().filter(|link| link.bridge.as_ref().is_some_and(|bridge| names.contains(bridge)));
    let joined: Vec<String> = joined.map(|link| link.name.clone()).collect();
    names.extend(joined);
    if !names.is_empty() || !host.containers.is_empty() {
        names.extend(host.routes.iter().filter(|route| route.to.prefix() == 0).filter_map(|route| route.dev.clone()));
    }
    names
}

/// Removes all other links of the host, with their routes and neighbours.
fn retain_links(host: &mut NamespaceView, names: &BTreeSet<String>) {
    host.links.retain(|link| names.contains(&link.name));
    host.routes.retain(|route| route.dev.as_ref().is_some_and(|dev| names.contains(dev)));
    host.neighbours.retain(|neighbour| names.contains(&neighbour.dev));
}
