//! Fuzzes the rule-set loader and both compilers with any text.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/regressions/rules.rs"]
mod rules;

fuzz_target!(|input: &[u8]| rules::holds(input));
