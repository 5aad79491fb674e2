//! Which tests run a second time elsewhere. A run of all tests shows each test in its first lane.
//! Another lane and the machine repeat those whose result could differ there. A run of selected
//! tests repeats them everywhere.

use crate::harness::{Host, Outcome, skip};

/// A variable that names where the tests run, if they have run elsewhere before: `lane` or
/// `machine`.
pub(crate) const VARIABLE: &str = "RT_TESTS_AGAIN";

/// The topics that depend neither on the way in which the host mounts cgroups nor on the machine.
const SAME_EVERYWHERE: &[&str] = &[
    "bad_flags",
    "checkpoint_attacks",
    "checkpoint_failures",
    "checkpoint_guard",
    "checkpoint_images",
    "checkpoint_kinds",
    "checkpoint_mounts",
    "command_line",
    "configuration",
    "debug",
    "first_steps",
    "kubernetes",
    "terminal",
    "top",
    "wasi",
    "wasm_cache",
    "wasm_components",
    "wasm_engine",
    "wasm_http_limits",
    "wasm_http_outbound",
    "wasm_http_protocol",
    "wasm_inspect",
    "wasm_plugins",
    "wasm_shares",
    "wasm_source",
    "wasm_spin",
    "workload",
];

/// More topics and tests that do not depend on the way in which the host mounts cgroups.
const SAME_IN_EACH_LANE: &[&str] = &[
    "package",
    "sd_notify",
    "wasm_compiler",
    "wasm_hostile",
    "wasm_rights::is_counted_in_native_code_too",
];

/// Tests of these topics that look at cgroups.
const BUT_IN_EACH_LANE: &[&str] = &[
    "wasm_compiler::a_compiler_that_takes_too_much_memory_is_ended",
    "wasm_compiler::a_start_that_is_held_up_holds_up_no_other",
    "wasm_compiler::the_background_gives_way_to_all_others",
    "wasm_compiler::the_compiler_is_confined",
    "wasm_compiler::who_waits_goes_before_the_background",
    "wasm_compiler::who_waits_hurries_the_background",
];

/// More topics that do not depend on the machine's kernel, systemd and controllers, or whose
/// callers are on the host too. The machine is slow.
const SAME_IN_THE_MACHINE: &[&str] = &[
    "attacks_files",
    "bad_input",
    "checkpoint_rights",
    "costs",
    "crio",
    "executable",
    "hold_ups",
    "hooks",
    "hostile_names",
    "interrupts",
    "node",
    "other_users",
    "podman",
    "upgrade",
    "wasm_http",
];

/// Tests of the topics above that look at the limits of cgroup v2, which only the machine has.
const BUT_IN_THE_MACHINE: &[&str] = &[
    "checkpoint_failures::a_cgroup_that_stays_has_the_limits_of_the_configuration",
    "checkpoint_failures::many_processes_do_not_raise_the_limit_of_memory_for_ever",
    "checkpoint_failures::more_processes_than_the_limit_are_refused",
    "checkpoint_images::a_container_near_its_limit_comes_back",
    "checkpoint_images::memory_of_images_is_within_the_limit",
    "checkpoint_rights::memory_is_limited_before_it_is_used",
];

/// The topics that are the same whether `rt` or systemd makes the cgroups. The machine has run them
/// by cgroupfs before.
const SAME_BY_SYSTEMD: &[&str] = &[
    "attacks",
    "descriptors",
    "mounts",
    "mounts_in_use",
    "namespaces",
    "podman_rootless",
    "seccomp",
    "wasm",
    "wasm_compiler",
    "wasm_hostile",
    "wasm_ports",
    "wasm_rights",
    "without_openat2",
];

/// The topics that the machine runs by systemd only. containerd runs on the host, too, by cgroupfs.
const ONLY_BY_SYSTEMD: &[&str] = &["containerd", "cri", "package"];

/// The topic of a test: what its name begins with.
pub(crate) fn topic_of(name: &str) -> &str {
    name.split_once("::").map_or(name, |(topic, _)| topic)
}

/// Skips a test that need not run again here.
pub(crate) fn unless_shown(host: &Host, name: &str) -> Outcome {
    let is_in = |list: &[&str]| list.contains(&topic_of(name)) || list.contains(&name);
    // A process enters its cgroup in another way with systemd, so it has other files open.
    let is_list = name.starts_with("descriptors::") && name.ends_with("_has_open_what_is_listed");
    match std::env::var(VARIABLE).as_deref() {
        Ok("lane")
            if (is_in(SAME_EVERYWHERE) || is_in(SAME_IN_EACH_LANE))
                && !BUT_IN_EACH_LANE.contains(&name) =>
        {
            skip("it is the same in each lane, and shown in the first one")
        }
        Ok("machine")
            if (is_in(SAME_EVERYWHERE) || is_in(SAME_IN_THE_MACHINE))
                && !BUT_IN_THE_MACHINE.contains(&name) =>
        {
            skip("it is the same in the machine, and shown on the host")
        }
        Ok("machine") if !host.by_systemd && is_in(ONLY_BY_SYSTEMD) => {
            skip("it is the same with each way to make cgroups, and shown by systemd")
        }
        Ok("machine") if host.by_systemd && is_in(SAME_BY_SYSTEMD) && !is_list => {
            skip("it is the same with each way to make cgroups, and shown with cgroupfs")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_name_topics_and_tests() {
        let tests = crate::topics::all();
        let lists = [
            SAME_EVERYWHERE,
            SAME_IN_EACH_LANE,
            BUT_IN_EACH_LANE,
            SAME_IN_THE_MACHINE,
            BUT_IN_THE_MACHINE,
            SAME_BY_SYSTEMD,
            ONLY_BY_SYSTEMD,
        ];
        for listed in lists.into_iter().flatten() {
            let is_there =
                tests.iter().any(|(name, _)| name == listed || topic_of(name) == *listed);
            assert!(is_there, "{listed}");
        }
    }
}
