//! Making the certificates of a cluster: `trunkline certs`.
//!
//! A certificate directory has two authorities. The node authority issues what nodes show each other and their
//! clients; the client authority issues what clients show. Two, because a certificate of a client must never pass
//! for a node's: who trusts only `node-ca.pem` can't be shown anything else.
//!
//! | file | what it is |
//! |---|---|
//! | `node-ca.pem`, `node-ca.key` | the node authority |
//! | `client-ca.pem`, `client-ca.key` | the client authority |
//! | `node-HOST-PORT.pem`, `.key` | a node: its name as a URI, its host as an address or DNS name |
//! | `client-NAME.pem`, `.key` | a client: its name, which is its id on every node, as a URI |
//! | `node-ca.crl`, `client-ca.crl` | what of its certificates the authority has revoked, if anything |
//!
//! Nothing that is there is ever written over, but for the lists of what is revoked. The keys are ECDSA P-256, which QUIC
//! libraries of every language take.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Purpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::address::{ClientId, NodeName};

/// The name of a cluster that was given none.
pub const DEFAULT_CLUSTER: &str = "trunkline";

/// The node authority's files, without `.pem` and `.key`.
pub(crate) const NODE_CA: &str = "node-ca";

/// The client authority's files, without `.pem` and `.key`.
pub(crate) const CLIENT_CA: &str = "client-ca";

/// The scheme of the URIs that name nodes and clients.
pub(crate) const URI_SCHEME: &str = "trunkline://";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
const LEAF_LIFE: Duration = Duration::from_secs(825 * DAY.as_secs());

/// How long a revocation list holds. Whoever can keep a new one from a node can keep a revoked certificate good for so
/// long; and so often a new one has to be made.
const LIST_LIFE: Duration = Duration::from_secs(30 * DAY.as_secs());

/// A certificate is valid from this long before it was made: the clocks of two hosts differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// The longest common or organisation name (RFC 5280, appendix A.1).
const MAX_NAME: usize = 64;

/// The name of a node's files, without `.pem` and `.key`: `node-127.0.0.1-1215`.
///
/// An IPv6 address loses its brackets, and its colons become `_`.
pub fn node_stem(name: &NodeName) -> String {
    format!("node-{}-{}", name.host().replace(':', "_"), name.port())
}

/// The URI that names a node in its certificate. Colons and brackets are percent-encoded, for libraries that look for a
/// port or an IPv6 address in any part of a URI.
pub(crate) fn node_uri(cluster: &str, name: &NodeName) -> String {
    let name = name
        .as_str()
        .replace('[', "%5B")
        .replace(']', "%5D")
        .replace(':', "%3A");
    format!("{URI_SCHEME}{cluster}/node/{name}")
}

/// The name of a client's files, without `.pem` and `.key`: `client-bob`.
pub fn client_stem(name: &ClientId) -> String {
    format!("client-{name}")
}

/// The URI that names a client in its certificate.
pub(crate) fn client_uri(cluster: &str, name: &ClientId) -> String {
    format!("{URI_SCHEME}{cluster}/client/{name}")
}

