use std::path::Path;
use std::sync::{Arc, Mutex};

use portfwd::nft::transaction::Connection;
use portfwd::sys::netlink::Bus;
use portfwd::sys::netlink::wire::{Kernel, Wire};

use crate::support::{Net, root};

mod dumps;
mod messages;
mod rules;
mod saved;
mod spec;

/// Checks the property of a fuzz target with each file of its corpus and of its regressions.
fn every_file(target: &str, holds: fn(&[u8])) {
    let mut count = 0;
    for folder in ["corpus", "regressions"] {
        let folder = root().join("fuzz").join(folder).join(target);
        // A fuzz target without past faults has no folder `regressions`.
        let files = if folder.is_dir() { std::fs::read_dir(&folder).expect("readable") } else { continue };
        for file in files.flatten() {
            eprintln!("{}", file.path().display());
            holds(&std::fs::read(file.path()).expect("readable"));
            count += 1;
        }
    }
    assert!(count >= 5, "the files of {target} are missing");
}

#[test]
fn text_forms_round_trip() {
    every_file("spec", spec::holds);
}

#[test]
fn rule_set_files_are_compiled_or_refused() {
    every_file("rules", rules::holds);
}

#[test]
fn iptables_save_dumps_are_read_or_refused() {
    every_file("saved", saved::holds);
}

#[test]
fn any_dump_is_audited_or_refused() {
    every_file("dumps", dumps::holds);
}

#[test]
fn any_kernel_answer_is_read_or_refused() {
    every_file("messages", messages::holds);
}

#[test]
fn every_fuzz_target_has_a_test() {
    let targets = std::fs::read_dir(root().join("fuzz/fuzz_targets")).expect("readable");
    for target in targets.flatten() {
        let name = target.file_name().to_string_lossy().into_owned();
        let module = Path::new("tests/regressions").join(&name);
        assert!(root().join(module).is_file(), "{name}");
    }
}

/// A socket that records the kernel's answers.
struct Recorded(Kernel, Arc<Mutex<Vec<u8>>>);

impl Wire for Recorded {
    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.send(bytes)
    }

    fn receive(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        let received = self.0.receive(room)?;
        let mut answers = self.1.lock().expect("one thread");
        let begin = answers.len();
        answers.extend(&room[..received]);
        // On replay, a zero sequence number matches any request. So the test clears the number.
        let mut at = begin;
        while let Some(length) = answers.get(at..at + 4).map(|length| u32::from_ne_bytes(length.try_into().expect("4")))
        {
            answers[at + 8..at + 12].fill(0);
            at += usize::try_from(length).expect("small").next_multiple_of(4);
        }
        Ok(received)
    }

    fn reserve(&mut self, size: usize) -> std::io::Result<()> {
        self.0.reserve(size)
    }
}

/// Records the corpus of the fuzz target `messages`. Run this test again on kernels with other answers.
#[test]
#[ignore = "writes into fuzz/corpus/messages"]
fn the_kernels_answers_are_recorded() {
    let net = Net::new();
    for name in ["quickstart", "loopback", "snat", "protocols", "netmap", "clients", "router"] {
        net.ok(&["flush"]);
        net.ok(&["apply", &format!("rules/{name}.toml")]);
        let questions: &[u8] = if name == "quickstart" { b"adscgkb" } else { b"ad" };
        for question in questions {
            let answers = Arc::new(Mutex::new(vec![*question]));
            net.in_host(|| {
                let kernel = Kernel::open(Bus::Netfilter).expect("a socket");
                let wire = Recorded(kernel, Arc::clone(&answers));
                messages::ask(*question, Connection::over(Box::new(wire)));
            });
            let file = format!("fuzz/corpus/messages/{name}-{}", char::from(*question));
            std::fs::write(root().join(file), &*answers.lock().expect("one thread")).expect("written");
        }
    }
}
