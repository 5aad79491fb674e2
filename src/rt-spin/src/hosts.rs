//! `allowed_outbound_hosts` of a Spin manifest: `https://example.com`, `http://*.example.com:8080`,
//! `redis://10.0.0.0/8:*`, `*://*:*`.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::ops::RangeInclusive;

#[derive(Debug, Eq, PartialEq)]
pub struct Host {
    /// `None` for any.
    scheme: Option<String>,
    name: Name,
    ports: RangeInclusive<u16>,
}

#[derive(Debug, Eq, PartialEq)]
enum Name {
    Any,
    /// All names with this end, which begins with a dot.
    Below(String),
    /// In lower case.
    Exact(String),
    /// An address, and how many of its bits count.
    Network(IpAddr, u8),
    /// The app itself.
    Own,
}

/// The ports of schemes that need not name one.
const PORTS: [(&str, u16); 7] = [
    ("http", 80),
    ("https", 443),
    ("mqtt", 1883),
    ("mysql", 3306),
    ("postgres", 5432),
    ("redis", 6379),
    ("rediss", 6379),
];

/// The end of the names of an app's components as hosts.
const COMPONENTS: &str = ".spin.internal";

/// The port of a scheme.
pub fn port(scheme: &str) -> Option<u16> {
    PORTS.iter().find(|(name, _)| *name == scheme).map(|(_, port)| *port)
}

impl Host {
    pub fn parse(text: &str) -> Result<Host, String> {
        parse(text).map_err(|why| format!("the allowed host `{text}` {why}"))
    }

    /// Whether a connection by this scheme to a host's name or address is allowed.
    pub fn allows(&self, scheme: &str, name: &str, port: u16) -> bool {
        self.scheme.as_ref().is_none_or(|own| own == scheme)
            && self.name.includes(name)
            && self.ports.contains(&port)
    }

    /// Whether a socket may be connected to this address. The scheme of a socket is unknown, so
    /// only an entry for all schemes allows it.
    pub fn allows_socket(&self, address: IpAddr, port: u16) -> bool {
        self.scheme.is_none()
            && self.name.includes(&address.to_string())
            && self.ports.contains(&port)
    }

    /// Whether this entry allows sockets.
    pub fn is_for_sockets(&self) -> bool {
        self.scheme.is_none()
    }

    /// Whether a component may send requests to its own app.
    pub fn allows_self(&self) -> bool {
        self.is_for_http() && matches!(self.name, Name::Any | Name::Own)
    }

    /// Whether a component may send requests to the component of this name. The scheme and the
    /// port do not count: no connection is made.
    pub fn allows_component(&self, name: &str) -> bool {
        self.is_for_http() && self.name.includes(&format!("{name}{COMPONENTS}"))
    }

    /// Whether it may allow requests to the app or to its components.
    pub fn is_for_components(&self) -> bool {
        self.is_for_http()
            && match &self.name {
                Name::Any | Name::Own => true,
                Name::Below(end) => COMPONENTS.ends_with(end) || end.ends_with(COMPONENTS),
                Name::Exact(name) => name.ends_with(COMPONENTS),
                Name::Network(..) => false,
            }
    }

    fn is_for_http(&self) -> bool {
        self.scheme.as_ref().is_none_or(|scheme| scheme == "http" || scheme == "https")
    }

    /// Whether this entry is for exactly this name or address.
    pub fn names(&self, name: &str) -> bool {
        matches!(self.name, Name::Exact(_) | Name::Network(..)) && self.name.includes(name)
    }
}

