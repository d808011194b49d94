//! A rule in the normal form: its statements one after the other, each of which narrows the packets or does something.
//!
//! A rule is left where a packet is not what is asked, and what was done before that is done. So `meta mark set 1 tcp dport 80
//! accept` has two cases, of which the second only sets the mark.

use super::key::{self, Part};
use super::lookup::{self, Entry};
use super::object::Sets;
use super::statement;
use super::value::Json;
use crate::audit::region::{Condition, Field, Region};
use crate::audit::ruleset::{Action, Case, Rule, Table};

/// Where a rule is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'p, 'a> {
    /// Its table, with all its chains.
    pub table: &'p Table,
    /// The sets and maps of the table.
    pub sets: &'p Sets<'a>,
    /// How many ranges there may still be.
    pub left: usize,
}

/// A rule in the normal form.
#[derive(Debug)]
pub struct Lowered {
    /// The rule.
    pub rule: Rule,
    /// How many ranges there may still be.
    pub left: usize,
    /// Whether it is one of iptables-nft.
    pub foreign: bool,
    /// Whether it has too many cases.
    pub too_many: bool,
}

/// A case that is not done yet.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Which packets.
    pub region: Region,
    /// What has been done.
    pub actions: Vec<Action>,
}

/// A rule of which some statements have been read.
pub struct Lower<'p, 'a> {
    /// Where it is.
    pub place: Place<'p, 'a>,
    /// The packets that are still asked.
    pub live: Vec<Draft>,
    /// Those of which it has been decided.
    done: Vec<Draft>,
    /// Those that were not what was asked, after something had been done; the last ones are the fewest.
    behind: Vec<Draft>,
    /// What else is known of it.
    pub rule: Rule,
    /// Whether it is one of iptables-nft.
    pub foreign: bool,
    too_many: bool,
}

/// Brings a rule into the normal form.
pub fn rule(place: Place<'_, '_>, object: &Json<'_>, statements: &[Json<'_>]) -> Lowered {
    let rule = Rule {
        handle: object.get("handle").and_then(Json::number),
        comment: object.text_of("comment").map(Into::into),
        ..Rule::default()
    };
    let start = Draft { region: Region::all(), actions: Vec::new() };
    let (live, done, behind) = (vec![start], Vec::new(), Vec::new());
    let mut lower = Lower { place, live, done, behind, rule, foreign: false, too_many: false };
    for statement in statements {
        statement::apply(&mut lower, statement);
        if lower.live.is_empty() || lower.too_many {
            break;
        }
    }
    lower.finish(statements)
}

