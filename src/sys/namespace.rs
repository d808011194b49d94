//! Network namespaces: enters a namespace of ip-netns(8) by name, and identifies the current one.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::{boot, ffi};

/// The directory of ip-netns(8), with a file for each namespace.
pub const DIRECTORY: &str = "/run/netns";
/// The file of the calling thread's network namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// An error of [`enter`].
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The name is empty, or is not a plain file name.
    #[error("`{0}` cannot be the name of a network namespace")]
    Name(String),
    /// No network namespace has this name.
    #[error("there is no network namespace `{0}`; `ip netns list` lists the network namespaces")]
    Missing(String),
    /// The process lacks CAP_SYS_ADMIN.
    #[error("not permitted to enter the network namespace `{0}`")]
    NotPermitted(String, #[source] io::Error),
    /// The file cannot be opened, or is not a network namespace.
    #[error("cannot enter the network namespace `{0}`")]
    Io(String, #[source] io::Error),
}

/// Returns the cookie of the calling thread's namespace, which is unique since boot. Returns `None` before Linux 5.14.
///
/// # Errors
/// If no socket can be opened. Without the cookie, the namespace would be taken for another one.
pub fn cookie() -> io::Result<Option<u64>> {
    // Any socket belongs to the namespace.
    ffi::namespace_cookie(&UnixDatagram::unbound()?)
}

/// Moves the calling thread into a namespace by its name.
///
/// # Errors
/// If no namespace has this name, or if the process lacks CAP_SYS_ADMIN.
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

/// The identity of a network namespace. The unique id distinguishes namespaces that had the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The network namespace of the first process.
    Host,
    /// A namespace of ip-netns(8): its name and its unique id.
    Named(String, String),
    /// A namespace without a name: its unique id.
    Anonymous(String),
}

/// Returns the identity of the calling thread's network namespace.
///
/// # Errors
/// If `/proc` cannot be read, or as [`cookie`].
pub fn identity() -> io::Result<Identity> {
    let current = std::fs::metadata(CURRENT)?;
    if is_of_first_process(&current) {
        return Ok(Identity::Host);
    }
    let incarnation = incarnation(cookie()?, current.ino())?;
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

/// Returns true if `current`, the calling thread's namespace, is also the namespace of the first process.
///
/// The file `/proc/1/ns/net` shows the namespace, but is readable only with all capabilities of that process, which root may
/// lack. If it is unreadable, the inodes of `/proc/PID/net/dev` are compared: the kernel has one inode for each namespace. If
/// these are unreadable too, returns false, and the names in /run/netns decide.
fn is_of_first_process(current: &Metadata) -> bool {
    let same = |one: &Metadata, other: &Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
    if let Ok(first) = std::fs::metadata("/proc/1/ns/net") {
        return same(&first, current);
    }
    let file = |process: &str| std::fs::metadata(format!("/proc/{process}/net/dev"));
    matches!((file("1"), file("thread-self")), (Ok(first), Ok(own)) if same(&first, &own))
}

/// Returns a unique id of a namespace: the boot id, and the kernel's cookie, which the kernel never uses again. Before Linux
/// 5.14 there is no cookie, and the id has the inode of the namespace instead.
fn incarnation(cookie: Option<u64>, inode: u64) -> io::Result<String> {
    let boot: String = boot::id()?.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    Ok(match cookie {
        Some(cookie) => format!("{boot}-{cookie}"),
        None => format!("{boot}-i{inode}"),
    })
}
