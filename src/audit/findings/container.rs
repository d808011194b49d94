//! Forwards to containers that do not exist.
//!
//! The kernel has no list of network namespaces, so the addresses of containers are unknown. But a bridge without ports has no
//! container. If the bridge has other ports, F09 reports a target that does not answer.

use std::collections::BTreeMap;

use super::Check;
use super::context::{Context, passing, targets};
use super::wording::{FEW, at_all, deletion, each};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::error::printable;

pub(super) const CHECKS: &[Check] = &[Check {
    kind: Kind {
        id: "F45",
        title: "published port without a container",
        severity: Severity::Warning,
        what: "Docker, podman or a similar program forwards a port to an address on its bridge, but the bridge has no ports. So no container has the address.",
        why: "Clients get no answer. The next container with this address receives their connections.",
        fix: "iptables -t nat -D DOCKER …, or restart the program, which writes its rules again",
    },
    find: without_container,
}];

/// Programs that publish the ports of containers.
const PUBLISHERS: [&str; 7] = ["docker", "podman", "cni", "cri-o", "kube-proxy", "incus", "lxd"];

/// F45. Returns nothing without facts, because the ports of bridges are unknown.
fn without_container(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let mut empty: BTreeMap<u32, Vec<&Forward<'_>>> = BTreeMap::new();
    for forward in passing(context) {
        let bridge = |address| {
            let link = facts.link_of(address).filter(|link| link.kind.as_deref() == Some("bridge"))?;
            facts.ports(link.index).next().is_none().then_some(link.index)
        };
        let mut bridges = targets(forward).map(bridge);
        if let Some(Some(first)) = bridges.next()
            && bridges.all(|other| other == Some(first))
            && PUBLISHERS.contains(&host.place(forward.at).owner.as_str())
        {
            empty.entry(first).or_default().push(forward);
        }
    }
    let found = empty.into_iter().map(|(bridge, forwards)| {
        let name = facts.link(bridge).map(|link| printable(&link.name)).unwrap_or_default();
        let message =
            format!("{} to a container on `{name}`, but `{name}` has no container", each(&forwards, "leads", "lead"));
        let finding = kind.found(context.confidence(&forwards), message);
        let finding = at_all(finding.seen(format!("`{name}` is a bridge without a port")), host, &forwards);
        let owner = forwards.first().map_or_else(String::new, |forward| host.place(forward.at).owner);
        let commands: Vec<String> = forwards.iter().filter_map(|forward| deletion(host, forward.at)).collect();
        match commands.len() {
            1..=FEW if commands.len() == forwards.len() => finding.mended_by(commands.join("; ")),
            _ => finding.mended_by(format!("restart {owner}, which writes its rules again")),
        }
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::super::hosts::{DOCKER, DOCKER_NAT, dual, dump, facts, find, nat, none, one};

    #[test]
    fn a_bridge_without_ports_has_no_container() {
        let found = one("F45", DOCKER, facts());
        assert_eq!(
            found.message,
            "`8080/tcp -> 172.17.0.2:80` leads to a container on `docker0`, but `docker0` has no container"
        );
        assert_eq!(found.places[0].owner, "docker");
        assert_eq!(
            found.fix,
            "iptables -t nat -D DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80"
        );
        none("F45", DOCKER, dual());
        assert!(find(&dump(DOCKER), "F45").is_empty());
    }

    #[test]
    fn rules_of_users_may_be_for_later_containers() {
        none("F45", &nat("-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2"), facts());
        let elsewhere = nat(&DOCKER_NAT.replace("172.17.0.2", "192.0.2.9"));
        none("F45", &elsewhere, facts());
    }
}
