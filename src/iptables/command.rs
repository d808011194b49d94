//! The programs of iptables(8): which are installed, what they save, and what they restore.
//!
//! The crate `iptables` is not used: it starts the program that `PATH` names, one process a rule.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde::{Deserialize, Serialize};

use super::rule::LabelNames;
use super::save::SaveError;
use crate::model::Family;
use crate::sys::process::{self, ProcessError};

/// How long, in seconds, the lock of another program is waited for.
pub const LOCK_WAIT: u32 = 5;

/// Names for labels. Source: connlabel.conf of libnetfilter_conntrack.
const LABEL_NAMES: &str = "/etc/xtables/connlabel.conf";

/// Which part of the kernel iptables speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// nf_tables, in its own tables.
    Nft,
    /// x_tables.
    Legacy,
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// What a program is that says `iptables v1.8.9 (nf_tables)` of itself; before 1.8 none said it, and there was only one.
    fn of_version(version: &str) -> Self {
        if version.contains("(nf_tables)") { Self::Nft } else { Self::Legacy }
    }

    /// What a program is. The file that it is in the end has the variant in its name, `xtables-nft-multi`, where both are
    /// installed; otherwise it is asked.
    fn of_program(program: &Path) -> Result<Self, CommandError> {
        let file = std::fs::canonicalize(program).unwrap_or_default();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mut named = Self::ALL.into_iter().filter(|variant| name.contains(&format!("-{}", variant.name())));
        match (named.next(), named.next()) {
            (Some(variant), None) => Ok(variant),
            _ => Ok(Self::of_version(&version(program)?)),
        }
    }

    /// Its word in the names of programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// Why iptables did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A program is missing, or could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Another program held its lock for too long.
    #[error("another program has been changing the rules of iptables for {LOCK_WAIT} seconds")]
    Busy,
    /// The process may not administer this network namespace.
    #[error("not permitted to read or change the firewall of this network namespace: {0}")]
    NotPermitted(String),
    /// The kernel lacks something.
    #[error("the kernel lacks a part that iptables needs: {0}")]
    NoKernel(String),
    /// It refused something.
    #[error("{program} refused {line}: {message}")]
    Refused {
        /// The program.
        program: String,
        /// What it refused: a line of its input, or all of it.
        line: String,
        /// Its words.
        message: String,
    },
    /// What it printed cannot be read.
    #[error("the rules of iptables cannot be read")]
    Unreadable(#[from] SaveError),
}

/// The programs of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The family.
    pub family: Family,
    /// Which part of the kernel they speak to.
    pub variant: Variant,
    /// What changes one rule; it is only asked what it is.
    plain: PathBuf,
    restore: PathBuf,
    save: PathBuf,
}

impl Tools {
    /// Those of IPv4 that the host's own `iptables` is one of.
    ///
    /// # Errors
    /// Where there is none, or it does not say what it is.
    pub fn of_host() -> Result<Self, CommandError> {
        let word = word(Family::Ipv4);
        let plain = find(&[word.to_owned()])?;
        let variant = Variant::of_program(&plain)?;
        Self::with(Family::Ipv4, variant, plain, &[format!("{word}-{}", variant.name()), word.to_owned()])
    }

    /// Those of a variant.
    ///
    /// # Errors
    /// Where it is not installed.
    pub fn of_variant(family: Family, variant: Variant) -> Result<Self, CommandError> {
        let (plain, word) = (word(family), format!("{}-{}", word(family), variant.name()));
        if let Ok(path) = find(std::slice::from_ref(&word)) {
            return Self::with(family, variant, path, &[word, plain.to_owned()]);
        }
        // Before 1.8 there was only one, and programs had no longer names.
        let path = find(&[plain.to_owned()])?;
        if Variant::of_program(&path)? != variant {
            return Err(ProcessError::Missing(word).into());
        }
        Self::with(family, variant, path, &[plain.to_owned()])
    }

    fn with(family: Family, variant: Variant, plain: PathBuf, words: &[String]) -> Result<Self, CommandError> {
        let program = |verb: &str| find(&words.iter().map(|word| format!("{word}-{verb}")).collect::<Vec<_>>());
        Ok(Self { family, variant, plain, restore: program("restore")?, save: program("save")? })
    }

    /// What they say of their version, `iptables v1.8.9 (nf_tables)`.
    ///
    /// # Errors
    /// Where they do not.
    pub fn version(&self) -> Result<String, CommandError> {
        version(&self.plain)
    }

