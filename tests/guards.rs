use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;

use crate::support::{NamedNetns, Net, PORTFWD, Said, file, privileged, root};

/// Binds a TCP listener in the host's namespace.
fn listen(net: &Net, at: &str) -> TcpListener {
    let at: SocketAddr = at.parse().expect(at);
    net.in_host(|| TcpListener::bind(at).expect("bind"))
}

fn bind_udp(net: &Net, at: &str) -> UdpSocket {
    let at: SocketAddr = at.parse().expect(at);
    net.in_host(|| UdpSocket::bind(at).expect("bind"))
}

/// Returns the name and pid of this process, in the form in which portfwd prints the owner of a socket.
fn this_process() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").expect("readable");
    format!("{}, process {}", name.trim_end(), std::process::id())
}

/// Runs portfwd in the host's namespace with `SSH_CONNECTION` set.
fn over_ssh(net: &Net, connection: &str, arguments: &[&str]) -> Said {
    net.in_host(|| {
        let mut command = Command::new(PORTFWD);
        command.arg("--state-dir").arg(net.state.path()).args(arguments).current_dir(root());
        command.env("SSH_CONNECTION", connection).output().expect("the program starts").into()
    })
}

/// Returns the live ruleset and the stored forwards.
fn snapshot(net: &Net) -> (String, String) {
    (net.nft(&["list", "ruleset"]).stdout, net.ok(&["list", "--json"]).stdout)
}

/// Checks that portfwd refuses a command with these words and changes nothing. Then runs the command with `--force`.
fn expect_refusal(net: &Net, arguments: &[&str], named: &[&str]) {
    let before = snapshot(net);
    for dry_run in [&[][..], &["--dry-run"]] {
        let said = net.portfwd(&[arguments, dry_run].concat());
        assert_eq!((said.code, said.stdout.as_str()), (6, ""), "{arguments:?}: {said:?}");
        for words in named {
            assert!(said.stderr.contains(words), "{words:?}: {}", said.stderr);
        }
        assert_eq!(snapshot(net), before, "{arguments:?}");
    }
    net.ok(&[arguments, &["--force"]].concat());
    assert_ne!(snapshot(net), before, "{arguments:?}");
}

#[test]
fn a_forward_of_a_port_in_use_is_refused_and_names_the_program() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let (_any, _own) = (listen(&net, "0.0.0.0:22"), listen(&net, "192.0.2.1:25"));
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    let help = "help: stop the service, choose another port, or use `--force`";
    let owner = format!(
        "error: `22/tcp -> 172.17.0.3:22` would take the port of `0.0.0.0:22/tcp` ({})\n{help}\n",
        this_process()
    );
    expect_refusal(&net, &["add", "22", "172.17.0.3"], &[&owner]);
    net.ok(&["rm", "22"]);
    expect_refusal(
        &net,
        &["add", "20-30", "172.17.0.3", "--from", "198.51.100.0/24"],
        &["`0.0.0.0:22/tcp`", "`192.0.2.1:25/tcp`"],
    );
    expect_refusal(&net, &["add", "192.0.2.1:25", "172.17.0.3"], &["`192.0.2.1:25/tcp`"]);
    // portfwd allows a forward if no program listens on its address and protocol.
    net.ok(&["add", "192.0.2.9:25", "172.17.0.3"]);
    net.ok(&["add", "25/udp", "172.17.0.3"]);
}

#[test]
fn a_redirect_to_the_same_port_is_allowed() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let _socket = listen(&net, "0.0.0.0:22");
    net.ok(&["add", "22", ":22", "--from", "192.0.2.0/24"]);
    expect_refusal(&net, &["add", "22", ":23"], &["`22/tcp -> :23 (IPv4)` would take the port of `0.0.0.0:22/tcp`"]);
}

#[test]
fn a_loopback_listener_conflicts_only_with_loopback_forwards() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let _socket = listen(&net, "127.0.0.1:22");
    net.ok(&["add", "22", "172.17.0.3"]);
    expect_refusal(&net, &["add", "22", "172.17.0.3", "--loopback"], &["`127.0.0.1:22/tcp`"]);
}

