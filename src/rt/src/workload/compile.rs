//! Whether and when a module is compiled: as the host decides, or its container.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};
use serde::Deserialize;

/// When a module is compiled.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compile {
    /// In the background, at its first start, which the interpreter runs.
    #[default]
    Lazy,
    /// Before its first start.
    Eager,
    /// Never; nothing that was compiled is used either.
    Off,
}

impl Compile {
    /// A value of the annotation `run.oci.wasm.compile`.
    pub(crate) fn parse(value: &str) -> Result<Compile> {
        Ok(match value {
            "lazy" => Compile::Lazy,
            "eager" => Compile::Eager,
            "off" => Compile::Off,
            _ => bail!("`{value}` is none of `lazy`, `eager` and `off`"),
        })
    }
}

/// What a container wants of native code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// When its module is compiled, if it says so.
    pub(crate) compile: Option<Compile>,
    /// Its instructions are counted, which takes other native code.
    pub(crate) counting: bool,
}
