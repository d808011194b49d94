//! Tests of `audit` without root, with dumps and with its options.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use portfwd::iptables::command::Variant;

use super::{json, reset_and_run, run};
use crate::support::{Net, PORTFWD, Said, file, portfwd, privileged, serve};

/// A script that makes a host with an error, a warning and rules of several tools.
const HOST: &str = r"
    xt nat ':DOCKER -
    -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
    -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
    -A DOCKER -i docker0 -j RETURN
    -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80
    -A DOCKER -d 192.0.2.1/32 ! -i docker0 -p udp --dport 5000:5003 -j DNAT --to 172.17.0.3:6000-6003/5000'
    xt filter ':FORWARD DROP
    -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A FORWARD -d 172.17.0.3 -p tcp --dport 80 -j ACCEPT'
    printf '*nat\n-A PREROUTING -d 2001:db8::1 -p tcp --dport 443 -j DNAT --to [fd00:17::3]:443\nCOMMIT\n' | ip6tables-nft-restore
    nft 'table inet web { chain pre { type nat hook prerouting priority -90; tcp dport 8000-8010 dnat ip to 172.17.0.4:80;
        ip6 daddr 2001:db8::1 tcp dport 8080 dnat ip6 to fd00:17::3; }; }'
    nft 'table ip6 t { chain pre { type nat hook prerouting priority -100; tcp dport { 81, 82 } redirect to :80; }; }'
";

