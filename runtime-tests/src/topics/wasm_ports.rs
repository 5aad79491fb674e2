//! The ports to which a module may bind and connect.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use super::wasm::by_wasmtime;
use crate::harness::{
    Bundle, Outcome, Output, Test, cgroups_of, ensure, ensure_eq, kernel, skip, under_a_filter,
};

super::tests! { "wasm_ports":
    binds_only_to_ports_that_are_listed, connects_only_to_ports_that_are_listed, all_else_is_free_without_a_list, holds_for_ipv6, has_no_socket_where_nothing_is_listed,
    a_port_that_is_free_is_listed_as_0, cannot_listen_without_a_port, listens_in_vain_at_a_port_that_is_not_listed, uses_only_ports_of_udp_that_are_listed, udp_holds_for_ipv6,
    exec_is_limited_too, a_filter_need_not_allow_the_way_into_the_cgroup, a_native_program_is_not, a_module_in_a_native_container_is, root_without_rights_is_limited_too, names_are_resolved, ports_of_udp_take_a_cgroup_of_v2,
    a_cgroup_that_can_be_left_is_an_error, a_kernel_without_landlock_is_an_error, a_kernel_that_knows_no_ports_is_an_error, wrong_values_are_errors,
}

const BIND: &str = "run.oci.wasm.bind";
const CONNECT: &str = "run.oci.wasm.connect";

/// `EACCES`, as WASI numbers it.
const REFUSED: &str = "error: PermissionDenied: Permission denied (os error 2)\n";

/// Landlock supports ports since Linux 6.7.
fn needs_landlock() -> Outcome {
    if landlock_knows_ports()? { Ok(()) } else { skip("the kernel's Landlock knows no ports") }
}

fn landlock_knows_ports() -> Outcome<bool> {
    Ok(kernel()? >= (6, 7))
}

pub(super) fn needs_v2(test: &Test) -> Outcome {
    if test.host.lane == "v1" {
        skip("ports of UDP, and some of TCP, take a cgroup of v2")
    } else {
        Ok(())
    }
}

fn limited<'a>(test: &'a Test, args: &[&str], bind: &str, connect: &str) -> Outcome<Bundle<'a>> {
    Ok(test.wasm("probe", args)?.annotation(BIND, bind).annotation(CONNECT, connect))
}

/// Checks the output of a module for each of several actions.
///
/// In WASI 0.2, a UDP socket sends only when it is bound. So a component gets any free port too.
/// WASI 0.2 refuses an IPv4 address that is mapped to IPv6.
fn each(test: &Test, [bind, connect]: [&str; 2], cases: &[(&[&str], &str)]) -> Outcome {
    let binds_first = by_wasmtime(test) && bind.contains("udp");
    let bind = if binds_first { format!("{bind},udp/0") } else { bind.to_owned() };
    for (args, said) in cases {
        let is_mapped = args.last().is_some_and(|address| address.contains("[::ffff:"));
        if by_wasmtime(test) && is_mapped || binds_first && *args == ["bind", "udp", "0.0.0.0:0"] {
            continue;
        }
        let output = limited(test, args, &bind, connect)?.run()?;
        ensure(
            output.stdout.starts_with(said),
            format!("{args:?}: {}{}", output.stdout, output.stderr),
        )?;
    }
    Ok(())
}

/// No process listens there. Only a module that may connect gets this error.
const NOBODY: &str = "error: ConnectionRefused";

fn binds_only_to_ports_that_are_listed(test: &Test) -> Outcome {
    needs_landlock()?;
    needs_v2(test)?;
    each(
        test,
        ["tcp/8080,tcp/9000-9002", ""],
        &[
            (&["bind", "tcp", "0.0.0.0:8080"], "bound"),
            (&["bind", "tcp", "127.0.0.1:9001"], "bound"),
            (&["bind", "tcp", "0.0.0.0:9003"], REFUSED),
            (&["bind", "tcp", "0.0.0.0:0"], REFUSED),
            (&["connect", "tcp", "127.0.0.1:8080"], REFUSED),
            (&["bind", "udp", "0.0.0.0:8080"], REFUSED),
        ],
    )
}

fn connects_only_to_ports_that_are_listed(test: &Test) -> Outcome {
    needs_landlock()?;
    each(
        test,
        ["", "tcp/7000-7001"],
        &[
            (&["connect", "tcp", "127.0.0.1:7001"], NOBODY),
            (&["connect", "tcp", "127.0.0.1:7002"], REFUSED),
            (&["bind", "tcp", "0.0.0.0:7000"], REFUSED),
            (&["connect", "udp", "127.0.0.1:7000"], REFUSED),
        ],
    )
}

