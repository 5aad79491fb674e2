//! Spin apps: a manifest and the modules that it names, in an ordinary rootfs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::events;
use super::wasm_cache::{self, files};
use super::wasm_http::tls::{ALL, Authority, VALID, same, serve_tls};
use crate::harness::{
    Bundle, Container, Outcome, Output, Test, WASMTIME, ensure, ensure_eq, wait_until,
};

super::tests! { "wasm_spin":
    the_articles_handler_runs_as_it_is, the_command_of_an_image_for_the_shim_is_a_slash, each_sdk_answers_at_its_route,
    a_handler_forces_an_app, a_guest_learns_its_route_from_the_server_alone, a_private_route_is_not_reached,
    variables_come_from_the_environment, a_component_sees_the_files_that_are_listed, key_value_stores_are_shared_and_listed,
    a_store_in_a_volume_survives_the_container, a_store_in_memory_ends_with_the_container, a_store_in_a_volume_survives_sigkill, containers_share_the_stores_of_a_volume,
    a_volume_that_is_read_only_is_an_error, nothing_is_written_into_the_rootfs, sql_stays_in_its_database,
    requests_go_to_allowed_hosts_only, a_name_does_not_lead_to_addresses_of_the_machine, https_goes_to_allowed_hosts_only, components_send_requests_to_each_other,
    each_sdk_answers_other_components, a_component_asks_only_those_that_are_listed, a_request_to_the_app_itself_takes_its_route,
    a_client_is_not_taken_for_a_component, a_component_that_fails_is_an_error_for_its_caller,
    a_component_that_asks_itself_for_ever_gets_an_error, guests_that_wait_for_each_other_get_their_turn,
    a_request_inside_ends_with_the_clients, a_request_inside_has_the_limits_of_a_clients,
    an_interface_that_nobody_offers_traps_with_its_name, a_trap_does_not_end_the_others,
    logs_go_to_standard_error, listens_where_it_is_told, a_bad_manifest_is_an_error, a_bad_module_is_an_error,
    a_module_is_looked_up_inside_the_container, a_module_is_not_looked_up_through_an_open_directory,
    one_capability_is_enough_for_its_port, a_user_without_rights_starts_an_app, a_broken_plan_is_not_run,
    is_compiled_by_the_administrator, ends_with_a_signal, a_signal_lets_running_requests_finish, a_port_in_use_is_an_error,
    a_body_that_is_too_large_is_refused, an_app_of_sdk_5_has_what_its_manifest_says, sdk_6_has_the_functions_of_its_preview, an_app_of_sdk_7_has_what_its_manifest_says,
    a_component_of_sdk_7_sees_the_files_that_are_listed, stores_of_sdk_7_are_those_of_the_others, requests_of_sdk_7_go_to_allowed_hosts_only,
    components_of_sdk_7_and_of_others_call_each_other, a_long_statement_holds_up_nobody, no_function_of_sql_computes_for_ever,
    rows_that_nobody_reads_are_limited, a_fifo_beside_the_manifest_holds_up_nobody,
}

/// How long a start waits for native code, at most, in seconds. Other tests compile too.
const TIMEOUT: &str = "run.oci.wasm.compile-timeout";

const HELLO: &str = "Hello from Spin!";

/// A manifest of one component, `a`, with more of its keys, and more tables.
fn manifest(keys: &str, tables: &str) -> String {
    format!(
        "spin_manifest_version = 2\n[application]\nname = \"app\"\n{tables}\n\
         [[trigger.http]]\nroute = \"/...\"\ncomponent = \"a\"\n\
         [component.a]\nsource = \"spin3.wasm\"\n{keys}\n"
    )
}

/// A bundle that is an app of this manifest, with all guests for Spin beside it.
fn app<'a>(test: &'a Test, manifest: &str, settings: Value) -> Outcome<Bundle<'a>> {
    test.only_rt()?;
    wasm_cache::host_of(test, WASMTIME, settings)?;
    let mut bundle = Bundle::new(test, &["/spin.toml"])?.file("/spin.toml", manifest)?;
    for guest in ["spin1", "spin2", "spin3", "spin4", "spin5"] {
        let module = fs::read(test.host.module(guest)?)?;
        bundle = bundle.file(&format!("/{guest}.wasm"), module)?;
    }
    for guest in ["spin6", "spin7"] {
        let component = fs::read(test.host.component(guest)?)?;
        bundle = bundle.file(&format!("/{guest}.wasm"), component)?;
    }
    Ok(bundle.annotation("run.oci.handler", "wasm").annotation(TIMEOUT, "300"))
}

/// The same, with the cache that most of these tests share.
fn shared<'a>(test: &'a Test, manifest: &str) -> Outcome<Bundle<'a>> {
    let cache = test.host.folder.join("native");
    app(test, manifest, json!({ "cache": { "directory": cache } }))
}

/// A response: its status, and its body.
type Response = (u16, String);

/// Connects to a port of a container, from its network.
fn connect(container: &Container<'_>, port: u16) -> Outcome<TcpStream> {
    let network = File::open(format!("/proc/{}/ns/net", container.pid()?))?;
    let mut up = Command::new("nsenter");
    up.arg(format!("--net=/proc/{}/ns/net", container.pid()?));
    up.args(["ip", "link", "set", "lo", "up"]);
    Output::of(up)?.success()?;
    // The namespace of a thread ends with the thread, and the socket stays.
    let thread = std::thread::spawn(move || -> std::io::Result<TcpStream> {
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&network),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )?;
        TcpStream::connect(("127.0.0.1", port))
    });
    let stream = thread.join().map_err(|_| "the thread ended")??;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

fn ask_at(
    container: &Container<'_>,
    port: u16,
    path: &str,
    headers: &str,
    body: &str,
) -> Outcome<Response> {
    let mut stream = connect(container, port)?;
    let method = if body.is_empty() { "GET" } else { "POST" };
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: app.example\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(format!("not a response: {answer}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => chunks(body),
        false => body.to_owned(),
    };
    Ok((status.ok_or(format!("no status: {head}"))?, body))
}

/// The content of a chunked body.
fn chunks(mut body: &str) -> String {
    let mut content = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        content.push_str(rest.get(..size).unwrap_or_default());
        body = rest.get(size + 2..).unwrap_or_default();
    }
    content
}

fn get(container: &Container<'_>, path: &str) -> Outcome<Response> {
    ask_at(container, 80, path, "", "")
}

/// Expects a response of status 200 with this body.
fn gives(container: &Container<'_>, path: &str, expected: &str) -> Outcome {
    let response = get(container, path)?;
    ensure(response == (200, expected.to_owned()), format!("{path}: {response:?}"))
}

/// Expects that the guest reports an error which contains these words.
fn refuses(container: &Container<'_>, path: &str, words: &str) -> Outcome {
    let (status, body) = get(container, path)?;
    ensure(status == 500 && body.contains(words), format!("{path}: {status} {body}"))
}

fn the_articles_handler_runs_as_it_is(test: &Test) -> Outcome {
    let text = manifest("", "").replace("spin3", "spin2");
    let container = shared(test, &text)?.annotation("run.oci.handler", "spin").start()?;
    gives(&container, "/", HELLO)?;
    let engine = container.state()?["annotations"]["run.oci.engine"].clone();
    ensure(engine.as_str().is_some_and(|it| it.starts_with("wasmtime ")), &engine)?;
    ensure_eq(&container.state()?["annotations"]["run.oci.engine.mode"], &json!("aot"))
}

fn the_command_of_an_image_for_the_shim_is_a_slash(test: &Test) -> Outcome {
    let bundle = shared(test, &manifest("", ""))?;
    for (args, cwd) in [(["/"], "/"), (["spin.toml"], "/"), (["./spin.toml"], "/")] {
        let bundle = bundle.clone().args(&args).edit(|config| {
            config["process"]["cwd"] = json!(cwd);
        });
        gives(&bundle.start()?, "/", HELLO)?;
    }
    fs::remove_file(bundle.rootfs().join("spin.toml"))?;
    bundle.args(&["/"]).run()?.fails_with("is a directory").map(drop)
}

