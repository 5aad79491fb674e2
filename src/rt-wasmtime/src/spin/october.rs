//! The preview of WASI 0.2 of October 2023, for which SDK 2 of Spin makes handlers. Its resources
//! are those of WASI 0.2, so each function here calls one of that version.
#![forbid(unsafe_code)]

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime::{Result, Store, bail};
use wasmtime_wasi::p2::bindings::io::poll::{Host as _, HostPollable as Pollables};
use wasmtime_wasi::p2::bindings::io::streams::{
    HostInputStream as InputStreams, HostOutputStream as OutputStreams,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, StreamError};
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler::Host as OutgoingHandler;
use wasmtime_wasi_http::p2::bindings::http::types as new;
use wasmtime_wasi_http::p2::body::{HostFutureTrailers, HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::{
    HostFutureIncomingResponse, HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest,
    HostOutgoingResponse, HostResponseOutparam,
};
use wasmtime_wasi_http::{FieldMap, WasiHttpCtxView, WasiHttpView};

use crate::world::World;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "rt:spin/october",
        imports: {
            "wasi:io/poll.poll-list": async | trappable,
            "wasi:io/poll.poll-one": async | trappable,
            "wasi:io/streams.[drop]input-stream": async | trappable,
            "wasi:io/streams.[drop]output-stream": async | trappable,
            "wasi:io/streams.[method]input-stream.blocking-read": async | trappable,
            "wasi:io/streams.[method]input-stream.blocking-skip": async | trappable,
            "wasi:io/streams.[method]output-stream.blocking-flush": async | trappable,
            "wasi:io/streams.[method]output-stream.blocking-splice": async | trappable,
            "wasi:io/streams.[method]output-stream.blocking-write-and-flush": async | trappable,
            "wasi:io/streams.[method]output-stream.blocking-write-zeroes-and-flush": async | trappable,
            "wasi:io/streams.[method]output-stream.forward": async | trappable,
            "wasi:io/streams.[method]output-stream.splice": async | trappable,
            default: trappable,
        },
        exports: { default: async },
        require_store_data_send: true,
        with: {
            "wasi:io/poll.pollable": wasmtime_wasi::p2::DynPollable,
            "wasi:io/streams.input-stream": wasmtime_wasi::p2::DynInputStream,
            "wasi:io/streams.output-stream": wasmtime_wasi::p2::DynOutputStream,
            "wasi:io/streams.error": wasmtime::Error,
            "wasi:http/types.fields": wasmtime_wasi_http::FieldMap,
            "wasi:http/types.incoming-request": wasmtime_wasi_http::p2::types::HostIncomingRequest,
            "wasi:http/types.outgoing-request": wasmtime_wasi_http::p2::types::HostOutgoingRequest,
            "wasi:http/types.response-outparam": wasmtime_wasi_http::p2::types::HostResponseOutparam,
            "wasi:http/types.incoming-response": wasmtime_wasi_http::p2::types::HostIncomingResponse,
            "wasi:http/types.incoming-body": wasmtime_wasi_http::p2::body::HostIncomingBody,
            "wasi:http/types.future-trailers": wasmtime_wasi_http::p2::body::HostFutureTrailers,
            "wasi:http/types.outgoing-response": wasmtime_wasi_http::p2::types::HostOutgoingResponse,
            "wasi:http/types.outgoing-body": wasmtime_wasi_http::p2::body::HostOutgoingBody,
            "wasi:http/types.future-incoming-response": wasmtime_wasi_http::p2::types::HostFutureIncomingResponse,
        },
    });
}

pub(crate) use generated::OctoberPre;
use generated::wasi::http::{outgoing_handler, types};
use generated::wasi::io::{poll, streams};

/// The interface that a handler of this version exports.
pub(crate) const HANDLER: &str = "wasi:http/incoming-handler@0.2.0-rc-2023-10-18";

/// The functions that such a handler may import.
pub(crate) fn add_to_linker(linker: &mut Linker<World>) -> Result<()> {
    struct Has;
    impl HasData for Has {
        type Data<'a> = WasiHttpCtxView<'a>;
    }
    poll::add_to_linker::<World, Has>(linker, World::http)?;
    streams::add_to_linker::<World, Has>(linker, World::http)?;
    types::add_to_linker::<World, Has>(linker, World::http)?;
    outgoing_handler::add_to_linker::<World, Has>(linker, World::http)
}

