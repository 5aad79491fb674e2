//! Which component of an app answers a request, and what it learns about its route.
#![forbid(unsafe_code)]

use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Authority;

use crate::serve::{DOMAIN, Handler, Router};
use rt_spin::plan;
use rt_spin::routes::{Found, Pattern};

/// All headers with this prefix come from here.
const PREFIX: &str = "spin-";

pub(super) struct Routes {
    routes: Vec<Route>,
    /// All components, also those of private routes.
    components: Vec<(String, Arc<dyn Handler>)>,
}

struct Route {
    text: String,
    pattern: Pattern,
    handler: Arc<dyn Handler>,
}

impl Routes {
    /// The routes of a plan, which has them in order. Nobody outside of the app reaches a private
    /// one.
    pub(super) fn new(
        routes: &[plan::Route],
        components: Vec<(String, Arc<dyn Handler>)>,
    ) -> Result<Routes, String> {
        let mut made = Vec::new();
        for plan::Route { pattern, component } in routes {
            let Some(text) = pattern.clone() else { continue };
            let pattern = Pattern::parse(&text)?;
            let (_, handler) = components.get(*component).ok_or("a route has no component")?;
            made.push(Route { text, pattern, handler: Arc::clone(handler) });
        }
        Ok(Routes { routes: made, components })
    }
}

impl Router for Routes {
    fn route(&self, head: &mut Parts) -> Option<Arc<dyn Handler>> {
        // A client must not seem to be a component.
        let hosts = head.headers.get_all(header::HOST).iter().filter_map(|host| host.to_str().ok());
        if hosts.chain(head.uri.authority().map(Authority::as_str)).any(is_inside) {
            return None;
        }
        let path = head.uri.path();
        let (route, found) =
            self.routes.iter().find_map(|route| Some((route, route.pattern.find(path)?)))?;
        describe(head, &route.text, &found);
        Some(Arc::clone(&route.handler))
    }

    fn component(&self, name: &str) -> Option<Arc<dyn Handler>> {
        let found = self.components.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, handler)| Arc::clone(handler))
    }

    /// As for a route that matches all paths.
    fn describe(&self, head: &mut Parts) {
        let rest = head.uri.path().to_owned();
        describe(head, "/...", &Found { rest, ..Found::default() });
    }
}

/// The host by which a request was sent here, with its port.
fn host(head: &Parts) -> Option<String> {
    let host = head.uri.authority().map(|authority| authority.as_str().to_owned());
    host.or_else(|| Some(head.headers.get(header::HOST)?.to_str().ok()?.to_owned()))
}

/// Whether a host is that of a component.
fn is_inside(host: &str) -> bool {
    let name = host.rsplit('@').next().unwrap_or(host).split(':').next().unwrap_or(host);
    let name = name.trim_end_matches('.');
    let end = name.len().checked_sub(DOMAIN.len()).and_then(|start| name.get(start..));
    end.is_some_and(|end| end.eq_ignore_ascii_case(DOMAIN))
}

/// Tells the guest about its route. A client cannot do that.
fn describe(head: &mut Parts, route: &str, found: &Found) {
    let foreign: Vec<HeaderName> =
        head.headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
    for name in foreign {
        head.headers.remove(name);
    }
    let path = head.uri.path_and_query().map_or("/", |it| it.as_str());
    let full = format!("http://{}{path}", host(head).unwrap_or_default());
    let own = route.strip_suffix("/...").unwrap_or(route);
    let own = if own.is_empty() { "/" } else { own };
    let mut set = |name: &str, value: &str| {
        // A name or a value that is not a header's is left out.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            head.headers.insert(name, value);
        }
    };
    set("spin-full-url", &full);
    set("spin-path-info", &found.rest);
    set("spin-matched-route", route);
    set("spin-raw-component-route", route);
    set("spin-component-route", own);
    set("spin-base-path", "/");
    for (name, value) in &found.parameters {
        set(&format!("spin-path-match-{}", name.to_ascii_lowercase()), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_learns_its_route_from_here_alone() {
        let request = http::Request::builder()
            .uri("/users/7/photos/x?y=z")
            .header("host", "example.com:8080")
            .header("Spin-Path-Match-Id", "8")
            .header("spin-evil", "1")
            .header("accept", "*/*");
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        let pattern = Pattern::parse("/users/:id/...").expect("a route");
        let found = pattern.find(head.uri.path()).expect("found");
        describe(&mut head, "/users/:id/...", &found);
        let mut headers: Vec<(&str, &str)> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().expect("text")))
            .collect();
        headers.sort_unstable();
        let expected = [
            ("accept", "*/*"),
            ("host", "example.com:8080"),
            ("spin-base-path", "/"),
            ("spin-component-route", "/users/:id"),
            ("spin-full-url", "http://example.com:8080/users/7/photos/x?y=z"),
            ("spin-matched-route", "/users/:id/..."),
            ("spin-path-info", "/photos/x"),
            ("spin-path-match-id", "7"),
            ("spin-raw-component-route", "/users/:id/..."),
        ];
        assert_eq!(headers, expected);
    }
}
