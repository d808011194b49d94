//! User data of rules and elements. The kernel stores user data, but does not interpret them. The comment has nft(8)'s
//! format. The port range of an element has portfwd's own format.
//!
//! User data are a list of attributes. Each attribute has a type, a length and a value. Type and length have one byte
//! each. nft(8) reads type 0 as the comment and skips unknown types.

use std::ffi::CStr;

use crate::model::{PortMap, PortRange};

/// The type of a comment: text with a terminating zero. Source: `NFTNL_UDATA_RULE_COMMENT` and
/// `NFTNL_UDATA_SET_ELEM_COMMENT`.
const COMMENT: u8 = 0;
/// The type of a port range, which only portfwd uses. The value contains the first port, the last port, the kind of
/// [`PortMap`] and the target port. Ports are in network byte order. nft(8) numbers its own types from 0 upwards, so
/// 0x9f is far from them.
const SPAN: u8 = 0x9f;

/// The complete port range that an element is a part of, and the target ports of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The ports that the forward listens on.
    pub ports: PortRange,
    /// The mapping to the target's ports.
    pub to: PortMap,
}

impl Span {
    fn to_bytes(self) -> [u8; 7] {
        let (kind, port) = match self.to {
            PortMap::Keep => (0, 0),
            PortMap::One(port) => (1, port),
            PortMap::Shift(port) => (2, port),
        };
        let ([a, b], [c, d], [e, f]) =
            (self.ports.first().to_be_bytes(), self.ports.last().to_be_bytes(), port.to_be_bytes());
        [a, b, c, d, kind, e, f]
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, kind, e, f] = bytes.try_into().ok()?;
        let ports = PortRange::new(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))?;
        let port = u16::from_be_bytes([e, f]);
        let to = match kind {
            0 => PortMap::Keep,
            1 => PortMap::One(port),
            2 => PortMap::Shift(port),
            _ => return None,
        };
        Some(Self { ports, to })
    }
}

/// Encodes a comment and a span. Omits an empty comment and a missing span.
pub fn write(comment: &str, span: Option<Span>) -> Vec<u8> {
    let mut data = Vec::with_capacity(comment.len() + 12);
    if !comment.is_empty() {
        data.extend([COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)]);
        data.extend(comment.bytes());
        data.push(0);
    }
    if let Some(span) = span {
        data.extend([SPAN, 7]);
        data.extend(span.to_bytes());
    }
    data
}

/// Decodes a comment and a span. The inverse of [`write()`].
///
/// Returns an empty text if there is no comment. Skips unknown types, and stops at a truncated attribute.
pub fn read(mut data: &[u8]) -> (&str, Option<Span>) {
    let (mut comment, mut span) = ("", None);
    while let [kind, length, rest @ ..] = data {
        let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
        match *kind {
            COMMENT => {
                let text = CStr::from_bytes_until_nul(value).ok().and_then(|text| text.to_str().ok());
                comment = text.unwrap_or_default();
            }
            SPAN => span = Span::from_bytes(value),
            _ => {}
        }
        data = rest;
    }
    (comment, span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_spans_round_trip() {
        let ports = PortRange::new(8000, 8010).expect("range");
        for to in [PortMap::Keep, PortMap::One(80), PortMap::Shift(9000)] {
            let span = Some(Span { ports, to });
            assert_eq!(read(&write("web: a", span)), ("web: a", span));
            assert_eq!(read(&write("", span)), ("", span));
        }
        assert_eq!(read(&write("web: a", None)), ("web: a", None));
        assert_eq!(read(&[1, 1, 0, 0, 2, b'x', 0]), ("x", None));
        for broken in [&[0u8][..], &[0, 9, b'x'], &[0, 1, b'x'], &[], &[SPAN, 7, 0, 0, 0, 0, 0, 0, 0], &[SPAN, 1, 0]] {
            assert_eq!(read(broken), ("", None));
        }
    }
}
