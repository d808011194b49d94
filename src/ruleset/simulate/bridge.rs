//! Packets that a bridge switches, and br_netfilter, which passes them to the IP hooks.

use super::simulator::{Simulator, UNICAST};
use crate::model::Family;
use crate::ruleset::facts::{Link, Route};
use crate::ruleset::region::{Field, Packet, Truth};
use crate::ruleset::set::address_of;

/// Kinds of bridge ports that have one host behind them.
const SINGLE: [&str; 2] = ["veth", "tun"];

/// The bridge by which a packet arrives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bridge<'a> {
    pub link: &'a Link,
    /// True if the destination is behind the same bridge, so its sender does not address this host.
    pub switches: bool,
    /// True if br_netfilter passes the packets of bridges to the IP hooks.
    pub calls: bool,
}

impl<'a> Simulator<'a> {
    /// Returns the bridge by which a packet arrives.
    pub(super) fn bridge(&self, packet: &Packet) -> Option<Bridge<'a>> {
        let facts = self.host.facts.as_ref()?;
        let link = self.interfaces.get(&packet.get(Field::Input)?)?.link;
        if link.kind.as_deref() != Some("bridge") {
            return None;
        }
        let destination = address_of(packet.get(Field::Destination)?, packet.family)?;
        // The sender knows only the routes of its own network, not the marks and routing rules of this host.
        let on_link = |route: &Route| route.kind == 1 && route.gateway.is_none() && route.output == Some(link.index);
        let found = facts.lookup(&self.flow(packet, destination));
        let switches = packet.get(Field::DestinationKind).is_none_or(|kind| kind == UNICAST)
            && facts.addresses.iter().any(|(index, network)| *index == link.index && network.contains(destination))
            && found.routes.iter().any(on_link);
        let setting = match packet.family {
            Family::Ipv4 => "net/bridge/bridge-nf-call-iptables",
            Family::Ipv6 => "net/bridge/bridge-nf-call-ip6tables",
        };
        let own = facts.netfilter_bridges.contains(&(packet.family, link.name.clone()));
        Some(Bridge { link, switches, calls: own || facts.setting(setting).is_some_and(|value| value != "0") })
    }

    /// Returns whether the source and the destination of a packet are behind the same port of a bridge, and the port does
    /// not send packets back. A port of a virtual machine or a container has one host behind it.
    pub(super) fn is_same_port(&self, packet: &Packet, bridge: &Link) -> Truth {
        let Some(facts) = &self.host.facts else { return Truth::Maybe };
        let ports: Vec<&Link> = facts.ports(bridge.index).filter(|port| port.up).collect();
        // A bridge without ports brings no packets. Then the packet is one of a host that may come later.
        if ports.iter().all(|port| port.hairpin == Some(true)) {
            return Truth::No;
        }
        let none_returns = ports.iter().all(|port| port.hairpin == Some(false));
        let single = ports.iter().all(|port| port.kind.as_deref().is_some_and(|kind| SINGLE.contains(&kind)));
        match packet.get(Field::Source) == packet.get(Field::Destination) {
            true if none_returns => Truth::Yes,
            false if single && ports.len() > 1 => Truth::No,
            _ => Truth::Maybe,
        }
    }
}
