//! What a rule does: its target, in the words of iptables(8) and back.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::words::{self, Words};
use crate::model::{Family, Mode, Pool, PortRange};

/// What the names of all our chains begin with.
pub const PREFIX: &str = "PORTFWD";

/// Where a rule sends the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// What becomes of the port.
    pub port: DestinationPort,
}

/// What becomes of a destination's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationPort {
    /// It stays.
    Keep,
    /// It becomes this one.
    One(u16),
    /// `LO-HI/BASE`: ports from `base` on become those of the range, one to one.
    Shift {
        /// The range that they become.
        to: PortRange,
        /// The first port that is shifted.
        base: u16,
    },
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Asks another chain, and comes back if that decides nothing.
    Jump(Arc<str>),
    /// Goes back to the chain that asked.
    Return,
    /// Drops the packet.
    Drop,
    /// Rewrites the destination.
    Dnat(Destination),
    /// Sends it to this host, and to another port if one is given.
    Redirect(Option<u16>),
    /// Rewrites the source to one of a pool.
    Snat(Pool, Option<Mode>),
    /// Rewrites the source to the address of the interface it leaves by.
    Masquerade,
    /// Rewrites the network of an address.
    Netmap(IpNetwork),
}

impl Target {
    /// Adds its text, with a blank before each word.
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        match self {
            Self::Jump(chain) => {
                out.push_str(" -j ");
                words::put(chain, out);
                Ok(())
            }
            Self::Return => out.write_str(" -j RETURN"),
            Self::Drop => out.write_str(" -j DROP"),
            Self::Dnat(destination) => write!(out, " -j DNAT --to-destination {destination}"),
            Self::Redirect(None) => out.write_str(" -j REDIRECT"),
            Self::Redirect(Some(port)) => write!(out, " -j REDIRECT --to-ports {port}"),
            Self::Snat(pool, mode) => {
                write!(out, " -j SNAT --to-source {pool}")?;
                mode.map_or(Ok(()), |mode| write!(out, " {}", flag(mode)))
            }
            Self::Masquerade => out.write_str(" -j MASQUERADE"),
            Self::Netmap(network) => write!(out, " -j NETMAP --to {network}"),
        }
    }

    /// Reads the words behind `-j`; the other direction of [`Target::write`]. `None` where they are not written as we write them.
    pub(super) fn read(words: &mut Words<'_>, family: Family) -> Option<Self> {
        let target = match words.next()? {
            "RETURN" => Self::Return,
            "DROP" => Self::Drop,
            "MASQUERADE" => Self::Masquerade,
            "DNAT" if words.takes("--to-destination") => Self::Dnat(destination(words.next()?, family)?),
            "REDIRECT" if words.takes("--to-ports") => Self::Redirect(Some(words.next()?.parse().ok()?)),
            "REDIRECT" => Self::Redirect(None),
            "SNAT" if words.takes("--to-source") => {
                let pool = Pool::try_from(words.next()?.to_owned()).ok()?;
                let modes = [Mode::Random, Mode::FullyRandom, Mode::Persistent];
                let mode = modes.into_iter().find(|mode| words.takes(flag(*mode)));
                (pool.family() == family).then_some(Self::Snat(pool, mode))?
            }
            "NETMAP" if words.takes("--to") => {
                let network: IpNetwork = words.next()?.parse().ok()?;
                (Family::of_network(network) == family).then_some(Self::Netmap(network))?
            }
            chain if chain.starts_with(PREFIX) => Self::Jump(chain.into()),
            _ => return None,
        };
        words.is_at_end().then_some(target)
    }
}

/// How SNAT chooses, as a flag.
fn flag(mode: Mode) -> &'static str {
    match mode {
        Mode::Random => "--random",
        Mode::FullyRandom => "--random-fully",
        Mode::Persistent => "--persistent",
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, DestinationPort::Keep) => return write!(f, "{address}"),
            (IpAddr::V4(address), _) => write!(f, "{address}")?,
            (IpAddr::V6(address), _) => write!(f, "[{address}]")?,
        }
        match self.port {
            DestinationPort::Keep => Ok(()),
            DestinationPort::One(port) => write!(f, ":{port}"),
            DestinationPort::Shift { to, base } => write!(f, ":{}-{}/{base}", to.first(), to.last()),
        }
    }
}

fn destination(text: &str, family: Family) -> Option<Destination> {
    let (address, port) = match (text.strip_prefix('['), family) {
        (Some(rest), Family::Ipv6) => rest.split_once("]:").map(|(address, port)| (address, Some(port)))?,
        (None, Family::Ipv4) => text.split_once(':').map_or((text, None), |(address, port)| (address, Some(port))),
        (None, Family::Ipv6) => (text, None),
        (Some(_), Family::Ipv4) => return None,
    };
    let address: IpAddr = address.parse().ok()?;
    let port = match port {
        None => DestinationPort::Keep,
        Some(text) => match text.split_once('/') {
            None => DestinationPort::One(text.parse().ok()?),
            Some((to, base)) => DestinationPort::Shift { to: to.parse().ok()?, base: base.parse().ok()? },
        },
    };
    (Family::of(address) == family).then_some(Destination { address, port })
}
