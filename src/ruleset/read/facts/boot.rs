//! The services of systemd(1) that flush rules at boot, and those that restore portfwd's rules.
//!
//! The reader finds the unit files as systemd does, with their drop-ins, and the files that they load: files of nft(8) with
//! their includes, and scripts, line by line.
//!
//! Limit: the reader does not know what other programs do, or whether a script reaches a line.
//!
//! Sources: systemd.unit(5), systemd.service(5), nft(8).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::gap::gap;
use crate::ruleset::facts::{Boot, Flush, Unit};
use crate::ruleset::table::{Gap, TableFamily};
use crate::sys::namespace::{self, Identity};

/// The directories of units. The first one with a unit wins.
const UNITS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// The maximum size of a file in bytes.
const LARGEST: u64 = 4 << 20;

/// The maximum depth of includes.
const DEEPEST: usize = 8;

/// The maximum number of files that one unit loads.
const MOST: usize = 64;

/// Reads the services. Returns `None` if systemd does not run, or if its services are in another network namespace.
pub(super) fn read(gaps: &mut Vec<Gap>) -> Option<Boot> {
    let is_host = namespace::identity().is_ok_and(|identity| identity == Identity::Host);
    is_host.then(|| below(Path::new("/"), gaps)).flatten()
}

fn below(root: &Path, gaps: &mut Vec<Gap>) -> Option<Boot> {
    // Source: sd_booted(3).
    fs::symlink_metadata(root.join("run/systemd/system")).ok().filter(fs::Metadata::is_dir)?;
    let mut units = Vec::new();
    for name in enabled(root) {
        let mut reader =
            Reader { root, left: MOST, unit: Unit { name: name.clone(), ..Unit::default() }, failed: None };
        reader.service(&settings(root, &name));
        if let Some((path, error)) = reader.failed {
            gaps.push(gap(&format!("what {name} does at boot, `{}`", path.display()), &error));
        }
        let unit = reader.unit;
        if unit.restores || !unit.flushes.is_empty() || !unit.part_of.is_empty() {
            units.push(unit);
        }
    }
    Some(Boot { units })
}

/// The names of the services that some other unit wants: `systemctl enable` makes a link in a directory of that.
fn enabled(root: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for directory in UNITS.iter().flat_map(|directory| entries(&root.join(directory))) {
        let wanting = [Some(OsStr::new("wants")), Some(OsStr::new("requires"))].contains(&directory.extension());
        if wanting {
            let wanted = entries(&directory);
            let services = wanted.iter().filter_map(|path| path.file_name()?.to_str());
            names.extend(services.filter(|name| name.ends_with(".service")).map(str::to_owned));
        }
    }
    names
}

/// What is in a directory; nothing of one that is not there.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The settings of a unit that are asked for here, each with its values: those of its file, and of the drop-ins behind it.
fn settings(root: &Path, name: &str) -> BTreeMap<String, Vec<String>> {
    // One of a template is made from that.
    let template = name.split_once('@').map(|(stem, _)| format!("{stem}@.service"));
    let names: Vec<&str> = std::iter::once(name).chain(template.as_deref()).collect();
    let mut found = names.iter().flat_map(|name| UNITS.iter().map(move |directory| root.join(directory).join(name)));
    let file = found.find(|path| fs::symlink_metadata(path).is_ok());
    // A unit that is empty, or a link to /dev/null, is masked: nothing starts it, whatever else is said of it.
    let Some(file) = file.and_then(|path| text(root, &path).ok()).filter(|text| !text.is_empty()) else {
        return BTreeMap::new();
    };
    let drop_ins = names.iter().rev().flat_map(|name| {
        let directories = UNITS.iter().rev().map(move |directory| root.join(directory).join(format!("{name}.d")));
        directories.flat_map(|directory| entries(&directory))
    });
    let drop_ins = drop_ins.filter(|path| path.extension() == Some(OsStr::new("conf")));
    let texts = std::iter::once(file).chain(drop_ins.filter_map(|path| text(root, &path).ok()));
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in texts {
        for line in text.replace("\\\n", " ").lines().map(str::trim) {
            let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with(['#', ';'])) else { continue };
            let values = settings.entry(key.trim().to_owned()).or_default();
            // Without a value what was said before is taken back.
            match value.trim() {
                "" => values.clear(),
                value => values.push(value.to_owned()),
            }
        }
    }
    settings
}

