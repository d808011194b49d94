//! Reads TOML tables key by key and remembers every mistake on the way.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Kind, Problem};
use super::source::{Place, Source};
use crate::model::ParseError;
use crate::model::error::printable;

/// A value with its place.
pub(crate) type Value<'a> = Spanned<DeValue<'a>>;

/// The mistakes of one file so far.
pub(crate) struct Reader {
    source: Arc<Source>,
    pub(crate) problems: Vec<Problem>,
}

/// A table that is being read: its keys, and its place for what is missing.
#[derive(Clone)]
pub(crate) struct Table<'a> {
    pub(crate) values: &'a DeTable<'a>,
    pub(crate) span: Range<usize>,
    /// What it is, for messages: `[[forward]]`.
    pub(crate) name: &'static str,
}

impl Reader {
    pub(crate) fn new(source: &Arc<Source>) -> Self {
        Self { source: Arc::clone(source), problems: Vec::new() }
    }

    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Returns the place of some bytes of the file.
    pub(crate) fn place(&self, span: Range<usize>) -> Place {
        Place { source: Arc::clone(&self.source), span }
    }

    pub(crate) fn problem(&mut self, span: Range<usize>, what: impl AsRef<str>, help: impl Into<String>) {
        let place = Some(self.place(span));
        let what = printable(what.as_ref());
        self.problems.push(Problem { kind: Kind::Invalid, what, place, other: None, help: help.into() });
    }

    pub(crate) fn wrong(&mut self, span: Range<usize>, error: &ParseError) {
        self.problem(span, error.to_string(), error.help());
    }

    /// Reports every key that is not one of `known`.
    pub(crate) fn only(&mut self, table: &Table<'_>, known: &[&str]) {
        for key in table.values.keys() {
            let name = key.get_ref();
            if known.contains(&name.as_ref()) {
                continue;
            }
            let near = known.iter().max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
            let help = match near {
                Some(near) if strsim::jaro(near, name) > 0.75 => format!("did you mean `{near}`?"),
                _ => format!("{} has {}", table.name, list(known)),
            };
            self.problem(key.span(), format!("unknown key `{name}` in {}", table.name), help);
        }
    }

    /// The value of a key that must be there.
    pub(crate) fn required<'a>(&mut self, table: &Table<'a>, key: &str, example: &str) -> Option<&'a Value<'a>> {
        let value = table.values.get(key);
        if value.is_none() {
            self.problem(
                table.span.clone(),
                format!("{} has no `{key}`", table.name),
                format!("add `{key} = {example}`"),
            );
        }
        value
    }

    /// Text.
    pub(crate) fn text<'a>(&mut self, value: &'a Value<'a>, key: &str) -> Option<&'a str> {
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            DeValue::Integer(number) => {
                let help = format!("put it in quotes: `{key} = \"{number}\"`");
                self.problem(value.span(), format!("`{key}` is a number, not text"), help);
                None
            }
            other => {
                self.wrong_type(value, key, other, "text in quotes");
                None
            }
        }
    }

    /// Text in a form that the model knows.
    pub(crate) fn parsed<T: FromStr<Err = ParseError>>(&mut self, value: &Value<'_>, key: &str) -> Option<T> {
        let text = self.text(value, key)?;
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.wrong(value.span(), &error);
                None
            }
        }
    }

    /// The same, where the key need not be there.
    pub(crate) fn optional<T: FromStr<Err = ParseError>>(&mut self, table: &Table<'_>, key: &str) -> Option<T> {
        let value = table.values.get(key)?;
        self.parsed(value, key)
    }

    /// One text, or a list of texts, each in a form of its own. `None` where the key is not there.
    pub(crate) fn list<T>(
        &mut self,
        table: &Table<'_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, ParseError>,
    ) -> Option<Vec<(T, Range<usize>)>> {
        let value = table.values.get(key)?;
        let single = std::slice::from_ref(value);
        let values: Vec<&Value<'_>> = match value.get_ref() {
            DeValue::Array(values) => values.iter().collect(),
            _ => single.iter().collect(),
        };
        let mut parsed = Vec::with_capacity(values.len());
        for value in values {
            let Some(text) = self.text(value, key) else { continue };
            match parse(text) {
                Ok(item) => parsed.push((item, value.span())),
                Err(error) => self.wrong(value.span(), &error),
            }
        }
        Some(parsed)
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, table: &Table<'_>, key: &str, default: bool) -> bool {
        let Some(value) = table.values.get(key) else { return default };
        match value.get_ref() {
            DeValue::Boolean(value) => *value,
            other => {
                self.wrong_type(value, key, other, "`true` or `false`");
                default
            }
        }
    }

    pub(crate) fn wrong_type(&mut self, value: &Value<'_>, key: &str, is: &DeValue<'_>, wanted: &str) {
        let help = format!("write {wanted}");
        self.problem(value.span(), format!("`{key}` is {}, not {wanted}", type_name(is)), help);
    }

    /// The tables of `[[name]]`.
    pub(crate) fn tables<'a>(
        &mut self,
        root: &'a DeTable<'a>,
        key: &'static str,
        name: &'static str,
    ) -> Vec<Table<'a>> {
        let Some(value) = root.get(key) else { return Vec::new() };
        let items: Vec<&Value<'a>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            DeValue::Table(_) => {
                self.problem(
                    value.span(),
                    format!("`{key}` is a table, not a list of tables"),
                    format!("write `{name}`"),
                );
                return Vec::new();
            }
            other => {
                self.wrong_type(value, key, other, name);
                return Vec::new();
            }
        };
        let mut tables = Vec::with_capacity(items.len());
        for item in items {
            match item.get_ref() {
                DeValue::Table(values) => tables.push(Table { values, span: item.span(), name }),
                other => self.wrong_type(item, key, other, name),
            }
        }
        tables
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
