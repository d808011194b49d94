//! What a stretch of a rule-set file says.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::reader::{Reader, Table};
use super::{forward, tables};
use crate::model::{Forward, IpForward, Masquerade, Netmap, Network, Priority, SetName, Settings, Snat};

/// Bytes of a file.
pub(super) type Span = Range<usize>;

/// What is valid in it, every rule with its place.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// None where there is no table of them.
    pub(super) settings: Option<Settings>,
    /// The set's name, where the settings give one.
    pub(super) name: Option<SetName>,
    /// Where the settings give a priority.
    pub(super) priority: Option<Span>,
    pub(super) networks: Vec<(Network, Span)>,
    pub(super) forwards: Vec<(Forward, Span)>,
    pub(super) masquerades: Vec<(Masquerade, Span)>,
    pub(super) snats: Vec<(Snat, Span)>,
    pub(super) netmaps: Vec<(Netmap, Span)>,
}

impl Part {
    /// Reads a TOML document.
    pub(super) fn read(reader: &mut Reader, text: &str) -> Self {
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let help = "see https://toml.io for what a file may look like";
            reader.problem(error.span().unwrap_or(0..0), error.message(), help);
        }
        let root = document.get_ref();
        let whole = Table { values: root, span: 0..0, name: "a rule set" };
        reader.only(&whole, &["network", "forward", "masquerade", "snat", "netmap", "settings"]);
        let mut part = Self::default();
        part.read_settings(reader, root);
        part.networks = each(reader, root, "network", "[[network]]", tables::network);
        let forward = |reader: &mut Reader, table: &Table<'_>| forward::forward(reader, table, &part.networks);
        part.forwards = each(reader, root, "forward", "[[forward]]", forward);
        part.masquerades = each(reader, root, "masquerade", "[[masquerade]]", tables::masquerade);
        part.snats = each(reader, root, "snat", "[[snat]]", tables::snat);
        part.netmaps = each(reader, root, "netmap", "[[netmap]]", tables::netmap);
        part
    }

    fn read_settings(&mut self, reader: &mut Reader, root: &DeTable<'_>) {
        let Some(value) = root.get("settings") else { return };
        let DeValue::Table(values) = value.get_ref() else {
            return reader.wrong_type(value, "settings", value.get_ref(), "a table, `[settings]`");
        };
        let table = Table { values, span: value.span(), name: "[settings]" };
        reader.only(&table, &["name", "priority", "ip_forward"]);
        self.name = reader.optional(&table, "name");
        let settings = self.settings.insert(Settings::default());
        if let Some(value) = values.get("priority") {
            let number = match value.get_ref() {
                DeValue::Integer(number) => i32::from_str_radix(number.as_str(), number.radix()).ok(),
                _ => None,
            };
            settings.priority = number.and_then(Priority::new);
            self.priority = Some(reader.span(value.span()));
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
    }
}

/// Reads every table of a kind; each rule comes with its place.
fn each<T>(
    reader: &mut Reader,
    root: &DeTable<'_>,
    key: &'static str,
    name: &'static str,
    mut read: impl FnMut(&mut Reader, &Table<'_>) -> Option<(T, Span)>,
) -> Vec<(T, Span)> {
    let tables = reader.tables(root, key, name);
    let read = |table| read(reader, &table).map(|(rule, span)| (rule, reader.span(span)));
    tables.into_iter().filter_map(read).collect()
}
