//! A host in a network namespace, and the choice of its iptables variant.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use portfwd::iptables::command::Variant;
use portfwd::lab::Netns;

use crate::race::Cost;
use crate::race::process::run;

/// The path of the portfwd binary under test.
pub const PORTFWD: &str = env!("CARGO_BIN_EXE_portfwd");

/// A network namespace, and a directory for files and for portfwd's state.
pub struct Host {
    /// The network namespace of the host.
    pub namespace: Netns,
    directory: tempfile::TempDir,
}

impl Host {
    /// Makes a host without rules.
    pub fn new() -> Self {
        let namespace = Netns::new().expect("run as root");
        Self { namespace, directory: tempfile::tempdir().expect("directory") }
    }

    /// Writes a file into the host's directory and returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    }

    /// Runs a program in the host's namespace. Panics if the program fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Cost {
        run(&self.namespace, program, arguments)
    }

    /// Runs portfwd with its state in the host's directory.
    pub fn portfwd(&self, arguments: &[&str]) -> Cost {
        self.run(PORTFWD, &[&["--state-dir", &self.state()], arguments].concat())
    }

    /// Returns the directory of portfwd's state.
    pub fn state(&self) -> String {
        self.path().join("state").to_string_lossy().into_owned()
    }

    /// Creates conntrack entries of TCP connections that match no forward.
    pub fn track(&self, entries: u32) {
        let mut text = String::new();
        for n in 0..entries {
            let [_, a, b, c] = n.to_be_bytes();
            let written = writeln!(
                text,
                "-I -s 198.18.{b}.{c} -d 198.19.0.{a} -p tcp --sport 1024 --dport 9 --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 3600"
            );
            written.expect("text grows");
        }
        self.run("conntrack", &["-R", &self.file("entries", &text)]);
        let count = || Command::new("conntrack").arg("-C").output().expect("conntrack is installed").stdout;
        let count = self.namespace.run(count).expect("the namespace");
        let needs = "net.netfilter.nf_conntrack_max is large enough";
        assert_eq!(String::from_utf8_lossy(&count).trim(), entries.to_string(), "{needs}");
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Returns the path of an iptables program, such as `iptables-nft-save`. The suffix is `""`, `-restore` or `-save`.
pub fn iptables(variant: Variant, suffix: &str) -> String {
    format!("/usr/sbin/iptables-{}{suffix}", variant.name())
}

/// Runs a function in a new mount namespace in which `iptables` is one variant. The links are those of
/// update-alternatives(1).
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
