//! Limits and annotations as properties of a unit (`systemd.resource-control(5)`,
//! `org.freedesktop.systemd1(5)`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::dbus::Value;
use crate::linux::cgroups::devices::{self, Rule};
use crate::linux::cgroups::resources;

/// A name and its value.
pub(crate) type Property = (String, Value);

/// For systemd, the largest number means no limit.
const INFINITY: u64 = u64::MAX;

/// The properties of a new scope: [`of_resources`], and no limit of processes if 0 asks for none.
/// systemd has its own default (`DefaultTasksMax=` in `systemd-system.conf(5)`), and podman writes
/// 0 for `--pids-limit -1`.
pub(super) fn of_new(resources: &LinuxResources) -> Vec<Property> {
    let mut properties = of_resources(resources);
    let given = properties.iter().any(|(name, _)| name == "TasksMax");
    if !given && resources.pids().as_ref().is_some_and(|pids| pids.limit() == 0) {
        properties.push(("TasksMax".to_owned(), Value::Uint64(INFINITY)));
    }
    properties
}

/// The limits that systemd supports. `rt` writes all limits to the cgroup's files too.
pub(super) fn of_resources(resources: &LinuxResources) -> Vec<Property> {
    let mut properties = Vec::new();
    let mut set = |name: &str, value: Value| properties.push((name.to_owned(), value));
    if let Some(memory) = resources.memory() {
        of_memory(memory, &mut set);
    }
    if let Some(cpu) = resources.cpu() {
        of_cpu(cpu, &mut set);
    }
    if let Some(pids) = resources::limit_of_processes(resources) {
        set("TasksMax", limit(pids));
    }
    if let Some(weight) =
        resources.block_io().as_ref().and_then(|io| io.weight()).filter(|w| *w > 0)
    {
        set("IOWeight", Value::Uint64(resources::io_weight(weight)));
    }
    for (file, value) in resources.unified().iter().flatten() {
        if let Some((name, value)) = of_file(file, value.trim()) {
            set(name, value);
        }
    }
    if resources::becomes_idle(resources) {
        properties.retain(|(name, _)| name != "CPUWeight");
        properties.push(idle());
    }
    properties
}

/// A weight of 0 is `CPUWeight=idle`. systemd before 252 refuses it, and does not change
/// `cpu.idle`.
pub(super) fn idle() -> Property {
    ("CPUWeight".to_owned(), Value::Uint64(0))
}

fn limit(limit: i64) -> Value {
    Value::Uint64(u64::try_from(limit).unwrap_or(INFINITY))
}

type Set<'a> = &'a mut dyn FnMut(&str, Value);

fn of_memory(memory: &LinuxMemory, set: Set<'_>) {
    let given = |limit: Option<i64>| limit.filter(|limit| *limit != 0);
    if let Some(max) = given(memory.limit()) {
        set("MemoryMax", limit(max));
    }
    if let Some(low) = given(memory.reservation()) {
        set("MemoryLow", limit(low));
    }
    // Writing an invalid combination to the files fails later.
    if let Ok(Some(swap)) = resources::swap_alone(memory) {
        set("MemorySwapMax", limit(swap));
    }
}

fn of_cpu(cpu: &LinuxCpu, set: Set<'_>) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        set("CPUWeight", Value::Uint64(resources::weight(shares)));
    }
    let period = cpu.period().filter(|period| *period != 0);
    if let Some(period) = period {
        set("CPUQuotaPeriodUSec", Value::Uint64(period));
    }
    match cpu.quota() {
        Some(quota) if quota > 0 => {
            let per_second = quota_per_second(quota.unsigned_abs(), period.unwrap_or(100_000));
            set("CPUQuotaPerSecUSec", Value::Uint64(per_second));
        }
        Some(_) => set("CPUQuotaPerSecUSec", Value::Uint64(INFINITY)),
        None => {}
    }
    for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
        if let Some(bits) = list.as_deref().and_then(bits) {
            set(name, Value::bytes(&bits));
        }
    }
}

/// systemd keeps hundredths of a percent. As in runc, the quota is rounded up to the next 10 ms in
/// a second.
fn quota_per_second(quota: u64, period: u64) -> u64 {
    let quota = quota.saturating_mul(1_000_000) / period.max(1);
    quota.checked_next_multiple_of(10_000).unwrap_or(INFINITY)
}

