//! A rule of iptables(8): its matches and its target.
//!
//! [`Rule::write_to`] writes a rule for iptables-restore. [`Rule::parse`] reads the output of iptables-save.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::matching;
use super::quoting::{self, Words};
use crate::model::rule_comment::format_comment;
use crate::model::{Comment, Family, IfName, PortRange, Protocol, SetName};

pub use super::matching::{LabelNames, Match, Side, States};
pub use super::target::{Destination, DestinationPort, Target};

/// The interface that a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Interface {
    /// True if the match is negated with `!`.
    pub not: bool,
    /// The name of the interface.
    pub name: IfName,
}

/// The protocol that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A protocol with ports.
    Ports(Protocol),
    /// ICMP for IPv4.
    Icmp,
}

/// A rule of iptables(8). A field that is `None` matches every packet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// `-s`: the network of the source address.
    pub source: Option<IpNetwork>,
    /// `-d`: the network of the destination address.
    pub destination: Option<IpNetwork>,
    /// `-i`: the ingress interface.
    pub input: Option<Interface>,
    /// `-o`: the egress interface.
    pub output: Option<Interface>,
    /// `-p`: the protocol.
    pub protocol: Option<Transport>,
    /// `--dport`: the destination ports.
    pub ports: Option<PortRange>,
    /// `-m multiport --dports`: the complete port range of the forward. `None` if the rule serves the complete range.
    pub part_of: Option<PortRange>,
    /// The matches of extensions, in the order of the rule's text.
    pub matches: Vec<Match>,
    /// `-j`: the target. `None` if the rule only sets labels.
    pub target: Option<Target>,
    /// The text of a rule that portfwd does not write. If this field is set, all other fields are empty.
    pub foreign: Option<String>,
}

impl Rule {
    /// Returns a rule that jumps to `chain` with every packet.
    pub fn jump(chain: &str) -> Self {
        Self::with_target(Target::Jump(chain.into()))
    }

    /// Returns a rule that applies `target` to every packet.
    pub fn with_target(target: Target) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    /// Appends a match to the rule.
    #[must_use]
    pub fn with_match(mut self, more: Match) -> Self {
        self.matches.push(more);
        self
    }

    /// Returns the comment, if the rule has one.
    pub fn comment(&self) -> Option<&Arc<str>> {
        self.matches.iter().find_map(|found| match found {
            Match::Comment(text) => Some(text),
            _ => None,
        })
    }

    /// Returns the labels that the rule sets.
    pub fn labels(&self) -> impl Iterator<Item = u8> {
        self.matches.iter().filter_map(|found| match found {
            Match::SetLabel(bit) => Some(*bit),
            _ => None,
        })
    }

    /// Returns the chain that the rule jumps to, if the target is a jump.
    pub fn jump_target(&self) -> Option<&Arc<str>> {
        match &self.target {
            Some(Target::Jump(chain)) => Some(chain),
            _ => None,
        }
    }

    /// Appends the rule as text, with a space before each word.
    pub fn write_to(&self, out: &mut String) {
        // Writing to a `String` cannot fail.
        let written = self.write(out);
        debug_assert!(written.is_ok());
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        if let Some(words) = &self.foreign {
            return write!(out, " {words}");
        }
        if let Some(source) = self.source {
            write!(out, " -s {source}")?;
        }
        if let Some(destination) = self.destination {
            write!(out, " -d {destination}")?;
        }
        for (flag, interface) in [(" -i ", &self.input), (" -o ", &self.output)] {
            if let Some(Interface { not, name }) = interface {
                out.push_str(if *not { " !" } else { "" });
                out.push_str(flag);
                quoting::push_quoted(name.as_str(), out);
            }
        }
        match self.protocol {
            Some(Transport::Ports(protocol)) => write!(out, " -p {protocol}")?,
            Some(Transport::Icmp) => out.push_str(" -p icmp"),
            None => {}
        }
        if let Some(ports) = self.ports {
            // UDP-Lite is the only protocol without its own match extension.
            let lite = self.protocol == Some(Transport::Ports(Protocol::Udplite));
            out.push_str(if lite { " -m multiport --dports " } else { " --dport " });
            write_ports(ports, out)?;
        }
        if let Some(range) = self.part_of {
            out.push_str(" -m multiport --dports ");
            write_ports(range, out)?;
        }
        for found in &self.matches {
            found.write(out)?;
        }
        match &self.target {
            Some(target) => target.write(out),
            None => Ok(()),
        }
    }

