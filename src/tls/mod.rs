//! TLS for links and QUIC clients: what is read from a certificate directory, and what is made of it.
//!
//! - TLS 1.3 alone, with the aws-lc provider named explicitly; X25519MLKEM768 is offered and taken first.
//! - A link is mutual: both sides show a certificate of the node authority, for both uses. Which node that is, the one
//!   URI in it says ([`identity`]). A certificate of the client authority is worth nothing there.
//! - A QUIC client checks the node's certificate, and shows one of the client authority where the node wants that.
//! - What an authority has revoked is refused; a revocation list that is over is an error.
//! - No session is resumed, no early data is sent or taken, no key is logged: each connection is a whole handshake.
//! - Links and clients differ in ALPN, and rustls refuses a QUIC connection whose ALPN fits nothing.
//!
//! [`NodeTls`] is what one reading of the directory gives; [`credentials`] reads it again and again, and looks after
//! the connections that were let in by what it held before. [`make`](crate::certs::make) makes the files.

pub(crate) mod credentials;
mod files;
pub(crate) mod identity;
pub(crate) mod redis;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::hmac;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};

use crate::address::{ClientId, NodeName};
use crate::certs::{CLIENT_CA, NODE_CA, client_stem, node_stem};
use crate::transport::{Connection, EndpointConfig};
pub(crate) use files::TlsError;
use files::{Authority, Files, Problem, valid_until, whole_days};
use identity::{Identity, IdentityError};

/// The ALPN of links.
pub(crate) const LINK_ALPN: &[u8] = b"trunkline-link/1";

/// The ALPN of sessions between nodes over a bus.
pub(crate) const BUS_ALPN: &[u8] = b"trunkline-bus/1";

/// The ALPN of QUIC clients.
pub(crate) const CLIENT_ALPN: &[u8] = b"trunkline/1";

/// The length of the connection ids a node gives out: as quinn-proto's own.
const CID_LEN: usize = 8;

/// Whether a node asks QUIC clients for a certificate of the client authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ClientCertificates {
    /// It does not.
    #[default]
    Unasked,
    /// It does, and one without has to show something else.
    Welcome,
    /// None gets in without one.
    Required,
}

/// A node's side of TLS: its certificate and key, and the authorities it trusts.
pub(crate) struct NodeTls {
    own: Arc<Own>,
    nodes: Arc<Trust>,
    clients: Option<Arc<Trust>>,
    link_server: Arc<QuicServerConfig>,
    link_client: Arc<QuicClientConfig>,
    bus_server: Arc<ServerConfig>,
    bus_client: Arc<ClientConfig>,
    client_server: Arc<QuicServerConfig>,
}

/// What a node shows.
struct Own {
    name: NodeName,
    cluster: String,
    chain: Vec<CertificateDer<'static>>,
    certified: Arc<SingleCertAndKey>,
    /// Up to when the certificate holds.
    until: SystemTime,
    reset_secret: hmac::Key,
}

impl Own {
    /// Reads a node's certificate and key. Which authority has issued it is not looked at.
    fn load(files: &mut Files<'_>, name: &NodeName) -> Result<Self, TlsError> {
        let stem = node_stem(name);
        let chain = files.chain(&stem)?;
        let (key, reset_secret) = files.key(&stem)?;
        let fault = |problem: Problem, files: &Files<'_>| files.fault(&stem, "pem", problem);
        let identity = Identity::of_chain(&chain).map_err(|error| fault(Problem::Identity(error), files))?;
        let cluster = identity.cluster.clone();
        files.cluster = Some(cluster.clone());
        let named = identity
            .node_of(&cluster)
            .map_err(|error| fault(Problem::Identity(error), files))?;
        if named != *name {
            return Err(fault(Problem::OtherNode(named, name.clone()), files));
        }
        let until = valid_until(&chain).ok_or_else(|| {
            fault(
                Problem::Unfit("one of its certificates can't be read".to_owned()),
                files,
            )
        })?;
        let certified = CertifiedKey::new(chain.clone(), key);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(files.fault(&stem, "key", Problem::KeyMismatch(format!("{stem}.pem"))));
            }
            Err(error) => return Err(files.fault(&stem, "key", Problem::Unfit(error.to_string()))),
        }
        Ok(Self {
            name: name.clone(),
            cluster,
            chain,
            certified: Arc::new(SingleCertAndKey::from(certified)),
            until,
            reset_secret,
        })
    }
}

