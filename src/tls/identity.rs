//! Who a certificate says its holder is: pure reading, of what others send.
//!
//! A certificate of a cluster names one node or one client, by the only URI in it:
//! `trunkline://CLUSTER/node/HOST%3APORT` or `trunkline://CLUSTER/client/NAME`.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::address::{ClientId, NodeName};
use crate::certs::{URI_SCHEME, client_uri, is_cluster, node_uri};

/// Who the holder of a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: String,
    pub(crate) holder: Holder,
}

/// The part that a certificate gives its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A node, by its name.
    Node(NodeName),
    /// A client, by the id that it has on every node.
    Client(ClientId),
}

/// Why a certificate makes its holder nobody here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdentityError {
    /// It can't be read, or there is none.
    #[error("no readable certificate was shown")]
    NoCertificate,
    /// There is no URI in it, or several.
    #[error("the certificate does not have exactly one URI name")]
    NotOneUri,
    /// The URI is of neither form.
    #[error("the URI in the certificate names no node and no client")]
    NoName,
    /// It names a client where a node is wanted.
    #[error("the certificate is that of the client {0}")]
    Client(ClientId),
    /// It names a node where a client is wanted.
    #[error("the certificate is that of the node {0}")]
    Node(NodeName),
    /// The holder is of another cluster.
    #[error("the certificate is for the cluster {0:?}")]
    OtherCluster(String),
}

impl Identity {
    /// Reads the first certificate of a chain. Says nothing of who issued it.
    pub(crate) fn of_chain(chain: &[CertificateDer<'_>]) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| IdentityError::NoCertificate)?;
        Self::of_leaf(&leaf)
    }

    pub(crate) fn of_leaf(leaf: &EndEntityCert<'_>) -> Result<Self, IdentityError> {
        let mut uris = leaf.valid_uri_names();
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Self::of_uri(uri),
            _ => Err(IdentityError::NotOneUri),
        }
    }

    /// Reads a URI, in its one canonical spelling.
    pub(crate) fn of_uri(uri: &str) -> Result<Self, IdentityError> {
        let parts = || {
            let (cluster, path) = uri.strip_prefix(URI_SCHEME)?.split_once('/')?;
            if !is_cluster(cluster) {
                return None;
            }
            let (kind, text) = path.split_once('/')?;
            let (holder, canonical) = match kind {
                "node" => {
                    let plain = text.replace("%3A", ":").replace("%5B", "[").replace("%5D", "]");
                    let name: NodeName = plain.parse().ok()?;
                    let canonical = node_uri(cluster, &name);
                    (Holder::Node(name), canonical)
                }
                "client" => {
                    let id: ClientId = text.parse().ok()?;
                    // Ids of that form are given out, to anyone.
                    if id.is_temporary() {
                        return None;
                    }
                    let canonical = client_uri(cluster, &id);
                    (Holder::Client(id), canonical)
                }
                _ => return None,
            };
            let cluster = cluster.to_owned();
            (canonical == uri).then_some(Self { cluster, holder })
        };
        parts().ok_or(IdentityError::NoName)
    }

    /// The node of this cluster that the holder is.
    pub(crate) fn node_of(self, cluster: &str) -> Result<NodeName, IdentityError> {
        match self.holder {
            _ if self.cluster != cluster => Err(IdentityError::OtherCluster(self.cluster)),
            Holder::Node(name) => Ok(name),
            Holder::Client(id) => Err(IdentityError::Client(id)),
        }
    }

    /// The client of this cluster that the holder is.
    pub(crate) fn client_of(self, cluster: &str) -> Result<ClientId, IdentityError> {
        match self.holder {
            _ if self.cluster != cluster => Err(IdentityError::OtherCluster(self.cluster)),
            Holder::Client(id) => Ok(id),
            Holder::Node(name) => Err(IdentityError::Node(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    #[test]
    fn what_names_a_node_or_a_client() {
        for (uri, cluster, node) in [
            (
                "trunkline://trunkline/node/127.0.0.1%3A1215",
                "trunkline",
                "127.0.0.1:1215",
            ),
            ("trunkline://eu-1.x/node/%5B%3A%3A1%5D%3A1", "eu-1.x", "[::1]:1"),
            ("trunkline://C/node/relay.example.com%3A9", "C", "relay.example.com:9"),
        ] {
            let identity = Identity::of_uri(uri).unwrap();
            assert_eq!(identity.clone().node_of(cluster), Ok(name(node)));
            assert_eq!(
                identity.clone().client_of(cluster),
                Err(IdentityError::Node(name(node)))
            );
            assert_eq!(
                identity.node_of("other"),
                Err(IdentityError::OtherCluster(cluster.to_owned()))
            );
            assert_eq!(node_uri(cluster, &name(node)), uri);
        }
        let bob: ClientId = "bob.2_x-Y".parse().unwrap();
        let identity = Identity::of_uri("trunkline://eu-1/client/bob.2_x-Y").unwrap();
        assert_eq!(identity.clone().client_of("eu-1"), Ok(bob.clone()));
        assert_eq!(identity.node_of("eu-1"), Err(IdentityError::Client(bob)));
    }

    #[test]
    fn what_names_nobody() {
        for hostile in [
            "",
            "trunkline://",
            "trunkline:///node/127.0.0.1%3A1215",
            "trunkline://trunkline/client/",
            "trunkline://trunkline/client/a/b",
            "trunkline://trunkline/client/a%20b",
            "trunkline://trunkline/client/a:b",
            "trunkline://trunkline/client/651444",
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
            assert_eq!(Identity::of_uri(hostile), Err(IdentityError::NoName), "{hostile:?}");
        }
        let long = format!("trunkline://{}/node/127.0.0.1%3A1215", "x".repeat(64));
        assert_eq!(Identity::of_uri(&long), Err(IdentityError::NoName));
        assert_eq!(Identity::of_chain(&[]), Err(IdentityError::NoCertificate));
        let noise = CertificateDer::from(vec![0x30, 3, 1, 2, 3]);
        assert_eq!(Identity::of_chain(&[noise]), Err(IdentityError::NoCertificate));
    }
}
