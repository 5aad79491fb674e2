//! The images of processes: `pstree.img`, and a `core-PID.img` for each thread.
//!
//! CRIU believes what they say about each other. A process without threads, or with others than it
//! has, makes CRIU count wrongly: CRIU ends while it already holds processes, writes behind the end
//! of a list, or waits for ever. So does a process that a timer kills meanwhile. So `restore`
//! refuses such images before it starts CRIU.
//!
//! `restore` also refuses an rseq area (`rseq(2)`) in memory that others can share
//! ([`memory_images`]). CRIU tells the kernel of the area while the thread still has all
//! capabilities of the host's root. By the area, the kernel can be told to continue the thread at
//! any address. In private memory, nobody can write to the area after that, and the kernel clears
//! that part when it is told of the area (since its fix of CVE-2025-38067: Linux 6.15, 6.1.146).
//!
//! CRIU takes the kinds of namespaces from the images. In a namespace of the host, it does things
//! before `rt` can compare the processes. So `restore` compares the kinds before it starts CRIU.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::LinuxNamespaceType;
use rustix::thread::CapabilitySet;

use crate::container::checkpoint::aio_rings;
use crate::container::checkpoint::confinement::Limits;
use crate::container::checkpoint::criu;
use crate::container::checkpoint::images::{self, Magic, Value, each};
use crate::container::checkpoint::memory_images::{self, Sizes};
use crate::container::checkpoint::vdso_image;
use crate::linux::namespaces;

const TREE: &str = "pstree.img";
const LABELS: &str = "apparmor.img";
const FILTERS: &str = "seccomp.img";
const INVENTORY: &str = "inventory.img";

/// The first bytes of the images (`magic.h`).
const TREE_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x30, 0x30, 0x27, 0x50];
const CORE_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x47, 0x38, 0x05, 0x55];
const IDS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x30, 0x20, 0x43, 0x54];
const MAPPINGS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x06, 0x49, 0x47, 0x55];
const INVENTORY_MAGIC: [u8; 4] = [0x16, 0x31, 0x31, 0x58];
const FILTERS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x49, 0x30, 0x41, 0x64];
const LABELS_MAGIC: Magic = [0x19, 0x43, 0x56, 0x54, 0x47, 0x30, 0x42, 0x59];

/// `TASK_DEAD` of CRIU.
const DEAD: u32 = 2;

/// The most threads of a kernel (`PID_MAX_LIMIT`).
const MOST: usize = 1 << 22;

/// The length of all images that `rt` writes for CRIU here, in bytes.
const MOST_WRITTEN: usize = 64 << 20;

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
    /// The address of the rseq area, or 0.
    area: u64,
}

/// What [`check`] has found.
#[derive(Debug, Default)]
pub(in crate::container) struct Found {
    pub(in crate::container) sizes: Sizes,
    /// The images that CRIU reads in the place of others, by their names.
    pub(in crate::container) written: Vec<(String, Vec<u8>)>,
    /// The number of living processes. A dead one has no memory.
    pub(in crate::container) processes: u64,
    /// The number of threads, with one for each dead process.
    pub(in crate::container) threads: u64,
}

