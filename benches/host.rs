//! Our program as it is installed, and a host whose own iptables is of one variant or the other.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, unshare};
use portfwd::iptables::command::Variant;

/// The program as it is installed: a copy, which the kernel has in its memory in larger pieces than what the linker wrote
/// through a mapping; that is a tenth of what a small command takes.
pub fn ours() -> &'static str {
    static COPY: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    let copy = || {
        let directory = tempfile::tempdir().expect("directory");
        let path: PathBuf = directory.path().join("portfwd");
        std::fs::copy(env!("CARGO_BIN_EXE_portfwd"), &path).expect("copied");
        (directory, path.to_string_lossy().into_owned())
    };
    &COPY.get_or_init(copy).1
}

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
