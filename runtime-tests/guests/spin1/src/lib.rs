//! A handler as SDK 1 of Spin makes them. That SDK is not on crates.io, so this declares its
//! interface.
wit_bindgen::generate!({
    world: "handler",
    inline: "
        package fermyon:spin;
        interface http-types {
            enum method { get, post, put, delete, patch, head, options }
            record request {
                method: method,
                uri: string,
                headers: list<tuple<string, string>>,
                params: list<tuple<string, string>>,
                body: option<list<u8>>,
            }
            record response {
                status: u16,
                headers: option<list<tuple<string, string>>>,
                body: option<list<u8>>,
            }
        }
        interface inbound-http {
            use http-types.{request, response};
            handle-request: func(req: request) -> response;
        }
        world handler { export inbound-http; }",
});

use exports::fermyon::spin::inbound_http::{Guest, Request, Response};

struct Handler;

impl Guest for Handler {
    fn handle_request(request: Request) -> Response {
        let route = request.headers.iter().find(|(name, _)| name == "spin-component-route");
        let route = route.map_or("", |(_, value)| value);
        let length = request.body.map_or(0, |body| body.len());
        let text = format!("{:?} {} {length} at {route}", request.method, request.uri);
        Response {
            status: 201,
            headers: Some(vec![("content-type".into(), "text/plain".into())]),
            body: Some(text.into_bytes()),
        }
    }
}

export!(Handler);
