//! Which component of an app answers a request, and what it learns about its route.
#![forbid(unsafe_code)]

use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;

use crate::serve::{Handler, Router};
use rt_spin::plan;
use rt_spin::routes::{Found, Pattern};

/// All headers with this prefix come from here.
const PREFIX: &str = "spin-";

pub(super) struct Routes(Vec<Route>);

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
        handlers: &[Arc<dyn Handler>],
    ) -> Result<Routes, String> {
        let mut made = Vec::new();
        for plan::Route { pattern, component } in routes {
            let Some(text) = pattern.clone() else { continue };
            let pattern = Pattern::parse(&text)?;
            let handler = handlers.get(*component).ok_or("a route has no component")?;
            made.push(Route { text, pattern, handler: Arc::clone(handler) });
        }
        Ok(Routes(made))
    }
}

impl Router for Routes {
    fn route(&self, head: &mut Parts) -> Option<Arc<dyn Handler>> {
        let path = head.uri.path();
        let (route, found) =
            self.0.iter().find_map(|route| Some((route, route.pattern.find(path)?)))?;
        describe(head, &route.text, &found);
        Some(Arc::clone(&route.handler))
    }
}

/// Tells the guest about its route. A client cannot do that.
fn describe(head: &mut Parts, route: &str, found: &Found) {
    let foreign: Vec<HeaderName> =
        head.headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
    for name in foreign {
        head.headers.remove(name);
    }
    let host = head.uri.authority().map(|authority| authority.as_str().to_owned());
    let host = host.or_else(|| Some(head.headers.get(header::HOST)?.to_str().ok()?.to_owned()));
    let path = head.uri.path_and_query().map_or("/", |it| it.as_str());
    let full = format!("http://{}{path}", host.unwrap_or_default());
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
