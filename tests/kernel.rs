use std::process::Command;

use crate::support::{Net, PORTFWD, Said, file, privileged};

fn forwards_toml(count: u32) -> String {
    (1..=count).map(|port| format!("[[forward]]\nlisten = \"{port}\"\nto = \"172.17.0.3:80\"\n")).collect()
}

/// Runs portfwd under strace and returns the size of each batch that it sends, in bytes.
fn batches(net: &Net, arguments: &[&str]) -> Vec<usize> {
    // strace writes one file for each thread, so that it splits no line.
    let directory = tempfile::tempdir().expect("directory");
    let log = directory.path().join("strace");
    let said: Said = net.in_host(|| {
        let mut command = Command::new("strace");
        command.args(["-ff", "-e", "trace=sendto,sendmsg", "-o"]).arg(&log).arg(PORTFWD);
        command.arg("--state-dir").arg(net.state.path()).args(arguments);
        command.output().expect("strace is installed").into()
    });
    assert_eq!(said.code, 0, "{said:?}");
    let logs = std::fs::read_dir(directory.path()).expect("logs").flatten();
    let text: String = logs.map(|log| std::fs::read_to_string(log.path()).expect("log")).collect();
    // A batch begins with a message of type 0x10, NFNL_MSG_BATCH_BEGIN.
    let batch = |line: &&str| line.contains("NFNL_MSG_BATCH_BEGIN") || line.contains("nlmsg_type=0x10,");
    let size = |line: &str| line.rsplit_once("= ").and_then(|(_, size)| size.trim().parse().ok()).expect("a size");
    text.lines().filter(batch).map(size).collect()
}

#[test]
fn apply_sends_one_batch_and_add_sends_one_element() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let set = file(&net.state, &forwards_toml(60_000));
    let sent = batches(&net, &["apply", &set.to_string_lossy()]);
    assert_eq!(sent.len(), 1, "{sent:?}");
    let sent = batches(&net, &["add", "60001", "172.17.0.3:80"]);
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert!(sent[0] < 200, "{sent:?}");
    assert_eq!(batches(&net, &["add", "60001", "172.17.0.3:80"]), [0; 0]);
    let rules = net.nft(&["-t", "list", "table", "inet", "portfwd"]).stdout;
    assert_eq!(rules.matches("dnat ip to").count(), 1, "{rules}");
}

#[test]
fn plan_after_apply_is_empty_and_apply_repairs_drift() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for name in ["quickstart", "docker", "router", "ranges"] {
        let path = format!("rules/{name}.toml");
        let planned = net.portfwd(&["plan", "--detailed-exitcode", &path]);
        assert_eq!(planned.code, 3, "{planned:?}");
        net.ok(&["apply", &path]);
        let planned = net.ok(&["plan", "--detailed-exitcode", &path]);
        assert_eq!(planned.stdout, "0 to add, 0 to change, 0 to remove\n", "{name}");
        let list = net.ok(&["list"]);
        assert!(!list.stdout.contains("missing") && !list.stdout.contains("foreign"), "{list:?}");
        let expected = net.nft(&["-n", "list", "ruleset"]).stdout;
        // The drift is a flushed chain and a foreign set.
        net.nft(&["flush", "chain", "inet", "portfwd", "nat-prerouting"]);
        net.nft(&["add", "set", "inet", "portfwd", "strange", "{ type ipv4_addr; }"]);
        assert_eq!(net.portfwd(&["plan", "--detailed-exitcode", &path]).code, 3);
        net.ok(&["apply", &path]);
        assert_eq!(net.nft(&["-n", "list", "ruleset"]).stdout.len(), expected.len(), "{name}");
        net.nft(&["flush", "ruleset"]);
        assert!(net.ok(&["list"]).stdout.contains("missing"));
        net.ok(&["apply", &path]);
        assert_eq!(net.ok(&["plan", &path]).stdout, "0 to add, 0 to change, 0 to remove\n");
        net.ok(&["flush"]);
        assert_eq!(net.nft(&["list", "ruleset"]).stdout, "");
    }
}

#[test]
fn a_dry_run_and_a_plan_change_nothing() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for arguments in [
        &["add", "80", "172.17.0.3", "--dry-run"][..],
        &["apply", "rules/docker.toml", "--dry-run"],
        &["plan", "rules/docker.toml"],
        &["list"],
        &["flush", "--dry-run"],
    ] {
        net.ok(arguments);
        assert_eq!(net.nft(&["list", "ruleset"]).stdout, "", "{arguments:?}");
        assert_eq!(std::fs::read_dir(net.state.path()).expect("readable").count(), 0, "{arguments:?}");
    }
}

#[test]
fn foreign_tables_stay_unchanged() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.nft(&["add table inet other; add chain inet other c { type nat hook prerouting priority -100; }; add rule inet other c tcp dport 81 counter redirect to :82"]);
    let foreign = || net.nft(&["list", "table", "inet", "other"]).stdout;
    let before = foreign();
    assert!(before.contains("counter"), "{before}");
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    net.ok(&["rm", "8080"]);
    net.ok(&["apply", "rules/docker.toml"]);
    net.ok(&["flush"]);
    assert_eq!(foreign(), before);
}

