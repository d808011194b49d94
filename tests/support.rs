use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use portfwd::iptables::command::Variant;
use portfwd::lab::{Links, Netns};

/// The path of the portfwd binary under test.
pub const PORTFWD: &str = env!("CARGO_BIN_EXE_portfwd");

/// Returns the directory of the package.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the example rule sets in `rules/`. The examples of `portfwd lab` are in a subfolder and are not included.
pub fn examples() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("rules")).expect("readable").flatten();
    let files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    assert!(files.len() >= 10, "{files:?}");
    files
}

/// The exit code and the output of a command. A failed assertion prints both.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs portfwd in the test's namespace and in the package's directory.
pub fn portfwd(arguments: &[&str]) -> Said {
    let output = Command::new(PORTFWD).args(arguments).current_dir(root()).output();
    output.expect("the program starts").into()
}

/// Returns true if the test can create network namespaces. Otherwise prints `SKIPPED`, or panics if `CI` is set.
pub fn privileged() -> bool {
    match Netns::new() {
        Ok(_) => true,
        Err(error) => {
            let message = format!("SKIPPED: needs network namespaces, run as root: {error}");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{message}");
            eprintln!("{message}");
            false
        }
    }
}

/// A client, the host under test and a target, connected through [`Links`]:
/// client 192.0.2.2 -- 192.0.2.1 host 172.17.0.1 -- 172.17.0.3 and .4 target, with IPv6 addresses too.
pub struct Net {
    pub client: Netns,
    pub host: Netns,
    pub target: Netns,
    pub state: tempfile::TempDir,
}

impl Net {
    pub fn new() -> Self {
        let net = Self {
            client: Netns::new().expect("namespace"),
            host: Netns::new().expect("namespace"),
            target: Netns::new().expect("namespace"),
            state: tempfile::tempdir().expect("directory"),
        };
        let address = |links: &Links, name: &str, list: &[(&str, u8)]| {
            links.up(name).expect("up");
            for (address, prefix) in list {
                links.address(name, address.parse().expect("address"), *prefix).expect("address");
            }
        };
        let ip = |text: &str| text.parse().expect("address");
        let in_host = || {
            let links = Links::open().expect("rtnetlink");
            links.up("lo").expect("up");
            links.veth("eth0", "eth0", &net.client).expect("veth");
            links.bridge("docker0").expect("bridge");
            links.veth("port0", "eth0", &net.target).expect("veth");
            links.join("port0", "docker0").expect("join");
            address(&links, "eth0", &[("192.0.2.1", 24), ("2001:db8::1", 64)]);
            address(&links, "docker0", &[("172.17.0.1", 16), ("fd00:17::1", 64)]);
        };
        net.host.run(in_host).expect("host");
        let in_client = || {
            let links = Links::open().expect("rtnetlink");
            links.up("lo").expect("up");
            address(&links, "eth0", &[("192.0.2.2", 24), ("2001:db8::2", 64)]);
            links.route(ip("0.0.0.0"), 0, ip("192.0.2.1")).expect("route");
            links.route(ip("::"), 0, ip("2001:db8::1")).expect("route");
        };
        net.client.run(in_client).expect("client");
        let in_target = || {
            let links = Links::open().expect("rtnetlink");
            links.up("lo").expect("up");
            let all = [("172.17.0.3", 16), ("172.17.0.4", 16), ("fd00:17::3", 64), ("fd00:17::4", 64)];
            address(&links, "eth0", &all);
            links.route(ip("0.0.0.0"), 0, ip("172.17.0.1")).expect("route");
            links.route(ip("::"), 0, ip("fd00:17::1")).expect("route");
        };
        net.target.run(in_target).expect("target");
        net
    }

    /// Runs portfwd in the host's namespace.
    pub fn portfwd(&self, arguments: &[&str]) -> Said {
        self.in_host(|| {
            let state = self.state.path().to_string_lossy().into_owned();
            let mut command = Command::new(PORTFWD);
            command.args(["--state-dir", &state]).args(arguments).current_dir(root());
            // The user may run the tests over SSH. That connection does not belong to the test network.
            command.env_remove("SSH_CONNECTION");
            command.output().expect("the program starts").into()
        })
    }

    /// Runs a program in the host's namespace, with `iptables` linked to this variant as update-alternatives(1) does.
    /// Before the program, a shell with private mounts runs `before`.
    pub fn with(&self, variant: Variant, before: &str, program: &str, arguments: &[&str]) -> Said {
        let mut command = self.command_with(variant, before, program, arguments);
        self.in_host(move || command.output().expect("unshare is installed").into())
    }

