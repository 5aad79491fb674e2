//! The content of the memory in a checkpoint, page by page: `pagemap-PID.img` and
//! `pagemap-shmem-NUMBER.img`, which say where each page is, and `pages-N.img`.
//!
//! CRIU adds and multiplies these numbers without looking for an overflow. A range of shared memory
//! whose end was 0 for CRIU had CRIU write into its own memory. (On some processors, CRIU has 32
//! bits for the length of a range.) CRIU also reads a range that is neither here nor in a
//! checkpoint before, and goes on behind it in the file. So `rt` looked at other pages than CRIU.
//! Past the end of a file, CRIU reads again and again. So `restore` refuses every list that CRIU
//! does not write: also of memory in which `rt` looks for nothing.
//!
//! A container decides how long such a list is. So `rt` reads it once for all pages that it wants.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::container::checkpoint::criu;
use crate::container::checkpoint::images::{self, Magic, each};
use crate::container::checkpoint::memory_images::{PAGE, Sizes};

/// The first bytes of an image (`magic.h`).
const MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56];

/// Checks all lists of pages, also those of the checkpoints before. `is_lazy` says whether another
/// process has pages for CRIU (`--lazy-pages`). `sizes` are those of the memory that CRIU restores.
/// `shown` is the directory of the checkpoint, for errors.
pub(in crate::container) fn check(
    images: BorrowedFd<'_>,
    shown: &Path,
    is_lazy: bool,
    sizes: &Sizes,
) -> Result<()> {
    let mut is_newest = true;
    criu::each_checkpoint(images, shown, &mut |images, shown| {
        for name in images::names_with(images.as_fd(), LISTS)? {
            check_list(images.as_fd(), &name, is_lazy && is_newest, is_newest, sizes)
                .with_context(|| {
                    format!("read `{}` of the checkpoint", shown.join(name).display())
                })?;
        }
        is_newest = false;
        Ok(())
    })
}

const LISTS: &str = "pagemap-";

fn check_list(
    images: BorrowedFd<'_>,
    name: &str,
    is_lazy: bool,
    is_newest: bool,
    sizes: &Sizes,
) -> Result<()> {
    let found = find(&criu::read_in(images, name)?, &BTreeSet::new(), is_lazy)?;
    let number = name.get(LISTS.len()..).and_then(|name| name.strip_suffix(".img"));
    // CRIU does not read a list of other memory. The directory can have lists of a checkpoint of
    // the same container that was written there before, and their pages are no longer there.
    let Some(size) = number.and_then(|number| sizes.of(number)) else { return Ok(()) };
    // In a checkpoint before, CRIU looks only for pages of the later ranges. The memory may have
    // been longer then.
    let is_inside = !is_newest || found.end / PAGE <= size.div_ceil(PAGE);
    ensure!(is_inside, "a page is outside of its memory");
    if found.has_parent {
        // If the list is missing there, CRIU reads the pages here.
        criu::length(criu::open_parent(images)?.as_fd(), name).context("the checkpoint before")?;
    }
    // CRIU does not read a file of no pages.
    let length = if found.pages == 0 { 0 } else { criu::length(images, &found.file)? };
    ensure!(length / PAGE >= found.pages, "`{}` is too short", found.file);
    Ok(())
}

/// Calls `look` for each of these pages of a process, with the page's address and content. They are
/// in this checkpoint, or in one before. Fails if one is missing.
pub(in crate::container) fn each_of(
    images: BorrowedFd<'_>,
    pid: u32,
    mut wanted: BTreeSet<u64>,
    look: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let name = format!("pagemap-{pid}.img");
    let mut parent: Option<OwnedFd> = None;
    for _ in 0..criu::MOST_PARENTS {
        if wanted.is_empty() {
            return Ok(());
        }
        let here = parent.as_ref().map_or(images, AsFd::as_fd);
        let found = || find(&criu::read_in(here, &name)?, &wanted, true);
        let found = found().with_context(|| format!("read `{name}`"))?;
        for (address, page) in found.here {
            let file = &found.file;
            let content =
                criu::read_page(here, file, page).with_context(|| format!("read `{file}`"))?;
            look(address, &content)?;
        }
        wanted = found.in_parent;
        if !wanted.is_empty() {
            parent = Some(criu::open_parent(here)?);
        }
    }
    bail!("its pages are in too many checkpoints")
}

