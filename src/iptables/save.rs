//! What iptables-save(8) prints, read into what is ours of it; the other direction of [`super::restore`].

use std::sync::Arc;

use super::program::{Attached, Half, Hook, PREFIX, Policy, Table};
use super::rule::{LabelNames, Rule};
use crate::model::{Counter, Family};

/// Why a dump cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaveError {
    /// A table holds rules that only nft(8) can make, so iptables neither shows nor changes it.
    #[error("the table `{0}` holds rules that iptables cannot show")]
    Incompatible(String),
    /// A line is none that iptables-save prints.
    #[error("line {0} of what iptables-save prints cannot be read: `{1}`")]
    Line(usize, String),
}

/// Reads what is ours of a dump.
///
/// # Errors
/// Where it is not one, or leaves out a table that we have rules in.
pub fn parse(text: &str, family: Family, names: &LabelNames) -> Result<Half, SaveError> {
    let mut half = Half::default();
    let mut table = None;
    // How many rules each built-in chain had so far.
    let mut met: Vec<(Hook, usize)> = Vec::new();
    for (at, line) in logical_lines(text) {
        // No other white space: a name may end with it.
        let line = line.trim_end_matches(' ');
        if let Some(comment) = line.strip_prefix('#') {
            incompatible(comment)?;
        } else if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name);
            met.clear();
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap_or_default();
            if let Some(table) = table {
                if name.starts_with(PREFIX) {
                    half.of_mut(table).chains.entry(name.into()).or_default();
                }
                half.of_mut(table).policies.extend(policy(chain));
            }
        } else if let Some(table) = table.filter(|_| line != "COMMIT" && !line.is_empty()) {
            let (counter, chain, rest) = appended(line).ok_or_else(|| SaveError::Line(at, line.to_owned()))?;
            if let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.name() == chain) {
                let before = match met.iter_mut().find(|(met, _)| *met == hook) {
                    Some((_, count)) => {
                        *count += 1;
                        *count
                    }
                    None => {
                        met.push((hook, 0));
                        0
                    }
                };
                // Most rules of built-in chains are others'; only a jump to ours is looked at.
                if rest.contains(PREFIX) && Rule::parse(rest, family, names) == Rule::jump(&hook.entry()) {
                    let hooks = &mut half.of_mut(table).hooks;
                    let attached = hooks.entry(hook).or_insert(Attached { first: before == 0, times: 0 });
                    attached.times += 1;
                }
            } else if chain.starts_with(PREFIX) {
                let chain = half.of_mut(table).chains.entry(Arc::from(chain)).or_default();
                chain.rules.push(Rule::parse(rest, family, names).into());
                chain.counters.push(counter);
            }
        }
    }
    Ok(half)
}

/// The lines of a dump with their numbers; one in which a quote is open goes on to where it is closed, because a comment of
/// somebody else's may hold line ends.
pub(crate) fn logical_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let (mut rest, mut number) = (text, 0);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // Names of interfaces are printed as they are, so only a quote behind a blank is one.
        let (mut quoted, mut escaped, mut before) = (false, false, '\n');
        let ends = |c: char| {
            let last = std::mem::replace(&mut before, c);
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' if quoted || last == ' ' => quoted = !quoted,
                '\n' => return !quoted,
                _ => {}
            }
            false
        };
        // One that is never closed ends where lines do.
        let end = rest.find(ends).or_else(|| rest.find('\n')).unwrap_or(rest.len());
        let (line, behind) = rest.split_at(end);
        let at = number + 1;
        number += 1 + line.matches('\n').count();
        rest = behind.strip_prefix('\n').unwrap_or(behind);
        Some((at, line))
    })
}

/// The parts of `PREROUTING ACCEPT [12:345]`; chains that are not built in have no policy.
fn policy(text: &str) -> Option<Policy> {
    let mut words = text.split(' ');
    let (chain, policy) = (words.next()?.to_owned(), words.next().filter(|policy| *policy != "-")?.to_owned());
    Some(Policy { chain, policy, counter: counter_of(words.next()?.strip_prefix('[')?.strip_suffix(']')?)? })
}

/// `12:345`.
pub(crate) fn counter_of(text: &str) -> Option<Counter> {
    let (packets, bytes) = text.split_once(':')?;
    Some(Counter { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? })
}

/// ``# Table `nat' is incompatible, use 'nft' tool.`` stands in the place of such a table.
fn incompatible(comment: &str) -> Result<(), SaveError> {
    let name = comment.strip_prefix(" Table `").and_then(|rest| rest.split_once("' is incompatible"));
    match name {
        Some((name, _)) if Table::ALL.iter().any(|table| table.name() == name) => {
            Err(SaveError::Incompatible(name.to_owned()))
        }
        _ => Ok(()),
    }
}

