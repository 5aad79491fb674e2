//! How a handler of requests is served: `docs/annotations.md`, "Handlers".
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

/// The names of the annotations, without `run.oci.wasm.`.
pub(super) const NAMES: [&str; 13] = [
    "http",
    "http-access-log",
    "http-body",
    "http-connections",
    "http-grace",
    "http-header-bytes",
    "http-header-timeout",
    "http-headers",
    "http-health",
    "http-idle-timeout",
    "http-memory",
    "http-outbound",
    "http-requests",
];

/// The ports where nothing else is said: of a handler, and of a Spin app. containerd's shim for
/// Spin has the same.
const PORT: u16 = 8080;
const SPIN_PORT: u16 = 80;

/// The variable by which that shim chooses the address of an app.
const SPIN_ADDRESS: &str = "SPIN_HTTP_LISTEN_ADDR=";

/// The least buffer for the headers of a request that the server can have, in bytes.
const LEAST_HEADER_BYTES: u64 = 8 << 10;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Http {
    address: Option<SocketAddr>,
    /// The limits, each as the engine's option wants it.
    options: BTreeMap<&'static str, String>,
    /// The servers to which the handler may send requests.
    outbound: Vec<String>,
}

impl Http {
    /// Where a handler, or a Spin app, listens: `env` is its environment.
    pub(crate) fn address(&self, is_app: bool, env: &[String]) -> Result<SocketAddr> {
        let default = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        let variable = env.iter().find_map(|variable| variable.strip_prefix(SPIN_ADDRESS));
        match (self.address, is_app, variable) {
            (Some(address), _, _) => Ok(address),
            (None, true, Some(value)) => {
                parse(value).with_context(|| format!("the variable `{SPIN_ADDRESS}{value}`"))
            }
            (None, true, None) => Ok(default(SPIN_PORT)),
            (None, false, _) => Ok(default(PORT)),
        }
    }

    /// The options of the engine contract for these annotations.
    pub(crate) fn options(&self) -> impl Iterator<Item = String> {
        let options = self.options.iter().map(|(name, value)| format!("--{name}={value}"));
        options.chain(self.outbound.iter().map(|server| format!("--http-outbound={server}")))
    }

    /// The limits and other values that annotations set, by the names of the engine's options.
    /// Times are in milliseconds.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.options.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// The servers to which the handler may send requests.
    pub(crate) fn outbound(&self) -> &[String] {
        &self.outbound
    }

