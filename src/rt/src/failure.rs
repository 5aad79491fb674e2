//! Errors that code branches on, and the error of an operation whose cleanup failed too. All other
//! errors are text for people (`anyhow`).
#![forbid(unsafe_code)]

use anyhow::{Result, anyhow};
use rustix::io::Errno;

/// A failed operation. Code branches on the kernel's error number. A person reads the operation,
/// and then the kernel's text for the number. The type is small, because many functions return it.
#[derive(Debug)]
pub(crate) struct Failure(Box<(Option<Errno>, String)>);

impl Failure {
    /// Makes the failure of a kernel call.
    pub(crate) fn new(errno: Errno, what: String) -> Failure {
        Failure(Box::new((Some(errno), what)))
    }

    /// Makes a failure without an error number.
    pub(crate) fn other(what: String) -> Failure {
        Failure(Box::new((None, what)))
    }

    /// The kernel's error number, if a kernel call failed.
    pub(crate) fn errno(&self) -> Option<Errno> {
        self.0.0
    }

    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.errno() == Some(errno)
    }

    /// Whether the kernel has forbidden the operation to this process.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.is(Errno::PERM) || self.is(Errno::ACCESS)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::new(errno, String::new())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.0 {
            (Some(errno), what) if what.is_empty() => errno.fmt(f),
            (_, what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            (Some(errno), what) if !what.is_empty() => Some(errno),
            _ => None,
        }
    }
}

/// What became of something, and of the cleaning up that follows. If both failed, the cause comes
/// first.
pub(crate) fn and_then_cleaned<T>(outcome: Result<T>, cleaned: Result<()>) -> Result<T> {
    match (outcome, cleaned) {
        (outcome, Ok(())) => outcome,
        (Ok(_), Err(left)) => Err(left),
        (Err(error), Err(left)) => Err(anyhow!("{error:#}; then cleaning up failed: {left:#}")),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_comes_before_the_failure_to_clean_up() {
        let cause = || Err::<(), _>(Errno::NOENT).context("mount `/a`");
        let left = || Err::<(), _>(Errno::BUSY).context("remove `/b`");
        let line = |error: Result<()>| crate::report::describe(&error.expect_err("it failed"));
        assert_eq!(
            line(and_then_cleaned(cause(), left()).context("create `c`")),
            "create `c`: mount `/a`: No such file or directory; \
             then cleaning up failed: remove `/b`: Device or resource busy"
        );
        assert_eq!(
            line(and_then_cleaned(cause(), Ok(()))),
            "mount `/a`: No such file or directory"
        );
        assert_eq!(line(and_then_cleaned(Ok(()), left())), "remove `/b`: Device or resource busy");
    }
}
