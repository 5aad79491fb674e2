//! `rt check`: what this host can do for containers, what it lacks, and how to fix that. It tests
//! everything that can be tested without making anything, as the calling user.
#![forbid(unsafe_code)]

mod callers;
mod cgroups;
mod host;

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::cli::{self, CheckFormat, Global};
use crate::state::Root;

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// The host lacks something that not every container needs.
    Limited,
    /// No container can be made.
    Missing,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    topic: &'static str,
    name: String,
    verdict: Verdict,
    /// The observation.
    detail: String,
    /// How to fix it, unless the result is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn good(topic: &'static str, name: impl Into<String>, detail: impl Into<String>) -> Finding {
        let (name, detail) = (name.into(), detail.into());
        Finding { topic, name, verdict: Verdict::Good, detail, fix: None }
    }

    fn bad(
        topic: &'static str,
        name: impl Into<String>,
        verdict: Verdict,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        let (name, detail) = (name.into(), crate::report::one_line(&detail.into()));
        Finding { topic, name, verdict, detail, fix: Some(fix.into()) }
    }
}

pub(super) fn execute(root: &Root, global: &Global, args: &cli::Check) -> Result<ExitCode> {
    let mut findings = host::kernel();
    findings.extend(host::namespaces());
    findings.extend(cgroups::all());
    findings.extend(host::security());
    findings.push(host::state(root));
    findings.extend(host::engines(global.wasm_config.as_deref()));
    findings.extend(host::programs());
    findings.extend(callers::all());
    let usable = findings.iter().all(|finding| finding.verdict != Verdict::Missing);
    super::print(&match args.format {
        CheckFormat::Text => text(&findings, usable),
        CheckFormat::Json => {
            let json = serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "usable": usable,
                "findings": findings,
            });
            format!("{}\n", serde_json::to_string_pretty(&json)?)
        }
    })?;
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line per finding. Good findings are included, because an operator wants to know what was
/// checked.
fn text(findings: &[Finding], usable: bool) -> String {
    let mut text = String::new();
    let mut topic = "";
    for finding in findings {
        if finding.topic != topic {
            topic = finding.topic;
            text += &format!("{topic}\n");
        }
        let mark = match finding.verdict {
            Verdict::Good => "ok     ",
            Verdict::Limited => "limited",
            Verdict::Missing => "MISSING",
        };
        text += &format!("  {mark}  {}: {}\n", finding.name, finding.detail);
        if let Some(fix) = &finding.fix {
            text += &format!("           {fix}\n");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (limited, missing) = (count(Verdict::Limited), count(Verdict::Missing));
    text += &match (usable, limited) {
        (true, 0) => "rt can be used here, without limitations.\n".to_owned(),
        (true, 1) => "rt can be used here, with 1 limitation.\n".to_owned(),
        (true, limited) => format!("rt can be used here, with {limited} limitations.\n"),
        (false, _) => format!("rt cannot be used here: {missing} things are missing.\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_its_fix_beside_it() {
        let findings = [
            Finding::good("kernel", "release", "6.1"),
            Finding::bad("kernel", "mounts", Verdict::Missing, "too old", "get a newer one"),
        ];
        let expected = "kernel\n  ok       release: 6.1\n  MISSING  mounts: too old\n           get a newer one\n\
                        rt cannot be used here: 1 things are missing.\n";
        assert_eq!(text(&findings, false), expected);
    }
}
