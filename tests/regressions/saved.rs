//! Any text as an iptables-save dump. The reader refuses the text, or the rules are lifted and written back.

use portfwd::iptables::command::Variant;
use portfwd::iptables::compile::{Host, compile};
use portfwd::iptables::diff::diff;
use portfwd::iptables::lift::lift;
use portfwd::iptables::program::{FamilyRules, Program};
use portfwd::iptables::restore;
use portfwd::iptables::rule::{LabelNames, Rule};
use portfwd::iptables::save::parse;
use portfwd::model::Family;

/// Reads any text as a dump of each family. Bytes that are not UTF-8 are ignored.
pub fn holds(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let names = LabelNames::read("88 asked\n117 passed\n");
    for family in Family::ALL {
        if let Ok(half) = parse(text, family, &names) {
            lift_and_restore(half, family);
        }
        for line in text.lines() {
            round_trips(line, family, &names);
        }
    }
}

/// Checks that a rule prints text that parses to the same rule, and that a foreign rule prints its original text.
fn round_trips(text: &str, family: Family, names: &LabelNames) {
    let rule = Rule::parse(text, family, names);
    let mut printed = String::new();
    rule.write_to(&mut printed);
    assert_eq!(Rule::parse(&printed, family, names), rule, "{text:?} prints as {printed:?}");
    if rule.foreign.is_some() {
        assert_eq!(printed.trim_matches(' '), text.trim_matches(' '));
    }
}

fn lift_and_restore(half: FamilyRules, family: Family) {
    let mut program = Program::default();
    *program.family_mut(family) = half;
    let lifted = lift(&program);
    assert_eq!(lifted.desired.bindings.len(), lifted.counters.len());
    // Diffs the program against its own desired state, and against an empty program.
    let mut wanted = vec![Program::default()];
    let ports: u32 = lifted.desired.bindings.iter().map(|owned| owned.rule.ports.width()).sum();
    if ports <= 5_000 {
        wanted.extend(compile(&lifted.desired, &Host { shifts: true, ..Host::default() }));
    }
    for wanted in wanted {
        let changes = diff(program.family(family), wanted.family(family));
        for variant in Variant::ALL {
            let text = restore::text(&changes, variant);
            assert_eq!(text.is_empty(), changes.is_empty());
        }
        restore::is_sound(&changes);
    }
}
