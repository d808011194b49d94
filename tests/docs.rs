use std::process::Command;

use crate::support::{PORTFWD, privileged, root};

/// Returns each TOML block of a page, and the packets and results of the tables after it.
fn examples(page: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut examples = Vec::new();
    for part in page.split("```toml\n").skip(1) {
        let (rules, rest) = part.split_once("```").expect("a block ends");
        let mut packets = Vec::new();
        for line in rest.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            packets.push((cells[1].to_owned(), cells[2].to_owned()));
        }
        examples.push((rules.to_owned(), packets));
    }
    examples
}

#[test]
fn examples_of_the_precedence_page_are_true() {
    if !privileged() {
        return;
    }
    let page = std::fs::read_to_string(root().join("docs/precedence.md")).expect("the page");
    let examples = examples(&page);
    assert_eq!(examples.len(), 3);
    for (rules, packets) in examples {
        assert!(packets.len() >= 5, "{rules}");
        let directory = tempfile::tempdir().expect("directory");
        let path = crate::support::file(&directory, &rules);
        let mut command = Command::new(PORTFWD);
        command.arg("try").arg(&path);
        for (packet, _) in &packets {
            command.args(["--packet", packet]);
        }
        let output = command.output().expect("the program starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{rules}{text}{}", String::from_utf8_lossy(&output.stderr));
        for (line, (packet, arrives)) in text.lines().zip(&packets) {
            assert!(line.ends_with(&format!(": {arrives}")), "`{packet}`\n is: {line}\n should be: {arrives}");
        }
    }
}

#[test]
fn the_page_about_findings_is_up_to_date() {
    // `UPDATE_EXPECT=1 cargo test the_page_about` writes the page.
    expect_test::expect_file!["../docs/findings.md"].assert_eq(&portfwd::audit::findings::page());
}
