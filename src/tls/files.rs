//! What is read from a certificate directory, and what is wrong with it: which file, why, and what to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::crypto;
use super::identity::IdentityError;
use crate::address::NodeName;
use crate::certs::{CLIENT_CA, DEFAULT_CLUSTER, NODE_CA};

/// Separates the reset keys from anything else that may ever be derived from a node's private key.
const RESET_LABEL: &[u8] = b"trunkline stateless reset v1";

const DAY: u64 = 24 * 60 * 60;

/// Why the files of a certificate directory are of no use: which, what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}; {remedy}", .file.display())]
pub(crate) struct TlsError {
    file: PathBuf,
    problem: Problem,
    remedy: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("there is no such file")]
    Missing,
    #[error("it can't be read: {0}")]
    Unreadable(std::io::Error),
    #[error("there is no certificate in PEM in it")]
    NoCertificate,
    #[error("there is no private key in PEM in it that can be used")]
    NoKey,
    #[error("the key is not that of the certificate {0}")]
    KeyMismatch(String),
    #[error("the certificate expired {0} days ago")]
    Expired(u64),
    #[error("the certificate is not valid for another {0} minutes: is the clock right?")]
    NotYetValid(u64),
    #[error("the certificate is revoked")]
    Revoked,
    #[error("the certificate was not issued by {NODE_CA}.pem")]
    OtherAuthority,
    #[error("{0}")]
    Identity(IdentityError),
    #[error("the certificate names the node {0}, not {1}")]
    OtherNode(NodeName, NodeName),
    #[error("the certificate is not for the host {0}")]
    OtherHost(String),
    #[error("there is no revocation list in PEM in it, or one that can't be read")]
    NoList,
    #[error("a revocation list in it was not issued by an authority in {0}.pem")]
    ListOfOther(&'static str),
    #[error("a revocation list in it says of no time when the next one comes")]
    ListWithoutEnd,
    #[error("a revocation list in it expired {0} minutes ago")]
    ListExpired(u64),
    #[error("the list of an authority that is still trusted is gone")]
    ListGone,
    #[error("a list in it is older than the one in force: it has the number {0}, that one {1}")]
    ListOlder(u64, u64),
    #[error("the certificate is for the cluster {0:?} now; a node that goes to another cluster has to start anew")]
    OtherCluster(String),
    #[error("TLS can't use it: {0}")]
    Unfit(String),
}

/// An authority, or several, and the certificates of theirs that they have revoked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Authority {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// Their names, as they stand in what they issue.
    pub(super) issuers: Vec<Vec<u8>>,
    pub(super) lists: Vec<List>,
}

/// A revocation list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct List {
    pub(super) der: CertificateRevocationListDer<'static>,
    /// The name of the authority that issued it.
    pub(super) issuer: Vec<u8>,
    /// A later one has a higher one.
    pub(super) number: u64,
    /// Up to when it holds.
    pub(super) until: SystemTime,
}

/// Reads a certificate directory, and knows how to make what is wrong in it anew.
pub(super) struct Files<'a> {
    dir: &'a Path,
    node: Option<&'a NodeName>,
    pub(super) cluster: Option<String>,
}

impl<'a> Files<'a> {
    pub(super) fn new(dir: &'a Path, node: Option<&'a NodeName>) -> Self {
        Self {
            dir,
            node,
            cluster: None,
        }
    }

    fn path(&self, stem: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{stem}.{extension}"))
    }

    fn read(&self, stem: &str, extension: &str) -> Result<Vec<u8>, TlsError> {
        std::fs::read(self.path(stem, extension)).map_err(|error| {
            let problem = match error.kind() {
                std::io::ErrorKind::NotFound => Problem::Missing,
                _ => Problem::Unreadable(error),
            };
            self.fault(stem, extension, problem)
        })
    }

