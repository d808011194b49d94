//! From a kind of error to its words and its exit code; the only place that knows both.

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

/// Failed; nothing changed.
pub const FAILED: u8 = 1;
/// Usage, or an invalid rule set.
pub const USAGE: u8 = 2;
/// `plan --detailed-exitcode` has changes.
pub const CHANGES: u8 = 3;
/// `audit --fail-on` found something.
pub const FOUND: u8 = 4;
/// Permission or kernel feature missing.
pub const MISSING: u8 = 5;
/// Conflict refused.
pub const CONFLICT: u8 = 6;
/// Busy; try again.
pub const BUSY: u8 = 75;

/// What a command itself finds wrong.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Mistakes in rule sets.
    #[error("{} mistakes in the rule sets", .0.len())]
    Problems(Vec<Problem>),
    /// Forwards that would take what reaches somebody else: some of them, and how many they are.
    #[error("{all} forwards would take what reaches somebody else")]
    Taken {
        /// Those that are named.
        problems: Vec<Problem>,
        /// How many there are.
        all: usize,
    },
    /// Something on the command line that is not what it should be.
    #[error("{what}")]
    Usage {
        /// What.
        what: String,
        /// What to write instead.
        help: String,
    },
    /// Something that this program cannot do yet.
    #[error("{what}")]
    Unsupported {
        /// What.
        what: String,
        /// What to do instead.
        help: String,
    },
    /// Something that is not there.
    #[error("{what}")]
    NotFound {
        /// What.
        what: String,
        /// Where to look.
        help: String,
    },
    /// A change that was not confirmed, and is taken back.
    #[error("{what}")]
    Unconfirmed {
        /// Why not.
        what: String,
    },
    /// Probes that did not get the answer they should.
    #[error("{0} of {1} probes did not get the answer they should")]
    Probes(usize, usize),
}

/// Prints an error and gives its exit code.
pub fn report(error: &anyhow::Error, output: &mut Output<'_>) -> u8 {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // Whoever reads us has seen enough.
            return 0;
        }
        if output.done {
            // What failed is only to say so, and 1 would mean that nothing was changed.
            let written = writeln!(output.stderr, "note: done, but what was done could not be printed: {error}");
            drop(written);
            return 0;
        }
    }
    let (code, help) = judge(error);
    match error.downcast_ref() {
        Some(Failure::Problems(problems)) => {
            several(problems, &format!("{} mistakes; nothing was changed", problems.len()), output);
            return code;
        }
        Some(Failure::Taken { problems, all }) => {
            let more = all.saturating_sub(problems.len());
            let more = if more > 0 { format!("and {more} more; ") } else { String::new() };
            several(problems, &format!("{more}{all} forwards refused; nothing was changed"), output);
            return code;
        }
        _ => {}
    }
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // A cause that says nothing new is not repeated.
        if !text.ends_with(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    // File names and other words of others are in it.
    let text = printable(&text);
    let problem = Problem { kind: ProblemKind::Invalid, what: text, location: None, related: None, help };
    let written = write!(output.stderr, "{}", problem.render(output.color));
    drop(written);
    code
}

/// Prints mistakes, and where there are several a last line about all of them.
fn several(problems: &[Problem], last: &str, output: &mut Output<'_>) {
    for (index, problem) in problems.iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        let written = write!(output.stderr, "{gap}{}", problem.render(output.color));
        drop(written);
    }
    if problems.len() > 1 {
        let written = writeln!(output.stderr, "\n{last}");
        drop(written);
    }
}

/// The exit code of an error, and what to do about it.
fn judge(error: &anyhow::Error) -> (u8, String) {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return of_failure(failure);
    }
    if let Some(error) = error.downcast_ref::<EngineError>() {
        return of_engine(error);
    }
    if let Some(error) = error.downcast_ref::<ReadError>() {
        let help = match error {
            ReadError::Io(..) => "give the path of a rule-set file or of a folder of them",
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
            NamespaceError::Name(_) => (USAGE, "give a name as `ip netns list` shows it".into()),
            NamespaceError::Missing(_) => (USAGE, "make it with `ip netns add`".into()),
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
        Failure::Unconfirmed { .. } => (FAILED, "see `portfwd list`; change the rule sets, or confirm in time".into()),
        Failure::Probes(..) => (FAILED, "each is shown above with what it should have got".into()),
    }
}