    /// Whether the handler may send requests.
    pub(crate) fn sends(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Takes an annotation whose name is one of [`NAMES`].
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<()> {
        let option = match name {
            "http" => {
                self.address = Some(parse(value)?);
                return Ok(());
            }
            "http-outbound" => {
                let servers = value.split(',').filter(|_| !value.is_empty());
                self.outbound = servers.map(server).collect::<Result<_>>()?;
                return Ok(());
            }
            "http-health" => {
                let is_path = value.starts_with('/')
                    && value.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
                ensure!(is_path, "`{value}` is not a path such as `/healthz`");
                value.to_owned()
            }
            "http-access-log" => {
                ensure!(
                    ["stdout", "stderr"].contains(&value),
                    "`{value}` is neither `stdout` nor `stderr`"
                );
                value.to_owned()
            }
            "http-grace" | "http-header-timeout" | "http-idle-timeout" => {
                super::seconds::parse(value)?.as_millis().to_string()
            }
            "http-body" | "http-connections" | "http-header-bytes" | "http-headers"
            | "http-memory" | "http-requests" => {
                let least = match name {
                    "http-body" => 0,
                    "http-header-bytes" => LEAST_HEADER_BYTES,
                    _ => 1,
                };
                let most = match name {
                    // Each reserves 4 GiB of addresses at least, and a process has 128 TiB.
                    "http-requests" => 1 << 13,
                    "http-connections" => 1 << 16,
                    "http-headers" => 1 << 15,
                    "http-header-bytes" => 16 << 20,
                    _ => u64::MAX,
                };
                let is_plain = value.bytes().all(|byte| byte.is_ascii_digit());
                let number = value.parse::<u64>().ok().filter(|_| is_plain);
                let number = number.filter(|number| (least..=most).contains(number));
                let range = match most {
                    u64::MAX => format!("from {least} on"),
                    _ => format!("from {least} to {most}"),
                };
                number.with_context(|| format!("`{value}` is not a number {range}"))?.to_string()
            }
            _ => bail!("no such annotation"),
        };
        let name = NAMES.into_iter().find(|it| *it == name).context("no such annotation")?;
        self.options.insert(name, option);
        Ok(())
    }
}

/// Parses an address to listen on.
fn parse(value: &str) -> Result<SocketAddr> {
    let address = value.parse::<SocketAddr>().ok().filter(|it| it.port() > 0);
    address.with_context(|| {
        format!("`{value}` is not an address with a port, such as `0.0.0.0:8080` or `[::]:80`")
    })
}

/// Checks an entry `HOST` or `HOST:PORT`. The engine has the last word.
fn server(entry: &str) -> Result<String> {
    let wrong = || {
        format!(
            "`{entry}` is not a server such as `db.example:8080`, `*.example`, `10.0.0.1:80` or `[::1]:80`"
        )
    };
    let (host, port) = match entry.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(inside) => {
            let (host, port) = inside.with_context(wrong)?;
            host.parse::<std::net::Ipv6Addr>().with_context(wrong)?;
            let port = port.strip_prefix(':').or(port.is_empty().then_some("80"));
            ("v6", port.with_context(wrong)?)
        }
        None => entry.split_once(':').unwrap_or((entry, "80")),
    };
    let is_port = |port: &str| {
        port == "*"
            || port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    let is_part = |part: &str| {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        !part.is_empty() && part.bytes().all(is_good)
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    ensure!((host == "*" || name.split('.').all(is_part)) && is_port(port), wrong());
    Ok(entry.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Result<Http> {
        let mut http = Http::default();
        http.take(name, value).map(|()| http)
    }

    #[test]
    fn annotations_become_options() {
        for (name, value, option) in [
            ("http-requests", "5", "--http-requests=5"),
            ("http-body", "0", "--http-body=0"),
            ("http-header-timeout", "1.5", "--http-header-timeout=1500"),
            ("http-health", "/healthz", "--http-health=/healthz"),
            ("http-access-log", "stderr", "--http-access-log=stderr"),
            ("http-outbound", "a:*", "--http-outbound=a:*"),
        ] {
            let options: Vec<String> = of(name, value).expect(name).options().collect();
            assert_eq!(options, [option]);
        }
        let servers = of("http-outbound", "a,*.b:81,10.0.0.1,[::1],[::1]:5,*,*:*").expect("good");
        assert_eq!(servers.options().count(), 7);
        assert!(servers.sends() && !of("http-outbound", "").expect("good").sends());
        let at = |http: &Http, is_app, env: &[&str]| {
            let env: Vec<String> = env.iter().map(|it| (*it).to_owned()).collect();
            http.address(is_app, &env).map(|it| it.to_string()).unwrap_or_default()
        };
        let default = Http::default();
        assert_eq!(at(&default, false, &["SPIN_HTTP_LISTEN_ADDR=x"]), "0.0.0.0:8080");
        assert_eq!(at(&default, true, &[]), "0.0.0.0:80");
        assert_eq!(at(&default, true, &["A=B", "SPIN_HTTP_LISTEN_ADDR=[::1]:5"]), "[::1]:5");
        assert_eq!(at(&default, true, &["SPIN_HTTP_LISTEN_ADDR=5"]), "");
        let own = of("http", "[::]:80").expect("good");
        assert_eq!(at(&own, false, &[]), "[::]:80");
        assert_eq!(at(&own, true, &["SPIN_HTTP_LISTEN_ADDR=0.0.0.0:5"]), "[::]:80");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (name, wrong) in [
            ("http", &["", "8080", ":8080", "0.0.0.0", "0.0.0.0:0", "localhost:80", "::1:80"][..]),
            ("http-requests", &["", "0", "-1", "+1", "1k", "1.5", "8193"]),
            ("http-connections", &["0", "65537"]),
            ("http-header-bytes", &["8191", "100000000"]),
            ("http-body", &["", "-1", "1M", "18446744073709551616"]),
            ("http-grace", &["", "0", "1h"]),
            ("http-health", &["", "healthz", "/a b", "/a?b", "/\n"]),
            ("http-access-log", &["", "on", "/dev/stdout"]),
            (
                "http-outbound",
                &["http://a", "a/b", "a:0", "a:x", "*a", "a,", "a..b", "[a]:1", "::1"],
            ),
        ] {
            for value in wrong {
                assert!(of(name, value).is_err(), "{name} {value}");
            }
        }
    }
}
