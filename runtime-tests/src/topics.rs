//! The tests, one file per topic. The name of a test is a sentence that the test proves.

mod attacks;
mod attacks_files;
mod bad_flags;
mod bad_input;
mod cgroup_attacks;
mod cgroups;
mod check;
mod checkpoint;
mod checkpoint_attacks;
mod checkpoint_cgroups;
mod checkpoint_failures;
mod checkpoint_guard;
mod checkpoint_images;
mod checkpoint_kinds;
mod checkpoint_mounts;
mod checkpoint_rights;
mod cluster;
mod cluster_again;
mod command_line;
mod configuration;
mod conmon;
mod containerd;
mod costs;
mod cri;
mod crio;
mod debug;
mod descriptors;
mod devices;
mod docker;
mod events;
mod exec;
mod executable;
mod first_steps;
mod freezer;
mod hold_ups;
mod hooks;
mod hostile_names;
mod interrupts;
mod kubernetes;
mod lifecycle;
mod mounts;
mod mounts_in_use;
mod namespaces;
mod node;
mod other_users;
mod package;
mod podman;
mod podman_rootless;
mod process;
mod robustness;
mod rootless;
mod sd_notify;
mod seccomp;
mod terminal;
mod top;
mod upgrade;
mod wasi;
mod wasm;
mod wasm_cache;
mod wasm_compiler;
mod wasm_components;
mod wasm_engine;
mod wasm_hostile;
mod wasm_http;
mod wasm_http_limits;
mod wasm_http_outbound;
mod wasm_http_protocol;
mod wasm_inspect;
mod wasm_limits;
mod wasm_plugins;
mod wasm_ports;
mod wasm_rights;
mod wasm_shares;
mod wasm_source;
mod wasm_spin;
mod without_openat2;
mod workload;

use crate::harness::{Outcome, Test};

pub(crate) use cgroups::needs;

pub(crate) type Entry = (&'static str, fn(&Test) -> Outcome);

/// Lists tests by name, `topic::test`.
macro_rules! tests {
    ($topic:literal: $($test:ident),* $(,)?) => {
        pub(super) const TESTS: &[$crate::topics::Entry] = &[$((concat!($topic, "::", stringify!($test)), $test)),*];
    };
}
pub(crate) use tests;

pub(crate) fn all() -> Vec<Entry> {
    [
        attacks::TESTS,
        attacks_files::TESTS,
        bad_flags::TESTS,
        bad_input::TESTS,
        cgroup_attacks::TESTS,
        cgroups::TESTS,
        check::TESTS,
        checkpoint::TESTS,
        checkpoint_attacks::TESTS,
        checkpoint_failures::TESTS,
        checkpoint_guard::TESTS,
        checkpoint_images::TESTS,
        checkpoint_kinds::TESTS,
        checkpoint_mounts::TESTS,
        checkpoint_cgroups::TESTS,
        checkpoint_rights::TESTS,
        cluster::TESTS,
        cluster_again::TESTS,
        command_line::TESTS,
        configuration::TESTS,
        conmon::TESTS,
        containerd::TESTS,
        costs::TESTS,
        cri::TESTS,
        crio::TESTS,
        debug::TESTS,
        descriptors::TESTS,
        devices::TESTS,
        docker::TESTS,
        events::TESTS,
        exec::TESTS,
        first_steps::TESTS,
        freezer::TESTS,
        executable::TESTS,
        hooks::TESTS,
        hold_ups::TESTS,
        hostile_names::TESTS,
        interrupts::TESTS,
        kubernetes::TESTS,
        lifecycle::TESTS,
        mounts::TESTS,
        mounts_in_use::TESTS,
        namespaces::TESTS,
        node::TESTS,
        other_users::TESTS,
        package::TESTS,
        podman::TESTS,
        podman_rootless::TESTS,
        process::TESTS,
        robustness::TESTS,
        rootless::TESTS,
        sd_notify::TESTS,
        seccomp::TESTS,
        terminal::TESTS,
        top::TESTS,
        upgrade::TESTS,
        wasi::TESTS,
        wasm::TESTS,
        wasm_cache::TESTS,
        wasm_compiler::TESTS,
        wasm_components::TESTS,
        wasm_engine::TESTS,
        wasm_hostile::TESTS,
        wasm_http::TESTS,
        wasm_http_limits::TESTS,
        wasm_http_outbound::TESTS,
        wasm_http_protocol::TESTS,
        wasm_inspect::TESTS,
        wasm_limits::TESTS,
        wasm_plugins::TESTS,
        wasm_ports::TESTS,
        wasm_rights::TESTS,
        wasm_shares::TESTS,
        wasm_source::TESTS,
        wasm_spin::TESTS,
        without_openat2::TESTS,
        workload::TESTS,
    ]
    .concat()
}
