//! The processes that are in network namespaces, from proc(5).

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use super::Process;
use crate::lab::Netns;
use crate::sys::process::numbers;

/// A process, and the network namespace that it is in, by device and number of its file.
pub(super) type ProcessWithNamespace = ((u64, u64), Process);

/// All processes that may be seen from here, by their numbers. One that ends meanwhile is left out.
pub(super) fn list() -> io::Result<Vec<ProcessWithNamespace>> {
    let mut all: Vec<ProcessWithNamespace> = numbers()?.filter_map(read_process).collect();
    all.sort_by_key(|(_, process)| process.pid);
    Ok(all)
}

fn read_process(pid: u32) -> Option<ProcessWithNamespace> {
    let metadata = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
    // The numbers from our process namespace to its own (proc_pid_status(5)).
    let mut numbers = field("NSpid")?.split_ascii_whitespace();
    let inside = numbers.by_ref().skip(1).last().and_then(|number| number.parse().ok());
    Some(((metadata.dev(), metadata.ino()), Process { pid, inside, name: field("Name")?.to_owned() }))
}

/// By what the processes of a namespace are found.
pub(super) fn namespace_file(namespace: &Netns) -> io::Result<(u64, u64)> {
    let metadata = fs::File::from(namespace.as_fd().try_clone_to_owned()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
