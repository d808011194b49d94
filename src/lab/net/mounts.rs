//! Mounts of a process in a namespace of a lab.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::name::NetnsName;

/// What a namespace has of its own in /etc, as ip-netns(8) has it.
const ETC: &str = "/etc/netns";

/// Gives the calling thread mounts of its own that fit the network namespace it is in, as `ip netns exec` does.
pub(super) fn set_up_mounts(name: &NetnsName) -> io::Result<()> {
    private_mounts()?;
    let none = None::<&str>;
    let read_only = statvfs("/sys").is_ok_and(|sys| sys.flags().contains(FsFlags::ST_RDONLY));
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    // Where parts of /sys are hidden from a user namespace, the kernel does not let it be mounted anew
    // (`mount_too_revealing` in fs/namespace.c): it then shows the interfaces of where we come from.
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

/// Sees to it that what is mounted from now on is seen by nobody else; what others mount is still seen.
pub(super) fn private_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    Ok(mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?)
}
