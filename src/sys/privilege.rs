//! The capabilities of this process.

use std::fs;

/// CAP_NET_ADMIN. Source: include/uapi/linux/capability.h.
const NET_ADMIN: u32 = 12;

/// Returns true if the calling thread has CAP_NET_ADMIN in its user namespace, and if `/proc` cannot be read. In the second
/// case the kernel refuses later requests if necessary.
pub fn may_administer_network() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_none_or(|bits| bits >> NET_ADMIN & 1 > 0)
}
