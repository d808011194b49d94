//! Reads TOML tables key by key and collects every error.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Problem, ProblemKind};
use super::source::{Location, Source};
use crate::model::ParseError;
use crate::model::error::printable;

/// A TOML value with its location.
pub(crate) type Value<'a> = Spanned<DeValue<'a>>;

/// A reader of TOML tables. Collects the errors of one file.
pub(crate) struct TableReader {
    source: Arc<Source>,
    pub(crate) problems: Vec<Problem>,
}

/// A TOML table. Errors about missing keys use the location of the table.
#[derive(Clone)]
pub(crate) struct Table<'a> {
    pub(crate) values: &'a DeTable<'a>,
    pub(crate) span: Range<usize>,
    /// The name for messages: `[[forward]]`.
    pub(crate) name: &'static str,
}

impl TableReader {
    pub(crate) fn new(source: &Arc<Source>) -> Self {
        Self { source: Arc::clone(source), problems: Vec::new() }
    }

    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Returns the location of a range of bytes in the file.
    pub(crate) fn location(&self, span: Range<usize>) -> Location {
        Location { source: Arc::clone(&self.source), span }
    }

    pub(crate) fn report(&mut self, span: Range<usize>, what: impl AsRef<str>, help: impl Into<String>) {
        let location = Some(self.location(span));
        let what = printable(what.as_ref());
        self.problems.push(Problem { kind: ProblemKind::Invalid, what, location, related: None, help: help.into() });
    }

    pub(crate) fn report_error(&mut self, span: Range<usize>, error: &ParseError) {
        self.report(span, error.to_string(), error.help());
    }

    /// Reports every key that is not one of `known`.
    pub(crate) fn reject_unknown_keys(&mut self, table: &Table<'_>, known: &[&str]) {
        for key in table.values.keys() {
            let name = key.get_ref();
            if known.contains(&name.as_ref()) {
                continue;
            }
            let similar = known.iter().max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
            let help = match similar {
                Some(similar) if strsim::jaro(similar, name) > 0.75 => format!("did you mean `{similar}`?"),
                _ => format!("{} has {}", table.name, join(known)),
            };
            self.report(key.span(), format!("unknown key `{name}` in {}", table.name), help);
        }
    }

    /// Returns the value of a required key. Reports an error if the key is missing.
    pub(crate) fn required<'a>(&mut self, table: &Table<'a>, key: &str, example: &str) -> Option<&'a Value<'a>> {
        let value = table.values.get(key);
        if value.is_none() {
            self.report(
                table.span.clone(),
                format!("{} has no `{key}`", table.name),
                format!("add `{key} = {example}`"),
            );
        }
        value
    }

    /// Returns the text of a value. Reports an error if the value is not text.
    pub(crate) fn text<'a>(&mut self, value: &'a Value<'a>, key: &str) -> Option<&'a str> {
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            DeValue::Integer(number) => {
                let help = format!("put it in quotes: `{key} = \"{number}\"`");
                self.report(value.span(), format!("`{key}` is a number, not text"), help);
                None
            }
            other => {
                self.wrong_type(value, key, other, "text in quotes");
                None
            }
        }
    }

    /// Parses the text of a value. Reports an error if the text is invalid.
    pub(crate) fn parse<T: FromStr<Err = ParseError>>(&mut self, value: &Value<'_>, key: &str) -> Option<T> {
        let text = self.text(value, key)?;
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.report_error(value.span(), &error);
                None
            }
        }
    }

    /// Parses the text of an optional key. Returns `None` if the key is missing or invalid.
    pub(crate) fn optional<T: FromStr<Err = ParseError>>(&mut self, table: &Table<'_>, key: &str) -> Option<T> {
        let value = table.values.get(key)?;
        self.parse(value, key)
    }

    /// Parses a text or a list of texts. Returns `None` if the key is missing. Reports and skips every invalid text.
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
                Err(error) => self.report_error(value.span(), &error),
            }
        }
        Some(parsed)
    }

    /// Returns the value of a boolean key, or `default` if the key is missing or invalid.
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

    pub(crate) fn wrong_type(&mut self, value: &Value<'_>, key: &str, actual: &DeValue<'_>, expected: &str) {
        let help = format!("write {expected}");
        self.report(value.span(), format!("`{key}` is {}, not {expected}", type_name(actual)), help);
    }

    /// Returns the tables of the array `key`. `name` is the name for messages: `[[forward]]`.
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
                self.report(
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

fn join(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
