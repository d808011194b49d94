//! A comparison of registers with bytes, as a question about the packet.

use std::collections::HashMap;
use std::sync::Arc;

use super::value::{Byte, Source, Want};
use crate::ruleset::region::{Condition, Region};
use crate::ruleset::set::Set;

/// What must be so for registers to hold some bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Test {
    /// It never is.
    never: bool,
    wants: Vec<(Source, Want)>,
    /// The numbers of the words of what is not known.
    unknown: Vec<u16>,
}

/// What tests are asked with.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    /// The names of interfaces by their numbers.
    pub(super) links: &'a HashMap<u32, String>,
    /// The words of what is not known.
    pub(super) words: &'a [Arc<str>],
}

impl Test {
    /// Whether registers hold exactly these bytes.
    pub(super) fn equal(registers: &[Byte], bytes: &[u8]) -> Self {
        let mut test = Self::default();
        for (register, byte) in registers.iter().zip(bytes) {
            match *register {
                Byte::Known(known) => test.never |= known != *byte,
                Byte::Unknown(words) => test.doubt(words),
                Byte::Of { source, shift, mask, flip } => {
                    let wanted = byte ^ flip;
                    test.never |= wanted & !mask != 0;
                    test.bits(source, u128::from(mask) << shift, u128::from(wanted & mask) << shift);
                }
            }
        }
        test
    }

    /// Whether they hold something between these, both included, as the kernel compares: byte by byte.
    pub(super) fn between(registers: &[Byte], low: &[u8], high: &[u8]) -> Self {
        if low == high {
            return Self::equal(registers, low);
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        if let Some(known) = registers.iter().map(|byte| known(*byte)).collect::<Option<Vec<u8>>>() {
            return Self { never: !(low..=high).contains(&known.as_slice()), ..Self::default() };
        }
        let mut test = Self::default();
        match in_order(registers) {
            Some((source, shift)) if low.len() <= 16 && high.len() <= 16 => {
                let below = (1u128 << shift) - 1;
                let set = Set::range(number(low) << shift, number(high) << shift | below);
                test.wants.push((source, Want::In(set)));
            }
            _ => {
                let words = registers.iter().find_map(|byte| match byte {
                    Byte::Unknown(words) => Some(*words),
                    _ => None,
                });
                // 0 are the words for what has none.
                test.doubt(words.unwrap_or(0));
            }
        }
        test
    }

    /// Both.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.never |= other.never;
        for (source, want) in other.wants {
            match want {
                Want::Bits { mask, value } => self.bits(source, mask, value),
                Want::In(_) => self.wants.push((source, want)),
            }
        }
        other.unknown.into_iter().for_each(|words| self.doubt(words));
        self
    }

    /// Whether something is asked that is not known.
    pub(super) fn is_known(&self) -> bool {
        self.unknown.is_empty()
    }

    /// The set of one number that is all that it asks for.
    pub(super) fn set(&self) -> Option<(Source, Set)> {
        match self.wants.as_slice() {
            [(source, want)] if self.unknown.is_empty() && !self.never => Some((*source, source.set(want)?)),
            _ => None,
        }
    }

    /// Asks for it being so. `None` where no packet is left.
    pub(super) fn within(&self, region: &Region, names: Names<'_>) -> Option<Region> {
        if self.never {
            return None;
        }
        let mut region = region.clone();
        for (source, want) in &self.wants {
            source.narrow(&mut region, want, false, names.links);
        }
        for words in &self.unknown {
            region.add_condition(Condition::Unknown(word(names, *words)));
        }
        (!region.is_empty()).then_some(region)
    }

    /// Asks for it not being so. `None` where no packet is left.
    pub(super) fn outside(&self, region: &Region, names: Names<'_>) -> Option<Region> {
        if self.never {
            return Some(region.clone());
        }
        let mut region = region.clone();
        match (self.wants.as_slice(), self.unknown.as_slice()) {
            ([], []) => return None,
            ([(source, want)], []) => source.narrow(&mut region, want, true, names.links),
            (_, []) => match self.within(&Region::all(), names) {
                Some(inside) => region.add_condition(Condition::Outside(Arc::new([inside]))),
                None => return Some(region),
            },
            (_, [words, ..]) => region.add_condition(Condition::Unknown(word(names, *words))),
        }
        (!region.is_empty()).then_some(region)
    }

    fn bits(&mut self, source: Source, mask: u128, value: u128) {
        for (of, want) in &mut self.wants {
            if let Want::Bits { mask: asked, value: wanted } = want
                && *of == source
            {
                self.never |= (*wanted ^ value) & mask & *asked != 0;
                *asked |= mask;
                *wanted |= value;
                return;
            }
        }
        self.wants.push((source, Want::Bits { mask, value }));
    }

    fn doubt(&mut self, words: u16) {
        if !self.unknown.contains(&words) {
            self.unknown.push(words);
        }
    }
}

