//! The handshake of a session between two nodes over a bus: TLS 1.3, carried in packets. Pure.
//!
//! It is the handshake that links by QUIC have, with the same certificates, checks and key exchange, and an ALPN of its
//! own. What it agrees on gives the keys of the session ([`seal`](super::seal)) by TLS's exporter (RFC 8446, section
//! 7.5), so they are forgotten with it, and who learns a certificate's key later can open nothing of it. The exporter's
//! context holds the session's id and the name and epoch of each node: two nodes that do not agree on those have
//! different keys.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::seal::{KEY, Key, Opener, Sealer};
use crate::address::NodeName;
use crate::wire::packet::SessionId;

/// What the exporter is told the keys are for.
const LABEL: &[u8] = b"EXPORTER-trunkline-bus/1";

/// A node as the other one is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Party {
    pub(crate) name: NodeName,
    pub(crate) epoch: u64,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("the handshake holds what is no TLS: {0}")]
    NoTls(#[from] io::Error),
    #[error("{0} is no name that TLS knows")]
    Name(NodeName),
    #[error("the other node has started anew meanwhile")]
    OtherEpoch,
    #[error("the handshake goes on behind its end")]
    BehindEnd,
}

/// One side of a handshake that is going on.
#[derive(Debug)]
pub(crate) struct Handshake {
    tls: Connection,
    session: SessionId,
    opens: bool,
    own: Party,
    peer: NodeName,
    peer_epoch: Option<u64>,
}

/// What a handshake has come to.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    /// The certificates that the other side has proved.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) peer_epoch: u64,
}

impl Handshake {
    /// At the node that opens the session, to `peer`.
    pub(crate) fn open(
        config: Arc<ClientConfig>,
        session: SessionId,
        own: Party,
        peer: NodeName,
    ) -> Result<Self, HandshakeError> {
        let host = ServerName::try_from(peer.host().to_owned());
        let server = host.map_err(|_| HandshakeError::Name(peer.clone()))?;
        let tls = ClientConnection::new(config, server)?.into();
        Ok(Self {
            tls,
            session,
            opens: true,
            own,
            peer,
            peer_epoch: None,
        })
    }

    /// At the other node, which has got the first packet of a node that says it is `peer`.
    pub(crate) fn answer(
        config: Arc<ServerConfig>,
        session: SessionId,
        own: Party,
        peer: Party,
    ) -> Result<Self, HandshakeError> {
        Ok(Self {
            tls: ServerConnection::new(config)?.into(),
            session,
            opens: false,
            own,
            peer: peer.name,
            peer_epoch: Some(peer.epoch),
        })
    }

    /// Takes what has come from the other side, with the epoch that was said with it.
    pub(crate) fn take(&mut self, epoch: u64, mut bytes: &[u8]) -> Result<(), HandshakeError> {
        if *self.peer_epoch.get_or_insert(epoch) != epoch {
            return Err(HandshakeError::OtherEpoch);
        }
        while !bytes.is_empty() {
            // Behind the other side's farewell nothing is read any more.
            if self.tls.read_tls(&mut bytes)? == 0 {
                return Err(HandshakeError::BehindEnd);
            }
            self.tls.process_new_packets()?;
        }
        Ok(())
    }

