//! The only place that starts processes, and the processes in `/proc`.
//!
//! Tools are found in fixed directories, never by `PATH`, and run without a shell. Their environment is empty but for `PATH`
//! and `LC_ALL`: variables such as `XTABLES_LIBDIR` would let the caller choose the code that root runs.
//!
//! Source: proc_pid_stat(5), pidfd_open(2).

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ffi;

/// The directories of tools.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];

/// The time limit of a tool: `iptables-restore` takes seconds for 60,000 rules.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The size limit of each output of a tool, in bytes. A million rules of `iptables-save` are about 100 MB.
const MAX_OUTPUT: usize = 1 << 28;

/// An error of a tool that is missing or cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The tool is not installed.
    #[error("there is no `{0}` in /usr/sbin, /sbin, /usr/bin, /bin or /usr/local/sbin")]
    Missing(String),
    /// The tool could not be started, or did not end.
    #[error("cannot run `{}`", .0.display())]
    Run(PathBuf, #[source] io::Error),
}

/// Returns the path of a tool.
///
/// # Errors
/// Fails if the tool is not installed.
pub fn find(name: &str) -> Result<PathBuf, ProcessError> {
    let mut paths = DIRECTORIES.into_iter().map(|directory| Path::new(directory).join(name));
    paths.find(|path| path.is_file()).ok_or_else(|| ProcessError::Missing(name.to_owned()))
}

/// Runs a tool to its end and returns its output. The tool holds `stdin` open until it ends, even if this process dies.
///
/// # Errors
/// Fails if the tool cannot be started. Kills the tool if it does not close its outputs within 10 minutes, or prints more than
/// 256 MiB.
pub fn run(program: &Path, arguments: &[&str], stdin: impl Into<Stdio>) -> Result<Output, ProcessError> {
    let command = &mut tool(program, arguments);
    output(command.stdin(stdin), TIMEOUT).map_err(|error| ProcessError::Run(program.to_owned(), error))
}

/// Runs a tool as [`run`] does, for at most `timeout`. The new process calls `prepare` first; see [`ffi::before_exec`].
pub(super) fn run_prepared(
    program: &Path,
    arguments: &[&str],
    stdin: File,
    timeout: Duration,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> Result<Output, ProcessError> {
    let mut command = tool(program, arguments);
    ffi::before_exec(&mut command, prepare);
    output(command.stdin(stdin), timeout).map_err(|error| ProcessError::Run(program.to_owned(), error))
}

fn tool(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    // A process group of its own: a signal to the group of this process, such as Ctrl-C, lets the tool finish.
    command.process_group(0).args(arguments).current_dir("/");
    command.env_clear().env("PATH", DIRECTORIES.join(":")).env("LC_ALL", "C");
    command
}

fn output(command: &mut Command, timeout: Duration) -> io::Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let read = read_outputs(&mut child, Instant::now() + timeout);
    if read.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let [stdout, stderr] = read?;
    Ok(Output { status, stdout, stderr })
}

