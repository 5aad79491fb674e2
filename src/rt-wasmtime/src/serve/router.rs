//! Which component answers a request, and how it is called.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::sync::Arc;

use http::request::Parts;
use hyper::Request;
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime::component::InstancePre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::{Outbound, service};
use crate::limits::Limits;
use crate::world::{Given, World};

/// Chooses the handler of a request.
pub(crate) trait Router: Send + Sync {
    /// Returns `None` if nothing is at the path. May change the headers that the guest sees.
    fn route(&self, head: &mut Parts) -> Option<Arc<dyn Handler>>;

    /// The component of this name, to which other components may send requests.
    fn component(&self, _name: &str) -> Option<Arc<dyn Handler>> {
        None
    }

    /// Changes the headers that such a component sees.
    fn describe(&self, _head: &mut Parts) {}
}

/// Where a guest's response goes.
pub(crate) type Respond = oneshot::Sender<Result<hyper::Response<HyperOutgoingBody>, ErrorCode>>;

/// The end of a handler's call. An error is a trap, or something like it.
pub(crate) type Outcome<'a> = Pin<Box<dyn Future<Output = wasmtime::Result<()>> + Send + 'a>>;

/// A component that answers requests.
pub(crate) trait Handler: Send + Sync {
    fn engine(&self) -> &wasmtime::Engine;

    /// The world of a new instance.
    fn world(&self, limits: Limits) -> World;

    /// Makes an instance in a store that has such a world, and lets it answer a request.
    fn call<'a>(
        &'a self,
        store: &'a mut Store<World>,
        request: Request<WasiBody>,
        respond: Respond,
    ) -> Outcome<'a>;
}

/// One component at every path.
pub(crate) struct Every(pub(crate) Arc<dyn Handler>);

impl Router for Every {
    fn route(&self, _head: &mut Parts) -> Option<Arc<dyn Handler>> {
        Some(Arc::clone(&self.0))
    }
}

/// A component that exports a handler of WASI.
pub(crate) enum Exported {
    /// `wasi:http/incoming-handler` of WASI 0.2.
    Proxy(ProxyPre<World>),
    /// `wasi:http/handler` of WASI 0.3.
    Service(ServicePre<World>),
}

impl Exported {
    pub(crate) fn new(
        component: InstancePre<World>,
        is_service: bool,
    ) -> wasmtime::Result<Exported> {
        match is_service {
            true => ServicePre::new(component).map(Exported::Service),
            false => ProxyPre::new(component).map(Exported::Proxy),
        }
    }

    pub(crate) fn engine(&self) -> &wasmtime::Engine {
        match self {
            Exported::Proxy(component) => component.engine(),
            Exported::Service(component) => component.engine(),
        }
    }

    /// Makes an instance, and lets it answer a request.
    pub(crate) async fn call(
        &self,
        store: &mut Store<World>,
        request: Request<WasiBody>,
        respond: Respond,
    ) -> wasmtime::Result<()> {
        match self {
            Exported::Proxy(component) => {
                let mut view = store.data_mut().http();
                let request = view.new_incoming_request(Scheme::Http, request)?;
                let respond = view.new_response_outparam(respond)?;
                let instance = component.instantiate_async(&mut *store).await?;
                instance.wasi_http_incoming_handler().call_handle(store, request, respond).await
            }
            Exported::Service(component) => service::call(component, store, request, respond).await,
        }
    }
}

/// Such a component, outside of an app.
pub(crate) struct Wasi {
    pub(crate) exported: Exported,
    pub(crate) given: Given,
    pub(crate) outbound: Outbound,
}

impl Handler for Wasi {
    fn engine(&self) -> &wasmtime::Engine {
        self.exported.engine()
    }

    fn world(&self, limits: Limits) -> World {
        self.given.world(limits, self.outbound.clone())
    }

    fn call<'a>(
        &'a self,
        store: &'a mut Store<World>,
        request: Request<WasiBody>,
        respond: Respond,
    ) -> Outcome<'a> {
        Box::pin(self.exported.call(store, request, respond))
    }
}
