//! Cgroups by systemd: a transient scope, made over D-Bus (`org.freedesktop.systemd1(5)`; cgroup v2
//! only).
//!
//! This is our own code. libcgroups polls every 20 ms to learn that systemd has moved the process.
//! It passes only a part of the limits to systemd, and none of the properties that the caller asks
//! for.
#![forbid(unsafe_code)]

mod dbus;
mod properties;

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::LinuxResources;
use rustix::process::Pid;

use super::devices::Rule;
use super::{ROOT, attribute};
use dbus::{Call, Connection, Failure, Message, Refusal, Value};
pub(crate) use properties::{Property, of_annotations, refuse_replaced};

/// How long systemd may take for all calls of one command.
const PATIENCE: Duration = Duration::from_secs(30);

const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SCOPE: &str = "org.freedesktop.systemd1.Scope";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const DAEMON: &str = "org.freedesktop.DBus";

/// The parts of `SLICE:PREFIX:NAME`.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Unit {
    slice: String,
    scope: String,
}

impl Unit {
    /// Returns None for a text of another form.
    fn parse(unit: &str) -> Option<Unit> {
        let parts: Vec<&str> = unit.split(':').collect();
        let [slice, prefix, name] = parts[..] else { return None };
        let default = if crate::ids::is_host_root() { "system.slice" } else { "user.slice" };
        let slice = if slice.is_empty() { default } else { slice };
        let scope = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}-{name}") };
        slice.strip_suffix(".slice")?;
        let good = ![slice, &scope].iter().any(|part| part.contains('/') || part.is_empty());
        good.then(|| Unit { slice: slice.to_owned(), scope: format!("{scope}.scope") })
    }
}

/// The scope's directory if systemd's system manager manages the slices. Returns None for a text of
/// another form. A slice `a-b.slice` is in `a.slice` (systemd.slice(5)).
pub(super) fn path(unit: &str) -> Option<PathBuf> {
    let Unit { slice, scope } = Unit::parse(unit)?;
    let mut path = PathBuf::from(ROOT);
    let stem = slice.strip_suffix(".slice")?;
    let dashes = stem.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0);
    for end in dashes.chain([stem.len()]).filter(|_| stem != "-") {
        path.push(format!("{}.slice", &stem[..end]));
    }
    path.push(scope);
    path.components().all(|part| part != std::path::Component::ParentDir).then_some(path)
}

/// Fails if [`start`] would not accept the text.
pub(super) fn check(unit: &str) -> Result<()> {
    Unit::parse(unit).map(drop).with_context(|| {
        format!("the cgroup path `{unit}` is not SLICE.slice:PREFIX:NAME, as systemd requires")
    })
}

/// Why no scope was made.
#[derive(Debug)]
pub(super) struct NotStarted {
    /// Another scope has the name.
    pub(super) is_taken: bool,
    error: anyhow::Error,
}

impl From<anyhow::Error> for NotStarted {
    fn from(error: anyhow::Error) -> NotStarted {
        NotStarted { is_taken: false, error }
    }
}

impl From<NotStarted> for anyhow::Error {
    fn from(failure: NotStarted) -> anyhow::Error {
        failure.error
    }
}

