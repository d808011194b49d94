//! Checksums that a link leaves to hardware, over the netlink of ethtool(8).
//!
//! What is sent over a pair of links has no checksum yet: the kernel at the other end knows that it needs none. Who takes
//! packets from there with a socket of its own, and hands them on, makes them packets with a wrong one.
//!
//! Source: include/uapi/linux/genetlink.h, ethtool_netlink.h; Documentation/networking/ethtool-netlink.rst. Since Linux 5.6.

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_GENERIC;

use super::netlink::{self, NESTED, QUESTION, attributes, message, put_attribute};

/// The bytes of a message of generic netlink before its attributes and behind netlink's header.
const HEADER: usize = 4;

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`.
const CONTROL: (u16, u8, u16, u16) = (0x10, 3, 1, 2);
/// `ETHTOOL_MSG_FEATURES_GET` and `ETHTOOL_MSG_FEATURES_SET`.
const FEATURES: (u8, u8) = (11, 12);

/// What is left to hardware, by the names that `ethtool -k` prints: the checksums of all protocols over IP, and of SCTP.
const CHECKSUMS: [&str; 2] = ["tx-checksum-ip-generic", "tx-checksum-sctp"];

/// A conversation about the links of the calling thread's namespace.
struct Ethtool {
    kernel: Socket,
    family: u16,
}

impl Ethtool {
    fn open() -> io::Result<Self> {
        let kernel = netlink::open(NETLINK_GENERIC)?;
        let mut name = Vec::new();
        let (control, get, id, family_name) = CONTROL;
        put_attribute(&mut name, family_name, b"ethtool\0");
        let answer = ask(&kernel, &message(control, QUESTION, get, 0, 1, &name))?;
        let family = attributes(&answer).find(|(kind, _)| *kind == id);
        let family = family.and_then(|(_, value)| Some(u16::from_ne_bytes(value.try_into().ok()?)));
        let family = family.ok_or_else(|| io::Error::other("this kernel has no netlink for ethtool"))?;
        Ok(Self { kernel, family })
    }

    /// Asks about the features of a link, or sets them.
    fn features(&self, command: u8, index: u32, more: &[u8]) -> io::Result<Vec<u8>> {
        let (mut header, mut all) = (Vec::new(), Vec::new());
        put_attribute(&mut header, 1, &index.to_ne_bytes());
        put_attribute(&mut all, 1 | NESTED, &header);
        all.extend(more);
        ask(&self.kernel, &message(self.family, QUESTION, command, 0, 2, &all))
    }
}

/// Asks, and gives the attributes of the answer; none where it is only that all is well.
fn ask(kernel: &Socket, question: &[u8]) -> io::Result<Vec<u8>> {
    let answer = netlink::ask(kernel, question)?.unwrap_or_default();
    Ok(answer.get(HEADER..).unwrap_or_default().to_vec())
}

/// Whether a link leaves checksums of what it sends to hardware.
///
/// # Errors
/// Where the kernel cannot be asked.
pub fn leaves_checksums(index: u32) -> io::Result<bool> {
    let answer = Ethtool::open()?.features(FEATURES.0, index, &[])?;
    // ETHTOOL_A_FEATURES_ACTIVE, then of a set of bits their list, of each its name.
    let inside = |bytes: &[u8], kind: u16| -> Vec<Vec<u8>> {
        attributes(bytes).filter(|(found, _)| *found == kind).map(|(_, value)| value.to_vec()).collect()
    };
    let lists = inside(&answer, 4).into_iter().flat_map(|active| inside(&active, 3));
    let names = lists.flat_map(|list| inside(&list, 1)).flat_map(|bit| inside(&bit, 2));
    let is_one = |name: &[u8]| CHECKSUMS.iter().any(|checksum| name.strip_suffix(b"\0") == Some(checksum.as_bytes()));
    Ok(names.into_iter().any(|name| is_one(&name)))
}

/// Has the kernel compute the checksums of what a link sends.
///
/// # Errors
/// Where it does not.
pub fn compute_checksums(index: u32) -> io::Result<()> {
    let mut bits = Vec::new();
    for name in CHECKSUMS {
        // Named and without a value it is switched off.
        let mut bit = Vec::new();
        put_attribute(&mut bit, 2, &[name.as_bytes(), b"\0"].concat());
        put_attribute(&mut bits, 1 | NESTED, &bit);
    }
    let (mut set, mut wanted) = (Vec::new(), Vec::new());
    put_attribute(&mut set, 3 | NESTED, &bits);
    // ETHTOOL_A_FEATURES_WANTED
    put_attribute(&mut wanted, 3 | NESTED, &set);
    Ethtool::open()?.features(FEATURES.1, index, &wanted).map(drop)
}
