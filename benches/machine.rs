//! The machine in the words that matter for what was measured. No names of hosts, no paths.

use std::process::Command;

/// Processor, cores, kernel, and the versions of the peers.
pub fn words() -> String {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches(['\t', ' ', ':']).trim();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // What comes behind the version is the distribution's, or the builder's.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = release.split('-').next().unwrap_or_default().trim().to_owned();
    let kind = match processors.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor")) {
        true => "a virtual machine",
        false => "a machine",
    };
    let version = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        // As in "nftables v1.0.6 (Lester Gooch #5)".
        let version = text.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or("unknown");
        version.to_owned()
    };
    let (nft, iptables) = (version("nft", &["--version"]), version("iptables", &["--version"]));
    format!("{kind} with {cores} cores of {model}, Linux {kernel}, nftables {nft}, iptables {iptables}")
}
