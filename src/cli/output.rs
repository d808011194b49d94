//! The streams that commands print to.

use std::io::{self, Write};

use crate::engine::Timing;

/// Where a command prints, and how.
pub struct Output<'a> {
    pub(super) stdout: &'a mut dyn Write,
    pub(super) stderr: &'a mut dyn Write,
    pub(super) color: bool,
    /// Whether what is to be printed has been done.
    pub(super) done: bool,
    /// Where the time of the process went.
    pub(super) timing: Timing,
}

/// What is said aside. A disk that is full, or a reader that is gone, is no reason to leave undone what was asked.
pub(super) struct Aside<'a>(pub(super) &'a mut dyn Write);

impl Write for Aside<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _: io::Result<()> = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _: io::Result<()> = self.0.flush();
        Ok(())
    }
}
