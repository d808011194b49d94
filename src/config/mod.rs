//! Rule-set files: TOML to model, with a place for every mistake.
//!
//! Comes in: paths of files and folders. Goes out: [`Loaded`] sets, or every [`Problem`] of every file in one run.
//! The TOML itself is read by the crate `toml`, which keeps the place of every value; pictures are drawn by
//! `annotate-snippets`.

pub mod diagnostic;
mod forward;
pub mod load;
pub(crate) mod reader;
pub mod source;
mod tables;
pub mod union;

pub use diagnostic::{Kind, Problem};
pub use load::{Loaded, load};
pub use source::{Place, Source};
pub use union::union;
