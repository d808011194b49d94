//! `lookup`: looks up a key in a map or set.

use std::fmt;

use nftnl_sys as sys;

use super::{Attributes, Read, Register, Value, attribute};

const SREG: u16 = attribute(sys::NFTNL_EXPR_LOOKUP_SREG);
const DREG: u16 = attribute(sys::NFTNL_EXPR_LOOKUP_DREG);
const SET: u16 = attribute(sys::NFTNL_EXPR_LOOKUP_SET);
const FLAGS: u16 = attribute(sys::NFTNL_EXPR_LOOKUP_FLAGS);

/// Matches if `map` contains the key, and loads the data of the element.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lookup {
    /// The name of the map or set.
    pub map: String,
    /// The first register word of the key.
    pub from: Register,
    /// The first register word for the data; `None` for a set.
    pub to: Option<Register>,
}

impl Lookup {
    pub(super) fn attributes(&self) -> Attributes {
        let mut attributes = vec![(SREG, Value::U32(self.from.to_wire())), (SET, Value::Name(self.map.clone()))];
        attributes.extend(self.to.map(|to| (DREG, Value::U32(to.to_wire()))));
        attributes
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        if attributes.number(FLAGS).unwrap_or(0) != 0 {
            return None;
        }
        Some(Self { map: attributes.name(SET)?, from: attributes.register(SREG)?, to: attributes.register(DREG) })
    }
}

impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lookup {} set {}", self.from, self.map)?;
        match self.to {
            Some(to) => write!(f, " => {to}"),
            None => Ok(()),
        }
    }
}