#[test]
fn two_files_in_either_order_give_the_same_rules() {
    if !privileged() {
        return;
    }
    let seen = [["rules/docker.toml", "rules/ranges.toml"], ["rules/ranges.toml", "rules/docker.toml"]].map(|order| {
        let net = Net::new();
        for path in order {
            net.ok(&["apply", path]);
        }
        let list = net.ok(&["list"]).stdout;
        let text = net.nft(&["-n", "-t", "list", "ruleset"]).stdout;
        // nft(8) lists objects in the order of their creation, so the test sorts them.
        let mut objects: Vec<String> = text.split("\n\n").map(|object| object.trim().to_owned()).collect();
        objects.iter_mut().for_each(|object| {
            *object = object.replace("table inet portfwd {\n", "").replace("\n}", "").trim().to_owned()
        });
        objects.sort_unstable();
        (list, objects)
    });
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn constant_foreign_commits_do_not_stop_add() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                net.nft(&["add table inet other; delete table inet other"]);
            }
        });
        for port in 1..=30 {
            net.ok(&["add", &port.to_string(), "172.17.0.3:80"]);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(net.ok(&["list"]).stdout.matches(" live ").count(), 30);
}

#[test]
fn a_foreign_element_is_reported_and_removed() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    // The foreign element has a comment that is not a rule-set name.
    let foreign = "add element inet portfwd ip-ports { tcp . 9 comment \"not a set name!\" : 10.0.0.1 . 9 }";
    assert_eq!(net.nft(&[foreign]).code, 0);
    let list = net.ok(&["list"]);
    assert!(list.stderr.contains("an element of map ip-ports in table inet portfwd is foreign"), "{list:?}");
    net.ok(&["add", "8081", "172.17.0.3:80"]);
    assert!(!net.nft(&["list", "ruleset"]).stdout.contains("not a set name"));
}

#[test]
fn an_error_names_the_element_that_the_kernel_refuses() {
    use portfwd::model::{DesiredState, Forward, RuleSet, SetName};
    use portfwd::nft::transaction::{CommitError, Connection};
    use portfwd::nft::{compile::compile, decode::decode, diff::diff, element, encode::encode};
    if !privileged() {
        return;
    }
    let mut set = RuleSet::new(SetName::cli());
    for port in 1..=300 {
        let listen = format!("{port}").parse().expect("listen");
        set.forwards.push(Forward::new(listen, "10.0.0.1".parse().expect("target")));
    }
    let mut desired = DesiredState::default();
    desired.add(&set).expect("valid");
    let program = compile(&desired).expect("compiles");
    let net = Net::new();
    net.in_host(|| {
        let mut connection = Connection::open().expect("opens");
        let (live, generation) = decode(&mut connection).expect("reads");
        connection.commit(&encode(&diff(&live, &program), generation)).expect("commits");
        // The program `believed` lacks an element that the kernel contains. An addition of this element fails with
        // EEXIST.
        let (mut believed, generation) = decode(&mut connection).expect("reads");
        let elements = &mut believed.maps.get_mut("ip-ports").expect("the map").elements;
        let keys: Vec<_> = elements.keys().cloned().collect();
        elements.retain(|key, _| *key == keys[0]);
        let mut wanted = believed.clone();
        let new = program.maps["ip-ports"].elements.clone();
        let last = new.iter().next_back().expect("elements");
        wanted.maps.get_mut("ip-ports").expect("the map").elements.insert(last.0.clone(), last.1.clone());
        let changes = diff(&believed, &wanted);
        let batch = encode(&changes, generation);
        let refused = connection.commit(&batch);
        let Err(CommitError::Refused { seq, offset: Some(offset), error, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(error.raw_os_error(), Some(17), "{error}");
        let (name, key, element) = batch.element_at(seq, offset).expect("an element");
        let forward = element::read(&name.parse().expect("a map of portfwd"), key, element).expect("a forward");
        assert_eq!(forward.rule.to_string(), "300/tcp -> 10.0.0.1:300");
        // The kernel refuses a batch with an older generation.
        let stale = connection.commit(&encode(&diff(&program, &believed), generation - 1));
        assert!(matches!(stale, Err(CommitError::Stale)), "{stale:?}");
        assert_eq!(decode(&mut connection).expect("reads").0.element_count(), 300);
    });
}

#[test]
fn a_dormant_table_is_reported_and_repaired() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    assert_eq!(net.nft(&["add table inet portfwd { flags dormant; }"]).code, 0);
    let list = net.ok(&["list"]);
    assert!(list.stderr.contains("a flag of the table, such as `dormant`,"), "{list:?}");
    net.ok(&["add", "8081", "172.17.0.3:80"]);
    assert!(!net.nft(&["list", "ruleset"]).stdout.contains("dormant"));
    assert!(!net.ok(&["list"]).stderr.contains("warning"));
}
