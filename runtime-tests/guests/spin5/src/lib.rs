//! A handler of a newer SDK, as its template makes it, which also asks others.
use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::http_component;

#[http_component]
async fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let route = request.header("spin-component-route").and_then(|it| it.as_str()).unwrap_or("");
    let body = match request.query().strip_prefix("ask=") {
        Some(url) => {
            let response: Response = spin_sdk::http::send(Request::get(url)).await?;
            format!("{} {}", response.status(), String::from_utf8_lossy(response.body()))
        }
        None => format!("Hello from Spin 5 at {route}"),
    };
    Ok(Response::builder().status(200).header("content-type", "text/plain").body(body).build())
}
