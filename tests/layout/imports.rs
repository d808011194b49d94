//! Finds the files of a source tree that each file uses, and the files that use each other in a cycle.
//!
//! ```text
//! text ──tokens──▶ tokens ──read──▶ modules, imports, paths ──resolve──▶ uses
//! ```
//! The reader follows `use` trees, modules, and paths in code and in macro calls to the file that defines the item. It
//! also follows imports of imports (`pub use`). An import of a module alone is not a use. A `mod.rs` that only declares
//! and re-exports its children defines nothing, so no file uses it.
//!
//! Be aware: the reader does not know types, so it misses a method or a field that code uses through a value.

use std::collections::{BTreeMap, BTreeSet};

/// The text of each file, by its name relative to the root of the tree.
pub type Files = BTreeMap<String, String>;

/// The names that lead to a module or an item, from the root of the crate or from a module.
type Path = Vec<String>;

/// The limit for a chain of imports. Imports can form a circle.
const MOST_IMPORTS: usize = 16;

/// An item of one file that another file uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The file that uses the item.
    pub from: String,
    /// The file that defines the item.
    pub to: String,
    /// The item's name; `*` for a glob import.
    pub item: String,
}

/// The choice whether code under `#[cfg(test)]` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    Count,
    Skip,
}

/// Returns all uses of an item of one file in another file.
pub fn uses(files: &Files, tests: Tests) -> BTreeSet<Use> {
    let mut tree = Tree::default();
    for name in files.keys() {
        tree.modules.entry(module_of(name)).or_insert_with(|| name.clone());
    }
    for (name, text) in files {
        tree.read(name, &module_of(name), &tokens(text), tests);
    }
    let is_test = |file: &str| tree.test_modules.iter().any(|module| module_of(file).starts_with(module));
    let counted = tree.paths.iter().filter(|(from, ..)| !is_test(from));
    let found = counted.filter_map(|(from, module, path)| {
        let (to, item) = tree.resolve(module, path, MOST_IMPORTS)?;
        (to != *from).then(|| Use { from: from.clone(), to, item })
    });
    found.collect()
}

/// Returns the groups of files that use each other in a cycle, directly or through other files.
pub fn cycles(uses: &BTreeSet<Use>) -> BTreeSet<BTreeSet<String>> {
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for one in uses {
        used.entry(&one.from).or_default().insert(&one.to);
    }
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for start in used.keys() {
        let mut next = vec![*start];
        let mut found = BTreeSet::new();
        while let Some(file) = next.pop() {
            next.extend(used.get(file).into_iter().flatten().filter(|to| found.insert(**to)));
        }
        reached.insert(start, found);
    }
    let leads = |from: &str, to: &str| reached.get(from).is_some_and(|found| found.contains(to));
    let group = |file: &str| -> BTreeSet<String> {
        reached.keys().filter(|other| leads(file, other) && leads(other, file)).map(|other| (*other).into()).collect()
    };
    reached.keys().map(|file| group(file)).filter(|group| !group.is_empty()).collect()
}

/// Returns the module of a file: `a::b` for `a/b.rs` and `a/b/mod.rs`, and the root for `lib.rs` and `main.rs`.
fn module_of(file: &str) -> Path {
    let name = file.trim_end_matches(".rs");
    let name = name.strip_suffix("/mod").unwrap_or(name);
    if ["lib", "main"].contains(&name) { Path::new() } else { name.split('/').map(str::to_owned).collect() }
}

/// The modules, imports and paths of all files.
#[derive(Default)]
struct Tree {
    /// The file of each module, by the path of the module.
    modules: BTreeMap<Path, String>,
    /// The path of each import. The key is the importing module and the imported name.
    imports: BTreeMap<(Path, String), Path>,
    /// Every path, with the file and the module that contain it.
    paths: Vec<(String, Path, Path)>,
    /// The modules that are declared under `#[cfg(test)]` and have their own files.
    test_modules: Vec<Path>,
}

impl Tree {
    /// Reads the tokens of a module.
    fn read(&mut self, file: &str, module: &Path, tokens: &[&str], tests: Tests) {
        let mut rest = tokens;
        while !rest.is_empty() {
            rest = match rest {
                ["#", "[", "cfg", "(", "test", ")", "]", after @ ..] if tests == Tests::Skip => {
                    let (item, after) = after.split_at(item_length(after));
                    if let ["mod", name, ";"] | ["pub", .., "mod", name, ";"] = item {
                        self.test_modules.push(child(module, name));
                    }
                    after
                }
                ["mod", name, "{", ..] => {
                    let (inner, after) = rest.split_at(item_length(rest));
                    let module = child(module, name);
                    self.modules.insert(module.clone(), file.to_owned());
                    self.read(file, &module, &inner[3..], tests);
                    after
                }
                // `use<'a>` in a type is not an import.
                ["use", next, ..] if *next != "<" => {
                    let (tree, after) = rest.split_at(item_length(rest));
                    for (path, name) in use_tree(&tree[1..]) {
                        self.imports.insert((module.clone(), name), path.clone());
                        self.paths.push((file.to_owned(), module.clone(), path));
                    }
                    after
                }
                [first, "::", ..] if is_word(first) => {
                    let mut path = vec![(*first).to_owned()];
                    let mut after = &rest[1..];
                    while let ["::", name, more @ ..] = after
                        && is_word(name)
                    {
                        path.push((*name).to_owned());
                        after = more;
                    }
                    self.paths.push((file.to_owned(), module.clone(), path));
                    after
                }
                [_, after @ ..] => after,
                [] => break,
            };
        }
    }

