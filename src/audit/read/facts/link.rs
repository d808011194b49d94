//! Interfaces, and those of them that have programs (XDP).
//!
//! Source: `IFLA_…` and `struct ifinfomsg` in include/uapi/linux/if_link.h and rtnetlink.h, `IFF_…` in if.h.

use super::dump::{Message, word};
use crate::audit::facts::Link;
use crate::sys::netlink::{attributes, put_attribute};

/// `IFF_…`, the flags of an interface.
const UP: u32 = 1;
const LOOPBACK: u32 = 1 << 3;

/// `IFLA_EXT_MASK` and `RTEXT_FILTER_SKIP_STATS`.
const MASK: u16 = 29;
const SKIP_STATISTICS: u32 = 1 << 3;

mod key {
    pub const NAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const MASTER: u16 = 10;
    pub const INFO: u16 = 18;
    pub const XDP: u16 = 43;
    pub const KIND: u16 = 1;
    pub const PORT_KIND: u16 = 4;
    pub const PORT: u16 = 5;
    pub const HAIRPIN: u16 = 4;
    pub const ATTACHED: u16 = 2;
}

/// What the question has behind its header: no counters, please.
pub(super) fn without_statistics() -> Vec<u8> {
    let mut bytes = Vec::new();
    put_attribute(&mut bytes, MASK, &SKIP_STATISTICS.to_ne_bytes());
    bytes
}

/// Reads an interface, and whether a program is attached to it.
pub(super) fn read(message: Message<'_>, found: &mut Vec<(Link, bool)>) -> Option<()> {
    let flags = message.word(8)?;
    let mut link = Link {
        index: message.word(4)?,
        name: String::new(),
        kind: None,
        master: None,
        up: flags & UP > 0,
        loopback: flags & LOOPBACK > 0,
        mtu: None,
        hairpin: None,
    };
    let mut program = false;
    for (key, value) in message.attributes() {
        match key {
            key::NAME => link.name = text(value)?,
            key::MTU => link.mtu = word(value),
            key::MASTER => link.master = word(value),
            key::INFO => info(value, &mut link),
            // 0 is `XDP_ATTACHED_NONE`.
            key::XDP => program = attributes(value).any(|(key, value)| key == key::ATTACHED && value != [0]),
            _ => {}
        }
    }
    (!link.name.is_empty()).then(|| found.push((link, program)))
}

fn info(value: &[u8], link: &mut Link) {
    let mut port_kind = None;
    for (key, value) in attributes(value) {
        match key {
            key::KIND => link.kind = text(value),
            key::PORT_KIND => port_kind = text(value),
            // What it says depends on the kind, which stands before it.
            key::PORT if port_kind.as_deref() == Some("bridge") => {
                let mode = attributes(value).find(|(key, _)| *key == key::HAIRPIN);
                link.hairpin = mode.map(|(_, value)| value != [0]);
            }
            _ => {}
        }
    }
}

/// A text that ends with a zero. A name may hold any bytes but those of a path and of white space; one that is no text is
/// shown as far as it is.
fn text(value: &[u8]) -> Option<String> {
    let bytes = value.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::dump::LINKS;
    use super::*;
    use crate::sys::netlink::NESTED;

    fn nested(key: u16, inner: &[(u16, &[u8])]) -> Vec<u8> {
        let (mut bytes, mut all) = (Vec::new(), Vec::new());
        inner.iter().for_each(|(key, value)| put_attribute(&mut bytes, *key, value));
        put_attribute(&mut all, key | NESTED, &bytes);
        all
    }

    fn body(flags: u32, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![0, 0, 1, 0];
        body.extend(7_u32.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        body.extend(attributes);
        body
    }

    fn one(body: &[u8]) -> Option<(Link, bool)> {
        let mut found = Vec::new();
        read(Message::new(LINKS, body)?, &mut found)?;
        found.pop()
    }

    #[test]
    fn a_port_of_a_bridge_with_a_program_is_read() {
        let mut attributes = Vec::new();
        put_attribute(&mut attributes, key::NAME, b"veth0.1\0");
        put_attribute(&mut attributes, key::MTU, &1400_u32.to_ne_bytes());
        put_attribute(&mut attributes, key::MASTER, &3_u32.to_ne_bytes());
        let mut mode = Vec::new();
        put_attribute(&mut mode, key::HAIRPIN, &[1]);
        attributes.extend(nested(
            key::INFO,
            &[(key::KIND, b"veth\0"), (key::PORT_KIND, b"bridge\0"), (key::PORT | NESTED, &mode)],
        ));
        attributes.extend(nested(key::XDP, &[(key::ATTACHED, &[2])]));
        let bytes = body(UP | 1 << 6, &attributes);
        let link = Link {
            index: 7,
            name: "veth0.1".into(),
            kind: Some("veth".into()),
            master: Some(3),
            up: true,
            loopback: false,
            mtu: Some(1400),
            hairpin: Some(true),
        };
        assert_eq!(one(&bytes), Some((link, true)));
        for end in 0..bytes.len() {
            let _ = one(&bytes[..end]);
        }
    }

    #[test]
    fn what_a_port_of_something_else_says_is_not_taken_for_hairpin_mode() {
        let mut attributes = Vec::new();
        put_attribute(&mut attributes, key::NAME, b"eth0\0");
        let mut data = Vec::new();
        put_attribute(&mut data, key::HAIRPIN, &[1]);
        attributes.extend(nested(key::INFO, &[(key::PORT_KIND, b"bond\0"), (key::PORT, &data)]));
        attributes.extend(nested(key::XDP, &[(key::ATTACHED, &[0])]));
        let (link, program) = one(&body(LOOPBACK, &attributes)).expect("a link");
        assert_eq!((link.hairpin, link.kind, link.loopback, link.up, program), (None, None, true, false, false));
        assert_eq!(one(&body(0, &[])), None);
    }
}
