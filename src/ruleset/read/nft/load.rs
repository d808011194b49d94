//! What expressions load into registers, and what they make of it there.
//!
//! Source of the numbers: include/uapi/linux/netfilter/nf_tables.h, and net/netfilter/nft_{meta,ct,payload,fib}.c.

use super::dump::Expr;
use super::rule::{Branch, Walk};
use super::value::{Byte, Source, in_host_order, in_network_order};
use crate::model::Family;
use crate::nft::message::data_value;
use crate::ruleset::region::{Field, Region};
use crate::ruleset::set::Set;
use crate::sys::netlink::Attributes;

/// The protocols whose header begins with two ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u128; 5] = [6, 17, 33, 132, 136];

const MARK: Source = Source::Field(Field::Mark, 32);
const CONNECTION_MARK: Source = Source::Field(Field::ConnectionMark, 32);
const PROTOCOL: Source = Source::Field(Field::Protocol, 8);

/// `meta` by `NFT_META_…`, in the words of nft(8).
const META: [&str; 35] = [
    "length",
    "protocol",
    "priority",
    "mark",
    "iif",
    "oif",
    "iifname",
    "oifname",
    "iiftype",
    "oiftype",
    "skuid",
    "skgid",
    "nftrace",
    "rtclassid",
    "secmark",
    "nfproto",
    "l4proto",
    "ibrname",
    "obrname",
    "pkttype",
    "cpu",
    "iifgroup",
    "oifgroup",
    "cgroup",
    "random",
    "ipsec",
    "iifkind",
    "oifkind",
    "ibrpvid",
    "ibrvproto",
    "time",
    "day",
    "hour",
    "sdif",
    "sdifname",
];

/// `ct` by `NFT_CT_…`.
const CT: [&str; 24] = [
    "state",
    "direction",
    "status",
    "mark",
    "secmark",
    "expiration",
    "helper",
    "l3proto",
    "saddr",
    "daddr",
    "protocol",
    "proto-src",
    "proto-dst",
    "label",
    "packets",
    "bytes",
    "avgpkt",
    "zone",
    "event",
    "ip saddr",
    "ip daddr",
    "ip6 saddr",
    "ip6 daddr",
    "id",
];

