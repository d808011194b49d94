//! Converts one rule-set file into the model.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Problem;
use super::reader::{Table, TableReader};
use super::source::{Location, Source};
use super::{forward, tables};
use crate::model::{IpForward, ParseError, Priority, RuleSet, SetName};

/// A rule set with the location of every rule in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The rules and settings.
    pub set: RuleSet,
    /// The text of the file.
    pub source: Arc<Source>,
    /// The location of `listen` of each forward, in the order of `set.forwards`.
    pub forwards: Vec<Location>,
    /// The location of `name` of each network, in the order of `set.networks`.
    pub networks: Vec<Location>,
    /// The location of each `[[masquerade]]` table.
    pub masquerades: Vec<Location>,
    /// The location of `to` of each `[[snat]]` table.
    pub snats: Vec<Location>,
    /// The location of `listen` of each `[[netmap]]` table.
    pub netmaps: Vec<Location>,
    /// The location of `priority` under `[settings]`.
    pub priority: Option<Location>,
}

/// Converts the text of a rule-set file. Returns its valid part and every error.
///
/// If there are errors, use the valid part only to find conflicts. The valid part is `None` if the set has no valid
/// name.
pub fn load(source: &Arc<Source>) -> (Option<Loaded>, Vec<Problem>) {
    let mut reader = TableReader::new(source);
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    for error in errors {
        let help = "see https://toml.io for the syntax of TOML";
        reader.report(error.span().unwrap_or(0..0), error.message(), help);
    }
    let loaded = read_rule_set(&mut reader, document.get_ref());
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| problem.location.as_ref().map(|location| location.span.start));
    (loaded, problems)
}

fn read_rule_set(reader: &mut TableReader, root: &DeTable<'_>) -> Option<Loaded> {
    let file = Table { values: root, span: 0..0, name: "a rule set" };
    reader.reject_unknown_keys(&file, &["network", "forward", "masquerade", "snat", "netmap", "settings"]);
    let source = Arc::clone(reader.source());
    let settings = read_settings(reader, root);
    let networks = read_tables(reader, root, "network", "[[network]]", tables::read_network);
    let forward = |reader: &mut TableReader, table: &Table<'_>| forward::read_forward(reader, table, &networks.rules);
    let forwards = read_tables(reader, root, "forward", "[[forward]]", forward);
    let masquerades = read_tables(reader, root, "masquerade", "[[masquerade]]", tables::read_masquerade);
    let snats = read_tables(reader, root, "snat", "[[snat]]", tables::read_snat);
    let netmaps = read_tables(reader, root, "netmap", "[[netmap]]", tables::read_netmap);
    let mut set = RuleSet::new(settings.name.or_else(|| set_name_from_path(reader, &source.path))?);
    set.settings = settings.values;
    set.networks = networks.rules;
    set.forwards = forwards.rules;
    set.masquerades = masquerades.rules;
    set.snats = snats.rules;
    set.netmaps = netmaps.rules;
    Some(Loaded {
        set,
        source,
        forwards: forwards.locations,
        networks: networks.locations,
        masquerades: masquerades.locations,
        snats: snats.locations,
        netmaps: netmaps.locations,
        priority: settings.priority,
    })
}

/// The content of `[settings]`.
#[derive(Default)]
struct SettingsTable {
    name: Option<SetName>,
    values: crate::model::Settings,
    priority: Option<Location>,
}

fn read_settings(reader: &mut TableReader, root: &DeTable<'_>) -> SettingsTable {
    let mut settings = SettingsTable::default();
    let Some(value) = root.get("settings") else { return settings };
    let DeValue::Table(values) = value.get_ref() else {
        reader.wrong_type(value, "settings", value.get_ref(), "a table, `[settings]`");
        return settings;
    };
    let table = Table { values, span: value.span(), name: "[settings]" };
    reader.reject_unknown_keys(&table, &["name", "priority", "ip_forward"]);
    settings.name = reader.optional(&table, "name");
    if let Some(value) = values.get("priority") {
        let number = match value.get_ref() {
            DeValue::Integer(number) => i32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        settings.values.priority = number.and_then(Priority::new);
        settings.priority = Some(reader.location(value.span()));
        if settings.values.priority.is_none() {
            let help = "write a whole number from -199 to 49; the default is -105, and Docker uses -100";
            reader.report(value.span(), "NAT chains cannot have this `priority`", help);
        }
    }
    if let Some(value) = values.get("ip_forward") {
        match value.get_ref() {
            DeValue::String(text) if text == "enable" => settings.values.ip_forward = IpForward::Enable,
            DeValue::String(text) if text == "keep" => settings.values.ip_forward = IpForward::Keep,
            DeValue::String(other) => {
                let what = format!("`{other}` is not a value of `ip_forward`");
                reader.report(value.span(), what, "write `\"enable\"` or `\"keep\"`");
            }
            other => reader.wrong_type(value, "ip_forward", other, "`\"enable\"` or `\"keep\"`"),
        }
    }
    settings
}

/// The rules of one kind, and the location of each rule.
struct Rules<T> {
    rules: Vec<T>,
    locations: Vec<Location>,
}

/// Converts every table of one kind.
fn read_tables<T>(
    reader: &mut TableReader,
    root: &DeTable<'_>,
    key: &'static str,
    name: &'static str,
    mut read: impl FnMut(&mut TableReader, &Table<'_>) -> Option<(T, Range<usize>)>,
) -> Rules<T> {
    let tables = reader.tables(root, key, name);
    let (rules, locations) = tables
        .into_iter()
        .filter_map(|table| read(reader, &table).map(|(rule, span)| (rule, reader.location(span))))
        .unzip();
    Rules { rules, locations }
}

/// Returns the name of the file without `.toml` as the name of the set.
fn set_name_from_path(reader: &mut TableReader, path: &Path) -> Option<SetName> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match stem.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            let help = format!("{}, or write `name` under `[settings]`", ParseError::help(&error));
            reader.report(0..0, format!("the name of the file cannot be the name of the set: {error}"), help);
            None
        }
    }
}
