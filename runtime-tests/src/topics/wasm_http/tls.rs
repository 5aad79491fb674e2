//! A server of TLS in a container's network, and the authority that certifies it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

use super::client::inside;
use crate::harness::{Container, Outcome};

/// Where an image of Debian has the certificates that it trusts.
pub(in crate::topics) const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Certifies servers.
pub(in crate::topics) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

/// The versions that a server speaks.
pub(in crate::topics) type Versions = &'static [&'static SupportedProtocolVersion];

pub(in crate::topics) const ALL: Versions = rustls::ALL_VERSIONS;
pub(in crate::topics) const TLS_1_2: Versions = &[&rustls::version::TLS12];
pub(in crate::topics) const TLS_1_3: Versions = &[&rustls::version::TLS13];

impl Authority {
    pub(in crate::topics) fn new(name: &str) -> Outcome<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Authority { issuer: Issuer::new(params, key), certificate })
    }

    /// The file that makes a container trust this authority.
    pub(in crate::topics) fn file(&self) -> String {
        self.certificate.pem()
    }

    /// A server's key, and the certificate for these names and addresses, until the end of a year.
    pub(in crate::topics) fn server(
        &self,
        names: &[&str],
        last_year: i32,
        versions: Versions,
    ) -> Outcome<Arc<ServerConfig>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let secret = PrivateKeyDer::try_from(key.serialize_der())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)?;
        Ok(Arc::new(config))
    }
}

/// A year that a certificate's test does not see the end of.
pub(in crate::topics) const VALID: i32 = 2999;

/// What a server sends for the first line of a request.
pub(in crate::topics) type Respond = fn(&str) -> String;

/// A complete response with the request's first line.
pub(in crate::topics) fn same(line: &str) -> String {
    let length = line.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{line}")
}

/// Answers each client at this address of a container, and ends the connection as HTTP does:
/// without an end of TLS.
pub(in crate::topics) fn serve_tls(
    container: &Container<'_>,
    address: &'static str,
    config: Arc<ServerConfig>,
    respond: Respond,
) -> Outcome {
    serve_bytes(container, address, move |stream| {
        let Ok(connection) = ServerConnection::new(Arc::clone(&config)) else { return };
        let mut stream = StreamOwned::new(connection, stream);
        let mut buffer = [0; 4096];
        // A client that trusts nobody sends no request.
        if let Ok(length) = stream.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let _ = stream.write_all(respond(text.lines().next().unwrap_or_default()).as_bytes());
            let _ = stream.flush();
        }
    })
}

/// Hands each connection to an address of a container to `answer`.
pub(in crate::topics) fn serve_bytes(
    container: &Container<'_>,
    address: &'static str,
    mut answer: impl FnMut(TcpStream) + Send + 'static,
) -> Outcome {
    let listener = inside(container, move || {
        TcpListener::bind(address.parse::<SocketAddr>().map_err(std::io::Error::other)?)
    })?;
    std::thread::spawn(move || listener.incoming().flatten().for_each(&mut answer));
    Ok(())
}
