//! Monitors commits: finds the tables that other programs change while portfwd reads its own table.
//!
//! Every commit to a table of the network namespace increases the generation. The kernel refuses a batch of an older
//! generation. If a program commits every few milliseconds, portfwd could never read and commit in one generation. So
//! portfwd subscribes to the multicast group `NFNLGRP_NFTABLES` after the first interrupted attempt. The kernel then
//! reports the objects that each commit changes:
//! ```text
//! join the group, read the generation, wait for running commits   (Connection::watch)
//! read portfwd's table                                            (decode)
//! wait for running commits, read all notifications                (Connection::still)
//! commit at the generation of the last NFT_MSG_NEWGEN; if that is stale, read notifications and commit again
//! ```
//! These steps are as safe as a read and a commit in one generation (net/netfilter/nf_tables_api.c, Linux 5.18 to
//! 6.18):
//! - `nf_tables_commit` holds one lock during four steps. First, it increases the generation. Second, it makes the
//!   changes visible. Third, it reports every changed object with its table (`nft_commit_notify`). Last, it reports the
//!   generation (`nf_tables_gen_notify`). A reader that has received generation g has therefore received every change
//!   up to g.
//! - A batch names a generation. The kernel compares this generation with the current one under the same lock
//!   (`nf_tables_valid_genid`). If the kernel accepts a batch at g, portfwd has read every change up to g, and no later
//!   change exists.
//! - A notification enters the socket's buffer at once, or it is lost. After a loss, the socket returns ENOBUFS.
//! - If a commit is running when portfwd joins the group, the generation may be new although the changes are not yet
//!   visible. So portfwd sends an empty batch. An empty batch changes nothing, but waits for the lock and thus for the
//!   running commit.
//!
//! Be aware: a notification that portfwd cannot read counts as a change of portfwd's table, so portfwd reads the table
//! again. The kernel sends no notification for elements that packets add, or for elements that time out. portfwd's maps
//! have no such elements.

use std::io;

use nftnl_sys::libc;

use super::message::{KIND, Message};
use super::program::TABLE;
use crate::sys::netlink::Socket;
use crate::sys::netlink::wire::Notifications;

/// The multicast group for nf_tables notifications, as a bit mask. Source: `NFNLGRP_NFTABLES` in
/// include/uapi/linux/netfilter/nfnetlink.h.
const GROUP: u32 = 1 << (7 - 1);

/// The size of the kernel's buffer for notifications, in bytes. The buffer is enough for about 10,000 rules of other
/// programs. The kernel uses at most twice this size, and only for waiting notifications.
const KERNEL_BUFFER: usize = 8 << 20;

/// The size of portfwd's buffer for one datagram of notifications, in bytes. The kernel sends at most one page, or 8
/// KiB.
const DATAGRAM: usize = 1 << 16;

/// The maximum number of datagrams that one call of [`Watch::poll`] reads. The limit ends the loop even if other
/// programs commit continuously.
const MAX_DATAGRAMS: u32 = 1 << 18;

/// A subscription to commits, with the last generation that the kernel reported.
pub(super) struct Watch {
    notifications: Box<dyn Notifications>,
    buffer: Vec<u8>,
    generation: u32,
}

impl Watch {
    /// Subscribes to the commits in the network namespace of a socket.
    pub(super) fn subscribe(socket: &Socket) -> io::Result<Box<dyn Notifications>> {
        socket.subscribe(GROUP, KERNEL_BUFFER)
    }

    /// Creates a watch. The caller must read `generation` after the subscription.
    pub(super) fn new(notifications: Box<dyn Notifications>, generation: u32) -> Self {
        Self { notifications, buffer: vec![0; DATAGRAM], generation }
    }

    /// Reads the pending notifications and returns the generation of the last complete commit. Returns `None` if
    /// portfwd's table changed, or if notifications were lost. After `None`, the caller must create a new watch and
    /// read the table again.
    pub(super) fn poll(&mut self) -> Option<u32> {
        for _ in 0..MAX_DATAGRAMS {
            match self.notifications.receive(&mut self.buffer) {
                Ok(length) => self.generation = read_notices(self.buffer.get(..length)?, self.generation)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(self.generation),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // For example, ENOBUFS means that the kernel's buffer was full and notifications were lost.
                Err(_) => return None,
            }
        }
        None
    }
}