/// Reads a file of text; a pipe or a device is none.
fn text(root: &Path, path: &Path) -> io::Result<String> {
    // A link to an absolute path leads to one below the root that is looked at.
    let target = fs::read_link(path).ok().filter(|target| target.is_absolute() && root != Path::new("/"));
    let path = target.map_or_else(|| path.to_owned(), |target| inside(root, &target));
    if !fs::metadata(&path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(&path)?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An absolute path as one below a root.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Reads what one unit does.
struct Reader<'a> {
    root: &'a Path,
    /// How many files may still be read.
    left: usize,
    unit: Unit,
    /// The first file that could not be read.
    failed: Option<(PathBuf, io::Error)>,
}

impl Reader<'_> {
    fn service(&mut self, settings: &BTreeMap<String, Vec<String>>) {
        let words = |key: &str| -> BTreeSet<String> {
            let values = settings.get(key).map(Vec::as_slice).unwrap_or_default();
            values.iter().flat_map(|value| value.split_whitespace()).map(str::to_owned).collect()
        };
        (self.unit.after, self.unit.part_of) = (words("After"), words("PartOf"));
        for (key, lines) in settings.iter().filter(|(key, _)| key.starts_with("Exec")) {
            for line in lines {
                let line = line.trim_start_matches(['-', '@', ':', '+', '!', '|']);
                self.command(line, &format!("{key}= of {}", self.unit.name.clone()), true);
            }
        }
    }

    /// A command line, of a unit or of a script.
    fn command(&mut self, line: &str, at: &str, scripts: bool) {
        let quotes: &[char] = &['"', '\'', ';', '{', '}', '(', ')'];
        let words: Vec<&str> =
            line.split_whitespace().map(|word| word.trim_matches(quotes)).filter(|word| !word.is_empty()).collect();
        let is = |word: &str, program: &str| Path::new(word).file_name() == Some(OsStr::new(program));
        if let Some(program) = words.iter().position(|word| is(word, "nft")) {
            let rest = words.get(program + 1..).unwrap_or_default();
            self.statement(rest, at);
            for (number, word) in rest.iter().enumerate() {
                let next = || rest.get(number + 1).copied();
                let file = match *word {
                    "-f" | "--file" => next(),
                    word => word.strip_prefix("--file=").or_else(|| word.strip_prefix("-f")),
                };
                if let Some(file) = file.filter(|file| file.starts_with('/')) {
                    self.rules(Path::new(file), DEEPEST);
                }
            }
        } else if let Some(program) = words.iter().position(|word| is(word, "portfwd")) {
            let rest = words.get(program + 1..).unwrap_or_default();
            self.unit.restores |= rest.iter().any(|word| matches!(*word, "restore" | "apply"));
        } else if scripts {
            // The program, or what a shell is given.
            for word in words.iter().filter(|word| word.starts_with('/')).take(2) {
                self.script(Path::new(word));
            }
        }
    }

    /// A program that may be a script, of a shell or of nft(8) itself.
    fn script(&mut self, path: &Path) {
        let Some(text) = self.file(path, false).filter(|text| text.starts_with("#!")) else { return };
        let first = text.lines().next().unwrap_or_default();
        if first.split(['/', ' ']).any(|word| word == "nft") {
            return self.rules(path, DEEPEST);
        }
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with('#')) {
            self.command(line, &format!("{} line {}", path.display(), number + 1), false);
        }
    }

    /// A file of rules, and what it includes.
    fn rules(&mut self, path: &Path, depth: usize) {
        let Some(text) = self.file(path, true) else { return };
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            for statement in line.split(';') {
                let words: Vec<&str> = statement.split_whitespace().collect();
                match words.as_slice() {
                    ["include", _, ..] if depth > 0 => self.included(statement, path, depth - 1),
                    words => self.statement(words, &format!("{} line {}", path.display(), number + 1)),
                }
            }
        }
    }

    /// `include "PATTERN"`.
    fn included(&mut self, statement: &str, from: &Path, depth: usize) {
        let Some(pattern) = statement.split('"').nth(1).map(Path::new) else { return };
        let beside = from.parent().unwrap_or(from);
        let pattern = beside.join(pattern);
        let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name().and_then(OsStr::to_str)) else {
            return;
        };
        match name.split_once('*') {
            None => self.rules(&pattern, depth),
            Some((before, behind)) => {
                for path in entries(&inside(self.root, directory)) {
                    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
                    if name.len() >= before.len() + behind.len() && name.starts_with(before) && name.ends_with(behind) {
                        self.rules(&directory.join(name), depth);
                    }
                }
            }
        }
    }

    fn statement(&mut self, words: &[&str], at: &str) {
        let Some(flush) = words.windows(2).position(|pair| pair == ["flush", "ruleset"]) else { return };
        let named = words.get(flush + 2);
        let family = [
            TableFamily::Ip,
            TableFamily::Ip6,
            TableFamily::Inet,
            TableFamily::Arp,
            TableFamily::Bridge,
            TableFamily::Netdev,
        ];
        let family = family.into_iter().find(|family| named == Some(&family.name()));
        let flush = Flush { at: at.to_owned(), family };
        if !self.unit.flushes.contains(&flush) {
            self.unit.flushes.push(flush);
        }
    }

    /// The text of a file. What is not there is not loaded; what may not be read is told where it `matters`.
    fn file(&mut self, path: &Path, matters: bool) -> Option<String> {
        self.left = self.left.checked_sub(1)?;
        match text(self.root, &inside(self.root, path)) {
            Ok(text) => Some(text),
            Err(error) => {
                if matters && error.kind() != io::ErrorKind::NotFound && self.failed.is_none() {
                    self.failed = Some((path.to_owned(), error));
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)], links: &[&str]) -> (tempfile::TempDir, Vec<Gap>, Option<Boot>) {
        let directory = tempfile::tempdir().expect("directory");
        let root = directory.path();
        fs::create_dir_all(root.join("run/systemd/system")).expect("made");
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            fs::write(path, text).expect("written");
        }
        for name in links {
            let wants = root.join("etc/systemd/system/sysinit.target.wants");
            fs::create_dir_all(&wants).expect("made");
            std::os::unix::fs::symlink(format!("/lib/systemd/system/{name}"), wants.join(name)).expect("linked");
        }
        let mut gaps = Vec::new();
        let boot = below(root, &mut gaps);
        (directory, gaps, boot)
    }

    const NFTABLES: (&str, &str) = (
        "lib/systemd/system/nftables.service",
        "[Service]\nExecStart=/usr/sbin/nft -f /etc/nftables.conf\nExecReload=/usr/sbin/nft 'flush ruleset; include \"/etc/nftables.conf\";'\nExecStop=/usr/sbin/nft flush ruleset\n",
    );

    fn flushes(boot: &Option<Boot>) -> Vec<String> {
        let units = boot.iter().flat_map(|boot| &boot.units);
        let told = |flush: &Flush| {
            format!("{}{}", flush.at, flush.family.map_or(String::new(), |family| format!(" of {}", family.name())))
        };
        units.flat_map(|unit| unit.flushes.iter().map(told)).collect()
    }

    #[test]
    fn who_flushes_at_boot_is_found_in_units_and_in_what_they_load() {
        let conf = (
            "etc/nftables.conf",
            "#!/usr/sbin/nft -f\n# flush ruleset\n\nflush ruleset\ninclude \"/etc/nft.d/*.nft\"\n",
        );
        let more = ("etc/nft.d/a.nft", "table ip x { }; flush ruleset inet\n");
        let other = ("etc/nft.d/a.conf", "flush ruleset arp\n");
        let (_root, gaps, boot) = host(&[NFTABLES, conf, more, other], &["nftables.service"]);
        assert_eq!(gaps, []);
        assert_eq!(
            flushes(&boot),
            [
                "ExecReload= of nftables.service",
                "/etc/nftables.conf line 4",
                "/etc/nft.d/a.nft line 1 of inet",
                "ExecStop= of nftables.service",
            ]
        );
        // Not enabled, masked, and changed by a drop-in.
        let (_root, _, boot) = host(&[NFTABLES, conf], &[]);
        assert_eq!(boot, Some(Boot::default()));
        let drop_in = (
            "etc/systemd/system/nftables.service.d/ours.conf",
            "[Service]\nExecStart=\nExecStart=/usr/sbin/nft -f /etc/other.nft\nExecReload=\nExecStop=\n",
        );
        let (_root, _, boot) =
            host(&[NFTABLES, conf, drop_in, ("etc/other.nft", "table ip x\n")], &["nftables.service"]);
        assert_eq!(flushes(&boot), [""; 0]);
        let masked = ("etc/systemd/system/nftables.service", "");
        let (_root, _, boot) = host(&[NFTABLES, conf, masked], &["nftables.service"]);
        assert_eq!(flushes(&boot), [""; 0]);
    }

    #[test]
    fn scripts_are_looked_at_line_by_line() {
        let unit = ("lib/systemd/system/fw.service", "[Service]\nExecStart=-/bin/sh -e /etc/fw.sh start\n");
        let script = ("etc/fw.sh", "#!/bin/sh\n# nft flush ruleset\nif x; then /usr/sbin/nft flush ruleset; fi\n");
        let (_root, _, boot) = host(&[unit, script], &["fw.service"]);
        assert_eq!(flushes(&boot), ["/etc/fw.sh line 3"]);
        let unit = ("lib/systemd/system/fw.service", "[Service]\nExecStart=/etc/fw.nft\n");
        let rules = ("etc/fw.nft", "#!/usr/sbin/nft -f\nflush ruleset\n");
        let (_root, _, boot) = host(&[unit, rules], &["fw.service"]);
        assert_eq!(flushes(&boot), ["/etc/fw.nft line 2"]);
    }

    #[test]
    fn our_own_unit_comes_behind_those_that_it_names() {
        let ours = ("lib/systemd/system/portfwd.service", include_str!("../../../../systemd/portfwd.service"));
        let (_root, _, boot) = host(&[NFTABLES, ours], &["nftables.service", "portfwd.service"]);
        let boot = boot.expect("systemd");
        assert!(boot.units.iter().any(|unit| unit.restores));
        assert!(boot.is_put_back_after("nftables.service") && !boot.is_put_back_after("other.service"));
    }

    #[test]
    fn a_host_without_systemd_tells_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        assert_eq!(below(directory.path(), &mut Vec::new()), None);
    }
}
