//! Images that have CRIU change the host before `rt` can compare anything. `rt` refuses them before
//! CRIU gets its request.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;

use super::checkpoint::{COUNT, images, needs_criu, restore, restore_command, start, write};
use super::checkpoint_attacks::is_refused;
use super::checkpoint_guard::{checkpoint, replace, with_volume};
use super::checkpoint_kinds::{
    self, change, framed, goes_on, mapping, number, put_around, refuses, with, with_inside,
};
use super::interrupts::ends_cleanly;
use crate::harness::{Bundle, Outcome, Test, cgroups_of, ensure, ensure_eq, wait_until};

super::tests! { "checkpoint_images":
    a_tmpfs_is_no_directory_of_the_host, a_volume_is_not_mounted_again, a_volume_has_its_name_where_criu_looks, a_volume_is_not_the_root,
    a_file_has_a_path_from_the_root, a_second_name_of_a_file_is_not_behind_a_link, a_deleted_file_is_not_below_another_one, a_deleted_file_comes_back_beside_a_read_only_volume, an_image_is_read_to_its_end,
    shared_memory_is_filled_inside_of_it, pages_are_in_one_place, pages_are_not_cut_off,
    lists_of_an_earlier_checkpoint_are_passed_over, filters_have_a_beginning,
    many_mounts_do_not_hold_up_a_restore, a_signal_ends_the_checks_of_images,
    a_value_is_of_the_type_of_its_field, a_value_is_there_once, files_of_rt_are_short,
    memory_of_images_is_within_the_limit, a_container_near_its_limit_comes_back,
    processes_are_not_in_the_namespace_of_criu, rules_of_the_network_include_no_file, routes_are_only_routes, no_policy_is_loaded,
}

/// The path of the only image whose name begins so.
pub(super) fn image(test: &Test, start: &str) -> Outcome<PathBuf> {
    for entry in fs::read_dir(images(test))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)) {
            return Ok(path);
        }
    }
    Err(format!("there is no image {start}").into())
}

/// The messages of an image, each without its length.
fn messages(path: &Path) -> Outcome<Vec<Vec<u8>>> {
    let image = fs::read(path)?;
    let (mut messages, mut rest) = (Vec::new(), &image[8..]);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (message, after) = after.split_at(usize::try_from(u32::from_le_bytes(*length))?);
        messages.push(message.to_vec());
        rest = after;
    }
    Ok(messages)
}

fn write_messages(path: &Path, messages: &[Vec<u8>]) -> Outcome {
    let mut image = fs::read(path)?[..8].to_vec();
    for message in messages {
        image.extend(framed(message)?);
    }
    Ok(fs::write(path, image)?)
}

/// The messages of the image of mounts.
pub(super) fn mounts(test: &Test) -> Outcome<Vec<Vec<u8>>> {
    messages(&image(test, "mountpoints-")?)
}

pub(super) fn write_mounts(test: &Test, messages: &[Vec<u8>]) -> Outcome {
    write_messages(&image(test, "mountpoints-")?, messages)
}

/// A field of bytes in a protobuf message.
fn bytes(number: u8, bytes: &[u8]) -> Outcome<Vec<u8>> {
    let length = u8::try_from(bytes.len())?;
    let length = if length < 0x80 { vec![length] } else { vec![length, 1] };
    Ok([&[number << 3 | 2], &length[..], bytes].concat())
}

/// The number of the mount message with this mount point.
pub(super) fn at(messages: &[Vec<u8>], point: &str) -> Outcome<usize> {
    let field = bytes(7, point.as_bytes())?;
    let has = |message: &Vec<u8>| message.windows(field.len()).any(|part| part == field);
    Ok(messages.iter().position(has).ok_or_else(|| format!("no mount on {point}"))?)
}

