use crate::machine::{Machine, is_bare, kill_at_system_calls};
use crate::support::{PORTFWD, Said, privileged, root};

const DOCKER: &str = "rules/lab/docker.toml";

/// Starts an HTTP server in a container. The server answers with the container's name.
fn serve_name(machine: &Machine, container: &str) {
    let directory = machine.directory.path().join(container);
    std::fs::create_dir_all(&directory).expect("made");
    std::fs::write(directory.join("index.html"), container).expect("written");
    machine.ok(&["exec", container, "--", "busybox", "httpd", "-p", "80", "-h", &directory.to_string_lossy()]);
}

/// Requests a page from a server. The client is in the namespace `from`, or on the host if `from` is `None`.
fn http_get(machine: &Machine, from: Option<&str>, server: &str) -> Said {
    let url = format!("http://{server}/");
    let wget = ["timeout", "5", "busybox", "wget", "-q", "-O", "-", &url];
    match from {
        Some(name) => machine.lab(&[&["exec", name, "--"], &wget[..]].concat()),
        None => machine.run(wget[0], &wget[1..]),
    }
}

/// Returns the pids of a machine's processes whose command line matches the grep pattern `pattern`.
fn processes(machine: &Machine, pattern: &str) -> Vec<String> {
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' 2>/dev/null <$p/cmdline | grep -q -- \"$0\" && echo ${p#/proc/}; done; true";
    let found = machine.stdout_of("sh", &["-c", script, pattern]);
    let exists =
        |pid: &&str| !machine.run("sh", &["-c", &format!("tr '\\0' ' ' </proc/{pid}/cmdline")]).stdout.is_empty();
    found.lines().filter(exists).map(str::to_owned).collect()
}

