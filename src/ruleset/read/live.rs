//! Reads the live rules and facts of this host. nf_tables rules come from netlink. Rules of iptables-legacy come from
//! iptables-legacy-save, because the kernel's own interface is private to iptables.

use std::collections::HashMap;

use super::{facts, nft, save};
use crate::iptables::command::{Tools, Variant, label_names};
use crate::model::Family;
use crate::nft::transaction::{Connection, KernelError};
use crate::ruleset::facts::Facts;
use crate::ruleset::table::{Gap, Ruleset, Tool};

/// Reads the rules and facts of the calling thread's network namespace. Everything that cannot be read, for lack of a
/// capability or a program, is a gap. `ssh` is the value of `SSH_CONNECTION`.
///
/// # Errors
/// [`KernelError`] if nf_tables does not respond, or if other programs change it all the time. Also fails if no table could
/// be read.
pub fn live(ssh: Option<&str>) -> Result<(Ruleset, Facts), KernelError> {
    let facts = facts::read(ssh);
    let links: HashMap<u32, String> = facts.links.iter().map(|link| (link.index, link.name.clone())).collect();
    let numbers = nft::Numbers { links: &links, ipsets: &nft::Ipsets::of_kernel() };
    let read = Connection::open().and_then(|mut connection| nft::read_with(&mut connection, numbers));
    let (mut rules, unread) = match read {
        Ok(rules) => (rules, None),
        Err(error @ KernelError::NotPermitted(_)) => {
            let mut rules = Ruleset::default();
            let why = "reading them needs CAP_NET_ADMIN in this network namespace".into();
            rules.gaps.push(Gap { what: "the rules of nf_tables".into(), why });
            (rules, Some(error))
        }
        // A kernel without nf_tables has no such rules.
        Err(error @ KernelError::NoNfTables(_)) => (Ruleset::default(), Some(error)),
        Err(error) => return Err(error),
    };
    for family in Family::ALL {
        // iptables-legacy-save creates the tables that it prints, so it runs only if tables exist.
        if facts.legacy.iter().any(|(of, _)| *of == family) {
            legacy(family, &mut rules);
        }
    }
    match unread.filter(|_| rules.tables.is_empty() && !rules.gaps.is_empty()) {
        Some(error) => Err(error),
        None => Ok((rules, facts)),
    }
}

fn legacy(family: Family, rules: &mut Ruleset) {
    let read = || -> anyhow::Result<Ruleset> {
        let text = Tools::of_variant(family, Variant::Legacy)?.save()?;
        Ok(save::parse_with(&text, Some(family), &label_names())?)
    };
    match read() {
        Ok(mut found) => {
            for table in &mut found.tables {
                table.tool = Tool::IptablesLegacy;
                // The user does not have this text, so its line numbers are useless.
                table.chains.each(|chain| chain.rules.iter_mut().for_each(|rule| rule.line = None));
            }
            rules.tables.append(&mut found.tables);
            rules.gaps.append(&mut found.gaps);
        }
        Err(error) => {
            let what = format!("the tables of iptables-legacy of {family}");
            rules.gaps.push(Gap { what, why: format!("{error:#}") });
        }
    }
}