fn each_sdk_answers_at_its_route(test: &Test) -> Outcome {
    let routes = [
        ("/one", "spin1"),
        ("/two", "spin2"),
        ("/three/:x", "spin3"),
        ("/four", "spin4"),
        ("/five/...", "spin5"),
        ("/six", "spin6"),
        ("/seven/...", "spin7"),
    ];
    let mut text = "spin_manifest_version = 2\n[application]\nname = \"app\"\n".to_owned();
    for (route, guest) in routes {
        text += &format!(
            "[[trigger.http]]\nroute = \"{route}\"\ncomponent = \"{guest}\"\n[component.{guest}]\nsource = \"{guest}.wasm\"\n"
        );
    }
    let container = shared(test, &text)?.start()?;
    let one = ask_at(&container, 80, "/one?a=b", "", "body")?;
    ensure_eq(one, (201, "Method::Post /one?a=b 4 at /one".into()))?;
    gives(&container, "/two", HELLO)?;
    gives(&container, "/two/", HELLO)?;
    gives(&container, "/three/hello", HELLO)?;
    gives(&container, "/four", HELLO)?;
    gives(&container, "/five", "Hello from Spin 5 at /five")?;
    gives(&container, "/five/more/of/it?x=y", "Hello from Spin 5 at /five")?;
    gives(&container, "/six", HELLO)?;
    gives(&container, "/seven/of/it", HELLO)?;
    for nothing in ["/", "/two/more", "/three", "/three/a/b", "/fives"] {
        ensure_eq(get(&container, nothing)?.0, 404)?;
    }
    Ok(())
}

fn a_handler_forces_an_app(test: &Test) -> Outcome {
    let bundle = shared(test, &manifest("", ""))?;
    for (handler, args, words) in [
        (
            "wasmedge",
            "/spin.toml",
            "a Spin manifest, which the engine `wasmedge` does not run: it needs an engine such as `wasmtime`",
        ),
        (
            "spin",
            "/hello.wasm",
            "a WebAssembly component, not a Spin manifest: with the annotation `run.oci.handler=wasm`, the engine `wasmtime` runs it",
        ),
        ("spin", "/module.wasm", "the engine `wasmedge` runs it"),
    ] {
        let hello = fs::read(test.host.component("hello")?)?;
        let module = fs::read(test.host.module("hello")?)?;
        let bundle = bundle.clone().file("/hello.wasm", hello)?.file("/module.wasm", module)?;
        let bundle = bundle.args(&[args]);
        bundle.annotation("run.oci.handler", handler).run()?.fails_with(words)?;
    }
    // A module of an SDK, without its manifest.
    for handler in ["wasm", "wasmedge", "wasmtime", "spin"] {
        let bundle = bundle.clone().args(&["/spin2.wasm"]).annotation("run.oci.handler", handler);
        bundle.run()?.code(1)?.fails_with(
            "exec: `/spin2.wasm`: a part of a Spin app, which does not run by itself, because it exports \
             `wasi:http/incoming-handler@0.2.0-rc-2023-10-18#handle` and no `_start`",
        )?;
    }
    let plain = bundle.edit(|config| config["annotations"] = json!({}));
    plain.run()?.fails_with("set the annotation `run.oci.handler` to `spin`").map(drop)
}

fn a_guest_learns_its_route_from_the_server_alone(test: &Test) -> Outcome {
    let text = manifest("", "").replace("/...", "/users/:id/...");
    let container = shared(test, &text)?.start()?;
    let forged = "Spin-Path-Match-Id: 8\r\nspin-client-secret: x\r\n";
    let (_, headers) = ask_at(&container, 80, "/users/7/headers?a=b", forged, "")?;
    let expected = "spin-base-path: /\nspin-component-route: /users/:id\n\
        spin-full-url: http://app.example/users/7/headers?a=b\nspin-matched-route: /users/:id/...\n\
        spin-path-info: /headers\nspin-path-match-id: 7\nspin-raw-component-route: /users/:id/...\n";
    ensure_eq(headers.as_str(), expected)
}

fn a_private_route_is_not_reached(test: &Test) -> Outcome {
    let text = manifest("", "").replace("\"/...\"", "{ private = true }");
    let container = shared(test, &text)?.start()?;
    for path in ["/", "/private", "/a", "/.well-known/spin/info"] {
        ensure_eq(get(&container, path)?.0, 404)?;
    }
    ensure_eq(get(&container, "/.well-known/spin/health")?.0, 200)
}

fn variables_come_from_the_environment(test: &Test) -> Outcome {
    let tables =
        "[variables]\nwho = { default = \"you\" }\ntoken = { required = true, secret = true }\n";
    let keys = "variables = { text = \"{{ who }}/{{ token }}\" }\nenvironment = { A = \"1\" }";
    let bundle = shared(test, &manifest(keys, tables))?;
    let with =
        |variables: Value| bundle.clone().edit(|config| config["process"]["env"] = variables);
    let container = with(json!(["SPIN_VARIABLE_TOKEN=t", "OTHER=x"])).start()?;
    gives(&container, "/variable?v=text", "you/t")?;
    // The container's environment is not the component's.
    gives(&container, "/env", "A=1\n")?;
    refuses(&container, "/variable?v=token", "Undefined")?;
    refuses(&container, "/variable?v=A+B", "InvalidName")?;
    let both = json!(["SPIN_VARIABLE_TOKEN={{ who }}", "SPIN_VARIABLE_WHO=me"]);
    gives(&with(both).start()?, "/variable?v=text", "me/{{ who }}")?;
    let output = with(json!([])).run()?.code(126)?;
    output
        .fails_with(
            "the variable `token` is required, and the environment has no `SPIN_VARIABLE_TOKEN`",
        )
        .map(drop)
}

fn a_component_sees_the_files_that_are_listed(test: &Test) -> Outcome {
    let keys = "files = [\"*.txt\", \"a/**/*.txt\", { source = \"assets\", destination = \"/x/y\" }]\n\
        exclude_files = [\"a/b/not.txt\"]";
    let mut bundle = shared(test, &manifest(keys, ""))?;
    for path in ["top.txt", "a/1.txt", "a/b/2.txt", "a/b/not.txt", "a/secret", "assets/file"] {
        bundle = bundle.file(&format!("/{path}"), path)?;
    }
    std::os::unix::fs::symlink("secret", bundle.rootfs().join("a/link.txt"))?;
    std::os::unix::fs::symlink("../a/secret", bundle.rootfs().join("assets/link"))?;
    std::os::unix::fs::symlink("/proc/self/environ", bundle.rootfs().join("assets/environ"))?;
    let container = bundle.start()?;
    gives(&container, "/list?p=/", "a top.txt")?;
    gives(&container, "/list?p=/a", "1.txt b")?;
    gives(&container, "/list?p=/a/b", "2.txt")?;
    gives(&container, "/list?p=/x/y", "environ file link")?;
    for (path, content) in [
        ("/top.txt", "top.txt"),
        ("/a/b/2.txt", "a/b/2.txt"),
        ("/a/../a/1.txt", "a/1.txt"),
        ("/x/y/file", "assets/file"),
    ] {
        gives(&container, &format!("/read?p={path}"), content)?;
    }
    for hidden in [
        "/spin.toml",
        "/a/secret",
        "/a/link.txt",
        "/a/b/not.txt",
        "/x/y/link",
        "/x/y/environ",
        "/x/y/../../a/secret",
        "/proc/self/environ",
        "/etc/hostname",
    ] {
        refuses(&container, &format!("/read?p={hidden}"), "os error")?;
    }
    for path in ["/new", "/top.txt", "/a/new", "/x/y/file"] {
        refuses(&container, &format!("/write?p={path}"), "os error")?;
    }
    Ok(())
}

fn key_value_stores_are_shared_and_listed(test: &Test) -> Outcome {
    let other = "[[trigger.http]]\nroute = \"/other/...\"\ncomponent = \"b\"\n[component.b]\nsource = \"spin3.wasm\"\nkey_value_stores = [\"default\"]\n\
        [[trigger.http]]\nroute = \"/none/...\"\ncomponent = \"c\"\n[component.c]\nsource = \"spin3.wasm\"\n";
    let container = shared(test, &manifest("key_value_stores = [\"default\"]", other))?.start()?;
    gives(&container, "/get?k=a", "none")?;
    gives(&container, "/set?k=a:1", "set")?;
    gives(&container, "/set?k=b:2", "set")?;
    gives(&container, "/other/get?k=a", "1")?;
    gives(&container, "/keys", "a b")?;
    gives(&container, "/delete?k=a", "false")?;
    gives(&container, "/other/keys", "b")?;
    refuses(&container, "/open?n=secret", "AccessDenied")?;
    refuses(&container, "/none/get?k=a", "AccessDenied")
}

/// A bundle whose stores are in a volume.
fn with_volume<'a>(test: &'a Test, keys: &str, volume: &Path) -> Outcome<Bundle<'a>> {
    fs::create_dir_all(volume)?;
    let bundle = shared(test, &manifest(keys, ""))?;
    let mount =
        json!({ "destination": "/data", "type": "bind", "source": volume, "options": ["bind"] });
    Ok(bundle.mount(mount).edit(|config| {
        config["process"]["env"] = json!(["SPIN_STATE_DIR=/data"]);
    }))
}

