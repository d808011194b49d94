//! Rules in the text of `nft list ruleset` are the rules of the kernel.

use std::process::Command;

use portfwd::lab::{Links, Netns};
use portfwd::ruleset::read::{self, dump};
use portfwd::ruleset::table::{Action, Chain, Rule, Ruleset, Table};

use crate::support::{PORTFWD, Said, feed, privileged, root};

/// Prepares rules for a comparison: sorts cases, because the kernel gives the elements of maps in any order, and removes the
/// places in the text, and the owners that only the kernel knows.
fn comparable(mut rules: Ruleset) -> Vec<String> {
    let chain = |chain: &Chain| {
        let rule = |rule: &Rule| {
            let mut cases: Vec<String> = rule.cases.iter().map(|case| format!("{case:?}")).collect();
            cases.sort();
            format!("{:?} {:?} {:?} {cases:#?}", rule.handle, rule.comment, rule.counter)
        };
        let rules: Vec<String> = chain.rules.iter().map(rule).collect();
        format!("{} {:?} {:?}\n{}", chain.name, chain.base, chain.handle, rules.join("\n"))
    };
    let table = |table: &mut Table| {
        let chains: Vec<String> = table.chains.iter().map(chain).collect();
        format!("{table} {:?} {} {:?}\n{}", table.tool, table.dormant, table.flow_devices, chains.join("\n"))
    };
    rules.tables.iter_mut().map(table).collect()
}

/// Loads rules in a new namespace. Compares the kernel's rules with those of the text.
fn expect_same(rules: &str, links: &[&str]) {
    let namespace = Netns::new().expect("namespace");
    let (live, text) = namespace
        .run(|| {
            let all = Links::open().expect("rtnetlink");
            links.iter().for_each(|name| all.bridge(name).expect("bridge"));
            feed("nft", &["-f", "-"], rules);
            let (live, _) = read::live(None).expect("readable");
            let output = Command::new("nft").args(["-a", "list", "ruleset"]).output().expect("nft is installed");
            (live, String::from_utf8(output.stdout).expect("text"))
        })
        .expect("namespace");
    let read = dump(&text, None).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(read.gaps, [], "{text}");
    let (read, live) = (comparable(read), comparable(live));
    for (read, live) in read.iter().zip(&live) {
        assert_eq!(read, live, "{text}");
    }
    assert_eq!(read.len(), live.len(), "{text}");
}

#[test]
fn the_text_of_rules_of_other_programs_is_read_as_the_kernel_has_them() {
    if !privileged() {
        return;
    }
    let directory = root().join("tests/audit/peers");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).expect("readable").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "nft") {
            expect_same(&std::fs::read_to_string(entry.path()).expect("text"), &["docker0", "eth0"]);
            count += 1;
        }
    }
    assert!(count >= 4, "{count} files");
}

