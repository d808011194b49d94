//! Looks at a lab: the namespaces that its journal names, each from inside, and which end of a pair belongs to which.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;

use super::dump::{self, Dump};
use super::{Link, Peer, Picture, Space, process};
use crate::config::Source;
use crate::lab::Netns;
use crate::lab::error::plain;
use crate::lab::net::description::{Attachment, Lab};
use crate::lab::net::error::{NetError, permitted};
use crate::lab::net::ground::Ground;
use crate::lab::net::journal::{Journal, Journals};
use crate::lab::net::name::LabName;
use crate::lab::net::plan::{Site, Step};
use crate::lab::net::presence::Presence;
use crate::lab::net::read;
use crate::sys::rtnetlink::Rtnetlink;

/// A lab as the kernel has it.
///
/// # Errors
/// [`NetError::Unknown`] where there is no such lab; [`NetError::NotPermitted`] where its namespaces may not be entered;
/// others where the journal cannot be read or the kernel not be asked.
pub fn picture(name: &LabName, journals: &Journals) -> Result<Picture, NetError> {
    let journal = journals.read(name)?.ok_or_else(|| NetError::Unknown(name.clone()))?;
    look(&journal, journals).map_err(|error| permitted(error, NetError::Look))
}

/// A namespace that is there, and what it has.
struct Inside<'a> {
    site: &'a Site,
    namespace: &'a Netns,
    dump: Dump,
}

fn look(journal: &Journal, journals: &Journals) -> io::Result<Picture> {
    let mut ground = Ground::new(journal.host.find()?, journals);
    let (mut missing, mut here) = (Vec::new(), Vec::new());
    for entry in &journal.entries {
        let present = ground.presence(entry)? == Presence::Here;
        if present { &mut here } else { &mut missing }.push(&entry.step);
    }
    let sites = sites(journal);
    let mut insides = Vec::new();
    for site in &sites {
        let Some(namespace) = ground.space(site) else { continue };
        let dump = namespace.run(dump::dump).map_err(plain)??;
        insides.push(Inside { site, namespace, dump });
    }
    let processes = process::all()?;
    let mut spaces = Vec::new();
    for site in &sites {
        let missing = missing.iter().filter(|step| step.sites().any(|of| of == *site)).map(|step| (*step).clone());
        let mut space = empty(site, missing.collect());
        if let Some(inside) = insides.iter().find(|inside| inside.site == site) {
            fill(&mut space, inside, &insides, &here)?;
            let place = process::place(inside.namespace)?;
            let ours = processes.iter().filter(|(of, _)| *of == place && site.0.is_some());
            space.processes = ours.map(|(_, process)| process.clone()).collect();
        }
        spaces.push(space);
    }
    let lab = described(journal);
    for space in &mut spaces {
        lab.iter().for_each(|lab| name_containers(space, lab));
    }
    let touched = touched(&spaces, journal, lab.as_ref());
    spaces.iter_mut().filter(|space| space.site == Site::HOST).for_each(|host| keep(host, &touched));
    spaces.retain(|space| space.site != Site::HOST || !space.is_bare());
    Ok(Picture { lab: journal.name.clone(), host: journal.host.name().map(str::to_owned), spaces })
}

/// Where a lab is: the host, and its namespaces in the order in which they were made.
fn sites(journal: &Journal) -> Vec<Site> {
    let mut sites = vec![Site::HOST];
    for site in journal.entries.iter().flat_map(|entry| entry.step.sites()) {
        if !sites.contains(&site) {
            sites.push(site);
        }
    }
    sites
}

