//! Images with things that no checkpoint of the container has: other kinds of images, of open files
//! and of memory, or texts that CRIU gives to the host's programs. `rt` refuses them before CRIU
//! gets its request.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::checkpoint::{
    COUNT, criu, images, move_on, needs_criu, restore, restore_command, start, write,
};
use super::checkpoint_attacks::is_refused;
use super::checkpoint_guard::checkpoint;
use super::checkpoint_images::{self, image};
use super::other_users::mapped;
use super::terminal::{read_until, receive};
use crate::harness::{Bundle, Outcome, Output, Test, ensure, ensure_eq, kernel, skip};

super::tests! { "checkpoint_kinds":
    an_image_that_is_not_known_is_refused, an_open_file_that_is_not_known_is_refused,
    sockets_need_their_capabilities, a_watch_is_for_a_file_of_the_container, watches_come_back,
    a_path_does_not_go_through_procfs, a_link_in_dev_leads_nowhere, a_message_is_not_made_of_two,
    the_functions_of_a_vdso_are_inside_of_it, a_made_vdso_does_not_hold_up_a_restore,
    a_ring_for_aio_comes_back, a_used_ring_for_aio_is_refused, a_procfs_of_the_host_shows_others,
    a_mount_of_the_hosts_is_one_of_the_configuration, mappings_of_users_are_compared_first,
    a_read_only_rootfs_stays_so,
    advice_empties_no_file, droppable_memory_comes_back, memory_behind_all_other_comes_back,
    memory_is_as_the_kernel_lists_it, a_mapping_is_of_a_kind_that_criu_writes, a_device_has_a_name_of_the_kernels, namespaces_are_compared_first,
    a_run_has_a_plain_name, rules_of_iptables_name_no_program, tracked_connections_are_only_made,
    tracked_connections_of_others_stay, a_deleted_device_needs_its_capability,
    a_link_in_a_tmpfs_leads_nowhere, links_work_after_a_restore,
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap_or_default());
    bytes
}

/// A field with a number in a protobuf message.
pub(super) fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field with bytes.
pub(super) fn bytes(field: u64, bytes: &[u8]) -> Vec<u8> {
    let length = u64::try_from(bytes.len()).unwrap_or_default();
    [&varint(field << 3 | 2)[..], &varint(length), bytes].concat()
}

pub(super) fn framed(message: &[u8]) -> Outcome<Vec<u8>> {
    Ok([&u32::try_from(message.len())?.to_le_bytes()[..], message].concat())
}

/// Changes the first message of an image. The first bytes of the image are so many.
pub(super) fn change(
    path: &Path,
    magic: usize,
    change: &dyn Fn(&[u8]) -> Outcome<Vec<u8>>,
) -> Outcome {
    let image = fs::read(path)?;
    let (magic, rest) = image.split_at(magic);
    let (length, rest) = rest.split_first_chunk().ok_or("it is too short")?;
    let (message, rest) = rest.split_at(usize::try_from(u32::from_le_bytes(*length))?);
    let message = framed(&change(message)?)?;
    Ok(fs::write(path, [magic, &message, rest].concat())?)
}

/// Puts fields before and after those of the first message of an image.
pub(super) fn put_around(path: &Path, magic: usize, before: &[u8], after: &[u8]) -> Outcome {
    change(path, magic, &|message| Ok([before, message, after].concat()))
}

/// A field of a message: the number, the whole field, and the content.
pub(super) type Field<'m> = (u64, &'m [u8], &'m [u8]);

pub(super) fn fields(message: &[u8]) -> Outcome<Vec<Field<'_>>> {
    let number = |at: &mut usize| -> Outcome<u64> {
        let length = message[*at..].iter().position(|byte| *byte < 0x80).ok_or("too short")? + 1;
        let bytes = message[*at..*at + length].iter().rev();
        *at += length;
        Ok(bytes.fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)))
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < message.len() {
        let start = at;
        let tag = number(&mut at)?;
        let mut content = at;
        match tag & 7 {
            0 => drop(number(&mut at)?),
            2 => {
                let length = usize::try_from(number(&mut at)?)?;
                content = at;
                at += length;
            }
            kind => return Err(format!("a field of the kind {kind}").into()),
        }
        found.push((tag >> 3, &message[start..at], &message[content..at]));
    }
    Ok(found)
}

/// The numbers of these fields.
pub(super) fn numbers(message: &[u8], wanted: &[u64]) -> Outcome<Vec<u64>> {
    let all = fields(message)?;
    let found = all.iter().filter(|(field, ..)| wanted.contains(field));
    let number = |bytes: &[u8]| {
        bytes.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f))
    };
    Ok(found.map(|(.., content)| number(content)).collect())
}

/// The number of the field 1.
pub(super) fn first_number(message: &[u8]) -> Outcome<u64> {
    Ok(*numbers(message, &[1])?.first().ok_or("it has no number")?)
}

/// A message with these fields in the place of those with the same numbers. CRIU writes no field
/// twice, except for lists.
pub(super) fn with(message: &[u8], new: &[u8]) -> Outcome<Vec<u8>> {
    let others = fields(new)?;
    let is_old = |number: u64| others.iter().any(|(other, ..)| *other == number);
    let kept = fields(message)?.into_iter().filter(|(number, ..)| !is_old(*number));
    Ok([&kept.map(|(_, field, _)| field).collect::<Vec<_>>().concat(), new].concat())
}

