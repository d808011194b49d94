//! The names of sets of ipset(8), which rules of iptables(8) hold as numbers.
//!
//! A set is asked for when a rule names it, so that the kernel's part for them is never loaded for the question's sake.
//!
//! Source: include/uapi/linux/netfilter/ipset/ip_set.h, and `ip_set_byindex` in net/netfilter/ipset/ip_set_core.c.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::sys::netlink::{Bus, Message, Request, Socket, put_attribute};

/// `NFNL_SUBSYS_IPSET` and `IPSET_CMD_GET_BYINDEX`, the kind of the question and of its answer.
const GET_BY_INDEX: u16 = 6 << 8 | 15;

/// `IPSET_PROTOCOL`, the version that has the question, since Linux 4.20.
const PROTOCOL: u8 = 7;

/// `IPSET_ATTR_PROTOCOL`, `IPSET_ATTR_SETNAME`, `IPSET_ATTR_INDEX`.
mod key {
    pub const PROTOCOL: u16 = 1;
    pub const SET_NAME: u16 = 2;
    pub const INDEX: u16 = 11;
}

/// The names that were asked for, by number.
#[derive(Debug, Default)]
pub struct Ipsets {
    asks: bool,
    known: Mutex<HashMap<u16, Option<String>>>,
}

impl Ipsets {
    /// Those of the network namespace of whoever asks. Those of [`Ipsets::default`] have no names.
    pub fn of_kernel() -> Self {
        Self { asks: true, ..Self::default() }
    }

    /// The name of a set; none where the kernel does not tell.
    pub(super) fn name(&self, number: u16) -> Option<String> {
        // A name that was put in is whole, whatever became of who put it in.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(number).or_insert_with(|| if self.asks { ask(number).ok().flatten() } else { None }).clone()
    }
}

fn ask(number: u16) -> io::Result<Option<String>> {
    let mut request = Request::netfilter(GET_BY_INDEX, 0, 0);
    put_attribute(&mut request.body, key::PROTOCOL, &[PROTOCOL]);
    put_attribute(&mut request.body, key::INDEX, &number.to_be_bytes());
    let mut name = None;
    Socket::open(Bus::Netfilter)?.get(&request, |message| name = name.take().or_else(|| name_in(message)))?;
    Ok(name)
}

/// Reads the name in an answer, after the header of netfilter.
fn name_in(answer: Message<'_>) -> Option<String> {
    answer.attributes(4).text(key::SET_NAME).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_name_or_none() {
        fn name_in(body: &[u8]) -> Option<String> {
            super::name_in(Message { kind: GET_BY_INDEX, flags: 0, seq: 1, body })
        }
        let mut answer = vec![0; 4];
        put_attribute(&mut answer, key::PROTOCOL, &[PROTOCOL]);
        assert_eq!(name_in(&answer), None);
        put_attribute(&mut answer, key::SET_NAME, b"blocked\0");
        assert_eq!(name_in(&answer).as_deref(), Some("blocked"));
        for end in 0..answer.len() {
            assert_eq!(name_in(&answer[..end]), None, "{end}");
        }
    }

    #[test]
    fn without_a_kernel_there_are_no_names() {
        assert_eq!(Ipsets::default().name(0), None);
    }
}
