//! One rule-set file to one model.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Problem;
use super::reader::{Reader, Table};
use super::source::{Place, Source};
use super::tables;
use crate::model::{IpForward, ParseError, Priority, RuleSet, SetName, Settings};

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
    let mut reader = Reader::new(source);
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    for error in errors {
        let help = "see https://toml.io for what a file may look like";
        reader.problem(error.span().unwrap_or(0..0), error.message(), help);
    }
    let root = document.get_ref();
    let whole = Table { values: root, span: 0..0, name: "a rule set" };
    reader.only(&whole, &["network", "forward", "masquerade", "snat", "netmap", "settings"]);
    let (settings, name, priority) = settings(&mut reader, root);
    let name = name.or_else(|| stem(&mut reader, &source.path));
    let (networks, network_places) = each(&mut reader, root, "network", "[[network]]", tables::network);
    let forward = |reader: &mut Reader, table: &Table<'_>| super::forward::forward(reader, table, &networks);
    let (forwards, forward_places) = each(&mut reader, root, "forward", "[[forward]]", forward);
    let (masquerades, masquerade_places) = each(&mut reader, root, "masquerade", "[[masquerade]]", tables::masquerade);
    let (snats, snat_places) = each(&mut reader, root, "snat", "[[snat]]", tables::snat);
    let (netmaps, netmap_places) = each(&mut reader, root, "netmap", "[[netmap]]", tables::netmap);
    let loaded = name.map(|name| Loaded {
        set: RuleSet { name, forwards, networks, masquerades, snats, netmaps, settings },
        source: Arc::clone(source),
        forwards: forward_places,
        networks: network_places,
        masquerades: masquerade_places,
        snats: snat_places,
        netmaps: netmap_places,
        priority,
    });
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| problem.place.as_ref().map(|place| place.span.start));
    (loaded, problems)
}

/// Reads every table of a kind; each rule comes with its place.
fn each<T>(
    reader: &mut Reader,
    root: &DeTable<'_>,
    key: &'static str,
    name: &'static str,
    mut read: impl FnMut(&mut Reader, &Table<'_>) -> Option<(T, Range<usize>)>,
) -> (Vec<T>, Vec<Place>) {
    let mut rules = Vec::new();
    let mut places = Vec::new();
    for table in reader.tables(root, key, name) {
        if let Some((rule, span)) = read(reader, &table) {
            rules.push(rule);
            places.push(reader.place(span));
        }
    }
    (rules, places)
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

type ReadSettings = (Settings, Option<SetName>, Option<Place>);

fn settings(reader: &mut Reader, root: &DeTable<'_>) -> ReadSettings {
    let mut settings = Settings::default();
    let Some(value) = root.get("settings") else { return (settings, None, None) };
    let DeValue::Table(values) = value.get_ref() else {
        reader.wrong_type(value, "settings", value.get_ref(), "a table, `[settings]`");
        return (settings, None, None);
    };
    let table = Table { values, span: value.span(), name: "[settings]" };
    reader.only(&table, &["name", "priority", "ip_forward"]);
    let name = reader.optional(&table, "name");
    let mut place = None;
    if let Some(value) = values.get("priority") {
        let number = match value.get_ref() {
            DeValue::Integer(number) => i32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        settings.priority = number.and_then(Priority::new);
        place = Some(reader.place(value.span()));
        if settings.priority.is_none() {
            let help = "write a whole number from -199 to 49; the default is -105, and -100 is where Docker is";
            reader.problem(value.span(), "`priority` is no priority at which NAT can be done", help);
        }
    }
    if let Some(value) = values.get("ip_forward") {
        match value.get_ref() {
            DeValue::String(text) if text == "enable" => settings.ip_forward = IpForward::Enable,
            DeValue::String(text) if text == "keep" => settings.ip_forward = IpForward::Keep,
            DeValue::String(other) => {
                let what = format!("`{other}` is no choice for `ip_forward`");
                reader.problem(value.span(), what, "write `\"enable\"` or `\"keep\"`");
            }
            other => reader.wrong_type(value, "ip_forward", other, "`\"enable\"` or `\"keep\"`"),
        }
    }
    (settings, name, place)
}
