//! A private authority in two commands: one that makes it with the trainer's certificate, one per device.
//!
//! The folder of an authority:
//!
//! | file | mode | what |
//! |---|---|---|
//! | `ca.pem` | 0644 | the authority's certificate |
//! | `ca-key.pem` | 0600 | its key: signs devices, never leaves this folder |
//! | `trainer/` | 0700 | `ca.pem`, `certificate.pem`, `key.pem`: what `chipfit retrain --pki` takes |
//! | `devices/NAME/` | 0700 | the same three files: what a device needs, copied as one folder |
//!
//! Keys are ECDSA P-256. A device's certificate may only serve (extended key usage `serverAuth`), the trainer's may only
//! ask (`clientAuth`), so neither can pose as the other. Certificates begin in 1970, because small devices start
//! without a clock; they end after [`Validity`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::error::AgentError;
use crate::files::{self, Access};
use crate::identity::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use crate::name::DeviceName;

/// The authority's key within its folder.
pub const CA_KEY_FILE: &str = "ca-key.pem";
/// The trainer's bundle within the authority's folder.
pub const TRAINER_FOLDER: &str = "trainer";
/// Bundles of devices within the authority's folder.
pub const DEVICES_FOLDER: &str = "devices";
/// No key or certificate file is larger.
const MOST_PEM_BYTES: u64 = 1 << 20;

/// How long new certificates are valid, in days from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity(u32);

impl Validity {
    /// `None` for 0 days and above a hundred years.
    pub fn days(days: u32) -> Option<Self> {
        (1..=36_500).contains(&days).then_some(Self(days))
    }
}

impl Default for Validity {
    /// Ten years.
    fn default() -> Self {
        Self(3_650)
    }
}

/// Who a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Trainer,
    Device,
}

fn making(error: impl std::fmt::Display) -> AgentError {
    AgentError::Making { what: error.to_string() }
}

/// Makes an authority and its trainer in `folder`; returns the files written, the trainer's bundle last.
///
/// # Errors
/// [`AgentError::Exists`] where one of the files exists and `force` is off: nothing was changed then. Devices signed by an
/// authority that is replaced need new certificates.
pub fn init(folder: &Path, validity: Validity, force: bool) -> Result<Vec<PathBuf>, AgentError> {
    let ca = folder.join(CA_FILE);
    let ca_key = folder.join(CA_KEY_FILE);
    let trainer = folder.join(TRAINER_FOLDER);
    if !force {
        refuse_existing(&[ca.clone(), ca_key.clone()])?;
        refuse_existing(&bundle_files(&trainer))?;
    }
    files::make_folder(folder)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(making)?;
    let params = ca_params(&key, validity)?;
    let certificate = params.self_signed(&key).map_err(making)?.pem();
    files::write(&ca_key, key.serialize_pem().as_bytes(), Access::Owner)?;
    files::write(&ca, certificate.as_bytes(), Access::Everybody)?;
    let trainer_name: DeviceName = "trainer".parse()?;
    let authority = Authority { certificate, key };
    let mut written = vec![ca_key, ca];
    written.extend(authority.issue(&trainer, &trainer_name, Role::Trainer, validity)?);
    Ok(written)
}

/// Makes a device's bundle, signed by the authority in `folder`; returns the bundle's folder.
///
/// # Errors
/// [`AgentError::File`] where there is no authority (`chipfit pki init` makes one); [`AgentError::Exists`] where the device
/// has a bundle and `force` is off; [`AgentError::Certificate`] where the authority's key and certificate do not
/// belong together.
pub fn device(folder: &Path, name: &DeviceName, validity: Validity, force: bool) -> Result<PathBuf, AgentError> {
    let bundle = folder.join(DEVICES_FOLDER).join(name.as_str());
    if !force {
        refuse_existing(&bundle_files(&bundle))?;
    }
    let authority = Authority::open(folder)?;
    authority.issue(&bundle, name, Role::Device, validity)?;
    Ok(bundle)
}

/// An authority's certificate, as PEM, and its key.
struct Authority {
    certificate: String,
    key: KeyPair,
}

impl Authority {
    fn open(folder: &Path) -> Result<Self, AgentError> {
        let text = |name: &str| -> Result<(PathBuf, String), AgentError> {
            let path = folder.join(name);
            let bytes = files::read(&path, MOST_PEM_BYTES)?;
            let what = |_| AgentError::Certificate { path: path.clone(), what: "it is no PEM file".to_owned() };
            let text = String::from_utf8(bytes).map_err(what)?;
            Ok((path, text))
        };
        let (ca_path, certificate) = text(CA_FILE)?;
        let (key_path, key) = text(CA_KEY_FILE)?;
        let bad = |path: &Path, what: String| AgentError::Certificate { path: path.to_owned(), what };
        let key = KeyPair::from_pem(&key).map_err(|error| bad(&key_path, error.to_string()))?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| bad(&ca_path, format!("no certificate: {error}")))?;
        // The public key's bytes stand in the certificate as they are; another key's do not.
        let public = key.public_key_raw();
        if !der.windows(public.len()).any(|window| window == public) {
            return Err(bad(&key_path, format!("the key does not belong to {CA_FILE}")));
        }
        Ok(Self { certificate, key })
    }

    /// Writes a bundle; returns its files.
    fn issue(
        &self,
        bundle: &Path,
        name: &DeviceName,
        role: Role,
        validity: Validity,
    ) -> Result<Vec<PathBuf>, AgentError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(making)?;
        let mut params = CertificateParams::new(vec![name.as_str().to_owned()]).map_err(making)?;
        set_validity(&mut params, validity)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            Role::Trainer => ExtendedKeyUsagePurpose::ClientAuth,
            Role::Device => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let issuer = Issuer::new(ca_params(&self.key, validity)?, &self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(making)?.pem();
        files::make_folder(bundle)?;
        let [ca_path, certificate_path, key_path] = bundle_files(bundle);
        files::write(&key_path, key.serialize_pem().as_bytes(), Access::Owner)?;
        files::write(&certificate_path, certificate.as_bytes(), Access::Everybody)?;
        files::write(&ca_path, self.certificate.as_bytes(), Access::Everybody)?;
        Ok(vec![ca_path, certificate_path, key_path])
    }
}

/// The authority's own certificate. Its name ends in a digest of its key, so that two authorities never look alike
/// and the name needs no file to be known again.
fn ca_params(key: &KeyPair, validity: Validity) -> Result<CertificateParams, AgentError> {
    let digest = Sha256::digest(key.public_key_raw());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let mut params = CertificateParams::new(Vec::new()).map_err(making)?;
    set_validity(&mut params, validity)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("chipfit authority {short}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, validity: Validity) -> Result<(), AgentError> {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let end = since_epoch.as_secs().saturating_add(u64::from(validity.0) * 86_400);
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = OffsetDateTime::from_unix_timestamp(i64::try_from(end).map_err(making)?).map_err(making)?;
    Ok(())
}

fn bundle_files(bundle: &Path) -> [PathBuf; 3] {
    [CA_FILE, CERTIFICATE_FILE, KEY_FILE].map(|name| bundle.join(name))
}

fn refuse_existing(paths: &[PathBuf]) -> Result<(), AgentError> {
    match paths.iter().find(|path| fs::symlink_metadata(path).is_ok()) {
        Some(path) => Err(AgentError::Exists { path: path.clone() }),
        None => Ok(()),
    }
}