/// Makes an instance, and lets it answer a request.
pub(crate) async fn call(
    component: &OctoberPre<World>,
    store: &mut Store<World>,
    request: Resource<HostIncomingRequest>,
    respond: Resource<HostResponseOutparam>,
) -> Result<()> {
    let instance = component.instantiate_async(&mut *store).await?;
    instance.wasi_http_incoming_handler().call_handle(store, request, respond).await
}

impl poll::Host for WasiHttpCtxView<'_> {
    async fn poll_list(&mut self, pollables: Vec<Resource<DynPollable>>) -> Result<Vec<u32>> {
        self.table.poll(pollables).await
    }

    async fn poll_one(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        Pollables::block(self.table, pollable).await
    }
}

impl poll::HostPollable for WasiHttpCtxView<'_> {
    fn drop(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        Pollables::drop(self.table, pollable)
    }
}

impl streams::Host for WasiHttpCtxView<'_> {}

impl streams::HostError for WasiHttpCtxView<'_> {
    fn to_debug_string(&mut self, error: Resource<wasmtime::Error>) -> Result<String> {
        Ok(format!("{:?}", self.table.get(&error)?))
    }

    fn drop(&mut self, error: Resource<wasmtime::Error>) -> Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

type Streamed<T> = Result<std::result::Result<T, streams::StreamError>>;

/// Passes an error of a stream on to the guest, unless it is a trap.
fn streamed<T>(
    table: &mut ResourceTable,
    result: std::result::Result<T, StreamError>,
) -> Streamed<T> {
    Ok(match result {
        Ok(value) => Ok(value),
        Err(StreamError::Closed) => Err(streams::StreamError::Closed),
        Err(StreamError::LastOperationFailed(error)) => {
            Err(streams::StreamError::LastOperationFailed(table.push(error)?))
        }
        Err(StreamError::Trap(error)) => return Err(error),
    })
}

impl streams::HostInputStream for WasiHttpCtxView<'_> {
    fn read(&mut self, stream: Resource<DynInputStream>, len: u64) -> Streamed<Vec<u8>> {
        let read = InputStreams::read(self.table, stream, len);
        streamed(self.table, read)
    }

    async fn blocking_read(
        &mut self,
        stream: Resource<DynInputStream>,
        len: u64,
    ) -> Streamed<Vec<u8>> {
        let read = InputStreams::blocking_read(self.table, stream, len).await;
        streamed(self.table, read)
    }

    fn skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> Streamed<u64> {
        let skipped = InputStreams::skip(self.table, stream, len);
        streamed(self.table, skipped)
    }

    async fn blocking_skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> Streamed<u64> {
        let skipped = InputStreams::blocking_skip(self.table, stream, len).await;
        streamed(self.table, skipped)
    }

    fn subscribe(&mut self, stream: Resource<DynInputStream>) -> Result<Resource<DynPollable>> {
        InputStreams::subscribe(self.table, stream)
    }

    async fn drop(&mut self, stream: Resource<DynInputStream>) -> Result<()> {
        InputStreams::drop(self.table, stream).await
    }
}

/// The most bytes that a guest moves from one stream to another in one call.
const PIECE: u64 = 64 << 10;

