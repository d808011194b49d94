//! What expressions ask of registers, and what they do with packets.

use super::dump::Expr;
use super::load::matters;
use super::lookup::Lookup;
use super::reach::verdict_of;
use super::rule::{Branch, Walk};
use super::test::Test;
use super::value::{Byte, Source, exists};
use crate::model::{Counter, Family};
use crate::nft::message::data_value;
use crate::ruleset::read::xt;
use crate::ruleset::region::{Field, family_number};
use crate::ruleset::set::{Set, address_of};
use crate::ruleset::table::{Action, Rewrite};
use crate::sys::netlink::Attributes;

/// `NF_NAT_RANGE_NETMAP` in include/uapi/linux/netfilter/nf_nat.h.
const NETMAP: u32 = 1 << 6;

impl<'a> Walk<'a> {
    /// Words of what is not known in registers, with what they are compared with.
    fn with_value(&mut self, registers: &[Byte], operator: &str, bytes: &[u8]) -> Vec<Byte> {
        registers
            .iter()
            .map(|byte| match self.words_of(*byte) {
                Some(words) => {
                    let value: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    let words = format!("{words} {operator} 0x{value}");
                    self.word(&words)
                }
                None => *byte,
            })
            .collect()
    }

    /// Goes on where registers pass a test.
    fn test(
        &mut self,
        register: u32,
        operator: &str,
        value: &[u8],
        test: impl Fn(&[Byte]) -> (Test, bool),
    ) -> Option<()> {
        exists(register, value.len())?;
        for branch in std::mem::take(&mut self.open) {
            let registers = branch.registers.get(register, value.len()).unwrap_or_default().to_vec();
            let (test, not) = test(&self.with_value(&registers, operator, value));
            let region = match not {
                true => test.outside(&branch.region, self.names()),
                false => test.within(&branch.region, self.names()),
            };
            self.split(branch, region);
        }
        Some(())
    }

    /// `==`, `!=`, `<`, `<=`, `>`, `>=`.
    pub(super) fn cmp(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let (register, operator, value) = (attributes.be_u32(1)?, attributes.be_u32(2)?, data_value(attributes, 3)?);
        let (least, most) = (vec![0; value.len()], vec![0xff; value.len()]);
        let words = *["==", "!=", "<", "<=", ">", ">="].get(usize::try_from(operator).ok()?)?;
        self.test(register, words, value, |registers| match operator {
            0 => (Test::equal(registers, value), false),
            1 => (Test::equal(registers, value), true),
            2 => (Test::between(registers, value, &most), true),
            3 => (Test::between(registers, &least, value), false),
            4 => (Test::between(registers, &least, value), true),
            _ => (Test::between(registers, value, &most), false),
        })
    }

    /// Whether it is between two values.
    pub(super) fn range(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let (register, not) = (attributes.be_u32(1)?, attributes.be_u32(2)? == 1);
        let (low, high) = (data_value(attributes, 3)?, data_value(attributes, 4)?);
        if low.len() != high.len() {
            return None;
        }
        let words = if not { "is not from" } else { "is from" };
        self.test(register, words, low, |registers| (Test::between(registers, low, high), not))
    }

    /// Asks a set, a map or a map of verdicts.
    pub(super) fn lookup_of(&mut self, attributes: Attributes<'_>) -> Option<()> {
        const INVERTED: u32 = 1;
        let lookup = Lookup {
            set: attributes.text(1)?,
            key: attributes.be_u32(2)?,
            data: attributes.be_u32(3),
            inverted: attributes.be_u32(5).unwrap_or(0) & INVERTED > 0,
        };
        self.lookup(&lookup);
        Some(())
    }

    /// A verdict, or bytes for a register.
    pub(super) fn immediate(&mut self, expr: &Expr<'_>) -> Option<()> {
        if let Some(verdict) = verdict_of(expr) {
            for branch in std::mem::take(&mut self.open) {
                self.verdict(branch, &verdict);
            }
            return Some(());
        }
        let (register, value) = (expr.attributes.be_u32(1)?, data_value(expr.attributes, 2)?);
        for branch in &mut self.open {
            branch.registers.put(register, value.iter().map(|byte| Byte::Known(*byte)));
        }
        Some(())
    }

