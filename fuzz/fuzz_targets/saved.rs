//! Any text as what iptables-save prints.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/regressions/saved.rs"]
mod saved;

fuzz_target!(|input: &[u8]| saved::holds(input));
