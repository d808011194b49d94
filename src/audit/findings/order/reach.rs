//! Finds the packets that reach a step: its region without the packets that earlier steps decide.
//!
//! The region is split into pieces at each earlier step that it intersects. A step removes the pieces that it decides. A piece
//! that skips steps stores the next step that evaluates it. Each piece stores whether all matches so far are understood.

use std::collections::{HashMap, HashSet};

use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::host::Host;
use crate::ruleset::index::RegionIndex;
use crate::ruleset::order;
use crate::ruleset::region::{Field, LOCAL, Region};
use crate::ruleset::set::Set;
use crate::ruleset::table::Hook;
use crate::ruleset::view::{Fate, HookPath, Step};

/// The maximum number of pieces of one region. With more pieces, the result is unknown.
const MOST: usize = 256;

/// The maximum number of earlier steps that are compared with one step. With more steps, the result is unknown.
const MOST_STEPS: usize = 1024;

/// The maximum number of comparisons on one host. The results of later steps are unknown.
const MOST_PAIRS: usize = 2_000_000;

/// A part of a region whose packets take the same path.
#[derive(Debug, Clone)]
struct Piece {
    region: Region,
    /// The index of the next step that evaluates the piece.
    next: usize,
    /// True if the piece certainly reaches that step.
    sure: bool,
}

/// An earlier step that takes packets of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// The index of the step.
    pub step: usize,
    /// True if such a packet certainly exists.
    pub sure: bool,
}

/// The packets that reach a step.
#[derive(Debug, Clone, Default)]
pub(super) struct Reach {
    /// True if a packet certainly reaches the step.
    pub some: bool,
    /// True if certainly no packet reaches the step.
    pub none: bool,
    /// True if no packet to this host reaches the step, and the addresses of this host are unknown.
    pub none_local: bool,
    /// The earlier steps that decide the other packets, or continue them after this step.
    pub cuts: Vec<Cut>,
    /// The steps of other tables with the same priority that decide some of these packets.
    pub ties: Vec<usize>,
    /// True if a rule that is not understood may let packets skip earlier steps.
    pub foreign: bool,
    /// True if the limits were reached.
    pub too_much: bool,
}

/// Returns the packets that reach step `at` of a path. `earlier` contains the earlier steps that intersect it. `tied` returns
/// true for a step that may come later. `left` is the number of comparisons that are left for the host.
pub(super) fn of(
    way: &HookPath,
    at: usize,
    start: Vec<Region>,
    earlier: impl Iterator<Item = usize>,
    tied: impl Fn(&Step) -> bool,
    left: &mut usize,
) -> Reach {
    let mut reach = Reach::default();
    let local_at_first = start.iter().any(is_local);
    let mut pieces: Vec<Piece> = start.into_iter().map(|region| Piece { region, next: 0, sure: true }).collect();
    for (compared, number) in earlier.enumerate() {
        if pieces.is_empty() {
            break;
        }
        *left = left.saturating_sub(1);
        if compared >= MOST_STEPS || *left == 0 {
            reach.too_much = true;
            return reach;
        }
        let Some(step) = way.steps.get(number) else { continue };
        let go_on = match &step.fate {
            Fate::GoOn(to) => Some(*to),
            Fate::Rewritten(_, to)
                if to.addresses.is_some_and(|(first, _)| Family::of_address(first) != way.family) =>
            {
                continue;
            }
            _ => None,
        };
        let asked = |piece: &Piece| piece.next <= number && piece.region.meets(&step.region);
        if !pieces.iter().any(asked) {
            continue;
        }
        let unknown = matches!(step.fate, Fate::Unknown(_));
        if unknown || (go_on.is_none() && tied(step)) {
            reach.foreign |= unknown;
            if !unknown {
                reach.ties.push(number);
            }
            pieces.iter_mut().filter(|piece| asked(piece)).for_each(|piece| piece.sure = false);
            continue;
        }
        let mut after = Vec::with_capacity(pieces.len() + 2);
        let (mut cut, mut sure) = (false, false);
        for mut piece in pieces {
            if !asked(&piece) {
                after.push(piece);
                continue;
            }
            let rest = piece.region.minus(&step.region);
            let is_sure = piece.sure && rest.is_some();
            match go_on {
                Some(to) if to <= at => {
                    after.push(Piece { region: piece.region.and(&step.region), next: to, sure: is_sure });
                }
                _ => {
                    cut = true;
                    sure |= is_sure && piece.region.conditions().is_empty();
                }
            }
            match rest {
                Some(rest) => {
                    after.extend(rest.into_iter().map(|region| Piece { region, next: piece.next, sure: piece.sure }));
                }
                None => {
                    piece.sure = false;
                    after.push(piece);
                }
            }
        }
        pieces = after;
        if cut {
            reach.cuts.push(Cut { step: number, sure });
        }
        if pieces.len() > MOST {
            reach.too_much = true;
            return reach;
        }
    }
    reach.none = pieces.is_empty();
    reach.none_local = local_at_first && !reach.cuts.is_empty() && !pieces.iter().any(|piece| is_local(&piece.region));
    reach.some = pieces.iter().any(|piece| piece.sure && piece.region.conditions().is_empty());
    reach
}

