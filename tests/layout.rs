use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::root;

/// The rooms from bottom to top: each may use only those before it.
const ROOMS: [&str; 10] = ["model", "sys", "nft", "iptables", "store", "config", "engine", "lab", "audit", "cli"];

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

fn all() -> BTreeMap<String, String> {
    let mut found = Vec::new();
    sources(&root().join("src"), &mut found);
    let name = |path: &Path| path.strip_prefix(root().join("src")).expect("inside").to_string_lossy().into_owned();
    found.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("text"))).collect()
}

#[test]
fn arrows_between_rooms_point_down() {
    for (file, text) in all() {
        let Some((room, _)) = file.split_once('/') else { continue };
        let here = ROOMS.iter().position(|known| *known == room).unwrap_or_else(|| panic!("unknown room {room}"));
        for used in text.split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if let Some(there) = ROOMS.iter().position(|known| *known == used) {
                assert!(there <= here, "{file} uses {used}, which is above it");
            }
        }
    }
}

#[test]
fn unsafe_is_in_one_file_and_the_start_and_processes_are_started_in_one_other() {
    for (file, text) in all() {
        assert!(
            ["main.rs", "sys/ffi.rs"].contains(&file.as_str())
                || !["unsafe {", "#[unsafe("].iter().any(|word| text.contains(word)),
            "{file}"
        );
        assert!(file == "sys/process.rs" || !text.contains("Command::new"), "{file}");
    }
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
