//! What a QUIC client might send, and must not.

use serde_json::{Value, json};
use trunkline::client::SendError;
use trunkline::{Address, Code};

use crate::support::{Bystanders, Cluster, RawQuic};

/// The codes that a node closes a connection with.
const PROTOCOL: u64 = 1;
const VERSION: u64 = 3;

/// Connects and writes these bytes as the first on the control stream; gives the error line and the close code.
async fn greeted_with(bytes: &[u8]) -> (Value, u64) {
    let cluster = Cluster::start(1).await;
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    bystanders
        .during(async {
            let mut client = RawQuic::connect(cluster.nodes[0].quic_addr(), &cluster.certs, b"trunkline/1", None)
                .await
                .unwrap();
            client.write(bytes).await;
            let error = client.hear().await.expect("an error");
            assert_eq!(error["cmd"], "error");
            (error, client.closed().await.0)
        })
        .await
}

#[tokio::test]
async fn a_garbage_hello() {
    for bytes in [
        &b"hello\n"[..],
        b"\x00\xff\n",
        b"{}\n",
        b"{\"cmd\":\"goodbye\"}\n",
        b"{\"cmd\":\"hello\"}\n",
    ] {
        let (error, code) = greeted_with(bytes).await;
        assert_eq!((&error["code"], code), (&json!(Code::ProtocolError.as_str()), PROTOCOL));
    }
}

#[tokio::test]
async fn a_hello_of_another_version() {
    let (error, code) = greeted_with(b"{\"cmd\":\"hello\",\"version\":9}\n").await;
    assert_eq!(
        (&error["code"], code),
        (&json!(Code::UnsupportedVersion.as_str()), VERSION)
    );
}

#[tokio::test]
async fn a_hello_that_never_ends() {
    let (error, code) = greeted_with(&vec![b'x'; (512 << 10) + 1]).await;
    assert_eq!((&error["code"], code), (&json!(Code::ProtocolError.as_str()), PROTOCOL));
}

/// Has a client that was let in send a stream with these bytes, for which it must be put out.
async fn put_out_for(bytes: &[u8]) {
    let cluster = Cluster::start(1).await;
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    bystanders
        .during(async {
            let (client, _) = RawQuic::join(cluster.nodes[0].quic_addr(), &cluster.certs).await;
            client.stream(bytes).await;
            let (code, reason) = client.closed().await;
            assert_eq!(code, PROTOCOL, "{reason}");
            assert!(!reason.is_empty());
        })
        .await;
}

#[tokio::test]
async fn a_message_without_a_header() {
    put_out_for(b"").await;
    put_out_for(b"no header").await;
    put_out_for(&[b'x'; 4096]).await;
}

#[tokio::test]
async fn a_header_that_is_none() {
    put_out_for(b"hello\nbody").await;
    put_out_for(b"{\"to\":17,\"id\":1}\nbody").await;
    put_out_for(b"{\"to\":\"127.0.0.1:1:111111\"}\nbody").await;
    put_out_for(b"{\"to\":\"127.0.0.1:1:111111\",\"id\":0}\nbody").await;
    put_out_for(b"[\"127.0.0.1:1:111111\",1]\nbody").await;
}

#[tokio::test]
async fn garbage_on_the_control_stream() {
    let cluster = Cluster::start(1).await;
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    bystanders
        .during(async {
            for line in [&b"garbage\n"[..], b"{\"cmd\":\"hello\",\"version\":1}\n"] {
                let (mut client, _) = RawQuic::join(cluster.nodes[0].quic_addr(), &cluster.certs).await;
                client.write(line).await;
                assert_eq!(client.closed().await.0, PROTOCOL);
            }
        })
        .await;
}

/// What the node says of the first message that failed.
async fn first_failure(client: &mut RawQuic) -> Value {
    loop {
        let line = client.hear().await.expect("a receipt");
        assert_eq!(line["cmd"], "receipt");
        if let Some(failed) = line["failed"].get(0) {
            return failed.clone();
        }
    }
}

