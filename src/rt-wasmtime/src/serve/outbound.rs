//! Requests of guests to other servers: only to those that are allowed.
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, Sleep, sleep, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::inside::{Call, Target};
use super::say;
use super::statistics::{Counter, count};
use super::tls::{self, Stream, Tls};

/// The time limit of each part of a request, if the guest sets none.
const TIME: Duration = Duration::from_secs(60);

/// The servers to which a guest may send requests.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Allowed(Vec<Server>);

#[derive(Debug, Eq, PartialEq)]
struct Server {
    host: Host,
    port: Port,
}

#[derive(Debug, Eq, PartialEq)]
enum Port {
    Any,
    /// That of the request's scheme.
    Default,
    Number(u16),
}

/// How a request is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    Http,
    Https,
}

impl Protocol {
    fn of(scheme: Option<&Scheme>) -> Option<Protocol> {
        match scheme?.as_str() {
            "http" => Some(Protocol::Http),
            "https" => Some(Protocol::Https),
            _ => None,
        }
    }

    /// The scheme of a URL.
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Https => "https",
        }
    }

    /// The port of a server that is named without one.
    fn port(self) -> u16 {
        match self {
            Protocol::Http => 80,
            Protocol::Https => 443,
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Host {
    Any,
    /// Every name that ends so, beginning with a dot.
    Below(String),
    Name(String),
    Address(IpAddr),
}

impl Allowed {
    /// Parses entries: `HOST` or `HOST:PORT`. A host is a name, an address, `*.` and a name, or
    /// `*`.
    pub(crate) fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Allowed, String> {
        let servers = entries.into_iter().map(|entry| {
            Server::parse(entry).ok_or_else(|| format!("`{entry}` is not `HOST:PORT`"))
        });
        servers.collect::<Result<_, _>>().map(Allowed)
    }
}

/// Says which servers a guest may reach.
pub(crate) trait Policy: Send + Sync {
    /// Whether a request to this host, by the name that the guest used, is allowed.
    fn has(&self, protocol: Protocol, host: &str, port: u16) -> bool;

    /// Whether this very address is listed.
    fn lists(&self, address: IpAddr) -> bool;

    /// Whether the name `localhost` is listed.
    fn lists_localhost(&self) -> bool;

    /// Whether a request to an allowed host may connect to this address. The owner of a name
    /// chooses its address. So a name must not lead to an address that manages the machine or its
    /// cloud, or back into the container. Such an address is allowed only if the list has the
    /// address itself, or, for loopback, the name `localhost`.
    fn leads_to(&self, host: &str, address: IpAddr) -> bool {
        let address = plain(address);
        !is_withheld(address)
            || self.lists(address)
            || address.is_loopback() && host == "localhost" && self.lists_localhost()
    }

    /// Who gets a request to this host, if the request stays in the process. The host may be empty.
    fn inside<'a>(&self, _host: &'a str) -> Option<Target<'a>> {
        None
    }

    /// Whether such a request is allowed.
    fn has_inside(&self, _target: &Target<'_>) -> bool {
        false
    }
}

impl Policy for Allowed {
    fn has(&self, protocol: Protocol, host: &str, port: u16) -> bool {
        self.0.iter().any(|server| {
            let is_port = match server.port {
                Port::Any => true,
                Port::Default => port == protocol.port(),
                Port::Number(number) => port == number,
            };
            is_port
                && match &server.host {
                    Host::Any => true,
                    Host::Below(end) => host.len() > end.len() && host.ends_with(end.as_str()),
                    Host::Name(name) => host == name,
                    Host::Address(address) => address_of(host) == Some(*address),
                }
        })
    }

    fn lists(&self, address: IpAddr) -> bool {
        self.0.iter().any(|server| server.host == Host::Address(address))
    }

    fn lists_localhost(&self) -> bool {
        self.0.iter().any(|server| server.host == Host::Name("localhost".into()))
    }
}

impl Server {
    fn parse(entry: &str) -> Option<Server> {
        let (host, port) = match entry.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                (
                    host,
                    port.is_empty().then_some(None).or_else(|| port.strip_prefix(':').map(Some))?,
                )
            }
            None => match entry.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (entry, None),
            },
        };
        let port = match port {
            None => Port::Default,
            Some("*") => Port::Any,
            Some(port) => {
                Port::Number(port.parse().ok().filter(|it| *it > 0 && !port.starts_with('+'))?)
            }
        };
        let host = host.to_ascii_lowercase();
        let is_name = |name: &str| {
            let is_part = |part: &str| {
                let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
                !part.is_empty() && part.bytes().all(is_good)
            };
            name.split('.').all(is_part)
        };
        let host = match (host.as_str(), host.strip_prefix('*')) {
            ("*", _) => Host::Any,
            (_, Some(end)) => {
                let name = end.strip_prefix('.').filter(|name| is_name(name))?;
                Host::Below(format!(".{name}"))
            }
            (host, None) => match address_of(host) {
                Some(address) => Host::Address(address),
                None if is_name(host) => Host::Name(host.to_owned()),
                None => return None,
            },
        };
        Some(Server { host, port })
    }
}