fn is_local(region: &Region) -> bool {
    region.get(Field::DestinationKind).has(LOCAL)
}

/// Limits a region to possible packets: fields have their maximum values, and exactly the addresses in `local` are local.
pub(super) fn possible(region: &Region, family: Family, local: Option<&Set>) -> Vec<Region> {
    let mut region = region.clone();
    let widths = [(Field::Protocol, 8), (Field::Port, 16), (Field::SourcePort, 16), (Field::Mark, 32)];
    for (field, bits) in widths {
        region.narrow(field, &Set::range(0, (1 << bits) - 1));
    }
    if family == Family::Ipv4 {
        region.narrow(Field::Source, &Set::range(0, u32::MAX.into()));
        region.narrow(Field::Destination, &Set::range(0, u32::MAX.into()));
    }
    // The largest address type is RTN_XRESOLVE in include/uapi/linux/rtnetlink.h.
    region.narrow(Field::DestinationKind, &Set::range(0, 11));
    let Some(local) = local else { return vec![region] };
    let here = Set::single(LOCAL);
    let of_here = region.clone().with(Field::Destination, local).with(Field::DestinationKind, &here);
    let of_others = region.with(Field::Destination, &local.not()).with(Field::DestinationKind, &here.not());
    [of_here, of_others].into_iter().filter(|region| !region.is_empty()).collect()
}

