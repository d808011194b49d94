//! Reads the targets of iptables(8) rules from text.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::iptables::matching;
use crate::iptables::quoting::Words;
use crate::model::Family;
use crate::ruleset::region::Field;
use crate::ruleset::reject::Rejection;
use crate::ruleset::table::{Action, Rewrite};

/// Targets that give no verdict and set no mark. Source: iptables-extensions(8).
const HARMLESS: [&str; 22] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNSECMARK",
    "DSCP",
    "ECN",
    "HL",
    "IDLETIMER",
    "LED",
    "LOG",
    "NFLOG",
    "RATEEST",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
    "ACCOUNT",
];

/// Reads the options of a target. Returns the actions of the target.
pub(super) fn read(
    name: &str,
    goes: bool,
    is_chain: impl Fn(&str) -> bool,
    words: &mut Words<'_>,
    family: Family,
) -> Result<Vec<Action>, &'static str> {
    if goes {
        return Ok(vec![Action::Goto(name.into())]);
    }
    let option = |words: &mut Words<'_>, wanted: &[&str]| {
        // Other options, for example `--random`, can stand before and after.
        let mut value = None;
        while let Some(word) = words.next() {
            if wanted.contains(&word) {
                value = words.next().map(str::to_owned);
            }
        }
        value
    };
    let rewritten = |words: &mut Words<'_>, wanted: &[&str]| {
        option(words, wanted)
            .map_or(Some(Rewrite::default()), |to| rewrite(&to, family))
            .ok_or("its new address is not one")
    };
    let ports = |words: &mut Words<'_>| -> Result<Rewrite, &'static str> {
        let ports = option(words, &["--to-ports", "--to-port"]);
        let ports = ports.map_or(Some(None), |text| span(&text).map(Some)).ok_or("its new ports are none")?;
        Ok(Rewrite { ports, ..Rewrite::default() })
    };
    Ok(vec![match name {
        "ACCEPT" => Action::Accept,
        "DROP" => Action::Drop,
        "REJECT" => {
            let answer = option(words, &["--reject-with"]);
            let default = if family == Family::Ipv4 { "icmp-port-unreachable" } else { "icmp6-port-unreachable" };
            Action::Reject(Rejection::of_option(answer.as_deref().unwrap_or(default)))
        }
        "RETURN" => Action::Return,
        "QUEUE" | "NFQUEUE" => Action::Queue,
        "DNAT" => Action::Dnat(rewritten(words, &["--to-destination"])?),
        "SNAT" => Action::Snat(rewritten(words, &["--to-source"])?),
        "REDIRECT" => Action::Redirect(ports(words)?),
        "MASQUERADE" => Action::Masquerade(ports(words)?),
        "NETMAP" => netmap(&option(words, &["--to"]).ok_or("NETMAP has no network")?, family)
            .ok_or("its new network is none")?,
        "MARK" => return marks(Field::Mark, words),
        "CONNMARK" => return marks(Field::ConnectionMark, words),
        "NOTRACK" => Action::Untracked,
        "HMARK" => Action::MarkUnknown { field: Field::Mark },
        // The entry of a set can contain a mark.
        "SET" if words.any("--map-set") => Action::MarkUnknown { field: Field::Mark },
        "CT" => return Ok(tracking(words)),
        "TPROXY" => Action::Proxy(proxy(words)),
        chain if is_chain(chain) => Action::Jump(chain.into()),
        harmless if HARMLESS.contains(&harmless) => return Ok(Vec::new()),
        _ => {
            let mut text = format!("-j {name}");
            while let Some(word) = words.next() {
                text = format!("{text} {word}");
            }
            Action::Unknown(text.into())
        }
    }])
}

/// Reads the options of TPROXY.
fn proxy(words: &mut Words<'_>) -> Rewrite {
    let mut rewrite = Rewrite::default();
    while let Some(word) = words.next() {
        match word {
            "--on-ip" => {
                let address = words.next().and_then(|text| text.parse::<IpAddr>().ok());
                rewrite.addresses = address.filter(|address| !address.is_unspecified()).map(|one| (one, one));
            }
            "--on-port" => rewrite.ports = words.next().and_then(span).filter(|(port, _)| *port > 0),
            _ => {}
        }
    }
    rewrite
}

