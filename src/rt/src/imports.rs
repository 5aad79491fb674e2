//! The map of imports in `docs/architecture.md` is what the code does. Fails for an arrow that the
//! map does not have, for one that the code has no more, and for a circle, of parts or of files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// A file of the source: its place in the tree of modules, and its text without comments and tests.
pub(super) struct Source {
    pub(super) module: Vec<String>,
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
        let program = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let lines = program.lines().filter(|line| !line.trim_start().starts_with("//"));
        Source { module, text: lines.collect::<Vec<_>>().join("\n") }
    };
    // Tests of the whole may see all of it.
    let tests = ["annotations.rs", "fuzz.rs", "imports.rs"];
    let is_test = |path: &PathBuf| tests.iter().any(|test| *path == root.join(test));
    files.into_iter().filter(|path| !is_test(path)).map(read).collect()
}

/// All paths of a text that begin in its own crate, from the root of it.
fn paths(source: &Source) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for (start, word) in
        ["crate::", "super::"].iter().flat_map(|word| source.text.match_indices(word))
    {
        let before = &source.text[..start];
        if before.ends_with(|c| is_word(c) || c == ':') {
            continue;
        }
        let mut prefix = if word == "crate::" { Vec::new() } else { source.module.clone() };
        let mut rest = &source.text[start..];
        while let Some(further) = rest.strip_prefix("super::") {
            prefix.pop();
            rest = further;
        }
        expand(rest.strip_prefix("crate::").unwrap_or(rest), &prefix, &mut found);
    }
    found
}

/// One path of a `use`, or all of those in its braces. Returns what follows it.
fn expand<'a>(text: &'a str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut rest = text.trim_start();
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
            // A name that is given here, or what is no name.
            let end = left.find([',', '{', '}']).unwrap_or(left.len());
            list = if left.len() == list.len() && end == 0 { &left[1..] } else { &left[end..] };
        }
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    let path = [prefix, &[name.to_owned()]].concat();
    rest = after;
    match rest.strip_prefix("::") {
        Some(further) => expand(further, &path, found),
        None => {
            found.push(path);
            rest
        }
    }
}

/// What each file takes from which others. A part of the source is a file and the files below it.
fn files() -> Graph {
    let sources = sources();
    let modules: BTreeSet<&[String]> = sources.iter().map(|source| &source.module[..]).collect();
    let mut graph = Graph::new();
    for source in &sources {
        for path in paths(source) {
            let lengths = (1..=path.len()).rev();
            let target = lengths.map(|length| &path[..length]).find(|part| modules.contains(part));
            let Some(target) = target else { continue };
            if !target.starts_with(&source.module) && !source.module.starts_with(target) {
                graph.entry(source.module.join("/")).or_default().insert(target.join("/"));
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

/// One circle, if there is any: what is left when whatever imports nothing that is left is taken
/// away.
fn circle(graph: &Graph) -> Graph {
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
fn the_map_of_imports_is_what_the_code_does() {
    let (mut code, mut map) = (parts(&files()), map());
    code.retain(|part, targets| part != "main" && !targets.is_empty());
    map.retain(|_, targets| !targets.is_empty());
    assert_eq!(code, map, "docs/architecture.md, \"Imports\"");
}

#[test]
fn imports_have_no_circle() {
    let files = files();
    assert!(files.len() > 50, "the source was not found");
    assert_eq!(circle(&parts(&files)), Graph::new(), "parts");
    assert_eq!(circle(&files), Graph::new(), "files");
}

#[test]
fn what_the_kernel_has_a_name_for_knows_no_container() {
    let linux = parts(&files()).remove("linux").expect("it imports something");
    for part in ["container", "state", "engine", "executor", "command", "compiler"] {
        assert!(!linux.contains(part), "{part}");
    }
}
