//! The parts of cryptography that a client of the web needs, all of them *ring*'s. Only these are
//! linked: rustls' own choice would make the program 0.1 MB larger.
#![forbid(unsafe_code)]

use std::sync::Arc;

use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::crypto::ring::{ALL_KX_GROUPS, cipher_suite as suite};
use rustls::crypto::{
    CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use rustls::{SignatureScheme as Scheme, SupportedCipherSuite};
use webpki::ring as algorithm;

pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: SUITES.to_vec(),
        kx_groups: ALL_KX_GROUPS.to_vec(),
        signature_verification_algorithms: SIGNATURES,
        secure_random: &Own,
        key_provider: &Own,
    }
}

/// Every server of TLS 1.3 has AES-GCM (RFC 8446, 9.1), and so does every usual one of TLS 1.2.
/// ChaCha20-Poly1305 would only be another choice.
const SUITES: [SupportedCipherSuite; 6] = [
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// The signatures in certificates, and those of a handshake. A handshake of TLS 1.2 does not fix
/// the curve.
const SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        algorithm::ECDSA_P256_SHA256,
        algorithm::ECDSA_P256_SHA384,
        algorithm::ECDSA_P384_SHA256,
        algorithm::ECDSA_P384_SHA384,
        algorithm::ED25519,
        algorithm::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        algorithm::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        algorithm::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        algorithm::RSA_PKCS1_2048_8192_SHA256,
        algorithm::RSA_PKCS1_2048_8192_SHA384,
        algorithm::RSA_PKCS1_2048_8192_SHA512,
        algorithm::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
        algorithm::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
        algorithm::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    ],
    mapping: &[
        (
            Scheme::ECDSA_NISTP384_SHA384,
            &[algorithm::ECDSA_P384_SHA384, algorithm::ECDSA_P256_SHA384],
        ),
        (
            Scheme::ECDSA_NISTP256_SHA256,
            &[algorithm::ECDSA_P256_SHA256, algorithm::ECDSA_P384_SHA256],
        ),
        (Scheme::ED25519, &[algorithm::ED25519]),
        (Scheme::RSA_PSS_SHA512, &[algorithm::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
        (Scheme::RSA_PSS_SHA384, &[algorithm::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (Scheme::RSA_PSS_SHA256, &[algorithm::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (Scheme::RSA_PKCS1_SHA512, &[algorithm::RSA_PKCS1_2048_8192_SHA512]),
        (Scheme::RSA_PKCS1_SHA384, &[algorithm::RSA_PKCS1_2048_8192_SHA384]),
        (Scheme::RSA_PKCS1_SHA256, &[algorithm::RSA_PKCS1_2048_8192_SHA256]),
    ],
};

#[derive(Debug)]
struct Own;

impl SecureRandom for Own {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        SystemRandom::new().fill(buffer).map_err(|_| GetRandomFailed)
    }
}

/// A client without a certificate has no key, and signs nothing.
impl KeyProvider for Own {
    fn load_private_key(
        &self,
        _key: PrivateKeyDer<'static>,
    ) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General("there is no key".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new version of rustls may know more.
    #[test]
    fn all_but_one_cipher_of_rustls_are_there() {
        let (own, all) = (provider(), rustls::crypto::ring::default_provider());
        let is_left_out = |suite: &&SupportedCipherSuite| {
            !format!("{:?}", suite.suite()).contains("CHACHA20_POLY1305")
        };
        let expected: Vec<_> = all.cipher_suites.iter().filter(is_left_out).collect();
        assert_eq!(own.cipher_suites.iter().collect::<Vec<_>>(), expected);
        let groups = |provider: &CryptoProvider| -> Vec<_> {
            provider.kx_groups.iter().map(|group| group.name()).collect()
        };
        assert_eq!(groups(&own), groups(&all));
        let [own, all] = [own, all].map(|provider| provider.signature_verification_algorithms);
        assert_eq!(own.supported_schemes(), all.supported_schemes());
        assert_eq!(own.all.len(), all.all.len());
        let counts = |it: &WebPkiSupportedAlgorithms| -> Vec<_> {
            it.mapping.iter().map(|(scheme, all)| (*scheme, all.len())).collect()
        };
        assert_eq!(counts(&own), counts(&all));
    }
}
