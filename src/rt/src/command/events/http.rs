//! The statistics of a server that an engine runs for a handler of requests (`docs/engine.md`,
//! "Statistics"). The engine counts in a memory file, and `rt` reads the engine's memory. Whoever
//! runs in the container may have changed it, so these are numbers, and nothing follows from them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::{Map, Value, json};

/// The size of the memory, in numbers.
const NUMBERS: usize = 512;

/// `rt-http1` in ASCII, the first number. The second one is the number of counters.
const MAGIC: u64 = u64::from_be_bytes(*b"rt-http1");

/// The counters in their order. Where there are labels, one counter follows for each.
const COUNTERS: [(&str, &[&str]); 18] = [
    ("requests", &[]),
    ("requestsNow", &[]),
    ("responses", &["1xx", "2xx", "3xx", "4xx", "5xx"]),
    ("microseconds", &[]),
    ("durations", &["1ms", "10ms", "100ms", "1s", "10s", "longer"]),
    ("instances", &[]),
    ("instancesNow", &[]),
    ("traps", &[]),
    ("timedOut", &[]),
    ("refused", &[]),
    ("connections", &[]),
    ("connectionsNow", &[]),
    ("connectionsDisplaced", &[]),
    ("bytesReceived", &[]),
    ("bytesSent", &[]),
    ("outbound", &[]),
    ("outboundRefused", &[]),
    ("logLinesLost", &[]),
];

/// The mapping of the memory file.
const NAME: &str = " /memfd:http-statistics (deleted)";

/// Reads the statistics of a process. Returns `None` if it has none.
pub(super) fn statistics(pid: i32, maps: &str) -> Option<Value> {
    let memory = super::mappings(maps, NAME).next()?;
    let mut bytes = [0; 8 * NUMBERS];
    let file = File::open(format!("/proc/{pid}/mem")).ok()?;
    file.read_exact_at(&mut bytes, memory.range.start).ok()?;
    parse(&bytes)
}

/// Names the counters. An engine of another version may have fewer or more of them.
fn parse(bytes: &[u8]) -> Option<Value> {
    let mut numbers = bytes.as_chunks().0.iter().map(|number| u64::from_ne_bytes(*number));
    let (magic, count) = (numbers.next()?, numbers.next()?);
    if magic != MAGIC {
        return None;
    }
    let mut numbers = numbers.take(usize::try_from(count).ok()?);
    let mut statistics = Map::new();
    for (name, labels) in COUNTERS {
        let value = if labels.is_empty() {
            numbers.next().map(|number| json!(number))
        } else {
            let all =
                labels.iter().map(|label| Some(((*label).to_owned(), json!(numbers.next()?))));
            all.collect::<Option<Map<_, _>>>().map(Value::Object)
        };
        let Some(value) = value else { break };
        statistics.insert(name.to_owned(), value);
    }
    Some(Value::Object(statistics))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    #[test]
    fn counters_have_names() {
        let counters: Vec<u64> = (1..=27).collect();
        let value = parse(&page(&[&[MAGIC, 27], &counters[..]].concat())).expect("read");
        assert_eq!((&value["requests"], &value["responses"]["5xx"]), (&json!(1), &json!(7)));
        assert_eq!((&value["durations"]["1ms"], &value["logLinesLost"]), (&json!(9), &json!(27)));
    }

    #[test]
    fn whatever_is_there_is_only_numbers() {
        assert_eq!(parse(&page(&[1, 27, 0])), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(
            parse(&page(&[MAGIC, 4, 1, 2, 3])),
            Some(json!({ "requests": 1, "requestsNow": 2 }))
        );
        let all = page(&[&[MAGIC, u64::MAX], &[u64::MAX; 510][..]].concat());
        assert_eq!(parse(&all).expect("read")["traps"], json!(u64::MAX));
        assert_eq!(parse(&page(&[MAGIC])), None);
    }
}
