//! In place of the crate `regex`: regex-lite, by the same authors, with the same interface.
//!
//! oci-spec and libcontainer check two short values of a configuration with `regex`. Its code for
//! long texts and for Unicode was a fifth of the executable of `rt`. `Cargo.toml` of the workspace
//! puts this crate in its place (`[patch.crates-io]`). `\d` matches ASCII digits only,
//! which are the digits that the kernel reads.
//!
//! The whole workspace builds with it, and so do programs that only run during a build. One of them
//! is bindgen. It requires sets of expressions, which regex-lite lacks: [`RegexSet`].
#![forbid(unsafe_code)]

mod set;

pub use regex_lite::*;
pub use set::{RegexSet, SetMatches};