/// What is told of a namespace that is not there.
fn empty(site: &Site, missing: Vec<Step>) -> Space {
    Space {
        site: site.clone(),
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

fn fill(space: &mut Space, inside: &Inside<'_>, all: &[Inside<'_>], here: &[&Step]) -> io::Result<()> {
    space.here = true;
    let switch = |path: &str| fs::read_to_string(path).is_ok_and(|value| value.trim() != "0");
    let forwards = || (switch("/proc/sys/net/ipv4/ip_forward"), switch("/proc/sys/net/ipv6/conf/all/forwarding"));
    (space.forwards_ipv4, space.forwards_ipv6) = inside.namespace.run(forwards).map_err(plain)?;
    let numbered = inside.namespace.run(|| numbered(inside, all)).map_err(plain)??;
    for seen in &inside.dump.links {
        let mut link = seen.link.clone();
        link.bridge = match inside.dump.link(seen.controller) {
            Some(bridge) if bridge.kind.as_deref() != Some("openvswitch") => Some(bridge.name.clone()),
            // Open vSwitch has one controller for the ports of all bridges, or none: what `up` joined, and is joined.
            _ => here.iter().find_map(|step| joined(step, &space.site, &link)),
        };
        if link.kind.as_deref() == Some("veth") {
            let there = match seen.other_space {
                None => Some(inside),
                Some(number) => numbered.iter().find(|(other, _)| *other == number).map(|(_, other)| *other),
            };
            let end = there.and_then(|there| {
                let end = there.dump.link(seen.other_end)?;
                Some(Peer::Link { namespace: there.site.clone(), name: end.name.clone() })
            });
            link.peer = Some(end.unwrap_or(Peer::Elsewhere));
        }
        space.links.push(link);
    }
    space.routes.clone_from(&inside.dump.routes);
    space.neighbours.clone_from(&inside.dump.neighbours);
    Ok(())
}

/// The other namespaces by the numbers that this one has for them, as far as the ends of its pairs need them: in most
/// there is one pair, and it leads to the host, which is asked for first. The calling thread is in this namespace.
fn numbered<'a, 'b>(inside: &Inside<'_>, all: &'a [Inside<'b>]) -> io::Result<Vec<(i32, &'a Inside<'b>)>> {
    let mut wanted: BTreeSet<i32> = inside.dump.links.iter().filter_map(|seen| seen.other_space).collect();
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

/// The bridge that a step made a link a port of.
fn joined(step: &Step, site: &Site, link: &Link) -> Option<String> {
    match step {
        Step::Join(at, port, bridge) if at == site && port.as_str() == link.name => Some(bridge.to_string()),
        Step::OvsPort(port, bridge) if *site == Site::HOST && port.as_str() == link.name => Some(bridge.to_string()),
        _ => None,
    }
}

/// What the lab was made from.
fn described(journal: &Journal) -> Option<Lab> {
    let text = journal.description.clone();
    read(&Arc::new(Source { path: format!("{}.toml", journal.name).into(), text })).ok()
}

/// Says of a namespace which containers use it.
fn name_containers(space: &mut Space, lab: &Lab) {
    let containers = lab.containers.iter();
    match &space.site.0 {
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

/// The links of the host that a lab touches: those that it made, what is joined to them, what is at the other end of its
/// pairs, and, where there are any, those by which the host's default routes lead out.
fn touched(spaces: &[Space], journal: &Journal, lab: Option<&Lab>) -> BTreeSet<String> {
    let bridges = lab.iter().flat_map(|lab| &lab.bridges).filter(|bridge| bridge.namespace.is_none());
    let mut names: BTreeSet<String> = bridges.map(|bridge| bridge.name.to_string()).collect();
    for entry in &journal.entries {
        let links = match &entry.step {
            Step::Bridge(site, link) => vec![(site, link)],
            Step::OvsBridge(link) => vec![(&Site::HOST, link)],
            Step::Veth(ends) => ends.iter().map(|(site, link)| (site, link)).collect(),
            _ => Vec::new(),
        };
        names.extend(links.iter().filter(|(site, _)| **site == Site::HOST).map(|(_, link)| link.to_string()));
    }
    let others = spaces.iter().filter(|space| space.site != Site::HOST);
    for link in others.flat_map(|space| &space.links) {
        if let Some(Peer::Link { namespace: Site(None), name }) = &link.peer {
            names.insert(name.clone());
        }
    }
    let Some(host) = spaces.iter().find(|space| space.site == Site::HOST) else { return names };
    let joined = host.links.iter().filter(|link| link.bridge.as_ref().is_some_and(|bridge| names.contains(bridge)));
    let joined: Vec<String> = joined.map(|link| link.name.clone()).collect();
    names.extend(joined);
    if !names.is_empty() || !host.containers.is_empty() {
        names.extend(host.routes.iter().filter(|route| route.to.prefix() == 0).filter_map(|route| route.dev.clone()));
    }
    names
}

/// Leaves only some links of the host, and what is about them.
fn keep(host: &mut Space, names: &BTreeSet<String>) {
    host.links.retain(|link| names.contains(&link.name));
    host.routes.retain(|route| route.dev.as_ref().is_some_and(|dev| names.contains(dev)));
    host.neighbours.retain(|neighbour| names.contains(&neighbour.dev));
}
