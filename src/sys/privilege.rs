//! What this process may do.

use std::fs;

/// CAP_NET_ADMIN. Source: include/uapi/linux/capability.h.
const NET_ADMIN: u32 = 12;

/// Whether the calling thread may administer networks in its user namespace. Where `/proc` does not tell, the kernel will.
pub fn may_administer_network() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_none_or(|bits| bits >> NET_ADMIN & 1 > 0)
}
