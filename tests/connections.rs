use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use portfwd::iptables::command::Variant;
use portfwd::sys::conntrack::{Conntrack, Entry};

use crate::support::{Net, PORTFWD, file, privileged};

/// A UDP client that keeps its socket. All of its packets belong to one tracked connection.
struct UdpClient(UdpSocket);

impl UdpClient {
    /// Binds a socket in the client's namespace and connects it to an address.
    fn new(net: &Net, to: &str) -> Self {
        let to: SocketAddr = to.parse().expect("address");
        let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = net.client.run(|| UdpSocket::bind(any).expect("bound")).expect("the client's namespace");
        socket.connect(to).expect("connected");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
        Self(socket)
    }

    /// Sends a packet. Returns the answer, or `None` if no answer arrives.
    fn exchange(&self) -> Option<String> {
        // A socket reports the error of an earlier packet at a later call, so the test clears the error first.
        let _ = self.0.take_error();
        let mut text = [0; 128];
        self.0.send(b"?").or_else(|_| self.0.send(b"?")).expect("sent");
        let length = self.0.recv(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).into_owned())
    }
}

/// Starts a TCP server in the target that echoes each byte.
fn serve_echo(net: &Net, at: &str) {
    let listener = net.target.run(|| TcpListener::bind(at).expect("bound")).expect("the target's namespace");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0; 1];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

fn connect(net: &Net, to: &str) -> TcpStream {
    let stream = net.client.run(|| TcpStream::connect(to).expect("connected")).expect("the client's namespace");
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("set");
    stream
}

/// Returns true if the server still echoes a byte.
fn is_alive(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok() && byte == *b"x"
}

fn entries(net: &Net) -> Vec<Entry> {
    net.in_host(|| Conntrack::open().expect("opens").entries().expect("reads"))
}

const TARGETS: [(&str, &str, &str); 2] = [
    ("192.0.2.1:5000", "172.17.0.3:53", "172.17.0.4:53"),
    ("[2001:db8::1]:5000", "[fd00:17::3]:53", "[fd00:17::4]:53"),
];

#[test]
fn a_client_that_keeps_sending_reaches_the_new_target_at_once() {
    if !privileged() {
        return;
    }
    for variant in [None, Some(Variant::Nft), Some(Variant::Legacy)] {
        let net = Net::new();
        let run = |arguments: &[&str]| match variant {
            None => net.ok(arguments),
            Some(variant) => net.chains(variant, arguments),
        };
        for (listen, old, new) in TARGETS {
            let path = net.state.path().join("set.toml");
            let apply = |to: &str| {
                let text = format!("[[forward]]\nlisten = \"{listen}/udp\"\nto = \"{to}\"\n");
                std::fs::write(&path, text).expect("written");
                run(&["apply", &path.to_string_lossy()])
            };
            for target in [old, new] {
                net.serve(target, true);
            }
            let from = |target: &str, said: Option<String>| said.is_some_and(|said| said.starts_with(target));
            let udp_client = UdpClient::new(&net, listen);
            // Without a forward, no server answers. Conntrack records the connection without a translation.
            assert_eq!(udp_client.exchange(), None);
            apply(old);
            assert!(from(old, udp_client.exchange()), "{variant:?} {listen}: on add");
            let said = apply(new);
            assert!(said.stderr.contains("dropped 1 tracked connection"), "{said:?}");
            assert!(from(new, udp_client.exchange()), "{variant:?} {listen}: on change");
            // An `apply` without changes drops no tracked connection.
            assert!(!apply(new).stderr.contains("dropped"));
            run(&["flush"]);
            assert_eq!(udp_client.exchange(), None, "{variant:?} {listen}: on removal");
        }
    }
}

#[test]
fn a_change_does_not_disturb_connections_of_unchanged_forwards() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    net.ok(&["add", "8081", "172.17.0.3:80", "--from", "192.0.2.0/24"]);
    serve_echo(&net, "172.17.0.3:80");
    let mut streams = ["192.0.2.1:8080", "192.0.2.1:8081"].map(|to| connect(&net, to));
    // This connection is routed to the target's own address, but its port equals the port of a forward.
    serve_echo(&net, "172.17.0.3:9001");
    let mut passing = connect(&net, "172.17.0.3:9001");
    let mut alive = |when: &str| {
        assert!(streams.iter_mut().all(is_alive), "{when}");
        assert!(is_alive(&mut passing), "{when}: routed traffic");
    };
    alive("before");
    let before = entries(&net);
    let many: String =
        (9000..10_000).map(|port| format!("[[forward]]\nlisten = \"{port}\"\nto = \"172.17.0.4:80\"\n")).collect();
    let path = file(&net.state, &many);
    for round in 0..2 {
        net.ok(&["apply", &path.to_string_lossy()]);
        alive("added");
        std::fs::write(&path, "").expect("written");
        net.ok(&["apply", &path.to_string_lossy()]);
        alive("removed");
        std::fs::write(&path, &many).expect("written");
        for port in [7000, 7001, 8082] {
            let (listen, at) = (format!("{port}"), format!("172.17.0.3:{}", 90 + round));
            net.ok(&["add", &listen, &at]);
            net.ok(&["rm", &listen]);
        }
        alive("one by one");
    }
    let after = entries(&net);
    assert!(before.iter().all(|entry| after.contains(entry)), "no conntrack entry is gone: {before:?} {after:?}");
}

