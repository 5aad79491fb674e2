//! The plan of a Spin app: what the compiler makes of a manifest, and the engine runs. It has two
//! lines: the first names the app's modules for `rt` (`docs/engine.md`, "Apps"), and the second is
//! a [`Plan`] as JSON.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The longest plan, in bytes. A manifest of the largest size makes a smaller one.
pub const LONGEST: u64 = 16 << 20;

/// The beginning of a plan: the kind of the file, and its version.
const HEAD: &str = "plan 1 ";

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The app's name.
    pub name: String,
    pub variables: BTreeMap<String, Variable>,
    /// Those that have a route.
    pub components: Vec<Component>,
    /// In the order in which they are tried.
    pub routes: Vec<Route>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// `None` if the container's environment must have a value.
    pub default: Option<String>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    pub name: String,
    /// The number of its module.
    pub module: usize,
    pub environment: BTreeMap<String, String>,
    pub files: Vec<Files>,
    /// Patterns of files that the guest does not get.
    pub exclude: Vec<String>,
    /// Each value is a template.
    pub variables: BTreeMap<String, String>,
    /// Each is a template.
    pub allowed_hosts: Vec<String>,
    /// Names of key-value stores.
    pub stores: Vec<String>,
    /// Names of SQLite databases.
    pub databases: Vec<String>,
}

/// Files for the guest. All paths are relative to the manifest's directory.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub enum Files {
    /// The files that a pattern matches, at their own paths.
    Matching(String),
    /// A directory, at another path.
    Directory { source: String, destination: String },
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `None` for a private route, which only other components of the app reach.
    pub pattern: Option<String>,
    /// The number of the component.
    pub component: usize,
}

/// Writes a plan for these modules.
pub fn write(plan: &Plan, modules: &[String]) -> Result<Vec<u8>, String> {
    let json = |result: serde_json::Result<String>| result.map_err(|error| error.to_string());
    let modules = json(serde_json::to_string(modules))?;
    let text = format!("{HEAD}{modules}\n{}\n", json(serde_json::to_string(plan))?);
    if text.len() as u64 > LONGEST {
        return Err("the plan of the app is too long".into());
    }
    Ok(text.into_bytes())
}

/// Reads a plan. Something else may follow it: `rt` adds a description to the file. Fails if the
/// plan does not fit this number of modules.
pub fn read(bytes: &[u8], modules: usize) -> Result<Plan, String> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let second = lines.next().ok_or("the plan is cut short")?;
    if !first.starts_with(HEAD.as_bytes()) {
        return Err("the plan has another version".into());
    }
    let plan: Plan =
        serde_json::from_slice(second).map_err(|error| format!("the plan: {error}"))?;
    let fits = plan.components.iter().all(|component| component.module < modules)
        && plan.routes.iter().all(|route| route.component < plan.components.len());
    if fits {
        Ok(plan)
    } else {
        Err("the plan names a module or a component that is missing".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let files = Files::Directory { source: "a\nb".into(), destination: "/".into() };
        let component = Component {
            name: "hello".into(),
            module: 1,
            environment: [("A".to_owned(), "line 1\nline 2".to_owned())].into(),
            files: vec![files, Files::Matching("*.txt".into())],
            exclude: vec!["x".into()],
            variables: BTreeMap::new(),
            allowed_hosts: vec!["http://*:*".into()],
            stores: vec!["default".into()],
            databases: Vec::new(),
        };
        Plan {
            name: "app".into(),
            variables: [("v".to_owned(), Variable { default: None })].into(),
            components: vec![component],
            routes: vec![Route { pattern: Some("/...".into()), component: 0 }],
        }
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let mut bytes = write(&plan(), &["a".into(), "b".into()]).expect("written");
        assert!(bytes.starts_with(b"plan 1 [\"a\",\"b\"]\n"));
        bytes.extend(b"{\"description\":1}");
        assert_eq!(read(&bytes, 2), Ok(plan()));
        assert!(read(&bytes, 1).is_err());
        assert!(read(&bytes[..bytes.len() / 2], 2).is_err());
        assert!(read(b"", 0).is_err());
        assert!(read(b"plan 2 []\n{}\n", 0).is_err());
    }
}