/// With `MS_BIND`, CRIU would mount a directory of the host, and write the content of the tmpfs
/// there.
fn a_tmpfs_is_no_directory_of_the_host(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(&format!("echo 1 >/dev/new; {COUNT}"))?;
    checkpoint(&bundle)?;
    let folder = test.folder.join("host");
    fs::create_dir(&folder)?;
    let good = mounts(test)?;
    let shared = at(&good, "/dev")?;
    // `MS_BIND`, and `MS_SHARED`, in `sb_flags`. The same `MS_BIND` in `flags`.
    let flags: [&[u8]; 3] =
        [&[0x88, 1, 0x80, 0x20], &[0x88, 1, 0x80, 0x80, 0x40], &[5 << 3, 0x80, 0x20]];
    for flags in flags {
        let mut messages = good.clone();
        let fields = [bytes(8, folder.as_os_str().as_encoded_bytes())?, flags.to_vec()].concat();
        messages[shared] = with(&good[shared], &fields)?;
        write_mounts(test, &messages)?;
        is_refused(&bundle, "the mount `/dev` has the flags 0x1")?;
        ensure_eq(fs::read_dir(&folder)?.count(), 0)?;
    }
    write_mounts(test, &good)?;
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// CRIU would mount a part of the volume there, because the device is the same. That part would be
/// writable, and CRIU deletes files in it.
fn a_volume_is_not_mounted_again(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, _) = with_volume(test)?;
    fs::create_dir_all(bundle.rootfs().join("var"))?;
    checkpoint(&bundle)?;
    let good = mounts(test)?;
    for of in ["/vol", "/"] {
        let mut messages = good.clone();
        let of = at(&good, of)?;
        // Both show the whole filesystem.
        messages[of] = with(&good[of], &bytes(6, b"/")?)?;
        let mut again = good[of].clone();
        // The name of the host's files is the last field.
        let name = [&[0x92, 1, 4], &b"/vol"[..]].concat();
        again.truncate(again.len() - if again.ends_with(&name) { name.len() } else { 0 });
        // A tmpfs with another number, which is not read-only.
        let tmpfs = [1 << 3, 5, 2 << 3, 0xff, 0x7f, 5 << 3, 0];
        let places = [bytes(6, b"/")?, bytes(7, b"/var")?].concat();
        messages.push(with(&again, &[&tmpfs, &places[..]].concat())?);
        write_mounts(test, &messages)?;
        is_refused(&bundle, "the mount `/var` shows the rootfs or a volume again")?;
    }
    Ok(())
}

/// By the old field, CRIU would mount the volume, and `rt` would not have it read-only from the
/// beginning.
fn a_volume_has_its_name_where_criu_looks(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, _) = with_volume(test)?;
    checkpoint(&bundle)?;
    let mut messages = mounts(test)?;
    let volume = at(&messages, "/vol")?;
    messages[volume].extend([13 << 3, 1]);
    write_mounts(test, &messages)?;
    is_refused(&bundle, "the mount `/vol` is of a kind that no checkpoint has")
}

