//! Whether and when a module is compiled: the host decides, or the container.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;

/// When a module is compiled.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compile {
    /// In the background, during its first start, which the interpreter runs.
    #[default]
    Lazy,
    /// Before its first start.
    Eager,
    /// Never. Existing native code is not used either.
    Off,
}

impl Compile {
    /// A value of the annotation `run.oci.wasm.compile`.
    pub(crate) fn parse(value: &str) -> Result<Compile> {
        Ok(match value {
            "lazy" => Compile::Lazy,
            "eager" => Compile::Eager,
            "off" => Compile::Off,
            _ => bail!("`{value}` is not `lazy`, `eager` or `off`"),
        })
    }
}

/// The container's wishes about native code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// When its module is compiled, if the container says so.
    pub(crate) compile: Option<Compile>,
    /// Whether instructions are counted, which requires different native code.
    pub(crate) counting: bool,
    /// How long a start waits for native code, if the container says so.
    pub(crate) patience: Option<Duration>,
}
