//! A sandbox for a tool that reads hostile text: user, mount and network namespaces that nothing else uses.
//!
//! - **User.** The tool is root in the sandbox. Outside, the tool has the user id of portfwd's caller, or of `nobody` if the
//!   caller is root. So the tool has no capability outside.
//! - **Files.** The root directory has the programs and libraries of the host, `/etc/protocols` and `/etc/services`, and
//!   nothing else: no home directories, no `/proc`, no sockets of name services.
//! - **Network.** The network namespace has no link to another one.
//!
//! Only a process with one thread may enter a user namespace, so a forked child makes the namespaces. The child passes their
//! files, and netlink sockets of the network namespace, to this process. This process may use the sockets, because it owns
//! the user namespace.
//!
//! Source: user_namespaces(7), pivot_root(2), unix(7), `__netlink_ns_capable` in net/netlink/af_netlink.c.

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use mnl::Bus;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Uid, chdir, mkdir, pivot_root, setgroups, setresgid, setresuid, symlinkat};

use super::ffi;
use super::netlink::wire::Kernel;
use super::process::{self, ProcessError};

/// The id of `nobody`, the overflow id of the kernel.
const NOBODY: u32 = 65534;

/// The largest address space of the tool in bytes.
const MEMORY: u64 = 4 << 30;

/// The directory that becomes the root directory of the sandbox.
const ROOT: &str = "/tmp";

/// The directories and files of the host that the sandbox has.
const SHARED: [&str; 10] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/protocols",
    "/etc/services",
    "/etc/ld.so.cache",
];

/// The steps of the child, as texts for errors.
const STEPS: [&str; 5] = [
    "give up the rights of root",
    "make a user namespace, a mount namespace and a network namespace",
    "map the user into the namespace",
    "hide the files of this host",
    "open a netlink socket",
];

/// An error of a sandbox that could not be made: the step and the reason.
#[derive(Debug, thiserror::Error)]
#[error("cannot {0}")]
pub struct SandboxError(&'static str, #[source] io::Error);

/// Namespaces that exist as long as this value or a process in them.
#[derive(Debug)]
pub struct Sandbox {
    user: File,
    mount: File,
    network: File,
    netfilter: OwnedFd,
    route: OwnedFd,
    drops_root: bool,
}

/// An entry of the root directory of the sandbox.
enum Entry {
    Directory(&'static str, PathBuf),
    File(&'static str, PathBuf),
    Link(PathBuf, PathBuf),
}

/// Everything that the child needs, made before the fork.
struct Plan {
    drops_root: bool,
    user_map: String,
    group_map: String,
    entries: Vec<Entry>,
}

impl Plan {
    fn new() -> Self {
        // In a user namespace with one user, root has the rights of that user only, and there is no other id.
        let single = fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
        let drops_root = Uid::effective().is_root() && !single;
        let (user, group) = match drops_root {
            true => (NOBODY, NOBODY),
            false => (Uid::effective().as_raw(), Gid::effective().as_raw()),
        };
        let entry = |path: &'static str| {
            let inside = Path::new(ROOT).join(path.trim_start_matches('/'));
            let meta = fs::symlink_metadata(path).ok()?;
            Some(match (meta.is_symlink(), meta.is_dir()) {
                (true, _) => Entry::Link(fs::read_link(path).ok()?, inside),
                (false, true) => Entry::Directory(path, inside),
                (false, false) => Entry::File(path, inside),
            })
        };
        let entries = SHARED.into_iter().filter_map(entry).collect();
        Self { drops_root, user_map: format!("0 {user} 1"), group_map: format!("0 {group} 1"), entries }
    }
}

/// Takes the id of `nobody` for good.
fn drop_root() -> nix::Result<()> {
    setgroups(&[])?;
    let (group, user) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    // The kernel gives the files in `/proc/self` of a process that changed its user to root.
    prctl::set_dumpable(true)
}

/// Makes a root directory with the shared entries, and nothing else.
fn hide_files(plan: &Plan) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), ROOT, Some("tmpfs"), flags, Some("size=64k,mode=0755"))?;
    chdir(ROOT)?;
    mkdir("etc", nix::sys::stat::Mode::from_bits_truncate(0o755))?;
    for entry in &plan.entries {
        match entry {
            Entry::Link(target, path) => symlinkat(target, nix::fcntl::AT_FDCWD, path)?,
            Entry::Directory(from, path) => {
                mkdir(path, nix::sys::stat::Mode::from_bits_truncate(0o755))?;
                mount(Some(*from), path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            }
            Entry::File(from, path) => {
                File::create(path)?;
                mount(Some(*from), path, none, MsFlags::MS_BIND, none)?;
            }
        }
    }
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

/// The work of the child. Returns the number of the step that failed.
fn make(plan: &Plan) -> Result<[OwnedFd; 5], (u8, io::Error)> {
    let failed = |step: u8| move |error: io::Error| (step, error);
    if plan.drops_root {
        drop_root().map_err(io::Error::from).map_err(failed(0))?;
    }
    let all = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(all).map_err(io::Error::from).map_err(failed(1))?;
    for (file, text) in [("setgroups", "deny"), ("uid_map", &plan.user_map), ("gid_map", &plan.group_map)] {
        let path = match file {
            "setgroups" => "/proc/self/setgroups",
            "uid_map" => "/proc/self/uid_map",
            _ => "/proc/self/gid_map",
        };
        fs::write(path, text).map_err(failed(2))?;
    }
    let open = |path| File::open(path).map(OwnedFd::from).map_err(failed(1));
    let [user, mount, network] = ["/proc/self/ns/user", "/proc/self/ns/mnt", "/proc/self/ns/net"].map(open);
    hide_files(plan).map_err(failed(3))?;
    let [netfilter, route] = [Bus::Netfilter, Bus::Route].map(|bus| Kernel::unbound(bus).map_err(failed(4)));
    Ok([user?, mount?, network?, netfilter?, route?])
}

/// Sends the result of the child: the number of steps and the files, or the failed step and the error number.
fn answer(socket: &UnixDatagram, result: Result<[OwnedFd; 5], (u8, io::Error)>) -> nix::Result<()> {
    let (bytes, files) = match result {
        Ok(files) => ([u8::MAX, 0, 0, 0, 0], Some(files)),
        Err((step, error)) => {
            let [a, b, c, d] = error.raw_os_error().unwrap_or(nix::libc::EIO).to_ne_bytes();
            ([step, a, b, c, d], None)
        }
    };
    let raw = files.as_ref().map(|files| files.each_ref().map(AsRawFd::as_raw_fd));
    let rights = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], rights.as_slice(), MsgFlags::empty(), None).map(drop)
}

