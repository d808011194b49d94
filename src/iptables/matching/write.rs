//! Writes a match, in the syntax of iptables-save(8). The inverse of [`super::parse`].

use std::fmt::{self, Write as _};

use super::{KINDS, MaskedAddress, Match, STATUS, Side, States, TCP_FLAGS, WITH_PORTS};
use crate::iptables::quoting;

impl Match {
    /// Appends the match as text, with a space before each word.
    pub(in crate::iptables) fn write(&self, out: &mut String) -> fmt::Result {
        let side = |source: bool| if source { "src" } else { "dst" };
        let sign = |not: bool| if not { " !" } else { "" };
        match self {
            Self::Address { source, not, networks } => {
                let networks: Vec<String> = networks.iter().map(MaskedAddress::to_string).collect();
                write!(out, "{} {} {}", sign(*not), if *source { "-s" } else { "-d" }, networks.join(","))
            }
            Self::Interface { input, not, name } => {
                write!(out, "{} {} ", sign(*not), if *input { "-i" } else { "-o" })?;
                quoting::push_quoted(name, out);
                Ok(())
            }
            Self::Protocol { not, number } => match WITH_PORTS.iter().find(|(_, other)| other == number) {
                Some((name, _)) => write!(out, "{} -p {name}", sign(*not)),
                None => write!(out, "{} -p {number}", sign(*not)),
            },
            Self::Port { protocol, source, not, ports } => {
                let name = WITH_PORTS.iter().find(|(_, number)| number == protocol).map_or("tcp", |(name, _)| name);
                let option = if *source { "--sport" } else { "--dport" };
                write!(out, " -m {name}{} {option} {}", sign(*not), range(*ports))
            }
            Self::Multiport { side, not, ranges } => {
                let option = match side {
                    Side::Source => "--sports",
                    Side::Destination => "--dports",
                    Side::Either => "--ports",
                };
                let ranges: Vec<String> = ranges.iter().map(|ports| range(*ports)).collect();
                write!(out, " -m multiport{} {option} {}", sign(*not), ranges.join(","))
            }
            Self::TcpFlags { not, mask, set } => {
                let flags = |bits: u8| names(&TCP_FLAGS[..6], |bit| bits & bit > 0, "NONE");
                write!(out, " -m tcp{} --tcp-flags {} {}", sign(*not), flags(*mask), flags(*set))
            }
            Self::AddressType { source, not, kinds } => {
                let known = KINDS.into_iter().enumerate().filter(|(number, _)| kinds >> number & 1 > 0);
                let names: Vec<&str> = known.map(|(_, name)| name).collect();
                write!(out, " -m addrtype{} --{}-type {}", sign(*not), side(*source), names.join(","))
            }
            Self::State { not, states } => {
                let names = names(&States::NAMES, |bit| states.0 & bit > 0, "");
                write!(out, " -m conntrack{} --ctstate {names}", sign(*not))
            }
            Self::OriginalDestination { not, network } => {
                write!(out, " -m conntrack{} --ctorigdst {network}", sign(*not))
            }
            Self::OriginalPort { not, ports } => {
                write!(out, " -m conntrack{} --ctorigdstport {}", sign(*not), range(*ports))
            }
            Self::Status { not, bits } => {
                let names = names(&STATUS[1..], |bit| bits & bit > 0, "NONE");
                write!(out, " -m conntrack{} --ctstatus {names}", sign(*not))
            }
            Self::Direction { reply } => {
                write!(out, " -m conntrack --ctdir {}", if *reply { "REPLY" } else { "ORIGINAL" })
            }
            Self::Mark { connection, not, value, mask } => {
                let name = if *connection { "connmark" } else { "mark" };
                write!(out, " -m {name}{} --mark {value:#x}/{mask:#x}", sign(*not))
            }
            Self::Range { source, not, first, last } => {
                write!(out, " -m iprange{} --{}-range {first}-{last}", sign(*not), side(*source))
            }
            Self::Label { bit, not } => write!(out, " -m connlabel{} --label {bit}", sign(*not)),
            Self::SetLabel(bit) => write!(out, " -m connlabel --label {bit} --set"),
            Self::Comment(text) => {
                out.push_str(" -m comment --comment ");
                quoting::push_quoted(text, out);
                Ok(())
            }
            Self::Unknown(text) => write!(out, " {text}"),
        }
    }
}

