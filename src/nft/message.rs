//! Parsers of nf_tables messages. The results are plain data: chains, rules, sets and elements.
//!
//! libnftnl does not parse the messages, because messages are input from outside. libnftnl 1.2.4 has three faults:
//! - An attribute with an unexpected length ends the process (`abi_breakage` in utils.h and utils.c).
//! - A text extends to the next zero byte, even after the end of the message (`strdup` of `mnl_attr_get_str`).
//! - One unknown expression makes libnftnl drop the whole rule.

use nftnl_sys as sys;

use super::expr::{Expr, Read};
use super::program::{Key, Rule, Shape};
use super::user_data::{self, Span};
use crate::model::Counter;
use crate::sys::netlink::{self, Attributes};

/// The size of the netfilter header `struct nfgenmsg`, in bytes. The first byte is the family.
pub(super) const HEADER: usize = 4;

/// The number of the nf_tables subsystem, in the upper byte of a message type.
pub(super) const KIND: u16 = 10 << 8;

/// The maximum length of a key, a constant or element data, in bytes. All registers together have this length.
const LONGEST_DATA: usize = 64;

/// The flag of a set that is a map. Source: `NFT_SET_MAP` in include/uapi/linux/netfilter/nf_tables.h.
const MAP: u32 = sys::libc::NFT_SET_MAP.unsigned_abs();

/// The numbers of attributes. Source: include/uapi/linux/netfilter/nf_tables.h.
pub(super) mod key {
    pub const TABLE_NAME: u16 = 1;
    pub const TABLE_FLAGS: u16 = 2;
    pub const CHAIN_TABLE: u16 = 1;
    pub const CHAIN_NAME: u16 = 3;
    pub const CHAIN_HOOK: u16 = 4;
    pub const CHAIN_TYPE: u16 = 7;
    pub const HOOK_NUMBER: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
    pub const RULE_TABLE: u16 = 1;
    pub const RULE_CHAIN: u16 = 2;
    pub const RULE_EXPRESSIONS: u16 = 4;
    pub const RULE_USER_DATA: u16 = 7;
    pub const SET_TABLE: u16 = 1;
    pub const SET_NAME: u16 = 2;
    pub const SET_FLAGS: u16 = 3;
    pub const SET_KEY_TYPE: u16 = 4;
    pub const SET_KEY_LENGTH: u16 = 5;
    pub const SET_DATA_TYPE: u16 = 6;
    pub const SET_DATA_LENGTH: u16 = 7;
    pub const SET_ID: u16 = 10;
    pub const SET_EXPRESSION: u16 = 17;
    pub const ELEMENTS_TABLE: u16 = 1;
    pub const ELEMENTS_SET: u16 = 2;
    pub const ELEMENTS_LIST: u16 = 3;
    pub const ELEMENT: u16 = 1;
    pub const ELEMENT_KEY: u16 = 1;
    pub const ELEMENT_DATA: u16 = 2;
    pub const ELEMENT_USER_DATA: u16 = 6;
    pub const ELEMENT_EXPRESSION: u16 = 7;
    pub const EXPRESSION_NAME: u16 = 1;
    pub const EXPRESSION_DATA: u16 = 2;
    pub const COUNTER_BYTES: u16 = 1;
    pub const COUNTER_PACKETS: u16 = 2;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;
}

/// Returns the value of a data attribute. Returns `None` if the value has more than 64 bytes.
pub(crate) fn data_value<'a>(attributes: Attributes<'a>, kind: u16) -> Option<&'a [u8]> {
    attributes.nested(kind)?.get(key::DATA_VALUE).filter(|value| value.len() <= LONGEST_DATA)
}

/// A chain in a dump.
pub(super) struct ChainRecord {
    pub(super) table: String,
    pub(super) name: String,
    /// The type, the hook and the priority of a base chain. `None` for a regular chain.
    pub(super) base: Option<(String, u32, i32)>,
}

/// A netlink message of nf_tables.
#[derive(Clone, Copy)]
pub(crate) struct Message<'a>(pub(super) netlink::Message<'a>);

