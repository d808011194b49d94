//! Fuzzes the readers of dumps and the audit with any text.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/regressions/dumps.rs"]
mod dumps;

fuzz_target!(|input: &[u8]| dumps::holds(input));
