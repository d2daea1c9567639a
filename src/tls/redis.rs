//! TLS to Redis: its certificate has to be of an authority in a file, and for the host that was meant. What nodes say
//! to each other through it is sealed beside that.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::crypto;

/// Where systems keep the authorities that they trust: Debian, Fedora, openSUSE, Alpine and macOS.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Settings for connections to servers whose certificates are of an authority in this file; `None`: of one that the
/// system trusts.
///
/// # Errors
///
/// When there is no such authority; the text says what to do.
pub(crate) fn redis_client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let roots = match ca {
        Some(file) => named(file)?,
        None => system()?,
    };
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| format!("TLS can't be used: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The authorities in a file that somebody named: each has to be fit.
fn named(file: &Path) -> Result<RootCertStore, String> {
    let unfit = |what: String| {
        format!(
            "--redis-ca {}: {what}; name a file of certificates in PEM",
            file.display()
        )
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unfit(error.to_string()))? {
        let certificate = certificate.map_err(|error| unfit(error.to_string()))?;
        roots.add(certificate).map_err(|error| unfit(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unfit("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

/// Those of the system, without what of them can't be read.
fn system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for file in SYSTEM {
        if let Ok(certificates) = CertificateDer::pem_file_iter(file) {
            roots.add_parsable_certificates(certificates.flatten());
            if !roots.is_empty() {
                return Ok(roots);
            }
        }
    }
    Err(format!(
        "the system's authorities are in none of {}: install its ca-certificates, or name a file with --redis-ca FILE",
        SYSTEM.join(", ")
    ))
}
