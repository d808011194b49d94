//! `fib`: looks up a packet's address in the routing table.

use std::fmt;

use nftnl_sys as sys;

use super::{Attributes, Read, Register, Value, attribute};

const DREG: u16 = attribute(sys::NFTNL_EXPR_FIB_DREG);
const RESULT: u16 = attribute(sys::NFTNL_EXPR_FIB_RESULT);
const FLAGS: u16 = attribute(sys::NFTNL_EXPR_FIB_FLAGS);

/// The kind of routing lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FibResult {
    /// `fib daddr type`: the address type of the destination. The type is 2 for an address of this host. The result has
    /// 4 bytes in host byte order.
    DestinationType,
    /// `fib daddr . iif oif exists`: 1 if the route to the destination leaves by the ingress interface, otherwise 0.
    /// The result has 4 bytes in host byte order. The kernel allows this lookup at the prerouting, input and forward
    /// hooks.
    DestinationBehindInput,
}

impl FibResult {
    /// Returns the kernel's numbers for result and flags. Source: `enum nft_fib_result`, `enum nft_fib_flags` in
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

/// Loads the result of a routing lookup into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fib {
    /// The kind of routing lookup.
    pub result: FibResult,
    /// The register for the result of the lookup.
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