/// Converts a list like `0-3,7` to the bit set that systemd requires. Returns None for an empty or
/// invalid list, which the file refuses.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= 8192 {
            return None;
        }
        for bit in first..=last {
            if bits.len() <= bit / 8 {
                bits.resize(bit / 8 + 1, 0);
            }
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(bits).filter(|bits: &Vec<u8>| !bits.is_empty())
}

/// The property for a file of `resources.unified`.
fn of_file(file: &str, value: &str) -> Option<(&'static str, Value)> {
    let name = match file {
        "memory.max" => "MemoryMax",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        "io.weight" => "IOWeight",
        "cpuset.cpus" => return Some(("AllowedCPUs", Value::bytes(&bits(value)?))),
        "cpuset.mems" => return Some(("AllowedMemoryNodes", Value::bytes(&bits(value)?))),
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let (quota, period) = (words.next()?, words.next().unwrap_or("100000"));
            let quota = match quota {
                "max" => INFINITY,
                quota => {
                    quota_per_second(quota.parse().ok()?, period.parse().ok().filter(|p| *p > 0)?)
                }
            };
            return Some(("CPUQuotaPerSecUSec", Value::Uint64(quota)));
        }
        _ => return None,
    };
    let number = if value == "max" {
        INFINITY
    } else {
        value.strip_prefix("default ").unwrap_or(value).parse().ok()?
    };
    Some((name, Value::Uint64(number)))
}

/// The device rules. systemd can only allow devices. Other rules are enforced by the program that
/// `rt` attaches alone. Beside it, systemd's program would allow devices that this program refuses
/// anyway.
pub(super) fn of_devices(rules: &[Rule]) -> Vec<Property> {
    let policy = |policy: &str| ("DevicePolicy".to_owned(), Value::text(policy));
    let Some(allowed) = devices::allowed(rules) else { return vec![policy("auto")] };
    let entry = |(path, access): (String, String)| {
        Value::Struct(vec![Value::Text(path), Value::Text(access)])
    };
    let allowed = allowed.into_iter().map(entry).collect();
    vec![policy("strict"), ("DeviceAllow".to_owned(), Value::Array("(ss)".to_owned(), allowed))]
}

const PREFIX: &str = "org.systemd.property.";

/// `org.systemd.property.NAME=VALUE`, with the value in GVariant's text format (`gvariant-text`).
pub(crate) fn of_annotations(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let show = || format!("the annotation `{key}`: `{text}`");
        let good = name.len() >= 3 && name.bytes().all(|letter| letter.is_ascii_alphabetic());
        ensure!(good, "the annotation `{key}`: `{name}` is not the name of a property");
        ensure!(!is_rts(name), "the annotation `{key}`: only rt may set `{name}`");
        let value = parse(text).with_context(show)?;
        properties.push(seconds(name, value).with_context(show)?);
    }
    Ok(properties)
}

/// Whether a property decides on the scope's processes, its place, the manager of the cgroups below
/// it, the counting, or the allowed devices. An annotation may not come from the administrator, and
/// would replace the values of `rt`.
fn is_rts(name: &str) -> bool {
    let kinds = ["PIDs", "PIDFDs", "Slice", "Delegate", "ControlGroup", "Device", "Controller"];
    kinds.iter().any(|kind| name.starts_with(kind)) || name.ends_with("Accounting")
}

/// Fails for a property by annotation that would replace a limit of the configuration.
pub(crate) fn refuse_replaced(asked: &[Property], resources: &LinuxResources) -> Result<()> {
    let given = of_resources(resources);
    for (name, _) in asked {
        // A share of the whole, in place of a number (`MemoryMaxScale`).
        let of = name.strip_suffix("Scale").unwrap_or(name);
        ensure!(
            !given.iter().any(|(other, _)| other == of),
            "the annotation `{PREFIX}{name}` would replace a limit in `linux.resources`"
        );
    }
    Ok(())
}

/// `…Sec` in unit files is `…USec` on the bus, in microseconds (as in runc).
fn seconds(name: &str, value: Value) -> Result<Property> {
    let Some(stem) = name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) else {
        return Ok((name.to_owned(), value));
    };
    let whole = |seconds: i128| -> Result<u64> {
        u64::try_from(seconds).ok().and_then(|s| s.checked_mul(1_000_000)).context("not a time")
    };
    let microseconds = match value {
        Value::Int32(seconds) => whole(seconds.into())?,
        Value::Uint32(seconds) => whole(seconds.into())?,
        Value::Int64(seconds) => whole(seconds.into())?,
        Value::Uint64(seconds) => whole(seconds.into())?,
        Value::Double(seconds) if (0.0..1e12).contains(&seconds) => {
            #[expect(clippy::cast_sign_loss, reason = "in the range that was checked")]
            let microseconds = (seconds * 1e6) as u64;
            microseconds
        }
        _ => bail!("not a time in seconds"),
    };
    Ok((format!("{stem}USec"), Value::Uint64(microseconds)))
}