/// The same for a message in a field of another one.
pub(super) fn with_inside(message: &[u8], field: u64, new: &[u8]) -> Outcome<Vec<u8>> {
    let all = fields(message)?;
    let inner = all.iter().find(|(number, ..)| *number == field).ok_or("no such field")?.2;
    with(message, &bytes(field, &with(inner, new)?))
}

/// Fails unless a change of an image is refused with these words. Undoes the change.
pub(super) fn refuses(
    bundle: &Bundle<'_>,
    path: &Path,
    words: &str,
    change: &dyn Fn() -> Outcome,
) -> Outcome {
    let good = fs::read(path).ok();
    change()?;
    is_refused(bundle, words)?;
    match good {
        Some(good) => Ok(fs::write(path, good)?),
        None => Ok(fs::remove_file(path)?),
    }
}

pub(super) fn goes_on(bundle: &Bundle<'_>) -> Outcome {
    bundle.write()?;
    restore(bundle, &[])?.wait_for_output("\n")
}

fn an_image_that_is_not_known_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    for name in ["reg-files.img", "inotify-wd.img", "posix-timers-1.img", "amdgpu-kfd-1.img"] {
        let path = images(test).join(name);
        let words = format!("{name}` of the checkpoint: no checkpoint of this container has");
        refuses(&bundle, &path, &words, &|| Ok(fs::write(&path, "")?))?;
    }
    goes_on(&bundle)
}

/// The owner of a file for signals (`fown_entry`): nobody.
fn nobody() -> Vec<u8> {
    (1..=5).flat_map(|field| number(field, 0)).collect()
}

/// Adds a `file_entry`, which no process has open.
fn add_file(test: &Test, kind: u64, field: u64, message: &[u8]) -> Outcome {
    let entry = [number(1, kind), number(2, 9999), bytes(field, message)].concat();
    let path = images(test).join("files.img");
    let image = fs::read(&path)?;
    Ok(fs::write(path, [image, framed(&entry)?].concat())?)
}

fn an_open_file_that_is_not_known_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("files.img");
    let plugins = [number(1, 9999), bytes(5, &nobody())].concat();
    refuses(&bundle, &path, "an open file of the unknown kind 15", &|| {
        add_file(test, 16, 15, &plugins)
    })?;
    goes_on(&bundle)
}

/// CRIU makes sockets as root of the host.
fn sockets_need_their_capabilities(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("files.img");
    let internet = |family: u64, kind: u64, mark: u64| {
        let options: Vec<u8> = (1..=6).flat_map(|field| number(field, 1)).collect();
        let options = [options, number(10, mark)].concat();
        let numbers = [(1, 9999), (2, 7), (3, family), (4, kind), (5, 1), (6, 7)];
        let numbers: Vec<u8> =
            numbers.into_iter().flat_map(|(field, value)| number(field, value)).collect();
        [numbers, bytes(13, &nobody()), bytes(14, &options)].concat()
    };
    let netlink = [number(1, 9999), number(3, 9), number(8, 1)].concat();
    for (kind, field, message, words) in [
        (4, 4, internet(2, 3, 0), "it has a raw socket, and the container has no CAP_NET_RAW"),
        (4, 4, internet(2, 10, 0), "it has a raw socket"),
        (4, 4, internet(17, 2, 0), "it has a socket of the unknown family 17"),
        (4, 4, internet(2, 1, 7), "it has a socket with a mark"),
        (10, 6, number(1, 9999), "it has a packet socket"),
        (13, 7, netlink, "it has a socket for audit messages"),
        (15, 11, number(1, 9999), "it has a network device of its own (tun)"),
        (19, 21, number(1, 9999), "it has a map for BPF"),
        (5, 16, bytes(11, &[b'x'; 109]), "the name of a unix socket is too long"),
        (6, 8, bytes(3, &number(3, 9)), "a file sends the signal 9"),
    ] {
        refuses(&bundle, &path, words, &|| add_file(test, kind, field, &message))?;
    }
    goes_on(&bundle)
}

/// With the kernel's handle of a file, CRIU opens any file of the filesystem.
fn a_watch_is_for_a_file_of_the_container(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("files.img");
    let handle = |more: &[u8]| {
        [number(1, 8), number(2, 1), (0..16).flat_map(|_| number(3, 0)).collect(), more.to_vec()]
            .concat()
    };
    let watch = |handle: &[u8]| {
        let numbers: Vec<u8> = (1..=6).flat_map(|field| number(field, 2)).collect();
        let watch = [numbers, bytes(7, handle)].concat();
        [number(1, 9999), number(2, 0), bytes(4, &nobody()), bytes(5, &watch)].concat()
    };
    for (path_in_image, words) in [
        (&b""[..], "the watch for inode 2 of 0x2 has no path"),
        (b"/../x", "the watch for `/../x`: its path is not a plain one"),
    ] {
        let more = if path_in_image.is_empty() { vec![] } else { bytes(4, path_in_image) };
        let message = watch(&handle(&more));
        refuses(&bundle, &path, words, &|| add_file(test, 8, 13, &message))?;
    }
    let fanotify = [number(1, 9999), bytes(3, &nobody())].concat();
    let words = "it has a descriptor of fanotify, and the container has no CAP_SYS_ADMIN";
    refuses(&bundle, &path, words, &|| add_file(test, 12, 14, &fanotify))?;
    goes_on(&bundle)
}

