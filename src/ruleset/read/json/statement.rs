//! Statements: what is asked, and what is done.

use super::key;
use super::lookup;
use super::lower::Lower;
use super::nat;
use super::number::Kind;
use super::object::to_chain;
use super::value::Json;
use crate::model::{Counter, Family};
use crate::ruleset::region::{Condition, Field, Region};
use crate::ruleset::reject::Rejection;
use crate::ruleset::set::Set;
use crate::ruleset::table::{Action, Table};

/// Targets of iptables(8) that decide nothing, and change nothing that rules of NAT ask.
const HARMLESS: [&str; 15] = [
    "LOG",
    "NFLOG",
    "TRACE",
    "AUDIT",
    "CLASSIFY",
    "TCPMSS",
    "TCPOPTSTRIP",
    "CHECKSUM",
    "DSCP",
    "TOS",
    "TTL",
    "HL",
    "ECN",
    "SET",
    "RATEEST",
];

/// Reads a statement.
pub fn apply<'a>(lower: &mut Lower<'_, 'a>, statement: &Json<'a>) {
    let Some((name, of)) = statement.only() else {
        // nft 1.0.6 prints a chain without a name, `jump { … }`, as one text (measured).
        return lower.act(&Action::Unknown(statement.words()));
    };
    if let Some(action) = verdict(lower.place.table, name, of) {
        if let Some(action) = action {
            lower.decide(&action);
        }
        return;
    }
    match name {
        "match" => asks(lower, of),
        "vmap" => decides_by_map(lower, statement, of),
        "dnat" | "snat" | "masquerade" | "redirect" => nat::apply(lower, name, statement, of),
        "mangle" => sets(lower, statement, of),
        "counter" => {
            let number = |key| of.get(key).and_then(Json::number);
            if let (Some(packets), Some(bytes)) = (number("packets"), number("bytes")) {
                lower.rule.counter.get_or_insert(Counter { packets, bytes });
            }
        }
        "notrack" => lower.act(&Action::Untracked),
        "tproxy" => {
            // Of a packet of the other family it ends the rule (`nft_tproxy_eval` in net/netfilter/nft_tproxy.c).
            let mut region = Region::all();
            match of.text_of("family") {
                Some("ip") => key::only(&mut region, Family::Ipv4, lower.place.table.family),
                Some("ip6") => key::only(&mut region, Family::Ipv6, lower.place.table.family),
                _ => {}
            }
            lower.narrow(&[region]);
            lower.act(&Action::Proxy(nat::constant(of)));
        }
        "limit" | "quota" | "ct count" | "connlimit" => lower.doubt(statement),
        "set" | "map" | "meter" => {
            // What is added to a set decides nothing, unless that has a condition of its own.
            let mut inner = of.get("stmt").map(Json::list).unwrap_or_default().iter();
            if inner.any(|inner| !matches!(inner.only(), Some(("counter" | "last", _)))) {
                lower.doubt(statement);
            }
        }
        "log" | "flow" | "dup" | "ct helper" | "ct timeout" | "ct expectation" | "secmark" | "last" => {}
        "xt" => foreign(lower, of),
        _ => lower.act(&Action::Unknown(statement.words())),
    }
}

/// Whether a statement is one that iptables(8) has no words for, and that it shows no table for: it does such things, and asks
/// them, by matches and targets of its own. Source: `nft_is_expr_compatible` in iptables' iptables/nft.c, 1.8.9.
pub fn is_native(statement: &Json<'_>) -> bool {
    match statement.only() {
        Some(("match", of)) => {
            let left = of.get("left").and_then(Json::only).map(|(name, _)| name);
            matches!(left, Some("ct" | "fib" | "numgen" | "jhash" | "symhash" | "rt" | "socket"))
        }
        Some((name, _)) => {
            matches!(name, "dnat" | "snat" | "masquerade" | "redirect" | "notrack" | "tproxy" | "reject" | "queue")
        }
        None => false,
    }
}

/// What a verdict does; inside nothing of one that only goes on.
fn verdict(table: &Table, name: &str, of: &Json<'_>) -> Option<Option<Action>> {
    let target = || of.text_of("target").unwrap_or_default();
    Some(Some(match name {
        "accept" => Action::Accept,
        "drop" => Action::Drop,
        "reject" => Action::Reject(match of.text_of("type") {
            Some(kind) => Rejection::named(kind, of.text_of("expr").unwrap_or_default()),
            // nft(8) prints the default without a type.
            None => Rejection::Icmpx(1),
        }),
        "return" => Action::Return,
        "queue" => Action::Queue,
        "jump" => to_chain(table, target(), Action::Jump),
        "goto" => to_chain(table, target(), Action::Goto),
        "continue" => return Some(None),
        _ => return None,
    }))
}

