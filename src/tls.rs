//! TLS for links and QUIC clients: what is read from a certificate directory, and what is made of it.
//!
//! - TLS 1.3 alone, with the aws-lc provider named explicitly; X25519MLKEM768 is offered and taken first.
//! - A link is mutual: both sides show a certificate of the node authority, for both uses. Which node that is,
//!   [`peer_node`] reads from the one URI in it. A certificate of the client authority is worth nothing there.
//! - A QUIC client checks the node's certificate.
//! - No session is resumed, no early data is sent or taken, no key is logged: each connection is a whole handshake.
//! - Links and clients differ in ALPN, and rustls refuses a QUIC connection whose ALPN fits nothing.
//!
//! [`make`](crate::certs::make) makes the files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use webpki::EndEntityCert;

use crate::address::NodeName;
use crate::certs::{CLIENT_CA, DEFAULT_CLUSTER, NODE_CA, URI_SCHEME, is_cluster, node_stem, node_uri};

/// The ALPN of links.
pub(crate) const LINK_ALPN: &[u8] = b"trunkline-link/1";

/// The ALPN of QUIC clients.
pub(crate) const CLIENT_ALPN: &[u8] = b"trunkline/1";

/// Separates the reset keys from anything else that may ever be derived from a node's private key.
const RESET_LABEL: &[u8] = b"trunkline stateless reset v1";

/// The length of the connection ids a node gives out: as quinn's own.
const CID_LEN: usize = 8;

/// A node's side of TLS: its certificate and key, and the authorities it trusts.
pub(crate) struct NodeTls {
    name: NodeName,
    cluster: String,
    link_server: Arc<QuicServerConfig>,
    link_client: Arc<QuicClientConfig>,
    client_server: Arc<QuicServerConfig>,
    reset_secret: hmac::Key,
}

impl NodeTls {
    /// Reads and checks the files of a node.
    ///
    /// What a refused connection would show later is found out here.
    pub(crate) fn load(dir: &Path, name: &NodeName) -> Result<Self, TlsError> {
        let stem = node_stem(name);
        let mut files = Files::new(dir, Some(name));
        let authority = files.authority(NODE_CA)?;
        let chain = files.chain(&stem)?;
        let (key, secret) = files.key(&stem)?;
        let in_certificate = |problem: Problem, files: &Files<'_>| files.fault(&stem, "pem", problem);

        let unfit = |error: webpki::Error| Problem::Unfit(error.to_string());
        let (first, rest) = chain
            .split_first()
            .ok_or_else(|| in_certificate(Problem::NoCertificate, &files))?;
        let leaf = EndEntityCert::try_from(first).map_err(|error| in_certificate(unfit(error), &files))?;
        let (cluster, named) =
            name_in_certificate(&leaf).map_err(|error| in_certificate(Problem::Name(error), &files))?;
        files.cluster = Some(cluster.clone());
        if named != *name {
            let problem = Problem::OtherNode(named, name.clone());
            return Err(in_certificate(problem, &files));
        }
        check(&leaf, rest, &authority, name).map_err(|problem| in_certificate(problem, &files))?;

        let certified = CertifiedKey::new(chain.clone(), key);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(files.fault(&stem, "key", Problem::KeyMismatch(format!("{stem}.pem"))));
            }
            Err(error) => return Err(files.fault(&stem, "key", Problem::Unfit(error.to_string()))),
        }
        let certified = Arc::new(SingleCertAndKey::from(certified));
        let configs = || -> Result<_, Box<dyn std::error::Error>> {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&authority), crypto()).build()?;
            Ok((
                server(Some(verifier), Arc::clone(&certified), LINK_ALPN)?.try_into()?,
                client(authority, Some(certified.clone()), LINK_ALPN)?.try_into()?,
                server(None, certified, CLIENT_ALPN)?.try_into()?,
            ))
        };
        let (link_server, link_client, client_server): (QuicServerConfig, QuicClientConfig, QuicServerConfig) =
            configs().map_err(|error| in_certificate(Problem::Unfit(error.to_string()), &files))?;
        Ok(Self {
            name: name.clone(),
            cluster,
            link_server: Arc::new(link_server),
            link_client: Arc::new(link_client),
            client_server: Arc::new(client_server),
            reset_secret: secret,
        })
    }

    /// The cluster that the certificate names.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// For links that other nodes open to this one: only a certificate of the node authority gets in.
    pub(crate) fn link_server(&self) -> Arc<QuicServerConfig> {
        Arc::clone(&self.link_server)
    }

    /// For links that this node opens.
    pub(crate) fn link_client(&self) -> Arc<QuicClientConfig> {
        Arc::clone(&self.link_client)
    }

    /// For QUIC clients: the node shows its certificate and asks for none.
    pub(crate) fn client_server(&self) -> Arc<QuicServerConfig> {
        Arc::clone(&self.client_server)
    }

    /// The key of the stateless resets of an endpoint: the same after a restart, so that the other sides learn of it
    /// from the first packet they send.
    ///
    /// It differs between the endpoints of a node: with one key for both, a reset drawn from one by a packet with the
    /// other's connection id would end a connection there (RFC 9000, section 21.11).
    pub(crate) fn reset_key(&self, alpn: &[u8]) -> [u8; 64] {
        let mut key = [0; 64];
        key.copy_from_slice(hmac::sign(&self.reset_secret, alpn).as_ref());
        key
    }

    /// Settings for an endpoint, with which stateless resets work across restarts.
    pub(crate) fn endpoint_config(&self, alpn: &[u8]) -> quinn::EndpointConfig {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.reset_key(alpn));
        let mut config = quinn::EndpointConfig::new(Arc::new(key));
        // quinn's own generator takes an id from before the restart for noise, and sends no reset.
        config.cid_generator(|| Box::new(RandomIds));
        config
    }
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls")
            .field("name", &self.name)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// The TLS of QUIC clients.
