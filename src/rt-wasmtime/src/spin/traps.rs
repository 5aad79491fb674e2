//! Imports that this engine does not offer. A component may import more than it calls, so each such
//! function is there, and traps with its name.
#![forbid(unsafe_code)]

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, ResourceType};
use wasmtime::{Engine, Result, bail};

use crate::world::World;

/// The packages of WASI 0.2.
const WASI: [&str; 7] = ["cli", "clocks", "filesystem", "http", "io", "random", "sockets"];

/// The other interfaces that this engine offers.
const OTHERS: [&str; 8] = [
    "fermyon:spin/key-value@2.0.0",
    "fermyon:spin/sqlite@2.0.0",
    "fermyon:spin/variables@2.0.0",
    "wasi:config/store@0.2.0-draft-2024-09-27",
    "wasi:http/outgoing-handler@0.2.0-rc-2023-10-18",
    "wasi:http/types@0.2.0-rc-2023-10-18",
    "wasi:io/poll@0.2.0-rc-2023-10-18",
    "wasi:io/streams@0.2.0-rc-2023-10-18",
];

fn is_offered(interface: &str) -> bool {
    let wasi = |interface: &str| {
        let (package, rest) = interface.strip_prefix("wasi:")?.split_once('/')?;
        let (_, version) = rest.split_once('@')?;
        Some(WASI.contains(&package) && version.starts_with("0.2.") && !version.contains('-'))
    };
    OTHERS.contains(&interface) || wasi(interface) == Some(true)
}

/// Defines everything that a component imports and the linker does not offer.
pub(super) fn define(
    linker: &mut Linker<World>,
    engine: &Engine,
    component: &Component,
) -> Result<()> {
    // The resources of interfaces before, which one interface may use of another.
    let mut known: Vec<ResourceType> = Vec::new();
    for (name, import) in component.component_type().imports(engine) {
        let offered = is_offered(name);
        match import.ty {
            ComponentItem::ComponentInstance(interface) => {
                let mut instance = if offered { None } else { Some(linker.instance(name)?) };
                for (inner, export) in interface.exports(engine) {
                    match export.ty {
                        ComponentItem::Resource(resource) if known.contains(&resource) => {}
                        ComponentItem::Resource(resource) => {
                            known.push(resource);
                            if let Some(instance) = &mut instance {
                                define_resource(instance, inner)?;
                            }
                        }
                        ComponentItem::ComponentFunc(_) => {
                            if let Some(instance) = &mut instance {
                                define_function(instance, inner, format!("{name}#{inner}"))?;
                            }
                        }
                        _ => {}
                    }
                }
            }
            ComponentItem::ComponentFunc(_) => {
                define_function(&mut linker.root(), name, name.to_owned())?;
            }
            // The linker reports what else it lacks.
            _ => {}
        }
    }
    Ok(())
}

fn define_function(
    instance: &mut LinkerInstance<'_, World>,
    name: &str,
    full: String,
) -> Result<()> {
    instance.func_new(name, move |_, _, _, _| {
        bail!("`{full}` is called, which this engine does not offer")
    })
}

fn define_resource(instance: &mut LinkerInstance<'_, World>, name: &str) -> Result<()> {
    /// Nothing makes one.
    struct Nothing;
    instance.resource(name, ResourceType::host::<Nothing>(), |_, _| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_offered_by_its_version() {
        for (interface, expected) in [
            ("wasi:io/streams@0.2.0", true),
            ("wasi:io/streams@0.2.99", true),
            ("wasi:io/streams@0.2.0-rc-2023-10-18", true),
            ("wasi:io/streams@0.2.0-rc-2023-11-10", false),
            ("wasi:io/streams@0.3.0", false),
            ("wasi:keyvalue/store@0.2.0-draft2", false),
            ("fermyon:spin/redis@2.0.0", false),
            ("fermyon:spin/sqlite@2.0.0", true),
            ("spin:sqlite/sqlite@3.0.0", false),
            ("a", false),
        ] {
            assert_eq!(is_offered(interface), expected, "{interface}");
        }
    }
}
