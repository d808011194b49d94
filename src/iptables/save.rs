//! Reads portfwd's chains and jumps from the output of iptables-save(8). The inverse of [`super::restore`].

use std::sync::Arc;

use super::program::{FamilyRules, Hook, HookJump, PREFIX, Policy, Table};
use super::rule::{LabelNames, Rule};
use crate::model::{Counter, Family};

/// An error in the output of iptables-save.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaveError {
    /// A table contains rules that only nft(8) can create. iptables neither shows nor changes such a table.
    #[error("the table `{0}` contains rules that iptables cannot show")]
    Incompatible(String),
    /// A line has an unknown format.
    #[error("line {0} in the output of iptables-save cannot be read: `{1}`")]
    Line(usize, String),
}

/// Reads portfwd's chains, rules and jumps from the output of iptables-save.
///
/// # Errors
/// If a line has an unknown format, or if iptables-save cannot show one of portfwd's tables.
pub fn parse(text: &str, family: Family, names: &LabelNames) -> Result<FamilyRules, SaveError> {
    let mut half = FamilyRules::default();
    let mut table = None;
    // The index of the last rule in each built-in chain.
    let mut last_rules: Vec<(Hook, usize)> = Vec::new();
    for (number, line) in logical_lines(text) {
        // A name may end with other white space, so only spaces are trimmed.
        let line = line.trim_end_matches(' ');
        if let Some(comment) = line.strip_prefix('#') {
            check_compatible(comment)?;
        } else if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name);
            last_rules.clear();
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap_or_default();
            if let Some(table) = table {
                if name.starts_with(PREFIX) {
                    half.table_mut(table).chains.entry(name.into()).or_default();
                }
                half.table_mut(table).policies.extend(parse_policy(chain));
            }
        } else if let Some(table) = table.filter(|_| line != "COMMIT" && !line.is_empty()) {
            let (counter, chain, rest) = parse_append(line).ok_or_else(|| SaveError::Line(number, line.to_owned()))?;
            if let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.name() == chain) {
                let index = match last_rules.iter_mut().find(|(other, _)| *other == hook) {
                    Some((_, index)) => {
                        *index += 1;
                        *index
                    }
                    None => {
                        last_rules.push((hook, 0));
                        0
                    }
                };
                // Most rules of built-in chains belong to other programs. Only jumps to portfwd's chains are parsed.
                if rest.contains(PREFIX) && Rule::parse(rest, family, names) == Rule::jump(&hook.portfwd_chain()) {
                    let hooks = &mut half.table_mut(table).hooks;
                    let jump = hooks.entry(hook).or_insert(HookJump { first: index == 0, times: 0 });
                    jump.times += 1;
                }
            } else if chain.starts_with(PREFIX) {
                let chain = half.table_mut(table).chains.entry(Arc::from(chain)).or_default();
                chain.rules.push(Rule::parse(rest, family, names).into());
                chain.counters.push(counter);
            }
        }
    }
    Ok(half)
}

/// Splits the output of iptables-save into lines, with their numbers. A line with an open quote continues to the
/// closing quote. Comments of other programs may contain line ends.
pub(crate) fn logical_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let (mut rest, mut number) = (text, 0);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // iptables-save does not quote interface names, so a quote counts only after a space.
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
        // If a quote is never closed, the rule ends at the first line end, even inside the quote.
        let end = rest.find(ends).or_else(|| rest.find('\n')).unwrap_or(rest.len());
        let (line, remainder) = rest.split_at(end);
        let first = number + 1;
        number += 1 + line.matches('\n').count();
        rest = remainder.strip_prefix('\n').unwrap_or(remainder);
        Some((first, line))
    })
}

/// Reads the policy in `PREROUTING ACCEPT [12:345]`. Returns `None` for user-defined chains, which have no policy.
fn parse_policy(text: &str) -> Option<Policy> {
    let mut words = text.split(' ');
    let (chain, policy) = (words.next()?.to_owned(), words.next().filter(|policy| *policy != "-")?.to_owned());
    Some(Policy { chain, policy, counter: counter_of(words.next()?.strip_prefix('[')?.strip_suffix(']')?)? })
}

