//! Quotes and splits the words in lines of iptables-restore(8) and iptables-save(8).

/// Appends a word to a line, in double quotes if necessary. The word must not contain line ends.
///
/// In double quotes, a backslash escapes the next character. Source: `add_param_to_argv` in iptables' xshared.c;
/// measured with both variants of iptables 1.8.9.
pub(super) fn push_quoted(text: &str, out: &mut String) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/' | ',' | '@' | '=' | '+');
    if !text.is_empty() && text.chars().all(plain) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// Splits a line into words. The inverse of [`push_quoted`]. Returns `None` if a quote is not closed.
///
/// A quote inside a word is an ordinary character, because iptables-save does not quote interface names.
pub(crate) fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::with_capacity(16);
    let mut rest = line.trim_start_matches(' ');
    while !rest.is_empty() {
        match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut word = String::new();
                let mut chars = quoted.char_indices();
                let end = loop {
                    match chars.next()? {
                        (_, '\\') => word.push(chars.next()?.1),
                        (at, '"') => break at,
                        (_, c) => word.push(c),
                    }
                };
                words.push(word);
                rest = quoted.get(end + 1..)?;
            }
            None => {
                let end = rest.find(' ').unwrap_or(rest.len());
                let (word, remainder) = rest.split_at(end);
                words.push(word.to_owned());
                rest = remainder;
            }
        }
        rest = rest.trim_start_matches(' ');
    }
    Some(words)
}

/// An iterator over the words of a line.
#[derive(Clone)]
pub(crate) struct Words<'a>(std::slice::Iter<'a, String>);

impl<'a> Words<'a> {
    /// Creates an iterator that starts at the first word.
    pub(crate) fn new(words: &'a [String]) -> Self {
        Self(words.iter())
    }

    /// Returns the next word and advances the iterator.
    pub(crate) fn next(&mut self) -> Option<&'a str> {
        self.0.next().map(String::as_str)
    }

    /// Returns all words that are left, separated by spaces.
    pub(crate) fn rest(&self) -> String {
        self.0.as_slice().join(" ")
    }

    /// Returns the next word without advancing the iterator.
    pub(crate) fn peek(&self) -> Option<&'a str> {
        self.0.as_slice().first().map(String::as_str)
    }

    /// Returns true and advances the iterator if the next word equals `word`.
    pub(super) fn take_if(&mut self, word: &str) -> bool {
        let is = self.0.as_slice().first().is_some_and(|next| next == word);
        if is {
            self.0.next();
        }
        is
    }

    /// Returns true if one of the next words starts with `prefix`. The search ends at a word of `stops`.
    pub(super) fn is_before(&self, prefix: &str, stops: &[&str]) -> bool {
        let mut words = self.0.as_slice().iter().map(String::as_str).take_while(|word| !stops.contains(word));
        words.any(|word| word.starts_with(prefix))
    }

    /// Returns true if one of the next words equals `word`.
    pub(crate) fn any(&self, word: &str) -> bool {
        self.0.as_slice().iter().any(|next| next == word)
    }

    /// Returns true if no word is left.
    pub(super) fn is_at_end(&self) -> bool {
        self.0.as_slice().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_unclosed_quote_is_an_error() {
        assert_eq!(split("-m comment --comment \"a b"), None);
        assert_eq!(split("a \"b\\"), None);
        assert_eq!(split("  a  \"\" b "), Some(vec!["a".into(), String::new(), "b".into()]));
    }

    proptest! {
        #[test]
        fn words_round_trip(words in proptest::collection::vec("[^\\x00-\\x1f]*", 0..5)) {
            let mut line = String::new();
            for word in &words {
                push_quoted(word, &mut line);
                line.push(' ');
            }
            prop_assert_eq!(split(&line), Some(words));
        }

        #[test]
        fn split_never_panics(line in ".*") {
            split(&line);
        }
    }
}
