//! Any text as a dump of foreign rules. The reader accepts or refuses the text, and the audit handles all accepted
//! rules.

use portfwd::audit::{findings, listing};
use portfwd::ruleset::host::Host;
use portfwd::ruleset::read;

/// Reads any bytes as a dump, and audits the rules.
pub fn holds(input: &[u8]) {
    let Ok(rules) = read::dump(&String::from_utf8_lossy(input), None) else { return };
    let host = Host::new(rules, None);
    let rows = listing::forwards(&host).into_iter().chain(listing::sources(&host));
    for row in rows {
        assert!(!row.hooks.is_empty() && !row.owner.is_empty() && !row.rule.is_empty(), "{row:?}");
    }
    for finding in findings::all(&host, |_| true) {
        assert!(!finding.message.is_empty() && !finding.fix.is_empty(), "{finding:?}");
    }
}
