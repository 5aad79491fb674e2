use spin_sdk::http::{Request, Response};
use spin_sdk::http_component;
#[http_component]
fn handle_request(req: Request) -> Response {
Response::builder()
.status(200)
.header("content-type", "text/plain")
.body("Hello from Spin!")
.build()
}
