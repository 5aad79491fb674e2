//! The images of memory: `mm-PID.img` and `memfd.img`.
//!
//! CRIU maps what they say while the process has all rights of the host's root. Its code for that
//! is in the memory of the process, in the first gap between the mappings of the images. CRIU
//! stops at a fake mapping when it looks for the gap, and a mapping of huge pages is longer than
//! the image says. Then the program of the images runs in the place of CRIU's code, and nothing was
//! compared yet. So `restore` refuses mappings that no kernel lists: in another order, one above
//! another, or of a kind that CRIU does not write.
//!
//! It also refuses mappings by which CRIU changes a file, and an rseq area (`rseq(2)`) that is not
//! in private memory.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail, ensure};

use crate::container::checkpoint::criu;
use crate::container::checkpoint::images::{self, Magic, each};

pub(in crate::container) const FILES: &str = "memfd.img";

/// The first bytes of the images (`magic.h`).
const MEMORY_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x20, 0x28, 0x49, 0x57];
const SEGMENTS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x44, 0x30, 0x28, 0x46];
const FILES_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x99, 0x34, 0x45, 0x48];

/// The size of `struct rseq` up to its last member that CRIU's kernels know. The area is aligned to
/// its size.
const AREA: u64 = 32;

pub(in crate::container) const PAGE: u64 = 4096;

/// What a mapping is, `VMA_*` of `image.h`. A usual one has the first bit.
const USUAL: u64 = 1;
/// Of the kernel: a vsyscall page, and the two parts of the vDSO.
const VSYSCALL: u64 = 1 << 2;
const VDSO: u64 = 1 << 3;
const VVAR: u64 = 1 << 12;
/// A file, private or shared. It can be a file in memory.
const FILE: u64 = 1 << 6;
const SHARED_FILE: u64 = 1 << 7;
const IN_MEMORY: u64 = 1 << 14;
/// Memory that processes share, a segment of System V's, and memory of one process.
const SHARED: u64 = 1 << 8;
const SYSTEM_V: u64 = 1 << 10;
const OWN: u64 = 1 << 9;
/// The stack, the heap, and a shadow stack.
const STACK: u64 = 1 << 1;
const HEAP: u64 = 1 << 5;
const SHADOW_STACK: u64 = 1 << 15;
/// A packet socket, and a ring for AIO.
const SOCKET: u64 = 1 << 11;
const RING: u64 = 1 << 13;
/// A range that was made inaccessible (`MADV_GUARD_INSTALL`). CRIU lists these after the mappings.
const GUARD: u64 = 1 << 16;

/// The kinds of mappings that CRIU writes (`handle_vma` in 4.2.1), without [`STACK`] and [`HEAP`],
/// which CRIU only logs. For a kind that nobody writes, CRIU can leave out a step. It attached a
/// segment of System V of the host, because it had not looked for that segment in the images.
const KINDS: [u64; 14] = [
    USUAL | FILE,
    USUAL | SHARED_FILE,
    USUAL | FILE | IN_MEMORY,
    USUAL | SHARED_FILE | IN_MEMORY,
    USUAL | SHARED,
    USUAL | SHARED | SYSTEM_V,
    USUAL | OWN,
    USUAL | OWN | VDSO,
    USUAL | OWN | VVAR,
    USUAL | OWN | SHADOW_STACK,
    USUAL | SOCKET,
    VSYSCALL | OWN,
    RING,
    GUARD,
];

/// Checks the image of a process's memory. `areas` are the addresses of its rseq areas.
pub(in crate::container) fn check(image: &[u8], areas: &[u64], sizes: &mut Sizes) -> Result<()> {
    let mut areas = areas.iter().map(|address| (*address, false)).collect();
    check_order(image, sizes)?;
    check_mappings(image, &mut areas)
}

/// Marks the pid of a process among the numbers of shared memory. If an image has such a number for
/// shared memory, both sizes count.
const OF_PROCESS: u64 = 1 << 63;

/// The sizes of shared memory in bytes, by the numbers of its lists of pages.
#[derive(Debug, Default)]
pub(in crate::container) struct Sizes {
    /// Of files in memory and of segments of System V's: of two with one number, the smaller size.
    files: BTreeMap<u64, u64>,
    /// Of other memory: to the end of the mapping that shows the last part of it.
    mapped: BTreeMap<u64, u64>,
}

