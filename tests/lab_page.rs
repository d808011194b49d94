use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::machine::Machine;
use crate::support::{PORTFWD, privileged, root};

/// A machine that runs the commands of `docs/lab.md`, and a normalizer for their output.
struct PageRunner {
    machine: Machine,
    normalizer: Normalizer,
}

impl PageRunner {
    fn new() -> Self {
        let machine = Machine::new();
        let here = machine.directory.path();
        for (name, to) in [("rules", root().join("rules")), ("docs", root().join("docs"))] {
            symlink(to, here.join(name)).expect("linked");
        }
        std::fs::create_dir(here.join("bin")).expect("made");
        symlink(PORTFWD, here.join("bin/portfwd")).expect("linked");
        let busybox = machine.stdout_of("sh", &["-c", "command -v busybox"]);
        for name in ["ping", "nc", "arp", "sysctl"] {
            symlink(busybox.trim(), here.join("bin").join(name)).expect("linked");
        }
        // A tmpfs on /var/lib keeps the state of rule sets private.
        machine.stdout_of("mount", &["-t", "tmpfs", "tmpfs", "/var/lib"]);
        Self { machine, normalizer: Normalizer::default() }
    }

    /// Starts Open vSwitch in the machine. Panics if it is not installed.
    fn start_open_vswitch(&self) {
        let script = "mkdir -p /run/openvswitch && cd /run/openvswitch && \
                     ovsdb-tool create conf.db /usr/share/openvswitch/vswitch.ovsschema && \
                     ovsdb-server conf.db --remote=punix:db.sock --pidfile --detach --no-chdir && \
                     ovs-vsctl --no-wait init && ovs-vswitchd --pidfile --detach";
        self.machine.stdout_of("sh", &["-c", script]);
    }

    /// Runs a command and returns its normalized output.
    fn run(&mut self, command: &str) -> String {
        self.wait_for_addresses();
        let here = self.machine.directory.path().to_string_lossy().into_owned();
        let script = format!("cd '{here}'; PATH=\"$PWD/bin:$PATH\"; exec 2>&1; {command}");
        let said = self.machine.run("sh", &["-c", &script]);
        // Some commands of the page fail on purpose, and their output shows the failure.
        let failed = ["100% packet loss", "unreachable", "refused"].iter().any(|word| said.stdout.contains(word));
        assert!(said.code == 0 || failed, "{command}: {said:?}");
        self.normalizer.normalize(&said.stdout)
    }

    /// Waits until each interface with a carrier has a link-local IPv6 address that is not tentative.
    fn wait_for_addresses(&self) {
        let is_done = |name: Option<&str>| {
            let at = name.map_or_else(Vec::new, |name| vec!["-n", name]);
            let said = self.machine.stdout_of("ip", &[&at[..], &["-j", "addr"]].concat());
            let links: Value = serde_json::from_str(&said).expect("JSON");
            links.as_array().expect("a list").iter().all(|link| {
                let flags = link["flags"].to_string();
                let addresses = link["addr_info"].to_string();
                flags.contains("LOOPBACK")
                    || !flags.contains("LOWER_UP")
                    || addresses.contains("fe80") && !addresses.contains("tentative")
            })
        };
        for _ in 0..200 {
            let names = self.machine.stdout_of("ip", &["netns", "list"]);
            let mut names = names.lines().filter_map(|line| line.split(' ').next()).map(Some).chain([None]);
            if names.all(is_done) {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("an interface has no link-local address");
    }

    /// Returns the SVG files that the commands wrote.
    fn drawings(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.machine.directory.path()).expect("readable").flatten();
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "svg")).collect()
    }
}

impl Drop for PageRunner {
    /// Ends the processes that the page left in namespaces.
    fn drop(&mut self) {
        let script = "for name in $(ls /run/netns); do ip netns pids $name | xargs -r kill; done; \
                     cat /run/openvswitch/*.pid | xargs -r kill";
        drop(self.machine.run("sh", &["-c", script]));
    }
}

/// Replaces values that differ between runs: MAC addresses, pids and times. The map gives each MAC address a number.
#[derive(Default)]
struct Normalizer(BTreeMap<[u8; 6], u8>);

impl Normalizer {
    fn normalize(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut in_process_table = false;
        for line in text.lines() {
            if line.starts_with("note: dropped ") {
                continue;
            }
            let numbered = normalize_process(line).filter(|_| in_process_table);
            let line = numbered.as_deref().unwrap_or(line);
            in_process_table = !line.is_empty() && (in_process_table || line.starts_with("  PROCESS "));
            let line = if line.starts_with("round-trip") { "round-trip min/avg/max = 0.05/0.05/0.05 ms" } else { line };
            let (body, last) = line.trim_end().rsplit_once(' ').unwrap_or(("", line.trim_end()));
            let answered = ["STALE", "DELAY", "PROBE"].contains(&last);
            let line = if answered { format!("{body} REACHABLE") } else { line.trim_end().to_owned() };
            let line = match line.strip_prefix("icmp     1 ").and_then(|rest| rest.split_once(' ')) {
                Some((_, rest)) => format!("icmp     1 29 {rest}"),
                None => line,
            };
            let words: Vec<String> = line.split(' ').map(|word| self.normalize_word(word)).collect();
            out += &words.join(" ");
            out.push('\n');
        }
        out
    }