/// CRIU mounts the rootfs there all the same. `rt` would take it for the volume, which is writable
/// and in which CRIU cannot follow links.
fn a_volume_is_not_the_root(test: &Test) -> Outcome {
    needs_criu()?;
    let volume = test.folder.join("volume");
    fs::create_dir(&volume)?;
    let bundle = test.sh(COUNT)?.edit(|config| config["root"]["readonly"] = json!(true)).mount(
        json!({ "destination": "/vol", "type": "bind", "source": volume, "options": ["bind"] }),
    );
    fs::create_dir(bundle.rootfs().join("vol"))?;
    checkpoint(&bundle)?;
    let good = mounts(test)?;
    let root = at(&good, "/")?;
    for name in ["/vol", "/dev/null"] {
        let mut messages = good.clone();
        let length = u8::try_from(name.len())?;
        messages[root].extend([&[0x92, 1, length], name.as_bytes()].concat());
        write_mounts(test, &messages)?;
        is_refused(&bundle, "the mount `/` is not the rootfs, but a mount of the configuration")?;
    }
    write_mounts(test, &good)?;
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// CRIU leaves out the first character.
fn a_file_has_a_path_from_the_root(test: &Test) -> Outcome {
    needs_criu()?;
    let script = format!("mkdir /d; exec 5>/d/file; echo 1 >&5; rm /d/file; {COUNT}");
    let bundle = test.sh(&script)?;
    checkpoint(&bundle)?;
    replace(test, "files.img", b"/d/file", b"xd/file")?;
    is_refused(&bundle, "the file `xd/file`: its path is not a plain one")
}

/// The number of an open file, by its path. The entry begins with the kind, a regular file, and the
/// number.
fn number_of(image: &[u8], path: &str) -> Outcome<u8> {
    let name = bytes(6, path.as_bytes())?;
    let end = image.windows(name.len()).position(|part| part == name);
    let before = &image[..end.ok_or_else(|| format!("{path} is not open"))?];
    let start = before.windows(3).rposition(|part| part == [8, 1, 16]).ok_or("it has no number")?;
    Ok(image[start + 3])
}

/// CRIU looks for the second name on the mount of the first one, and deletes it.
fn a_second_name_of_a_file_is_not_behind_a_link(test: &Test) -> Outcome {
    needs_criu()?;
    let script = format!("echo 1 >/file; exec 5</file; mkdir /t/d; exec 6>/t/d/other; {COUNT}");
    let bundle =
        test.sh(&script)?.mount(json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs" }));
    fs::create_dir(bundle.rootfs().join("t"))?;
    checkpoint(&bundle)?;
    let folder = test.folder.join("host");
    fs::create_dir(&folder)?;
    fs::write(folder.join("other"), "precious")?;
    symlink(&folder, bundle.rootfs().join("t/d"))?;
    let files = fs::read(images(test).join("files.img"))?;
    let (first, second) = (number_of(&files, "/file")?, number_of(&files, "/t/d/other")?);
    let magic = [0x19, 0x43, 0x56, 0x54, 0x54, 0x39, 0x13, 0x59];
    let link = [6, 0, 0, 0, 8, first, 16, second, 24, 0];
    fs::write(images(test).join("remap-fpath.img"), [&magic[..], &link].concat())?;
    is_refused(&bundle, "remap-fpath.img` of the checkpoint: open `t/d` in the rootfs")?;
    ensure(folder.join("other").exists(), "it was deleted")
}

/// CRIU makes the deleted file again, which can be a link to a directory of the host.
fn a_deleted_file_is_not_below_another_one(test: &Test) -> Outcome {
    needs_criu()?;
    let script = format!(
        "mkdir -p /d/1.ghost; exec 5>/d/1.ghost/file; echo 1 >&5; rm /d/1.ghost/file; {COUNT}"
    );
    let bundle = test.sh(&script)?;
    checkpoint(&bundle)?;
    is_refused(&bundle, "the deleted file `/d/1.ghost/file` is below another one")
}

/// The number of a deleted file is not that of an open file.
fn a_deleted_file_comes_back_beside_a_read_only_volume(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, _) = with_volume(test)?;
    let script =
        format!("exec 5</vol/file; exec 6>/file; echo 1 >&6; rm /file; cat /vol/file; {COUNT}");
    // Whichever number the deleted file has, an open file of the volume has it too.
    let opened: String = (7..10).map(|number| format!("exec {number}</vol/file; ")).collect();
    let bundle = bundle.edit(|config| {
        config["process"]["args"] = json!(["/bin/sh", "-c", format!("{opened}{script}")]);
    });
    let container = start(&bundle)?;
    container.wait_for_output("precious0\n1\n")?;
    write(test, &container, &[])?.success()?;
    let path = images(test).join("remap-fpath.img");
    let files = fs::read(images(test).join("files.img"))?;
    let mut image = fs::read(&path)?;
    // The image and its content get the number of the volume's file.
    let (number, old) = (number_of(&files, "/vol/file")?, image[15]);
    ensure_eq(image[14], 16)?;
    image[15] = number;
    fs::write(path, image)?;
    let ghost = |number: u8| images(test).join(format!("ghost-file-{number:x}.img"));
    fs::rename(ghost(old), ghost(number))?;
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

fn an_image_is_read_to_its_end(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    for name in ["files.img", "pstree.img"] {
        let path = images(test).join(name);
        let length = fs::metadata(&path)?.len();
        let file = fs::File::options().write(true).open(&path)?;
        file.set_len((64 << 20) + 1)?;
        is_refused(&bundle, &format!("{name}` of the checkpoint: it is longer than"))?;
        file.set_len(length)?;
    }
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// Memory of two pages that others can share, with a content that the program looks at.
const SHARED: &str = r#"
    $| = 1;
    open(my $out, ">", "/content"); print $out "x" x 8192; close($out);
    my $at = syscall(9, 0, 8192, 3, 0x21, -1, 0);
    open(my $in, "<", "/content");
    syscall(0, fileno($in), $at, 8192) == 8192 or die;
    for (my $i = 0; ; $i++) {
        unpack("P8192", pack("Q", $at)) eq "x" x 8192 or die;
        print "$i\n"; select(undef, undef, undef, 0.1);
    }
"#;

/// Gives fields to a message of an image.
fn set_fields(path: &Path, at: usize, fields: &[u8]) -> Outcome {
    let mut messages = messages(path)?;
    messages[at] = with(&messages[at], fields)?;
    write_messages(path, &messages)
}

/// CRIU adds up the address and the length, without looking at an overflow. It wrote to its own
/// memory, below that of the process.
fn shared_memory_is_filled_inside_of_it(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.perl(SHARED)?;
    checkpoint(&bundle)?;
    let path = image(test, "pagemap-shmem-")?;
    for (start, words) in [
        (0_u64.wrapping_sub(8192), "its ranges are not in their order"),
        (1, "its ranges are not in their order"),
        (4096, "a page is outside of its memory"),
    ] {
        let words = format!(".img` of the checkpoint: {words}");
        refuses(&bundle, &path, &words, &|| set_fields(&path, 1, &number(1, start)))?;
    }
    goes_on(&bundle)
}

/// CRIU reads pages of a range that is in no place, and goes on behind them in the file. `rt` did
/// not, and looked at other pages than CRIU. CRIU before 4.2 knows only the first number of pages.
fn pages_are_in_one_place(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    // Private memory, below all other.
    let private = mapping(0x10000, 0x20000, 0x22, 1 | 1 << 9, 1);
    put_around(&images(test).join("mm-1.img"), 8, &private, &[])?;
    let path = images(test).join("pagemap-1.img");
    for (fields, words) in [
        (number(4, 0), "the range at 0x10000 has the flags 0x0"),
        (number(4, 2), "the range at 0x10000 has the flags 0x2"),
        (number(4, 8), "the range at 0x10000 has the flags 0x8"),
        (number(4, 1), "open the checkpoint before"),
        ([number(2, 1), number(5, 0)].concat(), "its ranges are of two versions"),
    ] {
        refuses(&bundle, &path, words, &|| {
            let mut messages = messages(&path)?;
            messages.insert(1, with(&messages[1], &[number(1, 0x10000), fields.clone()].concat())?);
            write_messages(&path, &messages)
        })?;
    }
    goes_on(&bundle)
}

/// Behind the end of the file, CRIU reads again and again.
fn pages_are_not_cut_off(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.perl(SHARED)?;
    checkpoint(&bundle)?;
    let list = messages(&image(test, "pagemap-shmem-")?)?;
    let name = format!("pages-{}.img", list[0].get(1).ok_or("no number")?);
    let path = images(test).join(&name);
    let content = fs::read(&path)?;
    ensure_eq(content.len(), 8192)?;
    refuses(&bundle, &path, &format!("`{name}` is too short"), &|| {
        Ok(fs::write(&path, &content[..4096])?)
    })?;
    goes_on(&bundle)
}

/// CRIU takes a `bool` of any type, and ignores further bits of a number of 32 bits. `rt` passed
/// over such a value: CRIU read other pages than `rt`, or emptied a file of a read-only volume.
fn a_value_is_of_the_type_of_its_field(test: &Test) -> Outcome {
    needs_criu()?;
    let (bundle, _) = with_volume(test)?;
    checkpoint(&bundle)?;
    let (pages, mounts) = (images(test).join("pagemap-1.img"), image(test, "mountpoints-")?);
    let volume = at(&messages(&mounts)?, "/vol")?;
    // Of bytes, of 32 and of 64 bits.
    let types = |field: u8| {
        let fixed = |kind: u8, length: usize| [vec![field << 3 | kind], vec![1; length]].concat();
        [vec![field << 3 | 2, 1, 1], fixed(5, 4), fixed(1, 8)]
    };
    for (path, at, field, others) in [
        // `in_parent`, `with_plugin`, `ext_mount` and `deleted`.
        (&pages, 1, 3, types(3).to_vec()),
        (&mounts, volume, 12, types(12).to_vec()),
        (&mounts, volume, 13, types(13).to_vec()),
        (&mounts, volume, 16, vec![[&[0x82, 1][..], &[1, 1]].concat()]),
        (&mounts, volume, 1, vec![number(1, 1 << 32)]),
    ] {
        for value in others {
            let words = format!("its field {field} is of another type");
            refuses(&bundle, path, &words, &|| {
                let mut messages = messages(path)?;
                if field == 1 {
                    messages[at] = with(&messages[at], &value)?;
                } else {
                    messages[at].extend(&value);
                }
                write_messages(path, &messages)
            })?;
        }
    }
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// CRIU goes by the last one. Of a message, it makes one of both.
fn a_value_is_there_once(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    for (name, at, field, value) in [
        ("pagemap-1.img", 1, 4, number(4, 4)),
        ("core-1.img", 0, 3, checkpoint_kinds::bytes(3, &number(1, 1))),
        ("mm-1.img", 0, 9, checkpoint_kinds::bytes(14, &number(9, 2).repeat(2))),
    ] {
        let path = images(test).join(name);
        let words = format!(": it has the field {field} twice");
        // In front of it, so that CRIU goes by the good one.
        refuses(&bundle, &path, &words, &|| {
            let mut messages = messages(&path)?;
            messages[at] = [&value[..], &messages[at]].concat();
            write_messages(&path, &messages)
        })?;
    }
    goes_on(&bundle)
}

/// `rt` needs a multiple of their length to read them.
fn files_of_rt_are_short(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    for name in ["descriptors.json", "mounts.json"] {
        let path = images(test).join(name);
        let words = format!("{name}` of the checkpoint: it is longer than 4194304 bytes");
        refuses(&bundle, &path, &words, &|| {
            let long = [fs::read(&path)?, vec![b' '; 4 << 20]].concat();
            Ok(fs::write(&path, long)?)
        })?;
    }
    goes_on(&bundle)
}

/// 64 MiB, with swap.
pub(super) fn limited(bundle: Bundle<'_>) -> Bundle<'_> {
    bundle.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20, "swap": 64 << 20 });
    })
}

/// A list can have many pages of a file with holes. CRIU uses a part of the memory itself.
fn memory_of_images_is_within_the_limit(test: &Test) -> Outcome {
    const PAGES: u64 = 1 << 17;
    const START: u64 = 0x7000_0000_0000 - PAGES * 4096;
    needs_criu()?;
    super::needs(test, "memory")?;
    let bundle = limited(test.sh(COUNT)?);
    checkpoint(&bundle)?;
    // Below the libraries and the stack.
    change(&images(test).join("mm-1.img"), 8, &|memory| {
        let fields = checkpoint_kinds::fields(memory)?;
        let starts_later = |(field, _, content): &checkpoint_kinds::Field<'_>| {
            *field == 14 && checkpoint_kinds::first_number(content).is_ok_and(|it| it > START)
        };
        let before = fields.iter().take_while(|field| !starts_later(field));
        let length = before.map(|(_, whole, _)| whole.len()).sum();
        let (below, above) = memory.split_at(length);
        let filled = mapping(START, START + PAGES * 4096, 0x22, 1 | 1 << 9, 1);
        Ok([below, &filled, above].concat())
    })?;
    let path = images(test).join("pagemap-1.img");
    let mut list = messages(&path)?;
    let pages =
        images(test).join(format!("pages-{}.img", checkpoint_kinds::first_number(&list[0])?));
    let (mut at, mut below) = (1, 0);
    while checkpoint_kinds::first_number(&list[at])? < START {
        below += checkpoint_kinds::numbers(&list[at], &[2, 5])?.iter().sum::<u64>();
        at += 1;
    }
    let field = if checkpoint_kinds::numbers(&list[1], &[5])?.is_empty() { 2 } else { 5 };
    let range = with(&list[1], &[number(1, START), number(field, PAGES)].concat())?;
    list.insert(at, range);
    write_messages(&path, &list)?;
    let content = fs::read(&pages)?;
    let (first, rest) = content.split_at(usize::try_from(below * 4096)?);
    fs::write(&pages, first)?;
    let file = fs::File::options().write(true).open(&pages)?;
    file.write_all_at(rest, (below + PAGES) * 4096)?;
    bundle.write()?;
    let id = test.id();
    let most = most_meanwhile(&bundle, &id, ["memory.current", "memory.usage_in_bytes"])?;
    ensure(most < 256 << 20, format!("it used {most} bytes"))?;
    test.rt(["state", &id])?.fails_with("does not exist").map(drop)
}