impl<'a> Message<'a> {
    /// Returns the first message in `bytes`, and the bytes after this message. Returns `None` if the message is
    /// incomplete.
    pub(crate) fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (message, rest) = netlink::Message::split(bytes)?;
        Some((Self(message), rest))
    }

    /// Returns the address family of the message: a number `NFPROTO_…`.
    pub(crate) fn family(self) -> u8 {
        self.0.body.first().copied().unwrap_or_default()
    }

    /// Returns the attributes of the object in the message.
    pub(crate) fn attributes(self) -> Attributes<'a> {
        self.0.attributes(HEADER)
    }

    /// Reads a chain. For a base chain, also reads the type, the hook and the priority.
    pub(super) fn chain(self) -> Option<ChainRecord> {
        let chain = self.attributes();
        let base = |kind| {
            let hook = chain.nested(key::CHAIN_HOOK).unwrap_or_default();
            let priority = hook.be_u32(key::HOOK_PRIORITY)?;
            Some((kind, hook.be_u32(key::HOOK_NUMBER)?, i32::from_ne_bytes(priority.to_ne_bytes())))
        };
        let base = match chain.text(key::CHAIN_TYPE) {
            Some(kind) => Some(base(kind)?),
            None => None,
        };
        Some(ChainRecord { table: chain.text(key::CHAIN_TABLE)?, name: chain.text(key::CHAIN_NAME)?, base })
    }

    /// Reads a rule and the name of its chain.
    pub(super) fn rule(self) -> Option<(String, Rule)> {
        let rule = self.attributes();
        let (comment, _) = rule.get(key::RULE_USER_DATA).map(user_data::read).unwrap_or_default();
        let comment = (!comment.is_empty()).then(|| comment.to_owned());
        let list = rule.nested(key::RULE_EXPRESSIONS).unwrap_or_default();
        let exprs = list.iter().map(|(_, expr)| Expression::parse(Attributes::new(expr)).map(|expr| expr.read()));
        Some((rule.text(key::RULE_CHAIN)?, Rule { exprs: exprs.collect::<Option<_>>()?, comment }))
    }

    /// Reads the name and the shape of a set or map. The shape is `None` if portfwd creates no such sets or maps.
    pub(super) fn set(self) -> Option<(String, Option<Shape>)> {
        let set = self.attributes();
        let flags = set.be_u32(key::SET_FLAGS).unwrap_or(0);
        let fields = |kind| Shape::fields(set.be_u32(kind).unwrap_or(0));
        let shape = || {
            let data = if flags & MAP > 0 { fields(key::SET_DATA_TYPE)? } else { Vec::new() };
            Some(Shape { key: fields(key::SET_KEY_TYPE)?, data })
        };
        Some((set.text(key::SET_NAME)?, (flags & !MAP == 0).then(shape).flatten()))
    }

    /// Calls `each` with the key, data, comment, span and counter of every element. Returns `None` if a key or the data
    /// of an element cannot be read.
    pub(super) fn elements(self, mut each: impl FnMut(Key, &[u8], (&str, Option<Span>), Counter)) -> Option<()> {
        let list = self.attributes().nested(key::ELEMENTS_LIST).unwrap_or_default();
        for (_, element) in list.iter() {
            let element = Attributes::new(element);
            // A catch-all element has no key.
            let Some(_) = element.get(key::ELEMENT_KEY) else { continue };
            let key = data_value(element, key::ELEMENT_KEY)?;
            let data = match element.nested(key::ELEMENT_DATA) {
                Some(data) if data.get(key::DATA_VERDICT).is_none() => data_value(element, key::ELEMENT_DATA)?,
                _ => &[],
            };
            let remark = element.get(key::ELEMENT_USER_DATA).map(user_data::read).unwrap_or_default();
            let counter = element.nested(key::ELEMENT_EXPRESSION).and_then(Expression::parse);
            each(Key(key.into()), data, remark, counter.map_or_else(Counter::default, |expr| expr.counter()));
        }
        Some(())
    }
}

/// An expression in the kernel's encoding. Callers use libnftnl's attribute numbers, as the encoder does.
struct Expression<'a> {
    name: String,
    attributes: Attributes<'a>,
}

impl<'a> Expression<'a> {
    fn parse(expr: Attributes<'a>) -> Option<Self> {
        let attributes = expr.nested(key::EXPRESSION_DATA).unwrap_or_default();
        Some(Self { name: expr.text(key::EXPRESSION_NAME)?, attributes })
    }

    fn read(&self) -> Expr {
        Expr::read(&self.name, self)
    }

    /// Returns the packets and bytes of a counter expression. Returns zeros for other expressions.
    fn counter(&self) -> Counter {
        if self.name != "counter" {
            return Counter::default();
        }
        let number = |kind| self.attributes.be_u64(kind).unwrap_or(0);
        Counter { packets: number(key::COUNTER_PACKETS), bytes: number(key::COUNTER_BYTES) }
    }

