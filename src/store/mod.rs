//! Durable state: what was asked, so that it can be listed, planned against and put back.

mod block;
mod file;
mod lock;
mod old;
pub mod state;
mod table;

pub use lock::Lock;
pub use state::{State, StateError, Store, Unfinished, Unusable};
