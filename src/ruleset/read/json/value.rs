//! A value of JSON in little memory: what has no escapes is borrowed from the text, and objects are lists of pairs.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The most bytes of the words in which something is shown that is not understood.
const LONGEST: usize = 160;

/// A text that is borrowed where it can be.
#[derive(serde::Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number that is not below 0.
    Number(u64),
    /// One below 0.
    Negative(i64),
    /// Any other number, which the schema has nowhere.
    Other(f64),
    /// A string.
    Text(Cow<'a, str>),
    /// An array.
    List(Box<[Self]>),
    /// An object.
    Object(Box<[(Cow<'a, str>, Self)]>),
}

impl<'a> Json<'a> {
    /// The value of a key of an object.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(pairs) => pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text of a key of an object.
    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key)?.text()
    }

    /// The text that it is.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number that it is.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The elements of an array, and of anything else itself: where the schema allows a list, a single one may stand alone.
    pub fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            Self::Null => &[],
            other => std::slice::from_ref(other),
        }
    }

    /// The key and the value of an object that has but one.
    pub fn only(&self) -> Option<(&str, &Self)> {
        match self {
            Self::Object(pairs) => match &**pairs {
                [(key, value)] => Some((key, value)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether it is this text, or a list that holds it.
    pub fn names(&self, text: &str) -> bool {
        self.list().iter().any(|one| one.text() == Some(text))
    }

    /// It in a few words, much as nft(8) would print it.
    pub fn words(&self) -> Arc<str> {
        let mut words = Words(String::new());
        let cut = write!(words, "{self}").is_err();
        if cut {
            words.0.push('…');
        }
        words.0.into()
    }
}

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut apart = "";
        match self {
            Self::Null => Ok(()),
            Self::Bool(is) => is.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Negative(number) => number.fmt(f),
            Self::Other(number) => number.fmt(f),
            Self::Text(text) => {
                text.chars().try_for_each(|c| if c.is_control() { f.write_char(' ') } else { f.write_char(c) })
            }
            Self::List(list) => list.iter().try_for_each(|one| {
                f.write_str(std::mem::replace(&mut apart, ", "))?;
                one.fmt(f)
            }),
            Self::Object(pairs) => pairs.iter().try_for_each(|(key, value)| {
                f.write_str(std::mem::replace(&mut apart, " "))?;
                let silent =
                    matches!(&**key, "key" | "field" | "protocol" | "name" | "val" | "family" | "payload" | "elem");
                match (silent, value) {
                    (true, value) => value.fmt(f),
                    (false, Self::Null) => f.write_str(key),
                    (false, value) => write!(f, "{key} {value}"),
                }
            }),
        }
    }
}

/// A text that takes only so much.
struct Words(String);

impl fmt::Write for Words {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() >= LONGEST {
                return Err(fmt::Error);
            }
            self.0.push(c);
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, is: bool) -> Result<Self::Value, E> {
        Ok(Json::Bool(is))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Json::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(u64::try_from(number).map_or(Json::Negative(number), Json::Number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Json::Other(number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(one) = from.next_element()? {
            list.push(one);
        }
        Ok(Json::List(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::with_capacity(1);
        while let Some((Text(key), value)) = from.next_entry()? {
            pairs.push((key, value));
        }
        Ok(Json::Object(pairs.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_shown_in_a_few_words() {
        let words = |text: &str| serde_json::from_str::<Json<'_>>(text).expect("JSON").words().to_string();
        assert_eq!(words(r#"{"limit": {"rate": 5, "burst": 2, "per": "second"}}"#), "limit rate 5 burst 2 per second");
        assert_eq!(words(r#"{"payload": {"protocol": "tcp", "field": "flags"}}"#), "tcp flags");
        assert_eq!(words(r#"{"continue": null}"#), "continue");
        assert_eq!(words("\"a\\n\\u001b[31m\""), "a  [31m", "and nothing that moves the cursor");
        let long = format!("\"{}\"", "ü".repeat(500));
        assert!(words(&long).len() <= LONGEST + "ü…".len());
    }

    #[test]
    fn numbers_are_whole_or_of_no_use() {
        let number = |text: &'static str| serde_json::from_str::<Json<'static>>(text).ok();
        assert_eq!(number("18446744073709551615"), Some(Json::Number(u64::MAX)));
        assert_eq!(number("-1"), Some(Json::Negative(-1)));
        assert!(matches!(number("18446744073709551616"), Some(Json::Other(_))));
        assert_eq!(number("1e999"), None);
    }
}
