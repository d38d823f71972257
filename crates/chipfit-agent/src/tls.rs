//! Mutual TLS 1.3: who is believed, on either side.
//!
//! - A device takes a peer whose certificate the authority has signed for asking (`clientAuth`): the trainer.
//! - A trainer takes a peer whose certificate the authority has signed for serving (`serverAuth`): a device. It connects
//!   by address, so the name is not taken from the address: it is the one the user insists on, or any, and then the
//!   name that the device claims later must be the certificate's (`names`).
//!
//! The provider is ring, named here and nowhere else; no session is resumed, so every connection is verified anew.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme};

use crate::error::AgentError;
use crate::identity::Identity;
use crate::name::DeviceName;

/// The protocol's name within TLS: another protocol's client is refused before anything is read.
const PROTOCOL: &[u8] = b"chipfit/1";

/// What a device needs to accept trainers.
///
/// # Errors
/// [`AgentError::Certificate`] where key and certificate do not belong together.
pub fn device_config(identity: &Identity) -> Result<Arc<ServerConfig>, AgentError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots(), Arc::clone(&provider))
        .build()
        .map_err(identity.bad())?;
    let (chain, key) = identity.credentials();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(identity.bad())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(identity.bad())?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a trainer needs to connect to a device; with `expected`, to that one only.
///
/// # Errors
/// [`AgentError::Certificate`] where key and certificate do not belong together.
pub fn trainer_config(identity: &Identity, expected: Option<&DeviceName>) -> Result<Arc<ClientConfig>, AgentError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = DeviceVerifier {
        roots: identity.roots(),
        expected: expected.map(server_name),
        algorithms: provider.signature_verification_algorithms,
    };
    let (chain, key) = identity.credentials();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(identity.bad())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)
        .map_err(identity.bad())?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    // The address says nothing, and the name is nobody else's business.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Random bytes of the same provider.
///
/// # Errors
/// [`AgentError::Making`] when the system has none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], AgentError> {
    let mut bytes = [0; N];
    let filled = ring::default_provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| AgentError::Making { what: "the system gives no random numbers".to_owned() })?;
    Ok(bytes)
}

/// The name as TLS spells it.
pub(crate) fn server_name(name: &DeviceName) -> ServerName<'static> {
    // A DeviceName is a DNS name by construction; were it not, no certificate would match the placeholder.
    ServerName::try_from(name.as_str().to_owned()).unwrap_or_else(|_| placeholder())
}

/// The name given to TLS where none is expected; it is neither sent nor compared.
pub(crate) fn placeholder() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// Whether `certificate`, which TLS has verified, is for the device `name`.
pub(crate) fn names(certificate: &CertificateDer<'_>, name: &DeviceName) -> bool {
    ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, &server_name(name)).is_ok())
}

/// Believes certificates of one authority with the role of a device, and the expected name where there is one.
#[derive(Debug)]
struct DeviceVerifier {
    roots: Arc<RootCertStore>,
    expected: Option<ServerName<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for DeviceVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, self.algorithms.all)?;
        if let Some(name) = &self.expected {
            verify_server_name(&certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
