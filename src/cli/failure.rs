//! Prints errors with a help text, and maps each error to an exit code. No other file maps errors to exit codes.

use std::io;
use std::time::Duration;

use super::output::Output;
use crate::config::source::ReadError;
use crate::config::{Problem, ProblemKind};
use crate::engine::EngineError;
use crate::iptables::command::CommandError;
use crate::iptables::compile::CompileError as ChainError;
use crate::iptables::save::SaveError;
use crate::lab::LabError;
use crate::lab::net::{NetError, OvsError};
use crate::model::error::printable;
use crate::nft::transaction::{CommitError, KernelError};
use crate::store::StateError;
use crate::sys::namespace::NamespaceError;
use crate::sys::process::ProcessError;
use crate::sys::sysctl::{self, SysctlError};

/// Exit code: the command failed, and changed nothing.
pub const FAILED: u8 = 1;
/// Exit code: the command line is wrong, or a rule set is invalid.
pub const USAGE: u8 = 2;
/// Exit code: `plan --detailed-exitcode` found changes.
pub const CHANGES: u8 = 3;
/// Exit code: `audit --fail-on` found a finding of the given severity or a higher one, or unreadable rules.
pub const FOUND: u8 = 4;
/// Exit code: a permission or a kernel feature is missing.
pub const MISSING: u8 = 5;
/// Exit code: portfwd refused a conflict.
pub const CONFLICT: u8 = 6;
/// Exit code: another process holds a lock or keeps changing rules; try again.
pub const BUSY: u8 = 75;

/// An error that the command line itself detects, not the library.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Mistakes in rule sets.
    #[error("{} mistakes in the rule sets", .0.len())]
    Problems(Vec<Problem>),
    /// Forwards that would take the port of a local service or of the user's SSH connection.
    #[error("{all} forwards would take a port that is in use")]
    Taken {
        /// The first few refused forwards.
        problems: Vec<Problem>,
        /// The number of all refused forwards.
        all: usize,
    },
    /// An invalid command line.
    #[error("{what}")]
    Usage {
        /// The message: what failed, on which object, and why.
        what: String,
        /// The help text: what to type instead.
        help: String,
    },
    /// A forward that this kernel does not support.
    #[error("{what}")]
    Unsupported {
        /// The message: what failed, on which object, and why.
        what: String,
        /// The help text: what to do instead.
        help: String,
    },
    /// An argument that names no existing object, or a command that finds no object.
    #[error("{what}")]
    NotFound {
        /// The message: what failed, on which object, and why.
        what: String,
        /// The help text: commands that show what exists.
        help: String,
    },
    /// A change that was rolled back because it was not confirmed.
    #[error("{what}")]
    Unconfirmed {
        /// The message: what failed, on which object, and why.
        what: String,
    },
    /// The number of probes with an unexpected result, and the number of all probes.
    #[error("{0} of {1} probes got an unexpected result")]
    Probes(usize, usize),
}

/// Prints an error, and returns the exit code for the error.
pub fn report(error: &anyhow::Error, output: &mut Output<'_>) -> u8 {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // A reader such as `head` closed the pipe. This is no error.
            return 0;
        }
        if output.done {
            // Returns 0, because exit code 1 would mean that nothing was changed.
            let written = writeln!(output.stderr, "note: the change is done, but could not be printed: {error}");
            drop(written);
            return 0;
        }
    }
    let (code, help) = code_and_help(error);
    match error.downcast_ref() {
        Some(Failure::Problems(problems)) => {
            print_problems(problems, &format!("found {} mistakes; nothing was applied", problems.len()), output);
            return code;
        }
        Some(Failure::Taken { problems, all }) => {
            let more = all.saturating_sub(problems.len());
            let more = if more > 0 { format!("and {more} more; ") } else { String::new() };
            print_problems(problems, &format!("{more}{all} forwards refused; nothing was changed"), output);
            return code;
        }
        _ => {}
    }
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Skips a cause whose text is already at the end of the message.
        if !text.ends_with(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    // Error texts may contain file names and other untrusted text.
    let text = printable(&text);
    let problem = Problem { kind: ProblemKind::Invalid, what: text, location: None, related: None, help };
    let written = write!(output.stderr, "{}", problem.render(output.color));
    drop(written);
    code
}

