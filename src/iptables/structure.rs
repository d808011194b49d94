//! Reads the fields of a structure of the kernel, in the byte order of this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Family;

/// The bytes of a structure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Structure<'a>(pub(crate) &'a [u8]);

impl<'a> Structure<'a> {
    fn bytes<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    /// Returns the byte at an offset.
    pub(crate) fn byte(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    /// Returns a number of 16 bits in the byte order of this host.
    pub(crate) fn short(self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_ne_bytes)
    }

    /// Returns a number of 16 bits in network byte order.
    pub(crate) fn network_short(self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_be_bytes)
    }

    /// Returns a number of 32 bits in the byte order of this host.
    pub(crate) fn long(self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_ne_bytes)
    }

    /// Returns the address of a `union nf_inet_addr`.
    pub(crate) fn address(self, at: usize, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.bytes::<4>(at).map(|bytes| Ipv4Addr::from(bytes).into()),
            Family::Ipv6 => self.bytes::<16>(at).map(|bytes| Ipv6Addr::from(bytes).into()),
        }
    }

    /// Returns the text up to the first zero byte. Returns `None` if the text is empty.
    pub(crate) fn text(self) -> Option<String> {
        let text = self.0.split(|byte| *byte == 0).next().filter(|text| !text.is_empty())?;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}
