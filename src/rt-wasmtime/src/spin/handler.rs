//! A component of a Spin app, and the interface by which it answers requests.
#![forbid(unsafe_code)]

use std::sync::Arc;

use hyper::Request;
use wasmtime::component::{InstancePre, Linker};
use wasmtime::{Engine, Store};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::Guest;
use super::inbound::{self, InboundPre};
use super::october::{self, OctoberPre};
use crate::engines::Loaded;
use crate::limits::Limits;
use crate::run::SERVICE;
use crate::serve::{self, Handler, Outbound, Outcome, Respond};
use crate::world::{Given, World};

/// Each SDK of Spin has its own.
pub(super) enum Exported {
    Wasi(serve::Exported),
    October(OctoberPre<World>),
    Inbound(InboundPre<World>),
}

/// The interface of WASI 0.2.
const PROXY: &str = "wasi:http/incoming-handler@0.2.";

/// What is wrong with a component that has none of these.
pub(super) const NONE: &str =
    "it does not answer requests: it exports no handler of HTTP that this engine calls";

impl Exported {
    pub(super) fn find(linker: &Linker<World>, module: &Loaded) -> Result<Exported, String> {
        let component = &module.component;
        let ty = component.component_type();
        let names: Vec<&str> = ty.exports(component.engine()).map(|(name, _)| name).collect();
        let is_there = |exact: &str| names.contains(&exact);
        let linked =
            || -> wasmtime::Result<InstancePre<World>> { linker.instantiate_pre(component) };
        let wasi = |is_service| {
            linked().and_then(|linked| serve::Exported::new(linked, is_service)).map(Exported::Wasi)
        };
        let found = if is_there(SERVICE) {
            wasi(true)
        } else if is_there(october::HANDLER) {
            linked().and_then(OctoberPre::new).map(Exported::October)
        } else if names.iter().any(|name| name.starts_with(PROXY) && !name.contains("-rc-")) {
            wasi(false)
        } else if is_there(inbound::HANDLER) {
            linked().and_then(InboundPre::new).map(Exported::Inbound)
        } else {
            module.check_version(SERVICE)?;
            return Err(NONE.into());
        };
        found.map_err(|error| format!("{error:#}"))
    }
}

/// A component that answers requests.
pub(super) struct Component {
    pub(super) exported: Exported,
    pub(super) given: Given,
    pub(super) guest: Arc<Guest>,
    pub(super) outbound: Outbound,
}

impl Handler for Component {
    fn engine(&self) -> &Engine {
        match &self.exported {
            Exported::Wasi(exported) => exported.engine(),
            Exported::October(component) => component.engine(),
            Exported::Inbound(component) => component.engine(),
        }
    }

    fn world(&self, limits: Limits) -> World {
        let mut world = self.given.world(limits, self.outbound.clone());
        world.spin = Some(Arc::clone(&self.guest));
        world
    }

    fn call<'a>(
        &'a self,
        store: &'a mut Store<World>,
        request: Request<WasiBody>,
        respond: Respond,
    ) -> Outcome<'a> {
        Box::pin(async move {
            match &self.exported {
                Exported::Wasi(exported) => exported.call(store, request, respond).await,
                Exported::October(component) => {
                    let mut view = store.data_mut().http();
                    let request = view.new_incoming_request(Scheme::Http, request)?;
                    let respond = view.new_response_outparam(respond)?;
                    october::call(component, store, request, respond).await
                }
                Exported::Inbound(component) => {
                    let response = inbound::call(component, store, request).await?;
                    // Nobody receives it if the client has gone.
                    let _ = respond.send(Ok(response));
                    Ok(())
                }
            }
        })
    }
}