impl Sizes {
    /// CRIU itself looks up the mapping of each page of a process. So no size limits its list.
    pub(in crate::container) fn add_process(&mut self, pid: u32) {
        self.mapped.insert(OF_PROCESS | u64::from(pid), u64::MAX);
    }

    /// The size of the smallest memory whose list has this name, between its first part and its
    /// ending: the pid of a process, or a number after `shmem-`. None if there is no such memory.
    pub(in crate::container) fn of(&self, name: &str) -> Option<u64> {
        let number = match name.strip_prefix("shmem-") {
            Some(number) => number.parse().ok()?,
            None => OF_PROCESS | u64::from(name.parse::<u32>().ok()?),
        };
        let sizes = [&self.files, &self.mapped].into_iter().filter_map(|sizes| sizes.get(&number));
        sizes.min().copied()
    }

    fn add_file(&mut self, number: u64, size: u64) {
        self.files.insert(number, self.files.get(&number).map_or(size, |there| size.min(*there)));
    }
}

/// Where the vDSO is: CRIU uses the last mapping of that kind. Fails unless there is only one, and
/// its content is in the images. [`check`] has looked at the kinds of mappings.
pub(in crate::container) fn vdso(image: &[u8]) -> Result<Option<(u64, u64)>> {
    let mut found = None;
    each_mapping(image, &mut |mapping| {
        if mapping.status & VDSO == 0 {
            return Ok(());
        }
        let is_plain = mapping.flags & (ANONYMOUS | HUGE) == ANONYMOUS;
        ensure!(is_plain, "the vDSO at {:#x} is of another kind, too", mapping.start);
        let is_only = found.replace((mapping.start, mapping.end)).is_none();
        ensure!(is_only, "it has two vDSOs");
        Ok(())
    })?;
    Ok(found)
}

/// Adds the files in memory. Fails if the checkpoint has one of huge pages. The kernel makes a
/// mapping of it as long as a huge page.
pub(in crate::container) fn add_files(images: BorrowedFd<'_>, sizes: &mut Sizes) -> Result<()> {
    let Some(image) = criu::read_if_there(images, FILES)? else { return Ok(()) };
    images::each_message(&image, &FILES_MAGIC, &mut |message| {
        let (mut number, mut size) = (0, 0);
        each(message, &mut |field, value| {
            match field {
                4 => size = value.u64()?,
                5 => number = value.u32()?,
                8 => ensure!(value.u32()? == 0, "it has a file of huge pages"),
                _ => {}
            }
            Ok(())
        })?;
        sizes.add_file(number.into(), size);
        Ok(())
    })
}

/// Adds the segments of System V's. In images of an earlier CRIU, their content follows, which
/// could look like other segments.
pub(in crate::container) fn add_segments(image: &[u8], sizes: &mut Sizes) -> Result<()> {
    images::each_message(image, &SEGMENTS_MAGIC, &mut |message| {
        let (mut number, mut size, mut is_elsewhere) = (0, 0, false);
        each(message, &mut |field, value| {
            match field {
                1 => each(value.bytes()?, &mut |field, value| {
                    if field == 7 {
                        number = value.u32()?;
                    }
                    Ok(())
                })?,
                2 => size = value.u64()?,
                3 => is_elsewhere = value.flag()?,
                _ => {}
            }
            Ok(())
        })?;
        ensure!(is_elsewhere, "it has the content of a segment");
        sizes.add_file(number.into(), size);
        Ok(())
    })
}

/// A mapping that CRIU counts only: a vsyscall page where x86-64 has it, above all other memory. A
/// `vma_entry` in a `mm_entry`.
const END: [u8; 37] = [
    0x72, 0x23, 8, 0x80, 0x80, 0x80, 0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0x10, 0x80, 0xa0, 0x80,
    0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0x18, 0, 0x20, 0, 0x28, 1, 0x30, 0x22, 0x38, 0x84, 4,
    0x40, 1,
];