/// Reads `ADDR[-ADDR][:PORT[-PORT][/BASE]]`, of IPv6 with brackets where there are ports.
fn rewrite(text: &str, family: Family) -> Option<Rewrite> {
    let (addresses, ports) = match (text.strip_prefix('['), family) {
        (Some(rest), Family::Ipv6) => {
            let (addresses, ports) = rest.split_once(']')?;
            (addresses, ports.strip_prefix(':'))
        }
        (None, Family::Ipv4) => {
            text.split_once(':').map_or((text, None), |(addresses, ports)| (addresses, Some(ports)))
        }
        _ => (text, None),
    };
    let addresses = match addresses {
        "" => None,
        some => {
            let (first, last) = some.split_once('-').unwrap_or((some, some));
            // In IPv6 each end can have its own brackets.
            let address = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().ok();
            Some(address(first).zip(address(last))?)
        }
    };
    if addresses.is_some_and(|(first, last)| Family::of_address(first) != family || Family::of_address(last) != family)
    {
        return None;
    }
    let (ports, base) =
        match ports.map(|text| text.split_once('/').map_or((text, None), |(ports, base)| (ports, Some(base)))) {
            Some((ports, base)) => (Some(span(ports)?), base.map_or(Some(None), |base| base.parse().ok().map(Some))?),
            None => (None, None),
        };
    Some(Rewrite { addresses, ports, base, prefix: None })
}

fn span(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn mark(text: &str) -> Option<(u128, u128)> {
    matching::parse::mark(text).map(|(value, mask)| (value.into(), mask.into()))
}

/// Reads an address or a network of a family.
fn network(text: &str, family: Family) -> Option<IpNetwork> {
    let network: IpNetwork = match text.split_once('/') {
        Some((address, mask)) if mask.contains(['.', ':']) => {
            IpNetwork::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()?
        }
        _ => text.parse().ok()?,
    };
    (Family::of_network(network) == family).then_some(network)
}

/// Reads the network of NETMAP. The hook decides between source and destination.
fn netmap(text: &str, family: Family) -> Option<Action> {
    let network = network(text, family)?;
    let addresses = Some((network.network(), network.broadcast()));
    Some(Action::Netmap(Rewrite { addresses, prefix: Some(network.prefix()), ..Rewrite::default() }))
}

fn marks(field: Field, words: &mut Words<'_>) -> Result<Vec<Action>, &'static str> {
    let wrong = "a mark is `VALUE[/MASK]`";
    let all = u128::from(u32::MAX);
    let Some(option) = words.next() else { return Err("a mark has no value") };
    let set = |mask, value| vec![Action::Mark { field, mask, value }];
    Ok(match option {
        "--set-xmark" => {
            let (value, mask) = words.next().and_then(mark).ok_or(wrong)?;
            set(mask, value)
        }
        "--set-mark" => {
            let (value, mask) = words.next().and_then(mark).ok_or(wrong)?;
            set(mask | value, value)
        }
        "--or-mark" => words.next().and_then(mark).map(|(value, _)| set(value, value)).ok_or(wrong)?,
        "--and-mark" => words.next().and_then(mark).map(|(value, _)| set(all & !value, 0)).ok_or(wrong)?,
        "--xor-mark" => words.next().and_then(mark).map(|(value, _)| set(0, value)).ok_or(wrong)?,
        "--save-mark" => vec![copy(Field::ConnectionMark, words)],
        "--restore-mark" => vec![copy(Field::Mark, words)],
        _ => return Err("what is done to the mark is not known"),
    })
}

/// Copies a mark. With a mask the mark keeps other bits.
fn copy(to: Field, words: &mut Words<'_>) -> Action {
    let mut whole = true;
    while let Some(word) = words.next() {
        let all = words.next().and_then(mark).is_some_and(|(mask, _)| mask == u32::MAX.into());
        whole &= matches!(word, "--mask" | "--nfmask" | "--ctmask") && all;
    }
    if whole { Action::CopyMark { to } } else { Action::MarkUnknown { field: to } }
}

/// Reads the options of `-j CT`. `--notrack` is understood. The connections of another zone are unknown.
fn tracking(words: &mut Words<'_>) -> Vec<Action> {
    let mut text = "-j CT".to_owned();
    let (mut untracked, mut zone) = (false, false);
    while let Some(word) = words.next() {
        untracked |= word == "--notrack";
        zone |= word.starts_with("--zone");
        text = format!("{text} {word}");
    }
    match (untracked, zone) {
        (true, _) => vec![Action::Untracked],
        (false, true) => vec![Action::Unknown(text.into())],
        (false, false) => Vec::new(),
    }
}
