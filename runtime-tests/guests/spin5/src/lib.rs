//! A handler of a newer SDK, as its template makes it.
use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::http_component;

#[http_component]
fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let route = request.header("spin-component-route").and_then(|it| it.as_str()).unwrap_or("");
    Ok(Response::builder()
        .status(200)
        .header("content-type", "text/plain")
        .body(format!("Hello from Spin 5 at {route}"))
        .build())
}