/// The image that CRIU reads in the place of this one. None if this one is good. In its search for
/// room for its own code, CRIU before 4.2 leaves out the end of the last mapping. If there is no
/// room below that mapping, the program's memory takes the place of CRIU's running code. Most
/// processes of x86-64 have a vsyscall page behind their last mapping, and others get one here. For
/// that, the process does not get any memory.
pub(in crate::container) fn with_end(image: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut last = 0;
    each_mapping(image, &mut |mapping| {
        if mapping.status & GUARD == 0 {
            last = mapping.status;
        }
        Ok(())
    })?;
    if last & VSYSCALL != 0 {
        return Ok(None);
    }
    let message = images::message(image, &MEMORY_MAGIC)?;
    let length = u32::try_from(message.len() + END.len())?.to_le_bytes();
    Ok(Some([&MEMORY_MAGIC[..], &length, message, &END].concat()))
}

/// The addresses of the rings for AIO that CRIU makes again. They are mappings.
pub(in crate::container) fn rings(image: &[u8]) -> Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    each(images::message(image, &MEMORY_MAGIC)?, &mut |field, value| {
        if field == 16 {
            found.insert(ring(value.item()?)?.0);
        }
        Ok(())
    })?;
    Ok(found)
}

/// `aio_ring_entry`: the address, and the length.
fn ring(message: &[u8]) -> Result<(u64, u64)> {
    let (mut address, mut length) = (0, 0);
    each(message, &mut |field, value| {
        match field {
            1 => address = value.u64()?,
            3 => length = value.u32()?.into(),
            _ => {}
        }
        Ok(())
    })?;
    Ok((address, length))
}

/// Fails unless the mappings are as the kernel lists them, and each ring for AIO is one of them.
fn check_order(image: &[u8], sizes: &mut Sizes) -> Result<()> {
    let (mut rings, mut guards) = (BTreeMap::new(), Vec::new());
    // The mappings that follow each other without a gap: from where to where.
    let (mut joined, mut end) = (Vec::<(u64, u64)>::new(), 0);
    each_mapping(image, &mut |mapping| {
        let show = || format!("the mapping at {:#x}", mapping.start);
        ensure!(
            KINDS.contains(&(mapping.status & !(STACK | HEAP))),
            "{} is of an unknown kind: {:#x}",
            show(),
            mapping.status
        );
        // CRIU counts its length, and does not map it. Elsewhere, it would say where CRIU puts its
        // own code.
        ensure!(
            mapping.status & VSYSCALL == 0 || mapping.is_vsyscall_page(),
            "{} is not a vsyscall page",
            show()
        );
        // CRIU opens files by other fields. This number would be that of any file of CRIU's.
        ensure!(mapping.has_no_file, "{} has an open file", show());
        // By one of the mappings of shared memory, CRIU makes a file, and maps it for all of them.
        // Of huge pages, the kernel makes each of them as long as a huge page, whatever the others
        // say. CRIU itself writes shared memory of huge pages as a file in memory.
        if mapping.status & (SHARED | SYSTEM_V) == SHARED {
            ensure!(mapping.flags & HUGE == 0, "{} is shared memory of huge pages", show());
            let size = mapping.offset.checked_add(mapping.end - mapping.start);
            let size = size.with_context(|| format!("{} has no end", show()))?;
            let number = mapping.number;
            let size = sizes.mapped.get(&number).map_or(size, |there| size.max(*there));
            sizes.mapped.insert(number, size);
        }
        let unit = mapping.unit()?;
        let is_whole = [mapping.start, mapping.end].iter().all(|at| at % unit == 0);
        ensure!(is_whole, "{} does not have whole pages", show());
        if mapping.status & GUARD != 0 {
            guards.push((mapping.start, mapping.end));
            return Ok(());
        }
        ensure!(guards.is_empty(), "{} is after a range without access", show());
        ensure!(mapping.start >= end, "{} is below the one before it", show());
        match joined.last_mut() {
            Some((_, last)) if *last == mapping.start => *last = mapping.end,
            _ => joined.push((mapping.start, mapping.end)),
        }
        end = mapping.end;
        if mapping.status & RING != 0 {
            rings.insert(mapping.start, mapping.end - mapping.start);
        }
        Ok(())
    })?;
    for (start, end) in guards {
        // The last one that begins there or before.
        let before = joined.partition_point(|(from, _)| *from <= start).checked_sub(1);
        let is_inside = before.is_some_and(|before| end <= joined[before].1);
        ensure!(is_inside, "the range without access at {start:#x} is not in its memory");
    }
    each(images::message(image, &MEMORY_MAGIC)?, &mut |field, value| {
        if field == 16 {
            let (address, length) = ring(value.item()?)?;
            let is_there = rings.get(&address) == Some(&length);
            ensure!(is_there, "the ring at {address:#x} is not one of the mappings");
        }
        Ok(())
    })
}

