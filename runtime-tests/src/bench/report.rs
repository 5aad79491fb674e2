//! The results of a benchmark as one HTML page with charts, and the chart for the README.
//!
//! The page reads what the parts of the benchmark have left: `v1.json`, `v2.json`, `wasm.json` and
//! `components.json`. It loads nothing else, and has light and dark colours as the reader prefers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{NAMES, median};
use crate::harness::{Outcome, skip};

const WIDTH: f64 = 640.0;
const LEFT: f64 = 200.0;
const BAR: f64 = 14.0;

/// The commands of a container's life.
const COMMANDS: [&str; 9] = [
    "run /bin/true",
    "run, as Docker's",
    "create",
    "start",
    "state",
    "exec /bin/true",
    "kill",
    "delete",
    "--version",
];

const HEADLINE: [&str; 4] = ["run /bin/true", "create", "exec /bin/true", "delete"];

/// The growth of a command's time: title, unit of the axis, and rows with their numbers.
type Growth = (&'static str, &'static str, &'static [(&'static str, f64)]);

const GROWTH: [Growth; 4] = [
    (
        "create, beside other containers",
        "containers",
        &[("create beside 10", 10.0), ("create beside 100", 100.0), ("create beside 1000", 1000.0)],
    ),
    (
        "delete, beside other containers",
        "containers",
        &[("delete beside 10", 10.0), ("delete beside 100", 100.0), ("delete beside 1000", 1000.0)],
    ),
    (
        "list",
        "containers",
        &[("list of 10", 10.0), ("list of 100", 100.0), ("list of 1000", 1000.0)],
    ),
    (
        "run, with mounts",
        "mounts",
        &[("run, 10 mounts", 10.0), ("run, 100 mounts", 100.0), ("run, 500 mounts", 500.0)],
    ),
];

/// Each of [`NAMES`] is a class.
/// Names of colours, and the colours in light and dark.
const COLOURS: [(&str, &str, &str); 10] = [
    ("ground", "#fff", "#111827"),
    ("text", "#1f2937", "#e5e7eb"),
    ("faint", "#6b7280", "#9ca3af"),
    ("line", "#d1d5db", "#374151"),
    ("rt", "#2563eb", "#60a5fa"),
    ("before", "#7c3aed", "#a78bfa"),
    ("crun", "#d97706", "#fbbf24"),
    ("runc", "#6b7280", "#9ca3af"),
    ("floor", "#10b981", "#34d399"),
    ("other", "#0891b2", "#22d3ee"),
];

const STYLE: &str = "
.rt { fill: var(--rt); stroke: var(--rt) } .before { fill: var(--before); stroke: var(--before) }
.crun { fill: var(--crun); stroke: var(--crun) } .runc { fill: var(--runc); stroke: var(--runc) }
.floor { fill: var(--floor); stroke: var(--floor) } .other { fill: var(--other); stroke: var(--other) }
.ground { fill: var(--ground) } text { fill: var(--text); stroke: none; font: 12px sans-serif } .n { fill: var(--faint); font-size: 11px }
.axis { stroke: var(--line); fill: none } .curve { fill: none; stroke-width: 2 }
";

