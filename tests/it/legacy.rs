//! The legacy protocol as its clients see it: pieces of lines, receipts, formats, ends.

use std::net::SocketAddr;

use serde_json::json;
use trunkline::Code;
use trunkline::client::Event;

use crate::support::{Cluster, LineReader, LineWriter, eventually, message_line, message_line_with_id, within};

#[tokio::test]
async fn a_receipt_says_delivered_on_the_same_node_and_on_another() {
    let cluster = Cluster::start(2).await;
    let mut sender = cluster.line(0).await;
    for node in 0..2 {
        let mut recipient = cluster.line(node).await;
        sender
            .say_with_id(&recipient.address, "hello", "my id \"é\"\u{1b}")
            .await;
        sender.reader.expect_delivered("my id \"é\"\u{1b}").await;
        recipient.reader.expect_message(&sender.address, "hello").await;

        let recipient = cluster.quic(node).await;
        sender.say_with_id(recipient.address(), "hello", "2").await;
        // Delivered means that the program took it: before, there is no receipt.
        sender.expect_nothing_else().await;
        assert!(matches!(
            within("the message", recipient.receive()).await,
            Some(Event::Message(_))
        ));
        sender.reader.expect_delivered("2").await;
    }
    sender.expect_nothing_else().await;
}

#[tokio::test]
async fn a_receipt_says_refused_on_the_same_node_and_on_another() {
    let cluster = Cluster::start(2).await;
    let mut sender = cluster.line(0).await;
    for (to, code) in [
        ("127.0.0.1:1:nobody", Code::NoSuchClient),
        ("127.0.0.1:2:nobody", Code::NoSuchClient),
        ("127.0.0.1:9:nobody", Code::NoSuchNode),
    ] {
        sender.say_with_id(&to.parse().unwrap(), "hello?", to).await;
        sender.reader.expect_refused(to, code).await;
    }
    for (line, code) in [
        (r#"{"id":"a","cmd":"sendMsg","to":"nowhere"}"#, Code::BadAddress),
        (r#"{"id":"a","cmd":"shout"}"#, Code::UnknownCmd),
        (r#"{"id":"a","cmd":17}"#, Code::BadJson),
        (r#"{"id":"a","cmd":"sendMsg""#, Code::BadJson),
    ] {
        sender.writer.send(line).await;
        sender.reader.expect_refused("a", code).await;
    }
    sender.expect_nothing_else().await;
}

#[tokio::test]
async fn a_client_that_left_is_no_client() {
    let cluster = Cluster::start(2).await;
    let mut sender = cluster.line(0).await;
    for node in 0..2 {
        let before = cluster.nodes[node].clients();
        let left = cluster.line(node).await.address;
        eventually("the client is gone", || cluster.nodes[node].clients() == before).await;
        sender.say_with_id(&left, "hello?", "1").await;
        sender.reader.expect_refused("1", Code::NoSuchClient).await;
    }
}

#[tokio::test]
async fn an_id_has_up_to_64_characters() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.line(0).await;
    let own = client.address.clone();
    let longest = "é".repeat(64);
    client.say_with_id(&own, "hello", &longest).await;
    client.reader.expect_message(&own, "hello").await;
    client.reader.expect_delivered(&longest).await;
    client.say_with_id(&own, "not sent", &"x".repeat(65)).await;
    let text = client.reader.expect_error(Code::BadJson).await;
    assert!(text.contains("64"), "{text}");
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn json_lines_for_programs_and_back_to_text() {
    let cluster = Cluster::start(2).await;
    let mut sender = cluster.line(1).await;
    let mut client = cluster.line(0).await;
    let nowhere = "127.0.0.1:9:1".parse().unwrap();
    for _ in 0..2 {
        client.writer.send(r#"{"cmd":"hello","format":"json"}"#).await;
        client.say(&nowhere, "").await;
        let mut error = client.reader.json().await;
        assert!(error.as_object_mut().unwrap().remove("text").unwrap().is_string());
        assert_eq!(error, json!({"cmd": "error", "code": "no-such-node"}));
        client.say_with_id(&nowhere, "", "1").await;
        client.reader.expect_refused("1", Code::NoSuchNode).await;
        sender.say(&client.address, "\"hello\"\r\n\u{1b}\u{2028}é").await;
        let line = client.reader.line().await;
        assert!(!line.contains(['\u{1b}', '\u{2028}']), "{line:?}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&line).unwrap(),
            json!({
                "cmd": "message",
                "from": sender.address.to_string(),
                "to": client.address.to_string(),
                "body": "\"hello\"\r\n\u{1b}\u{2028}é",
            })
        );

        client.writer.send(r#"{"cmd":"hello","format":"text"}"#).await;
        client.say(&nowhere, "").await;
        client.reader.expect_error(Code::NoSuchNode).await;
        sender.say(&client.address, "hello").await;
        client.reader.expect_message(&sender.address, "hello").await;
    }
    client.writer.send(r#"{"cmd":"hello","format":"xml"}"#).await;
    client.reader.expect_error(Code::BadJson).await;
}

#[tokio::test]
async fn keys_in_any_case_and_both_line_ends() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.line(0).await;
    let own = client.address.clone();
    for line in [
        format!("{{\"From\":\"x\",\"TO\":\"{own}\",\"Body\":\"hello\",\"CMD\":\"sendMsg\",\"extra\":[1]}}\r\n"),
        format!("{{\"to\":\"{own}\",\"cmd\":\"sendMsg\",\"body\":\"hello\"}}\n"),
    ] {
        client.writer.write(line.as_bytes()).await;
        client.reader.expect_message(&own, "hello").await;
    }
    client
        .writer
        .send(&format!("{{\"to\":\"{own}\",\"cmd\":\"sendMsg\"}}"))
        .await;
    client.reader.expect_message(&own, "").await;
}

#[tokio::test]
async fn a_line_byte_by_byte() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.line(0).await;
    let own = client.address.clone();
    let line = format!("{}\r\n", message_line(&own, "é in pieces"));
    for byte in line.as_bytes() {
        client.writer.write(&[*byte]).await;
        // So that the pieces travel one by one.
        tokio::task::yield_now().await;
    }
    client.reader.expect_message(&own, "é in pieces").await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn a_hundred_lines_in_one_write() {
    let cluster = Cluster::start(2).await;
    let mut client = cluster.line(0).await;
    let mut recipient = cluster.line(1).await;
    let lines: String = (0..100)
        .map(|number| message_line_with_id(&recipient.address, &number.to_string(), &number.to_string()) + "\n")
        .collect();
    client.writer.write(lines.as_bytes()).await;
    for number in 0..100 {
        recipient
            .reader
            .expect_message(&client.address, &number.to_string())
            .await;
    }
    for number in 0..100 {
        client.reader.expect_delivered(&number.to_string()).await;
    }
    client.expect_nothing_else().await;
    recipient.expect_nothing_else().await;
}

#[tokio::test]
async fn what_was_sent_before_the_end_is_delivered_and_answered() {
    let cluster = Cluster::start(2).await;
    let mut recipient = cluster.line(1).await;
    let mut client = cluster.line(0).await;
    let quic = cluster.quic(1).await;
    let mut lines: String = (0..99)
        .map(|number| message_line(&recipient.address, &number.to_string()) + "\n")
        .collect();
    lines += &(message_line_with_id(quic.address(), "to a program", "quic") + "\n");
    lines += &(message_line(&"127.0.0.1:2:nobody".parse().unwrap(), "") + "\r\n");
    // The last line lacks its end.
    lines += &message_line_with_id(&recipient.address, "99", "last");
    client.writer.write(lines.as_bytes()).await;
    client.writer.end().await;
    for number in 0..100 {
        recipient
            .reader
            .expect_message(&client.address, &number.to_string())
            .await;
    }
    // Two answers need nobody; the third waits for the program, and the connection with it.
    let mut answers = vec![client.reader.line().await, client.reader.line().await];
    assert!(matches!(
        within("the message", quic.receive()).await,
        Some(Event::Message(_))
    ));
    client.reader.expect_delivered("quic").await;
    client.reader.expect_end().await;
    answers.sort();
    assert!(answers[0].starts_with("error : no-such-client : "), "{answers:?}");
    assert_eq!(answers[1], r#"{"cmd":"receipt","id":"last","status":"delivered"}"#);
    recipient.expect_nothing_else().await;
}

#[tokio::test]
async fn what_comes_for_a_client_that_has_ended_its_side_is_written_and_not_told_as_delivered() {
    let cluster = Cluster::start(2).await;
    let mut sender = cluster.line(1).await;
    let mut client = cluster.line(0).await;
    // It stays for as long as this is under way.
    let quic = cluster.quic(1).await;
    client.say(quic.address(), "to a program").await;
    client.writer.end().await;
    let unknown = json!({"cmd": "receipt", "id": "1", "status": "unknown", "code": "recipient-gone"});
    let told = async {
        let mut doubtful = 0;
        // Nobody but the node knows when it has read the end.
        while doubtful < 3 {
            sender.say_with_id(&client.address, "are you there?", "1").await;
            client.reader.expect_message(&sender.address, "are you there?").await;
            let mut receipt = sender.reader.json().await;
            let text = receipt.as_object_mut().and_then(|receipt| receipt.remove("text"));
            if text.is_some() {
                assert_eq!(receipt, unknown);
                doubtful += 1;
            } else {
                assert!(receipt["status"] == "delivered" && doubtful == 0, "{receipt}");
            }
        }
    };
    within("the node has read the end", told).await;
    quic.receive().await;
    client.reader.expect_end().await;
}

#[tokio::test]
async fn a_client_that_leaves_without_reading_has_sent_all_the_same() {
    let cluster = Cluster::start(2).await;
    let mut recipient = cluster.line(1).await;
    let mut client = cluster.line(0).await;
    let lines: String = (0..100)
        .map(|number| message_line(&recipient.address, &number.to_string()) + "\n")
        .collect();
    client.writer.write(lines.as_bytes()).await;
    let from = client.address.clone();
    drop(client);
    for number in 0..100 {
        recipient.reader.expect_message(&from, &number.to_string()).await;
    }
}

#[tokio::test]
async fn one_client_too_many_is_turned_away_until_another_leaves() {
    let cluster = Cluster::start_with(1, |config| config.limits.max_clients = 2).await;
    let addr = cluster.nodes[0].tcp_addr().unwrap();
    let mut first = cluster.line(0).await;
    let second = cluster.quic(0).await;
    for _ in 0..10 {
        let (mut reader, _writer) = LineReader::connect(addr).await;
        reader.expect_error(Code::RateLimited).await;
        reader.expect_end().await;
    }
    let refused = trunkline::Client::connect(&cluster.nodes[0].quic_addr().into(), cluster.certs.dir()).await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("rate-limited"), "{error}");
    first.expect_nothing_else().await;

    drop(second);
    eventually("the QUIC client is gone", || cluster.nodes[0].clients() == 1).await;
    let third = joined(addr).await;
    drop(third);
    eventually("the legacy client is gone", || cluster.nodes[0].clients() == 1).await;
    joined(addr).await;
    first.expect_nothing_else().await;
}

/// Tries until the node has room: a place is free a moment after its client is gone.
async fn joined(addr: SocketAddr) -> (LineReader, LineWriter) {
    within("room for one more", async {
        loop {
            let (mut reader, writer) = LineReader::connect(addr).await;
            if reader.line().await.starts_with("you is  : ") {
                return (reader, writer);
            }
        }
    })
    .await
}