    /// Reads a rule. The inverse of [`Rule::write_to`]. Keeps the text of a rule that portfwd does not write.
    pub fn parse(text: &str, family: Family, names: &LabelNames) -> Self {
        let read = quoting::split(text).and_then(|words| Self::read(&mut Words::new(&words), family, names));
        read.unwrap_or_else(|| Self { foreign: Some(text.trim_matches(' ').to_owned()), ..Self::default() })
    }

    fn read(words: &mut Words<'_>, family: Family, names: &LabelNames) -> Option<Self> {
        let parsed = matching::parse::matches(words, family, names)?;
        let mut rule = Self::default();
        for found in parsed.matches {
            rule.take(found)?;
        }
        match parsed.goto {
            None => {}
            Some(false) => rule.target = Some(Target::read(words, family)?),
            Some(true) => return None,
        }
        Some(rule)
    }

    /// Adds a match. Returns `None` for a match that portfwd does not write.
    fn take(&mut self, found: Match) -> Option<()> {
        match found {
            Match::Address { source, not: false, networks } => {
                let [network] = *networks else { return None };
                let network = IpNetwork::with_netmask(network.address, network.mask).ok()?;
                *(if source { &mut self.source } else { &mut self.destination }) = Some(network);
            }
            Match::Interface { input, not, name } => {
                let name = IfName::try_from(String::from(name)).ok()?;
                *(if input { &mut self.input } else { &mut self.output }) = Some(Interface { not, name });
            }
            Match::Protocol { not: false, number: 1 } => self.protocol = Some(Transport::Icmp),
            Match::Protocol { not: false, number } => {
                self.protocol = Some(Transport::Ports(Protocol::from_number(number)?));
            }
            Match::Port { source: false, not: false, ports, .. } => {
                self.ports = Some(PortRange::new(ports.0, ports.1)?);
            }
            Match::Multiport { side: Side::Destination, not: false, ranges } => {
                let [(first, last)] = *ranges else { return None };
                let slot = if self.ports.is_none() { &mut self.ports } else { &mut self.part_of };
                if slot.replace(PortRange::new(first, last)?).is_some() {
                    return None;
                }
            }
            Match::State { not: false, states: States::NEW | States::NOT_ESTABLISHED } => self.matches.push(found),
            found if found == Match::LOCAL_DESTINATION => self.matches.push(found),
            Match::Range { not: false, .. } | Match::Label { .. } | Match::SetLabel(_) | Match::Comment(_) => {
                self.matches.push(found);
            }
            _ => return None,
        }
        Some(())
    }
}

fn write_ports(ports: PortRange, out: &mut String) -> fmt::Result {
    if ports.is_single() { write!(out, "{}", ports.first()) } else { write!(out, "{}:{}", ports.first(), ports.last()) }
}