    /// Returns the file that defines an item, and the item's name. Returns `None` for modules and for other crates.
    fn resolve(&self, module: &Path, path: &[String], imports: usize) -> Option<(String, String)> {
        let (first, mut rest) = path.split_first()?;
        let mut here = module.clone();
        match first.as_str() {
            "crate" => here.clear(),
            "self" => {}
            "super" => {
                here.pop();
                while let Some((name, after)) = rest.split_first()
                    && name == "super"
                {
                    here.pop();
                    rest = after;
                }
            }
            name if self.modules.contains_key(&child(module, name)) => rest = path,
            name => {
                // An import such as `use name;` leads to itself, so the search skips it.
                let import = self.imports.get(&(here.clone(), name.to_owned())).filter(|import| *import != path)?;
                return self.resolve(&here, &[import, rest].concat(), imports.checked_sub(1)?);
            }
        }
        while let Some((name, after)) = rest.split_first() {
            let inner = child(&here, name);
            let is_module = self.modules.contains_key(&inner);
            // A function and a module may have the same name.
            if let Some(import) = self.imports.get(&(here.clone(), name.clone()))
                && (after.is_empty() || !is_module)
            {
                return self.resolve(&here, &[import, after].concat(), imports.checked_sub(1)?);
            }
            if !is_module {
                return Some((self.modules.get(&here)?.clone(), name.clone()));
            }
            (here, rest) = (inner, after);
        }
        None
    }
}

fn child(module: &Path, name: &str) -> Path {
    [module.as_slice(), &[name.to_owned()]].concat()
}

/// Returns the number of tokens of an item, up to its `;` or its last `}`.
fn item_length(tokens: &[&str]) -> usize {
    let mut depth = 0i32;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 && (*token == ";" || *token == "}" && tokens.get(at + 1) != Some(&";")) {
            return at + 1;
        }
    }
    tokens.len()
}

/// Returns the paths of a `use` tree such as `a::{b, c as d};`. Each path has its name in the module.
fn use_tree(tokens: &[&str]) -> Vec<(Path, String)> {
    let mut all = Vec::new();
    // For each brace that is still open, the path before it.
    let mut prefixes = vec![Path::new()];
    let mut path = Path::new();
    let mut renamed = None;
    let mut tokens = tokens.iter();
    while let Some(token) = tokens.next() {
        match *token {
            "::" => {}
            "{" => prefixes.push(path.clone()),
            "as" => renamed = tokens.next().map(|name| (*name).to_owned()),
            "," | "}" | ";" => {
                // After a `}` there is no path left to add.
                if prefixes.last().is_some_and(|prefix| path.len() > prefix.len()) {
                    if path.last().is_some_and(|last| last == "self") {
                        path.pop();
                    }
                    let last = path.last().cloned().unwrap_or_default();
                    all.push((path, renamed.take().unwrap_or(last)));
                }
                if *token == "}" {
                    prefixes.pop();
                }
                path = prefixes.last().cloned().unwrap_or_default();
            }
            word => path.push(word.to_owned()),
        }
    }
    all
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Splits code into words and marks, without comments and literals. `::` is one mark. `r#try` is the word `try`.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("r#") && is_word(&rest[2..]) {
            2
        } else if let Some(length) = literal(rest) {
            length
        } else if word > 0 {
            tokens.push(&rest[..word]);
            word
        } else {
            let length = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            tokens.extend(Some(&rest[..length]).filter(|mark| !mark.trim().is_empty()));
            length
        };
        rest = &rest[length..];
    }
    tokens
}

/// Returns the length of the string or character at the start of `text`, or `None`. For a lifetime, the length is that
/// of its `'`.
fn literal(text: &str) -> Option<usize> {
    let start = text.find(|c: char| !"bcr#".contains(c))?;
    let (prefix, body) = text.split_at(start);
    let quote = body.chars().next().filter(|quote| "\"'".contains(*quote))?;
    if prefix.contains('r') {
        let end = format!("\"{}", "#".repeat(prefix.matches('#').count()));
        return Some(start + 1 + body[1..].find(&end)? + end.len());
    }
    if quote == '\'' && !body.starts_with("'\\") && body.chars().nth(2) != Some('\'') {
        return Some(start + 1);
    }
    let mut escaped = false;
    let (end, _) = body.char_indices().skip(1).find(|(_, c)| {
        let closes = *c == quote && !escaped;
        escaped = *c == '\\' && !escaped;
        closes
    })?;
    Some(start + end + 1)
}

