//! What the kernel says of a message that it did not carry out.

use std::io;

use super::message::Attributes;

/// An error message of the kernel's.
pub(super) struct Refusal {
    pub(super) seq: u32,
    pub(super) error: io::Error,
    pub(super) reason: Option<String>,
    pub(super) offset: Option<u32>,
}

/// The parts of a message's header that matter here.
pub(super) struct Head {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
}

impl Head {
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(message.get(6..8)?.try_into().ok()?),
            seq: u32::from_ne_bytes(message.get(8..12)?.try_into().ok()?),
        })
    }
}

/// Reads an error message, or the end of a dump, in which an error may be too; `None` where it is an acknowledgement, or the
/// end of a whole dump. Source: `struct nlmsgerr`, `enum nlmsgerr_attrs` in include/uapi/linux/netlink.h; `netlink_dump` in
/// net/netlink/af_netlink.c.
pub(super) fn refusal(message: &[u8]) -> Option<Refusal> {
    const REASON: u16 = 1;
    const OFFSET: u16 = 2;
    let error = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    if error == 0 {
        return None;
    }
    let seq = message.get(28..32).and_then(|seq| seq.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let mut refusal =
        Refusal { seq, error: io::Error::from_raw_os_error(error.saturating_neg()), reason: None, offset: None };
    // Behind the error is the header of the message it is about, and, because we asked for it, nothing more of that.
    for (kind, value) in Attributes::behind(message, 36).each() {
        match kind {
            REASON => {
                let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                refusal.reason = Some(crate::model::error::printable(&String::from_utf8_lossy(text)));
            }
            OFFSET => refusal.offset = value.try_into().ok().map(u32::from_ne_bytes),
            _ => {}
        }
    }
    Some(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::put_attribute;

    #[test]
    fn a_refusal_is_read_whole() {
        let mut message = vec![0; 16];
        message.extend((-17i32).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(42u32.to_ne_bytes());
        message.extend([0; 4]);
        put_attribute(&mut message, 1, b"in use\x1b\0");
        put_attribute(&mut message, 2, &96u32.to_ne_bytes());
        let refusal = refusal(&message).expect("an error");
        assert_eq!((refusal.seq, refusal.error.raw_os_error()), (42, Some(17)));
        assert_eq!((refusal.reason.as_deref(), refusal.offset), (Some("in use\\u{1b}"), Some(96)));
    }

    #[test]
    fn a_dump_may_end_with_an_error() {
        for (error, is) in [(0i32, None), (-2, Some(2))] {
            let mut end = vec![0; 16];
            end.extend(error.to_ne_bytes());
            assert_eq!(refusal(&end).and_then(|refusal| refusal.error.raw_os_error()), is);
        }
    }

    #[test]
    fn what_is_cut_short_does_not_panic() {
        let mut message = vec![0; 16];
        message.extend((-1i32).to_ne_bytes());
        message.extend([255; 30]);
        for end in 0..message.len() {
            let _ = refusal(&message[..end]);
            let _ = Head::read(&message[..end]);
        }
    }
}
