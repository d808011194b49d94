//! Words of a line of iptables-restore(8) and iptables-save(8): how they are quoted, and how a line falls apart into them.

/// Adds a word that holds anything but line ends, so that it is read back as one word and nothing of it as syntax.
///
/// Inside of double quotes a backslash takes the next character as it is. Source: `add_param_to_argv` in iptables'
/// xshared.c; measured with both variants of 1.8.9.
pub(super) fn put(text: &str, out: &mut String) {
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

/// Splits a line into its words; the other direction of [`put`]. `None` where a quote is not closed.
///
/// Only a quote at the beginning of a word is one: iptables-save prints names of interfaces as they are.
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
                let (word, behind) = rest.split_at(end);
                words.push(word.to_owned());
                rest = behind;
            }
        }
        rest = rest.trim_start_matches(' ');
    }
    Some(words)
}

/// The words of a line, to be read one after the other.
pub(crate) struct Words<'a>(std::slice::Iter<'a, String>);

impl<'a> Words<'a> {
    /// Begins at the first of them.
    pub(crate) fn of(words: &'a [String]) -> Self {
        Self(words.iter())
    }

    /// Takes the next one.
    pub(crate) fn next(&mut self) -> Option<&'a str> {
        self.0.next().map(String::as_str)
    }

    /// The next one, which stays.
    pub(crate) fn peek(&self) -> Option<&'a str> {
        self.0.as_slice().first().map(String::as_str)
    }

    /// Whether the next word is this one; takes it then.
    pub(super) fn takes(&mut self, word: &str) -> bool {
        let is = self.0.as_slice().first().is_some_and(|next| next == word);
        if is {
            self.0.next();
        }
        is
    }

    /// Whether there is none left.
    pub(super) fn is_at_end(&self) -> bool {
        self.0.as_slice().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_open_quote_is_no_word() {
        assert_eq!(split("-m comment --comment \"a b"), None);
        assert_eq!(split("a \"b\\"), None);
        assert_eq!(split("  a  \"\" b "), Some(vec!["a".into(), String::new(), "b".into()]));
    }

    proptest! {
        #[test]
        fn words_go_both_ways(words in proptest::collection::vec("[^\\x00-\\x1f]*", 0..5)) {
            let mut line = String::new();
            for word in &words {
                put(word, &mut line);
                line.push(' ');
            }
            prop_assert_eq!(split(&line), Some(words));
        }

        #[test]
        fn no_line_makes_it_panic(line in ".*") {
            split(&line);
        }
    }
}
