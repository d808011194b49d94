//! Prints regions and rewrites in the syntax of nft(8).

use std::fmt::Write as _;
use std::net::IpAddr;

use super::region::{Condition, Field, LOCAL, Region, State};
use super::set::{Set, address_of, name_of, number_of_name};
use super::table::{Action, Rewrite};
use crate::model::Family;
use crate::model::error::printable;

/// The maximum number of ranges that are printed for one set.
const MOST: usize = 16;

/// Protocol numbers and their names in nft(8).
const PROTOCOLS: [(u128, &str); 10] = [
    (1, "icmp"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "icmpv6"),
    (132, "sctp"),
    (136, "udplite"),
];

/// Returns the name of a protocol, or its number.
pub fn protocol(number: u128) -> String {
    let named = PROTOCOLS.iter().find(|(known, _)| *known == number);
    named.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// Returns the values of a field, for example `{ 80, 443 }`, or `!= 80` if that is shorter.
pub fn set(field: Field, set: &Set, family: Family) -> String {
    // The value 0 means "no interface" and is not printed.
    let nothing = matches!(field, Field::Input | Field::Output).then(|| Set::single(0)).unwrap_or_else(Set::none);
    let inverse = set.or(&nothing).not();
    let (few, many) = (inverse.ranges().len(), set.ranges().len());
    // The complement of the last IPv6 network is one range, but the network is shorter.
    let network = |set: &Set| matches!(set.ranges(), [range] if !one(field, *range, family).contains('-'));
    let rest = family == Family::Ipv6 && of_addresses(field) && few == many && network(&inverse) && !network(set);
    let (sign, set) = match (few < many || rest) && !set.is_all() {
        true => ("!= ", &inverse),
        false => ("", set),
    };
    // Adjacent numbers of states are no range.
    let named = State::ALL.into_iter().map(State::number).filter(|state| set.has(*state));
    let states: Vec<(u128, u128)> = named.map(|state| (state, state)).collect();
    let known = field == Field::State && *set == Set::from_ranges(states.iter().copied());
    let ranges = if known { states.as_slice() } else { set.ranges() };
    let mut words: Vec<String> = ranges.iter().take(MOST).map(|range| one(field, *range, family)).collect();
    if set.ranges().len() > MOST {
        words.push(format!("… {} more", set.ranges().len() - MOST));
    }
    match words.as_slice() {
        [one] => format!("{sign}{one}"),
        _ => format!("{sign}{{ {} }}", words.join(", ")),
    }
}

fn of_addresses(field: Field) -> bool {
    matches!(field, Field::Source | Field::Destination | Field::OriginalDestination)
}

fn one(field: Field, (first, last): (u128, u128), family: Family) -> String {
    match field {
        Field::Input | Field::Output => interface(first, last),
        _ if of_addresses(field) => addresses(first, last, family),
        Field::Protocol if first == last => protocol(first),
        Field::DestinationKind | Field::SourceKind if (first, last) == (LOCAL, LOCAL) => "local".into(),
        Field::State if first == last => state(first),
        Field::Mark | Field::ConnectionMark | Field::Status | Field::Label | Field::TcpFlags if first == last => {
            format!("{first:#x}")
        }
        Field::RouteViaInput if first == last => if first == 0 { "missing" } else { "exists" }.into(),
        _ if first == last => first.to_string(),
        _ if last == u128::MAX => format!(">= {first}"),
        _ => format!("{first}-{last}"),
    }
}

fn state(number: u128) -> String {
    let name = match State::ALL.into_iter().find(|state| state.number() == number) {
        Some(State::Invalid) => "invalid",
        Some(State::Established) => "established",
        Some(State::Related) => "related",
        Some(State::New) => "new",
        Some(State::Untracked) => "untracked",
        None => return number.to_string(),
    };
    name.to_owned()
}

fn interface(first: u128, last: u128) -> String {
    if first == last {
        return printable(&name_of(first));
    }
    let beginning = name_of(first);
    match number_of_name(beginning.as_bytes(), 0xff) == last {
        true => format!("{}*", printable(&beginning)),
        false => format!("{}-{}", printable(&beginning), printable(&name_of(last))),
    }
}

fn addresses(first: u128, last: u128, family: Family) -> String {
    let width: u32 = if family == Family::Ipv4 { 32 } else { 128 };
    // The largest IPv4 address is smaller than the largest number.
    let last = if family == Family::Ipv4 { last.min(u32::MAX.into()) } else { last };
    let (Some(low), Some(high)) = (address_of(first, family), address_of(last, family)) else {
        return "none".into();
    };
    let size = last.wrapping_sub(first).wrapping_add(1);
    match size {
        1 => low.to_string(),
        0 => "::/0".into(),
        size if size.is_power_of_two() && first & (size - 1) == 0 => {
            format!("{low}/{}", width.saturating_sub(size.trailing_zeros()))
        }
        _ => format!("{low}-{high}"),
    }
}

/// Returns the conditions of a region, for example `iifname != docker0 fib daddr type local tcp dport 8080`. Returns an
/// empty text for all packets.
pub fn region(region: &Region, family: Family) -> String {
    let ip = if family == Family::Ipv4 { "ip" } else { "ip6" };
    let only = |field, value| region.get(field).only() == Some(value);
    let mut text = String::new();
    let mut put = |name: &str, field: Field| {
        let asked = region.get(field);
        if !asked.is_all() {
            // Writing to a `String` cannot fail.
            let written =
                write!(text, "{}{name} {}", if text.is_empty() { "" } else { " " }, set(field, asked, family));
            debug_assert!(written.is_ok());
        }
    };
    for (name, field) in [("iifname", Field::Input), ("oifname", Field::Output)] {
        // A condition that every packet of the hook fulfils is not printed.
        if !only(field, 0) && region.get(field) != &Set::single(0).not() {
            put(name, field);
        }
    }
    put(&format!("{ip} saddr"), Field::Source);
    put(&format!("{ip} daddr"), Field::Destination);
    put("fib daddr type", Field::DestinationKind);
    put("fib saddr type", Field::SourceKind);
    let ports = !region.get(Field::Port).is_all() || !region.get(Field::SourcePort).is_all();
    let transport = match region.get(Field::Protocol).only() {
        Some(number) if ports => protocol(number),
        _ => {
            put("meta l4proto", Field::Protocol);
            "th".to_owned()
        }
    };
    put(&format!("{transport} sport"), Field::SourcePort);
    put(&format!("{transport} dport"), Field::Port);
    if region.get(Field::State) != &super::region::states([State::New, State::Related]) {
        put("ct state", Field::State);
    }
    put("tcp flags", Field::TcpFlags);
    put("fib daddr . iif oif", Field::RouteViaInput);
    put("meta mark", Field::Mark);
    put("ct mark", Field::ConnectionMark);
    put("ct label", Field::Label);
    put("ct status", Field::Status);
    put(&format!("ct original {ip} daddr"), Field::OriginalDestination);
    put("ct original proto-dst", Field::OriginalPort);
    for condition in region.conditions() {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&asked(condition, family));
    }
    text
}

