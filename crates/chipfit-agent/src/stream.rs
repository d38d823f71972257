//! One connection between trainer and device: TCP, the emulated link, TLS, counted bytes.
//!
//! From the socket up: `Counted` (what really travels, TLS records included), the link's shape, TLS. Plain TCP is refused
//! unless both the caller and the address are for it.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{fmt, io};

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::AgentError;
use crate::name::DeviceName;
use crate::shape::{LinkShape, shaped};
use crate::tls;

/// How long a connection may take to come up, TLS included; beyond that, the peer is not one.
pub(crate) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Bytes that crossed a socket, as far as this end knows: TCP payload with TLS records, without packet headers.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// How the other end is believed; on the trainer's side.
#[derive(Clone)]
pub enum TrainerSecurity {
    /// Mutual TLS 1.3 ([`tls::trainer_config`]).
    Tls(Arc<rustls::ClientConfig>),
    /// Plain TCP, on loopback only.
    InsecureLoopback,
}

/// How the other end is believed; on the device's side.
#[derive(Clone)]
pub enum DeviceSecurity {
    /// Mutual TLS 1.3 ([`tls::device_config`]).
    Tls(Arc<rustls::ServerConfig>),
    /// Plain TCP, on loopback only.
    InsecureLoopback,
}

impl fmt::Debug for TrainerSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls(_) => "Tls",
            Self::InsecureLoopback => "InsecureLoopback",
        })
    }
}

impl fmt::Debug for DeviceSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls(_) => "Tls",
            Self::InsecureLoopback => "InsecureLoopback",
        })
    }
}

/// Anything that bytes go through both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    certificate: Option<CertificateDer<'static>>,
}

impl Peer {
    /// Whether the peer may call itself `name`: its certificate says so, or there is none because the link is plain.
    pub fn may_be(&self, name: &DeviceName) -> bool {
        self.certificate.as_ref().is_none_or(|certificate| tls::names(certificate, name))
    }
}

/// A connection that is up: the peer has shown who it is.
pub struct Connection {
    stream: Box<dyn Duplex>,
    peer: Peer,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connection {
    fn new(stream: Box<dyn Duplex>, certificate: Option<CertificateDer<'static>>) -> Self {
        Self { stream, peer: Peer { certificate } }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The bytes.
    pub fn into_stream(self) -> Box<dyn Duplex> {
        self.stream
    }
}

/// Whether this is the other end's word that the certificates do not fit: trying again would not help.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    use rustls::{AlertDescription as Alert, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(
        inner,
        Some(
            Error::InvalidCertificate(_)
                | Error::NoCertificatesPresented
                | Error::AlertReceived(
                    Alert::UnknownCA
                        | Alert::BadCertificate
                        | Alert::UnsupportedCertificate
                        | Alert::CertificateUnknown
                        | Alert::CertificateExpired
                        | Alert::CertificateRevoked
                        | Alert::CertificateRequired
                        | Alert::AccessDenied
                        | Alert::DecryptError
                )
        )
    )
}

/// Whether plain TCP may be spoken with this address.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Connects to the device at `address` (`HOST:PORT`), through a link of this shape.
///
/// # Errors
/// [`AgentError::Connection`] or [`AgentError::Timeout`], naming the address; [`AgentError::PlainBeyondLoopback`].
pub async fn connect(
    address: &str,
    security: &TrainerSecurity,
    shape: LinkShape,
    counters: Arc<Counters>,
) -> Result<Connection, AgentError> {
    let limit = || AgentError::Timeout { peer: address.to_owned(), what: "connecting", limit: HANDSHAKE_LIMIT };
    timeout(HANDSHAKE_LIMIT, connect_now(address, security, shape, counters)).await.map_err(|_| limit())?
}

async fn connect_now(
    address: &str,
    security: &TrainerSecurity,
    shape: LinkShape,
    counters: Arc<Counters>,
) -> Result<Connection, AgentError> {
    let refused = || AgentError::connection(address);
    let tcp = dial(address, matches!(security, TrainerSecurity::InsecureLoopback)).await?;
    tcp.set_nodelay(true).map_err(refused())?;
    let counted = Counted { inner: tcp, counters };
    let link: Box<dyn Duplex> = if shape.is_open() { Box::new(counted) } else { Box::new(shaped(counted, shape)) };
    match security {
        TrainerSecurity::InsecureLoopback => Ok(Connection::new(link, None)),
        TrainerSecurity::Tls(config) => {
            let connector = TlsConnector::from(Arc::clone(config));
            let stream = connector.connect(tls::placeholder(), link).await.map_err(refused())?;
            let certificate = peer_certificate(stream.get_ref().1.peer_certificates()).map_err(refused())?;
            Ok(Connection::new(Box::new(stream), Some(certificate)))
        }
    }
}

/// The first address of `HOST:PORT` that answers; on a plain link all of them must be loopback.
async fn dial(address: &str, is_plain: bool) -> Result<TcpStream, AgentError> {
    let found: Vec<SocketAddr> = lookup_host(address).await.map_err(AgentError::connection(address))?.collect();
    if is_plain && found.iter().any(|found| !is_loopback(found.ip())) {
        return Err(AgentError::PlainBeyondLoopback { address: address.to_owned() });
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for found in found {
        match TcpStream::connect(found).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(AgentError::Connection { peer: address.to_owned(), source: last })
}

/// Brings up a connection that a trainer has opened.
///
/// # Errors
/// As [`connect`].
pub async fn accept(tcp: TcpStream, peer: SocketAddr, security: &DeviceSecurity) -> Result<Connection, AgentError> {
    let name = peer.to_string();
    let refused = || AgentError::connection(&name);
    tcp.set_nodelay(true).map_err(refused())?;
    match security {
        DeviceSecurity::InsecureLoopback => {
            if !is_loopback(peer.ip()) {
                return Err(AgentError::PlainBeyondLoopback { address: name });
            }
            Ok(Connection::new(Box::new(tcp), None))
        }
        DeviceSecurity::Tls(config) => {
            let accepting = TlsAcceptor::from(Arc::clone(config)).accept(tcp);
            let limit =
                || AgentError::Timeout { peer: name.clone(), what: "the TLS handshake", limit: HANDSHAKE_LIMIT };
            let stream = timeout(HANDSHAKE_LIMIT, accepting).await.map_err(|_| limit())?.map_err(refused())?;
            let certificate = peer_certificate(stream.get_ref().1.peer_certificates()).map_err(refused())?;
            Ok(Connection::new(Box::new(stream), Some(certificate)))
        }
    }
}

fn peer_certificate(chain: Option<&[CertificateDer<'static>]>) -> io::Result<CertificateDer<'static>> {
    let first = chain.and_then(<[_]>::first).cloned();
    first.ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, "the other end showed no certificate"))
}

/// A stream whose bytes are counted.
struct Counted<S> {
    inner: S,
    counters: Arc<Counters>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let read = buffer.filled().len().saturating_sub(before);
        self.counters.received.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.counters.sent.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
