//! The addresses of containers, as Docker gives them: the next free one of the bridge's subnet.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::description::{Bridge, Container, End};
use crate::model::ParseError;

/// The address of every container with the length of its subnet, and the bridge's address there; none where it is at no
/// bridge of the file.
pub(super) type Given = Result<Option<(IpNetwork, IpAddr)>, ParseError>;

/// Gives every container its address: what it says, or the next of the bridge's first subnet that nothing else in the file
/// has.
pub(super) fn of_containers(bridges: &[Bridge], ends: &[&End], containers: &[Container]) -> Vec<Given> {
    let of_bridges = bridges.iter().flat_map(|bridge| &bridge.addresses);
    let of_ends = ends.iter().flat_map(|end| &end.addresses);
    let mut taken: BTreeSet<IpAddr> = of_bridges.chain(of_ends).map(IpNetwork::ip).collect();
    let said: Vec<IpAddr> = containers.iter().filter_map(|container| container.address).collect();
    let reserved: BTreeSet<IpAddr> = said.into_iter().collect();
    let mut give = |container: &Container| {
        let is_its = |bridge: &&Bridge| bridge.namespace.is_none() && Some(&bridge.name) == container.bridge.as_ref();
        let Some(bridge) = bridges.iter().find(is_its) else { return Ok(None) };
        let holds = |subnet: &&IpNetwork| container.address.is_none_or(|address| subnet.contains(address));
        let Some(subnet) = bridge.addresses.iter().find(holds) else {
            return match container.address {
                Some(address) => Err(ParseError::new(
                    format!("`{address}` is in no subnet of `{}`", bridge.name),
                    "write an address of the bridge's subnet, or leave it out for the next free one",
                )),
                None => Err(ParseError::new(
                    format!("`{}` has no address, so there is none for `{}`", bridge.name, container.name),
                    "give the bridge one, `address = [\"172.17.0.1/16\"]`",
                )),
            };
        };
        let address = match container.address {
            Some(address) if !taken.insert(address) => {
                let help = "write another one, or leave it out for the next free one";
                return Err(ParseError::new(format!("`{address}` is given twice"), help));
            }
            Some(address) => address,
            None => {
                free(*subnet, |address| taken.contains(&address) || reserved.contains(&address)).ok_or_else(|| {
                    let what = format!("no address is free in the subnet of `{}`", bridge.name);
                    ParseError::new(what, "give the bridge an address of a larger subnet")
                })?
            }
        };
        taken.insert(address);
        let given = IpNetwork::new(address, subnet.prefix());
        Ok(given.ok().map(|given| (given, subnet.ip())))
    };
    containers.iter().map(&mut give).collect()
}

/// The lowest address of a subnet that a host can have and that is not taken.
fn free(subnet: IpNetwork, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    match (subnet.network(), subnet.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let mut hosts = u32::from(first).saturating_add(1)..u32::from(last);
            hosts.find_map(|host| Some(IpAddr::from(Ipv4Addr::from(host))).filter(|host| !taken(*host)))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let mut hosts = u128::from(first).saturating_add(1)..=u128::from(last);
            hosts.find_map(|host| Some(IpAddr::from(Ipv6Addr::from(host))).filter(|host| !taken(*host)))
        }
        _ => None,
    }
}
