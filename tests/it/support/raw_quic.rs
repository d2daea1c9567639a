//! A QUIC client written by hand, which can do what the library never would.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use trunkline::Address;

use super::{Certs, within};

/// A connection, and the control stream on it.
#[derive(Debug)]
pub(crate) struct RawQuic {
    /// Kept, as dropping it would end the connection.
    _endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    recv: RecvStream,
    buffer: Vec<u8>,
}

/// TLS that trusts the node authority of `certs` and shows, if `identity` names its files, a certificate.
pub(crate) fn tls_config(certs: &Certs, alpn: &[u8], identity: Option<&str>) -> rustls::ClientConfig {
    let read = |stem: &str, extension: &str| certs.dir().join(format!("{stem}.{extension}"));
    let certificate = |path: &Path| CertificateDer::from_pem_file(path).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(&read("node-ca", "pem"))).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(stem) => {
            let key = PrivateKeyDer::from_pem_file(read(stem, "key")).unwrap();
            builder
                .with_client_auth_cert(vec![certificate(&read(stem, "pem"))], key)
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

impl RawQuic {
    /// Connects and opens the control stream, but says nothing yet.
    pub(crate) async fn connect(
        addr: SocketAddr,
        certs: &Certs,
        alpn: &[u8],
        identity: Option<&str>,
    ) -> Result<Self, ConnectionError> {
        let crypto = QuicClientConfig::try_from(tls_config(certs, alpn, identity)).unwrap();
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let connecting = endpoint.connect_with(ClientConfig::new(Arc::new(crypto)), addr, "127.0.0.1");
        let connection = within("a QUIC handshake", connecting.unwrap()).await?;
        let (send, recv) = within("the control stream", connection.open_bi()).await?;
        Ok(Self {
            _endpoint: endpoint,
            connection,
            send,
            recv,
            buffer: Vec::new(),
        })
    }

    /// Connects as a client that keeps to the protocol does; gives its address as well.
    pub(crate) async fn join(addr: SocketAddr, certs: &Certs) -> (Self, Address) {
        let mut client = Self::connect(addr, certs, b"trunkline/1", None).await.unwrap();
        client.say(&json!({"cmd": "hello", "version": 1})).await;
        let welcome = client.hear().await.expect("a welcome");
        assert_eq!(welcome["cmd"], "welcome");
        let address = welcome["address"].as_str().unwrap().parse().unwrap();
        (client, address)
    }

    /// Connects as a client that can come back, or comes back with this `resume`; gives the answer as well.
    pub(crate) async fn join_resumable(addr: SocketAddr, certs: &Certs, resume: Option<Value>) -> (Self, Value) {
        let mut client = Self::connect(addr, certs, b"trunkline/1", None).await.unwrap();
        let mut hello = json!({"cmd": "hello", "version": 1, "resumable": true});
        if let Some(resume) = resume {
            hello["resume"] = resume;
        }
        client.say(&hello).await;
        let answer = client.hear().await.expect("an answer to hello");
        (client, answer)
    }

    /// Writes a line on the control stream.
    pub(crate) async fn say(&mut self, line: &Value) {
        self.write(format!("{line}\n").as_bytes()).await;
    }

    /// Writes bytes on the control stream.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within("a write", self.send.write_all(bytes)).await.unwrap();
    }

    /// The next line on the control stream; `None` once there will be none.
    pub(crate) async fn hear(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = within("a control line", self.recv.read_chunk(65536, true)).await;
            self.buffer.extend_from_slice(&chunk.ok().flatten()?.bytes);
        }
    }

    /// Sends a stream of its own with these bytes. What the node does not want of it stays unsent.
    pub(crate) async fn stream(&self, bytes: &[u8]) {
        let mut stream = within("a stream", self.connection.open_uni()).await.unwrap();
        let _ = within("a write", stream.write_all(bytes)).await;
        let _ = stream.finish();
    }

    /// The next message, header and body as they came.
    pub(crate) async fn message(&self) -> Vec<u8> {
        let mut stream = within("a message", self.connection.accept_uni()).await.unwrap();
        within("the rest of a message", stream.read_to_end(1 << 20))
            .await
            .unwrap()
    }

    /// The code and the reason with which the node closes the connection.
    pub(crate) async fn closed(&self) -> (u64, String) {
        match within("the node closes the connection", self.connection.closed()).await {
            ConnectionError::ApplicationClosed(closed) => (
                closed.error_code.into_inner(),
                String::from_utf8(closed.reason.to_vec()).unwrap(),
            ),
            error => panic!("not closed by the node: {error}"),
        }
    }
}