#[test]
fn the_text_of_every_kind_of_object_is_read_as_the_kernel_has_it() {
    if !privileged() {
        return;
    }
    expect_same(
        r#"
table inet shapes {
    comment "a table; with { signs }"
    counter hits { packets 5 bytes 500; }
    quota q { over 25 mbytes; }
    limit l { rate 400/hour; }
    ct helper ftp-standard { type "ftp" protocol tcp; l3proto ip; }
    set blocked { type ipv4_addr; flags interval; auto-merge; elements = { 198.51.100.0/24, 203.0.113.1-203.0.113.9 }; }
    set seen { type ipv4_addr . inet_service; size 65535; flags dynamic,timeout; timeout 1m; }
    set timed { typeof ip saddr; flags timeout; timeout 1h; counter; elements = { 192.0.2.1 timeout 2h comment "x, y", 192.0.2.2 }; }
    set ports { type inet_service; elements = { 22, 80, 443, 8000, 8001, 8002, 8003, 8004, 8005, 8006, 8007, 8008, 8009, 8010 }; }
    set inputs { typeof iifname . th dport; flags interval; elements = { "eth0" . 80, "wan*" . 443 } ; }
    set numbers { type iface_index; elements = { "eth0", "docker0" } ; }
    map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.1 . tcp . 443 : goto service-1, 10.96.0.10 . udp . 53 : jump service-1 }; }
    map names { type ipv4_addr : counter; elements = { 192.0.2.7 : "hits" }; }
    map to { type inet_service : ipv4_addr . inet_service; flags interval; elements = { 1000-1999 : 10.0.0.1 . 80, 8443 : 10.0.0.2 . 443 }; }
    chain service-1 { numgen random mod 2 vmap { 0 : goto endpoint, 1 : goto endpoint }; }
    chain endpoint { meta l4proto tcp dnat ip to 10.244.0.5:6443; }
    chain pre {
        type nat hook prerouting priority dstnat - 5; policy accept;
        iif { "lo", "docker0" } return
        iif @numbers tcp dport 1 accept
        iifname . th dport @inputs accept
        ip daddr . meta l4proto . th dport vmap @services
        ip daddr @blocked drop
        dnat ip to tcp dport map @to
        fib daddr type local tcp dport { 8080, 9000-9100 } counter redirect to :3128 comment "say \\ $x # no comment"
        ip6 daddr 2001:db8::1 tcp dport 443 dnat ip6 to [fd00::2]:8443
        dnat ip to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }
    }
    chain post { type nat hook postrouting priority srcnat; oif "eth0" ip saddr 10.0.0.0/8 masquerade random; ip saddr 10.9.0.0/24 snat ip prefix to 10.8.0.0/24; }
    chain forwarded {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        tcp dport 21 ct helper set "ftp-standard"
        counter name "hits" quota name "q" drop
        limit name "l" log prefix "a { b } ; # c " level info
        ip saddr @timed add @seen { ip saddr . tcp dport timeout 30s } limit rate over 10/second burst 5 packets drop
        meta mark & 0x000000ff == 0x00000012 ct mark set meta mark accept
        tcp flags syn / syn,rst,ack tcp option maxseg size set rt mtu
        ip protocol icmp icmp type echo-request reject with icmp type admin-prohibited
        meta skuid 1000 meta day "Saturday" accept
    }
}
table ip asleep { flags dormant; 
 chain c { type filter hook input priority filter; policy drop; tcp dport 22 drop; }
}
table netdev edge { chain in { type filter hook ingress device "eth0" priority -500; policy accept; ip saddr 192.0.2.9 drop; }
}
table bridge b { chain f { type filter hook forward priority filter; policy accept; ether type arp accept; }
}
table arp a { chain i { type filter hook input priority filter; policy accept; arp operation request accept; }
}
"#,
        &["docker0", "eth0"],
    );
}

#[test]
fn the_text_of_iptables_nft_is_read_but_for_its_extensions() {
    if !privileged() {
        return;
    }
    let namespace = Netns::new().expect("namespace");
    let text = namespace
        .run(|| {
            let rules = "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
                         -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1\n\
                         -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\n\
                         -A POSTROUTING -m statistic --mode nth --every 2 --packet 0 -j MASQUERADE\nCOMMIT\n";
            feed("iptables-nft-restore", &[], rules);
            let output = Command::new("nft").args(["list", "ruleset"]).output().expect("nft is installed");
            String::from_utf8(output.stdout).expect("text")
        })
        .expect("namespace");
    let read = dump(&text, None).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let unknown = |name: &str| {
        let chain = read.tables[0].chains.named(name).expect("there");
        let is_unknown = |rule: &Rule| rule.cases.iter().any(|case| matches!(&*case.actions, [Action::Unknown(_)]));
        (chain.rules.len(), chain.rules.iter().filter(|rule| is_unknown(rule)).count())
    };
    let (all, unread) =
        ["PREROUTING", "POSTROUTING"].map(unknown).into_iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert_eq!(all, 3, "{text}");
    assert_eq!(unread, text.matches("xt ").count().max(text.matches("# xt_").count()), "{text}");
    assert_eq!(read.gaps.len(), unread, "{text} {:?}", read.gaps);
    eprintln!("{text}");
}

/// Runs `portfwd audit` on a text, after a shell script in a mount namespace of its own. The script may set `$AS` to a
/// command that runs portfwd.
fn audit_after(script: &str, text: &str) -> Said {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("rules");
    std::fs::write(&file, text).expect("written");
    let program = directory.path().join("portfwd");
    // A file that this process wrote is busy while another test forks.
    assert!(Command::new("cp").args([PORTFWD.as_ref(), program.as_os_str()]).status().expect("cp").success());
    let open = std::os::unix::fs::PermissionsExt::from_mode;
    for (path, mode) in [(directory.path(), 0o755), (&file, 0o644), (&program, 0o755)] {
        std::fs::set_permissions(path, open(mode)).expect("changed");
    }
    let script = format!("set -e\n{script}\nexec $AS $PORTFWD audit --json $RULES");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).env("PORTFWD", &program).env("RULES", &file);
    let output = command.env_remove("SSH_CONNECTION").output();
    output.expect("unshare is installed").into()
}