fn a_store_in_a_volume_survives_the_container(test: &Test) -> Outcome {
    let volume = test.folder.join("volume");
    let keys = "key_value_stores = [\"default\"]\nsqlite_databases = [\"default\"]";
    let bundle = with_volume(test, keys, &volume)?;
    let sql = |container: &Container<'_>, statement: &str| {
        ask_at(container, 80, "/sql?d=default", "", statement)
    };
    let first = bundle.start()?;
    gives(&first, "/set?k=a:1", "set")?;
    ensure_eq(sql(&first, "CREATE TABLE t (a)")?.0, 200)?;
    ensure_eq(sql(&first, "INSERT INTO t VALUES (?1)")?.0, 200)?;
    first.rt(&["kill"])?.success()?;
    first.wait()?;
    first.delete()?;
    let second = bundle.start()?;
    gives(&second, "/get?k=a", "1")?;
    ensure_eq(sql(&second, "SELECT a FROM t")?, (200, "a\n[Value::Integer(7)]\n".into()))?;
    let mut names: Vec<_> = fs::read_dir(&volume)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort_unstable();
    ensure_eq(names, vec!["default.kv.sqlite".to_owned(), "default.sqlite".to_owned()])?;
    // A neighbour that shares the volume has put a link there.
    let outside = test.folder.join("outside");
    fs::remove_file(volume.join("default.kv.sqlite"))?;
    std::os::unix::fs::symlink("../outside", volume.join("default.kv.sqlite"))?;
    refuses(&bundle.start()?, "/set?k=a:1", "unable to open")?;
    ensure(!outside.exists(), "a file outside of the volume")
}

const BOTH: &str = "key_value_stores = [\"default\"]\nsqlite_databases = [\"default\"]";

fn a_store_in_memory_ends_with_the_container(test: &Test) -> Outcome {
    let bundle = shared(test, &manifest(BOTH, ""))?;
    for _ in 0..2 {
        let container = bundle.start()?;
        gives(&container, "/get?k=a", "none")?;
        gives(&container, "/set?k=a:1", "set")?;
        gives(&container, "/get?k=a", "1")?;
        let made = ask_at(&container, 80, "/sql?d=default", "", "CREATE TABLE t (a)")?;
        ensure_eq(made.0, 200)?;
        container.kill("TERM")?;
        container.wait()?;
        container.delete()?;
    }
    Ok(())
}

fn a_store_in_a_volume_survives_sigkill(test: &Test) -> Outcome {
    let bundle = with_volume(test, BOTH, &test.folder.join("volume"))?;
    let sql = |container: &Container<'_>, statement: &str| {
        ask_at(container, 80, "/sql?d=default", "", statement)
    };
    let first = bundle.start()?;
    ensure_eq(sql(&first, "CREATE TABLE t (a)")?.0, 200)?;
    for number in 0..20 {
        gives(&first, &format!("/set?k={number}:{number}"), "set")?;
        ensure_eq(sql(&first, "INSERT INTO t VALUES (?1)")?.0, 200)?;
    }
    // In the middle of a statement.
    let rows = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 1000000) \
                INSERT INTO t SELECT x FROM n";
    let _begun = send(&first, "/sql?d=default", rows)?;
    std::thread::sleep(Duration::from_millis(100));
    first.kill("KILL")?;
    first.wait()?;
    first.delete()?;
    let second = bundle.start()?;
    gives(&second, "/get?k=19", "19")?;
    let (status, rows) = sql(&second, "SELECT count(*) FROM t")?;
    // All of the statement or nothing of it.
    let is_whole =
        |rows: &str| ["20", "1000020"].iter().any(|it| rows.contains(&format!("({it})")));
    ensure(status == 200 && is_whole(&rows), rows)
}

fn containers_share_the_stores_of_a_volume(test: &Test) -> Outcome {
    let bundle = with_volume(test, BOTH, &test.folder.join("volume"))?;
    let both = [bundle.start()?, bundle.start()?];
    for turn in 0..4 {
        let (one, other) = (&both[turn % 2], &both[(turn + 1) % 2]);
        gives(one, &format!("/set?k=a:{turn}"), "set")?;
        gives(other, "/get?k=a", &turn.to_string())?;
    }
    Ok(())
}

fn a_volume_that_is_read_only_is_an_error(test: &Test) -> Outcome {
    let volume = test.folder.join("volume");
    let bundle = with_volume(test, BOTH, &volume)?;
    let read_only = bundle.clone().edit(|config| {
        let mounts = config["mounts"].as_array_mut().expect("a list");
        let data = mounts.iter_mut().find(|it| it["destination"] == "/data").expect("a volume");
        data["options"] = json!(["bind", "ro"]);
    });
    let words = "keep stores in `/data`: it cannot be written to: Read-only file system";
    read_only.run()?.code(126)?.fails_with(words)?;
    // The directory of somebody else.
    let user = bundle.edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = json!({});
        config["process"]["env"] =
            json!(["SPIN_STATE_DIR=/data", "SPIN_HTTP_LISTEN_ADDR=0.0.0.0:8080"]);
    });
    fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    user.run()?.code(126)?.fails_with("it cannot be written to: Permission denied").map(drop)
}

fn nothing_is_written_into_the_rootfs(test: &Test) -> Outcome {
    let keys = "key_value_stores = [\"default\"]";
    let bundle = shared(test, &manifest(keys, ""))?;
    let listed = |bundle: &Bundle<'_>| -> Outcome<Vec<String>> {
        let mut find = Command::new("find");
        find.arg(bundle.rootfs()).args(["-printf", "%p %s %T@\n"]);
        let mut lines: Vec<_> =
            Output::of(find)?.success()?.stdout.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        Ok(lines)
    };
    // `rt` itself makes the places of mounts.
    let read_only = bundle.clone().edit(|config| config["root"]["readonly"] = json!(true));
    let container = read_only.start()?;
    let before = listed(&bundle)?;
    gives(&container, "/set?k=a:1", "set")?;
    gives(&container, "/get?k=a", "1")?;
    ensure_eq(listed(&bundle)?, before)?;
    for (directory, words) in [
        ("/data", "it is not on a volume"),
        ("/", "it is not on a volume"),
        ("data", "it is not an absolute path"),
        ("/missing", "No such file or directory"),
    ] {
        let bundle = bundle.clone().file("/data/file", "")?.edit(|config| {
            config["process"]["env"] = json!([format!("SPIN_STATE_DIR={directory}")]);
        });
        bundle.run()?.code(126)?.fails_with(words)?;
    }
    Ok(())
}

fn sql_stays_in_its_database(test: &Test) -> Outcome {
    let keys = "sqlite_databases = [\"default\"]";
    let container = shared(test, &manifest(keys, ""))?.start()?;
    let sql = |statement: &str| ask_at(&container, 80, "/sql?d=default", "", statement);
    ensure_eq(
        sql("SELECT 1 AS a, 'x' AS b")?,
        (200, "a,b\n[Value::Integer(1), Value::Text(\"x\")]\n".into()),
    )?;
    for statement in [
        "ATTACH '/spin.toml' AS x",
        "VACUUM INTO '/copy'",
        "PRAGMA temp_store_directory = '/'",
        "SELECT load_extension('/x')",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
    ] {
        let (status, body) = sql(statement)?;
        ensure(status == 500 && body.contains("Error"), format!("{statement}: {status} {body}"))?;
    }
    let (status, body) = ask_at(&container, 80, "/sql?d=other", "", "SELECT 1")?;
    ensure(status == 500 && body.contains("AccessDenied"), format!("{status} {body}"))
}

fn requests_go_to_allowed_hosts_only(test: &Test) -> Outcome {
    let tables = "[variables]\nport = { default = \"80\" }\n";
    let keys = "allowed_outbound_hosts = [\"http://127.0.0.1:{{ port }}\"]";
    let container = shared(test, &manifest(keys, tables))?.start()?;
    // The app itself.
    gives(&container, "/fetch?u=http://127.0.0.1:80/hello", &format!("200 {HELLO}"))?;
    for refused in
        ["http://127.0.0.1:81/", "http://localhost:80/", "http://[::1]:80/", "http://127.0.0.2/"]
    {
        refuses(&container, &format!("/fetch?u={refused}"), "HttpRequestDenied")?;
    }
    let none = shared(test, &manifest("", ""))?.start()?;
    refuses(&none, "/fetch?u=http://127.0.0.1:80/", "HttpRequestDenied")
}

/// Whoever answers for a name may write an address of IPv4 as one of IPv6.
fn a_name_does_not_lead_to_addresses_of_the_machine(test: &Test) -> Outcome {
    let keys = "allowed_outbound_hosts = [\"http://*:*\"]";
    let hosts = "127.0.0.1 plain\n::ffff:127.0.0.1 mapped\n::ffff:169.254.169.254 metadata\n";
    let container = shared(test, &manifest(keys, ""))?.file("/etc/hosts", hosts)?.start()?;
    for name in ["plain", "mapped", "metadata", "127.0.0.1", "[::ffff:127.0.0.1]"] {
        refuses(&container, &format!("/fetch?u=http://{name}/"), "DestinationIpProhibited")?;
    }
    Ok(())
}

