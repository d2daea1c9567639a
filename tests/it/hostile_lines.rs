//! What a legacy client might send, and must not: each is answered with its code, and nobody else notices.

use rustls::pki_types::ServerName;
use serde_json::json;
use std::sync::Arc;
use trunkline::client::Event;
use trunkline::{Address, Code};

use crate::support::{
    Bystanders, Cluster, LineClient, LineReader, LineWriter, message_line, message_line_with_id, tls_config, within,
};

/// A node, its clients that must not notice anything, and one that misbehaves.
struct Scene {
    cluster: Cluster,
    bystanders: Bystanders,
    client: LineClient,
}

impl Scene {
    async fn set() -> Self {
        let cluster = Cluster::start(1).await;
        Self {
            bystanders: Bystanders::join(&cluster, 0).await,
            client: cluster.line(0).await,
            cluster,
        }
    }
}

/// Has a client write a line, which must be answered with this code; the client stays connected.
async fn answered(line: &[u8], code: Code) -> String {
    let Scene {
        mut bystanders,
        mut client,
        cluster: _cluster,
    } = Scene::set().await;
    bystanders
        .during(async {
            client.writer.write(line).await;
            client.writer.write(b"\n").await;
            let text = client.reader.expect_error(code).await;
            client.expect_nothing_else().await;
            text
        })
        .await
}

/// Has a client write bytes, which must be answered with this code and the end of the connection.
async fn answered_and_closed(bytes: &[u8], code: Code) {
    let Scene {
        mut bystanders,
        client,
        cluster: _cluster,
    } = Scene::set().await;
    bystanders
        .during(turned_out(client.reader, client.writer, bytes, code))
        .await;
}

async fn turned_out(mut reader: LineReader, mut writer: LineWriter, bytes: &[u8], code: Code) {
    let reading = async {
        reader.expect_error(code).await;
        reader.expect_end().await;
    };
    // How much of it the node takes is its own affair.
    let writing = writer.write_while_taken(bytes);
    within("the end of the connection", async { tokio::join!(writing, reading) }).await;
}

#[tokio::test]
async fn broken_json() {
    answered(
        br#"{"to":"127.0.0.1:1:111111","body":"x","cmd":"sendMsg""#,
        Code::BadJson,
    )
    .await;
}

#[tokio::test]
async fn broken_json_of_every_kind() {
    let cluster = Cluster::start(1).await;
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    let mut client = cluster.line(0).await;
    let lines = [
        "{",
        "}",
        "[]",
        "\"text\"",
        "17",
        "null",
        "{}{}",
        "{\"cmd\":sendMsg}",
        "{\"cmd\":\"sendMsg\",}",
        "hello",
        "\\",
    ];
    bystanders
        .during(async {
            for line in lines {
                client.writer.send(line).await;
                client.reader.expect_error(Code::BadJson).await;
            }
            client.expect_nothing_else().await;
        })
        .await;
}

