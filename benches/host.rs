//! Our program as it is installed, on a host of its own; and a host whose iptables is of one variant or the other.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, unshare};
use portfwd::iptables::command::Variant;
use portfwd::lab::Netns;

use crate::race::Cost;
use crate::race::process::run;

/// Where the copy of our program is, once there is one.
static COPY: OnceLock<tempfile::TempDir> = OnceLock::new();

/// The program as it is installed: a copy, which the kernel has in its memory in larger pieces than what the linker wrote
/// through a mapping; that is a tenth of what a small command takes.
pub fn ours() -> PathBuf {
    let copy = || {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::copy(env!("CARGO_BIN_EXE_portfwd"), directory.path().join("portfwd")).expect("copied");
        directory
    };
    COPY.get_or_init(copy).path().join("portfwd")
}

/// Removes the copy, which nobody else does: nothing is dropped at the end of a program that everything in it can use.
pub fn remove_copy() {
    if let Some(directory) = COPY.get() {
        std::fs::remove_dir_all(directory.path()).expect("removed");
    }
}

/// A network namespace, and a directory for files and for our state.
pub struct Host {
    /// The namespace.
    pub namespace: Netns,
    directory: tempfile::TempDir,
}

impl Host {
    /// Makes one without any rules.
    pub fn new() -> Self {
        let namespace = Netns::new().expect("run as root");
        Self { namespace, directory: tempfile::tempdir().expect("directory") }
    }

    /// Makes one whose directory is in memory, so that nothing waits for a disk; none where the system has no such place.
    pub fn in_memory() -> Option<Self> {
        let directory = tempfile::tempdir_in("/dev/shm").ok()?;
        Some(Self { namespace: Netns::new().expect("run as root"), directory })
    }

    /// Writes a file and gives its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    }

    /// Runs a program.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Cost {
        run(&self.namespace, program, arguments)
    }

    /// Runs ours, which keeps its state in the host's directory.
    pub fn portfwd(&self, arguments: &[&str]) -> Cost {
        self.run(&ours().to_string_lossy(), &[&["--state-dir", &self.state()], arguments].concat())
    }

    /// Where it keeps its state.
    pub fn state(&self) -> String {
        self.path().join("state").to_string_lossy().into_owned()
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// A program of a variant of iptables; `""` is the one that changes rules one by one, others are `-restore` and `-save`.
pub fn iptables(variant: Variant, suffix: &str) -> String {
    format!("/usr/sbin/iptables-{}{suffix}", variant.name())
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