/// Receives the result of the child.
fn receive(socket: &UnixDatagram) -> io::Result<([u8; 5], Vec<OwnedFd>)> {
    let mut bytes = [0; 5];
    let mut space = nix::cmsg_space!([i32; 5]);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            files.extend(ffi::received(&descriptors));
        }
    }
    match message.bytes {
        5 => Ok((bytes, files)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl Sandbox {
    /// Makes a sandbox.
    ///
    /// # Errors
    /// [`SandboxError`] if this host does not allow one of the namespaces.
    pub fn new() -> Result<Self, SandboxError> {
        let plan = Plan::new();
        let failed = |error| SandboxError("start a process for the sandbox", error);
        let (here, there) = UnixDatagram::pair().map_err(failed)?;
        here.set_read_timeout(Some(Duration::from_secs(30))).map_err(failed)?;
        let child = ffi::fork(|| answer(&there, make(&plan)).map_or(1, |()| 0)).map_err(failed)?;
        drop(there);
        let received = receive(&here);
        if received.is_err() {
            kill(child, Signal::SIGKILL).map_err(|error| failed(error.into()))?;
        }
        waitpid(child, None).map_err(|error| failed(error.into()))?;
        let ([step, number @ ..], files) = received.map_err(failed)?;
        if let Some(step) = STEPS.get(usize::from(step)) {
            return Err(SandboxError(step, io::Error::from_raw_os_error(i32::from_ne_bytes(number))));
        }
        let files: Result<[OwnedFd; 5], _> = files.try_into();
        let [user, mount, network, netfilter, route] =
            files.map_err(|_| failed(io::ErrorKind::UnexpectedEof.into()))?;
        let drops_root = plan.drops_root;
        Ok(Self { user: user.into(), mount: mount.into(), network: network.into(), netfilter, route, drops_root })
    }

    /// Returns a netlink socket of nf_tables in the sandbox. There is one.
    ///
    /// # Errors
    /// Fails if the kernel refuses an option of the socket.
    pub fn netfilter(&self) -> io::Result<Kernel> {
        Kernel::over(self.netfilter.try_clone()?)
    }

    /// Returns a netlink socket of rtnetlink in the sandbox. There is one.
    ///
    /// # Errors
    /// Fails if the kernel refuses an option of the socket.
    pub fn route(&self) -> io::Result<Kernel> {
        Kernel::over(self.route.try_clone()?)
    }

    /// Runs a tool of the host in the sandbox. The tool reads `input` from its standard input.
    ///
    /// # Errors
    /// Fails if the tool cannot be started. Kills the tool after `timeout`.
    pub fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        input: &[u8],
        timeout: Duration,
    ) -> Result<Output, ProcessError> {
        let prepare = || -> io::Result<_> {
            let mut stdin = File::from(memfd_create("input", MFdFlags::MFD_CLOEXEC)?);
            stdin.write_all(input)?;
            io::Seek::rewind(&mut stdin)?;
            Ok((stdin, self.user.try_clone()?, self.mount.try_clone()?, self.network.try_clone()?))
        };
        let failed = |error| ProcessError::Run(program.to_owned(), error);
        let (stdin, user, mount, network) = prepare().map_err(failed)?;
        let drops_root = self.drops_root;
        let enter = move || {
            if drops_root {
                drop_root()?;
            }
            setns(user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
            setns(mount.as_fd(), CloneFlags::CLONE_NEWNS)?;
            setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
            setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
            for nothing in [Resource::RLIMIT_CORE, Resource::RLIMIT_FSIZE] {
                setrlimit(nothing, 0, 0)?;
            }
            Ok(prctl::set_no_new_privs()?)
        };
        process::run_prepared(program, arguments, stdin, timeout, enter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> Option<Sandbox> {
        match Sandbox::new() {
            Ok(sandbox) => Some(sandbox),
            Err(error) => {
                let message = format!("SKIPPED: needs user namespaces: {error}");
                assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{message}");
                eprintln!("{message}");
                None
            }
        }
    }

    fn shell(sandbox: &Sandbox, script: &str) -> String {
        let path = process::find("sh").expect("a shell");
        let done = sandbox.run(&path, &["-c", script], b"input\n", Duration::from_secs(30)).expect("it runs");
        String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()
    }

    #[test]
    fn a_tool_in_the_sandbox_sees_programs_and_no_other_files() {
        let Some(sandbox) = sandbox() else { return };
        assert_eq!(shell(&sandbox, "cat; id -u; pwd"), "input\n0\n/\n");
        let listed = shell(&sandbox, "ls / /etc");
        for hidden in ["home", "root", "proc", "sys", "dev", "run", "var", "passwd", "hosts", "nsswitch.conf"] {
            assert!(!listed.lines().any(|line| line == hidden), "{hidden}: {listed}");
        }
        assert!(listed.lines().any(|line| line == "usr"), "{listed}");
        assert!(shell(&sandbox, "cat /etc/passwd").contains("No such file"));
        assert!(shell(&sandbox, "echo x > /usr/x").contains("denied") || !Uid::effective().is_root());
    }

    #[test]
    fn the_sockets_and_tools_of_a_sandbox_share_its_network_namespace() {
        let (Some(one), Some(other)) = (sandbox(), sandbox()) else { return };
        let links = |sandbox: &Sandbox| {
            use super::super::netlink::Socket;
            use super::super::rtnetlink::{NewLink, Rtnetlink};
            let links = Rtnetlink::over(Socket::over(Box::new(sandbox.route().expect("a socket"))));
            (links.add_bridge(NewLink { name: "br-test", mac: None }), links.links().expect("links").objects.len())
        };
        assert!(matches!(links(&one), (Ok(()), 2)));
        assert!(matches!(links(&other), (Ok(()), 2)), "a sandbox has links of its own");
        assert!(std::fs::metadata("/sys/class/net/br-test").is_err());
    }

    #[test]
    fn a_tool_is_killed_after_its_time() {
        let Some(sandbox) = sandbox() else { return };
        let path = process::find("sleep").expect("sleep");
        let done = sandbox.run(&path, &["60"], b"", Duration::from_millis(100));
        assert!(matches!(done, Err(ProcessError::Run(_, error)) if error.kind() == io::ErrorKind::TimedOut));
    }
}