fn ids(said: &Said) -> Vec<String> {
    let found = json(&said.stdout)["findings"].clone();
    let found = found.as_array().expect("a list");
    found.iter().map(|finding| finding["id"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn audit_options_select_findings_and_the_exit_code() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, HOST);
    let said = net.ok(&["audit", "--json"]);
    let all = ids(&said);
    let all_severities: Vec<String> = {
        let found = json(&said.stdout)["findings"].clone();
        found.as_array().expect("a list").iter().map(|one| one["severity"].as_str().expect("text").to_owned()).collect()
    };
    let rank = |severity: &str| ["error", "warning", "info"].iter().position(|one| *one == severity);
    assert!(all_severities.is_sorted_by_key(|severity| rank(severity)), "{all_severities:?}");
    for severity in ["error", "warning", "info"] {
        assert!(all_severities.iter().any(|one| one == severity), "{severity}: {said:?}");
    }

    for (id, severity) in all.iter().zip(&all_severities) {
        let severities: Vec<&String> =
            all.iter().zip(&all_severities).filter(|(one, _)| *one == id).map(|(_, one)| one).collect();
        if severities.first() != Some(&severity) {
            continue;
        }
        for level in ["error", "warning", "info"] {
            let code = if rank(severity) <= rank(level) { 4 } else { 0 };
            let said = net.portfwd(&["audit", "--only", id, "--fail-on", level]);
            assert_eq!(said.code, code, "{id} {severity} {level}: {said:?}");
        }
    }
    assert_eq!(net.portfwd(&["audit", "--fail-on", "error"]).code, 4);
    let errors: Vec<&str> =
        all.iter().zip(&all_severities).filter(|(_, one)| *one == "error").map(|(id, _)| id.as_str()).collect();
    let without = net.portfwd(&["audit", "--json", "--fail-on", "error", "--ignore", &errors.join(",")]);
    assert_eq!(without.code, 0, "{without:?}");

    let rest: Vec<&String> = all.iter().filter(|id| !errors.contains(&id.as_str())).collect();
    assert_eq!(ids(&without).iter().collect::<Vec<_>>(), rest);
    let only = net.ok(&["audit", "--json", "--only", &errors.join(",").to_lowercase()]);
    let same: Vec<&String> = all.iter().filter(|id| errors.contains(&id.as_str())).collect();
    assert_eq!(ids(&only).iter().collect::<Vec<_>>(), same);
    for wrong in [
        &["--only", "F99"][..],
        &["--ignore", "F53"],
        &["--only", ""],
        &["--fail-on", "bad"],
        &["--only", "F01", "--ignore", "F02"],
        &["--sarif", "--json"],
    ] {
        let said = net.portfwd(&[&["audit"], wrong].concat());
        assert_eq!(said.code, 2, "{wrong:?}: {said:?}");
    }
    assert!(net.portfwd(&["audit", "--only", "F99"]).stderr.contains("F99"));

    let audit_owner = |owner: &str| json(&net.ok(&["audit", "--json", "--owner", owner]).stdout);
    let owners = |value: &Value| -> Vec<String> {
        value.as_array().expect("a list").iter().map(|row| row["owner"].as_str().expect("text").to_owned()).collect()
    };
    let unfiltered = json(&said.stdout);
    let docker = audit_owner("docker");
    assert_eq!(owners(&docker["forwards"]), ["docker", "docker"]);
    assert_eq!(owners(&docker["sources"]), ["docker"]);
    assert!(audit_owner("user")["sources"].as_array().is_some_and(Vec::is_empty));
    let about = |finding: &Value| owners(&finding["places"]).iter().any(|owner| owner == "docker");
    let found = docker["findings"].as_array().expect("a list");
    assert!(!found.is_empty() && found.iter().all(about), "{found:#?}");
    assert_eq!(found.len(), unfiltered["findings"].as_array().expect("a list").iter().filter(|one| about(one)).count());
    assert_eq!(owners(&audit_owner("unknown,docker,user")["forwards"]).len(), owners(&unfiltered["forwards"]).len());
    assert!(audit_owner("nobody")["forwards"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn sarif_output_follows_the_standard() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, HOST);
    let log = json(&net.ok(&["audit", "--sarif"]).stdout);
    let dump = net.state.path().join("nft.json");
    fs::write(&dump, run(&net, "nft -j list ruleset")).expect("written");
    let save = net.state.path().join("save v4");
    fs::write(&save, run(&net, "iptables-nft-save")).expect("written");
    let of_dump = |path: &std::path::Path| json(&portfwd(&["audit", "--sarif", &path.to_string_lossy()]).stdout);
    for log in [log, of_dump(&dump), of_dump(&save)] {
        assert_eq!(log["version"], "2.1.0");
        assert!(log["$schema"].as_str().is_some_and(|schema| schema.ends_with("sarif-schema-2.1.0.json")));
        let [run] = log["runs"].as_array().expect("runs").as_slice() else { panic!("{log:#}") };
        assert_eq!(run["tool"]["driver"]["name"], "portfwd");
        let rules: Vec<&str> = run["tool"]["driver"]["rules"]
            .as_array()
            .expect("rules")
            .iter()
            .map(|rule| rule["id"].as_str().expect("an id"))
            .collect();
        assert_eq!(run["invocations"][0]["executionSuccessful"], true);
        let results = run["results"].as_array().expect("results");
        assert!(!results.is_empty());
        for result in results {
            // SARIF §3.27 requires a message. §3.27.10 and §3.11.8 define the level and the text.
            assert!(result["message"]["text"].as_str().is_some_and(|text| !text.is_empty()), "{result:#}");
            assert!(rules.contains(&result["ruleId"].as_str().expect("an id")), "{result:#}");
            assert!(["note", "warning", "error"].contains(&result["level"].as_str().expect("a level")), "{result:#}");
            for location in result["locations"].as_array().expect("locations") {
                assert!(location["logicalLocations"][0]["fullyQualifiedName"].is_string(), "{location:#}");
                if let Some(physical) = location.get("physicalLocation") {
                    // SARIF §3.4.3: a URI reference must not contain spaces.
                    let uri = physical["artifactLocation"]["uri"].as_str().expect("a URI");
                    assert!(!uri.contains(' '), "{uri}");
                    assert!(physical["region"]["startLine"].as_u64().is_some_and(|line| line > 0), "{physical:#}");
                }
            }
        }
    }
    let log = of_dump(&save);
    let lines = log["runs"][0]["results"]
        .as_array()
        .expect("results")
        .iter()
        .flat_map(|result| result["locations"].as_array().cloned().unwrap_or_default());
    assert!(lines.filter(|location| location.get("physicalLocation").is_some()).count() > 0, "{log:#}");
}

#[test]
fn without_root_nothing_can_be_read() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    // The build directory may be readable by root only, so the unprivileged user runs a copy of the program.
    let copy = net.state.path().join("portfwd");
    fs::copy(PORTFWD, &copy).expect("copied");
    for path in [net.state.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    let as_nobody = |arguments: &[&str]| -> Said {
        net.in_host(|| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&copy);
            command.args(["--state-dir", "/nonexistent/portfwd"]).args(arguments).current_dir("/");
            command.env_remove("SSH_CONNECTION").output().expect("setpriv is installed").into()
        })
    };
    for script in [HOST, "iptables-legacy -t nat -A PREROUTING -p tcp --dport 9 -j DNAT --to 172.17.0.3", ""] {
        reset_and_run(&net, script);
        for command in [
            &["audit"][..],
            &["audit", "--json", "--fail-on", "error"],
            &["audit", "--fail-on", "error", "--no-fail-on-unknown"],
            &["explain", "tcp", "192.0.2.2", "to", "192.0.2.1:8080", "-i", "eth0"],
            &["explain", "--json", "tcp", "192.0.2.2", "to", "192.0.2.1:8080", "-i", "eth0"],
        ] {
            let said = as_nobody(command);
            assert_eq!((said.code, said.stdout.as_str()), (5, ""), "{command:?}: {said:?}");
            assert!(said.stderr.contains("help: run as root"), "{said:?}");
        }
    }
}