/// The content of a notification.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    /// The end of a commit, with the new generation.
    Generation(u32),
    /// A change to an object of portfwd's table.
    OwnTable,
    /// A change to an object of another table.
    OtherTable,
}

impl Notice {
    /// Reads a notification. Returns `None` if its format is unknown.
    fn read(message: Message<'_>) -> Option<Self> {
        // For every kind of object, attribute 1 is the name of the table, for example `NFTA_TABLE_NAME` or
        // `NFTA_SET_ELEM_LIST_TABLE`.
        const NAME: u16 = 1;
        const GENERATION: u16 = 1; // NFTA_GEN_ID
        let kind = message.0.kind;
        let family = i32::from(*message.0.body.first()?);
        if kind & 0xff00 != KIND {
            return None;
        }
        if i32::from(kind & 0xff) == libc::NFT_MSG_NEWGEN {
            return message.attributes().be_u32(GENERATION).map(Self::Generation);
        }
        let has_name = message.attributes().text(NAME)? == TABLE;
        // A table without a family may be portfwd's table. The kernel was never seen to send such a notification.
        let may_be_inet = [libc::NFPROTO_INET, libc::NFPROTO_UNSPEC].contains(&family);
        Some(if has_name && may_be_inet { Self::OwnTable } else { Self::OtherTable })
    }
}

/// Reads the notifications of a datagram and returns the last generation. Returns `None` if portfwd's table changed, or if a
/// notification cannot be read.
fn read_notices(mut bytes: &[u8], mut generation: u32) -> Option<u32> {
    if bytes.is_empty() {
        return None;
    }
    while !bytes.is_empty() {
        let (message, behind) = Message::split(bytes)?;
        bytes = behind;
        match Notice::read(message)? {
            Notice::Generation(moved) => generation = moved,
            Notice::OtherTable => {}
            Notice::OwnTable => return None,
        }
    }
    Some(generation)
}