fn https_goes_to_allowed_hosts_only(test: &Test) -> Outcome {
    let authority = Authority::new("good")?;
    let keys = "allowed_outbound_hosts = [\"https://server.test\", \"https://127.0.0.1:*\"]";
    let bundle = shared(test, &manifest(keys, ""))?
        .file("/etc/hosts", "127.0.0.1 server.test other.test\n")?
        .file("/trusted.pem", authority.file())?;
    let bundle =
        bundle.edit(|config| config["process"]["env"] = json!(["SSL_CERT_FILE=/trusted.pem"]));
    let container = bundle.start()?;
    get(&container, "/hello")?;
    let config = authority.server(&["server.test", "other.test", "127.0.0.1"], VALID, ALL)?;
    serve_tls(&container, "127.0.0.1:443", config, same)?;
    gives(&container, "/fetch?u=https://server.test/a", "200 GET /a HTTP/1.1")?;
    gives(&container, "/fetch?u=https://127.0.0.1/", "200 GET / HTTP/1.1")?;
    for refused in [
        "https://other.test/",
        "https://server.test:444/",
        "http://127.0.0.1:443/",
        "http://127.0.0.1/",
    ] {
        refuses(&container, &format!("/fetch?u={refused}"), "HttpRequestDenied")?;
    }
    Ok(())
}

/// An app whose component `a` gets what clients send. `b` and one component for each SDK are
/// private, and `three` is also at a route. Each may send requests to these hosts.
fn linked<'a>(test: &'a Test, hosts: &str) -> Outcome<Bundle<'a>> {
    let mut text = "spin_manifest_version = 2\n[application]\nname = \"app\"\n".to_owned();
    for (name, route, guest) in [
        ("a", "\"/...\"", "handler"),
        ("b", "{ private = true }", "handler"),
        ("one", "{ private = true }", "spin1"),
        ("two", "{ private = true }", "spin2"),
        ("three", "\"/three/...\"", "spin3"),
        ("five", "{ private = true }", "spin5"),
    ] {
        text += &format!(
            "[[trigger.http]]\nroute = {route}\ncomponent = \"{name}\"\n\
             [component.{name}]\nsource = \"{guest}.wasm\"\nallowed_outbound_hosts = [{hosts}]\n"
        );
    }
    let handler = fs::read(test.host.component("handler")?)?;
    shared(test, &text)?.file("/handler.wasm", handler)
}

const EACH_OTHER: &str = "\"http://*.spin.internal\"";

fn components_send_requests_to_each_other(test: &Test) -> Outcome {
    // No socket is needed for that.
    let bundle = linked(test, EACH_OTHER)?.annotation("run.oci.wasm.sockets", "off");
    let container = bundle.start()?;
    gives(&container, "/fetch/b.spin.internal/", "200 Hello from Wasm!\n")?;
    gives(&container, "/fetch/three.spin.internal/hello", "200 Hello from Spin!")?;
    gives(&container, "/fetch/three.spin.internal/three/headers?a=b", &format!("200 {INSIDE}"))?;
    // Neither the scheme nor the port counts, nor the case of the name.
    for url in ["fetch-https/b.spin.internal/", "fetch/B.spin.internal:8080/"] {
        gives(&container, &format!("/{url}"), "200 Hello from Wasm!\n")?;
    }
    let (_, told) = get(&container, "/fetch/b.spin.internal:81/request/x")?;
    let line = "200 Method::Get \"b.spin.internal\" \"/request/x\"\n";
    ensure(told.starts_with(line), &told)?;
    // Bodies go both ways, and need not fit into memory at once.
    gives(&container, "/post/3000000/b.spin.internal/consume", "200 3000000 bytes\n")?;
    let (_, large) = get(&container, "/fetch/b.spin.internal/large/3000000")?;
    ensure_eq(large.len(), 3_000_000 + "200 ".len())?;
    ensure_eq(container.stderr()?.as_str(), "")
}

const INSIDE: &str = "spin-base-path: /\nspin-component-route: /\n\
    spin-full-url: http://three.spin.internal/three/headers?a=b\nspin-matched-route: /...\n\
    spin-path-info: /three/headers\nspin-raw-component-route: /...\n";

fn each_sdk_answers_other_components(test: &Test) -> Outcome {
    let container = linked(test, EACH_OTHER)?.start()?;
    let inside = [
        ("one.spin.internal/x", "201 Method::Get /x 0 at /".to_owned()),
        ("two.spin.internal/x", format!("200 {HELLO}")),
        ("three.spin.internal/hello", format!("200 {HELLO}")),
        ("five.spin.internal/x", "200 Hello from Spin 5 at /".to_owned()),
    ];
    for (url, expected) in &inside {
        gives(&container, &format!("/fetch/{url}"), expected)?;
        gives(&container, &format!("/three/fetch?u=http://{url}"), expected)?;
        let five = format!("/fetch/five.spin.internal/?ask=http://{url}");
        gives(&container, &five, &format!("200 {expected}"))?;
    }
    Ok(())
}

fn a_component_asks_only_those_that_are_listed(test: &Test) -> Outcome {
    let denied = |container: &Container<'_>, url: &str| -> Outcome {
        let (_, told) = get(container, &format!("/fetch/{url}"))?;
        ensure(told.starts_with("error: ErrorCode::HttpRequestDenied"), format!("{url}: {told}"))
    };
    for hosts in
        ["", "\"http://self\"", "\"http://five.spin.internal\"", "\"redis://*.spin.internal\""]
    {
        let container = linked(test, hosts)?.start()?;
        denied(&container, "b.spin.internal/")?;
        if !hosts.contains("self") {
            denied(&container, "self.alt/")?;
            denied(&container, ":80/")?;
        }
        let said = container.stderr()?;
        ensure(said.contains("a request to the component `b` is not allowed\n"), said)?;
    }
    let container = linked(test, EACH_OTHER)?.start()?;
    for nobody in ["nobody.spin.internal/", "a.b.spin.internal/"] {
        let (_, told) = get(&container, &format!("/fetch/{nobody}"))?;
        ensure(told.starts_with("error: ErrorCode::DestinationNotFound"), told)?;
    }
    let said = container.stderr()?;
    ensure(said.contains("there is no component `nobody` that gets requests\n"), said)?;
    denied(&container, "spin.internal/")?;
    let all = linked(test, "\"*://*:*\"")?.start()?;
    gives(&all, "/fetch/b.spin.internal/", "200 Hello from Wasm!\n")?;
    gives(&all, "/fetch/self.alt/", "200 Hello from Wasm!\n")
}

fn a_request_to_the_app_itself_takes_its_route(test: &Test) -> Outcome {
    for hosts in ["\"http://self\"", "\"https://self.alt\""] {
        let bundle = linked(test, hosts)?.annotation("run.oci.wasm.sockets", "off");
        let container = bundle.start()?;
        let headers = "200 spin-base-path: /\nspin-component-route: /three\n\
            spin-full-url: http://0.0.0.0:80/three/headers\nspin-matched-route: /three/...\n\
            spin-path-info: /headers\nspin-raw-component-route: /three/...\n";
        // A path alone, as the SDK makes it.
        for url in ["self.alt", "self.alt:80", ":80", ":443"] {
            gives(&container, &format!("/fetch/{url}/three/headers"), headers)?;
            gives(&container, &format!("/fetch-https/{url}/three/headers"), headers)?;
        }
        gives(&container, "/three/fetch?u=/three/headers", headers)?;
        gives(&container, "/three/fetch?u=/arguments", "200 a")?;
        gives(&container, "/three/fetch?u=http://self.alt/arguments", "200 a")?;
        gives(&container, "/three/fetch?u=/.well-known/spin/health", "200 ok\n")?;
        // A private component has no route.
        refuses(&container, "/three/fetch?u=http://b.spin.internal/", "HttpRequestDenied")?;
    }
    let text = manifest("allowed_outbound_hosts = [\"http://self\"]", "").replace("/...", "/a/...");
    let container = shared(test, &text)?.start()?;
    gives(&container, "/a/fetch?u=/nothing", "404 404 Not Found\n")
}

fn a_client_is_not_taken_for_a_component(test: &Test) -> Outcome {
    let container = linked(test, EACH_OTHER)?.start()?;
    for (target, host) in [
        ("/", "b.spin.internal"),
        ("/", "B.Spin.Internal:80"),
        ("/", "b.spin.internal."),
        ("/", "a.spin.internal"),
        ("http://b.spin.internal/", "app.example"),
        ("http://app.example/", "b.spin.internal"),
        ("/", "b.spin.internal:80@c"),
        ("/", "[::1]b.spin.internal"),
        ("http://b.spin.internal:80@c/", "app.example"),
    ] {
        let mut stream = connect(&container, 80)?;
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let is_odd = host.contains(['@', '[']) || target.contains('@');
        let status = if is_odd { "HTTP/1.1 400 " } else { "HTTP/1.1 404 " };
        ensure(answer.starts_with(status), format!("{target} {host}: {answer}"))?;
    }
    let (_, headers) = ask_at(&container, 80, "/three/headers", "spin-component-route: x\r\n", "")?;
    ensure(!headers.contains("x\n"), headers)
}

