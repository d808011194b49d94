//! Assigns addresses to containers as Docker does: the next free address of the bridge's subnet.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::description::{Bridge, Container, End};
use crate::model::ParseError;

/// The addresses of one container, at most one per family, each with the subnet's prefix length and the bridge's
/// address. Empty if the container's bridge is not in the file.
pub(super) type Assigned = Result<Vec<(IpNetwork, IpAddr)>, ParseError>;

/// Assigns the addresses of every container. A configured address is used as it is. In each other family of the bridge
/// the container gets the first free address of the bridge's first subnet.
pub(super) fn assign_addresses(bridges: &[Bridge], ends: &[&End], containers: &[Container]) -> Vec<Assigned> {
    let of_bridges = bridges.iter().flat_map(|bridge| &bridge.addresses);
    let of_ends = ends.iter().flat_map(|end| &end.addresses);
    let mut used: BTreeSet<IpAddr> = of_bridges.chain(of_ends).map(IpNetwork::ip).collect();
    let configured: Vec<IpAddr> = containers.iter().filter_map(|container| container.address).collect();
    let reserved: BTreeSet<IpAddr> = configured.into_iter().collect();
    let mut assign = |container: &Container| {
        let is_its = |bridge: &&Bridge| bridge.namespace.is_none() && Some(&bridge.name) == container.bridge.as_ref();
        let Some(bridge) = bridges.iter().find(is_its) else { return Ok(Vec::new()) };
        subnets(bridge, container)?
            .into_iter()
            .map(|subnet| assign_in_subnet(*subnet, bridge, container, &mut used, &reserved))
            .collect()
    };
    containers.iter().map(&mut assign).collect()
}

/// Returns one subnet of the bridge for each family: the subnet of the container's configured address, or else the
/// first one.
fn subnets<'a>(bridge: &'a Bridge, container: &Container) -> Result<Vec<&'a IpNetwork>, ParseError> {
    if let Some(address) = container.address
        && !bridge.addresses.iter().any(|subnet| subnet.contains(address))
    {
        return Err(ParseError::new(
            format!("`{address}` is in no subnet of `{}`", bridge.name),
            "write an address of the bridge's subnet, or leave it out for the next free one",
        ));
    }
    if bridge.addresses.is_empty() {
        return Err(ParseError::new(
            format!("the bridge `{}` has no address, so `{}` gets none", bridge.name, container.name),
            "give the bridge one, `address = [\"172.17.0.1/16\"]`",
        ));
    }
    let subnet_of_family = |v4: bool| {
        let configured = container.address.filter(|address| address.is_ipv4() == v4);
        let holds = |subnet: &&IpNetwork| configured.is_none_or(|address| subnet.contains(address));
        bridge.addresses.iter().filter(|subnet| subnet.is_ipv4() == v4).find(holds)
    };
    Ok([subnet_of_family(true), subnet_of_family(false)].into_iter().flatten().collect())
}

fn assign_in_subnet(
    subnet: IpNetwork,
    bridge: &Bridge,
    container: &Container,
    used: &mut BTreeSet<IpAddr>,
    reserved: &BTreeSet<IpAddr>,
) -> Result<(IpNetwork, IpAddr), ParseError> {
    let full = || {
        let what = format!("no address is free in the subnet of `{}`", bridge.name);
        ParseError::new(what, "give the bridge an address of a larger subnet")
    };
    let address = match container.address.filter(|address| address.is_ipv4() == subnet.is_ipv4()) {
        Some(address) if used.contains(&address) => {
            let help = "write another one, or leave it out for the next free one";
            return Err(ParseError::new(format!("`{address}` is used twice"), help));
        }
        Some(address) => address,
        None => {
            first_free(subnet, |address| used.contains(&address) || reserved.contains(&address)).ok_or_else(full)?
        }
    };
    used.insert(address);
    Ok((IpNetwork::new(address, subnet.prefix()).map_err(|_| full())?, subnet.ip()))
}

/// Returns the lowest usable host address of a subnet that is not `used`.
fn first_free(subnet: IpNetwork, used: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    match (subnet.network(), subnet.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let mut hosts = u32::from(first).saturating_add(1)..u32::from(last);
            hosts.find_map(|host| Some(IpAddr::from(Ipv4Addr::from(host))).filter(|host| !used(*host)))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let mut hosts = u128::from(first).saturating_add(1)..=u128::from(last);
            hosts.find_map(|host| Some(IpAddr::from(Ipv6Addr::from(host))).filter(|host| !used(*host)))
        }
        _ => None,
    }
}
