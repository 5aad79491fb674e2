//! Compares the code's imports with the table in `docs/architecture.md`. The test fails for an
//! import that the table does not have, for an entry that no code needs, and for a cycle of imports
//! between parts or between files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// A path of Rust modules, from the root of the crate, which is empty.
type Module = Vec<String>;

/// A file of the source: its module, and its text without comments and tests.
pub(super) struct Source {
    pub(super) module: Module,
    pub(super) text: String,
}

pub(super) fn sources() -> Vec<Source> {
    fn gather(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory of the source") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                gather(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    gather(&root, &mut files);
    let read = |path: PathBuf| {
        let place = path.strip_prefix(&root).expect("below it").with_extension("");
        let module = place.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let text = fs::read_to_string(&path).expect("a file of the source");
        // A module in braces is the last item of its file.
        let is_tests = |start: &usize| {
            let line = text[*start..].lines().nth(1).unwrap_or_default();
            line.contains("mod ") && line.ends_with('{')
        };
        let mut tests = text.match_indices("#[cfg(test)]\n").map(|(start, _)| start);
        let end = tests.find(is_tests).unwrap_or(text.len());
        let program = &text[..end];
        let lines = program.lines().filter(|line| !line.trim_start().starts_with("//"));
        Source { module, text: lines.collect::<Vec<_>>().join("\n") }
    };
    // These tests may use every part.
    let tests = ["annotations.rs", "fuzz.rs", "imports.rs"];
    let is_test = |path: &PathBuf| tests.iter().any(|test| *path == root.join(test));
    files.into_iter().filter(|path| !is_test(path)).map(read).collect()
}

/// The module of `main.rs` is the root.
const MAIN: &str = "main";

fn module_of(source: &Source) -> &[String] {
    if source.module == [MAIN] { &[] } else { &source.module }
}

/// A path that a text names, and the name that a `use` gives to its end.
struct Named {
    path: Vec<String>,
    name: String,
}

/// Splits the beginning of a path in this module into the module where it begins, and the rest.
fn begin<'a>(text: &'a str, module: &[String]) -> (Module, &'a str) {
    if let Some(rest) = text.strip_prefix("crate::") {
        return (Vec::new(), rest);
    }
    let (mut prefix, mut rest) = (module.to_vec(), text);
    rest = rest.strip_prefix("self::").unwrap_or(rest);
    while let Some(further) = rest.strip_prefix("super::") {
        prefix.pop();
        rest = further;
    }
    (prefix, rest)
}

/// All paths of a file that begin with `crate` or `super`.
fn paths(source: &Source) -> Vec<Named> {
    let mut found = Vec::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for (start, _) in ["crate::", "super::"].iter().flat_map(|word| source.text.match_indices(word))
    {
        if source.text[..start].ends_with(|c| is_word(c) || c == ':') {
            continue;
        }
        let (prefix, rest) = begin(&source.text[start..], module_of(source));
        expand(rest, &prefix, &mut found);
    }
    found
}

/// The names that a file's `use` lines bring into its module, and the paths that they stand for. A
/// path to another crate looks like one to a module below, and leads nowhere.
fn names(source: &Source) -> BTreeMap<String, Vec<String>> {
    let mut found = Vec::new();
    for (start, _) in source.text.match_indices("use ") {
        let before = source.text[..start].rsplit('\n').next().unwrap_or_default().trim();
        if before.is_empty() || before == "pub" || before.starts_with("pub(") {
            let (prefix, rest) = begin(&source.text[start + "use ".len()..], module_of(source));
            expand(rest, &prefix, &mut found);
        }
    }
    found.into_iter().map(|Named { path, name }| (name, path)).collect()
}

/// Reads one path of a `use`, or all paths in its braces. Returns the rest of the text.
fn expand<'a>(text: &'a str, prefix: &[String], found: &mut Vec<Named>) -> &'a str {
    let rest = text.trim_start();
    if let Some(mut list) = rest.strip_prefix('{') {
        loop {
            list = list.trim_start().trim_start_matches(',').trim_start();
            if list.is_empty() {
                return list;
            }
            if let Some(after) = list.strip_prefix('}') {
                return after;
            }
            let left = expand(list, prefix, found);
            // Skips a new name, and a text that is not a path.
            let end = left.find([',', '{', '}']).unwrap_or(left.len());
            list = if left.len() == list.len() && end == 0 { &left[1..] } else { &left[end..] };
        }
    }
    let word = |text: &'a str| {
        text.split_at(text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len()))
    };
    let (last, after) = word(rest);
    if last == "self" {
        let name = prefix.last().cloned().unwrap_or_default();
        found.push(Named { path: prefix.to_vec(), name });
        return after;
    }
    let path = [prefix, &[last.to_owned()]].concat();
    if let Some(further) = after.strip_prefix("::") {
        return expand(further, &path, found);
    }
    let name = after.trim_start().strip_prefix("as ").map_or(last, |new| word(new).0);
    found.push(Named { path, name: name.to_owned() });
    after
}