    /// `snat` and `dnat`.
    pub(super) fn nat(&mut self, attributes: Attributes<'_>) -> Option<()> {
        const SNAT: u32 = 0;
        let source = attributes.be_u32(1)? == SNAT;
        let word = if source { "snat" } else { "dnat" };
        let family = match attributes.be_u32(2)? {
            2 => Some(Family::Ipv4),
            10 => Some(Family::Ipv6),
            _ => None,
        };
        if let Some(family) = family {
            self.only(family);
        }
        let registers = |number| attributes.be_u32(number);
        let flags = attributes.be_u32(7).unwrap_or(0);
        self.act(|branch| {
            let addresses = addresses(branch, family, registers(3), registers(4));
            let ports = ports(branch, registers(5), registers(6));
            let rewrite = match (addresses, ports) {
                (Ok(addresses), Ok(ports)) => Rewrite { addresses, ports, base: None, prefix: None },
                _ => return Some(Action::Unknown(format!("{word} to what is not known").into())),
            };
            let Some(rewrite) = with_prefix(rewrite, flags & NETMAP > 0) else {
                return Some(Action::Unknown(format!("{word} prefix to what is none").into()));
            };
            Some(if source { Action::Snat(rewrite) } else { Action::Dnat(rewrite) })
        });
        Some(())
    }

    /// Lets only packets of a family go on, in tables that see both: the others pass the expression by.
    fn only(&mut self, family: Family) {
        if self.context.family.sees(Family::Ipv4) && self.context.family.sees(Family::Ipv6) {
            let number = Set::single(family_number(family));
            self.narrow(|_, branch| {
                Some(branch.region.clone().with(Field::Family, &number)).filter(|region| !region.is_empty())
            });
        }
    }

    /// Adds `tproxy`, which applies only to packets of its family (`nft_tproxy_eval` in net/netfilter/nft_tproxy.c).
    pub(super) fn proxy(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let family = match attributes.be_u32(1) {
            Some(2) => Some(Family::Ipv4),
            Some(10) => Some(Family::Ipv6),
            _ => None,
        };
        if let Some(family) = family {
            self.only(family);
        }
        let (address, port) = (attributes.be_u32(2), attributes.be_u32(3));
        self.act(|branch| match (addresses(branch, family, address, None), ports(branch, port, None)) {
            (Ok(addresses), Ok(ports)) => Some(Action::Proxy(Rewrite { addresses, ports, ..Rewrite::default() })),
            _ => Some(Action::Proxy(Rewrite::default())),
        });
        Some(())
    }

    /// `masquerade` and `redirect`.
    pub(super) fn nat_here(&mut self, expr: &Expr<'_>) -> Option<()> {
        let masquerade = expr.name == "masq";
        let (first, last) = if masquerade { (2, 3) } else { (1, 2) };
        let (first, last) = (expr.attributes.be_u32(first), expr.attributes.be_u32(last));
        self.act(|branch| {
            let Ok(ports) = ports(branch, first, last) else {
                let word = if masquerade { "masquerade" } else { "redirect" };
                return Some(Action::Unknown(format!("{word} to what is not known").into()));
            };
            let rewrite = Rewrite { ports, ..Rewrite::default() };
            Some(if masquerade { Action::Masquerade(rewrite) } else { Action::Redirect(rewrite) })
        });
        Some(())
    }

    /// `meta … set`.
    pub(super) fn set_meta(&mut self, key: u32, from: u32) {
        const MARK: u32 = 3;
        if key == MARK {
            self.set_mark(Field::Mark, from);
        }
    }

    /// `ct … set`.
    pub(super) fn set_ct(&mut self, key: u32, from: u32) {
        const MARK: u32 = 3;
        const LABELS: u32 = 13;
        match key {
            MARK => self.set_mark(Field::ConnectionMark, from),
            LABELS => self.set_labels(from),
            _ => {}
        }
    }

