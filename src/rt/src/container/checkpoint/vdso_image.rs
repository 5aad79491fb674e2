//! The vDSO in the images of a process's memory (`vdso(7)`).
//!
//! CRIU replaces the functions of that vDSO by jumps into the one of this kernel, if the two
//! differ. It does so while the process has all rights of the host's root, and where the symbols of
//! the vDSO in the images say: CRIU does not check that a function is in the vDSO. A symbol with
//! another address had CRIU write its jumps over its own code. So `restore` looks up the symbols as
//! CRIU does (`util-vdso.c`), and refuses a vDSO with a symbol that is elsewhere.
//!
//! A container can have made its vDSO itself. So `rt` looks at each symbol once.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};

use crate::container::checkpoint::memory_images::{self, PAGE};
use crate::container::checkpoint::memory_pages;

/// In pages. Today's have one to four.
const LONGEST: u64 = 8;

/// The most symbols of a hash table, and the most buckets. Today's have fewer than 30.
const MOST: u64 = 256;

/// CRIU's jump is no longer than this, in bytes.
const JUMP: u64 = 32;

/// Fails if the vDSO of a process could have CRIU write to other memory. `image` is that of the
/// process's memory.
pub(in crate::container) fn check(images: BorrowedFd<'_>, pid: u32, image: &[u8]) -> Result<()> {
    let Some((start, end)) = memory_images::vdso(image)? else { return Ok(()) };
    let read = || -> Result<()> {
        let pages = (end - start) / PAGE;
        ensure!(pages <= LONGEST, "it has more than {LONGEST} pages");
        let mut content = vec![0; usize::try_from(end - start)?];
        let wanted = (0..pages).map(|page| start + page * PAGE).collect();
        memory_pages::each_of(images, pid, wanted, &mut |address, page| {
            let at = usize::try_from(address - start)?;
            content[at..at + page.len()].copy_from_slice(page);
            Ok(())
        })?;
        Vdso { bytes: &content }.check()
    };
    read().context("its vDSO")
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
                refuse_many(buckets, chain)?;
                // The end of the table. All numbers before are inside too.
                let words = sum(2, sum(buckets, chain)?)?;
                self.number(sum(hash, product(words - 1, 4)?)?, 4)?;
                let at = |word: u64| self.number(sum(hash, product(word, 4)?)?, 4);
                (0..chain).try_for_each(check)?;
                // The bucket that has led to each symbol. From there on, the way is known.
                let mut from = BTreeMap::new();
                for bucket in 0..buckets {
                    let mut symbol = at(2 + bucket)?;
                    while symbol != 0 && symbol < chain && !from.contains_key(&symbol) {
                        from.insert(symbol, bucket);
                        symbol = at(2 + buckets + symbol)?;
                    }
                    let is_loop = symbol != 0 && from.get(&symbol) == Some(&bucket);
                    ensure!(!is_loop, "its hash table has no end");
                }
                Ok(())
            }
            (None, Some(hash)) => {
                let hash = inside(hash)?;
                let at = |word: u64| self.number(sum(hash, product(word, 4)?)?, 4);
                let (buckets, first, filter) = (at(0)?, at(1)?, at(2)?);
                refuse_many(buckets, 0)?;
                let start = sum(4, product(filter, layout.word / 4)?)?;
                let mut seen = BTreeSet::new();
                for bucket in 0..buckets {
                    let mut symbol = at(sum(start, bucket)?)?;
                    if symbol == 0 {
                        continue;
                    }
                    ensure!(symbol >= first, "its hash table is damaged");
                    // From a known symbol on, the way is known too.
                    while seen.insert(symbol) {
                        refuse_many(buckets, wide(seen.len()))?;
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

fn refuse_many(buckets: u64, symbols: u64) -> Result<()> {
    ensure!(buckets > 0, "its hash table is empty");
    ensure!(buckets.max(symbols) <= MOST, "its hash table is longer than {MOST}");
    Ok(())
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

    /// A vDSO of the longest kind with this hash table, whose symbols are all missing.
    fn made(kind: u64, table: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(LONGEST * PAGE).expect("short")];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        let mut set = |at: usize, value: u64| {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        // Two program headers, and a dynamic section with a hash table and symbols.
        for (at, value) in [(32, 64), (56, 2), (64, 1), (120, 2), (128, 256), (152, 48)] {
            set(at, value);
        }
        for (at, value) in [(256, kind), (264, 512), (272, 6), (280, 4 * PAGE)] {
            set(at, value);
        }
        for (word, at) in table.iter().zip((512..).step_by(4)) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn each_symbol_is_looked_at_once() {
        let check = |kind, table: &[u32]| Vdso { bytes: &made(kind, table) }.check();
        let (sysv, gnu) = (4, 0x6fff_fef5);
        // All buckets lead to one chain, which is as long as it can be.
        let most = u32::try_from(MOST).expect("short");
        let chained = |symbols: u32| {
            let chain = (0..symbols).map(|symbol| (symbol + 1) % symbols);
            [most, symbols]
                .into_iter()
                .chain((0..most).map(|_| 1))
                .chain(chain)
                .collect::<Vec<u32>>()
        };
        let listed = |symbols: u32| {
            let chain = (1..symbols).map(|_| 0).chain([1]);
            let buckets = (0..most).map(|_| 1);
            [most, 1, 0, 0].into_iter().chain(buckets).chain(chain).collect::<Vec<u32>>()
        };
        check(sysv, &chained(most)).expect("it ends");
        check(gnu, &listed(most)).expect("it ends");
        for (kind, table, why) in [
            (sysv, &chained(most + 1), "is longer than"),
            (sysv, &vec![most + 1, 1], "is longer than"),
            (gnu, &listed(most + 1), "is longer than"),
            (gnu, &vec![most + 1, 1, 0, 0], "is longer than"),
            (sysv, &vec![0, 1, 0], "is empty"),
            (gnu, &vec![0, 1, 0, 0], "is empty"),
            // Two symbols that lead to each other, and one that leads to itself.
            (sysv, &vec![1, 3, 1, 0, 2, 1], "has no end"),
            (sysv, &vec![2, 3, 1, 2, 0, 2, 2], "has no end"),
        ] {
            let error = check(kind, table).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
