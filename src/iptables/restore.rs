//! Changes as the input of `iptables-restore --noflush --counters`.
//!
//! ```text
//! *nat
//! :PORTFWD.PREROUTING - [0:0]
//! -D PREROUTING -j PORTFWD.PREROUTING
//! [12:345] -A PORTFWD.PREROUTING -m addrtype --dst-type LOCAL -j PORTFWD-DOCKER
//! -I PREROUTING 1 -j PORTFWD.PREROUTING
//! -X PORTFWD-OLD
//! COMMIT
//! ```
//! A chain that is declared is made, or emptied where it is there; built-in chains are never declared, because that would
//! set their policy and what it counted. The kernel takes each table as a whole at its `COMMIT`.

use std::fmt::Write as _;

use super::diff::{Changes, TableChanges};
use super::program::Table;
use crate::model::Family;

/// Bytes of a usual line.
const LINE: usize = 80;

/// Writes the changes of a family.
pub fn text(changes: &Changes, family: Family) -> String {
    let mut out = String::with_capacity(changes.rules() * LINE);
    for (table, changes) in &changes.0 {
        // Writing to a `String` cannot fail.
        let written = put(*table, changes, family, &mut out);
        debug_assert!(written.is_ok());
    }
    out
}

fn put(table: Table, changes: &TableChanges, family: Family, out: &mut String) -> std::fmt::Result {
    writeln!(out, "*{}", table.name())?;
    let written = changes.write.iter().map(|(name, _)| name);
    for name in written.chain(&changes.remove) {
        writeln!(out, ":{name} - [0:0]")?;
    }
    for (hook, times) in &changes.unhook {
        for _ in 0..*times {
            writeln!(out, "-D {} -j {}", hook.name(), hook.entry())?;
        }
    }
    for (name, chain) in &changes.write {
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
    }
    for hook in &changes.hook {
        writeln!(out, "-I {} 1 -j {}", hook.name(), hook.entry())?;
    }
    for name in &changes.remove {
        writeln!(out, "-X {name}")?;
    }
    writeln!(out, "COMMIT")
}
