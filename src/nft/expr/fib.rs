//! `fib`: asks the routing table about a packet's addresses.

use std::fmt;

use nftnl_sys as sys;

use super::{Attributes, Read, Register, Value, attribute};

const DREG: u16 = attribute(sys::NFTNL_EXPR_FIB_DREG);
const RESULT: u16 = attribute(sys::NFTNL_EXPR_FIB_RESULT);
const FLAGS: u16 = attribute(sys::NFTNL_EXPR_FIB_FLAGS);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FibResult {
    /// `fib daddr type`: the type of the destination: 4 bytes, host byte order, 2 for an address of this host.
    DestinationType,
    /// `fib daddr . iif oif exists`: whether the way to the destination leads back out of the interface that the
    /// packet arrived by: 4 bytes, host byte order, 0 or 1. Allowed where packets arrive and where they pass through.
    DestinationBehindInput,
}

impl FibResult {
    /// Result and flags. Source: `enum nft_fib_result`, `enum nft_fib_flags` in
    /// include/uapi/linux/netfilter/nf_tables.h.
    fn numbers(self) -> (u32, u32) {
        const OIF: u32 = 1;
        const ADDRESS_TYPE: u32 = 3;
        const DESTINATION: u32 = 1 << 1;
        const INPUT: u32 = 1 << 3;
        const PRESENT: u32 = 1 << 5;
        match self {
            Self::DestinationType => (ADDRESS_TYPE, DESTINATION),
            Self::DestinationBehindInput => (OIF, DESTINATION | INPUT | PRESENT),
        }
    }
}

/// Loads the answer into `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fib {
    /// What is asked.
    pub result: FibResult,
    /// Where the answer goes.
    pub to: Register,
}

impl Fib {
    pub(super) fn attributes(&self) -> Attributes {
        let (result, flags) = self.result.numbers();
        vec![(RESULT, Value::U32(result)), (FLAGS, Value::U32(flags)), (DREG, Value::U32(self.to.to_wire()))]
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        let numbers = (attributes.number(RESULT)?, attributes.number(FLAGS)?);
        let known = [FibResult::DestinationType, FibResult::DestinationBehindInput];
        let result = known.into_iter().find(|result| result.numbers() == numbers)?;
        Some(Self { result, to: attributes.register(DREG)? })
    }
}

impl fmt::Display for Fib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = match self.result {
            FibResult::DestinationType => "daddr type",
            FibResult::DestinationBehindInput => "daddr . iif oif present",
        };
        write!(f, "fib {result} => {}", self.to)
    }
}