#[tokio::test]
async fn wrong_types() {
    let text = answered(
        br#"{"to":["127.0.0.1:1:111111"],"body":"x","cmd":"sendMsg"}"#,
        Code::BadJson,
    )
    .await;
    assert!(text.contains("`to`"), "{text}");
    answered(
        br#"{"to":"127.0.0.1:1:111111","body":17,"cmd":"sendMsg"}"#,
        Code::BadJson,
    )
    .await;
    answered(br#"{"cmd":{"cmd":"sendMsg"}}"#, Code::BadJson).await;
}

#[tokio::test]
async fn an_unknown_cmd() {
    answered(
        br#"{"to":"127.0.0.1:1:111111","body":"x","cmd":"sendmsg"}"#,
        Code::UnknownCmd,
    )
    .await;
    answered(br#"{"to":"127.0.0.1:1:111111","body":"x"}"#, Code::UnknownCmd).await;
}

#[tokio::test]
async fn an_empty_line() {
    answered(b"", Code::BadJson).await;
    answered(b"  \t \r", Code::BadJson).await;
}

#[tokio::test]
async fn a_line_of_2_mib() {
    let mut line = vec![b'x'; 2 << 20];
    line.push(b'\n');
    answered_and_closed(&line, Code::TooLarge).await;
}

#[tokio::test]
async fn a_line_of_2_mib_that_never_ends() {
    answered_and_closed(&vec![b'{'; 2 << 20], Code::TooLarge).await;
}

#[tokio::test]
async fn a_body_over_the_limit_in_a_line_within_it() {
    let Scene {
        mut bystanders,
        mut client,
        cluster: _cluster,
    } = Scene::set().await;
    let to = bystanders.address();
    let body = "x".repeat((1 << 20) + 1);
    bystanders
        .during(async {
            client.say(&to, &body).await;
            client.reader.expect_error(Code::TooLarge).await;
            client.say_with_id(&to, &body, "large").await;
            client.reader.expect_refused("large", Code::TooLarge).await;
            client.expect_nothing_else().await;
        })
        .await;
}

#[tokio::test]
async fn a_body_at_the_limit() {
    let cluster = Cluster::start(2).await;
    let mut client = cluster.line(0).await;
    let mut other = cluster.line(1).await;
    let body = "x".repeat(1 << 20);
    for to in [client.address.clone(), other.address.clone()] {
        client.say(&to, &body).await;
    }
    client.reader.expect_message(&client.address, &body).await;
    other.reader.expect_message(&client.address, &body).await;
}

#[tokio::test]
async fn a_line_that_never_ends_is_followed_when_its_client_ends() {
    let Scene {
        mut bystanders,
        mut client,
        cluster,
    } = Scene::set().await;
    let mut recipient = cluster.line(0).await;
    let line = message_line(&recipient.address, "the last words");
    bystanders
        .during(async {
            client.writer.write(line.as_bytes()).await;
            // The node has read it, and waits for its end: others are served.
            recipient.expect_nothing_else().await;
            client.writer.end().await;
            recipient.reader.expect_message(&client.address, "the last words").await;
            client.reader.expect_end().await;
        })
        .await;
}

#[tokio::test]
async fn to_without_colons() {
    answered(br#"{"to":"127001","body":"x","cmd":"sendMsg"}"#, Code::BadAddress).await;
}

#[tokio::test]
async fn to_that_is_no_address() {
    for to in [
        "",
        ":",
        "::",
        "127.0.0.1:1",
        "127.0.0.1:1:",
        "127.0.0.1:x:111111",
        "127.0.0.1:1:11 11",
    ] {
        let line = json!({"to": to, "body": "x", "cmd": "sendMsg"}).to_string();
        answered(line.as_bytes(), Code::BadAddress).await;
    }
}

#[tokio::test]
async fn to_an_unknown_node() {
    answered(
        br#"{"to":"127.0.0.1:9:111111","body":"x","cmd":"sendMsg"}"#,
        Code::NoSuchNode,
    )
    .await;
}

#[tokio::test]
async fn to_an_unknown_id() {
    answered(
        br#"{"to":"127.0.0.1:1:nobody","body":"x","cmd":"sendMsg"}"#,
        Code::NoSuchClient,
    )
    .await;
}

#[tokio::test]
async fn to_an_unknown_id_of_another_node() {
    let cluster = Cluster::start(2).await;
    let mut bystanders = Bystanders::join(&cluster, 1).await;
    let mut client = cluster.line(0).await;
    bystanders
        .during(async {
            client.say(&"127.0.0.1:2:nobody".parse().unwrap(), "x").await;
            client.reader.expect_error(Code::NoSuchClient).await;
            client.expect_nothing_else().await;
        })
        .await;
}

#[tokio::test]
async fn a_forged_from_is_not_believed() {
    let cluster = Cluster::start(2).await;
    let mut bystanders = Bystanders::join(&cluster, 1).await;
    let mut client = cluster.line(0).await;
    let mut recipients = [cluster.line(0).await, cluster.line(1).await];
    let quic = cluster.quic(1).await;
    let victim = bystanders.address().to_string();
    let forged = |to: &Address, from: &str| json!({"from": from, "FROM": from, "to": to.to_string(), "body": "I", "cmd": "sendMsg"});
    bystanders
        .during(async {
            for from in [&victim, "", "nonsense", "127.0.0.1:1:111111"] {
                for recipient in &mut recipients {
                    client.writer.send(&forged(&recipient.address, from).to_string()).await;
                    recipient.reader.expect_message(&client.address, "I").await;
                }
                client.writer.send(&forged(quic.address(), from).to_string()).await;
                match within("the message", quic.receive()).await {
                    Some(Event::Message(message)) => assert_eq!(message.from, client.address),
                    event => panic!("{event:?}"),
                }
            }
            client.expect_nothing_else().await;
        })
        .await;
}

#[tokio::test]
async fn a_body_with_line_ends_and_escape_codes_is_one_line() {
    const BODY: &str = "a\r\n127.0.0.1:1:111111 say : b\u{1b}[2J\u{0}\u{7f}\u{9b}31m\u{2028}\u{2029}c\ttab\\n é";
    const SHOWN: &str = r"a\r\n127.0.0.1:1:111111 say : b\u001b[2J\u0000\u007f\u009b31m\u2028\u2029c\ttab\n é";
    let cluster = Cluster::start(2).await;
    let mut bystanders = Bystanders::join(&cluster, 1).await;
    let mut legacy = cluster.line(0).await;
    let sender = cluster.quic(0).await;
    bystanders
        .during(async {
            for node in 0..2 {
                let mut recipient = cluster.line(node).await;
                legacy.say(&recipient.address, BODY).await;
                recipient.reader.expect_message(&legacy.address, SHOWN).await;
                sender.send(&recipient.address, BODY).await.unwrap();
                recipient.reader.expect_message(sender.address(), SHOWN).await;
                recipient.expect_nothing_else().await;

                let recipient = cluster.quic(node).await;
                legacy.say(recipient.address(), BODY).await;
                match within("the message", recipient.receive()).await {
                    Some(Event::Message(message)) => {
                        assert_eq!(message.body, BODY);
                        assert_eq!(message.text(), SHOWN);
                    }
                    event => panic!("{event:?}"),
                }
            }
        })
        .await;
}

#[tokio::test]
async fn a_text_line_ends_with_cr_lf_and_holds_no_other() {
    let cluster = Cluster::start(1).await;
    let (mut client, mut recipient) = (cluster.line(0).await, cluster.line(0).await);
    client.say(&recipient.address, "one\r\ntwo\rthree\nfour").await;
    let line = recipient.reader.raw_line().await.unwrap();
    let expected = format!(r"{} say : one\r\ntwo\rthree\nfour", client.address);
    assert_eq!(line, format!("{expected}\r\n").into_bytes());
}

#[tokio::test]
async fn invalid_utf8_from_a_legacy_client() {
    let text = answered(
        b"{\"to\":\"127.0.0.1:1:111111\",\"body\":\"\xff\xfe\",\"cmd\":\"sendMsg\"}",
        Code::BadJson,
    )
    .await;
    assert!(text.contains("UTF-8"), "{text}");
}

#[tokio::test]
async fn invalid_utf8_from_a_quic_client_is_escaped() {
    const BODY: &[u8] = b"\xff\xfe ok \xc3\n";
    let cluster = Cluster::start(2).await;
    let mut bystanders = Bystanders::join(&cluster, 1).await;
    let sender = cluster.quic(0).await;
    bystanders
        .during(async {
            for node in 0..2 {
                let mut recipient = cluster.line(node).await;
                sender.send(&recipient.address, BODY).await.unwrap();
                recipient
                    .reader
                    .expect_message(sender.address(), r"\xff\xfe ok \xc3\n")
                    .await;

                recipient.writer.send(r#"{"cmd":"hello","format":"json"}"#).await;
                // Answered by nothing, so what follows it on the same connection shows that it was followed.
                recipient.say_with_id(&"127.0.0.1:9:1".parse().unwrap(), "", "x").await;
                recipient.reader.expect_refused("x", Code::NoSuchNode).await;
                sender.send(&recipient.address, BODY).await.unwrap();
                assert_eq!(
                    recipient.reader.json().await,
                    json!({
                        "cmd": "message",
                        "from": sender.address().to_string(),
                        "to": recipient.address.to_string(),
                        "body64": "//4gb2sgwwo=",
                    })
                );
            }
        })
        .await;
}

#[tokio::test]
async fn an_http_request() {
    let Scene {
        mut bystanders,
        client,
        cluster,
    } = Scene::set().await;
    let mut recipient = cluster.line(0).await;
    // As a web page could have a browser send it: the body is a line that a client might write.
    let body = message_line(&recipient.address, "from a web page");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{body}\n",
        body.len() + 1
    );
    bystanders
        .during(async {
            turned_out(client.reader, client.writer, request.as_bytes(), Code::BadJson).await;
            recipient.expect_nothing_else().await;
        })
        .await;
}

#[tokio::test]
async fn a_tls_hello() {
    let Scene {
        mut bystanders,
        client,
        cluster,
    } = Scene::set().await;
    let config = Arc::new(tls_config(&cluster.certs, b"http/1.1", None));
    let mut tls = rustls::ClientConnection::new(config, ServerName::try_from("127.0.0.1").unwrap()).unwrap();
    let mut hello = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut hello).unwrap();
    }
    bystanders
        .during(turned_out(client.reader, client.writer, &hello, Code::BadJson))
        .await;
}

#[tokio::test]
async fn a_client_that_breaks_off_at_any_byte_disturbs_nobody() {
    let cluster = Cluster::start(1).await;
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    let mut recipient = cluster.line(0).await;
    let line = message_line_with_id(&recipient.address, "x", "1");
    let whole = line.len();
    bystanders
        .during(async {
            for length in (0..whole).step_by(7) {
                let mut client = cluster.line(0).await;
                client.writer.write(&line.as_bytes()[..length]).await;
            }
            recipient.expect_nothing_else().await;
        })
        .await;
}
