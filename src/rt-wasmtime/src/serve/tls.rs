//! TLS for requests to other servers (`docs/wasm-http.md`, "TLS"). Nothing is made before the first
//! such request.
#![forbid(unsafe_code)]

mod provider;

use std::error::Error as _;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rt_engine::files::is_for_guests;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error;

use super::say;

/// The variable in the container's environment that names a file of trusted certificates, as for
/// OpenSSL and Go.
pub(crate) const VARIABLE: &str = "SSL_CERT_FILE";

/// The files of trusted certificates in images: of Debian, Alpine and Arch, of Fedora, of openSUSE,
/// and of Alpine again. The first that exists counts.
const FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The size of the largest such file, in bytes. Debian's has 220 kB.
const LARGEST: u64 = 1 << 20;

/// The sessions that are kept, so that a later connection to the same server begins sooner.
const SESSIONS: usize = 32;

/// What all guests of this process share.
#[derive(Default)]
pub(crate) struct Tls {
    /// The value of [`VARIABLE`].
    file: Option<PathBuf>,
    connector: OnceCell<TlsConnector>,
}

impl Tls {
    /// `file` is the value of [`VARIABLE`] in the container's environment.
    pub(crate) fn new(file: Option<&str>) -> Tls {
        let file = file.filter(|file| !file.is_empty()).map(PathBuf::from);
        Tls { file, connector: OnceCell::new() }
    }

    /// Makes a session with a server that proves to have this name or address.
    pub(super) async fn connect(
        &self,
        host: &str,
        port: u16,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let name = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(name.to_owned());
        let name = name.map_err(|_| Error::HttpRequestUriInvalid)?;
        let connector = self.connector.get_or_try_init(|| self.connector()).await?;
        connector.connect(name, stream).await.map_err(|error| {
            if let Some(why) = reason(&error) {
                say(&format!("TLS with `{host}:{port}`: {why}"));
            }
            failed(&error)
        })
    }

    async fn connector(&self) -> Result<TlsConnector, Error> {
        let file = self.file.clone();
        // A file of the image may be far away, and the certificates are many.
        let made = tokio::task::spawn_blocking(move || config(file.as_deref())).await;
        let made = made.map_err(|_| "it ended".to_owned()).and_then(|made| made);
        match made {
            Ok(config) => Ok(TlsConnector::from(Arc::new(config))),
            Err(why) => {
                say(&format!("TLS: {why}"));
                Err(Error::ConfigurationError)
            }
        }
    }
}

/// TLS 1.2 and 1.3, and no certificate of the client.
fn config(file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider::provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(file)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

/// The certificates that are trusted: those of the container, or those that are built in.
fn roots(file: Option<&Path>) -> Result<RootCertStore, String> {
    let candidates = file.map_or_else(|| FILES.map(Path::new).to_vec(), |file| vec![file]);
    for path in candidates {
        match open(path) {
            Ok(opened) => {
                return read(opened).map_err(|why| format!("`{}`: {why}", path.display()));
            }
            // What the container's environment names must exist.
            Err(error) if file.is_none() && is_missing(&error) => {}
            Err(error) => return Err(format!("open `{}`: {error}", path.display())),
        }
    }
    Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Opens a file by its path in the container, with the rights of the container's user. The image
/// may have put anything there.
fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() && is_for_guests(&file) {
        true => Ok(file),
        false => Err(io::Error::other("it is not an ordinary file")),
    }
}

fn read(file: File) -> Result<RootCertStore, String> {
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("it has more than {LARGEST} bytes"));
    }
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok);
    match roots.add_parsable_certificates(certificates) {
        (0, _) => Err("it has no certificate".into()),
        _ => Ok(roots),
    }
}

/// What TLS has to say about an error.
fn reason(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The error that a guest gets if there is no session. The connection was there.
fn failed(error: &io::Error) -> Error {
    match reason(error) {
        Some(why) => code(why),
        None => Error::ConnectionTerminated,
    }
}

fn code(error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            Error::TlsCertificateError
        }
        rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        _ => Error::TlsProtocolError,
    }
}

/// The error of a request that may have gone through TLS.
pub(super) fn of_request(error: hyper::Error) -> Error {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(why) = inner.downcast_ref().and_then(reason) {
            return code(why);
        }
        source = inner.source();
    }
    Error::from(error)
}

/// A connection with or without TLS.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
