//! What iptables-save prints, and anything else: it is read or refused, lifted, and written back.

use portfwd::iptables::command::Variant;
use portfwd::iptables::compile::{Host, compile};
use portfwd::iptables::diff::diff;
use portfwd::iptables::lift::lift;
use portfwd::iptables::program::{Half, Program};
use portfwd::iptables::restore;
use portfwd::iptables::rule::{LabelNames, Rule};
use portfwd::iptables::save::parse;
use portfwd::model::Family;

/// Takes any bytes; those that are text are a dump of either family.
pub fn holds(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let names = LabelNames::read("88 asked\n117 passed\n");
    for family in Family::ALL {
        if let Ok(half) = parse(text, family, &names) {
            is_lifted(half, family);
        }
        for line in text.lines() {
            goes_both_ways(line, family, &names);
        }
    }
}

/// What is not foreign prints a text that is read as the same rule, and what is foreign stays word for word.
fn goes_both_ways(text: &str, family: Family, names: &LabelNames) {
    let rule = Rule::parse(text, family, names);
    let mut printed = String::new();
    rule.write_to(family, &mut printed);
    assert_eq!(Rule::parse(&printed, family, names), rule, "{text:?} prints as {printed:?}");
    if rule.foreign.is_some() {
        assert_eq!(printed.trim_matches(' '), text.trim_matches(' '));
    }
}

fn is_lifted(half: Half, family: Family) {
    let mut program = Program::default();
    *program.of_mut(family) = half;
    let held = lift(&program);
    assert_eq!(held.asked.bindings.len(), held.counters.len());
    // What was found in the kernel is asked for again, and nothing at all is.
    let mut wanted = vec![Program::default()];
    let ports: u32 = held.asked.bindings.iter().map(|owned| owned.rule.ports.width()).sum();
    if ports <= 5_000 {
        wanted.extend(compile(&held.asked, &Host { shifts: true, ..Host::default() }));
    }
    for wanted in wanted {
        let changes = diff(program.of(family), wanted.of(family));
        for variant in Variant::ALL {
            let text = restore::text(&changes, family, variant);
            assert_eq!(text.is_empty(), changes.is_empty());
        }
        restore::is_sound(&changes);
    }
}
