//! QUIC clients whose connection breaks, and who come back to their session.

use std::time::Duration;

use futures_util::future::join_all;
use quinn::VarInt;
use serde_json::{Value, json};
use trunkline::client::{Event, Unsettled};
use trunkline::{Address, Client, Code, Outcome};
use trunkline_lab::wire::Settings;

use crate::support::{Cluster, NodeCommand, RawQuic, Relay, Talk, connect_quic, eventually, name, within};

const MESSAGES: usize = 300;

async fn expect(client: &Client, from: &Address, body: &str) {
    let event = within(format!("{body} comes"), client.receive()).await.unwrap();
    let Event::Message(message) = event else {
        panic!("{event:?}");
    };
    assert_eq!((&message.from, &message.text()[..]), (from, body));
}

#[tokio::test]
async fn nothing_is_lost_doubled_or_reordered_when_a_client_comes_back() {
    let cluster = Cluster::start(2).await;
    let wire = Relay::cut_to(cluster.nodes[0].quic_addr(), 0.0).await;
    wire.mend();
    let client = connect_quic(wire.addr(), &cluster.certs).await;
    let mut legacy = cluster.line(1).await;
    let (address, peer) = (client.address().clone(), legacy.address.clone());
    let breaks: [fn(&Relay); 2] = [
        Relay::end_connections,
        // What has arrived is not known to have.
        Relay::end_connections_on_the_way_back,
    ];
    for (round, break_it) in breaks.into_iter().enumerate() {
        let body = |number: usize| format!("{round}/{number}");
        let mut receipts = Vec::new();
        for number in 0..MESSAGES {
            receipts.push(client.send_with_receipt(&peer, body(number)).await.unwrap());
            legacy.say_with_id(&address, &body(number), &body(number)).await;
            if number == MESSAGES / 3 {
                break_it(&wire);
            }
        }
        // It takes what is for itself only now: what waits in the client while that comes back is not lost either.
        for number in 0..MESSAGES {
            legacy.reader.expect_message(&address, &body(number)).await;
        }
        for number in 0..MESSAGES {
            expect(&client, &peer, &body(number)).await;
        }
        let outcomes = within("all are answered", join_all(receipts)).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered));
        for number in 0..MESSAGES {
            legacy.reader.expect_delivered(&body(number)).await;
        }
    }
    assert_eq!(client.address(), &address);
    legacy.expect_nothing_else().await;
    client.close().await;
    eventually("its place is free", || cluster.nodes[0].clients() == 0).await;
}

