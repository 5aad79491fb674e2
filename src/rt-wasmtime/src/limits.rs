//! How much memory a component gets: as much as its container may use.
#![forbid(unsafe_code)]

use rt_engine::memory::Budget;
use wasmtime::ResourceLimiter;

/// The limit of all memories and tables of all instances together. `None` without a limit.
#[derive(Debug)]
pub(crate) struct Limits(pub(crate) Option<Budget>);

/// The size of an element of a table, in bytes.
const ELEMENT: usize = size_of::<usize>();

impl Limits {
    fn grows(&mut self, current: usize, desired: usize, unit: usize) -> bool {
        let more = desired.saturating_sub(current).saturating_mul(unit);
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        self.0.as_mut().is_none_or(|budget| budget.take(more, current == 0))
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
