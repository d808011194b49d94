//! Writes and reads the targets of rules, in the syntax of iptables(8).

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::quoting::{self, Words};
use crate::model::{Family, Mode, Pool, PortRange};

/// The prefix of all chain names that belong to portfwd.
pub const PREFIX: &str = "PORTFWD";

/// The new destination of a `DNAT` target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The new address.
    pub address: IpAddr,
    /// The new port or ports.
    pub port: DestinationPort,
}

/// The new destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationPort {
    /// The destination port does not change.
    Keep,
    /// The target rewrites every port to one port.
    One(u16),
    /// `LO-HI/BASE`: maps the ports from `base` upwards to a range, one to one.
    Shift {
        /// The range of new ports.
        to: PortRange,
        /// The port that the target maps to the first port of the range.
        base: u16,
    },
}

/// The target of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Jumps to another chain. If no rule of that chain gives a verdict, the packet returns.
    Jump(Arc<str>),
    /// `RETURN`: returns to the calling chain.
    Return,
    /// `DROP`: drops the packet.
    Drop,
    /// `DNAT`: rewrites the destination.
    Dnat(Destination),
    /// `REDIRECT`: rewrites the destination to this host. Also rewrites the port unless the port is `None`.
    Redirect(Option<u16>),
    /// `SNAT`: rewrites the source to an address from a pool.
    Snat(Pool, Option<Mode>),
    /// `MASQUERADE`: rewrites the source to the address of the egress interface.
    Masquerade,
    /// `NETMAP`: rewrites the network part of an address.
    Netmap(IpNetwork),
}

impl Target {
    /// Appends the target as text, with a space before each word.
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        match self {
            Self::Jump(chain) => {
                out.push_str(" -j ");
                quoting::push_quoted(chain, out);
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

    /// Reads a target from the words after `-j`. The inverse of [`Target::write`]. Returns `None` if portfwd does not
    /// write such a target.
    pub(super) fn read(words: &mut Words<'_>, family: Family) -> Option<Self> {
        let target = match words.next()? {
            "RETURN" => Self::Return,
            "DROP" => Self::Drop,
            "MASQUERADE" => Self::Masquerade,
            "DNAT" if words.take_if("--to-destination") => Self::Dnat(destination(words.next()?, family)?),
            "REDIRECT" if words.take_if("--to-ports") => Self::Redirect(Some(words.next()?.parse().ok()?)),
            "REDIRECT" => Self::Redirect(None),
            "SNAT" if words.take_if("--to-source") => {
                let pool = Pool::try_from(words.next()?.to_owned()).ok()?;
                let modes = [Mode::Random, Mode::FullyRandom, Mode::Persistent];
                let mode = modes.into_iter().find(|mode| words.take_if(flag(*mode)));
                (pool.family() == family).then_some(Self::Snat(pool, mode))?
            }
            "NETMAP" if words.take_if("--to") => {
                let network: IpNetwork = words.next()?.parse().ok()?;
                (Family::of_network(network) == family).then_some(Self::Netmap(network))?
            }
            chain if chain.starts_with(PREFIX) => Self::Jump(chain.into()),
            _ => return None,
        };
        words.is_at_end().then_some(target)
    }
}

/// Returns the option of the `SNAT` target for a mode.
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
    (Family::of_address(address) == family).then_some(Destination { address, port })
}