fn a_component_that_fails_is_an_error_for_its_caller(test: &Test) -> Outcome {
    let container = linked(test, EACH_OTHER)?.start()?;
    let failed = "500 500 Internal Server Error\n";
    for what in ["trap", "silent", "error", "exit/3"] {
        gives(&container, &format!("/fetch/b.spin.internal/{what}"), failed)?;
    }
    gives(&container, "/fetch/three.spin.internal/trap", failed)?;
    // What was begun is not taken for complete.
    let (status, told) = get(&container, "/fetch/b.spin.internal/trap-after")?;
    let is_cut = told.starts_with("200 begun\n") && told.contains("incomplete HTTP response");
    ensure(status == 200 && is_cut, format!("{status} {told}"))?;
    gives(&container, "/fetch/b.spin.internal/", "200 Hello from Wasm!\n")
}

/// The deepest of requests inside of each other.
const DEEPEST: usize = 8;

fn a_component_that_asks_itself_for_ever_gets_an_error(test: &Test) -> Outcome {
    let container = linked(test, "\"http://*.spin.internal\", \"http://self\"")?.start()?;
    for (fetch, name) in [("fetch", "b.spin.internal"), ("fetch", "self.alt")] {
        let nested = |depth| format!("/{}", format!("{fetch}/{name}/").repeat(depth));
        let expected = format!("{}Hello from Wasm!\n", "200 ".repeat(DEEPEST));
        gives(&container, &nested(DEEPEST), &expected)?;
        let (status, told) = get(&container, &nested(DEEPEST + 1))?;
        let expected = format!("{}error: ErrorCode::LoopDetected", "200 ".repeat(DEEPEST));
        ensure(status == 200 && told.starts_with(&expected), format!("{status} {told}"))?;
    }
    let (status, told) = get(&container, "/fetch/b.spin.internal/again")?;
    ensure(status == 200 && told.contains("LoopDetected"), format!("{status} {told}"))?;
    let said = container.stderr()?;
    let line =
        "a request to the component `b` is the 9th inside of each other, and 8 are the most\n";
    ensure(said.contains(line), said)?;
    gives(&container, "/", "Hello from Wasm!\n")
}

fn guests_that_wait_for_each_other_get_their_turn(test: &Test) -> Outcome {
    let bundle = linked(test, EACH_OTHER)?.annotation("run.oci.wasm.http-requests", "1");
    let container = bundle.start()?;
    // Each needs a place at each level, and there are fewer places than that.
    let deep = format!("/{}", "fetch/b.spin.internal/".repeat(DEEPEST));
    let expected = format!("{}Hello from Wasm!\n", "200 ".repeat(DEEPEST));
    let streams: Vec<_> = (0..12).map(|_| connect(&container, 80)).collect::<Result<_, _>>()?;
    for mut stream in &streams {
        let request = format!("GET {deep} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
    }
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&expected), answer)?;
    }
    Ok(())
}

fn a_request_inside_ends_with_the_clients(test: &Test) -> Outcome {
    let bundle = linked(test, EACH_OTHER)?.annotation("run.oci.wasm.timeout", "1");
    let container = bundle.start()?;
    for what in ["sleep/60000", "loop", "loop-after"] {
        let path = format!("/fetch/b.spin.internal/fetch/b.spin.internal/{what}");
        ensure_eq((what, get(&container, &path)?.0), (what, 504))?;
    }
    // A client that goes away.
    let mut stream = connect(&container, 80)?;
    stream.write_all(b"GET /fetch/b.spin.internal/sleep/60000 HTTP/1.1\r\nhost: a\r\n\r\n")?;
    drop(stream);
    gives(&container, "/", "Hello from Wasm!\n")?;
    let instances = || -> Outcome<Value> {
        Ok(events::stats(test, &container)?["data"]["wasm"]["http"]["instancesNow"].clone())
    };
    wait_until("the end of all instances", || instances().is_ok_and(|now| now == json!(0)))
}

fn a_request_inside_has_the_limits_of_a_clients(test: &Test) -> Outcome {
    let bundle = linked(test, EACH_OTHER)?
        .annotation("run.oci.wasm.http-body", "1000")
        .annotation("run.oci.wasm.http-headers", "20");
    let container = bundle.start()?;
    gives(&container, "/post/1000/b.spin.internal/consume", "200 1000 bytes\n")?;
    let (_, told) = get(&container, "/post/1001/b.spin.internal/consume")?;
    ensure(told.starts_with("413 ") || told.contains("HttpRequestBodySize"), told)?;
    gives(&container, "/fetch-headers/15/b.spin.internal/", "200 Hello from Wasm!\n")?;
    for (count, size) in [(21, "32768"), (33, "8192")] {
        let bundle = linked(test, EACH_OTHER)?
            .annotation("run.oci.wasm.http-headers", if count == 21 { "20" } else { "100" })
            .annotation("run.oci.wasm.http-header-bytes", size);
        let (_, told) = get(&bundle.start()?, &format!("/fetch-headers/{count}/b.spin.internal/"))?;
        ensure(told.starts_with("431 "), told)?;
    }
    let (_, told) = get(&container, "/fetch-connect/b.spin.internal/")?;
    ensure(told.starts_with("501 "), told)?;
    // What other components send is no traffic of clients.
    let statistics = events::stats(test, &container)?["data"]["wasm"]["http"].clone();
    ensure_eq((&statistics["requests"], &statistics["outbound"]), (&json!(4), &json!(4)))
}

fn an_interface_that_nobody_offers_traps_with_its_name(test: &Test) -> Outcome {
    let container = shared(test, &manifest("", ""))?.start()?;
    for name in ["redis", "postgres", "mysql"] {
        ensure_eq(get(&container, &format!("/{name}"))?.0, 500)?;
        let said = container.stderr()?;
        ensure(said.contains(&format!("`fermyon:spin/{name}@2.0.0#")), &said)?;
    }
    gives(&container, "/hello", HELLO)
}

fn a_trap_does_not_end_the_others(test: &Test) -> Outcome {
    let container = shared(test, &manifest("", ""))?.start()?;
    for _ in 0..3 {
        ensure_eq(get(&container, "/trap")?.0, 500)?;
        gives(&container, "/hello", HELLO)?;
    }
    ensure_eq(container.stderr()?.matches("rt-wasmtime: trap: ").count(), 3)
}

fn logs_go_to_standard_error(test: &Test) -> Outcome {
    let container = shared(test, &manifest("", ""))?.start()?;
    gives(&container, "/log?l=line", "logged")?;
    ensure_eq(container.stderr()?.as_str(), "logged: line\n")?;
    ensure_eq(container.stdout()?.as_str(), "")
}

fn listens_where_it_is_told(test: &Test) -> Outcome {
    let bundle = shared(test, &manifest("", ""))?;
    let with =
        |variable: &str| bundle.clone().edit(|config| config["process"]["env"] = json!([variable]));
    let told = with("SPIN_HTTP_LISTEN_ADDR=127.0.0.1:3000");
    ensure_eq(ask_at(&told.start()?, 3000, "/hello", "", "")?.0, 200)?;
    let annotated = told.annotation("run.oci.wasm.http", "0.0.0.0:4000");
    ensure_eq(ask_at(&annotated.start()?, 4000, "/hello", "", "")?.0, 200)?;
    let wrong = with("SPIN_HTTP_LISTEN_ADDR=80");
    wrong.run()?.fails_with("the variable `SPIN_HTTP_LISTEN_ADDR=80`")?;
    for (annotation, value) in [("dirs", "/"), ("http-outbound", "a:80")] {
        let name = format!("run.oci.wasm.{annotation}");
        let output = bundle.clone().annotation(&name, value).run()?;
        output.fails_with(&format!("the annotation `{name}` is not for a Spin app"))?;
    }
    Ok(())
}

