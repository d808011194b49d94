use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::root;

/// Finds the files of a source tree that each file uses.
mod imports;

use imports::{Files, Tests, cycles, uses};

/// The folders of `src` from bottom to top. Each folder may use only the folders before it.
const ROOMS: [&str; 11] =
    ["model", "sys", "nft", "iptables", "ruleset", "store", "config", "engine", "lab", "audit", "cli"];

/// The groups of files that still use each other in a cycle: a folder and file names. Without names, a group is the
/// whole folder.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("ruleset/facts/", "mod routes"),
    (
        "audit/findings/",
        "boot bypass coexist connections container filter/mod mod order/mod reading routes settings \
         shape/duplicate_family shape/guard shape/hits shape/mod shape/range shape/source sockets target",
    ),
    ("audit/findings/", "context filter/accepted filter/clients filter/drop_analysis filter/dropped order/classify"),
    ("ruleset/", "index table"),
    ("ruleset/read/json/", "lookup lower nat object statement"),
    ("ruleset/read/", "nft/act nft/dump nft/load nft/lookup nft/mod nft/parallel nft/reach nft/rule xt xt/targets"),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Reads all files of a source tree: `src`, `tests` or `benches`.
fn all(tree: &str) -> Files {
    let mut found = Vec::new();
    sources(&root().join(tree), &mut found);
    let name = |path: &Path| path.strip_prefix(root().join(tree)).expect("inside").to_string_lossy().into_owned();
    found.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("text"))).collect()
}

#[test]
fn folders_use_only_folders_below_them() {
    let files = all("src");
    let place = |file: &str| {
        let (room, _) = file.split_once('/')?;
        Some(ROOMS.iter().position(|known| *known == room).unwrap_or_else(|| panic!("unknown room {room}")))
    };
    assert!(files.keys().filter_map(|file| place(file)).any(|room| room == ROOMS.len() - 1));
    for used in uses(&files, Tests::Count) {
        let (here, there) = (place(&used.from), place(&used.to));
        assert!(here.is_none() || there <= here, "{} uses {} of {}, which is above it", used.from, used.item, used.to);
    }
}

#[test]
fn no_files_use_each_other_in_a_cycle() {
    for tree in ["src", "tests", "benches"] {
        let uses = uses(&all(tree), Tests::Skip);
        let cycles = cycles(&uses);
        let is = |(folder, names): &(&str, &str), cycle: &BTreeSet<String>| match *names {
            "" => cycle.iter().all(|file| file.starts_with(folder)),
            names => *cycle == names.split(' ').map(|name| format!("{folder}{name}.rs")).collect(),
        };
        let exceptions = if tree == "src" { EXCEPTIONS } else { &[] };
        for cycle in &cycles {
            let inside = uses.iter().filter(|used| cycle.contains(&used.from) && cycle.contains(&used.to));
            let listed: Vec<String> =
                inside.map(|used| format!("{} uses {} of {}", used.from, used.item, used.to)).collect();
            let known = exceptions.iter().any(|exception| is(exception, cycle));
            assert!(known, "{tree}: {cycle:#?} use each other:\n{}", listed.join("\n"));
        }
        for exception in exceptions {
            assert!(
                cycles.iter().any(|cycle| is(exception, cycle)),
                "this exception has no cycle any more: {exception:?}"
            );
        }
    }
}

#[test]
fn unsafe_code_and_process_starts_are_in_one_file_each() {
    for (file, text) in all("src") {
        assert!(file == "sys/ffi.rs" || !["unsafe {", "#[unsafe("].iter().any(|word| text.contains(word)), "{file}");
        assert!(file == "sys/process.rs" || !text.contains("Command::new"), "{file}");
    }
}

/// A row of the table in the head of src/lib.rs: a function between the command line and the kernel.
struct Step {
    file: String,
    function: String,
    /// The number of the step whose function calls this function.
    caller: Option<usize>,
}

/// Reads the table of functions in the head of src/lib.rs.
fn walk(head: &str) -> Vec<Step> {
    let rows = head.lines().filter_map(|line| line.strip_prefix("//! | ")).skip_while(|row| !row.starts_with("step"));
    let rows = rows.skip(2).map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`')).collect::<Vec<_>>());
    let step = |(at, cells): (usize, Vec<&str>)| {
        let [number, file, function, caller, ..] = cells.as_slice() else { panic!("{cells:?}") };
        assert_eq!(number.parse(), Ok(at + 1));
        Step { file: (*file).into(), function: (*function).into(), caller: caller.parse().ok() }
    };
    rows.enumerate().map(step).collect()
}

#[test]
fn the_table_of_functions_in_lib_rs_is_true() {
    let sources = all("src");
    let steps = walk(&sources["lib.rs"]);
    // Returns the code of a file without comments and unit tests.
    let code = |file: &str| {
        let text = sources.get(file).unwrap_or_else(|| panic!("there is no {file}"));
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    };
    for (at, step) in steps.iter().enumerate() {
        let Step { file, function, caller } = step;
        let defined = code(file)
            .match_indices(&format!("fn {function}"))
            .any(|(found, name)| code(file)[found + name.len()..].starts_with(['(', '<']));
        assert!(defined, "{file} has no function {function}");
        let Some(caller) = caller else {
            assert_eq!(at, 0, "{file}");
            continue;
        };
        assert!(*caller <= at, "step {} comes before its caller", at + 1);
        let calls = code(&steps[caller - 1].file);
        let named =
            [format!("::{function}("), format!(".{function}("), format!(" {function}("), format!("({function}(")];
        assert!(named.iter().any(|call| calls.contains(call)), "{} does not call {function}", steps[caller - 1].file);
    }
    let step = |file: &str| 1 + steps.iter().position(|step| step.file == file).expect(file);
    assert!(step("nft/element.rs") <= 8 && step("nft/encode.rs") <= 12 && steps.len() <= 12);
}

#[test]
fn every_test_file_is_in_the_test_binary() {
    let main = std::fs::read_to_string(root().join("tests/main.rs")).expect("text");
    for entry in std::fs::read_dir(root().join("tests")).expect("readable").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "main") {
            assert!(main.contains(&format!("mod {module};")), "{name}");
        }
    }
}

#[test]
fn the_readme_names_every_command() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("text");
    for command in
        ["add", "rm", "list", "check", "plan", "apply", "confirm", "flush", "restore", "try", "audit", "explain", "lab"]
    {
        assert!(readme.contains(&format!("| `portfwd {command}")), "{command}");
        let help = crate::support::portfwd(&[command, "--help"]);
        assert_eq!(help.code, 0, "{help:?}");
    }
    assert_eq!(readme.matches("| `portfwd ").count(), 13);
}
