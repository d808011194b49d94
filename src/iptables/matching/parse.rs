//! Reads the matches of a rule from text. The inverse of [`Match::write`].

use std::net::IpAddr;

use super::{KINDS, LabelNames, MaskedAddress, Match, PLAIN, STATUS, Side, States, TCP_FLAGS, WITH_PORTS};
use crate::iptables::protocol;
use crate::iptables::quoting::Words;
use crate::model::Family;

/// The matches of a rule in their order, up to its target.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// The matches in the order of the text.
    pub(crate) matches: Vec<Match>,
    /// The word before the target: true for `-g`, false for `-j`. `None` if the rule has no target.
    pub(crate) goto: Option<bool>,
}

/// Reads the matches of a rule. The next word is then the name of its target. A match that is not understood becomes
/// [`Match::Unknown`]. Returns `None` if the words are not a rule.
pub(crate) fn matches(words: &mut Words<'_>, family: Family, names: &LabelNames) -> Option<Parsed> {
    let mut parser = Parser { family, names, matches: Vec::new(), protocol: "", module: None };
    let mut not = false;
    let goto = loop {
        let Some(word) = words.next() else { break None };
        match word {
            word if not && (word == "!" || STOPS.contains(&word)) => return None,
            "!" => not = true,
            // The counters of `iptables -S -v`.
            "-c" | "--set-counters" if !not => {
                words.next()?;
                words.next()?;
            }
            "-j" | "--jump" | "-g" | "--goto" => break Some(matches!(word, "-g" | "--goto")),
            "-m" | "--match" => {
                parser.end_module();
                parser.module = Some(Module { name: words.next()?, has_options: false });
            }
            option => {
                parser.option(option, not, words);
                not = false;
            }
        }
    };
    parser.end_module();
    (!not).then_some(Parsed { matches: parser.matches, goto })
}

/// The extension of `-m`.
struct Module<'a> {
    name: &'a str,
    has_options: bool,
}

struct Parser<'a, 'w> {
    family: Family,
    names: &'a LabelNames,
    matches: Vec<Match>,
    /// The word after `-p`. iptables loads the extension of this name.
    protocol: &'w str,
    module: Option<Module<'w>>,
}

