//! Confirmation at a terminal, and rollback after the terminal is gone.

use super::*;

/// A running `apply --confirm` in the foreground of a terminal. The command has printed its prompt.
struct Terminal {
    master: PtyMaster,
    child: Child,
    shown: String,
}

impl Terminal {
    fn start(net: &Net, seconds: &str, text: &str) -> Self {
        let path = file(&net.state, text);
        // openpty(3) cannot set close-on-exec. Without close-on-exec, a child process would hold the terminal open, and
        // no hang-up would occur.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("it can be used");
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits());
        let slave = options.open(ptsname_r(&master).expect("it has a name")).expect("opens");
        let copy = || Stdio::from(slave.try_clone().expect("copied"));
        let mut command = Command::new("setsid");
        command.args(["--ctty", PORTFWD, "--state-dir"]).arg(net.state.path()).args(["apply", "--confirm", seconds]);
        command.arg(path).env_remove("SSH_CONNECTION").stdin(copy()).stdout(copy()).stderr(copy());
        let child = net.in_host(move || command.spawn().expect("setsid is installed"));
        drop(slave);
        let mut terminal = Self { master, child, shown: String::new() };
        while !terminal.shown.contains(PROMPT_END) {
            assert!(terminal.read(), "no prompt: {}", terminal.shown);
        }
        terminal
    }

    fn read(&mut self) -> bool {
        let mut bytes = [0; 1024];
        let length = self.master.read(&mut bytes).unwrap_or(0);
        self.shown.push_str(&String::from_utf8_lossy(&bytes[..length]));
        length > 0
    }

    fn type_and_wait(mut self, text: &str) -> (i32, String) {
        self.master.write_all(text.as_bytes()).expect("typed");
        while self.read() {}
        (self.child.wait().expect("ends").code().unwrap_or(-1), self.shown)
    }

    /// Closes the terminal, as the end of an SSH connection does.
    fn hang_up(mut self) -> ExitStatus {
        drop(self.master);
        self.child.wait().expect("ends")
    }
}

#[test]
fn enter_confirms_and_any_other_input_rolls_back_at_once() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "9000", "172.17.0.4"]);
    let before = words(&net);
    for (typed, said) in [("no\n", "`no` was typed"), ("\x03", "SIGINT")] {
        let (code, shown) = Terminal::start(&net, LONG, NEW).type_and_wait(typed);
        assert!(code == 1 && shown.contains(said) && shown.contains("rolled back the change"), "{code} {shown}");
        assert_eq!(words(&net), before, "{typed:?}");
    }
    for typed in ["\n", "yes\n"] {
        let terminal = Terminal::start(&net, LONG, NEW);
        assert!(terminal.shown.contains("press Enter"), "{}", terminal.shown);
        let (code, shown) = terminal.type_and_wait(typed);
        assert!(code == 0 && shown.contains("confirmed"), "{code} {shown}");
        assert!(net.ok(&["list"]).stdout.contains("8080"), "{typed:?}");
        net.ok(&["apply", &file(&net.state, "").to_string_lossy()]);
        net.ok(&["flush"]);
        net.ok(&["add", "9000", "172.17.0.4"]);
    }
    eventually("no watcher is left", || watchers(&net).is_empty());
}

#[test]
fn apply_reads_stdin_only_if_it_is_a_terminal() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let path = file(&net.state, NEW).to_string_lossy().into_owned();
    let script = format!(
        "\"{PORTFWD}\" --state-dir \"{}\" apply --confirm {LONG} \"{path}\"\n\necho the rest is done\n",
        net.state.path().display()
    );
    let mut shell = Command::new("sh");
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("SSH_CONNECTION");
    let mut child = net.in_host(move || shell.spawn().expect("sh starts"));
    let input = child.stdin.take();
    { input }.expect("piped").write_all(script.as_bytes()).expect("written");
    let pending = PendingApply::after_prompt(child);
    assert_eq!(net.ok(&["confirm"]).stdout, "confirmed\n");
    let said = pending.wait();
    assert!(said.code == 0 && said.stdout.ends_with("the rest is done\n"), "{said:?}");
}

/// Ends a terminal or its processes. Returns the signal that ended the program.
type End = fn(Terminal) -> Option<i32>;

#[test]
fn a_change_is_rolled_back_if_its_terminal_or_its_processes_end() {
    if !privileged() {
        return;
    }
    let ends: [(&str, End); 3] = [
        ("the connection ends", |terminal| terminal.hang_up().signal()),
        ("the program is killed", |mut terminal| {
            terminal.child.kill().expect("killed");
            terminal.child.wait().expect("ends").signal()
        }),
        ("the process group is killed and the terminal closes", |terminal| {
            let group = Pid::from_raw(terminal.child.id().try_into().expect("a number"));
            killpg(group, Signal::SIGKILL).expect("killed");
            terminal.hang_up().signal()
        }),
    ];
    std::thread::scope(|scope| {
        for (name, end) in ends {
            scope.spawn(move || {
                let net = Net::new();
                net.ok(&["add", "9000", "172.17.0.4"]);
                let before = words(&net);
                let terminal = Terminal::start(&net, "8", NEW);
                let during = words(&net);
                assert_ne!(during, before, "{name}");
                let signal = end(terminal);
                assert!(signal.is_some(), "{name}: {signal:?}");
                assert_eq!(words(&net), during, "{name}: the change stays until the deadline");
                eventually(name, || words(&net) == before);
                eventually("the watcher is gone", || watchers(&net).is_empty());
                assert_eq!(net.ok(&["restore"]).stdout, "unchanged\n", "{name}");
            });
        }
    });
}

#[test]
fn a_change_can_be_confirmed_after_its_terminal_is_gone() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let status = Terminal::start(&net, LONG, NEW).hang_up();
    assert_eq!(status.signal(), Some(Signal::SIGHUP as i32));
    assert_eq!(net.ok(&["confirm"]).stdout, "confirmed\n");
    eventually("the watcher is gone", || watchers(&net).is_empty());
    assert!(net.ok(&["list"]).stdout.contains("8080"));
}