/// The largest number in one of these files of the container's cgroup, during its restore. Passes
/// over the numbers that mean "no limit".
pub(super) fn most_meanwhile(bundle: &Bundle<'_>, id: &str, files: [&str; 2]) -> Outcome<u64> {
    let mut restore = restore_command(bundle, id, &["--detach"]).stderr(Stdio::null()).spawn()?;
    let mut most = 0_u64;
    while restore.try_wait()?.is_none() {
        for file in cgroups_of(id).iter().flat_map(|cgroup| files.map(|name| cgroup.join(name))) {
            let text = fs::read_to_string(file).unwrap_or_default();
            let number = text.trim().parse().unwrap_or(0);
            most = most.max(if number < 1 << 40 { number } else { 0 });
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Ok(most)
}

fn a_container_near_its_limit_comes_back(test: &Test) -> Outcome {
    needs_criu()?;
    super::needs(test, "memory")?;
    let script = "$| = 1; my $x = ''; vec($x, 56 << 20, 8) = 1; \
        for (my $i = 0; ; $i++) { print \"$i\\n\"; select(undef, undef, undef, 0.1); }";
    let bundle = limited(test.perl(script)?);
    checkpoint(&bundle)?;
    goes_on(&bundle)
}

/// The pages of such a list are no longer there.
fn lists_of_an_earlier_checkpoint_are_passed_over(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let own = images(test).join("pagemap-1.img");
    let mut list = messages(&own)?;
    list[0] = number(1, 77);
    for name in ["pagemap-77.img", "pagemap-shmem-77.img"] {
        let other = images(test).join(name);
        fs::copy(&own, &other)?;
        write_messages(&other, &list)?;
    }
    goes_on(&bundle)
}

/// CRIU goes from a filter to the one before it, until there is none.
fn filters_have_a_beginning(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?.edit(|config| {
        config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    });
    checkpoint(&bundle)?;
    let path = images(test).join("seccomp.img");
    let filter = checkpoint_kinds::bytes(1, &[6, 0, 0, 0, 0, 0, 0xff, 0x7f]);
    let filter = checkpoint_kinds::bytes(1, &[filter, number(2, 100)].concat());
    refuses(&bundle, &path, "has no beginning", &|| put_around(&path, 8, &[], &filter))?;
    goes_on(&bundle)
}

/// `rt` compares mounts with each other, and each path with each procfs.
fn many_mounts_do_not_hold_up_a_restore(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = image(test, "mountpoints-")?;
    for (of, words) in [
        ("/proc", "more than 128 places have a procfs or a sysfs"),
        ("/dev", "it has more than 4096 mounts"),
    ] {
        refuses(&bundle, &path, words, &|| {
            let mut messages = mounts(test)?;
            let copied = messages[at(&messages, of)?].clone();
            for copy in 0..5000 {
                let point = bytes(7, format!("/tmp/{copy}").as_bytes())?;
                messages.push(with(&copied, &[number(2, 10_000 + copy), point].concat())?);
            }
            write_mounts(test, &messages)
        })?;
    }
    goes_on(&bundle)
}

/// The images have paths at which `rt` looks for a minute.
fn a_signal_ends_the_checks_of_images(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let path = images(test).join("files.img");
    let mut image = fs::read(&path)?;
    for file in 10_000..25_000 {
        let name = format!("{}/{file}", "/x".repeat(1000));
        let entry = [number(1, file), checkpoint_kinds::bytes(6, name.as_bytes())].concat();
        let entry = [number(1, 1), number(2, file), checkpoint_kinds::bytes(3, &entry)].concat();
        image.extend(framed(&entry)?);
    }
    fs::write(path, image)?;
    bundle.write()?;
    let id = test.id();
    let mut command = restore_command(&bundle, &id, &["--detach"]);
    let restore =
        command.stdout(Stdio::null()).stderr(fs::File::create(bundle.folder.join("said"))?);
    let restore = restore.spawn()?;
    wait_until("it has begun", || test.state_root().join(&id).exists())?;
    ends_cleanly(&bundle, &id, restore, "-TERM", "files.img` of the checkpoint: ")
}

/// CRIU would have no other mount namespace, and delete the files of these names on the host.
fn processes_are_not_in_the_namespace_of_criu(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let ids = fs::read(images(test).join("ids-1.img"))?;
    let namespace = ids.windows(2).position(|part| part[0] == 9 << 3).ok_or("no namespace")?;
    let path = images(test).join("inventory.img");
    let own = number(9, ids[namespace + 1].into());
    refuses(&bundle, &path, "the first process has no mount namespace of its own", &|| {
        change(&path, 4, &|inventory| with_inside(inventory, 3, &own))
    })?;
    goes_on(&bundle)
}

/// CRIU's log would have lines of the host's file.
fn rules_of_the_network_include_no_file(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let secret = test.folder.join("secret");
    fs::write(&secret, "hidden\n")?;
    let rules = format!("table inet t {{\n}}\ninclude \"{}\"\n", secret.display());
    fs::write(images(test).join("nftables-10.img"), rules)?;
    is_refused(&bundle, "nftables-10.img` of the checkpoint: it has the word `include`")
}

/// `ip` would make a device in the network namespace of any process that it sees.
fn routes_are_only_routes(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    for start in ["ifaddr-", "route-", "rule-"] {
        let path = image(test, start)?;
        let good = fs::read(&path)?;
        // `RTM_NEWLINK`
        let link = [&[32, 0, 0, 0, 16, 0], &[0; 26][..]].concat();
        fs::write(&path, [&good[..], &link].concat())?;
        is_refused(&bundle, "of the checkpoint: it has a message of the kind 16")?;
        fs::write(&path, good)?;
    }
    bundle.write()?;
    restore(&bundle, &[])?.wait_for_output("\n")
}

/// CRIU would make the directory on the host, and the kernel load the policy.
fn no_policy_is_loaded(test: &Test) -> Outcome {
    needs_criu()?;
    let bundle = test.sh(COUNT)?;
    checkpoint(&bundle)?;
    let namespace = bytes(1, &bytes(1, b"../../../../../../made")?)?;
    let magic = [0x19, 0x43, 0x56, 0x54, 0x47, 0x30, 0x42, 0x59];
    let length = u32::try_from(namespace.len())?.to_le_bytes();
    fs::write(images(test).join("apparmor.img"), [&magic[..], &length, &namespace].concat())?;
    is_refused(&bundle, "apparmor.img` of the checkpoint: it has a namespace of AppArmor")
}
