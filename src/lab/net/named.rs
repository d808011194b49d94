//! Named network namespaces: bind mounts on files in /run/netns, as ip-netns(8) makes them.
//!
//! ```text
//! a namespace without a name ─▶ a file with the token, hard-linked to the name ─▶ a bind mount on it
//! ```
//! The link fails if the name exists. If the process is killed in between, the file with the token is left, and
//! [`remove`] deletes it. The rest follows `netns_add` in iproute2's ip/ipnetns.c.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

use super::name::NetnsName;
use crate::lab::Netns;
use crate::lab::error::into_io;
use crate::sys::namespace::{self, DIRECTORY};

/// The first bytes of the file that a namespace is mounted on.
const FILE_PREFIX: &str = "portfwd lab ";

/// The properties that prove that a lab created a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceIdentity {
    /// The random token in the file that the namespace is mounted on.
    #[serde(rename = "word")]
    token: String,
    /// The inode of the namespace. The kernel can reuse it after the namespace has ended.
    inode: u64,
    /// The kernel's cookie, unique until the next boot. `None` before Linux 5.14.
    cookie: Option<u64>,
}

impl NamespaceIdentity {
    /// Returns the identity of a namespace that has no name yet.
    pub(super) fn new(namespace: &Netns, token: String) -> io::Result<Self> {
        let (inode, cookie) = inode_and_cookie(namespace)?;
        Ok(Self { token, inode, cookie })
    }

    fn text(&self) -> String {
        format!("{FILE_PREFIX}{}\n", self.token)
    }

    fn first_file(&self) -> PathBuf {
        Path::new(DIRECTORY).join(format!(".portfwd-{}", self.token))
    }
}

/// Returns the inode and the cookie of a namespace.
fn inode_and_cookie(namespace: &Netns) -> io::Result<(u64, Option<u64>)> {
    let metadata = File::from(namespace.as_fd().try_clone_to_owned()?).metadata()?;
    let cookie = namespace.run(namespace::cookie).map_err(into_io)??;
    Ok((metadata.ino(), cookie))
}

/// The object that has a name in /run/netns.
#[derive(Debug)]
pub(super) enum Named {
    /// No object has the name.
    Absent,
    /// The lab's namespace is mounted.
    Present(Netns),
    /// The lab's file exists, but no namespace is mounted on it.
    Unmounted,
    /// The object belongs to another program.
    Foreign,
}

fn path(name: &NetnsName) -> PathBuf {
    Path::new(DIRECTORY).join(name.as_str())
}

/// Creates /run/netns as ip-netns(8) does: as a shared mount, so that other mount namespaces see the mounts in it.
pub(super) fn prepare_directory() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    // iproute2 holds this lock too, so only one process creates the mount.
    let lock = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let none = None::<&str>;
    let share = || mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        // The directory is not a mount point yet.
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            share()?;
        }
        other => other?,
    }
    drop(lock);
    Ok(())
}

/// Gives a namespace a name. Fails if the name exists.
pub(super) fn mount_name(name: &NetnsName, namespace: &Netns, identity: &NamespaceIdentity) -> io::Result<()> {
    let (first, path) = (identity.first_file(), path(name));
    fs::write(&first, identity.text())?;
    let linked = fs::hard_link(&first, &path);
    fs::remove_file(&first)?;
    linked?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd()));
    mount(Some(&source), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Inspects the object that has a name.
pub(super) fn inspect(name: &NetnsName, identity: &NamespaceIdentity) -> io::Result<Named> {
    inspect_path(&path(name), identity)
}

fn inspect_path(path: &Path, identity: &NamespaceIdentity) -> io::Result<Named> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Named::Absent),
        // A symbolic link, which a lab does not create.
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => return Ok(Named::Foreign),
        Err(error) => return Err(error),
    };
    if fstatfs(&file)?.filesystem_type() == NSFS_MAGIC {
        let namespace = Netns::from_file(file);
        return match inode_and_cookie(&namespace) {
            Ok(found) if found == (identity.inode, identity.cookie) => Ok(Named::Present(namespace)),
            // Without permission to enter, the identity is unknown.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            // The file may be a namespace of another kind.
            _ => Ok(Named::Foreign),
        };
    }
    let text = identity.text();
    let mut found = Vec::new();
    if file.metadata()?.is_file() {
        file.take(u64::try_from(text.len()).unwrap_or(0) + 1).read_to_end(&mut found)?;
    }
    Ok(if found == text.as_bytes() { Named::Unmounted } else { Named::Foreign })
}

/// Returns true if another program's object has the name: neither the namespace of this identity nor its unmounted
/// file.
pub(super) fn is_taken(name: &NetnsName, identity: Option<&NamespaceIdentity>) -> io::Result<bool> {
    match path(name).symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(_) => match identity {
            Some(identity) => inspect(name, identity).map(|found| matches!(found, Named::Foreign)),
            None => Ok(true),
        },
    }
}

/// Removes the name of a lab's namespace. Returns true if the name existed. The namespace itself lasts as long as
/// processes run in it.
pub(super) fn remove(name: &NetnsName, identity: &NamespaceIdentity) -> io::Result<bool> {
    match fs::remove_file(identity.first_file()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let path = path(name);
    let mut was_there = false;
    if let Named::Present(_) = inspect_path(&path, identity)? {
        umount2(&path, MntFlags::MNT_DETACH)?;
        was_there = true;
    }
    if let Named::Unmounted = inspect_path(&path, identity)? {
        fs::remove_file(&path)?;
        was_there = true;
    }
    Ok(was_there)
}
