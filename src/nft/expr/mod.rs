//! The expressions of rules. Each file contains one kind of expression, with its encoder and its decoder.
//!
//! Expressions exchange values in registers. [`Register`] identifies a register by its first 32-bit word. For words 0,
//! 4, 8 and 12, the kernel reports the numbers of the old 128-bit registers. portfwd prints the same numbers.

mod bitwise;
mod cmp;
mod ct;
mod fib;
mod hex;
mod immediate;
mod lookup;
mod meta;
mod nat;
mod payload;
mod register;
mod value;

use std::fmt;

pub use bitwise::Bitwise;
pub use cmp::Cmp;
pub use ct::{Ct, CtKey, CtSetLabel};
pub use fib::{Fib, FibResult};
pub use hex::Hex;
pub use immediate::{Immediate, Verdict};
pub use lookup::Lookup;
pub use meta::{Meta, MetaKey};
pub use nat::{Masquerade, Nat, NatFlag, Redirect, RegisterRange};
pub use payload::{Header, Payload};
pub use register::Register;
pub use value::{Attributes, Read, Value};
use value::{attribute, constant};

/// An expression in a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Loads packet metadata.
    Meta(Meta),
    /// Loads a header field.
    Payload(Payload),
    /// Masks a register.
    Bitwise(Bitwise),
    /// Compares a register with a constant.
    Cmp(Cmp),
    /// Looks up a key in a map or set.
    Lookup(Lookup),
    /// Rewrites the source or destination address.
    Nat(Nat),
    /// Rewrites the destination to this host.
    Redirect(Redirect),
    /// Rewrites the source to the address of the egress interface.
    Masquerade(Masquerade),
    /// Loads a property of the connection.
    Ct(Ct),
    /// Sets labels of the connection.
    CtSetLabel(CtSetLabel),
    /// Looks up an address in the routing table.
    Fib(Fib),
    /// Loads a constant.
    Immediate(Immediate),
    /// Gives a verdict, for example `drop`.
    Verdict(Verdict),
    /// The name of an expression that portfwd does not write.
    Foreign(String),
}

impl Expr {
    /// Returns the kernel's name of the expression.
    pub fn name(&self) -> &str {
        match self {
            Self::Meta(_) => "meta",
            Self::Payload(_) => "payload",
            Self::Bitwise(_) => "bitwise",
            Self::Cmp(_) => "cmp",
            Self::Lookup(_) => "lookup",
            Self::Nat(_) => "nat",
            Self::Redirect(_) => "redir",
            Self::Masquerade(_) => "masq",
            Self::Ct(_) | Self::CtSetLabel(_) => "ct",
            Self::Fib(_) => "fib",
            Self::Immediate(_) | Self::Verdict(_) => "immediate",
            Self::Foreign(name) => name,
        }
    }

    /// Returns the netlink attributes of the expression. The inverse of [`Expr::read`].
    pub fn attributes(&self) -> Attributes {
        match self {
            Self::Meta(expr) => expr.attributes(),
            Self::Payload(expr) => expr.attributes(),
            Self::Bitwise(expr) => expr.attributes(),
            Self::Cmp(expr) => expr.attributes(),
            Self::Lookup(expr) => expr.attributes(),
            Self::Nat(expr) => expr.attributes(),
            Self::Redirect(expr) => expr.attributes(),
            Self::Masquerade(_) | Self::Foreign(_) => Vec::new(),
            Self::Ct(expr) => expr.attributes(),
            Self::CtSetLabel(expr) => expr.attributes(),
            Self::Fib(expr) => expr.attributes(),
            Self::Immediate(expr) => expr.attributes(),
            Self::Verdict(expr) => expr.attributes(),
        }
    }

    /// Reads an expression from its netlink attributes. Returns [`Expr::Foreign`] if portfwd does not write such expressions.
    pub fn read(name: &str, attributes: &impl Read) -> Self {
        let known = match name {
            "meta" => Meta::read(attributes).map(Self::Meta),
            "payload" => Payload::read(attributes).map(Self::Payload),
            "bitwise" => Bitwise::read(attributes).map(Self::Bitwise),
            "cmp" => Cmp::read(attributes).map(Self::Cmp),
            "lookup" => Lookup::read(attributes).map(Self::Lookup),
            "nat" => Nat::read(attributes).map(Self::Nat),
            "redir" => Redirect::read(attributes).map(Self::Redirect),
            "masq" => Masquerade::read(attributes).map(Self::Masquerade),
            "ct" => (Ct::read(attributes).map(Self::Ct)).or_else(|| CtSetLabel::read(attributes).map(Self::CtSetLabel)),
            "fib" => Fib::read(attributes).map(Self::Fib),
            "immediate" => (Verdict::read(attributes).map(Self::Verdict))
                .or_else(|| Immediate::read(attributes).map(Self::Immediate)),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Foreign(name.to_owned()))
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(expr) => expr.fmt(f),
            Self::Payload(expr) => expr.fmt(f),
            Self::Bitwise(expr) => expr.fmt(f),
            Self::Cmp(expr) => expr.fmt(f),
            Self::Lookup(expr) => expr.fmt(f),
            Self::Nat(expr) => expr.fmt(f),
            Self::Redirect(expr) => expr.fmt(f),
            Self::Masquerade(_) => f.write_str("masq"),
            Self::Ct(expr) => expr.fmt(f),
            Self::CtSetLabel(expr) => expr.fmt(f),
            Self::Fib(expr) => expr.fmt(f),
            Self::Immediate(expr) => expr.fmt(f),
            Self::Verdict(expr) => expr.fmt(f),
            Self::Foreign(name) => write!(f, "{name} (not from portfwd)"),
        }
    }
}

