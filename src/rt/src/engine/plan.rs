//! The plan of an app: what a compiler makes of a manifest. `rt` reads only the paths of the app's
//! modules. `docs/engine.md`, "Apps", has the format.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The first bytes of a plan.
pub(crate) const PLAN: [u8; 4] = *b"plan";

const FIRST_LINE: &[u8] = b"plan 1 ";

/// The most modules of an app, and the longest first line of a plan in bytes.
const MOST: usize = 64;
const LONGEST: u64 = 512 << 10;

/// The paths of an app's modules, relative to the manifest's directory.
///
/// Wants a file that a descriptor with `O_PATH` leads to, in a process whose `/proc` is procfs.
pub(crate) fn modules(plan: &OwnedFd) -> Result<Vec<PathBuf>> {
    let path = format!("/proc/self/fd/{}", plan.as_raw_fd());
    let file = File::open(path).context("open the plan of an app")?;
    let mut plan = Vec::new();
    file.take(LONGEST).read_to_end(&mut plan).context("read the plan of an app")?;
    parse(&plan).context("the plan of an app is damaged")
}

/// The compiler has read a hostile file, so its result may be hostile too.
fn parse(plan: &[u8]) -> Result<Vec<PathBuf>> {
    let end = plan.iter().position(|byte| *byte == b'\n').context("its first line has no end")?;
    let paths = plan[..end].strip_prefix(FIRST_LINE).context("it has another version")?;
    let paths: Vec<String> = serde_json::from_slice(paths)?;
    let paths: Vec<PathBuf> = paths.into_iter().map(PathBuf::from).collect();
    ensure!((1..=MOST).contains(&paths.len()), "it names {} modules", paths.len());
    let is_good = |path: &PathBuf| {
        let mut parts = path.components().skip_while(|part| *part == Component::RootDir).peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    ensure!(paths.iter().all(is_good), "a path in it leads elsewhere");
    Ok(paths)
}

/// Where a module of an app is in the container.
pub(crate) fn place(manifest: &Path, module: &Path) -> PathBuf {
    manifest.parent().unwrap_or(Path::new("")).join(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_modules() {
        let paths = parse(b"plan 1 [\"a.wasm\",\"/b/c.wasm\"]\n").expect("good");
        assert_eq!(paths, [Path::new("a.wasm"), Path::new("/b/c.wasm")]);
        assert_eq!(place(Path::new("/app/spin.toml"), &paths[0]), Path::new("/app/a.wasm"));
        assert_eq!(place(Path::new("/app/spin.toml"), &paths[1]), Path::new("/b/c.wasm"));
        assert_eq!(place(Path::new("spin.toml"), &paths[0]), Path::new("a.wasm"));
    }

    #[test]
    fn a_damaged_plan_is_refused() {
        let many = format!("plan 1 [{}\"a\"]\n", "\"a\",".repeat(MOST));
        for wrong in [
            "",
            "plan 1 [\"a\"]",
            "plan 2 [\"a\"]\n",
            "plan 1 []\n",
            "plan 1 [\"../a\"]\n",
            "plan 1 [\"a/../b\"]\n",
            "plan 1 [\"/\"]\n",
            "plan 1 [\"\"]\n",
            "plan 1 [1]\n",
            "plan 1 [\"a\"\n",
            &many,
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
