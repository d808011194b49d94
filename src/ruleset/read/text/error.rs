//! The errors of a text.

use std::io;

use crate::model::error::printable;
use crate::nft::transaction::KernelError;
use crate::sys::process::ProcessError;
use crate::sys::sandbox::SandboxError;

/// The largest size of a text in bytes.
pub const MAX_TEXT: usize = 64 << 20;

/// The reason that a text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Something that is not in a table, or a command that reads a file or sets a variable.
    #[error("line {line}: `{}` is not in the output of `nft list ruleset`", printable(&.word.chars().take(120).collect::<String>()))]
    Command {
        /// The number of the line, from 1.
        line: usize,
        /// The command, or its first word.
        word: String,
    },
    /// A table without a name, or with an unbalanced brace.
    #[error("line {line}: {why}")]
    Shape {
        /// The number of the line, from 1.
        line: usize,
        /// The mistake, as a message.
        why: &'static str,
    },
    /// The text is too long.
    #[error("its {0} bytes are more than the maximum of {MAX_TEXT} for the text of `nft list ruleset`")]
    TooLong(usize),
    /// There is no nft, or it cannot be run.
    #[error("only nft can read the text of `nft list ruleset`")]
    Nft(#[from] ProcessError),
    /// The host does not allow the namespaces.
    #[error("only nft can read the text of `nft list ruleset`, and portfwd runs it in namespaces of its own")]
    Sandbox(#[from] SandboxError),
    /// The network namespace could not be used.
    #[error("cannot use the network namespace for the text of `nft list ruleset`")]
    Namespace(#[from] io::Error),
    /// The rules could not be read from the network namespace.
    #[error("cannot read back the text of `nft list ruleset`")]
    Kernel(#[from] KernelError),
}

impl TextError {
    /// Returns true if the reason is this host, not the text.
    pub fn is_of_host(&self) -> bool {
        !matches!(self, Self::Command { .. } | Self::Shape { .. } | Self::TooLong(_))
    }
}