// The recorded notifications are little-endian.
#[cfg(all(test, target_endian = "little"))]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    // Notifications of Linux 6.18 for the commit `nft 'add table ip other; add chain ip other c'`.
    const OTHERS: &str = "3c000000000a000001000000b23d0000020000020a0001006f7468657200000008000300000000010c0004000000000000
        00000108000200000000003c000000030a000402000000b23d0000020000020a0001006f7468657200000006000300630000000c0002000000000
        0000000010800060000000000";
    const GENERATION_2: &str =
        "2c0000000f0a000001000000b23d00000000000208000100000000020800020000003db2080003006e667400";
    // Notifications for the commit `nft add rule ip other c accept`.
    const RULE_OF_OTHERS: &str = "68000000060a000c01000000b33d0000020000030a0001006f7468657200000006000200630000000c00030000
        0000000000000234000400300001000e000100696d6d6564696174650000001c0002000800010000000000100002000c000200080001000000000
        1";
    const GENERATION_3: &str =
        "2c0000000f0a000001000000b33d00000000000308000100000000030800020000003db3080003006e667400";
    // Notifications for `nft add element inet portfwd ip-ports { tcp . 9 : 10.0.0.1 . 9 }`, and for the deletion of
    // this element.
    const ELEMENT: &str = "840000000c0a000400000000bf3d0000010000050c000100706f7274667764000d00020069702d706f727473000000005
        400030050000100100001000c0001000600000000090000100002000c0001000a000001000900002c0007000c000100636f756e746572001c0002
        000c00010000000000000000000c0002000000000000000000";
    const DELETED: &str = "840000000e0a000000000000c03d0000010000060c000100706f7274667764000d00020069702d706f7274730000000054
        00030050000100100001000c0001000600000000090000100002000c0001000a000001000900002c0007000c000100636f756e746572001c00020
        00c00010000000000000000000c0002000000000000000000";
    // Notifications for `nft add table ip portfwd` and for `nft add table inet portfwd { flags dormant; }`. Only the
    // table of family `inet` is portfwd's table.
    const NAMESAKE: &str =
        "3c000000000a000001000000c23d0000020000070c000100706f72746677640008000300000000000c0004000000000000
        0000030800020000000000";
    const DORMANT: &str =
        "3c000000000a000001000000c43d0000010000080c000100706f72746677640008000300000000060c00040000000000000
        000020800020000000001";
    // Notifications for `nft flush ruleset` with three tables: `ip other`, `ip portfwd` and `inet portfwd`.
    const FLUSHED: &str = "68000000080a000001000000c83d00000200000b0a0001006f7468657200000006000200630000000c0003000000000000
        00000234000400300001000e000100696d6d6564696174650000001c0002000800010000000000100002000c00020008000100000000013400000
        0050a000001000000c83d00000200000b0a0001006f7468657200000006000300630000000c000200000000000000000134000000020a00000100
        0000c83d00000200000b0a0001006f7468657200000008000300000000000c000400000000000000000134000000020a000001000000c83d00000
        200000b0c000100706f72746677640008000300000000000c000400000000000000000334000000050a000001000000c83d00000100000b0c0001
        00706f72746677640006000300630000000c000200000000000000000134000000020a000001000000c83d00000100000b0c000100706f7274667
        7640008000300000000000c0004000000000000000004";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<char> = hex.chars().filter(char::is_ascii_hexdigit).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex");
        digits.chunks(2).map(byte).collect()
    }

    /// A source of recorded notifications. After the last notification, the source returns an error.
    struct Recorded(VecDeque<Vec<u8>>, i32);

    impl Notifications for Recorded {
        fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(datagram) = self.0.pop_front() else {
                let error = std::mem::replace(&mut self.1, libc::EAGAIN);
                return Err(io::Error::from_raw_os_error(error));
            };
            buffer[..datagram.len()].copy_from_slice(&datagram);
            Ok(datagram.len())
        }
    }

    fn watch(recorded: &[&str], error: i32) -> Watch {
        Watch::new(Box::new(Recorded(recorded.iter().map(|hex| bytes(hex)).collect(), error)), 1)
    }

    fn polled(recorded: &[&str]) -> Option<u32> {
        watch(recorded, libc::EAGAIN).poll()
    }

    #[test]
    fn commits_to_other_tables_move_only_the_generation() {
        assert_eq!(polled(&[]), Some(1));
        assert_eq!(polled(&[OTHERS, GENERATION_2]), Some(2));
        assert_eq!(polled(&[OTHERS, GENERATION_2, RULE_OF_OTHERS, GENERATION_3]), Some(3));
        assert_eq!(polled(&[NAMESAKE, GENERATION_2]), Some(2));
        // A commit is complete only with its NFT_MSG_NEWGEN.
        assert_eq!(polled(&[OTHERS, GENERATION_2, RULE_OF_OTHERS]), Some(2));
    }

    #[test]
    fn poll_notices_a_change_of_portfwds_table_in_any_notification() {
        for own in [ELEMENT, DELETED, DORMANT, FLUSHED] {
            assert_eq!(polled(&[own]), None, "{own}");
            assert_eq!(polled(&[own, GENERATION_3]), None, "{own}");
            assert_eq!(polled(&[OTHERS, GENERATION_2, own, GENERATION_3]), None, "{own}");
            assert_eq!(polled(&[&[OTHERS, own].concat(), GENERATION_3]), None, "{own}");
        }
    }

    #[test]
    fn a_lost_or_unreadable_notification_counts_as_a_change() {
        for error in [libc::ENOBUFS, libc::ENOMEM, libc::EBADF] {
            assert_eq!(watch(&[OTHERS, GENERATION_2], error).poll(), None, "{error}");
        }
        assert_eq!(watch(&[OTHERS, GENERATION_2], libc::EINTR).poll(), Some(2));
        assert_eq!(polled(&[""]), None);
        let whole = bytes(OTHERS);
        for end in 1..whole.len() {
            // The first of two messages ends at byte 60.
            assert_eq!(read_notices(&whole[..end], 1).is_some(), end == 60, "{end}");
        }
        // Byte 5 contains the netlink subsystem. Byte 20 contains the length of the attribute with the generation.
        for (at, value) in [(5, 9), (20, 4)] {
            let mut bad = bytes(GENERATION_2);
            bad[at] = value;
            assert_eq!(read_notices(&bad, 1), None, "{at}");
        }
        // Byte 22 contains the number of the attribute with the name of the table.
        let mut bad = bytes(NAMESAKE);
        bad[22] = 9;
        assert_eq!(read_notices(&bad, 1), None);
    }

    #[test]
    fn a_table_without_a_family_counts_as_portfwds_table() {
        let mut any_family = bytes(DORMANT);
        any_family[16] = 0;
        assert_eq!(read_notices(&any_family, 1), None);
    }
}
