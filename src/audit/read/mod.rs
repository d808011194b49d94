//! Where rules and facts come from: the kernel, and dumps of it.

pub mod save;