fn all_else_is_free_without_a_list(test: &Test) -> Outcome {
    needs_landlock()?;
    needs_v2(test)?;
    let connect = |protocol, port| -> Outcome<String> {
        let address = format!("127.0.0.1:{port}");
        let bundle = test.wasm("probe", &["connect", protocol, &address])?;
        Ok(bundle.annotation(BIND, "tcp/8080").run()?.stdout)
    };
    ensure(connect("tcp", 7000)?.starts_with(NOBODY), "tcp")?;
    let bound = if by_wasmtime(test) { REFUSED } else { "connected\n" };
    ensure_eq(connect("udp", 53)?.as_str(), bound)
}

fn holds_for_ipv6(test: &Test) -> Outcome {
    needs_landlock()?;
    needs_v2(test)?;
    each(
        test,
        ["tcp/8080", "tcp/7000"],
        &[
            (&["bind", "tcp", "[::]:8080"], "bound"),
            (&["bind", "tcp", "[::]:8081"], REFUSED),
            (&["connect", "tcp", "[::1]:7000"], NOBODY),
            (&["connect", "tcp", "[::1]:7001"], REFUSED),
            (&["connect", "tcp", "[::ffff:127.0.0.1]:7001"], REFUSED),
        ],
    )
}

/// The filter alone has this effect, on any kernel.
fn has_no_socket_where_nothing_is_listed(test: &Test) -> Outcome {
    each(
        test,
        ["", ""],
        &[
            (&["bind", "tcp", "0.0.0.0:8080"], REFUSED),
            (&["send", "127.0.0.1:53"], REFUSED),
            (&["listen"], REFUSED),
        ],
    )
}

fn a_port_that_is_free_is_listed_as_0(test: &Test) -> Outcome {
    needs_landlock()?;
    each(
        test,
        ["tcp/0", ""],
        &[(&["bind", "tcp", "0.0.0.0:0"], "bound"), (&["bind", "tcp", "0.0.0.0:40000"], REFUSED)],
    )
}

/// Landlock does not check `listen(2)`, which uses a free port if the module has not called
/// `bind(2)`.
fn cannot_listen_without_a_port(test: &Test) -> Outcome {
    needs_landlock()?;
    each(test, ["", "tcp/7000"], &[(&["listen"], REFUSED)])
}

/// With a listed port, the module needs `listen(2)` itself.
fn listens_in_vain_at_a_port_that_is_not_listed(test: &Test) -> Outcome {
    needs_landlock()?;
    needs_v2(test)?;
    if by_wasmtime(test) {
        return skip("WASI 0.2 has no listening without a bind");
    }
    let reached = |bind: &str| -> Outcome<bool> {
        let bundle = limited(test, &["listen"], bind, "")?.edit(|config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "network");
            }
        });
        let container = bundle.start()?;
        container.wait_for_output("ready")?;
        let port: u16 = container.stdout()?.lines().next().ok_or("no port")?.parse()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Ok(TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok())
    };
    ensure(!reached("tcp/1-1023")?, "it was reached")?;
    ensure(reached("tcp/0,tcp/80")?, "it was not reached")
}

fn uses_only_ports_of_udp_that_are_listed(test: &Test) -> Outcome {
    needs_v2(test)?;
    each(
        test,
        ["udp/5000-5001", "udp/53,udp/6000"],
        &[
            (&["bind", "udp", "0.0.0.0:5001"], "bound"),
            (&["bind", "udp", "0.0.0.0:5002"], REFUSED),
            (&["bind", "udp", "0.0.0.0:0"], REFUSED),
            (&["connect", "udp", "127.0.0.1:6000"], "connected"),
            (&["connect", "udp", "127.0.0.1:5000"], REFUSED),
            (&["send", "127.0.0.1:53"], "sent"),
            (&["send", "127.0.0.1:54"], REFUSED),
            (&["bind", "tcp", "0.0.0.0:5000"], REFUSED),
        ],
    )
}

fn udp_holds_for_ipv6(test: &Test) -> Outcome {
    needs_v2(test)?;
    each(
        test,
        ["udp/5000", "udp/6000"],
        &[
            (&["bind", "udp", "[::]:5000"], "bound"),
            (&["bind", "udp", "[::]:5001"], REFUSED),
            (&["connect", "udp", "[::1]:6000"], "connected"),
            (&["connect", "udp", "[::1]:6001"], REFUSED),
            (&["send", "[::1]:6000"], "sent"),
            (&["send", "[::1]:6001"], REFUSED),
            (&["send", "[::ffff:127.0.0.1]:6000"], "sent"),
            (&["send", "[::ffff:127.0.0.1]:6001"], REFUSED),
        ],
    )
}