/// Prints mistakes. If there are several, also prints the line `summary`.
fn print_problems(problems: &[Problem], summary: &str, output: &mut Output<'_>) {
    for (index, problem) in problems.iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        let written = write!(output.stderr, "{gap}{}", problem.render(output.color));
        drop(written);
    }
    if problems.len() > 1 {
        let written = writeln!(output.stderr, "\n{summary}");
        drop(written);
    }
}

/// Returns the exit code of an error, and its help text.
fn code_and_help(error: &anyhow::Error) -> (u8, String) {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return of_failure(failure);
    }
    if let Some(error) = error.downcast_ref::<EngineError>() {
        return of_engine(error);
    }
    if let Some(error) = error.downcast_ref::<ReadError>() {
        let help = match error {
            ReadError::Io(..) => "give the path of a rule-set file, or of a folder of rule-set files",
            ReadError::NotAFile(_) | ReadError::EmptyFolder(_) => {
                "give a file, or a folder with files that end in `.toml`"
            }
            ReadError::TooLarge(_) => "split it into several files",
            ReadError::NotText { .. } => "save it as UTF-8",
        };
        return (USAGE, help.into());
    }
    if let Some(error) = error.downcast_ref::<NamespaceError>() {
        return match error {
            NamespaceError::Name(_) => (USAGE, "give a name from `ip netns list`".into()),
            NamespaceError::Missing(_) => (USAGE, "create it with `ip netns add`".into()),
            NamespaceError::NotPermitted(..) => (MISSING, "run as root, or with CAP_SYS_ADMIN".into()),
            NamespaceError::Io(..) => (FAILED, "see `ip netns list`".into()),
        };
    }
    if let Some(error) = error.downcast_ref::<LabError>() {
        return of_lab(error);
    }
    if let Some(error) = error.downcast_ref::<NetError>() {
        return of_net(error);
    }
    (FAILED, "nothing was changed".into())
}

fn of_failure(failure: &Failure) -> (u8, String) {
    match failure {
        Failure::Problems(problems) => {
            let any = |kind| problems.iter().any(|problem| problem.kind == kind);
            let code = match (any(ProblemKind::Invalid), any(ProblemKind::Conflict)) {
                (true, _) => USAGE,
                (false, true) => CONFLICT,
                (false, false) => MISSING,
            };
            (code, String::new())
        }
        Failure::Taken { .. } => (CONFLICT, String::new()),
        Failure::Usage { help, .. } => (USAGE, help.clone()),
        Failure::Unsupported { help, .. } => (MISSING, help.clone()),
        Failure::NotFound { help, .. } => (FAILED, help.clone()),
        Failure::Unconfirmed { .. } => {
            (FAILED, "check `portfwd list`; correct the rule sets, or confirm in time".into())
        }
        Failure::Probes(..) => (FAILED, "each of them is shown above with the expected result".into()),
    }
}

