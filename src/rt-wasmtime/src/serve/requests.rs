//! One request: checked, handed to a guest, answered, counted and logged.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::{Request, Response};
use tokio::time::Instant;
use wasmtime_wasi_http::Error;

use super::access_log::{self, Entry};
use super::body::{Given, Received, Sent, Upload};
use super::connection::{Connection, Ticket};
use super::instances::{self, End};
use super::outbound::is_plain;
use super::router::Handler;
use super::statistics::{Counter, Now, add, count, count_response};
use super::{SMALLEST_BUFFER, Server, Settings};

/// The client went away before it had the response. nginx uses the same number.
const CLIENT_CLOSED: u16 = 499;

/// A request and its response, until both are over. Then it is counted and logged.
pub(super) struct Exchange {
    server: Arc<Server>,
    ticket: Ticket,
    status: StatusCode,
    sent: u64,
    /// For the log.
    noted: Option<Noted>,
    _now: Now,
}

/// What the log says about a request.
struct Noted {
    begun: SystemTime,
    line: String,
    headers: [Vec<u8>; 2],
}

impl Exchange {
    fn begin(
        server: &Arc<Server>,
        connection: &Arc<Connection>,
        request: &Request<Incoming>,
    ) -> Exchange {
        count(Counter::Requests);
        let deadline = Instant::now() + server.settings.request_time;
        let note = || Noted {
            begun: SystemTime::now(),
            line: format!("{} {} {:?}", request.method(), request.uri(), request.version()),
            headers: access_log::headers(request.headers()),
        };
        Exchange {
            noted: server.log.is_some().then(note),
            ticket: connection.begin(server, deadline),
            server: Arc::clone(server),
            status: StatusCode::from_u16(CLIENT_CLOSED).unwrap_or(StatusCode::BAD_REQUEST),
            sent: 0,
            _now: Now::new(Counter::RequestsNow),
        }
    }

    /// Counts bytes of the response's body.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        add(Counter::BytesSent, bytes);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        count_response(self.status, self.ticket.begun().elapsed());
        if let Some(Noted { begun, line, headers: [referer, agent] }) = &self.noted {
            self.server.log(&Entry {
                client: self.ticket.client(),
                begun: *begun,
                line,
                status: self.status,
                sent: self.sent,
                referer,
                agent,
            });
        }
    }
}

/// Answers a request. Every answer is a response, whatever went wrong.
pub(super) async fn answer(
    server: Arc<Server>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Sent>, Infallible> {
    let mut exchange = Exchange::begin(&server, &connection, &request);
    let answered = match request.uri().path() {
        path if server.health.as_deref() == Some(path) => Err(health(request.method())),
        _ => guests(&server, &connection, request, exchange.ticket.deadline()).await,
    };
    Ok(match answered {
        Ok(response) => {
            exchange.status = response.status();
            response.map(|body| Sent::guests(body, exchange))
        }
        Err(status) => {
            exchange.status = status;
            own(status, exchange)
        }
    })
}

/// The answer for a probe.
pub(super) fn health(method: &Method) -> StatusCode {
    match *method {
        Method::GET | Method::HEAD => StatusCode::OK,
        _ => StatusCode::METHOD_NOT_ALLOWED,
    }
}

/// The body of a response of the server itself.
pub(super) fn text(status: StatusCode) -> Bytes {
    match status {
        StatusCode::OK => Bytes::from_static(b"ok\n"),
        _ => Bytes::from(format!("{status}\n")),
    }
}

/// A response of the server itself: the status, and the same in words.
fn own(status: StatusCode, exchange: Exchange) -> Response<Sent> {
    let mut response = Response::new(Sent::own(text(status), exchange));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    // The rest of a bad or a long request must not be taken for the next one.
    let is_end = matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT
    );
    if is_end {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Lets a guest answer a client.
async fn guests(
    server: &Arc<Server>,
    connection: &Connection,
    request: Request<Incoming>,
    deadline: Instant,
) -> Result<Response<Given>, StatusCode> {
    let (mut head, body) = request.into_parts();
    check(&mut head, connection)?;
    limit(&server.settings, &head, &body)?;
    let handler = server.router.route(&mut head).ok_or(StatusCode::NOT_FOUND)?;
    handle(server, handler, head, body, deadline, 0).await
}

/// Refuses a request that is too large.
pub(super) fn limit(settings: &Settings, head: &Parts, body: &impl Body) -> Result<(), StatusCode> {
    // As they would be on the wire. Of a client's request, hyper has limited the size already.
    let path = head.uri.path_and_query().map_or(0, |it| it.as_str().len());
    let line = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    let size = head.method.as_str().len() + path + head.headers.iter().map(line).sum::<usize>();
    if head.headers.len() > settings.headers || size > settings.header_bytes.max(SMALLEST_BUFFER) {
        return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    if body.size_hint().lower() > settings.body {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    Ok(())
}

/// Lets a guest answer a client or another guest, whose request has passed [`limit`]. `level` is
/// that of [`super::inside`].
pub(super) async fn handle<B>(
    server: &Arc<Server>,
    handler: Arc<dyn Handler>,
    head: Parts,
    body: B,
    deadline: Instant,
    level: usize,
) -> Result<Response<Given>, StatusCode>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    Error: From<B::Error>,
{
    let upload = Arc::new(Upload::default());
    let body = Received::new(body, server.settings.body, Arc::clone(&upload), level == 0);
    let request = Request::from_parts(head, body.boxed_unsync());
    let answered = tokio::select! {
        biased;
        () = upload.too_large() => return Err(StatusCode::PAYLOAD_TOO_LARGE),
        answered = instances::answer(server, handler, request, deadline, level) => answered,
    };
    let (response, guest) = answered.map_err(|end| match end {
        End::Good | End::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        End::TimedOut => {
            count(Counter::TimedOut);
            // The guest may have waited for the client.
            match upload.is_whole.load(Ordering::Relaxed) {
                true => StatusCode::GATEWAY_TIMEOUT,
                false => StatusCode::REQUEST_TIMEOUT,
            }
        }
        End::Short => {
            count(Counter::Refused);
            StatusCode::SERVICE_UNAVAILABLE
        }
    })?;
    // An interim response is not an answer.
    if response.status().is_informational() {
        return Err(StatusCode::INTERNAL_SERVER_ERROR);
    }
    Ok(response.map(|body| Given::new(body, guest)))
}

/// Refuses what hyper accepts and a guest must not see. Gives a request of HTTP/1.0 without a host
/// the server's own address.
fn check(head: &mut Parts, connection: &Connection) -> Result<(), StatusCode> {
    if head.method == Method::CONNECT {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    let is_odd = head.uri.authority().is_some_and(|it| !is_plain(it.as_str()));
    if head.uri.path_and_query().is_none() || is_odd {
        return Err(StatusCode::BAD_REQUEST);
    }
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(StatusCode::BAD_REQUEST);
    }
    match host {
        Some(host) => {
            // A host has no user (RFC 9110, "Host"), though `Authority` may.
            let is_host =
                |host: &str| host.is_empty() || is_plain(host) && host.parse::<Authority>().is_ok();
            host.to_str().ok().filter(|it| is_host(it)).ok_or(StatusCode::BAD_REQUEST)?;
        }
        // RFC 9112, "Host".
        None if head.version == Version::HTTP_11 => return Err(StatusCode::BAD_REQUEST),
        None if head.uri.authority().is_some() => {}
        None => {
            let own = HeaderValue::from_str(&connection.own_address());
            head.headers.insert(header::HOST, own.map_err(|_| StatusCode::BAD_REQUEST)?);
        }
    }
    Ok(())
}
