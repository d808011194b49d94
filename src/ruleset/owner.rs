//! Infers the program that made a table, chain or rule, from names and layout.
//!
//! Names of tables and chains are the best sign. Built-in chains of iptables(8), such as `PREROUTING`, contain rules of many
//! programs. The owner of such a rule follows from its jump target, its comment, its shape, and the rules beside it.

use super::region::{Condition, Field, LOCAL, Region};
use super::set::{Set, name_of};
use super::table::{Action, Chain, Hook, Rule, Table, Tool};

/// Table names and their owners. Source: the layouts in tests/audit/peers, recorded from each project.
const TABLES: [(&str, &str); 16] = [
    ("portfwd", "portfwd"),
    ("docker-bridges", "docker"),
    ("netavark", "podman"),
    ("cni_hostport", "cni"),
    ("cni_plugins_masquerade", "cni"),
    ("crio-hostports", "cri-o"),
    ("kube-proxy", "kube-proxy"),
    ("firewalld", "firewalld"),
    ("fw4", "fw4"),
    ("incus", "incus"),
    ("lxd", "lxd"),
    ("lxc", "lxc"),
    ("libvirt_network", "libvirt"),
    ("flannel-ipv4", "flannel"),
    ("flannel-ipv6", "flannel"),
    ("f2b-table", "fail2ban"),
];

/// Prefixes of chain names and their owners. The first matching prefix wins.
const CHAINS: [(&str, &str); 19] = [
    ("PORTFWD", "portfwd"),
    ("DOCKER", "docker"),
    ("NETAVARK", "podman"),
    ("nv_", "podman"),
    ("CNI-", "cni"),
    ("CRIO-", "cri-o"),
    ("KUBE-HOSTPORTS", "cri-o"),
    ("KUBE-HP-", "cri-o"),
    ("KUBE-", "kube-proxy"),
    ("cali-", "calico"),
    ("CILIUM_", "cilium"),
    ("FLANNEL-", "flannel"),
    ("LIBVIRT_", "libvirt"),
    ("ufw-", "ufw"),
    ("ufw6-", "ufw"),
    ("f2b-", "fail2ban"),
    ("MINIUPNPD", "miniupnpd"),
    ("WEAVE", "weave"),
    ("ts-", "tailscale"),
];

/// Prefixes of firewalld's chains in tables of iptables(8). Other programs may use such names, so a chain of [`ZONES`] must
/// exist too.
const OF_FIREWALLD: [&str; 12] = [
    "PREROUTING_",
    "PRE_",
    "POSTROUTING_",
    "POST_",
    "FORWARD_",
    "FWD_",
    "FWDI_",
    "FWDO_",
    "INPUT_",
    "IN_",
    "OUTPUT_",
    "RFC3964_IPv4",
];

/// Chains of firewalld. Each of its iptables(8) tables contains at least one.
const ZONES: [&str; 4] = ["PREROUTING_ZONES", "INPUT_ZONES", "INPUT_direct", "OUTPUT_direct"];

/// Chains for the user's rules. Their owner adds only a last `RETURN`.
const OPEN: [&str; 2] = ["DOCKER-USER", "CNI-ADMIN"];

/// Prefixes of rule comments and their owners.
const COMMENTS: [(&str, &str); 15] = [
    ("kube hostport ", "cri-o"),
    ("kubernetes ", "kube-proxy"),
    ("CNI portfwd ", "cni"),
    ("CNI firewall ", "cni"),
    ("name: \"", "cni"),
    ("dnat name: \"", "cni"),
    ("netavark ", "podman"),
    ("dnat name: ", "podman"),
    ("generated for Incus ", "incus"),
    ("generated for LXD ", "lxd"),
    ("managed by lxd-bridge", "lxd"),
    ("cali:", "calico"),
    ("cilium-feeder: ", "cilium"),
    ("flanneld ", "flannel"),
    ("!fw4: ", "fw4"),
];

/// The maximum distance, in rules, between a firewalld rule without a jump and one with a jump, in built-in chains.
const NEAR: usize = 3;

const ICMPV6: u128 = 58;

/// The maximum number of rules that are searched for the name of a bridge.
const LOOKED_AT: usize = 4096;

/// Returns the owner of a table, or `unknown`.
pub fn of_table(table: &Table) -> &'static str {
    let known = TABLES.iter().find(|(name, _)| *name == &*table.name);
    known.map_or("unknown", |(_, owner)| owner)
}

/// Returns the owner of a chain. A chain without a known name belongs to `user` in a table of iptables(8), and to `unknown`
/// otherwise.
pub fn of_chain(table: &Table, chain: &Chain) -> &'static str {
    match of_table(table) {
        "unknown" => of_name(table, &chain.name).unwrap_or(if table.tool == Tool::Nft { "unknown" } else { "user" }),
        owner => owner,
    }
}

/// Returns the owner of the rule with this index. For the policy, returns the owner of the chain.
pub fn of_rule(table: &Table, chain: &Chain, number: usize) -> &'static str {
    let of_chain = of_chain(table, chain);
    let Some(rule) = chain.rules.get(number) else { return of_chain };
    if OPEN.contains(&&*chain.name) && !ends(rule) {
        return of_target(table, rule).unwrap_or("user");
    }
    if !matches!(of_chain, "user" | "unknown") {
        return of_chain;
    }
    let told = of_target(table, rule).or_else(|| of_comment(rule));
    let shape = || is_of_docker(table, chain, rule) || is_of_firewalld(table, chain, number);
    match told {
        Some(owner) => owner,
        None if table.tool == Tool::Nft || chain.base.is_none() || !shape() => of_chain,
        None if is_of_docker(table, chain, rule) => "docker",
        None => "firewalld",
    }
}

