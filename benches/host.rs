//! A host whose own iptables is of one variant or the other.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use portfwd::iptables::command::Variant;

/// Does something where `iptables` is of this variant, as update-alternatives(1) makes it one; nobody else sees it.
pub fn with<T: Send>(variant: Variant, job: impl FnOnce() -> T + Send) -> T {
    let there = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("run as root");
        let script = format!(
            "set -e; mount --make-rprivate /; d=$(mktemp -d); mount -t tmpfs none $d; cp -a /etc/alternatives/. $d
             for p in iptables ip6tables; do ln -sfn /usr/sbin/$p-{} $d/$p; done
             mount --move $d /etc/alternatives; rmdir $d",
            variant.name()
        );
        let status = Command::new("sh").args(["-c", &script]).status().expect("sh");
        assert!(status.success(), "the alternatives of a host with iptables-{}", variant.name());
        job()
    };
    std::thread::scope(|scope| scope.spawn(there).join().expect("no panic"))
}
