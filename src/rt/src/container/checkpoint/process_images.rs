//! The images of processes: `pstree.img`, and a `core-PID.img` for each thread.
//!
//! CRIU believes what they say about each other. A process without threads, or with others than it
//! has, makes CRIU count wrongly: CRIU ends while it already holds processes, writes behind the end
//! of a list, or waits for ever. So does a process that a timer kills meanwhile. So `restore`
//! refuses such images before it starts CRIU.
//!
//! `restore` also refuses an rseq area (`rseq(2)`) in memory that others can share. CRIU tells the
//! kernel of the area while the thread still has all capabilities of the host's root. By the area,
//! the kernel can be told to continue the thread at any address. In private memory, nobody can
//! write to the area after that, and the kernel clears that part when it is told of the area (since
//! its fix of CVE-2025-38067: Linux 6.15, 6.1.146).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail, ensure};

use crate::container::checkpoint::criu;
use crate::container::checkpoint::images::{self, Magic, Value, each};

const TREE: &str = "pstree.img";
const LABELS: &str = "apparmor.img";
const INVENTORY: &str = "inventory.img";

/// The first bytes of the images (`magic.h`).
const TREE_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x30, 0x30, 0x27, 0x50];
const CORE_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x47, 0x38, 0x05, 0x55];
const MEMORY_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x20, 0x28, 0x49, 0x57];
const IDS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x30, 0x20, 0x43, 0x54];
const INVENTORY_MAGIC: [u8; 4] = [0x16, 0x31, 0x31, 0x58];
const LABELS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x47, 0x30, 0x42, 0x59];

/// `TASK_DEAD` of CRIU.
const DEAD: u32 = 2;

/// The size of `struct rseq` up to its last member that CRIU's kernels know. The area is aligned to
/// its size.
const AREA: u64 = 32;

/// The most threads of a kernel (`PID_MAX_LIMIT`).
const MOST: usize = 1 << 22;

/// `pstree_entry`.
#[derive(Debug, Default, Eq, PartialEq)]
struct Process {
    pid: u32,
    parent: u32,
    threads: Vec<u32>,
}

impl Process {
    /// The numbers of its threads. The first thread has the number of the process.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.pid).chain(self.threads.iter().skip(1).copied())
    }

    /// CRIU counts one thread of a dead process, to which it gives any number.
    fn refuse_threads(&self, is_dead: bool) -> Result<()> {
        let pid = self.pid;
        if is_dead {
            ensure!(self.threads.len() == 1, "process {pid} is dead and has other threads");
        } else {
            let first = self.threads.first();
            ensure!(first == Some(&pid), "process {pid} is not its own first thread");
        }
        Ok(())
    }
}

/// What `rt` looks at in a `core_entry`.
#[derive(Debug, Default, Eq, PartialEq)]
struct Core {
    is_dead: bool,
    /// The addresses of rseq areas. In a damaged image, there can be several.
    areas: Vec<u64>,
}

/// Fails if CRIU could not count the processes of a checkpoint, or if one has an rseq area that is
/// not its own. `show` names an image in errors.
pub(in crate::container) fn check(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
) -> Result<()> {
    refuse_policies(images).with_context(|| show(LABELS))?;
    // CRIU says by itself that it is missing.
    let tree = match criu::read_if_there(images, TREE) {
        Ok(Some(tree)) => processes(&tree),
        Ok(None) => return Ok(()),
        Err(error) => Err(error),
    };
    for process in tree.with_context(|| show(TREE))? {
        let (mut areas, mut is_dead) = (BTreeMap::new(), false);
        for thread in process.numbers() {
            let name = format!("core-{thread}.img");
            let core = || core(&criu::read_in(images, &name)?);
            let core = core().with_context(|| show(&name))?;
            is_dead |= core.is_dead;
            areas.extend(core.areas.into_iter().map(|address| (address, false)));
            refuse_old(images, &format!("signal-p-{thread}.img"), show)?;
        }
        process.refuse_threads(is_dead).with_context(|| show(TREE))?;
        for kind in ["vmas", "signal-s", "posix-timers"] {
            refuse_old(images, &format!("{kind}-{}.img", process.pid), show)?;
        }
        let name = format!("mm-{}.img", process.pid);
        let mut memory = || match criu::read_if_there(images, &name)? {
            Some(image) => check_memory(&image, &mut areas),
            None => {
                ensure!(is_dead, "it is missing");
                Ok(())
            }
        };
        memory().with_context(|| show(&name))?;
    }
    Ok(())
}

