//! A client, a host that forwards, and a target: three namespaces for each configuration that is measured.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use portfwd::lab::{Links, Netns};
use socket2::{Domain, Socket, Type};

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The host's address on the client's side, on interface eth0.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Where all forwards lead.
pub const TARGET: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);

/// The first port that the client connects from.
const FIRST_SOURCE: u16 = 1_024;
/// How many connections a network is good for: each takes a port of the client's that no other took before, so the host
/// never meets a connection that it still remembers.
pub const CONNECTIONS: usize = (u16::MAX - FIRST_SOURCE) as usize;
/// How many connections may wait at the target; less than `net.core.somaxconn`.
const BACKLOG: i32 = 2_048;

/// The network. Connections to the host's address take the forwards of `host`.
pub struct Net {
    client: Netns,
    host: Netns,
    target: Netns,
    listener: TcpListener,
    state: tempfile::TempDir,
    next_source: Cell<u16>,
}

impl Net {
    /// Makes one, with a server at the target.
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
            // Peers take it for switched on.
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

    /// Makes a rule set live on the host.
    pub fn apply(&self, rule_set: &str) {
        self.apply_with("nft", rule_set);
    }

    /// The same with a backend of one's choice.
    pub fn apply_with(&self, backend: &str, rule_set: &str) {
        let file = self.file("bench.toml", rule_set);
        let state = self.state.path().join("state");
        let mut command = Command::new(crate::host::ours());
        command.arg("--state-dir").arg(&state).args(["--backend", backend, "apply", &file]);
        // Whoever runs us over ssh may have forwards of port 22 in a namespace of ours.
        command.env_remove("SSH_CONNECTION");
        self.in_host(command);
    }

    /// Loads somebody else's rules with a program that takes a file last.
    pub fn load(&self, program: &str, arguments: &[&str], text: &str) {
        let file = self.file("rival", text);
        let mut command = Command::new(program);
        command.args(arguments).arg(&file);
        self.in_host(command);
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.state.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    }

    /// Our table on the host without the elements of maps, in the words of nft(8).
    pub fn table(&self) -> String {
        let mut command = Command::new("nft");
        command.args(["--terse", "--handle", "list", "table", "inet", "portfwd"]);
        self.in_host(command)
    }

    fn in_host(&self, mut command: Command) -> String {
        let output = self.host.run(|| command.output().expect("the program starts")).expect("the host's namespace");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Connects and resets `count` times, to these ports in turn, and gives the seconds of one connection.
    ///
    /// Both ways through the host are walked while the client's thread waits in `connect`, on the same processor, and
    /// nobody else has to wake up: the target takes the connections only afterwards.
    pub fn connections(&self, ports: &[u16], count: u16) -> f64 {
        let first = self.next_source.get();
        self.next_source.set(first.checked_add(count).expect("no more than CONNECTIONS"));
        let connect = || {
            let start = Instant::now();
            for (source, port) in (first..first + count).zip(ports.iter().cycle()) {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
                socket.set_linger(Some(Duration::ZERO)).expect("linger");
                socket.bind(&SocketAddrV4::new(CLIENT, source).into()).expect("bind");
                socket.connect(&SocketAddrV4::new(HOST, *port).into()).expect("a forward leads to the target");
            }
            start.elapsed().as_secs_f64() / f64::from(count)
        };
        let seconds = self.client.run(connect).expect("the client's namespace");
        let listener = &self.listener;
        let taken = self.target.run(|| listener.incoming().take_while(Result::is_ok).count());
        assert_eq!(taken.expect("the target's namespace"), usize::from(count), "every connection reached the target");
        seconds
    }

    /// One connection to a port of the host, or of the target itself, that stays: the client's end and the target's.
    pub fn established(&self, to: SocketAddrV4) -> (TcpStream, TcpStream) {
        let client = self.client.run(|| TcpStream::connect(to).expect("a forward leads to the target"));
        let (server, _) = self.listener.accept().expect("the connection reached the target");
        server.set_nonblocking(true).expect("not blocking");
        (client.expect("the client's namespace"), server)
    }
}
