//! Counts the system calls of a command with strace(1). The counts do not depend on the machine, so each has an
//! absolute limit.

use std::process::Command;

use crate::host::{Host, PORTFWD};

/// The numbers of system calls of one command.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// The calls of fsync(2) and fdatasync(2) on database files. SQLite also syncs the directory of its log. That call
    /// does not count, because the directory has nothing to write.
    pub fsyncs: usize,
    /// The number of sends to nf_tables. One send contains a whole batch.
    pub requests: usize,
}

/// Runs portfwd under strace(1) and counts its system calls. Panics if portfwd fails.
pub fn run(host: &Host, arguments: &[&str]) -> Counted {
    let log = host.file("calls", "");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,sendto,sendmsg", "-o", &log, PORTFWD]);
    command.args(["--state-dir", &host.state()]).args(arguments);
    let output = host.namespace.run(|| command.output().expect("strace is installed")).expect("the namespace");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let calls = std::fs::read_to_string(&log).expect("strace writes its log");
    let count = |words: &[&str]| calls.lines().filter(|line| words.iter().any(|word| line.contains(word))).count();
    let fsyncs = calls.lines().filter(|line| line.contains("sync(") && line.contains(".db")).count();
    Counted { fsyncs, requests: count(&["SUBSYS_NFTABLES", "MSG_BATCH_BEGIN"]) }
}