/// The process that opens files for CRIU has the host's `/proc` open, at the descriptor 121. It
/// opened the file of the host, and the restored process had it.
fn a_path_does_not_go_through_procfs(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(&format!("exec 5</file; {COUNT}"))?;
    fs::write(bundle.rootfs().join("file"), "")?;
    symlink("/proc/self/fd/121", bundle.rootfs().join("out"))?;
    checkpoint(&bundle)?;
    let path = images(test).join("files.img");
    let own = std::process::id();
    let secret = test.folder.join("secret");
    fs::write(&secret, "")?;
    let (magic, link) = (format!("/proc/self/fd/121/{own}/root"), format!("/out/{own}/root"));
    for way in [magic, link] {
        let name = format!("{way}{}", secret.display());
        let words = format!("the path `{name}`: it goes through the link `/proc/self/fd/121`");
        let file = [number(1, 9999), number(2, 2), number(3, 0), bytes(5, &nobody())].concat();
        let file = [file, bytes(6, name.as_bytes())].concat();
        refuses(&bundle, &path, &words, &|| add_file(test, 1, 3, &file))?;
        let socket = bytes(11, format!("{way}/x").as_bytes());
        let words = format!("the path `{way}/x`: it goes through the link `/proc/self/fd/121`");
        refuses(&bundle, &path, &words, &|| add_file(test, 5, 16, &socket))?;
    }
    // The kernel asks who has opened them.
    for (name, capability) in [
        ("/proc/kmsg", "CAP_SYSLOG"),
        ("/proc/kallsyms", "CAP_SYSLOG"),
        ("/proc/iomem", "CAP_SYS_ADMIN"),
        ("/proc/1/pagemap", "CAP_SYS_ADMIN"),
    ] {
        let file = [number(1, 9999), number(2, 0), number(3, 0), bytes(5, &nobody())].concat();
        let file = [file, bytes(6, name.as_bytes())].concat();
        let words = format!(
            "the path `{name}`: to open it requires {capability}, which the container lacks"
        );
        refuses(&bundle, &path, &words, &|| add_file(test, 1, 3, &file))?;
    }
    goes_on(&bundle)
}

/// CRIU makes one message of two. The first socket has an absolute name beside a directory, and the
/// second one a name in that directory.
fn a_message_is_not_made_of_two(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("files.img");
    let absolute = [bytes(11, b"/tmp/s"), bytes(14, b"/proc/self/fd/121")].concat();
    let two = [number(1, 5), number(2, 9999), bytes(16, &absolute), bytes(16, &bytes(11, b"s"))];
    refuses(&bundle, &path, "it has the field 16 twice", &|| {
        Ok(fs::write(&path, [fs::read(&path)?, framed(&two.concat())?].concat())?)
    })?;
    let words = "the path `/proc/self/fd/121`: it goes through the link";
    refuses(&bundle, &path, words, &|| add_file(test, 5, 16, &absolute))?;
    goes_on(&bundle)
}

/// CRIU writes jumps where the symbols of the vDSO in the images say.
fn the_functions_of_a_vdso_are_inside_of_it(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let pages = images(test).join("pages-1.img");
    let mut memory = fs::read(&pages)?;
    let read = |memory: &[u8], at: usize, length: usize| -> Outcome<usize> {
        let part = memory.get(at..at + length).ok_or("it is cut")?;
        Ok(part.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    };
    let is_vdso = |page: &usize| {
        memory[*page..].starts_with(b"\x7fELF\x02")
            && memory[*page..*page + 4096].windows(7).any(|it| it == b"__vdso_")
    };
    let start = (0..memory.len()).step_by(4096).find(is_vdso).ok_or("no vDSO")?;
    let headers = start + read(&memory, start + 32, 8)?;
    let mut dynamic = None;
    for header in (headers..).step_by(56).take(read(&memory, start + 56, 2)?) {
        if read(&memory, header, 4)? == 2 {
            dynamic = Some(start + read(&memory, header + 8, 8)?);
        }
    }
    let mut at = dynamic.ok_or("no dynamic section")?;
    while read(&memory, at, 8)? != 6 {
        at += 16;
    }
    let mut symbol = start + read(&memory, at + 8, 8)?;
    while read(&memory, symbol + 8, 8)? == 0 {
        symbol += 24;
    }
    memory[symbol + 8..symbol + 16].copy_from_slice(&0x1000_0000_u64.to_le_bytes());
    let words = "mm-1.img` of the checkpoint: its vDSO: its symbol";
    refuses(&bundle, &pages, words, &|| Ok(fs::write(&pages, &memory)?))?;
    let map = images(test).join("pagemap-1.img");
    let words = "read `pagemap-1.img`: the page at";
    refuses(&bundle, &map, words, &|| Ok(fs::write(&map, &fs::read(&map)?[..8 + 4 + 2])?))?;
    goes_on(&bundle)
}

/// A mapping that CRIU takes for the vDSO, by CRIU's own mark. It has many more pages than the
/// kernel's, and each of 54 000 buckets of its hash table leads to the same 10 000 symbols.
fn a_made_vdso_does_not_hold_up_a_restore(test: &Test) -> Outcome {
    needs_criu()?;
    // `read`, `mmap`, `mprotect` and `munmap`
    let script = r#"
        $| = 1;
        my ($at, $size) = (0x200000000, 64 * 4096);
        my @symbols = (2) x (($size - 272) / 4);
        my $buckets = @symbols - 10885;
        @symbols[0..3] = ($buckets, 2, 0, 0);
        my $end = $#symbols - 1;
        $end-- while ($end - 4) % 6 == 2 || ($end - 4) % 6 == 3;
        $symbols[$end] = 3;
        my $elf = pack("a16SSLQQQLSSSSSS", "\x7fELF\2\1\1", 0, 0, 0, 0, 64, 0, 0, 0, 0, 2, 0, 0, 0);
        $elf .= pack("LLQQQQQQ", 1, 0, 0, $at, 0, 0, 0, 0);
        $elf .= pack("LLQQQQQQ", 2, 0, 176, 0, 0, 96, 0, 0);
        $elf .= pack("Q12", 5, $at, 10, 8, 11, 24, 6, $at + 240, 0x6ffffef5, $at + 272, 0, 0);
        my $mark = pack("QQQqq", 0x4f53447655495243, $at, 3, -1, -1);
        sub put {
            my ($at, $content) = @_;
            open(my $out, ">", "/content"); print $out $content; close($out);
            syscall(9, $at, length($content), 3, 0x32, -1, 0) == $at or die;
            open(my $in, "<", "/content");
            syscall(0, fileno($in), $at, length($content)) == length($content) or die;
        }
        put($at, $elf . pack("L*", @symbols));
        put(0x300000000, $mark);
        syscall(10, 0x300000000, 4096, 5) == 0 or die;
        open(my $maps, "<", "/proc/self/maps");
        while (<$maps>) {
            syscall(11, hex($1), hex($2) - hex($1)) if /^(\w+)-(\w+) .*\[vdso\]/;
        }
        for (my $i = 0; ; $i++) { print "$i\n"; select(undef, undef, undef, 0.1); }
    "#;
    let bundle = test.perl(script)?;
    checkpoint(&bundle)?;
    is_refused(&bundle, "mm-1.img` of the checkpoint: its vDSO: it has more than 8 pages")
}

/// Makes a ring (`io_setup`).
const RING: &str = r#"
    $| = 1;
    my $ring = "\0" x 8;
    syscall(206, 8, $ring) == 0 or die;
"#;
pub(super) const PERL_COUNT: &str =
    r#"for (my $i = 0; ; $i++) { print "$i\n"; select(undef, undef, undef, 0.1); }"#;

fn a_ring_for_aio_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.perl(&format!("{RING}{PERL_COUNT}"))?;
    checkpoint(&bundle)?;
    goes_on(&bundle)
}

