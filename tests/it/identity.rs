//! Who gets in by a certificate, and what becomes of those who are in when certificates, authorities and lists of what is
//! revoked change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionError, Endpoint, ServerConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::task::JoinSet;
use trunkline::{ClientRule, Code, Node, Peer, certs};

use crate::support::{
    Certs, Flaw, LineClient, NodeCommand, NodeProcess, RawQuic, Talk, connect_quic, issue, name, node_config, own_port,
    put, within,
};

const LINK_ALPN: &[u8] = b"trunkline-link/1";
const CLIENT_ALPN: &[u8] = b"trunkline/1";

/// How long one whose certificate is revoked may stay.
const OUT_WITHIN: Duration = Duration::from_secs(5);

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    RightNode,
    OtherNode,
    OtherCluster,
    Client,
    Expired,
    NotYetValid,
    SelfSigned,
    Revoked,
    Nothing,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    In,
    Out,
}

/// What a node with a list of nodes, and with the rule that clients show a certificate, makes of each certificate: at its link
/// port, when it dials, and at the port of clients. In the rows from `Expired` on the certificate is one that would be
/// right at that port.
const MATRIX: [(Shown, Verdict, Option<Verdict>, Verdict); 9] = {
    use Verdict::{In, Out};
    [
        (Shown::RightNode, In, Some(In), Out),
        (Shown::OtherNode, Out, Some(Out), Out),
        (Shown::OtherCluster, Out, Some(Out), Out),
        (Shown::Client, Out, Some(Out), In),
        (Shown::Expired, Out, Some(Out), Out),
        (Shown::NotYetValid, Out, Some(Out), Out),
        (Shown::SelfSigned, Out, Some(Out), Out),
        (Shown::Revoked, Out, Some(Out), Out),
        // A server without a certificate is none.
        (Shown::Nothing, Out, None, Out),
    ]
};

const NODE: &str = "trunkline://trunkline/node/127.0.0.1%3A2";
const CLIENT: &str = "trunkline://trunkline/client/bob";

/// Makes what is shown, at a port of this authority where `right` would be right; gives the name of its files.
fn make(certs: &Certs, shown: Shown, authority: &str, right: &str) -> Option<String> {
    let stem = format!("{authority}-{shown:?}");
    let of = |authority, uri, flaw| issue(certs.dir(), authority, &stem, uri, flaw);
    match shown {
        Shown::RightNode => of("node-ca", NODE, Flaw::None),
        Shown::OtherNode => of("node-ca", "trunkline://trunkline/node/127.0.0.1%3A3", Flaw::None),
        Shown::OtherCluster => of(authority, &right.replace("//trunkline/", "//other/"), Flaw::None),
        Shown::Client => of("client-ca", CLIENT, Flaw::None),
        Shown::Expired => of(authority, right, Flaw::Expired),
        Shown::NotYetValid => of(authority, right, Flaw::NotYetValid),
        Shown::SelfSigned => of(authority, right, Flaw::SelfSigned),
        Shown::Revoked => {
            of(authority, right, Flaw::None);
            certs::revoke(certs.dir(), &[certs.dir().join(&stem).with_added_extension("pem")]).unwrap();
        }
        Shown::Nothing => return None,
    }
    Some(stem)
}

/// Whether a connection gets as far as to be told off for what it says.
async fn at_the_link_port(node: &Node, certs: &Certs, stem: Option<&str>) -> Verdict {
    let Ok(mut dialler) = RawQuic::connect(node.link_addr(), certs, LINK_ALPN, stem).await else {
        return Verdict::Out;
    };
    // A frame of no kind there is. Fails where the connection is closed already.
    let _ = dialler.send.write_all(&[63, 0]).await;
    match within("the node closes the connection", dialler.connection.closed()).await {
        ConnectionError::ApplicationClosed(closed) if closed.error_code == 1u32.into() => Verdict::In,
        ConnectionError::ApplicationClosed(closed) if closed.error_code == 6u32.into() => Verdict::Out,
        ConnectionError::ConnectionClosed(closed) if closed.to_string().contains("crypto") => Verdict::Out,
        error => panic!("{stem:?}: {error}"),
    }
}

