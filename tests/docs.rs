use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{PORTFWD, Said, file, portfwd, privileged, root};

/// Runs the commands that pages of the documentation show.
mod console;

/// Returns each TOML block of a page, with the packets and results of the tables after the block.
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
    // `UPDATE_EXPECT=1 cargo test the_page_about` writes `docs/findings.md`.
    expect_test::expect_file!["../docs/findings.md"].assert_eq(&portfwd::audit::findings::page());
}

/// Returns the pages that people write: the pages at the root, and the pages in `docs` that no test or bench generates.
fn pages() -> Vec<PathBuf> {
    let at_root = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name));
    let entries = std::fs::read_dir(root().join("docs")).expect("readable").flatten().map(|entry| entry.path());
    let in_docs = entries.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    at_root.into_iter().chain(in_docs).filter(|path| !path.ends_with("findings.md")).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn pages_show_the_true_output_of_their_commands() {
    if !privileged() {
        return;
    }
    // `tests/lab_page.rs` runs the commands of docs/lab.md. `UPDATE_EXPECT=1 cargo test pages_show` writes the current
    // output.
    let pages = pages().into_iter().map(|path| (read(&path), path));
    let pages: Vec<_> = pages.filter(|(page, path)| page.contains("```console") && !path.ends_with("lab.md")).collect();
    assert!(pages.iter().any(|(_, path)| path.ends_with("README.md")));
    for (page, path) in pages {
        expect_test::expect_file![path].assert_eq(&console::with_output(&page));
    }
}

#[test]
fn rule_sets_in_pages_are_valid() {
    let mut count = 0;
    for path in pages().iter().filter(|path| !path.ends_with("lab.md")) {
        for (rules, _) in examples(&read(path)) {
            let directory = tempfile::tempdir().expect("directory");
            let set = file(&directory, &rules);
            let said = portfwd(&["check", &set.to_string_lossy()]);
            assert_eq!(said.code, 0, "{}: {rules}{said:?}", path.display());
            count += 1;
        }
    }
    assert!(count >= 10, "{count}");
}

/// Returns the keys of a TOML table, as the error about an unknown key lists them. An empty heading means the top
/// level.
fn known_keys(heading: &str) -> Vec<String> {
    let directory = tempfile::tempdir().expect("directory");
    let set = file(&directory, &format!("{heading}\nqqqqqq = 1\n"));
    let Said { stderr, .. } = portfwd(&["check", &set.to_string_lossy()]);
    let error = stderr.split("\n\n").find(|error| error.contains("`qqqqqq`")).expect("an error about the key");
    let help = error.lines().find(|line| line.starts_with("help: ")).expect("a list of the keys");
    help.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_page_about_rules_documents_every_key() {
    let page = read(&root().join("docs/rules.md"));
    let tables = known_keys("");
    assert!(tables.len() >= 6, "{tables:?}");
    for table in tables {
        let heading = if table == "settings" { format!("[{table}]") } else { format!("[[{table}]]") };
        let (_, section) = page.split_once(&format!("\n## `{heading}`")).unwrap_or_else(|| panic!("no {heading}"));
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows: BTreeSet<String> =
            section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
        assert_eq!(rows, known_keys(&heading).into_iter().collect(), "{heading}");
    }
}

/// Returns the anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

fn anchors(page: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let headings = page.lines().filter(|line| {
        in_code ^= line.starts_with("```");
        !in_code && line.starts_with('#')
    });
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn links_in_pages_have_existing_targets() {
    let mut count = 0;
    for path in pages() {
        let page = read(&path);
        for rest in page.split("](").skip(1) {
            let link = rest.split(')').next().unwrap_or_default();
            if link.contains("://") {
                continue;
            }
            let (to, anchor) = link.split_once('#').unwrap_or((link, ""));
            let to = if to.is_empty() { path.clone() } else { path.parent().expect("a folder").join(to) };
            assert!(to.exists(), "{}: {link}", path.display());
            assert!(anchor.is_empty() || anchors(&read(&to)).contains(anchor), "{}: {link}", path.display());
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn file_names_in_pages_are_names_of_existing_files() {
    let mut count = 0;
    for path in pages() {
        let page = read(&path);
        // If a line is split at back quotes, every second part was between back quotes.
        for name in page.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
            if ["src/", "tests/", "docs/", "fuzz/", "rules/"].iter().any(|folder| name.starts_with(folder)) {
                let is_pattern = name.contains(['*', ' ', '$']);
                assert!(is_pattern || root().join(name).exists(), "{}: {name}", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn the_readme_is_short() {
    let words = read(&root().join("README.md")).split_whitespace().count();
    assert!(words <= 2000, "{words} words");
}
