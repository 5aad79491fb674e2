//! A container cannot reach the runtime's own executable.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{Container, Outcome, Output, Test, ensure, executable_is_read_only, skip};

super::tests! { "executable": cannot_be_written_to_through_proc, its_code_is_mapped_from_a_read_only_mount, an_exec_protects_it_where_the_kernel_allows_nothing_else, a_sealed_copy_protects_it_where_its_mount_cannot_be_cloned, cannot_be_reached_by_a_scripts_interpreter, cannot_be_a_hook, a_working_directory_cannot_be_the_hosts }

/// CVE-2019-5736: before its exec, the container's first process *is* the runtime.
fn cannot_be_written_to_through_proc(test: &Test) -> Outcome {
    let container = test.sh("exec sleep 60")?.create()?;
    ensure(executable_is_read_only(&container)?, "it can be written to")
}

/// `/proc/PID/map_files` leads to the file of each mapping, for who has `CAP_SYS_ADMIN`.
fn its_code_is_mapped_from_a_read_only_mount(test: &Test) -> Outcome {
    use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
    test.only_rt()?;
    let container = test.sh("exec sleep 60")?.create()?;
    let executable = fs::metadata(&test.host.runtime)?.ino();
    let mut mapped = 0;
    for mapping in fs::read_dir(format!("/proc/{}/map_files", container.pid()?))? {
        let file = rustix::fs::open(mapping?.path(), OFlags::PATH, Mode::empty())?;
        if rustix::fs::fstat(&file)?.st_ino == executable {
            mapped += 1;
            let flags = rustix::fs::fstatvfs(file)?.f_flag;
            ensure(flags.contains(StatVfsMountFlags::RDONLY), "it can be written to")?;
        }
    }
    ensure(mapped > 0, "nothing of the executable is mapped")
}

/// A kernel without `CONFIG_CHECKPOINT_RESTORE`, or a filter, refuses `PR_SET_MM`.
fn an_exec_protects_it_where_the_kernel_allows_nothing_else(test: &Test) -> Outcome {
    test.only_rt()?;
    if !Path::new("/usr/bin/strace").exists() {
        return skip("the host has no strace");
    }
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    let id = test.id();
    let create = test.command(["create", "--bundle", &bundle.folder.display().to_string(), &id]);
    let mut strace = Command::new("strace");
    strace.args(["--trace=prctl,execveat", "--inject=prctl:error=EPERM:when=1", "--output"]);
    strace.arg(test.folder.join("calls")).arg(create.get_program()).args(create.get_args());
    strace.stdin(Stdio::null()).stdout(Stdio::null());
    ensure(strace.status()?.success(), "create fails")?;
    let calls = fs::read_to_string(test.folder.join("calls"))?;
    ensure(calls.starts_with("prctl(PR_SET_MM, PR_SET_MM_MAP"), format!("first: {calls}"))?;
    ensure(calls.contains("\nexecveat("), "no exec")?;
    let container = Container::named(test, &id);
    ensure(executable_is_read_only(&container)?, "it can be written to")
}

/// The kernel clones neither an unbindable mount nor that of a file in memory.
fn a_sealed_copy_protects_it_where_its_mount_cannot_be_cloned(test: &Test) -> Outcome {
    use rustix::fs::{SealFlags, fcntl_get_seals};
    test.only_rt()?;
    let bundle = test.sh("exec sleep 60")?;
    bundle.write()?;
    let unbindable =
        r#"mount --bind "${1%/*}" "${1%/*}" && mount --make-unbindable "${1%/*}" && exec "$@""#;
    let in_memory = r#"exec perl -e 'my $fd = syscall(319, my $name = "rt", 0);
        open(my $to, ">&=", $fd) && open(my $from, "<", $ARGV[0]) or die;
        local $/; print {$to} scalar <$from>; close $from; $to->flush; exec { "/proc/self/fd/$fd" } @ARGV' "$@""#;
    for script in [unbindable, in_memory] {
        if script == in_memory && !cfg!(target_arch = "x86_64") {
            continue;
        }
        let id = test.id();
        let folder = bundle.folder.display().to_string();
        let create = test.command(["create", "--bundle", &folder, &id]);
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "sh", "-c", script, "sh"]).arg(create.get_program());
        let output = Output::of({
            shell.args(create.get_args());
            shell
        })?;
        output.success()?;
        let container = Container::named(test, &id);
        let exe = fs::File::open(format!("/proc/{}/exe", container.pid()?))?;
        ensure(fcntl_get_seals(exe)?.contains(SealFlags::WRITE), "it can be written to")?;
    }
    Ok(())
}

fn cannot_be_reached_by_a_scripts_interpreter(test: &Test) -> Outcome {
    let before = fs::read(&test.host.runtime)?;
    for (program, text) in [("/run", "#!/proc/self/exe --version\n"), ("/link", "")] {
        let bundle = test.linux(&[program])?;
        if text.is_empty() {
            symlink("/proc/self/exe", bundle.rootfs().join("link"))?;
        } else {
            fs::write(bundle.rootfs().join("run"), text)?;
            fs::set_permissions(bundle.rootfs().join("run"), fs::Permissions::from_mode(0o755))?;
        }
        // `rt` notices that the file is not the container's, before it runs it. Even if it ran, it
        // would be a read-only clone.
        let output = bundle.run()?;
        if test.host.is_rt {
            output.fails_with("leads out of the container: permission denied")?;
        }
        ensure(fs::read(&test.host.runtime)? == before, "the runtime was changed")?;
    }
    Ok(())
}

fn cannot_be_a_hook(test: &Test) -> Outcome {
    test.only_rt()?;
    for path in ["/proc/self/exe", "/link", "/proc/thread-self/root/link"] {
        let bundle = test.sh("echo ran")?.edit(|config| {
            config["hooks"] =
                json!({ "startContainer": [{ "path": path, "args": ["rt", "--version"] }] });
        });
        symlink("/proc/self/exe", bundle.rootfs().join("link"))?;
        bundle.try_create(&test.id())?.fails_with(&format!(
            "run startContainer hook `{path}`: leads out of the container: permission denied"
        ))?;
    }
    Ok(())
}

/// CVE-2024-21626: the working directory is reached through a descriptor that the runtime left
/// open.
fn a_working_directory_cannot_be_the_hosts(test: &Test) -> Outcome {
    for number in 3..16 {
        let bundle = test.sh("ls ../../../../etc/shadow 2>/dev/null && echo escaped; true")?;
        let bundle = bundle
            .edit(|config| config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}")));
        let id = test.id();
        let output = bundle.try_create(&id)?;
        if output.code == Some(0) {
            test.rt(["start", &id])?;
            let output = bundle.run()?;
            ensure(!output.stdout.contains("escaped"), format!("descriptor {number}"))?;
        }
    }
    Ok(())
}