/// The address that a host is, if it is not a name.
fn address_of(host: &str) -> Option<IpAddr> {
    let host = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
    host.parse().ok().map(plain)
}

/// The IPv4 address in an address of IPv6 that stands for one: mapped (RFC 4291, 2.5.5.2), or
/// behind a translator (RFC 6052, 2.1).
fn plain(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => match six.octets() {
            [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, rest @ ..] => IpAddr::from(rest),
            _ => IpAddr::V6(six),
        },
        four => four,
    }
}

/// Addresses that a request reaches only if they are listed: this container's, those of one link,
/// and those by which clouds give data and passwords to a machine.
fn is_withheld(address: IpAddr) -> bool {
    // Whoever answers for a name may write an address of IPv4 as one of IPv6.
    match plain(address) {
        IpAddr::V4(four) => {
            let metadata = [[100, 100, 100, 200], [168, 63, 129, 16], [192, 0, 0, 192]];
            four.octets()[0] == 0
                || four.is_loopback()
                || four.is_link_local()
                || four.is_multicast()
                || four.is_broadcast()
                || metadata.contains(&four.octets())
        }
        IpAddr::V6(six) => {
            let metadata: [Ipv6Addr; 4] = [
                Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
                // By which containers and pods get the passwords of their roles.
                Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
                Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
                Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
            ];
            six.is_unspecified()
                || six.is_loopback()
                || six.is_unicast_link_local()
                || six.is_multicast()
                || metadata.contains(&six)
        }
    }
}

/// What an instance may do with `wasi:http/outgoing-handler`.
#[derive(Clone)]
pub(crate) struct Outbound {
    policy: Arc<dyn Policy>,
    tls: Arc<Tls>,
    /// For an instance that handles a request.
    call: Option<Call>,
}

impl Outbound {
    pub(crate) fn new(policy: Arc<dyn Policy>, tls: Arc<Tls>) -> Outbound {
        Outbound { policy, tls, call: None }
    }

    /// Begins a call of a handler.
    pub(crate) fn begin(&mut self, call: Call) {
        self.call = Some(call);
    }
}

impl Default for Outbound {
    /// Nothing.
    fn default() -> Outbound {
        Outbound::new(Arc::new(Allowed::default()), Arc::default())
    }
}

type Ending = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(Response<WasiBody>, Ending), Error>;

impl WasiHttpHooks for Outbound {
    fn default_scheme(&mut self) -> Option<Scheme> {
        Some(Scheme::HTTP)
    }

    /// How much of a body this process keeps for a guest.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        64 << 10
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        64 << 10
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _end: Ending,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        let outbound = self.clone();
        Box::new(async move {
            count(Counter::Outbound);
            let sent = outbound.send(request, options.unwrap_or_default()).await;
            if matches!(sent, Err(Error::HttpRequestDenied | Error::DestinationIpProhibited)) {
                count(Counter::OutboundRefused);
            }
            sent
        })
    }
}

impl Outbound {
    async fn send(&self, request: Request<WasiBody>, options: RequestOptions) -> Answer {
        let protocol = Protocol::of(request.uri().scheme()).ok_or(Error::HttpProtocolError)?;
        let (host, port) = match request.uri().authority() {
            Some(authority) => server_of(protocol, authority)?,
            None => (String::new(), protocol.port()),
        };
        if let (Some(target), Some(call)) = (self.policy.inside(&host), &self.call) {
            return self.send_inside(call, &target, request, options).await;
        }
        if host.is_empty() {
            return Err(Error::HttpRequestUriInvalid);
        }
        if !self.policy.has(protocol, &host, port) {
            say(&format!("a request to `{host}:{port}` is not allowed"));
            return Err(Error::HttpRequestDenied);
        }
        let time = options.connect_timeout.unwrap_or(TIME);
        let stream = timeout(time, self.connect(protocol, &host, port)).await;
        let stream = stream.map_err(|_| Error::ConnectionTimeout)??;
        exchange(stream, request, options).await
    }

    /// Lets another component of the app answer.
    async fn send_inside(
        &self,
        call: &Call,
        target: &Target<'_>,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Answer {
        if !self.policy.has_inside(target) {
            say(&format!("a request to {target} is not allowed"));
            return Err(Error::HttpRequestDenied);
        }
        let time = options.first_byte_timeout.unwrap_or(TIME);
        let response = call.send(target, request, time).await?;
        Ok((answered(response, &options), Box::new(async { Ok(()) })))
    }