/// Lets systemd make a scope around a process, with its limits and device rules. Returns the
/// scope's cgroup.
pub(super) fn start(
    unit: &str,
    pid: Pid,
    resources: Option<&LinuxResources>,
    rules: &[Rule],
    asked: &[Property],
) -> Result<PathBuf, NotStarted> {
    let name = unit;
    let unit = Unit::parse(unit).context("not a systemd unit")?;
    let show = || format!("make the systemd scope `{}`", unit.scope);
    let mut needed = vec![
        ("Description".to_owned(), Value::Text(format!("rt container {name}"))),
        ("Slice".to_owned(), Value::text(&unit.slice)),
        (
            "PIDs".to_owned(),
            Value::Array(
                "u".into(),
                vec![Value::Uint32(pid.as_raw_nonzero().get().unsigned_abs())],
            ),
        ),
        ("Delegate".to_owned(), Value::Bool(true)),
        ("DefaultDependencies".to_owned(), Value::Bool(false)),
    ];
    let mut own = vec![
        // systemd shall not keep a failed scope for inspection. The caller knows about the failure,
        // and may want the name again.
        ("CollectMode".to_owned(), Value::text("inactive-or-failed")),
    ];
    for what in ["CPU", "IO", "Memory", "Tasks"] {
        own.push((format!("{what}Accounting"), Value::Bool(true)));
    }
    own.extend(resources.map(properties::of_new).unwrap_or_default());
    own.extend(properties::of_devices(rules));
    for properties in [&mut needed, &mut own] {
        properties.retain(|(name, _)| !asked.iter().any(|(other, _)| name == other));
    }
    let mut manager = Manager::connect().with_context(show)?;
    // An older systemd does not know all of these properties. `rt` leaves out a refused property,
    // because it writes the same limit to the cgroup's files too.
    loop {
        let properties: Vec<Property> = needed.iter().chain(&own).chain(asked).cloned().collect();
        let failure = match manager.start(&unit.scope, &properties) {
            Ok(()) => break,
            Err(failure) => failure,
        };
        let mut is_taken = false;
        if let Failure::Refused(refusal) = &failure {
            is_taken = refusal.name == TAKEN;
            if drop_unknown(&mut own, refusal) || is_taken && manager.forget(&unit.scope) {
                continue;
            }
        }
        return Err(NotStarted { is_taken, error: anyhow::Error::from(failure).context(show()) });
    }
    // systemd chose the directory of the slice. The kernel's answer is the simplest way to learn
    // it.
    let table =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read the cgroup of init")?;
    let path = table
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("init is not in a cgroup")?;
    if !path.split('/').any(|part| part == unit.scope) {
        return Err(anyhow!("{}: init is in the cgroup `/{path}`", show()).into());
    }
    Ok(Path::new(ROOT).join(path))
}

/// Lets systemd limit an existing scope. systemd then keeps the limits over a reload of its
/// configuration.
pub(super) fn limit(unit: &str, resources: &LinuxResources) -> Result<()> {
    let unit = Unit::parse(unit).context("not a systemd unit")?;
    let show = || format!("limit the systemd scope `{}`", unit.scope);
    let mut properties = properties::of_resources(resources);
    if properties.is_empty() {
        return Ok(());
    }
    let mut manager = Manager::connect().with_context(show)?;
    loop {
        match manager.set(&unit.scope, &properties) {
            Err(Failure::Refused(refusal)) if drop_unknown(&mut properties, &refusal) => {}
            result => return result.map_err(anyhow::Error::from).with_context(show),
        }
    }
}

/// The id that systemd has written to the directory of a scope. Each start of a unit has its own id
/// (`InvocationID`, org.freedesktop.systemd1(5)). None for a user's scope, whose attributes the
/// user's containers could change.
pub(super) fn invocation(directory: BorrowedFd<'_>) -> Option<String> {
    let number = attribute(directory, "trusted.invocation_id")?;
    (number.len() == 32 && number.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(number)
}

/// Has systemd stop a scope whose processes have ended, and waits for the end of that job, because
/// a caller may use the name again at once. If systemd does not know the scope, the scope has ended
/// already. A new scope of that name belongs to another container, and `rt` does not stop it.
pub(super) fn stop(unit: &str, invocation: &str) {
    let Some(unit) = Unit::parse(unit) else { return };
    let stopped = Manager::connect().and_then(|mut manager| manager.stop(&unit.scope, invocation));
    if let Err(error) = stopped {
        tracing::debug!("stop the systemd scope `{}`: {error:#}", unit.scope);
    }
}

/// The same if the invocation of the container's scope is unknown. The container's own scope has no
/// process, or soon none if it `is_ending`. Another container's scope has processes, and is not
/// stopped.
pub(super) fn stop_when_empty(unit: &str, is_ending: bool) {
    let Some(unit) = Unit::parse(unit) else { return };
    let stop = || -> Result<()> {
        let mut manager = Manager::connect()?;
        // A `create` that was cut short may have asked for the scope just before. Until systemd has
        // started it, the scope has neither an invocation nor a process, and comes to exist later.
        manager.wait_for_job(&unit.scope)?;
        // The order matters: first the scope's invocation, then its processes. A scope that systemd
        // answers for already has its process.
        let Some((invocation, cgroup)) = manager.find(&unit.scope)? else { return Ok(()) };
        let path = Path::new(ROOT).join(cgroup.trim_start_matches('/'));
        let is_empty = cgroup.is_empty()
            || super::tree::processes(&path)?.is_empty()
            || is_ending && super::tree::becomes_empty(&path)?;
        if is_empty { manager.stop(&unit.scope, &invocation) } else { Ok(()) }
    };
    // A scope that cannot be checked is not stopped either.
    if let Err(error) = stop() {
        tracing::debug!("stop the systemd scope `{}`: {error:#}", unit.scope);
    }
}

/// Removes the property that a refusal names. Returns whether it did.
fn drop_unknown(properties: &mut Vec<Property>, refusal: &Refusal) -> bool {
    // "Cannot set property NAME, or unknown property."
    let unknown = refusal.text.contains("unknown property")
        || refusal.name == "org.freedesktop.DBus.Error.PropertyReadOnly"
        || refusal.name == "org.freedesktop.DBus.Error.UnknownProperty"
        || refusal.name == "org.freedesktop.DBus.Error.InvalidArgs"
            && refusal.text.contains("CPUWeight")
            && properties.contains(&properties::idle());
    let named = |(name, _): &Property| {
        refusal.text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == name)
    };
    let Some(at) = properties.iter().position(named).filter(|_| unknown) else { return false };
    let (name, _) = properties.remove(at);
    tracing::debug!("systemd does not know the property `{name}`");
    true
}