/// Whether this can be the name of a cluster: 1 to 63 letters, digits, `-` or `.`.
pub(crate) fn is_cluster(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

/// Makes what is missing in a certificate directory, for these nodes.
///
/// Gives the files newly made, in the order made. What is there stays as it is, byte for byte, and signs what is new.
///
/// # Errors
///
/// The name of the cluster or a node can't stand in a certificate, half of a certificate and key is missing, an
/// authority is needed that is not there, or a file can't be read or written. The text names the file and says what
/// to do.
pub fn make(dir: &Path, nodes: &[NodeName], cluster: &str) -> anyhow::Result<Vec<PathBuf>> {
    make_for(dir, nodes, &[], cluster)
}

/// The same as [`make`], for these clients as well. Each is to have the id that is its name, on every node.
///
/// # Errors
///
/// As [`make`]; and a name of the form that nodes give out by themselves (digits from 1 to 9 alone) can't be certified.
pub fn make_for(dir: &Path, nodes: &[NodeName], clients: &[ClientId], cluster: &str) -> anyhow::Result<Vec<PathBuf>> {
    ensure!(
        is_cluster(cluster),
        "{cluster:?} is no name for a cluster: 1 to 63 letters, digits, '-' or '.'"
    );
    let nodes = leaves(nodes.iter().map(|name| Leaf::node(cluster, name)))?;
    let clients = leaves(clients.iter().map(|name| Leaf::client(cluster, name)))?;
    fs::create_dir_all(dir).with_context(|| format!("can't make the directory {}", dir.display()))?;
    let mut folder = Folder { dir, made: Vec::new() };
    folder.issue(NODE_CA, "Trunkline node authority", cluster, &nodes)?;
    folder.issue(CLIENT_CA, "Trunkline client authority", cluster, &clients)?;
    Ok(folder.made)
}

/// Revokes certificates: adds them to the list of the authority in `dir` that issued each. Gives the lists written, which
/// are to go to all nodes.
///
/// # Errors
///
/// A file holds no certificate, it was issued by none of the directory's authorities, that authority's key is not there,
/// or a list can't be read or written.
pub fn revoke(dir: &Path, certificates: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut serials = [(NODE_CA, Vec::new()), (CLIENT_CA, Vec::new())];
    for file in certificates {
        let pem = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        let der = CertificateDer::from_pem_slice(&pem)
            .with_context(|| format!("{} has no certificate in PEM", file.display()))?;
        let leaf = webpki::EndEntityCert::try_from(&der)
            .with_context(|| format!("{} has no certificate that can be read", file.display()))?;
        ensure!(
            leaf.subject() != leaf.issuer(),
            "{} is an authority itself, and on no list: take it out of the authorities' file on every node",
            file.display()
        );
        let issued = serials
            .iter_mut()
            .find(|(authority, _)| issued_by(dir, authority, leaf.issuer()));
        let Some((_, serials)) = issued else {
            bail!(
                "{} was issued by neither authority in {}: revoke it where its authority is",
                file.display(),
                dir.display()
            );
        };
        serials.push(leaf.serial().to_vec());
    }
    serials
        .iter()
        .filter(|(_, serials)| !serials.is_empty())
        .map(|(authority, serials)| write_list(dir, authority, serials))
        .collect()
}

/// Makes the revocation lists in a directory anew, with what is on them: a list holds for 30 days. Gives the lists
/// written.
///
/// # Errors
///
/// An authority's key is not there, or a list can't be read or written.
pub fn renew_lists(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for authority in [NODE_CA, CLIENT_CA] {
        if dir.join(authority).with_added_extension("crl").exists() {
            written.push(write_list(dir, authority, &[])?);
        }
    }
    Ok(written)
}

fn issued_by(dir: &Path, authority: &str, issuer: &[u8]) -> bool {
    let pem = fs::read(dir.join(authority).with_added_extension("pem")).ok();
    pem.and_then(|pem| CertificateDer::from_pem_slice(&pem).ok())
        .is_some_and(|der| webpki::EndEntityCert::try_from(&der).is_ok_and(|own| own.subject() == issuer))
}

/// Writes an authority's list anew: what is on it, and these serial numbers.
fn write_list(dir: &Path, authority: &str, serials: &[Vec<u8>]) -> anyhow::Result<PathBuf> {
    let file = |extension| dir.join(authority).with_added_extension(extension);
    let issuer = read_authority(&file("pem"), &file("key"))?;
    let path = file("crl");
    let now = now();
    let revoked = |serial: &[u8], at| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: at,
        reason_code: None,
        invalidity_date: None,
    };
    let mut revoked_certs = Vec::new();
    let mut number = 1;
    // Of another authority, whose key is not here: they stay as they are.
    let mut others = String::new();
    if path.exists() {
        let unreadable = || {
            format!(
                "{} has no revocation list in PEM: put the right file back",
                path.display()
            )
        };
        let own = fs::read(file("pem")).ok();
        let own = own.and_then(|pem| CertificateDer::from_pem_slice(&pem).ok());
        let pem = fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .with_context(unreadable)?;
        ensure!(!lists.is_empty(), unreadable());
        for der in &lists {
            let (_, list) = CertificateRevocationList::from_der(der).with_context(unreadable)?;
            let is_own = own
                .as_ref()
                .is_some_and(|own| X509Certificate::from_der(own).is_ok_and(|(_, own)| own.subject() == list.issuer()));
            if !is_own {
                others.push_str(&pem_of(der));
                continue;
            }
            for entry in list.iter_revoked_certificates() {
                revoked_certs.push(revoked(entry.raw_serial(), entry.revocation_date.to_datetime()));
            }
            number = list
                .crl_number()
                .and_then(|number| u64::try_from(number).ok())
                .unwrap_or(0)
                .saturating_add(1);
        }
    }
    for serial in serials {
        let known = |entry: &RevokedCertParams| entry.serial_number.to_bytes() == *serial;
        if !revoked_certs.iter().any(known) {
            revoked_certs.push(revoked(serial, now));
        }
    }
    let list = CertificateRevocationListParams {
        this_update: now - CLOCK_SKEW,
        next_update: now + LIST_LIFE,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(&issuer)?.pem()? + &others;
    replace(&path, pem.as_bytes()).with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

fn pem_of(list: &CertificateRevocationListDer<'_>) -> String {
    let text = STANDARD.encode(list);
    let mut pem = "-----BEGIN X509 CRL-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END X509 CRL-----\n"
}

/// Certificates to be issued, each once.
fn leaves(wanted: impl Iterator<Item = anyhow::Result<Leaf>>) -> anyhow::Result<Vec<Leaf>> {
    let mut leaves: Vec<Leaf> = Vec::new();
    for leaf in wanted {
        let leaf = leaf?;
        if !leaves.iter().any(|other| other.stem == leaf.stem) {
            leaves.push(leaf);
        }
    }
    Ok(leaves)
}

/// A certificate to be issued.
struct Leaf {
    stem: String,
    params: CertificateParams,
}

impl Leaf {
    fn node(cluster: &str, name: &NodeName) -> anyhow::Result<Self> {
        let host = match ServerName::try_from(name.host()) {
            Ok(ServerName::IpAddress(ip)) => SanType::IpAddress(ip.into()),
            Ok(ServerName::DnsName(host)) => SanType::DnsName(host.as_ref().try_into()?),
            _ => bail!("{name}: the host is no IP address or DNS name that a certificate can name"),
        };
        let uri = SanType::URI(node_uri(cluster, name).try_into()?);
        let mut params = leaf_params(cluster, name.as_str());
        params.subject_alt_names = vec![uri, host];
        // A node is the server of some links and the client of others.
        params.extended_key_usages = vec![Purpose::ServerAuth, Purpose::ClientAuth];
        Ok(Self {
            stem: node_stem(name),
            params,
        })
    }

    fn client(cluster: &str, name: &ClientId) -> anyhow::Result<Self> {
        ensure!(
            !name.is_temporary(),
            "{name} is no name for a client: nodes give ids of digits from 1 to 9 to anyone"
        );
        let mut params = leaf_params(cluster, name.as_str());
        params.subject_alt_names = vec![SanType::URI(client_uri(cluster, name).try_into()?)];
        params.extended_key_usages = vec![Purpose::ClientAuth];
        Ok(Self {
            stem: client_stem(name),
            params,
        })
    }
}

/// What of a certificate and its key is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pair {
    Neither,
    OnlyCertificate,
    OnlyKey,
    Both,
}

/// A certificate directory being filled.
struct Folder<'a> {
    dir: &'a Path,
    made: Vec<PathBuf>,
}

