//! A handler of SDK 4, as its template makes it.
use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::http_component;

#[http_component]
fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let body = match request.path().rsplit('/').next() {
        Some("variable") => spin_sdk::variables::get("text")?,
        _ => "Hello from Spin!".to_owned(),
    };
    Ok(Response::builder().status(200).header("content-type", "text/plain").body(body).build())
}