/// Returns the comment of a binding. All rules with the same comment can share the text.
pub fn shared_comment(set: &SetName, remark: Option<&Comment>) -> Arc<str> {
    format_comment(set, remark.map(Comment::as_str)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, family: Family) -> Rule {
        Rule::parse(text, family, &LabelNames::default())
    }

    /// The output of iptables-save 1.8.9 for portfwd's rules. iptables-nft and iptables-legacy print the same text.
    const SAVED: [&str; 22] = [
        "-m iprange --dst-range 10.0.0.1-10.0.0.9 -j PORTFWD.0a-0123456789ab",
        "-j PORTFWD.PREROUTING",
        "-i eth0 -o eth0 -m connlabel --label \"120\" --set",
        "-m conntrack --ctstate NEW -m connlabel --label \"121\" -m connlabel ! --label \"119\" -j PORTFWD.HAIRPIN",
        "-d 10.0.0.0/8 ! -i docker0 -o docker0 -m conntrack --ctstate INVALID,NEW,UNTRACKED -m comment --comment \"web: isolate docker0 DOCKER\" -j PORTFWD.ISOLATE",
        "-m addrtype --dst-type LOCAL -m comment --comment web -j PORTFWD-DOCKER",
        "-p tcp -m tcp --dport 1000:1999 -j PORTFWD.0a-t1000-1999",
        "-d 192.0.2.1/32 -i eth0 -p tcp -m tcp --dport 80 -m comment --comment \"cli: a \\\"b\\\" \\'c\\' \\\\ d\" -j DNAT --to-destination 10.0.0.2:80",
        "-s 198.51.100.0/24 -p udp -m udp --dport 1000:1001 -j DNAT --to-destination 10.0.0.2",
        "-p tcp -m tcp --dport 1000:1010 -j DNAT --to-destination 10.0.0.2:2000-2010/1000",
        "-p tcp -m tcp --dport 1003 -m multiport --dports 1000:1010 -j REDIRECT --to-ports 2003",
        "-p sctp -m sctp --dport 9 -m iprange --src-range 0.0.0.0-255.255.255.255 -j REDIRECT",
        "-p dccp -m dccp --dport 9 -j REDIRECT",
        "-p udplite -m multiport --dports 9 -j DNAT --to-destination 10.0.0.2",
        "-s 10.0.0.0/24 -o eth0 -p tcp -j SNAT --to-source 203.0.113.5-203.0.113.9:1024-2047 --random",
        "-s 10.0.0.0/24 -o eth0 -p icmp -j SNAT --to-source 203.0.113.5:1024-2047 --random-fully",
        "-o eth0 -j SNAT --to-source 203.0.113.5 --persistent",
        "-s 10.0.0.0/24 ! -o eth0 -j MASQUERADE",
        "-s 10.0.0.0/24 -j NETMAP --to 192.0.2.0/24",
        "-o lo -j RETURN",
        "! -i lo -s 127.0.0.0/8 -j DROP",
        "-d 127.0.0.0/8 -m comment --comment \"\" -j DROP",
    ];

    #[test]
    fn iptables_save_output_round_trips() {
        for text in SAVED {
            let rule = read(text, Family::Ipv4);
            assert_eq!(rule.foreign, None, "{text}");
            let mut again = String::new();
            rule.write_to(&mut again);
            assert_eq!(read(&again, Family::Ipv4), rule, "{text}: {again}");
        }
        for text in [
            "-d 2001:db8::1/128 -p tcp -m tcp --dport 1000 -j DNAT --to-destination [fd00::2]:80",
            "-p tcp -m tcp --dport 1000:1010 -j DNAT --to-destination [fd00::2]:2000-2010/1000",
            "-m iprange --src-range ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff -j DNAT --to-destination fd00::2",
            "-s fd00::/64 -o eth0 -p tcp -j SNAT --to-source [2001:db8::5-2001:db8::9]:1024-2047 --random",
            "-s fd00::/64 -j NETMAP --to 2001:db8::/64",
        ] {
            let rule = read(text, Family::Ipv6);
            assert_eq!(rule.foreign, None, "{text}");
            let mut again = String::new();
            rule.write_to(&mut again);
            assert_eq!(read(&again, Family::Ipv6), rule, "{text}: {again}");
        }
    }

    #[test]
    fn foreign_rules_keep_their_text() {
        for text in [
            "-p tcp -m tcp --dport 80 -j DOCKER",
            "-p tcp -m tcp --sport 80 -j DROP",
            "-m mark --mark 0x1 -j RETURN",
            "-j DNAT --to-destination 10.0.0.2:80-90",
            "-j DNAT --to-destination 10.0.0.2:80 --random",
            "-s fd00::/64 -j DROP",
            "! -s 10.0.0.0/8 -j DROP",
            "-j",
            "-m",
            "-m comment --comment \"open",
        ] {
            let rule = read(text, Family::Ipv4);
            assert_eq!(rule.foreign.as_deref(), Some(text));
            let mut again = String::new();
            rule.write_to(&mut again);
            assert_eq!(again.trim(), text);
        }
    }

    #[test]
    fn every_spelling_of_the_full_address_range_means_any_source() {
        for (text, family) in [
            ("-m iprange --src-range 0.0.0.0-255.255.255.255", Family::Ipv4),
            ("-m iprange --src-range ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Family::Ipv6),
            ("-m iprange --src-range 0::0-FFFF:ffff:ffff:ffff:ffff:ffff:255.255.255.255", Family::Ipv6),
        ] {
            assert_eq!(read(text, family), Rule::default().with_match(Match::any_source(family)), "{text}");
        }
        assert_ne!(
            read("-m iprange --dst-range 0.0.0.0-255.255.255.255", Family::Ipv4).matches,
            [Match::any_source(Family::Ipv4)]
        );
    }

    #[test]
    fn only_spaces_separate_words() {
        for text in ["-j RETURN\t", "\u{2003}-j RETURN", "-o eth0\u{2003}"] {
            let rule = read(&format!(" {text} "), Family::Ipv4);
            let mut again = String::new();
            rule.write_to(&mut again);
            assert_eq!(read(&again, Family::Ipv4), rule, "{text:?}: {again:?}");
            assert_ne!(rule, Rule::with_target(Target::Return));
        }
    }

    #[test]
    fn label_names_are_resolved() {
        let names = LabelNames::read("# bits\n117\tasked\n5 eth-in\nnot a line\n");
        let rule = Rule::parse("-m connlabel --label \"asked\" --set", Family::Ipv4, &names);
        assert_eq!(rule, Rule::default().with_match(Match::SetLabel(117)));
        assert!(Rule::parse("-m connlabel --label \"other\"", Family::Ipv4, &names).foreign.is_some());
    }
}