fn of_engine(error: &EngineError) -> (u8, String) {
    match error {
        EngineError::Kernel(error) | EngineError::Commit(CommitError::Kernel(error)) => of_kernel(error),
        EngineError::Commit(CommitError::TooLarge(_)) => {
            (MISSING, "run as root; an unprivileged socket can send about 200 KB at once".into())
        }
        EngineError::Commit(CommitError::Unheard(_)) => {
            (FAILED, "`portfwd list` shows the live rules; the next change repairs drift".into())
        }
        EngineError::Commit(CommitError::Stale) | EngineError::Busy => (BUSY, "try again".into()),
        EngineError::Unconfirmed(left) => {
            let left = seconds_text(*left);
            (BUSY, format!("`portfwd confirm` keeps it, or wait {left} for its rollback; nothing was changed"))
        }
        EngineError::Refused { error, .. } => match error.raw_os_error() {
            // The kernel lacks an nf_tables expression, or cannot load its module.
            Some(libc_errno::ENOENT | libc_errno::EOPNOTSUPP) => {
                (MISSING, "this kernel lacks a part of nf_tables that the rules need; `-v` shows the messages".into())
            }
            _ => (FAILED, "nothing was changed".into()),
        },
        EngineError::State(StateError::Busy(_)) => (BUSY, "try again when that process has ended".into()),
        EngineError::State(StateError::Io(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            (MISSING, "run as root, or choose your own directory with `--state-dir`".into())
        }
        EngineError::Undecided(_) => {
            (FAILED, "the live rules did not change; the next change may apply this one too".into())
        }
        EngineError::State(StateError::Version(..)) => {
            (FAILED, "use the version of portfwd that wrote the state".into())
        }
        EngineError::State(StateError::Damaged(..)) => {
            let help = "the live rules did not change; `portfwd restore --from-kernel` rebuilds the state from them";
            (FAILED, help.into())
        }
        EngineError::Unknown(..) => {
            let help = "nothing was changed; `portfwd restore --from-kernel` rebuilds the state, `portfwd flush` removes the rules";
            (FAILED, help.into())
        }
        EngineError::Nothing(_) => (FAILED, "nothing was changed; apply the rule sets".into()),
        EngineError::Closed(_) => (FAILED, "check the sysctl, and apply again".into()),
        EngineError::Sysctl(SysctlError { name, error, .. }) => {
            let code = match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => MISSING,
                _ => FAILED,
            };
            let help = if sysctl::is_route_localnet(name) {
                "leave `loopback` out, or run where this sysctl can be written".into()
            } else {
                format!("set `{name}` yourself, and write `ip_forward = \"keep\"` under `[settings]`")
            };
            (code, help)
        }
        EngineError::Route(_, error) | EngineError::Interfaces(error)
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            (MISSING, "run where rtnetlink requests are permitted".into())
        }
        EngineError::Namespace(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (MISSING, "run where sockets and `/proc` can be opened".into())
        }
        EngineError::Compile(_) => (CONFLICT, "give all rule sets the same `priority`, or leave it out".into()),
        EngineError::Limit(ChainError::Limit(_, limit)) => (MISSING, limit.help.clone()),
        EngineError::Iptables(error) => of_iptables(error),
        EngineError::NoIpv6(_) => (MISSING, "install the package `iptables`, or remove the IPv6 rules".into()),
        EngineError::NotRolledBack { .. } | EngineError::Left { .. } => {
            (FAILED, "see `portfwd plan`, and apply again".into())
        }
        EngineError::Differs(_) | EngineError::Unchecked(_) => (FAILED, "see `portfwd plan`".into()),
        EngineError::Commit(CommitError::Refused { .. })
        | EngineError::State(_)
        | EngineError::Namespace(_)
        | EngineError::Input(_)
        | EngineError::Interfaces(_)
        | EngineError::Route(..) => (FAILED, "nothing was changed".into()),
    }
}

/// Returns a time as text, rounded up: `1 second`, `60 seconds`.
pub fn seconds_text(time: Duration) -> String {
    match seconds_rounded_up(time) {
        1 => "1 second".into(),
        seconds => format!("{seconds} seconds"),
    }
}

/// Returns a time in seconds, rounded up so that only a zero time is 0.
pub fn seconds_rounded_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Error numbers as constants, because patterns need constants.
mod libc_errno {
    pub const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;
    pub const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;
}

fn of_kernel(error: &KernelError) -> (u8, String) {
    match error {
        KernelError::NotPermitted(_) => (MISSING, "run as root, or with CAP_NET_ADMIN".into()),
        KernelError::NoNfTables(_) => (MISSING, "load the module `nf_tables`, or use a kernel that has it".into()),
        KernelError::Socket(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (MISSING, "run as root, or with CAP_NET_ADMIN".into())
        }
        KernelError::Interrupted => (BUSY, "try again".into()),
        KernelError::Unreadable(_) | KernelError::Socket(..) => (FAILED, "nothing was changed".into()),
    }
}

fn of_iptables(error: &CommandError) -> (u8, String) {
    match error {
        CommandError::Process(ProcessError::Missing(_)) => (MISSING, "install the package `iptables`".into()),
        CommandError::Busy => (BUSY, "try again when that program has ended".into()),
        CommandError::NotPermitted(_) => {
            (MISSING, "run as root; iptables-legacy needs that, iptables-nft only CAP_NET_ADMIN".into())
        }
        CommandError::NoKernel(_) => (MISSING, "load the modules `ip_tables` and `ip6_tables`, or use nftables".into()),
        CommandError::Unreadable(SaveError::Incompatible(table)) => {
            (FAILED, format!("see `nft list table ip {table}`: not all of its rules were made with iptables"))
        }
        CommandError::Refused { line, .. } if line.starts_with("`-X ") => (
            FAILED,
            "another program's rule jumps to this chain: find it with `iptables-save`; nothing was changed".into(),
        ),
        CommandError::Unreadable(_) | CommandError::Refused { .. } | CommandError::Process(ProcessError::Run(..)) => {
            (FAILED, "nothing was changed; `-v` shows the version of iptables".into())
        }
    }
}

