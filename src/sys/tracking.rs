//! Which transport protocols connection tracking knows well enough for NAT to rewrite their ports.

use std::fs;
use std::path::Path;

use crate::model::Protocol;

/// Where connection tracking shows its switches.
const ROOT: &str = "/proc/sys/net/netfilter";

/// Why the ports of a protocol cannot be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untracked {
    /// The kernel was built without it.
    ///
    /// DCCP is gone since Linux 6.17. Its packets are then tracked without ports: `dnat to ADDR:PORT` rewrites the address
    /// alone, and the first packet between two hosts decides for all ports (measured, Linux 6.18).
    #[error("this kernel does not track {0} connections")]
    Absent(Protocol),
    /// It is tracked, but every packet from outside is taken for a broken one.
    ///
    /// `udplite_error` checks UDP-Lite's checksum as if it were UDP's (net/netfilter/nf_conntrack_proto_udp.c), so no
    /// rule of NAT ever sees what arrives, while `nf_conntrack_checksum` is 1 (measured, Linux 6.18).
    #[error("this kernel takes the checksums of all {0} packets for wrong ones")]
    Checksum(Protocol),
}

impl Untracked {
    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Absent(protocol) => format!("leave {protocol} out, or use a kernel with connection tracking for it"),
            Self::Checksum(protocol) => {
                format!("leave {protocol} out, or set `net.netfilter.nf_conntrack_checksum` to 0 yourself")
            }
        }
    }
}

/// Makes sure that the ports of a protocol can be rewritten in the namespace of the calling thread, as far as that can be
/// told.
///
/// Connection tracking shows the time-outs of every protocol that it was built with as switches of their own, but for
/// UDP-Lite.
///
/// # Errors
/// Why they cannot.
pub fn rewrites_ports(protocol: Protocol) -> Result<(), Untracked> {
    if matches!(protocol, Protocol::Tcp | Protocol::Udp) {
        return Ok(());
    }
    let root = Path::new(ROOT);
    if !root.join("nf_conntrack_max").exists() {
        // Not loaded yet, or not visible from here.
        return Ok(());
    }
    let built_in = match protocol {
        Protocol::Tcp | Protocol::Udp => true,
        Protocol::Sctp => root.join("nf_conntrack_sctp_timeout_established").exists(),
        Protocol::Dccp => root.join("nf_conntrack_dccp_timeout_open").exists(),
        Protocol::Udplite => {
            // Its sockets and its tracking belong together.
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

/// Makes connection tracking of the namespace of the calling thread take packets without a look at their checksums.
///
/// # Errors
/// Where the switch cannot be set.
pub fn ignore_checksums() -> std::io::Result<()> {
    fs::write(Path::new(ROOT).join(CHECKSUM), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_with_connection_tracking_knows_tcp_and_udp() {
        assert_eq!(rewrites_ports(Protocol::Tcp), Ok(()));
        assert_eq!(rewrites_ports(Protocol::Udp), Ok(()));
    }
}