/// For a used ring, CRIU writes to the container's `/dev/null`, which can be a fifo.
fn a_used_ring_for_aio_is_refused(test: &Test) -> Outcome {
    needs_criu()?;
    // `io_submit` and `io_getevents`
    let script = r#"
        open(my $null, ">", "/dev/null");
        my ($context, $byte) = (unpack("Q", $ring), "x");
        my $buffer = unpack("Q", pack("P", $byte));
        my $request = pack("QLLSsLQQqQLL", 0, 0, 0, 1, 0, fileno($null), $buffer, 1, 0, 0, 0, 0);
        my $list = pack("P", $request);
        syscall(209, $context, 1, $list) == 1 or die;
        my $events = "\0" x 32;
        syscall(208, $context, 1, 1, $events, 0) == 1 or die;
    "#;
    let bundle = test.perl(&format!("{RING}{script}{PERL_COUNT}"))?;
    let container = start(&bundle)?;
    container.wait_for_output("1\n")?;
    let failed = write(test, &container, &[])?.fails_with("it could not be restored")?;
    ensure(failed.stderr.contains("was used (`io_submit(2)`)"), failed.stderr)?;
    ensure_eq(container.status()?.as_str(), "running")?;
    fs::remove_dir_all(images(test))?;

    let bundle = test.perl(&format!("{RING}{PERL_COUNT}"))?;
    checkpoint(&bundle)?;
    let pages = images(test).join("pages-1.img");
    let mut memory = fs::read(&pages)?;
    // `struct aio_ring`: `id`, `nr`, `head`, `tail` and `magic`.
    let is_ring = |page: &usize| memory[*page + 16..].starts_with(&0xa10a_10a1_u32.to_le_bytes());
    let ring = (0..memory.len()).step_by(4096).find(is_ring).ok_or("no ring")?;
    ensure_eq(&memory[ring + 8..ring + 16], &[0; 8])?;
    memory[ring + 12] = 1;
    refuses(&bundle, &pages, "mm-1.img` of the checkpoint: the ring for AIO at", &|| {
        Ok(fs::write(&pages, &memory)?)
    })?;
    goes_on(&bundle)
}

/// The numbers there are those of processes outside of the container.
fn a_procfs_of_the_host_shows_others(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?.mount(json!({
        "destination": "/host", "type": "bind", "source": "/proc", "options": ["bind", "ro"],
    }));
    fs::create_dir(bundle.rootfs().join("host"))?;
    checkpoint(&bundle)?;
    let path = images(test).join("files.img");
    let file = [number(1, 9999), number(2, 0), number(3, 0), bytes(5, &nobody())].concat();
    let file = [file, bytes(6, b"/host/1/environ")].concat();
    let words = "the path `/host/1/environ`: to open it requires CAP_SYS_PTRACE";
    let good = checkpoint_images::mounts(test)?;
    let mut other = good.clone();
    // A filesystem that CRIU does not know.
    let host = checkpoint_images::at(&good, "/host")?;
    other[host] = with(&good[host], &number(1, 0))?;
    for mounts in [&good, &other] {
        checkpoint_images::write_mounts(test, mounts)?;
        refuses(&bundle, &path, words, &|| add_file(test, 1, 3, &file))?;
    }
    checkpoint_images::write_mounts(test, &good)?;
    goes_on(&bundle)
}