/// Fails if CRIU could not count the processes of a checkpoint, or if one has an rseq area that is
/// not its own. `show` names an image in errors.
pub(in crate::container) fn check(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
) -> Result<Found> {
    each_field(images, LABELS, &LABELS_MAGIC, &mut refuse_policies)
        .with_context(|| show(LABELS))?;
    let mut number = 0;
    each_field(images, FILTERS, &FILTERS_MAGIC, &mut |field, value| {
        refuse_loops(field, value, &mut number)
    })
    .with_context(|| show(FILTERS))?;
    let (mut found, mut room) = (Found::default(), MOST_WRITTEN);
    let sizes = &mut found.sizes;
    memory_images::add_files(images, sizes).with_context(|| show(memory_images::FILES))?;
    let mut add = |image: &[u8]| memory_images::add_segments(image, sizes);
    criu::each_image(images, "ipcns-shm-", show, &mut add)?;
    // CRIU says by itself that it is missing.
    let tree = match criu::read_if_there(images, TREE) {
        Ok(Some(tree)) => processes(&tree),
        Ok(None) => return Ok(found),
        Err(error) => Err(error),
    };
    for process in tree.with_context(|| show(TREE))? {
        let (mut areas, mut is_dead) = (Vec::new(), false);
        for thread in process.numbers() {
            let name = format!("core-{thread}.img");
            let core = || core(&criu::read_in(images, &name)?);
            let core = core().with_context(|| show(&name))?;
            is_dead |= core.is_dead;
            areas.extend(Some(core.area).filter(|address| *address != 0));
        }
        process.refuse_threads(is_dead).with_context(|| show(TREE))?;
        let name = format!("mm-{}.img", process.pid);
        let mut memory = || match criu::read_if_there(images, &name)? {
            Some(image) => {
                memory_images::check(&image, &areas, sizes)?;
                vdso_image::check(images, process.pid, &image)?;
                aio_rings::refuse_used(images, process.pid, &image)?;
                memory_images::with_end(&image)
            }
            None => {
                ensure!(is_dead, "it is missing");
                Ok(None)
            }
        };
        if let Some(image) = memory().with_context(|| show(&name))? {
            room = room.checked_sub(image.len()).context("its processes have too many mappings")?;
            found.written.push((name, image));
        }
        sizes.add_process(process.pid);
        found.processes += u64::from(!is_dead);
        found.threads += u64::try_from(process.numbers().count())?;
    }
    Ok(found)
}

/// Fails if a process of a checkpoint has a ring for AIO that cannot be restored.
pub(in crate::container) fn refuse_used_rings(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
) -> Result<()> {
    let tree = || processes(&criu::read_in(images, TREE)?);
    for process in tree().with_context(|| show(TREE))? {
        let name = format!("mm-{}.img", process.pid);
        // A process that has ended has none.
        let check = || match criu::read_if_there(images, &name)? {
            Some(image) => aio_rings::refuse_used(images, process.pid, &image),
            None => Ok(()),
        };
        check().with_context(|| show(&name))?;
    }
    Ok(())
}

/// The number of the mount namespace of the first process. Fails if the first process is in a
/// namespace of CRIU, and the configuration has another one, or the other way round. In CRIU's
/// mount namespace, CRIU deletes files of the host. In CRIU's network namespace, CRIU changes the
/// host's packet filter. Fails if another process has another mount namespace, unless the container
/// may mount.
pub(in crate::container) fn mount_namespace(
    images: BorrowedFd<'_>,
    show: &dyn Fn(&str) -> String,
    limits: &Limits<'_>,
) -> Result<Option<u32>> {
    let may_differ = limits.gives(CapabilitySet::SYS_ADMIN);
    let read = || criu::read_if_there(images, INVENTORY);
    let Some(inventory) = read().with_context(|| show(INVENTORY))? else { return Ok(None) };
    let of_criu = inventory_of(&inventory).with_context(|| show(INVENTORY))?;
    let read = || criu::read_if_there(images, TREE)?.map(|tree| processes(&tree)).transpose();
    let mut first = None;
    for (number, process) in read().with_context(|| show(TREE))?.into_iter().flatten().enumerate() {
        let name = format!("ids-{}.img", process.pid);
        let read = || match criu::read_if_there(images, &name)? {
            Some(image) => namespaces_in(images::message(&image, &IDS_MAGIC)?),
            None => Ok(Numbers::default()),
        };
        let namespaces = read().with_context(|| show(&name))?;
        let namespace = namespaces.of(LinuxNamespaceType::Mount);
        if number == 0 {
            first = namespace;
            ensure!(
                first.is_some() && first != of_criu.of(LinuxNamespaceType::Mount),
                "{}: the first process has no mount namespace of its own",
                show(&name)
            );
            compare(&namespaces, &of_criu, limits).with_context(|| show(&name))?;
            if limits.has_user_namespace() {
                // For CRIU, a missing number is that of an image, too.
                let number = namespaces.of(LinuxNamespaceType::User).unwrap_or(0);
                let name = format!("userns-{number}.img");
                let check = || limits.check_mappings(&mappings(&criu::read_in(images, &name)?)?);
                check().with_context(|| show(&name))?;
            }
        }
        ensure!(
            may_differ || namespace.is_none() || namespace == first,
            "{}: it is in another mount namespace than the first process, and the container cannot make one without CAP_SYS_ADMIN",
            show(&name)
        );
    }
    Ok(first)
}

