//! Any text as rule-set files. Each mistake has a valid position, and files without mistakes compile.

use std::collections::BTreeSet;
use std::sync::Arc;

use portfwd::config::{Loaded, Location, Problem, Source, load, merge};
use portfwd::iptables::compile::Host;
use portfwd::model::{DesiredState, Forward};
use portfwd::{iptables, nft};

/// The line that separates two files in one test input.
const SEPARATOR: &str = "\n# file\n";

/// The limit for bindings. The compiler needs a few milliseconds for this number of bindings.
const MAX_BINDINGS: usize = 200;

/// The limit for rules and elements. The compiler needs a few milliseconds for this number.
const MAX_RULES: u32 = 5_000;

/// Splits any text into up to three files. Bytes that are not UTF-8 are ignored.
pub fn holds(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut sets = Vec::new();
    let mut valid = true;
    for (text, path) in text.split(SEPARATOR).zip(["web.toml", "db.toml", "mail.toml"]) {
        let source = Arc::new(Source { path: path.into(), text: text.into() });
        let (loaded, problems) = load(&source);
        problems.iter().for_each(expect_printable);
        valid &= problems.is_empty();
        sets.extend(loaded);
    }
    if max_bindings(&sets) > MAX_BINDINGS {
        return;
    }
    match merge(DesiredState::default(), &sets) {
        Ok(desired) if valid => compile_and_lift(&desired),
        Ok(_) => {}
        Err(problems) => problems.iter().for_each(expect_printable),
    }
}

fn expect_printable(problem: &Problem) {
    let places = problem.location.iter().chain(problem.related.iter().filter_map(|(_, place)| place.as_ref()));
    for place in places {
        expect_inside_its_text(place);
    }
    assert!(!problem.what.is_empty());
    for color in [false, true] {
        assert!(problem.render(color).ends_with('\n'), "{problem:?}");
    }
}

fn expect_inside_its_text(place: &Location) {
    let (text, span) = (&place.source.text, &place.span);
    assert!(text.get(span.clone()).is_some(), "{span:?} of {} bytes", text.len());
    let (line, column) = place.line_and_column();
    assert!(line <= text.matches('\n').count() + 1 && column <= text.chars().count() + 1, "{line}:{column}");
    let (lines, inside) = place.lines();
    assert!(lines.get(inside.clone()) == text.get(span.clone()), "{inside:?} of {lines:?}");
}

/// Returns an upper bound for the number of bindings, without making the bindings.
fn max_bindings(sets: &[Loaded]) -> usize {
    let bound = |forward: &Forward| {
        let protocols = forward.listen.protocols.len().max(forward.protocols.len()).max(1);
        2 * forward.listen.ports.ranges().len() * protocols * forward.from.len().max(1)
    };
    sets.iter().flat_map(|loaded| &loaded.set.forwards).map(bound).sum()
}

/// Compiles the desired state with both backends. The lifted bindings must be equal if a backend accepts the state.
fn compile_and_lift(desired: &DesiredState) {
    let ports: u32 = desired.bindings.iter().map(|owned| owned.rule.ports.width()).sum();
    if desired.bindings.iter().map(|owned| nft::element::count(&owned.rule)).sum::<usize>() <= MAX_RULES as usize
        && let Ok(program) = nft::compile::compile(desired)
    {
        let lifted = nft::lift::lift(&program);
        assert_eq!(lifted.foreign, Vec::<String>::new(), "{program}");
        assert_eq!(lifted.desired.bindings, desired.bindings);
    }
    let interfaces: BTreeSet<_> = ["eth0", "docker0"].iter().flat_map(|name| name.parse()).collect();
    for shifts in [true, false] {
        let host = Host { interfaces: interfaces.clone(), shifts };
        if (shifts || ports <= MAX_RULES)
            && let Ok(program) = iptables::compile::compile(desired, &host)
        {
            let lifted = iptables::lift::lift(&program);
            assert_eq!(lifted.foreign, Vec::<String>::new(), "{program}");
            assert_eq!(lifted.desired.bindings, desired.bindings);
        }
    }
}