#[test]
fn forwards_of_udp_and_ipv6_ports_in_use_are_refused() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let (_udp, _both, _own) = (bind_udp(&net, "0.0.0.0:53"), listen(&net, "[::]:80"), listen(&net, "[::1]:81"));
    expect_refusal(&net, &["add", "53/udp", "172.17.0.3"], &["`0.0.0.0:53/udp`"]);
    expect_refusal(&net, &["add", "80", "fd00:17::3"], &["`[::]:80/tcp`"]);
    expect_refusal(&net, &["add", "80", "172.17.0.3"], &["`[::]:80/tcp`"]);
    net.ok(&["add", "53/tcp", "172.17.0.3"]);
    net.ok(&["add", "53/udp", "fd00:17::3"]);
    net.ok(&["add", "81", "fd00:17::3"]);
}

#[test]
fn an_applied_rule_set_can_be_applied_again() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let text = "[[forward]]\nlisten = \"22\"\nto = \"172.17.0.3\"\n";
    let path = file(&net.state, text);
    let set = path.to_string_lossy().into_owned();
    net.ok(&["apply", &set]);
    let _socket = listen(&net, "0.0.0.0:22");
    assert_eq!(net.ok(&["apply", &set]).stdout, "unchanged\n");
    std::fs::write(&path, text.replace("172.17.0.3", "172.17.0.4")).expect("written");
    net.ok(&["apply", &set]);
    net.ok(&["flush"]);
    let place = format!("{}:2:10", path.display());
    expect_refusal(
        &net,
        &["apply", &set],
        &["`22/tcp -> 172.17.0.4:22` would take the port of `0.0.0.0:22/tcp`", &place],
    );
    net.ok(&["apply", &set]);
}

#[test]
fn plan_and_check_accept_forwards_of_ports_in_use() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let _socket = listen(&net, "0.0.0.0:22");
    let set = file(&net.state, "[[forward]]\nlisten = \"22\"\nto = \"172.17.0.3\"\n").to_string_lossy().into_owned();
    net.ok(&["check", &set]);
    net.ok(&["plan", &set]);
    assert_eq!(net.portfwd(&["apply", &set]).code, 6);
}

#[test]
fn an_error_counts_all_refused_forwards_and_names_five() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let _sockets: Vec<TcpListener> = (1001..=1008).map(|port| listen(&net, &format!("0.0.0.0:{port}"))).collect();
    let forward = |port: u16| format!("[[forward]]\nlisten = \"{port}\"\nto = \"172.17.0.3\"\n");
    let apply = |ports: std::ops::RangeInclusive<u16>| {
        let text: String = ports.map(forward).collect();
        net.portfwd(&["apply", &file(&net.state, &text).to_string_lossy()])
    };
    let said = apply(1001..=1009);
    assert_eq!((said.code, said.stderr.matches("error: ").count()), (6, 5), "{said:?}");
    assert!(said.stderr.ends_with("\nand 3 more; 8 forwards refused; nothing was changed\n"), "{said:?}");
    let said = apply(1007..=1009);
    assert!(said.stderr.ends_with("\n2 forwards refused; nothing was changed\n"), "{said:?}");
    let said = net.portfwd(&["add", "1000-1010", "172.17.0.3"]);
    assert!(said.code == 6 && said.stderr.contains(" and 3 more\n"), "{said:?}");
}

