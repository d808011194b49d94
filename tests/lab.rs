use crate::machine::{Machine, is_bare, kill_at_system_calls};
use crate::support::{PORTFWD, privileged, root};

const RED_BLUE: &str = "rules/lab/red-blue.toml";
const BRIDGE: &str = "rules/lab/bridge.toml";

#[test]
fn two_namespaces_reach_each_other_and_ip_netns_lists_them() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", RED_BLUE]);
    assert!(machine.pings("red", "192.168.15.2") && machine.pings("blue", "192.168.15.1"));
    assert!(!machine.pings("red", "192.168.15.3"));
    let mut names: Vec<_> = machine
        .stdout_of("ip", &["netns", "list"])
        .lines()
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["blue", "red"]);
    for (name, address) in [("red", "192.168.15.1/24"), ("blue", "192.168.15.2/24")] {
        let seen = machine.stdout_of("ip", &["-n", name, "-br", "-4", "addr", "show", "dev", &format!("veth-{name}")]);
        assert!(seen.contains("UP") && seen.contains(address), "{seen}");
        let inside = machine.ok(&["exec", name, "--", "ls", "/sys/class/net"]);
        assert_eq!(inside, format!("lo\nveth-{name}\n"));
    }
    assert_eq!(machine.stdout_of("ip", &["-br", "link"]).lines().count(), 1, "no new interface on the host");
    assert_eq!(machine.lab(&["exec", "red", "--", "sh", "-c", "exit 7"]).code, 7);
    machine.ok(&["down", RED_BLUE]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn four_namespaces_and_the_host_reach_each_other_over_a_bridge() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", BRIDGE]);
    let all = ["red", "blue", "orange", "gray"];
    for (index, from) in all.iter().enumerate() {
        for to in [1, 2, 3, 4, 5] {
            assert!(machine.pings(from, &format!("192.168.15.{to}")), "{from} to {to}");
        }
        assert_eq!(machine.run("busybox", &["ping", "-c1", "-W2", &format!("192.168.15.{}", index + 1)]).code, 0);
        let port = machine.stdout_of("bridge", &["link", "show", "dev", &format!("veth-{from}-br")]);
        assert!(port.contains("master v-net-0 state forwarding"), "{port}");
        let route = machine.stdout_of("ip", &["-n", from, "route", "show", "default"]);
        assert!(route.starts_with("default via 192.168.15.5"), "{route}");
    }
    machine.ok(&["down", "bridge"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn a_second_up_only_recreates_lost_objects() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", BRIDGE]);
    let snapshot = || machine.stdout_of("ip", &["-o", "link"]) + &machine.stdout_of("ip", &["-n", "red", "-o", "addr"]);
    let before = snapshot();
    assert_eq!(machine.ok(&["up", BRIDGE]), "bridge: unchanged\n");
    assert_eq!(snapshot(), before);
    machine.stdout_of("ip", &["netns", "del", "blue"]);
    machine.stdout_of("ip", &["-n", "gray", "link", "del", "veth-gray"]);
    machine.stdout_of("ip", &["-n", "orange", "route", "del", "default"]);
    assert!(machine.ok(&["list"]).contains("partial"));
    let planned = machine.ok(&["up", BRIDGE, "--dry-run"]);
    assert!(planned.contains("+ namespace `blue`") && !planned.contains("`red`"), "{planned}");
    let made = machine.ok(&["up", BRIDGE]);
    assert_eq!(made.lines().filter(|line| line.starts_with('+')).count(), 14, "{made}");
    assert!(machine.pings("blue", "192.168.15.4") && machine.pings("gray", "192.168.15.2"));
    assert!(machine.ok(&["list", "--json"]).contains(r#""state":"up","host":null"#));
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn routes_are_recreated_after_their_address_changes() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let lab = |addresses: &str| {
        let ends = format!(
            "{{ namespace = \"red\", name = \"eth0\", address = [{addresses}] }}, {{ name = \"va\", address = [\"10.1.0.1/24\"] }}"
        );
        let route = "[[route]]\nnamespace = \"red\"\nto = \"default\"\nvia = \"10.1.0.1\"\n";
        machine.file(&format!("name = \"a\"\n[[namespace]]\nname = \"red\"\n[[veth]]\nends = [{ends}]\n{route}"))
    };
    for addresses in ["\"10.1.0.2/24\"", "\"10.1.0.3/24\"", "\"10.1.0.4/24\", \"10.1.0.5/24\"", "\"10.1.0.5/24\""] {
        machine.ok(&["up", &lab(addresses)]);
        assert!(machine.ok(&["list", "--json"]).contains(r#""state":"up""#), "{addresses}");
        assert!(machine.stdout_of("ip", &["-n", "red", "route"]).contains("default via 10.1.0.1"), "{addresses}");
        for address in addresses.split(", ") {
            let addresses_now = machine.stdout_of("ip", &["-n", "red", "-o", "addr"]);
            assert!(addresses_now.contains(address.trim_matches('"')), "{addresses}: {addresses_now}");
        }
    }
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn a_route_of_another_lab_is_refused_and_stays() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let lab = |name: &str, net: u8| {
        let ends = format!(
            "{{ namespace = \"{name}\", name = \"eth0\", address = [\"10.{net}.0.2/24\"] }}, {{ name = \"v{name}\", address = [\"10.{net}.0.1/24\"] }}"
        );
        let route = "[[route]]\nto = \"10.50.0.0/16\"\nvia = \"10.1.0.2\"\n";
        let text = format!("name = \"{name}\"\n[[namespace]]\nname = \"{name}\"\n[[veth]]\nends = [{ends}]\n{route}");
        machine.file(&text)
    };
    machine.ok(&["up", &lab("a", 1)]);
    let said = machine.lab(&["up", &lab("b", 2)]);
    assert!(said.code == 6 && said.stderr.contains("route 10.50.0.0/16 via 10.1.0.2 exists"), "{said:?}");
    assert!(machine.stdout_of("ip", &["route"]).contains("10.50.0.0/16"));
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn a_failed_last_journal_write_is_only_a_warning() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    // The first rename writes the journal before `up` creates anything. strace lets the second rename fail.
    let inject = "inject=rename:error=ENOSPC:when=2";
    let said = machine.run("strace", &["-f", "-qq", "-o", "/dev/null", "-e", inject, PORTFWD, "lab", "up", RED_BLUE]);
    assert!(
        said.code == 0 && said.stderr.contains("could not be recorded") && said.stderr.contains("No space"),
        "{said:?}"
    );
    assert!(machine.pings("red", "192.168.15.2"));
    assert_eq!(machine.ok(&["up", RED_BLUE]), "red-blue: unchanged\n");
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn exec_restores_the_default_signal_handling() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", RED_BLUE]);
    let said = machine.lab(&["exec", "red", "--", "grep", "SigIgn", "/proc/self/status"]);
    let ignored = said.stdout.trim().rsplit('\t').next().and_then(|mask| u64::from_str_radix(mask, 16).ok());
    // The Rust runtime ignores SIGPIPE by default, so the test checks that signal.
    assert_eq!(ignored.map(|mask| mask >> 12 & 1), Some(0), "{said:?}");
}

#[test]
fn down_fails_without_permission_to_enter_the_host() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.stdout_of("ip", &["netns", "add", "h"]);
    let bridge = machine.file("name = \"b\"\n[[bridge]]\nname = \"br0\"\naddress = [\"10.1.0.1/24\"]\n");
    machine.ok(&["up", "--netns", "h", &bridge]);
    let nobody = ["--bounding-set", "-sys_admin", "--inh-caps", "-all", PORTFWD, "lab", "down", "b"];
    let said = machine.run("setpriv", &nobody);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(machine.stdout_of("ip", &["-n", "h", "link"]).contains("br0"));
    machine.ok(&["down", "b"]);
    assert!(!machine.stdout_of("ip", &["-n", "h", "link"]).contains("br0"));
    machine.stdout_of("ip", &["netns", "del", "h"]);
}

#[test]
fn up_removes_objects_that_are_not_in_the_file() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let text = std::fs::read_to_string(root().join(RED_BLUE)).expect("readable");
    let first = machine.file(&format!("name = \"x\"\n{text}"));
    machine.ok(&["up", &first]);
    let inode = || machine.stdout_of("stat", &["-c", "%i", "/run/netns/red"]);
    let link = || machine.stdout_of("ip", &["-n", "red", "-br", "link"]);
    let before = (inode(), link());
    let other =
        text.replace("192.168.15.1/24", "192.168.15.7/24") + "[[namespace]]\nname = \"green\"\nforward = true\n";
    let said = machine.ok(&["up", &machine.file(&format!("name = \"x\"\n{other}"))]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "- address 192.168.15.1/24 of `veth-red` in `red`",
            "+ namespace `green`",
            "+ forwarding in `green`",
            "+ address 192.168.15.7/24 of `veth-red` in `red`",
            "x: 3 made, 1 removed",
        ]
    );
    assert_eq!((inode(), link()), before);
    assert!(machine.pings("blue", "192.168.15.7") && !machine.pings("blue", "192.168.15.1"));
    assert_eq!(machine.ok(&["exec", "green", "--", "cat", "/proc/sys/net/ipv4/ip_forward"]), "1\n");
    // A veth end has the same name but a new peer. `up` makes a new pair and sets the address again.
    let moved = other.replace("\"blue\"", "\"green2\"").replace("\"green\"", "\"blue\"");
    machine.ok(&["up", &machine.file(&format!("name = \"x\"\n{moved}"))]);
    assert!(machine.pings("green2", "192.168.15.7"));
    machine.ok(&["down", "x"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn foreign_objects_are_refused_and_stay() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.stdout_of("ip", &["netns", "add", "red"]);
    machine.stdout_of("ip", &["link", "add", "v-net-0", "type", "bridge"]);
    let before = machine.traces() + &machine.stdout_of("stat", &["-c", "%i", "/run/netns/red"]);
    let said = machine.lab(&["up", RED_BLUE]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("the namespace `red` exists"), "{said:?}");
    let bridge = machine.file("name = \"b\"\n[[namespace]]\nname = \"green\"\n[[bridge]]\nname = \"v-net-0\"\n");
    let said = machine.lab(&["up", &bridge]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("the interface `v-net-0` exists in the host"), "{said:?}");
    assert_eq!(machine.lab(&["exec", "red", "--", "true"]).code, 1, "the namespace belongs to no lab");
    assert_eq!(machine.traces() + &machine.stdout_of("stat", &["-c", "%i", "/run/netns/red"]), before);
    // A foreign namespace that replaces the lab's namespace does not belong to the lab.
    machine.stdout_of("ip", &["netns", "del", "red"]);
    machine.ok(&["up", RED_BLUE]);
    machine.stdout_of("ip", &["netns", "del", "red"]);
    machine.stdout_of("ip", &["netns", "add", "red"]);
    let said = machine.lab(&["down"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stderr.contains("kept the namespace `red`: the lab did not make it"), "{said:?}");
    assert_eq!(machine.stdout_of("ip", &["netns", "list"]), "red\n");
}

#[test]
fn a_failed_up_is_rolled_back() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let text = std::fs::read_to_string(root().join(BRIDGE)).expect("readable");
    let unreachable = "[[route]]\nnamespace = \"gray\"\nto = \"203.0.113.0/24\"\nvia = \"198.51.100.1\"\n";
    let broken = machine.file(&format!("name = \"bridge\"\n{text}\n{unreachable}"));
    let said = machine.lab(&["up", &broken]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("cannot make the route 203.0.113.0/24 via 198.51.100.1 in `gray`"), "{said:?}");
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
    // A failed `up` does not change a running lab.
    machine.ok(&["up", BRIDGE]);
    assert_eq!(machine.lab(&["up", &broken]).code, 1);
    assert_eq!(machine.ok(&["up", BRIDGE]), "bridge: unchanged\n");
    machine.ok(&["down"]);
    // In each round, strace lets another mount(2) of `up` fail.
    let mut failed = 0;
    for when in 1..=8 {
        let inject = format!("inject=mount:error=ENOMEM:when={when}");
        let strace_args = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "lab", "up", RED_BLUE];
        if machine.run("strace", &strace_args).code == 0 {
            machine.ok(&["down"]);
        } else {
            failed += 1;
        }
        assert!(is_bare(&machine.traces()), "{when}: {}", machine.traces());
    }
    assert!(failed >= 3, "{failed}");
}

#[test]
fn down_after_a_kill_at_any_system_call_leaves_no_trace() {
    if privileged() {
        kill_at_system_calls(&Machine::new(), BRIDGE, "blue", 9);
    }
}

#[test]
fn concurrent_ups_wait_for_each_other() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|_| scope.spawn(|| machine.ok(&["up", BRIDGE]))).collect();
        let said: Vec<String> = running.into_iter().map(|one| one.join().expect("no panic")).collect();
        assert_eq!(said.iter().filter(|said| *said != "bridge: unchanged\n").count(), 1, "{said:?}");
    });
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn exec_with_a_file_needs_no_root_and_leaves_no_trace() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let ping = ["busybox", "ping", "-c1", "-W2", "192.168.15.2"];
    let inside = |before: &[&str]| {
        let exec_args = [PORTFWD, "lab", "exec", "--file", RED_BLUE, "red", "--"];
        let all = [before, &exec_args, &ping].concat();
        machine.run(all[0], &all[1..])
    };
    let said = inside(&[]);
    assert_eq!(said.code, 0, "{said:?}");
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let said = inside(&nobody);
    if said.code == 5 && said.stderr.contains("user namespaces") {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{said:?}");
        eprintln!("SKIPPED: needs unprivileged user namespaces");
    } else {
        assert_eq!(said.code, 0, "{said:?}");
    }
    assert_eq!(machine.traces().lines().count(), 1, "{}", machine.traces());
    // `list` and `up` need root. Without root they report the missing privilege, and no missing objects.
    machine.ok(&["up", RED_BLUE]);
    let list = [&nobody[..], &[PORTFWD, "lab", "list"]].concat();
    let said = machine.run(list[0], &list[1..]);
    assert_eq!((said.code, said.stdout.as_str()), (5, ""), "{said:?}");
    let up = [&nobody[..], &[PORTFWD, "lab", "up", RED_BLUE]].concat();
    let said = machine.run(up[0], &up[1..]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.stderr.contains("run as root"), "{said:?}");
}