    /// Returns the command of [`Net::with`]. The caller starts the command in the host's namespace.
    pub fn command_with(&self, variant: Variant, before: &str, program: &str, arguments: &[&str]) -> Command {
        let script = format!(
            "set -e; d=$(mktemp -d); cp -a /etc/alternatives/. $d; mount --bind $d /etc/alternatives
             for p in iptables ip6tables; do ln -sfn /usr/sbin/$p-{} $d/$p; done
             {before}
             exec \"$@\"",
            variant.name()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh", program]).args(arguments).current_dir(root());
        // The mount disappears with the mount namespace, but the directory of `mktemp` stays. So `mktemp` uses the
        // test's directory.
        command.env("TMPDIR", self.state.path()).env_remove("SSH_CONNECTION");
        command
    }

    /// Runs portfwd with `--backend iptables` and this variant. Panics if it fails.
    pub fn chains(&self, variant: Variant, arguments: &[&str]) -> Said {
        let said = self.try_chains(variant, arguments);
        assert_eq!(said.code, 0, "{variant:?} {arguments:?}: {said:?}");
        said
    }

    /// Runs portfwd with `--backend iptables` and this variant.
    pub fn try_chains(&self, variant: Variant, arguments: &[&str]) -> Said {
        let state = self.state.path().to_string_lossy().into_owned();
        let with_backend = [&["--state-dir", &state, "--backend", "iptables"], arguments].concat();
        self.with(variant, "", PORTFWD, &with_backend)
    }

    /// Loads a foreign table with the host's iptables-restore or ip6tables-restore.
    pub fn others(&self, variant: Variant, word: &str, text: &str) {
        self.in_host(|| feed(&format!("{word}-{}-restore", variant.name()), &["--noflush", "--wait"], text));
    }

    /// Returns the output of iptables-save and ip6tables-save, without comment lines.
    pub fn saved(&self, variant: Variant) -> String {
        let save = |word: &str| {
            let program = format!("{word}-{}-save", variant.name());
            let said: Said = self.in_host(|| Command::new(&program).output().expect("iptables is installed").into());
            assert_eq!(said.code, 0, "{said:?}");
            said.stdout
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        save("iptables") + &save("ip6tables")
    }

    /// Runs portfwd in the host's namespace. Panics if it fails.
    pub fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.portfwd(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said
    }

    /// Runs nft(8) in the host's namespace, as an independent view of the ruleset.
    pub fn nft(&self, arguments: &[&str]) -> Said {
        self.in_host(|| Command::new("nft").args(arguments).output().expect("nft is installed").into())
    }

    pub fn in_host<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.host.run(job).expect("the host's namespace")
    }

    /// Starts a server in the target. Its answer names the server's address and the source address of the request.
    pub fn serve(&self, at: &str, udp: bool) {
        let at: SocketAddr = at.parse().expect("address");
        self.target.run(|| serve(at, udp)).expect("the target's namespace");
    }

    /// Returns the answer that the client receives, or the error kind as text.
    pub fn ask(&self, to: &str, udp: bool) -> String {
        let to: SocketAddr = to.parse().expect("address");
        self.client.run(|| ask(to, udp)).expect("the client's namespace")
    }

    /// Returns the answer of a TCP server to the client, or the error kind as text.
    pub fn tcp(&self, to: &str) -> String {
        self.ask(to, false)
    }
}

/// Binds a socket as soon as its address is usable. An IPv6 address is tentative at first, longer on a busy machine.
pub fn bind<T>(bind: impl Fn() -> std::io::Result<T>) -> T {
    for _ in 0..500 {
        match bind() {
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other.expect("bind"),
        }
    }
    panic!("the address is not usable after five seconds");
}

pub fn serve(at: SocketAddr, udp: bool) {
    use std::io::Write;
    if udp {
        let socket = bind(|| std::net::UdpSocket::bind(at));
        std::thread::spawn(move || {
            let mut question = [0; 16];
            while let Ok((_, peer)) = socket.recv_from(&mut question) {
                let sent = socket.send_to(format!("{at} saw {}", peer.ip()).as_bytes(), peer);
                sent.expect("answer");
            }
        });
    } else {
        let listener = bind(|| std::net::TcpListener::bind(at));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mut stream, peer) = (&stream, stream.peer_addr());
                if let Ok(peer) = peer {
                    let sent = write!(stream, "{at} saw {}", peer.ip());
                    drop(sent);
                }
            }
        });
    }
}

pub fn ask(to: SocketAddr, udp: bool) -> String {
    use std::io::Read;
    let timeout = Duration::from_secs(2);
    let answer = || -> std::io::Result<String> {
        if udp {
            let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
            let socket = std::net::UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(timeout))?;
            socket.send(b"?")?;
            let mut text = [0; 128];
            let length = socket.recv(&mut text)?;
            return Ok(String::from_utf8_lossy(&text[..length]).into_owned());
        }
        let mut stream = std::net::TcpStream::connect_timeout(&to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    answer().unwrap_or_else(|error| format!("{:?}", error.kind()))
}

static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

/// Writes a rule-set file into a temporary directory and returns its path.
pub fn file(directory: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = directory.path().join(format!("set{}.toml", NEXT_NUMBER.fetch_add(1, Ordering::Relaxed)));
    std::fs::write(&path, text).expect("written");
    path
}

/// Runs a program in the thread's namespace with `text` as stdin. Panics if the program fails.
pub fn feed(program: &str, arguments: &[&str], text: &str) {
    use std::io::Write as _;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{program}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
}

/// The two variants: iptables-nft and iptables-legacy.
pub const BOTH: [Variant; 2] = Variant::ALL;

/// Returns portfwd's lines of an iptables-save dump, and the table headers around them.
pub fn ours(saved: &str) -> Vec<&str> {
    saved.lines().filter(|line| line.contains("PORTFWD") || line.starts_with('*')).collect()
}

/// A network namespace with a name for ip-netns(8). A drop of the value deletes the namespace.
pub struct NamedNetns(pub String);

impl NamedNetns {
    pub fn new() -> Self {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("portfwd-test-{}-{number}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().expect("ip is installed").success());
        Self(name)
    }
}

impl Drop for NamedNetns {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.0]).status();
        drop(deleted);
    }
}
