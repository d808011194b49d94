//! Any text against the grammar of everything that is written in one word.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/regressions/spec.rs"]
mod spec;

fuzz_target!(|input: &[u8]| spec::holds(input));