/// CRIU has keys of its own. With this one, it mounts any filesystem, as root of the host.
fn a_mount_of_the_hosts_is_one_of_the_configuration(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = mounts(test)?;
    for key in ["CRIU:EXTERNAL_DEV", "/etc", ""] {
        let numbers = [(1, 17), (2, 999), (3, 0x7777), (4, 1), (5, 0), (17, 0)];
        let numbers: Vec<u8> =
            numbers.into_iter().flat_map(|(field, value)| number(field, value)).collect();
        let texts = [(6, "/"), (7, "/vol"), (8, "overlay"), (9, "upperdir=/etc"), (18, key)];
        let texts: Vec<u8> =
            texts.into_iter().flat_map(|(field, text)| bytes(field, text.as_bytes())).collect();
        let words = format!("the mount `/vol` is not a mount of the configuration: `{key}`");
        refuses(&bundle, &path, &words, &|| {
            let entry = framed(&[&numbers[..], &texts].concat())?;
            Ok(fs::write(&path, [fs::read(&path)?, entry].concat())?)
        })?;
    }
    goes_on(&bundle)
}

/// The image of the mounts.
fn mounts(test: &Test) -> Outcome<PathBuf> {
    named(test, "mountpoints-")
}

/// The only image whose name begins so.
fn named(test: &Test, start: &str) -> Outcome<PathBuf> {
    let entries = fs::read_dir(images(test))?.flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(start.as_bytes()))
    };
    let found: Vec<_> = entries.filter(is_it).collect();
    ensure_eq(found.len(), 1)?;
    Ok(found[0].clone())
}

/// CRIU makes the files of the images before the processes can be looked at.
fn mappings_of_users_are_compared_first(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = mapped(test.sh(COUNT)?);
    fs::set_permissions(&test.folder, fs::Permissions::from_mode(0o755))?;
    checkpoint(&bundle)?;
    let path = named(test, "userns-")?;
    // CRIU takes a missing number for 0.
    let ids = images(test).join("ids-1.img");
    refuses(&bundle, &ids, "userns-0.img` of the checkpoint", &|| {
        change(&ids, 8, &|ids| with(ids, &number(10, 0)))
    })?;
    for (users, groups, file) in [(0, 100_000, "uid_map"), (100_000, 0, "gid_map")] {
        let extent = |outside: u64| [number(1, 0), number(2, outside), number(3, 65536)].concat();
        let message = [bytes(1, &extent(users)), bytes(2, &extent(groups))].concat();
        let words = format!("its `{file}` is not the mapping that the configuration has");
        refuses(&bundle, &path, &words, &|| {
            let magic = fs::read(&path)?[..8].to_vec();
            Ok(fs::write(&path, [magic, framed(&message)?].concat())?)
        })?;
    }
    goes_on(&bundle)
}

/// CRIU makes a mount writable when it makes a deleted file again.
fn a_read_only_rootfs_stays_so(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?.edit(|config| config["root"]["readonly"] = json!(true));
    checkpoint(&bundle)?;
    let remaps = images(test).join("remap-fpath.img");
    let magic = [0x19, 0x43, 0x56, 0x54, 0x54, 0x39, 0x13, 0x59];
    let file = |id: u64, name: &str| {
        let file = [number(1, id), number(2, 0), number(3, 0), bytes(5, &nobody())].concat();
        let file = [file, bytes(6, name.as_bytes())].concat();
        framed(&[number(1, 1), number(2, id), bytes(3, &file)].concat())
    };
    let files = images(test).join("files.img");
    let all = [fs::read(&files)?, file(9998, "/gone")?, file(9999, "/there")?].concat();
    fs::write(&files, all)?;
    let words = "the deleted file `/gone` is on a read-only mount";
    refuses(&bundle, &remaps, words, &|| {
        let entry = [number(1, 9998), number(2, 9999), number(3, 0)].concat();
        Ok(fs::write(&remaps, [magic.to_vec(), framed(&entry)?].concat())?)
    })?;
    goes_on(&bundle)
}

/// CRIU opens the files of `/dev` as root of the host.
fn a_link_in_dev_leads_nowhere(test: &Test) -> Outcome {
    needs_criu()?;
    let version = String::from_utf8(criu().arg("--version").output()?.stdout)?;
    if !version.starts_with("Version: 4") {
        return skip("this criu has the host's /proc open at another descriptor");
    }
    let console = test.folder.join("console");
    let listener = UnixListener::bind(&console)?;
    let flag = format!("--console-socket={}", console.display());
    let script = "exec 5>/dev/file; while read line; do echo got $line; done";
    let bundle = test
        .sh(script)?
        .edit(|config| config["process"]["terminal"] = json!(true))
        .flag(flag.clone());
    let container = start(&bundle)?;
    let mut master: fs::File = receive(&listener)?.into();
    master.write_all(b"one\n")?;
    read_until(&mut master, "got one")?;
    write(test, &container, &[])?.success()?;
    let secret = test.folder.join("secret");
    fs::write(&secret, "")?;
    let to = format!("/proc/self/fd/121/{}/root{}", std::process::id(), secret.display());
    let mut changed = 0;
    for entry in fs::read_dir(images(test))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".tar.gz.img") && holds(&path, "./file")? {
            relink(test, &path, "file", Path::new(&to))?;
            changed += 1;
        }
    }
    ensure_eq(changed, 1)?;
    bundle.write()?;
    let restore = restore_command(&bundle, &test.id(), &["--detach", &flag]);
    Output::of(restore)?.fails_with("Too many levels of symbolic links").map(drop)
}