/// Where pages are.
#[derive(Debug, Default, Eq, PartialEq)]
struct Found {
    /// The file of the pages that are here.
    file: String,
    /// The number of all pages that are here.
    pages: u64,
    /// The addresses of the wanted pages that are here, and their numbers in the file.
    here: Vec<(u64, u64)>,
    /// The addresses of the wanted pages that are in the checkpoint before.
    in_parent: BTreeSet<u64>,
    /// Whether any page is in the checkpoint before.
    has_parent: bool,
    /// The end of the last page.
    end: u64,
}

/// `pagemap_head`, and a `pagemap_entry` for each range of pages.
fn find(map: &[u8], wanted: &BTreeSet<u64>, is_lazy: bool) -> Result<Found> {
    /// `PE_PARENT`, `PE_LAZY` and `PE_PRESENT`.
    const PARENT: u32 = 1;
    const LAZY: u32 = 2;
    const PRESENT: u32 = 4;
    /// In CRIU, the number of a range's pages is an `int` too.
    const MOST: u64 = (1 << 31) - 1;
    /// No kernel gives a process higher addresses.
    const HIGHEST: u64 = 1 << 56;
    let (mut found, mut is_new) = (Found::default(), None);
    let mut wanted = wanted.iter().copied().peekable();
    images::each_message(map, &MAGIC, &mut |message| {
        if found.file.is_empty() {
            let mut number = 0;
            each(message, &mut |field, value| {
                if field == 1 {
                    number = value.u32()?;
                }
                Ok(())
            })?;
            found.file = format!("pages-{number}.img");
            return Ok(());
        }
        let (mut start, mut old, mut new, mut flags, mut in_parent) = (0, 0, None, None, false);
        each(message, &mut |field, value| {
            match field {
                1 => start = value.u64()?,
                2 => old = value.u32()?.into(),
                3 => in_parent = value.flag()?,
                4 => flags = Some(value.u32()?),
                5 => new = Some(value.u64()?),
                _ => {}
            }
            Ok(())
        })?;
        // CRIU before 4.2 does not know the new number. CRIU since then writes 0 as the old one.
        // With both, `rt` would not know which of them CRIU goes by.
        let is_one = *is_new.get_or_insert(new.is_some()) == new.is_some();
        ensure!(is_one && (old == 0 || new.is_none()), "its ranges are of two versions");
        // Images of an earlier CRIU have no flags.
        let count = new.unwrap_or(old);
        let flags = match (in_parent, flags) {
            (true, flags) => flags.unwrap_or(0) | PARENT,
            (false, flags) => flags.unwrap_or(PRESENT),
        };
        ensure!((1..=MOST).contains(&count), "the range at {start:#x} has {count} pages");
        let end = start.saturating_add(count * PAGE);
        let is_next = start % PAGE == 0 && start >= found.end && end <= HIGHEST;
        ensure!(is_next, "its ranges are not in their order");
        found.end = end;
        // CRIU writes these four combinations.
        let (is_present, is_before) = (flags & !LAZY == PRESENT, flags == PARENT);
        ensure!(
            is_present || is_before || is_lazy && flags == LAZY,
            "the range at {start:#x} has the flags {flags:#x}"
        );
        while let Some(address) = wanted.next_if(|address| *address < end) {
            if is_before && address >= start {
                found.in_parent.insert(address);
            } else {
                ensure!(is_present && address >= start, "the page at {address:#x} is missing");
                found.here.push((address, found.pages + (address - start) / PAGE));
            }
        }
        found.has_parent |= is_before;
        if is_present {
            // Below `HIGHEST`, they cannot be too many.
            found.pages += count;
        }
        Ok(())
    })?;
    match wanted.next() {
        Some(address) => bail!("the page at {address:#x} is missing"),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::checkpoint::images::made::{image, number};

    #[test]
    fn pages_are_found_as_criu_finds_them() {
        let range = |fields: &[(u32, u64)]| -> Vec<u8> {
            fields.iter().flat_map(|(field, value)| number(*field, *value)).collect()
        };
        let map = |ranges: &[Vec<u8>]| image(MAGIC, &[&[number(1, 7)], ranges].concat());
        let page = |number: u64| number * PAGE;
        let find = |map: &[u8], pages: &[u64]| {
            find(map, &pages.iter().map(|number| page(*number)).collect(), false)
        };
        let good = map(&[
            range(&[(1, page(1)), (2, 2), (4, 4)]),
            range(&[(1, page(4)), (2, 2), (4, 1)]),
            range(&[(1, page(8)), (2, 3), (4, 6)]),
            range(&[(1, page(20)), (2, 1)]),
            range(&[(1, page(30)), (2, 1), (3, 1)]),
        ]);
        let all = find(&good, &[1, 2, 5, 10, 20, 30]).expect("found");
        let expected = Found {
            file: "pages-7.img".into(),
            pages: 6,
            here: vec![(page(1), 0), (page(2), 1), (page(10), 4), (page(20), 5)],
            in_parent: [page(5), page(30)].into(),
            has_parent: true,
            end: page(31),
        };
        assert_eq!(all, expected);
        for missing in [0, 3, 11, 21, 31] {
            let error = find(&good, &[1, missing]).expect_err("it is missing").to_string();
            assert_eq!(error, format!("the page at {:#x} is missing", page(missing)));
        }
        let of_today = map(&[
            range(&[(1, page(1)), (2, 0), (4, 4), (5, 2)]),
            range(&[(1, page(4)), (2, 0), (4, 4), (5, 1)]),
        ]);
        assert_eq!(find(&of_today, &[4]).expect("found").here, [(page(4), 2)]);
    }

    #[test]
    fn lists_are_as_criu_writes_them() {
        let range = |fields: &[(u32, u64)]| -> Vec<u8> {
            fields.iter().flat_map(|(field, value)| number(*field, *value)).collect()
        };
        let look = |ranges: &[Vec<u8>], is_lazy| {
            let map = image(MAGIC, &[&[number(1, 7)], ranges].concat());
            find(&map, &BTreeSet::new(), is_lazy)
        };
        let next = |start: u64| range(&[(1, start * PAGE), (2, 1)]);
        let lazy = [range(&[(1, PAGE), (2, 1), (4, 2)])];
        assert_eq!(look(&lazy, true).expect("they are with another process").pages, 0);
        look(&lazy, false).expect_err("nobody has them");
        for (bad, why) in [
            (vec![next(4), next(1)], "not in their order"),
            (vec![range(&[(1, PAGE), (2, 4)]), next(2)], "not in their order"),
            (vec![range(&[(1, PAGE + 1), (2, 1)])], "not in their order"),
            (vec![range(&[(1, 1 << 56), (2, 1)])], "not in their order"),
            // The end is 0 for CRIU.
            (vec![range(&[(1, 0_u64.wrapping_sub(PAGE)), (2, 1)])], "not in their order"),
            (vec![range(&[(1, PAGE), (2, 0)])], "has 0 pages"),
            (vec![range(&[(1, PAGE), (2, 1 << 31)])], "has 2147483648 pages"),
            // The length is 0 for CRIU.
            (vec![range(&[(1, PAGE), (2, 0), (5, 1 << 52)])], "has 4503599627370496 pages"),
            (vec![range(&[(1, PAGE), (2, 1), (4, 0)])], "has the flags 0x0"),
            (vec![range(&[(1, PAGE), (2, 1), (4, 5)])], "has the flags 0x5"),
            (vec![range(&[(1, PAGE), (2, 1), (4, 3)])], "has the flags 0x3"),
            (vec![range(&[(1, PAGE), (2, 1), (4, 12)])], "has the flags 0xc"),
            (vec![range(&[(1, PAGE), (2, 1), (3, 1), (4, 4)])], "has the flags 0x5"),
            (vec![range(&[(1, PAGE), (2, 2), (5, 1)])], "are of two versions"),
            (vec![next(1), range(&[(1, 8 * PAGE), (2, 0), (5, 1)])], "are of two versions"),
            (vec![range(&[(1, PAGE), (2, 0), (5, 1)]), next(8)], "are of two versions"),
        ] {
            let error = look(&bad, false).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
