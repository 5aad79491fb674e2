//! Imports that this engine does not offer. A component may import more than it calls, so each such
//! function is there, and traps with its name.
#![forbid(unsafe_code)]

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Linker, LinkerInstance, ResourceType};
use wasmtime::{Result, bail};

use super::platform::SQLITE_3;
use crate::engines::Loaded;
use crate::world::World;

/// The packages of WASI 0.2, and of 0.3 for asynchronous components.
const WASI: [&str; 7] = ["cli", "clocks", "filesystem", "http", "io", "random", "sockets"];

/// The other interfaces that this engine offers.
const OTHERS: [&str; 9] = [
    "fermyon:spin/key-value@2.0.0",
    "fermyon:spin/sqlite@2.0.0",
    "fermyon:spin/variables@2.0.0",
    SQLITE_3,
    "wasi:config/store@0.2.0-draft-2024-09-27",
    "wasi:http/outgoing-handler@0.2.0-rc-2023-10-18",
    "wasi:http/types@0.2.0-rc-2023-10-18",
    "wasi:io/poll@0.2.0-rc-2023-10-18",
    "wasi:io/streams@0.2.0-rc-2023-10-18",
];

/// Those that it offers to asynchronous components only.
const ASYNCHRONOUS: [&str; 3] = [
    "spin:key-value/key-value@3.0.0",
    "spin:sqlite/sqlite@3.1.0",
    "spin:variables/variables@3.0.0",
];

/// Interfaces of WASI's packages that a component may export, and that the host does not.
const EXPORTED: [&str; 3] = ["wasi:cli/run", "wasi:http/handler", "wasi:http/incoming-handler"];

fn is_offered(interface: &str, is_asynchronous: bool) -> bool {
    let wasi = |interface: &str| {
        let (package, rest) = interface.strip_prefix("wasi:")?.split_once('/')?;
        let (_, version) = rest.split_once('@')?;
        let is_known =
            version.starts_with("0.2.") || is_asynchronous && version.starts_with("0.3.");
        Some(WASI.contains(&package) && is_known && !version.contains('-'))
    };
    let name = interface.split('@').next().unwrap_or_default();
    OTHERS.contains(&interface)
        || is_asynchronous && ASYNCHRONOUS.contains(&interface)
        || wasi(interface) == Some(true) && !EXPORTED.contains(&name)
}

/// Defines everything that a component imports and the linker does not offer.
pub(super) fn define(linker: &mut Linker<World>, module: &Loaded) -> Result<()> {
    let Loaded { component, is_asynchronous } = module;
    let engine = component.engine();
    // The resources of interfaces before, which one interface may use of another.
    let mut known: Vec<ResourceType> = Vec::new();
    for (name, import) in component.component_type().imports(engine) {
        let offered = is_offered(name, *is_asynchronous);
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
                        ComponentItem::ComponentFunc(ty) => {
                            if let Some(instance) = &mut instance {
                                let full = format!("{name}#{inner}");
                                define_function(instance, inner, full, ty.async_())?;
                            }
                        }
                        _ => {}
                    }
                }
            }
            ComponentItem::ComponentFunc(ty) => {
                define_function(&mut linker.root(), name, name.to_owned(), ty.async_())?;
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
    is_asynchronous: bool,
) -> Result<()> {
    let trap =
        move || -> Result<()> { bail!("`{full}` is called, which this engine does not offer") };
    match is_asynchronous {
        true => instance
            .func_new_concurrent(name, move |_, _, _, _| Box::pin(std::future::ready(trap()))),
        false => instance.func_new(name, move |_, _, _, _| trap()),
    }
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
            ("wasi:http/handler@0.2.0", false),
            ("wasi:io/streams@0.2.0", true),
            ("wasi:io/streams@0.2.99", true),
            ("wasi:io/streams@0.2.0-rc-2023-10-18", true),
            ("wasi:io/streams@0.2.0-rc-2023-11-10", false),
            ("wasi:io/streams@0.3.0", false),
            ("wasi:keyvalue/store@0.2.0-draft2", false),
            ("fermyon:spin/redis@2.0.0", false),
            ("fermyon:spin/sqlite@2.0.0", true),
            ("spin:sqlite/sqlite@3.0.0", true),
            ("spin:sqlite/sqlite@3.1.0", false),
            ("a", false),
        ] {
            assert_eq!(is_offered(interface, false), expected, "{interface}");
        }
    }

    #[test]
    fn an_asynchronous_component_has_more() {
        for (interface, expected) in [
            ("wasi:clocks/monotonic-clock@0.3.0", true),
            ("wasi:http/client@0.3.0", true),
            ("wasi:http/handler@0.3.0", false),
            ("wasi:http/types@0.3.0-rc-2026-03-15", false),
            ("wasi:io/streams@0.2.0", true),
            ("spin:variables/variables@3.0.0", true),
            ("spin:redis/redis@3.0.0", false),
        ] {
            assert_eq!(is_offered(interface, true), expected, "{interface}");
        }
    }
}