    /// Converts an attribute number of libnftnl to the kernel's number. Some numbers of `meta` and `lookup` differ.
    ///
    /// Source: libnftnl's include/libnftnl/expr.h and include/uapi/linux/netfilter/nf_tables.h.
    fn kernel_number(&self, attribute: u16) -> u16 {
        match (self.name.as_str(), u32::from(attribute)) {
            ("meta", sys::NFTNL_EXPR_META_DREG) => 1,
            ("meta", sys::NFTNL_EXPR_META_KEY) => 2,
            ("lookup", sys::NFTNL_EXPR_LOOKUP_SET) => 1,
            ("lookup", sys::NFTNL_EXPR_LOOKUP_SREG) => 2,
            ("lookup", sys::NFTNL_EXPR_LOOKUP_DREG) => 3,
            _ => attribute,
        }
    }

    /// Returns the verdict of an `immediate` expression. Returns `None` if libnftnl does not use `attribute` for
    /// verdicts.
    fn verdict(&self, attribute: u16) -> Option<Attributes<'a>> {
        const IMMEDIATE_DATA: u16 = 2;
        let for_verdict = [sys::NFTNL_EXPR_IMM_VERDICT, sys::NFTNL_EXPR_IMM_CHAIN].contains(&u32::from(attribute));
        let has_verdict = self.name == "immediate" && for_verdict;
        has_verdict.then(|| {
            self.attributes.nested(IMMEDIATE_DATA).and_then(|data| data.nested(key::DATA_VERDICT)).unwrap_or_default()
        })
    }
}

