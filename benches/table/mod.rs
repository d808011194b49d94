//! The rows of the table at the end: limits and measurements.

pub mod phases;
mod report;
mod row;
mod text;

pub use report::Report;
pub use row::{Row, Target};
pub use text::{markdown, plain};