/// A forward, and the packets that reach each of its steps.
pub(super) struct Reached<'f, 'a> {
    pub forward: &'f Forward<'a>,
    /// The path, the index of the step, and the packets that reach it.
    pub steps: Vec<(&'a HookPath, usize, Reach)>,
}

/// Returns the forwards that may lose packets to earlier steps.
pub(super) fn all<'f, 'a>(host: &'a Host, forwards: &'f [Forward<'a>]) -> Vec<Reached<'f, 'a>> {
    let mut left = MOST_PAIRS;
    let mut found: HashMap<usize, Vec<(&HookPath, usize, Reach)>> = HashMap::new();
    for way in &host.view.ways {
        if !matches!(way.hook, Hook::Prerouting | Hook::Output) || way.steps.len() < 2 {
            continue;
        }
        let index = RegionIndex::new(way.steps.iter().map(|step| &step.region));
        let priorities = Priorities::new(host, way);
        let local = host.facts.as_ref().map(|facts| facts.local(way.family)).filter(|local| !local.is_empty());
        for (number, forward) in forwards.iter().enumerate().filter(|(_, forward)| forward.family == way.family) {
            for (_, at, step) in forward.steps.iter().filter(|(hook, _, _)| *hook == way.hook) {
                let earlier = index.meeting_before(&step.region, *at);
                if earlier.is_empty() {
                    continue;
                }
                let start = possible(&step.region, way.family, local.as_ref());
                let tied = |other: &Step| priorities.tied(other, step);
                let reach = of(way, *at, start, earlier.into_iter(), tied, &mut left);
                if !reach.cuts.is_empty() || !reach.ties.is_empty() || reach.too_much {
                    found.entry(number).or_default().push((way, *at, reach));
                }
            }
        }
    }
    let forwards = forwards.iter().enumerate();
    forwards.filter_map(|(number, forward)| Some(Reached { forward, steps: found.remove(&number)? })).collect()
}

/// The priorities of each table's NAT chains at one hook.
struct Priorities(HashMap<usize, HashSet<i32>>);

impl Priorities {
    fn new(host: &Host, way: &HookPath) -> Self {
        let mut tables: HashMap<usize, HashSet<i32>> = HashMap::new();
        for placed in order::chains(&host.rules, way.family, way.hook, true) {
            tables.entry(placed.table_at).or_default().insert(placed.base.priority);
        }
        Self(tables)
    }

    /// Returns true if the order of two steps is unknown.
    fn tied(&self, a: &Step, b: &Step) -> bool {
        let of = |step: &Step| self.0.get(&step.at.table);
        a.tied
            && b.tied
            && a.at.table != b.at.table
            && of(a).zip(of(b)).is_some_and(|(of_a, of_b)| !of_a.is_disjoint(of_b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::region::{Condition, Packet, State, Truth};
    use crate::ruleset::table::{At, Rewrite};
    use crate::ruleset::view::Translation;
    use proptest::prelude::*;

    fn regions() -> impl Strategy<Value = Region> {
        let ports = prop_oneof![
            1 => Just(Set::ALL),
            2 => (0..8u128).prop_map(Set::single),
            3 => (0..8u128, 0..4u128).prop_map(|(first, more)| Set::range(first, (first + more).min(7))),
            1 => (0..8u128).prop_map(|port| Set::single(port).not()),
        ];
        let address = prop_oneof![2 => Just(Set::ALL), 1 => (0..2u128).prop_map(Set::single)];
        let protocol = prop_oneof![2 => Just(Set::ALL), 1 => Just(Set::single(6)), 1 => Just(Set::single(17))];
        (ports, address, protocol).prop_map(|(ports, address, protocol)| {
            let region = Region::all().with(Field::Port, &ports).with(Field::Destination, &address);
            region.with(Field::Protocol, &protocol)
        })
    }

    #[derive(Debug, Clone)]
    enum Does {
        Forwards,
        Drops,
        Jumps(usize),
        IsUnknown,
        AsksUnknown,
    }

    fn steps() -> impl Strategy<Value = Vec<(Region, Does)>> {
        let does = prop_oneof![
            8 => Just(Does::Forwards),
            1 => Just(Does::Drops),
            4 => (1..5usize).prop_map(Does::Jumps),
            1 => Just(Does::IsUnknown),
            1 => Just(Does::AsksUnknown),
        ];
        proptest::collection::vec((regions(), does), 1..12)
    }

    fn way(steps: Vec<(Region, Does)>) -> HookPath {
        let step = |(number, (mut region, does)): (usize, (Region, Does))| {
            let fate = match does {
                Does::Forwards => Fate::Rewritten(Translation::Dnat, Rewrite::default()),
                Does::Drops => Fate::Dropped,
                Does::Jumps(by) => Fate::GoOn(number + by),
                Does::IsUnknown => Fate::Unknown("-j TOMORROW".into()),
                Does::AsksUnknown => {
                    region.add_condition(Condition::Unknown("-m tomorrow".into()));
                    Fate::Rewritten(Translation::Dnat, Rewrite::default())
                }
            };
            Step { region, fate, at: At { table: 0, chain: 0, rule: number, case: 0 }, tied: false }
        };
        let steps = steps.into_iter().enumerate().map(step).collect();
        HookPath { family: Family::Ipv4, hook: Hook::Prerouting, steps }
    }

    fn universe() -> Vec<Packet> {
        let mut all = Vec::new();
        for (port, address, protocol) in (0..8u128)
            .flat_map(|port| [(port, 0u128), (port, 1)])
            .flat_map(|(port, a)| [(port, a, 6), (port, a, 17u128)])
        {
            let packet = Packet::new(Family::Ipv4).with(Field::State, State::New.number());
            let packet = packet.with(Field::Port, port).with(Field::Destination, address);
            all.push(packet.with(Field::Protocol, protocol).with(Field::DestinationKind, LOCAL));
        }
        all
    }

    /// Returns the steps that may be the first to decide a packet. There is one if all matches are understood.
    fn winners(way: &HookPath, packet: &Packet) -> Vec<usize> {
        let (mut at, mut maybe) = (vec![0], Vec::new());
        while let Some(number) = at.pop() {
            let Some(step) = way.steps.get(number) else { continue };
            let truth = step.region.has(packet);
            if truth != Truth::Yes || matches!(step.fate, Fate::Unknown(_)) {
                at.push(number + 1);
            }
            if truth != Truth::No {
                match step.fate {
                    Fate::GoOn(to) => at.push(to),
                    _ => maybe.push(number),
                }
            }
        }
        maybe
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn reached_steps_are_those_that_decide_a_packet(steps in steps()) {
            let understood = !steps.iter().any(|(_, does)| matches!(does, Does::IsUnknown | Does::AsksUnknown));
            let way = way(steps);
            let won: Vec<(Packet, Vec<usize>)> =
                universe().into_iter().map(|packet| { let won = winners(&way, &packet); (packet, won) }).collect();
            // The universe has no other packets.
            let all = Region::all()
                .with(Field::Port, &Set::range(0, 7))
                .with(Field::Destination, &Set::range(0, 1))
                .with(Field::Protocol, &Set::from_ranges([(6, 6), (17, 17)]))
                .with(Field::DestinationKind, &Set::single(LOCAL));
            for (at, step) in way.steps.iter().enumerate() {
                let start: Vec<Region> =
                    [step.region.and(&all)].into_iter().filter(|region| !region.is_empty()).collect();
                let reach = of(&way, at, start, 0..at, |_| false, &mut { MOST_PAIRS });
                prop_assert!(!reach.too_much);
                let wins = won.iter().any(|(_, by)| by.contains(&at));
                let surely = won.iter().any(|(_, by)| *by == [at]);
                prop_assert!(!(reach.none && wins) || matches!(step.fate, Fate::GoOn(_)), "{at} is unreached but decides a packet: {way:?}");
                if matches!(step.fate, Fate::GoOn(_) | Fate::Unknown(_)) {
                    continue;
                }
                prop_assert!(!reach.some || surely || !step.region.conditions().is_empty(), "{at} is reached but decides no packet: {way:?}");
                if understood {
                    prop_assert_eq!(reach.none, !wins, "{} of {:?}", at, &way);
                    prop_assert_eq!(reach.some, wins, "{} of {:?}", at, &way);
                    for cut in &reach.cuts {
                        let of_cut = |packet: &Packet| step.region.has(packet) == Truth::Yes && way.steps[cut.step].region.has(packet) == Truth::Yes;
                        prop_assert!(cut.sure && won.iter().any(|(packet, by)| of_cut(packet) && !by.contains(&at)));
                    }
                }
            }
        }
    }

    #[test]
    fn too_many_pieces_are_unknown() {
        // Each step removes a corner of two fields, which adds one piece.
        let corner = |number: u128| {
            let region =
                Region::all().with(Field::Port, &Set::single(number)).with(Field::Source, &Set::single(number));
            (region.with(Field::SourcePort, &Set::single(number)), Does::Forwards)
        };
        let mut all: Vec<_> = (0..300).map(corner).collect();
        all.push((Region::all(), Does::Forwards));
        let way = way(all);
        let reach = of(&way, 300, vec![Region::all()], 0..300, |_| false, &mut { MOST_PAIRS });
        assert!(reach.too_much && !reach.none && !reach.some);
        let reach = of(&way, 20, vec![Region::all()], 0..20, |_| false, &mut { MOST_PAIRS });
        assert!(!reach.too_much && reach.some && reach.cuts.len() == 20 - usize::from(false));
    }

    #[test]
    fn local_addresses_have_the_local_type() {
        let local = Set::range(5, 6);
        let region = Region::all().with(Field::Destination, &Set::range(6, 7));
        let pieces = possible(&region, Family::Ipv4, Some(&local));
        assert_eq!(pieces.len(), 2);
        assert_eq!(
            (pieces[0].get(Field::Destination).only(), pieces[0].get(Field::DestinationKind).only()),
            (Some(6), Some(LOCAL))
        );
        assert!(pieces[1].get(Field::Destination).only() == Some(7) && !is_local(&pieces[1]));
        assert_eq!(possible(&region.with(Field::Destination, &Set::single(6)), Family::Ipv4, Some(&local)).len(), 1);
    }
}
