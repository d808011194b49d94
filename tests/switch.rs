use crate::machine::{Machine, is_bare, kill_at_system_calls};
use crate::support::privileged;

const OVS: &str = "rules/lab/ovs.toml";

/// Returns a machine that runs Open vSwitch, or `None` if namespaces or Open vSwitch are not available.
fn machine_with_open_vswitch() -> Option<Machine> {
    privileged().then(Machine::new).filter(Machine::open_vswitch)
}

/// Runs `ovs-vsctl` in the machine and returns its stdout.
fn vsctl(machine: &Machine, arguments: &[&str]) -> String {
    machine.stdout_of("ovs-vsctl", &[&["-vsyslog:off", "--db=unix:/run/openvswitch/db.sock"], arguments].concat())
}

#[test]
fn four_namespaces_and_the_host_reach_each_other_over_open_vswitch() {
    let Some(machine) = machine_with_open_vswitch() else { return };
    machine.ok(&["up", OVS]);
    for from in ["red", "blue", "orange", "gray"] {
        for to in [1, 2, 3, 4, 5] {
            assert!(machine.pings(from, &format!("192.168.15.{to}")), "{from} to {to}");
        }
        let seen = machine.stdout_of("ip", &["-n", from, "-br", "-4", "addr", "show", "dev", &format!("veth-{from}")]);
        assert!(seen.contains("UP") && seen.contains("192.168.15."), "{seen}");
    }
    assert_eq!(machine.run("busybox", &["ping", "-c1", "-W2", "192.168.15.3"]).code, 0);
    // The test also sends TCP, because TCP needs valid checksums.
    std::fs::write(machine.directory.path().join("index.html"), "blue\n").expect("written");
    let directory = machine.directory.path().to_string_lossy().into_owned();
    machine.ok(&["exec", "blue", "--", "busybox", "httpd", "-p", "80", "-h", &directory]);
    let got =
        machine.ok(&["exec", "red", "--", "timeout", "5", "busybox", "wget", "-q", "-O", "-", "http://192.168.15.2/"]);
    assert_eq!(got, "blue\n");
    let got = machine.stdout_of("timeout", &["5", "busybox", "wget", "-q", "-O", "-", "http://192.168.15.2/"]);
    assert_eq!(got, "blue\n");
    let show = vsctl(&machine, &["show"]);
    for word in ["Bridge v-net-0", "Port veth-red-br", "Port veth-gray-br", "datapath_type: netdev"] {
        assert!(show.contains(word), "{show}");
    }
    assert_eq!(vsctl(&machine, &["list-ports", "v-net-0"]).lines().count(), 4);
    assert_eq!(machine.ok(&["up", OVS]), "ovs: unchanged\n");
    vsctl(&machine, &["del-port", "veth-red-br"]);
    assert!(machine.ok(&["list"]).contains("missing: port `veth-red-br`"));
    assert!(machine.ok(&["up", OVS]).ends_with("ovs: 1 made, 0 removed\n"));
    assert!(machine.pings("red", "192.168.15.2"));
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn foreign_bridges_are_refused_and_stay() {
    let Some(machine) = machine_with_open_vswitch() else { return };
    vsctl(&machine, &["add-br", "v-net-0", "--", "set", "bridge", "v-net-0", "datapath_type=netdev"]);
    let before = machine.traces();
    let said = machine.lab(&["up", OVS]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("the interface `v-net-0` exists in the host"), "{said:?}");
    assert_eq!(machine.traces(), before);
    // A foreign bridge that replaces the lab's bridge does not belong to the lab.
    vsctl(&machine, &["del-br", "v-net-0"]);
    machine.ok(&["up", OVS]);
    vsctl(&machine, &["del-br", "v-net-0"]);
    vsctl(&machine, &["add-br", "v-net-0", "--", "set", "bridge", "v-net-0", "datapath_type=netdev"]);
    let said = machine.lab(&["down"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.stderr.contains("kept the Open vSwitch bridge `v-net-0` in the host: the lab did not make it"),
        "{said:?}"
    );
    assert_eq!(vsctl(&machine, &["list-br"]), "v-net-0\n");
}

#[test]
fn without_open_vswitch_up_names_the_package_or_service() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    if std::path::Path::new("/usr/bin/ovs-vsctl").exists() {
        let said = machine.lab(&["up", OVS]);
        assert_eq!(said.code, 5, "{said:?}");
        assert!(said.stderr.contains("no ovsdb-server answers at `unix:/run/openvswitch/db.sock`"), "{said:?}");
        assert!(said.stderr.contains("help: start it"), "{said:?}");
        machine.stdout_of("mount", &["--bind", "/dev/null", "/usr/bin/ovs-vsctl"]);
    }
    let said = machine.lab(&["up", OVS]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.stderr.contains("help: install the package `openvswitch-switch`"), "{said:?}");
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn down_after_a_kill_at_any_system_call_leaves_no_bridge() {
    if let Some(machine) = machine_with_open_vswitch() {
        kill_at_system_calls(&machine, OVS, "blue", 41);
    }
}