#[test]
fn docker_wires_publishes_and_masquerades() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", DOCKER]);
    assert_eq!(machine.ok(&["up", DOCKER]), "docker: unchanged\n");
    // A container with network `none` has only the loopback interface, and no routes.
    assert_eq!(machine.stdout_of("ip", &["-n", "alone", "-br", "link"]).lines().count(), 1);
    assert_eq!(machine.stdout_of("ip", &["-n", "alone", "route"]), "");
    assert!(machine.pings("alone", "127.0.0.1") && !machine.pings("alone", "172.17.0.1"));
    // A container with network `host` has the host's interfaces.
    assert_eq!(machine.ok(&["exec", "same", "--", "ip", "-br", "link"]), machine.stdout_of("ip", &["-br", "link"]));
    // A container with network `bridge` has the next free address, a default route and a bridge port.
    for (name, address, bridge) in
        [("db", "172.17.0.2/16", "docker0"), ("web", "172.17.0.3/16", "docker0"), ("shop", "172.18.0.2/16", "br-plain")]
    {
        let seen = machine.stdout_of("ip", &["-n", name, "-br", "-4", "addr", "show", "dev", "eth0"]);
        assert!(seen.contains("UP") && seen.contains(address), "{seen}");
        let port = machine.stdout_of("bridge", &["link", "show", "dev", &format!("veth-{name}")]);
        assert!(port.contains(&format!("master {bridge} state forwarding")), "{port}");
        let gateway = address.replace(".2/16", ".1").replace(".3/16", ".1");
        let route = machine.stdout_of("ip", &["-n", name, "route", "show", "default"]);
        assert!(route.starts_with(&format!("default via {gateway} dev eth0")), "{route}");
    }
    assert!(machine.pings("db", "172.17.0.3") && machine.pings("web", "172.17.0.1"));
    // Hosts outside have no route to containers. An answer to a ping proves that the host masquerades the source.
    assert!(machine.pings("db", "192.0.2.2") && !machine.pings("shop", "192.0.2.2"));
    serve_name(&machine, "web");
    serve_name(&machine, "shop");
    for from in [Some("outside"), Some("db"), Some("same"), None] {
        assert_eq!(http_get(&machine, from, "192.0.2.1:8080").stdout, "web", "{from:?}");
        assert_eq!(http_get(&machine, from, "192.0.2.1:8090").stdout, "shop", "{from:?}");
    }
    assert_ne!(
        http_get(&machine, Some("outside"), "172.17.0.3:80").code,
        0,
        "the container's own address is not reachable from outside"
    );
    // The forward of docker0 is in the map of the chain DOCKER. The forward of the second bridge is in the map
    // `ip-ports`.
    let table = machine.stdout_of("nft", &["list", "table", "inet", "portfwd"]);
    let [docker, direct] = ["map DOCKER-ip-ports", "map ip-ports"].map(|map| {
        let rest = table.split(&format!("\t{map} {{")).nth(1).unwrap_or_else(|| panic!("{map}: {table}"));
        rest.split("}\n\n").next().expect("text").to_owned()
    });
    assert!(docker.contains(". 8080") && docker.contains("172.17.0.3 . 80") && !docker.contains("8090"), "{docker}");
    assert!(direct.contains(". 8090") && direct.contains("172.18.0.2 . 80") && !direct.contains("8080"), "{direct}");
    let list = machine.stdout_of(PORTFWD, &["list"]);
    for line in ["8080/tcp   172.17.0.3:80   lab-docker   live", "8090/tcp   172.18.0.2:80   lab-docker   live"] {
        assert!(list.contains(line), "{list}");
    }
    machine.ok(&["down", DOCKER]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn process_1_of_a_container_reaps_orphans_and_is_restarted() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", DOCKER]);
    let ps = machine.ok(&["exec", "web", "--", "busybox", "ps"]);
    let first = ps.lines().nth(1).unwrap_or_default();
    assert!(first.trim_start().starts_with("1 ") && first.contains("portfwd lab init"), "{ps}");
    assert!(ps.contains(" sleep infinity") && !ps.contains("sleep 3600"), "{ps}");
    // On the host, process 1 of a container has another pid.
    let inits = processes(&machine, "lab init");
    let [init] = inits.as_slice() else { panic!("{inits:?}") };
    let numbers = machine.stdout_of("grep", &["NSpid", &format!("/proc/{init}/status")]);
    assert_eq!(numbers.split_whitespace().skip(1).collect::<Vec<_>>(), [init.as_str(), "1"]);
    // Process 1 of a container adopts orphans and reaps them.
    machine.ok(&["exec", "web", "--", "sh", "-c", "(sleep 0.1; true) & exit"]);
    std::thread::sleep(std::time::Duration::from_millis(600));
    let ps = machine.ok(&["exec", "web", "--", "busybox", "ps", "-o", "pid,stat,args"]);
    assert!(!ps.contains(" Z ") && ps.lines().count() == 4, "{ps}");
    assert_eq!(machine.lab(&["exec", "web", "--", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(machine.lab(&["exec", "web", "--", "sh", "-c", "kill -TERM $$"]).code, 143);
    assert_eq!(machine.lab(&["exec", "web", "--", "no-such-program"]).code, 1);
    // `list` reports a killed process 1 as missing, and `up` starts it again.
    machine.stdout_of("kill", &["-KILL", init]);
    std::thread::sleep(std::time::Duration::from_millis(200));
    let list = machine.ok(&["list"]);
    assert!(list.contains("missing: process 1 of its own in `web`: sleep infinity"), "{list}");
    let said = machine.lab(&["exec", "web", "--", "true"]);
    assert!(said.code == 1 && said.stderr.contains("the process of the container `web` has ended"), "{said:?}");
    assert!(machine.ok(&["up", DOCKER]).ends_with("docker: 1 made, 0 removed\n"));
    assert_eq!(machine.lab(&["exec", "web", "--", "true"]).code, 0);
    // The name of the namespace is deleted, but a process still holds the namespace. `up` recreates the container.
    machine.stdout_of("ip", &["netns", "del", "web"]);
    machine.ok(&["up", DOCKER]);
    assert!(machine.pings("web", "172.17.0.2"));
    assert_eq!(processes(&machine, "lab init").len(), 1);
    assert!(machine.ok(&["list"]).contains(" up "));
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn commands_without_a_pid_namespace_end_with_their_children() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let text = "name = \"c\"\n[[container]]\nname = \"a\"\nnetwork = \"none\"\n\
                command = [\"sh\", \"-c\", \"(setsid sleep 1234 &); sleep 4321 & exec sleep infinity\"]\n\
                [[container]]\nname = \"h\"\nnetwork = \"host\"\ncommand = [\"sleep\", \"5678\"]\n";
    machine.ok(&["up", &machine.file(text)]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    for sleep in ["sleep 1234", "sleep 4321", "sleep infinity", "sleep 5678"] {
        assert!(!processes(&machine, &format!("^{sleep}")).is_empty(), "{sleep}");
    }
    let container = machine.ok(&["exec", "a", "--", "readlink", "/proc/self/ns/net"]);
    let orphans = processes(&machine, "^sleep 1234");
    assert_eq!(machine.stdout_of("readlink", &[&format!("/proc/{}/ns/net", orphans[0])]), container);
    // `up` restarts a container whose command has changed.
    machine.ok(&["up", &machine.file(&text.replace("5678", "8765"))]);
    assert!(processes(&machine, "^sleep 5678").is_empty() && processes(&machine, "^sleep 8765").len() == 1);
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
    // If a command cannot start, `up` reports the error and rolls everything back.
    let said = machine.lab(&["up", &machine.file(&text.replace("\"sleep\", \"5678\"", "\"no-such-program\""))]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("there is no program `no-such-program`"), "{said:?}");
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn foreign_rule_sets_stay_and_conflicts_with_them_are_refused() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let other = |text: &str| {
        let path = machine.directory.path().join("other.toml");
        std::fs::write(&path, text).expect("written");
        machine.stdout_of(PORTFWD, &["apply", &path.to_string_lossy()])
    };
    other("[[forward]]\nlisten = \"8080\"\nto = \"10.0.0.1:80\"\n");
    let before = (machine.traces(), machine.stdout_of(PORTFWD, &["list"]));
    let said = machine.lab(&["up", DOCKER]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("`8080/tcp` already goes to 10.0.0.1:80"), "{said:?}");
    assert!(said.stderr.contains("first defined in the rule set `other`"), "{said:?}");
    assert_eq!((machine.traces(), machine.stdout_of(PORTFWD, &["list"])), before);
    // `up` refuses to publish a port that a program on the host listens on.
    other("[[forward]]\nlisten = \"7000\"\nto = \"10.0.0.1:80\"\n");
    machine.stdout_of("busybox", &["httpd", "-p", "8090", "-h", "/"]);
    let said = machine.lab(&["up", DOCKER]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("`8090/tcp -> 172.18.0.2:80` would take the port of"), "{said:?}");
    machine.stdout_of("busybox", &["killall", "busybox"]);
    // The lab's rules and the foreign rules exist together.
    machine.ok(&["up", DOCKER]);
    let list = machine.stdout_of(PORTFWD, &["list"]);
    assert!(list.contains("7000/tcp") && list.contains("8080/tcp"), "{list}");
    machine.stdout_of("nft", &["flush", "ruleset"]);
    assert!(machine.ok(&["list"]).contains("missing: rule set `lab-docker`"));
    assert!(machine.ok(&["up", DOCKER]).ends_with("docker: 1 made, 0 removed\n"));
    // A failed `up` keeps the previous rules.
    let text = std::fs::read_to_string(root().join(DOCKER)).expect("readable").replace("8080:80", "8082:80");
    let broken = format!("name = \"docker\"\n{}", text.replace("\"sleep\", \"infinity\"", "\"no-such-program\""));
    assert_eq!(machine.lab(&["up", &machine.file(&broken)]).code, 1);
    let list = machine.stdout_of(PORTFWD, &["list"]);
    assert!(list.contains("8080/tcp") && !list.contains("8082/tcp"), "{list}");
    assert!(machine.ok(&["up", DOCKER]).ends_with("docker: 1 made, 0 removed\n"), "the process is restarted");
    // A changed port replaces the rule set of the lab.
    let text = std::fs::read_to_string(root().join(DOCKER)).expect("readable").replace("8080:80", "8081:80");
    let said = machine.ok(&["up", &machine.file(&format!("name = \"docker\"\n{text}"))]);
    assert!(said.ends_with("docker: 1 made, 1 removed\n"), "{said}");
    let list = machine.stdout_of(PORTFWD, &["list"]);
    assert!(list.contains("8081/tcp") && !list.contains("8080/tcp") && list.contains("7000/tcp"), "{list}");
    machine.ok(&["down"]);
    let list = machine.stdout_of(PORTFWD, &["list"]);
    assert!(list.contains("7000/tcp") && list.lines().count() == 2, "{list}");
    // A rule set `lab-docker` that the user applied does not belong to the lab.
    let text = "[[forward]]\nlisten = \"1\"\nto = \"10.0.0.1:80\"\n[settings]\nname = \"lab-docker\"\n";
    other(text);
    let said = machine.lab(&["up", DOCKER]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("the rule set `lab-docker` exists"), "{said:?}");
    machine.stdout_of(PORTFWD, &["flush"]);
    machine.ok(&["up", DOCKER]);
    other(text);
    let said = machine.lab(&["down"]);
    assert!(said.code == 0 && said.stderr.contains("note: kept the rule set `lab-docker`"), "{said:?}");
    assert!(machine.stdout_of(PORTFWD, &["list"]).contains("1/tcp"));
}

#[test]
fn up_takes_over_the_rules_of_an_earlier_boot() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let path = machine.file(
        "name = \"x\"\n[[bridge]]\nname = \"br0\"\naddress = [\"10.9.0.1/24\"]\n\
         [[container]]\nname = \"a\"\nbridge = \"br0\"\npublish = [\"8080:80\"]\n",
    );
    machine.ok(&["up", &path]);
    // As after a reboot, portfwd's state exists, but the network and the journal of the lab do not.
    machine.stdout_of(
        "sh",
        &["-c", "rm /run/portfwd/lab/x.json && ip link del veth-a && ip netns del a && ip link del br0"],
    );
    assert!(machine.stdout_of(PORTFWD, &["list"]).contains("lab-x"));
    machine.ok(&["up", &path]);
    assert_eq!(machine.ok(&["up", &path]), "x: unchanged\n");
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn ports_are_published_over_ipv4_and_ipv6() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let path = machine.file(
        r#"
        name = "six"
        [[bridge]]
        name = "docker0"
        address = ["172.17.0.1/16", "fd00:17::1/64"]
        masquerade = true
        [[container]]
        name = "web"
        publish = ["8080:80"]
        [[namespace]]
        name = "outside"
        [[veth]]
        ends = [
          { namespace = "outside", name = "eth0", address = ["192.0.2.2/24", "2001:db8::2/64"] },
          { name = "uplink", address = ["192.0.2.1/24", "2001:db8::1/64"] },
        ]
        "#,
    );
    machine.ok(&["up", &path]);
    serve_name(&machine, "web");
    // The kernel first probes the host's IPv6 addresses for duplicates.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(http_get(&machine, Some("outside"), "192.0.2.1:8080").stdout, "web");
    let got = http_get(&machine, Some("outside"), "[2001:db8::1]:8080");
    assert_eq!(got.stdout, "web", "{got:?}");
    assert!(machine.pings("web", "2001:db8::2"), "masqueraded");
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn down_after_a_kill_at_any_system_call_leaves_no_rule_and_no_process() {
    if privileged() {
        kill_at_system_calls(&Machine::new(), DOCKER, "web", 41);
    }
}

#[test]
fn exec_with_a_file_runs_containers_without_root() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", PORTFWD, "lab", "exec"];
    let inside = |name: &str, command: &[&str]| {
        machine.run("setpriv", &[&nobody[..], &["--file", DOCKER, name, "--"], command].concat())
    };
    for (name, command, answer) in [
        ("db", &["busybox", "ping", "-c3", "-W2", "192.0.2.2"][..], "3 packets received"),
        ("web", &["busybox", "ps"], "portfwd lab init"),
        ("same", &["ip", "-br", "link"], "docker0"),
    ] {
        let said = inside(name, command);
        assert!(said.code == 0 && said.stdout.contains(answer), "{name}: {said:?}");
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
    let said = machine.run("setpriv", &[&nobody[..], &["--file", "rules/lab/ovs.toml", "red", "--", "true"]].concat());
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.stderr.contains("build the lab with `portfwd lab up`, as root"), "{said:?}");
}