/// Reads a counter of the form `12:345`: packets and bytes.
pub(crate) fn counter_of(text: &str) -> Option<Counter> {
    let (packets, bytes) = text.split_once(':')?;
    Some(Counter { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? })
}

/// Returns an error for the comment ``# Table `nat' is incompatible, use 'nft' tool.``. iptables-save prints this
/// comment instead of a table.
fn check_compatible(comment: &str) -> Result<(), SaveError> {
    let name = comment.strip_prefix(" Table `").and_then(|rest| rest.split_once("' is incompatible"));
    match name {
        Some((name, _)) if Table::ALL.iter().any(|table| table.name() == name) => {
            Err(SaveError::Incompatible(name.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Reads a rule of the form `[12:345] -A CHAIN …`. The counter is missing if iptables-save ran without `-c`.
fn parse_append(line: &str) -> Option<(Counter, &str, &str)> {
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
    fn only_portfwd_chains_and_jumps_are_read() {
        let half = parse(SAVED, Family::Ipv4, &LabelNames::default()).expect("a dump");
        assert!(half.mangle.is_empty());
        let policies: Vec<(&str, u64)> =
            half.nat.policies.iter().map(|policy| (policy.chain.as_str(), policy.counter.packets)).collect();
        assert_eq!(policies, [("PREROUTING", 1), ("OUTPUT", 0)]);
        assert_eq!(half.nat.hooks.get(&Hook::Prerouting), Some(&HookJump { first: false, times: 1 }));
        // A jump with a condition does not count, because portfwd writes only jumps without conditions.
        assert_eq!(half.nat.hooks.len(), 1);
        let entry = half.nat.chains.get("PORTFWD.PREROUTING").expect("there");
        assert_eq!(entry.rules, [Rule::jump("PORTFWD-DOCKER").into()]);
        assert_eq!(entry.counter(0), Counter { packets: 7, bytes: 8 });
        let docker = half.nat.chains.get("PORTFWD-DOCKER").expect("there");
        assert!(docker.rules.iter().all(|rule| rule.foreign.is_some()) && docker.rules.len() == 1);
    }

    #[test]
    fn comments_of_other_programs_may_contain_line_ends() {
        let text = "*nat\n[1:2] -A INPUT -m comment --comment \"a\n-A PREROUTING -j PORTFWD.PREROUTING\nb \\\" c\" -j ACCEPT\n[1:2] -A PORTFWD-X -j RETURN\nx\n";
        assert_eq!(
            parse(text, Family::Ipv4, &LabelNames::default()),
            Err(SaveError::Line(6, "x".into())),
            "the line number counts the line ends inside of quotes"
        );
        let half = parse(text.trim_end_matches("x\n"), Family::Ipv4, &LabelNames::default()).expect("a dump");
        assert!(half.nat.hooks.is_empty() && half.nat.chains.len() == 1);
        let named = "*nat\n[0:0] -A PREROUTING -i a\"b -j ACCEPT\n[0:0] -A PREROUTING -j PORTFWD.PREROUTING\nCOMMIT\n";
        let half = parse(named, Family::Ipv4, &LabelNames::default()).expect("a dump");
        assert_eq!(half.nat.hooks.get(&Hook::Prerouting), Some(&HookJump { first: false, times: 1 }));
        let open = parse("*nat\n-A INPUT -m comment --comment \"a\nCOMMIT\n", Family::Ipv4, &LabelNames::default());
        assert_eq!(open, Ok(FamilyRules::default()));
    }

    #[test]
    fn malformed_input_is_an_error() {
        let read = |text: &str| parse(text, Family::Ipv4, &LabelNames::default());
        assert_eq!(
            read("# Table `nat' is incompatible, use 'nft' tool.\n"),
            Err(SaveError::Incompatible("nat".into()))
        );
        assert!(read("# Table `security' is incompatible, use 'nft' tool.\n").is_ok());
        for line in ["x", "[1:2 -A PORTFWD-X", "[1:x] -A PORTFWD-X", "[1:2] -I PORTFWD-X"] {
            assert_eq!(read(&format!("*nat\n{line}\n")), Err(SaveError::Line(2, line.into())));
        }
        assert_eq!(read("*raw\nanything\n"), Ok(FamilyRules::default()));
    }
}