fn word(names: Names<'_>, number: u16) -> Arc<str> {
    names.words.get(usize::from(number)).cloned().unwrap_or_else(|| "something".into())
}

fn known(byte: Byte) -> Option<u8> {
    match byte {
        Byte::Known(byte) => Some(byte),
        _ => None,
    }
}

/// Whether these are the first bytes of one number in network byte order, and how many of its bits are behind them.
fn in_order(registers: &[Byte]) -> Option<(Source, u8)> {
    let (mut of, mut next) = (None, None);
    for byte in registers {
        let Byte::Of { source, shift, mask: 0xff, flip: 0 } = *byte else { return None };
        let expected = match next {
            None => source.top()?,
            Some(next) => next,
        };
        if shift != expected || of.is_some_and(|of| of != source) {
            return None;
        }
        of = Some(source);
        // Behind the lowest one nothing is expected that there is.
        next = Some(shift.checked_sub(8).unwrap_or(u8::MAX));
    }
    let shift = next.map(|next| if next == u8::MAX { 0 } else { next + 8 })?;
    Some((of?, shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::read::nft::value::{in_host_order, in_network_order};
    use crate::ruleset::region::Field;

    const PORT: Source = Source::Field(Field::Port, 16);
    const FROM: Source = Source::Field(Field::SourcePort, 16);

    fn ask(test: &Test, not: bool) -> Option<Region> {
        let (links, words) = (HashMap::new(), ["something".into()]);
        let names = Names { links: &links, words: &words };
        if not { test.outside(&Region::all(), names) } else { test.within(&Region::all(), names) }
    }

    #[test]
    fn two_fields_are_compared_at_once() {
        let both: Vec<Byte> = in_network_order(FROM, 2).chain(in_network_order(PORT, 2)).collect();
        let test = Test::equal(&both, &[0, 5, 0x1f, 0x90]);
        let region = ask(&test, false).expect("some");
        assert_eq!((region.get(Field::SourcePort), region.get(Field::Port)), (&Set::single(5), &Set::single(8080)));
        let outside = ask(&test, true).expect("some");
        assert!(matches!(outside.conditions(), [Condition::Outside(_)]));
        assert_eq!(test.set(), None);
    }

    #[test]
    fn a_part_of_a_field_is_a_range() {
        let address: Vec<Byte> = in_network_order(Source::Field(Field::Destination, 32), 4).take(2).collect();
        let region = ask(&Test::equal(&address, &[172, 17]), false).expect("some");
        assert_eq!(region.get(Field::Destination), &Set::range(0xac11_0000, 0xac11_ffff));
        let region = ask(&Test::between(&address, &[10, 1], &[10, 2]), false).expect("some");
        assert_eq!(region.get(Field::Destination), &Set::range(0x0a01_0000, 0x0a02_ffff));
    }

    #[test]
    fn ranges_are_of_network_byte_order() {
        let port: Vec<Byte> = in_network_order(PORT, 2).collect();
        let test = Test::between(&port, &[0, 80], &[0, 90]);
        assert_eq!(ask(&test, false).expect("some").get(Field::Port), &Set::range(80, 90));
        assert!(!ask(&test, true).expect("some").get(Field::Port).has(85));
        let mark: Vec<Byte> = in_host_order(Source::Field(Field::Mark, 32), 4).collect();
        let test = Test::between(&mark, &[0, 0, 0, 1], &[0, 0, 0, 9]);
        assert_eq!(test.is_known(), cfg!(target_endian = "big"), "the order of this host is no order of bytes");
    }

    #[test]
    fn what_is_known_is_decided() {
        let known = [Byte::Known(1), Byte::Known(2)];
        assert!(
            ask(&Test::equal(&known, &[1, 2]), false).is_some() && ask(&Test::equal(&known, &[1, 2]), true).is_none()
        );
        assert!(
            ask(&Test::equal(&known, &[1, 3]), false).is_none() && ask(&Test::equal(&known, &[1, 3]), true).is_some()
        );
        assert!(ask(&Test::between(&known, &[1, 0], &[1, 9]), false).is_some());
        assert!(ask(&Test::between(&known, &[1, 3], &[1, 9]), false).is_none());
    }

    #[test]
    fn bits_that_were_masked_away_are_not_asked_for() {
        let mark: Vec<Byte> =
            in_host_order(Source::Field(Field::Mark, 32), 4).map(|byte| byte.bitwise(0xf0, 0)).collect();
        assert!(ask(&Test::equal(&mark, &[0x0f, 0, 0, 0]), false).is_none());
    }

    #[test]
    fn what_is_not_known_stays_so() {
        let test = Test::equal(&[Byte::Unknown(0)], &[1]);
        assert!(!ask(&test, false).expect("some").is_known() && !ask(&test, true).expect("some").is_known());
    }
}
