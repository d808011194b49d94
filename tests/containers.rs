use crate::machine::{Machine, is_bare, killed_anywhere};
use crate::support::{PORTFWD, Said, privileged, root};

const DOCKER: &str = "rules/lab/docker.toml";

/// A server in a container, which answers with the container's name.
fn serve(machine: &Machine, container: &str) {
    let directory = machine.directory.path().join(container);
    std::fs::create_dir_all(&directory).expect("made");
    std::fs::write(directory.join("index.html"), container).expect("written");
    machine.ok(&["exec", container, "--", "busybox", "httpd", "-p", "80", "-h", &directory.to_string_lossy()]);
}

/// What somebody in a namespace, or in the host where that is none, gets from a server.
fn get(machine: &Machine, from: Option<&str>, server: &str) -> Said {
    let url = format!("http://{server}/");
    let wget = ["timeout", "5", "busybox", "wget", "-q", "-O", "-", &url];
    match from {
        Some(name) => machine.lab(&[&["exec", name, "--"], &wget[..]].concat()),
        None => machine.run(wget[0], &wget[1..]),
    }
}

/// The processes of a machine whose arguments have some words, by their numbers.
fn processes(machine: &Machine, words: &str) -> Vec<String> {
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' 2>/dev/null <$p/cmdline | grep -q -- \"$0\" && echo ${p#/proc/}; done; true";
    let found = machine.says("sh", &["-c", script, words]);
    let own = |pid: &&str| !machine.run("sh", &["-c", &format!("tr '\\0' ' ' </proc/{pid}/cmdline")]).stdout.is_empty();
    found.lines().filter(own).map(str::to_owned).collect()
}

