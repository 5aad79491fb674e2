//! Times in annotations.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result};

/// Parses a number of seconds.
pub(super) fn parse(value: &str) -> Result<Duration> {
    let wrong = || format!("`{value}` is not a number of seconds greater than 0");
    let seconds: f64 = value.parse().with_context(wrong)?;
    let duration = Duration::try_from_secs_f64(seconds).ok();
    // The largest number of milliseconds that a timer accepts on any machine: 24 days.
    let good = |duration: &Duration| (1..=i32::MAX as u128).contains(&duration.as_millis());
    duration.filter(good).with_context(wrong)
}
