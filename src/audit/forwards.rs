//! The forwards of a host: each rule that rewrites a destination, or each element of a map that it asks, with its steps on the
//! ways of packets that arrive and of those that this host sends.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::model::Family;
use crate::ruleset::region::{Field, Region};
use crate::ruleset::table::{At, Hook, Rewrite};
use crate::ruleset::view::{Step, Translation, View};

/// Steps, each with its hook and its number on the way there.
pub type Steps<'a> = Vec<(Hook, usize, &'a Step)>;

/// The most ways whose packets are compared with those of one more.
const MOST: usize = 8;

/// A forward.
#[derive(Debug, Clone)]
pub struct Forward<'a> {
    /// The family of its packets.
    pub family: Family,
    /// The rule.
    pub at: At,
    /// [`Translation::Dnat`] or [`Translation::Redirect`].
    pub translation: Translation,
    /// Where it leads.
    pub to: &'a Rewrite,
    /// Its steps: the hook, the number of the step on the way there, and the step. In the order in which packets meet them; a
    /// rule that is reached by several jumps has several at one hook.
    pub steps: Steps<'a>,
}

impl<'a> Forward<'a> {
    /// All forwards, in the order in which they win: those of IPv4 first, and of packets that arrive before those that only
    /// packets of this host meet.
    pub fn all(view: &'a View) -> Vec<Self> {
        let (mut found, mut known): (Vec<Self>, HashMap<(Family, At), usize>) = Default::default();
        for way in &view.ways {
            if !matches!(way.hook, Hook::Prerouting | Hook::Output) {
                continue;
            }
            for (number, step, translation, to) in way.translations() {
                if !matches!(translation, Translation::Dnat | Translation::Redirect) {
                    continue;
                }
                let at = *known.entry((way.family, step.at)).or_insert(found.len());
                match found.get_mut(at) {
                    Some(forward) => forward.steps.push((way.hook, number, step)),
                    None => {
                        let steps = vec![(way.hook, number, step)];
                        found.push(Self { family: way.family, at: step.at, translation, to, steps });
                    }
                }
            }
        }
        found
    }

    /// The packets that it is about, of those that meet it first.
    pub fn region(&self) -> Option<&'a Region> {
        self.steps.first().map(|(_, _, step)| &step.region)
    }

    /// Its steps, those about the same packets together: a rule that several jumps lead different packets to has several ways.
    pub fn apart(&self) -> Vec<Steps<'a>> {
        if !self.has_more_ways() {
            return vec![self.steps.clone()];
        }
        let at = |hook| {
            let (mut all, mut known): (Vec<Steps<'a>>, HashMap<&Region, usize>) = Default::default();
            for step in self.steps.iter().filter(|(one, _, _)| *one == hook) {
                if let Some(steps) = known.get(&step.2.region).and_then(|number| all.get_mut(*number)) {
                    steps.push(*step);
                    continue;
                }
                // Where an earlier one takes all of these packets, none of them comes here.
                let taken = all.iter().take(MOST).flatten().any(|(_, _, one)| one.region.covers(&step.2.region));
                if !taken {
                    known.insert(&step.2.region, all.len());
                    all.push(vec![*step]);
                }
            }
            all
        };
        let (mut all, sent) = (at(Hook::Prerouting), at(Hook::Output));
        // Packets that this host sends meet a rule by as many jumps as those that arrive, mostly, which may ask a little less or more:
        // Docker leaves loopback out.
        if all.len() == sent.len() {
            all.iter_mut().zip(sent).for_each(|(steps, more)| steps.extend(more));
            return all;
        }
        let bare = |steps: &Steps<'a>| {
            let mut region = steps.first().map_or_else(Region::all, |(_, _, step)| step.region.clone());
            // They have no interface that they arrive by, which alone makes no difference.
            region.forget(Field::Input);
            region.forget(Field::Output);
            region
        };
        let mut same: HashMap<Region, usize> =
            all.iter().enumerate().map(|(number, steps)| (bare(steps), number)).collect();
        for steps in sent {
            match same.remove(&bare(&steps)).and_then(|number| all.get_mut(number)) {
                Some(known) => known.extend(steps),
                None => all.push(steps),
            }
        }
        all
    }

    /// Whether it has more steps than the usual ones, one of packets that arrive and one of those that this host sends.
    fn has_more_ways(&self) -> bool {
        self.steps.len() > 1 && !matches!(self.steps.as_slice(), [(one, ..), (other, ..)] if one != other)
    }

    /// Forwards of which each has but one way. `None` where that are these.
    pub fn one_way_each(all: &[Self]) -> Option<Vec<Self>> {
        all.iter().any(Self::has_more_ways).then(|| {
            let mut ways = Vec::with_capacity(all.len());
            for forward in all {
                if forward.has_more_ways() {
                    ways.extend(forward.apart().into_iter().map(|steps| Self { steps, ..forward.clone() }));
                } else {
                    ways.push(forward.clone());
                }
            }
            ways
        })
    }

    /// Its steps of packets that arrive.
    pub fn arriving(&self) -> impl Iterator<Item = (usize, &'a Step)> {
        self.steps.iter().filter(|(hook, _, _)| *hook == Hook::Prerouting).map(|(_, number, step)| (*number, *step))
    }

    /// The one address that it leads to; none where it is this host, or several.
    pub fn target(&self) -> Option<IpAddr> {
        self.to.addresses.filter(|(first, last)| first == last && self.to.prefix.is_none()).map(|(first, _)| first)
    }

    /// A port that it is about: the lowest. None where it asks for none.
    pub fn first_port(&self) -> Option<u16> {
        let ports = self.region()?.get(Field::Port);
        if ports.is_all() { None } else { u16::try_from(ports.first()?).ok() }
    }

    /// The protocol that it is about, of several TCP where that is one of them; its number.
    pub fn protocol(&self) -> Option<u8> {
        let protocols = self.region()?.get(Field::Protocol);
        if protocols.has(6) { Some(6) } else { u8::try_from(protocols.first()?).ok() }
    }
}
