//! An error in a rule set: the message, the location and the help.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::source::Location;
use crate::model::error::printable;

/// The kind of an error. The kind determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The text is not a valid rule.
    Invalid,
    /// Two rules match the same packets with the same precedence.
    Conflict,
    /// The kernel does not support the rule.
    Unsupported,
}

/// An error in a rule set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The kind, which determines the exit code.
    pub kind: ProblemKind,
    /// The message: lower case, no final period.
    pub what: String,
    /// The location, if the rule is in a file.
    pub location: Option<Location>,
    /// A second message about a related rule, and its location if the rule is in a file.
    pub related: Option<(String, Option<Location>)>,
    /// The text that a user can write instead.
    pub help: String,
}

impl Problem {
    /// Returns the error as text for a terminal. The text ends with a newline.
    pub fn render(&self, color: bool) -> String {
        let mut first = Group::with_title(Level::ERROR.primary_title(&self.what));
        if let Some(location) = &self.location {
            first = first.element(snippet(location, AnnotationKind::Primary));
        }
        let mut groups = Vec::with_capacity(3);
        match &self.related {
            Some((sentence, Some(location))) => {
                groups.push(first);
                let other = Group::with_title(Level::NOTE.secondary_title(sentence));
                groups.push(other.element(snippet(location, AnnotationKind::Primary)));
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
        if self.location.is_some() {
            return renderer.render(&groups) + "\n";
        }
        // The parts are separate lines if there is no location.
        groups.iter().map(|group| renderer.render(std::slice::from_ref(group)) + "\n").collect()
    }
}

fn snippet(location: &Location, kind: AnnotationKind) -> Snippet<'_, annotate_snippets::Annotation<'_>> {
    let (lines, span) = location.lines();
    let (line, _) = location.line_and_column();
    let path = printable(&location.source.path.to_string_lossy());
    Snippet::source(lines).line_start(line).path(path).annotation(kind.span(span))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;
    use expect_test::expect;
    use std::sync::Arc;

    #[test]
    fn a_conflict_shows_both_locations() {
        let text =
            "[[forward]]\nlisten = \"8080\"\nto = \"10.0.0.1\"\n\n[[forward]]\nlisten = \"8080\"\nto = \"10.0.0.2\"\n";
        let source = Arc::new(Source { path: "rules/web.toml".into(), text: text.into() });
        let problem = Problem {
            kind: ProblemKind::Conflict,
            what: "`8080/tcp` already goes to 10.0.0.1:8080".into(),
            location: Some(Location { source: Arc::clone(&source), span: 66..72 }),
            related: Some(("first defined here".into(), Some(Location { source, span: 21..27 }))),
            help: "remove one, or give one of them an address or an interface".into(),
        };
        expect![[r#"
            error: `8080/tcp` already goes to 10.0.0.1:8080
             --> rules/web.toml:6:10
              |
            6 | listen = "8080"
              |          ^^^^^^
              |
            note: first defined here
             --> rules/web.toml:2:10
              |
            2 | listen = "8080"
              |          ^^^^^^
            help: remove one, or give one of them an address or an interface
        "#]]
        .assert_eq(&problem.render(false));
    }
}
