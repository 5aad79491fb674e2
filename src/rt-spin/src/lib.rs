//! Spin apps (`docs/spin.md`). The compiler of an engine makes a [`plan::Plan`] of a manifest, and
//! the engine runs it.
#![forbid(unsafe_code)]

pub mod hosts;
#[cfg(feature = "manifest")]
pub mod manifest;
pub mod plan;
pub mod routes;
pub mod template;
