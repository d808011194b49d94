//! Becoming another program inside a namespace of a lab.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::description::{Kind, Lab};
use super::error::{NetError, permitted};
use super::journal::Journals;
use super::list::{self, Room};
use super::mounts::surroundings;
use super::name::NetnsName;
use super::up;
use crate::engine::Choice;
use crate::lab::netns::gain_privileges;
use crate::lab::{LabError, Links};
use crate::sys::process;

/// Where the host of a lab for one command is held.
const HOST: &str = "/run/portfwd/host";

/// Makes a lab for the time of one command: in network, mount and, without root, user namespaces of its own, with a /run of
/// its own, where the state of its rules is too. All of it is gone when the last process in it has ended; those of containers
/// end when this one and all that it starts have. The lab's host is a namespace that has nothing else.
///
/// Must be called before any thread is started.
///
/// # Errors
/// Where namespaces may not be made, or the lab cannot be.
pub fn make_for_one_command(lab: &Lab, choice: Choice) -> Result<Journals, NetError> {
    if let Some(bridge) = lab.bridges.iter().find(|bridge| bridge.kind == Kind::Ovs) {
        return Err(NetError::OvsAlone(bridge.name.clone()));
    }
    gain_privileges()?;
    let alone = || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        mount(Some("portfwd"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))?;
        // The host is to be there as long as these mounts are: the command moves out of it.
        fs::create_dir_all("/run/portfwd")?;
        fs::write(HOST, "")?;
        mount(Some("/proc/thread-self/ns/net"), HOST, none, MsFlags::MS_BIND, none)?;
        Ok(())
    };
    alone().map_err(|error| LabError::Io("making namespaces for one command", error))?;
    Links::open()?.up("lo")?;
    let journals = Journals::in_directory("/run/portfwd/lab").with_rules("/run/portfwd/state", choice);
    up::up_bound(lab, &journals)?;
    Ok(journals)
}

/// Runs a command in a namespace of a lab, with `/sys` of that namespace and with what /etc/netns has for it: in our place, so
/// that this comes back only with an error; in a process namespace as a child, whose exit code it gives.
///
/// # Errors
/// Where there is no such namespace, it cannot be entered, or the command not be run.
pub fn exec(name: &NetnsName, command: &[OsString], journals: &Journals) -> Result<u8, NetError> {
    let room = list::room(name, journals)?;
    enter(name, &room).map_err(|error| permitted(error, |error| NetError::Enter(name.clone(), error)))?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(NetError::Command(String::new(), io::ErrorKind::InvalidInput.into()));
    };
    let failed = |error| NetError::Command(program.to_string_lossy().into_owned(), error);
    if room.first.is_some() {
        // Only a child of ours is in it.
        let status = process::run_inherited(program, arguments).map_err(failed)?;
        // As shells say it.
        let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
        return Ok(u8::try_from(code).unwrap_or(1));
    }
    Err(failed(process::exec(program, arguments)))
}

/// Moves the calling thread to where a command is to be run.
fn enter(name: &NetnsName, room: &Room) -> io::Result<()> {
    if let Some(first) = &room.first {
        let here = std::env::current_dir();
        // A mount namespace is entered with a root and a directory that no other thread has.
        unshare(CloneFlags::CLONE_FS)?;
        setns(first, CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        // Where it is not there, the root is as good as any.
        return here.and_then(std::env::set_current_dir).or_else(|_| std::env::set_current_dir("/"));
    }
    room.network.enter()?;
    if room.host { Ok(()) } else { surroundings(name) }
}