/// The parts of `[12:345] -A CHAIN …`; without counters where they were not asked for.
fn appended(line: &str) -> Option<(Counter, &str, &str)> {
    let (counter, rest) = match line.strip_prefix('[') {
        Some(rest) => {
            let (counts, rest) = rest.split_once("] ")?;
            (counter_of(counts)?, rest)
        }
        None => (Counter::default(), line),
    };
    let rest = rest.strip_prefix("-A ")?;
    let (chain, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((counter, chain, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::program::Attached;

    const SAVED: &str = "\
# Generated by iptables-save v1.8.9 on Tue Nov 24 23:27:30 2026
*filter
:FORWARD DROP [7:7]
[7:7] -A FORWARD -j DOCKER-USER
COMMIT
*nat
:PREROUTING ACCEPT [1:2]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:PORTFWD-DOCKER - [0:0]
:PORTFWD.PREROUTING - [0:0]
[3:4] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
[5:6] -A PREROUTING -j PORTFWD.PREROUTING
[0:0] -A OUTPUT -d 10.0.0.1/32 -j PORTFWD.OUTPUT
[7:8] -A PORTFWD.PREROUTING -j PORTFWD-DOCKER
-A PORTFWD-DOCKER -p tcp -m tcp --dport 80 -m mark --mark 0x1 -j RETURN
COMMIT
";

    #[test]
    fn only_what_is_ours_is_read() {
        let half = parse(SAVED, Family::Ipv4, &LabelNames::default()).expect("a dump");
        assert!(half.mangle.is_empty());
        let policies: Vec<(&str, u64)> =
            half.nat.policies.iter().map(|policy| (policy.chain.as_str(), policy.counter.packets)).collect();
        assert_eq!(policies, [("PREROUTING", 1), ("OUTPUT", 0)]);
        assert_eq!(half.nat.hooks.get(&Hook::Prerouting), Some(&Attached { first: false, times: 1 }));
        // What jumps under a condition is somebody else's wish.
        assert_eq!(half.nat.hooks.len(), 1);
        let entry = half.nat.chains.get("PORTFWD.PREROUTING").expect("there");
        assert_eq!(entry.rules, [Rule::jump("PORTFWD-DOCKER").into()]);
        assert_eq!(entry.counter(0), Counter { packets: 7, bytes: 8 });
        let docker = half.nat.chains.get("PORTFWD-DOCKER").expect("there");
        assert!(docker.rules.iter().all(|rule| rule.foreign.is_some()) && docker.rules.len() == 1);
    }

    #[test]
    fn a_comment_of_others_may_hold_line_ends() {
        let text = "*nat\n[1:2] -A INPUT -m comment --comment \"a\n-A PREROUTING -j PORTFWD.PREROUTING\nb \\\" c\" -j ACCEPT\n[1:2] -A PORTFWD-X -j RETURN\nx\n";
        assert_eq!(
            parse(text, Family::Ipv4, &LabelNames::default()),
            Err(SaveError::Line(6, "x".into())),
            "the line is counted as it is in the dump"
        );
        let half = parse(text.trim_end_matches("x\n"), Family::Ipv4, &LabelNames::default()).expect("a dump");
        assert!(half.nat.hooks.is_empty() && half.nat.chains.len() == 1);
        let named = "*nat\n[0:0] -A PREROUTING -i a\"b -j ACCEPT\n[0:0] -A PREROUTING -j PORTFWD.PREROUTING\nCOMMIT\n";
        let half = parse(named, Family::Ipv4, &LabelNames::default()).expect("a dump");
        assert_eq!(half.nat.hooks.get(&Hook::Prerouting), Some(&Attached { first: false, times: 1 }));
        let open = parse("*nat\n-A INPUT -m comment --comment \"a\nCOMMIT\n", Family::Ipv4, &LabelNames::default());
        assert_eq!(open, Ok(Half::default()));
    }

    #[test]
    fn what_is_no_dump_is_an_error() {
        let read = |text: &str| parse(text, Family::Ipv4, &LabelNames::default());
        assert_eq!(
            read("# Table `nat' is incompatible, use 'nft' tool.\n"),
            Err(SaveError::Incompatible("nat".into()))
        );
        assert!(read("# Table `security' is incompatible, use 'nft' tool.\n").is_ok());
        for line in ["x", "[1:2 -A PORTFWD-X", "[1:x] -A PORTFWD-X", "[1:2] -I PORTFWD-X"] {
            assert_eq!(read(&format!("*nat\n{line}\n")), Err(SaveError::Line(2, line.into())));
        }
        assert_eq!(read("*raw\nanything\n"), Ok(Half::default()));
    }
}