/// The kinds of namespaces, by their fields in a `task_kobj_ids_entry`.
const KINDS: [(u32, LinuxNamespaceType); 8] = [
    (5, LinuxNamespaceType::Pid),
    (6, LinuxNamespaceType::Network),
    (7, LinuxNamespaceType::Ipc),
    (8, LinuxNamespaceType::Uts),
    (9, LinuxNamespaceType::Mount),
    (10, LinuxNamespaceType::User),
    (11, LinuxNamespaceType::Cgroup),
    (12, LinuxNamespaceType::Time),
];

/// The numbers of namespaces, by their kinds in [`KINDS`]. For CRIU, a missing number is 0.
#[derive(Debug, Default, Eq, PartialEq)]
struct Numbers([u32; KINDS.len()]);

impl Numbers {
    fn of(&self, kind: LinuxNamespaceType) -> Option<u32> {
        let number = KINDS.iter().zip(self.0).find(|((_, there), _)| *there == kind);
        number.map(|(_, number)| number).filter(|number| *number != 0)
    }
}

fn namespaces_in(ids: &[u8]) -> Result<Numbers> {
    let mut found = Numbers::default();
    add_namespaces(&mut found, ids)?;
    Ok(found)
}

fn add_namespaces(found: &mut Numbers, ids: &[u8]) -> Result<()> {
    each(ids, &mut |field, value| {
        if let Some(at) = KINDS.iter().position(|(there, _)| *there == field) {
            found.0[at] = value.u32()?;
        }
        Ok(())
    })
}

/// The namespaces of CRIU in an `inventory_entry`. CRIU writes the name of its run into commands
/// for nftables.
fn inventory_of(inventory: &[u8]) -> Result<Numbers> {
    let mut of_criu = Numbers::default();
    each(images::message(inventory, &INVENTORY_MAGIC)?, &mut |field, value| match field {
        // `root_ids`
        3 => add_namespaces(&mut of_criu, value.bytes()?),
        // `dump_criu_run_id`
        13 => {
            let name = value.bytes()?;
            let is_plain = name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
            ensure!(is_plain, "the name of its run is not a plain one");
            Ok(())
        }
        _ => Ok(()),
    })?;
    Ok(of_criu)
}

/// Compares the kinds of namespaces of the first process with the configuration.
fn compare(first: &Numbers, of_criu: &Numbers, limits: &Limits<'_>) -> Result<()> {
    for ((_, kind), (first, of_criu)) in KINDS.iter().zip(first.0.into_iter().zip(of_criu.0)) {
        let name = namespaces::name_of(*kind);
        if limits.wants_namespace(*kind) {
            ensure!(
                first != of_criu,
                "it is in the host's {name} namespace, and `linux.namespaces` asks for another"
            );
        } else if *kind != LinuxNamespaceType::Time {
            // CRIU makes a time namespace at each restore, for the clocks of the checkpoint.
            ensure!(first == of_criu, "it has a {name} namespace, and `linux.namespaces` has none");
        }
    }
    Ok(())
}

/// The mappings of a `userns_entry`: for users and for groups, each with the first id in the
/// namespace, the first one outside, and their number.
fn mappings(image: &[u8]) -> Result<[BTreeSet<[u32; 3]>; 2]> {
    let mut found = [BTreeSet::new(), BTreeSet::new()];
    each(images::message(image, &MAPPINGS_MAGIC)?, &mut |kind, value| {
        let kind = match kind {
            1 => 0,
            2 => 1,
            _ => return Ok(()),
        };
        let mut extent = [0; 3];
        each(value.item()?, &mut |field, value| {
            if let at @ 1..=3 = field {
                extent[usize::try_from(at)? - 1] = value.u32()?;
            }
            Ok(())
        })?;
        found[kind].insert(extent);
        Ok(())
    })?;
    Ok(found)
}

