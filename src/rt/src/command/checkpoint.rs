//! `rt checkpoint`: writes a container's processes to files, with CRIU. The remarks on flags in
//! this file apply to `restore` too.
#![forbid(unsafe_code)]

use std::fs::File;
use std::net::Ipv6Addr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::bundle::{self, Bundle};
use crate::cli;
use crate::container::checkpoint::criu::{self, CgroupsMode, NetworkLock};
use crate::container::{self, CheckpointOptions};
use crate::log;
use crate::state::{Root, Status};
use crate::syscall;

pub(super) fn execute(root: &Root, args: &cli::Checkpoint) -> Result<ExitCode> {
    checkpoint(root, args).with_context(|| format!("checkpoint `{}`", args.id))?;
    Ok(ExitCode::SUCCESS)
}

fn checkpoint(root: &Root, args: &cli::Checkpoint) -> Result<()> {
    let status = args.status_fd.map(status).transpose()?;
    let page_server = args.page_server.as_deref().map(page_server).transpose()?;
    let (directory, _) = root.load(&args.id)?;
    let Some(_lock) = directory.lock(Duration::ZERO)? else {
        bail!("another process is creating or deleting it")
    };
    // Reads the state again under the lock: another process may have changed it before.
    let (directory, state) = root.load(&args.id)?;
    match state.status(&directory)? {
        Status::Running | Status::Paused => {}
        status => bail!("the container is not running: {status}"),
    }
    let mut spec = directory.config().context("read the stored `config.json`")?;
    bundle::place_mounts_of(&mut spec, &[&state.rootfs]);
    let (path, rootfs) = (state.bundle.clone(), state.rootfs.clone());
    let bundle = Bundle { path, rootfs, config: Vec::new(), spec };
    let options = CheckpointOptions {
        common: options(&args.images, &bundle),
        parent: args.parent_path.as_deref(),
        pre_dump: args.pre_dump,
        leave_running: args.leave_running,
        link_remap: args.link_remap,
        tcp_close: args.tcp_close,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        page_server,
        status,
    };
    container::checkpoint(&directory, &state, &bundle, options)?;
    let is_kept = args.leave_running || args.pre_dump;
    let what = if is_kept { "it is kept" } else { &args.id };
    log::step("checkpoint, step 5: delete the container", &what);
    // A container that has ended has nothing to keep. runc and crun delete it too, and callers
    // expect that its name is free.
    if !is_kept {
        container::delete(&directory, &state, true)?;
    }
    Ok(())
}

pub(super) fn options<'a>(args: &'a cli::Images, bundle: &Bundle) -> criu::Options<'a> {
    criu::Options {
        root: crate::linux::namespaces::root_on_the_host(bundle.linux()).0.as_raw(),
        images: &args.image_path,
        work: args.work_path.as_deref(),
        tcp_established: args.tcp_established,
        ext_unix_sk: args.ext_unix_sk,
        shell_job: args.shell_job,
        file_locks: args.file_locks,
        auto_dedup: args.auto_dedup,
        lazy_pages: args.lazy_pages,
        empty_network: !args.empty_ns.is_empty(),
        cgroups: args.manage_cgroups_mode.map(|mode| match mode {
            cli::CgroupsMode::Soft => CgroupsMode::SOFT,
            cli::CgroupsMode::Full => CgroupsMode::FULL,
            cli::CgroupsMode::Strict => CgroupsMode::STRICT,
            cli::CgroupsMode::Ignore => CgroupsMode::IGNORE,
        }),
        network_lock: args.network_lock.map(|method| match method {
            cli::NetworkLock::Iptables => NetworkLock::IPTABLES,
            cli::NetworkLock::Nftables => NetworkLock::NFTABLES,
            cli::NetworkLock::Skip => NetworkLock::SKIP,
        }),
    }
}

fn page_server(text: &str) -> Result<(String, u16)> {
    let wrong = || format!("wrong value `{text}` for `--page-server`: ADDRESS:PORT");
    let (address, port) = text.rsplit_once(':').with_context(wrong)?;
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let address = match address.strip_prefix('[').and_then(|address| address.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().with_context(wrong)?.to_string(),
        None => {
            Some(address).filter(|name| name.chars().all(in_name)).with_context(wrong)?.to_owned()
        }
    };
    let port: u16 = port.parse().with_context(wrong)?;
    ensure!(!address.is_empty() && port != 0, wrong());
    Ok((address, port))
}

/// A descriptor that the caller left open for this process, usually a pipe.
fn status(number: i32) -> Result<File> {
    let inherited = syscall::inherited(number);
    inherited.map(File::from).with_context(|| format!("wrong value `{number}` for `--status-fd`"))
}

#[cfg(test)]
mod tests {
    use super::page_server;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert_eq!(page_server("10.0.0.1:80").expect("good"), ("10.0.0.1".to_owned(), 80));
        assert_eq!(page_server("[::1]:80").expect("good"), ("::1".to_owned(), 80));
        for wrong in
            ["10.0.0.1", ":x", "a:99999", ":80", "a:0", "[[x:1", "[x]:1", "a b:1", "::1:80"]
        {
            assert!(page_server(wrong).is_err(), "{wrong}");
        }
    }
}