/// Fails unless each area is in exactly one mapping, which is private, and CRIU changes no file by
/// a mapping. `areas` are addresses, and whether a mapping was found for each of them.
fn check_mappings(image: &[u8], areas: &mut BTreeMap<u64, bool>) -> Result<()> {
    each_mapping(image, &mut |mapping| {
        images::refuse_changing(mapping.open)?;
        let kind = mapping.flags & TYPE;
        let is_plain = mapping.status & !(STACK | HEAP) == USUAL | OWN;
        let is_dropped = || is_plain && mapping.flags & ANONYMOUS != 0;
        ensure!(
            !mapping.is_filled() || kind == PRIVATE || kind == DROPPABLE && is_dropped(),
            "the mapping at {:#x} is private, and shared too",
            mapping.start
        );
        for (address, is_found) in areas.range_mut(mapping.start.saturating_sub(AREA)..mapping.end)
        {
            let area_end = address.checked_add(AREA).context("an rseq area has no end")?;
            if area_end <= mapping.start {
                continue;
            }
            let is_inside = mapping.start <= *address && area_end <= mapping.end;
            let is_first = !std::mem::replace(is_found, true);
            ensure!(
                is_inside && is_first && mapping.is_private(),
                "the rseq area at {address:#x} is not in private memory"
            );
        }
        Ok(())
    })?;
    if let Some((address, _)) = areas.iter().find(|(_, is_found)| !**is_found) {
        bail!("the rseq area at {address:#x} is not in its memory");
    }
    Ok(())
}

/// `vma_entry`.
#[derive(Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    /// Of its beginning in the file or memory that it shows, which has this number.
    offset: u64,
    number: u64,
    flags: u64,
    status: u64,
    /// Bits of [`ADVICE`].
    advice: u64,
    /// The flags with which CRIU opens its file.
    open: u32,
    /// Whether it has no number of an open file.
    has_no_file: bool,
}

/// `MAP_TYPE`, `MAP_PRIVATE`, `MAP_DROPPABLE`, `MAP_ANONYMOUS` and `MAP_HUGETLB` of `mmap(2)`, and
/// where the size of its huge pages is: the logarithm to the base of 2.
const TYPE: u64 = 0xf;
const PRIVATE: u64 = 2;
const DROPPABLE: u64 = 8;
const ANONYMOUS: u64 = 0x20;
const HUGE: u64 = 0x40000;
const HUGE_SIZE: u64 = 26;

/// The bits of the advice that CRIU writes (`__parse_vmflags`): `MADV_RANDOM`, `MADV_SEQUENTIAL`,
/// `MADV_DONTFORK`, `MADV_MERGEABLE`, `MADV_HUGEPAGE`, `MADV_NOHUGEPAGE`, `MADV_DONTDUMP` and
/// `MADV_WIPEONFORK`. CRIU gives the kernel any other too. `MADV_REMOVE` empties a file, also on a
/// mount that `rt` makes read-only later.
const ADVICE: u64 = 1 << 1 | 1 << 2 | 1 << 10 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 18;

impl Mapping {
    /// The size of its pages. The kernel makes a mapping of huge pages as long as those.
    fn unit(&self) -> Result<u64> {
        if self.flags & HUGE == 0 {
            return Ok(PAGE);
        }
        match u32::try_from(self.flags >> HUGE_SIZE & 0x3f)? {
            0 => default_huge_page(),
            size => Ok((1 << size).max(PAGE)),
        }
    }

    /// Whether it is as x86-64's kernel lists it.
    fn is_vsyscall_page(&self) -> bool {
        const AT: u64 = 0xffff_ffff_ff60_0000;
        (self.start, self.end) == (AT, AT + PAGE)
            && (self.status, self.flags, self.advice) == (VSYSCALL | OWN, PRIVATE | ANONYMOUS, 0)
    }