fn exec_is_limited_too(test: &Test) -> Outcome {
    needs_landlock()?;
    needs_v2(test)?;
    let container = limited(test, &["sleep"], "tcp/8080,udp/5000", "udp/53")?.start()?;
    let exec = |args: &[&str]| -> Outcome<String> {
        Ok(test.rt([&["exec", &container.id, "/probe.wasm"], args].concat())?.stdout)
    };
    ensure_eq(exec(&["bind", "tcp", "0.0.0.0:8080"])?.as_str(), "bound\n")?;
    ensure_eq(exec(&["bind", "tcp", "0.0.0.0:8081"])?.as_str(), REFUSED)?;
    ensure_eq(exec(&["bind", "udp", "0.0.0.0:5001"])?.as_str(), REFUSED)?;
    ensure_eq(exec(&["bind", "udp", "0.0.0.0:5000"])?.as_str(), "bound\n")?;
    ensure_eq(exec(&["send", "127.0.0.1:54"])?.as_str(), REFUSED)
}

/// Before the runtime loads the filter, it has entered the cgroup by a `write` of one byte. Its
/// hooks run after both.
fn a_filter_need_not_allow_the_way_into_the_cgroup(test: &Test) -> Outcome {
    test.only_rt()?;
    needs_v2(test)?;
    let module = fs::read(test.host.guest("probe")?)?;
    let bundle = test.sh("")?.args(&["/probe.wasm", "sleep"]).file("/probe.wasm", module)?;
    let bundle = bundle.annotation("run.oci.handler", "wasm").annotation(BIND, "udp/5000");
    let bundle = bundle.annotation(CONNECT, "").edit(|config| {
        config["process"]["noNewPrivileges"] = json!(true);
        config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
            "names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
            "args": [{ "index": 2, "value": 1, "op": "SCMP_CMP_EQ" }],
        }] });
        let note =
            "cat /proc/self/cgroup > /tmp/place; printf x > /tmp/one; printf xyz > /tmp/three";
        config["hooks"]["startContainer"] =
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", note] }]);
    });
    let container = bundle.start()?;
    let bind = |port| -> Outcome<String> {
        let address = format!("0.0.0.0:{port}");
        Ok(test.rt(["exec", &container.id, "/probe.wasm", "bind", "udp", &address])?.stdout)
    };
    ensure_eq(bind(5000)?.as_str(), "bound\n")?;
    ensure_eq(bind(5001)?.as_str(), REFUSED)?;
    let file = |name: &str| fs::read_to_string(bundle.rootfs().join("tmp").join(name));
    ensure(file("place")?.contains("rt-modules\n"), file("place")?)?;
    ensure_eq((file("one")?.as_str(), file("three")?.as_str()), ("", "xyz"))
}

/// A script that binds and sends at ports of both protocols. No test lists these ports.
const NATIVE: &str = r#"use Socket;
    for my $type (SOCK_STREAM, SOCK_DGRAM) {
        socket(S, AF_INET, $type, 0) or die "socket: $!\n";
        bind(S, pack_sockaddr_in(4000, INADDR_ANY)) or die "bind: $!\n";
        listen(S, 1) or die "listen: $!\n" if $type == SOCK_STREAM;
        socket(C, AF_INET, $type, 0) or die "socket: $!\n";
        connect(C, pack_sockaddr_in(4000, INADDR_LOOPBACK)) or die "connect: $!\n";
    }
    print "free\n""#;

/// A container of a native program, which also contains a module.
fn native<'a>(test: &'a Test, script: &str) -> Outcome<Bundle<'a>> {
    let module = fs::read(test.host.guest("probe")?)?;
    let bundle = test.perl(script)?.file("/probe.wasm", module)?;
    let (bind, connect) = if test.host.lane == "v1" { ("", "") } else { ("udp/5000", "udp/53") };
    let bundle = bundle.annotation("run.oci.handler", "wasm");
    Ok(bundle.annotation(BIND, bind).annotation(CONNECT, connect))
}

fn a_native_program_is_not(test: &Test) -> Outcome {
    test.only_rt()?;
    native(test, NATIVE)?.run()?.success()?.stdout("free\n")?;
    let container = native(test, "")?.args(&["/probe.wasm", "sleep"]).start()?;
    test.rt(["exec", &container.id, "/usr/bin/perl", "-e", NATIVE])?
        .success()?
        .stdout("free\n")
        .map(drop)
}