#[derive(Debug)]
pub(crate) struct ClientTls;

impl ClientTls {
    /// Reads the node authority, which is all a client needs to know a node by.
    pub(crate) fn load(dir: &Path) -> Result<Arc<QuicClientConfig>, TlsError> {
        let files = Files::new(dir, None);
        let config = || -> Result<QuicClientConfig, Box<dyn std::error::Error>> {
            Ok(client(files.authority(NODE_CA)?, None, CLIENT_ALPN)?.try_into()?)
        };
        config().map(Arc::new).map_err(|error| match error.downcast() {
            Ok(error) => *error,
            Err(error) => files.fault(NODE_CA, "pem", Problem::Unfit(error.to_string())),
        })
    }
}

/// The node at the other end of a connection, as its certificate says; the handshake has proved the certificate.
pub(crate) fn peer_node(connection: &quinn::Connection, cluster: &str) -> Result<NodeName, PeerError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(PeerError::NoCertificate)?;
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| PeerError::NoCertificate)?;
    let (theirs, name) = name_in_certificate(&leaf)?;
    if theirs != cluster {
        return Err(PeerError::OtherCluster(theirs));
    }
    Ok(name)
}

/// The cluster and the node in the one URI of a certificate.
pub(crate) fn name_in_certificate(leaf: &EndEntityCert<'_>) -> Result<(String, NodeName), PeerError> {
    let mut uris = leaf.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => parse_node_uri(uri).map(|(cluster, name)| (cluster.to_owned(), name)),
        _ => Err(PeerError::NotOneUri),
    }
}

/// Reads `trunkline://CLUSTER/node/HOST%3APORT`, in its one canonical spelling.
pub(crate) fn parse_node_uri(uri: &str) -> Result<(&str, NodeName), PeerError> {
    let parts = || {
        let (cluster, path) = uri.strip_prefix(URI_SCHEME)?.split_once('/')?;
        let text = path.strip_prefix("node/")?;
        let name: NodeName = text
            .replace("%3A", ":")
            .replace("%5B", "[")
            .replace("%5D", "]")
            .parse()
            .ok()?;
        (is_cluster(cluster) && node_uri(cluster, &name) == uri).then_some((cluster, name))
    };
    parts().ok_or(PeerError::NoNode)
}

/// Why the other end of a connection is no node to have a link with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerError {
    /// It showed no certificate that can be read.
    #[error("no readable certificate was shown")]
    NoCertificate,
    /// There is no URI in it, or several.
    #[error("the certificate does not have exactly one URI name")]
    NotOneUri,
    /// The URI is not `trunkline://CLUSTER/node/HOST%3APORT`.
    #[error("the URI in the certificate names no node")]
    NoNode,
    /// The node is one of another cluster.
    #[error("the certificate is for the cluster {0:?}")]
    OtherCluster(String),
}