#[cfg(test)]
pub(in crate::nft) use tests::one_of_each;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;

    impl Read for Attributes {
        fn number(&self, attribute: u16) -> Option<u32> {
            self.iter().find_map(|(number, value)| match value {
                Value::U32(value) if *number == attribute => Some(*value),
                _ => None,
            })
        }
        fn bytes(&self, attribute: u16) -> Option<Vec<u8>> {
            self.iter().find_map(|(number, value)| match value {
                Value::Bytes(bytes) if *number == attribute => Some(bytes.clone()),
                _ => None,
            })
        }
        fn name(&self, attribute: u16) -> Option<String> {
            self.iter().find_map(|(number, value)| match value {
                Value::Name(name) if *number == attribute => Some(name.clone()),
                _ => None,
            })
        }
    }

    /// Returns examples of all expressions, with one example for each encoding.
    pub(in crate::nft) fn one_of_each() -> Vec<Expr> {
        let a = Register::word32(0);
        let b = Register::word32(1);
        let label = Register::word32(8);
        let a_to_b = RegisterRange { first: a, last: Some(b) };
        let nat = |source, family, address, port, flag| Expr::Nat(Nat { source, family, address, port, flag });
        vec![
            Expr::Meta(Meta { key: MetaKey::NfProto, to: a }),
            Expr::Meta(Meta { key: MetaKey::L4Proto, to: a }),
            Expr::Meta(Meta { key: MetaKey::IifName, to: a }),
            Expr::Meta(Meta { key: MetaKey::OifName, to: a }),
            Expr::Payload(Payload { header: Header::Network, offset: 12, length: 4, to: a }),
            Expr::Payload(Payload { header: Header::Transport, offset: 2, length: 2, to: b }),
            Expr::Bitwise(Bitwise { register: a, mask: vec![255, 255, 255, 0] }),
            Expr::Cmp(Cmp { register: a, equal: true, data: vec![2] }),
            Expr::Cmp(Cmp { register: a, equal: false, data: vec![0; 16] }),
            Expr::Lookup(Lookup { map: "ip-ports".into(), from: a, to: Some(a) }),
            Expr::Lookup(Lookup { map: "ip-ranges-redirect".into(), from: a, to: None }),
            nat(false, Family::Ipv4, a.into(), Some(b.into()), NatFlag::None),
            nat(true, Family::Ipv6, a.into(), None, NatFlag::Persistent),
            nat(true, Family::Ipv4, a_to_b, Some(RegisterRange { first: label, last: Some(b) }), NatFlag::FullyRandom),
            nat(true, Family::Ipv4, a_to_b, None, NatFlag::Random),
            nat(false, Family::Ipv6, a_to_b, None, NatFlag::Prefix),
            Expr::Redirect(Redirect { port: Some(a) }),
            Expr::Redirect(Redirect { port: None }),
            Expr::Masquerade(Masquerade),
            Expr::Ct(Ct { key: CtKey::State, to: a }),
            Expr::Ct(Ct { key: CtKey::Label, to: a }),
            Expr::CtSetLabel(CtSetLabel { from: label }),
            Expr::Fib(Fib { result: FibResult::DestinationType, to: a }),
            Expr::Fib(Fib { result: FibResult::DestinationBehindInput, to: a }),
            Expr::Immediate(Immediate { to: label, data: vec![0; 16] }),
            Expr::Verdict(Verdict::Drop),
            Expr::Verdict(Verdict::Accept),
            Expr::Verdict(Verdict::Return),
            Expr::Verdict(Verdict::Jump("DOCKER".into())),
        ]
    }

    #[test]
    fn every_expression_round_trips_through_attributes() {
        for expr in one_of_each() {
            assert_eq!(Expr::read(expr.name(), &expr.attributes()), expr);
        }
    }

    #[test]
    fn register_numbers_match_the_kernel() {
        let wire: Vec<u32> = (0..16).map(|word| Register::word32(word).to_wire()).collect();
        assert_eq!(wire, [1, 9, 10, 11, 2, 13, 14, 15, 3, 17, 18, 19, 4, 21, 22, 23]);
        for word in 0..16 {
            assert_eq!(Register::from_wire(Register::word32(word).to_wire()), Some(Register::word32(word)));
        }
        assert_eq!(Register::from_wire(0), None);
        assert_eq!(Register::from_wire(24), None);
    }
}
