use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::support::{Net, PORTFWD, ask, examples, file, privileged, root};

#[test]
fn a_forward_works_from_add_to_rm() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.serve("172.17.0.4:80", false);
    assert_eq!(net.tcp("192.0.2.1:8080"), "ConnectionRefused");
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    let list = net.ok(&["list", "--json"]).stdout;
    assert!(list.contains(r#""ports":"8080""#) && list.contains(r#""packets":1,"#), "{list}");
    let again = net.ok(&["add", "8080", "172.17.0.3:80"]);
    assert!(again.stdout.starts_with("unchanged "), "{again:?}");
    let before = net.nft(&["-n", "list", "ruleset"]).stdout;
    let other = net.portfwd(&["add", "8080", "172.17.0.4:80"]);
    assert_eq!(other.code, 6, "{other:?}");
    assert!(other.stderr.contains("`8080/tcp` already goes to 172.17.0.3:80"), "{other:?}");
    assert_eq!(net.nft(&["-n", "list", "ruleset"]).stdout, before);
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    net.ok(&["rm", "8080"]);
    assert_eq!(net.tcp("192.0.2.1:8080"), "ConnectionRefused");
    assert_eq!(net.nft(&["list", "ruleset"]).stdout, "");
    assert_eq!(net.portfwd(&["rm", "8080"]).code, 1);
}

#[test]
fn forwards_of_ipv6_udp_addresses_and_ranges_work() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for (at, udp) in [
        ("[fd00:17::3]:80", false),
        ("[fd00:17::3]:53", true),
        ("172.17.0.3:53", true),
        ("172.17.0.3:8000", false),
        ("172.17.0.3:8010", false),
        ("172.17.0.3:9100", false),
        ("172.17.0.3:9105", false),
        ("172.17.0.3:9110", false),
        ("[fd00:17::4]:9105", true),
        ("172.17.0.4:80", false),
    ] {
        net.serve(at, udp);
    }
    for (listen, target) in [
        ("8080", "[fd00:17::3]:80"),
        ("53/udp", "fd00:17::3"),
        ("192.0.2.1:53/udp", "172.17.0.3:53"),
        ("8000-8010", "172.17.0.3"),
        ("8100-8110", "172.17.0.3:9100-9110"),
        ("[2001:db8::1]:8100-8110/udp", "[fd00:17::4]:9100-9110"),
        ("8200-8300", "172.17.0.4:80"),
        ("8250", "172.17.0.3:8000"),
    ] {
        net.ok(&["add", listen, target]);
    }
    for (to, udp, answer) in [
        ("[2001:db8::1]:8080", false, "[fd00:17::3]:80 saw 2001:db8::2"),
        ("[2001:db8::1]:53", true, "[fd00:17::3]:53 saw 2001:db8::2"),
        ("192.0.2.1:53", true, "172.17.0.3:53 saw 192.0.2.2"),
        // The address 172.17.0.1 has no forward of this port.
        ("172.17.0.1:53", true, "ConnectionRefused"),
        ("192.0.2.1:8000", false, "172.17.0.3:8000 saw 192.0.2.2"),
        ("192.0.2.1:8010", false, "172.17.0.3:8010 saw 192.0.2.2"),
        ("192.0.2.1:7999", false, "ConnectionRefused"),
        ("192.0.2.1:8011", false, "ConnectionRefused"),
        ("192.0.2.1:8100", false, "172.17.0.3:9100 saw 192.0.2.2"),
        ("192.0.2.1:8105", false, "172.17.0.3:9105 saw 192.0.2.2"),
        ("192.0.2.1:8110", false, "172.17.0.3:9110 saw 192.0.2.2"),
        ("192.0.2.1:8111", false, "ConnectionRefused"),
        ("[2001:db8::1]:8105", true, "[fd00:17::4]:9105 saw 2001:db8::2"),
        ("192.0.2.1:8200", false, "172.17.0.4:80 saw 192.0.2.2"),
        ("192.0.2.1:8300", false, "172.17.0.4:80 saw 192.0.2.2"),
        ("192.0.2.1:8250", false, "172.17.0.3:8000 saw 192.0.2.2"),
        // Routed traffic to the target's own address is not rewritten.
        ("172.17.0.4:8250", false, "ConnectionRefused"),
        ("172.17.0.4:80", false, "172.17.0.4:80 saw 192.0.2.2"),
    ] {
        assert_eq!(net.ask(to, udp), answer, "{to}");
    }
}