    /// Whether CRIU writes the memory of the images to it: `VMA_FILE_PRIVATE` or
    /// `VMA_ANON_PRIVATE`. If it were shared, CRIU would write to the file.
    fn is_filled(&self) -> bool {
        self.status & (FILE | OWN) != 0
    }

    /// Whether it is memory of this process alone, and not the kernel's.
    fn is_private(&self) -> bool {
        self.is_filled() && self.status & (VSYSCALL | VDSO | VVAR) == 0
    }
}

/// Calls `look` for each mapping of a process.
fn each_mapping(image: &[u8], look: &mut dyn FnMut(Mapping) -> Result<()>) -> Result<()> {
    each(images::message(image, &MEMORY_MAGIC)?, &mut |field, value| match field {
        14 => look(mapping(value.item()?)?),
        _ => Ok(()),
    })
}

fn mapping(message: &[u8]) -> Result<Mapping> {
    let mut mapping = Mapping::default();
    each(message, &mut |field, value| {
        match field {
            1 => mapping.start = value.u64()?,
            2 => mapping.end = value.u64()?,
            3 => mapping.offset = value.u64()?,
            4 => mapping.number = value.u64()?,
            6 => mapping.flags = value.u32()?.into(),
            7 => mapping.status = value.u32()?.into(),
            // Zigzag: -1.
            8 => mapping.has_no_file = value.u64()? == 1,
            9 => {
                mapping.advice = value.u64()?;
                let advice = mapping.advice;
                ensure!(advice & !ADVICE == 0, "a mapping has the advice {advice:#x}");
            }
            10 => mapping.open = value.u32()?,
            _ => {}
        }
        Ok(())
    })?;
    ensure!(mapping.start < mapping.end, "a mapping ends before it starts");
    Ok(mapping)
}

