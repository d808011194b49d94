//! The kernel's answers, and any bytes in their place: everything that is asked has an end.

use std::collections::VecDeque;
use std::io;

use portfwd::audit::host::Host;
use portfwd::audit::read::nft;
use portfwd::audit::ruleset::Ruleset;
use portfwd::audit::{findings, listing};
use portfwd::nft::decode::{decode, elements_by_key, has_chain, structure};
use portfwd::nft::diff::{Changes, diff};
use portfwd::nft::encode::encode;
use portfwd::nft::lift::lift;
use portfwd::nft::program::{Key, Program};
use portfwd::nft::transaction::Connection;
use portfwd::sys::netlink::wire::Wire;

/// Takes any bytes: the first says what is asked, the others are answers.
pub fn holds(input: &[u8]) {
    if let Some((question, answers)) = input.split_first() {
        ask(*question, Connection::over(Box::new(Answers::of(answers))));
    }
}

/// Asks the kernel, or what stands for it, a question.
pub fn ask(question: u8, mut kernel: Connection) {
    match question {
        b'g' => drop(kernel.generation()),
        b'c' => drop(has_chain(&mut kernel, "PORTFWD")),
        b'k' => {
            let key = Key([6, 0, 0, 0, 0x1f, 0x90, 0, 0].into());
            drop(elements_by_key(&mut kernel, "DOCKER-ip-ports", [&key]));
        }
        b'b' => drop(kernel.commit(&encode(&Changes::default(), 1))),
        b's' => drop(structure(&mut kernel)),
        b'a' => drop(nft::read(&mut kernel).map(|rules| is_audited(&rules))),
        _ => drop(decode(&mut kernel).map(|(program, _)| is_lifted(&program))),
    }
}

/// What was read is audited to its end.
fn is_audited(rules: &Ruleset) {
    let host = Host::new(rules.clone(), None);
    drop((listing::forwards(&host), listing::sources(&host), findings::all(&host, |_| true)));
}

/// What was read is shown, lifted, and taken away: all at once, and piece by piece.
fn is_lifted(program: &Program) {
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

/// Answers that were there before they were asked for.
struct Answers {
    messages: VecDeque<Vec<u8>>,
    asked: [u8; 4],
}

impl Answers {
    /// Each message is received by itself, whatever its header says behind the last whole one included.
    fn of(mut bytes: &[u8]) -> Self {
        let mut messages = VecDeque::new();
        while let Some(length) =
            bytes.first_chunk().and_then(|length| usize::try_from(u32::from_ne_bytes(*length)).ok())
            && let Some((message, rest)) = bytes.split_at_checked(length.max(16).next_multiple_of(4))
        {
            messages.push_back(message.to_vec());
            bytes = rest;
        }
        messages.push_back(bytes.to_vec());
        Self { messages, asked: [0; 4] }
    }
}

impl Wire for Answers {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.asked = bytes[8..12].try_into().expect("a header");
        Ok(())
    }

    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(mut message) = self.messages.pop_front() else { return Err(io::ErrorKind::WouldBlock.into()) };
        // It answers what was asked, unless it says that it does not.
        if let Some(number) = message.get_mut(8..12)
            && number == [0; 4]
        {
            number.copy_from_slice(&self.asked);
        }
        let length = message.len().min(room.len());
        room[..length].copy_from_slice(&message[..length]);
        Ok(length)
    }

    fn reserve(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn namespace_cookie(&self) -> Option<u64> {
        None
    }
}
