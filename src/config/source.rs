//! The text of rule-set files, and locations in it.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;

/// The maximum size of a rule-set file in bytes. Such a file can contain more than a million forwards.
pub const MAX_BYTES: u64 = 64 << 20;

/// The text of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The path, as the user wrote it.
    pub path: PathBuf,
    /// The content of the file, at most [`MAX_BYTES`] long.
    pub text: String,
}

/// A location in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file that contains the location.
    pub source: Arc<Source>,
    /// The range of bytes in the text of the file.
    pub span: Range<usize>,
}

impl Location {
    /// Returns the line and the column of the first character. Both count from 1.
    pub fn line_and_column(&self) -> (usize, usize) {
        let before = self.source.text.get(..self.span.start).unwrap_or(&self.source.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column)
    }

    /// Returns the lines that contain the location, and the range of the location in these lines.
    pub fn lines(&self) -> (&str, Range<usize>) {
        let text = &self.source.text;
        let (start, end) = (self.span.start.min(text.len()), self.span.end.min(text.len()));
        let first = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
        let last = text.get(end..).and_then(|behind| behind.find('\n')).map_or(text.len(), |newline| end + newline);
        (text.get(first..last).unwrap_or_default(), start - first..end - first)
    }
}

/// The reason why a file or directory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// An error of the operating system.
    #[error("cannot read `{}`", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// The path is a pipe, a device or another special file.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The file is larger than [`MAX_BYTES`].
    #[error("`{}` is larger than 64 MiB", .0.display())]
    TooLarge(PathBuf),
    /// The file is not UTF-8.
    #[error("`{}`:{line}:{column} is not UTF-8 text", .path.display())]
    NotText {
        /// The path of the file.
        path: PathBuf,
        /// The line of the first invalid byte, from 1.
        line: usize,
        /// The column of the first invalid byte, in bytes from 1.
        column: usize,
    },
    /// The directory contains no rule set.
    #[error("the directory `{}` contains no rule set (`*.toml`)", .0.display())]
    EmptyFolder(PathBuf),
}

/// Returns the rule-set files of a path: the path itself, or the `.toml` files of a directory sorted by name.
///
/// # Errors
/// If the path cannot be read, or the directory contains no rule set.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let io = |error| ReadError::Io(path.to_owned(), error);
    if !path.metadata().map_err(io)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
    }
    files.sort_unstable();
    if files.is_empty() { Err(ReadError::EmptyFolder(path.to_owned())) } else { Ok(files) }
}

/// Reads a file. Never waits for a pipe or device.
///
/// # Errors
/// If the file cannot be read, is not a regular file, is larger than [`MAX_BYTES`] or is not UTF-8.
pub fn read(path: &Path) -> Result<Source, ReadError> {
    let io = |error| ReadError::Io(path.to_owned(), error);
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile(path.to_owned()));
    }
    let mut bytes = Vec::new();
    // The limit applies to the bytes that are read: a file can grow, and files in /proc have size 0.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(ReadError::TooLarge(path.to_owned()));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { path: path.to_owned(), text }),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let before = error.as_bytes().get(..good).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            Err(ReadError::NotText { path: path.to_owned(), line, column })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_1_in_characters() {
        let source = Arc::new(Source { path: "x".into(), text: "a\nü = \"b\"\nc".into() });
        let place = Location { source: Arc::clone(&source), span: 7..10 };
        assert_eq!(place.line_and_column(), (2, 5));
        assert_eq!(place.lines(), ("ü = \"b\"", 5..8));
        assert_eq!(Location { source, span: 99..120 }.line_and_column().0, 3);
    }
}