    /// What is to be sent to the other side now; `None`: nothing.
    pub(crate) fn due(&mut self) -> Result<Option<Bytes>, HandshakeError> {
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out)?;
        }
        Ok((!out.is_empty()).then(|| out.into()))
    }

    /// Whether the two sides have agreed. What is due then has to be sent all the same.
    pub(crate) fn is_done(&self) -> bool {
        !self.tls.is_handshaking()
    }

    /// The keys, once the handshake [is done](Self::is_done).
    pub(crate) fn agreed(self) -> Result<Agreed, HandshakeError> {
        let peer = Party {
            name: self.peer,
            epoch: self.peer_epoch.ok_or(HandshakeError::OtherEpoch)?,
        };
        let peer_epoch = peer.epoch;
        let (opener, answerer) = if self.opens { (self.own, peer) } else { (peer, self.own) };
        let mut context = BytesMut::from(&self.session.0[..]);
        for party in [opener, answerer] {
            context.extend_from_slice(&party.epoch.to_be_bytes());
            let name = party.name.as_str().as_bytes();
            context.extend_from_slice(&(name.len() as u64).to_be_bytes());
            context.extend_from_slice(name);
        }
        let mut keys: [Key; 2] = [[0; KEY]; 2];
        for (key, direction) in keys.iter_mut().zip(*b"ab") {
            let mut context = context.to_vec();
            context.push(direction);
            self.tls.export_keying_material(&mut *key, LABEL, Some(&context))?;
        }
        let [of_opener, of_answerer] = keys;
        let (own, others) = if self.opens {
            (of_opener, of_answerer)
        } else {
            (of_answerer, of_opener)
        };
        let chain = self.tls.peer_certificates().unwrap_or_default();
        Ok(Agreed {
            sealer: Sealer::new(&own, self.session),
            opener: Opener::new(&others),
            chain: chain
                .iter()
                .map(|certificate| certificate.clone().into_owned())
                .collect(),
            peer_epoch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs;
    use crate::sealed::seal::Opened;
    use crate::tls::{ClientCertificates, NodeTls, node_of};
    use crate::wire::packet::{self, Packet};

    const SESSION: SessionId = SessionId([9; 16]);

    fn party(index: usize) -> Party {
        Party {
            name: format!("127.0.0.1:{}", 1215 + index).parse().unwrap(),
            epoch: index as u64,
        }
    }

    fn both() -> [NodeTls; 2] {
        let dir = tempfile::tempdir().unwrap();
        let parties = [0, 1].map(party);
        let names = parties.clone().map(|party| party.name);
        certs::make_for(dir.path(), &names, &[], "test").unwrap();
        parties.map(|party| NodeTls::load(dir.path(), &party.name, ClientCertificates::Unasked).unwrap())
    }

    /// Has node 0 open a session with node 1, which hears that it is of `claimed`. Gives what each has of it.
    fn shake(tls: &[NodeTls; 2], claimed: Party) -> Result<[Agreed; 2], HandshakeError> {
        let mut opener = Handshake::open(tls[0].bus_client(), SESSION, party(0), party(1).name)?;
        let mut answerer = Handshake::answer(tls[1].bus_server(), SESSION, party(1), claimed)?;
        while !(opener.is_done() && answerer.is_done()) {
            if let Some(bytes) = opener.due()? {
                answerer.take(party(0).epoch, &bytes)?;
            }
            if let Some(bytes) = answerer.due()? {
                opener.take(party(1).epoch, &bytes)?;
            }
        }
        Ok([opener.agreed()?, answerer.agreed()?])
    }

    /// Whether what the first seals is opened by the second.
    fn passes(from: &mut Agreed, to: &mut Agreed) -> bool {
        let mut packet = BytesMut::new();
        from.sealer.begin(&mut packet);
        packet.extend_from_slice(b"hello");
        let Ok(Packet::Sealed { number, bytes, .. }) = packet::read(from.sealer.seal(packet)) else {
            panic!("it is sealed");
        };
        to.opener.open(number, bytes) == Ok(Opened::Next("hello".into()))
    }

    #[test]
    fn two_nodes_agree_on_keys_and_know_each_other() {
        let tls = both();
        let [mut opener, mut answerer] = shake(&tls, party(0)).unwrap();
        assert!(passes(&mut opener, &mut answerer) && passes(&mut answerer, &mut opener));
        assert_eq!(node_of(&opener.chain, "test").unwrap(), party(1).name);
        assert_eq!(node_of(&answerer.chain, "test").unwrap(), party(0).name);
        assert_eq!((opener.peer_epoch, answerer.peer_epoch), (1, 0));
        // What one has sealed is nothing that it would take itself.
        let [mut opener, _] = shake(&tls, party(0)).unwrap();
        let mut packet = BytesMut::new();
        opener.sealer.begin(&mut packet);
        let sealed = opener.sealer.seal(packet);
        assert!(opener.opener.open(0, sealed).is_err());
    }

    #[test]
    fn two_nodes_that_do_not_agree_who_they_are_have_different_keys() {
        let tls = both();
        let mut other_name = party(0);
        other_name.name = "127.0.0.1:9".parse().unwrap();
        let [mut opener, mut answerer] = shake(&tls, other_name).unwrap();
        assert!(!passes(&mut opener, &mut answerer) && !passes(&mut answerer, &mut opener));
        let mut other_epoch = party(0);
        other_epoch.epoch = 77;
        assert!(matches!(shake(&tls, other_epoch), Err(HandshakeError::OtherEpoch)));
    }

    #[test]
    fn a_node_of_another_authority_is_refused() {
        let ([ours, _], [_, theirs]) = (both(), both());
        assert!(matches!(shake(&[ours, theirs], party(0)), Err(HandshakeError::Tls(_))));
    }

    #[test]
    fn what_stands_behind_a_farewell_is_an_error() {
        let tls = both();
        let mut opener = Handshake::open(tls[0].bus_client(), SESSION, party(0), party(1).name).unwrap();
        let mut answerer = Handshake::answer(tls[1].bus_server(), SESSION, party(1), party(0)).unwrap();
        answerer.take(0, &opener.due().unwrap().unwrap()).unwrap();
        answerer.tls.send_close_notify();
        let mut flight = answerer.due().unwrap().unwrap().to_vec();
        flight.extend_from_slice(&[0; 100_000]);
        assert!(matches!(opener.take(1, &flight), Err(HandshakeError::BehindEnd)));
    }

    #[test]
    fn what_is_no_tls_is_an_error() {
        let [tls, _] = both();
        let mut handshake = Handshake::answer(tls.bus_server(), SESSION, party(0), party(1)).unwrap();
        assert!(handshake.take(1, &[0xff; 100]).is_err());
    }
}
