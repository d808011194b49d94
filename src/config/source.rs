//! Files as they are on disk, and places in them.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;

/// The largest rule-set file that is read: more than a million forwards.
pub const MAX_BYTES: u64 = 64 << 20;

/// A file and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its path, as it was given.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub source: Arc<Source>,
    /// The bytes of its text.
    pub span: Range<usize>,
}

impl Place {
    /// Line and column, both from 1, of the first character.
    pub fn line_and_column(&self) -> (usize, usize) {
        let before = self.source.text.get(..self.span.start).unwrap_or(&self.source.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column)
    }

    /// The lines that hold the place, and where in them it is.
    pub fn lines(&self) -> (&str, Range<usize>) {
        let text = &self.source.text;
        let (start, end) = (self.span.start.min(text.len()), self.span.end.min(text.len()));
        let first = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
        let last = text.get(end..).and_then(|behind| behind.find('\n')).map_or(text.len(), |newline| end + newline);
        (text.get(first..last).unwrap_or_default(), start - first..end - first)
    }
}

/// Why a file cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system said no.
    #[error("cannot read `{}`", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// It is something else than a file.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// It is larger than [`MAX_BYTES`].
    #[error("`{}` is larger than 64 MiB", .0.display())]
    TooLarge(PathBuf),
    /// It is no text; the line and the byte in it are given.
    #[error("`{}`:{line}:{column} is not UTF-8 text", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In bytes, from 1.
        column: usize,
    },
    /// A folder without rule sets.
    #[error("there is no rule set, no file that ends in `.toml`, in `{}`", .0.display())]
    EmptyFolder(PathBuf),
}

/// The files that a path names: itself, or the `.toml` files of a folder in the order of their names.
///
/// # Errors
/// Where the path cannot be looked at, or the folder has no rule set.
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

/// Reads a file.
///
/// # Errors
/// Where it is no regular file, too large, or no text. A pipe or device is not waited for.
pub fn read(path: &Path) -> Result<Source, ReadError> {
    let io = |error| ReadError::Io(path.to_owned(), error);
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile(path.to_owned()));
    }
    let mut bytes = Vec::new();
    // Counted while reading, because a file may grow, and those of /proc have no size.
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
    fn places_are_counted_from_one_in_characters() {
        let source = Arc::new(Source { path: "x".into(), text: "a\nü = \"b\"\nc".into() });
        let place = Place { source: Arc::clone(&source), span: 7..10 };
        assert_eq!(place.line_and_column(), (2, 5));
        assert_eq!(place.lines(), ("ü = \"b\"", 5..8));
        assert_eq!(Place { source, span: 99..120 }.line_and_column().0, 3);
    }
}
