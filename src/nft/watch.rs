//! Whose tables others commit to: the kernel's notices of every commit, heard while our own table is read.
//!
//! The generation grows with a commit to any table of the network namespace, and the kernel refuses a batch that was decided
//! on an older one. A neighbour who commits to a table of his own every few milliseconds would keep us from ever reading and
//! committing in the same generation, although nothing that concerns us changed. So, where the first attempt was disturbed,
//! we have the kernel tell (multicast group `NFNLGRP_NFTABLES`) what every commit was about:
//! ```text
//! join the group, ask for the generation, wait for who is at work   (Connection::watch)
//! read our table                                                    (decode)
//! wait for who is at work, hear all that was said                   (Connection::still)
//! commit at the generation of the last NFT_MSG_NEWGEN heard; where that is stale, hear, and commit again
//! ```
//! Why that is no weaker than to look and commit in one generation (net/netfilter/nf_tables_api.c, Linux 5.18 to 6.18):
//! - `nf_tables_commit` moves the generation, and only then makes what is new seen, tells of every object that was changed
//!   (`nft_commit_notify`) with the name of its table, and last of the generation (`nf_tables_gen_notify`), all under one
//!   lock. So who has heard of generation g has heard of all that led to it.
//! - A batch names a generation, and the kernel compares it under the same lock (`nf_tables_valid_genid`). Where it takes
//!   ours at g, everything up to g was heard, nothing of it was about us, and nothing came behind it.
//! - What is told gets into our socket at once, or is lost, and then the socket says so (ENOBUFS).
//! - A commit that was at work when we joined may have moved the generation, but not shown its changes yet. A batch without
//!   a message in it changes nothing and must wait for that lock, and so for that commit.
//!
//! Be aware: what is heard can only keep an older look at our table valid. Whatever cannot be understood counts as a change
//! of it, so that it is read again. Elements that packets add, or time takes away, are never told; our maps have none.

use std::io;

use nftnl_sys::libc;

use super::message::{KIND, Message};
use super::program::TABLE;
use crate::sys::netlink::Socket;
use crate::sys::netlink::wire::Notifications;

/// `NFNLGRP_NFTABLES` in include/uapi/linux/netfilter/nfnetlink.h, as a bit of a socket's groups.
const GROUP: u32 = 1 << (7 - 1);

/// The buffer of the kernel for notifications, in bytes: about 10,000 rules of others. The kernel uses at most twice as much,
/// only while notifications wait.
const SPACE: usize = 8 << 20;

/// The room for what the kernel says at once, which is at most a page, and 8 KiB.
const AT_ONCE: usize = 1 << 16;

/// How much is heard at a time at most, so that it has an end whoever else is at work.
const MOST: u32 = 1 << 18;

/// What the kernel says of commits, from a generation on.
pub(super) struct Watch {
    notifications: Box<dyn Notifications>,
    room: Vec<u8>,
    generation: u32,
}

impl Watch {
    /// Subscribes to the commits in the network namespace of a socket.
    pub(super) fn subscribe(socket: &Socket) -> io::Result<Box<dyn Notifications>> {
        socket.subscribe(GROUP, SPACE)
    }

    /// Begins with a generation that was asked for after notices began to come.
    pub(super) fn new(notifications: Box<dyn Notifications>, generation: u32) -> Self {
        Self { notifications, room: vec![0; AT_ONCE], generation }
    }

    /// Hears what was said until now, and gives the last generation of which all was heard. `None` where our table was
    /// touched since it was heard last, or that is not known; what was read is void then, and so is the watch.
    pub(super) fn untouched(&mut self) -> Option<u32> {
        for _ in 0..MOST {
            match self.notifications.receive(&mut self.room) {
                Ok(length) => self.generation = hear(self.room.get(..length)?, self.generation)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(self.generation),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: more was said than there was room for.
                Err(_) => return None,
            }
        }
        None
    }
}

/// What a notice is about.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    /// A commit has come to its end, and this is its generation.
    Generation(u32),
    /// Something in our table.
    Ours,
    /// Something in a table of somebody else.
    Others,
}

impl Notice {
    /// Reads a notice; `None` where it is none that we know.
    fn read(message: Message<'_>) -> Option<Self> {
        // The same in messages about objects of every kind, `NFTA_TABLE_NAME`, `NFTA_SET_ELEM_LIST_TABLE` and so on.
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
        let ours = message.attributes().text(NAME)? == TABLE;
        // That the kernel leaves the family open was never seen; it would not say that it is not ours.
        let may_be = [libc::NFPROTO_INET, libc::NFPROTO_UNSPEC].contains(&family);
        Some(if ours && may_be { Self::Ours } else { Self::Others })
    }
}

/// Reads notices that came at once, and gives the last generation; `None` where one is about us or cannot be read.
fn hear(mut bytes: &[u8], mut generation: u32) -> Option<u32> {
    if bytes.is_empty() {
        return None;
    }
    while !bytes.is_empty() {
        let (message, behind) = Message::split(bytes)?;
        bytes = behind;
        match Notice::read(message)? {
            Notice::Generation(moved) => generation = moved,
            Notice::Others => {}
            Notice::Ours => return None,
        }
    }
    Some(generation)
}