#[test]
fn an_isolated_network_accepts_only_packets_to_published_ports() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.serve("172.17.0.3:81", false);
    let set = "[[network]]\nname = \"docker0\"\nsubnet = [\"172.17.0.0/16\"]\nisolate = true\n\n[[forward]]\nlisten = \"8080\"\nto = \"172.17.0.3:80\"\n";
    net.ok(&["apply", &file(&net.state, set).to_string_lossy()]);
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    assert_eq!(net.tcp("172.17.0.3:81"), "TimedOut");
    let in_host = net.in_host(|| ask("172.17.0.3:81".parse().expect("address"), false));
    assert_eq!(in_host, "172.17.0.3:81 saw 172.17.0.1");
    let forwarding = || net.in_host(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("readable"));
    assert_eq!(forwarding().trim(), "1");
    net.ok(&["flush"]);
    assert_eq!(net.nft(&["list", "ruleset"]).stdout, "");
    assert_eq!(forwarding().trim(), "0");
}

#[test]
fn a_swap_of_rule_sets_neither_refuses_nor_misroutes_a_connection() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.serve("172.17.0.4:80", false);
    let directory = tempfile::tempdir().expect("directory");
    let sets = ["172.17.0.3:80", "172.17.0.4:80"].map(|target| {
        let path = directory.path().join("swap.toml");
        let text = format!("[[forward]]\nlisten = \"8080\"\nto = \"{target}\"\n\n[[forward]]\nlisten = \"9000-9010\"\nto = \"172.17.0.3\"\n");
        let file = path.with_file_name(format!("{}.toml", &target[9..10]));
        std::fs::write(&file, format!("[settings]\nname = \"swap\"\n\n{text}")).expect("written");
        file.to_string_lossy().into_owned()
    });
    net.ok(&["apply", &sets[0]]);
    let (done, answers) = (AtomicBool::new(false), [const { AtomicU32::new(0) }; 2]);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let answer = net.tcp("192.0.2.1:8080");
                match answer.as_str() {
                    "172.17.0.3:80 saw 192.0.2.2" => answers[0].fetch_add(1, Ordering::Relaxed),
                    "172.17.0.4:80 saw 192.0.2.2" => answers[1].fetch_add(1, Ordering::Relaxed),
                    other => return Some(other.to_owned()),
                };
            }
            None
        });
        for round in 1..=500 {
            // The test is about new connections, so established connections may finish.
            net.ok(&["apply", "--keep-connections", &sets[round % 2]]);
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(client.join().expect("the client"), None);
    });
    let counts = answers.map(|count| count.load(Ordering::Relaxed));
    assert!(counts.iter().all(|count| *count > 50), "both targets answered often: {counts:?}");
}

#[test]
fn every_example_is_tried_with_real_packets() {
    if !privileged() {
        return;
    }
    for path in examples() {
        let output = Command::new(PORTFWD).arg("try").arg(&path).output().expect("the program starts");
        assert!(output.status.success(), "{}: {output:?}", path.display());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("ok")).collect();
        let arrived = lines.iter().filter(|line| line.contains("answered") || line.contains("got it")).count();
        assert!(arrived > 0 && arrived * 2 > lines.len() && !text.contains("FAIL"), "{text}");
    }
}

