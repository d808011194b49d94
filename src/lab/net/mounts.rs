//! Mounts for a process in a namespace of a lab.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::name::NetnsName;

/// The directory with the files that replace those of /etc in a namespace (ip-netns(8)).
const ETC: &str = "/etc/netns";

/// Gives the calling thread its own mounts that fit its network namespace, as `ip netns exec` does.
pub(super) fn set_up_mounts(name: &NetnsName) -> io::Result<()> {
    private_mounts()?;
    let none = None::<&str>;
    let read_only = statvfs("/sys").is_ok_and(|sys| sys.flags().contains(FsFlags::ST_RDONLY));
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    // If parts of /sys are hidden from a user namespace, the kernel refuses a new mount of it (`mount_too_revealing` in
    // fs/namespace.c). /sys then shows the interfaces of the previous namespace.
    let _ = mount(Some(name.as_str()), "/sys", Some("sysfs"), flags, none);
    let Ok(files) = fs::read_dir(Path::new(ETC).join(name.as_str())) else { return Ok(()) };
    for file in files {
        let file = file?;
        let over = Path::new("/etc").join(file.file_name());
        if over.exists() {
            mount(Some(&file.path()), &over, none, MsFlags::MS_BIND, none)?;
        }
    }
    Ok(())
}

/// Gives the calling thread a mount namespace. Later mounts in it are private; mounts of other processes are still
/// propagated to it.
pub(super) fn private_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    Ok(mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?)
}
