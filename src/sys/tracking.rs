//! Connection tracking of transport protocols: NAT can rewrite the ports of tracked protocols only.

use std::fs;
use std::path::Path;

use crate::model::Protocol;

/// The directory of connection tracking's sysctls.
const ROOT: &str = "/proc/sys/net/netfilter";

/// The reason that NAT cannot rewrite the ports of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untracked {
    /// The kernel was built without connection tracking for the protocol.
    ///
    /// Linux 6.17 removed DCCP. The kernel then tracks DCCP packets without ports: `dnat to ADDR:PORT` rewrites only the
    /// address, and the first packet between two hosts decides for all ports (measured, Linux 6.18).
    #[error("this kernel does not track {0} connections")]
    Absent(Protocol),
    /// Connection tracking treats every received packet of the protocol as invalid.
    ///
    /// `udplite_error` verifies the checksum of UDP-Lite like that of UDP (net/netfilter/nf_conntrack_proto_udp.c). So no NAT
    /// rule sees a received packet while `nf_conntrack_checksum` is 1 (measured, Linux 6.18).
    #[error("this kernel rejects the checksums of all {0} packets")]
    Checksum(Protocol),
}

impl Untracked {
    /// Returns the advice for the user.
    pub fn help(&self) -> String {
        match self {
            Self::Absent(protocol) => {
                format!("remove {protocol} from the forward, or use a kernel that tracks {protocol} connections")
            }
            Self::Checksum(protocol) => {
                format!("remove {protocol} from the forward, or run `sysctl net.netfilter.nf_conntrack_checksum=0`")
            }
        }
    }
}

/// Checks that NAT can rewrite the ports of a protocol in the calling thread's network namespace. Returns `Ok` if that is
/// unknown, because connection tracking is not loaded or not visible.
///
/// Connection tracking has sysctls for the timeouts of every protocol that it was built with, except UDP-Lite.
///
/// # Errors
/// If the kernel cannot rewrite the ports.
pub fn rewrites_ports(protocol: Protocol) -> Result<(), Untracked> {
    if matches!(protocol, Protocol::Tcp | Protocol::Udp) {
        return Ok(());
    }
    let root = Path::new(ROOT);
    if !root.join("nf_conntrack_max").exists() {
        // Connection tracking is not loaded yet, or not visible in this namespace.
        return Ok(());
    }
    let built_in = match protocol {
        Protocol::Tcp | Protocol::Udp => true,
        Protocol::Sctp => root.join("nf_conntrack_sctp_timeout_established").exists(),
        Protocol::Dccp => root.join("nf_conntrack_dccp_timeout_open").exists(),
        Protocol::Udplite => {
            // A kernel with UDP-Lite sockets also tracks UDP-Lite.
            let sockets = fs::read_to_string("/proc/net/protocols");
            sockets.map_or(true, |sockets| sockets.lines().any(|line| line.starts_with("UDP-Lite")))
        }
    };
    let verified = || fs::read_to_string(root.join(CHECKSUM)).is_ok_and(|text| text.trim() != "0");
    match protocol {
        _ if !built_in => Err(Untracked::Absent(protocol)),
        Protocol::Udplite if verified() => Err(Untracked::Checksum(protocol)),
        _ => Ok(()),
    }
}

const CHECKSUM: &str = "nf_conntrack_checksum";

/// Disables the verification of checksums by connection tracking in the calling thread's network namespace.
///
/// # Errors
/// If the sysctl cannot be written.
pub fn ignore_checksums() -> std::io::Result<()> {
    fs::write(Path::new(ROOT).join(CHECKSUM), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_tracks_tcp_and_udp() {
        assert_eq!(rewrites_ports(Protocol::Tcp), Ok(()));
        assert_eq!(rewrites_ports(Protocol::Udp), Ok(()));
    }
}
