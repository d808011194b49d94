//! The attributes of netlink messages: one reader and one writer.
//!
//! ```text
//! length: u16   kind: u16   value   padding to 4 bytes
//! ```
//! Source: `struct nlattr` in include/uapi/linux/netlink.h.

/// `NLA_F_NESTED`, set in the kind of an attribute whose value consists of attributes.
pub const NESTED: u16 = 1 << 15;

/// The bits of the kind without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const KIND: u16 = 0x3fff;

/// The bytes of length and kind.
const HEADER: usize = 4;

/// The longest text that [`Attributes::text`] returns, with its closing zero: `NFT_NAME_MAXLEN`, the longest of the kernel's
/// limits for names.
const LONGEST_TEXT: usize = 256;

/// A sequence of attributes. The first broken attribute ends it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Reads attributes from the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Reads attributes that begin after the first `header` bytes of `bytes`.
    pub fn behind(bytes: &'a [u8], header: usize) -> Self {
        Self(bytes.get(header..).unwrap_or_default())
    }

    /// Iterates over kinds, without their flags, and values.
    pub fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        self.spans().map(|(_, kind, value)| (kind, value))
    }

    /// Iterates over the end (without padding), the kind and the value of each attribute.
    pub fn spans(self) -> impl Iterator<Item = (usize, u16, &'a [u8])> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.0.get(at..)?;
            let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
            let value = rest.get(HEADER..length)?;
            let kind = u16::from_ne_bytes(rest.get(2..HEADER)?.try_into().ok()?) & KIND;
            let end = at + length;
            at = end.next_multiple_of(4);
            Some((end, kind, value))
        })
    }

    /// Returns the value of the first attribute of `kind`.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// Returns the attributes inside the first attribute of `kind`.
    pub fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }

    fn number<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.get(kind)?.try_into().ok()
    }

    /// Returns a number of 8 bits.
    pub fn u8(self, kind: u16) -> Option<u8> {
        self.number(kind).map(u8::from_ne_bytes)
    }

    /// Returns a number of 16 bits in host byte order.
    pub fn u16(self, kind: u16) -> Option<u16> {
        self.number(kind).map(u16::from_ne_bytes)
    }

    /// Returns a number of 32 bits in host byte order.
    pub fn u32(self, kind: u16) -> Option<u32> {
        self.number(kind).map(u32::from_ne_bytes)
    }

    /// Returns a number of 64 bits in host byte order.
    pub fn u64(self, kind: u16) -> Option<u64> {
        self.number(kind).map(u64::from_ne_bytes)
    }

    /// Returns a number of 16 bits in network byte order.
    pub fn be_u16(self, kind: u16) -> Option<u16> {
        self.number(kind).map(u16::from_be_bytes)
    }

    /// Returns a number of 32 bits in network byte order, as all numbers of nf_tables are.
    pub fn be_u32(self, kind: u16) -> Option<u32> {
        self.number(kind).map(u32::from_be_bytes)
    }

    /// Returns a number of 64 bits in network byte order.
    pub fn be_u64(self, kind: u16) -> Option<u64> {
        self.number(kind).map(u64::from_be_bytes)
    }

    /// Returns a text up to its closing zero. Returns `None` if the value has more than 256 bytes.
    pub fn text(self, kind: u16) -> Option<String> {
        text(self.get(kind).filter(|value| value.len() <= LONGEST_TEXT)?)
    }
}

/// Reads a text up to its closing zero or the end of `bytes`.
pub fn text(bytes: &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next()?).into_owned())
}

/// Appends an attribute with its header and the padding to 4 bytes.
pub fn put_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    put_with(bytes, kind, |bytes| bytes.extend(value));
}

/// Appends a text with its closing zero.
pub fn put_text(bytes: &mut Vec<u8>, kind: u16, text: &str) {
    put_with(bytes, kind, |bytes| {
        bytes.extend(text.as_bytes());
        bytes.push(0);
    });
}

/// Appends an attribute that consists of the attributes that `put` appends.
pub fn put_nested(bytes: &mut Vec<u8>, kind: u16, put: impl FnOnce(&mut Vec<u8>)) {
    put_with(bytes, kind | NESTED, put);
}

