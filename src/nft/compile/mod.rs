//! The model compiled to a program. Pure.
//!
//! In the words of nft(8), with one network and one forward in it:
//! ```text
//! table inet portfwd {
//!     map DOCKER-ip-ports { type inet_proto . inet_service : ipv4_addr . inet_service; counter; … }
//!     chain DOCKER          { meta nfproto ipv4 ct label set 121 dnat ip to meta l4proto . th dport map @DOCKER-ip-ports }
//!     chain nat-prerouting  { type nat hook prerouting priority -105;    fib daddr type local jump DOCKER }
//!     chain nat-output      { type nat hook output priority -105;        ip daddr 127.0.0.0/8 return
//!                                                                        ip6 daddr ::1 return
//!                                                                        fib daddr type local jump DOCKER }
//!     chain filter-forward  { type filter hook forward priority 5;       ct state new ct label & (121, 119, 117) == 121
//!                                                                        fib daddr . iif oif exists ct label set 120 }
//!     chain nat-postrouting { type nat hook postrouting priority 95;     oifname "lo" return
//!                                                                        ct label 120 masquerade
//!                                                                        ip saddr 172.17.0.0/16 oifname != "docker0" masquerade }
//! }
//! ```
//! Forwards are map elements; a rule is needed for each map, and there is one map for each class and kind, so the
//! number of rules does not grow with the number of forwards. Rules are in the order of precedence, so a packet's first
//! match is the forward that wins.
//!
//! `forward.rs` makes the maps and the rules that ask them, `clients.rs` those with many client prefixes, `hairpin.rs` the way back for neighbours of a target, `guard.rs`
//! what a loopback forward needs, `netmap.rs`, `isolate.rs` and `source.rs` the rest.

mod clients;
mod forward;
mod guard;
mod hairpin;
mod isolate;
mod netmap;
mod samples;
mod source;

pub use samples::samples;
pub(super) use source::{sources_name, sources_shape};

use super::expr::{Bitwise, Cmp, Ct, CtKey, CtSetLabel, Expr, Header, Immediate, Meta, MetaKey, Payload, Register};
use super::program::{Base, Chain, ChainType, Hook, Program, Rule};
use crate::model::label::{Masqueraded, Sources, bits};
use crate::model::{Asked, Family, SetName};

/// Where loopback addresses on a wire are dropped: at the earliest, before connection tracking (-200), so that what
/// belongs to no connection is never tracked as one, and destinations are still those on the wire.
pub const GUARD_PRIORITY: i32 = -300;
/// Where we look at packets that pass through: just after everybody's ordinary filters.
pub const FORWARD_PRIORITY: i32 = 5;

/// The base chain that drops loopback addresses from a wire.
pub const GUARD_PREROUTING: &str = "guard-prerouting";
/// The base chain that serves what arrives.
pub const NAT_PREROUTING: &str = "nat-prerouting";
/// The base chain that serves this host itself.
pub const NAT_OUTPUT: &str = "nat-output";
/// The base chain that sees what passes through.
pub const FILTER_FORWARD: &str = "filter-forward";
/// The base chain that rewrites sources.
pub const NAT_POSTROUTING: &str = "nat-postrouting";

/// Why a model cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// One table can run at one priority only.
    #[error("the rule sets `{0}` and `{1}` ask for different priorities")]
    Priorities(SetName, SetName),
}

/// Compiles all that is asked. Nothing asked is no table.
///
/// # Errors
/// Where two sets want what one table cannot do.
pub fn compile(asked: &Asked) -> Result<Program, CompileError> {
    let mut program = Program::default();
    if asked.is_empty() {
        return Ok(program);
    }
    program.table = true;
    let priority = asked.priority().map_err(|(one, other)| CompileError::Priorities(one, other))?;
    let sources = Sources::of(asked);
    let jumps = forward::maps_and_chains(asked, &sources, &mut program);
    let mut add = |name: &str, chain_type, hook, priority, rules: Vec<Rule>| {
        if !rules.is_empty() {
            let base = Some(Base { chain_type, hook, priority });
            program.chains.insert(name.into(), Chain { base, rules });
        }
    };
    let inward: Vec<Rule> = jumps.outside.into_iter().chain(netmap::inward(asked)).collect();
    let output = if inward.is_empty() && jumps.loopback.is_empty() {
        Vec::new()
    } else {
        jumps.loopback.into_iter().chain(forward::own_loopback()).chain(inward.iter().cloned()).collect()
    };
    let rewritten = Masqueraded::of(asked, |_| true);
    let mut passing = isolate::rules(asked);
    if rewritten.neighbours {
        passing.insert(0, hairpin::mark());
    }
    add(GUARD_PREROUTING, ChainType::Filter, Hook::Prerouting, GUARD_PRIORITY, guard::rules(asked));
    add(NAT_OUTPUT, ChainType::Nat, Hook::Output, priority.value(), output);
    add(NAT_PREROUTING, ChainType::Nat, Hook::Prerouting, priority.value(), inward);
    add(FILTER_FORWARD, ChainType::Filter, Hook::Forward, FORWARD_PRIORITY, passing);
    let leaving = source::rules(asked, &sources, rewritten.any(), &mut program);
    if !leaving.is_empty() {
        let base = Base { chain_type: ChainType::Nat, hook: Hook::Postrouting, priority: priority.source() };
        program.chains.insert(NAT_POSTROUTING.into(), Chain { base: Some(base), rules: leaving });
    }
    Ok(program)
}

