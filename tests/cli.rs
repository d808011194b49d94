use crate::support::{file, portfwd, root};

/// Ten mistakes, one of each kind.
const TEN: &str = r#"
[settings]
priority = 5000

[[network]]
name = "a-name-that-is-too-long"
subnet = ["172.17.0.1/16"]

[[forward]]
listn = "80"
to = "10.0.0.1"

[[forward]]
listen = "90-80"
to = "0.0.0.0:80"

[[forward]]
listen = "0"
to = "[fd00::1]:80"
protocol = "icmp"

[[forward]]
listen = "192.0.2.1:80"
to = "[fd00::1]:80"

[[masquerade]]
"#;

#[test]
fn every_mistake_has_its_place() {
    let directory = tempfile::tempdir().expect("directory");
    let path = file(&directory, TEN);
    let said = portfwd(&["check", &path.to_string_lossy()]);
    assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{said:?}");
    let places: Vec<&str> = (said.stderr.lines())
        .filter_map(|line| line.trim_start().strip_prefix("--> "))
        .map(|place| place.rsplit_once(".toml:").expect("a place").1)
        .collect();
    let expected = ["3:12", "6:8", "7:11", "9:1", "10:1", "14:10", "15:6", "18:10", "20:12", "24:6", "26:1"];
    assert_eq!(places, expected, "{}", said.stderr);
    assert!(said.stderr.contains("did you mean `listen`?"), "{}", said.stderr);
    assert!(said.stderr.contains("listen = \"90-80\""), "{}", said.stderr);
    assert_eq!(said.stderr.matches("help: ").count(), expected.len());
}

#[test]
fn syntax_errors_and_others_are_reported_together() {
    let directory = tempfile::tempdir().expect("directory");
    let path = file(&directory, "[[forward]]\nlisten = 80\nto = \n\n[[forward]]\nlisten = \"1\"\nto = \"224.0.0.1\"\n");
    let said = portfwd(&["check", &path.to_string_lossy()]);
    assert_eq!(said.code, 2, "{said:?}");
    for place in [".toml:2:10", ".toml:3:", ".toml:7:6"] {
        assert!(said.stderr.contains(place), "{place}: {}", said.stderr);
    }
}

#[test]
fn conflicts_are_reported_together_with_other_mistakes() {
    let directory = tempfile::tempdir().expect("directory");
    let text = "[[forward]]\nlisten = \"80\"\nto = \"10.0.0.1\"\n\n[[forward]]\nlisten = \"80\"\nto = \"10.0.0.2\"\n\n[[forward]]\nlisten = \"90\"\nto = \"10.0.0.1:80-90\"\nhairpin = \"yes\"\n";
    let said = portfwd(&["check", &file(&directory, text).to_string_lossy()]);
    assert_eq!(said.code, 2, "{said:?}");
    for place in [".toml:6:10", ".toml:2:10", ".toml:11:6", ".toml:12:11"] {
        assert!(said.stderr.contains(place), "{place}: {}", said.stderr);
    }
}

#[test]
fn a_conflict_names_both_places() {
    let directory = tempfile::tempdir().expect("directory");
    let one = file(&directory, "[[forward]]\nlisten = \"8080\"\nto = \"10.0.0.1:80\"\n");
    let two = file(&directory, "[[forward]]\nlisten = \"8080\"\nto = \"10.0.0.2:80\"\n");
    let said = portfwd(&["check", &one.to_string_lossy(), &two.to_string_lossy()]);
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.stderr.contains("`8080/tcp` already goes to 10.0.0.1:80"), "{}", said.stderr);
    for path in [&one, &two] {
        assert!(said.stderr.contains(&format!("{}:2:10", path.display())), "{}", said.stderr);
    }
}

#[test]
fn every_example_is_valid() {
    for entry in std::fs::read_dir(root().join("rules")).expect("readable").flatten() {
        let said = portfwd(&["check", &entry.path().to_string_lossy()]);
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.stdout.contains(" is valid, "), "{said:?}");
    }
    // They are examples of different hosts: together they contradict each other.
    assert_eq!(portfwd(&["check", "rules"]).code, 6);
}

#[test]
fn what_is_no_rule_set_is_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let binary = directory.path().join("binary.toml");
    std::fs::write(&binary, b"# good\n\xff\n").expect("written");
    let folder = directory.path().join("empty");
    std::fs::create_dir(&folder).expect("made");
    for path in ["/dev/null", "/proc/self/mem", "/no/such/file", &binary.to_string_lossy(), &folder.to_string_lossy()] {
        let said = portfwd(&["check", path]);
        assert_eq!(said.code, 2, "{path}: {said:?}");
        assert!(said.stderr.contains("error: ") && said.stderr.contains("help: "), "{said:?}");
    }
    assert!(portfwd(&["check", &binary.to_string_lossy()]).stderr.contains(":2:1"));
}

#[test]
fn what_is_planned_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("directory");
    for (line, what) in [
        ("loopback = true", "`loopback = true`"),
        ("hairpin = false", "`hairpin = false`"),
        ("source = \"masquerade\"", "`source = \"masquerade\"`"),
    ] {
        let text = format!("[[forward]]\nlisten = \"80\"\nto = \"10.0.0.1\"\n{line}\n");
        let said = portfwd(&["check", &file(&directory, &text).to_string_lossy()]);
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.stderr.contains(&format!("{what} is not supported yet")), "{}", said.stderr);
    }
}

#[test]
fn usage_mistakes_exit_with_2_before_anything_is_touched() {
    for arguments in [
        &["add", "0", "10.0.0.1"][..],
        &["add", "80", "10.0.0.1", "-p", "icmp"],
        &["add", "80", "10.0.0.1", "-i", "much-too-long-a-name"],
        &["add", "80", "10.0.0.1", "--from", "10.0.0.1/8"],
        &["add", "192.0.2.1:80", "fd00::1"],
        &["add", "80", "127.0.0.1:80"],
        &["add", "80", "10.0.0.1", "--comment", "a\u{1b}b"],
        &["add", "80"],
        &["rm"],
        &["frobnicate"],
        &["--netns", "../x", "list"],
        &["--netns", "no-such-namespace", "list"],
    ] {
        let said = portfwd(arguments);
        assert_eq!(said.code, 2, "{arguments:?}: {said:?}");
        assert!(!said.stderr.contains('\u{1b}'), "{said:?}");
    }
    assert_eq!(portfwd(&["--backend", "iptables", "list"]).code, 5);
    assert_eq!(portfwd(&["--version"]).code, 0);
}