const PAGE: &str = "
body { background: var(--ground); color: var(--text); font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
svg { width: 100%; max-width: 46em; display: block } table { border-collapse: collapse }
td, th { border-bottom: 1px solid var(--line); padding: .2em .8em .2em 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums } .missed { color: var(--crun) }
.growth { display: grid; grid-template-columns: repeat(auto-fit, minmax(22em, 1fr)); gap: 1em }
";

/// The medians of one part of the benchmark, in milliseconds, by row and by name.
type Medians = BTreeMap<String, BTreeMap<String, f64>>;

struct Part {
    medians: Medians,
    targets: Vec<Value>,
}

fn read(out: &Path, name: &str) -> Outcome<Option<Part>> {
    let Ok(text) = fs::read(out.join(name)) else { return Ok(None) };
    let part: Value = serde_json::from_slice(&text)?;
    let times: BTreeMap<String, BTreeMap<String, Vec<f64>>> =
        serde_json::from_value(part["milliseconds"].clone())?;
    let of = |all: BTreeMap<String, Vec<f64>>| {
        all.into_iter().map(|(name, all)| (name, median(&all))).collect()
    };
    let medians = times.into_iter().map(|(row, all)| (row, of(all))).collect();
    Ok(Some(Part { medians, targets: part["targets"].as_array().cloned().unwrap_or_default() }))
}

/// Writes `report.html`, and `headline.svg` for the README.
pub(super) fn write(out: &Path) -> Outcome {
    let parts = ["v2.json", "v1.json", "wasm.json", "components.json"]
        .map(|name| read(out, name).map(|part| (name, part)));
    let mut body = String::new();
    let machine = machine();
    let mut headline = None;
    for part in parts {
        let (name, Some(part)) = part? else { continue };
        match name.split_once('.').map_or(name, |(name, _)| name) {
            lane @ ("v1" | "v2") => {
                headline.get_or_insert_with(|| {
                    bars(&HEADLINE, &["rt", "crun", "runc", "floor"], &part.medians)
                });
                section(&mut body, &format!("Linux containers, cgroup {lane}"));
                body += &svg(&bars(&COMMANDS, &NAMES, &part.medians));
                body += "<div class=\"growth\">";
                for (title, unit, points) in GROWTH {
                    body += &svg(&curves(title, unit, points, &part.medians));
                }
                body += "</div>";
            }
            kind => {
                section(&mut body, if kind == "wasm" { "Modules" } else { "Components" });
                body += &svg(&all_bars(&part.medians));
                body += &table(&part.targets);
            }
        }
    }
    let Some(headline) = headline else { return skip("no results: run the benchmark first") };
    let style = coloured(&[STYLE, PAGE].concat());
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>rt: benchmark</title>\n\
         <style>{style}</style>\n<h1>rt: benchmark</h1>\n<p>{machine}</p>\n\
         <p>Medians in milliseconds. The runtimes take turns. “floor” makes the same namespaces, \
         mounts and cgroups without reading a configuration.</p>\n{body}</html>\n"
    );
    fs::write(out.join("report.html"), page)?;
    println!("report: {}", out.join("report.html").display());
    fs::write(out.join("headline.svg"), with_caption(headline, &machine))?;
    println!("chart for the README: {}", out.join("headline.svg").display());
    Ok(())
}

fn section(body: &mut String, title: &str) {
    *body += &format!("<h2>{}</h2>\n", escaped(title));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The day and the machine.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processors = text.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let day = Command::new("date").arg("+%Y-%m-%d").output();
    let day = day.map(|day| String::from_utf8_lossy(&day.stdout).trim().to_owned());
    escaped(&format!(
        "{}, {} × {}, Linux {}",
        day.unwrap_or_default(),
        processors,
        model.map_or("an unknown processor", |(_, model)| model),
        kernel.trim()
    ))
}

/// A drawing: its height, and its elements.
struct Drawing {
    height: f64,
    elements: String,
}

fn svg(drawing: &Drawing) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\">\n{}</svg>\n",
        drawing.height, drawing.elements
    )
}

/// A file of its own needs the style, and says where the numbers are from.
fn with_caption(mut drawing: Drawing, machine: &str) -> String {
    let y = drawing.height + 14.0;
    // A write to a String cannot fail.
    let _ = writeln!(
        drawing.elements,
        "<text x=\"8\" y=\"{y}\" class=\"n\">Milliseconds, medians. {machine}</text>"
    );
    drawing.height = y + 10.0;
    let style = format!(
        "<style>{}</style>\n<rect width=\"100%\" height=\"100%\" class=\"ground\"/>\n",
        coloured(STYLE)
    );
    drawing.elements = style + &drawing.elements;
    svg(&drawing)
}

/// A style with the colours in place of their names, first the light ones. Not every program that
/// shows an SVG knows the variables of CSS.
fn coloured(style: &str) -> String {
    let with = |of: fn(&(&str, &'static str, &'static str)) -> &'static str| {
        COLOURS.iter().fold(style.to_owned(), |style, colour| {
            style.replace(&format!("var(--{})", colour.0), of(colour))
        })
    };
    let (light, dark) = (with(|colour| colour.1), with(|colour| colour.2));
    format!("{light}@media (prefers-color-scheme: dark) {{{dark}}}\n")
}

/// Bars of each row, on a scale of its own: a `run` takes a hundred times as long as a `state`.
fn bars(rows: &[&str], names: &[&str], medians: &Medians) -> Drawing {
    let mut drawing = Drawing { height: 8.0, elements: String::new() };
    for row in rows {
        let Some(values) = medians.get(*row) else { continue };
        let values: Vec<(&str, f64)> =
            names.iter().filter_map(|name| Some((*name, *values.get(*name)?))).collect();
        draw_row(&mut drawing, row, &values);
    }
    drawing
}

fn all_bars(medians: &Medians) -> Drawing {
    let mut drawing = Drawing { height: 8.0, elements: String::new() };
    for (row, values) in medians {
        let values: Vec<(&str, f64)> =
            values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        draw_row(&mut drawing, row, &values);
    }
    drawing
}