/// Whether the node, which dials this endpoint all the time, begins to speak.
async fn when_it_dials(endpoint: &Endpoint, certs: &Certs, stem: &str) -> Verdict {
    let path = |extension| certs.dir().join(stem).with_added_extension(extension);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(path("pem")).unwrap()],
            PrivateKeyDer::from_pem_file(path("key")).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![LINK_ALPN.to_vec()];
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let incoming = within("the node dials", endpoint.accept()).await.unwrap();
    let accepting = incoming.accept_with(Arc::new(config)).unwrap();
    let Ok(connection) = within("a handshake", accepting).await else {
        return Verdict::Out;
    };
    match within("the node speaks or hangs up", connection.accept_bi()).await {
        Ok(_) => Verdict::In,
        Err(_) => Verdict::Out,
    }
}

/// Whether a client is welcomed, under the name that its certificate gives it.
async fn at_the_client_port(node: &Node, certs: &Certs, stem: Option<&str>) -> Verdict {
    let Ok(mut client) = RawQuic::connect(node.quic_addr(), certs, CLIENT_ALPN, stem).await else {
        return Verdict::Out;
    };
    let _ = client.send.write_all(b"{\"cmd\":\"hello\",\"version\":1}\n").await;
    match client.hear().await {
        Some(welcome) => {
            assert_eq!(welcome["address"], format!("{}:bob", name(0)));
            Verdict::In
        }
        None => Verdict::Out,
    }
}

#[tokio::test]
async fn each_certificate_at_each_port() {
    let certs = Certs::make(1);
    let at_links = MATRIX.map(|(shown, ..)| make(&certs, shown, "node-ca", NODE));
    let at_clients = MATRIX.map(|(shown, ..)| make(&certs, shown, "client-ca", CLIENT));
    let dialled = Endpoint::server(nobody(), own_port()).unwrap();
    let mut config = node_config(&certs, 0);
    (config.clients, config.tcp) = (ClientRule::Certificate, None);
    config.allowed_nodes = vec![name(1)];
    config.peers = vec![Peer {
        name: name(1),
        link: dialled.local_addr().unwrap().into(),
    }];
    let node = Node::start(config).await.unwrap();
    println!("{:<14} {:<10} {:<10} client port", "", "link port", "dialled");
    for (row, (link_stem, client_stem)) in MATRIX.iter().zip(at_links.iter().zip(&at_clients)) {
        let link = at_the_link_port(&node, &certs, link_stem.as_deref()).await;
        let dialled = match link_stem {
            Some(stem) => Some(when_it_dials(&dialled, &certs, stem).await),
            None => None,
        };
        let client = at_the_client_port(&node, &certs, client_stem.as_deref()).await;
        let text = dialled.map_or_else(|| "-".to_owned(), |verdict| format!("{verdict:?}"));
        println!(
            "{:<14} {:<10} {text:<10} {client:?}",
            format!("{:?}", row.0),
            format!("{link:?}")
        );
        assert_eq!((row.0, link, dialled, client), *row);
    }
    assert_eq!(node.clients(), 0);
    assert!(node.linked().is_empty());
}