/// Replaces a file of an archive by a link.
fn relink(test: &Test, archive: &Path, name: &str, to: &Path) -> Outcome {
    let folder = test.folder.join("archive");
    fs::create_dir(&folder)?;
    let tar = |args: &[&str]| -> Outcome {
        let mut tar = Command::new("tar");
        tar.args(args).arg(archive).arg("--directory").arg(&folder).stdin(Stdio::null());
        if args.contains(&"--create") {
            tar.arg(".");
        }
        ensure(tar.status()?.success(), "tar failed")
    };
    tar(&["--extract", "--gzip", "--file"])?;
    let old = folder.join(name);
    if old.is_dir() {
        fs::remove_dir_all(old)?;
    } else {
        fs::remove_file(old)?;
    }
    symlink(to, folder.join(name))?;
    tar(&["--create", "--gzip", "--file"])
}

/// The first watch is for a directory, the second for a file that is deleted, and still open.
fn watches_come_back(test: &Test) -> Outcome {
    needs_criu()?;
    // `inotify_init1` and `inotify_add_watch`: of new files, and of changes.
    let script = "$| = 1; ($etc, $gone) = ('/etc', '/gone'); open(my $file, '>', $gone); \
        my $watches = syscall(294, 0); syscall(254, $watches, $etc, 0x100); \
        syscall(254, $watches, $gone, 2); unlink($gone); print \"1\\n\"; \
        open(my $in, \"<&=$watches\"); \
        while (1) { select(undef, undef, undef, 0.1); next unless -e '/go'; \
        open(my $new, '>', '/etc/new'); close($new); sysread($in, my $event, 4096); \
        print \"an event\\n\" if length($event) > 16; }";
    let bundle = test.perl(script)?;
    fs::create_dir_all(bundle.rootfs().join("etc"))?;
    checkpoint(&bundle)?;
    fs::write(bundle.rootfs().join("go"), "")?;
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("an event\n")
}

/// A `vma_entry`, of the image of a process's memory.
pub(super) fn mapping(start: u64, end: u64, flags: u64, status: u64, file: u64) -> Vec<u8> {
    let fields = [(1, start), (2, end), (3, 0), (4, 0), (5, 3), (6, flags), (7, status), (8, file)];
    let fields: Vec<u8> =
        fields.into_iter().flat_map(|(field, value)| number(field, value)).collect();
    bytes(14, &fields)
}

/// By another kind, CRIU attached any segment of System V of the host, or mapped its own files.
fn a_mapping_is_of_a_kind_that_criu_writes(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("mm-1.img");
    let (usual, private, shared, segment) = (1, 1 << 9, 1 << 8, 1 << 10);
    for (status, file, words) in [
        (usual, 1, "is of an unknown kind: 0x1"),
        (usual | segment, 1, "is of an unknown kind: 0x401"),
        (usual | private | segment, 1, "is of an unknown kind: 0x601"),
        (usual | private | shared, 1, "is of an unknown kind: 0x301"),
        (usual | private, 0, "has an open file"),
    ] {
        let words = format!("mm-1.img` of the checkpoint: the mapping at 0x10000 {words}");
        let before = mapping(0x10000, 0x11000, 0x22, status, file);
        refuses(&bundle, &path, &words, &|| put_around(&path, 8, &before, &[]))?;
    }
    goes_on(&bundle)
}

/// `MADV_REMOVE` emptied a file of a volume that the configuration has read-only.
fn advice_empties_no_file(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("mm-1.img");
    let mut advised = mapping(0x10000, 0x11000, 0x22, 1 | 1 << 9, 1).split_off(2);
    advised.extend(number(9, 1 << 9));
    let before = bytes(14, &advised);
    let words = "mm-1.img` of the checkpoint: a mapping has the advice 0x200";
    refuses(&bundle, &path, words, &|| put_around(&path, 8, &before, &[]))?;
    goes_on(&bundle)
}

/// Memory that the kernel may drop (`MAP_DROPPABLE`), as CRIU writes it since 4.2.
fn droppable_memory_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    if kernel()? < (6, 11) {
        return skip("the kernel has no MAP_DROPPABLE");
    }
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let dropped = mapping(0x10000, 0x11000, 0x4028, 1 | 1 << 9, 1);
    put_around(&images(test).join("mm-1.img"), 8, &dropped, &[])?;
    goes_on(&bundle)
}