#[test]
fn rm_ends_connections_unless_keep_connections_is_set() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    serve_echo(&net, "172.17.0.3:80");
    for keep in [false, true] {
        net.ok(&["add", "8080", "172.17.0.3:80"]);
        net.ok(&["add", "[2001:db8::1]:8080", "[fd00:17::3]:80"]);
        let mut stream = connect(&net, "192.0.2.1:8080");
        assert!(is_alive(&mut stream));
        net.ok(if keep { &["rm", "8080", "--keep-connections"] } else { &["rm", "8080"] });
        assert_eq!(is_alive(&mut stream), keep);
        net.ok(&["flush"]);
    }
}

#[test]
fn only_the_forward_with_precedence_ends_a_connection() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:53", true);
    net.serve("172.17.0.4:53", true);
    net.ok(&["add", "192.0.2.1:5000/udp", "172.17.0.3:53"]);
    let udp_client = UdpClient::new(&net, "192.0.2.1:5000");
    let old_answer = Some("172.17.0.3:53 saw 192.0.2.2".to_owned());
    assert_eq!(udp_client.exchange(), old_answer);
    // These forwards do not apply to the connection. They are less specific, or have another client, interface or
    // protocol.
    for other in [
        &["add", "5000/udp", "172.17.0.4:53"][..],
        &["add", "192.0.2.1:4990-5010/udp", "172.17.0.4:53"],
        &["add", "192.0.2.1:5000/udp", "172.17.0.4:53", "--from", "198.51.100.0/24"],
        &["add", "192.0.2.1:5000/udp", "172.17.0.4:53", "--interface", "docker0"],
        &["add", "192.0.2.1:5000", "172.17.0.4:53"],
    ] {
        let said = net.ok(other);
        assert!(!said.stderr.contains("dropped"), "{other:?}: {said:?}");
        assert_eq!(udp_client.exchange(), old_answer, "{other:?}");
    }
    let said = net.ok(&["add", "192.0.2.1:5000/udp", "172.17.0.4:53", "--from", "192.0.2.0/24"]);
    assert!(said.stderr.contains("dropped 1 tracked connection"), "{said:?}");
    assert_eq!(udp_client.exchange().as_deref(), Some("172.17.0.4:53 saw 192.0.2.2"));
    // The new forward changes the source address that the target sees.
    net.ok(&["add", "192.0.2.1:5000/udp", "172.17.0.4:53", "--from", "192.0.2.0/24", "--source", "masquerade"]);
    assert_eq!(udp_client.exchange().as_deref(), Some("172.17.0.4:53 saw 172.17.0.1"));
}

#[test]
fn connections_follow_a_changed_netmap() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:53", true);
    net.serve("172.17.0.4:53", true);
    net.client.run(|| ()).expect("the client's namespace");
    let apply = |to: &str| {
        let text = format!("[[netmap]]\nlisten = \"203.0.113.7/32\"\nto = \"{to}/32\"\n[settings]\nname = \"map\"\n");
        net.ok(&["apply", &file(&net.state, &text).to_string_lossy()])
    };
    apply("172.17.0.3");
    let udp_client = UdpClient::new(&net, "203.0.113.7:53");
    assert!(udp_client.exchange().is_some_and(|said| said.starts_with("172.17.0.3:53")));
    apply("172.17.0.4");
    assert!(udp_client.exchange().is_some_and(|said| said.starts_with("172.17.0.4:53")));
}

#[test]
fn the_next_command_ends_connections_that_a_killed_rm_left() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:53", true);
    let state = net.state.path().to_string_lossy().into_owned();
    let live = || net.nft(&["list", "ruleset"]).stdout.contains("5000");
    let (mut stale, mut removed, mut when) = (0, 0, 1);
    loop {
        net.ok(&["add", "192.0.2.1:5000/udp", "172.17.0.3:53"]);
        let udp_client = UdpClient::new(&net, "192.0.2.1:5000");
        assert!(udp_client.exchange().is_some());
        // `rm` sends netlink messages to the kernel. The last messages delete conntrack entries.
        let inject = format!("inject=sendto:signal=KILL:when={when}");
        let portfwd = [PORTFWD, "--state-dir", &state, "rm", "192.0.2.1:5000"];
        let strace = [&["-f", "-qq", "-o", "/dev/null", "-e", &inject][..], &portfwd].concat();
        let status = net.in_host(|| std::process::Command::new("strace").args(strace).status());
        if status.expect("strace is installed").success() {
            break;
        }
        stale += usize::from(!live() && udp_client.exchange().is_some());
        // After a kill of `rm`, the next command finishes the removal.
        net.ok(&["add", "9999", "172.17.0.3:80"]);
        // If the kill came before `rm` saved its state, `rm` has no effect.
        assert_eq!(live(), udp_client.exchange().is_some(), "killed at {when}");
        removed += usize::from(!live());
        when += 1;
    }
    assert!(removed > stale, "most kills come after the state was saved: {removed} of {when}");
    assert!(stale > 0, "at least one kill removed the forward and left its connection");
}
