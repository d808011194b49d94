//! Checks across the tables of a lab's file: duplicate names, and names that nothing has.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use ipnetwork::IpNetwork;

use super::address;
use super::description::{Attachment, Bridge, Container, Kind, Lab, Namespace, Route, Veth};
use super::name::{LabName, NetnsName};
use crate::config::reader::TableReader;
use crate::model::IfName;

/// The namespace of an interface (`None` for the host), and its name.
type Link<'a> = (Option<&'a NetnsName>, &'a IfName);

/// The valid tables of a file, each with its position.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub namespaces: Vec<(Namespace, Range<usize>)>,
    pub bridges: Vec<(Bridge, Range<usize>)>,
    pub veths: Vec<(Veth, [Range<usize>; 2])>,
    pub routes: Vec<(Route, Range<usize>)>,
    pub containers: Vec<(Container, Range<usize>)>,
}

impl Parts {
    pub(super) fn into_lab(self, name: LabName) -> Lab {
        fn without_spans<T, S>(parts: Vec<(T, S)>) -> Vec<T> {
            parts.into_iter().map(|(part, _)| part).collect()
        }
        Lab {
            name,
            namespaces: without_spans(self.namespaces),
            bridges: without_spans(self.bridges),
            veths: without_spans(self.veths),
            routes: without_spans(self.routes),
            containers: without_spans(self.containers),
        }
    }
}

/// Reports duplicate names, unknown names, and tables that contradict each other.
pub(super) fn check(reader: &mut TableReader, parts: &Parts) {
    check_namespaces(reader, parts);
    check_links(reader, parts);
    check_bridges(reader, parts);
    check_ports(reader, parts);
    check_routes(reader, parts);
    check_containers(reader, parts);
}

/// Returns every network namespace, including those of containers.
fn namespace_names(parts: &Parts) -> impl Iterator<Item = &NetnsName> {
    let own = parts.containers.iter().filter(|(container, _)| container.network != Attachment::Host);
    parts.namespaces.iter().map(|(namespace, _)| &namespace.name).chain(own.map(|(container, _)| &container.name))
}

fn check_namespaces(reader: &mut TableReader, parts: &Parts) {
    let all = parts.namespaces.iter().map(|(namespace, span)| (&namespace.name, span));
    let all = all.chain(parts.containers.iter().map(|(container, span)| (&container.name, span)));
    let mut seen = Vec::new();
    for (name, span) in all {
        if seen.contains(&name) {
            let help = "give one of them another name; a container has a network namespace of its own name";
            reader.report(span.clone(), format!("there are two namespaces `{name}`"), help);
        }
        seen.push(name);
    }
    let bridges = parts.bridges.iter().map(|(bridge, span)| (&bridge.namespace, span));
    let ends = parts.veths.iter().flat_map(|(veth, spans)| veth.ends.iter().map(|end| &end.namespace).zip(spans));
    let routes = parts.routes.iter().map(|(route, span)| (&route.namespace, span));
    for (name, span) in bridges.chain(ends).chain(routes) {
        let Some(name) = name else { continue };
        if !namespace_names(parts).any(|known| known == name) {
            let help = suggest(name.as_str(), namespace_names(parts).map(NetnsName::as_str), "[[namespace]]");
            reader.report(span.clone(), format!("there is no namespace `{name}`"), help);
        }
    }
}

/// Returns every interface that the file names.
fn all_links(parts: &Parts) -> Vec<(Link<'_>, &Range<usize>)> {
    let bridges = parts.bridges.iter().map(|(bridge, span)| ((bridge.namespace.as_ref(), &bridge.name), span));
    let ends = parts.veths.iter().flat_map(|(veth, spans)| veth.ends.iter().zip(spans));
    bridges.chain(ends.map(|(end, span)| ((end.namespace.as_ref(), &end.name), span))).collect()
}

fn check_links(reader: &mut TableReader, parts: &Parts) {
    let mut seen: BTreeMap<Link<'_>, ()> = BTreeMap::new();
    for (link, span) in all_links(parts) {
        let place = link.0.map_or_else(|| "the host".to_owned(), |name| format!("`{name}`"));
        if link.1.as_str() == "lo" {
            reader.report(span.clone(), "every namespace has its own `lo`", "choose another name");
        } else if seen.insert(link, ()).is_some() {
            let what = format!("there are two interfaces `{}` in {place}", link.1);
            reader.report(span.clone(), what, "give one of them another name");
        }
    }
}