/// The number of the mount namespace of the first process. Fails if that is the namespace of CRIU:
/// without another one, CRIU deletes files of the host. Fails if another process has another
/// namespace, unless `may_differ`.
pub(in crate::container) fn mount_namespace(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
    may_differ: bool,
) -> Result<Option<u64>> {
    let read = || criu::read_if_there(images, INVENTORY);
    let Some(inventory) = read().with_context(|| show(INVENTORY))? else { return Ok(None) };
    let mut of_criu = None;
    let mut look = || {
        each(images::message(&inventory, &INVENTORY_MAGIC)?, &mut |field| {
            // `root_ids`
            if let (3, Value::Bytes(ids)) = field {
                of_criu = mount_namespace_in(ids)?.or(of_criu);
            }
            Ok(())
        })
    };
    look().with_context(|| show(INVENTORY))?;
    let read = || criu::read_if_there(images, TREE)?.map(|tree| processes(&tree)).transpose();
    let mut first = None;
    for (number, process) in read().with_context(|| show(TREE))?.into_iter().flatten().enumerate() {
        let name = format!("ids-{}.img", process.pid);
        let read = || match criu::read_if_there(images, &name)? {
            Some(image) => mount_namespace_in(images::message(&image, &IDS_MAGIC)?),
            None => Ok(None),
        };
        let namespace = read().with_context(|| show(&name))?;
        if number == 0 {
            first = namespace;
            ensure!(
                first.is_some() && first != of_criu,
                "{}: the first process has no mount namespace of its own",
                show(&name)
            );
        }
        ensure!(
            may_differ || namespace.is_none() || namespace == first,
            "{}: it is in another mount namespace than the first process, and the container cannot make one without CAP_SYS_ADMIN",
            show(&name)
        );
    }
    Ok(first)
}

