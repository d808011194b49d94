//! One rule-set file to one model.

use std::path::Path;
use std::sync::Arc;

use super::diagnostic::Problem;
use super::part::{Part, Span};
use super::pieces;
use super::reader::Reader;
use super::source::{Place, Source};
use crate::model::{ParseError, RuleSet, SetName};

/// A set, and where its rules are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The set.
    pub set: RuleSet,
    /// The file.
    pub source: Arc<Source>,
    /// Where each forward says what it listens at.
    pub forwards: Vec<Place>,
    /// Where each network says its name.
    pub networks: Vec<Place>,
    /// Where each masquerade says what it is about.
    pub masquerades: Vec<Place>,
    /// Where each source NAT says what sources become.
    pub snats: Vec<Place>,
    /// Where each 1:1 translation says what it listens at.
    pub netmaps: Vec<Place>,
    /// Where the priority is set.
    pub priority: Option<Place>,
}

/// Reads the text of a rule-set file: what is valid in it, and every mistake. Only without a mistake is it the set that
/// was meant; with one, the rest still serves to find what contradicts each other in it. No set at all where not even its
/// name can be told.
pub fn load(source: &Arc<Source>) -> (Option<Loaded>, Vec<Problem>) {
    let mut reader = Reader::new(source, 0);
    let parts = pieces::read(source).unwrap_or_else(|| vec![Part::read(&mut reader, &source.text)]);
    let name = parts.iter().find_map(|part| part.name.clone()).or_else(|| stem(&mut reader, &source.path));
    let loaded = name.map(|name| loaded(source, name, parts));
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| problem.place.as_ref().map(|place| place.span.start));
    (loaded, problems)
}

/// Puts the parts of a file together.
fn loaded(source: &Arc<Source>, name: SetName, parts: Vec<Part>) -> Loaded {
    let place = |span: Span| Place { source: Arc::clone(source), span };
    let mut set = RuleSet::new(name);
    let count = parts.iter().map(|part| part.forwards.len()).sum();
    set.forwards.reserve_exact(count);
    let mut loaded = Loaded {
        set,
        source: Arc::clone(source),
        forwards: Vec::with_capacity(count),
        networks: Vec::new(),
        masquerades: Vec::new(),
        snats: Vec::new(),
        netmaps: Vec::new(),
        priority: None,
    };
    fn add<T>(from: Vec<(T, Span)>, rules: &mut Vec<T>, places: &mut Vec<Place>, place: impl Fn(Span) -> Place) {
        for (rule, span) in from {
            rules.push(rule);
            places.push(place(span));
        }
    }
    for part in parts {
        add(part.networks, &mut loaded.set.networks, &mut loaded.networks, place);
        add(part.forwards, &mut loaded.set.forwards, &mut loaded.forwards, place);
        add(part.masquerades, &mut loaded.set.masquerades, &mut loaded.masquerades, place);
        add(part.snats, &mut loaded.set.snats, &mut loaded.snats, place);
        add(part.netmaps, &mut loaded.set.netmaps, &mut loaded.netmaps, place);
        loaded.set.settings = part.settings.unwrap_or(loaded.set.settings);
        loaded.priority = part.priority.map(place).or(loaded.priority);
    }
    loaded
}

/// A set's name is its file's, without `.toml`.
fn stem(reader: &mut Reader, path: &Path) -> Option<SetName> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match stem.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            let help = format!("{}, or set `name` under `[settings]`", ParseError::help(&error));
            reader.problem(0..0, format!("the file's name gives no set name: {error}"), help);
            None
        }
    }
}
