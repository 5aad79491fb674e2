//! The content of a process's memory in a checkpoint, page by page: `pagemap-PID.img`, which says
//! where each page is, and `pages-N.img`.
//!
//! A container decides how long such a list is. So `rt` reads it once for all pages that it wants.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};

use crate::container::checkpoint::criu;
use crate::container::checkpoint::images::{self, Magic, Value, each, small};
use crate::container::checkpoint::memory_images::PAGE;

/// The first bytes of an image (`magic.h`).
const MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56];

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
        let found = || find(&criu::read_in(here, &name)?, &wanted);
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
    /// The addresses of these pages, and their numbers in the file.
    here: Vec<(u64, u64)>,
    /// The addresses of the pages that are in the checkpoint before.
    in_parent: BTreeSet<u64>,
}

/// `pagemap_head`, and a `pagemap_entry` for each range of pages.
fn find(map: &[u8], wanted: &BTreeSet<u64>) -> Result<Found> {
    /// `PE_PARENT` and `PE_PRESENT`.
    const PARENT: u64 = 1;
    const PRESENT: u64 = 4;
    let (mut found, mut skipped, mut last) = (Found::default(), 0_u64, 0_u64);
    let mut missing = wanted.clone();
    images::each_message(map, &MAGIC, &mut |message| {
        if found.file.is_empty() {
            let mut number = 0;
            each(message, &mut |field| {
                if let (1, Value::Number(id)) = field {
                    number = small(id)?;
                }
                Ok(())
            })?;
            found.file = format!("pages-{number}.img");
            return Ok(());
        }
        let (mut start, mut old, mut new, mut flags, mut in_parent) = (0, 0, None, None, false);
        each(message, &mut |field| {
            match field {
                (1, Value::Number(number)) => start = number,
                (2, Value::Number(number)) => old = small(number)?,
                (3, Value::Number(number)) => in_parent = number != 0,
                (4, Value::Number(number)) => flags = Some(small(number)?),
                (5, Value::Number(number)) => new = Some(number),
                _ => {}
            }
            Ok(())
        })?;
        // Images of an earlier CRIU have no flags, and numbers of 32 bits.
        let count = new.unwrap_or(old);
        let flags = match (in_parent, flags) {
            (true, flags) => flags.unwrap_or(0) | PARENT,
            (false, flags) => flags.unwrap_or(PRESENT),
        };
        let length = count.checked_mul(PAGE).context("it has too many pages")?;
        let end = start.checked_add(length).context("it has too many pages")?;
        ensure!(start % PAGE == 0 && start >= last, "its ranges are not in their order");
        last = end;
        let is_present = flags & PRESENT != 0;
        ensure!(!is_present || flags & PARENT == 0, "a range is in two checkpoints");
        for address in wanted.range(start..end) {
            if is_present {
                found.here.push((*address, skipped + (address - start) / PAGE));
            } else if flags & PARENT != 0 {
                found.in_parent.insert(*address);
            } else {
                continue;
            }
            missing.remove(address);
        }
        if is_present {
            skipped = skipped.checked_add(count).context("it has too many pages")?;
        }
        Ok(())
    })?;
    if let Some(address) = missing.first() {
        bail!("the page at {address:#x} is missing");
    }
    Ok(found)
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
            find(map, &pages.iter().map(|number| page(*number)).collect())
        };
        let good = map(&[
            range(&[(1, page(1)), (2, 2), (4, 4)]),
            range(&[(1, page(4)), (2, 2), (4, 1)]),
            range(&[(1, page(8)), (2, 9), (5, 3), (4, 6)]),
            range(&[(1, page(20)), (2, 1)]),
            range(&[(1, page(30)), (2, 1), (3, 1)]),
        ]);
        let all = find(&good, &[1, 2, 5, 10, 20, 30]).expect("found");
        let expected = Found {
            file: "pages-7.img".into(),
            here: vec![(page(1), 0), (page(2), 1), (page(10), 4), (page(20), 5)],
            in_parent: [page(5), page(30)].into(),
        };
        assert_eq!(all, expected);
        for missing in [0, 3, 11, 21] {
            find(&good, &[1, missing]).expect_err("it is missing");
        }
        for bad in [
            vec![range(&[(1, page(4)), (2, 1)]), range(&[(1, page(1)), (2, 1)])],
            vec![range(&[(1, page(1)), (2, 4)]), range(&[(1, page(2)), (2, 1)])],
            vec![range(&[(1, page(1)), (2, 1), (4, 5)])],
            vec![range(&[(1, page(1)), (2, 1), (4, 2)])],
            vec![range(&[(1, page(1) + 1), (2, 1)])],
            vec![range(&[(1, page(1)), (5, u64::MAX)])],
        ] {
            find(&map(&bad), &[1]).expect_err("it is refused");
        }
    }
}