impl streams::HostOutputStream for WasiHttpCtxView<'_> {
    fn check_write(&mut self, stream: Resource<DynOutputStream>) -> Streamed<u64> {
        let checked = OutputStreams::check_write(self.table, stream);
        streamed(self.table, checked)
    }

    fn write(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> Streamed<()> {
        let written = OutputStreams::write(self.table, stream, bytes);
        streamed(self.table, written)
    }

    async fn blocking_write_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        bytes: Vec<u8>,
    ) -> Streamed<()> {
        let written = OutputStreams::blocking_write_and_flush(self.table, stream, bytes).await;
        streamed(self.table, written)
    }

    fn flush(&mut self, stream: Resource<DynOutputStream>) -> Streamed<()> {
        let flushed = OutputStreams::flush(self.table, stream);
        streamed(self.table, flushed)
    }

    async fn blocking_flush(&mut self, stream: Resource<DynOutputStream>) -> Streamed<()> {
        let flushed = OutputStreams::blocking_flush(self.table, stream).await;
        streamed(self.table, flushed)
    }

    fn subscribe(&mut self, stream: Resource<DynOutputStream>) -> Result<Resource<DynPollable>> {
        OutputStreams::subscribe(self.table, stream)
    }

    fn write_zeroes(&mut self, stream: Resource<DynOutputStream>, len: u64) -> Streamed<()> {
        let written = OutputStreams::write_zeroes(self.table, stream, len);
        streamed(self.table, written)
    }

    async fn blocking_write_zeroes_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        len: u64,
    ) -> Streamed<()> {
        let written = OutputStreams::blocking_write_zeroes_and_flush(self.table, stream, len).await;
        streamed(self.table, written)
    }

    async fn splice(
        &mut self,
        stream: Resource<DynOutputStream>,
        source: Resource<DynInputStream>,
        len: u64,
    ) -> Streamed<u64> {
        let borrowed = Resource::new_borrow(source.rep());
        let moved = OutputStreams::splice(self.table, stream, borrowed, len);
        InputStreams::drop(self.table, source).await?;
        streamed(self.table, moved)
    }

    async fn blocking_splice(
        &mut self,
        stream: Resource<DynOutputStream>,
        source: Resource<DynInputStream>,
        len: u64,
    ) -> Streamed<u64> {
        let borrowed = Resource::new_borrow(source.rep());
        let moved = OutputStreams::blocking_splice(self.table, stream, borrowed, len).await;
        InputStreams::drop(self.table, source).await?;
        streamed(self.table, moved)
    }

    async fn forward(
        &mut self,
        stream: Resource<DynOutputStream>,
        source: Resource<DynInputStream>,
    ) -> Streamed<u64> {
        let mut all = 0;
        let end = loop {
            let to = Resource::new_borrow(stream.rep());
            let from = Resource::new_borrow(source.rep());
            match OutputStreams::blocking_splice(self.table, to, from, PIECE).await {
                Ok(moved) => all += moved,
                // The source has ended.
                Err(StreamError::Closed) => break Ok(all),
                Err(error) => break Err(error),
            }
        };
        InputStreams::drop(self.table, source).await?;
        streamed(self.table, end)
    }

    async fn drop(&mut self, stream: Resource<DynOutputStream>) -> Result<()> {
        OutputStreams::drop(self.table, stream).await
    }
}

fn old_error(error: &new::ErrorCode) -> types::Error {
    use new::ErrorCode as Code;
    let text = format!("{error:?}");
    match error {
        Code::HttpRequestUriInvalid | Code::HttpRequestUriTooLong => types::Error::InvalidUrl(text),
        Code::DnsTimeout
        | Code::ConnectionTimeout
        | Code::ConnectionReadTimeout
        | Code::ConnectionWriteTimeout
        | Code::HttpResponseTimeout => types::Error::TimeoutError(text),
        Code::HttpProtocolError => types::Error::ProtocolError(text),
        _ => types::Error::UnexpectedError(text),
    }
}

fn new_error(error: types::Error) -> new::ErrorCode {
    let (types::Error::InvalidUrl(text)
    | types::Error::TimeoutError(text)
    | types::Error::ProtocolError(text)
    | types::Error::UnexpectedError(text)) = error;
    new::ErrorCode::InternalError(Some(text))
}

impl From<new::Method> for types::Method {
    fn from(method: new::Method) -> types::Method {
        match method {
            new::Method::Get => types::Method::Get,
            new::Method::Head => types::Method::Head,
            new::Method::Post => types::Method::Post,
            new::Method::Put => types::Method::Put,
            new::Method::Delete => types::Method::Delete,
            new::Method::Connect => types::Method::Connect,
            new::Method::Options => types::Method::Options,
            new::Method::Trace => types::Method::Trace,
            new::Method::Patch => types::Method::Patch,
            new::Method::Other(name) => types::Method::Other(name),
        }
    }
}

impl From<types::Method> for new::Method {
    fn from(method: types::Method) -> new::Method {
        match method {
            types::Method::Get => new::Method::Get,
            types::Method::Head => new::Method::Head,
            types::Method::Post => new::Method::Post,
            types::Method::Put => new::Method::Put,
            types::Method::Delete => new::Method::Delete,
            types::Method::Connect => new::Method::Connect,
            types::Method::Options => new::Method::Options,
            types::Method::Trace => new::Method::Trace,
            types::Method::Patch => new::Method::Patch,
            types::Method::Other(name) => new::Method::Other(name),
        }
    }
}

