//! The manifest of a Spin app (`spin.toml`, version 2). It becomes the plan of the app, with
//! everything checked that does not depend on the container.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Component as Part, Path};

use serde::Deserialize;
use toml::{Table, Value};

use crate::hosts::Host;
use crate::plan::{self, Component, Files, Plan, Route, Variable};
use crate::routes::Pattern;
use crate::template;

/// The largest manifest in bytes, and the most of its parts.
const LARGEST: usize = 1 << 20;
const MOST_COMPONENTS: usize = 64;
const MOST_ROUTES: usize = 1024;

/// The longest path of a module, in bytes.
const LONGEST_PATH: usize = 4095;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    #[serde(rename = "spin_manifest_version")]
    _version: Value,
    application: Application,
    #[serde(default)]
    variables: BTreeMap<String, VariableTable>,
    #[serde(default)]
    trigger: BTreeMap<String, Value>,
    #[serde(default)]
    component: BTreeMap<String, ComponentTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Application {
    name: String,
    #[serde(default)]
    trigger: Table,
    // For people, and for other tools.
    #[serde(rename = "version")]
    _version: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(default, rename = "authors")]
    _authors: Vec<String>,
    #[serde(default, rename = "tool")]
    _tool: Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VariableTable {
    default: Option<String>,
    #[serde(default)]
    required: bool,
    #[serde(default, rename = "secret")]
    _secret: bool,
    #[serde(rename = "description")]
    _description: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpTrigger {
    route: Option<Value>,
    component: Option<Value>,
    executor: Option<Executor>,
    #[serde(rename = "id")]
    _id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Executor {
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrivateRoute {
    private: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentTable {
    source: Value,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    files: Vec<Value>,
    #[serde(default)]
    exclude_files: Vec<String>,
    #[serde(default)]
    variables: BTreeMap<String, String>,
    #[serde(default)]
    allowed_outbound_hosts: Vec<String>,
    allowed_http_hosts: Option<Vec<String>>,
    #[serde(default)]
    key_value_stores: Vec<String>,
    #[serde(default)]
    sqlite_databases: Vec<String>,
    // A component that calls a model traps, whatever is listed here.
    #[serde(default, rename = "ai_models")]
    _ai_models: Vec<String>,
    #[serde(default)]
    dependencies: Table,
    #[serde(default, rename = "dependencies_inherit_configuration")]
    _dependencies_inherit_configuration: bool,
    // For people, and for other tools.
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(default, rename = "build")]
    _build: Table,
    #[serde(default, rename = "tool")]
    _tool: Table,
    #[serde(default, rename = "targets")]
    _targets: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilesTable {
    source: String,
    destination: String,
}

/// Makes the plan of a manifest.
pub fn compile(bytes: &[u8]) -> Result<Vec<u8>, String> {
    if bytes.len() > LARGEST {
        return Err(format!("a Spin manifest has at most {LARGEST} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "the Spin manifest is not UTF-8")?;
    let table: Table = toml::from_str(text).map_err(|error| at(text, &error))?;
    check_version(&table)?;
    let manifest: Manifest = toml::from_str(text).map_err(|error| at(text, &error))?;
    let mut builder = Builder::default();
    builder.add(manifest)?;
    builder.routes.sort_by(|(one, _), (other, _)| match (one, other) {
        (Some((_, one)), Some((_, other))) => one.compare(other),
        (one, other) => other.is_some().cmp(&one.is_some()),
    });
    for pair in builder.routes.windows(2) {
        if let [(Some((one, first)), _), (Some((other, second)), _)] = pair
            && first.is_like(second)
        {
            return Err(format!("the routes `{one}` and `{other}` overlap"));
        }
    }
    let routes = builder
        .routes
        .into_iter()
        .map(|(pattern, component)| Route { pattern: pattern.map(|(route, _)| route), component });
    let plan = Plan {
        name: builder.name,
        variables: builder.variables,
        components: builder.components,
        routes: routes.collect(),
    };
    plan::write(&plan, &builder.modules)
}

/// An error of the parser, on one line.
fn at(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => {
            format!("line {} of the Spin manifest: {message}", before.matches('\n').count() + 1)
        }
        None => format!("the Spin manifest: {message}"),
    }
}

fn check_version(table: &Table) -> Result<(), String> {
    if table.is_empty() {
        return Err("the Spin manifest is empty".into());
    }
    let version = table.get("spin_manifest_version").or_else(|| table.get("spin_version"));
    let version = match version {
        Some(Value::Integer(version)) => version.to_string(),
        Some(Value::String(version)) => version.clone(),
        Some(_) => return Err("the version of the Spin manifest is not a number".into()),
        None => return Err("the Spin manifest has no `spin_manifest_version`".into()),
    };
    if version != "2" {
        return Err(format!("the Spin manifest has version {version}, and rt runs version 2"));
    }
    Ok(())
}

#[derive(Default)]
struct Builder {
    name: String,
    variables: BTreeMap<String, Variable>,
    tables: BTreeMap<String, ComponentTable>,
    components: Vec<Component>,
    modules: Vec<String>,
    routes: Vec<(Option<(String, Pattern)>, usize)>,
}

impl Builder {
    fn add(&mut self, manifest: Manifest) -> Result<(), String> {
        let Manifest { application, variables, trigger, component, .. } = manifest;
        if application.name.is_empty() {
            return Err("`application.name` is empty".into());
        }
        if let Some(name) = application.trigger.keys().next() {
            return Err(format!("unknown key `application.trigger.{name}`"));
        }
        self.name = application.name;
        for (name, table) in variables {
            let show = |why: &str| format!("the variable `{name}` {why}");
            if !template::is_name(&name) {
                return Err(show("is not named in small letters, digits and `_`"));
            }
            let VariableTable { default, required, .. } = table;
            match (&default, required) {
                (None, false) => return Err(show("has neither a `default` nor `required`")),
                (Some(_), true) => return Err(show("has a `default` and is `required`")),
                _ => {}
            }
            self.variables.insert(name, Variable { default });
        }
        self.tables = component;
        for name in self.tables.keys() {
            check_name(name, "component")?;
        }
        for (kind, triggers) in trigger {
            if kind != "http" {
                return Err(format!("unknown trigger `{kind}`: rt knows `http`"));
            }
            let Value::Array(triggers) = triggers else {
                return Err("`trigger.http` is not a list: write `[[trigger.http]]`".into());
            };
            for (number, trigger) in triggers.into_iter().enumerate() {
                self.add_trigger(trigger)
                    .map_err(|why| format!("`[[trigger.http]]` number {}: {why}", number + 1))?;
            }
        }
        if self.routes.is_empty() {
            return Err("the Spin manifest has no trigger".into());
        }
        // A component without a trigger never runs. It must be right all the same.
        let names: Vec<String> = self.tables.keys().cloned().collect();
        for name in names {
            if let Some(table) = self.tables.remove(&name) {
                component_of(&name, table, &self.variables)?;
            }
        }
        Ok(())
    }

    fn add_trigger(&mut self, trigger: Value) -> Result<(), String> {
        let trigger: HttpTrigger = table(trigger)?;
        if let Some(executor) = trigger.executor
            && executor.r#type != "http"
        {
            return Err(format!("unknown executor `{}`: rt knows `http`", executor.r#type));
        }
        let route = match trigger.route.ok_or("it has no `route`")? {
            Value::String(route) => {
                let pattern = Pattern::parse(&route)?;
                Some((route, pattern))
            }
            route => {
                let PrivateRoute { private } = table(route)?;
                if !private {
                    return Err("a `route` is a path or `{ private = true }`".into());
                }
                None
            }
        };
        let component = match trigger.component.ok_or("it has no `component`")? {
            Value::String(name) => self.component(&name)?,
            inline => {
                let name = format!("trigger-{}", self.routes.len() + 1);
                if self.tables.contains_key(&name) {
                    return Err(format!("the component `{name}` has the name of another one"));
                }
                self.tables.insert(name.clone(), table(inline)?);
                self.component(&name)?
            }
        };
        if self.routes.len() == MOST_ROUTES {
            return Err(format!("an app has at most {MOST_ROUTES} routes"));
        }
        self.routes.push((route, component));
        Ok(())
    }

    /// The number of a component, which gets one with its first trigger.
    fn component(&mut self, name: &str) -> Result<usize, String> {
        if let Some(number) = self.components.iter().position(|it| it.name == name) {
            return Ok(number);
        }
        let table =
            self.tables.remove(name).ok_or_else(|| format!("there is no component `{name}`"))?;
        let (mut component, source) = component_of(name, table, &self.variables)?;
        component.module = match self.modules.iter().position(|module| *module == source) {
            Some(number) => number,
            None => {
                self.modules.push(source);
                self.modules.len() - 1
            }
        };
        if self.components.len() == MOST_COMPONENTS {
            return Err(format!("an app has at most {MOST_COMPONENTS} components"));
        }
        self.components.push(component);
        Ok(self.components.len() - 1)
    }
}

/// A component, and the path of its module.
fn component_of(
    name: &str,
    table: ComponentTable,
    variables: &BTreeMap<String, Variable>,
) -> Result<(Component, String), String> {
    component(name, table, variables).map_err(|why| format!("the component `{name}`: {why}"))
}

fn component(
    name: &str,
    table: ComponentTable,
    variables: &BTreeMap<String, Variable>,
) -> Result<(Component, String), String> {
    let source = match table.source {
        Value::String(path) => path,
        Value::Table(source) if source.contains_key("url") => {
            return Err(
                "its `source` is a URL, and rt downloads nothing: put the module into the image"
                    .into(),
            );
        }
        Value::Table(source)
            if source.contains_key("registry") || source.contains_key("package") =>
        {
            return Err("its `source` is a package of a registry, and rt downloads nothing: put the module into the image".into());
        }
        _ => return Err("its `source` is not a path".into()),
    };
    check_path(&source, true).map_err(|why| format!("its `source` {why}"))?;
    if table.allowed_http_hosts.is_some() {
        return Err("`allowed_http_hosts` is of version 1: use `allowed_outbound_hosts`".into());
    }
    if let Some(dependency) = table.dependencies.keys().next() {
        return Err(format!(
            "it has the dependency `{dependency}`, and rt composes no components: compose them before"
        ));
    }
    let known = |name: &str| match variables.get(name) {
        Some(_) => Ok(String::new()),
        None => Err(format!("there is no variable `{name}`")),
    };
    for (name, value) in &table.variables {
        if !template::is_name(name) {
            return Err(format!(
                "its variable `{name}` is not named in small letters, digits and `_`"
            ));
        }
        template::resolve(value, known)?;
    }
    for host in &table.allowed_outbound_hosts {
        template::resolve(host, known)?;
        // The value of a variable is known in the container.
        if !template::has_variables(host) {
            Host::parse(host)?;
        }
    }
    for variable in table.environment.iter().flat_map(|(name, value)| [name, value]) {
        if variable.contains('\0') {
            return Err("its `environment` contains a NUL character".into());
        }
    }
    if let Some(name) = table.environment.keys().find(|name| name.is_empty() || name.contains('='))
    {
        return Err(format!("`{name}` in its `environment` is not a name"));
    }
    for store in table.key_value_stores.iter().chain(&table.sqlite_databases) {
        check_name(store, "store")?;
    }
    for pattern in &table.exclude_files {
        check_pattern(pattern).map_err(|why| format!("`{pattern}` in `exclude_files` {why}"))?;
    }
    let files = table.files.into_iter().map(files).collect::<Result<_, _>>()?;
    let component = Component {
        name: name.to_owned(),
        module: 0,
        environment: table.environment,
        files,
        exclude: table.exclude_files,
        variables: table.variables,
        allowed_hosts: table.allowed_outbound_hosts,
        stores: table.key_value_stores,
        databases: table.sqlite_databases,
    };
    Ok((component, source))
}

fn files(value: Value) -> Result<Files, String> {
    if let Value::String(pattern) = value {
        check_pattern(&pattern).map_err(|why| format!("`{pattern}` in `files` {why}"))?;
        return Ok(Files::Matching(pattern));
    }
    let FilesTable { source, destination } = table(value)?;
    check_path(&source, false).map_err(|why| format!("`{source}` in `files` {why}"))?;
    let destination = format!("/{}", destination.trim_matches('/'));
    if destination != "/" {
        check_path(&destination, true)
            .map_err(|why| format!("`{destination}` in `files` {why}"))?;
    }
    Ok(Files::Directory { source, destination })
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    check_path(pattern, false)?;
    glob::Pattern::new(pattern).map(drop).map_err(|error| format!("is not a pattern: {error}"))
}

/// A path that leads to the manifest's directory or below it, or, if `absolute`, to any place of
/// the container.
fn check_path(path: &str, absolute: bool) -> Result<(), String> {
    if path.is_empty() || path.len() > LONGEST_PATH {
        return Err(format!("is not a path of 1 to {LONGEST_PATH} bytes"));
    }
    if path.chars().any(char::is_control) {
        return Err("contains a control character".into());
    }
    let mut is_there = false;
    for part in Path::new(path).components() {
        match part {
            Part::RootDir if absolute => {}
            Part::RootDir => return Err("is not relative to the manifest".into()),
            Part::ParentDir => return Err("contains `..`".into()),
            Part::CurDir | Part::Prefix(_) => {}
            Part::Normal(_) => is_there = true,
        }
    }
    if is_there { Ok(()) } else { Err("names the directory itself".into()) }
}

fn check_name(name: &str, what: &str) -> Result<(), String> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || name.len() > 64
        || !name.chars().all(is_letter)
    {
        return Err(format!(
            "`{name}` is not the name of a {what}: letters, digits, `-`, `_` and `.`, at most 64"
        ));
    }
    Ok(())
}

/// Parses a value that must be a table.
fn table<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    value.try_into().map_err(|error: toml::de::Error| error.message().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest with a component `a`, more of its keys, and more tables.
    fn manifest(keys: &str, tables: &str) -> String {
        format!(
            "spin_manifest_version = 2\n[application]\nname = \"app\"\n{tables}\n\
             [[trigger.http]]\nroute = \"/...\"\ncomponent = \"a\"\n\
             [component.a]\nsource = \"a.wasm\"\n{keys}\n"
        )
    }

    fn plan(manifest: &str) -> Result<Plan, String> {
        let bytes = compile(manifest.as_bytes())?;
        let modules = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let modules = String::from_utf8_lossy(modules).matches("wasm").count();
        plan::read(&bytes, modules)
    }

    #[test]
    fn an_app_becomes_a_plan() {
        let text = r#"
            spin_manifest_version = 2
            [application]
            name = "app"
            version = "0.1.0"
            authors = ["A <a@b.c>"]
            [variables]
            host = { default = "example.com" }
            token = { required = true, secret = true }
            [[trigger.http]]
            route = "/..."
            component = "rest"
            [[trigger.http]]
            route = "/a/:id"
            component = "rest"
            [[trigger.http]]
            route = "/a"
            component = { source = "b.wasm" }
            [[trigger.http]]
            route = { private = true }
            component = "hidden"
            [component.rest]
            source = "target/a.wasm"
            files = ["*.txt", { source = "assets", destination = "/x/" }]
            environment = { A = "1" }
            variables = { url = "https://{{ host }}/" }
            allowed_outbound_hosts = ["https://{{ host }}"]
            key_value_stores = ["default"]
            sqlite_databases = ["default"]
            ai_models = ["llama2-chat"]
            [component.rest.build]
            command = "cargo build"
            [component.hidden]
            source = "target/a.wasm"
        "#;
        let plan = plan(text).expect("a plan");
        let routes: Vec<_> = plan
            .routes
            .iter()
            .map(|route| {
                let name = plan.components[route.component].name.as_str();
                (route.pattern.as_deref(), name)
            })
            .collect();
        let expected = [
            (Some("/a"), "trigger-3"),
            (Some("/a/:id"), "rest"),
            (Some("/..."), "rest"),
            (None, "hidden"),
        ];
        assert_eq!(routes, expected);
        let modules: Vec<_> = plan.components.iter().map(|it| it.module).collect();
        assert_eq!(modules, [0, 1, 0]);
        let files = Files::Directory { source: "assets".into(), destination: "/x".into() };
        assert_eq!(plan.components[0].files, [Files::Matching("*.txt".into()), files]);
    }

    #[test]
    fn a_bad_manifest_is_refused_by_name() {
        let route = "[[trigger.http]]\nroute = \"/a\"\ncomponent = \"a\"\n";
        for (manifest, expected) in [
            (String::new(), "is empty"),
            ("# nothing\n".into(), "is empty"),
            ("x = ".into(), "line 1 of the Spin manifest"),
            ("x = 1".into(), "has no `spin_manifest_version`"),
            ("spin_version = \"1\"\nname = \"a\"".into(), "has version 1"),
            ("spin_manifest_version = \"1\"".into(), "has version 1"),
            ("spin_manifest_version = 3".into(), "has version 3"),
            ("spin_manifest_version = 2".into(), "`application`"),
            ("spin_manifest_version = 2\n[application]\nname = \"a\"".into(), "no trigger"),
            (manifest("", "[extra]"), "`extra`"),
            (manifest("sauce = 1", ""), "`sauce`"),
            (manifest("", "colour = 1"), "`colour`"),
            (manifest("", "[application.trigger.http]\nbase = \"/\""), "application.trigger.http"),
            (manifest("", "[[trigger.redis]]\nchannel = \"x\""), "unknown trigger `redis`"),
            (manifest("", "[[trigger.http]]\nroute = \"/a\""), "no `component`"),
            (manifest("", "[[trigger.http]]\ncomponent = \"a\""), "no `route`"),
            (
                manifest("", "[[trigger.http]]\nroute = \"/a\"\ncomponent = \"b\""),
                "no component `b`",
            ),
            (manifest("", "[[trigger.http]]\nroute = \"a\"\ncomponent = \"a\""), "begin with `/`"),
            (manifest("", &format!("{route}executor = {{ type = \"wagi\" }}")), "`wagi`"),
            (manifest("", &format!("{route}{route}")), "`/a` and `/a` overlap"),
            (manifest("", &format!("{route}{}", route.replace("/a", "/a/"))), "overlap"),
            (manifest("", "[variables]\nX = { default = \"\" }"), "`X`"),
            (manifest("", "[variables]\nx = {}"), "`x` has neither"),
            (manifest("", "[variables]\nx = { default = \"\", required = true }"), "`x` has a"),
            (manifest("variables = { y = \"{{ x }}\" }", ""), "no variable `x`"),
            (manifest("allowed_outbound_hosts = [\"example.com\"]", ""), "`example.com`"),
            (manifest("allowed_http_hosts = []", ""), "of version 1"),
            (manifest("files = [\"../x\"]", ""), "`..`"),
            (manifest("files = [\"/etc/*\"]", ""), "not relative"),
            (manifest("files = [{ source = \"x\", destination = \"/a/../b\" }]", ""), "`..`"),
            (manifest("files = [{ source = \"x\" }]", ""), "destination"),
            (manifest("files = [\"a[\"]", ""), "not a pattern"),
            (manifest("key_value_stores = [\"../x\"]", ""), "`../x`"),
            (manifest("environment = { \"A=B\" = \"\" }", ""), "`A=B`"),
            (manifest("dependencies = { \"a:b/c\" = \"1\" }", ""), "`a:b/c`"),
            (manifest("", "[component.b]\nsource = { url = \"http://x\", digest = \"y\" }"), "URL"),
            (manifest("", "[component.b]\nsource = \"/\""), "the directory itself"),
            (manifest("", "[component.b]\nsource = \"../a.wasm\""), "`..`"),
            (manifest("", "[component.\"a b\"]\nsource = \"x\""), "`a b`"),
        ] {
            let error = plan(&manifest).expect_err(&manifest);
            assert!(error.contains(expected), "{manifest}\n{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let deep = format!("x = {}", "[".repeat(100_000));
        assert!(compile(deep.as_bytes()).is_err());
        assert!(compile(&vec![b'#'; LARGEST + 1]).is_err());
        assert!(compile(b"\xff").is_err());
    }

    #[test]
    fn an_app_has_a_limited_number_of_parts() {
        let components = |count: usize| -> String {
            let one = |number| {
                format!(
                    "[[trigger.http]]\nroute = \"/r{number}\"\ncomponent = \"c{number}\"\n\
                     [component.c{number}]\nsource = \"c{number}.wasm\"\n"
                )
            };
            (0..count).map(one).collect()
        };
        assert!(plan(&manifest("", &components(MOST_COMPONENTS - 1))).is_ok());
        assert!(plan(&manifest("", &components(MOST_COMPONENTS))).is_err());
    }
}
