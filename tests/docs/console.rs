//! Runs the commands that pages of the documentation show, and compares their output with the page.
//!
//! Each section of a page has its own machine with the network of `network.toml`. `ssh NAME` runs a command on the
//! machine NAME. Each TOML block that begins with `# NAME.toml` becomes a file. The tests in [`super`] do not check
//! blocks of the kind `toml invalid`.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::thread;

use crate::machine::Machine;
use crate::support::{PORTFWD, root};

/// A script for `ssh`. `ssh host` runs a command in the current namespace. `ssh NAME` runs a command in the network
/// namespace NAME.
const SSH: &str = "#!/bin/sh\nname=$1; shift\n[ $name = host ] || set -- ip netns exec $name \"$@\"\nexec \"$@\"\n";

/// Returns the page with the current output of its commands.
pub fn with_output(page: &str) -> String {
    let starts: Vec<usize> = [0].into_iter().chain(page.match_indices("\n## ").map(|(at, _)| at + 1)).collect();
    let ends = starts.iter().copied().skip(1).chain([page.len()]);
    let sections = starts.iter().zip(ends).map(|(start, end)| &page[*start..end]);
    thread::scope(|scope| {
        let running: Vec<_> = sections.map(|section| scope.spawn(move || run_section(section, page))).collect();
        running.into_iter().map(|section| section.join().expect("no panic")).collect()
    })
}

fn run_section(section: &str, page: &str) -> String {
    if !section.contains("```console") {
        return section.to_owned();
    }
    let machine = prepare(page);
    let mut out = String::new();
    let mut in_block = false;
    for line in section.split_inclusive('\n') {
        in_block = match line.trim_end() {
            "```console" => true,
            "```" => false,
            _ => in_block,
        };
        let command = line.strip_prefix("$ ").filter(|_| in_block);
        if !in_block || command.is_some() || line.starts_with("```") {
            out += line;
        }
        out.extend(command.map(|command| run(&machine, command)));
    }
    out
}

/// Builds the network, and writes the files of the page.
fn prepare(page: &str) -> Machine {
    let machine = Machine::new();
    machine.ok(&["up", "tests/docs/network.toml"]);
    let here = machine.directory.path();
    let write = |name: &str, text: &str| std::fs::write(here.join(name), text).expect("written");
    std::fs::create_dir(here.join("bin")).expect("created");
    symlink(PORTFWD, here.join("bin/portfwd")).expect("linked");
    symlink(root().join("rules"), here.join("rules")).expect("linked");
    let busybox = machine.stdout_of("sh", &["-c", "command -v busybox"]);
    for name in ["httpd", "wget"] {
        symlink(busybox.trim(), here.join("bin").join(name)).expect("linked");
    }
    write("bin/ssh", SSH);
    std::fs::set_permissions(here.join("bin/ssh"), std::fs::Permissions::from_mode(0o755)).expect("executable");
    write("index.html", "hello from web\n");
    for (name, text) in files(page) {
        write(name, text);
    }
    run(&machine, "ssh web httpd -p 80 -h .");
    machine
}

/// Returns the file name and the text of each TOML block that begins with a file name.
fn files(page: &str) -> Vec<(&str, &str)> {
    let blocks = page.split("```toml").skip(1).filter_map(|rest| rest.split_once('\n')?.1.split_once("\n```"));
    blocks
        .filter_map(|(text, _)| {
            let name = text.lines().next()?.strip_prefix("# ")?;
            name.ends_with(".toml").then_some((name, text))
        })
        .collect()
}

/// Runs a command. Returns its stdout and stderr without process numbers and without white space at line ends.
fn run(machine: &Machine, command: &str) -> String {
    let here: &Path = machine.directory.path();
    let script = format!("cd '{}'; PATH=\"$PWD/bin:$PATH\"; exec 2>&1; {}", here.display(), command.trim_end());
    let said = machine.run("sh", &["-c", &script]);
    said.stdout.lines().map(|line| without_process_numbers(line.trim_end()) + "\n").collect()
}

/// Replaces the number in text such as `process 4711` by 812, the number in the pages.
fn without_process_numbers(line: &str) -> String {
    let mut parts = line.split("process ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        text += "process ";
        text += if rest.len() < part.len() { "812" } else { "" };
        text += rest;
    }
    text
}