#[test]
fn rules_that_could_not_be_read_or_understood_count_for_the_exit_code() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let audit = |arguments: &[&str]| net.portfwd(&[&["audit", "--only", "F01,F52"], arguments].concat());
    let expect = |found: i32, unknown: &str, arguments: &[&str]| {
        for level in ["info", "error"] {
            assert_eq!(audit(&[&["--fail-on", level], arguments].concat()).code, found, "{arguments:?}");
            let off = [&["--fail-on", level, "--no-fail-on-unknown"], arguments].concat();
            assert_eq!(audit(&off).code, 0, "{arguments:?}");
        }
        let said = audit(arguments);
        assert_eq!((said.code, said.stdout.contains(" unknown\n")), (0, !unknown.is_empty()), "{said:?}");
        assert!(said.stdout.contains(unknown), "{said:?}");
    };
    let xt = |rule: &str| format!("iptables-legacy-restore <<E\n*nat\n-A PREROUTING {rule}\nCOMMIT\nE");
    let time = "-p tcp --dport 9 -m time --timestart 10:00 -j DNAT --to 172.17.0.3";
    for (script, code, unknown) in [
        (xt("-p tcp --dport 9 -j DNAT --to 172.17.0.3"), 0, ""),
        (xt(time), 4, "1 unknown"),
        // The verdict of the second rule depends on the first one.
        (
            xt("-p tcp -m time --timestart 10:00 -j ACCEPT\n-A PREROUTING -p tcp --dport 9 -j DNAT --to 172.17.0.3"),
            4,
            "1 unknown",
        ),
        // A rule that decides about no forward does not count.
        (
            xt("-p udp -m time --timestart 10:00 -j ACCEPT\n-A PREROUTING -p tcp --dport 9 -j DNAT --to 172.17.0.3"),
            0,
            "",
        ),
    ] {
        reset_and_run(&net, "iptables-legacy -t nat -F");
        run(&net, &script);
        expect(code, unknown, &[]);
        let saved = run(&net, "iptables-legacy-save");
        expect(code, unknown, &[&file(&net.state, &saved).to_string_lossy()]);
    }

    // Facts never count. The summary names them once.
    let dump = file(&net.state, &run(&net, "iptables-legacy-save")).to_string_lossy().into_owned();
    let said = net.ok(&["audit", "--fail-on", "info", "--only", "F52", &dump]);
    assert_eq!(said.stdout.matches("not known: interfaces, addresses, routes").count(), 1, "{said:?}");
    assert_eq!(said.stderr, "", "{said:?}");
    let report = json(&net.ok(&["audit", "--json", &dump]).stdout);
    assert_eq!(report["unknown"][0]["kind"], "facts", "{report:#}");
    assert_eq!(report["unknown"].as_array().map(Vec::len), Some(1), "{report:#}");

    // Without the program of iptables-legacy, its tables are unread.
    let state = net.state.path().to_string_lossy().into_owned();
    let without = |arguments: &[&str]| -> Said {
        net.with(
            Variant::Legacy,
            "mount -t tmpfs none /usr/sbin; mkdir -p $TMPDIR/empty",
            PORTFWD,
            &[&["--state-dir", &state, "audit"], arguments].concat(),
        )
    };
    let said = without(&["--json", "--fail-on", "error", "--only", "F52"]);
    assert_eq!(said.code, 4, "{said:?}");
    let report = json(&said.stdout);
    assert_eq!(report["unknown"][0]["kind"], "rules", "{report:#}");
    assert_eq!(ids(&said), ["F52"], "{said:?}");
    assert_eq!(without(&["--fail-on", "info", "--no-fail-on-unknown", "--only", "F52"]).code, 0);
}