impl NodeTls {
    /// Reads and checks the files of a node.
    ///
    /// What a refused connection would show later is found out here.
    pub(crate) fn load(dir: &Path, name: &NodeName, certificates: ClientCertificates) -> Result<Self, TlsError> {
        let mut files = Files::new(dir, Some(name));
        let nodes = Trust::load(&files, NODE_CA, false, &[])?;
        let clients = Trust::of_clients(&files, certificates, &[])?;
        let own = Own::load(&mut files, name)?;
        check(&own.chain, &nodes, name).map_err(|problem| files.fault(&node_stem(name), "pem", problem))?;
        Self::of(Arc::new(own), Arc::new(nodes), clients.map(Arc::new))
            .map_err(|problem| files.fault(&node_stem(name), "pem", problem))
    }

    /// Reads the files again. Each part that is whole takes the place of what it was: what one authority has revoked must
    /// not wait for the files of another, or for the node's own. Gives what is wrong with the others as well.
    pub(crate) fn load_again(
        &self,
        dir: &Path,
        certificates: ClientCertificates,
    ) -> (Result<Self, TlsError>, Vec<TlsError>) {
        let name = &self.own.name;
        let mut files = Files::new(dir, Some(name));
        files.cluster = Some(self.own.cluster.clone());
        let mut faults = Vec::new();
        let former = &self.nodes.authority.issuers;
        let nodes = Trust::load(&files, NODE_CA, false, former);
        let nodes = nodes.and_then(|nodes| nodes.follows(&self.nodes, &files, NODE_CA));
        let nodes = nodes.map_or_else(
            |fault| {
                faults.push(fault);
                Arc::clone(&self.nodes)
            },
            Arc::new,
        );
        let former = self.clients.as_ref().map(|old| old.authority.issuers.as_slice());
        let clients = Trust::of_clients(&files, certificates, former.unwrap_or_default());
        let clients = clients.and_then(|clients| match (clients, &self.clients) {
            (Some(clients), Some(old)) => clients.follows(old, &files, CLIENT_CA).map(Some),
            (clients, _) => Ok(clients),
        });
        let clients = clients.map_or_else(
            |fault| {
                faults.push(fault);
                self.clients.clone()
            },
            |clients| clients.map(Arc::new),
        );
        let own = Own::load(&mut files, name).and_then(|own| {
            let fault = |problem| files.fault(&node_stem(name), "pem", problem);
            if own.cluster != self.own.cluster {
                return Err(fault(Problem::OtherCluster(own.cluster)));
            }
            check(&own.chain, &nodes, name).map_err(fault)?;
            Ok(own)
        });
        let own = own.map_or_else(
            |fault| {
                faults.push(fault);
                Arc::clone(&self.own)
            },
            Arc::new,
        );
        let made = Self::of(own, nodes, clients).map_err(|problem| files.fault(&node_stem(name), "pem", problem));
        (made, faults)
    }

    fn of(own: Arc<Own>, nodes: Arc<Trust>, clients: Option<Arc<Trust>>) -> Result<Self, Problem> {
        let configs = || -> Result<_, Box<dyn std::error::Error>> {
            let certified = || Arc::clone(&own.certified);
            let nodes_as_clients = Some(Arc::clone(&nodes.clients));
            let as_clients = clients.as_ref().map(|clients| Arc::clone(&clients.clients));
            Ok((
                server(nodes_as_clients.clone(), certified(), LINK_ALPN)?.try_into()?,
                client(Arc::clone(&nodes.servers), Some(certified()), LINK_ALPN)?.try_into()?,
                server(nodes_as_clients, certified(), BUS_ALPN)?,
                client(Arc::clone(&nodes.servers), Some(certified()), BUS_ALPN)?,
                server(as_clients, certified(), CLIENT_ALPN)?.try_into()?,
            ))
        };
        let made: (
            QuicServerConfig,
            QuicClientConfig,
            ServerConfig,
            ClientConfig,
            QuicServerConfig,
        ) = configs().map_err(|error| Problem::Unfit(error.to_string()))?;
        let (link_server, link_client, bus_server, bus_client, client_server) = made;
        Ok(Self {
            own,
            nodes,
            clients,
            link_server: Arc::new(link_server),
            link_client: Arc::new(link_client),
            bus_server: Arc::new(bus_server),
            bus_client: Arc::new(bus_client),
            client_server: Arc::new(client_server),
        })
    }