/// Parses a value in GVariant's text format, as far as properties of units use it.
fn parse(text: &str) -> Result<Value> {
    let mut parser = Parser { rest: text.trim() };
    let value = parser.value()?;
    ensure!(parser.rest.is_empty(), "`{}` is left over", parser.rest);
    Ok(value)
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip(&mut self, count: usize) {
        self.rest = self.rest[count..].trim_start();
    }

    fn value(&mut self) -> Result<Value> {
        match self.rest.chars().next().context("a value is missing")? {
            quote @ ('\'' | '"') => self.text(quote),
            '[' => {
                let values = self.list('[', ']')?;
                let first = values.first().context("an array without a type")?.signature();
                ensure!(
                    values.iter().all(|value| value.signature() == first),
                    "an array of different types"
                );
                Ok(Value::Array(first, values))
            }
            '(' => Ok(Value::Struct(self.list('(', ')')?)),
            '<' => {
                self.skip(1);
                let value = self.value()?;
                ensure!(self.rest.starts_with('>'), "`>` is missing");
                self.skip(1);
                Ok(Value::Variant(Box::new(value)))
            }
            _ => self.word(),
        }
    }

    fn text(&mut self, quote: char) -> Result<Value> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => {
                    let (_, escaped) = characters.next().context("a `\\` at the end")?;
                    text.push(match escaped {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        other => other,
                    });
                }
                end if end == quote => {
                    self.skip(at + 1);
                    return Ok(Value::Text(text));
                }
                other => text.push(other),
            }
        }
        bail!("`{quote}` is missing")
    }

    fn list(&mut self, open: char, close: char) -> Result<Vec<Value>> {
        self.skip(open.len_utf8());
        let mut values = Vec::new();
        while !self.rest.starts_with(close) {
            values.push(self.value()?);
            if self.rest.starts_with(',') {
                self.skip(1);
            } else {
                ensure!(self.rest.starts_with(close), "`{close}` is missing");
            }
        }
        self.skip(close.len_utf8());
        Ok(values)
    }

    fn token(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| c.is_whitespace() || ",])>".contains(c));
        let token = &self.rest[..end.unwrap_or(self.rest.len())];
        self.skip(token.len());
        token
    }

    fn word(&mut self) -> Result<Value> {
        let word = self.token();
        let wrong = || format!("`{word}` needs a number that it can hold");
        let integer = |parser: &mut Parser<'a>| -> Result<i128> {
            match number(parser.token()) {
                Some(Value::Int32(number)) => Ok(number.into()),
                Some(Value::Int64(number)) => Ok(number.into()),
                Some(Value::Uint64(number)) => Ok(number.into()),
                _ => bail!(wrong()),
            }
        };
        Ok(match word {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "byte" => Value::Byte(integer(self)?.try_into().with_context(wrong)?),
            "int32" => Value::Int32(integer(self)?.try_into().with_context(wrong)?),
            "uint32" => Value::Uint32(integer(self)?.try_into().with_context(wrong)?),
            "int64" => Value::Int64(integer(self)?.try_into().with_context(wrong)?),
            "uint64" => Value::Uint64(integer(self)?.try_into().with_context(wrong)?),
            "double" => Value::Double(self.token().parse().with_context(wrong)?),
            _ => number(word).with_context(|| format!("`{word}` is not a value"))?,
        })
    }
}