/// `match`: which packets the rest of the rule is about.
fn asks<'a>(lower: &mut Lower<'_, 'a>, of: &Json<'a>) {
    let (Some(left), Some(right)) = (of.get("left"), of.get("right")) else { return lower.doubt(of) };
    let operator = of.text_of("op").unwrap_or("==");
    if let (Some(left), Some(right)) = (key::constant(left), right.number()) {
        let holds = match operator {
            "==" => Some(left == right),
            "!=" => Some(left != right),
            "<" => Some(left < right),
            "<=" => Some(left <= right),
            ">" => Some(left > right),
            ">=" => Some(left >= right),
            _ => None,
        };
        match holds {
            Some(true) => return,
            Some(false) => return lower.narrow(&[Region::all().with(Field::Family, &Set::none())]),
            None => {}
        }
    }
    let parts = lower.parts(&lower.live, left);
    let mut all = lookup::of_all(&parts);
    let unknown = |why: &str| Condition::Unknown(format!("{} {operator} {why}", left.words()).into());
    match (lookup::elements(right, lower.place.sets), operator) {
        (Some(Ok(keys)), "==" | "!=") if !matches!(&*parts, [part] if part.field().is_none()) => {
            if lower.may(1, keys.len()) {
                let members = lookup::members(&parts, keys, operator == "!=");
                if let [only] = &*members {
                    lower.spend_outside(only);
                }
                lower.narrow(&members);
            }
            return;
        }
        (Some(Err(why)), _) => all.add_condition(unknown(&why)),
        (Some(Ok(_)), _) => all.add_condition(unknown(&right.words())),
        (None, _) => match (&*parts, right.only(), operator) {
            ([part], ..) => part.ask(&mut all, operator, right),
            (_, Some(("concat", values)), "==") if values.list().len() == parts.len() => {
                parts.iter().zip(values.list()).for_each(|(part, value)| part.ask(&mut all, "==", value));
            }
            _ => all.add_condition(unknown(&right.words())),
        },
    }
    lower.narrow(&[all]);
}

/// `vmap`: what becomes of packets, by a map.
fn decides_by_map<'a>(lower: &mut Lower<'_, 'a>, statement: &Json<'a>, of: &Json<'a>) {
    let (Some(key), Some(data)) = (of.get("key"), of.get("data")) else {
        return lower.act(&Action::Unknown(statement.words()));
    };
    let drafts = std::mem::take(&mut lower.live);
    match lower.map(drafts, key, data) {
        Err(drafts) => {
            lower.live = drafts;
            lower.act(&Action::Unknown(statement.words()));
        }
        Ok(found) => {
            lower.expect(found.len());
            for draft in found {
                let ((), value) = draft.note;
                match value.only().and_then(|(name, of)| verdict(lower.place.table, name, of)) {
                    Some(Some(action)) => lower.decide_one(draft, action),
                    Some(None) => lower.live.push(draft.plain()),
                    None => lower.act_one(draft, Action::Unknown(value.words())),
                }
            }
        }
    }
}

/// `mangle`: sets a mark, or something of the packet.
fn sets<'a>(lower: &mut Lower<'_, 'a>, statement: &Json<'a>, of: &Json<'a>) {
    let (Some(key), Some(value)) = (of.get("key"), of.get("value")) else {
        return lower.act(&Action::Unknown(statement.words()));
    };
    let field = match key.only() {
        Some(("meta", meta)) => match meta.text_of("key") {
            Some("mark") => Field::Mark,
            Some("nftrace" | "priority") => return,
            _ => return lower.act(&Action::Unknown(statement.words())),
        },
        Some(("ct", ct)) => match ct.text_of("key") {
            Some("mark") => Field::ConnectionMark,
            Some("label") => return adds_labels(lower, value),
            Some("event" | "secmark") => return,
            _ => return lower.act(&Action::Unknown(statement.words())),
        },
        Some(("tcp option", _)) => return,
        Some(("payload", payload)) if matches!(payload.text_of("field"), Some("dscp" | "ecn" | "ttl" | "hoplimit")) => {
            return;
        }
        _ => return lower.act(&Action::Unknown(statement.words())),
    };
    let drafts = std::mem::take(&mut lower.live);
    match lower.values(drafts, value) {
        Err(drafts) => {
            lower.live = drafts;
            lower.act(&Action::Unknown(statement.words()));
        }
        Ok(found) => {
            for draft in found {
                let ((), value) = draft.note;
                lower.act_one(draft, mark(field, value).unwrap_or_else(|| Action::Unknown(statement.words())));
            }
        }
    }
}

