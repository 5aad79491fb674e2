//! The vDSO in the images of a process's memory (`vdso(7)`).
//!
//! CRIU replaces the functions of that vDSO by jumps into the one of this kernel, if the two
//! differ. It does so while the process has all rights of the host's root, and where the symbols of
//! the vDSO in the images say: CRIU does not check that a function is in the vDSO. A symbol with
//! another address had CRIU write its jumps over its own code. So `restore` looks up the symbols as
//! CRIU does (`util-vdso.c`), and refuses a vDSO with a symbol that is elsewhere.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};

use crate::container::checkpoint::criu;
use crate::container::checkpoint::images::{self, Magic, Value, each, small};
use crate::container::checkpoint::memory_images::{self, PAGE};

/// The first bytes of an image (`magic.h`).
const PAGES_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56];

/// In pages. Today's have two to four.
const LONGEST: u64 = 64;

/// CRIU's jump is no longer than this, in bytes.
const JUMP: u64 = 32;

/// Fails if the vDSO of a process could have CRIU write to other memory. `image` is that of the
/// process's memory.
pub(in crate::container) fn check(images: BorrowedFd<'_>, pid: u32, image: &[u8]) -> Result<()> {
    let Some((start, end)) = memory_images::vdso(image)? else { return Ok(()) };
    let read = || -> Result<()> {
        let pages = (end - start) / PAGE;
        ensure!(pages <= LONGEST, "it has more than {LONGEST} pages");
        let mut content = Vec::new();
        for page in 0..pages {
            content.extend(page_at(images, pid, start + page * PAGE)?);
        }
        Vdso { bytes: &content }.check()
    };
    read().context("its vDSO")
}

/// The content of a page of a process's memory: of this checkpoint, or of one before.
fn page_at(images: BorrowedFd<'_>, pid: u32, address: u64) -> Result<Vec<u8>> {
    let mut parent: Option<OwnedFd> = None;
    for _ in 0..criu::MOST_PARENTS {
        let here = parent.as_ref().map_or(images, AsFd::as_fd);
        match find(here, pid, address)? {
            Found::Here { file, page } => {
                return criu::read_page(here, &file, page)
                    .with_context(|| format!("read `{file}`"));
            }
            Found::InParent => parent = Some(criu::open_parent(here)?),
        }
    }
    anyhow::bail!("its pages are in too many checkpoints")
}

#[derive(Debug, Eq, PartialEq)]
enum Found {
    /// In a file of pages, the one with this number.
    Here {
        file: String,
        page: u64,
    },
    InParent,
}

fn find(images: BorrowedFd<'_>, pid: u32, address: u64) -> Result<Found> {
    let name = format!("pagemap-{pid}.img");
    let map = || find_in(&criu::read_in(images, &name)?, address);
    map().with_context(|| format!("read `{name}`"))
}

/// `pagemap_head`, and a `pagemap_entry` for each range of pages.
fn find_in(map: &[u8], address: u64) -> Result<Found> {
    /// `PE_PARENT` and `PE_PRESENT`.
    const PARENT: u64 = 1;
    const PRESENT: u64 = 4;
    let (mut file, mut found, mut skipped, mut last) = (None, None, 0_u64, 0_u64);
    images::each_message(map, &PAGES_MAGIC, &mut |message| {
        if file.is_none() {
            let mut number = 0;
            each(message, &mut |field| {
                if let (1, Value::Number(id)) = field {
                    number = small(id)?;
                }
                Ok(())
            })?;
            file = Some(format!("pages-{number}.img"));
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
        if (start..end).contains(&address) {
            found = match (file.clone(), is_present) {
                (Some(file), true) => {
                    Some(Found::Here { file, page: skipped + (address - start) / PAGE })
                }
                (_, false) if flags & PARENT != 0 => Some(Found::InParent),
                _ => None,
            };
        }
        if is_present {
            skipped = skipped.checked_add(count).context("it has too many pages")?;
        }
        Ok(())
    })?;
    found.with_context(|| format!("the page at {address:#x} is missing"))
}

/// An ELF file (`elf(5)`), as the kernel has it in memory.
struct Vdso<'b> {
    bytes: &'b [u8],
}

/// Where the parts of structures are, in bytes, and how long numbers are.
struct Layout {
    /// Of addresses.
    word: usize,
    program_headers: usize,
    program_header_count: usize,
    program_header: usize,
    offset: usize,
    address: usize,
    file_size: usize,
    symbol: usize,
    value: usize,
}

const BITS_64: Layout = Layout {
    word: 8,
    program_headers: 32,
    program_header_count: 56,
    program_header: 56,
    offset: 8,
    address: 16,
    file_size: 32,
    symbol: 24,
    value: 8,
};

const BITS_32: Layout = Layout {
    word: 4,
    program_headers: 28,
    program_header_count: 44,
    program_header: 32,
    offset: 4,
    address: 8,
    file_size: 16,
    symbol: 16,
    value: 4,
};