/// Calls `look` for each field of an image with one message, unless it is missing or empty. CRIU
/// does nothing with such an image.
fn each_field(
    images: BorrowedFd<'_>,
    name: &str,
    magic: &Magic,
    look: &mut dyn FnMut(u32, &Value<'_>) -> Result<()>,
) -> Result<()> {
    match criu::read_if_there(images, name)? {
        Some(image) if !image.is_empty() => each(images::message(&image, magic)?, look),
        _ => Ok(()),
    }
}

/// Fails if the checkpoint has a namespace of AppArmor. CRIU makes a directory of its name, which
/// can have `..`, and has the kernel load its policies: also in the place of the host's.
fn refuse_policies(field: u32, _: &Value<'_>) -> Result<()> {
    ensure!(field != 1, "it has a namespace of AppArmor");
    Ok(())
}

/// Fails if a seccomp filter is loaded after itself, or after one that follows. CRIU goes from each
/// filter to the one before it, without end.
fn refuse_loops(field: u32, value: &Value<'_>, number: &mut u32) -> Result<()> {
    if field != 1 {
        return Ok(());
    }
    each(value.item()?, &mut |field, value| {
        if field == 2 {
            ensure!(value.u32()? < *number, "the filter {number} has no beginning");
        }
        Ok(())
    })?;
    *number += 1;
    Ok(())
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
    each(message, &mut |field, value| {
        match field {
            1 => process.pid = value.u32()?,
            2 => process.parent = value.u32()?,
            5 => value.each_u32(&mut |thread| {
                ensure!(process.threads.len() < MOST, "it has too many threads");
                process.threads.push(thread);
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(process)
}

fn core(image: &[u8]) -> Result<Core> {
    // The limits have their numbers by their order.
    let (mut core, mut limits) = (Core::default(), 0);
    each(images::message(image, &CORE_MAGIC)?, &mut |field, value| match field {
        // `task_core_entry`
        3 => each(value.bytes()?, &mut |field, value| match field {
            1 => {
                core.is_dead = value.u32()? == DEAD;
                Ok(())
            }
            // `task_rlimits_entry`
            8 => each(value.bytes()?, &mut |field, value| {
                if field == 1 {
                    refuse_short(limits, value.item()?)?;
                    limits += 1;
                }
                Ok(())
            }),
            // `task_timers_entry`
            7 => each(value.bytes()?, &mut |field, value| match field {
                4 => each(value.item()?, &mut refuse_killing),
                _ => Ok(()),
            }),
            10 => each(value.bytes()?, &mut refuse_pending),
            _ => Ok(()),
        }),
        // `thread_core_entry`
        5 => each(value.bytes()?, &mut |field, value| match field {
            9 => each(value.bytes()?, &mut refuse_pending),
            // `rseq_entry`
            15 => each(value.bytes()?, &mut |field, value| {
                if field == 1 {
                    core.area = value.u64()?;
                }
                Ok(())
            }),
            _ => Ok(()),
        }),
        _ => Ok(()),
    })?;
    Ok(core)
}

/// Fails if the hard limit of CPU time would end a process during the restore. A process that ends
/// is killed (SIGKILL).
fn refuse_short(number: u32, message: &[u8]) -> Result<()> {
    /// `RLIMIT_CPU` in seconds, and `RLIMIT_RTTIME` in microseconds.
    const SHORTEST: [(u32, u64); 2] = [(0, 10), (15, 100_000)];
    // `rlimit_entry`
    each(message, &mut |field, value| {
        if field == 2 {
            let hard = value.u64()?;
            let is_short = SHORTEST.iter().any(|(kind, least)| *kind == number && hard < *least);
            ensure!(!is_short, "the hard limit {number} of a process is too low: {hard}");
        }
        Ok(())
    })
}

/// `posix_timer_entry`.
fn refuse_killing(field: u32, value: &Value<'_>) -> Result<()> {
    if field == 3 {
        let signal = value.u32()?;
        ensure!(!kills(signal), "a timer sends the signal {signal}");
    }
    Ok(())
}

/// The size of `siginfo_t`.
const INFORMATION: usize = 128;

/// A `siginfo_entry` of a `signal_queue_entry`. CRIU sends the signals again.
fn refuse_pending(field: u32, value: &Value<'_>) -> Result<()> {
    if field != 1 {
        return Ok(());
    }
    each(value.item()?, &mut |field, value| {
        // `siginfo_t` begins with the signal's number. CRIU copies it whole, however short it is.
        if field == 1 {
            let info = value.bytes()?;
            let signal = info.first_chunk().filter(|_| info.len() == INFORMATION);
            let signal = u32::from_ne_bytes(*signal.context("a pending signal is cut short")?);
            ensure!(!kills(signal), "the signal {signal} is pending");
        }
        Ok(())
    })
}

/// No process can block these signals. If a process ends while CRIU holds it, CRIU can end too, and
/// lets go of all others.
pub(in crate::container) fn kills(signal: u32) -> bool {
    [libc::SIGKILL, libc::SIGSTOP].map(libc::c_int::unsigned_abs).contains(&signal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::checkpoint::images::made::{self, bytes, image, number};

    fn entry(pid: u8, parent: u8, threads: &[u8]) -> Vec<u8> {
        let threads = threads.iter().flat_map(|thread| number(5, u64::from(*thread))).collect();
        [number(1, u64::from(pid)), number(2, u64::from(parent)), threads].concat()
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
        let read = |parts: &[Vec<u8>]| core(&image(CORE_MAGIC, &[parts.concat()]));
        let (dead, thread) = (bytes(3, &number(1, 2)), bytes(5, &area(64)));
        let both = read(&[dead, thread.clone()]).expect("read");
        assert_eq!(both, Core { is_dead: true, area: 64 });
        assert_eq!(read(&[bytes(3, &number(1, 1))]).expect("read"), Core::default());
        read(&[thread.clone(), thread]).expect_err("for CRIU, both are one");
        read(&[bytes(5, &[area(64), area(96)].concat())]).expect_err("for CRIU, both are one");
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
        let queue = |signal: u32| {
            bytes(1, &bytes(1, &[&signal.to_ne_bytes()[..], &[0; INFORMATION - 4]].concat()))
        };
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
    fn a_pending_signal_is_whole() {
        for length in [0, 4, INFORMATION - 1, INFORMATION + 1] {
            let entry = bytes(1, &bytes(1, &vec![1; length]));
            each(&entry, &mut refuse_pending).expect_err("it is not");
        }
    }

    #[test]
    fn filters_have_a_beginning() {
        let check = |before: &[Option<u64>]| {
            let mut number = 0;
            let filter = |before: &Option<u64>| {
                bytes(1, &before.map(|before| made::number(2, before)).unwrap_or_default())
            };
            let filters: Vec<u8> = before.iter().flat_map(filter).collect();
            each(&filters, &mut |field, value| refuse_loops(field, value, &mut number))
        };
        check(&[None, Some(0), None, Some(2), Some(3)]).expect("it is good");
        for before in [&[Some(0)][..], &[None, Some(2), Some(1)], &[None, Some(1 << 32)]] {
            check(before).expect_err("CRIU would not end");
        }
    }

    #[test]
    fn a_limit_does_not_kill() {
        let limit = |hard: u64| bytes(1, &[number(1, 0), number(2, hard)].concat());
        let read = |limits: &[u64]| {
            let limits: Vec<u8> = limits.iter().flat_map(|hard| limit(*hard)).collect();
            core(&image(CORE_MAGIC, &[bytes(3, &bytes(8, &limits))]))
        };
        read(&[u64::MAX, 0]).expect("only the second is 0");
        read(&[3600, 0]).expect("it is an hour");
        read(&[1]).expect_err("it is a second");
        let mut limits = [u64::MAX; 16];
        read(&limits).expect("it has none");
        limits[15] = 1000;
        read(&limits).expect_err("it is a millisecond");
    }

    #[test]
    fn a_state_has_32_bits() {
        let dead = bytes(3, &[8, 0x82, 0x80, 0x80, 0x80, 0x10]);
        core(&image(CORE_MAGIC, &[dead])).expect_err("for CRIU, it is dead");
    }

    #[test]
    fn a_run_has_a_plain_name() {
        let read = |parts: &[Vec<u8>]| {
            let message = parts.concat();
            let length = u32::try_from(message.len()).expect("short").to_le_bytes();
            inventory_of(&[&INVENTORY_MAGIC[..], &length, &message].concat())
        };
        let numbers =
            read(&[bytes(3, &[number(6, 3), number(9, 8)].concat()), bytes(13, b"701a07eb-cff8")]);
        assert_eq!(numbers.expect("it is good"), Numbers([0, 3, 0, 0, 8, 0, 0, 0]));
        read(&[bytes(3, &number(6, 3)), bytes(3, &number(9, 8))]).expect_err("for CRIU, it is one");
        for name in [&b"x;flush ruleset"[..], b"x\n", b"\x7f", b"a b"] {
            read(&[bytes(13, name)]).expect_err("nftables would read more");
        }
    }
}