/// The error if another unit has the name.
const TAKEN: &str = "org.freedesktop.systemd1.UnitExists";

/// systemd's manager: the system's, or the user's own.
struct Manager {
    connection: Connection,
    /// Whether the connection goes over the bus's daemon, which passes on only the requested
    /// signals.
    by_daemon: bool,
    /// The serial number of the call that the daemon must answer first, until `rt` has the answer.
    hello: Option<u32>,
    forgotten: bool,
}

impl Manager {
    /// By the bus, or by systemd's own socket. That socket has the shorter way, but systemd sends
    /// all its signals to each of its connections. Many `create` at once would cost systemd the
    /// square of their number (systemd#35152).
    fn connect() -> Result<Manager> {
        let (bus, own) = sockets()?;
        let end = Instant::now() + PATIENCE;
        let open = |path: &Path, by_daemon: bool| -> Result<Manager> {
            let mut connection = Connection::open(path, end)?;
            let hello = by_daemon.then(|| connection.call_later(&call_daemon("Hello", Vec::new())));
            Ok(Manager { connection, by_daemon, hello, forgotten: false })
        };
        // Without a bus daemon, systemd can still be reached by its private socket, as its own
        // tools do.
        open(&bus, true).or_else(|error| open(&own, false).map_err(|_| error))
    }

    fn call(&mut self, member: &str, body: Vec<Value>) -> Result<Vec<Value>, Failure> {
        let serials = self.call_all(&[call_manager(member, body)])?;
        self.connection.answer(serials[0])
    }

