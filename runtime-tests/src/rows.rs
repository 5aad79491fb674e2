//! The requirements for a runtime, one per row, and the tests that show them. A row that no lane
//! has shown is a failure, unless the row says why no lane can show it.

use std::collections::BTreeMap;
use std::fs;

pub(crate) struct Row {
    name: &'static str,
    /// Names of tests or of whole topics.
    tests: &'static [&'static str],
    shown: Shown,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Shown {
    /// In one of the lanes `hybrid`, `v1` and `v2`.
    Here,
    /// Only in the machine, where systemd runs and v2 has all controllers.
    InTheMachine,
    Nowhere(&'static str),
}

use Shown::{Here, InTheMachine, Nowhere};

const fn row(name: &'static str, tests: &'static [&'static str]) -> Row {
    Row { name, tests, shown: Here }
}

const fn in_the_machine(name: &'static str, tests: &'static [&'static str]) -> Row {
    Row { name, tests, shown: InTheMachine }
}

const fn nowhere(name: &'static str, why: &'static str) -> Row {
    Row { name, tests: &[], shown: Nowhere(why) }
}

const ROWS: &[Row] = &[
    row(
        "namespaces: new",
        &[
            "namespaces::are_all_new",
            "namespaces::a_user_namespace_maps_root",
            "namespaces::a_time_namespace_has_its_offsets",
            "cgroups::a_cgroup_namespace_hides_the_path",
        ],
    ),
    row(
        "namespaces: joined, in order",
        &[
            "namespaces::can_be_joined_by_path",
            "namespaces::a_pid_namespace_can_be_joined",
            "namespaces::a_user_namespace_can_join_a_network",
        ],
    ),
    row("namespaces: any number of id mappings", &["rootless::a_configured_mapping_is_taken"]),
    row("namespaces: loopback", &["namespaces::have_loopback_up"]),
    row(
        "mounts: bind, rbind",
        &["mounts::a_bind_mount_shows_the_host", "mounts::a_file_can_be_mounted"],
    ),
    row(
        "mounts: flags and clear flags",
        &["mounts::options_take_effect", "mounts::a_bind_mount_can_be_read_only"],
    ),
    row(
        "mounts: recursive flags",
        &[
            "mounts::recursive_read_only_reaches_submounts",
            "mounts::recursive_read_only_goes_with_each_propagation",
        ],
    ),
    row("mounts: propagation", &["mounts::propagation_is_what_was_asked_for"]),
    row(
        "mounts: idmap, ridmap, uidMappings",
        &[
            "mounts::ids_are_mapped_as_the_mount_says",
            "mounts::ids_are_mapped_as_an_option_says",
            "mounts::ids_are_mapped_as_the_user_namespace_does",
            "mounts::ids_are_mapped_below_if_asked_for",
        ],
    ),
    row("mounts: tmpcopyup", &["mounts::a_tmpfs_can_copy_up"]),
    row(
        "mounts: links",
        &[
            "mounts::a_link_can_be_copied",
            "mounts::a_link_can_be_mounted",
            "mounts::a_link_can_be_mounted_on",
            "mounts::links_can_be_switched_off",
        ],
    ),
    row(
        "mounts: fallbacks in user namespaces",
        &["mounts::the_host_sysfs_is_shown_where_none_can_be_made"],
    ),
    row(
        "mounts: masked and read-only paths",
        &["mounts::masked_paths_are_empty", "mounts::read_only_paths_are_read_only"],
    ),
    row("mounts: rootfs propagation", &["mounts::the_root_has_its_propagation"]),
    row("mounts: read-only root", &["mounts::a_read_only_root_is_read_only"]),
    row("mounts: no_pivot", &["mounts::the_root_can_be_changed_without_pivot"]),
    row(
        "mounts: destinations stay inside",
        &[
            "mounts::a_link_in_the_image_does_not_lead_out",
            "attacks::a_place_that_is_exchanged_for_a_link_stays_inside",
            "mounts::works_where_openat2_is_forbidden",
        ],
    ),
    row(
        "cgroups: v1 and v2 by cgroupfs",
        &["cgroups::a_created_container_is_in_its_cgroup", "cgroups::the_path_is_taken"],
    ),
    in_the_machine(
        "cgroups: systemd, properties, slices",
        &[
            "cgroups::systemd_knows_the_limits",
            "cgroups::systemd_gets_properties_by_annotation",
            "cgroups::the_name_of_a_scope_is_free_after_a_deletion",
        ],
    ),
    row(
        "cgroups: disabled",
        &[
            "cgroups::without_a_manager_there_is_none",
            "cgroup_attacks::without_cgroups_the_hosts_devices_are_out_of_reach",
        ],
    ),
    row(
        "cgroups: nobody else's, and held up by nobody",
        &[
            "cgroup_attacks::a_cgroup_of_another_user_is_refused",
            "cgroup_attacks::of_two_creations_one_has_the_cgroup",
            "cgroup_attacks::the_deepest_cgroups_are_found",
            "cgroup_attacks::exec_ends_when_its_cgroup_is_frozen_meanwhile",
        ],
    ),
    in_the_machine("cgroups: unified", &["cgroups::unified_values_are_written"]),
    row("cgroups: memory", &["cgroups::memory_is_limited"]),
    in_the_machine(
        "cgroups: swap",
        &["cgroups::swap_is_limited", "cgroups::swap_is_what_is_above_the_memory"],
    ),
    row("cgroups: cpu shares, quota, period", &["cgroups::processors_are_limited"]),
    row(
        "cgroups: cpu burst, idle",
        &["cgroups::bursts_and_idleness_are_set", "cgroups::what_is_idle_no_longer_has_a_weight"],
    ),
    row(
        "cgroups: cpu realtime",
        &["cgroups::realtime_is_limited", "cgroups::realtime_changes_by_any_factor"],
    ),
    row(
        "cgroups: threaded",
        &[
            "cgroups::a_container_is_made_below_a_threaded_cgroup",
            "cgroups::a_threaded_cgroup_hides_nobody",
        ],
    ),
    row("cgroups: cpuset", &["cgroups::processors_and_nodes_are_chosen"]),
    row("cgroups: pids", &["cgroups::processes_are_limited"]),
    row("cgroups: io, blkio", &["cgroups::disks_are_shared"]),
    in_the_machine("cgroups: hugetlb", &["cgroups::huge_pages_are_limited"]),
    nowhere("cgroups: rdma", "no machine here has such a device"),
    nowhere("cgroups: net_cls", "no kernel here has the controller"),
    row("cgroups: devices", &["cgroups::devices_are_denied"]),
    row(
        "cgroups: removed with what is below",
        &["cgroups::a_cgroup_is_removed_with_what_is_below"],
    ),
    row(
        "cgroups: update",
        &[
            "cgroups::update_by_flags",
            "cgroups::update_by_json",
            "cgroups::update_changes_only_what_is_given",
        ],
    ),
    row("cgroups: pause, resume", &["freezer::a_paused_container_stands_still"]),
    in_the_machine("cgroups: subgroup", &["cgroups::a_subgroup_is_made_in_the_scope"]),
    in_the_machine("cgroups: delegation", &["cgroups::a_delegated_cgroup_is_the_containers_own"]),
    row(
        "process: capabilities, ambient too",
        &["process::has_its_capabilities", "process::has_ambient_capabilities"],
    ),
    row(
        "process: noNewPrivileges, with seccomp",
        &["process::has_no_new_privileges", "seccomp::works_without_no_new_privileges"],
    ),
    row("process: rlimits", &["process::has_its_limits"]),
    row("process: umask", &["process::has_its_umask"]),
    row("process: user and groups", &["process::has_its_user_and_groups"]),
    row("process: oomScoreAdj", &["process::has_its_oom_score"]),
    row("process: personality", &["process::has_its_personality"]),
    row(
        "process: scheduler, ioPriority",
        &["process::has_its_scheduler", "process::has_its_io_priority"],
    ),
    row("process: execCPUAffinity", &["exec::processors_before_and_after"]),
    row("process: memoryPolicy", &["process::has_its_memory_policy"]),
    nowhere(
        "process: intelRdt",
        "no machine here has such a processor; unit tests with a directory in place of resctrl",
    ),
    row(
        "process: netDevices",
        &[
            "namespaces::a_network_device_moves_in",
            "namespaces::a_network_device_moves_into_a_namespace_that_is_joined",
        ],
    ),
    row("process: session keyring", &["process::has_a_session_keyring"]),
    in_the_machine("process: AppArmor", &["process::has_its_apparmor_profile"]),
    nowhere("process: SELinux", "no kernel here has it"),
    row("process: hostname, domainname", &["namespaces::have_their_host_name"]),
    row(
        "process: sysctl, with validation",
        &["namespaces::take_sysctls", "bad_input::a_sysctl_of_the_hosts"],
    ),
    row("process: working directory is made", &["process::a_missing_working_directory_is_made"]),
    row("process: console with its size", &["terminal::has_its_size_and_owner"]),
    row("process: LISTEN_FDS", &["process::inherits_listening_sockets"]),
    row("callers: conmon", &["conmon"]),
    row("callers: conmon, as CRI-O calls it for each kind of pod", &["crio"]),
    row("callers: configurations", &["configuration", "kubernetes"]),
    row("callers: podman", &["podman"]),
    row("callers: podman of an ordinary user", &["podman_rootless"]),
    in_the_machine("callers: Docker", &["docker"]),
    in_the_machine("callers: containerd", &["containerd"]),
    in_the_machine("callers: containerd, as kubelet asks it", &["cri"]),
    row(
        "callers: kubelet runs every kind of workload on one node",
        &["node::kubelet_runs_ten_of_each_kind"],
    ),
    row(
        "callers: podman runs every kind of workload at once",
        &["node::podman_runs_ten_of_each_kind"],
    ),
    in_the_machine("package", &["package"]),
    row("cluster: the script that installs it on a node", &["kubernetes"]),
    row(
        "mounts: added to a running container",
        &[
            "mounts::can_be_added_to_a_running_container",
            "mounts::can_be_added_in_a_user_namespace",
        ],
    ),
    row("events: use of resources, want of memory", &["events"]),
    row("check: what the host lacks", &["check"]),
    in_the_machine("checkpoint and restore", &["checkpoint"]),
    row("checkpoint: mounts", &["checkpoint_mounts"]),
    row("checkpoint: what fails", &["checkpoint_failures"]),
    row("process: sd_notify", &["sd_notify::start_waits_until_the_container_is_ready"]),
    row(
        "seccomp: actions, operators, errno",
        &[
            "seccomp::a_call_is_refused",
            "seccomp::a_call_is_refused_with_its_errno",
            "seccomp::a_masked_argument_decides",
        ],
    ),
    row("seccomp: flags", &["seccomp::every_flag_is_taken"]),
    row(
        "seccomp: ENOSYS for newer calls",
        &["seccomp::a_call_that_is_newer_than_the_filter_is_not_implemented"],
    ),
    row(
        "seccomp: notification",
        &["seccomp::an_agent_decides", "seccomp::an_agent_is_found_by_annotation"],
    ),
    row(
        "seccomp: unknown calls, raw filters",
        &[
            "seccomp::an_unknown_call_is_an_error_if_asked_for",
            "seccomp::a_filter_can_be_given_as_it_is_loaded",
        ],
    ),
    row(
        "seccomp: cache",
        &[
            "seccomp::a_compiled_filter_is_kept",
            "seccomp::a_damaged_filter_is_not_used",
            "seccomp::a_filter_that_others_could_write_is_not_used",
        ],
    ),
    row("pidfd receiver", &["terminal::a_pidfd_is_sent_to_where_an_annotation_says"]),
    row("hooks: six kinds", &["hooks::run_in_order", "hooks::get_the_state"]),
    row(
        "hooks: timeout, failure",
        &[
            "hooks::a_hook_that_takes_too_long_is_ended",
            "hooks::a_failing_hook_undoes_the_container",
        ],
    ),
    row("hooks: their output", &["hooks::print_to_where_annotations_say"]),
    row(
        "log: each step",
        &["debug::create_tells_each_step", "debug::the_last_step_is_the_one_that_fails"],
    ),
    row(
        "devices: default and listed",
        &["devices::the_default_ones_are_there", "devices::listed_ones_are_made"],
    ),
    row("devices: in user namespaces", &["namespaces::a_user_namespace_maps_root"]),
    row(
        "exec: namespaces, user too",
        &["exec::runs_in_the_same_namespaces", "exec::joins_a_user_namespace"],
    ),
    row(
        "exec: settings of the container",
        &["exec::has_the_containers_process_settings", "exec::obeys_the_seccomp_filter"],
    ),
    row("exec: cgroup", &["exec::is_in_the_containers_cgroup", "exec::is_in_a_cgroup_below_it"]),
    row("exec: session", &["exec::is_a_session_leader"]),
    row(
        "rootless: with newuidmap",
        &["rootless::further_ids_are_those_that_the_system_has_for_the_user"],
    ),
    row(
        "rootless: root of a user namespace",
        &["rootless::root_of_a_user_namespace_needs_no_help"],
    ),
    row(
        "robust: killed at every system call",
        &[
            "robustness::create_can_be_killed_at_every_system_call",
            "robustness::delete_can_be_killed_at_every_system_call",
        ],
    ),
    row(
        "robust: two callers",
        &[
            "lifecycle::of_two_creations_with_one_name_one_wins",
            "lifecycle::of_two_starts_one_wins",
        ],
    ),
    row("robust: reused pids", &["robustness::another_process_with_the_same_number_is_left_alone"]),
    row(
        "robust: no disk, descriptors, memory",
        &[
            "robustness::create_on_a_full_disk_leaves_nothing",
            "robustness::create_without_descriptors_leaves_nothing",
            "robustness::create_without_memory_leaves_nothing",
        ],
    ),
    row("bad input", &["bad_input", "bad_flags"]),
    row("attacks", &["attacks", "attacks_files", "executable"]),
    row("wasm", &["wasm", "workload"]),
    row("wasm: WASI preview1", &["wasi"]),
    row("wasm: limits", &["wasm_limits"]),
    row("wasm: rights by annotation", &["wasm_rights"]),
    row("wasm: ports by annotation", &["wasm_ports"]),
    row("wasm: native code, its cache", &["wasm_cache"]),
    row("wasm: native code, its compiler", &["wasm_compiler"]),
    row("wasm: modules that try to get out", &["wasm_hostile"]),
    row("wasm: native code, fair shares", &["wasm_shares"]),
    row("wasm: plugins", &["wasm_plugins"]),
    row("wasm: components", &["wasm_components"]),
    row("wasm: inspect", &["wasm_inspect"]),
    row("wasm: WasmEdge, how it is built", &["wasm_source", "wasm_engine"]),
    row("wasm: HTTP", &["wasm_http"]),
    row("wasm: HTTP, limits", &["wasm_http_limits"]),
    row("wasm: HTTP, protocol", &["wasm_http_protocol"]),
    row("wasm: HTTP to others", &["wasm_http_outbound"]),
    row("wasm: Spin", &["wasm_spin"]),
];

/// The outcome of each test, by its name: `passed`, `failed` or `skipped`.
pub(crate) type Results = BTreeMap<String, String>;

/// Reads the results that [`fn@write`] has written.
pub(crate) fn read(path: &std::path::Path) -> Results {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pair =
        |line: &str| line.split_once(' ').map(|(name, end)| (name.to_owned(), end.to_owned()));
    text.lines().filter_map(pair).collect()
}

pub(crate) fn write(path: &str, results: &Results) -> std::io::Result<()> {
    let lines: String = results.iter().map(|(name, end)| format!("{name} {end}\n")).collect();
    fs::write(path, lines)
}

/// `ok`, `FAILED`, `-` for skipped, or nothing if no such test ran. For `ok`, no test of the row
/// has failed, and at least one has passed.
fn cell(row: &Row, results: &Results) -> &'static str {
    let belongs = |test: &str| {
        row.tests.iter().any(|name| test == *name || test.split("::").next() == Some(name))
    };
    let ends: Vec<&str> =
        results.iter().filter(|(test, _)| belongs(test)).map(|(_, end)| end.as_str()).collect();
    match &ends[..] {
        [] => "",
        ends if ends.contains(&"failed") => "FAILED",
        ends if ends.contains(&"passed") => "ok",
        _ => "-",
    }
}

/// Prints the rows, with a column for each lane. Returns the rows that a lane had to show and that
/// no lane has shown.
pub(crate) fn print(lanes: &[(String, Results)], in_the_machine: bool) -> Vec<&'static str> {
    let head: String = lanes.iter().map(|(lane, _)| format!("{lane:>9}")).collect();
    println!("\n{:44}{head}", "row");
    let mut missing = Vec::new();
    for row in ROWS {
        let cells: Vec<&str> = lanes.iter().map(|(_, results)| cell(row, results)).collect();
        let line: String = cells.iter().map(|cell| format!("{cell:>9}")).collect();
        let note = match row.shown {
            Nowhere(why) => format!("  {why}"),
            InTheMachine if !in_the_machine => "  in the virtual machine".to_owned(),
            _ => String::new(),
        };
        println!("{:44}{line}{note}", row.name);
        let wanted = match row.shown {
            Here => !in_the_machine,
            InTheMachine => in_the_machine,
            Nowhere(_) => false,
        };
        if wanted && !cells.contains(&"ok") {
            missing.push(row.name);
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_of_a_row_exists() {
        let all = crate::topics::all();
        for name in ROWS.iter().flat_map(|row| row.tests) {
            let there =
                all.iter().any(|(test, _)| test == name || test.split("::").next() == Some(name));
            assert!(there, "{name}");
        }
    }

    #[test]
    fn a_row_that_was_not_shown_is_missing() {
        let results = |end: &str| -> Results {
            crate::topics::all()
                .iter()
                .map(|(test, _)| ((*test).to_owned(), end.to_owned()))
                .collect()
        };
        assert!(print(&[("a".into(), results("passed"))], false).is_empty());
        let missing = print(&[("a".into(), results("skipped"))], false);
        assert!(missing.contains(&"wasm") && !missing.contains(&"process: SELinux"));
    }
}
