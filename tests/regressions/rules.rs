//! Rule-set files: whatever is in them, every mistake has its place, and what has none goes all the way to a program.

use std::collections::BTreeSet;
use std::sync::Arc;

use portfwd::config::{Loaded, Location, Problem, Source, load, union};
use portfwd::iptables::compile::Host;
use portfwd::model::{Asked, Forward};
use portfwd::{iptables, nft};

/// What begins another file.
const NEXT: &str = "\n# file\n";

/// So many atoms are compiled in a few milliseconds.
const ATOMS: usize = 200;

/// So many rules or elements are.
const PARTS: u32 = 5_000;

/// Takes any bytes; those that are text are up to three files.
pub fn holds(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut sets = Vec::new();
    let mut whole = true;
    for (text, path) in text.split(NEXT).zip(["web.toml", "db.toml", "mail.toml"]) {
        let source = Arc::new(Source { path: path.into(), text: text.into() });
        let (loaded, problems) = load(&source);
        problems.iter().for_each(can_be_shown);
        whole &= problems.is_empty();
        sets.extend(loaded);
    }
    if atoms(&sets) > ATOMS {
        return;
    }
    match union(Asked::default(), &sets) {
        Ok(asked) if whole => compiles(&asked),
        Ok(_) => {}
        Err(problems) => problems.iter().for_each(can_be_shown),
    }
}

fn can_be_shown(problem: &Problem) {
    let places = problem.location.iter().chain(problem.related.iter().filter_map(|(_, place)| place.as_ref()));
    for place in places {
        is_in_its_text(place);
    }
    assert!(!problem.what.is_empty());
    for color in [false, true] {
        assert!(problem.render(color).ends_with('\n'), "{problem:?}");
    }
}

fn is_in_its_text(place: &Location) {
    let (text, span) = (&place.source.text, &place.span);
    assert!(text.get(span.clone()).is_some(), "{span:?} of {} bytes", text.len());
    let (line, column) = place.line_and_column();
    assert!(line <= text.matches('\n').count() + 1 && column <= text.chars().count() + 1, "{line}:{column}");
    let (lines, inside) = place.lines();
    assert!(lines.get(inside.clone()) == text.get(span.clone()), "{inside:?} of {lines:?}");
}

/// At most so many atoms the forwards have, without making them.
fn atoms(sets: &[Loaded]) -> usize {
    let of = |forward: &Forward| {
        let protocols = forward.listen.protocols.len().max(forward.protocols.len()).max(1);
        2 * forward.listen.ports.ranges().len() * protocols * forward.from.len().max(1)
    };
    sets.iter().flat_map(|loaded| &loaded.set.forwards).map(of).sum()
}

/// Both backends take it or say why not, and what they make of it says the same as was asked.
fn compiles(asked: &Asked) {
    let ports: u32 = asked.bindings.iter().map(|owned| owned.rule.ports.width()).sum();
    if asked.bindings.iter().map(|owned| nft::element::count(&owned.rule)).sum::<usize>() <= PARTS as usize
        && let Ok(program) = nft::compile::compile(asked)
    {
        let held = nft::lift::lift(&program);
        assert_eq!(held.foreign, Vec::<String>::new(), "{program}");
        assert_eq!(held.asked.bindings, asked.bindings);
    }
    let interfaces: BTreeSet<_> = ["eth0", "docker0"].iter().flat_map(|name| name.parse()).collect();
    for shifts in [true, false] {
        let host = Host { interfaces: interfaces.clone(), shifts };
        if (shifts || ports <= PARTS)
            && let Ok(program) = iptables::compile::compile(asked, &host)
        {
            let held = iptables::lift::lift(&program);
            assert_eq!(held.foreign, Vec::<String>::new(), "{program}");
            assert_eq!(held.asked.bindings, asked.bindings);
        }
    }
}