impl Folder<'_> {
    /// Makes those of these certificates that are missing, and the authority that issues them if it is not there.
    fn issue(&mut self, authority: &str, title: &str, cluster: &str, leaves: &[Leaf]) -> anyhow::Result<()> {
        let mut missing: Vec<&Leaf> = Vec::new();
        for leaf in leaves {
            match self.pair(&leaf.stem)? {
                Pair::Neither => missing.push(leaf),
                Pair::Both => {}
                Pair::OnlyCertificate => bail!(self.lone(&leaf.stem, "pem", "key")),
                Pair::OnlyKey => bail!(self.lone(&leaf.stem, "key", "pem")),
            }
        }
        let certificate = self.path(authority, "pem");
        let key = self.path(authority, "key");
        let issuer = match self.pair(authority)? {
            Pair::Neither => {
                let present = |leaf: &&Leaf| !missing.iter().any(|other| other.stem == leaf.stem);
                if let Some(orphan) = leaves.iter().find(present) {
                    bail!(
                        "{} is missing, which issued {}: put it and its key back, or remove the certificates it \
                         issued, then run `trunkline certs` again",
                        certificate.display(),
                        self.path(&orphan.stem, "pem").display()
                    );
                }
                self.make_authority(authority, title, cluster)?
            }
            Pair::Both | Pair::OnlyCertificate if missing.is_empty() => return Ok(()),
            Pair::Both => read_authority(&certificate, &key)?,
            Pair::OnlyCertificate => bail!(
                "{} is missing, the key that signs new certificates: put it back, or run `trunkline certs` where it \
                 is kept and copy the new files here",
                key.display()
            ),
            Pair::OnlyKey => bail!(self.lone(authority, "key", "pem")),
        };
        for leaf in missing {
            let leaf_key = new_key()?;
            let signed = leaf.params.signed_by(&leaf_key, &issuer)?;
            self.write(&leaf.stem, &leaf_key, &signed.pem())?;
        }
        Ok(())
    }

    fn make_authority(&mut self, stem: &str, title: &str, cluster: &str) -> anyhow::Result<Issuer<'static, KeyPair>> {
        // Two authorities with one name could not be told apart by the lists of what they revoked.
        let mut params = params(cluster, &format!("{title} {:08x}", rand::random::<u32>()), CA_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key()?;
        let certificate = params.self_signed(&key)?;
        self.write(stem, &key, &certificate.pem())?;
        Ok(Issuer::new(params, key))
    }

    /// Writes a key and its certificate. The key first: a certificate is proof that its key was written.
    fn write(&mut self, stem: &str, key: &KeyPair, certificate: &str) -> anyhow::Result<()> {
        let files = [
            ("key", key.serialize_pem(), 0o600),
            ("pem", certificate.to_owned(), 0o644),
        ];
        for (extension, text, mode) in files {
            let path = self.path(stem, extension);
            write_new(&path, text.as_bytes(), mode).with_context(|| format!("can't write {}", path.display()))?;
            self.made.push(path);
        }
        Ok(())
    }

    fn path(&self, stem: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{stem}.{extension}"))
    }

    fn pair(&self, stem: &str) -> anyhow::Result<Pair> {
        let there = |extension| {
            let path = self.path(stem, extension);
            path.try_exists()
                .with_context(|| format!("can't look for {}", path.display()))
        };
        Ok(match (there("pem")?, there("key")?) {
            (false, false) => Pair::Neither,
            (true, false) => Pair::OnlyCertificate,
            (false, true) => Pair::OnlyKey,
            (true, true) => Pair::Both,
        })
    }

    fn lone(&self, stem: &str, there: &str, missing: &str) -> String {
        format!(
            "{} is there without {}: put that back, or remove {0}, then run `trunkline certs` again",
            self.path(stem, there).display(),
            self.path(stem, missing).display()
        )
    }
}