fn asked(condition: &Condition, family: Family) -> String {
    match condition {
        Condition::Bits { field, mask, value, not } => {
            let name = match field {
                Field::Mark => "meta mark",
                Field::ConnectionMark => "ct mark",
                Field::Status => "ct status",
                Field::Label => "ct label",
                Field::TcpFlags => "tcp flags",
                Field::Source => "saddr",
                Field::Destination => "daddr",
                _ => "bits",
            };
            format!("{name} & {mask:#x} {} {value:#x}", if *not { "!=" } else { "==" })
        }
        Condition::Outside(regions) => {
            let some: Vec<String> = regions.iter().take(MOST).map(|it| self::region(it, family)).collect();
            let more = if regions.len() > MOST { ", …" } else { "" };
            format!("not ( {}{more} )", some.join(" | "))
        }
        Condition::Unknown(words) => format!("[{}]", printable(words)),
    }
}

/// Returns the target of a rewrite, for example `172.17.0.3:80`.
pub fn target(to: &Rewrite) -> String {
    let mut text = match to.addresses {
        None => String::new(),
        Some((first, last)) => match to.prefix {
            Some(prefix) => format!("{first}/{prefix}"),
            None if first == last && to.ports.is_some() && first.is_ipv6() => format!("[{first}]"),
            None if first == last => first.to_string(),
            None => match (first, last) {
                (IpAddr::V6(_), _) if to.ports.is_some() => format!("[{first}]-[{last}]"),
                _ => format!("{first}-{last}"),
            },
        },
    };
    if let Some((first, last)) = to.ports {
        text = if first == last { format!("{text}:{first}") } else { format!("{text}:{first}-{last}") };
    }
    if let Some(base) = to.base {
        text = format!("{text}/{base}");
    }
    text
}

