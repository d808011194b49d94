//! Network namespaces as ip-netns(8) knows them: entering one by name, and telling which one this is.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::boot;
use super::netlink::{Bus, Socket};

/// Where ip-netns(8) keeps its namespaces.
pub const DIRECTORY: &str = "/run/netns";
/// The namespace of the calling thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A name that is not one of a namespace, or a namespace that cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The name could lead elsewhere.
    #[error("`{0}` cannot be the name of a network namespace")]
    Name(String),
    /// There is none of this name.
    #[error("there is no network namespace `{0}`; `ip netns list` shows those that are")]
    Missing(String),
    /// It may not be entered.
    #[error("may not enter the network namespace `{0}`")]
    NotPermitted(String, #[source] io::Error),
    /// Something else is wrong with it.
    #[error("cannot enter the network namespace `{0}`")]
    Io(String, #[source] io::Error),
}

/// Returns the cookie of the calling thread's namespace, which is unique since boot. Returns `None` before Linux 5.14.
pub fn cookie() -> Option<u64> {
    Socket::open(Bus::Route).ok()?.namespace_cookie()
}

/// Moves the calling thread into a namespace by its name.
///
/// # Errors
/// Where there is none of this name, or CAP_SYS_ADMIN is missing.
pub fn enter(name: &str) -> Result<(), NamespaceError> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(NamespaceError::Name(name.to_owned()));
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => NamespaceError::Missing(name.to_owned()),
        io::ErrorKind::PermissionDenied => NamespaceError::NotPermitted(name.to_owned(), error),
        _ => NamespaceError::Io(name.to_owned(), error),
    };
    let file = File::open(Path::new(DIRECTORY).join(name)).map_err(failed)?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))
}

/// Which network namespace the calling thread is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The host's own.
    Host,
    /// One that ip-netns(8) knows, by name, and a word that no other namespace since this boot shares.
    Named(String, String),
    /// One without a name, by that word.
    Anonymous(String),
}

/// Returns which network namespace the calling thread is in.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn identity() -> io::Result<Identity> {
    let current = std::fs::metadata(CURRENT)?;
    if is_of_first_process(&current) {
        return Ok(Identity::Host);
    }
    let incarnation = incarnation(cookie(), current.ino())?;
    let Ok(names) = std::fs::read_dir(DIRECTORY) else { return Ok(Identity::Anonymous(incarnation)) };
    for entry in names.flatten() {
        let Ok(namespace) = std::fs::metadata(entry.path()) else { continue };
        if (namespace.dev(), namespace.ino()) == (current.dev(), current.ino())
            && let Ok(name) = entry.file_name().into_string()
        {
            return Ok(Identity::Named(name, incarnation));
        }
    }
    Ok(Identity::Anonymous(incarnation))
}

/// Whether the first process is in the calling thread's namespace, which is `current`.
///
/// Its link says so, but that may be read only by who has all of that process's capabilities, which root need not have.
/// What both see as the same file of `/proc` is the same namespace's as well: the kernel numbers these files for each. Where
/// neither can be seen, what /run/netns knows decides.
fn is_of_first_process(current: &Metadata) -> bool {
    let same = |one: &Metadata, other: &Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
    if let Ok(first) = std::fs::metadata("/proc/1/ns/net") {
        return same(&first, current);
    }
    let file = |process: &str| std::fs::metadata(format!("/proc/{process}/net/dev"));
    matches!((file("1"), file("thread-self")), (Ok(first), Ok(ours)) if same(&first, &ours))
}

/// A word for this namespace that no other one ever has: the boot, and the kernel's cookie of the namespace, which is
/// counted up and never used again; the number of its file where there is no cookie (before Linux 5.14).
fn incarnation(cookie: Option<u64>, inode: u64) -> io::Result<String> {
    let boot: String = boot::id()?.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    Ok(match cookie {
        Some(cookie) => format!("{boot}-{cookie}"),
        None => format!("{boot}-i{inode}"),
    })
}
