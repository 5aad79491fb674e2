//! The medians as a bar chart in SVG.

use std::fmt::Write;

use super::{Times, median};

const COLOURS: [&str; 7] =
    ["#2563eb", "#d97706", "#6b7280", "#10b981", "#7c3aed", "#dc2626", "#0891b2"];
const LEFT: f64 = 190.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 13.0;
const GAP: f64 = 12.0;

/// Draws a group of bars for each row, with one bar for each of these names that has a value. The
/// scale is logarithmic, because a `run` takes a hundred times as long as a `state`.
pub(super) fn draw(title: &str, names: &[&str], rows: &[&str], times: &Times) -> String {
    let value = |row: &str, name: &str| times.get(row)?.get(name).map(|all| median(all));
    let all: Vec<f64> =
        rows.iter().flat_map(|row| names.iter().filter_map(|name| value(row, name))).collect();
    let least = all.iter().copied().fold(f64::INFINITY, f64::min) / 1.5;
    let most = all.iter().copied().fold(0.0, f64::max);
    let length = |value: f64| (value / least).ln() / (most / least).ln() * WIDTH;
    let mut body = String::new();
    let mut y = 50.0;
    for row in rows {
        let bars: Vec<(usize, f64)> = names
            .iter()
            .enumerate()
            .filter_map(|(at, name)| Some((at, value(row, name)?)))
            .collect();
        if bars.is_empty() {
            continue;
        }
        // A write to a String cannot fail.
        let _ = writeln!(
            body,
            r#"<text x="{}" y="{}" text-anchor="end">{row}</text>"#,
            LEFT - 10.0,
            y + BAR
        );
        for (at, value) in bars {
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y}" width="{:.1}" height="{BAR}" fill="{}"/><text x="{:.1}" y="{:.1}" class="n">{} {value:.2}</text>"#,
                length(value),
                COLOURS[at],
                LEFT + length(value) + 5.0,
                y + BAR - 2.0,
                names[at],
            );
            y += BAR + 2.0;
        }
        y += GAP;
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0} {y:.0}" font-family="sans-serif" font-size="12">
<style>.n {{ font-size: 10px; fill: #374151 }}</style>
<rect width="100%" height="100%" fill="white"/>
<text x="10" y="24" font-size="15">{title}</text>
{body}</svg>
"#,
        LEFT + WIDTH + 110.0
    )
}