    /// Adds labels to those that the connection has (`nf_connlabels_replace` in `nft_ct_set_eval`).
    fn set_labels(&mut self, from: u32) {
        for branch in &mut self.open {
            let known = |bytes: Vec<Byte>| {
                bytes.into_iter().map(|byte| if let Byte::Known(byte) = byte { Some(byte) } else { None }).collect()
            };
            let bytes: Option<Vec<u8>> = branch.registers.get(from, 16).and_then(|bytes| known(bytes.to_vec()));
            branch.actions.push(match bytes.and_then(|bytes| bytes.try_into().ok()).map(u128::from_be_bytes) {
                Some(labels) => Action::Mark { field: Field::Label, mask: labels, value: labels },
                None => Action::MarkUnknown { field: Field::Label },
            });
        }
    }

    fn set_mark(&mut self, field: Field, from: u32) {
        for branch in &mut self.open {
            let Some(bytes) = branch.registers.get(from, 4).and_then(|bytes| <[Byte; 4]>::try_from(bytes).ok()) else {
                branch.actions.push(Action::MarkUnknown { field });
                continue;
            };
            let other = if field == Field::Mark { Field::ConnectionMark } else { Field::Mark };
            let set = |field| branch.marks.iter().rev().find(|(of, _)| *of == field).map(|(_, bytes)| bytes);
            let action = if bytes.iter().any(|byte| !matches!(byte, Byte::Known(_))) && set(other) == Some(&bytes) {
                Action::CopyMark { to: field }
            } else if [field, other].into_iter().any(|of| set(of).is_some() && is_of(&bytes, of)) {
                // What was loaded may be older than what has become of it.
                Action::MarkUnknown { field }
            } else {
                mark(field, &bytes).unwrap_or(Action::MarkUnknown { field })
            };
            branch.marks.push((field, bytes));
            branch.actions.push(action);
        }
    }

    /// Something is written into the packet.
    pub(super) fn set_payload(&mut self, base: u32, offset: u32, length: u32) {
        for branch in std::mem::take(&mut self.open) {
            if matters(base, offset, length, &branch, self.family(&branch.region)) {
                self.did(branch, Action::Unknown("addresses or ports that are set without NAT".into()));
            } else {
                self.open.push(branch);
            }
        }
    }

    /// A counter.
    pub(super) fn count(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let number = |kind| attributes.be_u64(kind).unwrap_or(0);
        self.counter.get_or_insert(Counter { packets: number(2), bytes: number(1) });
        Some(())
    }

    /// An object by its name, or one that a map gives.
    pub(super) fn object(&mut self, attributes: Attributes<'_>) -> Option<()> {
        const QUOTA: u32 = 2;
        const LIMIT: u32 = 4;
        const CONNLIMIT: u32 = 5;
        const SYNPROXY: u32 = 10;
        match (attributes.be_u32(1), attributes.text(4)) {
            (_, Some(map)) => self.doubt(&format!("@{map}")),
            (Some(QUOTA), _) => self.doubt("quota"),
            (Some(LIMIT), _) => self.doubt("limit"),
            (Some(CONNLIMIT), _) => self.doubt("ct count"),
            (Some(SYNPROXY), _) => self.act(|_| Some(Action::Unknown("synproxy".into()))),
            // Counters, helpers, timeouts, labels, expectations.
            (Some(1..=9), _) => {}
            _ => return None,
        }
        Some(())
    }

    /// Something is put into a set. Where that comes with more than a counter, that may say no.
    pub(super) fn dynset(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let one = attributes.nested(7).map(Expr::of);
        let more = attributes.nested(10).unwrap_or_default();
        let more = more.iter().map(|(_, expr)| Expr::of(Attributes::new(expr)));
        let asks: Vec<String> = one.into_iter().chain(more).map(|expr| expr.name).collect();
        for name in asks.iter().filter(|name| !matches!(name.as_str(), "counter" | "last")) {
            self.doubt(name);
        }
        Some(())
    }

    /// A match of x_tables.
    pub(super) fn compat_match(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let (name, revision) = (attributes.text(1)?, attributes.be_u32(2)?);
        let info = attributes.get(3).unwrap_or_default();
        if name == "comment" {
            self.comment = xt::comment(info).map(Into::into);
            return Some(());
        }
        for branch in std::mem::take(&mut self.open) {
            let family = self.family(&branch.region);
            let ipset = |number| self.context.numbers.ipsets.name(number);
            let (regions, actions) = xt::matches(&name, revision, info, family, ipset);
            let within = regions.iter().map(|region| branch.region.and(region)).filter(|region| !region.is_empty());
            let within: Vec<_> = within.collect();
            let others = std::mem::take(&mut self.open);
            self.split(branch, within);
            for action in actions {
                self.act(|_| Some(action.clone()));
            }
            let new = std::mem::replace(&mut self.open, others);
            self.open.extend(new);
        }
        Some(())
    }