/// Why the files of a certificate directory are of no use: which, what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}; {remedy}", .file.display())]
pub(crate) struct TlsError {
    file: PathBuf,
    problem: Problem,
    remedy: String,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
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
    #[error("the certificate was not issued by {NODE_CA}.pem")]
    OtherAuthority,
    #[error("{0}")]
    Name(PeerError),
    #[error("the certificate names the node {0}, not {1}")]
    OtherNode(NodeName, NodeName),
    #[error("the certificate is not for the host {0}")]
    OtherHost(String),
    #[error("TLS can't use it: {0}")]
    Unfit(String),
}

/// Reads a certificate directory, and knows how to make what is wrong in it anew.
struct Files<'a> {
    dir: &'a Path,
    node: Option<&'a NodeName>,
    cluster: Option<String>,
}

impl<'a> Files<'a> {
    fn new(dir: &'a Path, node: Option<&'a NodeName>) -> Self {
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

    fn chain(&self, stem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.read(stem, "pem")?)
            .collect::<Result<_, _>>()
            .map_err(|_| self.fault(stem, "pem", Problem::NoCertificate))?;
        if chain.is_empty() {
            return Err(self.fault(stem, "pem", Problem::NoCertificate));
        }
        Ok(chain)
    }

    /// Several certificates in the file are several authorities: that is how one is replaced without a stop.
    fn authority(&self, stem: &str) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.chain(stem)? {
            roots
                .add(certificate)
                .map_err(|error| self.fault(stem, "pem", Problem::Unfit(error.to_string())))?;
        }
        Ok(Arc::new(roots))
    }

    /// The key to sign with, and a secret derived from it.
    fn key(&self, stem: &str) -> Result<(Arc<dyn rustls::sign::SigningKey>, hmac::Key), TlsError> {
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

    fn fault(&self, stem: &str, extension: &str, problem: Problem) -> TlsError {
        TlsError {
            file: self.path(stem, extension),
            remedy: self.remedy(stem, &problem),
            problem,
        }
    }

    fn remedy(&self, stem: &str, problem: &Problem) -> String {
        let mut command = format!("`trunkline certs --certs {}", self.dir.display());
        if let Some(cluster) = self.cluster.as_deref().filter(|cluster| *cluster != DEFAULT_CLUSTER) {
            command.push_str(" --cluster ");
            command.push_str(cluster);
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

/// Checks a node's certificate as the nodes at the other end of its links will.
fn check(
    leaf: &EndEntityCert<'_>,
    chain: &[CertificateDer<'_>],
    authority: &RootCertStore,
    name: &NodeName,
) -> Result<(), Problem> {
    use webpki::{Error, KeyUsage};
    let now = UnixTime::now();
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        leaf.verify_for_usage(
            crypto().signature_verification_algorithms.all,
            &authority.roots,
            chain,
            now,
            usage,
            None,
            None,
        )
        .map_err(|error| match error {
            Error::CertExpired { not_after, .. } => {
                Problem::Expired(now.as_secs().saturating_sub(not_after.as_secs()) / (24 * 60 * 60))
            }
            Error::CertNotValidYet { not_before, .. } => {
                Problem::NotYetValid(not_before.as_secs().saturating_sub(now.as_secs()).div_ceil(60))
            }
            // An authority made anew has the old one's name and another key.
            Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => Problem::OtherAuthority,
            error => Problem::Unfit(error.to_string()),
        })?;
    }
    let host = ServerName::try_from(name.host()).map_err(|error| Problem::Unfit(error.to_string()))?;
    leaf.verify_is_valid_for_subject_name(&host)
        .map_err(|_| Problem::OtherHost(name.host().to_owned()))
}

/// Named here and in this order, so that no feature of another crate changes what is offered.
fn crypto() -> Arc<CryptoProvider> {
    use provider::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    Arc::new(CryptoProvider {
        kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1],
        ..provider::default_provider()
    })
}

fn server(
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    certified: Arc<SingleCertAndKey>,
    alpn: &[u8],
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
        .with_cert_resolver(certified);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

fn client(
    roots: Arc<RootCertStore>,
    certified: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[u8],
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match certified {
        Some(certified) => builder.with_client_cert_resolver(certified),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// Connection ids with nothing in them.
#[derive(Debug)]
struct RandomIds;

impl quinn::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&rand::random::<[u8; CID_LEN]>())
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn::Endpoint;
    use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    const A: &str = "127.0.0.1:1215";
    const B: &str = "127.0.0.1:1216";

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn directory(cluster: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        crate::certs::make(dir.path(), &[name(A), name(B)], cluster).unwrap();
        dir
    }

    /// The certificate and key in these files, whatever they are for.
    fn certified(dir: &Path, stem: &str) -> Arc<SingleCertAndKey> {
        let files = Files::new(dir, None);
        let certified = CertifiedKey::new(files.chain(stem).unwrap(), files.key(stem).unwrap().0);
        Arc::new(SingleCertAndKey::from(certified))
    }

    fn endpoint(tls: &NodeTls, server: Arc<QuicServerConfig>, alpn: &[u8], port: u16) -> Endpoint {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let config = quinn::ServerConfig::with_crypto(server);
        Endpoint::new(
            tls.endpoint_config(alpn),
            Some(config),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .unwrap()
    }

    async fn dial(
        from: &Endpoint,
        config: Arc<QuicClientConfig>,
        to: SocketAddr,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        from.connect_with(quinn::ClientConfig::new(config), to, "127.0.0.1")
            .unwrap()
            .await
    }

    /// What the link endpoint of node A, and the dialler, make of a connection with this client configuration.
    async fn link_to_a(
        dir: &Path,
        config: Arc<QuicClientConfig>,
    ) -> (
        Result<quinn::Connection, quinn::ConnectionError>,
        Result<quinn::Connection, quinn::ConnectionError>,
    ) {
        let a = NodeTls::load(dir, &name(A)).unwrap();
        let listener = endpoint(&a, a.link_server(), LINK_ALPN, 0);
        let dialler = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let accept = async { listener.accept().await.unwrap().await };
        tokio::join!(accept, dial(&dialler, config, listener.local_addr().unwrap()))
    }

    #[tokio::test]
    async fn nodes_of_a_cluster_link_and_know_each_other() {
        let dir = directory("eu-1");
        let b = NodeTls::load(dir.path(), &name(B)).unwrap();
        assert_eq!((b.cluster(), &b.name), ("eu-1", &name(B)));
        let (accepted, dialled) = link_to_a(dir.path(), b.link_client()).await;
        let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
        assert_eq!(peer_node(&accepted, "eu-1"), Ok(name(B)));
        assert_eq!(peer_node(&dialled, "eu-1"), Ok(name(A)));
        assert_eq!(
            peer_node(&accepted, "trunkline"),
            Err(PeerError::OtherCluster("eu-1".to_owned()))
        );
    }

    #[tokio::test]
    async fn a_link_is_refused_to_who_is_no_node_of_the_authority() {
        let (ours, theirs) = (directory("trunkline"), directory("trunkline"));
        let trusted = || Files::new(ours.path(), None).authority(NODE_CA).unwrap();
        let node = certified(theirs.path(), &node_stem(&name(B)));
        let own_client = certified(ours.path(), "client");
        let shown: [Option<Arc<dyn ResolvesClientCert>>; 3] = [Some(node), Some(own_client), None];
        for shown in shown {
            let config = client(trusted(), shown, LINK_ALPN).unwrap();
            let (accepted, dialled) = link_to_a(ours.path(), Arc::new(config.try_into().unwrap())).await;
            assert!(accepted.is_err());
            // In TLS 1.3 a client is done before the server has judged its certificate.
            if let Ok(dialled) = dialled {
                assert!(matches!(
                    dialled.closed().await,
                    quinn::ConnectionError::ConnectionClosed(_)
                ));
            }
        }
        // And a node does not talk to a server of another authority.
        let stranger = NodeTls::load(theirs.path(), &name(B)).unwrap();
        let (accepted, dialled) = link_to_a(ours.path(), stranger.link_client()).await;
        assert!(accepted.is_err() && dialled.is_err());
    }

    #[tokio::test]
    async fn a_client_knows_the_node_and_the_two_protocols_do_not_mix() {
        let dir = directory("trunkline");
        let a = NodeTls::load(dir.path(), &name(A)).unwrap();
        let config = ClientTls::load(dir.path()).unwrap();

        let listener = endpoint(&a, a.client_server(), CLIENT_ALPN, 0);
        let dialler = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let accept = async { listener.accept().await.unwrap().await };
        let address = listener.local_addr().unwrap();
        let (accepted, dialled) = tokio::join!(accept, dial(&dialler, Arc::clone(&config), address));
        assert_eq!(peer_node(&dialled.unwrap(), "trunkline"), Ok(name(A)));
        assert_eq!(
            peer_node(&accepted.unwrap(), "trunkline"),
            Err(PeerError::NoCertificate)
        );

        let (accepted, dialled) = link_to_a(dir.path(), config).await;
        assert!(accepted.is_err() && dialled.is_err());
    }

    #[test]
    fn the_key_exchange_is_post_quantum() {
        use rustls::quic::{ClientConnection, ServerConnection, Version};
        let dir = directory("trunkline");
        let trusted = Files::new(dir.path(), None).authority(NODE_CA).unwrap();
        let node = certified(dir.path(), &node_stem(&name(A)));
        let to = "127.0.0.1".try_into().unwrap();
        let ours = Arc::new(client(trusted, None, CLIENT_ALPN).unwrap());
        let theirs = Arc::new(server(None, node, CLIENT_ALPN).unwrap());
        let mut ours = ClientConnection::new(ours, Version::V1, to, Vec::new()).unwrap();
        let mut theirs = ServerConnection::new(theirs, Version::V1, Vec::new()).unwrap();
        while ours.is_handshaking() || theirs.is_handshaking() {
            let mut bytes = Vec::new();
            while ours.write_hs(&mut bytes).is_some() {}
            theirs.read_hs(&bytes).unwrap();
            // A level's bytes are read before the next level's are given.
            loop {
                let mut bytes = Vec::new();
                let next = theirs.write_hs(&mut bytes);
                ours.read_hs(&bytes).unwrap();
                if next.is_none() {
                    break;
                }
            }
        }
        assert_eq!(
            theirs.negotiated_key_exchange_group().unwrap().name(),
            rustls::NamedGroup::X25519MLKEM768
        );
        assert_eq!(theirs.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(ours.tls13_tickets_received(), 0);
    }

    #[test]
    fn a_restarted_node_resets_the_links_of_its_former_life() {
        let dir = directory("trunkline");
        let start = |port| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let tls = NodeTls::load(dir.path(), &name(A)).unwrap();
            let listener = runtime.block_on(async { endpoint(&tls, tls.link_server(), LINK_ALPN, port) });
            (runtime, listener)
        };
        let (first, listener) = start(0);
        let address = listener.local_addr().unwrap();
        let accepted = first.spawn(async move { (listener.accept().await.unwrap().await.unwrap(), listener) });
        let ours = tokio::runtime::Runtime::new().unwrap();
        let (dialler, dialled) = ours.block_on(async {
            let b = NodeTls::load(dir.path(), &name(B)).unwrap();
            let dialler = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let dialled = dial(&dialler, b.link_client(), address).await.unwrap();
            (dialler, dialled)
        });
        let accepted = ours.block_on(accepted).unwrap();
        // The process ends: its tasks are gone before anything can be said on the connection.
        first.shutdown_timeout(Duration::from_secs(5));
        drop(accepted);

        let (_second, _listener) = start(address.port());
        let error = ours.block_on(async {
            // The reset may have come already, drawn by a packet from before: then these fail.
            if let Ok(mut stream) = dialled.open_uni().await {
                let _ = stream.write_all(&[0; 100]).await;
            }
            tokio::time::timeout(Duration::from_secs(10), dialled.closed()).await
        });
        assert_eq!(error, Ok(quinn::ConnectionError::Reset));
        drop(dialler);
    }

    #[test]
    fn reset_keys_are_stable_and_differ_by_node_and_endpoint() {
        let dir = directory("trunkline");
        let load = |text| NodeTls::load(dir.path(), &name(text)).unwrap();
        assert_eq!(load(A).reset_key(LINK_ALPN), load(A).reset_key(LINK_ALPN));
        assert_ne!(load(A).reset_key(LINK_ALPN), load(A).reset_key(CLIENT_ALPN));
        assert_ne!(load(A).reset_key(LINK_ALPN), load(B).reset_key(LINK_ALPN));
    }

    #[test]
    fn what_names_a_node() {
        for (uri, cluster, node) in [
            ("trunkline://trunkline/node/127.0.0.1%3A1215", "trunkline", A),
            ("trunkline://eu-1.x/node/%5B%3A%3A1%5D%3A1", "eu-1.x", "[::1]:1"),
            ("trunkline://C/node/relay.example.com%3A9", "C", "relay.example.com:9"),
        ] {
            assert_eq!(parse_node_uri(uri), Ok((cluster, name(node))));
            assert_eq!(node_uri(cluster, &name(node)), uri);
        }
        for hostile in [
            "",
            "trunkline://",
            "trunkline:///node/127.0.0.1%3A1215",
            "trunkline://trunkline/client/client",
            "trunkline://trunkline/client/node/127.0.0.1%3A1215",
            "trunkline://trunkline/node/",
            "trunkline://trunkline/node//127.0.0.1%3A1215",
            "trunkline://trunkline/node/127.0.0.1%3A1215/",
            "trunkline://trunkline/node/127.0.0.1%3A1215?x",
            "trunkline://trunkline/node/127.0.0.1%3A1215#x",
            "trunkline://trunkline/node/127.0.0.1%3A1215%3A123456",
            "trunkline://trunkline/node/127.0.0.1%3A01215",
            "trunkline://trunkline/node/127.0.0.1%3A0",
            "trunkline://trunkline/node/127.0.0.1",
            "trunkline://trunkline/node/%5B0%3A0%3A0%3A0%3A0%3A0%3A0%3A1%5D%3A1215",
            "trunkline://trunkline/node/%5B%3A%3A1%251%5D%3A1215",
            "trunkline://trunkline/node/Relay.example.com%3A1215",
            "trunkline://trunkline/node/127.0.0.1%3A1215\0",
            "trunkline://trunkline/node/ 127.0.0.1%3A1215",
            "trunkline://trunkline/node/%31.example.com%3A1215",
            "trunkline://trunkline/NODE/127.0.0.1:1215",
            "trunkline://trunkline/../node/127.0.0.1%3A1215",
            "trunkline://user@trunkline/node/127.0.0.1%3A1215",
            "trunkline://trunkline:443/node/127.0.0.1%3A1215",
            "Trunkline://trunkline/node/127.0.0.1%3A1215",
            " trunkline://trunkline/node/127.0.0.1%3A1215",
            "https://trunkline/node/127.0.0.1%3A1215",
            "spiffe://trunkline/node/127.0.0.1%3A1215",
        ] {
            assert_eq!(parse_node_uri(hostile), Err(PeerError::NoNode), "{hostile:?}");
        }
        let long = format!("trunkline://{}/node/127.0.0.1%3A1215", "x".repeat(64));
        assert_eq!(parse_node_uri(&long), Err(PeerError::NoNode));
    }

    /// Puts a certificate that the node authority issued in place of node A's.
    fn reissue(dir: &Path, change: impl FnOnce(&mut CertificateParams)) {
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
        let authority = KeyPair::from_pem(&read("node-ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("node-ca.pem"), authority).unwrap();
        let key = KeyPair::from_pem(&read("node-127.0.0.1-1215.key")).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            uri("trunkline://trunkline/node/127.0.0.1%3A1215"),
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
        ];
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join("node-127.0.0.1-1215.pem"), certificate.pem()).unwrap();
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn what_is_wrong_with_a_directory_is_said_with_file_and_remedy() {
        type Spoil = fn(&Path);
        const PEM: &str = "node-127.0.0.1-1215.pem";
        const KEY: &str = "node-127.0.0.1-1215.key";
        let cases: [(&str, &str, Spoil); 18] = [
            (PEM, "not for the host 127.0.0.1", |dir| {
                reissue(dir, |params| params.subject_alt_names.truncate(1));
            }),
            ("node-ca.pem", "no such file", |dir| {
                std::fs::remove_file(dir.join("node-ca.pem")).unwrap();
            }),
            ("node-ca.pem", "no certificate", |dir| {
                std::fs::write(dir.join("node-ca.pem"), "nothing").unwrap();
            }),
            (PEM, "no such file", |dir| {
                std::fs::remove_file(dir.join(PEM)).unwrap();
                std::fs::remove_file(dir.join(KEY)).unwrap();
            }),
            (PEM, "no such file", |dir| {
                std::fs::remove_file(dir.join(PEM)).unwrap();
            }),
            (PEM, "no certificate", |dir| {
                std::fs::write(dir.join(PEM), "nothing").unwrap();
            }),
            (PEM, "can't be read", |dir| {
                std::fs::remove_file(dir.join(PEM)).unwrap();
                std::fs::create_dir(dir.join(PEM)).unwrap();
            }),
            (KEY, "no such file", |dir| {
                std::fs::remove_file(dir.join(KEY)).unwrap();
            }),
            (KEY, "no private key", |dir| {
                std::fs::write(dir.join(KEY), "nothing").unwrap();
            }),
            (KEY, "not that of the certificate node-127.0.0.1-1215.pem", |dir| {
                std::fs::copy(dir.join("node-127.0.0.1-1216.key"), dir.join(KEY)).unwrap();
            }),
            (PEM, "expired", |dir| {
                reissue(dir, |params| {
                    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
                });
            }),
            (PEM, "not valid for another", |dir| {
                reissue(dir, |params| {
                    params.not_before = rcgen::date_time_ymd(4000, 1, 1);
                });
            }),
            (PEM, "not issued by node-ca.pem", |dir| {
                std::fs::copy(
                    directory("trunkline").path().join("node-ca.pem"),
                    dir.join("node-ca.pem"),
                )
                .unwrap();
            }),
            (PEM, "names the node 127.0.0.1:1216, not 127.0.0.1:1215", |dir| {
                std::fs::copy(dir.join("node-127.0.0.1-1216.pem"), dir.join(PEM)).unwrap();
            }),
            (PEM, "names no node", |dir| {
                std::fs::copy(dir.join("client.pem"), dir.join(PEM)).unwrap();
            }),
            (PEM, "exactly one URI", |dir| {
                reissue(dir, |params| {
                    params
                        .subject_alt_names
                        .push(uri("trunkline://trunkline/node/127.0.0.1%3A1216"));
                });
            }),
            (PEM, "exactly one URI", |dir| {
                reissue(dir, |params| params.subject_alt_names.clear());
            }),
            (PEM, "TLS can't use it", |dir| {
                reissue(dir, |params| params.extended_key_usages.truncate(1));
            }),
        ];
        for (file, problem, spoil) in cases {
            let dir = directory("trunkline");
            NodeTls::load(dir.path(), &name(A)).unwrap();
            spoil(dir.path());
            let text = NodeTls::load(dir.path(), &name(A)).unwrap_err().to_string();
            let command = format!("`trunkline certs --certs {} {A}`", dir.path().display());
            assert!(
                text.starts_with(&format!("{}: ", dir.path().join(file).display())),
                "{text}"
            );
            assert!(text.contains(problem) && text.contains(&command), "{problem}: {text}");
        }
    }

    #[test]
    fn the_remedy_for_a_named_cluster_names_it() {
        let dir = directory("eu-1");
        let stem = node_stem(&name(A));
        let other = dir.path().join(format!("{}.key", node_stem(&name(B))));
        std::fs::copy(other, dir.path().join(format!("{stem}.key"))).unwrap();
        let text = NodeTls::load(dir.path(), &name(A)).unwrap_err().to_string();
        assert!(text.contains(" --cluster eu-1 127.0.0.1:1215`"), "{text}");
    }

    #[test]
    fn a_node_loads_without_the_authorities_it_does_not_need() {
        let dir = directory("trunkline");
        for file in [
            "client-ca.pem",
            "client-ca.key",
            "node-ca.key",
            "client.pem",
            "client.key",
        ] {
            std::fs::remove_file(dir.path().join(file)).unwrap();
        }
        NodeTls::load(dir.path(), &name(A)).unwrap();
        ClientTls::load(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("node-ca.pem")).unwrap();
        let text = ClientTls::load(dir.path()).err().unwrap().to_string();
        assert!(
            text.contains("node-ca.pem") && text.contains("`trunkline certs"),
            "{text}"
        );
    }

    #[test]
    fn every_form_of_node_name_can_be_certified() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{}.example.com:65535", ["x".repeat(60), "y".repeat(60)].join("."));
        for text in ["[::1]:1215", "localhost:1", "a_b.example.com:1", &long] {
            crate::certs::make(dir.path(), &[name(text)], "trunkline").unwrap();
            assert_eq!(NodeTls::load(dir.path(), &name(text)).unwrap().name, name(text));
        }
    }
}
