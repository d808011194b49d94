//! Checksum offload of links, over the netlink interface of ethtool(8).
//!
//! A packet that crosses a veth pair has no checksum yet, because the kernel at the other end does not verify it. A program
//! that reads such packets from a packet socket and forwards them sends packets with wrong checksums.
//!
//! Source: include/uapi/linux/genetlink.h, ethtool_netlink.h; Documentation/networking/ethtool-netlink.rst. Since Linux 5.6.

use std::io;

use super::netlink::{Attributes, Bus, Request, Socket, put_attribute, put_nested, put_text};

/// The bytes of `struct genlmsghdr`, the header of generic netlink.
const HEADER: usize = 4;

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`.
const CONTROL: (u16, u8, u16, u16) = (0x10, 3, 1, 2);
/// The commands `ETHTOOL_MSG_FEATURES_GET` and `ETHTOOL_MSG_FEATURES_SET` of ethtool_netlink.h.
const FEATURES: (u8, u8) = (11, 12);

/// The offloads of checksums, by the names that `ethtool -k` prints: of all protocols over IP, and of SCTP.
const CHECKSUMS: [&str; 2] = ["tx-checksum-ip-generic", "tx-checksum-sctp"];

/// A socket for the links of the calling thread's namespace.
struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::open(Bus::Generic)?;
        let (control, get, id, family_name) = CONTROL;
        let mut request = Request::new(control, vec![get, 0, 0, 0]);
        put_text(&mut request.body, family_name, "ethtool");
        let mut family = None;
        socket.get(&request, |message| family = family.or(message.attributes(HEADER).u16(id)))?;
        let family = family.ok_or_else(|| io::Error::other("this kernel has no netlink for ethtool"))?;
        Ok(Self { socket, family })
    }

    /// Sends a command about the features of a link and passes the attributes of the answer to `each`.
    fn features(
        &mut self,
        command: u8,
        index: u32,
        more: &[u8],
        mut each: impl FnMut(Attributes<'_>),
    ) -> io::Result<()> {
        let mut request = Request::new(self.family, vec![command, 0, 0, 0]);
        put_nested(&mut request.body, 1, |header| put_attribute(header, 1, &index.to_ne_bytes()));
        request.body.extend(more);
        Ok(self.socket.get(&request, |message| each(message.attributes(HEADER)))?)
    }
}

/// Returns true if a link leaves the checksums of sent packets to hardware.
///
/// # Errors
/// Fails if the kernel has no netlink for ethtool.
pub fn leaves_checksums(index: u32) -> io::Result<bool> {
    // ETHTOOL_A_FEATURES_ACTIVE, its list of bits, a bit, and its name.
    let mut found = false;
    Ethtool::open()?.features(FEATURES.0, index, &[], |answer| {
        let bits = answer.nested(4).and_then(|active| active.nested(3)).unwrap_or_default();
        let mut names = bits.iter().filter_map(|(_, bit)| Attributes::new(bit).text(2));
        found |= names.any(|name| CHECKSUMS.contains(&name.as_str()));
    })?;
    Ok(found)
}

/// Disables the checksum offload of a link, so that the kernel computes the checksums of sent packets.
///
/// # Errors
/// Fails if the kernel refuses the change.
pub fn compute_checksums(index: u32) -> io::Result<()> {
    // In ETHTOOL_A_FEATURES_WANTED, a feature that is named without a value is switched off.
    let mut wanted = Vec::new();
    put_nested(&mut wanted, 3, |set| {
        put_nested(set, 3, |bits| {
            for name in CHECKSUMS {
                put_nested(bits, 1, |bit| put_text(bit, 2, name));
            }
        });
    });
    Ethtool::open()?.features(FEATURES.1, index, &wanted, |_| {})
}