fn check_bridges(reader: &mut TableReader, parts: &Parts) {
    for (bridge, span) in &parts.bridges {
        if bridge.kind == Kind::Ovs && bridge.namespace.is_some() {
            let help = "leave `namespace` out, or write `kind = \"linux\"`";
            reader.report(span.clone(), "an Open vSwitch bridge must be in the host, where its daemon runs", help);
        }
        if bridge.masquerade && bridge.network().is_none() {
            let help = "give it an `address` and no `namespace`, or leave `masquerade` out";
            reader.report(span.clone(), "`masquerade` needs a bridge in the host with an address", help);
        }
    }
}

fn check_ports(reader: &mut TableReader, parts: &Parts) {
    for (end, span) in parts.veths.iter().flat_map(|(veth, spans)| veth.ends.iter().zip(spans)) {
        let Some(name) = &end.bridge else { continue };
        let here = || parts.bridges.iter().map(|(bridge, _)| bridge).filter(|bridge| bridge.namespace == end.namespace);
        if !here().any(|bridge| bridge.name == *name) {
            let help = suggest(name.as_str(), here().map(|bridge| bridge.name.as_str()), "[[bridge]]");
            reader.report(
                span.clone(),
                format!("there is no bridge `{name}` in the namespace of `{}`", end.name),
                help,
            );
        }
    }
}

fn check_routes(reader: &mut TableReader, parts: &Parts) {
    for (route, span) in &parts.routes {
        let Some(dev) = &route.dev else { continue };
        let here = || all_links(parts).into_iter().filter(|(link, _)| link.0 == route.namespace.as_ref());
        // A container has `eth0`. The interfaces of the host are not all in the file.
        if route.namespace.is_some() && dev.as_str() != "eth0" && !here().any(|(link, _)| link.1 == dev) {
            let help = suggest(dev.as_str(), here().map(|(link, _)| link.1.as_str()), "[[veth]]");
            reader.report(span.clone(), format!("there is no interface `{dev}` in the namespace of the route"), help);
        }
    }
}

fn check_containers(reader: &mut TableReader, parts: &Parts) {
    let bridges: Vec<_> = parts.bridges.iter().map(|(bridge, _)| bridge.clone()).collect();
    let ends: Vec<_> = parts.veths.iter().flat_map(|(veth, _)| &veth.ends).collect();
    let all: Vec<_> = parts.containers.iter().map(|(container, _)| container.clone()).collect();
    for (container, span) in &parts.containers {
        let Some(name) = &container.bridge else { continue };
        let of_host = || bridges.iter().filter(|bridge| bridge.namespace.is_none());
        if !of_host().any(|bridge| bridge.name == *name) {
            let help = suggest(name.as_str(), of_host().map(|bridge| bridge.name.as_str()), "[[bridge]]");
            reader.report(span.clone(), format!("there is no bridge `{name}` for `{}`", container.name), help);
        }
    }
    let given = address::assign_addresses(&bridges, &ends, &all);
    for ((container, span), given) in parts.containers.iter().zip(given) {
        match given {
            Err(error) => reader.report_error(span.clone(), &error),
            Ok(given) => check_published(reader, container, span, &given),
        }
    }
}

/// Checks that a port published at a host address has a container address of the same family.
fn check_published(
    reader: &mut TableReader,
    container: &Container,
    span: &Range<usize>,
    given: &[(IpNetwork, IpAddr)],
) {
    for publish in &container.publish {
        let Some(listen) = publish.listen.address else { continue };
        if !given.is_empty() && !given.iter().any(|(address, _)| address.is_ipv4() == listen.is_ipv4()) {
            let what =
                format!("`{publish}` cannot be forwarded to `{}`, which has no address of this family", container.name);
            reader.report(span.clone(), what, "give the bridge an address of the same family");
        }
    }
}

/// Returns the help for an unknown name.
fn suggest<'a>(name: &str, all: impl Iterator<Item = &'a str>, table: &str) -> String {
    let near = all.max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
    match near {
        Some(near) if strsim::jaro(near, name) > 0.75 || strsim::osa_distance(near, name) <= 1 => {
            format!("did you mean `{near}`?")
        }
        _ => format!("add it as `{table}`"),
    }
}