#[test]
fn the_host_of_a_lab_can_be_a_named_namespace() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    for name in ["host", "other"] {
        machine.stdout_of("ip", &["netns", "add", name]);
    }
    let state = machine.directory.path().join("state").to_string_lossy().into_owned();
    let on = |name: &str, arguments: &[&str]| {
        machine.run(PORTFWD, &[&["--netns", name, "--state-dir", &state, "lab"], arguments].concat())
    };
    let said = on("host", &["up", BRIDGE]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(machine.stdout_of("ip", &["-n", "host", "-br", "link"]).contains("v-net-0"));
    assert_eq!(
        machine.stdout_of("ip", &["-br", "link"]).lines().count(),
        1,
        "no new interface in the caller's namespace"
    );
    assert_eq!(machine.ok(&["list"]).lines().count(), 1, "the journal is in the other state directory");
    let said = on("other", &["up", BRIDGE]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("help: use `--netns host`"), "{said:?}");
    assert!(on("other", &["list"]).stdout.contains("bridge   up      host"), "{:?}", on("other", &["list"]));
    // `down` works from any namespace and also removes the lab's objects in the host.
    assert_eq!(on("other", &["down", "bridge"]).code, 0);
    assert_eq!(machine.stdout_of("ip", &["-n", "host", "-br", "link"]).lines().count(), 1);
    let mut names: Vec<_> = machine.stdout_of("ls", &["-A", "/run/netns"]).lines().map(str::to_owned).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "other"]);
    // A deleted host namespace takes its interfaces with it. `down` still succeeds.
    assert_eq!(on("host", &["up", BRIDGE]).code, 0);
    machine.stdout_of("ip", &["netns", "del", "host"]);
    let said = on("other", &["down"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(machine.stdout_of("ls", &["-A", "/run/netns"]), "other\n");
}

#[test]
fn ipv4_and_ipv6_are_routed_over_several_hops() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let chain = machine.file(
        r#"
        name = "chain"
        [[namespace]]
        name = "a"
        [[namespace]]
        name = "router"
        forward = true
        [[namespace]]
        name = "b"
        [[veth]]
        ends = [
          { namespace = "a", name = "eth0", address = ["10.1.0.2/24", "fd00:1::2/64"] },
          { namespace = "router", name = "left", address = ["10.1.0.1/24", "fd00:1::1/64"] },
        ]
        [[veth]]
        ends = [
          { namespace = "b", name = "eth0", address = ["10.2.0.2/24", "fd00:2::2/64"] },
          { namespace = "router", name = "right", address = ["10.2.0.1/24", "fd00:2::1/64"] },
        ]
        [[route]]
        namespace = "a"
        to = "10.2.0.0/24"
        via = "10.1.0.1"
        [[route]]
        namespace = "a"
        to = "fd00:2::/64"
        via = "fd00:1::1"
        dev = "eth0"
        [[route]]
        namespace = "b"
        to = "default"
        via = "10.2.0.1"
        [[route]]
        namespace = "b"
        to = "default"
        via = "fd00:2::1"
        "#,
    );
    machine.ok(&["up", &chain]);
    assert!(machine.pings("a", "10.2.0.2") && machine.pings("a", "fd00:2::2"));
    assert_eq!(machine.ok(&["up", &chain]), "chain: unchanged\n");
    // The new file describes the same lab without its routes.
    let text = std::fs::read_to_string(&chain).expect("readable");
    let without = text.split("[[route]]").next().unwrap_or_default();
    let said = machine.ok(&["up", &machine.file(without)]);
    assert!(said.ends_with("chain: 0 made, 4 removed\n"), "{said}");
    assert!(!machine.pings("a", "10.2.0.2") && !machine.pings("a", "fd00:2::2"));
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn every_example_goes_up_and_down_without_a_trace() {
    if !privileged() {
        return;
    }
    for entry in std::fs::read_dir(root().join("rules/lab")).expect("readable").flatten() {
        let machine = Machine::new();
        let path = entry.path().to_string_lossy().into_owned();
        let is_ovs = std::fs::read_to_string(&path).expect("readable").contains("kind = \"ovs\"");
        if is_ovs && !machine.open_vswitch() {
            continue;
        }
        let up = machine.lab(&["up", &path]);
        assert_eq!(up.code, 0, "{path}: {up:?}");
        assert!(machine.ok(&["up", &path]).ends_with(": unchanged\n"), "{path}");
        let list = machine.ok(&["list"]);
        assert!(list.contains(" up ") && !list.contains("missing"), "{path}: {list}");
        machine.ok(&["down", &path]);
        assert!(is_bare(&machine.traces()), "{path}: {}", machine.traces());
    }
}
