//! The rows as text: columns as wide as they must be, numbers as short as they can be.

use std::cmp::Ordering;

use serde_json::json;

use crate::text;
use crate::usage::{Row, float};

/// What the rows are sorted by: the name, or the largest number first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sort {
    Cpu,
    Memory,
    Processes,
    Name,
}

pub(crate) fn sort(rows: &mut [Row], sort: Sort) {
    let key = |row: &Row| match sort {
        Sort::Cpu => row.cpu,
        Sort::Memory => row.memory.map(float),
        Sort::Processes => row.processes.map(float),
        Sort::Name => None,
    };
    let order = |one: &Row, other: &Row| -> Ordering {
        // An unknown number comes last.
        let [one_key, other_key] = [one, other].map(|row| key(row).unwrap_or(-1.0));
        other_key.total_cmp(&one_key).then_with(|| one.id.cmp(&other.id))
    };
    rows.sort_by(order);
}

/// In the order of the screen.
const COLUMNS: [Column; 9] = [
    Column { head: "ID", is_number: false, cell: |row| row.id.clone() },
    Column { head: "STATUS", is_number: false, cell: |row| row.status.clone() },
    Column { head: "CPU%", is_number: true, cell: |row| rate(row.cpu) },
    Column { head: "MEM", is_number: true, cell: |row| known(row.memory.map(size)) },
    Column { head: "LIMIT", is_number: true, cell: |row| known(row.limit.map(size)) },
    Column { head: "PROCS", is_number: true, cell: |row| known(row.processes) },
    Column { head: "REQ/S", is_number: true, cell: |row| rate(row.requests) },
    Column { head: "ENGINE", is_number: false, cell: |row| known(row.engine.as_ref()) },
    Column { head: "MODE", is_number: false, cell: |row| known(row.mode.as_ref()) },
];

/// Where the screen is narrow, these columns go, in this order: the mode first. To the number of
/// characters beside it, a name is shortened before the column goes.
const LEAST: [(usize, usize); 7] = [(8, 24), (7, 24), (4, 24), (6, 24), (5, 10), (1, 10), (3, 10)];

/// The space between two columns.
const GAP: usize = 2;

struct Column {
    head: &'static str,
    is_number: bool,
    cell: fn(&Row) -> String,
}

/// The head of the table and its rows. No line is longer than the width.
pub(crate) fn lines(rows: &[Row], width: Option<usize>) -> Vec<String> {
    let head = COLUMNS.iter().map(|column| column.head.to_owned()).collect::<Vec<_>>();
    let cells = |row| COLUMNS.iter().map(|column| text::visible(&(column.cell)(row))).collect();
    let table: Vec<Vec<String>> = [head].into_iter().chain(rows.iter().map(cells)).collect();
    let widest = |at: usize| table.iter().map(|row| length(&row[at])).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..COLUMNS.len()).map(widest).collect();
    let mut shown: Vec<usize> = (0..COLUMNS.len()).collect();
    if let Some(width) = width {
        let left = |shown: &[usize]| {
            width.saturating_sub(shown[1..].iter().map(|at| widths[*at] + GAP).sum())
        };
        for (gone, name) in LEAST {
            if left(&shown) >= widths[0].min(name) {
                break;
            }
            shown.retain(|at| *at != gone);
        }
        widths[0] = widths[0].min(left(&shown));
    }
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for at in &shown {
            let (cell, wide) = (cut(&row[*at], widths[*at]), widths[*at]);
            let gap = if *at == 0 { 0 } else { GAP };
            let space = " ".repeat(wide.saturating_sub(length(&cell)));
            line += &" ".repeat(gap);
            line += &if COLUMNS[*at].is_number { space + &cell } else { cell + &space };
        }
        let line = line.trim_end();
        width.map_or_else(|| line.to_owned(), |width| cut(line, width))
    };
    table.iter().map(line).collect()
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Shortens a text, and shows that.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if length(text) <= width {
        return text.to_owned();
    }
    let start = text.chars().take(width.saturating_sub(1));
    if width == 0 { String::new() } else { start.chain(['…']).collect() }
}

fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn rate(rate: Option<f64>) -> String {
    known(rate.map(|rate| format!("{rate:.1}")))
}

/// A size of at most five characters: `812`, `9.5K` of 1024 bytes, `64M`, `1.0G`.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return bytes.to_string();
    }
    let mut number = float(bytes) / 1024.0;
    let mut units = ["K", "M", "G", "T", "P", "E"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    // 1023.5 would be rounded up to four digits.
    while number >= 1023.5 {
        let Some(next) = units.next() else { break };
        (number, unit) = (number / 1024.0, next);
    }
    // 9.95 would be rounded up to 10.0.
    if number < 9.95 { format!("{number:.1}{unit}") } else { format!("{number:.0}{unit}") }
}