impl types::Host for WasiHttpCtxView<'_> {}

/// Turns an error about a header into a trap: this version has no errors for that.
fn good<T>(result: std::result::Result<T, wasmtime_wasi_http::p2::HeaderError>) -> Result<T> {
    result.map_err(|error| wasmtime::format_err!("a header: {error}"))
}

impl types::HostFields for WasiHttpCtxView<'_> {
    fn new(&mut self, entries: Vec<(String, Vec<u8>)>) -> Result<Resource<FieldMap>> {
        good(new::HostFields::from_list(self, entries))
    }

    fn get(&mut self, fields: Resource<FieldMap>, name: String) -> Result<Vec<Vec<u8>>> {
        new::HostFields::get(self, fields, name)
    }

    fn set(
        &mut self,
        fields: Resource<FieldMap>,
        name: String,
        values: Vec<Vec<u8>>,
    ) -> Result<()> {
        good(new::HostFields::set(self, fields, name, values))
    }

    fn delete(&mut self, fields: Resource<FieldMap>, name: String) -> Result<()> {
        good(new::HostFields::delete(self, fields, name))
    }

    fn append(&mut self, fields: Resource<FieldMap>, name: String, value: Vec<u8>) -> Result<()> {
        good(new::HostFields::append(self, fields, name, value))
    }

    fn entries(&mut self, fields: Resource<FieldMap>) -> Result<Vec<(String, Vec<u8>)>> {
        new::HostFields::entries(self, fields)
    }

    fn clone(&mut self, fields: Resource<FieldMap>) -> Result<Resource<FieldMap>> {
        new::HostFields::clone(self, fields)
    }

    fn drop(&mut self, fields: Resource<FieldMap>) -> Result<()> {
        new::HostFields::drop(self, fields)
    }
}

impl types::HostIncomingRequest for WasiHttpCtxView<'_> {
    fn method(&mut self, request: Resource<HostIncomingRequest>) -> Result<types::Method> {
        new::HostIncomingRequest::method(self, request).map(types::Method::from)
    }

    fn path_with_query(
        &mut self,
        request: Resource<HostIncomingRequest>,
    ) -> Result<Option<String>> {
        new::HostIncomingRequest::path_with_query(self, request)
    }

    fn scheme(&mut self, request: Resource<HostIncomingRequest>) -> Result<Option<types::Scheme>> {
        let scheme = new::HostIncomingRequest::scheme(self, request)?;
        Ok(scheme.map(|scheme| match scheme {
            new::Scheme::Http => types::Scheme::Http,
            new::Scheme::Https => types::Scheme::Https,
            new::Scheme::Other(name) => types::Scheme::Other(name),
        }))
    }

    fn authority(&mut self, request: Resource<HostIncomingRequest>) -> Result<Option<String>> {
        new::HostIncomingRequest::authority(self, request)
    }

    fn headers(&mut self, request: Resource<HostIncomingRequest>) -> Result<Resource<FieldMap>> {
        new::HostIncomingRequest::headers(self, request)
    }

    fn consume(
        &mut self,
        request: Resource<HostIncomingRequest>,
    ) -> Result<std::result::Result<Resource<HostIncomingBody>, ()>> {
        new::HostIncomingRequest::consume(self, request)
    }

    fn drop(&mut self, request: Resource<HostIncomingRequest>) -> Result<()> {
        new::HostIncomingRequest::drop(self, request)
    }
}

