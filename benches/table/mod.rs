//! The result tables of the benches: measurements and limits.

pub mod phases;
mod report;
mod row;
mod text;

pub use report::Report;
pub use row::{Row, Target};
pub use text::{markdown, plain};