#[tokio::test]
async fn what_is_refused_is_refused_alone() {
    let cluster = Cluster::start(1).await;
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    let mut recipient = cluster.line(0).await;
    let to = recipient.address.to_string();
    let large = "x".repeat((1 << 20) + 1);
    bystanders
        .during(async {
            let (mut client, address) = RawQuic::join(cluster.nodes[0].quic_addr(), &cluster.certs).await;
            let rows = [
                (to.as_str(), large.as_str(), Code::TooLarge),
                (to.as_str(), &large.repeat(2), Code::TooLarge),
                ("127001", "x", Code::BadAddress),
                ("127.0.0.1:9:111111", "x", Code::NoSuchNode),
                ("127.0.0.1:1:nobody", "x", Code::NoSuchClient),
            ];
            let mut id = 0;
            for (to, body, code) in rows {
                id += 1;
                let header = json!({"to": to, "id": id});
                client.stream(format!("{header}\n{body}").as_bytes()).await;
                let failed = first_failure(&mut client).await;
                assert_eq!(
                    (&failed["id"], &failed["status"], &failed["code"]),
                    (&json!(id), &json!("refused"), &json!(code.as_str()))
                );
            }
            // Whoever it claims to be, it is itself.
            let header = json!({"from": "127.0.0.1:1:111111", "to": to, "id": id + 1});
            client.stream(format!("{header}\nall is well").as_bytes()).await;
            recipient.reader.expect_message(&address, "all is well").await;
            recipient.expect_nothing_else().await;
        })
        .await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_even_sent() {
    let cluster = Cluster::start_with(1, |config| config.limits.max_message = 1000).await;
    let (client, other) = (cluster.quic(0).await, cluster.quic(0).await);
    let error = client.send(other.address(), vec![0; 1001]).await.unwrap_err();
    assert!(
        matches!(
            error,
            SendError::TooLarge {
                length: 1001,
                limit: 1000
            }
        ),
        "{error}"
    );
    client.send(other.address(), vec![0; 1000]).await.unwrap();
    let event = crate::support::within("the message", other.receive()).await;
    assert!(matches!(event, Some(trunkline::client::Event::Message(message)) if message.body.len() == 1000));
}

/// A node keeps what it told of failures until the client says that it came.
#[tokio::test]
async fn a_client_that_never_confirms_receipts_is_put_out() {
    const AT_ONCE: u64 = 16;
    let cluster = Cluster::start_with(1, |config| config.limits.client_messages = AT_ONCE as usize).await;
    let (mut client, _) = RawQuic::join_resumable(cluster.nodes[0].quic_addr(), &cluster.certs, None).await;
    let mut told = 0;
    'sending: loop {
        for id in told + 1..=told + AT_ONCE {
            let header = json!({"to": "127.0.0.1:9:111111", "id": id});
            let Ok(mut stream) = client.connection.open_uni().await else {
                break 'sending;
            };
            // The node may close the connection in the middle of it.
            let _ = stream.write_all(format!("{header}\n").as_bytes()).await;
            let _ = stream.finish();
        }
        let all = told + AT_ONCE;
        while told < all {
            let Some(line) = client.hear().await else {
                break 'sending;
            };
            told += line["failed"].as_array().map_or(0, |failed| failed.len() as u64);
        }
        let confirm = json!({"cmd": "confirm", "below": told + 1, "receipts": 0});
        if client.send.write_all(format!("{confirm}\n").as_bytes()).await.is_err() {
            break;
        }
        assert!(told <= 4 * (AT_ONCE + 1024), "{told}");
    }
    assert_eq!(client.closed().await.0, PROTOCOL);
    assert!(told >= 4 * 1024, "{told}");
}

#[tokio::test]
async fn a_client_that_says_no_hello_holds_no_place() {
    let cluster = Cluster::start_with(1, |config| config.limits.max_clients = 1).await;
    let _silent = RawQuic::connect(cluster.nodes[0].quic_addr(), &cluster.certs, b"trunkline/1", None)
        .await
        .unwrap();
    let client = cluster.quic(0).await;
    let own: Address = client.address().clone();
    client.send(&own, "x").await.unwrap();
    assert!(crate::support::within("the message", client.receive()).await.is_some());
}
