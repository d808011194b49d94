//! Who made a table or a chain, guessed from its name and its layout.

use super::ruleset::{Chain, Table, Tool};

/// What the names of tables tell. Sources: the projects' own layouts; see docs/audit.md.
const TABLES: [(&str, &str); 12] = [
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
    ("libvirt_network", "libvirt"),
];

/// What the beginnings of the names of chains tell.
const CHAINS: [(&str, &str); 19] = [
    ("PORTFWD", "portfwd"),
    ("DOCKER", "docker"),
    ("NETAVARK", "podman"),
    ("nv_", "podman"),
    ("CNI-", "cni"),
    ("KUBE-", "kube-proxy"),
    ("cali-", "calico"),
    ("CILIUM_", "cilium"),
    ("FLANNEL-", "flannel"),
    ("LIBVIRT_", "libvirt"),
    ("ufw-", "ufw"),
    ("ufw6-", "ufw"),
    ("PRE_", "firewalld"),
    ("POST_", "firewalld"),
    ("FWD_", "firewalld"),
    ("IN_", "firewalld"),
    ("f2b-", "fail2ban"),
    ("MINIUPNPD", "miniupnpd"),
    ("WEAVE", "weave"),
];

/// Who made a table; `unknown` where its name does not tell.
pub fn of_table(table: &Table) -> &'static str {
    let known = TABLES.iter().find(|(name, _)| *name == &*table.name);
    known.map_or("unknown", |(_, owner)| owner)
}

/// Who made a chain.
pub fn of_chain(table: &Table, chain: &Chain) -> &'static str {
    match of_table(table) {
        "unknown" => of_name(&chain.name).unwrap_or(if table.tool == Tool::Nft { "unknown" } else { "user" }),
        owner => owner,
    }
}

fn of_name(name: &str) -> Option<&'static str> {
    CHAINS.iter().find(|(beginning, _)| name.starts_with(beginning)).map(|(_, owner)| *owner)
}
