//! Becoming another program inside a namespace of a lab.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::execvp;

use super::description::Lab;
use super::journal::Journals;
use super::name::NetnsName;
use super::{NetError, list, up};
use crate::lab::netns::gain_privileges;
use crate::lab::{LabError, Links, Netns};

/// What a namespace has of its own in /etc, as ip-netns(8) has it.
const ETC: &str = "/etc/netns";

/// Makes a lab for the time of one command: in network, mount and, without root, user namespaces of its own, with a /run of
/// its own. All of it is gone when the last process in it has ended. The lab's host is a namespace that has nothing else.
///
/// Must be called before any thread is started.
///
/// # Errors
/// Where namespaces may not be made, or the lab cannot be.
pub fn make_for_one_command(lab: &Lab) -> Result<Journals, NetError> {
    gain_privileges()?;
    let alone = || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        mount(Some("portfwd"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))?;
        Ok(())
    };
    alone().map_err(|error| LabError::Io("making namespaces for one command", error))?;
    Links::open()?.up("lo")?;
    let journals = Journals::in_directory("/run/portfwd/lab");
    up::up(lab, &journals, false)?;
    Ok(journals)
}

/// Becomes a command in a namespace of a lab, with `/sys` of that namespace and with what /etc/netns has for it. Comes back
/// only with an error.
pub fn exec(name: &NetnsName, command: &[OsString], journals: &Journals) -> NetError {
    let namespace = match list::namespace(name, journals) {
        Ok(namespace) => namespace,
        Err(error) => return error,
    };
    if let Err(error) = enter(name, &namespace) {
        return super::permitted(error, |error| NetError::Enter(name.clone(), error));
    }
    let words: Result<Vec<CString>, _> =
        command.iter().map(|word| CString::new(word.clone().into_vec()).map_err(io::Error::other)).collect();
    let program = command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    let run = words.and_then(|words| match words.first() {
        Some(first) => execvp(first, &words).map_err(io::Error::from),
        None => Err(io::ErrorKind::InvalidInput.into()),
    });
    match run {
        Ok(never) => match never {},
        Err(error) => NetError::Command(program, error),
    }
}

/// Moves the calling thread into a namespace as `ip netns exec` does.
fn enter(name: &NetnsName, namespace: &Netns) -> io::Result<()> {
    namespace.enter()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    // What is mounted here from now on is seen by nobody else; what others mount is still seen here.
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
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