fn draw_row(drawing: &mut Drawing, row: &str, values: &[(&str, f64)]) {
    let most = values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    if most <= 0.0 {
        return;
    }
    let y = drawing.height;
    let _ = writeln!(
        drawing.elements,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        LEFT - 8.0,
        y + BAR - 3.0,
        escaped(row)
    );
    for (at, (name, value)) in values.iter().enumerate() {
        let y = y + at as f64 * (BAR + 2.0);
        let length = value / most * (WIDTH - LEFT - 140.0);
        let class = if NAMES.contains(name) { name } else { "other" };
        let _ = writeln!(
            drawing.elements,
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" class=\"{class}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" class=\"n\">{} {value:.2}</text>",
            LEFT + length + 6.0,
            y + BAR - 3.0,
            escaped(name)
        );
    }
    drawing.height += values.len() as f64 * (BAR + 2.0) + 10.0;
}

/// A curve for each runtime. Both axes are logarithmic, so that a time that grows with the number
/// is a straight line that rises, and a time that does not grow is level.
fn curves(title: &str, unit: &str, points: &[(&str, f64)], medians: &Medians) -> Drawing {
    const TOP: f64 = 40.0;
    const HEIGHT: f64 = 220.0;
    let value = |row: &str, name: &str| medians.get(row)?.get(name).copied();
    let all: Vec<f64> = NAMES
        .iter()
        .flat_map(|name| points.iter().filter_map(|(row, _)| value(row, name)))
        .collect();
    let mut drawing = Drawing { height: TOP + HEIGHT + 40.0, elements: String::new() };
    if all.is_empty() {
        return Drawing { height: 0.0, elements: String::new() };
    }
    let least = all.iter().copied().fold(f64::INFINITY, f64::min) / 1.3;
    let most = all.iter().copied().fold(0.0, f64::max) * 1.3;
    let (first, last) = (points[0].1, points[points.len() - 1].1);
    let x = |number: f64| 60.0 + (number / first).ln() / (last / first).ln() * (WIDTH - 180.0);
    let y = |value: f64| TOP + HEIGHT - (value / least).ln() / (most / least).ln() * HEIGHT;
    let mut out = |text: String| drawing.elements += &(text + "\n");
    out(format!("<text x=\"8\" y=\"20\">{}, ms</text>", escaped(title)));
    out(format!(
        "<path class=\"axis\" d=\"M60 {TOP} V{:.0} H{:.0}\"/>",
        TOP + HEIGHT,
        WIDTH - 110.0
    ));
    for (_, number) in points {
        out(format!(
            "<text x=\"{:.0}\" y=\"{:.0}\" class=\"n\" text-anchor=\"middle\">{number} {unit}</text>",
            x(*number),
            TOP + HEIGHT + 18.0
        ));
    }
    for name in NAMES {
        let curve: Vec<(f64, f64)> = points
            .iter()
            .filter_map(|(row, number)| Some((x(*number), value(row, name)?)))
            .collect();
        let Some((end, ends_with)) = curve.last().copied() else { continue };
        let path: Vec<String> =
            curve.iter().map(|(x, value)| format!("{x:.1} {:.1}", y(*value))).collect();
        out(format!("<path class=\"curve {name}\" d=\"M{}\"/>", path.join(" L")));
        for (x, value) in &curve {
            out(format!(
                "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\" class=\"{name}\"/>",
                y(*value)
            ));
        }
        out(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" class=\"n\">{name} {ends_with:.1}</text>",
            end + 8.0,
            y(ends_with) + 4.0
        ));
    }
    drawing
}

/// Measured values beside their targets.
fn table(targets: &[Value]) -> String {
    let rows = targets.iter().map(|target| {
        let measured = target["measured"].as_f64().unwrap_or_default();
        let goal = target["target"].as_str().unwrap_or_default();
        let missed = goal.split_once(' ').is_some_and(|(sign, goal)| {
            let goal = goal.parse().unwrap_or(measured);
            if sign == "<=" { measured > goal } else { measured < goal }
        });
        let class = if missed { "number missed" } else { "number" };
        format!(
            "<tr><td>{}<td class=\"number\">{}<td class=\"{class}\">{measured:.2}{}\n",
            escaped(target["what"].as_str().unwrap_or_default()),
            escaped(goal),
            if missed { " (missed)" } else { "" }
        )
    });
    let rows: String = rows.collect();
    format!("<table><tr><th>what<th>target<th>measured\n{rows}</table>\n")
}
