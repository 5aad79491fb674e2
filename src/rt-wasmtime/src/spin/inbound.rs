//! `fermyon:spin/inbound-http`, which SDK 1 of Spin exports: the whole request is one argument, and
//! the whole response is the result.
#![forbid(unsafe_code)]

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use wasmtime::{Result, Store};
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::world::World;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "rt:spin/inbound",
        exports: { default: async },
        require_store_data_send: true,
    });
}

pub(crate) use generated::InboundPre;
use generated::fermyon::spin::http_types as types;

/// The interface that a handler of this version exports.
pub(crate) const HANDLER: &str = "fermyon:spin/inbound-http";

/// Makes an instance, and lets it answer a request.
pub(crate) async fn call(
    component: &InboundPre<World>,
    store: &mut Store<World>,
    request: Request<WasiBody>,
) -> Result<Response<HyperOutgoingBody>> {
    let (head, body) = request.into_parts();
    let method = match head.method.as_str() {
        "GET" => types::Method::Get,
        "POST" => types::Method::Post,
        "PUT" => types::Method::Put,
        "DELETE" => types::Method::Delete,
        "PATCH" => types::Method::Patch,
        "HEAD" => types::Method::Head,
        "OPTIONS" => types::Method::Options,
        other => wasmtime::bail!("the SDK of this component does not know the method `{other}`"),
    };
    // The server has limited the size of the body.
    let body = body.collect().await.map_err(|error| wasmtime::format_err!("{error:?}"))?;
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
    let request = types::Request {
        method,
        uri: head.uri.path_and_query().map_or("/", |it| it.as_str()).to_owned(),
        headers: headers.collect(),
        params: Vec::new(),
        body: Some(body.to_bytes().to_vec()).filter(|body| !body.is_empty()),
    };
    let instance = component.instantiate_async(&mut *store).await?;
    let answer = instance.fermyon_spin_inbound_http().call_handle_request(store, &request).await?;
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers.into_iter().flatten() {
        response = response.header(name, value);
    }
    let body = Full::new(Bytes::from(answer.body.unwrap_or_default()));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    response.body(body).map_err(|error| wasmtime::format_err!("its response: {error}"))
}
