//! A rule in the normal form: its statements one after the other, each of which narrows the packets or does something.
//!
//! A rule is left where a packet is not what is asked, and what was done before that is done. So `meta mark set 1 tcp dport 80
//! accept` has two cases, of which the second only sets the mark.

use super::key::{self, Part};
use super::lookup::{self, Entry};
use super::object::Sets;
use super::statement;
use super::value::Json;
use crate::ruleset::region::{Condition, Field, Region};
use crate::ruleset::table::{Action, Case, Rule, Table};

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
pub struct Draft<T = ()> {
    /// Which packets.
    pub region: Region,
    /// What has been done.
    pub actions: Vec<Action>,
    /// What maps have said of them.
    pub note: T,
}

impl<T> Draft<T> {
    /// The same with what one more map says.
    pub fn with<V>(self, value: V) -> Draft<(T, V)> {
        Draft { region: self.region, actions: self.actions, note: (self.note, value) }
    }

    /// The same without what maps have said.
    pub fn plain(self) -> Draft {
        Draft { region: self.region, actions: self.actions, note: () }
    }
}

/// Drafts with the value that a map has of them, or those that there were where the map is not known.
pub type Found<'j, 'a, T> = Result<Vec<Draft<(T, &'j Json<'a>)>>, Vec<Draft<T>>>;

/// What a case costs in ranges, besides those of its region.
const CASE: usize = Field::ALL.len();