fn default_huge_page() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read `/proc/meminfo`")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Hugepagesize:"));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    size.filter(|size| *size > 0).map(|size| size << 10).context("this host has no huge pages")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::checkpoint::images::made::{bytes, image, number};

    const PLAIN: u64 = USUAL | OWN;

    /// A mapping of so many pages.
    fn pages(start: u64, pages: u64, flags: u64, status: u64) -> Vec<u8> {
        let fields =
            [(1, start * PAGE), (2, (start + pages) * PAGE), (6, flags), (7, status), (8, 1)];
        let fields: Vec<u8> =
            fields.into_iter().flat_map(|(field, value)| number(field, value)).collect();
        bytes(14, &fields)
    }

    fn check(parts: &[Vec<u8>]) -> Result<()> {
        check_order(&image(MEMORY_MAGIC, &[parts.concat()]), &mut Sizes::default())
    }

    #[test]
    fn mappings_are_as_the_kernel_lists_them() {
        let ring = |address: u64, length: u64| {
            bytes(16, &[number(1, address * PAGE), number(3, length * PAGE)].concat())
        };
        let (low, high) = (pages(16, 1, 2, PLAIN), pages(17, 3, 2, PLAIN));
        let guard = |start, length| pages(start, length, 2, GUARD);
        check(&[low.clone(), high.clone()]).expect("it is good");
        check(&[low.clone(), high.clone(), guard(16, 4), guard(18, 1)]).expect("it has guards");
        check(&[low.clone(), pages(20, 2, 1, RING), ring(20, 2)]).expect("it has a ring");
        // 2 MiB
        let huge = |start, length| pages(start, length, 2 | HUGE | 21 << HUGE_SIZE, PLAIN);
        check(&[huge(512, 512)]).expect("it is a huge page");
        let shared = |start, status| pages(start, 512, 0x21 | HUGE | 21 << HUGE_SIZE, status);
        check(&[shared(512, SHARED | SYSTEM_V | 1)]).expect("it is a segment");
        check(&[pages(512, 1, 0x21, SHARED | 1)]).expect("its pages are not huge");
        for (parts, why) in [
            (vec![high.clone(), low.clone()], "is below the one before it"),
            (vec![low.clone(), low.clone()], "is below the one before it"),
            (vec![pages(16, 2, 2, PLAIN), high.clone()], "is below the one before it"),
            (vec![low.clone(), guard(16, 1), high.clone()], "is after a range without access"),
            (vec![low.clone(), guard(17, 1)], "is not in its memory"),
            (vec![low.clone(), guard(15, 2)], "is not in its memory"),
            (vec![guard(0, 1)], "is not in its memory"),
            (vec![huge(512, 1)], "does not have whole pages"),
            (vec![shared(512, SHARED | 1), pages(1024, 1, 0x21, SHARED | 1)], "of huge pages"),
            (vec![low.clone(), ring(16, 1)], "is not one of the mappings"),
            (vec![pages(20, 2, 1, RING), ring(20, 3)], "is not one of the mappings"),
        ] {
            let error = check(&parts).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        let part = bytes(14, &[number(1, 1), number(2, PAGE), number(7, 1 << 9 | 1)].concat());
        check(&[part]).expect_err("it does not begin with a page");
    }

    #[test]
    fn mappings_are_of_kinds_that_criu_writes() {
        for kind in KINDS.into_iter().filter(|kind| kind & (GUARD | VSYSCALL) == 0) {
            for kind in [kind, kind | HEAP, kind | STACK] {
                check(&[pages(16, 1, 2, kind)]).expect("CRIU writes it");
            }
        }
        for kind in [
            0,
            USUAL,
            OWN,
            RING | 1,
            GUARD | 1,
            USUAL | SYSTEM_V,
            USUAL | OWN | SYSTEM_V,
            USUAL | OWN | SHARED,
            USUAL | OWN | FILE,
            USUAL | OWN | VDSO | VVAR,
            USUAL | IN_MEMORY,
            PLAIN | 1 << 17,
            PLAIN | 1 << 27,
            PLAIN | 1 << 30,
        ] {
            let error = check(&[pages(16, 1, 2, kind)]).expect_err("CRIU does not").to_string();
            assert_eq!(error, format!("the mapping at 0x10000 is of an unknown kind: {kind:#x}"));
        }
        for file in [0, 3, 14] {
            let fields = [number(1, 0), number(2, PAGE), number(7, PLAIN), number(8, file)];
            let error = check(&[bytes(14, &fields.concat())]).expect_err("it has one").to_string();
            assert_eq!(error, "the mapping at 0x0 has an open file");
        }
        for madvice in [3, 4, 8, 9, 11, 13, 17, 19, 20, 63] {
            let advised = [number(1, 0), number(2, PAGE), number(7, PLAIN), number(8, 1)].concat();
            let advised = [advised, number(9, 1 << madvice)].concat();
            check(&[bytes(14, &advised)]).expect_err("it does something");
        }
    }

    #[test]
    fn a_vsyscall_page_is_where_the_kernel_has_it() {
        const AT: u64 = 0xf_ffff_ffff_f600;
        check(&[pages(AT, 1, 0x22, VSYSCALL | OWN)]).expect("it is the kernel's");
        for (start, length, flags, kind) in [
            (0x11, 1, 0x22, VSYSCALL | OWN),
            (0x11, AT - 0x11, 0x22, VSYSCALL | OWN),
            (AT, 2, 0x22, VSYSCALL | OWN),
            (AT, 1, 0x22 | HUGE, VSYSCALL | OWN),
            (AT, 1, 0x22, VSYSCALL | OWN | STACK),
        ] {
            let error = check(&[pages(start, length, flags, kind)]).expect_err("it steers CRIU");
            assert!(error.to_string().ends_with("is not a vsyscall page"), "{error}");
        }
    }

    #[test]
    fn shared_memory_has_the_size_that_criu_gives_it() {
        let mut sizes = Sizes::default();
        let mut add = |start: u64, offset: u64, length: u64| {
            let fields = [number(1, start * PAGE), number(2, (start + length) * PAGE)];
            let more = [number(3, offset), number(4, 7), number(7, SHARED | 1), number(8, 1)];
            let mapping = bytes(14, &[fields.concat(), more.concat()].concat());
            check_order(&image(MEMORY_MAGIC, &[mapping]), &mut sizes)
        };
        add(16, 0, 2).expect("it is good");
        add(16, 4 * PAGE, 3).expect("it is good");
        add(16, PAGE, 1).expect("it is good");
        add(16, 0_u64.wrapping_sub(PAGE), 1).expect_err("CRIU would have a size of 0");
        assert_eq!((sizes.of("shmem-7"), sizes.of("shmem-8")), (Some(7 * PAGE), None));
        let segment = |id: u64, size: u64, is_elsewhere: u64| {
            let about = bytes(1, &number(7, id));
            [about, number(2, size), number(3, is_elsewhere)].concat()
        };
        let mut add =
            |segments: &[Vec<u8>]| add_segments(&image(SEGMENTS_MAGIC, segments), &mut sizes);
        add(&[segment(8, 50, 1), segment(7, 9 * PAGE, 1), segment(8, 60, 1)]).expect("read");
        add(&[segment(9, 1, 0)]).expect_err("its content follows");
        assert_eq!(
            (sizes.of("shmem-7"), sizes.of("shmem-8"), sizes.of("shmem-9")),
            (Some(7 * PAGE), Some(50), None)
        );
    }

    #[test]
    fn memory_has_an_end() {
        let end = pages(0xf_ffff_ffff_f600, 1, 0x22, VSYSCALL | OWN);
        let (memory, guard) = (pages(16, 4, 2, PLAIN), pages(17, 1, 2, GUARD));
        let made = |parts: &[&[u8]]| image(MEMORY_MAGIC, &[parts.concat()]);
        assert_eq!(with_end(&made(&[&memory, &end])).expect("read"), None);
        assert_eq!(with_end(&made(&[&memory, &end, &guard])).expect("read"), None);
        for open in [&[&memory[..]][..], &[&end, &memory], &[&memory, &guard]] {
            let closed = with_end(&made(open)).expect("read").expect("it has no end");
            assert_eq!(closed, made(&[&open.concat(), &END]));
            let mut found = Vec::new();
            each_mapping(&closed, &mut |mapping| {
                found.push((mapping.start, mapping.end, mapping.flags, mapping.status));
                ensure!(mapping.has_no_file);
                Ok(())
            })
            .expect("it is good");
            let start = 0xffff_ffff_ff60_0000;
            assert_eq!(found.last(), Some(&(start, start + PAGE, 0x22, VSYSCALL | OWN)));
        }
    }

    #[test]
    fn a_mapping_changes_no_file() {
        // `flags`, `status`, and the flags with which the file is opened.
        for (flags, status, open, is_good) in [
            (1, 1 << 1, 2, true),
            (2, 1 << 6, 2, true),
            (1, 1 << 6, 2, false),
            (3, 1 << 6, 2, false),
            (2, 1 << 6, 0o100, false),
        ] {
            let fields = [number(1, 0), number(2, 64), number(6, flags), number(7, status)];
            let mapping = bytes(14, &[fields.concat(), number(10, open)].concat());
            let checked = check_mappings(&image(MEMORY_MAGIC, &[mapping]), &mut BTreeMap::new());
            assert_eq!(checked.is_ok(), is_good, "{flags} {status} {open}: {checked:?}");
        }
    }

    #[test]
    fn an_area_is_in_private_memory() {
        let mapping = |start: u64, end: u64, flags: u64, status: u64| {
            let fields = [number(1, start), number(2, end), number(6, flags), number(7, status)];
            bytes(14, &fields.concat())
        };
        let check = |mappings: &[Vec<u8>]| {
            let image = image(MEMORY_MAGIC, &[mappings.concat()]);
            check_mappings(&image, &mut BTreeMap::from([(64, false)]))
        };
        let (below, above) = (mapping(0, 64, 1, 1), mapping(96, 120, 1, 1));
        let own = 1 | 1 << 9;
        check(&[below.clone(), mapping(64, 96, 2, own), above.clone()]).expect("it is private");
        for mappings in [
            vec![below, above],
            vec![mapping(64, 96, 2, USUAL | SHARED)],
            vec![mapping(64, 96, 3, own)],
            vec![mapping(32, 120, 2, own | VDSO)],
            vec![mapping(64, 80, 2, own), mapping(80, 96, 2, own)],
            vec![mapping(64, 96, 2, own), mapping(64, 96, 2, own)],
            vec![mapping(64, 96, 2, own), mapping(90, 96, 1, 1)],
            vec![mapping(96, 64, 2, own)],
        ] {
            check(&mappings).expect_err("it is not private");
        }
    }
}