impl<'p, 'a> Lower<'p, 'a> {
    fn finish(mut self, statements: &[Json<'_>]) -> Lowered {
        if self.too_many {
            let words = "asks sets or maps with too many elements";
            let mut region = Region::all();
            region.ask(Condition::Unknown(words.into()));
            self.live = vec![Draft { region, actions: vec![Action::Unknown(words.into())] }];
            self.done.clear();
            self.behind.clear();
            self.foreign |= statements.iter().any(|statement| statement.get("xt").is_some());
        }
        let drafts = self.done.into_iter().chain(self.live).chain(self.behind.into_iter().rev());
        self.rule.cases = drafts.map(|draft| Case { region: draft.region, actions: draft.actions.into() }).collect();
        self.rule.cases.shrink_to_fit();
        let (rule, left) = (self.rule, self.place.left);
        Lowered { rule, left, foreign: self.foreign, too_many: self.too_many }
    }

    /// Does something with all that are still asked.
    pub fn act(&mut self, action: &Action) {
        for draft in &mut self.live {
            draft.actions.push(action.clone());
        }
    }

    /// Does the last thing with all that are still asked.
    pub fn decide(&mut self, action: &Action) {
        for draft in std::mem::take(&mut self.live) {
            self.decide_one(draft, action.clone());
        }
    }

    /// Does the last thing with some.
    pub fn decide_one(&mut self, mut draft: Draft, action: Action) {
        draft.actions.push(action);
        self.done.push(draft);
    }

    /// Leaves packets behind that are not what is asked next.
    pub fn leave(&mut self, draft: &Draft) {
        if !draft.actions.is_empty() {
            self.behind.push(draft.clone());
        }
    }

    /// Asks something that cannot be told from the packet.
    pub fn doubt(&mut self, what: &Json<'_>) {
        let mut region = Region::all();
        region.ask(Condition::Unknown(what.words()));
        self.narrow(&[region]);
    }

    /// What an expression looks at; what the rule itself has changed before is not known.
    pub fn parts(&self, left: &Json<'_>) -> Vec<Part> {
        let mut parts = key::parts(left, self.place.table.family);
        for part in &mut parts {
            let changed = part.field().is_some_and(|field| self.live.iter().any(|draft| changes(&draft.actions, field)));
            if changed {
                part.forget();
            }
        }
        parts
    }

    /// Narrows the packets to those of some regions, which are apart from each other.
    pub fn narrow(&mut self, to: &[Region]) {
        let mut live = std::mem::take(&mut self.live);
        if let ([draft], [only]) = (&mut *live, to)
            && draft.actions.is_empty()
        {
            if self.spend(lookup::weight(only)) {
                draft.region = draft.region.and(only);
                self.live = live;
            }
            return;
        }
        let each: usize = to.iter().map(lookup::weight).fold(0, usize::saturating_add);
        for draft in live {
            if !self.spend(each.saturating_add(lookup::weight(&draft.region).saturating_mul(to.len()))) {
                return;
            }
            self.leave(&draft);
            for region in to {
                let region = draft.region.and(region);
                if !region.is_empty() || to.len() == 1 {
                    self.live.push(Draft { region, actions: draft.actions.clone() });
                }
            }
        }
    }

    /// Lets packets have the value that a map has of them, each of which becomes one draft; any value that is not of a map is
    /// that of all. `None` where the map is not known, which is said then.
    pub fn values<'j>(&mut self, drafts: Vec<Draft>, value: &'j Json<'a>) -> Option<Vec<(Draft, &'j Json<'a>)>>
    where
        'p: 'j,
    {
        let Some(("map", map)) = value.only() else {
            return Some(drafts.into_iter().map(|draft| (draft, value)).collect());
        };
        let (key, data) = (map.get("key")?, map.get("data")?);
        self.map(drafts, key, data)
    }

    /// What a map says of packets.
    pub fn map<'j>(&mut self, drafts: Vec<Draft>, key: &Json<'a>, data: &'j Json<'a>) -> Option<Vec<(Draft, &'j Json<'a>)>>
    where
        'p: 'j,
    {
        let list = lookup::elements(data, self.place.sets)?.ok()?;
        let (parts, mut found) = (self.parts(key), Vec::new());
        if !self.may(drafts.len(), list.len()) {
            return Some(found);
        }
        let entries: Vec<Entry<'_, '_>> = lookup::entries(&parts, list);
        let each: usize = entries.iter().map(|(region, _)| lookup::weight(region)).fold(0, usize::saturating_add);
        for draft in drafts {
            if !self.spend(each.saturating_add(lookup::weight(&draft.region).saturating_mul(entries.len()))) {
                return Some(Vec::new());
            }
            self.leave(&draft);
            for (region, value) in &entries {
                let region = draft.region.and(region);
                if !region.is_empty() {
                    found.push((Draft { region, actions: draft.actions.clone() }, *value));
                }
            }
        }
        Some(found)
    }

    /// Whether so many elements may be asked of so many drafts; said before any of them is made.
    pub fn may(&mut self, drafts: usize, elements: usize) -> bool {
        let least = Field::ALL.len().saturating_mul(elements).saturating_mul(drafts.max(1));
        self.too_many |= least > self.place.left;
        !self.too_many
    }

    fn spend(&mut self, weight: usize) -> bool {
        match self.place.left.checked_sub(weight) {
            Some(left) => self.place.left = left,
            None => self.too_many = true,
        }
        !self.too_many
    }
}

/// Whether some actions change a field.
fn changes(actions: &[Action], field: Field) -> bool {
    actions.iter().any(|action| match action {
        Action::Mark { field: changed, .. } | Action::CopyMark { to: changed } => *changed == field,
        Action::Untracked => field == Field::State,
        Action::Unknown(_) => true,
        _ => false,
    })
}