    /// Calls several methods at once, and returns the serial numbers of the calls.
    fn call_all(&mut self, calls: &[Call<'_>]) -> Result<Vec<u32>, Failure> {
        let serials = self.connection.call_all(calls)?;
        if let Some(hello) = self.hello.take() {
            self.connection.answer(hello)?;
        }
        Ok(serials)
    }

    fn start(&mut self, scope: &str, properties: &[Property]) -> Result<(), Failure> {
        let body = vec![
            Value::text(scope),
            Value::text("replace"),
            list(properties),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        self.run_job(scope, call_manager("StartTransientUnit", body))
    }

    /// Addresses the unit by the invocation of this start, which systemd accepts as the name of a
    /// unit's object.
    fn stop(&mut self, scope: &str, invocation: &str) -> Result<()> {
        let path = object_of(invocation);
        let body = vec![Value::text("replace")];
        let call =
            Call { destination: SYSTEMD, path: &path, interface: UNIT, member: "Stop", body };
        Ok(self.run_job(scope, call)?)
    }

    /// The invocation of the scope with that name, and its cgroup. The cgroup is empty if the scope
    /// has none any more.
    fn find(&mut self, scope: &str) -> Result<Option<(String, String)>> {
        let path = object_of(scope);
        let get = |interface: &str, property: &str| Call {
            destination: SYSTEMD,
            path: &path,
            interface: PROPERTIES,
            member: "Get",
            body: vec![Value::text(interface), Value::text(property)],
        };
        let calls = [get(UNIT, "InvocationID"), get(SCOPE, "ControlGroup")];
        let serials = self.call_all(&calls)?;
        let [mut number, mut cgroup] = [const { Vec::new() }; 2];
        for (answer, serial) in [&mut number, &mut cgroup].into_iter().zip(serials) {
            *answer = self.connection.answer(serial)?;
        }
        let number = number.first().and_then(Value::as_bytes).unwrap_or_default();
        let cgroup = cgroup.first().and_then(Value::as_text).context("it names no cgroup")?;
        // A unit that was never started has no invocation.
        let is_started = number.len() == 16 && number.iter().any(|byte| *byte != 0);
        let invocation = number.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(is_started.then(|| (invocation, cgroup.to_owned())))
    }

    /// Waits until systemd has done the scope's job, if the scope has one.
    fn wait_for_job(&mut self, scope: &str) -> Result<()> {
        let path = object_of(scope);
        let get = Call {
            destination: SYSTEMD,
            path: &path,
            interface: PROPERTIES,
            member: "Get",
            body: vec![Value::text(UNIT), Value::text("Job")],
        };
        let answer = self.call_with_signals(scope, get)?;
        let job = answer.body.first().and_then(Value::as_fields);
        // The number of a job, which is 0 if there is none, and its object.
        let Some([Value::Uint32(number), Value::ObjectPath(job)]) = job else {
            bail!("it does not say whether it has a job");
        };
        if *number != 0 {
            self.end_of_job(&answer.sender, job)?;
        }
        Ok(())
    }

    /// Calls a method that makes a job, and waits until systemd has done the job.
    fn run_job(&mut self, scope: &str, call: Call<'_>) -> Result<(), Failure> {
        let answer = self.call_with_signals(scope, call)?;
        let job = answer.body.first().and_then(Value::as_text).context("systemd named no job")?;
        match self.end_of_job(&answer.sender, job)?.as_str() {
            "done" => Ok(()),
            result => Err(anyhow!("its job ended with `{result}`").into()),
        }
    }

    /// Calls a method. From then on, this connection hears of the scope's jobs.
    fn call_with_signals(&mut self, scope: &str, call: Call<'_>) -> Result<Message, Failure> {
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',path='{OBJECT}',interface='{MANAGER}',member='JobRemoved',arg2='{scope}'"
        );
        // On its own socket, systemd sends all signals.
        let mut calls = Vec::new();
        if self.by_daemon {
            calls.push(call_daemon("AddMatch", vec![Value::Text(rule)]));
            calls.push(call_manager("Subscribe", Vec::new()));
        }
        calls.push(call);
        let serials = self.call_all(&calls)?;
        let (last, first) = serials.split_last().context("nothing was called")?;
        for serial in first {
            match self.connection.answer(*serial) {
                // This connection may be subscribed already.
                Ok(_) | Err(Failure::Refused(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        self.connection.reply(*last)
    }

    /// Waits for the end of a job, and returns its result. Every user of the bus may send signals
    /// to every connection. So only those of `systemd` count: the sender of an answer, because the
    /// daemon lets no other process answer a call.
    fn end_of_job(&mut self, systemd: &str, job: &str) -> Result<String> {
        let done = self.connection.wait(|message| {
            message.kind == dbus::SIGNAL
                && message.sender == systemd
                && message.member == dbus::JOB_REMOVED
                && message.body.get(1).and_then(Value::as_text) == Some(job)
        })?;
        Ok(done.body.get(3).and_then(Value::as_text).unwrap_or("nothing").to_owned())
    }

    fn set(&mut self, scope: &str, properties: &[Property]) -> Result<(), Failure> {
        let body = vec![Value::text(scope), Value::Bool(true), list(properties)];
        self.call("SetUnitProperties", body).map(drop)
    }

    /// Lets systemd forget a failed unit that occupies the name. Returns whether another try makes
    /// sense.
    fn forget(&mut self, scope: &str) -> bool {
        !std::mem::replace(&mut self.forgotten, true)
            && self.call("ResetFailedUnit", vec![Value::text(scope)]).is_ok()
    }
}

/// The object of a unit, by its name or by the invocation of its start (sd_bus_path_encode(3)).
fn object_of(name: &str) -> String {
    let mut path = format!("{OBJECT}/unit/");
    for (at, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || at > 0 && byte.is_ascii_digit() {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

fn call_manager(member: &str, body: Vec<Value>) -> Call<'_> {
    Call { destination: SYSTEMD, path: OBJECT, interface: MANAGER, member, body }
}

fn call_daemon(member: &str, body: Vec<Value>) -> Call<'_> {
    Call { destination: DAEMON, path: "/org/freedesktop/DBus", interface: DAEMON, member, body }
}

fn list(properties: &[Property]) -> Value {
    let entry = |(name, value): &Property| {
        Value::Struct(vec![Value::text(name), Value::Variant(Box::new(value.clone()))])
    };
    Value::Array("(sv)".to_owned(), properties.iter().map(entry).collect())
}

/// The sockets of the bus, and of systemd itself.
fn sockets() -> Result<(PathBuf, PathBuf)> {
    let of = |variable: &str| std::env::var(variable).ok().and_then(|address| socket_of(&address));
    if crate::ids::is_host_root() {
        let bus = of("DBUS_SYSTEM_BUS_ADDRESS");
        let bus = bus.unwrap_or_else(|| "/run/dbus/system_bus_socket".into());
        return Ok((bus, "/run/systemd/private".into()));
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    let runtime = PathBuf::from(runtime.context("the user's systemd: XDG_RUNTIME_DIR is not set")?);
    let bus = of("DBUS_SESSION_BUS_ADDRESS").unwrap_or_else(|| runtime.join("bus"));
    Ok((bus, runtime.join("systemd/private")))
}

/// The path in the first address of a list that has one (D-Bus Specification, "Server Addresses").
fn socket_of(addresses: &str) -> Option<PathBuf> {
    addresses.split(';').find_map(|address| {
        let path = address
            .strip_prefix("unix:")?
            .split(',')
            .find_map(|part| part.strip_prefix("path="))?;
        Some(PathBuf::from(path))
    })
}

#[cfg(test)]
pub(super) mod fuzzed {
    use super::*;

    pub(crate) fn limits(resources: &LinuxResources, rules: &[Rule]) {
        let mut properties = properties::of_resources(resources);
        properties.extend(properties::of_devices(rules));
        let body = vec![list(&properties)];
        let bytes = dbus::encode(&call_manager("SetUnitProperties", body.clone()));
        assert_eq!(dbus::body(&bytes).expect("a message"), body);
    }

    pub(crate) fn message() -> Vec<u8> {
        let pids = Value::Array("u".into(), vec![Value::Uint32(7), Value::Uint32(8)]);
        let properties = vec![("PIDs".to_owned(), pids), ("A".to_owned(), Value::text("b"))];
        dbus::encode(&call_manager("StartTransientUnit", vec![Value::text("x"), list(&properties)]))
    }

    pub(crate) fn hear(message: &[u8]) {
        let _ = dbus::body(message);
        let _ = socket_of(&String::from_utf8_lossy(message));
    }
}

#[cfg(test)]
mod tests {
    use super::{object_of, path, socket_of};

    #[test]
    fn a_unit_has_an_object() {
        let name = |text| object_of(text).rsplit('/').next().map(str::to_owned);
        assert_eq!(name("rt-c_1.scope").as_deref(), Some("rt_2dc_5f1_2escope"));
        assert_eq!(name("1ab2").as_deref(), Some("_31ab2"));
    }

    #[test]
    fn a_slice_is_in_those_that_its_name_begins_with() {
        let show = |unit| path(unit).map(|path| path.display().to_string());
        for (unit, expected) in [
            (":rt:c", Some("/sys/fs/cgroup/system.slice/rt-c.scope")),
            ("a-b.slice:crio:c", Some("/sys/fs/cgroup/a.slice/a-b.slice/crio-c.scope")),
            ("-.slice::c", Some("/sys/fs/cgroup/c.scope")),
            ("/a/b", None),
            ("a:b", None),
            ("a.slice:x:../c", None),
        ] {
            assert_eq!(show(unit).as_deref(), expected, "{unit}");
        }
    }

    #[test]
    fn a_socket_is_found_in_an_address() {
        let path = |address| socket_of(address).map(|path| path.display().to_string());
        assert_eq!(
            path("unix:path=/run/user/1000/bus,guid=1").as_deref(),
            Some("/run/user/1000/bus")
        );
        assert_eq!(path("tcp:host=x;unix:path=/b").as_deref(), Some("/b"));
        assert_eq!(path("unix:abstract=x"), None);
    }

    /// systemd before 252 does not support idle scopes.
    #[test]
    fn only_a_weight_of_idleness_is_left_out_where_it_is_out_of_range() {
        use super::{Refusal, Value, drop_unknown, properties};
        let refusal = Refusal {
            name: "org.freedesktop.DBus.Error.InvalidArgs".into(),
            text: "Value specified in CPUWeight is out of range".into(),
        };
        let mut properties = vec![("TasksMax".to_owned(), Value::Uint64(7)), properties::idle()];
        assert!(drop_unknown(&mut properties, &refusal));
        assert_eq!(properties, [("TasksMax".to_owned(), Value::Uint64(7))]);
        let mut properties = vec![("CPUWeight".to_owned(), Value::Uint64(10_001))];
        assert!(!drop_unknown(&mut properties, &refusal));
    }
}
