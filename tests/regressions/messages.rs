//! The kernel's answers, or any bytes in their place. Each request ends with a result or an error.

use std::collections::VecDeque;
use std::io;

use portfwd::audit::{findings, listing};
use portfwd::nft::decode::{decode, decode_structure, elements_by_key, has_chain};
use portfwd::nft::diff::{Changes, diff};
use portfwd::nft::encode::encode;
use portfwd::nft::lift::lift;
use portfwd::nft::program::{Key, Program};
use portfwd::nft::transaction::Connection;
use portfwd::ruleset::host::Host;
use portfwd::ruleset::read::nft;
use portfwd::ruleset::table::Ruleset;
use portfwd::sys::netlink::wire::Wire;

/// Takes any bytes. The first byte selects the request, and the other bytes are the answers.
pub fn holds(input: &[u8]) {
    if let Some((question, answers)) = input.split_first() {
        ask(*question, Connection::over(Box::new(Answers::parse(answers))));
    }
}

/// Sends a request to the kernel or to recorded answers, and processes the result.
pub fn ask(question: u8, mut kernel: Connection) {
    match question {
        b'g' => drop(kernel.generation()),
        b'c' => drop(has_chain(&mut kernel, "PORTFWD")),
        b'k' => {
            let key = Key([6, 0, 0, 0, 0x1f, 0x90, 0, 0].into());
            drop(elements_by_key(&mut kernel, "DOCKER-ip-ports", [&key]));
        }
        b'b' => drop(kernel.commit(&encode(&Changes::default(), 1))),
        b's' => drop(decode_structure(&mut kernel)),
        b'a' => drop(nft::read(&mut kernel).map(|rules| run_audit(&rules))),
        _ => drop(decode(&mut kernel).map(|(program, _)| print_lift_and_remove(&program))),
    }
}

/// Runs the whole audit over the rules.
fn run_audit(rules: &Ruleset) {
    let host = Host::new(rules.clone(), None);
    drop((listing::forwards(&host), listing::sources(&host), findings::all(&host, |_| true)));
}

/// Prints and lifts a program. Encodes the removal of its table, of its content, and of the content of its maps and
/// chains.
fn print_lift_and_remove(program: &Program) {
    assert!(program.table || program.to_string().is_empty());
    lift(program);
    let mut empty = program.clone();
    empty.maps.values_mut().for_each(|map| map.elements.clear());
    empty.chains.values_mut().for_each(|chain| chain.rules.clear());
    let bare = Program { table: true, ..Program::default() };
    for wanted in [Program::default(), bare, empty] {
        let changes = diff(program, &wanted);
        let batch = encode(&changes, 1);
        assert!(batch.message_count() >= 2 && batch.lines().count() == batch.message_count());
    }
}

/// Recorded answers, as a [`Wire`] that replays them.
struct Answers {
    messages: VecDeque<Vec<u8>>,
    /// The sequence number of the last request, in host byte order.
    sequence: [u8; 4],
}

impl Answers {
    /// Splits the bytes into messages by the length in each header. An incomplete rest is the last message.
    fn parse(mut bytes: &[u8]) -> Self {
        let mut messages = VecDeque::new();
        while let Some(length) =
            bytes.first_chunk().and_then(|length| usize::try_from(u32::from_ne_bytes(*length)).ok())
            && let Some((message, rest)) = bytes.split_at_checked(length.max(16).next_multiple_of(4))
        {
            messages.push_back(message.to_vec());
            bytes = rest;
        }
        messages.push_back(bytes.to_vec());
        Self { messages, sequence: [0; 4] }
    }
}

impl Wire for Answers {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sequence = bytes[8..12].try_into().expect("a header");
        Ok(())
    }

    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(mut message) = self.messages.pop_front() else { return Err(io::ErrorKind::WouldBlock.into()) };
        // A zero sequence number becomes the number of the request. Any other number stays, so the message does not
        // match.
        if let Some(number) = message.get_mut(8..12)
            && number == [0; 4]
        {
            number.copy_from_slice(&self.sequence);
        }
        let length = message.len().min(room.len());
        room[..length].copy_from_slice(&message[..length]);
        Ok(length)
    }

    fn reserve(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }
}
