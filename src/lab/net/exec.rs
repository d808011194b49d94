//! Runs commands inside a namespace of a lab.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::description::{Kind, Lab};
use super::error::{NetError, permitted};
use super::journal::Journals;
use super::list::{self, ExecTarget};
use super::mounts::set_up_mounts;
use super::name::NetnsName;
use super::up;
use crate::engine::Choice;
use crate::lab::netns::gain_privileges;
use crate::lab::{LabError, Links};
use crate::sys::process;

/// The mount point that keeps the host namespace of a temporary lab alive.
const HOST_FILE: &str = "/run/portfwd/host";

/// Creates a lab for one command. It has its own network and mount namespaces and, without root, a user namespace.
///
/// Its own /run holds the journal and the state of its rules. The lab's host is a new, empty network namespace. All of
/// it disappears when the last process in it ends. The processes of containers end with this process and its children.
///
/// Call this before any thread is started.
///
/// # Errors
/// If namespaces cannot be created, or a step of the lab fails.
pub fn make_temporary(lab: &Lab, choice: Choice) -> Result<Journals, NetError> {
    if let Some(bridge) = lab.bridges.iter().find(|bridge| bridge.kind == Kind::Ovs) {
        return Err(NetError::OvsAlone(bridge.name.clone()));
    }
    gain_privileges()?;
    let alone = || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        mount(Some("portfwd"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))?;
        // This mount keeps the host namespace alive after the command has left it.
        fs::create_dir_all("/run/portfwd")?;
        fs::write(HOST_FILE, "")?;
        mount(Some("/proc/thread-self/ns/net"), HOST_FILE, none, MsFlags::MS_BIND, none)?;
        Ok(())
    };
    alone().map_err(|error| LabError::Io("making namespaces for one command", error))?;
    Links::open()?.up("lo")?;
    let journals = Journals::in_directory("/run/portfwd/lab").with_rule_store("/run/portfwd/state", choice);
    up::up_bound(lab, &journals)?;
    Ok(journals)
}

/// Runs a command in a namespace of a lab, with the `/sys` of that namespace and its files from /etc/netns.
///
/// The command replaces this process, so the function returns only on failure. In a process namespace the command is a
/// child process, and the function returns its exit code.
///
/// # Errors
/// If no lab has the namespace, it cannot be entered, or the command cannot be run.
pub fn exec(name: &NetnsName, command: &[OsString], journals: &Journals) -> Result<u8, NetError> {
    let target = list::exec_target(name, journals)?;
    enter(name, &target).map_err(|error| permitted(error, |error| NetError::Enter(name.clone(), error)))?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(NetError::Command(String::new(), io::ErrorKind::InvalidInput.into()));
    };
    let failed = |error| NetError::Command(program.to_string_lossy().into_owned(), error);
    if target.init.is_some() {
        // setns(2) moves only children into a process namespace.
        let status = process::run_inherited(program, arguments).map_err(failed)?;
        // The exit code of a killed process, as shells report it.
        let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
        return Ok(u8::try_from(code).unwrap_or(1));
    }
    Err(failed(process::exec(program, arguments)))
}

/// Moves the calling thread into the namespaces for a command.
fn enter(name: &NetnsName, target: &ExecTarget) -> io::Result<()> {
    if let Some(init) = &target.init {
        let here = std::env::current_dir();
        // setns(2) into a mount namespace needs a root and working directory that no other thread shares.
        unshare(CloneFlags::CLONE_FS)?;
        setns(init, CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        // If the working directory does not exist there, use the root.
        return here.and_then(std::env::set_current_dir).or_else(|_| std::env::set_current_dir("/"));
    }
    target.network.enter()?;
    if target.host { Ok(()) } else { set_up_mounts(name) }
}
