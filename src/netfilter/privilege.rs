//! What this process may do.

use std::fs;

/// CAP_NET_ADMIN. Source: include/uapi/linux/capability.h.
const NET_ADMIN: u32 = 12;

/// Makes sure that the calling thread may administer networks in its user namespace. Where `/proc` does not tell, the kernel
/// will.
///
/// # Errors
/// Where it may not.
pub fn may_administer_network() -> Result<(), ()> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    match effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()) {
        Some(bits) if bits >> NET_ADMIN & 1 == 0 => Err(()),
        _ => Ok(()),
    }
}