#[test]
fn a_forward_that_takes_the_ssh_connection_is_refused() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let connection = "192.0.2.2 50000 192.0.2.1 22";
    let before = snapshot(&net);
    let add = ["add", "22", "172.17.0.3"];
    let said = over_ssh(&net, connection, &add);
    let words = "would take your SSH connection from 192.0.2.2 to 192.0.2.1:22\n";
    assert!(said.code == 6 && said.stderr.contains(words), "{said:?}");
    assert!(said.stderr.contains("help: choose another port, or use `--force`"), "{said:?}");
    assert_eq!(snapshot(&net), before);
    // portfwd allows another port, other clients, a malformed `SSH_CONNECTION`, and `--force`.
    for arguments in [&["add", "23", "172.17.0.3"][..], &["add", "22", "172.17.0.3", "--from", "198.51.100.0/24"]] {
        let said = over_ssh(&net, connection, arguments);
        assert_eq!(said.code, 0, "{said:?}");
    }
    assert_eq!(over_ssh(&net, "what is this", &["add", "22", "172.17.0.3", "--dry-run"]).code, 0);
    assert_eq!(over_ssh(&net, connection, &["add", "22", "172.17.0.3", "--force"]).code, 0);
    // portfwd allows a change of a forward that already takes the SSH connection.
    assert_eq!(over_ssh(&net, connection, &["add", "22", "172.17.0.3", "--comment", "x"]).code, 0);
}

#[test]
fn a_listener_at_the_address_of_another_interface_is_not_taken() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let _sockets = (listen(&net, "172.17.0.1:22"), listen(&net, "[fd00:17::1]:23"), listen(&net, "0.0.0.0:25"));
    let on = |interface: &'static str| ["--interface", interface, "--dry-run"];
    for (listen, target) in [("22", "172.17.0.3"), ("23", "[fd00:17::3]")] {
        assert_eq!(net.portfwd(&[&["add", listen, target][..], &on("eth0")].concat()).code, 0, "{listen}");
        // The clients of the listener use its own interface.
        assert_eq!(net.portfwd(&[&["add", listen, target][..], &on("docker0")].concat()).code, 6, "{listen}");
        assert_eq!(net.portfwd(&["add", listen, target, "--dry-run"]).code, 6, "{listen}");
    }
    assert_eq!(net.portfwd(&[&["add", "25", "172.17.0.3"][..], &on("eth0")].concat()).code, 6);

    // A socket of one interface.
    let device = net.in_host(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind_device(Some(b"docker0")).expect("bound");
        socket.bind(&"0.0.0.0:26".parse::<SocketAddr>().expect("address").into()).expect("bound");
        socket.listen(1).expect("listens");
        socket
    });
    assert_eq!(net.portfwd(&[&["add", "26", "172.17.0.3"][..], &on("eth0")].concat()).code, 0);
    assert_eq!(net.portfwd(&[&["add", "26", "172.17.0.3"][..], &on("docker0")].concat()).code, 6);
    drop(device);

    // The clients of an address on `lo` use any interface.
    let script = ["addr", "add", "10.78.0.1/32", "dev", "lo"];
    assert!(net.in_host(|| Command::new("ip").args(script).status().expect("ip")).success());
    let _lo = listen(&net, "10.78.0.1:28");
    assert_eq!(net.portfwd(&[&["add", "28", "172.17.0.3"][..], &on("eth0")].concat()).code, 6);

    // An SSH connection from the other interface.
    let add = |interface| ["add", "22", "172.17.0.3", "--interface", interface, "--dry-run"];
    assert_eq!(over_ssh(&net, "172.17.0.3 50000 172.17.0.1 22", &add("eth0")).code, 0);
    assert_eq!(over_ssh(&net, "192.0.2.2 50000 172.17.0.1 22", &add("eth0")).code, 6);
}

#[test]
fn with_netns_only_listeners_in_that_namespace_are_guarded() {
    if !privileged() {
        return;
    }
    let (net, named) = (Net::new(), NamedNetns::new());
    let _here = listen(&net, "0.0.0.0:80");
    let add =
        |port: &str| over_ssh(&net, "192.0.2.2 50000 192.0.2.1 22", &["--netns", &named.0, "add", port, "172.17.0.3"]);
    for port in ["22", "80"] {
        let said = add(port);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let file = std::fs::File::open(format!("/run/netns/{}", named.0)).expect("the namespace exists");
    let _listener = std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("entered");
        TcpListener::bind("0.0.0.0:81").expect("bind")
    })
    .join()
    .expect("bound");
    let said = add("81");
    assert!(said.code == 6 && said.stderr.contains("`0.0.0.0:81/tcp`"), "{said:?}");
}