    /// Whether another reading has brought the same.
    fn is(&self, other: &Self) -> bool {
        let clients = match (&self.clients, &other.clients) {
            (Some(one), Some(other)) => one.is(other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        clients && self.nodes.is(&other.nodes) && self.own.chain == other.own.chain
    }

    /// The cluster that the certificate names.
    pub(crate) fn cluster(&self) -> &str {
        &self.own.cluster
    }

    /// For links that other nodes open to this one: only a certificate of the node authority gets in.
    pub(crate) fn link_server(&self) -> Arc<QuicServerConfig> {
        Arc::clone(&self.link_server)
    }

    /// For links that this node opens.
    pub(crate) fn link_client(&self) -> Arc<QuicClientConfig> {
        Arc::clone(&self.link_client)
    }

    /// For sessions that other nodes open to this one over a bus: the same rule.
    pub(crate) fn bus_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.bus_server)
    }

    /// For sessions that this node opens over a bus.
    pub(crate) fn bus_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.bus_client)
    }

    /// For QUIC clients: the node shows its certificate, and asks for one where it was told to.
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
        key.copy_from_slice(hmac::sign(&self.own.reset_secret, alpn).as_ref());
        key
    }

    /// Settings for an endpoint, with which stateless resets work across restarts.
    pub(crate) fn endpoint_config(&self, alpn: &[u8]) -> EndpointConfig {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.reset_key(alpn));
        let mut config = EndpointConfig::new(Arc::new(key));
        // The library's own generator takes an id from before the restart for noise, and sends no reset.
        config.cid_generator(|| Box::new(RandomIds));
        config
    }
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls")
            .field("name", &self.own.name)
            .field("cluster", &self.own.cluster)
            .finish_non_exhaustive()
    }
}

/// An authority, with what it has revoked, as judge of certificates.
#[derive(Debug)]
struct Trust {
    /// Of those that dial.
    clients: Arc<dyn ClientCertVerifier>,
    /// Of those that are dialled.
    servers: Arc<dyn ServerCertVerifier>,
    authority: Authority,
}

impl Trust {
    /// Reads an authority's certificates and lists.
    fn load(files: &Files<'_>, stem: &'static str, may_be_without: bool, former: &[Vec<u8>]) -> Result<Self, TlsError> {
        let authority = files.authority(stem, former)?;
        Self::new(authority, may_be_without).map_err(|problem| files.fault(stem, "pem", problem))
    }

    /// The same of the client authority, if clients are asked for certificates.
    fn of_clients(
        files: &Files<'_>,
        certificates: ClientCertificates,
        former: &[Vec<u8>],
    ) -> Result<Option<Self>, TlsError> {
        let may_be_without = match certificates {
            ClientCertificates::Unasked => return Ok(None),
            ClientCertificates::Welcome => true,
            ClientCertificates::Required => false,
        };
        Self::load(files, CLIENT_CA, may_be_without, former).map(Some)
    }

