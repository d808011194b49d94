//! Rule-set files: converts TOML into the model, and reports every error with its location.
//!
//! The input is the paths of files and directories. The output is [`Loaded`] sets, or every [`Problem`] of every file
//! in one run. The crate `toml` parses the text and keeps the location of every value. The crate `annotate-snippets`
//! formats the errors.

pub mod diagnostic;
mod forward;
pub mod load;
pub mod merge;
pub(crate) mod reader;
pub mod source;
mod tables;

pub use diagnostic::{Problem, ProblemKind};
pub use load::{Loaded, load};
pub use merge::merge;
pub use source::{Location, Source};