const FIRST: Register = Register::word(0);

/// `meta nfproto ipv4`: goes on only for packets of the family.
fn family_is(family: Family) -> [Expr; 2] {
    let number = match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    };
    [
        Expr::Meta(Meta { key: MetaKey::NfProto, to: FIRST }),
        Expr::Cmp(Cmp { register: FIRST, equal: true, data: vec![number] }),
    ]
}

/// An address of the IP header.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

fn load_address(family: Family, end: End, to: Register) -> Expr {
    let (offset, length) = match (family, end) {
        (Family::Ipv4, End::Source) => (12, 4),
        (Family::Ipv4, End::Destination) => (16, 4),
        (Family::Ipv6, End::Source) => (8, 16),
        (Family::Ipv6, End::Destination) => (24, 16),
    };
    Expr::Payload(Payload { header: Header::Network, offset, length, to })
}

/// The bits of a prefix as a mask for the family's addresses.
fn mask(family: Family, length: u8) -> Vec<u8> {
    let bytes: u8 = match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    };
    (0..bytes).map(|byte| !0xffu8.checked_shr(length.saturating_sub(byte * 8).into()).unwrap_or(0)).collect()
}

/// `ip saddr 10.0.0.0/8`: goes on only where an address is in a network.
fn address_in(network: ipnetwork::IpNetwork, end: End) -> Vec<Expr> {
    let family = Family::of_network(network);
    let data = octets(network.network());
    let mut exprs = family_is(family).to_vec();
    if network.prefix() == 0 {
        return exprs;
    }
    exprs.push(load_address(family, end, FIRST));
    let mask = mask(family, network.prefix());
    if mask.iter().any(|byte| *byte != 0xff) {
        exprs.push(Expr::Bitwise(Bitwise { register: FIRST, mask }));
    }
    exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: true, data }));
    exprs
}

/// `iifname "eth0"` or `oifname != "eth0"`.
fn interface(key: MetaKey, equal: bool, name: &crate::model::IfName) -> [Expr; 2] {
    name_is(key, equal, name.to_bytes())
}

fn name_is(key: MetaKey, equal: bool, name: [u8; 16]) -> [Expr; 2] {
    [Expr::Meta(Meta { key, to: FIRST }), Expr::Cmp(Cmp { register: FIRST, equal, data: name.to_vec() })]
}

/// An address in network byte order.
fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `ct label set 121`, through registers from `scratch` on.
fn set_label(labels: &[u8], scratch: Register) -> [Expr; 2] {
    [Expr::Immediate(Immediate { to: scratch, data: bits(labels) }), Expr::CtSetLabel(CtSetLabel { from: scratch })]
}

/// `ct label 121`.
fn has_label(label: u8) -> [Expr; 3] {
    compare_label(&[label], false, vec![0; 16])
}

/// `ct label & (121, 119) == 121`: of some labels these are set and no others.
fn label_is(of: &[u8], set: &[u8]) -> [Expr; 3] {
    compare_label(of, true, bits(set))
}

/// `ct label & (121, 119) != 121`: of some labels others are set than these.
fn label_is_not(of: &[u8], set: &[u8]) -> [Expr; 3] {
    compare_label(of, false, bits(set))
}

/// Compares what is set of `labels` with `data`.
fn compare_label(labels: &[u8], equal: bool, data: Vec<u8>) -> [Expr; 3] {
    [
        Expr::Ct(Ct { key: CtKey::Label, to: FIRST }),
        Expr::Bitwise(Bitwise { register: FIRST, mask: bits(labels) }),
        Expr::Cmp(Cmp { register: FIRST, equal, data }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_the_bits_of_their_prefix() {
        assert_eq!(mask(Family::Ipv4, 0), [0, 0, 0, 0]);
        assert_eq!(mask(Family::Ipv4, 9), [255, 128, 0, 0]);
        assert_eq!(mask(Family::Ipv4, 24), [255, 255, 255, 0]);
        assert_eq!(mask(Family::Ipv4, 32), [255; 4]);
        assert_eq!(mask(Family::Ipv6, 65)[..9], [255, 255, 255, 255, 255, 255, 255, 255, 128]);
        assert_eq!(mask(Family::Ipv6, 128), [255; 16]);
    }
}
