//! The listening sockets and their processes.

use std::collections::{BTreeSet, HashSet};

use super::gap::gap;
use crate::model::Protocol;
use crate::ruleset::facts::Listener;
use crate::ruleset::table::Gap;
use crate::sys::sockets;

/// Reads the sockets in the order of protocol, port and address. Several sockets of one process at one port become one.
pub(super) fn read(gaps: &mut Vec<Gap>) -> Vec<Listener> {
    let sockets = match sockets::waiting(&BTreeSet::from(Protocol::ALL)) {
        Ok(sockets) => sockets,
        Err(error) => {
            gaps.push(gap("sockets that wait", &error));
            return Vec::new();
        }
    };
    // Sockets of the kernel itself (WireGuard, NFS) have no inode number.
    let inodes: HashSet<u32> = sockets.iter().map(|socket| socket.inode).filter(|inode| *inode > 0).collect();
    let owners = sockets::owners(&inodes);
    let unseen = inodes.len().saturating_sub(owners.len());
    if unseen > 0 {
        let what = format!("the processes of {unseen} sockets that wait");
        gaps.push(Gap { what, why: "they are not shown in /proc, or only to root".into() });
    }
    let mut listeners: Vec<Listener> = sockets
        .into_iter()
        .map(|socket| Listener {
            protocol: socket.protocol,
            address: socket.address,
            port: socket.port,
            only_ipv6: socket.only_ipv6,
            owner: owners.get(&socket.inode).map(|owner| (owner.name.clone(), owner.process)),
        })
        .collect();
    listeners.sort_by(|a, b| {
        let key = |one: &Listener| (one.protocol, one.port, one.address, one.only_ipv6);
        key(a).cmp(&key(b)).then_with(|| a.owner.cmp(&b.owner))
    });
    listeners.dedup();
    listeners
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn ours_is_among_them_with_our_name() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let at = listener.local_addr().expect("bound");
        let found = read(&mut Vec::new());
        let ours: Vec<_> = found.iter().filter(|one| (one.address, one.port) == (at.ip(), at.port())).collect();
        assert_eq!(ours.len(), 1, "{ours:?}");
        assert_eq!(ours[0].owner.as_ref().map(|(_, process)| *process), Some(std::process::id()));
    }
}
