//! Components of WASI 0.3, and of its last preview.
#![forbid(unsafe_code)]

use std::convert::Infallible;

use wasm_encoder::reencode::{Error, ReencodeComponent};
use wasm_encoder::{ComponentExportSection, ComponentImportSection, RawSection};
use wasmparser::{
    ComponentExport, ComponentExternName, ComponentImportSectionReader, Parser, Payload, Validator,
};

use crate::config::{Form, proposals};

/// Version 6 of Spin's SDK makes components of this preview. WASI 0.3.0 declares the same functions
/// and types, by other names.
const PREVIEW: &str = "@0.3.0-rc-2026-03-15";
const RELEASE: &str = "@0.3.0";

/// The name in WASI 0.3.0 of an interface of the preview.
fn released(name: &str) -> Option<String> {
    let name = name.strip_suffix(PREVIEW).filter(|name| name.starts_with("wasi:"))?;
    Some(format!("{name}{RELEASE}"))
}

/// The component, with WASI 0.3.0 in place of the preview. The validator reports what is wrong in
/// the bytes.
pub(crate) fn of_the_release(component: Vec<u8>) -> Result<Vec<u8>, String> {
    if !names(&component).iter().any(|name| released(name).is_some()) {
        return Ok(component);
    }
    let mut changed = wasm_encoder::Component::new();
    Rename
        .parse_component(&mut changed, Parser::new(0), &component)
        .map_err(|error| error.to_string())?;
    Ok(changed.finish())
}

/// Changes the names of what a component imports and exports, and copies the rest.
struct Rename;

impl wasm_encoder::reencode::Reencode for Rename {
    type Error = Infallible;
}

/// A name, changed into `changed` if it is one of the preview.
fn renamed<'a>(name: ComponentExternName<'a>, changed: &'a mut String) -> ComponentExternName<'a> {
    match released(name.name) {
        Some(released) => {
            *changed = released;
            ComponentExternName { name: changed, ..name }
        }
        None => name,
    }
}

impl ReencodeComponent for Rename {
    fn parse_component_import_section(
        &mut self,
        imports: &mut ComponentImportSection,
        section: ComponentImportSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        for import in section {
            let import = import?;
            let mut changed = String::new();
            let name = renamed(import.name, &mut changed);
            imports.import(name, self.component_type_ref(import.ty)?);
        }
        Ok(())
    }

    fn parse_component_export(
        &mut self,
        exports: &mut ComponentExportSection,
        export: ComponentExport<'_>,
    ) -> Result<(), Error<Infallible>> {
        let mut changed = String::new();
        let name = renamed(export.name, &mut changed);
        wasm_encoder::reencode::component_utils::parse_component_export(
            self,
            exports,
            ComponentExport { name, ..export },
        )
    }

    fn parse_component_submodule(
        &mut self,
        component: &mut wasm_encoder::Component,
        _parser: Parser,
        module: &[u8],
    ) -> Result<(), Error<Infallible>> {
        let id = wasm_encoder::ComponentSectionId::CoreModule as u8;
        component.section(&RawSection { id, data: module });
        Ok(())
    }

    fn parse_component_subcomponent(
        &mut self,
        component: &mut wasm_encoder::Component,
        _parser: Parser,
        subcomponent: &[u8],
        _whole: &[u8],
    ) -> Result<(), Error<Infallible>> {
        let id = wasm_encoder::ComponentSectionId::Component as u8;
        component.section(&RawSection { id, data: subcomponent });
        Ok(())
    }
}

/// The names of what a component imports and exports.
fn names(component: &[u8]) -> Vec<&str> {
    let (mut names, mut depth) = (Vec::new(), 0_u32);
    for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 0 => {
                let imports = imports.into_iter().map_while(Result::ok);
                names.extend(imports.map(|import| import.name.name));
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                let exports = exports.into_iter().map_while(Result::ok);
                names.extend(exports.map(|export| export.name.name));
            }
            _ => {}
        }
    }
    names
}

/// Whether a component requires the form of native code for asynchronous ones: it uses WASI 0.3, or
/// it is not valid without the proposal.
pub(crate) fn is_asynchronous(component: &[u8]) -> bool {
    let is_newer = |name: &str| name.starts_with("wasi:") && name.contains("@0.3.");
    let is_valid = |asynchronous| {
        let form = Form { counting: false, yielding: false, asynchronous };
        let mut validator = Validator::new_with_features(proposals(form));
        Parser::new(0).parse_all(component).all(|payload| {
            // Functions are not looked at here: no proposal changes them.
            payload.is_ok_and(|payload| validator.payload(&payload).is_ok())
        })
    };
    names(component).iter().any(|name| is_newer(name)) || (!is_valid(false) && is_valid(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(text).expect(text)
    }

    #[test]
    fn the_preview_has_the_names_of_the_release() {
        for (name, expected) in [
            ("wasi:cli/run@0.3.0-rc-2026-03-15", Some("wasi:cli/run@0.3.0")),
            ("wasi:cli/run@0.3.0", None),
            ("wasi:cli/run@0.3.0-rc-2025-09-16", None),
            ("acme:cli/run@0.3.0-rc-2026-03-15", None),
        ] {
            assert_eq!(released(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn only_the_outermost_names_change() {
        let older = |version: &str, inner: &str| {
            component(&format!(
                r#"(component
                    (import "wasi:random/random@{version}" (instance $i (export "f" (func))))
                    (import "acme:a/b@0.3.0-rc-2026-03-15" (instance))
                    (component $c
                        (import "wasi:random/random@{inner}" (instance))
                        (core module (func (export "f"))))
                    (core module $m (func (export "f") (result i32) i32.const 0))
                    (instance (instantiate $c (with "wasi:random/random@{inner}" (instance $i))))
                    (export "wasi:http/handler@{version}" (instance $i)))"#
            ))
        };
        let (preview, release) = ("0.3.0-rc-2026-03-15", "0.3.0");
        let changed = of_the_release(older(preview, preview)).expect("changed");
        assert_eq!(changed, older(release, preview));
        let same = older(release, release);
        assert_eq!(of_the_release(same.clone()).expect("the same"), same);
        // What is broken is left to the validator.
        assert_eq!(of_the_release(b"\0asm\x0d\0\x01\0\x0a".to_vec()).expect("left").len(), 9);
    }

    #[test]
    fn a_component_is_asynchronous_by_its_names_or_its_functions() {
        for (text, expected) in [
            (r#"(component)"#, false),
            (r#"(component (import "wasi:io/poll@0.2.0" (instance)))"#, false),
            (r#"(component (import "acme:a/b@0.3.0" (instance)))"#, false),
            (r#"(component (import "wasi:random/random@0.3.0" (instance)))"#, true),
            (r#"(component (import "f" (func async)))"#, true),
            (r#"(component (type (stream u8)))"#, true),
            (r#"(component (component (type (future))))"#, true),
        ] {
            assert_eq!(is_asynchronous(&component(text)), expected, "{text}");
        }
        assert!(!is_asynchronous(b"\0asm\x0d\0\x01\0\x0a"));
    }
}
