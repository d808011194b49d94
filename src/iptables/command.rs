//! Finds and runs the programs of iptables(8): `iptables`, `iptables-save` and `iptables-restore`.
//!
//! portfwd does not use the crate `iptables`. That crate starts one process for each rule, and finds the program by
//! `PATH`.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde::{Deserialize, Serialize};

use super::rule::LabelNames;
use super::save::SaveError;
use crate::model::Family;
use crate::sys::process::{self, ProcessError};

/// The maximum time to wait for the xtables lock, in seconds.
pub const LOCK_WAIT: u32 = 5;

/// The path of the file with the names of connection labels. Source: connlabel.conf of libnetfilter_conntrack.
const LABEL_NAMES: &str = "/etc/xtables/connlabel.conf";

/// The kernel interface that an iptables program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The interface nf_tables, in which iptables has its own tables.
    Nft,
    /// The interface x_tables, which is older than nf_tables.
    Legacy,
}

impl Variant {
    /// All variants, the newer variant first.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// Returns the variant from the output of `--version`, such as `iptables v1.8.9 (nf_tables)`. Programs before 1.8
    /// print no variant. Such programs are legacy.
    fn of_version(version: &str) -> Self {
        if version.contains("(nf_tables)") { Self::Nft } else { Self::Legacy }
    }

    /// Returns the variant of a program. If both variants are installed, the path is a link to a file such as
    /// `xtables-nft-multi`. The name of that file contains the variant. Otherwise the output of `--version` contains
    /// the variant.
    fn of_program(program: &Path) -> Result<Self, CommandError> {
        let file = std::fs::canonicalize(program).unwrap_or_default();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mut named = Self::ALL.into_iter().filter(|variant| name.contains(&format!("-{}", variant.name())));
        match (named.next(), named.next()) {
            (Some(variant), None) => Ok(variant),
            _ => Ok(Self::of_version(&version(program)?)),
        }
    }

    /// Returns the part of program names that identifies the variant: `nft` or `legacy`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// An error of an iptables program.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A program is missing or could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Another program held the xtables lock for longer than [`LOCK_WAIT`].
    #[error("another program has held the xtables lock for more than {LOCK_WAIT} seconds")]
    Busy,
    /// The process may not administer this network namespace.
    #[error("not permitted to read or change the firewall of this network namespace: {0}")]
    NotPermitted(String),
    /// The kernel lacks a table, a match or a target.
    #[error("the kernel lacks a part that iptables needs: {0}")]
    NoKernel(String),
    /// A program, or the kernel, refused the input.
    #[error("{program} refused {line}: {message}")]
    Refused {
        /// The file name of the program.
        program: String,
        /// The refused line of the input in backquotes. If the line is unknown, the text is `its input`.
        line: String,
        /// The program's error message.
        message: String,
    },
    /// The output of iptables-save(8) cannot be parsed.
    #[error("cannot parse the output of iptables-save")]
    Unreadable(#[from] SaveError),
}

/// The installed iptables programs of one family and variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The address family of the rules.
    pub family: Family,
    /// The kernel interface of the programs.
    pub variant: Variant,
    /// The path of `iptables` or `ip6tables`. portfwd runs this program only with `--version`.
    plain: PathBuf,
    restore: PathBuf,
    save: PathBuf,
}

impl Tools {
    /// Returns the IPv4 programs of the same variant as the host's `iptables`.
    ///
    /// # Errors
    /// If a program is missing, or if `iptables --version` fails.
    pub fn of_host() -> Result<Self, CommandError> {
        let word = command_name(Family::Ipv4);
        let plain = find(&[word.to_owned()])?;
        let variant = Variant::of_program(&plain)?;
        Self::with(Family::Ipv4, variant, plain, &[format!("{word}-{}", variant.name()), word.to_owned()])
    }