#[test]
fn control_characters_in_foreign_comments_are_escaped() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, "");
    let evil = "a\u{1b}[2Jb\u{9b}31mc\u{202e}d";
    run(&net, &format!("nat 'tcp dport 80 dnat to 172.17.0.3 comment \"{evil}\"; iifname \"e\u{1b}[1m\" tcp dport 81 dnat to 172.17.0.3'
        nft 'table ip u {{ comment \"{evil}\"; chain pre {{ type nat hook prerouting priority -101; tcp dport 80 dnat to 172.17.0.4 comment \"{evil}\"; }}; }}'"));
    let said = net.ok(&["audit"]);
    let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!said.stdout.contains(hidden) && !said.stderr.contains(hidden), "{said:?}");
    assert!(said.stdout.contains("F01") && said.stdout.contains("\\u{1b}"), "{said:?}");
    // JSON output contains the original text with JSON escapes.
    let said = net.ok(&["audit", "--json"]);
    assert!(!said.stdout.contains(|c: char| c.is_ascii_control() && c != '\n'), "{said:?}");
    let report = json(&said.stdout);
    assert!(report["forwards"].as_array().expect("a list").iter().any(|row| row["comment"] == evil), "{report:#}");
}

#[test]
fn a_dump_is_a_regular_file_or_a_pipe_of_limited_size() {
    let directory = tempfile::tempdir().expect("directory");
    let text =
        "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.3\nCOMMIT\n";
    let [large, binary, good] = ["large", "binary", "good"].map(|name| directory.path().join(name));
    // The file is sparse, so it takes no room.
    fs::File::create(&large).expect("created").set_len(400 << 20).expect("set");
    fs::write(&binary, format!("{text}\0")).expect("written");
    fs::write(&good, text).expect("written");
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    for (file, reason) in [
        ("/dev/zero", "not a regular file or a pipe"),
        ("/dev/tty", "not a regular file or a pipe"),
        (&path(directory.path()), "not a regular file or a pipe"),
        (&path(&large), "larger than the maximum of 128 MiB"),
        (&path(&binary), "contains a NUL byte"),
        ("/nonexistent", "No such file"),
    ] {
        let said = portfwd(&["audit", file]);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{file}: {said:?}");
        assert!(said.stderr.contains(reason), "{file}: {said:?}");
    }
    let piped = |source: &str| -> Said {
        let script = format!("ulimit -v 4000000; {source} | timeout 60 {PORTFWD} audit /dev/stdin");
        Command::new("sh").args(["-c", &script]).output().expect("sh").into()
    };
    for (source, reason) in
        [("cat /dev/zero", "larger than"), ("yes", "larger than"), ("printf 'a\\0b'", "contains a NUL")]
    {
        let said = piped(source);
        assert!(said.code == 2 && said.stderr.contains(reason), "{source}: {said:?}");
    }
    let said = piped(&format!("cat {}", path(&good)));
    assert!(said.code == 0 && said.stdout.contains("1 forward,"), "{said:?}");
    assert_eq!(portfwd(&["audit", &path(&good)]).code, 0);
}

