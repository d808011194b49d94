//! `portfwd lab show`: prints or draws the live state of a lab.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::{Failure, Global, Output, json};
use crate::lab::net::picture::{Picture, svg};

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// Lab, or its file; can be left out if there is only one lab
    #[arg(value_name = "NAME|FILE")]
    pub name: Option<String>,
    /// Draw the lab into this file instead of printing it; `-` is stdout
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(serde::Serialize)]
struct Shown<'a> {
    version: u32,
    #[serde(flatten)]
    picture: &'a Picture,
}

impl ShowArgs {
    /// Prints a lab, or writes its drawing.
    pub fn show(&self, picture: &Picture, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
        let drawn = self.svg.as_deref();
        match drawn {
            Some(path) if path == Path::new("-") => output.stdout.write_all(svg(picture).as_bytes())?,
            Some(path) => {
                replace(path, &svg(picture)).with_context(|| format!("cannot write `{}`", path.display()))?;
            }
            None => {}
        }
        match (global.json, drawn) {
            (true, _) => json::print(&Shown { version: json::VERSION, picture }, output.stdout)?,
            (false, None) => write!(output.stdout, "{picture}")?,
            (false, Some(_)) => {}
        }
        Ok(0)
    }

    /// Checks the options.
    ///
    /// # Errors
    /// Fails if JSON and the drawing would both go to stdout.
    pub fn check(&self, global: &Global) -> Result<(), Failure> {
        if global.json && self.svg.as_deref() == Some(Path::new("-")) {
            let what = "`--json` and `--svg -` would both print to stdout".into();
            return Err(Failure::Usage { what, help: "give `--svg` a file, or leave one of them out".into() });
        }
        Ok(())
    }
}

/// Replaces the content of a file atomically.
///
/// Writes directly into a special file, such as a pipe or /dev/null. Follows a symbolic link, and replaces its target.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let before = match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            return OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
        }
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let path = if before.is_some() { path.canonicalize()? } else { path.to_owned() };
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let new = path.with_file_name(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    let mut file = File::create_new(&new)?;
    let written = || -> io::Result<()> {
        file.write_all(text.as_bytes())?;
        before.map_or(Ok(()), |before| file.set_permissions(before.permissions()))?;
        file.sync_all()?;
        fs::rename(&new, &path)
    }();
    if written.is_err() {
        // Removes the temporary file, because it may fill the disk.
        drop(fs::remove_file(&new));
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_drawing_replaces_a_file_and_is_written_into_a_pipe() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        replace(&at("a.svg"), "one").expect("written");
        fs::set_permissions(at("a.svg"), fs::Permissions::from_mode(0o640)).expect("set");
        symlink("a.svg", at("link.svg")).expect("linked");
        replace(&at("link.svg"), "two").expect("written");
        assert_eq!(fs::read_to_string(at("a.svg")).expect("readable"), "two");
        assert!(at("link.svg").is_symlink());
        assert_eq!(fs::metadata(at("a.svg")).expect("there").permissions().mode() & 0o777, 0o640);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let reader = std::thread::spawn({
            let pipe = at("pipe");
            move || fs::read_to_string(pipe)
        });
        replace(&at("pipe"), "three").expect("written");
        assert_eq!(reader.join().expect("no panic").expect("readable"), "three");
        assert!(!fs::metadata(at("pipe")).expect("there").is_file());
        assert!(replace(&at("no/such/directory"), "four").is_err());
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 3, "the directory has no temporary file");
    }
}