/// Returns a tree of files for a test. Every tree has a module `a`. Its child `inner` defines `Thing` and `go`.
fn tree(files: &[(&str, &str)]) -> Files {
    let a = [
        ("lib.rs", "pub mod a; pub mod b; pub mod r#try;"),
        ("a/mod.rs", "pub mod inner; pub use inner::{Thing as Other, go}; pub fn here() {}"),
        ("a/inner.rs", "pub struct Thing; pub fn go() {}"),
    ];
    a.iter().chain(files).map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn every_way_to_name_an_item_leads_to_its_file() {
    for (code, expected) in [
        ("use crate::a::inner::Thing;", "a/inner.rs Thing"),
        ("use super::a::Other;", "a/inner.rs Thing"),
        ("use crate::a::{self, inner::{self as i, go}};", "a/inner.rs go"),
        ("use crate::a; fn f(x: a::Other) {}", "a/inner.rs Thing"),
        ("use crate::a::inner as i; fn f() { i::go::<u8>() }", "a/inner.rs go"),
        ("fn f() { vec![crate::a::here()] }", "a/mod.rs here"),
        ("mod part { use super::super::a::here; }", "a/mod.rs here"),
        ("mod part { pub use crate::a::go; } fn f() { part::go() }", "a/inner.rs go"),
        ("use crate::a::*;", "a/mod.rs *"),
        ("pub use crate::r#try::run;", "try.rs run"),
        ("const C: char = '\"'; const D: u8 = b'\\''; use crate::a::here;", "a/mod.rs here"),
        ("#[cfg(test)] use crate::a::here; use crate::a::inner::go;", "a/inner.rs go"),
        // These are no uses: an import of a module, other crates, comments and literals.
        ("use crate::a; pub(in crate::a) fn f<'a>() {}", ""),
        ("use std::fmt; use serde; fn f() { fmt::Write }", ""),
        ("// crate::a::here()\n/// crate::a::here()\nfn f() {}", ""),
        ("const S: &str = \"\\\"crate::a::here\"; const R: &str = r#\"\"crate::a::here\"#;", ""),
        ("#[cfg(test)] mod tests { use crate::a::here; fn f() { [0; 2]; } }", ""),
        ("#[cfg(test)] pub(super) mod tests;", ""),
    ] {
        let files = tree(&[("b.rs", code), ("b/tests.rs", "use crate::a::here;"), ("try.rs", "pub fn run() {}")]);
        let found: Vec<Use> =
            uses(&files, Tests::Skip).into_iter().filter(|used| !used.from.starts_with("a/")).collect();
        let of_tests = found.iter().any(|used| used.from == "b/tests.rs");
        assert_eq!(of_tests, !code.contains("mod tests;"), "{code}");
        let found = found.iter().filter(|used| used.from == "b.rs").map(|used| format!("{} {}", used.to, used.item));
        assert_eq!(found.collect::<Vec<_>>().join(", "), expected, "{code}");
    }
    let files = tree(&[("b.rs", "#[cfg(test)] mod tests { use crate::a::here; }")]);
    assert!(uses(&files, Tests::Count).iter().any(|used| used.from == "b.rs" && used.item == "here"));
}

#[test]
fn only_the_files_of_a_cycle_are_found() {
    let cycle = [
        ("b/mod.rs", "pub mod one; pub mod two; mod three; pub use one::One; pub use three::three;"),
        ("b/one.rs", "use super::two; pub struct One; fn f() { two::two() }"),
        ("b/two.rs", "pub fn two() { super::three() }"),
        ("b/three.rs", "use crate::a::go; use crate::b::One; pub fn three() {}"),
        ("try.rs", "use crate::b::One; #[cfg(test)] mod tests { use super::*; }"),
    ];
    let found = cycles(&uses(&tree(&cycle), Tests::Skip));
    let expected = ["b/one.rs", "b/three.rs", "b/two.rs"].map(str::to_owned);
    assert_eq!(found, [expected.into()].into());
    assert_eq!(cycles(&uses(&tree(&cycle[..3]), Tests::Skip)), BTreeSet::new());
}

#[test]
fn a_parent_and_children_that_use_each_other_are_a_cycle() {
    let parent = "mod one; mod two; pub struct Shared; fn f() { one::one() } pub use two::two;";
    let files = [("b/mod.rs", parent), ("b/one.rs", "use super::Shared;"), ("b/two.rs", "use super::Shared;")];
    let expected = ["b/mod.rs", "b/one.rs", "b/two.rs"].map(str::to_owned);
    assert_eq!(cycles(&uses(&tree(&files), Tests::Skip)), [expected.into()].into());
}