fn of_name(table: &Table, name: &str) -> Option<&'static str> {
    if let Some((_, owner)) = CHAINS.iter().find(|(beginning, _)| name.starts_with(beginning)) {
        return Some(owner);
    }
    let zones = || table.tool != Tool::Nft && ZONES.iter().any(|zone| table.chains.position(zone).is_some());
    (OF_FIREWALLD.iter().any(|beginning| name.starts_with(beginning)) && zones()).then_some("firewalld")
}

/// Returns the owner of the chain that a rule jumps to.
fn of_target(table: &Table, rule: &Rule) -> Option<&'static str> {
    rule.cases.iter().flat_map(|case| &case.actions).find_map(|action| match action {
        Action::Jump(name) | Action::Goto(name) => of_name(table, name),
        _ => None,
    })
}

fn of_comment(rule: &Rule) -> Option<&'static str> {
    let comment = rule.comment.as_deref()?;
    COMMENTS.iter().find(|(beginning, _)| comment.starts_with(beginning)).map(|(_, owner)| *owner)
}

/// Returns true if the rule is an unconditional `RETURN`.
fn ends(rule: &Rule) -> bool {
    rule.cases.iter().all(|case| case.region == Region::all() && *case.actions == [Action::Return])
}

/// Returns true if Docker adds such a rule to a built-in chain for a bridge or container.
///
/// Source: integration/network/bridge/iptablesdoc/generated of moby, and neighbours/docker.v4 of the tests.
fn is_of_docker(table: &Table, chain: &Chain, rule: &Rule) -> bool {
    let ([case], Some(base)) = (rule.cases.as_slice(), &chain.base) else { return false };
    let (region, [action]) = (&case.region, &*case.actions) else { return false };
    let (input, output) = (region.get(Field::Input), region.get(Field::Output));
    let bridge = |set: &Set| set.only().is_some_and(|name| is_bridge(table, name));
    let but_bridge = |set: &Set| bridge(&set.not());
    let source = region.get(Field::Source);
    match (base.hook, action) {
        (Hook::Postrouting, Action::Masquerade(_) | Action::Snat(_)) => {
            let outbound = but_bridge(output) && !source.is_all();
            let from_host = bridge(output) && region.get(Field::SourceKind).only() == Some(LOCAL);
            let itself = has_docker(table)
                && source.only().is_some()
                && source == region.get(Field::Destination)
                && region.get(Field::Port).only().is_some();
            outbound || from_host || itself
        }
        (Hook::Forward, Action::Accept | Action::Drop) => {
            let answers = bridge(output) && !region.get(Field::State).is_all();
            let passes = bridge(input) && (bridge(output) || but_bridge(output));
            let listed = |condition: &Condition| matches!(condition, Condition::Unknown(words) if words.contains("docker-ext-bridges"));
            answers || passes || region.conditions().iter().any(listed)
        }
        (Hook::Prerouting, Action::Drop) => {
            &*table.name == "raw" && but_bridge(input) && region.get(Field::Destination).only().is_some()
        }
        _ => false,
    }
}

fn has_docker(table: &Table) -> bool {
    table.chains.position("DOCKER").is_some()
}

/// Returns true if an interface is a Docker bridge, by its name or because Docker's rules use it.
fn is_bridge(table: &Table, number: u128) -> bool {
    let name = name_of(number);
    let given = |rest: &str| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    if matches!(name.as_str(), "docker0" | "docker_gwbridge") || name.strip_prefix("br-").is_some_and(given) {
        return true;
    }
    let names = |set: &Set| set.only() == Some(number) || set.not().only() == Some(number);
    ["DOCKER", "DOCKER-BRIDGE", "DOCKER-FORWARD", "DOCKER-ISOLATION-STAGE-1"].into_iter().any(|chain| {
        let rules = table.chains.named(chain).map(|chain| chain.rules.iter().take(LOOKED_AT));
        rules
            .into_iter()
            .flatten()
            .flat_map(|rule| &rule.cases)
            .any(|case| names(case.region.get(Field::Input)) || names(case.region.get(Field::Output)))
    })
}

/// Returns true if firewalld adds such a rule beside its jumps in a built-in chain: for connection states, loopback, IPv6
/// neighbour discovery, reverse path filtering, or all packets.
///
/// Source: `default_rules` in src/firewall/core/ipXtables.py of firewalld, and neighbours/firewalld.v4 of the tests.
fn is_of_firewalld(table: &Table, chain: &Chain, number: usize) -> bool {
    // These rules contain unknown conditions: combined states, ICMPv6 types, reverse path filters.
    let known = ["ctstate", "conntrack", "icmp6", "rpfilter"];
    let asked = |condition: &Condition| match condition {
        Condition::Unknown(words) => known.iter().any(|known| words.contains(known)),
        condition => matches!(condition, Condition::Bits { field: Field::Status, .. }),
    };
    let plain = |region: &Region| {
        let protocol = region.get(Field::Protocol);
        [Field::Source, Field::Destination, Field::Port].iter().all(|field| region.get(*field).is_all())
            && (protocol.is_all() || protocol.only() == Some(ICMPV6))
            && region.conditions().iter().all(asked)
    };
    let Some(rule) = chain.rules.get(number).filter(|rule| rule.cases.iter().all(|case| plain(&case.region))) else {
        return false;
    };
    let verdict = |action: &Action| matches!(action, Action::Accept | Action::Drop | Action::Reject(_));
    let decides = rule.cases.iter().all(|case| case.actions.iter().all(verdict));
    let near = chain.rules.iter().skip(number.saturating_sub(NEAR)).take(2 * NEAR + 1);
    decides && near.into_iter().any(|rule| of_target(table, rule) == Some("firewalld"))
}

#[cfg(test)]
mod tests;
