//! Sysctls that decide about packets.
//!
//! A thread sees the sysctls of its network namespace. Source: Documentation/networking/ip-sysctl.rst,
//! nf_conntrack-sysctl.rst.

use std::collections::BTreeMap;

use super::gap::gap;
use crate::ruleset::table::Gap;
use crate::sys::sysctl;

/// Sysctls of the namespace, below /proc/sys/net.
const ONCE: [&str; 9] = [
    "ipv4/ip_forward",
    "ipv4/ip_local_port_range",
    "ipv4/ip_local_reserved_ports",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_udp_timeout",
    "netfilter/nf_conntrack_udp_timeout_stream",
];

/// Sysctls of each interface, and of `all` and `default`.
const EACH: [(&str, &[&str]); 2] = [
    ("ipv4/conf", &["route_localnet", "rp_filter", "forwarding", "accept_local", "src_valid_mark"]),
    ("ipv6/conf", &["forwarding", "force_forwarding"]),
];

/// Reads the sysctls by their path below /proc/sys. Sysctls that the kernel lacks are left out.
pub(super) fn read(gaps: &mut Vec<Gap>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut read = |key: &str| match sysctl::value(key) {
        Ok(Some(value)) => {
            settings.insert(format!("net/{key}"), value);
        }
        Ok(None) => {}
        Err(error) => gaps.push(gap(&format!("the setting net/{key}"), &error)),
    };
    ONCE.into_iter().for_each(&mut read);
    for (directory, names) in EACH {
        // The name of an interface is one part of the path, even with dots in it.
        for interface in sysctl::interfaces(directory).iter().map(String::as_str).chain(["all"]) {
            names.iter().for_each(|name| read(&format!("{directory}/{interface}/{name}")));
        }
    }
    // Every kernel with IPv4 has this sysctl.
    if !settings.contains_key("net/ipv4/ip_forward")
        && gaps.iter().all(|gap| gap.what != "the setting net/ipv4/ip_forward")
    {
        gaps.push(Gap { what: "settings".into(), why: "there is no /proc/sys/net/ipv4".into() });
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_every_kernel_has_are_read() {
        let mut gaps = Vec::new();
        let settings = read(&mut gaps);
        assert_eq!(gaps, []);
        for key in ["net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/lo/route_localnet"] {
            let value = settings.get(key).unwrap_or_else(|| panic!("{key} of {settings:?}"));
            assert!(value.parse::<u8>().is_ok(), "{key} {value:?}");
        }
        let ports: Vec<&str> = settings["net/ipv4/ip_local_port_range"].split_ascii_whitespace().collect();
        assert_eq!(ports.len(), 2);
    }
}
