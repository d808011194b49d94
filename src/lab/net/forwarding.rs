//! Whether a namespace forwards packets between its interfaces, IPv4 and IPv6.

use std::fs;
use std::io;

use crate::lab::Netns;
use crate::lab::error::plain;

/// What lets it.
const SWITCHES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Whether it does, in both families.
pub(super) fn is_on(namespace: &Netns) -> io::Result<bool> {
    let read = || SWITCHES.iter().all(|switch| fs::read_to_string(switch).is_ok_and(|value| value.trim() == "1"));
    namespace.run(read).map_err(plain)
}

/// Has it do so, or not.
pub(super) fn set(namespace: &Netns, on: bool) -> io::Result<()> {
    let value = if on { "1" } else { "0" };
    let write = || SWITCHES.iter().try_for_each(|switch| fs::write(switch, value));
    namespace.run(write).map_err(plain)?
}