/// `ct label set`: adds labels to the connection (`nf_connlabels_replace` in `nft_ct_set_eval`).
fn adds_labels<'a>(lower: &mut Lower<'_, 'a>, value: &Json<'a>) {
    let drafts = std::mem::take(&mut lower.live);
    match lower.values(drafts, value) {
        Err(drafts) => {
            lower.live = drafts;
            lower.act(&Action::MarkUnknown { field: Field::Label });
        }
        Ok(found) => {
            for draft in found {
                let ((), value) = draft.note;
                let unknown = Action::MarkUnknown { field: Field::Label };
                let labels = Kind::Label.constant(value);
                let action = labels.map(|labels| Action::Mark { field: Field::Label, mask: labels, value: labels });
                lower.act_one(draft, action.unwrap_or(unknown));
            }
        }
    }
}

/// The field of marks that an expression looks at.
fn mark_of(value: &Json<'_>) -> Option<Field> {
    match value.only()? {
        ("meta", meta) => (meta.text_of("key")? == "mark").then_some(Field::Mark),
        ("ct", ct) => (ct.text_of("key")? == "mark").then_some(Field::ConnectionMark),
        _ => None,
    }
}

/// What a mark becomes: that of `mark` of which the bits of `keep` are kept, and then those of `flip` turned over.
struct Formula {
    mark: Option<Field>,
    keep: u32,
    flip: u32,
}

/// A mark that is computed from constants and at most one mark, by `&`, `|` and `^`.
fn formula(value: &Json<'_>) -> Option<Formula> {
    if let Some(number) = value.number() {
        return Some(Formula { mark: None, keep: 0, flip: u32::try_from(number).ok()? });
    }
    if let Some(mark) = mark_of(value) {
        return Some(Formula { mark: Some(mark), keep: u32::MAX, flip: 0 });
    }
    let (operator, Json::List(operands)) = value.only()? else { return None };
    let [first, rest @ ..] = &**operands else { return None };
    let mut so_far = formula(first)?;
    for operand in rest {
        let number = u32::try_from(operand.number()?).ok()?;
        match operator {
            "&" => (so_far.keep, so_far.flip) = (so_far.keep & number, so_far.flip & number),
            "|" => (so_far.keep, so_far.flip) = (so_far.keep & !number, (so_far.flip & !number) | number),
            "^" => so_far.flip ^= number,
            _ => return None,
        }
    }
    Some(so_far)
}

/// What setting a mark does; `None` where the normal form has no word for it.
fn mark(field: Field, value: &Json<'_>) -> Option<Action> {
    let Formula { mark, keep, flip } = formula(value)?;
    match mark {
        Some(other) if other != field && (keep, flip) == (u32::MAX, 0) => Some(Action::CopyMark { to: field }),
        Some(other) if other != field && keep != 0 => None,
        _ => Some(Action::Mark { field, mask: (!keep).into(), value: flip.into() }),
    }
}

/// `xt`: a match or a target of iptables(8), of which only the name is known.
fn foreign(lower: &mut Lower<'_, '_>, of: &Json<'_>) {
    lower.foreign = true;
    let name = of.get("name").map(Json::words).unwrap_or_default();
    match (of.text_of("type"), of.text_of("name").unwrap_or_default()) {
        (Some("match"), "comment") | (Some("watcher"), _) => {}
        (Some("match"), _) => {
            let mut region = Region::all();
            region.add_condition(Condition::Unknown(format!("xt match {name}").into()));
            lower.narrow(&[region]);
        }
        (Some("target"), "REJECT") => lower.decide(&Action::Reject(Rejection::Unknown)),
        (Some("target"), "QUEUE" | "NFQUEUE") => lower.decide(&Action::Queue),
        (Some("target"), name) if HARMLESS.contains(&name) => {}
        (Some("target"), _) => {
            lower.act(&Action::Unknown(
                format!("xt {name}: nft -j prints only the name, give the output of iptables-save too").into(),
            ));
        }
        _ => lower.act(&Action::Unknown("xt".into())),
    }
}
