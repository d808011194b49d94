//! The forwards of a host: each rule or map element that rewrites a destination, with its steps at prerouting and output.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::model::Family;
use crate::ruleset::region::{Field, Region};
use crate::ruleset::table::{At, Hook, Rewrite};
use crate::ruleset::view::{Step, Translation, View};

/// Steps with their hook and their index in the path of the hook.
pub type Steps<'a> = Vec<(Hook, usize, &'a Step)>;

/// The maximum number of paths that are compared with one more path.
const MOST: usize = 8;

/// A forward.
#[derive(Debug, Clone)]
pub struct Forward<'a> {
    /// The address family of the packets.
    pub family: Family,
    /// The rule.
    pub at: At,
    /// [`Translation::Dnat`] or [`Translation::Redirect`].
    pub translation: Translation,
    /// Where it leads.
    pub to: &'a Rewrite,
    /// The steps in the order of the packet flow: hook, index in the path, step. A rule that several jumps reach has several
    /// steps at one hook.
    pub steps: Steps<'a>,
}

impl<'a> Forward<'a> {
    /// Returns all forwards in order of precedence: IPv4 first, arriving packets before local packets.
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

    /// Returns the packets that reach the forward's first step.
    pub fn region(&self) -> Option<&'a Region> {
        self.steps.first().map(|(_, _, step)| &step.region)
    }

    /// Returns the steps, grouped by region. A rule that several jumps reach with different packets has several groups.
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
                // If an earlier step takes all of these packets, no packet reaches this step.
                let taken = all.iter().take(MOST).flatten().any(|(_, _, one)| one.region.covers(&step.2.region));
                if !taken {
                    known.insert(&step.2.region, all.len());
                    all.push(vec![*step]);
                }
            }
            all
        };
        let (mut all, sent) = (at(Hook::Prerouting), at(Hook::Output));
        // Local packets usually reach a rule by as many jumps as arriving packets. The regions can differ slightly: Docker
        // excludes loopback.
        if all.len() == sent.len() {
            all.iter_mut().zip(sent).for_each(|(steps, more)| steps.extend(more));
            return all;
        }
        let bare = |steps: &Steps<'a>| {
            let mut region = steps.first().map_or_else(Region::all, |(_, _, step)| step.region.clone());
            // Local packets have no ingress interface, and this difference alone does not matter.
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

    /// Returns true if a forward has other steps than one at prerouting and one at output.
    fn has_more_ways(&self) -> bool {
        self.steps.len() > 1 && !matches!(self.steps.as_slice(), [(one, ..), (other, ..)] if one != other)
    }

    /// Returns forwards with exactly one path each. Returns `None` if all forwards already have one path.
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

    /// Returns the steps at prerouting.
    pub fn arriving(&self) -> impl Iterator<Item = (usize, &'a Step)> {
        self.steps.iter().filter(|(hook, _, _)| *hook == Hook::Prerouting).map(|(_, number, step)| (*number, *step))
    }

    /// Returns the target address. Returns `None` if the target is this host or a range.
    pub fn target(&self) -> Option<IpAddr> {
        self.to.addresses.filter(|(first, last)| first == last && self.to.prefix.is_none()).map(|(first, _)| first)
    }

    /// Returns the lowest port of the forward. Returns `None` if the forward has no port condition.
    pub fn first_port(&self) -> Option<u16> {
        let ports = self.region()?.get(Field::Port);
        if ports.is_all() { None } else { u16::try_from(ports.first()?).ok() }
    }

    /// Returns the protocol number of the forward. Prefers TCP if there are several.
    pub fn protocol(&self) -> Option<u8> {
        let protocols = self.region()?.get(Field::Protocol);
        if protocols.has(6) { Some(6) } else { u8::try_from(protocols.first()?).ok() }
    }
}