    /// A target of x_tables.
    pub(super) fn compat_target(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let (name, revision) = (attributes.text(1)?, attributes.be_u32(2)?);
        let info = attributes.get(3).unwrap_or_default();
        for branch in std::mem::take(&mut self.open) {
            let family = self.family(&branch.region);
            match xt::target(&name, revision, info, family) {
                Some(action) => self.did(branch, action),
                None => self.open.push(branch),
            }
        }
        Some(())
    }
}

/// Whether bytes are of a mark.
fn is_of(bytes: &[Byte; 4], field: Field) -> bool {
    bytes.iter().any(|byte| matches!(byte, Byte::Of { source: Source::Field(of, _), .. } if *of == field))
}

/// What setting a mark to these bytes is; `None` where that cannot be told.
fn mark(field: Field, bytes: &[Byte; 4]) -> Option<Action> {
    let place = |at: usize| if cfg!(target_endian = "little") { at * 8 } else { 24 - at * 8 };
    let (mut keeps, mut value, mut copies) = (0u128, 0u128, 0usize);
    for (at, byte) in bytes.iter().enumerate() {
        match *byte {
            Byte::Known(byte) => value |= u128::from(byte) << place(at),
            Byte::Of { source: Source::Field(of, 32), shift, mask, flip } if usize::from(shift) == place(at) => {
                if of == field {
                    keeps |= u128::from(mask) << place(at);
                    value |= u128::from(flip) << place(at);
                } else if matches!(of, Field::Mark | Field::ConnectionMark) && of != field && (mask, flip) == (0xff, 0)
                {
                    copies += 1;
                } else {
                    return None;
                }
            }
            _ => return None,
        }
    }
    match copies {
        0 => Some(Action::Mark { field, mask: 0xffff_ffff & !keeps, value }),
        4 => Some(Action::CopyMark { to: field }),
        _ => None,
    }
}

/// Something in a register that is not known.
struct NotKnown;

type Ends<T> = Result<Option<(T, T)>, NotKnown>;

/// The addresses in two registers.
fn addresses(
    branch: &Branch<'_>,
    family: Option<Family>,
    first: Option<u32>,
    last: Option<u32>,
) -> Ends<std::net::IpAddr> {
    let Some(first) = first else { return Ok(None) };
    let address = |register| {
        let number = match family? {
            Family::Ipv4 => u32::from_be_bytes(branch.registers.known(register)?).into(),
            Family::Ipv6 => u128::from_be_bytes(branch.registers.known(register)?),
        };
        address_of(number, family?)
    };
    let ends = address(first).and_then(|low| Some((low, address(last.unwrap_or(first))?)));
    ends.map(Some).ok_or(NotKnown)
}

/// The ports in two registers.
fn ports(branch: &Branch<'_>, first: Option<u32>, last: Option<u32>) -> Ends<u16> {
    let Some(first) = first else { return Ok(None) };
    let port = |register| branch.registers.known(register).map(u16::from_be_bytes);
    let ends = port(first).and_then(|low| Some((low, port(last.unwrap_or(first))?)));
    ends.map(Some).ok_or(NotKnown)
}

/// The same where only a prefix is rewritten; `None` where the addresses are none.
pub(in crate::ruleset::read) fn with_prefix(rewrite: Rewrite, prefix: bool) -> Option<Rewrite> {
    if !prefix {
        return Some(rewrite);
    }
    let (low, high) = rewrite.addresses?;
    let bits = |address| crate::ruleset::set::number_of(address);
    let (low, high) = (bits(low), bits(high));
    let width = if rewrite.addresses?.0.is_ipv4() { 32 } else { 128 };
    let behind = low ^ high;
    let whole = behind.checked_add(1).is_none_or(u128::is_power_of_two) && low & behind == 0;
    let length = width - (128 - behind.leading_zeros());
    whole.then(|| Some(Rewrite { prefix: Some(u8::try_from(length).ok()?), ..rewrite })).flatten()
}
