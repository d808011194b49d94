//! The entries of connection tracking, and their number.

use std::io;
use std::net::SocketAddr;

use nix::errno::Errno;

use super::gap::gap;
use crate::ruleset::facts::{Facts, Tracked};
use crate::ruleset::table::Gap;
use crate::sys::conntrack::{Any, Conntrack};

const WHAT: &str = "connections that are followed";

/// Returns the number of entries and the limit. Returns `None` without connection tracking.
pub(super) fn count(facts: &Facts) -> Option<(u64, u64)> {
    let number = |name: &str| facts.setting(&format!("net/netfilter/{name}"))?.parse().ok();
    Some((number("nf_conntrack_count")?, number("nf_conntrack_max")?))
}

/// Reads the entries. Without entries it sends no request, because a request would load a kernel module.
pub(super) fn read(facts: &mut Facts) -> Vec<Tracked> {
    const COUNT: &str = "net/netfilter/nf_conntrack_count";
    match facts.setting(COUNT) {
        Some("0") => return Vec::new(),
        Some(_) => {}
        None => {
            // If no sysctl is readable, a missing one proves nothing.
            let unknown = facts.setting("net/ipv4/ip_forward").is_none();
            if unknown || facts.gaps.iter().any(|gap| gap.what.ends_with(COUNT)) {
                let why = format!("{COUNT} does not tell whether there are any");
                facts.gaps.push(Gap { what: WHAT.into(), why });
            }
            return Vec::new();
        }
    }
    match Conntrack::open().and_then(|mut conntrack| conntrack.all()) {
        Ok(found) => found.iter().map(tracked).collect(),
        // A kernel without support for the dump.
        Err(error) => {
            facts.gaps.push(if is_unknown(&error) {
                gap(WHAT, &io::Error::other("the kernel cannot list them"))
            } else {
                gap(WHAT, &error)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_setting_can_be_read_connections_are_unknown() {
        let mut facts = Facts::default();
        assert_eq!(read(&mut facts), []);
        assert_eq!(facts.gaps.len(), 1, "{:?}", facts.gaps);
        let mut facts = Facts::default();
        // A kernel that follows none.
        facts.settings.insert("net/ipv4/ip_forward".into(), "0".into());
        assert_eq!((read(&mut facts).len(), facts.gaps.len(), count(&facts)), (0, 0, None));
        facts.settings.insert("net/netfilter/nf_conntrack_count".into(), "7".into());
        facts.settings.insert("net/netfilter/nf_conntrack_max".into(), "100".into());
        assert_eq!(count(&facts), Some((7, 100)));
    }
}
