//! Any text as a dump of somebody's rules.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/regressions/dumps.rs"]
mod dumps;

fuzz_target!(|input: &[u8]| dumps::holds(input));
