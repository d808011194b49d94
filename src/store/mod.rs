//! Durable state: what was asked, so that it can be listed, planned against and put back.

mod block;
mod database;
mod file;
mod lock;
mod old;
mod rows;
pub mod state;
mod table;
pub mod unconfirmed;

pub use database::Store;
pub(crate) use file::turn;
pub use lock::Lock;
pub use state::{State, StateError, Unfinished, Unusable, Whole};
pub use unconfirmed::{Deadline, Unconfirmed};