/// A server that is told with each connection how to take it.
fn nobody() -> ServerConfig {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

/// Nodes in processes of their own, which name those before them as peers.
async fn start(certs: &Certs, count: usize) -> Vec<NodeProcess> {
    let mut nodes: Vec<NodeProcess> = Vec::new();
    for index in 0..count {
        let mut command = NodeCommand::new(certs, index);
        command.peers = nodes.iter().map(NodeProcess::as_peer).collect();
        nodes.push(command.start().await);
    }
    let links = count - 1;
    for node in &mut nodes {
        for _ in 0..links {
            node.process.stderr.until("\"link up\"").await;
        }
    }
    nodes
}

/// Waits until a node has read its certificates again, and has that many links anew.
async fn renewed(node: &mut NodeProcess, links: usize) {
    node.process.stderr.until("were read again").await;
    for _ in 0..links {
        node.process.stderr.until("\"link up\"").await;
    }
}

fn node_files(certs: &Certs, index: usize) -> [PathBuf; 2] {
    let stem = certs::node_stem(&name(index));
    ["key", "pem"].map(|extension| certs.dir().join(&stem).with_added_extension(extension))
}

const PAIRS: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_authorities_change_and_one_is_revoked_while_all_talk() {
    let certs = Certs::make(3);
    let mut nodes = start(&certs, 3).await;
    let talk = Arc::new(Talk::new());
    // Each pair in a task of its own: many in one would starve each other.
    let mut talking = JoinSet::new();
    for _ in 0..PAIRS {
        let mut one = LineClient::connect(nodes[0].tcp()).await;
        let mut other = LineClient::connect(nodes[1].tcp()).await;
        let talk = Arc::clone(&talk);
        talking.spawn(async move {
            let (first, second) = (one.address.clone(), other.address.clone());
            tokio::join!(talk.line(&mut one, &second), talk.line(&mut other, &first));
        });
    }
    let script = async {
        talk.begins(2 * PAIRS).await;

        // Another certificate, of the same authority.
        let fresh = tempfile::tempdir().unwrap();
        for file in ["node-ca.pem", "node-ca.key"] {
            put(&certs.dir().join(file), &fresh.path().join(file));
        }
        certs::make(fresh.path(), &[name(0)], certs::DEFAULT_CLUSTER).unwrap();
        install(&certs, fresh.path(), 0);
        renewed(&mut nodes[0], 2).await;
        for node in &mut nodes[1..] {
            node.process.stderr.until("\"link up\"").await;
        }
        talk.goes_on(100).await;

        // Another authority: both are trusted, then all have certificates of the new one, then the old one is dropped.
        let new = Certs::make(3);
        let authority = certs.dir().join("node-ca.pem");
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let both = read(authority.clone()) + &read(new.dir().join("node-ca.pem"));
        std::fs::write(fresh.path().join("both.pem"), both).unwrap();
        put(&fresh.path().join("both.pem"), &authority);
        for node in &mut nodes {
            renewed(node, 0).await;
        }
        for index in 0..3 {
            install(&certs, new.dir(), index);
            renewed(&mut nodes[index], 2).await;
            for other in (0..3).filter(|other| *other != index) {
                nodes[other].process.stderr.until("\"link up\"").await;
            }
        }
        put(&new.dir().join("node-ca.key"), &certs.dir().join("node-ca.key"));
        put(&new.dir().join("node-ca.pem"), &authority);
        for node in &mut nodes {
            renewed(node, 0).await;
        }
        talk.goes_on(100).await;
        for node in &mut nodes {
            assert_eq!(node.process.stderr.count("link down"), 0);
            assert_eq!(node.process.stderr.count("closed a connection"), 0);
        }

        // The third node is to be no node any more.
        let [_, revoked] = node_files(&certs, 2);
        let list = certs::revoke(certs.dir(), &[revoked]).unwrap();
        assert_eq!(list, [certs.dir().join("node-ca.crl")]);
        let since = Instant::now();
        for node in &mut nodes[..2] {
            node.process.stderr.until("link down").await;
        }
        println!("the revoked node was out after {:?}", since.elapsed());
        assert!(since.elapsed() < OUT_WITHIN);
        for node in &mut nodes[..2] {
            node.process.stderr.until("certificate: Revoked").await;
        }
        talk.goes_on(100).await;
        talk.end();
    };
    tokio::join!(talking.join_all(), script);
    println!("{} messages", talk.messages());
}

/// Puts a node's certificate and key of another directory in place.
fn install(certs: &Certs, from: &std::path::Path, index: usize) {
    for file in node_files(certs, index) {
        put(&from.join(file.file_name().unwrap()), &file);
    }
}

#[tokio::test]
async fn what_is_no_good_is_reported_and_the_old_stays_in_force() {
    let certs = Certs::make(2);
    let mut node = NodeCommand::new(&certs, 0).start().await;
    let [_, own] = node_files(&certs, 0);
    let good = std::fs::read(&own).unwrap();
    std::fs::write(&own, "no certificate").unwrap();
    let text = node.process.stderr.until("the old ones stay in force").await;
    assert!(
        text.contains("node-127.0.0.1-1.pem: there is no certificate in PEM in it"),
        "{text}"
    );
    let client = connect_quic(node.quic(), &certs).await;
    client.close().await;

    std::fs::write(&own, good).unwrap();
    node.process.stderr.until("were read again").await;
    // And when the node is told to, though nothing has changed.
    node.process.signal("HUP");
    node.process.stderr.until("were read again").await;

    certs::revoke(certs.dir(), &[certs.dir().join("node-127.0.0.1-2.pem")]).unwrap();
    node.process.stderr.until("were read again").await;
    let list = certs.dir().join("node-ca.crl");
    std::fs::remove_file(&list).unwrap();
    let text = node.process.stderr.until("the old ones stay in force").await;
    assert!(
        text.contains("the list of an authority that is still trusted is gone"),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_with_a_certificate_has_its_name_and_the_last_to_come_has_it() {
    let certs = Certs::make(1);
    let mut config = node_config(&certs, 0);
    (config.clients, config.tcp) = (ClientRule::Certificate, None);
    let node = Node::start(config).await.unwrap();
    let hello = json!({"cmd": "hello", "version": 1, "resumable": true});
    let join = async || {
        let connecting = RawQuic::connect(node.quic_addr(), &certs, CLIENT_ALPN, Some("client-guest"));
        let mut client = connecting.await.unwrap();
        client.say(&hello).await;
        let welcome = client.hear().await.expect("a welcome");
        assert_eq!(welcome["address"], format!("{}:guest", name(0)));
        (client, welcome)
    };
    let (first, _) = join().await;
    let (second, welcome) = join().await;
    assert_eq!(first.closed().await.0, 7);
    assert_eq!(node.clients(), 1);

    // Its own messages to itself come to the second one.
    second
        .stream(format!("{{\"to\":\"{}:guest\",\"id\":1}}\nhello", name(0)).as_bytes())
        .await;
    let message = second.message().await;
    assert!(message.ends_with(b"hello"), "{}", String::from_utf8_lossy(&message));

    // Whoever has its token but not its certificate does not get the session.
    issue(
        certs.dir(),
        "client-ca",
        "client-other",
        "trunkline://trunkline/client/other",
        Flaw::None,
    );
    let connecting = RawQuic::connect(node.quic_addr(), &certs, CLIENT_ALPN, Some("client-other"));
    let mut thief = connecting.await.unwrap();
    let resume = json!({"token": welcome["resume"]["token"], "taken": {"below": 1}});
    thief
        .say(&json!({"cmd": "hello", "version": 1, "resumable": true, "resume": resume}))
        .await;
    let answer = thief.hear().await.expect("an answer");
    assert_eq!(answer["code"], Code::SessionGone.as_str());
}

#[tokio::test]
async fn a_client_that_is_revoked_is_out() {
    let certs = Certs::make(1);
    let mut config = node_config(&certs, 0);
    (config.clients, config.tcp) = (ClientRule::Certificate, None);
    let node = Node::start(config).await.unwrap();
    let addr: SocketAddr = node.quic_addr();
    let mut client = RawQuic::connect(addr, &certs, CLIENT_ALPN, Some("client-guest"))
        .await
        .unwrap();
    client
        .say(&json!({"cmd": "hello", "version": 1, "resumable": true}))
        .await;
    client.hear().await.expect("a welcome");
    certs::revoke(certs.dir(), &[certs.dir().join("client-guest.pem")]).unwrap();
    let since = Instant::now();
    assert_eq!(client.closed().await.0, 6);
    println!("the revoked client was out after {:?}", since.elapsed());
    assert!(since.elapsed() < OUT_WITHIN);
    crate::support::eventually("its session is gone", || node.clients() == 0).await;
    if let Ok(again) = RawQuic::connect(addr, &certs, CLIENT_ALPN, Some("client-guest")).await {
        let closed = within("the node closes the connection", again.connection.closed()).await;
        assert!(matches!(closed, ConnectionError::ConnectionClosed(_)), "{closed}");
    }
}

#[tokio::test]
async fn a_client_whose_certificate_expires_is_out() {
    let certs = Certs::make(1);
    let mut config = node_config(&certs, 0);
    (config.clients, config.tcp) = (ClientRule::Certificate, None);
    let node = Node::start(config).await.unwrap();
    issue(certs.dir(), "client-ca", "client-brief", CLIENT, Flaw::EndsIn(3));
    let ends = Instant::now() + Duration::from_secs(3);
    let connecting = RawQuic::connect(node.quic_addr(), &certs, CLIENT_ALPN, Some("client-brief"));
    let mut client = connecting.await.unwrap();
    client.say(&json!({"cmd": "hello", "version": 1})).await;
    client.hear().await.expect("a welcome");
    assert_eq!(client.closed().await.0, 6);
    println!(
        "the client was out {:?} after the end of its certificate",
        ends.elapsed()
    );
    assert!(ends.elapsed() < OUT_WITHIN);
}
