//! Whether a component answers requests of HTTP. Native code of a handler lets others go on from
//! time to time, that of a command does not.
#![forbid(unsafe_code)]

use wasmparser::{Parser, Payload};

/// Whether a component exports `wasi:http/incoming-handler` or its predecessor of Spin, and is not
/// a command: the same rule as that of `rt` (`docs/engine.md`, "worlds").
pub(crate) fn is_one(component: &[u8]) -> bool {
    let (mut is_handler, mut is_command) = (false, false);
    for name in exports(component) {
        let name = name.split('@').next();
        is_handler |=
            matches!(name, Some("wasi:http/incoming-handler" | "fermyon:spin/inbound-http"));
        is_command |= name == Some("wasi:cli/run");
    }
    is_handler && !is_command
}

/// The handler of WASI 0.3, if a component exports it. This engine does not call it.
pub(crate) fn newer(component: &[u8]) -> Option<String> {
    exports(component).into_iter().find(|name| name.starts_with("wasi:http/handler@"))
}

/// The names of what a component exports. The validator reports what is wrong in the bytes.
fn exports(component: &[u8]) -> Vec<String> {
    let (mut names, mut depth) = (Vec::new(), 0_u32);
    for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(exports) if depth == 0 => {
                let exports = exports.into_iter().map_while(Result::ok);
                names.extend(exports.map(|export| export.name.name.to_owned()));
            }
            _ => {}
        }
    }
    names
}