/// A rule of which some statements have been read.
pub struct Lower<'p, 'a> {
    /// Where it is.
    pub place: Place<'p, 'a>,
    /// The packets that are still asked.
    pub live: Vec<Draft>,
    /// Those of which it has been decided.
    done: Vec<Case>,
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
    let start = Draft { region: Region::all(), actions: Vec::new(), note: () };
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
            region.add_condition(Condition::Unknown(words.into()));
            self.live = vec![Draft { region, actions: vec![Action::Unknown(words.into())], note: () }];
            self.done.clear();
            self.behind.clear();
            self.foreign |= statements.iter().any(|statement| statement.get("xt").is_some());
        }
        let open = self.live.into_iter().chain(self.behind.into_iter().rev());
        self.rule.cases = self.done;
        self.rule.cases.extend(open.map(|draft| Case { region: draft.region, actions: draft.actions.into() }));
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

    /// Makes room for so many cases that will be decided.
    pub fn expect(&mut self, many: usize) {
        self.done.reserve_exact(many);
    }

    /// Does the last thing with some.
    pub fn decide_one<T>(&mut self, draft: Draft<T>, action: Action) {
        let mut actions = draft.actions;
        actions.reserve_exact(1);
        actions.push(action);
        self.done.push(Case { region: draft.region, actions: actions.into() });
    }

    /// Does something that is not the last thing with some.
    pub fn act_one<T>(&mut self, draft: Draft<T>, action: Action) {
        let mut draft = draft.plain();
        draft.actions.push(action);
        self.live.push(draft);
    }

    /// Leaves packets behind that are not what is asked next.
    pub fn leave<T>(&mut self, draft: &Draft<T>) {
        if !draft.actions.is_empty() {
            self.behind.push(Draft { region: draft.region.clone(), actions: draft.actions.clone(), note: () });
        }
    }

    /// Asks something that cannot be told from the packet.
    pub fn doubt(&mut self, what: &Json<'_>) {
        let mut region = Region::all();
        region.add_condition(Condition::Unknown(what.words()));
        self.narrow(&[region]);
    }

    /// What an expression looks at; what the rule itself has changed before is not known.
    pub fn parts<T>(&self, drafts: &[Draft<T>], left: &Json<'_>) -> Vec<Part> {
        let mut parts = key::parts(left, self.place.table.family);
        for part in &mut parts {
            if part.field().is_some_and(|field| drafts.iter().any(|draft| changes(&draft.actions, field))) {
                part.forget();
            }
        }
        parts
    }

    /// Narrows the packets to those of some regions, which are apart from each other.
    pub fn narrow(&mut self, to: &[Region]) {
        if matches!(to, [all] if *all == Region::all()) {
            return;
        }
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
        let each = lookup::weights(to.iter());
        for draft in &live {
            if !self.spend_product(each, to.len(), draft) {
                return;
            }
            self.leave(draft);
            for region in to {
                let region = draft.region.and(region);
                if !region.is_empty() {
                    self.live.push(Draft { region, actions: draft.actions.clone(), note: () });
                }
            }
        }
        if self.live.is_empty() {
            // No packet is left, and that is what the rule shall tell.
            let first = live.into_iter().zip(to).next();
            self.live.extend(first.map(|(draft, region)| Draft { region: draft.region.and(region), ..draft }));
        }
    }

    /// Lets packets have the value that a map has of them, each of which becomes one draft; any value that is not of a map is
    /// that of all. Gives the drafts back where the map is not known.
    pub fn values<'j, T: Copy>(&mut self, drafts: Vec<Draft<T>>, value: &'j Json<'a>) -> Found<'j, 'a, T>
    where
        'p: 'j,
    {
        match value.only() {
            Some(("map", map)) => match (map.get("key"), map.get("data")) {
                (Some(key), Some(data)) => self.map(drafts, key, data),
                _ => Err(drafts),
            },
            _ => Ok(drafts.into_iter().map(|draft| draft.with(value)).collect()),
        }
    }

    /// What a map says of packets. Gives the drafts back where the map is not known.
    pub fn map<'j, T: Copy>(&mut self, drafts: Vec<Draft<T>>, key: &Json<'a>, data: &'j Json<'a>) -> Found<'j, 'a, T>
    where
        'p: 'j,
    {
        let Some(Ok(list)) = lookup::elements(data, self.place.sets) else { return Err(drafts) };
        if let Some(number) = key::constant(key)
            && let Ok(value) = lookup::entry_of(number, list)
        {
            if value.is_none() {
                drafts.iter().for_each(|draft| self.leave(draft));
            }
            let of_all = value.map(|value| drafts.into_iter().map(|draft| draft.with(value)).collect());
            return Ok(of_all.unwrap_or_default());
        }
        let (parts, mut found) = (self.parts(&drafts, key), Vec::new());
        if !self.may(drafts.len(), list.len()) {
            return Ok(found);
        }
        let of = lookup::of_all(&parts);
        let rest: Option<Entry<'_, '_>> = lookup::rest(&parts, &of, list);
        if let Some((region, _)) = &rest {
            self.spend_outside(region);
        }
        found.reserve_exact(list.len().saturating_mul(drafts.len()));
        for draft in drafts {
            self.leave(&draft);
            let all = draft.region == Region::all();
            for (region, value) in lookup::entries(&parts, &of, list).chain(rest.clone()) {
                if !self.spend(lookup::weight(&region) + lookup::weight(&draft.region) + CASE) {
                    return Ok(Vec::new());
                }
                let region = if all { region } else { draft.region.and(&region) };
                if !region.is_empty() {
                    found.push(Draft { region, actions: draft.actions.clone(), note: (draft.note, value) });
                }
            }
        }
        Ok(found)
    }

    /// Whether so many elements may be asked of so many drafts; said before any of them is made.
    pub fn may(&mut self, drafts: usize, elements: usize) -> bool {
        let least = CASE.saturating_mul(elements).saturating_mul(drafts.max(1));
        self.too_many |= least > self.place.left;
        !self.too_many
    }

    /// Pays for the cases that become of a draft by regions of this weight together.
    fn spend_product<T>(&mut self, each: usize, many: usize, draft: &Draft<T>) -> bool {
        self.spend(each.saturating_add((lookup::weight(&draft.region) + CASE).saturating_mul(many)))
    }

    /// Pays for the regions that a condition is outside of, which all cases of the rule share.
    pub fn spend_outside(&mut self, asked: &Region) {
        let outside = asked.conditions().iter().map(|condition| match condition {
            Condition::Outside(regions) => lookup::weights(regions.iter()).saturating_add(regions.len() * CASE),
            _ => 0,
        });
        let weight = outside.fold(0, usize::saturating_add);
        self.spend(weight);
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
        Action::Mark { field: changed, .. }
        | Action::MarkUnknown { field: changed }
        | Action::CopyMark { to: changed } => *changed == field,
        Action::Untracked => field == Field::State,
        Action::Unknown(_) => true,
        _ => false,
    })
}
