//! A handler of SDK 6, as its template makes it.
use spin_sdk::http::{IntoResponse, Request};
use spin_sdk::http_service;

#[http_service]
async fn handle(request: Request) -> impl IntoResponse {
    match request.uri().path().rsplit('/').next() {
        Some("variable") => match spin_sdk::variables::get("text").await {
            Ok(value) => value,
            Err(error) => format!("{error:?}"),
        },
        _ => "Hello from Spin!".to_owned(),
    }
}