#[test]
fn the_error_about_a_truncated_dump_names_the_line() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, HOST);
    let path = net.state.path().join("dump");
    let audit_text = |text: &str| {
        fs::write(&path, text).expect("written");
        portfwd(&["audit", "--json", &path.to_string_lossy()])
    };
    let save = run(&net, "iptables-nft-save");
    assert_eq!(audit_text(&save).code, 0);
    let lines: Vec<&str> = save.lines().collect();
    let cut = lines.iter().position(|line| line.contains("--to-destination 172.17.0.3:80")).expect("the rule");
    let said = audit_text(&lines[..=cut].join("\n"));
    assert_eq!(said.code, 2, "{said:?}");
    assert!(
        said.stderr.contains(&format!("line {}", cut + 1)) || said.stderr.contains(&format!("line {}", cut + 2)),
        "{said:?}"
    );
    // The dump ends in the middle of a word.
    let half = lines[..=cut].join("\n");
    let said = audit_text(&half[..half.len() - 30]);
    assert_eq!(said.code, 2, "{said:?}");
    let ruleset = run(&net, "nft -j list ruleset");
    assert_eq!(audit_text(&ruleset).code, 0);
    let said = audit_text(&ruleset[..ruleset.len() / 2]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.stderr.contains("line 1"), "{said:?}");
    for text in ["", "\n", "hello\n", "{}", "[]"] {
        let said = audit_text(text);
        assert_eq!(said.code, 2, "{text:?}: {said:?}");
    }
    // iptables-save prints nothing if there are no tables. `audit` accepts an empty dump beside another dump.
    let empty = net.state.path().join("empty");
    fs::write(&path, &save).and_then(|()| fs::write(&empty, "")).expect("written");
    let said = portfwd(&["audit", "--json", &path.to_string_lossy(), &empty.to_string_lossy()]);
    assert_eq!(said.code, 0, "{said:?}");
}

/// Returns everything that a read could change: rules, legacy tables, sysctls, connections and routes. Counters are
/// left out.
fn state(net: &Net) -> String {
    run(
        net,
        "nft -a list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2> /dev/null || :
        for p in $(cat /proc/net/ip_tables_names); do iptables-legacy-save -t $p | sed '/^#/d; s/\\[.*//'; done
        grep -rs . /proc/sys/net | grep -v '_count:\\|/random\\|stable_secret'
        conntrack -L -p udp 2> /dev/null | grep -o 'src=.*'; ip addr; ip route; ip -6 route; ip rule",
    )
}

#[test]
fn audit_changes_nothing() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, HOST);
    net.in_host(|| serve("192.0.2.1:7000".parse().expect("address"), true));
    assert!(net.ask("192.0.2.1:7000", true).contains("saw"));
    // The first round has no legacy tables: iptables-legacy creates a table when a command reads or writes it.
    for legacy in ["", "iptables-legacy -t nat -A PREROUTING -p tcp --dport 9 -j DNAT --to 172.17.0.3"] {
        run(&net, legacy);
        let before = state(&net);
        net.ok(&["audit"]);
        net.ok(&["audit", "--json"]);
        net.ok(&["audit", "--sarif"]);
        let after = state(&net);
        let lines = |of: &str, other: &str| -> Vec<String> {
            of.lines().filter(|line| !other.lines().any(|one| one == *line)).map(str::to_owned).collect()
        };
        assert_eq!(lines(&before, &after), lines(&after, &before));
        assert_eq!(before, after);
    }
    assert!(
        fs::read_dir(net.state.path()).expect("readable").next().is_none(),
        "`audit` wrote into the state directory"
    );
}

/// Returns the fields of a forward that the kernel and a dump have in common.
fn comparable(forward: &Value) -> String {
    let words = ["family", "action", "protocol", "ports", "interface", "from", "to", "owner", "table", "chain"];
    words.map(|word| forward[word].to_string()).join(" ")
}