impl Vdso<'_> {
    /// A number of so many bytes. The processors for which CRIU has code are little-endian here.
    fn number(&self, at: u64, length: usize) -> Result<u64> {
        let start = usize::try_from(at)?;
        let end = start.checked_add(length).context("a number is outside")?;
        let part = self.bytes.get(start..end).context("a number is outside")?;
        Ok(part.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn check(&self) -> Result<()> {
        const LOAD: u64 = 1;
        const DYNAMIC: u64 = 2;
        let layout = match self.bytes.get(..5) {
            Some(b"\x7fELF\x02") => BITS_64,
            Some(b"\x7fELF\x01") => BITS_32,
            _ => anyhow::bail!("it is not an ELF file"),
        };
        let word = |at| self.number(at, layout.word);
        let (mut load, mut dynamic) = (None, None);
        let headers = word(wide(layout.program_headers))?;
        for number in 0..self.number(wide(layout.program_header_count), 2)? {
            let at = sum(headers, product(number, layout.program_header)?)?;
            // CRIU reads it whole.
            self.number(sum(at, wide(layout.program_header - 1))?, 1)?;
            let part = match self.number(at, 4)? {
                LOAD => &mut load,
                DYNAMIC => &mut dynamic,
                _ => continue,
            };
            ensure!(part.replace(at).is_none(), "it has two program headers of a kind");
        }
        let load = load.context("it has no program header for its content")?;
        let base = word(sum(load, wide(layout.address))?)?;
        let dynamic = dynamic.context("it has no dynamic section")?;
        let start = word(sum(dynamic, wide(layout.offset))?)?;
        let length = word(sum(dynamic, wide(layout.file_size))?)?;
        self.check_symbols(&layout, base, &self.entries(&layout, start, length)?)
    }

    /// The entries of the dynamic section: of several of a kind, the last one counts.
    fn entries(&self, layout: &Layout, start: u64, length: u64) -> Result<Vec<(u64, u64)>> {
        let size = wide(2 * layout.word);
        let mut found = Vec::new();
        for number in 0..length / size {
            let at = sum(start, number * size)?;
            let kind = self.number(at, layout.word)?;
            let value = self.number(sum(at, wide(layout.word))?, layout.word)?;
            if kind == 0 {
                break;
            }
            found.push((kind, value));
        }
        found.reverse();
        Ok(found)
    }

    fn check_symbols(&self, layout: &Layout, base: u64, entries: &[(u64, u64)]) -> Result<()> {
        /// `DT_HASH`, `DT_SYMTAB` and `DT_GNU_HASH`.
        const HASH: u64 = 4;
        const SYMBOLS: u64 = 6;
        const GNU_HASH: u64 = 0x6fff_fef5;
        let size = u64::try_from(self.bytes.len())?;
        let entry = |kind| entries.iter().find(|(there, _)| *there == kind).map(|(_, it)| *it);
        // An address in the content.
        let inside = |address: u64| {
            let at = address.checked_sub(base).filter(|at| *at < size);
            at.context("a table is outside")
        };
        let symbols = inside(entry(SYMBOLS).context("it has no symbols")?)?;
        let check = |number: u64| -> Result<()> {
            let at = sum(symbols, product(number, layout.symbol)?)?;
            self.number(sum(at, wide(layout.symbol - 1))?, 1)?;
            let value = self.number(sum(at, wide(layout.value))?, layout.word)?;
            let is_inside = value
                .checked_sub(base)
                .is_some_and(|at| at.checked_add(JUMP).is_some_and(|end| end <= size));
            ensure!(value == 0 || is_inside, "its symbol {number} is at {value:#x}, outside of it");
            Ok(())
        };
        // CRIU uses the second kind only if there is none of the first.
        match (entry(HASH), entry(GNU_HASH)) {
            (Some(hash), _) => {
                let hash = inside(hash)?;
                let (buckets, chain) = (self.number(hash, 4)?, self.number(sum(hash, 4)?, 4)?);
                ensure!(buckets > 0, "its hash table is empty");
                // The end of the table. All numbers before are inside too.
                let words = sum(2, sum(buckets, chain)?)?;
                self.number(sum(hash, product(words - 1, 4)?)?, 4)?;
                let at = |word: u64| self.number(sum(hash, product(word, 4)?)?, 4);
                (0..chain).try_for_each(check)?;
                for bucket in 0..buckets {
                    let (mut symbol, mut steps) = (at(2 + bucket)?, 0);
                    while symbol != 0 && symbol < chain {
                        symbol = at(2 + buckets + symbol)?;
                        steps += 1;
                        ensure!(steps <= chain, "its hash table has no end");
                    }
                }
                Ok(())
            }
            (None, Some(hash)) => {
                let hash = inside(hash)?;
                let at = |word: u64| self.number(sum(hash, product(word, 4)?)?, 4);
                let (buckets, first, filter) = (at(0)?, at(1)?, at(2)?);
                ensure!(buckets > 0, "its hash table is empty");
                let start = sum(4, product(filter, layout.word / 4)?)?;
                for bucket in 0..buckets {
                    let mut symbol = at(sum(start, bucket)?)?;
                    if symbol == 0 {
                        continue;
                    }
                    ensure!(symbol >= first, "its hash table is damaged");
                    // Ends at the end of the content at the latest.
                    loop {
                        check(symbol)?;
                        let chain = sum(sum(start, buckets)?, symbol - first)?;
                        if at(chain)? & 1 == 1 {
                            break;
                        }
                        symbol += 1;
                    }
                }
                Ok(())
            }
            (None, None) => anyhow::bail!("it has no hash table"),
        }
    }
}

fn wide(number: usize) -> u64 {
    number as u64
}

fn sum(one: u64, other: u64) -> Result<u64> {
    one.checked_add(other).context("a number is too large")
}

fn product(one: u64, other: usize) -> Result<u64> {
    one.checked_mul(wide(other)).context("a number is too large")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};

    use super::*;
    use crate::container::checkpoint::images::made::{image, number};

    /// The vDSO of this process.
    fn own() -> Vec<u8> {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("read");
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("it has one");
        let (start, end) =
            line.split_whitespace().next().expect("a range").split_once('-').expect("two");
        let at = |text| u64::from_str_radix(text, 16).expect("a number");
        let mut memory = std::fs::File::open("/proc/self/mem").expect("opened");
        memory.seek(SeekFrom::Start(at(start))).expect("found");
        let mut bytes = vec![0; usize::try_from(at(end) - at(start)).expect("short")];
        memory.read_exact(&mut bytes).expect("read");
        bytes
    }

    #[test]
    fn the_symbols_are_inside() {
        let check = |bytes: &[u8]| Vdso { bytes }.check();
        let good = own();
        check(&good).expect("it is the kernel's");
        check(&good[..64]).expect_err("it is cut");
        check(&[0; 4096]).expect_err("it is empty");
        // Wherever the value of a symbol is: it leads outside.
        let function = {
            let vdso = Vdso { bytes: &good };
            let headers = vdso.number(32, 8).expect("read");
            let dynamic =
                (0..8).map(|it| headers + 56 * it).find(|at| vdso.number(*at, 4).ok() == Some(2));
            let dynamic = dynamic.expect("there");
            let (start, length) = (vdso.number(dynamic + 8, 8), vdso.number(dynamic + 32, 8));
            let entries = vdso.entries(&BITS_64, start.expect("read"), length.expect("read"));
            let entries = entries.expect("read");
            let symbols = entries.iter().find(|(kind, _)| *kind == 6).expect("there").1;
            (1..).map(|it| symbols + 24 * it + 8).find(|at| vdso.number(*at, 8).expect("read") != 0)
        };
        let at = usize::try_from(function.expect("there")).expect("short");
        for value in [1_u64 << 40, wide(good.len()) - 8, wide(good.len()) + 4096, u64::MAX - 8] {
            let mut bad = good.clone();
            bad[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let error = check(&bad).expect_err("it is outside").to_string();
            assert!(error.contains("outside of it"), "{error}");
        }
    }

    #[test]
    fn a_damaged_one_is_an_error_and_no_more() {
        let good = own();
        for at in (0..good.len().min(4096)).step_by(3) {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            // Whatever comes out, it ends.
            let _ = Vdso { bytes: &bad }.check();
        }
    }

    #[test]
    fn a_page_is_found_as_criu_finds_it() {
        let range = |fields: &[(u32, u64)]| -> Vec<u8> {
            fields.iter().flat_map(|(field, value)| number(*field, *value)).collect()
        };
        let map = |ranges: &[Vec<u8>]| image(PAGES_MAGIC, &[&[number(1, 7)], ranges].concat());
        let page = |number: u64| number * PAGE;
        let good = map(&[
            range(&[(1, page(1)), (2, 2), (4, 4)]),
            range(&[(1, page(4)), (2, 2), (4, 1)]),
            range(&[(1, page(8)), (2, 9), (5, 3), (4, 6)]),
            range(&[(1, page(20)), (2, 1)]),
            range(&[(1, page(30)), (2, 1), (3, 1)]),
        ]);
        let here = |page| Found::Here { file: "pages-7.img".into(), page };
        for (at, expected) in [
            (1, here(0)),
            (2, here(1)),
            (5, Found::InParent),
            (10, here(4)),
            (20, here(5)),
            (30, Found::InParent),
        ] {
            assert_eq!(find_in(&good, page(at)).expect("found"), expected, "{at}");
        }
        for missing in [0, 3, 11, 21] {
            find_in(&good, page(missing)).expect_err("it is missing");
        }
        for bad in [
            vec![range(&[(1, page(4)), (2, 1)]), range(&[(1, page(1)), (2, 1)])],
            vec![range(&[(1, page(1)), (2, 4)]), range(&[(1, page(2)), (2, 1)])],
            vec![range(&[(1, page(1)), (2, 1), (4, 5)])],
            vec![range(&[(1, page(1)), (2, 1), (4, 2)])],
            vec![range(&[(1, page(1) + 1), (2, 1)])],
            vec![range(&[(1, page(1)), (5, u64::MAX)])],
        ] {
            find_in(&map(&bad), page(1)).expect_err("it is refused");
        }
    }
}
