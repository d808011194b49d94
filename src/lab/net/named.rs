//! Network namespaces with names: files in /run/netns that a namespace is mounted on, as ip-netns(8) makes them.
//!
//! ```text
//! a namespace without a name ─▶ a file with our word, linked to its name ─▶ the namespace mounted on it
//! ```
//! The link is refused where the name is there already. Killed in between, the file with our word is left, which
//! [`remove`] knows. Source for the rest: `netns_add` in iproute2's ip/ipnetns.c.

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
use crate::lab::error::plain;
use crate::sys::namespace::{self, DIRECTORY};

/// What the file is told by that the namespace is mounted on.
const HEAD: &str = "portfwd lab ";

/// By what a namespace of ours is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceMark {
    /// The random word in the file that it is mounted on.
    word: String,
    /// The number of its file, which is used again when it is gone.
    inode: u64,
    /// The kernel's cookie, which is never used again until the next boot; none before Linux 5.14.
    cookie: Option<u64>,
}

impl NamespaceMark {
    /// The mark of a namespace that has no name yet.
    pub(super) fn new(namespace: &Netns, word: String) -> io::Result<Self> {
        let (inode, cookie) = identity(namespace)?;
        Ok(Self { word, inode, cookie })
    }

    fn text(&self) -> String {
        format!("{HEAD}{}\n", self.word)
    }

    fn first_file(&self) -> PathBuf {
        Path::new(DIRECTORY).join(format!(".portfwd-{}", self.word))
    }
}

/// What is known of a namespace besides its name.
fn identity(namespace: &Netns) -> io::Result<(u64, Option<u64>)> {
    let metadata = File::from(namespace.as_fd().try_clone_to_owned()?).metadata()?;
    let cookie = namespace.run(namespace::cookie).map_err(plain)?;
    Ok((metadata.ino(), cookie))
}

/// What has a name.
#[derive(Debug)]
pub(super) enum Named {
    /// Nothing.
    Nothing,
    /// Our namespace.
    Ours(Netns),
    /// Our file, with no namespace on it.
    Half,
    /// Something that is not ours.
    Foreign,
}

fn path(name: &NetnsName) -> PathBuf {
    Path::new(DIRECTORY).join(name.as_str())
}

/// Makes the directory as ip-netns(8) does: one mount that is shared, so that other mount namespaces see what is mounted
/// and unmounted there.
pub(super) fn prepare() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    // iproute2 holds this lock too, so that two do not mount it both.
    let lock = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let none = None::<&str>;
    let share = || mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        // It is no mount of its own yet.
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            share()?;
        }
        other => other?,
    }
    drop(lock);
    Ok(())
}

/// Gives a namespace a name.
pub(super) fn publish(name: &NetnsName, namespace: &Netns, mark: &NamespaceMark) -> io::Result<()> {
    let (first, path) = (mark.first_file(), path(name));
    fs::write(&first, mark.text())?;
    let linked = fs::hard_link(&first, &path);
    fs::remove_file(&first)?;
    linked?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd()));
    mount(Some(&source), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Looks at what has a name.
pub(super) fn look(name: &NetnsName, mark: &NamespaceMark) -> io::Result<Named> {
    look_at(&path(name), mark)
}

fn look_at(path: &Path, mark: &NamespaceMark) -> io::Result<Named> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Named::Nothing),
        // A link, or what not.
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => return Ok(Named::Foreign),
        Err(error) => return Err(error),
    };
    if fstatfs(&file)?.filesystem_type() == NSFS_MAGIC {
        let namespace = Netns::held(file);
        return match identity(&namespace) {
            Ok(found) if found == (mark.inode, mark.cookie) => Ok(Named::Ours(namespace)),
            // Who may not enter it cannot know.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            // It may be one of another kind.
            _ => Ok(Named::Foreign),
        };
    }
    let text = mark.text();
    let mut found = Vec::new();
    if file.metadata()?.is_file() {
        file.take(u64::try_from(text.len()).unwrap_or(0) + 1).read_to_end(&mut found)?;
    }
    Ok(if found == text.as_bytes() { Named::Half } else { Named::Foreign })
}

/// Whether a name is taken by something that is neither the namespace of this mark nor what is left of making it.
pub(super) fn is_taken(name: &NetnsName, mark: Option<&NamespaceMark>) -> io::Result<bool> {
    match path(name).symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(_) => match mark {
            Some(mark) => look(name, mark).map(|found| matches!(found, Named::Foreign)),
            None => Ok(true),
        },
    }
}

/// Takes the name from our namespace, which ends it unless something still runs in it; says whether anything was there.
pub(super) fn remove(name: &NetnsName, mark: &NamespaceMark) -> io::Result<bool> {
    match fs::remove_file(mark.first_file()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let path = path(name);
    let mut was_there = false;
    if let Named::Ours(_) = look_at(&path, mark)? {
        umount2(&path, MntFlags::MNT_DETACH)?;
        was_there = true;
    }
    if let Named::Half = look_at(&path, mark)? {
        fs::remove_file(&path)?;
        was_there = true;
    }
    Ok(was_there)
}
