//! The answers of `reject`: a TCP reset, or an ICMP error with a code.
//!
//! Source: `enum ipt_reject_with` and `enum ip6t_reject_with` in include/uapi/linux/netfilter_ipv4/ipt_REJECT.h and
//! netfilter_ipv6/ip6t_REJECT.h, `NFT_REJECT_…` in include/uapi/linux/netfilter/nf_tables.h.

use std::fmt;

use crate::model::Family;

/// The answer that a `reject` rule sends to the source of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// A TCP segment with the flag RST. Other protocols get no answer.
    TcpReset,
    /// An ICMP error of type "destination unreachable" with this code.
    Icmp(u8),
    /// An ICMPv6 error of type "destination unreachable" with this code.
    Icmpv6(u8),
    /// An ICMP or ICMPv6 error with this code of nf_tables (`icmpx`).
    Icmpx(u8),
    /// An answer that the dump does not contain.
    Unknown,
}

const ICMP: [(u8, &str); 7] = [
    (0, "net-unreachable"),
    (1, "host-unreachable"),
    (2, "prot-unreachable"),
    (3, "port-unreachable"),
    (9, "net-prohibited"),
    (10, "host-prohibited"),
    (13, "admin-prohibited"),
];

const ICMPV6: [(u8, &str); 6] = [
    (0, "no-route"),
    (1, "admin-prohibited"),
    (3, "addr-unreachable"),
    (4, "port-unreachable"),
    (5, "policy-fail"),
    (6, "reject-route"),
];

const ICMPX: [(u8, &str); 4] =
    [(0, "no-route"), (1, "port-unreachable"), (2, "host-unreachable"), (3, "admin-prohibited")];

/// The codes of iptables in the order of `enum ipt_reject_with`. Number 4 is no longer used.
const OF_IPTABLES: [Rejection; 9] = [
    Rejection::Icmp(0),
    Rejection::Icmp(1),
    Rejection::Icmp(2),
    Rejection::Icmp(3),
    Rejection::Unknown,
    Rejection::Icmp(9),
    Rejection::Icmp(10),
    Rejection::TcpReset,
    Rejection::Icmp(13),
];

/// The codes of ip6tables in the order of `enum ip6t_reject_with`. Numbers 2 and 5 are no longer used.
const OF_IP6TABLES: [Rejection; 9] = [
    Rejection::Icmpv6(0),
    Rejection::Icmpv6(1),
    Rejection::Icmpv6(2),
    Rejection::Icmpv6(3),
    Rejection::Icmpv6(4),
    Rejection::Unknown,
    Rejection::TcpReset,
    Rejection::Icmpv6(5),
    Rejection::Icmpv6(6),
];

impl Rejection {
    /// Returns the answer of an nf_tables expression, by its type and code.
    pub fn of_nft(kind: Option<u32>, code: Option<u8>, ipv6: bool) -> Self {
        match (kind, code) {
            (Some(0), Some(code)) if ipv6 => Self::Icmpv6(code),
            (Some(0), Some(code)) => Self::Icmp(code),
            (Some(1), _) => Self::TcpReset,
            (Some(2), Some(code)) => Self::Icmpx(code),
            _ => Self::Unknown,
        }
    }

    /// Returns the answer of a compat blob of iptables(8), by its number.
    pub fn of_iptables(number: Option<u32>, family: Option<Family>) -> Self {
        let codes = match family {
            Some(Family::Ipv4) => OF_IPTABLES,
            Some(Family::Ipv6) => OF_IP6TABLES,
            None => return Self::Unknown,
        };
        let code = number.and_then(|number| codes.get(usize::try_from(number).ok()?));
        code.copied().unwrap_or(Self::Unknown)
    }

    /// Returns the answer of `--reject-with`, for example `icmp-port-unreachable` or `tcp-reset`.
    pub fn of_option(text: &str) -> Self {
        let (kind, name) = match text.split_once('-') {
            Some((kind @ ("icmp" | "icmp6" | "tcp"), name)) => (kind, name),
            _ => ("", text),
        };
        match (kind, name) {
            ("tcp", "reset") => Self::TcpReset,
            ("icmp", "proto-unreachable") => Self::Icmp(2),
            ("icmp6", "adm-prohibited") => Self::Icmpv6(1),
            ("icmp6", _) => Self::named("icmpv6", name),
            _ => Self::named("icmp", name),
        }
    }

    /// Returns the answer of `nft -j`, by its type and code.
    pub fn named(kind: &str, code: &str) -> Self {
        let find = |codes: &[(u8, &str)]| codes.iter().find(|(_, name)| *name == code).map(|(number, _)| *number);
        let found = match kind {
            "tcp reset" => Some(Self::TcpReset),
            "icmp" => find(&ICMP).map(Self::Icmp),
            "icmpv6" => find(&ICMPV6).map(Self::Icmpv6),
            "icmpx" => find(&ICMPX).map(Self::Icmpx),
            _ => None,
        };
        found.unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, codes, code): (_, &[(u8, &str)], _) = match self {
            Self::TcpReset => return f.write_str("tcp reset"),
            Self::Unknown => return f.write_str("an error"),
            Self::Icmp(code) => ("icmp", &ICMP, code),
            Self::Icmpv6(code) => ("icmpv6", &ICMPV6, code),
            Self::Icmpx(code) => ("icmpx", &ICMPX, code),
        };
        match codes.iter().find(|(number, _)| number == code) {
            Some((_, name)) => write!(f, "{kind} {}", name.replace('-', " ")),
            None => write!(f, "{kind} code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notation_gives_the_same_answer() {
        for (text, option, kind, code, number, family) in [
            ("icmp port unreachable", "icmp-port-unreachable", "icmp", "port-unreachable", 3, Family::Ipv4),
            ("tcp reset", "tcp-reset", "tcp reset", "", 7, Family::Ipv4),
            ("tcp reset", "tcp-reset", "tcp reset", "", 6, Family::Ipv6),
            ("icmp admin prohibited", "icmp-admin-prohibited", "icmp", "admin-prohibited", 8, Family::Ipv4),
            ("icmp prot unreachable", "icmp-proto-unreachable", "icmp", "prot-unreachable", 2, Family::Ipv4),
            ("icmpv6 admin prohibited", "icmp6-adm-prohibited", "icmpv6", "admin-prohibited", 1, Family::Ipv6),
            ("icmpv6 reject route", "icmp6-reject-route", "icmpv6", "reject-route", 8, Family::Ipv6),
        ] {
            let answers = [
                Rejection::of_option(option),
                Rejection::named(kind, code),
                Rejection::of_iptables(Some(number), Some(family)),
            ];
            assert_eq!(answers.map(|answer| answer.to_string()), [text; 3]);
        }
        let nft = |kind, code| Rejection::of_nft(Some(kind), Some(code), false).to_string();
        assert_eq!([nft(0, 3), nft(1, 0), nft(2, 1)], ["icmp port unreachable", "tcp reset", "icmpx port unreachable"]);
        assert_eq!(Rejection::of_option("tomorrow"), Rejection::Unknown);
        assert_eq!(Rejection::of_iptables(Some(99), Some(Family::Ipv4)).to_string(), "an error");
    }
}
