//! The connections that are followed, and how many.

use std::io;
use std::net::SocketAddr;

use nix::errno::Errno;

use super::gap;
use crate::audit::facts::{Facts, Tracked};
use crate::netfilter::conntrack::{Any, Conntrack};

/// How many are followed, and how many may be, by the settings; none where the kernel follows none.
pub(super) fn count(facts: &Facts) -> Option<(u64, u64)> {
    let number = |name: &str| facts.setting(&format!("net/netfilter/{name}"))?.parse().ok();
    Some((number("nf_conntrack_count")?, number("nf_conntrack_max")?))
}

/// Reads them. The kernel is not asked where it follows none, for asking would load what answers.
pub(super) fn read(facts: &mut Facts) -> Vec<Tracked> {
    match facts.setting("net/netfilter/nf_conntrack_count") {
        None | Some("0") => return Vec::new(),
        Some(_) => {}
    }
    match Conntrack::open().and_then(|mut conntrack| conntrack.all()) {
        Ok(found) => found.iter().map(tracked).collect(),
        // A kernel that was built without the answer.
        Err(error) => {
            facts.gaps.push(if is_unknown(&error) {
                gap("connections that are followed", &io::Error::other("the kernel cannot list them"))
            } else {
                gap("connections that are followed", &error)
            });
            Vec::new()
        }
    }
}

fn is_unknown(error: &io::Error) -> bool {
    [Errno::EINVAL, Errno::EPROTONOSUPPORT].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn tracked(any: &Any) -> Tracked {
    let end = |end: SocketAddr| (end.ip(), end.port());
    Tracked {
        protocol: any.protocol,
        client: end(any.original.source),
        listen: end(any.original.destination),
        target: end(any.reply.source),
        status: any.status,
    }
}
