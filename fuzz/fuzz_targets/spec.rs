//! Fuzzes the text forms of the model (addresses, ports, targets, names) with any text.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/regressions/spec.rs"]
mod spec;

fuzz_target!(|input: &[u8]| spec::holds(input));