/// Each is reported at `create`, on one line, and leaves nothing behind.
fn a_bad_manifest_is_an_error(test: &Test) -> Outcome {
    let trigger = "[[trigger.http]]\nroute = \"/a\"\ncomponent = \"a\"\n";
    for (text, words) in [
        (String::new(), "the Spin manifest is empty"),
        ("[".into(), "line 1 of the Spin manifest: "),
        ("spin_version = \"1\"\nname = \"app\"\n".into(), "has version 1, and rt runs version 2"),
        ("spin_manifest_version = 2\n[application]\nname = \"a\"\n".into(), "has no trigger"),
        (manifest("", "[extra]\n"), "unknown field `extra`"),
        (manifest("sauce = 1", ""), "unknown field `sauce`"),
        (manifest("", "[[trigger.redis]]\nchannel = \"x\"\n"), "unknown trigger `redis`"),
        (manifest("", &format!("{trigger}{trigger}")), "the routes `/a` and `/a` overlap"),
        (
            manifest("", &[":x", ":y"].map(|it| trigger.replace("/a", &format!("/{it}"))).concat()),
            "the routes `/:x` and `/:y` overlap",
        ),
        (manifest("", &trigger.replace("\"a\"", "\"b\"")), "there is no component `b`"),
        (
            manifest("", "").replace("\"spin3.wasm\"", "{ url = \"http://x\", digest = \"\" }"),
            "is a URL",
        ),
        (manifest("", "").replace("spin3", "../spin3"), "its `source` contains `..`"),
        (manifest("files = [\"/etc/*\"]", ""), "is not relative to the manifest"),
        (
            manifest("allowed_outbound_hosts = [\"example.com\"]", ""),
            "the allowed host `example.com`",
        ),
        ("#".repeat((1 << 20) + 1), "at most 1048576 bytes"),
    ] {
        let bundle = shared(test, &text)?;
        let output = bundle.try_create(&test.id())?.code(1)?;
        output.fails_with(words)?;
    }
    ensure_eq(test.rt(["list", "--quiet"])?.stdout.as_str(), "")
}

fn a_bad_module_is_an_error(test: &Test) -> Outcome {
    let text = manifest("", "").replace("spin3.wasm", "module.wasm");
    let hello = fs::read(test.host.component("hello")?)?;
    let empty = r#"(component (instance $i) (export "wasi:http/handler@0.3.0" (instance $i)))"#;
    let empty = wat::parse_str(empty)?;
    let later = r#"(component (instance $i) (export "wasi:http/handler@0.4.0" (instance $i)))"#;
    let later = wat::parse_str(later)?;
    for (content, code, words) in [
        (Some(&empty[..]), 126, "`handle`"),
        (Some(&later[..]), 126, "it exports `wasi:http/handler@0.4.0`, and this engine calls"),
        (None, 1, "the module `/module.wasm`: no such file or directory"),
        (Some(&b"text"[..]), 1, "the module `/module.wasm`: it is not a WebAssembly module"),
        (Some(&hello[..8]), 126, "it does not answer requests"),
        (Some(&hello[..hello.len() / 2]), 1, "`/module.wasm` has none: it cannot be compiled"),
    ] {
        let bundle = shared(test, &text)?;
        if let Some(content) = content {
            fs::write(bundle.rootfs().join("module.wasm"), content)?;
        }
        bundle.run()?.code(code)?.fails_with(words)?;
    }
    let folder = shared(test, &text)?.file("/module.wasm/x", "")?;
    folder.run()?.code(1)?.fails_with("it is not a regular file")?;
    ensure_eq(test.rt(["list", "--quiet"])?.stdout.as_str(), "")
}

/// Links lead within the container, and magic links nowhere.
fn a_module_is_looked_up_inside_the_container(test: &Test) -> Outcome {
    let secret = test.folder.join("secret.wasm");
    fs::copy(test.host.module("spin3")?, &secret)?;
    let text = manifest("", "").replace("spin3.wasm", "link.wasm");
    let bundle = shared(test, &text)?;
    let link = bundle.rootfs().join("link.wasm");
    std::os::unix::fs::symlink(&secret, &link)?;
    bundle.run()?.fails_with("the module `/link.wasm`: no such file or directory")?;
    fs::remove_file(&link)?;
    std::os::unix::fs::symlink("/spin3.wasm", &link)?;
    gives(&bundle.start()?, "/hello", HELLO)?;
    let absolute = shared(test, &manifest("", "").replace("spin3.wasm", "/spin3.wasm"))?;
    gives(&absolute.start()?, "/hello", HELLO)
}

/// Init has the engine's directory open when it looks up the modules. So it follows no magic link,
/// whatever is behind it.
fn a_module_is_not_looked_up_through_an_open_directory(test: &Test) -> Outcome {
    let text = manifest("", "").replace("spin3.wasm", "link.wasm");
    let bundle = shared(test, &text)?;
    let link = bundle.rootfs().join("link.wasm");
    let mut refused = 0;
    let descriptors = (3..24).map(|number| format!("fd/{number}/engine.json"));
    for target in descriptors.chain(["root/spin3.wasm", "cwd/spin3.wasm", "exe"].map(str::to_owned))
    {
        std::os::unix::fs::symlink(format!("/proc/self/{target}"), &link)?;
        let words = "the module `/link.wasm`: a loop of links, or a link of procfs, is on the way";
        let failed = bundle.run()?;
        // A number without a descriptor has no link.
        if !failed.stderr.contains("the module `/link.wasm`: no such file") {
            failed.fails_with(words)?;
            refused += 1;
        }
        fs::remove_file(&link)?;
    }
    // The last three, and at least one descriptor.
    ensure(refused > 3, format!("{refused} were refused"))
}

/// `packaging/callers/kubernetes/spin-deployment.yaml` gives this capability, and no other one.
fn one_capability_is_enough_for_its_port(test: &Test) -> Outcome {
    let with = |names: Value| {
        let bundle = shared(test, &manifest("", ""))?;
        Ok(bundle.edit(|config| {
            config["process"]["capabilities"] =
                json!({ "bounding": names, "effective": names, "permitted": names });
        }))
    };
    let able: Outcome<Bundle<'_>> = with(json!(["CAP_NET_BIND_SERVICE"]));
    gives(&able?.start()?, "/hello", HELLO)?;
    let unable: Outcome<Bundle<'_>> = with(json!([]));
    unable?.run()?.fails_with("listen on `0.0.0.0:80`").map(drop)
}

fn a_user_without_rights_starts_an_app(test: &Test) -> Outcome {
    let bundle = shared(test, &manifest("files = [\"*.txt\"]", ""))?.file("/a.txt", "text")?;
    let bundle = bundle.edit(|config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = json!({});
        config["process"]["env"] = json!(["SPIN_HTTP_LISTEN_ADDR=0.0.0.0:8080"]);
    });
    let container = bundle.start()?;
    ensure_eq(ask_at(&container, 8080, "/read?p=/a.txt", "", "")?, (200, "text".into()))?;
    let module = bundle.rootfs().join("spin3.wasm");
    fs::set_permissions(module, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    bundle.run()?.fails_with("the module `/spin3.wasm`: permission denied").map(drop)
}

/// The plan of an app is in the cache, as native code is.
fn a_broken_plan_is_not_run(test: &Test) -> Outcome {
    let bundle = app(test, &manifest("", ""), json!({ "compile": "lazy" }))?;
    gives(&bundle.start()?, "/hello", HELLO)?;
    let is_plan = |path: &&std::path::PathBuf| {
        fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"plan 1 "))
    };
    let compiled = files(test, "so");
    ensure_eq(compiled.len(), 2)?;
    let plan = compiled.iter().find(is_plan).ok_or("no plan")?;
    let good = fs::read(plan)?;
    let other = String::from_utf8_lossy(&good).replace("spin3.wasm", "spin2.wasm");
    for broken in [&good[..good.len() / 2], other.as_bytes(), b"", b"plan 1 [\"../x\"]\n"] {
        fs::write(plan, broken)?;
        gives(&bundle.start()?, "/anything", "Hello from anything")?;
    }
    Ok(())
}

fn is_compiled_by_the_administrator(test: &Test) -> Outcome {
    let bundle = app(test, &manifest("", ""), json!({ "compile": "lazy" }))?;
    bundle.write()?;
    let folder = bundle.folder.display().to_string();
    let output = test.rt(["wasm", "compile", &folder])?.success()?;
    ensure_eq(output.stdout.matches(": compiled in ").count(), 2)?;
    ensure_eq(files(test, "so").len(), 2)?;
    let again = test.rt(["wasm", "compile", &folder])?.success()?;
    ensure_eq(again.stdout.matches(": is compiled already").count(), 2)?;
    // A part alone is compiled for the same engine.
    let part = bundle.rootfs().join("spin3.wasm").display().to_string();
    let again = test.rt(["wasm", "compile", &part])?.success()?;
    ensure_eq(again.stdout.matches(": is compiled already").count(), 1)
}

fn ends_with_a_signal(test: &Test) -> Outcome {
    let container = shared(test, &manifest("", ""))?.start()?;
    gives(&container, "/hello", HELLO)?;
    container.rt(&["kill"])?.success()?;
    container.wait()?;
    wait_until("it is gone", || connect(&container, 80).is_err())
}