    fn new(authority: Authority, may_be_without: bool) -> Result<Self, Problem> {
        let mut roots = RootCertStore::empty();
        for certificate in &authority.certificates {
            roots
                .add(certificate.clone())
                .map_err(|error| Problem::Unfit(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let roots = || Arc::clone(&roots);
        // A list counts for the authority that issued it; one without a list has revoked nothing.
        let lists = || authority.lists.iter().map(|list| list.der.clone());
        let mut clients = WebPkiClientVerifier::builder_with_provider(roots(), crypto())
            .with_crls(lists())
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration();
        if may_be_without {
            clients = clients.allow_unauthenticated();
        }
        let servers = WebPkiServerVerifier::builder_with_provider(roots(), crypto())
            .with_crls(lists())
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build();
        let unfit = |error: rustls::server::VerifierBuilderError| Problem::Unfit(error.to_string());
        Ok(Self {
            clients: clients.build().map_err(unfit)?,
            servers: servers.map_err(unfit)?,
            authority,
        })
    }

    /// Itself, if it may take the place of `old`: nothing that was revoked is good again by a list that is missing, or
    /// older, while its authority is trusted.
    fn follows(self, old: &Self, files: &Files<'_>, stem: &'static str) -> Result<Self, TlsError> {
        for earlier in &old.authority.lists {
            let later = self.authority.lists.iter().filter(|list| list.issuer == earlier.issuer);
            match later.map(|list| list.number).max() {
                Some(number) if number < earlier.number => {
                    return Err(files.fault(stem, "crl", Problem::ListOlder(number, earlier.number)));
                }
                None if self.authority.issuers.contains(&earlier.issuer) => {
                    return Err(files.fault(stem, "crl", Problem::ListGone));
                }
                Some(_) | None => {}
            }
        }
        Ok(self)
    }

    /// Whether another reading has brought the same.
    fn is(&self, other: &Self) -> bool {
        self.authority == other.authority
    }

    /// When the first of its lists is over.
    fn lists_until(&self) -> Option<SystemTime> {
        self.authority.lists.iter().map(|list| list.until).min()
    }

    /// Judges a chain that was shown in a handshake some time ago, as it would be judged now.
    fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        let (leaf, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.clients.verify_client_cert(leaf, rest, now).map(|_| ())
    }
}

/// The TLS of QUIC clients.
#[derive(Debug)]
pub(crate) struct ClientTls;

impl ClientTls {
    /// Reads the node authority, which is all a client needs to know a node by, and what `name` names of the
    /// certificates of clients, to be shown to nodes that ask for one.
    pub(crate) fn load(dir: &Path, name: Option<&ClientId>) -> Result<Arc<QuicClientConfig>, TlsError> {
        let files = Files::new(dir, None);
        let certified: Option<Arc<dyn ResolvesClientCert>> = match name {
            Some(name) => {
                let stem = client_stem(name);
                let certified = CertifiedKey::new(files.chain(&stem)?, files.key(&stem)?.0);
                if certified.keys_match().is_err() {
                    return Err(files.fault(&stem, "key", Problem::KeyMismatch(format!("{stem}.pem"))));
                }
                Some(Arc::new(SingleCertAndKey::from(certified)))
            }
            None => None,
        };
        let trust = Trust::load(&files, NODE_CA, false, &[])?;
        let config = || -> Result<QuicClientConfig, Box<dyn std::error::Error>> {
            Ok(client(trust.servers, certified, CLIENT_ALPN)?.try_into()?)
        };
        config()
            .map(Arc::new)
            .map_err(|error| files.fault(NODE_CA, "pem", Problem::Unfit(error.to_string())))
    }
}

/// The certificates that the other end of a connection showed; the handshake has proved them.
pub(crate) fn peer_chain(connection: &Connection) -> Option<Vec<CertificateDer<'static>>> {
    let identity = connection.peer_identity()?;
    identity.downcast().ok().map(|chain| *chain)
}

/// The node at the other end of a connection, as its certificate says.
pub(crate) fn peer_node(connection: &Connection, cluster: &str) -> Result<NodeName, IdentityError> {
    let chain = peer_chain(connection).ok_or(IdentityError::NoCertificate)?;
    node_of(&chain, cluster)
}

/// The node that certificates name which it has proved.
pub(crate) fn node_of(chain: &[CertificateDer<'_>], cluster: &str) -> Result<NodeName, IdentityError> {
    Identity::of_chain(chain)?.node_of(cluster)
}

/// The client at the other end of a connection, as its certificate says; `None` if it showed none.
pub(crate) fn peer_client(connection: &Connection, cluster: &str) -> Result<Option<ClientId>, IdentityError> {
    match peer_chain(connection) {
        Some(chain) => Identity::of_chain(&chain)?.client_of(cluster).map(Some),
        None => Ok(None),
    }
}

/// Checks a node's certificate as the nodes at the other end of its links will.
fn check(chain: &[CertificateDer<'_>], nodes: &Trust, name: &NodeName) -> Result<(), Problem> {
    let host = ServerName::try_from(name.host()).map_err(|error| Problem::Unfit(error.to_string()))?;
    let now = UnixTime::now();
    let (first, rest) = chain.split_first().ok_or(Problem::NoCertificate)?;
    let as_server = nodes
        .servers
        .verify_server_cert(first, rest, &host, &[], now)
        .map(|_| ());
    let problem = |error: rustls::Error| match &error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::ExpiredContext { not_after, .. } => {
                Problem::Expired(whole_days(now.as_secs().saturating_sub(not_after.as_secs())))
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                Problem::NotYetValid(not_before.as_secs().saturating_sub(now.as_secs()).div_ceil(60))
            }
            CertificateError::Revoked => Problem::Revoked,
            // An authority made anew may have the old one's name and another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Problem::OtherAuthority,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Problem::OtherHost(name.host().to_owned())
            }
            other => Problem::Unfit(other.to_string()),
        },
        other => Problem::Unfit(other.to_string()),
    };
    as_server.and_then(|()| nodes.judge(chain, now)).map_err(problem)
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
    verifier: Arc<dyn ServerCertVerifier>,
    certified: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[u8],
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        // rustls calls every verifier that is not made of its roots alone dangerous; this one is its own, with lists.
        .dangerous()
        .with_custom_certificate_verifier(verifier);
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

impl quinn_proto::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn_proto::ConnectionId {
        quinn_proto::ConnectionId::new(&rand::random::<[u8; CID_LEN]>())
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
    use crate::transport::{self, ClientConfig, ConnectionError, Endpoint, MessageWriter};
    use bytes::Bytes;
    use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    const A: &str = "127.0.0.1:1215";
    const B: &str = "127.0.0.1:1216";

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn load(dir: &Path, node: &str) -> Result<NodeTls, TlsError> {
        NodeTls::load(dir, &name(node), ClientCertificates::Unasked)
    }

    fn directory(cluster: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let bob = "bob".parse().unwrap();
        crate::certs::make_for(dir.path(), &[name(A), name(B)], &[bob], cluster).unwrap();
        dir
    }

    fn trust(dir: &Path) -> Trust {
        Trust::load(&Files::new(dir, None), NODE_CA, false, &[]).unwrap()
    }

    /// The certificate and key in these files, whatever they are for.
    fn certified(dir: &Path, stem: &str) -> Arc<SingleCertAndKey> {
        let files = Files::new(dir, None);
        let certified = CertifiedKey::new(files.chain(stem).unwrap(), files.key(stem).unwrap().0);
        Arc::new(SingleCertAndKey::from(certified))
    }

    fn endpoint(tls: &NodeTls, server: Arc<QuicServerConfig>, alpn: &[u8], port: u16) -> Endpoint {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let config = quinn_proto::ServerConfig::with_crypto(server);
        start(tls.endpoint_config(alpn), Some(config), socket)
    }

    fn dialler() -> Endpoint {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        start(EndpointConfig::default(), None, socket)
    }

    fn start(
        config: EndpointConfig,
        server: Option<quinn_proto::ServerConfig>,
        socket: std::net::UdpSocket,
    ) -> Endpoint {
        transport::endpoint(config, server, socket, &TaskTracker::new(), &CancellationToken::new()).unwrap()
    }

    async fn dial(
        from: &Endpoint,
        config: Arc<QuicClientConfig>,
        to: SocketAddr,
    ) -> Result<Connection, ConnectionError> {
        from.connect(ClientConfig::new(config), to, "127.0.0.1").unwrap().await
    }

    /// What the link endpoint of node A, and the dialler, make of a connection with this client configuration.
    async fn link_to_a(
        dir: &Path,
        config: Arc<QuicClientConfig>,
    ) -> (Result<Connection, ConnectionError>, Result<Connection, ConnectionError>) {
        let a = load(dir, A).unwrap();
        let listener = endpoint(&a, a.link_server(), LINK_ALPN, 0);
        let dialler = dialler();
        let accept = async { listener.accept().await.unwrap().accept().await };
        tokio::join!(accept, dial(&dialler, config, listener.local_addr().unwrap()))
    }

    #[tokio::test]
    async fn nodes_of_a_cluster_link_and_know_each_other() {
        let dir = directory("eu-1");
        let b = load(dir.path(), B).unwrap();
        assert_eq!((b.cluster(), &b.own.name), ("eu-1", &name(B)));
        let (accepted, dialled) = link_to_a(dir.path(), b.link_client()).await;
        let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
        assert_eq!(peer_node(&accepted, "eu-1"), Ok(name(B)));
        assert_eq!(peer_node(&dialled, "eu-1"), Ok(name(A)));
        assert_eq!(
            peer_node(&accepted, "trunkline"),
            Err(IdentityError::OtherCluster("eu-1".to_owned()))
        );
    }

    #[tokio::test]
    async fn a_link_is_refused_to_who_is_no_node_of_the_authority() {
        let (ours, theirs) = (directory("trunkline"), directory("trunkline"));
        let trusted = || trust(ours.path()).servers;
        let node = certified(theirs.path(), &node_stem(&name(B)));
        let own_client = certified(ours.path(), "client-bob");
        let shown: [Option<Arc<dyn ResolvesClientCert>>; 3] = [Some(node), Some(own_client), None];
        for shown in shown {
            let config = client(trusted(), shown, LINK_ALPN).unwrap();
            let (accepted, dialled) = link_to_a(ours.path(), Arc::new(config.try_into().unwrap())).await;
            assert!(accepted.is_err());
            // In TLS 1.3 a client is done before the server has judged its certificate.
            if let Ok(dialled) = dialled {
                assert!(matches!(dialled.closed().await, ConnectionError::ConnectionClosed(_)));
            }
        }
        // And a node does not talk to a server of another authority.
        let stranger = load(theirs.path(), B).unwrap();
        let (accepted, dialled) = link_to_a(ours.path(), stranger.link_client()).await;
        assert!(accepted.is_err() && dialled.is_err());
    }

    #[tokio::test]
    async fn a_client_knows_the_node_and_the_two_protocols_do_not_mix() {
        let dir = directory("trunkline");
        let a = load(dir.path(), A).unwrap();
        let config = ClientTls::load(dir.path(), None).unwrap();

        let listener = endpoint(&a, a.client_server(), CLIENT_ALPN, 0);
        let dialler = dialler();
        let accept = async { listener.accept().await.unwrap().accept().await };
        let address = listener.local_addr().unwrap();
        let (accepted, dialled) = tokio::join!(accept, dial(&dialler, Arc::clone(&config), address));
        assert_eq!(peer_node(&dialled.unwrap(), "trunkline"), Ok(name(A)));
        assert_eq!(
            peer_node(&accepted.unwrap(), "trunkline"),
            Err(IdentityError::NoCertificate)
        );

        let (accepted, dialled) = link_to_a(dir.path(), config).await;
        assert!(accepted.is_err() && dialled.is_err());
    }

    #[test]
    fn the_key_exchange_is_post_quantum() {
        use rustls::quic::{ClientConnection, ServerConnection, Version};
        let dir = directory("trunkline");
        let trusted = trust(dir.path()).servers;
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
            let tls = load(dir.path(), A).unwrap();
            let listener = runtime.block_on(async { endpoint(&tls, tls.link_server(), LINK_ALPN, port) });
            (runtime, listener)
        };
        let (first, listener) = start(0);
        let address = listener.local_addr().unwrap();
        let accepted = first.spawn(async move { (listener.accept().await.unwrap().accept().await.unwrap(), listener) });
        let ours = tokio::runtime::Runtime::new().unwrap();
        let (dialler, dialled) = ours.block_on(async {
            let b = load(dir.path(), B).unwrap();
            let dialler = dialler();
            let dialled = dial(&dialler, b.link_client(), address).await.unwrap();
            (dialler, dialled)
        });
        let accepted = ours.block_on(accepted).unwrap();
        // The process ends: its tasks are gone before anything can be said on the connection.
        first.shutdown_timeout(Duration::from_secs(5));
        drop(accepted);

        let (_second, _listener) = start(address.port());
        let error = ours.block_on(async {
            // The reset may have come already, drawn by a packet from before: then this fails.
            let mut something = std::iter::once([vec![0; 100].into(), Bytes::new()]);
            let _ = MessageWriter::new(&dialled).write(&mut something).await;
            tokio::time::timeout(Duration::from_secs(10), dialled.closed()).await
        });
        assert_eq!(error, Ok(ConnectionError::Reset));
        drop(dialler);
    }

    #[test]
    fn reset_keys_are_stable_and_differ_by_node_and_endpoint() {
        let dir = directory("trunkline");
        let load = |text| load(dir.path(), text).unwrap();
        assert_eq!(load(A).reset_key(LINK_ALPN), load(A).reset_key(LINK_ALPN));
        assert_ne!(load(A).reset_key(LINK_ALPN), load(A).reset_key(CLIENT_ALPN));
        assert_ne!(load(A).reset_key(LINK_ALPN), load(B).reset_key(LINK_ALPN));
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
            (PEM, "is that of the client bob", |dir| {
                std::fs::copy(dir.join("client-bob.pem"), dir.join(PEM)).unwrap();
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
            load(dir.path(), A).unwrap();
            spoil(dir.path());
            let text = load(dir.path(), A).unwrap_err().to_string();
            let command = format!("`trunkline certs --certs {} {A}`", dir.path().display());
            assert!(
                text.starts_with(&format!("{}: ", dir.path().join(file).display())),
                "{text}"
            );
            assert!(text.contains(problem) && text.contains(&command), "{problem}: {text}");
        }
    }

    /// A list of the node authority, up to this year, that has revoked nothing.
    fn list(dir: &Path, year: i32) -> String {
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
        let authority = KeyPair::from_pem(&read("node-ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("node-ca.pem"), authority).unwrap();
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(year, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&issuer).unwrap().pem().unwrap()
    }

    #[test]
    fn a_revocation_list_that_is_no_good_is_an_error() {
        type Spoil = fn(&Path) -> String;
        let cases: [(&str, Spoil); 5] = [
            ("a revocation list in it expired", |dir| list(dir, 2021)),
            ("was not issued by an authority in node-ca.pem", |_| {
                list(directory("trunkline").path(), 4000)
            }),
            ("no revocation list in PEM", |_| String::new()),
            ("no revocation list in PEM", |_| {
                "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n".to_owned()
            }),
            // The first is good.
            ("a revocation list in it expired", |dir| {
                list(dir, 4000) + &list(dir, 2021)
            }),
        ];
        for (problem, spoil) in cases {
            let dir = directory("trunkline");
            let file = dir.path().join("node-ca.crl");
            std::fs::write(&file, list(dir.path(), 4000)).unwrap();
            load(dir.path(), A).unwrap();
            std::fs::write(&file, spoil(dir.path())).unwrap();
            let text = load(dir.path(), A).unwrap_err().to_string();
            assert!(text.starts_with(&format!("{}: ", file.display())), "{text}");
            assert!(
                text.contains(problem) && text.contains("--renew-lists`"),
                "{problem}: {text}"
            );
        }
    }

    #[test]
    fn what_one_authority_has_revoked_does_not_wait_for_the_files_of_another() {
        let dir = directory("trunkline");
        let both = ClientCertificates::Required;
        let tls = NodeTls::load(dir.path(), &name(A), both).unwrap();
        let own = |stem: &str| Files::new(dir.path(), None).chain(stem).unwrap();
        let (node, bob) = (own(&node_stem(&name(B))), own("client-bob"));
        let is_good = |tls: &NodeTls| {
            let now = UnixTime::now();
            let clients = tls.clients.as_ref().unwrap();
            [tls.nodes.judge(&node, now).is_ok(), clients.judge(&bob, now).is_ok()]
        };
        assert_eq!(is_good(&tls), [true, true]);
        let file = |name: &str| dir.path().join(name);
        let pem = |stem: &str| file(stem).with_added_extension("pem");

        // The node authority's file is no good, and so is the node's own certificate.
        std::fs::write(file("node-ca.crl"), "no list").unwrap();
        std::fs::write(pem(&node_stem(&name(A))), "nothing").unwrap();
        crate::certs::revoke(dir.path(), &[pem("client-bob")]).unwrap();
        let (made, faults) = tls.load_again(dir.path(), both);
        let former = tls;
        let tls = made.unwrap();
        assert!(!tls.is(&former));
        assert_eq!((is_good(&tls), faults.len()), ([true, false], 2));
        assert!(tls.load_again(dir.path(), both).0.unwrap().is(&tls));

        // And the other way round.
        std::fs::remove_file(file("node-ca.crl")).unwrap();
        crate::certs::revoke(dir.path(), &[pem(&node_stem(&name(B)))]).unwrap();
        std::fs::write(file("client-ca.crl"), "no list").unwrap();
        let (made, faults) = tls.load_again(dir.path(), both);
        assert_eq!((is_good(&made.unwrap()), faults.len()), ([false, false], 2));
    }

    #[test]
    fn nothing_is_good_again_by_a_list_that_is_missing_or_older() {
        let dir = directory("trunkline");
        let pem = |node: &str| dir.path().join(node_stem(&name(node))).with_added_extension("pem");
        let file = dir.path().join("node-ca.crl");
        crate::certs::revoke(dir.path(), &[pem(B)]).unwrap();
        let older = std::fs::read(&file).unwrap();
        crate::certs::renew_lists(dir.path()).unwrap();
        let newer = std::fs::read(&file).unwrap();
        let tls = load(dir.path(), A).unwrap();
        let fault = |tls: &NodeTls| {
            let (made, faults) = tls.load_again(dir.path(), ClientCertificates::Unasked);
            assert!(made.is_ok());
            faults.into_iter().map(|fault| fault.to_string()).collect::<String>()
        };
        assert_eq!(fault(&tls), "");
        std::fs::write(&file, older).unwrap();
        assert!(fault(&tls).contains("older than the one in force: it has the number 1, that one 2"));
        std::fs::remove_file(&file).unwrap();
        assert!(fault(&tls).contains("the list of an authority that is still trusted is gone"));

        // Another authority comes, with a list of its own in place of that one.
        let other = directory("trunkline");
        crate::certs::revoke(
            other.path(),
            &[other.path().join(node_stem(&name(B))).with_added_extension("pem")],
        )
        .unwrap();
        let read = |dir: &Path, name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let both = read(dir.path(), "node-ca.pem") + &read(other.path(), "node-ca.pem");
        std::fs::write(dir.path().join("node-ca.pem"), &both).unwrap();
        std::fs::copy(other.path().join("node-ca.crl"), &file).unwrap();
        assert!(fault(&tls).contains("is gone"));
        std::fs::write(
            &file,
            String::from_utf8(newer).unwrap() + &read(other.path(), "node-ca.crl"),
        )
        .unwrap();
        assert_eq!(fault(&tls), "");
        // Its list is made anew, and the other one's stays.
        crate::certs::renew_lists(dir.path()).unwrap();
        let tls = tls.load_again(dir.path(), ClientCertificates::Unasked).0.unwrap();
        assert_eq!(tls.nodes.authority.lists.len(), 2);
        // The other one goes before its list does.
        let own = read(dir.path(), "node-ca.pem").replace(&read(other.path(), "node-ca.pem"), "");
        std::fs::write(dir.path().join("node-ca.pem"), own).unwrap();
        assert_eq!(fault(&tls), "");
    }

    #[test]
    fn a_node_whose_own_certificate_is_revoked_does_not_start() {
        let dir = directory("trunkline");
        let own = dir.path().join(node_stem(&name(A))).with_added_extension("pem");
        crate::certs::revoke(dir.path(), std::slice::from_ref(&own)).unwrap();
        let text = load(dir.path(), A).unwrap_err().to_string();
        assert!(text.contains("the certificate is revoked"), "{text}");
        load(dir.path(), B).unwrap();
    }

    #[test]
    fn the_remedy_for_a_named_cluster_names_it() {
        let dir = directory("eu-1");
        let stem = node_stem(&name(A));
        let other = dir.path().join(format!("{}.key", node_stem(&name(B))));
        std::fs::copy(other, dir.path().join(format!("{stem}.key"))).unwrap();
        let text = load(dir.path(), A).unwrap_err().to_string();
        assert!(text.contains(" --cluster eu-1 127.0.0.1:1215`"), "{text}");
    }

    #[test]
    fn a_node_loads_without_the_authorities_it_does_not_need() {
        let dir = directory("trunkline");
        for file in [
            "client-ca.pem",
            "client-ca.key",
            "node-ca.key",
            "client-bob.pem",
            "client-bob.key",
        ] {
            std::fs::remove_file(dir.path().join(file)).unwrap();
        }
        load(dir.path(), A).unwrap();
        ClientTls::load(dir.path(), None).unwrap();
        std::fs::remove_file(dir.path().join("node-ca.pem")).unwrap();
        let text = ClientTls::load(dir.path(), None).err().unwrap().to_string();
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
            assert_eq!(load(dir.path(), text).unwrap().own.name, name(text));
        }
    }
}