#[test]
fn docker_wires_publishes_and_masquerades() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", DOCKER]);
    assert_eq!(machine.ok(&["up", DOCKER]), "docker: unchanged\n");
    // none: nothing but loopback, no way out.
    assert_eq!(machine.says("ip", &["-n", "alone", "-br", "link"]).lines().count(), 1);
    assert_eq!(machine.says("ip", &["-n", "alone", "route"]), "");
    assert!(machine.pings("alone", "127.0.0.1") && !machine.pings("alone", "172.17.0.1"));
    // host: the host's own.
    assert_eq!(machine.ok(&["exec", "same", "--", "ip", "-br", "link"]), machine.says("ip", &["-br", "link"]));
    // bridge: the next free address, a default route, a port of the bridge.
    for (name, address, bridge) in
        [("db", "172.17.0.2/16", "docker0"), ("web", "172.17.0.3/16", "docker0"), ("shop", "172.18.0.2/16", "br-plain")]
    {
        let seen = machine.says("ip", &["-n", name, "-br", "-4", "addr", "show", "dev", "eth0"]);
        assert!(seen.contains("UP") && seen.contains(address), "{seen}");
        let port = machine.says("bridge", &["link", "show", "dev", &format!("veth-{name}")]);
        assert!(port.contains(&format!("master {bridge} state forwarding")), "{port}");
        let gateway = address.replace(".2/16", ".1").replace(".3/16", ".1");
        let route = machine.says("ip", &["-n", name, "route", "show", "default"]);
        assert!(route.starts_with(&format!("default via {gateway} dev eth0")), "{route}");
    }
    assert!(machine.pings("db", "172.17.0.3") && machine.pings("web", "172.17.0.1"));
    // Nobody outside knows a way back to a container, so what is answered is masqueraded.
    assert!(machine.pings("db", "192.0.2.2") && !machine.pings("shop", "192.0.2.2"));
    serve(&machine, "web");
    serve(&machine, "shop");
    for from in [Some("outside"), Some("db"), Some("same"), None] {
        assert_eq!(get(&machine, from, "192.0.2.1:8080").stdout, "web", "{from:?}");
        assert_eq!(get(&machine, from, "192.0.2.1:8090").stdout, "shop", "{from:?}");
    }
    assert_ne!(get(&machine, Some("outside"), "172.17.0.3:80").code, 0, "there is no other way in");
    // One of each kind: through the chain DOCKER, and directly with all others.
    let table = machine.says("nft", &["list", "table", "inet", "portfwd"]);
    let [docker, direct] = ["map DOCKER-ip-ports", "map ip-ports"].map(|map| {
        let rest = table.split(&format!("\t{map} {{")).nth(1).unwrap_or_else(|| panic!("{map}: {table}"));
        rest.split("}\n\n").next().expect("text").to_owned()
    });
    assert!(docker.contains(". 8080") && docker.contains("172.17.0.3 . 80") && !docker.contains("8090"), "{docker}");
    assert!(direct.contains(". 8090") && direct.contains("172.18.0.2 . 80") && !direct.contains("8080"), "{direct}");
    let list = machine.says(PORTFWD, &["list"]);
    for line in ["8080/tcp   172.17.0.3:80   lab-docker   live", "8090/tcp   172.18.0.2:80   lab-docker   live"] {
        assert!(list.contains(line), "{list}");
    }
    machine.ok(&["down", DOCKER]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn a_container_has_its_own_process_1_which_reaps_and_is_started_again() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", DOCKER]);
    let ps = machine.ok(&["exec", "web", "--", "busybox", "ps"]);
    let first = ps.lines().nth(1).unwrap_or_default();
    assert!(first.trim_start().starts_with("1 ") && first.contains("portfwd lab init"), "{ps}");
    assert!(ps.contains(" sleep infinity") && !ps.contains("sleep 3600"), "{ps}");
    // The host sees the same process under another number.
    let inits = processes(&machine, "lab init");
    let [init] = inits.as_slice() else { panic!("{inits:?}") };
    let numbers = machine.says("grep", &["NSpid", &format!("/proc/{init}/status")]);
    assert_eq!(numbers.split_whitespace().skip(1).collect::<Vec<_>>(), [init.as_str(), "1"]);
    // What loses its parent becomes its child, and does not stay when it has ended.
    machine.ok(&["exec", "web", "--", "sh", "-c", "(sleep 0.1; true) & exit"]);
    std::thread::sleep(std::time::Duration::from_millis(600));
    let ps = machine.ok(&["exec", "web", "--", "busybox", "ps", "-o", "pid,stat,args"]);
    assert!(!ps.contains(" Z ") && ps.lines().count() == 4, "{ps}");
    assert_eq!(machine.lab(&["exec", "web", "--", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(machine.lab(&["exec", "web", "--", "sh", "-c", "kill -TERM $$"]).code, 143);
    assert_eq!(machine.lab(&["exec", "web", "--", "no-such-program"]).code, 1);
    // Killed, it is missed and started again.
    machine.says("kill", &["-KILL", init]);
    std::thread::sleep(std::time::Duration::from_millis(200));
    let list = machine.ok(&["list"]);
    assert!(list.contains("missing: process 1 of its own in `web`: sleep infinity"), "{list}");
    let said = machine.lab(&["exec", "web", "--", "true"]);
    assert!(said.code == 1 && said.stderr.contains("the container `web` has no process any more"), "{said:?}");
    assert!(machine.ok(&["up", DOCKER]).ends_with("docker: 1 made, 0 removed\n"));
    assert_eq!(machine.lab(&["exec", "web", "--", "true"]).code, 0);
    // A name that is gone with its namespace held by a process: all of it is made anew.
    machine.says("ip", &["netns", "del", "web"]);
    machine.ok(&["up", DOCKER]);
    assert!(machine.pings("web", "172.17.0.2"));
    assert_eq!(processes(&machine, "lab init").len(), 1);
    assert!(machine.ok(&["list"]).contains(" up "));
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn commands_without_a_process_namespace_end_with_all_they_started() {
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
    let mine = machine.ok(&["exec", "a", "--", "readlink", "/proc/self/ns/net"]);
    let of = processes(&machine, "^sleep 1234");
    assert_eq!(machine.says("readlink", &[&format!("/proc/{}/ns/net", of[0])]), mine);
    // What changes is ended and started again.
    machine.ok(&["up", &machine.file(&text.replace("5678", "8765"))]);
    assert!(processes(&machine, "^sleep 5678").is_empty() && processes(&machine, "^sleep 8765").len() == 1);
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
    // One that cannot be started is said, and all is taken back.
    let said = machine.lab(&["up", &machine.file(&text.replace("\"sleep\", \"5678\"", "\"no-such-program\""))]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("there is no program `no-such-program`"), "{said:?}");
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn the_rules_of_others_are_not_contradicted_and_stay() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let other = |text: &str| {
        let path = machine.directory.path().join("other.toml");
        std::fs::write(&path, text).expect("written");
        machine.says(PORTFWD, &["apply", &path.to_string_lossy()])
    };
    other("[[forward]]\nlisten = \"8080\"\nto = \"10.0.0.1:80\"\n");
    let before = (machine.traces(), machine.says(PORTFWD, &["list"]));
    let said = machine.lab(&["up", DOCKER]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("`8080/tcp` already goes to 10.0.0.1:80"), "{said:?}");
    assert!(said.stderr.contains("it is in the rule set `other`"), "{said:?}");
    assert_eq!((machine.traces(), machine.says(PORTFWD, &["list"])), before);
    // A port of a socket of the host is not taken.
    other("[[forward]]\nlisten = \"7000\"\nto = \"10.0.0.1:80\"\n");
    machine.says("busybox", &["httpd", "-p", "8090", "-h", "/"]);
    let said = machine.lab(&["up", DOCKER]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("`8090/tcp -> 172.18.0.2:80` would take the port of"), "{said:?}");
    machine.says("busybox", &["killall", "busybox"]);
    // Ours come and go beside theirs.
    machine.ok(&["up", DOCKER]);
    let list = machine.says(PORTFWD, &["list"]);
    assert!(list.contains("7000/tcp") && list.contains("8080/tcp"), "{list}");
    machine.says("nft", &["flush", "ruleset"]);
    assert!(machine.ok(&["list"]).contains("missing: rule set `lab-docker`"));
    assert!(machine.ok(&["up", DOCKER]).ends_with("docker: 1 made, 0 removed\n"));
    // One that fails leaves the rules that were there.
    let text = std::fs::read_to_string(root().join(DOCKER)).expect("readable").replace("8080:80", "8082:80");
    let broken = format!("name = \"docker\"\n{}", text.replace("\"sleep\", \"infinity\"", "\"no-such-program\""));
    assert_eq!(machine.lab(&["up", &machine.file(&broken)]).code, 1);
    let list = machine.says(PORTFWD, &["list"]);
    assert!(list.contains("8080/tcp") && !list.contains("8082/tcp"), "{list}");
    assert!(machine.ok(&["up", DOCKER]).ends_with("docker: 1 made, 0 removed\n"), "its process is started again");
    // Another port: one set in the place of the other.
    let text = std::fs::read_to_string(root().join(DOCKER)).expect("readable").replace("8080:80", "8081:80");
    let said = machine.ok(&["up", &machine.file(&format!("name = \"docker\"\n{text}"))]);
    assert!(said.ends_with("docker: 1 made, 1 removed\n"), "{said}");
    let list = machine.says(PORTFWD, &["list"]);
    assert!(list.contains("8081/tcp") && !list.contains("8080/tcp") && list.contains("7000/tcp"), "{list}");
    machine.ok(&["down"]);
    let list = machine.says(PORTFWD, &["list"]);
    assert!(list.contains("7000/tcp") && list.lines().count() == 2, "{list}");
    // A set of this name that somebody applied is theirs.
    let text = "[[forward]]\nlisten = \"1\"\nto = \"10.0.0.1:80\"\n[settings]\nname = \"lab-docker\"\n";
    other(text);
    let said = machine.lab(&["up", DOCKER]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("there is a rule set `lab-docker` already"), "{said:?}");
    machine.says(PORTFWD, &["flush"]);
    machine.ok(&["up", DOCKER]);
    other(text);
    let said = machine.lab(&["down"]);
    assert!(said.code == 0 && said.stderr.contains("note: kept the rule set `lab-docker`"), "{said:?}");
    assert!(machine.says(PORTFWD, &["list"]).contains("1/tcp"));
}

#[test]
fn rules_of_an_earlier_boot_are_taken_over() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let path = machine.file(
        "name = \"x\"\n[[bridge]]\nname = \"br0\"\naddress = [\"10.9.0.1/24\"]\n\
         [[container]]\nname = \"a\"\nbridge = \"br0\"\npublish = [\"8080:80\"]\n",
    );
    machine.ok(&["up", &path]);
    // The state of rules is durable, the network and its journal are not.
    machine
        .says("sh", &["-c", "rm /run/portfwd/lab/x.json && ip link del veth-a && ip netns del a && ip link del br0"]);
    assert!(machine.says(PORTFWD, &["list"]).contains("lab-x"));
    machine.ok(&["up", &path]);
    assert_eq!(machine.ok(&["up", &path]), "x: unchanged\n");
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn both_families_are_published() {
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
    serve(&machine, "web");
    // The host's own addresses are probed for duplicates first.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(get(&machine, Some("outside"), "192.0.2.1:8080").stdout, "web");
    let got = get(&machine, Some("outside"), "[2001:db8::1]:8080");
    assert_eq!(got.stdout, "web", "{got:?}");
    assert!(machine.pings("web", "2001:db8::2"), "masqueraded");
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}

#[test]
fn killed_at_any_system_call_down_leaves_no_rule_and_no_process() {
    if privileged() {
        killed_anywhere(&Machine::new(), DOCKER, "web", 41);
    }
}

#[test]
fn for_one_command_containers_need_no_root() {
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