impl Read for Expression<'_> {
    fn number(&self, attribute: u16) -> Option<u32> {
        match self.verdict(attribute) {
            Some(verdict) => verdict.be_u32(key::VERDICT_CODE),
            None => self.attributes.be_u32(self.kernel_number(attribute)),
        }
    }

    fn bytes(&self, attribute: u16) -> Option<Vec<u8>> {
        data_value(self.attributes, self.kernel_number(attribute)).map(<[u8]>::to_vec)
    }

    fn name(&self, attribute: u16) -> Option<String> {
        match self.verdict(attribute) {
            Some(verdict) => verdict.text(key::VERDICT_CHAIN),
            None => self.attributes.text(self.kernel_number(attribute)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PortMap, PortRange};
    use crate::nft::diff::{Changes, Elements};
    use crate::nft::encode::encode;
    use crate::nft::expr::one_of_each;
    use crate::nft::program::{Base, Chain, ChainType, Element, Field, Hook};
    use crate::sys::netlink::message::put_message;
    use crate::sys::netlink::put_attribute;

    /// Encodes changes. Returns the messages between the begin and the end of the batch.
    fn messages(changes: &Changes) -> Vec<Vec<u8>> {
        let batch = encode(changes, 1);
        let (mut rest, mut messages) = (batch.bytes(), Vec::new());
        while let Some((message, behind)) = Message::split(rest) {
            messages.push(rest[..message.0.size()].to_vec());
            rest = behind;
        }
        messages.remove(0);
        messages.pop();
        messages
    }

    fn read(message: &[u8]) -> Message<'_> {
        Message::split(message).expect("whole").0
    }

    #[test]
    fn encoded_changes_are_read_back() {
        let base = Base { chain_type: ChainType::Nat, hook: Hook::Prerouting, priority: -105 };
        let chain = Chain { base: Some(base), rules: Vec::new() };
        let rule = Rule { exprs: one_of_each(), comment: Some("web: the blog".into()) };
        let shape = Shape { key: vec![Field::Protocol, Field::Port], data: vec![Field::Ipv4, Field::Port] };
        let span = Some(Span { ports: PortRange::new(1, 2).expect("range"), to: PortMap::Keep });
        let element = |span| Element { data: [3; 8].into(), comment: "web".into(), span, counter: Counter::default() };
        let elements = vec![(Key([1; 8].into()), element(None)), (Key([2; 8].into()), element(span))];
        let changes = Changes {
            add_maps: vec![("m".into(), shape.clone())],
            add_chains: vec![("c".into(), chain)],
            add_elements: vec![Elements { map: "m".into(), shape: shape.clone(), elements: elements.clone() }],
            add_rules: vec![("c".into(), vec![rule.clone()])],
            ..Changes::default()
        };
        let messages = messages(&changes);
        let [set, chain, list, ruled] = messages.as_slice() else { panic!("{messages:?}") };
        assert_eq!(read(set).set(), Some(("m".into(), Some(shape))));
        let chain = read(chain).chain().expect("a chain");
        assert_eq!((chain.table.as_str(), chain.name.as_str()), ("portfwd", "c"));
        assert_eq!(chain.base, Some(("nat".into(), 0, -105)));
        assert_eq!(read(ruled).rule(), Some(("c".into(), rule)));
        let mut found = Vec::new();
        let whole = read(list).elements(|key, data, (comment, span), counter| {
            found.push((key, Element { data: data.into(), comment: comment.into(), span, counter }));
        });
        assert_eq!((whole, found), (Some(()), elements));
    }

    fn attributes(pairs: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, value) in pairs {
            put_attribute(&mut bytes, *kind, value);
        }
        bytes
    }

    fn message(pairs: &[(u16, &[u8])]) -> Vec<u8> {
        let (mut bytes, body) = (Vec::new(), [&[0; HEADER], attributes(pairs).as_slice()].concat());
        put_message(&mut bytes, 0, 0, 0, &body);
        bytes
    }

    #[test]
    fn a_number_with_a_wrong_length_is_ignored() {
        // libnftnl 1.2.4 ends the process if a number has a wrong length (`nftnl_set_parse_attr_cb` and
        // `nftnl_expr_parse_attr_cb`).
        let set = message(&[(key::SET_NAME, b"m\0"), (key::SET_FLAGS, &[0, 0])]);
        assert_eq!(read(&set).set(), Some(("m".into(), Some(Shape { key: vec![], data: vec![] }))));
        let expr = attributes(&[(key::EXPRESSION_NAME, b"meta\0"), (key::EXPRESSION_DATA, &attributes(&[(2, &[1])]))]);
        let rule = message(&[(key::RULE_CHAIN, b"c\0"), (key::RULE_EXPRESSIONS, &attributes(&[(1, &expr)]))]);
        let (_, rule) = read(&rule).rule().expect("a rule");
        assert_eq!(rule.exprs, [Expr::Foreign("meta".into())]);
    }

    #[test]
    fn a_text_without_terminating_zero_ends_with_its_attribute() {
        // If a text has no terminating zero, libnftnl 1.2.4 reads beyond the message (`strdup` in
        // `nftnl_chain_nlmsg_parse`).
        let chain = message(&[(key::CHAIN_TABLE, b"portfwd\0"), (key::CHAIN_NAME, b"name")]);
        assert_eq!(read(&chain).chain().map(|chain| chain.name), Some("name".into()));
    }

    #[test]
    fn a_name_longer_than_256_bytes_is_rejected() {
        for (length, valid) in [(256, true), (257, false)] {
            assert_eq!(read(&message(&[(key::SET_NAME, &vec![b'x'; length])])).set().is_some(), valid);
        }
    }

    #[test]
    fn an_unknown_expression_is_foreign() {
        let expr = attributes(&[(key::EXPRESSION_NAME, b"tomorrow\0")]);
        let rule = message(&[(key::RULE_CHAIN, b"c\0"), (key::RULE_EXPRESSIONS, &attributes(&[(1, &expr)]))]);
        let exprs = vec![Expr::Foreign("tomorrow".into())];
        assert_eq!(read(&rule).rule(), Some(("c".into(), Rule { exprs, comment: None })));
    }

    #[test]
    fn a_key_longer_than_all_registers_is_rejected() {
        for (length, valid) in [(64, true), (65, false)] {
            let value = attributes(&[(key::DATA_VALUE, &vec![1; length])]);
            let element = attributes(&[(key::ELEMENT_KEY, &value)]);
            let list = message(&[(key::ELEMENTS_LIST, &attributes(&[(1, &element)]))]);
            assert_eq!(read(&list).elements(|_, _, _, _| {}).is_some(), valid);
        }
    }

    #[test]
    fn reading_a_truncated_message_does_not_panic() {
        let mut bytes = message(&[(key::CHAIN_TABLE, b"portfwd\0"), (key::ELEMENTS_LIST, &[255; 40])]);
        for end in (netlink::message::HEADER..bytes.len()).rev() {
            bytes.truncate(end);
            bytes[..4].copy_from_slice(&u32::try_from(end).expect("small").to_ne_bytes());
            let message = read(&bytes);
            let _ = (message.chain(), message.rule(), message.set(), message.elements(|_, _, _, _| {}));
        }
    }
}