fn put_with(bytes: &mut Vec<u8>, kind: u16, put: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 2]);
    bytes.extend(kind.to_ne_bytes());
    put(bytes);
    // The kernel refuses a value of more than 65,531 bytes, because its length does not fit.
    let length = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    if let Some(place) = bytes.get_mut(start..start + 2) {
        place.copy_from_slice(&length.to_ne_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        let mut bytes = Vec::new();
        put_nested(&mut bytes, 1, |inner| {
            put_attribute(inner, 1, &[7]);
            put_text(inner, 2, "eth0");
            put_attribute(inner, 3, &[]);
        });
        put_attribute(&mut bytes, 2, &0x0102u16.to_be_bytes());
        put_attribute(&mut bytes, 3, &0x0102_0304u32.to_be_bytes());
        put_attribute(&mut bytes, 4, &0x0102_0304_0506_0708u64.to_be_bytes());
        bytes
    }

    #[test]
    fn written_attributes_are_read_back() {
        let bytes = example();
        let attributes = Attributes::new(&bytes);
        assert_eq!(attributes.iter().map(|(kind, _)| kind).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let inner = attributes.nested(1).expect("nested");
        assert_eq!((inner.u8(1), inner.text(2).as_deref(), inner.get(3)), (Some(7), Some("eth0"), Some(&[][..])));
        assert_eq!(inner.get(2), Some(&b"eth0\0"[..]));
        assert_eq!(attributes.be_u16(2), Some(0x0102));
        assert_eq!(attributes.be_u32(3), Some(0x0102_0304));
        assert_eq!(attributes.be_u64(4), Some(0x0102_0304_0506_0708));
        assert_eq!(attributes.u16(2), Some(u16::from_be(0x0102)));
        assert_eq!(attributes.u32(3), Some(u32::from_be(0x0102_0304)));
        assert_eq!(attributes.u64(4), Some(u64::from_be(0x0102_0304_0506_0708)));
        let ends: Vec<_> = attributes.spans().map(|(end, _, _)| end).collect();
        assert_eq!(ends, [28, 34, 44, 56]);
    }

    #[test]
    fn a_number_of_another_length_is_none() {
        let bytes = example();
        let attributes = Attributes::new(&bytes);
        assert_eq!(
            (attributes.u8(2), attributes.u16(3), attributes.u32(4), attributes.u64(3)),
            (None, None, None, None)
        );
        assert_eq!((attributes.be_u16(3), attributes.be_u32(2), attributes.be_u64(9)), (None, None, None));
    }

    #[test]
    fn attributes_cut_at_any_byte_end_there() {
        let bytes = example();
        for end in 0..bytes.len() {
            let cut = Attributes::new(&bytes[..end]);
            let whole = Attributes::new(&bytes).spans().filter(|(behind, _, _)| *behind <= end).count();
            assert_eq!(cut.iter().count(), whole, "{end}");
            for (_, value) in cut.iter() {
                for inner in 0..value.len() {
                    Attributes::new(&value[..inner]).iter().for_each(drop);
                }
            }
        }
    }

    #[test]
    fn a_length_shorter_than_its_own_header_ends_the_list() {
        for length in 0..4 {
            let bytes = [length, 0, 1, 0, 8, 0, 1, 0, 0, 0, 0, 0];
            assert_eq!(Attributes::new(&bytes).iter().count(), 0, "{length}");
        }
    }

    #[test]
    fn a_text_ends_at_a_zero_or_with_its_attribute() {
        for (value, text) in [(&b"a\0b\0"[..], Some("a")), (b"ab", Some("ab")), (b"", Some("")), (&[b'x'; 257], None)] {
            let mut bytes = Vec::new();
            put_attribute(&mut bytes, 1, value);
            assert_eq!(Attributes::new(&bytes).text(1).as_deref(), text);
        }
    }

    #[test]
    fn a_value_that_is_too_long_is_cut_at_the_largest_length() {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, 1, &[0; 70_000]);
        assert_eq!(Attributes::new(&bytes).get(1).map(<[u8]>::len), Some(usize::from(u16::MAX) - HEADER));
    }
}
