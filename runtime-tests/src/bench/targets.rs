//! Measured values beside their targets.

use serde_json::{Value, json};

/// A measured value and its target.
struct Target {
    what: String,
    /// At most or at least this value. None for a value without a target.
    goal: Option<(&'static str, f64)>,
    measured: f64,
}

#[derive(Default)]
pub(super) struct Targets(Vec<Target>);

impl Targets {
    pub(super) fn at_most(&mut self, what: impl Into<String>, most: f64, measured: f64) {
        self.0.push(Target { what: what.into(), goal: Some(("<=", most)), measured });
    }

    pub(super) fn at_least(&mut self, what: impl Into<String>, least: f64, measured: f64) {
        self.0.push(Target { what: what.into(), goal: Some((">=", least)), measured });
    }

    pub(super) fn tell(&mut self, what: impl Into<String>, measured: f64) {
        self.0.push(Target { what: what.into(), goal: None, measured });
    }

    pub(super) fn print(&self) {
        println!("\n{:82}{:>10}{:>10}", "", "target", "measured");
        for Target { what, goal, measured } in &self.0 {
            let (goal, missed) = goal.map_or((String::new(), false), |(sign, goal)| {
                let missed = if sign == "<=" { *measured > goal } else { *measured < goal };
                (format!("{sign} {goal:.2}"), missed)
            });
            let end = if missed { "  missed" } else { "" };
            println!("{what:82}{goal:>10}{measured:>10.2}{end}");
        }
    }

    pub(super) fn json(&self) -> Value {
        let all = self.0.iter().map(|target| {
            let goal = target.goal.map(|(sign, goal)| format!("{sign} {goal}"));
            json!({ "what": target.what, "target": goal, "measured": target.measured })
        });
        all.collect()
    }
}