/// A number without a type is an int32, or a double if it has a point. If it does not fit, it gets
/// the next larger type.
fn number(word: &str) -> Option<Value> {
    let (negative, digits) = word.strip_prefix('-').map_or((false, word), |digits| (true, digits));
    let (digits, radix) = digits.strip_prefix("0x").map_or((digits, 10), |digits| (digits, 16));
    if let Ok(number) = u64::from_str_radix(digits, radix) {
        let signed =
            i64::try_from(number).ok().map(|number| if negative { -number } else { number });
        return Some(match signed {
            Some(signed) => i32::try_from(signed).map_or(Value::Int64(signed), Value::Int32),
            None if !negative => Value::Uint64(number),
            None => return None,
        });
    }
    let point = radix == 10 && digits.starts_with(|c: char| c.is_ascii_digit());
    word.parse().ok().filter(|_| point).map(Value::Double)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_from_text() {
        for (text, expected) in [
            ("'text'", Value::text("text")),
            (r#""it\"s""#, Value::text("it\"s")),
            ("true", Value::Bool(true)),
            ("uint64 10000000", Value::Uint64(10_000_000)),
            ("uint64 18446744073709551615", Value::Uint64(u64::MAX)),
            ("int32 -5", Value::Int32(-5)),
            ("byte 0x10", Value::Byte(16)),
            ("7", Value::Int32(7)),
            ("1.5", Value::Double(1.5)),
            (
                "['crio.service', 'b']",
                Value::Array("s".into(), vec![Value::text("crio.service"), Value::text("b")]),
            ),
            (
                "[('a', uint32 1)]",
                Value::Array(
                    "(su)".into(),
                    vec![Value::Struct(vec![Value::text("a"), Value::Uint32(1)])],
                ),
            ),
        ] {
            assert_eq!(parse(text).expect(text), expected, "{text}");
        }
        for wrong in [
            "",
            "'",
            "[",
            "[]",
            "['a', 1]",
            "uint64",
            "uint64 x",
            "word",
            "1 2",
            "byte 256",
            "int32 'x'",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_rt_says_itself_is_refused() {
        let of = |name: &str| {
            of_annotations(&BTreeMap::from([(format!("{PREFIX}{name}"), "true".to_owned())]))
        };
        for name in
            ["PIDs", "Slice", "Delegate", "DelegateSubgroup", "DeviceAllow", "CPUAccounting"]
        {
            let error = of(name).expect_err(name).to_string();
            assert!(error.contains(&format!("`{PREFIX}{name}`")), "{error}");
        }
        for name in ["CollectMode", "DefaultDependencies", "Description", "MemoryMaxScale"] {
            assert!(of(name).is_ok(), "{name}");
        }
        let asked = of("MemoryMaxScale").expect("a property");
        let limited = serde_json::json!({ "memory": { "limit": 1 } });
        let limited = serde_json::from_value(limited).expect("limits");
        assert!(refuse_replaced(&asked, &limited).is_err());
        assert!(refuse_replaced(&asked, &LinuxResources::default()).is_ok());
    }

    #[test]
    fn seconds_become_microseconds() {
        let get = |name: &str, text: &str| seconds(name, parse(text).expect(text));
        assert_eq!(
            get("TimeoutStopSec", "2.5").expect("a time"),
            ("TimeoutStopUSec".into(), Value::Uint64(2_500_000))
        );
        assert_eq!(
            get("TimeoutStopUSec", "uint64 9").expect("a time"),
            ("TimeoutStopUSec".into(), Value::Uint64(9))
        );
        assert!(get("TimeoutStopSec", "'x'").is_err());
        assert!(get("TimeoutStopSec", "-1").is_err());
    }

    #[test]
    fn what_becomes_idle_has_no_weight() {
        let of = |resources: serde_json::Value| {
            of_resources(&serde_json::from_value(resources).expect("limits"))
        };
        for resources in [
            serde_json::json!({ "cpu": { "idle": 1, "shares": 512 } }),
            serde_json::json!({ "unified": { "cpu.idle": "1", "cpu.weight": "7" } }),
            serde_json::json!({ "cpu": { "idle": 0, "shares": 512 }, "unified": { "cpu.idle": "1" } }),
        ] {
            assert_eq!(of(resources.clone()), [idle()], "{resources}");
        }
        let of_weight = of(serde_json::json!({ "cpu": { "idle": 0, "shares": 1024 } }));
        assert_eq!(of_weight, [("CPUWeight".to_owned(), Value::Uint64(100))]);
    }

    #[test]
    fn lists_become_bits() {
        assert_eq!(bits("0-3,9"), Some(vec![0x0f, 0x02]));
        assert_eq!(bits(""), None);
        assert_eq!(bits("x"), None);
        assert_eq!(bits("0-99999"), None);
    }

    #[test]
    fn a_quota_is_per_second() {
        assert_eq!(quota_per_second(50_000, 100_000), 500_000);
        assert_eq!(quota_per_second(33_333, 100_000), 340_000);
        assert_eq!(quota_per_second(u64::MAX, 1), INFINITY);
    }
}
