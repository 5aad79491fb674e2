//! Whether a component answers requests of HTTP. Native code of a handler lets others go on from time
//! to time, that of a command does not.
#![forbid(unsafe_code)]

use wasmparser::{Parser, Payload};

/// Whether a component exports `wasi:http/incoming-handler`, and is not a command: the same rule as
/// that of `rt` (`docs/engine.md`, "worlds"). The validator reports what is wrong in the bytes.
pub(crate) fn is_one(component: &[u8]) -> bool {
    let (mut is_handler, mut is_command, mut depth) = (false, false, 0_u32);
    for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports.into_iter().map_while(Result::ok) {
                    let name = export.name.name.split('@').next();
                    is_handler |= name == Some("wasi:http/incoming-handler");
                    is_command |= name == Some("wasi:cli/run");
                }
            }
            _ => {}
        }
    }
    is_handler && !is_command
}