/// The exit status is that of a handler without Spin: 0 if all requests have finished.
fn a_signal_lets_running_requests_finish(test: &Test) -> Outcome {
    for (grace, sleep, code) in [("30", "/sleep/700", 0), ("0.2", "/sleep/60000", 143)] {
        let bundle = linked(test, "")?.annotation("run.oci.wasm.http-grace", grace);
        bundle.write()?;
        let id = test.id();
        let mut command = test.command(bundle.command_line("run", &id));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let container = Container::named(test, &id);
        wait_until("it runs", || container.status().is_ok_and(|it| it == "running"))?;
        gives(&container, "/", "Hello from Wasm!\n")?;
        let mut running = send(&container, sleep, "")?;
        wait_until("it sleeps", || {
            events::stats(test, &container)
                .is_ok_and(|it| it["data"]["wasm"]["http"]["instancesNow"] == json!(1))
        })?;
        container.kill("TERM")?;
        let mut answer = String::new();
        let _ = running.read_to_string(&mut answer);
        ensure(answer.starts_with("HTTP/1.1 200 ") == (code == 0), answer)?;
        ensure_eq(child.wait()?.code(), Some(code))?;
    }
    Ok(())
}

fn a_port_in_use_is_an_error(test: &Test) -> Outcome {
    let first = shared(test, &manifest("", ""))?.start()?;
    let network = format!("/proc/{}/ns/net", first.pid()?);
    let second = shared(test, &manifest("", ""))?.edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|it| it["type"] != "network");
        namespaces.push(json!({ "type": "network", "path": network }));
    });
    let output = second.run()?.code(1)?;
    output.fails_with("listen on `0.0.0.0:80` (`run.oci.wasm.http`): Address in use")?;
    gives(&first, "/hello", HELLO)
}

fn a_body_that_is_too_large_is_refused(test: &Test) -> Outcome {
    let bundle = shared(test, &manifest("", ""))?.annotation("run.oci.wasm.http-body", "1000");
    let container = bundle.start()?;
    let post = |length: usize| ask_at(&container, 80, "/size", "", &"x".repeat(length));
    ensure_eq(post(1000)?, (200, "size 1000".into()))?;
    ensure_eq(post(1001)?.0, 413)?;
    gives(&container, "/hello", HELLO)
}

/// With the SDK's default features. Its module for SQLite is `sqlite3`, and `sqlite` is the older
/// one.
fn an_app_of_sdk_5_has_what_its_manifest_says(test: &Test) -> Outcome {
    let keys = "variables = { text = \"value\" }\nkey_value_stores = [\"default\"]\n\
        sqlite_databases = [\"default\"]";
    let text = manifest(keys, "").replace("spin3.wasm", "spin5.wasm");
    let container = shared(test, &text)?.start()?;
    gives(&container, "/variable?v=text", "value")?;
    refuses(&container, "/variable?v=other", "Undefined")?;
    gives(&container, "/set?k=a:1", "set")?;
    gives(&container, "/get?k=a", "1")?;
    let sql = |path: &str, statement: &str| ask_at(&container, 80, path, "", statement);
    ensure_eq(sql("/sql?d=default", "CREATE TABLE t (a)")?.0, 200)?;
    let inserted = sql("/sql?d=default", "INSERT INTO t VALUES (?1), (8)")?;
    ensure_eq(inserted, (200, "\n2 2\n".into()))?;
    let (status, rows) = sql("/sql?d=default", "SELECT a FROM t")?;
    let expected = "a\n[Value::Integer(7)]\n[Value::Integer(8)]\n";
    ensure(status == 200 && rows.starts_with(expected), rows)?;
    let (status, rows) = sql("/sql-2?d=default", "SELECT a FROM t LIMIT 1")?;
    ensure_eq((status, rows.as_str()), (200, "[Value::Integer(7)]\n"))?;
    for (path, statement, words) in [
        ("/sql?d=other", "SELECT 1", "AccessDenied"),
        ("/sql?d=default", "ATTACH '/spin.toml' AS x", "not authorized"),
        ("/sql-2?d=other", "SELECT 1", "AccessDenied"),
    ] {
        let (status, body) = sql(path, statement)?;
        ensure(status == 500 && body.contains(words), format!("{statement}: {status} {body}"))?;
    }
    let text = manifest("variables = { text = \"four\" }", "").replace("spin3", "spin4");
    gives(&shared(test, &text)?.start()?, "/variable", "four")
}

/// The manifest of one component of SDK 7.
fn of_sdk_7(keys: &str, tables: &str) -> String {
    manifest(keys, tables).replace("spin3.wasm", "spin7.wasm")
}

/// WASI 0.3.0-rc-2026-03-15, by the names of WASI 0.3.0.
fn sdk_6_has_the_functions_of_its_preview(test: &Test) -> Outcome {
    let keys = "variables = { text = \"value\" }";
    let text = manifest(keys, "").replace("spin3.wasm", "spin6.wasm");
    let container = shared(test, &text)?.start()?;
    gives(&container, "/", HELLO)?;
    gives(&container, "/variable", "value")?;
    let text = manifest("", "").replace("spin3.wasm", "spin6.wasm");
    gives(&shared(test, &text)?.start()?, "/variable", "Error::Undefined(\"text\")")
}

fn an_app_of_sdk_7_has_what_its_manifest_says(test: &Test) -> Outcome {
    let tables = "[variables]\nwho = { default = \"you\" }\n";
    let keys = "variables = { text = \"{{ who }}!\" }\nenvironment = { A = \"1\" }";
    let container = shared(test, &of_sdk_7(keys, tables))?
        .edit(|config| config["process"]["env"] = json!(["SPIN_VARIABLE_WHO=me", "OTHER=x"]))
        .start()?;
    gives(&container, "/", HELLO)?;
    gives(&container, "/variable?v=text", "me!")?;
    gives(&container, "/env", "A=1\n")?;
    refuses(&container, "/variable?v=who", "Undefined")?;
    refuses(&container, "/variable?v=A+B", "InvalidName")?;
    let forged = "Spin-Path-Match-Id: 8\r\n";
    let (_, headers) = ask_at(&container, 80, "/headers?a=b", forged, "")?;
    ensure(headers.contains("spin-full-url: http://app.example/headers?a=b\n"), &headers)?;
    ensure(!headers.contains("path-match"), headers)?;
    // A trap, and an interface that nobody offers.
    ensure_eq(get(&container, "/trap")?.0, 500)?;
    ensure_eq(get(&container, "/redis")?.0, 500)?;
    let said = container.stderr()?;
    ensure(said.contains("`spin:redis/redis@3.0.0#"), &said)?;
    gives(&container, "/", HELLO)
}

/// By WASI 0.3, and by WASI 0.2, which the standard library uses.
fn a_component_of_sdk_7_sees_the_files_that_are_listed(test: &Test) -> Outcome {
    let keys = "files = [\"*.txt\", \"a/**/*.txt\", { source = \"assets\", destination = \"/x/y\" }]\n\
        exclude_files = [\"a/b/not.txt\"]";
    let mut bundle = shared(test, &of_sdk_7(keys, ""))?;
    for path in ["top.txt", "a/1.txt", "a/b/2.txt", "a/b/not.txt", "a/secret", "assets/file"] {
        bundle = bundle.file(&format!("/{path}"), path)?;
    }
    std::os::unix::fs::symlink("secret", bundle.rootfs().join("a/link.txt"))?;
    std::os::unix::fs::symlink("../a/secret", bundle.rootfs().join("assets/link"))?;
    std::os::unix::fs::symlink("/proc/self/environ", bundle.rootfs().join("assets/environ"))?;
    let container = bundle.start()?;
    gives(&container, "/list?p=/", "a top.txt")?;
    gives(&container, "/list?p=/a", "1.txt b")?;
    gives(&container, "/list?p=/a/b", "2.txt")?;
    gives(&container, "/list?p=/x/y", "environ file link")?;
    for (path, content) in
        [("/top.txt", "top.txt"), ("/a/b/2.txt", "a/b/2.txt"), ("/x/y/file", "assets/file")]
    {
        gives(&container, &format!("/read?p={path}"), content)?;
        gives(&container, &format!("/std-read?p={path}"), content)?;
        let size = content.len();
        gives(
            &container,
            &format!("/stat?p={path}"),
            &format!("DescriptorType::RegularFile {size}"),
        )?;
    }
    for hidden in [
        "/spin.toml",
        "/a/secret",
        "/a/link.txt",
        "/a/b/not.txt",
        "/x/y/link",
        "/x/y/environ",
        "/x/y/../../a/secret",
        "/proc/self/environ",
    ] {
        refuses(&container, &format!("/read?p={hidden}"), "ErrorCode::")?;
        refuses(&container, &format!("/std-read?p={hidden}"), "Os")?;
    }
    for hidden in ["/spin.toml", "/a/secret", "/a/link.txt", "/a/b/not.txt"] {
        refuses(&container, &format!("/stat?p={hidden}"), "ErrorCode::")?;
    }
    for path in ["/new", "/top.txt", "/a/new", "/x/y/file"] {
        refuses(&container, &format!("/write?p={path}"), "ErrorCode::")?;
    }
    Ok(())
}

