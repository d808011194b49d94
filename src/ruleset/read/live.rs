//! All rules of this host, and what is so on it besides: nf_tables by netlink, x_tables (legacy) by its own program, because
//! the kernel tells them in no other way that is not private to it.

use std::collections::HashMap;

use super::{facts, nft, save};
use crate::iptables::command::{Tools, Variant};
use crate::model::Family;
use crate::nft::transaction::{Connection, KernelError};
use crate::ruleset::facts::Facts;
use crate::ruleset::table::{Gap, Ruleset, Tool};

/// Reads all that may be read in the network namespace of the calling thread. What may not be, for lack of a capability or of
/// a program, is a gap. `ssh` is what the environment says as `SSH_CONNECTION`.
///
/// # Errors
/// [`KernelError`] where nf_tables does not answer, or is changed all the time.
pub fn live(ssh: Option<&str>) -> Result<(Ruleset, Facts), KernelError> {
    let facts = facts::read(ssh);
    let links: HashMap<u32, String> = facts.links.iter().map(|link| (link.index, link.name.clone())).collect();
    let numbers = nft::Numbers { links: &links, ipsets: &nft::Ipsets::of_kernel() };
    let read = Connection::open().and_then(|mut connection| nft::read_with(&mut connection, numbers));
    let mut rules = match read {
        Ok(rules) => rules,
        Err(KernelError::NotPermitted(_)) => {
            let mut rules = Ruleset::default();
            let why = "only who has CAP_NET_ADMIN in this network namespace may read them".into();
            rules.gaps.push(Gap { what: "the rules of nf_tables".into(), why });
            rules
        }
        // Then there are none.
        Err(KernelError::NoNfTables(_)) => Ruleset::default(),
        Err(error) => return Err(error),
    };
    for family in Family::ALL {
        // Asked for only where there are some: otherwise it would make the tables that it prints.
        if facts.legacy.iter().any(|(of, _)| *of == family) {
            legacy(family, &mut rules);
        }
    }
    Ok((rules, facts))
}

fn legacy(family: Family, rules: &mut Ruleset) {
    let read = || -> anyhow::Result<Ruleset> {
        let text = Tools::of_variant(family, Variant::Legacy)?.save()?;
        Ok(save::parse(&text, Some(family))?)
    };
    match read() {
        Ok(mut found) => {
            for table in &mut found.tables {
                table.tool = Tool::IptablesLegacy;
                // Nobody has the text that they are lines of.
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
