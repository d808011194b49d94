//! Reads the output of `iptables -S`, which is the output of iptables-save without the name of the table.

use std::collections::HashSet;

use super::save::{self, SaveError};
use super::wrap;
use crate::model::Family;
use crate::ruleset::table::Ruleset;

/// The built-in chains of tables, in the order of `iptables -S`.
const TABLES: [(&str, &[&str]); 4] = [
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
];

/// Returns true if a text looks like the output of `iptables -S`.
pub fn is_one(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines.next().is_some_and(|line| ["-P ", "-N ", "-A "].iter().any(|start| line.starts_with(start)))
}

/// The output of one command.
#[derive(Default)]
struct Section<'a> {
    /// The command, if the text contains it.
    command: &'a str,
    lines: Vec<(usize, &'a str)>,
}

/// Reads one or several outputs. `family` is the family of outputs without a command line.
///
/// # Errors
/// [`SaveError`], with the line.
pub fn parse(text: &str, family: Option<Family>) -> Result<Ruleset, SaveError> {
    let mut all = Ruleset { saved: true, ..Ruleset::default() };
    for section in sections(text) {
        let six = section.command.contains("ip6tables").then_some(Family::Ipv6);
        let four = section.command.contains("iptables").then_some(Family::Ipv4);
        let (save, numbers) = section.as_save();
        let number = |line: usize| numbers.get(line.saturating_sub(1)).copied().unwrap_or(line);
        let mut read = save::parse(&save, six.or(four).or(family)).map_err(|error| match error {
            SaveError::Line { line, text, why } => SaveError::Line { line: number(line), text, why },
            SaveError::CutShort { line, table } => SaveError::CutShort { line: number(line), table },
        })?;
        for table in &mut read.tables {
            table.chains.each(|chain| {
                for rule in &mut chain.rules {
                    rule.line = rule.line.map(number);
                }
            });
        }
        all.tables.append(&mut read.tables);
        all.gaps.append(&mut read.gaps);
    }
    Ok(all)
}

/// Splits a text. Each output begins with the policies of the built-in chains.
fn sections(text: &str) -> Vec<Section<'_>> {
    let mut sections = vec![Section::default()];
    let mut after_policies = false;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('#') {
            if let Some(command) = wrap::command(line) {
                sections.push(Section { command, lines: Vec::new() });
                after_policies = false;
            }
            continue;
        }
        let is_policy = line.starts_with("-P ");
        if is_policy && after_policies {
            sections.push(Section::default());
        }
        after_policies = !is_policy && (after_policies || !line.is_empty());
        if let Some(section) = sections.last_mut().filter(|_| !line.is_empty()) {
            section.lines.push((at + 1, line));
        }
    }
    sections.retain(|section| !section.lines.is_empty());
    sections
}

impl Section<'_> {
    /// Returns the name of the table: from the command, from the built-in chains, or from the targets.
    fn table(&self) -> &str {
        let mut words = self.command.split_ascii_whitespace().skip_while(|word| !matches!(*word, "-t" | "--table"));
        if let Some(name) = words.nth(1) {
            return name;
        }
        let chains: HashSet<&str> = self.starting_with("-P ").filter_map(|rest| rest.split(' ').next()).collect();
        if !chains.is_empty() {
            let is_of = |known: &[&str]| chains.iter().all(|chain| known.contains(chain));
            return TABLES
                .iter()
                .filter(|(_, known)| is_of(known))
                .min_by_key(|(_, known)| known.len())
                .map_or("filter", |(name, _)| name);
        }
        let translates = |rest: &str| {
            [" DNAT", " SNAT", " MASQUERADE", " REDIRECT", " NETMAP"]
                .iter()
                .any(|target| rest.contains(&format!("-j{target}")))
        };
        if self.starting_with("-A ").any(translates) { "nat" } else { "filter" }
    }

    fn starting_with<'a>(&'a self, start: &'static str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |(_, line)| line.strip_prefix(start))
    }

    /// Returns the text of iptables-save, and the original number of each line.
    fn as_save(&self) -> (String, Vec<usize>) {
        let first = self.lines.first().map_or(1, |(number, _)| *number);
        let (mut text, mut numbers) = (format!("*{}\n", self.table()), vec![first]);
        let mut declared = HashSet::new();
        let mut push = |number: usize, line: &str| {
            text.extend([line, "\n"]);
            numbers.push(number);
        };
        for (number, line) in &self.lines {
            let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
            let chain = rest.split(' ').next().unwrap_or_default();
            match command {
                "-P" => {
                    // `-P INPUT ACCEPT -c 5 300`
                    let policy = rest.split(' ').nth(1).unwrap_or_default();
                    push(*number, &format!(":{chain} {policy}"));
                }
                "-N" => push(*number, &format!(":{chain} -")),
                _ => {
                    if command == "-A" && !declared.contains(chain) {
                        push(*number, &format!(":{chain} -"));
                    }
                    push(*number, &counted(line).unwrap_or_else(|| (*line).to_owned()));
                }
            }
            declared.insert(chain);
        }
        push(self.lines.last().map_or(1, |(number, _)| *number), "COMMIT");
        (text, numbers)
    }
}