/// Has a client talk to one of another node while its connections break like this, one after the other.
async fn breaks_in_full_flow(breaks: &[fn(&Relay)]) {
    let cluster = Cluster::start(2).await;
    let wire = Relay::bad_to(cluster.nodes[0].quic_addr(), &Settings::default()).await;
    let client = connect_quic(wire.addr(), &cluster.certs).await;
    let (peer, mut legacy) = (cluster.quic(1).await, cluster.line(1).await);
    let talk = Talk::new();
    let breaking = async {
        talk.begins(2).await;
        for break_it in breaks {
            talk.goes_on(200).await;
            let before = wire.handshakes();
            break_it(&wire);
            eventually("it comes back", || wire.handshakes() > before).await;
        }
        talk.goes_on(200).await;
        talk.end();
    };
    tokio::join!(
        breaking,
        talk.quic(&client, peer.address()),
        talk.quic(&peer, client.address())
    );
    println!("{} messages", talk.messages());
    legacy.say_with_id(client.address(), "still there", "1").await;
    expect(&client, &legacy.address, "still there").await;
    legacy.reader.expect_delivered("1").await;
    client.close().await;
    eventually("its place is free", || cluster.nodes[0].clients() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_both_ways_in_full_flow_cost_nothing() {
    breaks_in_full_flow(&[Relay::end_connections, Relay::end_connections]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_on_the_way_back_in_full_flow_cost_nothing() {
    breaks_in_full_flow(&[
        Relay::end_connections_on_the_way_back,
        Relay::end_connections_on_the_way_back,
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_on_the_way_there_in_full_flow_costs_nothing() {
    breaks_in_full_flow(&[Relay::end_connections_on_the_way_there]).await;
}

#[tokio::test]
async fn a_message_is_delivered_when_the_program_accepts_it() {
    let cluster = Cluster::start(1).await;
    let client = connect_quic(cluster.nodes[0].quic_addr(), &cluster.certs).await;
    let mut legacy = cluster.line(0).await;
    for id in ["kept", "dropped"] {
        legacy.say_with_id(client.address(), id, id).await;
    }
    let next = async || match within("a message", client.receive_unsettled()).await {
        Some(Unsettled::Message(delivery)) => delivery,
        other => panic!("{other:?}"),
    };
    let (kept, dropped) = (next().await, next().await);
    assert_eq!(
        (&kept.message().from, &kept.message().text()[..]),
        (&legacy.address, "kept")
    );
    // In the other order than they came: neither has ended before.
    drop(dropped);
    let told = legacy.reader.json().await;
    assert_eq!(
        (told["id"].as_str(), told["status"].as_str(), told["code"].as_str()),
        (Some("dropped"), Some("unknown"), Some(Code::RecipientGone.as_str()))
    );
    assert_eq!(kept.accept().text(), "kept");
    legacy.reader.expect_delivered("kept").await;
    legacy.expect_nothing_else().await;
}

#[tokio::test]
async fn a_client_goes_on_from_another_port() {
    let cluster = Cluster::start(1).await;
    let wire = Relay::bad_to(cluster.nodes[0].quic_addr(), &Settings::default()).await;
    let client = connect_quic(wire.addr(), &cluster.certs).await;
    let mut legacy = cluster.line(0).await;
    let address = client.address().clone();
    for (moves, body) in [(1, "1"), (2, "2")] {
        client.rebind().unwrap();
        eventually("the node sees it elsewhere", || wire.moves() == moves).await;
        legacy.say_with_id(&address, body, body).await;
        expect(&client, &legacy.address, body).await;
        legacy.reader.expect_delivered(body).await;
        let receipt = client.send_with_receipt(&legacy.address, body).await.unwrap();
        assert_eq!(within("it is answered", receipt).await, Outcome::Delivered);
        legacy.reader.expect_message(&address, body).await;
    }
}

#[tokio::test]
async fn when_the_grace_ends_senders_are_told_and_the_client_is_gone() {
    let cluster = Cluster::start_with(1, |config| {
        config.limits.resume_grace = Duration::from_secs(1);
    })
    .await;
    let wire = Relay::cut_to(cluster.nodes[0].quic_addr(), 0.0).await;
    wire.mend();
    let client = connect_quic(wire.addr(), &cluster.certs).await;
    let mut legacy = cluster.line(0).await;
    let address = client.address().clone();
    wire.cut();
    legacy.say_with_id(&address, "into the dark", "1").await;
    let receipt = client.send_with_receipt(&legacy.address, "out of it").await.unwrap();
    let told = legacy.reader.json().await;
    assert_eq!(
        (told["status"].as_str(), told["code"].as_str()),
        (Some("unknown"), Some(Code::RecipientGone.as_str()))
    );
    assert_eq!(
        within("the client knows", receipt).await,
        Outcome::Unknown(Code::NodeUnreachable)
    );
    assert_eq!(within("the client has ended", client.receive()).await, None);
    assert_eq!(cluster.nodes[0].clients(), 1, "the legacy client");
}

#[tokio::test]
async fn a_session_does_not_outlive_its_node() {
    let certs = crate::support::Certs::make(1);
    let mut node = NodeCommand::new(&certs, 0).start().await;
    let client = connect_quic(node.quic(), &certs).await;
    node.process.kill();
    let node = node.command.start().await;
    assert_eq!(within("the client has ended", client.receive()).await, None);
    let other = connect_quic(node.quic(), &certs).await;
    assert_eq!(other.address().node, name(0));
}

/// What a client says that comes back and has taken nothing.
fn resume(welcome: &Value) -> Value {
    json!({"token": welcome["resume"]["token"], "taken": {"below": 1}})
}

#[tokio::test]
async fn a_connection_that_is_replaced_is_not_told_that_its_client_is_done() {
    let cluster = Cluster::start(1).await;
    let addr = cluster.nodes[0].quic_addr();
    let (first, welcome) = RawQuic::join_resumable(addr, &cluster.certs, None).await;
    let (_second, again) = RawQuic::join_resumable(addr, &cluster.certs, Some(resume(&welcome))).await;
    assert_eq!(
        (&again["cmd"], &again["address"]),
        (&json!("welcome"), &welcome["address"])
    );
    // A client that is told 0 here, by its own late attempt to come back, would take its session for ended.
    assert_eq!(first.closed().await.0, 2);
}

#[tokio::test]
async fn a_client_that_closes_its_connection_is_not_waited_for() {
    let cluster = Cluster::start(1).await;
    for code in [0, 1] {
        let (client, _) = RawQuic::join_resumable(cluster.nodes[0].quic_addr(), &cluster.certs, None).await;
        assert_eq!(cluster.nodes[0].clients(), 1);
        client.connection.close(VarInt::from_u32(code), b"");
        // The grace is longer than this waits.
        eventually("the session has ended", || cluster.nodes[0].clients() == 0).await;
    }
}

#[tokio::test]
async fn what_the_other_side_knows_is_not_said_again_and_all_else_is() {
    let cluster = Cluster::start(1).await;
    let addr = cluster.nodes[0].quic_addr();
    let mut legacy = cluster.line(0).await;
    let (mut client, welcome) = RawQuic::join_resumable(addr, &cluster.certs, None).await;
    let address: Address = welcome["address"].as_str().unwrap().parse().unwrap();
    let to = legacy.address.to_string();
    let to_legacy = |id: u64, after: u64| {
        let header = json!({"to": to, "id": id, "after": after});
        format!("{header}\nmessage {id}").into_bytes()
    };
    let receipt = json!({"cmd": "receipt", "delivered": [[1, 1]]});

    // Each has sent one message. The node's is not answered, and the answer to the client's is not confirmed.
    client.stream(&to_legacy(1, 0)).await;
    legacy.reader.expect_message(&address, "message 1").await;
    assert_eq!(client.hear().await, Some(receipt.clone()));
    legacy.say_with_id(&address, "one", "one").await;
    assert!(client.message().await.ends_with(b"\none"));

    // The client has not taken the node's message: it comes again.
    let (mut client, again) = RawQuic::join_resumable(addr, &cluster.certs, Some(resume(&welcome))).await;
    assert_eq!(
        (&again["taken"], &again["address"]),
        (&json!({"below": 2}), &welcome["address"])
    );
    assert_eq!(client.hear().await, Some(receipt.clone()), "it is told again");
    assert!(client.message().await.ends_with(b"\none"));
    // The client's message, though, is dropped when it comes again.
    client.stream(&to_legacy(1, 0)).await;
    client.stream(&to_legacy(2, 1)).await;
    legacy.reader.expect_message(&address, "message 2").await;
    assert_eq!(
        client.hear().await,
        Some(json!({"cmd": "receipt", "delivered": [[2, 2]]}))
    );
    client.say(&json!({"cmd": "confirm", "below": 3, "receipts": 2})).await;
    // Once this is answered, the line before it was read.
    client.say(&json!({"cmd": "receipt", "delivered": [[1, 1]]})).await;
    legacy.reader.expect_delivered("one").await;

    // Now it has: it does not come again, nor is told what it knows.
    legacy.say_with_id(&address, "two", "two").await;
    assert!(client.message().await.ends_with(b"\ntwo"));
    let knows = json!({"token": welcome["resume"]["token"], "taken": {"below": 3}});
    let (mut client, again) = RawQuic::join_resumable(addr, &cluster.certs, Some(knows)).await;
    assert_eq!(again["taken"], json!({"below": 3}));
    legacy.say_with_id(&address, "three", "three").await;
    assert!(client.message().await.ends_with(b"\nthree"));
    client.stream(&to_legacy(3, 2)).await;
    legacy.reader.expect_message(&address, "message 3").await;
    let next = loop {
        let line = client.hear().await.expect("a receipt");
        if line["cmd"] == "receipt" {
            break line;
        }
    };
    assert_eq!(next, json!({"cmd": "receipt", "delivered": [[3, 3]]}));
    client.say(&json!({"cmd": "receipt", "delivered": [[2, 3]]})).await;
    legacy.reader.expect_delivered("two").await;
    legacy.reader.expect_delivered("three").await;
    legacy.expect_nothing_else().await;
}

#[tokio::test]
async fn one_that_closes_while_it_is_away_still_tells_what_it_received() {
    let cluster = Cluster::start(1).await;
    let wire = Relay::cut_to(cluster.nodes[0].quic_addr(), 0.0).await;
    wire.mend();
    let client = connect_quic(wire.addr(), &cluster.certs).await;
    let mut legacy = cluster.line(0).await;
    wire.cut_there();
    legacy.say_with_id(client.address(), "the last one", "1").await;
    expect(&client, &legacy.address, "the last one").await;
    wire.cut();
    let before = wire.handshakes();
    eventually("the client tries to come back", || wire.handshakes() > before).await;
    let mended = async {
        // It does not leave while it can't be heard: it goes on trying.
        let before = wire.handshakes();
        eventually("it tries again and again", || wire.handshakes() >= before + 8).await;
        wire.mend();
    };
    tokio::join!(within("the client closes", client.close()), mended);
    legacy.reader.expect_delivered("1").await;
    eventually("its place is free", || cluster.nodes[0].clients() == 1).await;
}