    fn normalize_word(&mut self, word: &str) -> String {
        if let Some(mac) = parse_mac(word) {
            let [a, b, c, d, e, f] = self.replacement(mac);
            return format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        }
        let (address, length) = word.split_once('/').map_or((word, ""), |(address, length)| (address, length));
        if let Some(mac) = address.parse().ok().and_then(|address| mac_from_link_local(&address)) {
            let [a, b, c, d, e, f] = self.replacement(mac).map(u16::from);
            let groups = [a << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
            let address = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, groups[0] ^ 0x0200, groups[1], groups[2], groups[3]);
            return if length.is_empty() { address.to_string() } else { format!("{address}/{length}") };
        }
        match word.split_once('=') {
            Some(("time", _)) => "time=0.05".into(),
            Some(("id", _)) => "id=1".into(),
            _ => word.to_owned(),
        }
    }

    /// Returns the MAC address that the page shows instead of `mac`.
    fn replacement(&mut self, mac: [u8; 6]) -> [u8; 6] {
        if mac[0] & 1 == 1 || mac == [0; 6] {
            return mac;
        }
        let next = u8::try_from(self.0.len() + 1).expect("few");
        [2, 0, 0, 0, 0, *self.0.entry(mac).or_insert(next)]
    }
}

/// Replaces the pid in a row of a process table. Keeps the width of the column.
fn normalize_process(line: &str) -> Option<String> {
    let number = line.trim_start().split(' ').next()?;
    let rest = line.strip_prefix("  ")?.strip_prefix(number)?;
    let behind = rest.trim_start();
    let width = number.len() + rest.len() - behind.len();
    Some(format!("  {:<width$}{behind}", 4711))
}

/// Parses a MAC address such as `02:00:00:00:00:01`.
fn parse_mac(word: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        word.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?).collect();
    bytes?.try_into().ok()
}

/// Returns the MAC address that a link-local address was made from (RFC 4291, appendix A).
fn mac_from_link_local(address: &std::net::Ipv6Addr) -> Option<[u8; 6]> {
    match address.octets() {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => Some([a ^ 2, b, c, d, e, f]),
        _ => None,
    }
}

/// Runs the commands of a section. Returns the section with the current output, and the drawings that the commands
/// wrote.
fn run_section(section: &str) -> (String, Vec<(String, String)>) {
    let mut runner = PageRunner::new();
    if section.contains("ovs-vsctl") {
        runner.start_open_vswitch();
    }
    let mut out = String::new();
    let mut in_block = false;
    for line in section.split_inclusive('\n') {
        in_block = match line.trim_end() {
            "```console" => true,
            "```" => false,
            _ => in_block,
        };
        let command = line.strip_prefix("$ ").filter(|_| in_block);
        // The new page must not contain the old output of commands.
        if !in_block || command.is_some() || line.starts_with("```") {
            out += line;
        }
        out.extend(command.map(|command| runner.run(command.trim_end())));
    }
    let name = |path: &PathBuf| path.file_name().expect("named").to_string_lossy().into_owned();
    let drawings = runner.drawings();
    let read = |path: &PathBuf| (name(path), std::fs::read_to_string(path).expect("readable"));
    (out, drawings.iter().map(read).collect())
}

#[test]
fn the_page_about_labs_shows_real_output() {
    if !privileged() {
        return;
    }
    let page = std::fs::read_to_string(root().join("docs/lab.md")).expect("the page");
    let starts: Vec<usize> = [0].into_iter().chain(page.match_indices("\n## ").map(|(at, _)| at + 1)).collect();
    let ends = starts.iter().copied().skip(1).chain([page.len()]);
    let sections: Vec<&str> = starts.iter().zip(ends).map(|(start, end)| &page[*start..end]).collect();
    let done: Vec<(String, Vec<(String, String)>)> = std::thread::scope(|scope| {
        let running: Vec<_> = sections.iter().map(|section| scope.spawn(|| run_section(section))).collect();
        running.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    // `UPDATE_EXPECT=1 cargo test the_page_about_labs` writes the page and the drawings.
    let text: String = done.iter().map(|(section, _)| section.as_str()).collect();
    expect_test::expect_file!["../docs/lab.md"].assert_eq(&text);
    let folder = root().join("docs/lab");
    let mut drawn = Vec::new();
    for (name, drawing) in done.iter().flat_map(|(_, drawings)| drawings) {
        assert!(text.contains(&format!("](lab/{name})")), "the page shows {name}");
        expect_test::expect_file![folder.join(name)].assert_eq(drawing);
        drawn.push(name.clone());
    }
    for entry in std::fs::read_dir(&folder).expect("readable").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(drawn.contains(&name) || text.contains(&format!("docs/lab/{name}")), "no page shows {name}");
    }
}
