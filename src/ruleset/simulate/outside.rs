//! Parts of the kernel that see packets and that the simulator does not model: XDP, tc, chains of the families netdev and
//! bridge, IPsec, IPVS, VRFs. If one of them may change a packet's fate, the trace contains a [`Guess`].

use super::simulator::Simulator;
use super::trace::Guess;
use crate::ruleset::facts::{Facts, Link};
use crate::ruleset::region::{Packet, Truth};
use crate::ruleset::set::name_of;
use crate::ruleset::table::{Action, Hook, Table, TableFamily};

/// The maximum depth of jumps that is followed. Deeper chains may act.
const DEEPEST: usize = 16;

/// Kinds of interfaces that are not stacked on another interface.
const SINGLE: [&str; 6] = ["bridge", "veth", "dummy", "tun", "ifb", "netkit"];

/// The side of the host on which a packet passes an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The packet arrives.
    Ingress,
    /// The packet leaves.
    Egress,
}

impl Simulator<'_> {
    /// Adds a guess for each part that may act on a packet at an interface.
    pub(super) fn add_interface_guesses(&self, packet: &Packet, interface: u128, side: Side, guesses: &mut Vec<Guess>) {
        let facts = self.host.facts.as_ref();
        let link = self.interfaces.get(&interface).map(|interface| interface.link);
        if let Some(facts) = facts
            && link.is_some_and(|link| has_vrf(facts, link))
        {
            guesses.push(Guess::PolicyRouting);
        }
        // Most hosts have none of the other parts.
        let queues = facts.map_or(&[][..], |facts| &facts.queues);
        let programs = facts.map_or(&[][..], |facts| &facts.programs);
        if queues.is_empty() && programs.is_empty() && self.outside.is_empty() {
            return;
        }
        let name = name_of(interface);
        let devices = devices(facts, link, &name);
        let named = |names: &[String]| match &devices {
            Some(devices) => names.iter().any(|name| devices.contains(&name.as_str())),
            None => !names.is_empty(),
        };
        if named(queues) || side == Side::Ingress && named(programs) {
            guesses.push(Guess::SeenBefore(name.clone()));
        }
        let is_bridge = link.is_some_and(|link| link.kind.as_deref() == Some("bridge"));
        for (table, chain) in &self.outside {
            let Some(table) = self.host.rules.tables.get(*table) else { continue };
            let Some((chain, base)) = table.chains.get(*chain).and_then(|chain| Some((chain, chain.base.as_ref()?)))
            else {
                continue;
            };
            let is_here = match base.hook {
                _ if table.family == TableFamily::Bridge => is_bridge,
                Hook::Ingress => side == Side::Ingress && named(&base.devices),
                Hook::Egress => side == Side::Egress && named(&base.devices),
                _ => false,
            };
            if is_here && (base.drops || may_act(table, &chain.name, packet, 0)) {
                guesses.push(match table.family {
                    TableFamily::Bridge => Guess::Bridge(name.clone()),
                    _ => Guess::SeenBefore(name.clone()),
                });
            }
        }
    }

    /// Adds the guesses that concern all packets of the host.
    pub(super) fn add_host_guesses(&self, guesses: &mut Vec<Guess>) {
        guesses.extend(self.host.rules.gaps.iter().map(|gap| Guess::Unread(gap.what.clone())));
        let Some(facts) = &self.host.facts else { return };
        let harmless = ["neighbours of", "connections", "sockets", "at boot"];
        let decides = |what: &str| !harmless.iter().any(|word| what.contains(word));
        let unread = facts.gaps.iter().filter(|gap| decides(&gap.what));
        guesses.extend(unread.map(|gap| Guess::Unread(gap.what.clone())));
        guesses.extend(facts.ipsec.then_some(Guess::Ipsec));
        guesses.extend(facts.ipvs.then_some(Guess::Ipvs));
    }
}

/// Returns the devices that packets of an interface pass: the interface and its ports. Returns `None` if the interface is
/// stacked on another one, which the facts do not contain.
fn devices<'f>(facts: Option<&'f Facts>, link: Option<&'f Link>, name: &'f str) -> Option<Vec<&'f str>> {
    let mut devices = vec![name];
    if let Some(link) = link {
        if link.kind.as_deref().is_some_and(|kind| !SINGLE.contains(&kind)) {
            return None;
        }
        let ports = facts.into_iter().flat_map(|facts| facts.ports(link.index));
        devices.extend(ports.map(|port| port.name.as_str()));
    }
    Some(devices)
}

fn has_vrf(facts: &Facts, link: &Link) -> bool {
    let master = link.master.and_then(|master| facts.link(master));
    master.is_some_and(|master| master.kind.as_deref() == Some("vrf"))
}

/// Returns true if a chain may do more with a packet than accept it. The packet's interfaces are those of the IP hooks, so
/// a condition on an interface is not decided.
fn may_act(table: &Table, chain: &str, packet: &Packet, depth: usize) -> bool {
    let Some(chain) = table.chains.named(chain).filter(|_| depth < DEEPEST) else { return true };
    let cases = chain.rules.iter().flat_map(|rule| &rule.cases);
    let mut matching = cases.filter(|case| case.region.has(packet) != Truth::No);
    matching.any(|case| {
        case.actions.iter().any(|action| match action {
            Action::Accept | Action::Return => false,
            Action::Jump(name) | Action::Goto(name) => may_act(table, name, packet, depth + 1),
            _ => true,
        })
    })
}

#[cfg(test)]
mod tests;
