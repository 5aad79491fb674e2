//! The engines of this process: one for each form of native code that it runs.
#![forbid(unsafe_code)]

use std::fs::File;

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::config::{self, Form};
use crate::{native, serve};

pub(crate) struct Engines {
    form: Form,
    /// The most instances at once, in a server.
    instances: Option<usize>,
    plain: Engine,
    /// For components with asynchronous functions. Most processes have none.
    asynchronous: Option<Engine>,
}

/// A component, and its native code.
pub(crate) struct Loaded {
    pub(crate) component: Component,
    /// Its engine is the one for components with asynchronous functions.
    pub(crate) is_asynchronous: bool,
}

/// Why native code was not loaded.
pub(crate) enum Unloaded {
    /// A server has got the native code of a component that is not a handler of requests: the
    /// compiler makes another [`Form`] for it.
    IsCommand(String),
    Otherwise(String),
}

impl From<String> for Unloaded {
    fn from(why: String) -> Unloaded {
        // wasmtime names each setting that differs, and has no type for that.
        // `wasm_spin::a_bad_module_is_an_error` fails if the text changes.
        match why.contains("epoch interruption") {
            true => Unloaded::IsCommand(why),
            false => Unloaded::Otherwise(why),
        }
    }
}

impl From<Unloaded> for String {
    fn from(unloaded: Unloaded) -> String {
        match unloaded {
            Unloaded::IsCommand(why) | Unloaded::Otherwise(why) => why,
        }
    }
}

/// What wasmtime says about native code for components with asynchronous functions, or without. No
/// such component runs if the text changes, so the tests of WASI 0.3 fail.
const OTHER_FORM: &str = "concurrency support";

impl Engines {
    /// For a command, which is the only one of its process.
    pub(crate) fn of_a_command(counting: bool) -> Result<Engines, String> {
        Engines::new(counting, None)
    }

    /// For a server, in which this many instances run at once.
    pub(crate) fn of_a_server(counting: bool, instances: usize) -> Result<Engines, String> {
        Engines::new(counting, Some(instances))
    }

    fn new(counting: bool, instances: Option<usize>) -> Result<Engines, String> {
        let form = Form { counting, yielding: instances.is_some(), asynchronous: false };
        Ok(Engines { form, instances, plain: engine(form, instances)?, asynchronous: None })
    }

    /// Loads native code, whatever its form is.
    pub(crate) fn load(&mut self, native: &File) -> Result<Loaded, Unloaded> {
        match native::load(&self.plain, native) {
            Ok(component) => Ok(Loaded { component, is_asynchronous: false }),
            Err(why) if why.contains(OTHER_FORM) => {
                let engine = match self.asynchronous.take() {
                    Some(engine) => engine,
                    None => engine(Form { asynchronous: true, ..self.form }, self.instances)?,
                };
                let component = native::load(self.asynchronous.insert(engine), native)?;
                Ok(Loaded { component, is_asynchronous: true })
            }
            Err(why) => Err(why.into()),
        }
    }

    /// All of them.
    pub(crate) fn into_all(self) -> Vec<Engine> {
        [Some(self.plain), self.asynchronous].into_iter().flatten().collect()
    }
}

fn engine(form: Form, instances: Option<usize>) -> Result<Engine, String> {
    let mut config = config::config(form);
    if let Some(instances) = instances {
        config.allocation_strategy(serve::allocation(instances, form.asynchronous));
    }
    config::engine(&config)
}

impl Loaded {
    pub(crate) fn exports(&self, name: &str) -> bool {
        self.component.component_type().exports(self.component.engine()).any(|it| it.0 == name)
    }

    /// Whether the component exports a handler of WASI 0.2, of any of its versions.
    pub(crate) fn is_proxy(&self) -> bool {
        let component = self.component.component_type();
        component
            .exports(self.component.engine())
            .any(|(name, _)| name.starts_with("wasi:http/incoming-handler@"))
    }

    /// Fails if the component exports this interface in other versions only.
    pub(crate) fn check_version(&self, name: &str) -> Result<(), String> {
        let plain = name.split('@').next().unwrap_or(name);
        let component = self.component.component_type();
        let mut exports = component.exports(self.component.engine());
        let is_other = |export: &str| {
            export != name && export.strip_prefix(plain).is_some_and(|it| it.starts_with('@'))
        };
        match exports.find(|(export, _)| is_other(export)) {
            Some((other, _)) if !self.exports(name) => {
                Err(format!("it exports `{other}`, and this engine calls `{name}`"))
            }
            _ => Ok(()),
        }
    }
}