    /// What it prints of all rules, with what they counted.
    ///
    /// # Errors
    /// Where it does not.
    pub fn save(&self) -> Result<String, CommandError> {
        let output = run(&self.save, &["-c"], Stdio::null())?;
        // Comments of others may be in any encoding; ours are not.
        Ok(String::from_utf8(output.stdout)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Has the changes in `text` made, all of a table at once. They are written to `input`, which the program holds open
    /// until it has ended: whatever becomes of us meanwhile, it has all of its text.
    ///
    /// # Errors
    /// Where they were not made; those of earlier tables in the text may have been.
    pub fn restore(&self, text: &str, input: &mut File) -> Result<(), CommandError> {
        self.restore_with(&["--noflush", "--counters", "--wait", &LOCK_WAIT.to_string()], text, input)
    }

    /// Whether it would take a text; changes nothing, but may have the kernel load the tables of the text.
    ///
    /// # Errors
    /// Where that cannot be told.
    pub fn accepts(&self, text: &str, input: &mut File) -> Result<bool, CommandError> {
        let wait = LOCK_WAIT.to_string();
        match self.restore_with(&["--noflush", "--test", "--wait", &wait], text, input) {
            Ok(()) => Ok(true),
            Err(CommandError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn restore_with(&self, arguments: &[&str], text: &str, input: &mut File) -> Result<(), CommandError> {
        let stdin = (|| {
            input.set_len(0)?;
            input.rewind()?;
            input.write_all(text.as_bytes())?;
            input.rewind()?;
            input.try_clone()
        })();
        let stdin: File = stdin.map_err(|error: io::Error| ProcessError::Run(self.restore.clone(), error))?;
        match run(&self.restore, arguments, stdin) {
            Err(CommandError::Refused { program, message, .. }) => {
                let line = line_of(&message).and_then(|at| text.lines().nth(at - 1)).map(|text| format!("`{text}`"));
                Err(CommandError::Refused { program, line: line.unwrap_or_else(|| "it".into()), message })
            }
            other => other.map(drop),
        }
    }
}

fn run(program: &Path, arguments: &[&str], stdin: impl Into<Stdio>) -> Result<Output, CommandError> {
    let output = process::run(program, arguments, stdin)?;
    if output.status.success() { Ok(output) } else { Err(judge(program, &output)) }
}

/// The names of labels on this host, which iptables-save prints in the place of their numbers.
pub fn label_names() -> LabelNames {
    std::fs::read(LABEL_NAMES)
        .map_or_else(|_| LabelNames::default(), |bytes| LabelNames::read(&String::from_utf8_lossy(&bytes)))
}

fn word(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables",
        Family::Ipv6 => "ip6tables",
    }
}

/// Returns the path of the first of some programs that is installed.
fn find(names: &[String]) -> Result<PathBuf, ProcessError> {
    let missing = || ProcessError::Missing(names.first().cloned().unwrap_or_default());
    names.iter().find_map(|name| process::find(name).ok()).ok_or_else(missing)
}

/// Returns the version, `iptables v1.8.9 (nf_tables)`.
fn version(program: &Path) -> Result<String, CommandError> {
    let output = run(program, &["--version"], Stdio::null())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn name(program: &Path) -> String {
    program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What a failure means. Exit codes do not say: 4 is a lock that is held, missing privileges, and a kernel that refused.
/// Source: iptables(8) and xshared.c; measured with 1.8.9.
fn judge(program: &Path, output: &Output) -> CommandError {
    let text = String::from_utf8_lossy(&output.stderr);
    // The hint at the end, and what every rule with a label says where there is no file of their names, say nothing.
    let says = |line: &&str| !line.starts_with("Try `") && !line.contains("connlabel.conf") && !line.is_empty();
    let mut message = text.lines().map(str::trim).filter(says).collect::<Vec<_>>().join("; ");
    if message.is_empty() {
        message = output.status.to_string();
    }
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if has(&["xtables lock"]) {
        CommandError::Busy
    } else if has(&["Permission denied", "you must be root", "Operation not permitted", "can't open lock file"]) {
        CommandError::NotPermitted(message)
    } else if has(&["do you need to insmod", "missing kernel module", "Couldn't load", "Protocol not supported"])
        || has(&["Address family not supported"])
    {
        CommandError::NoKernel(message)
    } else {
        CommandError::Refused { program: name(program), line: "it".into(), message }
    }
}

/// The number of the line that `Error occurred at line: 10` or `line 10 failed` names; the first is 1.
fn line_of(message: &str) -> Option<usize> {
    let at = message.find("line: ").map(|at| at + 6).or_else(|| message.find("line ").map(|at| at + 5))?;
    let digits: String = message.get(at..)?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|at| *at > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_refusal_is_found() {
        assert_eq!(line_of("x: Bad\nError occurred at line: 10"), Some(10));
        assert_eq!(line_of("iptables-restore: line 7 failed"), Some(7));
        for text in ["", "line: 0", "line: x", "failed"] {
            assert_eq!(line_of(text), None, "{text}");
        }
    }
}
