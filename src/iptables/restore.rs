//! Changes as the input of `iptables-restore --noflush --counters`.
//!
//! ```text
//! *nat
//! :PORTFWD.PREROUTING - [0:0]
//! -D PREROUTING -j PORTFWD.PREROUTING
//! [12:345] -A PORTFWD.PREROUTING -m addrtype --dst-type LOCAL -j PORTFWD-DOCKER
//! -I PREROUTING 1 -j PORTFWD.PREROUTING
//! -D PORTFWD-DOCKER 3
//! -I PORTFWD-DOCKER 7 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.3:80
//! -X PORTFWD-OLD
//! COMMIT
//! ```
//! A chain that is declared is made, or emptied where it is there. Built-in chains are declared for iptables-legacy alone, with
//! the policies and counts that they have: that empties none, and without it every change to a table would set these counts
//! to zero (measured, 1.8.9). The kernel takes each table as a whole at its `COMMIT`.

use std::fmt::Write as _;

use super::command::Variant;
use super::diff::{Changes, TableChanges};
use super::program::{Chain, Policy, Table};
use super::rule::Rule;
use crate::model::Family;

/// Bytes of a usual line.
const LINE: usize = 80;

/// Writes the changes of a family for a variant.
pub fn text(changes: &Changes, family: Family, variant: Variant) -> String {
    let mut out = String::with_capacity(changes.rules() * LINE);
    for (table, changes) in &changes.0 {
        // Writing to a `String` cannot fail.
        let written = put(*table, changes, family, variant, &mut out);
        debug_assert!(written.is_ok());
    }
    out
}

/// Whether a text is nothing but the changes it was written for: no word of it, such as a comment of somebody else's in our
/// chains, holds a line end and so begins a line of its own.
pub fn is_sound(changes: &Changes) -> bool {
    let control = |text: &str| text.chars().any(char::is_control);
    let broken = |rule: &Rule| {
        rule.foreign.as_deref().is_some_and(control) || rule.comment().is_some_and(|comment| control(comment))
    };
    let mut written = changes.0.iter().flat_map(|(_, changes)| &changes.write);
    !written.any(|(name, chain)| control(name) || chain.rules.iter().any(|rule| broken(rule)))
}

fn put_chain(name: &str, chain: &Chain, family: Family, out: &mut String) -> std::fmt::Result {
    for (at, rule) in chain.rules.iter().enumerate() {
        if !chain.counters.is_empty() {
            let counter = chain.counter(at);
            write!(out, "[{}:{}] ", counter.packets, counter.bytes)?;
        }
        out.push_str("-A ");
        out.push_str(name);
        rule.put(family, out);
        out.push('\n');
    }
    Ok(())
}

fn put(table: Table, changes: &TableChanges, family: Family, variant: Variant, out: &mut String) -> std::fmt::Result {
    writeln!(out, "*{}", table.name())?;
    for Policy { chain, policy, counter } in changes.policies.iter().filter(|_| variant == Variant::Legacy) {
        writeln!(out, ":{chain} {policy} [{}:{}]", counter.packets, counter.bytes)?;
    }
    let written = changes.write.iter().map(|(name, _)| name);
    for name in written.chain(&changes.remove) {
        writeln!(out, ":{name} - [0:0]")?;
    }
    for (hook, times) in &changes.unhook {
        for _ in 0..*times {
            writeln!(out, "-D {} -j {}", hook.name(), hook.entry())?;
        }
    }
    changes.write.iter().try_for_each(|(name, chain)| put_chain(name, chain, family, out))?;
    for edit in &changes.edit {
        for _ in 0..edit.remove {
            writeln!(out, "-D {} {}", edit.chain, edit.at + 1)?;
        }
        for (number, rule) in edit.insert.iter().enumerate() {
            write!(out, "-I {} {}", edit.chain, edit.at + number + 1)?;
            rule.put(family, out);
            out.push('\n');
        }
    }
    for hook in &changes.hook {
        writeln!(out, "-I {} 1 -j {}", hook.name(), hook.entry())?;
    }
    for name in &changes.remove {
        writeln!(out, "-X {name}")?;
    }
    writeln!(out, "COMMIT")
}