fn name(names: &[&'static str], number: u32) -> &'static str {
    usize::try_from(number).ok().and_then(|number| names.get(number)).copied().unwrap_or("unknown")
}

/// What is loaded.
enum Load {
    /// A number in the order of this host, of so many bytes.
    Host(Source, u8),
    /// The same in network byte order.
    Network(Source, u8),
    /// Something that is not known, in words.
    Unknown(String),
}

impl Walk<'_> {
    /// `meta`, `ct`, `payload` and others that load something, or set it.
    pub(super) fn load_or_set(&mut self, expr: &Expr<'_>) -> Option<()> {
        let attributes = expr.attributes;
        match expr.name.as_str() {
            "meta" => match attributes.be_u32(3) {
                Some(from) => self.set_meta(attributes.be_u32(2)?, from),
                None => self.meta(attributes.be_u32(1)?, attributes.be_u32(2)?),
            },
            "ct" => match attributes.be_u32(4) {
                Some(from) => self.set_ct(attributes.be_u32(2)?, from),
                None => {
                    let direction = attributes.get(3).and_then(|bytes| bytes.first()).copied();
                    self.ct(attributes.be_u32(1)?, attributes.be_u32(2)?, direction);
                }
            },
            "payload" => match attributes.be_u32(5) {
                Some(_) => self.set_payload(attributes.be_u32(2)?, attributes.be_u32(3)?, attributes.be_u32(4)?),
                None => self.payload(
                    attributes.be_u32(1)?,
                    attributes.be_u32(2)?,
                    attributes.be_u32(3)?,
                    attributes.be_u32(4)?,
                ),
            },
            "fib" => self.fib(attributes.be_u32(1)?, attributes.be_u32(2)?, attributes.be_u32(3)?),
            // Of options of the packet that are set nothing depends.
            "exthdr" if attributes.be_u32(7).is_some() => {}
            "exthdr" => {
                // One that is taken away has no register.
                if let Some(register) = attributes.be_u32(1) {
                    self.unknown(register, "exthdr");
                }
            }
            "numgen" => {
                let kind = if attributes.be_u32(3) == Some(0) { "inc" } else { "random" };
                let words = format!("numgen {kind} mod {}", attributes.be_u32(2).unwrap_or(0));
                self.unknown(attributes.be_u32(1)?, &words);
            }
            "hash" => {
                let kind = if attributes.be_u32(7) == Some(1) { "symhash" } else { "jhash" };
                self.unknown(attributes.be_u32(2)?, &format!("{kind} mod {}", attributes.be_u32(4).unwrap_or(0)));
            }
            "socket" => self.unknown(attributes.be_u32(2)?, "socket"),
            name => self.unknown(attributes.be_u32(1)?, name),
        }
        Some(())
    }

    /// Something is loaded of which nothing is known: as much as a register holds.
    fn unknown(&mut self, register: u32, words: &str) {
        self.load(register, |_| Load::Unknown(words.to_owned()));
    }

    fn load(&mut self, register: u32, what: impl Fn(&Region) -> Load) {
        for mut branch in std::mem::take(&mut self.open) {
            match what(&branch.region) {
                Load::Host(source, length) => branch.registers.put(register, in_host_order(source, length)),
                Load::Network(source, length) => branch.registers.put(register, in_network_order(source, length)),
                Load::Unknown(words) => {
                    let unknown = self.word(&words);
                    branch.registers.put(register, [unknown; 16]);
                }
            }
            self.open.push(branch);
        }
    }

    /// A mark is loaded: what this rule set it to, where it did.
    fn mark(&mut self, register: u32, field: Field, source: Source) {
        for branch in &mut self.open {
            match branch.marks.iter().rev().find(|(of, _)| *of == field) {
                Some((_, bytes)) => branch.registers.put(register, *bytes),
                None => branch.registers.put(register, in_host_order(source, 4)),
            }
        }
    }

    fn meta(&mut self, register: u32, key: u32) {
        let load = |load: fn() -> Load| move |_: &Region| load();
        match key {
            1 => self.load(register, load(|| Load::Network(Source::Ethertype, 2))),
            3 => self.mark(register, Field::Mark, MARK),
            4 => self.load(register, load(|| Load::Host(Source::Index(Field::Input), 4))),
            5 => self.load(register, load(|| Load::Host(Source::Index(Field::Output), 4))),
            6 => self.load(register, load(|| Load::Network(Source::Field(Field::Input, 128), 16))),
            7 => self.load(register, load(|| Load::Network(Source::Field(Field::Output, 128), 16))),
            15 => self.load(register, load(|| Load::Network(Source::Nfproto, 1))),
            16 => self.load(register, load(|| Load::Network(PROTOCOL, 1))),
            _ => self.unknown(register, &format!("meta {}", name(&META, key))),
        }
    }

    fn ct(&mut self, register: u32, key: u32, direction: Option<u8>) {
        const ORIGINAL: u8 = 0;
        let original = direction == Some(ORIGINAL);
        let words = || {
            let direction = match direction {
                None => "",
                Some(ORIGINAL) => "original ",
                Some(_) => "reply ",
            };
            format!("ct {direction}{}", name(&CT, key))
        };
        let destination = |bits: u8| Load::Network(Source::Field(Field::OriginalDestination, bits), bits / 8);
        match key {
            0 => self.load(register, |_| Load::Host(Source::State, 4)),
            1 => self.load(register, |_| Load::Network(Source::Field(Field::Direction, 8), 1)),
            2 => self.load(register, |_| Load::Host(Source::Field(Field::Status, 32), 4)),
            3 => self.mark(register, Field::ConnectionMark, CONNECTION_MARK),
            7 => self.load(register, |_| Load::Network(Source::Nfproto, 1)),
            13 => self.load(register, |_| Load::Network(Source::Field(Field::Label, 128), 16)),
            10 => self.load(register, |_| Load::Network(PROTOCOL, 1)),
            12 if original => {
                self.load(register, |_| Load::Network(Source::Field(Field::OriginalPort, 16), 2));
            }
            9 if original => {
                let family = self.context.family;
                for mut branch in std::mem::take(&mut self.open) {
                    let load = match self.family(&branch.region) {
                        Some(Family::Ipv4) => Some(32),
                        Some(Family::Ipv6) => Some(128),
                        None => None,
                    };
                    match load {
                        Some(bits) => {
                            let source = Source::Field(Field::OriginalDestination, bits);
                            branch.registers.put(register, in_network_order(source, bits / 8));
                        }
                        None => {
                            let unknown = self.word(&format!("{} in {}", words(), family.name()));
                            branch.registers.put(register, [unknown; 16]);
                        }
                    }
                    self.open.push(branch);
                }
            }
            20 if original => self.load(register, |_| destination(32)),
            22 if original => self.load(register, |_| destination(128)),
            _ => self.unknown(register, &words()),
        }
    }

    fn fib(&mut self, register: u32, result: u32, flags: u32) {
        const SOURCE: u32 = 1;
        const DESTINATION: u32 = 2;
        const ADDRESS_TYPE: u32 = 3;
        const OUTPUT: u32 = 1;
        const INPUT: u32 = 1 << 3;
        const PRESENT: u32 = 1 << 5;
        match (result, flags) {
            (ADDRESS_TYPE, DESTINATION) => {
                self.load(register, |_| Load::Host(Source::Field(Field::DestinationKind, 32), 4));
            }
            // The result is one byte; the rest of the register is 0.
            (OUTPUT, flags) if flags == DESTINATION | INPUT | PRESENT => {
                self.load(register, |_| Load::Host(Source::Field(Field::RouteViaInput, 32), 4));
            }
            (ADDRESS_TYPE, SOURCE) => self.load(register, |_| Load::Host(Source::Field(Field::SourceKind, 32), 4)),
            _ => {
                let parts = [(1, "saddr"), (2, "daddr"), (4, "mark"), (8, "iif"), (16, "oif")];
                let parts: Vec<&str> = parts.iter().filter(|(bit, _)| flags & bit > 0).map(|(_, word)| *word).collect();
                let result = name(&["", "oif", "oifname", "type"], result);
                self.unknown(register, &format!("fib {} {result}", parts.join(" . ")));
            }
        }
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, length: u32) {
        let words = format!("@{},{},{}", base_name(base), bits(offset), bits(length));
        let unknown = self.word(&words);
        for mut branch in std::mem::take(&mut self.open) {
            let header = header(base, self.family(&branch.region), &branch.region);
            let bytes = (0..length.min(64)).map(|at| {
                let at = offset.saturating_add(at);
                let part = header.iter().find(|(start, size, _)| (*start..start + u32::from(*size)).contains(&at));
                let byte = part.and_then(|(start, size, source)| {
                    let at = usize::try_from(at.checked_sub(*start)?).ok()?;
                    in_network_order(*source, *size).nth(at)
                });
                byte.unwrap_or(unknown)
            });
            branch.registers.put(register, bytes);
            self.open.push(branch);
        }
    }

    /// `(register & mask) ^ xor`, and shifts.
    pub(super) fn bitwise(&mut self, attributes: Attributes<'_>) -> Option<()> {
        const MASK_AND_XOR: u32 = 0;
        let (from, to) = (attributes.be_u32(1)?, attributes.be_u32(2)?);
        let length = usize::try_from(attributes.be_u32(3)?).ok()?;
        let boolean = attributes.be_u32(6).unwrap_or(MASK_AND_XOR) == MASK_AND_XOR;
        let operands = boolean.then(|| Some((data_value(attributes, 4)?, data_value(attributes, 5)?))).flatten();
        let shifted = self.word("bits that were shifted");
        self.each_value(from, to, length, |bytes| match operands {
            Some((mask, xor)) => {
                for ((byte, mask), xor) in bytes.iter_mut().zip(mask).zip(xor) {
                    *byte = byte.bitwise(*mask, *xor);
                }
            }
            // A shift is by bits, and so no byte is what it was.
            None => bytes.fill(shifted),
        })
    }

    /// Turns numbers round.
    pub(super) fn byteorder(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let (from, to) = (attributes.be_u32(1)?, attributes.be_u32(2)?);
        let length = usize::try_from(attributes.be_u32(4)?).ok()?;
        let size = usize::try_from(attributes.be_u32(5)?).ok().filter(|size| (1..=8).contains(size))?;
        self.each_value(from, to, length, |bytes| {
            if cfg!(target_endian = "little") {
                bytes.chunks_mut(size).for_each(<[Byte]>::reverse);
            }
        })
    }

    fn each_value(&mut self, from: u32, to: u32, length: usize, change: impl Fn(&mut [Byte])) -> Option<()> {
        for branch in &mut self.open {
            let mut bytes = branch.registers.get(from, length)?.to_vec();
            change(&mut bytes);
            branch.registers.get_mut(to, length)?.copy_from_slice(&bytes);
        }
        Some(())
    }
}

/// Bits of bytes, as nft(8) counts them.
fn bits(bytes: u32) -> u64 {
    u64::from(bytes) * 8
}

fn base_name(base: u32) -> &'static str {
    name(&["ll", "nh", "th", "ih"], base)
}

