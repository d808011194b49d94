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
//!     chain filter-forward  { type filter hook forward priority 5;       ct state new ct label 121 fib daddr . iif oif exists ct label set 120 }
//!     chain nat-postrouting { type nat hook postrouting priority 95;     ct label 120 masquerade
//!                                                                        ip saddr 172.17.0.0/16 oifname != "docker0" masquerade }
//! }
//! ```
//! Forwards are map elements; a rule is needed for each map, and there is one map for each class and kind, so the
//! number of rules does not grow with the number of forwards. Rules are in the order of precedence, so a packet's first
//! match is the forward that wins.
//!
//! `forward.rs` makes the maps and the rules that ask them, `hairpin.rs` the way back for neighbours of a target,
//! `network.rs` what networks and masquerades ask for.

mod forward;
mod hairpin;
mod network;

pub(super) use network::{ISOLATE, NETWORK};

use super::expr::{Bitwise, Cmp, Ct, CtKey, CtSetLabel, Expr, Header, Immediate, Meta, MetaKey, Payload, Register};
use super::program::{Base, Chain, ChainType, Hook, Program, Rule};
use crate::model::{Asked, Family, SetName};

/// The connection label of a connection that must take the address of the interface it leaves by.
pub const LABEL_MASQUERADE: u8 = 120;
/// The connection label of a connection that one of our forwards sent on.
pub const LABEL_OURS: u8 = 121;
/// Where we look at packets that pass through: just after everybody's ordinary filters.
pub const FORWARD_PRIORITY: i32 = 5;

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
    let jumps = forward::maps_and_chains(asked, &mut program);
    let nat = |hook, priority, rules: Vec<Rule>| Chain {
        base: Some(Base { chain_type: ChainType::Nat, hook, priority }),
        rules,
    };
    if !jumps.is_empty() {
        let output = forward::own_loopback().into_iter().chain(jumps.iter().cloned()).collect();
        program.chains.insert(NAT_OUTPUT.into(), nat(Hook::Output, priority.value(), output));
        program.chains.insert(NAT_PREROUTING.into(), nat(Hook::Prerouting, priority.value(), jumps));
    }
    let mut passing = network::isolation(asked);
    let mut leaving = network::masquerades(asked);
    if asked.bindings.iter().any(|owned| owned.rule.to.address.is_some()) {
        passing.insert(0, hairpin::mark());
        leaving.insert(0, hairpin::masquerade());
    }
    if !passing.is_empty() {
        let base = Base { chain_type: ChainType::Filter, hook: Hook::Forward, priority: FORWARD_PRIORITY };
        program.chains.insert(FILTER_FORWARD.into(), Chain { base: Some(base), rules: passing });
    }
    if !leaving.is_empty() {
        program.chains.insert(NAT_POSTROUTING.into(), nat(Hook::Postrouting, priority.source(), leaving));
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
    let data = match network.network() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
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
    [Expr::Meta(Meta { key, to: FIRST }), Expr::Cmp(Cmp { register: FIRST, equal, data: name.to_bytes().to_vec() })]
}

/// The 128 bits in which only `label` is set. Labels are counted from the low bit of the first byte.
fn label_bits(label: u8) -> Vec<u8> {
    (0..16).map(|byte| if byte == label / 8 { 1 << (label % 8) } else { 0 }).collect()
}

/// `ct label set 121`, through registers from `scratch` on.
fn set_label(label: u8, scratch: Register) -> [Expr; 2] {
    [
        Expr::Immediate(Immediate { to: scratch, data: label_bits(label) }),
        Expr::CtSetLabel(CtSetLabel { from: scratch }),
    ]
}

/// `ct label 121`.
fn has_label(label: u8) -> [Expr; 3] {
    compare_label(label, false)
}

/// `ct label ! 121`.
fn has_not_label(label: u8) -> [Expr; 3] {
    compare_label(label, true)
}

fn compare_label(label: u8, absent: bool) -> [Expr; 3] {
    [
        Expr::Ct(Ct { key: CtKey::Label, to: FIRST }),
        Expr::Bitwise(Bitwise { register: FIRST, mask: label_bits(label) }),
        Expr::Cmp(Cmp { register: FIRST, equal: absent, data: vec![0; 16] }),
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
