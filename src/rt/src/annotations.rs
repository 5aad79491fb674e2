//! The table of annotations in `docs/annotations.md` is what the code does. Fails for a name that
//! only one of the two has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::imports::sources;

/// How the names of annotations begin.
const PREFIXES: [&str; 5] =
    ["run.oci.", "module.wasm.", "io.kubernetes.", "org.systemd.", "org.criu."];

/// The names in the first column of the tables.
fn documented() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/annotations.md");
    let page = fs::read_to_string(page).expect("the page");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.map(str::to_owned).collect()
}

/// The names that stand in the code as literals. Those of modules are put together from a prefix.
fn obeyed() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in sources() {
        // `features` tells prefixes, and `state` tells of the engine by annotations of its own.
        let place = source.module.join("/");
        if place == "command/features" || place == "state" {
            continue;
        }
        let literals = source.text.split('"').skip(1).step_by(2);
        names.extend(
            literals
                .filter(|text| PREFIXES.iter().any(|prefix| text.starts_with(prefix)))
                .filter(|text| !text.contains([' ', '`']))
                .map(str::to_owned),
        );
    }
    assert!(names.remove("run.oci.wasm."));
    names.extend(crate::workload::names_of_annotations());
    assert!(names.remove("org.systemd.property."));
    names.insert("org.systemd.property.NAME".to_owned());
    names
}

#[test]
fn the_page_has_those_that_the_code_obeys() {
    assert_eq!(documented(), obeyed());
}