/// What an action does, in a few words.
pub fn action(action: &Action) -> String {
    let to = |name: &str, rewrite: &Rewrite| match target(rewrite).as_str() {
        "" => name.to_owned(),
        target => format!("{name} to {target}"),
    };
    match action {
        Action::Accept => "accept".into(),
        Action::Drop => "drop".into(),
        Action::Reject(answer) => format!("reject with {answer}"),
        Action::Return => "return".into(),
        Action::Jump(chain) => format!("jump {}", printable(chain)),
        Action::Goto(chain) => format!("goto {}", printable(chain)),
        Action::Dnat(rewrite) => to("dnat", rewrite),
        Action::Redirect(rewrite) => to("redirect", rewrite),
        Action::Snat(rewrite) => to("snat", rewrite),
        Action::Masquerade(rewrite) => to("masquerade", rewrite),
        Action::Netmap(rewrite) => to("netmap", rewrite),
        Action::Mark { field, mask, value } => {
            let name = match field {
                Field::Mark => "meta mark",
                Field::Label => return format!("ct label set {value:#x}"),
                _ => "ct mark",
            };
            format!("{name} set {name} & {:#x} ^ {value:#x}", !mask & u128::from(u32::MAX))
        }
        Action::MarkUnknown { field: Field::Mark } => "meta mark set [unknown]".into(),
        Action::MarkUnknown { field: Field::Label } => "ct label set [unknown]".into(),
        Action::MarkUnknown { .. } => "ct mark set [unknown]".into(),
        Action::CopyMark { to: Field::Mark } => "meta mark set ct mark".into(),
        Action::CopyMark { .. } => "ct mark set meta mark".into(),
        Action::Untracked => "notrack".into(),
        Action::Proxy(rewrite) => to("tproxy", rewrite),
        Action::Queue => "queue".into(),
        Action::Unknown(words) => format!("[{}]", printable(words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn regions_read_like_nft() {
        let mut some = Region::all()
            .with(Field::Input, &Set::interface("docker0", '+').not())
            .with(Field::DestinationKind, &Set::single(LOCAL))
            .with(Field::Protocol, &Set::single(6))
            .with(Field::Port, &Set::from_ranges([(80, 80), (8000, 8010)]))
            .with(Field::Source, &Set::network("10.0.0.0/8".parse().expect("network")));
        some.add_condition(Condition::Unknown(Arc::from("-m a\nb")));
        assert_eq!(
            region(&some, Family::Ipv4),
            "iifname != docker0 ip saddr 10.0.0.0/8 fib daddr type local tcp dport { 80, 8000-8010 } [-m a\\nb]"
        );
        let begins = Region::all().with(Field::Output, &Set::interface("veth+", '+'));
        assert_eq!(region(&begins, Family::Ipv6), "oifname veth*");
    }

    #[test]
    fn all_but_a_network_reads_so() {
        for (network, family) in [("224.0.0.0/4", Family::Ipv4), ("ff00::/8", Family::Ipv6), ("::/8", Family::Ipv6)] {
            let set = Set::network(network.parse().expect("network"));
            assert_eq!(super::set(Field::Destination, &set, family), network);
            assert_eq!(super::set(Field::Destination, &set.not(), family), format!("!= {network}"));
        }
    }

    #[test]
    fn targets_read_like_iptables() {
        let to = |first: &str, ports| Rewrite {
            addresses: Some((first.parse().expect("address"), first.parse().expect("address"))),
            ports,
            ..Rewrite::default()
        };
        assert_eq!(target(&to("10.0.0.1", Some((80, 80)))), "10.0.0.1:80");
        assert_eq!(target(&to("::1", Some((80, 81)))), "[::1]:80-81");
        assert_eq!(target(&to("::1", None)), "::1");
        let shifted = Rewrite { base: Some(8000), ..to("10.0.0.1", Some((80, 89))) };
        assert_eq!(target(&shifted), "10.0.0.1:80-89/8000");
    }
}
