//! Samples of all containers, and the rows that two of them make.

use std::time::Instant;

/// All containers at one time.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) containers: Vec<Container>,
    /// Warnings of `rt`.
    pub(crate) notes: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    /// When it was created: another container can have the same name later.
    pub(crate) created: String,
    pub(crate) status: String,
    /// The engine with its version, if the container runs a module.
    pub(crate) engine: Option<String>,
    pub(crate) mode: Option<String>,
    /// When its usage was read.
    pub(crate) at: Instant,
    /// `None` if it has no processes, or no cgroup.
    pub(crate) usage: Option<Usage>,
}

/// What the kernel has counted of a container, and its engine.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Usage {
    /// In nanoseconds, since the container was made.
    pub(crate) cpu: u64,
    /// In bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) limit: Option<u64>,
    pub(crate) processes: Option<u64>,
    /// Requests of HTTP since the start of the server.
    pub(crate) requests: Option<u64>,
}

/// A line of the table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) status: String,
    /// In percent of one processor.
    pub(crate) cpu: Option<f64>,
    pub(crate) memory: Option<u64>,
    pub(crate) limit: Option<u64>,
    pub(crate) processes: Option<u64>,
    /// In a second.
    pub(crate) requests: Option<f64>,
    pub(crate) engine: Option<String>,
    pub(crate) mode: Option<String>,
}

impl Container {
    pub(crate) fn new(id: &str) -> Container {
        Container {
            id: id.to_owned(),
            created: String::new(),
            status: String::new(),
            engine: None,
            mode: None,
            at: Instant::now(),
            usage: None,
        }
    }
}

/// The rows of a sample. The rates are those between this sample and the one before it.
pub(crate) fn rows(before: Option<&Sample>, now: &Sample) -> Vec<Row> {
    now.containers.iter().map(|container| row(before, container)).collect()
}

fn row(before: Option<&Sample>, now: &Container) -> Row {
    let before = before.and_then(|before| {
        let is_it = |it: &&Container| it.id == now.id && it.created == now.created;
        before.containers.iter().find(is_it)
    });
    let in_a_second = |count: &dyn Fn(&Usage) -> Option<u64>| {
        let before = before?;
        // A server that starts anew counts from 0 again.
        let more = count(now.usage.as_ref()?)?.checked_sub(count(before.usage.as_ref()?)?)?;
        let seconds = now.at.checked_duration_since(before.at)?.as_secs_f64();
        (seconds > 0.0).then(|| float(more) / seconds)
    };
    let usage = now.usage.as_ref();
    Row {
        id: now.id.clone(),
        status: now.status.clone(),
        // A second of one processor has 10⁹ nanoseconds.
        cpu: in_a_second(&|usage| Some(usage.cpu)).map(|nanoseconds| nanoseconds / 1e7),
        memory: usage.and_then(|usage| usage.memory),
        limit: usage.and_then(|usage| usage.limit),
        processes: usage.and_then(|usage| usage.processes),
        requests: in_a_second(&|usage| usage.requests),
        engine: now.engine.clone(),
        mode: now.mode.clone(),
    }
}

/// Exact up to 2⁵³: more than fits on any screen.
#[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(at: Instant, created: &str, cpu: u64, requests: Option<u64>) -> Sample {
        let usage = Usage { cpu, requests, ..Usage::default() };
        let container = Container::new("c");
        let container = Container { created: created.into(), at, usage: Some(usage), ..container };
        Sample { containers: vec![container], notes: Vec::new() }
    }

    #[test]
    fn a_rate_is_that_between_two_samples_of_one_container() {
        let start = Instant::now();
        let later = start + Duration::from_millis(500);
        let before = sample(start, "monday", 1_000_000_000, Some(10));
        let rates = |now: &Sample, before: Option<&Sample>| {
            let row = rows(before, now).remove(0);
            (row.cpu, row.requests)
        };
        let now = sample(later, "monday", 1_750_000_000, Some(60));
        assert_eq!(rates(&now, Some(&before)), (Some(150.0), Some(100.0)));
        assert_eq!(rates(&now, None), (None, None));
        // The server has started anew.
        let now = sample(later, "monday", 1_000_000_000, Some(2));
        assert_eq!(rates(&now, Some(&before)), (Some(0.0), None));
        // Another container of this name, and two samples at the same time.
        let now = sample(later, "tuesday", 2_000_000_000, Some(60));
        assert_eq!(rates(&now, Some(&before)), (None, None));
        assert_eq!(rates(&before, Some(&before)), (None, None));
    }
}