/// Reads both outputs of a child until the child closes them.
fn read_outputs(child: &mut Child, deadline: Instant) -> io::Result<[Vec<u8>; 2]> {
    let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    let mut pipes = pipes.map(|pipe| pipe.map(File::from));
    for pipe in pipes.iter().flatten() {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let (mut found, mut chunk) = ([Vec::new(), Vec::new()], vec![0; 1 << 16]);
    while pipes.iter().any(Option::is_some) {
        wait_until(deadline, pipes.iter().flatten().map(AsFd::as_fd))?;
        for (pipe, found) in pipes.iter_mut().zip(&mut found) {
            match pipe.as_mut().map(|pipe| pipe.read(&mut chunk)) {
                None => {}
                Some(Ok(0)) => *pipe = None,
                Some(Ok(length)) if found.len() + length > MAX_OUTPUT => {
                    return Err(io::Error::other("the output is longer than 256 MiB"));
                }
                Some(Ok(length)) => found.extend(chunk.get(..length).unwrap_or_default()),
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Some(Err(error)) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// Waits until a file is readable, or a process has ended.
fn wait_until<'a>(deadline: Instant, files: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<()> {
    let mut files: Vec<_> = files.into_iter().map(|file| PollFd::new(file, PollFlags::POLLIN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut files, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Starts this program again in the namespaces of the calling thread, even if the program's file was replaced. The input and
/// output are pipes.
///
/// # Errors
/// Fails if the system call fails.
pub fn respawn_self(arguments: impl IntoIterator<Item = OsString>) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("portfwd").args(arguments).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
}

/// Starts a program of the user in the namespaces of the calling thread, without input and output. `PATH` is
/// /usr/local/bin and the directories of tools.
///
/// # Errors
/// Fails if there is no such program, or if it cannot be started.
pub fn start_detached(program: &OsString, arguments: &[OsString]) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/");
    command.env("PATH", format!("/usr/local/bin:{}", DIRECTORIES.join(":")));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Runs a program of the user to its end, with the input, output and environment of this process.
///
/// # Errors
/// Fails if there is no such program, or if it cannot be started.
pub fn run_inherited(program: &OsString, arguments: &[OsString]) -> io::Result<ExitStatus> {
    Command::new(program).args(arguments).status()
}

/// Replaces this process with a program of the user, with default signals. Returns only on failure.
pub fn exec(program: &OsString, arguments: &[OsString]) -> io::Error {
    Command::new(program).args(arguments).exec()
}

/// A process by its pidfd, which never refers to another process.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// Opens a process by its PID. Returns `None` if there is no such process.
    ///
    /// # Errors
    /// Fails if the system call fails.
    pub fn open(process: u32) -> io::Result<Option<Self>> {
        match i32::try_from(process).map(ffi::pidfd_open) {
            Ok(Ok(process)) => Ok(Some(Self(process))),
            Ok(Err(error)) if error.raw_os_error() != Some(nix::libc::ESRCH) => Err(error),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Kills the process, if it still runs.
    ///
    /// # Errors
    /// Fails if the process may not be killed.
    pub fn kill(&self) -> io::Result<()> {
        match ffi::pidfd_kill(self.as_fd()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for the process to end. Returns true if it has ended.
    pub fn ended_within(&self, timeout: Duration) -> bool {
        wait_until(Instant::now() + timeout, [self.as_fd()]).is_ok()
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The status of a process in `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The PID of the parent process.
    pub parent: u32,
    /// The start time in clock ticks since boot. PIDs are reused, so they give no order.
    pub start: u64,
    /// True if the process has ended and its parent has not waited for it.
    pub over: bool,
}

impl Stat {
    /// Reads the status of a process. Returns `None` if there is no such process.
    pub fn read(process: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The process name may contain parentheses.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let over = matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        // The start time is field 22; the first four are the PID, the name, the state and the parent.
        Some(Self { parent, start: fields.nth(22 - 5)?.parse().ok()?, over })
    }
}

/// Returns the PIDs of the visible processes, in no order.
///
/// # Errors
/// Fails if `/proc` cannot be read.
pub fn numbers() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_runs_with_an_empty_environment_and_both_outputs_are_read() {
        let shell = find("sh").expect("a shell");
        let script = "env | cut -d= -f1 | sort; pwd; echo bad >&2; cat; exit 3";
        let done = run(&shell, &["-c", script], Stdio::null()).expect("it runs");
        let stdout = String::from_utf8(done.stdout).expect("text");
        assert_eq!((done.status.code(), done.stderr.as_slice()), (Some(3), &b"bad\n"[..]));
        assert_eq!(stdout.replace("_\n", ""), "LC_ALL\nPATH\nPWD\n/\n");
        assert!(matches!(find("no-such-tool"), Err(ProcessError::Missing(name)) if name == "no-such-tool"));
        assert!(matches!(run(Path::new("/no/such"), &[], Stdio::null()), Err(ProcessError::Run(..))));
    }

    #[test]
    fn a_long_output_is_read_whole() {
        let script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2";
        let done = run(&find("sh").expect("a shell"), &["-c", script], Stdio::null()).expect("it runs");
        assert_eq!((done.stdout.len(), done.stderr.len()), (300_000, 300_000));
    }

    #[test]
    fn a_tool_that_does_not_end_is_killed() {
        let mut command = Command::new(find("sleep").expect("sleep"));
        let start = Instant::now();
        let done = output(command.arg("60").stdin(Stdio::null()), Duration::from_millis(100));
        assert_eq!(done.expect_err("killed").kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_handle_refers_to_one_process() {
        let mut child = Command::new(find("sleep").expect("sleep")).arg("60").spawn().expect("started");
        let handle = Handle::open(child.id()).expect("opened").expect("it runs");
        assert!(!handle.ended_within(Duration::ZERO));
        handle.kill().expect("killed");
        assert!(handle.ended_within(Duration::from_secs(30)));
        assert!(!child.wait().expect("ended").success());
        handle.kill().expect("gone already");
        assert!(Handle::open(child.id()).expect("no error").is_none());
        assert!(Handle::open(u32::MAX).expect("no error").is_none());
    }

    #[test]
    fn start_times_order_processes() {
        let stat = Stat::read(std::process::id()).expect("this process");
        assert!(!stat.over && Stat::read(1).expect("there is a first process").start <= stat.start);
        assert_eq!(stat.parent, std::os::unix::process::parent_id());
        assert!(Stat::read(stat.parent).is_none_or(|parent| parent.start <= stat.start));
        assert_eq!(Stat::read(u32::MAX), None);
        assert!(numbers().expect("readable").any(|number| number == std::process::id()));
    }

    #[test]
    fn a_process_name_may_contain_parentheses() {
        let text = "7 (a) Z 1 (b c) Z 3 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 812 0 0";
        assert_eq!(Stat::parse(text), Some(Stat { parent: 3, start: 812, over: true }));
        for end in 0..text.len() - 6 {
            assert!(Stat::parse(&text[..end]).is_none_or(|stat| stat.start != 812), "{end}");
        }
    }
}