/// A program of 32 bits whose memory is in one piece, at the lowest address. CRIU 4.1.1 put its own
/// code where the last mapping belongs, and ran the program's memory as root of the host.
fn memory_behind_all_other_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    if !cfg!(target_arch = "x86_64") {
        return skip("the host has no programs of 32 bits");
    }
    // Maps 1 MiB behind itself, unmaps all that is above, and counts.
    let code = [
        &[0xb8, 192, 0, 0, 0, 0xbb, 0, 0x10, 1, 0, 0xb9, 0, 0, 0x10, 0, 0xba, 3, 0, 0, 0][..],
        &[0xbe, 0x32, 0, 0, 0, 0xbf, 0xff, 0xff, 0xff, 0xff, 0x31, 0xed, 0xcd, 0x80],
        &[0xb8, 91, 0, 0, 0, 0xbb, 0, 0x10, 0x11, 0, 0xb9, 0, 0xd0, 0xee, 0xff, 0xcd, 0x80],
        &[0xb8, 91, 0, 0, 0, 0xbb, 0, 0xe0, 0xff, 0xff, 0xb9, 0, 0x10, 0, 0, 0xcd, 0x80],
        &[0xb8, 4, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9, 0xc6, 0, 1, 0, 0xba, 2, 0, 0, 0, 0xcd, 0x80],
        &[0xb8, 162, 0, 0, 0, 0xbb, 0xbe, 0, 1, 0, 0x31, 0xc9, 0xcd, 0x80, 0xeb, 0xda],
        // 0.1 s
        &[0, 0, 0, 0, 0, 0xe1, 0xf5, 5],
        b"1\n",
    ]
    .concat();
    let length = u32::try_from(0x54 + code.len())?;
    let kind: [u16; 2] = [2, 3];
    let header: [u32; 5] = [1, 0x10054, 0x34, 0, 0];
    let sizes: [u16; 6] = [0x34, 0x20, 1, 0, 0, 0];
    let segment: [u32; 8] = [1, 0, 0x10000, 0x10000, length, length, 5, 0x1000];
    let program = [
        &b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0"[..],
        &kind.map(u16::to_le_bytes).concat(),
        &header.map(u32::to_le_bytes).concat(),
        &sizes.map(u16::to_le_bytes).concat(),
        &segment.map(u32::to_le_bytes).concat(),
        &code,
    ]
    .concat();
    let bundle = test.sh("")?.edit(|config| config["process"]["args"] = json!(["/program"]));
    let path = bundle.rootfs().join("program");
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let Ok(mut once) = Command::new(&path).stdout(Stdio::null()).spawn() else {
        return skip("the host has no programs of 32 bits");
    };
    once.kill()?;
    once.wait()?;
    checkpoint(&bundle)?;
    goes_on(&bundle)
}

/// CRIU looks for a place for its own code between the mappings, and stops at a fake one.
fn memory_is_as_the_kernel_lists_it(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("mm-1.img");
    let mapping = |start, end, flags, status| mapping(start, end, flags, status, 1);
    let private = 1 | 1 << 9;
    for (before, after, words) in [
        (mapping(0x10000, 0x11000, 0x22, 1 << 16), vec![], "is after a range without access"),
        (vec![], mapping(0x10000, 0x11000, 0x22, private), "is below the one before it"),
        (mapping(0x10000, 1 << 46, 0x22, private), vec![], "is below the one before it"),
        // `VMA_PREMMAPED`, by which CRIU finds the memory that it has filled.
        (mapping(0x10000, 0x11000, 0x22, private | 1 << 30), vec![], "is of an unknown kind"),
        // `MAP_HUGETLB`, of 2 MiB.
        (mapping(0x20_0000, 0x20_1000, 0x5404_0022, private), vec![], "does not have whole pages"),
        (mapping(0x10001, 0x11000, 0x22, private), vec![], "does not have whole pages"),
        // CRIU makes one file for both: of huge pages, as one of them says.
        (
            [
                mapping(0x10000, 0x11000, 0x21, 1 | 1 << 8),
                mapping(0x20_0000, 0x40_0000, 0x5404_0021, 1 | 1 << 8),
            ]
            .concat(),
            vec![],
            "the mapping at 0x200000 is shared memory of huge pages",
        ),
        // A ring for AIO.
        (
            vec![],
            bytes(16, &[number(1, 0x10000), number(2, 1), number(3, 0x1000)].concat()),
            "is not one of the mappings",
        ),
    ] {
        refuses(&bundle, &path, words, &|| put_around(&path, 8, &before, &after))?;
    }
    goes_on(&bundle)
}

/// CRIU makes a path below `/proc/sys` of the name, and writes a text of the images there.
fn a_device_has_a_name_of_the_kernels(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = image(test, "netdev-")?;
    let device = |kind: u64, name: &str| {
        let numbers = [number(1, kind), number(2, 5), number(3, 1500), number(4, 0)].concat();
        [numbers, bytes(5, name.as_bytes())].concat()
    };
    let add = |message: &[u8]| -> Outcome {
        Ok(fs::write(&path, [fs::read(&path)?, framed(message)?].concat())?)
    };
    for (message, words) in [
        (device(6, "../kernel/x"), "the name `../kernel/x` of a device"),
        (device(6, &"x".repeat(1100)), "the name of a device is too long"),
        (device(5, "venet0"), "a device of the kind 5"),
    ] {
        refuses(&bundle, &path, words, &|| add(&message))?;
    }
    goes_on(&bundle)
}

/// In the host's network namespace, CRIU changes the host's packet filter before `rt` compares the
/// processes.
fn namespaces_are_compared_first(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("inventory.img");
    // Without the first bytes and the length.
    let ids = fs::read(images(test).join("ids-1.img"))?.split_off(12);
    for (field, name) in [(6, "network"), (7, "ipc"), (8, "uts")] {
        let at = ids.windows(2).position(|part| part[0] == field << 3);
        let there = u64::from(ids[at.ok_or("no namespace")? + 1]);
        let same = number(u64::from(field), there);
        let words = format!("ids-1.img` of the checkpoint: it is in the host's {name}");
        refuses(&bundle, &path, &words, &|| {
            change(&path, 4, &|inventory| with_inside(inventory, 3, &same))
        })?;
    }
    // The configuration has no user namespace.
    let words = "it has a user namespace, and `linux.namespaces` has none";
    refuses(&bundle, &path, words, &|| {
        change(&path, 4, &|inventory| with_inside(inventory, 3, &number(10, 99)))
    })?;
    goes_on(&bundle)
}