impl types::HostOutgoingRequest for WasiHttpCtxView<'_> {
    fn new(
        &mut self,
        method: types::Method,
        path: Option<String>,
        scheme: Option<types::Scheme>,
        authority: Option<String>,
        headers: Resource<FieldMap>,
    ) -> Result<Resource<HostOutgoingRequest>> {
        // The newer function takes the headers over, and this one borrows them.
        let headers = new::HostFields::clone(self, headers)?;
        let request = new::HostOutgoingRequest::new(self, headers)?;
        let scheme = scheme.map(|scheme| match scheme {
            types::Scheme::Http => new::Scheme::Http,
            types::Scheme::Https => new::Scheme::Https,
            types::Scheme::Other(name) => new::Scheme::Other(name),
        });
        // A path alone means the app itself. The newer function requires a host or a port.
        let authority = authority.or_else(|| Some(":80".into()));
        let own = || Resource::new_borrow(request.rep());
        let set = [
            new::HostOutgoingRequest::set_method(self, own(), method.into())?,
            new::HostOutgoingRequest::set_path_with_query(self, own(), path)?,
            new::HostOutgoingRequest::set_scheme(self, own(), scheme)?,
            new::HostOutgoingRequest::set_authority(self, own(), authority)?,
        ];
        if set.iter().any(std::result::Result::is_err) {
            bail!("an outgoing request has a malformed method, path, scheme or authority");
        }
        Ok(request)
    }

    fn write(
        &mut self,
        request: Resource<HostOutgoingRequest>,
    ) -> Result<std::result::Result<Resource<HostOutgoingBody>, ()>> {
        new::HostOutgoingRequest::body(self, request)
    }

    fn drop(&mut self, request: Resource<HostOutgoingRequest>) -> Result<()> {
        new::HostOutgoingRequest::drop(self, request)
    }
}

impl types::HostResponseOutparam for WasiHttpCtxView<'_> {
    fn set(
        &mut self,
        outparam: Resource<HostResponseOutparam>,
        response: std::result::Result<Resource<HostOutgoingResponse>, types::Error>,
    ) -> Result<()> {
        new::HostResponseOutparam::set(self, outparam, response.map_err(new_error))
    }

    fn drop(&mut self, outparam: Resource<HostResponseOutparam>) -> Result<()> {
        new::HostResponseOutparam::drop(self, outparam)
    }
}

impl types::HostIncomingResponse for WasiHttpCtxView<'_> {
    fn status(&mut self, response: Resource<HostIncomingResponse>) -> Result<u16> {
        new::HostIncomingResponse::status(self, response)
    }

    fn headers(&mut self, response: Resource<HostIncomingResponse>) -> Result<Resource<FieldMap>> {
        new::HostIncomingResponse::headers(self, response)
    }

    fn consume(
        &mut self,
        response: Resource<HostIncomingResponse>,
    ) -> Result<std::result::Result<Resource<HostIncomingBody>, ()>> {
        new::HostIncomingResponse::consume(self, response)
    }

    fn drop(&mut self, response: Resource<HostIncomingResponse>) -> Result<()> {
        new::HostIncomingResponse::drop(self, response)
    }
}

impl types::HostIncomingBody for WasiHttpCtxView<'_> {
    fn stream(
        &mut self,
        body: Resource<HostIncomingBody>,
    ) -> Result<std::result::Result<Resource<DynInputStream>, ()>> {
        new::HostIncomingBody::stream(self, body)
    }

    fn finish(&mut self, body: Resource<HostIncomingBody>) -> Result<Resource<HostFutureTrailers>> {
        new::HostIncomingBody::finish(self, body)
    }

    fn drop(&mut self, body: Resource<HostIncomingBody>) -> Result<()> {
        new::HostIncomingBody::drop(self, body)
    }
}

impl types::HostFutureTrailers for WasiHttpCtxView<'_> {
    fn subscribe(
        &mut self,
        trailers: Resource<HostFutureTrailers>,
    ) -> Result<Resource<DynPollable>> {
        new::HostFutureTrailers::subscribe(self, trailers)
    }

    fn get(
        &mut self,
        trailers: Resource<HostFutureTrailers>,
    ) -> Result<Option<std::result::Result<Resource<FieldMap>, types::Error>>> {
        Ok(match new::HostFutureTrailers::get(self, trailers)? {
            None => None,
            Some(Ok(Ok(Some(trailers)))) => Some(Ok(trailers)),
            Some(Ok(Ok(None))) => Some(Ok(new::HostFields::new(self)?)),
            Some(Ok(Err(error))) => Some(Err(old_error(&error))),
            Some(Err(())) => bail!("trailers were taken before"),
        })
    }

    fn drop(&mut self, trailers: Resource<HostFutureTrailers>) -> Result<()> {
        new::HostFutureTrailers::drop(self, trailers)
    }
}