fn parse(text: &str) -> Result<Host, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("has no scheme, such as `https://`")?;
    let is_scheme = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let scheme = match scheme {
        "*" => None,
        "" => return Err("has no scheme, such as `https://`"),
        _ if scheme.chars().all(is_scheme) => Some(scheme.to_owned()),
        _ => return Err("has a scheme with other characters than small letters and digits"),
    };
    let (rest, bits) = match network(rest) {
        Some((rest, bits)) => (rest, Some(bits)),
        None => (rest.strip_suffix('/').unwrap_or(rest).to_owned(), None),
    };
    if rest.contains(['/', '?', '#', '@', '{', '}', ' ']) {
        return Err("has more than a scheme, a host and a port");
    }
    let (name, port) = match rest.strip_prefix('[') {
        // An address of IPv6.
        Some(rest) => {
            let (name, rest) = rest.split_once(']').ok_or("has no `]`")?;
            let port = rest.strip_prefix(':');
            if !rest.is_empty() && port.is_none() {
                return Err("has text between `]` and the port");
            }
            (name.to_owned(), port.map(str::to_owned))
        }
        None => match rest.split_once(':') {
            Some((name, port)) => (name.to_owned(), Some(port.to_owned())),
            None => (rest, None),
        },
    };
    let name = name_of(&name, bits)?;
    let ports = match (port.as_deref(), &scheme) {
        (Some("*"), _) => 0..=u16::MAX,
        (Some(port), _) => ports(port).ok_or("has a port that is not a number, a range or `*`")?,
        (None, Some(scheme)) => {
            let port = self::port(scheme).ok_or("needs a port")?;
            port..=port
        }
        (None, None) => return Err("needs a port"),
    };
    Ok(Host { scheme, name, ports })
}

/// Takes `/BITS` out of an address with bits.
fn network(text: &str) -> Option<(String, u8)> {
    let (address, rest) = text.split_once('/')?;
    let (bits, port) = match rest.split_once(':') {
        Some((bits, port)) => (bits, format!(":{port}")),
        None => (rest, String::new()),
    };
    let is_number = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
    let bits = bits.parse().ok().filter(|_| is_number)?;
    Some((format!("{address}{port}"), bits))
}

fn name_of(name: &str, bits: Option<u8>) -> Result<Name, &'static str> {
    let name = name.to_ascii_lowercase();
    if let Ok(address) = name.parse::<IpAddr>() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        return if bits <= most {
            Ok(Name::Network(address, bits))
        } else {
            Err("has too many bits")
        };
    }
    if bits.is_some() {
        return Err("has bits after a name that is not an address");
    }
    let is_name = |name: &str| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        !name.is_empty()
            && name.split('.').all(|part| !part.is_empty() && part.chars().all(is_letter))
    };
    match (name.as_str(), name.strip_prefix("*.")) {
        ("*", _) => Ok(Name::Any),
        ("self" | "self.alt", _) => Ok(Name::Own),
        (_, Some(end)) if is_name(end) => Ok(Name::Below(format!(".{end}"))),
        (_, None) if is_name(&name) => Ok(Name::Exact(name)),
        _ => Err("has a host that is not a name, an address, `*` or `*.NAME`"),
    }
}

/// `PORT`, or `FIRST..END`, where `END` is not included.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| -> Option<u16> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| is_number)
    };
    match text.split_once("..") {
        Some((first, end)) => {
            let (first, end) = (number(first)?, number(end)?);
            (first < end).then(|| first..=end - 1)
        }
        None => number(text).map(|port| port..=port),
    }
}

impl Name {
    fn includes(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        match self {
            Name::Any => true,
            Name::Own => false,
            Name::Below(end) => name.ends_with(end),
            Name::Exact(own) => *own == name,
            Name::Network(network, bits) => {
                let name = name.trim_start_matches('[').trim_end_matches(']');
                name.parse().is_ok_and(|address| is_in(address, *network, *bits))
            }
        }
    }
}

