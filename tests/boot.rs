use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use portfwd::iptables::command::Variant;

use crate::support::{BOTH, PORTFWD, Said, root};

/// A systemd unit that brings an interface up, as a network manager does.
///
/// Before that, the unit saves the rules and `ip_forward` in /run/before.
const NETWORK: &str = "[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'nft list tables >/run/before; iptables-save >>/run/before; cat /proc/sys/net/ipv4/ip_forward >>/run/before'
ExecStart=/bin/sh -ec 'ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up'
";

/// A systemd instance in namespaces. A drop of the value ends the instance.
struct Machine {
    work: tempfile::TempDir,
    cgroup: PathBuf,
    unshare: Child,
    /// The pid of the instance's systemd, outside of its pid namespace.
    init_pid: String,
}

impl Machine {
    fn boot(variant: Option<Variant>) -> Self {
        let work = tempfile::tempdir().expect("directory");
        let (units, state) = (work.path().join("units"), work.path().join("state"));
        let enable = |by: &str, unit: &str| {
            let directory = units.join(format!("{by}.wants"));
            fs::create_dir_all(&directory).expect("made");
            symlink(format!("../{unit}"), directory.join(unit)).expect("linked");
        };
        for (by, unit) in [
            // `systemctl enable` creates the links to the unit files.
            ("multi-user.target", "portfwd.service"),
            ("nftables.service", "portfwd.service"),
            ("multi-user.target", "portfwd-online.service"),
            ("network-online.target", "network.service"),
        ] {
            enable(by, unit);
        }
        fs::create_dir_all(units.join("sysinit.target.wants")).expect("made");
        symlink("/usr/lib/systemd/system/nftables.service", units.join("sysinit.target.wants/nftables.service"))
            .expect("linked");
        fs::write(units.join("network.service"), NETWORK).expect("written");
        let backend = if variant.is_some() { "iptables" } else { "nft" };
        for name in ["portfwd.service", "portfwd-online.service"] {
            let unit = fs::read_to_string(root().join("systemd").join(name)).expect("text");
            let unit = unit.replace("portfwd restore", &format!("portfwd --backend {backend} restore"));
            fs::write(units.join(name), unit).expect("written");
        }
        // The test adds these forwards before the reboot.
        let add = format!(
            "ip link set lo up; for port in 8080 8081; do
                 {PORTFWD} --backend nft --state-dir {} add $port 172.17.0.3:80 --loopback
             done",
            state.display()
        );
        let added = Command::new("unshare").args(["-n", "-p", "-m", "-f", "--mount-proc", "sh", "-ec", &add]).output();
        let added = Said::from(added.expect("unshare is installed"));
        assert!(added.code == 0 && state.join("state.db").exists(), "{added:?}");
        let unified = Path::new("/sys/fs/cgroup/unified");
        let tree = if unified.exists() { unified } else { Path::new("/sys/fs/cgroup") };
        let cgroup = tree.join(format!("portfwd-boot-{}-{backend}", std::process::id()));
        fs::create_dir_all(&cgroup).expect("a cgroup can be made");
        let script = format!("echo $$ > {}/cgroup.procs; exec bash \"$@\"", cgroup.display());
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", &script, "sh"]).arg(root().join("tests/boot.sh")).arg(work.path()).arg(PORTFWD);
        command.arg(variant.unwrap_or(Variant::Nft).name());
        let unshare = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("setsid is installed");
        let mut machine = Self { work, cgroup, unshare, init_pid: String::new() };
        machine.wait_until("boots", |machine| {
            let id = machine.unshare.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            machine.init_pid = children.split_whitespace().next().unwrap_or_default().to_owned();
            let state = machine.run("systemctl is-system-running").stdout;
            ["running\n", "degraded\n"].contains(&state.as_str())
        });
        machine
    }

    fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..300 {
            if holds(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{what}: {:?}", self.run("systemctl --failed; journalctl --no-pager -n 100"));
    }

    fn run(&self, script: &str) -> Said {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init_pid, "--mount", "--net", "--uts", "--ipc", "--pid", "--cgroup"]);
        command.args(["sh", "-c", script]).output().expect("nsenter is installed").into()
    }

    /// Runs systemctl and waits until systemd has no jobs left.
    fn systemctl(&mut self, words: &str) {
        let said = self.run(&format!("systemctl {words}"));
        assert_eq!(said.code, 0, "{words}: {said:?}");
        self.wait_until("no jobs are left", |machine| machine.run("systemctl list-jobs").stdout.contains("No jobs"));
    }

    /// Counts portfwd's tables and rules.
    fn rule_count(&self) -> usize {
        let said = self.run("nft list tables | grep 'inet portfwd'; iptables-save | grep -- 'dport 808.*172.17.0.3'");
        said.stdout.lines().count()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let ended = self.unshare.kill().and_then(|()| self.unshare.wait());
        drop(ended);
        std::thread::sleep(Duration::from_millis(300));
        let removed = Command::new("find").arg(&self.cgroup).args(["-depth", "-type", "d", "-delete"]).status();
        drop((removed, self.work.path()));
    }
}

#[test]
#[ignore = "boots the machine's systemd in namespaces; see the README for the command"]
fn a_booted_host_has_its_rules_before_the_network_and_after_each_flush() {
    for variant in [None].into_iter().chain(BOTH.map(Some)) {
        let mut machine = Machine::boot(variant);
        let journal = machine.run("journalctl --no-pager -u portfwd -u portfwd-online").stdout;
        let before = machine.run("cat /run/before").stdout;
        let marker = if variant.is_some() { "172.17.0.3:80" } else { "table inet portfwd" };
        assert!(before.contains(marker) && before.ends_with("\n1\n"), "{variant:?} {before}: {journal}");
        let switch = machine.run("cat /proc/sys/net/ipv4/conf/docker0/route_localnet").stdout;
        assert_eq!(switch, "1\n", "{variant:?}: {journal}");
        let expected = machine.rule_count();
        assert!(expected > 0, "{variant:?}: {journal}");
        if variant == Some(Variant::Legacy) {
            // nftables.service does not flush iptables-legacy rules.
            continue;
        }
        for words in ["reload nftables", "restart nftables", "try-reload-or-restart nftables"] {
            machine.systemctl(words);
            assert_eq!(machine.rule_count(), expected, "{variant:?}: {words}");
        }
        machine.systemctl("stop nftables");
        assert_eq!(machine.rule_count(), 0, "{variant:?}");
        machine.systemctl("start nftables");
        assert_eq!(machine.rule_count(), expected, "{variant:?}");
        machine.systemctl("stop portfwd");
        assert_eq!(machine.rule_count(), expected, "{variant:?}: stopping a unit changes no rule");
        machine.run("nft flush ruleset");
        machine.systemctl("start portfwd");
        assert_eq!(machine.rule_count(), expected, "{variant:?}");
        machine.run("nft flush ruleset");
        machine.systemctl("reload portfwd");
        assert_eq!(machine.rule_count(), expected, "{variant:?}");
    }
}