/// Of a `task_kobj_ids_entry`.
fn mount_namespace_in(ids: &[u8]) -> Result<Option<u64>> {
    let mut found = None;
    each(ids, &mut |field| {
        if let (9, Value::Number(number)) = field {
            found = Some(u64::from(u32::try_from(number)?));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Fails if an image of an older `criu` is there, with entries that are elsewhere by now.
fn refuse_old(images: BorrowedFd<'_>, name: &str, show: &dyn Fn(&str) -> String) -> Result<()> {
    let old = criu::read_if_there(images, name).with_context(|| show(name))?;
    ensure!(old.is_none(), "{}: it is an image of an older `criu`", show(name));
    Ok(())
}

/// Fails if the checkpoint has a namespace of AppArmor. CRIU makes a directory of its name, which
/// can have `..`, and has the kernel load its policies: also in the place of the host's.
fn refuse_policies(images: BorrowedFd<'_>) -> Result<()> {
    match criu::read_if_there(images, LABELS)? {
        Some(image) if !image.is_empty() => {
            each(images::message(&image, &LABELS_MAGIC)?, &mut |field| {
                ensure!(field.0 != 1, "it has a namespace of AppArmor");
                Ok(())
            })
        }
        _ => Ok(()),
    }
}

/// The processes of `pstree.img`: each after its parent, with threads that no other process has.
fn processes(image: &[u8]) -> Result<Vec<Process>> {
    let (mut found, mut pids, mut threads) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    images::each_message(image, &TREE_MAGIC, &mut |message| {
        let process = process(message)?;
        let pid = process.pid;
        ensure!(!process.threads.is_empty(), "process {pid} has no threads");
        let has_parent =
            if found.is_empty() { process.parent == 0 } else { pids.contains(&process.parent) };
        ensure!(has_parent, "process {pid} has no parent");
        for thread in process.numbers() {
            ensure!(thread != 0 && threads.insert(thread), "it has the number {thread} twice");
            ensure!(threads.len() <= MOST, "it has too many threads");
        }
        pids.insert(pid);
        found.push(process);
        Ok(())
    })?;
    ensure!(!found.is_empty(), "it has no process");
    Ok(found)
}

fn process(message: &[u8]) -> Result<Process> {
    let mut process = Process::default();
    each(message, &mut |field| {
        match field {
            (1, Value::Number(pid)) => process.pid = u32::try_from(pid)?,
            (2, Value::Number(pid)) => process.parent = u32::try_from(pid)?,
            (5, threads) => images::each_number(&threads, &mut |thread| {
                ensure!(process.threads.len() < MOST, "it has too many threads");
                process.threads.push(u32::try_from(thread)?);
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(process)
}

fn core(image: &[u8]) -> Result<Core> {
    let mut core = Core::default();
    each(images::message(image, &CORE_MAGIC)?, &mut |field| match field {
        // `task_core_entry`
        (3, Value::Bytes(task)) => each(task, &mut |field| match field {
            (1, Value::Number(state)) => {
                // CRIU ignores further bits.
                core.is_dead = u32::try_from(state)? == DEAD;
                Ok(())
            }
            // `task_timers_entry`
            (7, Value::Bytes(timers)) => each(timers, &mut |field| match field {
                (4, Value::Bytes(timer)) => each(timer, &mut refuse_killing),
                _ => Ok(()),
            }),
            (10, Value::Bytes(queue)) => each(queue, &mut refuse_pending),
            _ => Ok(()),
        }),
        // `thread_core_entry`
        (5, Value::Bytes(thread)) => each(thread, &mut |field| match field {
            (9, Value::Bytes(queue)) => each(queue, &mut refuse_pending),
            // `rseq_entry`
            (15, Value::Bytes(rseq)) => each(rseq, &mut |field| {
                if let (1, Value::Number(address)) = field {
                    core.areas.push(address);
                }
                Ok(())
            }),
            _ => Ok(()),
        }),
        _ => Ok(()),
    })?;
    // No area.
    core.areas.retain(|address| *address != 0);
    Ok(core)
}

/// `posix_timer_entry`.
fn refuse_killing((field, value): (u32, Value<'_>)) -> Result<()> {
    let (3, Value::Number(signal)) = (field, value) else { return Ok(()) };
    let signal = u32::try_from(signal)?;
    ensure!(!kills(signal), "a timer sends the signal {signal}");
    Ok(())
}

/// A `siginfo_entry` of a `signal_queue_entry`. CRIU sends the signals again.
fn refuse_pending((field, value): (u32, Value<'_>)) -> Result<()> {
    let (1, Value::Bytes(entry)) = (field, value) else { return Ok(()) };
    each(entry, &mut |field| {
        // `siginfo_t` begins with the signal's number.
        if let (1, Value::Bytes(info)) = field
            && let Some(signal) = info.first_chunk().map(|signal| u32::from_ne_bytes(*signal))
        {
            ensure!(!kills(signal), "the signal {signal} is pending");
        }
        Ok(())
    })
}

/// No process can block these signals. If a process ends while CRIU holds it, CRIU can end too, and
/// lets go of all others.
fn kills(signal: u32) -> bool {
    [libc::SIGKILL, libc::SIGSTOP].map(libc::c_int::unsigned_abs).contains(&signal)
}

/// Fails unless each area is in exactly one mapping, which is private, and CRIU changes no file by
/// a mapping. `areas` are addresses, and whether a mapping was found for each of them.
fn check_memory(image: &[u8], areas: &mut BTreeMap<u64, bool>) -> Result<()> {
    each(images::message(image, &MEMORY_MAGIC)?, &mut |field| {
        let (14, Value::Bytes(message)) = field else { return Ok(()) };
        let mapping = mapping(message)?;
        images::refuse_changing(mapping.open)?;
        ensure!(
            !mapping.is_filled() || mapping.flags & TYPE == PRIVATE,
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
    flags: u64,
    status: u64,
    /// The flags with which CRIU opens its file.
    open: u64,
}

/// `MAP_TYPE` and `MAP_PRIVATE` of `mmap(2)`.
const TYPE: u64 = 0xf;
const PRIVATE: u64 = 2;

impl Mapping {
    /// Whether CRIU writes the memory of the images to it: `VMA_FILE_PRIVATE` or
    /// `VMA_ANON_PRIVATE`. If it were shared, CRIU would write to the file.
    fn is_filled(&self) -> bool {
        self.status & (1 << 6 | 1 << 9) != 0
    }

    fn is_private(&self) -> bool {
        /// The other kinds of CRIU's mappings, `VMA_*` of `image.h`: a vsyscall page, a vDSO,
        /// shared files, shared memory, System V's, a socket's, a vvar page, a ring for AIO, and a
        /// plugin's.
        const OTHERS: u64 =
            1 << 2 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 27;
        self.flags & TYPE == PRIVATE && self.status & OTHERS == 0
    }
}

fn mapping(message: &[u8]) -> Result<Mapping> {
    let mut mapping = Mapping::default();
    each(message, &mut |field| {
        match field {
            (1, Value::Number(address)) => mapping.start = address,
            (2, Value::Number(address)) => mapping.end = address,
            (6, Value::Number(flags)) => mapping.flags = flags,
            (7, Value::Number(status)) => mapping.status = status,
            (10, Value::Number(flags)) => mapping.open = flags,
            _ => {}
        }
        Ok(())
    })?;
    ensure!(mapping.start < mapping.end, "a mapping ends before it starts");
    Ok(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(field: u8, value: u8) -> Vec<u8> {
        assert!(value < 0x80, "it has one byte");
        vec![field << 3, value]
    }

    fn bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
        [&[field << 3 | 2, u8::try_from(bytes.len()).expect("short")], bytes].concat()
    }

    fn image(magic: Magic, messages: &[Vec<u8>]) -> Vec<u8> {
        let framed = |message: &Vec<u8>| {
            let length = u32::try_from(message.len()).expect("short").to_le_bytes();
            [&length[..], message].concat()
        };
        [magic.to_vec(), messages.iter().flat_map(framed).collect()].concat()
    }

    fn entry(pid: u8, parent: u8, threads: &[u8]) -> Vec<u8> {
        let threads = threads.iter().flat_map(|thread| number(5, *thread)).collect();
        [number(1, pid), number(2, parent), threads].concat()
    }

    #[test]
    fn a_tree_can_be_counted() {
        let tree = |entries: &[Vec<u8>]| processes(&image(TREE_MAGIC, entries));
        let packed = [number(1, 3), number(2, 1), bytes(5, &[3, 4])].concat();
        let good = tree(&[entry(1, 0, &[1, 2]), packed, entry(5, 3, &[5])]).expect("it is good");
        assert_eq!(good[1], Process { pid: 3, parent: 1, threads: vec![3, 4] });
        let threads = |threads: &[u32]| Process { pid: 3, parent: 1, threads: threads.to_vec() };
        for (threads, is_dead, is_good) in [
            (threads(&[3, 4]), false, true),
            (threads(&[4, 3]), false, false),
            (threads(&[77]), true, true),
            (threads(&[3, 4]), true, false),
        ] {
            assert_eq!(threads.refuse_threads(is_dead).is_ok(), is_good, "{threads:?} {is_dead}");
        }
        for (entries, why) in [
            (vec![], "no process"),
            (vec![entry(1, 0, &[])], "has no threads"),
            (vec![entry(1, 0, &[2, 1])], "number 1 twice"),
            (vec![entry(1, 2, &[1])], "has no parent"),
            (vec![entry(1, 0, &[1, 2]), entry(3, 2, &[3])], "has no parent"),
            (vec![entry(1, 0, &[1]), entry(2, 0, &[2])], "has no parent"),
            (vec![entry(1, 0, &[1, 1])], "number 1 twice"),
            (vec![entry(1, 0, &[1, 2]), entry(2, 1, &[2])], "number 2 twice"),
            (vec![entry(0, 0, &[0])], "number 0 twice"),
        ] {
            let error = tree(&entries).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        let good = image(TREE_MAGIC, &[entry(1, 0, &[1])]);
        processes(&good[..good.len() - 1]).expect_err("it is cut short");
        processes(&good[1..]).expect_err("it is another image");
    }

    #[test]
    fn states_and_areas_are_read() {
        let area = |address| bytes(15, &number(1, address));
        let thread = bytes(5, &[area(64), area(96)].concat());
        let read = |parts: &[Vec<u8>]| core(&image(CORE_MAGIC, &[parts.concat()])).expect("read");
        let dead = bytes(3, &number(1, 2));
        assert_eq!(read(&[dead, thread]), Core { is_dead: true, areas: vec![64, 96] });
        assert_eq!(read(&[bytes(3, &number(1, 1)), bytes(5, &area(0))]), Core::default());
    }

    #[test]
    fn a_timer_does_not_kill() {
        let timed = |signal| bytes(3, &bytes(7, &bytes(4, &number(3, signal))));
        let read = |signal| core(&image(CORE_MAGIC, &[timed(signal)]));
        assert_eq!(read(14).expect("it is an alarm"), Core::default());
        for signal in [9, 19] {
            let error = read(signal).expect_err("it kills").to_string();
            assert_eq!(error, format!("a timer sends the signal {signal}"));
        }
    }

    #[test]
    fn a_pending_signal_does_not_kill() {
        let queue =
            |signal: u32| bytes(1, &bytes(1, &[&signal.to_ne_bytes()[..], &[0; 4]].concat()));
        let of_process = |signal: u32| bytes(3, &bytes(10, &queue(signal)));
        let of_thread = |signal: u32| bytes(5, &bytes(9, &queue(signal)));
        for pending in [&of_process as &dyn Fn(u32) -> Vec<u8>, &of_thread] {
            let read = |signal| core(&image(CORE_MAGIC, &[pending(signal)]));
            assert_eq!(read(15).expect("it ends later"), Core::default());
            for signal in [9, 19] {
                let error = read(signal).expect_err("it kills").to_string();
                assert_eq!(error, format!("the signal {signal} is pending"));
            }
        }
    }

    #[test]
    fn a_state_has_32_bits() {
        let dead = bytes(3, &[8, 0x82, 0x80, 0x80, 0x80, 0x10]);
        core(&image(CORE_MAGIC, &[dead])).expect_err("for CRIU, it is dead");
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
            let checked = check_memory(&image(MEMORY_MAGIC, &[mapping]), &mut BTreeMap::new());
            assert_eq!(checked.is_ok(), is_good, "{flags} {status} {open}: {checked:?}");
        }
    }

    #[test]
    fn an_area_is_in_private_memory() {
        let mapping = |start: u8, end: u8, flags: u8, status: u8| {
            let fields = [number(1, start), number(2, end), number(6, flags), number(7, status)];
            bytes(14, &fields.concat())
        };
        let check = |mappings: &[Vec<u8>]| {
            let image = image(MEMORY_MAGIC, &[mappings.concat()]);
            check_memory(&image, &mut BTreeMap::from([(64, false)]))
        };
        let (below, above) = (mapping(0, 64, 1, 1), mapping(96, 120, 1, 1));
        check(&[below.clone(), mapping(64, 96, 2, 1), above.clone()]).expect("it is private");
        for mappings in [
            vec![below, above],
            vec![mapping(64, 96, 1, 1)],
            vec![mapping(64, 96, 3, 1)],
            vec![mapping(32, 120, 2, 9)],
            vec![mapping(64, 80, 2, 1), mapping(80, 96, 2, 1)],
            vec![mapping(64, 96, 2, 1), mapping(64, 96, 2, 1)],
            vec![mapping(64, 96, 2, 1), mapping(90, 96, 1, 1)],
            vec![mapping(96, 64, 2, 1)],
        ] {
            check(&mappings).expect_err("it is not private");
        }
    }
}
