//! One end's credentials, read from a bundle's folder: authority, own certificate, own key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::AgentError;
use crate::files;
use crate::name::DeviceName;
use crate::tls;

/// The authority's certificate within a bundle.
pub const CA_FILE: &str = "ca.pem";
/// The own certificate within a bundle.
pub const CERTIFICATE_FILE: &str = "certificate.pem";
/// The own key within a bundle.
pub const KEY_FILE: &str = "key.pem";
const MOST_PEM_BYTES: u64 = 1 << 20;

/// What one end shows and whom it believes.
pub struct Identity {
    folder: PathBuf,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Identity {
    /// Names the folder; the key never shows.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads `ca.pem`, `certificate.pem` and `key.pem` of a folder that `chipfit pki` made.
    ///
    /// # Errors
    /// [`AgentError::File`] or [`AgentError::Certificate`], which name the file.
    pub fn open(folder: &Path) -> Result<Self, AgentError> {
        let read = |name: &str| -> Result<(PathBuf, Vec<u8>), AgentError> {
            let path = folder.join(name);
            let bytes = files::read(&path, MOST_PEM_BYTES)?;
            Ok((path, bytes))
        };
        let (path, bytes) = read(CA_FILE)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&path, &bytes)? {
            roots.add(certificate).map_err(bad(&path))?;
        }
        let (path, bytes) = read(CERTIFICATE_FILE)?;
        let chain = certificates(&path, &bytes)?;
        let (path, bytes) = read(KEY_FILE)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(bad(&path))?;
        Ok(Self { folder: folder.to_owned(), roots: Arc::new(roots), chain, key })
    }

    /// Whether the own certificate is for the device `name`.
    pub(crate) fn is_for(&self, name: &DeviceName) -> bool {
        self.chain.first().is_some_and(|certificate| tls::names(certificate, name))
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    pub(crate) fn credentials(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain.clone(), self.key.clone_key())
    }

    /// For `map_err`: what TLS says of this bundle.
    pub(crate) fn bad<E: std::fmt::Display>(&self) -> impl FnOnce(E) -> AgentError + use<E> {
        bad(&self.folder)
    }
}

fn bad<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> AgentError + use<E> {
    let path = path.to_owned();
    move |error| AgentError::Certificate { path, what: error.to_string() }
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, AgentError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = found.map_err(bad(path))?;
    if found.is_empty() {
        return Err(AgentError::Certificate { path: path.to_owned(), what: "it holds no certificate".to_owned() });
    }
    Ok(found)
}