fn names<T: Copy>(known: &[(&str, T)], has: impl Fn(T) -> bool, none: &str) -> String {
    let names: Vec<&str> = known.iter().filter(|(_, bit)| has(*bit)).map(|(name, _)| *name).collect();
    if names.is_empty() { none.to_owned() } else { names.join(",") }
}

fn range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}:{last}") }
}

impl fmt::Display for MaskedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ipnetwork::IpNetwork::with_netmask(self.address, self.mask) {
            Ok(network) => write!(f, "{network}"),
            Err(_) => write!(f, "{}/{}", self.address, self.mask),
        }
    }
}

#[cfg(test)]
use crate::model::Family;

/// Matches as iptables-save prints them, but with `-m` before each option.
#[cfg(test)]
pub(super) const SAVED: &[(Family, &str)] = &[
    (Family::Ipv4, "! -s 10.0.0.0/8 -d 10.0.0.0/255.0.255.0 -i eth+ ! -o lo -p tcp"),
    (Family::Ipv6, "-s fd00::/64 ! -d fd00::/ffff::ffff -p 58"),
    (Family::Ipv4, "-p tcp -m tcp ! --sport 1:79 -m tcp --dport 80 -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"),
    (Family::Ipv4, "-p udp -m multiport ! --ports 80,443,5000:5010 -m multiport --sports 1 -m multiport --dports 2"),
    (Family::Ipv4, "-m addrtype --src-type UNICAST,LOCAL -m addrtype ! --dst-type BROADCAST"),
    (Family::Ipv4, "-m conntrack ! --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED,SNAT,DNAT"),
    (Family::Ipv4, "-m conntrack --ctorigdst 10.0.0.0/8 -m conntrack ! --ctorigdstport 1:9"),
    (
        Family::Ipv4,
        "-m conntrack --ctstatus EXPECTED,ASSURED -m conntrack ! --ctstatus NONE -m conntrack --ctdir REPLY",
    ),
    (Family::Ipv4, "-p sctp -m sctp --dport 9000 -m sctp ! --sport 1:9"),
    (Family::Ipv6, "-p dccp -m dccp --dport 80 -m dccp ! --sport 9"),
    (Family::Ipv6, "-p udp -m udp ! --dport 80 -m udp --sport 53"),
    (Family::Ipv4, "-m mark ! --mark 0x1/0xff -m connmark --mark 0x7/0xffffffff"),
    (Family::Ipv6, "-m iprange ! --dst-range fd00::1-fd00::9"),
    (Family::Ipv4, "-m connlabel ! --label 127 -m connlabel --label 3 --set -m comment --comment \"-j \\\" x\""),
    (Family::Ipv4, "-m set ! --match-set a src,dst -m rpfilter -m tcp --tcp-option 7"),
];

#[cfg(test)]
mod tests {
    use super::super::{LabelNames, parse};
    use super::SAVED;
    use crate::iptables::quoting::{Words, split};

    #[test]
    fn written_matches_read_the_same() {
        for (family, text) in SAVED {
            let read = |text: &str| {
                let words = split(text).expect(text);
                parse::matches(&mut Words::new(&words), *family, &LabelNames::default()).expect(text).matches
            };
            let (matches, mut written) = (read(text), String::new());
            matches.iter().for_each(|found| found.write(&mut written).expect("a string"));
            assert_eq!(written.trim(), *text);
            assert_eq!(read(&written), matches);
        }
    }
}
