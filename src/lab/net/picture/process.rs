//! Finds the processes in each network namespace, from proc(5).

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use super::Process;
use crate::lab::Netns;
use crate::sys::process::numbers;

/// A process, with the device and inode of its network namespace.
pub(super) type ProcessWithNamespace = ((u64, u64), Process);

/// Returns all visible processes, sorted by PID. Processes that end meanwhile are omitted.
pub(super) fn list() -> io::Result<Vec<ProcessWithNamespace>> {
    let mut all: Vec<ProcessWithNamespace> = numbers()?.filter_map(read_process).collect();
    all.sort_by_key(|(_, process)| process.pid);
    Ok(all)
}

fn read_process(pid: u32) -> Option<ProcessWithNamespace> {
    let metadata = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
    // The PIDs from this process namespace to the process's own (proc_pid_status(5)).
    let mut numbers = field("NSpid")?.split_ascii_whitespace();
    let inside = numbers.by_ref().skip(1).last().and_then(|number| number.parse().ok());
    Some(((metadata.dev(), metadata.ino()), Process { pid, inside, name: field("Name")?.to_owned() }))
}

/// Returns the device and inode of a network namespace.
pub(super) fn namespace_file(namespace: &Netns) -> io::Result<(u64, u64)> {
    let metadata = fs::File::from(namespace.as_fd().try_clone_to_owned()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
