//! Loads commands with the host's nft(8) in a sandbox, and finds the commands that nft refuses.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::sys::process::ProcessError;
use crate::sys::sandbox::Sandbox;

/// The time limit for all commands of a text.
const PATIENCE: Duration = Duration::from_secs(60);

/// The largest estimated size of a transaction in bytes. Without rights outside of its namespace, nft cannot send more than
/// `net.core.wmem_default` (212,992 bytes) at once.
const CHUNK: usize = 150_000;

/// The estimated size of a transaction after one with many mistakes. nft prints only ten mistakes of a transaction, so long
/// ones would be read again and again.
const SMALL_CHUNK: usize = CHUNK / 4;

/// The reason that a command was not tried.
const LATE: &str = "it was not tried, because other lines took 60 seconds";

/// nft(8) in a sandbox.
pub(super) struct Loader<'a> {
    sandbox: &'a Sandbox,
    nft: PathBuf,
    deadline: Instant,
}

impl<'a> Loader<'a> {
    /// Starts the time limit. `nft` is the path of nft(8).
    pub(super) fn new(sandbox: &'a Sandbox, nft: PathBuf) -> Self {
        Self { sandbox, nft, deadline: Instant::now() + PATIENCE }
    }

    /// Returns true if there is no time left.
    pub(super) fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Loads commands in order. Returns the reason for each command that was not loaded.
    ///
    /// nft prints up to ten mistakes of a transaction, and each command that the kernel refuses. The loader leaves these
    /// commands out and tries the others again. A transaction that fails without a line number is split in two.
    ///
    /// # Errors
    /// Fails if nft cannot be run.
    pub(super) fn load(&self, commands: &[String]) -> Result<Vec<Option<String>>, ProcessError> {
        let mut failures: Vec<Option<String>> = vec![None; commands.len()];
        let mut waiting = chunks(commands, 0..commands.len(), CHUNK);
        waiting.reverse();
        while let Some(mut chunk) = waiting.pop() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let text: String = chunk.iter().filter_map(|at| commands.get(*at)).flat_map(|line| [line, "\n"]).collect();
            let errors = match left.is_zero() {
                true => vec![(None, LATE.to_owned())],
                false => match self.sandbox.run(&self.nft, &["-f", "-"], text.as_bytes(), left) {
                    Ok(done) if done.status.success() => continue,
                    Ok(done) => errors(&String::from_utf8_lossy(&done.stderr)),
                    Err(ProcessError::Run(_, error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                        vec![(None, LATE.to_owned())]
                    }
                    Err(error) => return Err(error),
                },
            };
            let mut found = false;
            for (line, message) in &errors {
                let at = line.and_then(|line: usize| chunk.get(line.checked_sub(1)?));
                if let Some(failure) = at.and_then(|at| failures.get_mut(*at)) {
                    failure.get_or_insert_with(|| message.clone());
                    found = true;
                }
            }
            if found {
                chunk.retain(|at| failures.get(*at).is_some_and(Option::is_none));
                let size = if errors.len() < 10 { CHUNK } else { SMALL_CHUNK };
                waiting.extend(chunks(commands, chunk, size).into_iter().rev());
            } else if chunk.len() > 1 && !self.is_late() {
                let second = chunk.split_off(chunk.len() / 2);
                waiting.extend([second, chunk]);
            } else {
                let message = errors.into_iter().next().map_or_else(|| "nft failed".into(), |(_, message)| message);
                for at in chunk {
                    if let Some(failure) = failures.get_mut(at) {
                        *failure = Some(message.clone());
                    }
                }
            }
        }
        Ok(failures)
    }
}

/// Groups the indexes of commands by the estimated size of their messages.
fn chunks(commands: &[String], indexes: impl IntoIterator<Item = usize>, most: usize) -> Vec<Vec<usize>> {
    let mut chunks: Vec<Vec<usize>> = Vec::new();
    let mut size = 0;
    for at in indexes {
        let text = commands.get(at).map_or("", String::as_str);
        let factor = if text.starts_with("add element") { 5 } else { 12 };
        let message = 100 + factor * text.len();
        size += message;
        match chunks.last_mut() {
            Some(chunk) if size <= most => chunk.push(at),
            _ => {
                size = message;
                chunks.push(vec![at]);
            }
        }
    }
    chunks
}

/// Reads lines such as `/dev/stdin:3:17-19: Error: No symbol type information`.
fn errors(stderr: &str) -> Vec<(Option<usize>, String)> {
    let error = |line: &str| {
        let (place, message) = line.split_once("Error: ")?;
        let number = place.trim_end_matches([':', ' ']).rsplit(':').nth(1).and_then(|number| number.parse().ok());
        Some((number, message.trim().to_owned()))
    };
    // nft repeats the commands, which may contain any words.
    stderr.lines().filter(|line| !line.starts_with("add ")).filter_map(error).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_errors_are_read() {
        let stderr = "/dev/stdin:3:17-19: Error: No symbol type information\nadd rule ip t c foo comment \"x:9:9-9: Error: y\"\n                ^^^\n\
                      Error: Could not process rule: Operation not permitted\n";
        let expected = [
            (Some(3), "No symbol type information".to_owned()),
            (None, "Could not process rule: Operation not permitted".to_owned()),
        ];
        assert_eq!(errors(stderr), expected);
    }

    #[test]
    fn chunks_have_a_limit_and_keep_the_order() {
        let groups = |commands: &[String]| chunks(commands, 0..commands.len(), CHUNK);
        let commands = vec!["x".repeat(3000); 9];
        let sizes: Vec<usize> = groups(&commands).iter().map(Vec::len).collect();
        assert_eq!((sizes, groups(&commands).concat()), (vec![4, 4, 1], (0..9).collect()));
        assert_eq!(groups(&vec![String::new(); 2500]).iter().map(Vec::len).collect::<Vec<_>>(), [1500, 1000]);
        assert_eq!(groups(&["x".repeat(1 << 20), String::new()]).len(), 2);
    }

    #[test]
    fn refused_commands_are_found_and_the_others_are_loaded() {
        let Ok(sandbox) = Sandbox::new() else { return };
        let loader = Loader::new(&sandbox, crate::sys::process::find("nft").expect("nft is installed"));
        let rule = |words: &str| format!("add rule ip t c {words}");
        let mut commands = vec!["add table ip t".to_owned(), "add chain ip t c".into()];
        for _ in 0..50 {
            commands.extend(
                ["accept", "foo bar", "tcp dport nosuch", "jump nowhere", "ip saddr { 1.2.3.4, drop"].map(rule),
            );
        }
        let failures = loader.load(&commands).expect("nft runs");
        let failed: Vec<bool> = failures.iter().map(Option::is_some).collect();
        let mut expected = vec![false, false];
        expected.extend([false, true, true, true, true].repeat(50));
        assert_eq!(failed, expected, "{failures:?}");
        assert_eq!(failures[5].as_deref(), Some("Could not process rule: No such file or directory"));
    }
}
