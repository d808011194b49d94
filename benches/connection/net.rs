//! A network of three namespaces: a client, a host that forwards, and a target.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use portfwd::lab::{Links, Netns};
use socket2::{Domain, Socket, Type};

use crate::host::PORTFWD;

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The host's address on eth0, the interface to the client.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The target of all forwards.
pub const TARGET: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);

/// The client's first source port. Each connection uses a new port, because conntrack still holds the earlier tuples.
const FIRST_SOURCE: u16 = 1_024;
/// The target's listen backlog. The value is below `net.core.somaxconn`.
const BACKLOG: i32 = 2_048;

/// A client, a host and a target in three namespaces. The client connects to the host's address.
pub struct Net {
    client: Netns,
    host: Netns,
    target: Netns,
    listener: TcpListener,
    state: tempfile::TempDir,
    next_source: Cell<u16>,
}

impl Net {
    /// Makes a network with a listener at the target.
    pub fn new() -> Self {
        let [client, host, target] = [(); 3].map(|()| Netns::new().expect("run as root"));
        let up = |links: &Links, name: &str, address: Ipv4Addr| {
            links.up(name).expect("up");
            links.address(name, address.into(), 24).expect("address");
        };
        let route = |links: &Links, gateway: Ipv4Addr| {
            links.route(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0, gateway.into()).expect("route");
        };
        let in_host = || {
            let links = Links::open().expect("rtnetlink");
            links.veth("eth0", "eth0", &client).expect("veth");
            links.veth("eth1", "eth0", &target).expect("veth");
            up(&links, "eth0", HOST);
            up(&links, "eth1", GATEWAY);
            // An nft(8) script does not enable forwarding, so this function does.
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        };
        host.run(in_host).expect("host");
        let in_client = || {
            let links = Links::open().expect("rtnetlink");
            up(&links, "eth0", CLIENT);
            route(&links, HOST);
        };
        client.run(in_client).expect("client");
        let in_target = || {
            let links = Links::open().expect("rtnetlink");
            up(&links, "eth0", TARGET);
            route(&links, GATEWAY);
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
            socket.bind(&SocketAddrV4::new(TARGET, 80).into()).expect("bind");
            socket.listen(BACKLOG).expect("listen");
            socket.set_nonblocking(true).expect("not blocking");
            TcpListener::from(socket)
        };
        let listener = target.run(in_target).expect("target");
        let state = tempfile::tempdir().expect("directory");
        Self { client, host, target, listener, state, next_source: Cell::new(FIRST_SOURCE) }
    }

    /// Runs `portfwd apply` on the host with a backend.
    pub fn apply(&self, backend: &str, rule_set: &str) {
        let file = self.file("bench.toml", rule_set);
        let state = self.state.path().join("state");
        let mut command = Command::new(PORTFWD);
        command.arg("--state-dir").arg(&state).args(["--backend", backend, "apply", &file]);
        // With `SSH_CONNECTION` set, portfwd refuses a forward of port 22 that takes the user's SSH connection.
        command.env_remove("SSH_CONNECTION");
        self.in_host(command);
    }

    /// Loads an nft(8) script on the host.
    pub fn load(&self, script: &str) {
        let mut command = Command::new("nft");
        command.args(["-f", &self.file("rival", script)]);
        self.in_host(command);
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.state.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    }

    fn in_host(&self, mut command: Command) {
        let output = self.host.run(|| command.output().expect("the program starts")).expect("the host's namespace");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Opens and resets `count` connections to `ports` in turn. Returns the mean time of a connection in seconds.
    ///
    /// While the client waits in connect(2), the kernel forwards the packets on the client's processor. No other thread
    /// wakes up. The target accepts the connections afterwards.
    pub fn connections(&self, ports: &[u16], count: u16) -> f64 {
        let first = self.next_source.get();
        self.next_source.set(first.checked_add(count).expect("source ports are left"));
        let connect = || {
            let start = Instant::now();
            for (source, port) in (first..first + count).zip(ports.iter().cycle()) {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
                socket.set_linger(Some(Duration::ZERO)).expect("linger");
                socket.bind(&SocketAddrV4::new(CLIENT, source).into()).expect("bind");
                socket.connect(&SocketAddrV4::new(HOST, *port).into()).expect("the forward reaches the target");
            }
            start.elapsed().as_secs_f64() / f64::from(count)
        };
        let seconds = self.client.run(connect).expect("the client's namespace");
        let listener = &self.listener;
        let taken = self.target.run(|| listener.incoming().take_while(Result::is_ok).count());
        assert_eq!(taken.expect("the target's namespace"), usize::from(count), "every connection reached the target");
        seconds
    }
}
