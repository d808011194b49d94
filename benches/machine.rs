//! Describes the machine of a run: the processor, the kernel and the versions of other programs. Host names and paths
//! are left out.

use std::process::Command;

/// Returns the processor, its cores, the kernel, and the versions of nft and iptables.
pub fn words() -> String {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches(['\t', ' ', ':']).trim();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // The text is the kernel version, a `-` and the suffix of the distribution.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = release.split('-').next().unwrap_or_default().trim().to_owned();
    let kind = match processors.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor")) {
        true => "a virtual machine",
        false => "a machine",
    };
    let version = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        // An example of the text is `nftables v1.0.6 (Lester Gooch #5)`.
        let version = text.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or("unknown");
        version.to_owned()
    };
    let (nft, iptables) = (version("nft", &["--version"]), version("iptables", &["--version"]));
    format!("{kind} with {cores} cores of {model}, Linux {kernel}, nftables {nft}, iptables {iptables}")
}