fn of_lab(error: &LabError) -> (u8, String) {
    match error {
        LabError::NotAllowed(_) => {
            (MISSING, "run as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)".into())
        }
        LabError::Engine(error) => of_engine(error),
        LabError::Topology(_) => (USAGE, "`portfwd try --help` describes the network".into()),
        LabError::Link(..) | LabError::Io(..) => (FAILED, "the throw-away network was removed".into()),
    }
}

/// Returns the exit code and the help text if rules or Open vSwitch made a step fail. Returns `None` for other causes.
fn of_step(error: &io::Error) -> Option<(u8, String)> {
    let error = error.get_ref()?;
    if let Some(error) = error.downcast_ref::<EngineError>() {
        return Some(of_engine(error));
    }
    Some(match error.downcast_ref::<OvsError>()? {
        OvsError::Command(ProcessError::Missing(_)) => (MISSING, "install the package `openvswitch-switch`".into()),
        OvsError::NoDatabase(_) | OvsError::NoDaemon(_) => {
            let help = "start it with `systemctl start openvswitch-switch`, or set OVS_RUNDIR to its directory";
            (MISSING, help.into())
        }
        OvsError::Elsewhere(_) => (MISSING, "run in the network namespace of ovs-vswitchd".into()),
        OvsError::Command(_) | OvsError::Refused(_) => return None,
    })
}

fn of_net(error: &NetError) -> (u8, String) {
    if let NetError::Step { error, .. } | NetError::Undo(_, error) | NetError::Inspect(error) = error
        && let Some(result) = of_step(error)
    {
        return result;
    }
    match error {
        NetError::Step { left: None, .. } => (FAILED, "the earlier steps were undone".into()),
        NetError::Step { .. } | NetError::Undo(..) => {
            (FAILED, "see `portfwd lab list`; `portfwd lab down` tries again".into())
        }
        NetError::Taken(_) => (CONFLICT, "give one of them another name; nothing was changed".into()),
        NetError::OtherHost(_, host) => match host.name() {
            Some(name) => (CONFLICT, format!("use `--netns {name}`, or take the lab down first; nothing was changed")),
            None if host.is_root_namespace() => (
                CONFLICT,
                "run in this machine's own namespace, or take the lab down first; nothing was changed".into(),
            ),
            None => (CONFLICT, "run in that namespace, or take the lab down first; nothing was changed".into()),
        },
        NetError::Unknown(_) => (FAILED, "`portfwd lab list` shows all labs".into()),
        NetError::NoNamespace(_) => {
            (FAILED, "`portfwd lab list` shows the namespaces of labs; `ip netns exec` enters all others".into())
        }
        NetError::Conflict(_) => (CONFLICT, "publish other ports; nothing was changed".into()),
        NetError::Rules(error) => of_engine(error),
        NetError::OvsAlone(_) => {
            (MISSING, "build the lab with `portfwd lab up`, as root, or write `kind = \"linux\"`".into())
        }
        NetError::NoProcess(_) => (FAILED, "`portfwd lab up` starts the process again".into()),
        NetError::Busy => (BUSY, "try again when that process has ended".into()),
        NetError::NotPermitted(_) => {
            let help = "run as root, or use `portfwd lab exec --file FILE NAME -- COMMAND`";
            (MISSING, help.into())
        }
        NetError::Journal(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let help = "run as root, or use `portfwd lab exec --file FILE NAME -- COMMAND`";
            (MISSING, help.into())
        }
        NetError::Command(_, error) if error.kind() == io::ErrorKind::NotFound => {
            (FAILED, "there is no such program in PATH".into())
        }
        NetError::Lab(error) => of_lab(error),
        NetError::Journal(..) | NetError::Inspect(_) | NetError::Enter(..) | NetError::Command(..) => {
            (FAILED, "nothing was changed".into())
        }
    }
}