    pub(super) fn chain(&self, stem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.read(stem, "pem")?)
            .collect::<Result<_, _>>()
            .map_err(|_| self.fault(stem, "pem", Problem::NoCertificate))?;
        if chain.is_empty() {
            return Err(self.fault(stem, "pem", Problem::NoCertificate));
        }
        Ok(chain)
    }

    /// The authority in `STEM.pem`, with the revocation lists in `STEM.crl`, if that is there.
    ///
    /// Several certificates in the file are several authorities: that is how one is replaced without a stop. Lists of those
    /// of `former` that are no more are passed over: to take an authority out must not wait for its list.
    pub(super) fn authority(&self, stem: &'static str, former: &[Vec<u8>]) -> Result<Authority, TlsError> {
        let chain = self.chain(stem)?;
        let lists = self.lists(stem, &chain, former)?;
        let name = |certificate: &CertificateDer<'_>| {
            let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
            Some(certificate.subject().as_raw().to_vec())
        };
        Ok(Authority {
            issuers: chain.iter().filter_map(name).collect(),
            certificates: chain,
            lists,
        })
    }

    fn lists(
        &self,
        stem: &'static str,
        authorities: &[CertificateDer<'_>],
        former: &[Vec<u8>],
    ) -> Result<Vec<List>, TlsError> {
        let fault = |problem| self.fault(stem, "crl", problem);
        let pem = match self.read(stem, "crl") {
            Ok(pem) => pem,
            Err(TlsError {
                problem: Problem::Missing,
                ..
            }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|_| fault(Problem::NoList))?;
        if lists.is_empty() {
            return Err(fault(Problem::NoList));
        }
        lists
            .into_iter()
            .filter_map(|list| check_list(list, authorities, former, stem).transpose())
            .collect::<Result<_, _>>()
            .map_err(fault)
    }

    /// The key to sign with, and a secret derived from it.
    pub(super) fn key(&self, stem: &str) -> Result<(Arc<dyn SigningKey>, hmac::Key), TlsError> {
        let unusable = || self.fault(stem, "key", Problem::NoKey);
        let pem = self.read(stem, "key")?;
        self.warn_of_readers(stem);
        let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable())?;
        let private = hmac::Key::new(hmac::HMAC_SHA512, der.secret_der());
        let secret = hmac::sign(&private, RESET_LABEL);
        let key = crypto().key_provider.load_private_key(der).map_err(|_| unusable())?;
        Ok((key, hmac::Key::new(hmac::HMAC_SHA512, secret.as_ref())))
    }

    #[cfg(unix)]
    fn warn_of_readers(&self, stem: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(stem, "key");
        if std::fs::metadata(&path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0) {
            tracing::warn!(file = %path.display(), "others than its owner can read this private key: chmod 600 it");
        }
    }

    #[cfg(not(unix))]
    fn warn_of_readers(&self, _stem: &str) {}

    pub(super) fn fault(&self, stem: &str, extension: &str, problem: Problem) -> TlsError {
        TlsError {
            file: self.path(stem, extension),
            remedy: self.remedy(stem, extension, &problem),
            problem,
        }
    }

    fn remedy(&self, stem: &str, extension: &str, problem: &Problem) -> String {
        let mut command = format!("`trunkline certs --certs {}", self.dir.display());
        if let Some(cluster) = self.cluster.as_deref().filter(|cluster| *cluster != DEFAULT_CLUSTER) {
            command.push_str(" --cluster ");
            command.push_str(cluster);
        }
        if extension == "crl" {
            return format!(
                "copy a new list here from where {stem}.key is; there it is made by {command} --renew-lists`"
            );
        }
        if let Some(node) = self.node {
            command.push(' ');
            command.push_str(node.as_str());
        }
        command.push('`');
        if matches!(problem, Problem::Unreadable(_)) {
            return format!("let the user that runs this read it; {command} makes files for the user that runs that");
        }
        if [NODE_CA, CLIENT_CA].contains(&stem) {
            return format!(
                "copy it from where the certificates of this cluster are made, or make a new cluster's in an empty \
                 directory: {command}"
            );
        }
        // `trunkline certs` never writes over a file, and takes half a pair for an accident.
        let stale: Vec<String> = ["pem", "key"]
            .into_iter()
            .map(|extension| self.path(stem, extension))
            .filter(|path| path.exists())
            .map(|path| path.display().to_string())
            .collect();
        if stale.is_empty() {
            format!("make it where {NODE_CA}.key is: {command}")
        } else {
            format!(
                "remove {}, then, where {NODE_CA}.key is: {command}",
                stale.join(" and ")
            )
        }
    }
}

/// Checks a revocation list as it will be when a certificate is: a list that proves useless then would let nobody in.
/// `None`: it is of an authority that is no more.
fn check_list(
    der: CertificateRevocationListDer<'static>,
    authorities: &[CertificateDer<'_>],
    former: &[Vec<u8>],
    stem: &'static str,
) -> Result<Option<List>, Problem> {
    let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|_| Problem::NoList)?;
    if !rest.is_empty() {
        return Err(Problem::NoList);
    }
    let named: Vec<_> = authorities
        .iter()
        .filter_map(|authority| X509Certificate::from_der(authority).ok())
        .filter(|(_, authority)| authority.subject() == list.issuer())
        .collect();
    let issuer = list.issuer().as_raw().to_vec();
    if named.is_empty() && former.contains(&issuer) {
        return Ok(None);
    }
    if !named
        .iter()
        .any(|(_, authority)| list.verify_signature(authority.public_key()).is_ok())
    {
        return Err(Problem::ListOfOther(stem));
    }
    let end = list.next_update().ok_or(Problem::ListWithoutEnd)?;
    let until = system_time(end.timestamp());
    if let Ok(since) = SystemTime::now().duration_since(until) {
        return Err(Problem::ListExpired(since.as_secs() / 60));
    }
    // One without a number, or with one that no authority comes to, is the oldest.
    let number = list.crl_number().and_then(|number| u64::try_from(number).ok());
    Ok(Some(List {
        issuer,
        number: number.unwrap_or(0),
        until,
        der,
    }))
}

/// Up to when all certificates of a chain hold; `None` if one can't be read.
pub(super) fn valid_until(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let mut until = None;
    for certificate in chain {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let end = system_time(certificate.validity().not_after.timestamp());
        until = Some(until.map_or(end, |until: SystemTime| until.min(end)));
    }
    until
}

/// Days, for a person.
pub(super) fn whole_days(seconds: u64) -> u64 {
    seconds / DAY
}

fn system_time(timestamp: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}
