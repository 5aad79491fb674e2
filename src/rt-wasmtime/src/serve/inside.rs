//! Requests of an app's components to each other (`docs/spin.md`, "Requests inside the app"): they
//! are answered in this process, without a socket.
#![forbid(unsafe_code)]

use std::fmt::{Display, Formatter};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use wasmtime_wasi_http::{Error, WasiBody};

use super::requests::{self, text};
use super::{Server, say};

/// How deep such requests go: a client's request has the level 0, a request that its guest sends
/// has the level 1.
pub(super) const DEEPEST: usize = 8;

/// Who gets a request that stays in the process.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Target<'a> {
    /// The component at the route.
    App,
    /// A component by its name.
    Component(&'a str),
}

/// The call of a handler, as the requests of its guest need it.
#[derive(Clone)]
pub(crate) struct Call {
    server: Arc<Server>,
    level: usize,
    /// When the time of the client's request is over.
    deadline: Instant,
}

impl Call {
    pub(super) fn new(server: &Arc<Server>, level: usize, deadline: Instant) -> Call {
        Call { server: Arc::clone(server), level, deadline }
    }

    /// Lets another component answer. `time` is the limit until the response begins.
    pub(super) async fn send(
        &self,
        target: &Target<'_>,
        request: Request<WasiBody>,
        time: Duration,
    ) -> Result<Response<WasiBody>, Error> {
        let level = self.level + 1;
        if level > DEEPEST {
            say(&format!(
                "a request to {target} is the {level}th inside of each other, and {DEEPEST} are the most"
            ));
            return Err(Error::LoopDetected);
        }
        let (mut head, body) = request.into_parts();
        let server = &self.server;
        // As of a client.
        if head.method == Method::CONNECT {
            return Ok(plain(StatusCode::NOT_IMPLEMENTED));
        }
        let handler = match target {
            Target::App => {
                address(&mut head, &server.address)?;
                if server.health.as_deref() == Some(head.uri.path()) {
                    return Ok(plain(requests::health(&head.method)));
                }
                // Before the router adds headers of its own.
                if let Err(status) = requests::limit(&server.settings, &head, &body) {
                    return Ok(plain(status));
                }
                server.router.route(&mut head)
            }
            Target::Component(name) => {
                let Some(handler) = server.router.component(name) else {
                    say(&format!("there is no component `{name}` that gets requests"));
                    return Err(Error::DestinationNotFound);
                };
                address(&mut head, &format!("{name}{DOMAIN}"))?;
                if let Err(status) = requests::limit(&server.settings, &head, &body) {
                    return Ok(plain(status));
                }
                server.router.describe(&mut head);
                Some(handler)
            }
        };
        let Some(handler) = handler else { return Ok(plain(StatusCode::NOT_FOUND)) };
        let answered = requests::handle(server, handler, head, body, self.deadline, level);
        let answered = timeout(time, answered).await.map_err(|_| Error::ConnectionReadTimeout)?;
        Ok(match answered {
            Ok(response) => response.map(BodyExt::boxed_unsync),
            Err(status) => plain(status),
        })
    }
}

/// The end of the name by which components reach each other.
pub(crate) const DOMAIN: &str = ".spin.internal";

impl Display for Target<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::App => formatter.write_str("the app itself"),
            Target::Component(name) => write!(formatter, "the component `{name}`"),
        }
    }
}

/// Gives a request the address by which the other component knows itself.
fn address(head: &mut Parts, host: &str) -> Result<(), Error> {
    let authority = host.parse::<Authority>().map_err(|_| Error::HttpRequestUriInvalid)?;
    let value = HeaderValue::from_str(host).map_err(|_| Error::HttpRequestUriInvalid)?;
    head.headers.insert(header::HOST, value);
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(parts).map_err(|_| Error::HttpRequestUriInvalid)?;
    Ok(())
}

/// A response of the server itself.
fn plain(status: StatusCode) -> Response<WasiBody> {
    let body: Full<Bytes> = Full::new(text(status));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The places of instances.
#[derive(Debug)]
pub(super) struct Places {
    /// For requests of clients.
    clients: Arc<Semaphore>,
    /// For requests of guests. A guest keeps its place while it waits for another one, so the
    /// guests of one level could take all places and wait for each other. So each level also has a
    /// place of its own: the guest there waits only for deeper levels, and the deepest waits for
    /// nobody.
    guests: Arc<Semaphore>,
    own: [Arc<Semaphore>; DEEPEST],
    /// The numbers of places for clients, and for guests of all levels.
    counts: (usize, usize),
}

impl Places {
    /// `guests` is the number of guests that other guests have called: 0, or at least one for each
    /// level.
    pub(super) fn new(clients: usize, guests: usize) -> Places {
        let places = |count| Arc::new(Semaphore::new(count));
        let guests = guests.saturating_sub(DEEPEST);
        Places {
            counts: (clients, guests),
            clients: places(clients),
            guests: places(guests),
            own: std::array::from_fn(|_| places(1)),
        }
    }

    /// Waits until no instance runs.
    pub(super) async fn all_free(&self) {
        let (clients, guests) = self.counts;
        let own = self.own.iter().map(|own| (own, 1));
        for (places, count) in
            [(&self.clients, clients), (&self.guests, guests)].into_iter().chain(own)
        {
            let _ = places.acquire_many(u32::try_from(count).unwrap_or(u32::MAX)).await;
        }
    }

    /// Waits for a place until half of the time is over, so that a request that gets one has the
    /// other half.
    pub(super) async fn take(
        &self,
        level: usize,
        deadline: Instant,
    ) -> Option<OwnedSemaphorePermit> {
        let now = Instant::now();
        let end = now + deadline.saturating_duration_since(now) / 2;
        let own = level.checked_sub(1).and_then(|place| self.own.get(place));
        let place = async {
            match own {
                None => Arc::clone(&self.clients).acquire_owned().await,
                Some(own) => tokio::select! {
                    biased;
                    place = Arc::clone(&self.guests).acquire_owned() => place,
                    place = Arc::clone(own).acquire_owned() => place,
                },
            }
        };
        timeout_at(end, place).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(work);
    }

    #[test]
    fn the_deepest_guest_gets_a_place_whoever_waits() {
        places(async {
            let places = Places::new(1, DEEPEST + 2);
            let soon = || Instant::now() + Duration::from_millis(20);
            let client = places.take(0, soon()).await;
            assert!(client.is_some() && places.take(0, soon()).await.is_none());
            // As many as there are: the shared ones, and the level's own.
            let mut kept = Vec::new();
            while let Some(place) = places.take(1, soon()).await {
                kept.push(place);
            }
            assert_eq!(kept.len(), 3);
            for level in 2..=DEEPEST {
                kept.push(places.take(level, soon()).await.expect("its own"));
                assert!(places.take(level, soon()).await.is_none(), "{level}");
            }
        });
    }

    #[test]
    fn a_request_gets_the_address_of_its_target() {
        let request = Request::builder().uri("https://:443/a?b").header("host", ":443");
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        address(&mut head, "0.0.0.0:80").expect("an address");
        assert_eq!(head.uri.to_string(), "http://0.0.0.0:80/a?b");
        assert_eq!(head.headers[header::HOST], "0.0.0.0:80");
        let request = Request::builder().uri("http://x");
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        address(&mut head, "b.spin.internal").expect("an address");
        assert_eq!(head.uri.to_string(), "http://b.spin.internal/");
        assert!(address(&mut head, "a b.spin.internal").is_err());
    }
}