impl types::HostOutgoingResponse for WasiHttpCtxView<'_> {
    fn new(
        &mut self,
        status: u16,
        headers: Resource<FieldMap>,
    ) -> Result<Resource<HostOutgoingResponse>> {
        // As for an outgoing request.
        let headers = new::HostFields::clone(self, headers)?;
        let response = new::HostOutgoingResponse::new(self, headers)?;
        let own = Resource::new_borrow(response.rep());
        if new::HostOutgoingResponse::set_status_code(self, own, status)?.is_err() {
            bail!("{status} is not the status of a response");
        }
        Ok(response)
    }

    fn write(
        &mut self,
        response: Resource<HostOutgoingResponse>,
    ) -> Result<std::result::Result<Resource<HostOutgoingBody>, ()>> {
        new::HostOutgoingResponse::body(self, response)
    }

    fn drop(&mut self, response: Resource<HostOutgoingResponse>) -> Result<()> {
        new::HostOutgoingResponse::drop(self, response)
    }
}

impl types::HostOutgoingBody for WasiHttpCtxView<'_> {
    fn write(
        &mut self,
        body: Resource<HostOutgoingBody>,
    ) -> Result<std::result::Result<Resource<DynOutputStream>, ()>> {
        new::HostOutgoingBody::write(self, body)
    }

    fn finish(
        &mut self,
        body: Resource<HostOutgoingBody>,
        trailers: Option<Resource<FieldMap>>,
    ) -> Result<()> {
        let finished = new::HostOutgoingBody::finish(self, body, trailers);
        finished.map_err(|error| wasmtime::format_err!("finish a body: {error}"))
    }

    fn drop(&mut self, body: Resource<HostOutgoingBody>) -> Result<()> {
        new::HostOutgoingBody::drop(self, body)
    }
}

impl types::HostFutureIncomingResponse for WasiHttpCtxView<'_> {
    fn get(
        &mut self,
        response: Resource<HostFutureIncomingResponse>,
    ) -> Result<
        Option<
            std::result::Result<
                std::result::Result<Resource<HostIncomingResponse>, types::Error>,
                (),
            >,
        >,
    > {
        let response = new::HostFutureIncomingResponse::get(self, response)?;
        let old = |answer: std::result::Result<_, new::ErrorCode>| {
            answer.map_err(|error| old_error(&error))
        };
        Ok(response.map(|taken| taken.map(old)))
    }

    fn subscribe(
        &mut self,
        response: Resource<HostFutureIncomingResponse>,
    ) -> Result<Resource<DynPollable>> {
        new::HostFutureIncomingResponse::subscribe(self, response)
    }

    fn drop(&mut self, response: Resource<HostFutureIncomingResponse>) -> Result<()> {
        new::HostFutureIncomingResponse::drop(self, response)
    }
}

impl outgoing_handler::Host for WasiHttpCtxView<'_> {
    fn handle(
        &mut self,
        request: Resource<HostOutgoingRequest>,
        options: Option<types::RequestOptions>,
    ) -> Result<std::result::Result<Resource<HostFutureIncomingResponse>, types::Error>> {
        let nanoseconds = |milliseconds: Option<u32>| {
            milliseconds.map(|milliseconds| u64::from(milliseconds) * 1_000_000)
        };
        let options = match options {
            None => None,
            Some(options) => {
                let made = new::HostRequestOptions::new(self)?;
                let own = || Resource::new_borrow(made.rep());
                let set = [
                    new::HostRequestOptions::set_connect_timeout(
                        self,
                        own(),
                        nanoseconds(options.connect_timeout_ms),
                    )?,
                    new::HostRequestOptions::set_first_byte_timeout(
                        self,
                        own(),
                        nanoseconds(options.first_byte_timeout_ms),
                    )?,
                    new::HostRequestOptions::set_between_bytes_timeout(
                        self,
                        own(),
                        nanoseconds(options.between_bytes_timeout_ms),
                    )?,
                ];
                if set.iter().any(std::result::Result::is_err) {
                    bail!("a timeout of a request cannot be set");
                }
                Some(made)
            }
        };
        let own = options.as_ref().map(|options| Resource::new_own(options.rep()));
        let sent = OutgoingHandler::handle(self, request, own);
        if let Some(options) = options {
            new::HostRequestOptions::drop(self, options)?;
        }
        match sent {
            Ok(response) => Ok(Ok(response)),
            Err(error) => Ok(Err(old_error(&error.downcast()?))),
        }
    }
}
