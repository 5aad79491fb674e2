//! Handlers of WASI 0.3.
#![forbid(unsafe_code)]

use std::future::poll_fn;

use http::header;
use http::uri::Scheme;
use hyper::Request;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{FieldMap, WasiBody, WasiHttpView, p3};

use super::instances::brief;
use super::router::Respond;
use crate::world::World;

/// The request as the guest sees it: with the authority of its line or of `Host`.
fn incoming(request: Request<WasiBody>, store: &mut Store<World>) -> p3::Request {
    let (head, body) = request.into_parts();
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    let uri = head.uri.into_parts();
    let headers = FieldMap::new_immutable(store.data_mut().http().hooks, head.headers);
    let (request, _received) = p3::Request::new(
        head.method,
        Some(Scheme::HTTP),
        uri.authority.or(host),
        uri.path_and_query,
        headers,
        None,
        body,
    );
    request
}

/// Makes an instance, and lets it answer a request. Ends when the guest has no task left, which may
/// be after its response.
pub(super) async fn call(
    component: &ServicePre<World>,
    store: &mut Store<World>,
    request: Request<WasiBody>,
    respond: Respond,
) -> wasmtime::Result<()> {
    let instance = component.instantiate_async(&mut *store).await?;
    let request = incoming(request, store);
    let work = store.run_concurrent(async |accessor| {
        let response = match instance.handle(accessor, request).await? {
            Ok(response) => {
                let sent = async { Ok(()) };
                Ok(accessor.with(|access| response.into_http(access, sent))?)
            }
            Err(code) => Err(ErrorCode::InternalError(Some(brief(format_args!("{code:?}"))))),
        };
        // Nobody receives it if the client has gone.
        let _ = respond.send(response);
        poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
        Ok(())
    });
    work.await?
}
