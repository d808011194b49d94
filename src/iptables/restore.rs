//! Writes changes as text for `iptables-restore --noflush --counters`.
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
//! A chain declaration creates the chain, or flushes an existing chain. For iptables-legacy, portfwd also declares the
//! built-in chains, with their current policies and counters. The declaration of a built-in chain flushes nothing.
//! Without this declaration, every change to a table resets the counters of the policies (measured, iptables 1.8.9).
//! The kernel applies each table atomically at `COMMIT`.

use std::fmt::Write as _;

use super::command::Variant;
use super::diff::{Changes, TableChanges};
use super::program::{Chain, Policy, Table};
use super::rule::Rule;

/// The estimated length of a line in bytes.
const LINE_LENGTH: usize = 80;

/// Writes the changes of one family as text, for one variant of iptables.
pub fn text(changes: &Changes, variant: Variant) -> String {
    let mut out = String::with_capacity(changes.rules() * LINE_LENGTH);
    for (table, changes) in &changes.0 {
        // Writing to a `String` cannot fail.
        let written = write_table(*table, changes, variant, &mut out);
        debug_assert!(written.is_ok());
    }
    out
}

/// Returns true if no chain name, comment or foreign rule in the changes contains a control character. For example, a
/// line end in the comment of another program's rule would start an unintended line.
pub fn is_sound(changes: &Changes) -> bool {
    let control = |text: &str| text.chars().any(char::is_control);
    let broken = |rule: &Rule| {
        rule.foreign.as_deref().is_some_and(control) || rule.comment().is_some_and(|comment| control(comment))
    };
    let mut written = changes.0.iter().flat_map(|(_, changes)| &changes.write);
    !written.any(|(name, chain)| control(name) || chain.rules.iter().any(|rule| broken(rule)))
}

fn write_chain(name: &str, chain: &Chain, out: &mut String) -> std::fmt::Result {
    for (index, rule) in chain.rules.iter().enumerate() {
        if !chain.counters.is_empty() {
            let counter = chain.counter(index);
            write!(out, "[{}:{}] ", counter.packets, counter.bytes)?;
        }
        out.push_str("-A ");
        out.push_str(name);
        rule.write_to(out);
        out.push('\n');
    }
    Ok(())
}

fn write_table(table: Table, changes: &TableChanges, variant: Variant, out: &mut String) -> std::fmt::Result {
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
            writeln!(out, "-D {} -j {}", hook.name(), hook.portfwd_chain())?;
        }
    }
    changes.write.iter().try_for_each(|(name, chain)| write_chain(name, chain, out))?;
    for edit in &changes.edit {
        for _ in 0..edit.remove {
            writeln!(out, "-D {} {}", edit.chain, edit.at + 1)?;
        }
        for (number, rule) in edit.insert.iter().enumerate() {
            write!(out, "-I {} {}", edit.chain, edit.at + number + 1)?;
            rule.write_to(out);
            out.push('\n');
        }
    }
    for hook in &changes.hook {
        writeln!(out, "-I {} 1 -j {}", hook.name(), hook.portfwd_chain())?;
    }
    for name in &changes.remove {
        writeln!(out, "-X {name}")?;
    }
    writeln!(out, "COMMIT")
}