/// CRIU writes the name into commands for nftables.
fn a_run_has_a_plain_name(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("inventory.img");
    let name = bytes(13, b"x;flush ruleset");
    refuses(&bundle, &path, "the name of its run is not a plain one", &|| {
        change(&path, 4, &|inventory| with(inventory, &name))
    })?;
    goes_on(&bundle)
}

/// `iptables-restore` would run the program as root of the host.
fn rules_of_iptables_name_no_program(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    for name in ["iptables-10.img", "ip6tables-10.img"] {
        let path = images(test).join(name);
        let rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -M /bin/false -j x\nCOMMIT\n";
        let words = format!("{name}` of the checkpoint: its line 3 is not one that `rt` knows");
        refuses(&bundle, &path, &words, &|| Ok(fs::write(&path, rules)?))?;
    }
    goes_on(&bundle)
}

/// A netlink message for the kernel: its length, its kind, and zeros.
fn message(length: u32, kind: u16) -> Vec<u8> {
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 14]].concat()
}

fn tracked_connections_are_only_made(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("netns-ct-10.img");
    for (message, words) in [
        // One that deletes all connections, and one whose length CRIU believes.
        (
            message(20, 1 << 8 | 2),
            "netns-ct-10.img` of the checkpoint: it has a message of the kind 0x102",
        ),
        (message(4, 1 << 8), "a message has a wrong length"),
    ] {
        refuses(&bundle, &path, words, &|| Ok(fs::write(&path, &message)?))?;
    }
    goes_on(&bundle)
}

/// The message makes no sense to the kernel, but CRIU does not read it.
fn tracked_connections_of_others_stay(test: &Test) -> Outcome {
    needs_criu()?;
    let other = test.sh("exec sleep 60")?.start()?;
    let network = format!("/proc/{}/ns/net", other.pid()?);
    let bundle = test.sh(COUNT)?.namespace(json!({ "type": "network", "path": network }));
    checkpoint(&bundle)?;
    let name = image(test, "netns-")?;
    let name =
        name.file_name().unwrap_or_default().to_string_lossy().replace("netns-", "netns-ct-");
    fs::write(images(test).join(name), message(20, 1 << 8))?;
    goes_on(&bundle)
}

/// CRIU would make the device, on a volume too.
fn a_deleted_device_needs_its_capability(test: &Test) -> Outcome {
    needs_criu()?;
    let script = format!("exec 5>/file; echo 1 >&5; rm /file; {COUNT}");
    let bundle = test.sh(&script)?;
    checkpoint(&bundle)?;
    let path = image(test, "ghost-file-")?;
    // A block device.
    let device = [number(3, 0o60600), number(6, 0x800)].concat();
    refuses(&bundle, &path, "it is a device, and the container has no CAP_MKNOD", &|| {
        change(&path, 8, &|ghost| with(ghost, &device))
    })?;
    goes_on(&bundle)
}

/// CRIU would make the deleted file in a directory of the host for some time.
fn a_link_in_a_tmpfs_leads_nowhere(test: &Test) -> Outcome {
    needs_criu()?;
    let script = format!("mkdir /t/d; exec 5>/t/d/file; echo 1 >&5; rm /t/d/file; {COUNT}");
    let bundle =
        test.sh(&script)?.mount(json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs" }));
    fs::create_dir(bundle.rootfs().join("t"))?;
    checkpoint(&bundle)?;
    let folder = test.folder.join("host");
    fs::create_dir(&folder)?;
    let mut changed = 0;
    for entry in fs::read_dir(images(test))? {
        let path = entry?.path();
        let is_archive = path.to_string_lossy().ends_with(".tar.gz.img");
        if is_archive && holds(&path, "./d")? {
            relink(test, &path, "d", &folder)?;
            changed += 1;
        }
    }
    ensure_eq(changed, 1)?;
    is_refused(&bundle, "Too many levels of symbolic links")?;
    ensure_eq(fs::read_dir(&folder)?.count(), 0)
}

/// Whether an archive has a file of this name.
fn holds(archive: &Path, name: &str) -> Outcome<bool> {
    let list = Command::new("tar").args(["--list", "--gzip", "--file"]).arg(archive).output()?;
    let list = String::from_utf8(list.stdout)?;
    Ok(list.lines().any(|line| line.trim_end_matches('/') == name))
}

/// In a tmpfs, in a volume, and in `/dev`.
fn links_work_after_a_restore(test: &Test) -> Outcome {
    needs_criu()?;
    let volume = test.folder.join("volume");
    fs::create_dir(&volume)?;
    let script = "ln -s f /t/l; echo tmpfs >/t/f; ln -s f /vol/l; echo volume >/vol/f; \
        exec 5>/dev/gone; rm /dev/gone; ln -s ../t/f /dev/l; \
        i=0; while :; do echo $i; i=$((i + 1)); [ -e /go ] && cat /t/l /vol/l /dev/l; sleep 0.1; done";
    let bundle = test
        .sh(script)?
        .mount(json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs" }))
        .mount(
            json!({ "destination": "/vol", "type": "bind", "source": volume, "options": ["bind"] }),
        );
    for name in ["t", "vol"] {
        fs::create_dir(bundle.rootfs().join(name))?;
    }
    let restored = move_on(&bundle, "1\n")?;
    fs::write(bundle.rootfs().join("go"), "")?;
    restored.wait_for_output("tmpfs\nvolume\ntmpfs\n")?;
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", restored.pid()?))?;
    ensure(!mounts.contains("nosymfollow"), mounts)
}