/// An authority that was made before, to sign with.
fn read_authority(certificate: &Path, key: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let advice = "put the right file back, or remove the authority and all it issued, then run `trunkline certs` again";
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()));
    let pair = KeyPair::from_pem(&read(key)?)
        .with_context(|| format!("{} has no private key in PEM: {advice}", key.display()))?;
    let no_certificate = || format!("{} has no certificate in PEM: {advice}", certificate.display());
    let der = CertificateDer::from_pem_slice(read(certificate)?.as_bytes()).with_context(no_certificate)?;
    let public = webpki::EndEntityCert::try_from(&der)
        .with_context(no_certificate)?
        .subject_public_key_info();
    ensure!(
        public.as_ref() == pair.subject_public_key_info(),
        "{} is not the key of {}: {advice}",
        key.display(),
        certificate.display()
    );
    Issuer::from_ca_cert_der(&der, pair).with_context(no_certificate)
}

fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

fn leaf_params(cluster: &str, name: &str) -> CertificateParams {
    let mut params = params(cluster, name, LEAF_LIFE);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn params(cluster: &str, name: &str, life: Duration) -> CertificateParams {
    let now = now();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, cluster);
    // The URI is what counts; a longer name only stands there.
    if name.len() <= MAX_NAME {
        subject.push(DnType::CommonName, name);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
    params
}

fn now() -> time::OffsetDateTime {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    rcgen::date_time_ymd(1970, 1, 1) + since_epoch
}

/// Writes a file that is not there yet: whole or not at all, and never with a wider mode than this.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let temporary = write_beside(path, bytes, mode)?;
    // A link, as a rename would replace a file made meanwhile.
    let written = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    written
}