const FORWARD: &str = "table ip nat {\n chain PREROUTING {\n  type nat hook prerouting priority dstnat; policy accept;\n  \
                       iif \"eth7\" tcp dport 8080 dnat to 10.9.0.2:80\n }\n}\n";

#[test]
fn audit_of_a_text_needs_no_root_and_changes_nothing() {
    if !privileged() {
        return;
    }
    let namespace = Netns::new().expect("namespace");
    let print = || {
        let run = |program: &str, arguments: &[&str]| {
            Said::from(Command::new(program).args(arguments).output().expect("installed"))
        };
        run("nft", &["list", "ruleset"]).stdout + &run("ip", &["-o", "link"]).stdout
    };
    let as_user = "AS='setpriv --reuid 65533 --regid 65533 --clear-groups --bounding-set -all'";
    for script in ["", as_user] {
        let (before, said, after) =
            namespace.run(|| (print(), audit_after(script, FORWARD), print())).expect("namespace");
        assert_eq!((said.code, &before), (0, &after), "{said:?}");
        let all: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
        let forward = &all["forwards"][0];
        assert_eq!((&forward["to"], &forward["interface"]), (&"10.9.0.2:80".into(), &"eth7".into()), "{forward}");
        // The rules are read completely. Only the host's facts are missing.
        let unread = all["unknown"].as_array().expect("a list").iter().filter(|gap| gap["kind"] != "facts");
        assert_eq!(unread.count(), 0, "{all}");
    }
}

#[test]
fn without_nft_or_namespaces_audit_asks_for_json() {
    if !privileged() {
        return;
    }
    let no_nft = "for f in /usr/sbin/nft /sbin/nft /usr/bin/nft /usr/local/sbin/nft; do [ ! -e $f ] || mount --bind /dev/null $f; done";
    let no_namespaces = "exec unshare --user --map-root-user sh -c '
        echo 0 > /proc/sys/user/max_user_namespaces; exec $PORTFWD audit --json $RULES'";
    for (script, why) in [(no_nft, "there is no `nft`"), (no_namespaces, "cannot make a user namespace")] {
        let namespace = Netns::new().expect("namespace");
        let said = namespace.run(|| audit_after(script, FORWARD)).expect("namespace");
        assert_eq!(said.code, 5, "{why}: {said:?}");
        assert!(said.stderr.contains(why) && said.stderr.contains("`nft -j list ruleset`"), "{said:?}");
    }
}

#[test]
fn a_text_cannot_read_a_file() {
    if !privileged() {
        return;
    }
    let secret = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
    std::fs::write(secret.path(), "table ip secret-table { chain s3cr3t { accept; } }\n").expect("written");
    let path = secret.path().display();
    let inside = |line: &str| format!("table ip a {{\n chain c {{\n  {line}\n  accept\n }}\n}}\n");
    for text in [
        format!("include \"{path}\"\n{FORWARD}"),
        format!("include\\\n\"{path}\"\n{FORWARD}"),
        inside(&format!("include \"{path}\"")),
        inside(&format!("include\t\"{path}\"; accept")),
        inside(&format!("accept; include \"{path}\"")),
        inside(&format!("# x\n\r include \"{path}\"")),
        inside(&format!("inc\\\nlude \"{path}\"")),
        inside(&format!("log prefix \"x\n include \"{path}\"")),
        inside(&format!("ip saddr {{ include \"{path}\" }} accept")),
        inside(&format!("socket cgroupv2 level 1 \"../../../{path}\" accept")),
        inside(&format!("ip saddr @\"{path}\" accept")),
        format!("table ip a {{ include \"{path}\"; }}\n"),
        format!("table ip a {{\n set s {{\n  type ipv4_addr\n  elements = {{ include \"{path}\" }}\n }}\n}}\n"),
        format!("define x = 1\n{FORWARD}"),
        format!("@include \"{path}\"\n{FORWARD}"),
    ] {
        let said = audit_after("", &text);
        assert!(said.code == 2 || said.code == 0, "{text}: {said:?}");
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(!all.contains("secret-table") && !all.contains("s3cr3t"), "{text}: {all}");
        let read: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        assert!(said.code == 2 || read["unknown"].as_array().is_some_and(|all| !all.is_empty()), "{text}: {said:?}");
    }
}
