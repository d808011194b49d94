//! Expressions that several kinds of rules share.

use crate::model::Family;
use crate::model::label::to_bits;
use crate::nft::expr::{
    Bitwise, Cmp, Ct, CtKey, CtSetLabel, Expr, Header, Immediate, Meta, MetaKey, Payload, Register,
};

pub(super) const FIRST: Register = Register::word32(0);

/// Matches packets of the family: `meta nfproto ipv4`.
pub(super) fn family_is(family: Family) -> [Expr; 2] {
    let number = match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    };
    [
        Expr::Meta(Meta { key: MetaKey::NfProto, to: FIRST }),
        Expr::Cmp(Cmp { register: FIRST, equal: true, data: vec![number] }),
    ]
}

/// One of the two addresses in the IP header.
#[derive(Clone, Copy)]
pub(super) enum AddressField {
    Source,
    Destination,
}

pub(super) fn load_address(family: Family, field: AddressField, to: Register) -> Expr {
    let (offset, length) = match (family, field) {
        (Family::Ipv4, AddressField::Source) => (12, 4),
        (Family::Ipv4, AddressField::Destination) => (16, 4),
        (Family::Ipv6, AddressField::Source) => (8, 16),
        (Family::Ipv6, AddressField::Destination) => (24, 16),
    };
    Expr::Payload(Payload { header: Header::Network, offset, length, to })
}

/// Returns the netmask for a prefix length.
pub(super) fn mask(family: Family, length: u8) -> Vec<u8> {
    let bytes: u8 = match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    };
    (0..bytes).map(|byte| !0xffu8.checked_shr(length.saturating_sub(byte * 8).into()).unwrap_or(0)).collect()
}

/// Matches packets with an address in the network: `ip saddr 10.0.0.0/8`.
pub(super) fn address_in(network: ipnetwork::IpNetwork, field: AddressField) -> Vec<Expr> {
    let family = Family::of_network(network);
    let data = octets(network.network());
    let mut exprs = family_is(family).to_vec();
    if network.prefix() == 0 {
        return exprs;
    }
    exprs.push(load_address(family, field, FIRST));
    let mask = mask(family, network.prefix());
    if mask.iter().any(|byte| *byte != 0xff) {
        exprs.push(Expr::Bitwise(Bitwise { register: FIRST, mask }));
    }
    exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: true, data }));
    exprs
}

/// Matches the name of an interface: `iifname "eth0"` or `oifname != "eth0"`.
pub(super) fn interface_is(key: MetaKey, equal: bool, name: &crate::model::IfName) -> [Expr; 2] {
    name_is(key, equal, name.to_bytes())
}

pub(super) fn name_is(key: MetaKey, equal: bool, name: [u8; 16]) -> [Expr; 2] {
    [Expr::Meta(Meta { key, to: FIRST }), Expr::Cmp(Cmp { register: FIRST, equal, data: name.to_vec() })]
}

/// Returns an address in network byte order.
pub(super) fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Sets labels of the connection: `ct label set 121`. Uses the four registers that start at `scratch`.
pub(super) fn set_label(labels: &[u8], scratch: Register) -> [Expr; 2] {
    [Expr::Immediate(Immediate { to: scratch, data: to_bits(labels) }), Expr::CtSetLabel(CtSetLabel { from: scratch })]
}

/// Matches connections with the label: `ct label 121`.
pub(super) fn has_label(label: u8) -> [Expr; 3] {
    compare_label(&[label], false, vec![0; 16])
}

/// Matches connections that have all labels in `set`, and no other label in `mask`: `ct label & (121, 119) == 121`.
pub(super) fn label_is(mask: &[u8], set: &[u8]) -> [Expr; 3] {
    compare_label(mask, true, to_bits(set))
}

/// Matches connections that [`label_is`] does not match: `ct label & (121, 119) != 121`.
pub(super) fn label_is_not(mask: &[u8], set: &[u8]) -> [Expr; 3] {
    compare_label(mask, false, to_bits(set))
}

/// Masks the labels of the connection with `mask`, and compares the result with `data`.
fn compare_label(mask: &[u8], equal: bool, data: Vec<u8>) -> [Expr; 3] {
    [
        Expr::Ct(Ct { key: CtKey::Label, to: FIRST }),
        Expr::Bitwise(Bitwise { register: FIRST, mask: to_bits(mask) }),
        Expr::Cmp(Cmp { register: FIRST, equal, data }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_match_prefix_lengths() {
        assert_eq!(mask(Family::Ipv4, 0), [0, 0, 0, 0]);
        assert_eq!(mask(Family::Ipv4, 9), [255, 128, 0, 0]);
        assert_eq!(mask(Family::Ipv4, 24), [255, 255, 255, 0]);
        assert_eq!(mask(Family::Ipv4, 32), [255; 4]);
        assert_eq!(mask(Family::Ipv6, 65)[..9], [255, 255, 255, 255, 255, 255, 255, 255, 128]);
        assert_eq!(mask(Family::Ipv6, 128), [255; 16]);
    }
}
