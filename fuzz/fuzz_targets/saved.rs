//! Fuzzes the reader of iptables-save dumps with any text.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/regressions/saved.rs"]
mod saved;

fuzz_target!(|input: &[u8]| saved::holds(input));