// What was recorded has the byte order of the machine that it was recorded on.
#[cfg(all(test, target_endian = "little"))]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    // What Linux 6.18 told of `nft`'s commits, as it came. `add table ip other; add chain ip other c`:
    const OTHERS: &str = "3c000000000a000001000000b23d0000020000020a0001006f7468657200000008000300000000010c0004000000000000
        00000108000200000000003c000000030a000402000000b23d0000020000020a0001006f7468657200000006000300630000000c0002000000000
        0000000010800060000000000";
    const GENERATION_2: &str =
        "2c0000000f0a000001000000b23d00000000000208000100000000020800020000003db2080003006e667400";
    // `add rule ip other c accept`:
    const RULE_OF_OTHERS: &str = "68000000060a000c01000000b33d0000020000030a0001006f7468657200000006000200630000000c00030000
        0000000000000234000400300001000e000100696d6d6564696174650000001c0002000800010000000000100002000c000200080001000000000
        1";
    const GENERATION_3: &str =
        "2c0000000f0a000001000000b33d00000000000308000100000000030800020000003db3080003006e667400";
    // `add element inet portfwd ip-ports { tcp . 9 : 10.0.0.1 . 9 }`, and it deleted:
    const ELEMENT: &str = "840000000c0a000400000000bf3d0000010000050c000100706f7274667764000d00020069702d706f727473000000005
        400030050000100100001000c0001000600000000090000100002000c0001000a000001000900002c0007000c000100636f756e746572001c0002
        000c00010000000000000000000c0002000000000000000000";
    const DELETED: &str = "840000000e0a000000000000c03d0000010000060c000100706f7274667764000d00020069702d706f7274730000000054
        00030050000100100001000c0001000600000000090000100002000c0001000a000001000900002c0007000c000100636f756e746572001c00020
        00c00010000000000000000000c0002000000000000000000";
    // `add table ip portfwd`, which is none of ours, and `add table inet portfwd { flags dormant; }`:
    const NAMESAKE: &str =
        "3c000000000a000001000000c23d0000020000070c000100706f72746677640008000300000000000c0004000000000000
        0000030800020000000000";
    const DORMANT: &str =
        "3c000000000a000001000000c43d0000010000080c000100706f72746677640008000300000000060c00040000000000000
        000020800020000000001";
    // `flush ruleset`, with a table of others, that namesake, and ours:
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

    /// What was said, and the error that comes then.
    struct Said(VecDeque<Vec<u8>>, i32);

    impl Notifications for Said {
        fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let Some(said) = self.0.pop_front() else {
                let error = std::mem::replace(&mut self.1, libc::EAGAIN);
                return Err(io::Error::from_raw_os_error(error));
            };
            room[..said.len()].copy_from_slice(&said);
            Ok(said.len())
        }
    }

    fn watch(said: &[&str], error: i32) -> Watch {
        Watch::new(Box::new(Said(said.iter().map(|hex| bytes(hex)).collect(), error)), 1)
    }

    fn heard(said: &[&str]) -> Option<u32> {
        watch(said, libc::EAGAIN).untouched()
    }

    #[test]
    fn what_others_do_in_their_tables_moves_the_generation_only() {
        assert_eq!(heard(&[]), Some(1));
        assert_eq!(heard(&[OTHERS, GENERATION_2]), Some(2));
        assert_eq!(heard(&[OTHERS, GENERATION_2, RULE_OF_OTHERS, GENERATION_3]), Some(3));
        assert_eq!(heard(&[NAMESAKE, GENERATION_2]), Some(2));
        // A commit that has not come to its end does not count yet.
        assert_eq!(heard(&[OTHERS, GENERATION_2, RULE_OF_OTHERS]), Some(2));
    }

    #[test]
    fn what_is_done_in_ours_is_noticed_wherever_it_stands() {
        for ours in [ELEMENT, DELETED, DORMANT, FLUSHED] {
            assert_eq!(heard(&[ours]), None, "{ours}");
            assert_eq!(heard(&[ours, GENERATION_3]), None, "{ours}");
            assert_eq!(heard(&[OTHERS, GENERATION_2, ours, GENERATION_3]), None, "{ours}");
            assert_eq!(heard(&[&[OTHERS, ours].concat(), GENERATION_3]), None, "{ours}");
        }
    }

    #[test]
    fn what_was_lost_or_cannot_be_read_counts_as_ours() {
        for error in [libc::ENOBUFS, libc::ENOMEM, libc::EBADF] {
            assert_eq!(watch(&[OTHERS, GENERATION_2], error).untouched(), None, "{error}");
        }
        assert_eq!(watch(&[OTHERS, GENERATION_2], libc::EINTR).untouched(), Some(2));
        assert_eq!(heard(&[""]), None);
        let whole = bytes(OTHERS);
        for end in 1..whole.len() {
            // Between its two messages it is whole too.
            assert_eq!(hear(&whole[..end], 1).is_some(), end == 60, "{end}");
        }
        // Of another subsystem, and a generation without its number.
        for (at, value) in [(5, 9), (20, 4)] {
            let mut bad = bytes(GENERATION_2);
            bad[at] = value;
            assert_eq!(hear(&bad, 1), None, "{at}");
        }
        // A table without its name.
        let mut bad = bytes(NAMESAKE);
        bad[22] = 9;
        assert_eq!(hear(&bad, 1), None);
    }

    #[test]
    fn a_table_of_no_family_may_be_ours() {
        let mut open = bytes(DORMANT);
        open[16] = 0;
        assert_eq!(hear(&open, 1), None);
    }
}