/// A number in a header: its first byte, how many it has, what it is.
type Part = (u32, u8, Source);

const ETHERNET: [Part; 1] = [(12, 2, Source::Ethertype)];
const IPV4: [Part; 3] =
    [(9, 1, PROTOCOL), (12, 4, Source::Field(Field::Source, 32)), (16, 4, Source::Field(Field::Destination, 32))];
const IPV6: [Part; 3] =
    [(6, 1, PROTOCOL), (8, 16, Source::Field(Field::Source, 128)), (24, 16, Source::Field(Field::Destination, 128))];
const PORTS: [Part; 2] = [(0, 2, Source::Field(Field::SourcePort, 16)), (2, 2, Source::Field(Field::Port, 16))];
const TCP: [Part; 3] = [PORTS[0], PORTS[1], (13, 1, Source::Field(Field::TcpFlags, 8))];

/// What is known of a header of a branch's packets.
fn header(base: u32, family: Option<Family>, region: &Region) -> &'static [Part] {
    match (base, family) {
        (0, _) => &ETHERNET,
        (1, Some(Family::Ipv4)) => &IPV4,
        (1, Some(Family::Ipv6)) => &IPV6,
        (2, _) if region.get(Field::Protocol).only() == Some(6) => &TCP,
        (2, _) if region.get(Field::Protocol).meets(&Set::from_ranges(WITH_PORTS.map(|number| (number, number)))) => {
            &PORTS
        }
        _ => &[],
    }
}

/// What is written into a packet at a place: whether anything that we know of depends on it.
pub(super) fn matters(base: u32, offset: u32, length: u32, branch: &Branch<'_>, family: Option<Family>) -> bool {
    let end = offset.saturating_add(length);
    let known = header(base, family, &branch.region);
    // Of a family that is not known it may be anything.
    let unknown = base == 1 && family.is_none();
    unknown || known.iter().any(|(start, size, _)| offset < start + u32::from(*size) && *start < end)
}
