//! How much memory a component gets: as much as its container may use.
#![forbid(unsafe_code)]

use rt_engine::memory::{Budget, Share};
use wasmtime::ResourceLimiter;

/// The limit of all memories and tables of an instance.
#[derive(Debug)]
pub(crate) enum Limits {
    /// The only instance of the process. `None` without a limit.
    Alone(Option<Budget>),
    /// One of many.
    Shared {
        share: Share,
        /// Whether the instance got less than it wanted.
        is_short: bool,
    },
}

/// The size of an element of a table, in bytes.
const ELEMENT: usize = size_of::<usize>();

impl Limits {
    pub(crate) fn shared(share: Share) -> Limits {
        Limits::Shared { share, is_short: false }
    }

    /// Whether the instance is the only one of the process.
    pub(crate) fn are_of_a_command(&self) -> bool {
        matches!(self, Limits::Alone(_))
    }

    /// Whether the instance got less memory than it wanted.
    pub(crate) fn were_reached(&self) -> bool {
        matches!(self, Limits::Shared { is_short: true, .. })
    }

    fn grows(&mut self, current: usize, desired: usize, unit: usize) -> bool {
        let more = desired.saturating_sub(current).saturating_mul(unit);
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        match self {
            Limits::Alone(budget) => {
                budget.as_mut().is_none_or(|budget| budget.take(more, current == 0))
            }
            Limits::Shared { share, is_short } => {
                let grows = share.take(more);
                *is_short |= !grows;
                grows
            }
        }
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grows(current, desired, 1))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grows(current, desired, ELEMENT))
    }
}