    /// Connects to one of the host's addresses: the first that is allowed and answers.
    async fn connect(&self, protocol: Protocol, host: &str, port: u16) -> Result<Stream, Error> {
        let stream = connect(&*self.policy, host, port).await?;
        Ok(match protocol {
            Protocol::Http => Stream::Plain(stream),
            Protocol::Https => Stream::Tls(Box::new(self.tls.connect(host, port, stream).await?)),
        })
    }
}

/// Sends a request, and receives the beginning of the response. A redirection is a response.
async fn exchange(stream: Stream, request: Request<WasiBody>, options: RequestOptions) -> Answer {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 << 10)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut connection = Some(connection);
    // By now, the request's line has the path only.
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().filter(|path| !path.as_str().is_empty()).cloned();
    head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let response = {
        let mut sending = pin!(sender.send_request(Request::from_parts(head, body)));
        // The connection does its work only when it is polled.
        let response = poll_fn(|context| {
            let mut end = Ok(());
            if let Some(open) = &mut connection
                && let Poll::Ready(ended) = Pin::new(open).poll(context)
            {
                connection = None;
                end = ended;
            }
            // The server may have ended the connection in a bad way after its response.
            match (sending.as_mut().poll(context), end) {
                (Poll::Pending, Err(error)) => Poll::Ready(Err(tls::of_request(error))),
                (response, _) => response.map_err(tls::of_request),
            }
        });
        let time = options.first_byte_timeout.unwrap_or(TIME);
        timeout(time, response).await.map_err(|_| Error::ConnectionReadTimeout)??
    };
    let response = answered(response.map(|body| body.map_err(tls::of_request)), &options);
    let ending = async move {
        // The request ends with its connection, and not before.
        let _sender = sender;
        match connection {
            Some(connection) => connection.await.map_err(tls::of_request),
            None => Ok(()),
        }
    };
    Ok((response, Box::new(ending)))
}

/// Whether an authority is a host, and maybe a colon and digits: what no two programs read as two
/// hosts. `Authority` accepts more.
pub(super) fn is_plain(authority: &str) -> bool {
    let port = match authority.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((_, ""))) => None,
        Some(Some((_, rest))) => match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None => return false,
        },
        Some(None) => return false,
        None => authority.split_once(':').map(|(_, port)| port),
    };
    !authority.contains('@') && port.is_none_or(|port| port.bytes().all(|it| it.is_ascii_digit()))
}

/// The host in lower case, and the port.
fn server_of(protocol: Protocol, authority: &Authority) -> Result<(String, u16), Error> {
    let invalid = || Error::HttpRequestUriInvalid;
    // The authority is also the header `Host`, and servers differ in how they read one with a user,
    // with text after the bracket of an address, or with a port that is not only digits.
    if !is_plain(authority.as_str()) {
        return Err(invalid());
    }
    let port = match authority.port() {
        Some(port) => port.as_str().parse().map_err(|_| invalid())?,
        None => protocol.port(),
    };
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    Ok((host, port))
}

async fn connect(allowed: &dyn Policy, host: &str, port: u16) -> Result<TcpStream, Error> {
    let addresses: Vec<SocketAddr> = match address_of(host) {
        Some(address) => vec![SocketAddr::new(address, port)],
        None => {
            let unknown = |_| Error::DnsError { rcode: None, info_code: None };
            lookup_host((host, port)).await.map_err(unknown)?.collect()
        }
    };
    let mut why = Error::DestinationNotFound;
    for address in addresses {
        if !allowed.leads_to(host, address.ip()) {
            say(&format!(
                "a request to `{host}:{port}` leads to `{}`, which is not listed",
                address.ip()
            ));
            why = Error::DestinationIpProhibited;
            continue;
        }
        match TcpStream::connect(address).await {
            // An address of this container's own is reached from that very address.
            Ok(stream)
                if is_own(&stream)
                    && !is_withheld(address.ip())
                    && !allowed.lists(plain(address.ip())) =>
            {
                say(&format!(
                    "a request to `{host}:{port}` leads to `{}`, which is the container's own and is not listed",
                    address.ip()
                ));
                why = Error::DestinationIpProhibited;
            }
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => why = Error::Connect(error),
        }
    }
    Err(why)
}

fn is_own(stream: &TcpStream) -> bool {
    let own = stream.local_addr().map(|it| it.ip()).ok();
    own.is_some() && own == stream.peer_addr().map(|it| it.ip()).ok()
}

