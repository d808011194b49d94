//! Fuzzes the netlink readers with any bytes as the kernel's answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/regressions/messages.rs"]
mod messages;

fuzz_target!(|input: &[u8]| messages::holds(input));