impl<'w> Parser<'_, 'w> {
    /// Most extensions without options still match something.
    fn end_module(&mut self) {
        if let Some(module) = self.module.take()
            && !module.has_options
            && !PLAIN.contains(&module.name)
        {
            self.matches.push(Match::Unknown(format!("-m {}", module.name).into()));
        }
    }

    fn option(&mut self, option: &'w str, not: bool, words: &mut Words<'w>) {
        let start = words.clone();
        if let Some(found) = self.built_in(option, not, words) {
            return self.matches.extend(found);
        }
        let of_module = self.module.as_ref().map(|module| module.name);
        for name in of_module.into_iter().chain(Some(self.protocol).filter(|name| !name.is_empty())) {
            *words = start.clone();
            if let Some(found) = self.extension(name, option, not, words) {
                self.mark_used(name);
                return self.matches.push(found);
            }
        }
        *words = start;
        let name = of_module.unwrap_or(self.protocol);
        self.mark_used(name);
        let mut text = if name.is_empty() || !option.starts_with("--") { String::new() } else { format!("-m {name} ") };
        text.push_str(if not { "! " } else { "" });
        text.push_str(option);
        // Nobody knows how many values an unknown option has.
        while let Some(next) = words.peek().filter(|next| !STOPS.contains(next)) {
            text = format!("{text} {next}");
            words.next();
        }
        self.matches.push(Match::Unknown(text.into()));
    }

    fn mark_used(&mut self, name: &str) {
        if let Some(module) = self.module.as_mut().filter(|module| module.name == name) {
            module.has_options = true;
        }
    }

    /// Reads an option of iptables(8) itself. The outer `None`: the option is not understood. The inner `None`: it
    /// matches every packet.
    fn built_in(&mut self, option: &str, not: bool, words: &mut Words<'w>) -> Option<Option<Match>> {
        let source = matches!(option, "-s" | "--source" | "--src");
        let input = matches!(option, "-i" | "--in-interface");
        Some(Some(match option {
            "-s" | "--source" | "--src" | "-d" | "--destination" | "--dst" => {
                let networks: Option<_> = words.next()?.split(',').map(|text| masked(text, self.family)).collect();
                Match::Address { source, not, networks: networks? }
            }
            "-i" | "--in-interface" | "-o" | "--out-interface" => {
                Match::Interface { input, not, name: words.next()?.into() }
            }
            "-p" | "--protocol" => {
                let name = words.next()?;
                self.protocol = name;
                match name {
                    "all" | "0" | "ip" => return Some(None),
                    name => Match::Protocol { not, number: protocol::number(name)? },
                }
            }
            _ => return None,
        }))
    }

    /// Reads an option of the extension `name`.
    fn extension(&self, name: &str, option: &str, not: bool, words: &mut Words<'w>) -> Option<Match> {
        let source = option.starts_with("--s");
        Some(match (name, option) {
            ("multiport", "--sports" | "--source-ports" | "--dports" | "--destination-ports" | "--ports") => {
                let side = match source {
                    true => Side::Source,
                    false if option == "--ports" => Side::Either,
                    false => Side::Destination,
                };
                let ranges: Option<_> = words.next()?.split(',').map(ports).collect();
                Match::Multiport { side, not, ranges: ranges? }
            }
            (_, "--sport" | "--source-port" | "--dport" | "--destination-port") => {
                let number = protocol::number(name)?;
                WITH_PORTS.iter().find(|(_, other)| *other == number)?;
                Match::Port { protocol: number, source, not, ports: ports(words.next()?)? }
            }
            ("tcp" | "6", "--syn") => Match::TcpFlags { not, mask: 0b1_0111, set: 2 },
            ("tcp" | "6", "--tcp-flags") => {
                let (mask, set) = (names(&TCP_FLAGS, words.next()?)?, names(&TCP_FLAGS, words.next()?)?);
                Match::TcpFlags { not, mask, set }
            }
            // The types of one interface are others than those of the host.
            ("addrtype", "--src-type" | "--dst-type") if !words.is_before("--limit-iface-", STOPS) => {
                let bit = |one: &str| KINDS.iter().position(|name| *name == one).map(|kind| 1 << kind);
                let kinds = words.next()?.split(',').map(bit).try_fold(0u16, |all, bit| Some(all | bit?));
                Match::AddressType { source, not, kinds: kinds? }
            }
            ("conntrack", "--ctstate") | ("state", "--state") => {
                Match::State { not, states: States(names(&States::NAMES, words.next()?)?) }
            }
            ("conntrack", "--ctorigdst") => {
                Match::OriginalDestination { not, network: masked(words.next()?, self.family)? }
            }
            ("conntrack", "--ctorigdstport") => Match::OriginalPort { not, ports: ports(words.next()?)? },
            ("conntrack", "--ctstatus") => Match::Status { not, bits: names(&STATUS, words.next()?)? },
            ("conntrack", "--ctdir") => match words.next()? {
                "ORIGINAL" => Match::Direction { reply: not },
                "REPLY" => Match::Direction { reply: !not },
                _ => return None,
            },
            ("mark" | "connmark", "--mark") => {
                let (value, mask) = mark(words.next()?)?;
                Match::Mark { connection: name == "connmark", not, value, mask }
            }
            ("iprange", "--src-range" | "--dst-range") => {
                let text = words.next()?;
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let address = |text: &str| address(text, self.family);
                Match::Range { source, not, first: address(first)?, last: address(last)? }
            }
            ("connlabel", "--label") => {
                let bit = self.names.bit(words.next()?)?;
                match (not, words.take_if("--set")) {
                    (false, true) => Match::SetLabel(bit),
                    (true, true) => return None,
                    (not, false) => Match::Label { bit, not },
                }
            }
            ("comment", "--comment") if !not => Match::Comment(words.next()?.into()),
            _ => return None,
        })
    }
}

/// The words that end the values of an unknown option.
const STOPS: &[&str] = &["-m", "--match", "-j", "--jump", "-g", "--goto"];

/// Combines the bits of names that are separated by commas.
fn names<T: Copy + Default + std::ops::BitOr<Output = T>>(known: &[(&str, T)], text: &str) -> Option<T> {
    let bit = |one: &str| known.iter().find(|(name, _)| *name == one).map(|(_, bit)| *bit);
    text.split(',').map(bit).try_fold(T::default(), |all, bit| Some(all | bit?))
}

fn address(text: &str, family: Family) -> Option<IpAddr> {
    text.parse().ok().filter(|address| Family::of_address(*address) == family)
}

/// Reads `ADDRESS`, `ADDRESS/LENGTH` or `ADDRESS/MASK`.
fn masked(text: &str, family: Family) -> Option<MaskedAddress> {
    let (first, rest) = text.split_once('/').map_or((text, None), |(first, rest)| (first, Some(rest)));
    let width: u32 = if family == Family::Ipv4 { 32 } else { 128 };
    let mask = match rest {
        Some(mask) if mask.contains(['.', ':']) => address(mask, family)?,
        rest => {
            let length = rest.map_or(Some(width), |rest| rest.parse().ok()).filter(|length| *length <= width)?;
            match family {
                Family::Ipv4 => IpAddr::from(u32::MAX.checked_shl(width - length).unwrap_or(0).to_be_bytes()),
                Family::Ipv6 => IpAddr::from(u128::MAX.checked_shl(width - length).unwrap_or(0).to_be_bytes()),
            }
        }
    };
    Some(MaskedAddress { address: address(first, family)?, mask })
}

/// Reads `80`, `80:90`, `:90` or `80:`. A missing end is the first or the last port.
fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str, open: u16| if text.is_empty() { Some(open) } else { text.parse().ok() };
    port(first, 0).zip(port(last, u16::MAX)).filter(|_| !text.is_empty())
}

/// Reads `0x1/0xff`: a value and a mask. Without a mask all bits are compared.
pub(crate) fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    Some((number(value)?, mask.map_or(Some(u32::MAX), number)?))
}
