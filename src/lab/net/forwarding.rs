//! Reads and sets IPv4 and IPv6 forwarding of a network namespace.

use std::fs;
use std::io;

use crate::lab::Netns;
use crate::lab::error::into_io;

/// The forwarding sysctls of both families.
const SYSCTLS: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Returns true if the namespace forwards packets of both families.
pub(super) fn is_enabled(namespace: &Netns) -> io::Result<bool> {
    let read = || SYSCTLS.iter().all(|sysctl| fs::read_to_string(sysctl).is_ok_and(|value| value.trim() == "1"));
    namespace.run(read).map_err(into_io)
}

/// Turns forwarding on or off in both families.
pub(super) fn set(namespace: &Netns, on: bool) -> io::Result<()> {
    let value = if on { "1" } else { "0" };
    let write = || SYSCTLS.iter().try_for_each(|sysctl| fs::write(sysctl, value));
    namespace.run(write).map_err(into_io)?
}