#[test]
fn the_kernel_and_its_dumps_have_the_same_forwards() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, HOST);
    let comparable_rows = |said: &Said| -> Vec<String> {
        let report = json(&said.stdout);
        report["forwards"].as_array().expect("a list").iter().map(comparable).collect()
    };
    let write = |name: &str, text: String| {
        let path = net.state.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    };
    let live = comparable_rows(&net.ok(&["audit", "--json"]));
    assert_eq!(live.len(), 6, "{live:#?}");
    let ruleset = write("nft.json", run(&net, "nft -j list ruleset"));
    let four = write("iptables-save", run(&net, "iptables-nft-save"));
    let six = write("ip6tables-save", run(&net, "ip6tables-nft-save"));
    let said = portfwd(&["audit", "--json", &ruleset, &four, &six]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(comparable_rows(&said), live);
    let is_xt = |row: &&String| ["\"ip nat\"", "\"ip6 nat\""].iter().any(|table| row.contains(table));
    // nft(8) 1.0.6 cannot print iptables targets, so its dump alone does not contain the iptables forwards.
    let alone = comparable_rows(&portfwd(&["audit", "--json", &ruleset]));
    let native: Vec<String> = live.iter().filter(|row| !is_xt(row)).cloned().collect();
    assert!(native.iter().all(|row| alone.contains(row)), "{alone:#?}");
    let saved = comparable_rows(&portfwd(&["audit", "--json", &four, &six]));
    let of_iptables: Vec<String> = live.iter().filter(|row| is_xt(row)).cloned().collect();
    assert_eq!(saved, of_iptables);
}

/// Invisible characters. Some of them move the cursor or change the direction of text.
const INVISIBLE: [char; 6] = ['\u{1b}', '\u{9b}', '\u{7f}', '\u{202e}', '\u{2066}', '\u{200e}'];

/// Checks that a text contains no invisible characters.
#[track_caller]
fn expect_all_visible(text: &str) {
    let invisible = text.chars().find(|c| *c != '\n' && (c.is_control() || INVISIBLE.contains(c)));
    assert_eq!(invisible, None, "{text:?}");
}

#[test]
fn hidden_characters_in_foreign_names_are_escaped() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let bad: String = INVISIBLE.iter().collect();
    reset_and_run(&net, "");
    // An interface name has at most 15 bytes. iptables accepts more characters in chain names than nft(8).
    let link = "x\u{9b}\u{202e}y";
    let rules = format!(
        "*nat\n:PREROUTING ACCEPT\n:a{bad} -\n-A PREROUTING -j a{bad}\n-A a{bad} -i {link} -p tcp --dport 80 -m comment --comment \"b{bad}\" -j DNAT --to-destination 172.17.0.3:80\n-A a{bad} -p tcp --dport 80 -j DNAT --to-destination 172.17.0.4:80\nCOMMIT\n"
    );
    net.in_host(|| crate::support::feed("iptables-nft-restore", &["--noflush"], &rules));
    run(&net, &format!("ip link add '{link}' group 7 type bridge; ip link set '{link}' up"));
    let path = net.state.path().join("dump");
    fs::write(&path, &rules).expect("written");
    let path = path.to_string_lossy().into_owned();
    for dump in [None, Some(path.as_str())] {
        let said = |words: &[&str]| {
            let said = net.ok(&[&["audit"], words, dump.as_slice()].concat());
            expect_all_visible(&said.stdout);
            expect_all_visible(&said.stderr);
            said.stdout
        };
        let text = said(&[]);
        assert!(text.contains("a\\u{1b}\\u{9b}\\u{7f}\\u{202e}\\u{2066}\\u{200e}"), "{text}");
        assert!(text.contains("on x\\u{9b}\\u{202e}y"), "{text}");
        let report = json(&said(&["--json"]));
        let row = &report["forwards"][0];
        assert_eq!(
            (row["chain"].as_str(), row["comment"].as_str()),
            (Some(&*format!("a{bad}")), Some(&*format!("b{bad}")))
        );
        assert!(!report["findings"].as_array().expect("a list").is_empty());
        said(&["--sarif"]);
    }
    for words in [
        &["explain", "tcp 192.0.2.2:5000 -> 192.0.2.1:80 -i eth0"][..],
        &["explain", "--json", "tcp 192.0.2.2:5000 -> 192.0.2.1:80 -i eth0"],
    ] {
        expect_all_visible(&net.ok(words).stdout);
    }
}