fn a_module_in_a_native_container_is(test: &Test) -> Outcome {
    test.only_rt()?;
    let container = native(test, "sleep 60")?.start()?;
    let bind = |port| -> Outcome<String> {
        let address = format!("0.0.0.0:{port}");
        Ok(test.rt(["exec", &container.id, "/probe.wasm", "bind", "udp", &address])?.stdout)
    };
    ensure_eq(bind(5001)?.as_str(), REFUSED)?;
    if test.host.lane != "v1" {
        ensure_eq(bind(5000)?.as_str(), "bound\n")?;
    }
    // This cgroup is below the container's, and disappears with it. The harness checks that.
    let cgroups = cgroups_of(&container.id);
    let inner = cgroups.iter().filter(|path| path.join("rt-modules").exists()).count();
    ensure_eq(inner, usize::from(test.host.lane != "v1"))?;
    test.rt(["exec", &container.id, "/usr/bin/perl", "-e", NATIVE])?.success().map(drop)
}

/// The container's user may not enter the cgroup. Init has opened the file for that before.
fn root_without_rights_is_limited_too(test: &Test) -> Outcome {
    needs_v2(test)?;
    let bundle = limited(test, &["bind", "udp", "0.0.0.0:5001"], "udp/5000", "")?;
    let bundle = bundle.edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = json!({});
        config["process"]["noNewPrivileges"] = json!(false);
    });
    bundle.run()?.stdout(REFUSED).map(drop)
}

/// The lookup asks for the interfaces by Netlink, and for a daemon by a Unix socket. It succeeds
/// without both.
fn names_are_resolved(test: &Test) -> Outcome {
    let bundle = limited(test, &["resolve", "name.example"], "", "")?;
    let output = bundle.file("/etc/hosts", "192.0.2.7 name.example\n")?.run()?.success()?;
    ensure(output.stdout.contains("192.0.2.7"), output.stdout)
}

fn ports_of_udp_take_a_cgroup_of_v2(test: &Test) -> Outcome {
    let bundle = limited(test, &["sleep"], "udp/5000", "")?;
    if test.host.lane != "v1" {
        return bundle.create().map(drop);
    }
    let words = "limit the ports of UDP: this requires cgroup v2";
    bundle.try_create(&test.id())?.fails_with(words)?;
    needs_landlock()?;
    // Otherwise, others could reach a module that listens without a bind.
    let words = "limit the ports of TCP: this requires cgroup v2 and root of the host, because a module can listen";
    limited(test, &["sleep"], "tcp/80", "")?.try_create(&test.id())?.fails_with(words).map(drop)
}

fn a_cgroup_that_can_be_left_is_an_error(test: &Test) -> Outcome {
    needs_v2(test)?;
    let bundle = limited(test, &["sleep"], "udp/5000", "")?;
    let bundle = bundle.mount(json!({
        "destination": "/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"],
    }));
    bundle.try_create(&test.id())?.fails_with("the container may write to its cgroup").map(drop)
}

fn a_kernel_without_landlock_is_an_error(test: &Test) -> Outcome {
    const LANDLOCK_CREATE_RULESET: u32 = 444;
    let bundle = limited(test, &["sleep"], "tcp/8080", "")?;
    bundle.write()?;
    let args = bundle.command_line("run", &test.id());
    let words = "limit the ports of TCP: this kernel has no Landlock";
    let command = under_a_filter(test, LANDLOCK_CREATE_RULESET, 38, &args)?;
    Output::of(command)?.fails_with(words).map(drop)
}

fn a_kernel_that_knows_no_ports_is_an_error(test: &Test) -> Outcome {
    if landlock_knows_ports()? {
        return skip("the kernel's Landlock knows ports");
    }
    let bundle = limited(test, &["sleep"], "tcp/8080", "")?;
    bundle.try_create(&test.id())?.fails_with("limit the ports of TCP: ").map(drop)
}

fn wrong_values_are_errors(test: &Test) -> Outcome {
    for (key, value, words) in [
        (BIND, "8080", "`run.oci.wasm.bind`: `8080` is not `tcp/PORT`, `udp/PORT`"),
        (BIND, "tcp/9-8", "`run.oci.wasm.bind`: `tcp/9-8`"),
        (CONNECT, "tcp/80,sctp/80", "`run.oci.wasm.connect`: `sctp/80`"),
        (CONNECT, "udp/65536", "`run.oci.wasm.connect`: `udp/65536`"),
        (CONNECT, "tcp/0", "`run.oci.wasm.connect`: `tcp/0`: nothing can be reached at port 0"),
    ] {
        let bundle = test.wasm("hello", &[])?.annotation(key, value);
        bundle.try_create(&test.id())?.fails_with(words)?;
    }
    Ok(())
}