fn of_engine(error: &EngineError) -> (u8, String) {
    match error {
        EngineError::Kernel(error) | EngineError::Commit(CommitError::Kernel(error)) => of_kernel(error),
        EngineError::Commit(CommitError::TooLarge(_)) => {
            (MISSING, "run as root; an unprivileged socket sends about 200 KB at once".into())
        }
        EngineError::Commit(CommitError::Unheard(_)) => {
            (FAILED, "`portfwd list` shows whether it was done; the next change mends what differs".into())
        }
        EngineError::Commit(CommitError::Stale) | EngineError::Busy => (BUSY, "try again".into()),
        EngineError::Unconfirmed(left) => {
            let left = in_words(*left);
            (
                BUSY,
                format!("`portfwd confirm` keeps it; wait {left} for the rules before to be back; nothing was changed"),
            )
        }
        EngineError::Refused { error, .. } => match error.raw_os_error() {
            // An expression that the kernel was built without, or whose module it cannot load.
            Some(libc_errno::ENOENT | libc_errno::EOPNOTSUPP) => {
                (MISSING, "this kernel lacks a part of nf_tables that this needs; `-v` shows what was sent".into())
            }
            _ => (FAILED, "nothing was changed".into()),
        },
        EngineError::State(StateError::Busy(_)) => (BUSY, "try again when it has ended".into()),
        EngineError::State(StateError::Io(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            (MISSING, "run as root, or choose a directory of yours with `--state-dir`".into())
        }
        EngineError::Undecided(_) => {
            (FAILED, "the kernel's rules are as they were; the next change may make this one too".into())
        }
        EngineError::State(StateError::Version(..)) => (FAILED, "use the newer program".into()),
        EngineError::State(StateError::Damaged(..)) => {
            let help = "the kernel's rules are untouched; `portfwd restore --from-kernel` makes a new state of them";
            (FAILED, help.into())
        }
        EngineError::Unknown(..) => {
            let help = "nothing was changed; `portfwd restore --from-kernel` makes a state of them, `portfwd flush` removes them";
            (FAILED, help.into())
        }
        EngineError::Nothing(_) => (FAILED, "nothing was changed; apply the rule sets".into()),
        EngineError::Closed(_) => (FAILED, "see the switch that is named, and apply again".into()),
        EngineError::Sysctl(SysctlError { name, error, .. }) => {
            let code = match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => MISSING,
                _ => FAILED,
            };
            let help = if sysctl::is_route_localnet(name) {
                "leave `loopback` out, or run where this switch can be written".into()
            } else {
                format!("set `{name}` yourself and write `ip_forward = \"keep\"` under `[settings]`")
            };
            (code, help)
        }
        EngineError::Route(_, error) | EngineError::Interfaces(error)
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            (MISSING, "run where rtnetlink may be asked".into())
        }
        EngineError::Compile(_) => (CONFLICT, "give all sets the same priority, or leave it out".into()),
        EngineError::Limit(ChainError::Limit(_, limit)) => (MISSING, limit.help.clone()),
        EngineError::Iptables(error) => of_iptables(error),
        EngineError::NoIpv6(_) => (MISSING, "install the package `iptables`, or leave IPv6 out".into()),
        EngineError::Half { .. } | EngineError::Left { .. } => (FAILED, "see `portfwd plan`, and apply again".into()),
        EngineError::Differs(_) | EngineError::Unchecked(_) => (FAILED, "see `portfwd plan`".into()),
        EngineError::Commit(CommitError::Refused { .. })
        | EngineError::State(_)
        | EngineError::Namespace(_)
        | EngineError::Input(_)
        | EngineError::Interfaces(_)
        | EngineError::Route(..) => (FAILED, "nothing was changed".into()),
    }
}

/// A time for people.
pub fn in_words(time: Duration) -> String {
    match whole_seconds(time) {
        1 => "one second".into(),
        seconds => format!("{seconds} seconds"),
    }
}