/// The imports of each file. If a file uses a name that another module has by a `use` of its own,
/// the file imports both modules. A path that leads to no module is a name in `main.rs`.
fn files() -> Graph {
    imports(&sources())
}

fn imports(sources: &[Source]) -> Graph {
    let modules: BTreeSet<&[String]> = sources.iter().map(module_of).collect();
    let names: BTreeMap<&[String], BTreeMap<String, Vec<String>>> =
        sources.iter().map(|source| (module_of(source), names(source))).collect();
    // The longest beginning of the path that is a module. The root is one.
    let target = |path: &[String]| -> Module {
        let lengths = (0..=path.len()).rev();
        let mut parts = lengths.map(|length| &path[..length]);
        parts.find(|part| modules.contains(part)).unwrap_or_default().to_vec()
    };
    let show = |module: &[String]| {
        if module.is_empty() { MAIN.to_owned() } else { module.join("/") }
    };
    let mut graph = Graph::new();
    for source in sources {
        let own = module_of(source);
        for Named { path, .. } in paths(source) {
            let first = target(&path);
            let further = path.get(first.len()).and_then(|name| names[&first[..]].get(name));
            let second = further.map(|path| target(path)).filter(|module| !module.is_empty());
            for target in [Some(first), second].into_iter().flatten() {
                let is_line = !own.is_empty() && !target.is_empty();
                let is_family = is_line && (own.starts_with(&target) || target.starts_with(own));
                if target != own && !is_family {
                    graph.entry(show(own)).or_default().insert(show(&target));
                }
            }
        }
    }
    graph
}

fn parts(files: &Graph) -> Graph {
    let part = |file: &str| file.split('/').next().unwrap_or_default().to_owned();
    let mut graph = Graph::new();
    for (file, targets) in files {
        for target in targets.iter().map(|target| part(target)).filter(|it| *it != part(file)) {
            graph.entry(part(file)).or_default().insert(target);
        }
    }
    graph
}

/// The table below the heading "Imports": `part` and what it may import, each in backticks.
fn map() -> Graph {
    let text = include_str!("../../../docs/architecture.md");
    let section = text.split("\n## Imports\n").nth(1).expect("a section of that name");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        let part: Vec<String> = names(cells[1]);
        (part.concat(), names(cells[2]).into_iter().collect())
    })
    .collect()
}

/// Removes every node without an arrow, until none is left. Each rest contains a cycle.
fn cycle(graph: &Graph) -> Graph {
    let mut left = graph.clone();
    loop {
        let before = left.len();
        let names: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|_, targets| {
            targets.retain(|target| names.contains(target));
            !targets.is_empty()
        });
        if left.len() == before {
            return left;
        }
    }
}

#[test]
fn the_table_of_imports_is_that_of_the_code() {
    let (mut code, mut map) = (parts(&files()), map());
    code.retain(|part, targets| part != "main" && !targets.is_empty());
    map.retain(|_, targets| !targets.is_empty());
    assert_eq!(code, map, "docs/architecture.md, \"Imports\"");
}

#[test]
fn imports_have_no_cycle() {
    let files = files();
    assert!(files.len() > 50, "the source was not found");
    assert_eq!(cycle(&parts(&files)), Graph::new(), "parts");
    assert_eq!(cycle(&files), Graph::new(), "files");
}

#[test]
fn kinds_of_kernel_objects_know_no_container() {
    let linux = parts(&files()).remove("linux").expect("it imports something");
    for part in ["container", "state", "engine", "executor", "command", "compiler", "workload"] {
        assert!(!linux.contains(part), "{part}");
    }
}

#[test]
fn an_import_is_found_on_all_ways() {
    let source = |module: &str, text: &str| Source {
        module: module.split('/').map(str::to_owned).collect(),
        text: text.to_owned(),
    };
    let graph = imports(&[
        source("main", "mod one;\nmod two;\nmod three;\nfn help() {}"),
        source("one", "pub(crate) use inner::{self, Thing as Other};"),
        source("one/inner", "use super::super::three;\npub(crate) struct Thing;"),
        source("two", "use crate::one::Other;\nfn f() { crate::help(); }"),
        source("three", "use crate::{\n    one::{self, inner::Thing},\n    two,\n};"),
    ]);
    let of = |file: &str| graph[file].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(of("one/inner"), ["three"]);
    assert_eq!(of("two"), ["main", "one", "one/inner"]);
    assert_eq!(of("three"), ["one", "one/inner", "two"]);
    assert!(!cycle(&graph).is_empty());
}