/// Writes a file, in place of one that is there: whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = write_beside(path, bytes, 0o644)?;
    fs::rename(&temporary, path)
}

/// Writes a temporary file beside `path`.
fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<PathBuf> {
    let temporary = path.with_added_extension(format!("{:016x}.tmp", rand::random::<u64>()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(temporary),
        Err(error) => {
            // Where it was not made, there is nothing to remove.
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn names(texts: &[&str]) -> Vec<NodeName> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }

    fn bob() -> ClientId {
        "bob".parse().unwrap()
    }

    fn make_with_bob(dir: &Path, nodes: &[NodeName]) -> anyhow::Result<Vec<PathBuf>> {
        make_for(dir, nodes, &[bob()], "trunkline")
    }

    fn error(dir: &Path, nodes: &[NodeName]) -> String {
        format!("{:#}", make_with_bob(dir, nodes).unwrap_err())
    }

    #[test]
    fn a_second_run_adds_what_is_missing_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("new");
        let one = names(&["127.0.0.1:1215", "127.0.0.1:1215"]);
        assert_eq!(make_with_bob(dir, &one).unwrap().len(), 8);
        let before = contents(dir);
        assert_eq!(before.len(), 8);

        assert_eq!(make_with_bob(dir, &one).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(contents(dir), before);

        let more = names(&["127.0.0.1:1215", "[::1]:1216", "relay.example.com:1"]);
        let made = make(dir, &more, "trunkline").unwrap();
        assert_eq!(
            made,
            [
                dir.join("node-__1-1216.key"),
                dir.join("node-__1-1216.pem"),
                dir.join("node-relay.example.com-1.key"),
                dir.join("node-relay.example.com-1.pem"),
            ]
        );
        let after = contents(dir);
        assert_eq!(after.len(), 12);
        assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)));
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let made = make_with_bob(dir.path(), &names(&["127.0.0.1:1215"])).unwrap();
        let keys: Vec<_> = made.iter().filter(|path| path.extension().unwrap() == "key").collect();
        assert_eq!(keys.len(), 4);
        for key in keys {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn half_a_pair_is_an_error_that_names_the_file() {
        let nodes = names(&["127.0.0.1:1215"]);
        let more = names(&["127.0.0.1:1215", "127.0.0.1:1216"]);
        for (removed, asked, named) in [
            ("node-127.0.0.1-1215.key", &nodes, "node-127.0.0.1-1215.pem"),
            ("node-127.0.0.1-1215.pem", &nodes, "node-127.0.0.1-1215.key"),
            ("client-bob.key", &nodes, "client-bob.pem"),
            ("node-ca.pem", &nodes, "node-ca.key"),
            ("node-ca.key", &more, "node-ca.key"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            make_with_bob(dir.path(), &nodes).unwrap();
            fs::remove_file(dir.path().join(removed)).unwrap();
            let before = contents(dir.path());
            let text = error(dir.path(), asked);
            assert!(text.contains(named) && text.contains("`trunkline certs`"), "{text}");
            assert_eq!(contents(dir.path()), before);
        }
    }

    #[test]
    fn an_authority_is_not_replaced_while_what_it_issued_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = names(&["127.0.0.1:1215"]);
        make(dir.path(), &nodes, "trunkline").unwrap();
        // Its key may be kept elsewhere as long as nothing is to be signed.
        fs::remove_file(dir.path().join("node-ca.key")).unwrap();
        assert!(make(dir.path(), &nodes, "trunkline").unwrap().is_empty());
        fs::remove_file(dir.path().join("node-ca.pem")).unwrap();
        let text = error(dir.path(), &nodes);
        assert!(
            text.contains("node-ca.pem is missing") && text.contains("`trunkline certs`"),
            "{text}"
        );
    }

    #[test]
    fn an_authority_signs_only_with_its_own_key() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &names(&["127.0.0.1:1215"]), "trunkline").unwrap();
        fs::copy(dir.path().join("client-ca.key"), dir.path().join("node-ca.key")).unwrap();
        let text = error(dir.path(), &names(&["127.0.0.1:1216"]));
        assert!(text.contains("node-ca.key is not the key of"), "{text}");
        fs::write(dir.path().join("node-ca.key"), "nothing").unwrap();
        let text = error(dir.path(), &names(&["127.0.0.1:1216"]));
        assert!(text.contains("node-ca.key has no private key"), "{text}");
    }

    #[test]
    fn what_can_name_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(64);
        for bad in ["", "a b", "a/b", "a_b", "é", &long] {
            assert!(make(dir.path(), &[], bad).is_err(), "{bad}");
        }
        make(dir.path(), &[], "eu-1.Example").unwrap();
    }

    #[test]
    fn what_is_revoked_stays_revoked_and_lists_are_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let nodes = names(&["127.0.0.1:1215", "127.0.0.1:1216"]);
        make_with_bob(dir, &nodes).unwrap();
        assert!(renew_lists(dir).unwrap().is_empty());
        let numbers = |authority: &str| {
            let pem = fs::read(dir.join(authority).with_added_extension("crl")).unwrap();
            let der = CertificateRevocationListDer::from_pem_slice(&pem).unwrap();
            let (_, list) = CertificateRevocationList::from_der(&der).unwrap();
            let number = list.crl_number().and_then(|number| u64::try_from(number).ok()).unwrap();
            (number, list.iter_revoked_certificates().count())
        };
        let node = |port: u16| dir.join(format!("node-127.0.0.1-{port}.pem"));
        let lists = [dir.join("node-ca.crl"), dir.join("client-ca.crl")];
        assert_eq!(revoke(dir, &[node(1215)]).unwrap(), lists[..1]);
        assert_eq!(numbers("node-ca"), (1, 1));
        let more = [node(1216), node(1215), dir.join("client-bob.pem")];
        assert_eq!(revoke(dir, &more).unwrap(), lists);
        assert_eq!((numbers("node-ca"), numbers("client-ca")), ((2, 2), (1, 1)));
        assert_eq!(renew_lists(dir).unwrap(), lists);
        assert_eq!((numbers("node-ca"), numbers("client-ca")), ((3, 2), (2, 1)));

        let text = revoke(dir, &[dir.join("node-ca.pem")]).unwrap_err().to_string();
        assert!(text.contains("is an authority itself"), "{text}");
        assert_eq!(numbers("node-ca"), (3, 2));

        let other = tempfile::tempdir().unwrap();
        make(other.path(), &nodes, "trunkline").unwrap();
        let text = revoke(other.path(), &[node(1215)]).unwrap_err().to_string();
        assert!(text.contains("was issued by neither authority"), "{text}");
        assert!(!other.path().join("node-ca.crl").exists());
    }

    #[test]
    fn a_name_that_a_node_might_give_to_anyone_is_not_certified() {
        let dir = tempfile::tempdir().unwrap();
        let id: ClientId = "651444".parse().unwrap();
        let text = make_for(dir.path(), &[], &[id], "trunkline").unwrap_err().to_string();
        assert!(text.contains("651444"), "{text}");
    }
}