/// A time in seconds, none only where it is none.
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Error numbers by name.
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
        CommandError::Busy => (BUSY, "try again when it has ended".into()),
        CommandError::NotPermitted(_) => {
            (MISSING, "run as root; iptables-legacy needs that, iptables-nft only CAP_NET_ADMIN".into())
        }
        CommandError::NoKernel(_) => (MISSING, "load the modules `ip_tables` and `ip6_tables`, or use nftables".into()),
        CommandError::Unreadable(SaveError::Incompatible(table)) => {
            (FAILED, format!("see `nft list table ip {table}`; what it holds was not made with iptables"))
        }
        CommandError::Refused { line, .. } if line.starts_with("`-X ") => (
            FAILED,
            "a chain of somebody else's jumps to it: see who, with `iptables-save`; nothing was changed".into(),
        ),
        CommandError::Unreadable(_) | CommandError::Refused { .. } | CommandError::Process(ProcessError::Run(..)) => {
            (FAILED, "nothing was changed; `-v` shows which iptables this is".into())
        }
    }
}

fn of_lab(error: &LabError) -> (u8, String) {
    match error {
        LabError::NotAllowed(_) => {
            (MISSING, "run as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)".into())
        }
        LabError::Engine(error) => of_engine(error),
        LabError::Topology(_) => (USAGE, "see `portfwd try --help` for what is made of a rule set".into()),
        LabError::Link(..) | LabError::Io(..) => (FAILED, "the throw-away network is gone".into()),
    }
}

/// What rules and Open vSwitch have to say of their errors besides.
fn of_part(error: &io::Error) -> Option<(u8, String)> {
    let error = error.get_ref()?;
    if let Some(error) = error.downcast_ref::<EngineError>() {
        return Some(of_engine(error));
    }
    Some(match error.downcast_ref::<OvsError>()? {
        OvsError::Command(ProcessError::Missing(_)) => (MISSING, "install the package `openvswitch-switch`".into()),
        OvsError::NoDatabase(_) | OvsError::NoDaemon(_) => {
            let help = "start it, `systemctl start openvswitch-switch`, or say where it runs with OVS_RUNDIR";
            (MISSING, help.into())
        }
        OvsError::Elsewhere(_) => (MISSING, "run where its daemon does".into()),
        OvsError::Command(_) | OvsError::Refused(_) => return None,
    })
}

fn of_net(error: &NetError) -> (u8, String) {
    if let NetError::Step { error, .. } | NetError::Undo(_, error) | NetError::Inspect(error) = error
        && let Some(said) = of_part(error)
    {
        return said;
    }
    match error {
        NetError::Step { left: None, .. } => (FAILED, "what was made before it was taken back".into()),
        NetError::Step { .. } | NetError::Undo(..) => {
            (FAILED, "see `portfwd lab list`; `portfwd lab down` tries again".into())
        }
        NetError::Taken(_) => {
            (CONFLICT, "give one of them another name; nothing was changed, and what is there stays".into())
        }
        NetError::OtherHost(_, host) => match host.name() {
            Some(name) => (CONFLICT, format!("say `--netns {name}`, or take it down first; nothing was changed")),
            None if host.is_root_namespace() => {
                (CONFLICT, "run in this machine's own namespace, or take it down first; nothing was changed".into())
            }
            None => (CONFLICT, "run in that namespace, or take it down first; nothing was changed".into()),
        },
        NetError::Unknown(_) => (FAILED, "`portfwd lab list` shows those that are".into()),
        NetError::NoNamespace(_) => {
            (FAILED, "`portfwd lab list` shows those that are; `ip netns exec` enters those of others".into())
        }
        NetError::Conflict(_) => (CONFLICT, "publish other ports; nothing was changed".into()),
        NetError::Rules(error) => of_engine(error),
        NetError::OvsAlone(_) => {
            (MISSING, "make it with `portfwd lab up`, as root, or write `kind = \"linux\"`".into())
        }
        NetError::NoProcess(_) => (FAILED, "`portfwd lab up` starts it again".into()),
        NetError::Busy => (BUSY, "try again when it has ended".into()),
        NetError::NotPermitted(_) => {
            let help = "run as root; `portfwd lab exec --file FILE NAME -- COMMAND` needs none";
            (MISSING, help.into())
        }
        NetError::Journal(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let help = "run as root; `portfwd lab exec --file FILE NAME -- COMMAND` needs none";
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
