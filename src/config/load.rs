//! One rule-set file to one model.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Problem;
use super::reader::{Reader, Table};
use super::source::{Place, Source};
use super::{forward, tables};
use crate::model::{IpForward, ParseError, Priority, RuleSet, SetName};

/// A rule set, with the place of every rule in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The rule set.
    pub set: RuleSet,
    /// The file.
    pub source: Arc<Source>,
    /// The place of `listen` of each forward, in the order of `set.forwards`.
    pub forwards: Vec<Place>,
    /// The place of `name` of each network, in the order of `set.networks`.
    pub networks: Vec<Place>,
    /// The place of each `[[masquerade]]` table.
    pub masquerades: Vec<Place>,
    /// The place of `to` of each source NAT.
    pub snats: Vec<Place>,
    /// The place of `listen` of each 1:1 translation.
    pub netmaps: Vec<Place>,
    /// The place of `priority` under `[settings]`.
    pub priority: Option<Place>,
}

/// Reads the text of a rule-set file. Returns the valid part of it, and every mistake.
///
/// If there are mistakes, the valid part is only good for finding conflicts in it. The valid part is `None` if the set has
/// no valid name.
pub fn load(source: &Arc<Source>) -> (Option<Loaded>, Vec<Problem>) {
    let mut reader = Reader::new(source);
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    for error in errors {
        let help = "see https://toml.io for what a file may look like";
        reader.problem(error.span().unwrap_or(0..0), error.message(), help);
    }
    let loaded = read(&mut reader, document.get_ref());
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| problem.place.as_ref().map(|place| place.span.start));
    (loaded, problems)
}

fn read(reader: &mut Reader, root: &DeTable<'_>) -> Option<Loaded> {
    let file = Table { values: root, span: 0..0, name: "a rule set" };
    reader.only(&file, &["network", "forward", "masquerade", "snat", "netmap", "settings"]);
    let source = Arc::clone(reader.source());
    let settings = settings(reader, root);
    let networks = each(reader, root, "network", "[[network]]", tables::network);
    let forward = |reader: &mut Reader, table: &Table<'_>| forward::forward(reader, table, &networks.rules);
    let forwards = each(reader, root, "forward", "[[forward]]", forward);
    let masquerades = each(reader, root, "masquerade", "[[masquerade]]", tables::masquerade);
    let snats = each(reader, root, "snat", "[[snat]]", tables::snat);
    let netmaps = each(reader, root, "netmap", "[[netmap]]", tables::netmap);
    let mut set = RuleSet::new(settings.name.or_else(|| name_of_file(reader, &source.path))?);
    set.settings = settings.values;
    set.networks = networks.rules;
    set.forwards = forwards.rules;
    set.masquerades = masquerades.rules;
    set.snats = snats.rules;
    set.netmaps = netmaps.rules;
    Some(Loaded {
        set,
        source,
        forwards: forwards.places,
        networks: networks.places,
        masquerades: masquerades.places,
        snats: snats.places,
        netmaps: netmaps.places,
        priority: settings.priority,
    })
}

/// The table `[settings]`.
#[derive(Default)]
struct Settings {
    name: Option<SetName>,
    values: crate::model::Settings,
    priority: Option<Place>,
}

fn settings(reader: &mut Reader, root: &DeTable<'_>) -> Settings {
    let mut settings = Settings::default();
    let Some(value) = root.get("settings") else { return settings };
    let DeValue::Table(values) = value.get_ref() else {
        reader.wrong_type(value, "settings", value.get_ref(), "a table, `[settings]`");
        return settings;
    };
    let table = Table { values, span: value.span(), name: "[settings]" };
    reader.only(&table, &["name", "priority", "ip_forward"]);
    settings.name = reader.optional(&table, "name");
    if let Some(value) = values.get("priority") {
        let number = match value.get_ref() {
            DeValue::Integer(number) => i32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        settings.values.priority = number.and_then(Priority::new);
        settings.priority = Some(reader.place(value.span()));
        if settings.values.priority.is_none() {
            let help = "write a whole number from -199 to 49; the default is -105, and -100 is where Docker is";
            reader.problem(value.span(), "`priority` is no priority at which NAT can be done", help);
        }
    }
    if let Some(value) = values.get("ip_forward") {
        match value.get_ref() {
            DeValue::String(text) if text == "enable" => settings.values.ip_forward = IpForward::Enable,
            DeValue::String(text) if text == "keep" => settings.values.ip_forward = IpForward::Keep,
            DeValue::String(other) => {
                let what = format!("`{other}` is no choice for `ip_forward`");
                reader.problem(value.span(), what, "write `\"enable\"` or `\"keep\"`");
            }
            other => reader.wrong_type(value, "ip_forward", other, "`\"enable\"` or `\"keep\"`"),
        }
    }
    settings
}

/// The rules of one kind, and the place of each.
struct Rules<T> {
    rules: Vec<T>,
    places: Vec<Place>,
}

/// Reads every table of one kind.
fn each<T>(
    reader: &mut Reader,
    root: &DeTable<'_>,
    key: &'static str,
    name: &'static str,
    mut read: impl FnMut(&mut Reader, &Table<'_>) -> Option<(T, Range<usize>)>,
) -> Rules<T> {
    let tables = reader.tables(root, key, name);
    let (rules, places) = tables
        .into_iter()
        .filter_map(|table| read(reader, &table).map(|(rule, span)| (rule, reader.place(span))))
        .unzip();
    Rules { rules, places }
}

/// Returns the file's name without `.toml` as the name of the set.
fn name_of_file(reader: &mut Reader, path: &Path) -> Option<SetName> {
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