/// Moves the counters of `iptables -S -v`, `-c PACKETS BYTES`, to the place where iptables-save prints them.
fn counted(line: &str) -> Option<String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    line.match_indices(" -c ").find_map(|(at, found)| {
        let (before, rest) = (line.get(..at)?, line.get(at + found.len()..)?);
        let mut words = rest.splitn(3, ' ');
        let (packets, bytes) = (words.next()?, words.next()?);
        // A comment may contain ` -c `, between quotes.
        let is_outside = before.matches('"').count() % 2 == 0;
        let rest = words.next().map(|rest| format!(" {rest}")).unwrap_or_default();
        (is_outside && is_number(packets) && is_number(bytes)).then(|| format!("[{packets}:{bytes}] {before}{rest}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::table::TableFamily;

    fn read(text: &str) -> Ruleset {
        assert!(is_one(text), "{text}");
        parse(text, None).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    const NAT: &str = "-P PREROUTING ACCEPT\n-P INPUT ACCEPT\n-P OUTPUT ACCEPT\n-P POSTROUTING ACCEPT\n-N DOCKER\n\
                       -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
                       -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\n";
    const FILTER: &str = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-A FORWARD -o docker0 -j ACCEPT\n";

    #[test]
    fn the_built_in_chains_tell_the_table() {
        let save = "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n:DOCKER -\n\
                    -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
                    -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\nCOMMIT\n\
                    *filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A FORWARD -o docker0 -j ACCEPT\nCOMMIT\n";
        let without_lines = |mut rules: Ruleset| {
            let forget = |table: &mut crate::ruleset::table::Table| {
                table.chains.each(|chain| chain.rules.iter_mut().for_each(|rule| rule.line = None));
            };
            rules.tables.iter_mut().for_each(forget);
            rules
        };
        let both = read(&format!("{NAT}{FILTER}"));
        assert_eq!(both.tables[0].chains.named("DOCKER").expect("there").rules[0].line, Some(7));
        assert_eq!(both.tables[1].chains.named("FORWARD").expect("there").rules[0].line, Some(11));
        assert_eq!(without_lines(both), without_lines(save::parse(save, None).expect("a dump")));
        let names = |text: &str| read(text).tables.iter().map(|table| table.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names("-P PREROUTING ACCEPT\n-P OUTPUT ACCEPT\n"), ["raw"]);
        assert_eq!(
            names(
                "-P PREROUTING ACCEPT\n-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n-P POSTROUTING ACCEPT\n"
            ),
            ["mangle"]
        );
        assert_eq!(names("-N DOCKER\n-A DOCKER -j RETURN\n"), ["filter"]);
        assert_eq!(names("-A DOCKER -p tcp -j DNAT --to-destination 10.0.0.1\n"), ["nat"]);
    }

    #[test]
    fn a_command_line_tells_table_and_family() {
        let rules = read("# ip6tables -t mangle -S\n-P PREROUTING ACCEPT\n# iptables -S\n-P INPUT DROP\n");
        let found: Vec<_> = rules.tables.iter().map(|table| (table.family, &*table.name)).collect();
        assert_eq!(found, [(TableFamily::Ip6, "mangle"), (TableFamily::Ip, "filter")]);
    }

    #[test]
    fn counters_are_read() {
        let rules = read("-P INPUT ACCEPT -c 7 8\n-A INPUT -m comment --comment \"x -c 1 2\" -c 5 300 -j DROP\n");
        let rule = &rules.tables[0].chains.named("INPUT").expect("there").rules[0];
        assert_eq!(rule.comment.as_deref(), Some("x -c 1 2"));
        let counter = rules.tables[0].chains.named("INPUT").expect("there").rules[0].counter;
        assert_eq!(counter.map(|counter| (counter.packets, counter.bytes)), Some((5, 300)));
    }

    #[test]
    fn a_rule_that_is_not_understood_has_the_line_of_the_text() {
        let rules = parse(&format!("\n{NAT}-A DOCKER -p tcp --dport x -j DROP\n"), None).expect("the text is read");
        let rule = rules.tables[0].chains.named("DOCKER").and_then(|chain| chain.rules.last()).expect("the rule");
        assert_eq!((rule.line, rule.cases[0].region.is_known()), (Some(9), false));
    }
}