    /// Returns the installed programs of one family and variant.
    ///
    /// # Errors
    /// If the variant is not installed.
    pub fn of_variant(family: Family, variant: Variant) -> Result<Self, CommandError> {
        let (plain, word) = (command_name(family), format!("{}-{}", command_name(family), variant.name()));
        if let Ok(path) = find(std::slice::from_ref(&word)) {
            return Self::with(family, variant, path, &[word, plain.to_owned()]);
        }
        // Before iptables 1.8, there was only one variant, and the names of programs had no suffix.
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

    /// Returns the output of `--version`, such as `iptables v1.8.9 (nf_tables)`.
    ///
    /// # Errors
    /// If the program fails.
    pub fn version(&self) -> Result<String, CommandError> {
        version(&self.plain)
    }

    /// Returns the output of `iptables-save -c`: all rules, with counters.
    ///
    /// # Errors
    /// If the program fails.
    pub fn save(&self) -> Result<String, CommandError> {
        let output = run(&self.save, &["-c"], Stdio::null())?;
        // Comments of other programs may have any encoding. portfwd's comments are UTF-8.
        Ok(String::from_utf8(output.stdout)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Applies the changes in `text` with iptables-restore(8), with one commit for each table. The text is first
    /// written to the file `input`, so that the program can read the whole text even if this process dies.
    ///
    /// # Errors
    /// If iptables-restore refuses a table. Tables before the refused table are already changed.
    pub fn restore(&self, text: &str, input: &mut File) -> Result<(), CommandError> {
        self.restore_with(&["--noflush", "--counters", "--wait", &LOCK_WAIT.to_string()], text, input)
    }

    /// Returns true if iptables-restore(8) accepts the text. Changes no rule, but the kernel may load the tables that
    /// the text names.
    ///
    /// # Errors
    /// If the program fails for another reason than the text.
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
                Err(CommandError::Refused { program, line: line.unwrap_or_else(|| "its input".into()), message })
            }
            other => other.map(drop),
        }
    }
}

fn run(program: &Path, arguments: &[&str], stdin: impl Into<Stdio>) -> Result<Output, CommandError> {
    let output = process::run(program, arguments, stdin)?;
    if output.status.success() { Ok(output) } else { Err(classify(program, &output)) }
}

/// Returns the label names of this host. iptables-save(8) prints these names instead of label numbers.
pub fn label_names() -> LabelNames {
    std::fs::read(LABEL_NAMES)
        .map_or_else(|_| LabelNames::default(), |bytes| LabelNames::read(&String::from_utf8_lossy(&bytes)))
}

fn command_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables",
        Family::Ipv6 => "ip6tables",
    }
}

/// Returns the path of the first program in `names` that is installed.
fn find(names: &[String]) -> Result<PathBuf, ProcessError> {
    let missing = || ProcessError::Missing(names.first().cloned().unwrap_or_default());
    names.iter().find_map(|name| process::find(name).ok()).ok_or_else(missing)
}

fn version(program: &Path) -> Result<String, CommandError> {
    let output = run(program, &["--version"], Stdio::null())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn name(program: &Path) -> String {
    program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Classifies a failure by its message, because the exit code is ambiguous. Exit code 4 means a held lock, missing
/// privileges, or a refusal of the kernel.
///
/// Source: iptables(8) and xshared.c; measured with iptables 1.8.9.
fn classify(program: &Path, output: &Output) -> CommandError {
    let text = String::from_utf8_lossy(&output.stderr);
    // Skips the hint at the end of the message. If connlabel.conf is missing, iptables also prints a warning for each
    // rule with a label. These warnings are skipped too.
    let is_message = |line: &&str| !line.starts_with("Try `") && !line.contains("connlabel.conf") && !line.is_empty();
    let mut message = text.lines().map(str::trim).filter(is_message).collect::<Vec<_>>().join("; ");
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
        CommandError::Refused { program: name(program), line: "its input".into(), message }
    }
}

/// Returns the line number in `Error occurred at line: 10` or `line 10 failed`. Line numbers start at 1.
fn line_of(message: &str) -> Option<usize> {
    let at = message.find("line: ").map(|at| at + 6).or_else(|| message.find("line ").map(|at| at + 5))?;
    let digits: String = message.get(at..)?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|at| *at > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_number_is_read_from_an_error_message() {
        assert_eq!(line_of("x: Bad\nError occurred at line: 10"), Some(10));
        assert_eq!(line_of("iptables-restore: line 7 failed"), Some(7));
        for text in ["", "line: 0", "line: x", "failed"] {
            assert_eq!(line_of(text), None, "{text}");
        }
    }
}