fn is_in(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    // An address of IPv4 may be written as one of IPv6.
    let ((one, all), (other, length)) = (number(address.to_canonical()), number(network));
    let shift = length - u32::from(bits);
    all == length && one.checked_shr(shift).unwrap_or(0) == other.checked_shr(shift).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_allowed_by_this_table() {
        for (host, scheme, name, port, expected) in [
            ("https://example.com", "https", "example.com", 443, true),
            ("https://example.com", "https", "EXAMPLE.com", 443, true),
            ("https://example.com/", "https", "example.com", 443, true),
            ("https://example.com", "http", "example.com", 443, false),
            ("https://example.com", "https", "example.com", 80, false),
            ("https://example.com", "https", "evil-example.com", 443, false),
            ("https://example.com", "https", "a.example.com", 443, false),
            ("http://*.example.com:8080", "http", "a.b.example.com", 8080, true),
            ("http://*.example.com:8080", "http", "example.com", 8080, false),
            ("http://*.example.com:8080", "http", "evilexample.com", 8080, false),
            ("*://*:*", "redis", "::1", 1, true),
            ("http://*:*", "https", "x", 1, false),
            ("http://x:8000..8002", "http", "x", 8001, true),
            ("http://x:8000..8002", "http", "x", 8002, false),
            ("http://10.1.0.0/16:80", "http", "10.1.9.9", 80, true),
            ("http://10.1.0.0/16:80", "http", "::ffff:10.1.9.9", 80, true),
            ("http://10.1.0.0/16:80", "http", "10.2.0.1", 80, false),
            ("http://10.1.0.0/16:80", "http", "10.1.evil", 80, false),
            ("http://0.0.0.0/0:80", "http", "1.2.3.4", 80, true),
            ("http://127.0.0.1", "http", "127.0.0.1", 80, true),
            ("http://[::1]:8080", "http", "[::1]", 8080, true),
            ("http://[fd00::]/8:1", "http", "fdff::1", 1, true),
        ] {
            let allowed = Host::parse(host).expect(host).allows(scheme, name, port);
            assert_eq!(allowed, expected, "{host} {scheme} {name} {port}");
        }
    }

    #[test]
    fn a_socket_is_allowed_by_entries_for_all_schemes() {
        let allows =
            |host: &str| Host::parse(host).expect(host).allows_socket([10, 0, 0, 1].into(), 5);
        assert!(allows("*://10.0.0.1:5"));
        assert!(allows("*://10.0.0.0/8:*"));
        assert!(allows("*://*:5"));
        for host in ["http://10.0.0.1:5", "*://10.0.0.2:5", "*://10.0.0.1:6", "*://a.b:5"] {
            assert!(!allows(host), "{host}");
        }
    }

    #[test]
    fn requests_inside_the_app_are_allowed_by_this_table() {
        // The entry, and whether it allows the app itself and the component `b`.
        for (host, own, component) in [
            ("http://self", true, false),
            ("https://self", true, false),
            ("http://self.alt", true, false),
            ("redis://self", false, false),
            ("http://b.spin.internal", false, true),
            ("https://b.spin.internal", false, true),
            ("http://B.spin.internal:8080", false, true),
            ("redis://b.spin.internal", false, false),
            ("http://c.spin.internal", false, false),
            ("http://*.spin.internal", false, true),
            ("http://*.internal", false, true),
            ("http://spin.internal", false, false),
            ("http://*.b.spin.internal", false, false),
            ("*://*:*", true, true),
            ("https://*", true, true),
            ("http://10.0.0.0/8", false, false),
            ("http://example.com", false, false),
        ] {
            let parsed = Host::parse(host).expect(host);
            let allowed = (parsed.allows_self(), parsed.allows_component("b"));
            assert_eq!(allowed, (own, component), "{host}");
            assert!(parsed.is_for_components() || allowed == (false, false), "{host}");
            // No name of DNS and no address is the app.
            assert!(!host.contains("self") || !parsed.allows("http", "self", 80), "{host}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for wrong in [
            "",
            "example.com",
            "://x",
            "HTTP://x",
            "ftp://x",
            "*://x",
            "http://",
            "http://x/y",
            "http://x?y",
            "http://u@x",
            "http://x:0x50",
            "http://x:+80",
            "http://x:9..8",
            "http://x:65536",
            "http://*x",
            "http://a.*.b",
            "http://x..y",
            "http://x/8",
            "http://10.0.0.0/33",
            "http://[::1",
            "http://[::1]x",
            "http://{a,b}",
            "insecure:allow-all",
            "*://self",
            "redis+x://self",
        ] {
            assert!(Host::parse(wrong).is_err(), "{wrong}");
        }
    }
}