/// The rows as one line of JSON (`docs/operation.md`, "top").
pub(crate) fn json(rows: &[Row]) -> String {
    // One digit after the point is what a sample can tell.
    let rate = |rate: Option<f64>| rate.map(|rate| (rate * 10.0).round() / 10.0);
    let row = |row: &Row| {
        json!({
            "id": row.id,
            "status": row.status,
            "cpuPercent": rate(row.cpu),
            "memoryBytes": row.memory,
            "memoryLimitBytes": row.limit,
            "processes": row.processes,
            "requestsPerSecond": rate(row.requests),
            "engine": row.engine,
            "mode": row.mode,
        })
    };
    let array = serde_json::Value::Array(rows.iter().map(row).collect());
    format!("{}\n", text::visible_json(&array.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, cpu: f64, memory: u64, processes: u64) -> Row {
        Row {
            id: id.into(),
            status: "running".into(),
            cpu: Some(cpu),
            memory: Some(memory),
            processes: Some(processes),
            ..Row::default()
        }
    }

    #[test]
    fn a_size_has_at_most_five_characters() {
        for (bytes, expected) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (10_188, "9.9K"),
            (10_189, "10K"),
            (64 << 20, "64M"),
            ((1 << 20) - 1, "1.0M"),
            (1000 << 20, "1000M"),
            (3 << 29, "1.5G"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(size(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn rows_are_sorted_by_the_largest_number_or_the_name() {
        let rows = [row("b", 1.0, 3, 2), row("a", 1.0, 2, 3), row("c", 9.5, 1, 1)];
        let unknown = Row { id: "0".into(), ..Row::default() };
        for (by, expected) in [
            (Sort::Cpu, "cab0"),
            (Sort::Memory, "bac0"),
            (Sort::Processes, "abc0"),
            (Sort::Name, "0abc"),
        ] {
            let mut rows = [std::slice::from_ref(&unknown), &rows[..]].concat();
            sort(&mut rows, by);
            assert_eq!(rows.iter().map(|row| &*row.id).collect::<String>(), expected, "{by:?}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let module = Row {
            limit: Some(64 << 20),
            requests: Some(1234.5),
            engine: Some("wasmtime 48.0.8".into()),
            mode: Some("aot".into()),
            ..row("server", 12.34, 5 << 20, 1)
        };
        let stopped = Row { id: "x".into(), status: "stopped".into(), ..Row::default() };
        assert_eq!(
            lines(&[module, stopped], None),
            [
                "ID      STATUS   CPU%   MEM  LIMIT  PROCS   REQ/S  ENGINE           MODE",
                "server  running  12.3  5.0M    64M      1  1234.5  wasmtime 48.0.8  aot",
                "x       stopped     -     -      -      -       -  -                -",
            ]
        );
        assert_eq!(lines(&[], None).len(), 1);
    }

    #[test]
    fn a_narrow_screen_has_fewer_columns() {
        let rows = [row("a-container-with-a-long-name", 100.0, 1023 << 20, 12345)];
        let narrow = lines(&rows, Some(40));
        assert_eq!(narrow[0], "ID          STATUS    CPU%    MEM  PROCS");
        assert_eq!(narrow[1], "a-contain…  running  100.0  1023M  12345");
        assert_eq!(lines(&rows, Some(20))[1], "a-container-…  100.0");
        for width in 0..120 {
            for line in lines(&rows, Some(width)) {
                assert!(length(&line) <= width, "{width}: {line:?}");
            }
        }
    }

    #[test]
    fn no_cell_commands_the_terminal() {
        let rows = [Row { engine: Some("\u{1b}[2J\n".into()), ..row("c\u{7}", 0.0, 0, 0) }];
        let text = lines(&rows, None).concat() + json(&rows).trim_end();
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }

    #[test]
    fn json_has_numbers_and_their_units() {
        let all: serde_json::Value =
            serde_json::from_str(&json(&[row("c", 12.345, 5, 1)])).expect("JSON");
        assert_eq!(
            all,
            json!([{
                "id": "c", "status": "running", "cpuPercent": 12.3, "memoryBytes": 5,
                "memoryLimitBytes": null, "processes": 1, "requestsPerSecond": null,
                "engine": null, "mode": null,
            }])
        );
    }
}
