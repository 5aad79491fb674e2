//! Whether a component answers requests of HTTP. Native code of a handler lets others go on from
//! time to time, that of a command does not.
#![forbid(unsafe_code)]

use wasmparser::{Parser, Payload};

const HANDLERS: [&str; 3] =
    ["wasi:http/incoming-handler", "wasi:http/handler", "fermyon:spin/inbound-http"];

/// Whether a component exports a handler of WASI 0.2 or 0.3, or their predecessor of Spin, and is
/// not a command: the same rule as that of `rt` (`docs/engine.md`, "worlds").
pub(crate) fn is_one(component: &[u8]) -> bool {
    let (mut is_handler, mut is_command) = (false, false);
    for name in exports(component) {
        let name = name.split('@').next();
        is_handler |= name.is_some_and(|name| HANDLERS.contains(&name));
        is_command |= name == Some("wasi:cli/run");
    }
    is_handler && !is_command
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