/// Limits the pauses of a response.
fn answered<B>(response: Response<B>, options: &RequestOptions) -> Response<WasiBody>
where
    B: Body<Data = Bytes, Error = Error> + Send + Unpin + 'static,
{
    let pause = options.between_bytes_timeout.unwrap_or(TIME);
    response.map(|body| Answered { body, pause, timer: Box::pin(sleep(pause)) }.boxed_unsync())
}

/// The body of a response, whose server must not pause for longer than the guest allows.
struct Answered<B> {
    body: B,
    pause: Duration,
    timer: Pin<Box<Sleep>>,
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for Answered<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let next = Instant::now() + self.pause;
            self.timer.as_mut().reset(next);
            return Poll::Ready(frame);
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Checks a policy that allows all names, and another one that also lists an address.
#[cfg(test)]
pub(crate) fn leads_to_no_address_of_the_machine<P: Policy>(
    any: &P,
    listing: impl Fn(IpAddr) -> P,
) {
    for withheld in [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd00:42::42",
        "168.63.129.16",
    ] {
        let address: IpAddr = withheld.parse().expect(withheld);
        assert!(!any.leads_to("evil.example", address), "{withheld}");
        assert!(listing(plain(address)).leads_to("x", address), "{withheld}");
    }
    for free in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "fd00::1", "2001:db8::1"] {
        assert!(any.leads_to("x", free.parse().expect(free)), "{free}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(list: &str) -> Allowed {
        Allowed::parse(list.split(',').filter(|_| !list.is_empty())).expect(list)
    }

    #[test]
    fn a_server_is_allowed_by_name_address_and_port() {
        let list = allowed("a.example,*.B.example:8080,10.0.0.5:81,[fd00::1]:82,c:*");
        for (host, port, expected) in [
            ("a.example", 80, true),
            ("a.example", 81, false),
            ("x.a.example", 80, false),
            ("x.b.example", 8080, true),
            ("x.y.b.example", 8080, true),
            ("b.example", 8080, false),
            ("xb.example", 8080, false),
            ("10.0.0.5", 81, true),
            ("[::ffff:10.0.0.5]", 81, true),
            ("[fd00::1]", 82, true),
            ("[fd00::2]", 82, false),
            ("c", 1, true),
            ("169.254.169.254", 80, false),
        ] {
            assert_eq!(list.has(Protocol::Http, host, port), expected, "{host}:{port}");
        }
        assert!(!allowed("").has(Protocol::Http, "a", 80));
    }

    #[test]
    fn a_server_without_a_port_has_that_of_the_scheme() {
        for (list, http, https) in
            [("a", &[80][..], &[443][..]), ("a:443", &[443], &[443]), ("a:*", &PORTS, &PORTS)]
        {
            for port in PORTS {
                let list = allowed(list);
                assert_eq!(list.has(Protocol::Http, "a", port), http.contains(&port), "{port}");
                assert_eq!(list.has(Protocol::Https, "a", port), https.contains(&port), "{port}");
            }
        }
        assert!(!allowed("a").has(Protocol::Https, "b", 443));
    }

    const PORTS: [u16; 3] = [80, 81, 443];

    #[test]
    fn what_is_no_server_is_an_error() {
        for wrong in [
            "", "a:", "a:0", "a:65536", "a:+1", "a:x", "http://a", "a/b", "*a", "a.*", "*.",
            "a..b", ".a", "[::1", "[a]", "[::1]x", "::1", "a b", "*.*", "-\n",
        ] {
            assert!(Allowed::parse([wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_leads_to_no_address_of_the_machine() {
        let any = allowed("*:*");
        let listing = |address| match address {
            IpAddr::V4(_) => allowed(&format!("*,{address}:80")),
            IpAddr::V6(_) => allowed(&format!("*,[{address}]:80")),
        };
        leads_to_no_address_of_the_machine(&any, listing);
        let own = allowed("localhost:8080");
        assert!(own.leads_to("localhost", [127, 0, 0, 1].into()));
        assert!(!any.leads_to("localhost", [127, 0, 0, 1].into()));
        let mapped = allowed("[::ffff:10.0.0.5]:80,[64:ff9b::a9fe:a9fe]:80");
        assert!(mapped.leads_to("x", [169, 254, 169, 254].into()));
    }

    #[test]
    fn an_authority_is_a_host_and_a_port() {
        for (authority, expected) in [
            ("a", true),
            ("a:80", true),
            ("a:", true),
            ("[::1]", true),
            ("[::1]:80", true),
            ("a:+80", false),
            ("a:8o", false),
            ("b@a", false),
            ("b:80@a:81", false),
            ("a:80@b", false),
            ("[::1]a", false),
            ("[::1]a:80", false),
            ("[::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_plain(authority), expected, "{authority}");
        }
    }
}
