//! The streams that commands print to.

use std::io::{self, Write};

use crate::engine::Timing;

/// The output streams of a command, the color setting and the measured times.
pub struct Output<'a> {
    pub(super) stdout: &'a mut dyn Write,
    pub(super) stderr: &'a mut dyn Write,
    pub(super) color: bool,
    /// True after the change is committed. Then a failed print is not a failure of the command.
    pub(super) done: bool,
    /// The time of each phase of the process.
    pub(super) timing: Timing,
}

/// A writer that ignores write errors. So a full disk or a closed pipe never aborts a command.
pub(super) struct BestEffort<'a>(pub(super) &'a mut dyn Write);

impl Write for BestEffort<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _: io::Result<()> = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _: io::Result<()> = self.0.flush();
        Ok(())
    }
}
