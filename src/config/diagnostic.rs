//! A mistake in a rule set: what is wrong, where, and what to write instead.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::source::Place;
use crate::model::error::printable;

/// What kind of mistake, which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something that is not a rule.
    Invalid,
    /// Two rules of which nothing says which wins.
    Conflict,
    /// Something that this kernel cannot do.
    Missing,
}

/// A mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind.
    pub kind: Kind,
    /// What is wrong.
    pub what: String,
    /// Where, if it is in a file.
    pub place: Option<Place>,
    /// What else belongs to it: a sentence and, if it is in a file, where.
    pub other: Option<(String, Option<Place>)>,
    /// What to write instead.
    pub help: String,
}

impl Problem {
    /// Draws the mistake as text that ends with a newline.
    pub fn render(&self, color: bool) -> String {
        let mut first = Group::with_title(Level::ERROR.primary_title(&self.what));
        if let Some(place) = &self.place {
            first = first.element(snippet(place, AnnotationKind::Primary));
        }
        let mut groups = Vec::with_capacity(3);
        match &self.other {
            Some((sentence, Some(place))) => {
                groups.push(first);
                let other = Group::with_title(Level::NOTE.secondary_title(sentence));
                groups.push(other.element(snippet(place, AnnotationKind::Primary)));
            }
            Some((sentence, None)) => {
                groups.push(first);
                groups.push(Group::with_title(Level::NOTE.secondary_title(sentence)));
            }
            None => groups.push(first),
        }
        if !self.help.is_empty() {
            groups.push(Group::with_title(Level::HELP.secondary_title(&self.help)));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        if self.place.is_some() {
            return renderer.render(&groups) + "\n";
        }
        // Without a place there is no picture to hold the parts together.
        groups.iter().map(|group| renderer.render(std::slice::from_ref(group)) + "\n").collect()
    }
}

fn snippet(place: &Place, kind: AnnotationKind) -> Snippet<'_, annotate_snippets::Annotation<'_>> {
    let (lines, span) = place.lines();
    let (line, _) = place.line_and_column();
    let path = printable(&place.source.path.to_string_lossy());
    Snippet::source(lines).line_start(line).path(path).annotation(kind.span(span))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;
    use expect_test::expect;
    use std::sync::Arc;

    #[test]
    fn a_conflict_shows_both_places() {
        let text =
            "[[forward]]\nlisten = \"8080\"\nto = \"10.0.0.1\"\n\n[[forward]]\nlisten = \"8080\"\nto = \"10.0.0.2\"\n";
        let source = Arc::new(Source { path: "rules/web.toml".into(), text: text.into() });
        let problem = Problem {
            kind: Kind::Conflict,
            what: "`8080/tcp` already goes to 10.0.0.1:8080".into(),
            place: Some(Place { source: Arc::clone(&source), span: 66..72 }),
            other: Some(("first given here".into(), Some(Place { source, span: 21..27 }))),
            help: "remove one, or give one of them an address or an interface".into(),
        };
        expect![[r#"
            error: `8080/tcp` already goes to 10.0.0.1:8080
             --> rules/web.toml:6:10
              |
            6 | listen = "8080"
              |          ^^^^^^
              |
            note: first given here
             --> rules/web.toml:2:10
              |
            2 | listen = "8080"
              |          ^^^^^^
            help: remove one, or give one of them an address or an interface
        "#]]
        .assert_eq(&problem.render(false));
    }
}