fn stores_of_sdk_7_are_those_of_the_others(test: &Test) -> Outcome {
    let keys = "key_value_stores = [\"default\"]\nsqlite_databases = [\"default\"]";
    let other = format!(
        "[[trigger.http]]\nroute = \"/three/...\"\ncomponent = \"b\"\n[component.b]\nsource = \"spin3.wasm\"\n{keys}\n\
         [[trigger.http]]\nroute = \"/none/...\"\ncomponent = \"c\"\n[component.c]\nsource = \"spin7.wasm\"\n"
    );
    let container = shared(test, &of_sdk_7(keys, &other))?.start()?;
    gives(&container, "/get?k=a", "none")?;
    gives(&container, "/set?k=a:1", "set")?;
    gives(&container, "/three/set?k=b:2", "set")?;
    gives(&container, "/get?k=b", "2")?;
    gives(&container, "/three/get?k=a", "1")?;
    gives(&container, "/keys", "a b")?;
    gives(&container, "/delete?k=a", "false")?;
    gives(&container, "/three/keys", "b")?;
    refuses(&container, "/open?n=secret", "AccessDenied")?;
    refuses(&container, "/none/get?k=b", "AccessDenied")?;
    let sql = |path: &str, statement: &str| ask_at(&container, 80, path, "", statement);
    ensure_eq(sql("/three/sql?d=default", "CREATE TABLE t (a)")?.0, 200)?;
    let inserted = sql("/sql?d=default", "INSERT INTO t VALUES (?1)")?;
    ensure_eq(inserted, (200, "\n1 1\n".into()))?;
    let (status, body) = sql("/sql?d=default", "SELECT a FROM t")?;
    ensure(status == 200 && body.starts_with("a\n[Value::Integer(7)]\n"), body)?;
    let (status, body) = sql("/sql?d=default", "ATTACH '/spin.toml' AS x")?;
    ensure(status == 500 && body.contains("Io"), format!("{status} {body}"))?;
    let (status, body) = sql("/sql?d=other", "SELECT 1")?;
    ensure(status == 500 && body.contains("AccessDenied"), format!("{status} {body}"))
}

fn requests_of_sdk_7_go_to_allowed_hosts_only(test: &Test) -> Outcome {
    let keys = "allowed_outbound_hosts = [\"http://127.0.0.1:80\"]";
    let container = shared(test, &of_sdk_7(keys, ""))?.start()?;
    // The app itself.
    gives(&container, "/fetch?u=http://127.0.0.1:80/hello", &format!("200 {HELLO}"))?;
    for refused in ["http://127.0.0.1:81/", "http://localhost:80/", "http://[::1]:80/"] {
        refuses(&container, &format!("/fetch?u={refused}"), "HttpRequestDenied")?;
    }
    // An entry for a scheme is not one for sockets.
    gives(&container, "/socket", "false")?;
    let none = shared(test, &of_sdk_7("", ""))?.start()?;
    refuses(&none, "/fetch?u=http://127.0.0.1:80/", "HttpRequestDenied")?;
    let all = shared(test, &of_sdk_7("allowed_outbound_hosts = [\"*://*:*\"]", ""))?.start()?;
    gives(&all, "/socket", "true")
}

/// Sends a request, whose answer comes later.
fn send(container: &Container<'_>, path: &str, body: &str) -> Outcome<TcpStream> {
    let mut stream = connect(container, 80)?;
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

/// One thread serves everybody, and must not wait for a statement.
fn a_long_statement_holds_up_nobody(test: &Test) -> Outcome {
    let keys = "key_value_stores = [\"default\"]\nsqlite_databases = [\"default\"]";
    let container = shared(test, &of_sdk_7(keys, ""))?.start()?;
    gives(&container, "/", HELLO)?;
    let long =
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n";
    let begun = Instant::now();
    let mut waiting = vec![send(&container, "/sql?d=default", long)?];
    // Each of these waits for the statement, without a thread.
    for _ in 0..20 {
        waiting.push(send(&container, "/changes?d=default", "")?);
    }
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        gives(&container, "/", HELLO)?;
        gives(&container, "/set?k=a:1", "set")?;
        slowest = slowest.max(asked.elapsed());
    }
    ensure(slowest < Duration::from_secs(2), format!("{slowest:?}"))?;
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure(answer.starts_with("HTTP/1.1 "), answer)?;
    }
    Ok(())
}

fn no_function_of_sql_computes_for_ever(test: &Test) -> Outcome {
    let container = shared(test, &manifest("sqlite_databases = [\"default\"]", ""))?.start()?;
    let big = "hex(zeroblob(2097000))";
    let sql = |statement: &str| ask_at(&container, 80, "/sql?d=default", "", statement);
    for statement in [
        format!("SELECT instr({big}, substr({big}, 1, 2000000) || '1')"),
        format!("SELECT length(replace({big}, substr({big}, 1, 2000000) || '1', 'x'))"),
        format!("SELECT length(trim({big}, replace(hex(zeroblob(1000000)), '0', '1') || '0'))"),
        format!("SELECT {big} LIKE '%' || substr({big}, 1, 49000) || '1%'"),
    ] {
        let begun = Instant::now();
        sql(&statement)?;
        let took = begun.elapsed();
        ensure(took < Duration::from_secs(4), format!("{took:?} {statement}"))?;
    }
    ensure_eq(sql("SELECT instr('abc', 'c'), replace('abc', 'b', 'x')")?.0, 200)?;
    let (_, said) = sql("SELECT json_patch('{}', '{}')")?;
    ensure(said.contains("not authorized"), said)
}

/// The host keeps them.
fn rows_that_nobody_reads_are_limited(test: &Test) -> Outcome {
    let container = shared(test, &of_sdk_7("sqlite_databases = [\"default\"]", ""))?.start()?;
    let (status, said) = get(&container, "/held")?;
    ensure(status == 200 && said.starts_with("1 ") && said.contains("did not read"), said)?;
    // They are gone with their guest.
    let (_, rows) =
        ask_at(&container, 80, "/sql?d=default", "", "SELECT length(zeroblob(4000000))")?;
    ensure(rows.contains("4000000"), rows)
}

fn a_fifo_beside_the_manifest_holds_up_nobody(test: &Test) -> Outcome {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let keys = "files = [\"*.txt\", { source = \"assets\", destination = \"/x\" }]";
    for text in [manifest(keys, ""), of_sdk_7(keys, "")] {
        let bundle = shared(test, &text)?.file("/a.txt", "a")?.file("/assets/file", "file")?;
        for fifo in ["hidden", "assets/fifo"] {
            mknodat(CWD, bundle.rootfs().join(fifo), FileType::Fifo, Mode::from(0o666), 0)?;
        }
        let container = bundle.annotation("run.oci.wasm.timeout", "3").start()?;
        for _ in 0..20 {
            for path in ["/hidden", "/x/fifo", "/hidden/", "/spin.toml/", "/nothing/"] {
                let (status, said) = get(&container, &format!("/read?p={path}"))?;
                ensure(status == 500, format!("{path}: {said}"))?;
            }
        }
        // Nobody learns what else is there.
        let said = |path: &str| get(&container, &format!("/read?p={path}"));
        ensure_eq(said("/spin.toml/")?, said("/nothing/")?)?;
        ensure_eq(said("/spin.toml/a")?, said("/nothing/a")?)?;
        gives(&container, "/read?p=/a.txt", "a")?;
        gives(&container, "/read?p=/x/file", "file")?;
    }
    Ok(())
}

/// An app of SDK 7 at all paths, with a component of WASI 0.3 at `/beside`.
pub(super) fn beside(test: &Test, component: Vec<u8>) -> Outcome<Bundle<'_>> {
    let other = "[[trigger.http]]\nroute = \"/beside\"\ncomponent = \"beside\"\n\
                 [component.beside]\nsource = \"beside.wasm\"\n";
    shared(test, &of_sdk_7("", other))?.file("/beside.wasm", component)
}

/// The native code of the two components has two forms, each with an engine of its own.
fn components_of_sdk_7_and_of_others_call_each_other(test: &Test) -> Outcome {
    let keys = format!("allowed_outbound_hosts = [{EACH_OTHER}]");
    let other = format!(
        "[[trigger.http]]\nroute = \"/three/...\"\ncomponent = \"three\"\n\
         [component.three]\nsource = \"spin3.wasm\"\n{keys}\n"
    );
    let container = shared(test, &of_sdk_7(&keys, &other))?.start()?;
    let expected = format!("200 {HELLO}");
    gives(&container, "/fetch?u=http://three.spin.internal/hello", &expected)?;
    gives(&container, "/three/fetch?u=http://a.spin.internal/hello", &expected)?;
    let alone = shared(test, &of_sdk_7("", &other))?.start()?;
    refuses(&alone, "/fetch?u=http://three.spin.internal/hello", "HttpRequestDenied")
}