#[test]
fn try_handles_unusual_rule_sets() {
    if !privileged() {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    for (name, rules, line) in [
        (
            "udp is answered from the address that the client used",
            r#"forward = [{ listen = "81/udp", to = "10.0.0.2", interface = "eth0" }, { listen = "82/udp", to = ":83" }]"#,
            "inside   10.0.0.3 -> 198.18.0.1:81/udp: this host port 81 answered",
        ),
        (
            "a client is not the host",
            r#"forward = [{ listen = "192.0.2.1:80", to = "10.0.0.2", from = ["192.0.2.0/24"] }]"#,
            "192.0.2.2 -> 192.0.2.1:80/tcp: 10.0.0.2 port 80 answered and saw 192.0.2.2",
        ),
        (
            "the client of a short prefix is not the one of a long prefix",
            r#"forward = [{ listen = "80", to = "10.0.0.2", from = ["192.0.2.0/24", "192.0.2.1"], interface = "a" },
                { listen = "80", to = "10.0.0.3", from = ["192.0.2.0/24"], interface = "b" }]"#,
            "192.0.2.3 -> 198.18.1.1:80/tcp: 10.0.0.3 port 80 answered and saw 192.0.2.3",
        ),
        (
            "no two packets belong to one connection",
            r#"forward = [{ listen = "81-82/sctp", to = "10.0.0.2:80" },
                { listen = "81-83", to = "10.0.0.2:80", hairpin = false }]"#,
            "hairpin  10.0.0.3 -> 198.18.0.1:83/tcp: 10.0.0.2:80 got it from 10.0.0.3",
        ),
        (
            "a target that is listened at is the host",
            r#"forward = [{ listen = "192.0.2.1:80", to = "192.0.2.1:8080" }, { listen = "81", to = "192.0.2.1:8081" }]"#,
            "-> 198.18.0.1:81/tcp: this host port 8081 answered",
        ),
        (
            "no packet goes to an anycast or broadcast address",
            r#"netmap = [{ listen = "2001:db8::/128", to = "8000::/128" }]
                masquerade = [{ from = "10.0.0.255" }, { from = "10.0.0.0/24" }]"#,
            "1 of 1 probes",
        ),
        (
            "rules without a prefix get packets",
            r#"masquerade = [{ out = "wan1" }]
                snat = [{ out = "wan2", to = "203.0.113.5" }, { from = "0.0.0.0/0", out = "wan3", to = "203.0.113.6" }]"#,
            "answered and saw 203.0.113.6",
        ),
        (
            "isolated networks are tried",
            r#"network = [{ name = "docker0", subnet = ["172.17.0.0/16"], isolate = true }]"#,
            "outside  198.18.0.2 -> 172.17.0.3:9/tcp: not received",
        ),
    ] {
        let path = file(&directory, rules);
        let output = Command::new(PORTFWD).arg("try").arg(&path).output().expect("the program starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !text.contains("FAIL"), "{name}: {output:?}");
        assert!(text.contains(line), "{name}: {text}");
    }
}

#[test]
fn try_refuses_a_packet_with_an_unknown_interface() {
    if !privileged() {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let mut rules = String::from("[[network]]\nname = \"docker0\"\nsubnet = [\"172.17.0.0/16\", \"fd00:17::/64\"]\n");
    for number in 0..500 {
        let (port, high, low) = (1000 + number, number / 200, number % 200);
        rules += &format!("[[forward]]\nlisten = \"{port}\"\nto = \"10.{high}.{low}.2:80\"\n");
    }
    let path = file(&directory, &rules);
    let sent = |packet: &str| {
        let mut command = Command::new(PORTFWD);
        let output = command.arg("try").arg(&path).args(["--packet", packet]).output().expect("the program starts");
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.code(), text)
    };
    let (code, text) = sent("tcp 198.18.0.2 -> 198.18.0.1:1007 -i nope");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("`nope` is no interface") && text.contains("has `eth0`, `docker0`, `pf-net2`, "), "{text}");
    // `try` builds only the namespaces that the packet can reach, but with the names of the full network.
    let start = std::time::Instant::now();
    for (packet, arrives) in [
        ("tcp 198.18.0.2 -> 198.18.0.1:1007 -i eth0", "10.0.7.2:80 got it from 198.18.0.2"),
        ("tcp 10.2.99.3 -> 10.0.9.2:5 -i pf-net501", "10.0.9.2:5 got it from 10.2.99.3"),
    ] {
        let (code, text) = sent(packet);
        assert!(code == Some(0) && text.contains(arrives), "{text}");
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn try_needs_no_root_and_reports_its_limits() {
    if !privileged() {
        return;
    }
    // The build directory may be readable by root only, so the user `nobody` runs a copy.
    let directory = tempfile::tempdir().expect("directory");
    let program = directory.path().join("portfwd");
    std::fs::copy(PORTFWD, &program).expect("copied");
    let rules = directory.path().join("quickstart.toml");
    std::fs::copy(root().join("rules/quickstart.toml"), &rules).expect("copied");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("opened");
    let nobody = |path: &std::path::Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("try").arg(path);
        command.output().expect("setpriv is installed")
    };
    let output = nobody(&rules);
    let allowed = output.status.code() != Some(5);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || said.contains("unprivileged user namespaces are not allowed"), "{output:?}");
    if !allowed {
        return;
    }
    // The rule set has almost 200,000 elements. An unprivileged socket may not send that many.
    let large = file(&directory, "[[forward]]\nlisten = \"1-65534/tcp,udp,sctp\"\nto = \"10.0.0.1:2-65535\"\n");
    let output = nobody(&large);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("more than an unprivileged socket may send"), "{said}");
}
