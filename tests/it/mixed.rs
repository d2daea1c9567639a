//! Legacy servers and Trunkline nodes in one cluster.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use trunkline::client::Event;
use trunkline::{Address, Code, Config, Node, NodeName, Outcome};

use crate::support::{
    Bystanders, Carrier, Certs, Cluster, HELD, LegacyServer, LineClient, eventually, linked, message_line_with_id,
    node_config, own_port, peer, within,
};

/// Nodes that are known by where their clients connect, as a legacy server has to dial them there; each linked to each
/// other, and beside these legacy servers.
async fn start_with(count: usize, servers: &[&NodeName], adjust: impl Fn(&mut Config)) -> Cluster {
    let ports: Vec<SocketAddr> = (0..count).map(|_| own_port()).collect();
    let names: Vec<NodeName> = ports.iter().map(|&port| port.into()).collect();
    let certs = Certs::named(&names);
    let carrier = Carrier::of_environment().await;
    let mut nodes: Vec<Node> = Vec::new();
    for port in ports {
        let mut config = node_config(&certs, 0);
        (config.tcp, config.advertise) = (Some(port.into()), Some(port.into()));
        config.legacy_nodes = servers.iter().map(|&server| server.clone()).collect();
        carrier.join(&mut config, nodes.iter().map(peer).collect());
        adjust(&mut config);
        nodes.push(Node::start(config).await.unwrap());
    }
    for node in &nodes {
        linked(node, count - 1).await;
    }
    Cluster { certs, nodes, carrier }
}

async fn start(count: usize, server: &LegacyServer) -> Cluster {
    start_with(count, &[server.name()], |_| {}).await
}

/// A server that is quick, and reads each other connection a little later than the others.
async fn server() -> LegacyServer {
    LegacyServer::start(Duration::ZERO, Duration::from_millis(5)).await
}

async fn client_of(server: &LegacyServer) -> LineClient {
    LineClient::connect(server.name().as_str().parse::<SocketAddr>().unwrap()).await
}

/// The line of an existing client, which says whom it is from.
fn line(from: &Address, to: &Address, body: &str) -> String {
    json!({"from": from.to_string(), "to": to.to_string(), "body": body, "cmd": "sendMsg"}).to_string()
}

async fn say(client: &mut LineClient, to: &Address, body: &str) {
    let line = line(&client.address, to, body);
    client.writer.send(&line).await;
}

/// The next line must be a receipt with this id and status.
async fn expect_receipt(client: &mut LineClient, id: &str, status: &str, code: Code) {
    let receipt = client.reader.json().await;
    assert_eq!(
        (&receipt["id"], &receipt["status"], &receipt["code"]),
        (&id.into(), &status.into(), &code.as_str().into()),
        "{receipt}"
    );
}

#[tokio::test]
async fn each_client_on_three_servers_reaches_each_other() {
    let server = server().await;
    let cluster = start(2, &server).await;
    let mut clients = [
        client_of(&server).await,
        client_of(&server).await,
        cluster.line(0).await,
        cluster.line(0).await,
        cluster.line(1).await,
        cluster.line(1).await,
    ];
    for round in 0..2 {
        for from in 0..clients.len() {
            for to in (0..clients.len()).filter(|&to| to != from) {
                let (sender, recipient) = (clients[from].address.clone(), clients[to].address.clone());
                let body = format!("round {round}, from {from} to {to}");
                say(&mut clients[from], &recipient, &body).await;
                clients[to].reader.expect_message(&sender, &body).await;
            }
        }
    }
}

#[tokio::test]
async fn a_program_and_a_legacy_client_of_another_server_write_to_each_other() {
    let server = server().await;
    let cluster = start(1, &server).await;
    let mut client = client_of(&server).await;
    let program = cluster.quic(0).await;
    for body in [&b"plain"[..], b"\"quoted\\\" \xc3\xa9", b"no UTF-8: \xff"] {
        let receipt = program.send_with_receipt(&client.address, body.to_vec()).await.unwrap();
        let text = std::str::from_utf8(body).unwrap_or("no UTF-8: \\xff");
        client.reader.expect_message(program.address(), text).await;
        assert_eq!(
            within("the receipt", receipt).await,
            Outcome::Unknown(Code::Unconfirmed)
        );
    }
    let large = "\u{1}é".repeat(300_000);
    program.send(&client.address, large.clone()).await.unwrap();
    client.reader.expect_message(program.address(), &large).await;

    let own = client.address.clone();
    say(&mut client, program.address(), "and back").await;
    match within("the message", program.receive()).await {
        Some(Event::Message(message)) => assert_eq!((&message.from, &message.body[..]), (&own, &b"and back"[..])),
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_burst_comes_whole_and_in_order() {
    const BURST: usize = 100;
    let server = server().await;
    let cluster = start(1, &server).await;
    let mut client = client_of(&server).await;
    let mut sender = cluster.line(0).await;
    let lines: Vec<String> = (0..BURST)
        .map(|number| line(&sender.address, &client.address, &number.to_string()))
        .collect();
    sender.writer.send(&lines.join("\n")).await;
    for number in 0..BURST {
        client.reader.expect_message(&sender.address, &number.to_string()).await;
    }
    // One line a connection, beside that of the client.
    assert_eq!(server.taken(), BURST + 1);
    let body = |line: &String| serde_json::from_str::<Value>(line).unwrap()["body"].clone();
    assert!(
        server
            .lines()
            .iter()
            .map(body)
            .eq((0..BURST).map(|number| number.to_string()))
    );
}

#[tokio::test]
async fn conversations_do_not_wait_for_each_other() {
    const CONVERSATIONS: usize = 40;
    let server = server().await;
    let cluster = start(1, &server).await;
    let mut client = client_of(&server).await;
    server.set_reads(false);
    let mut senders = Vec::new();
    for _ in 0..CONVERSATIONS {
        let mut sender = cluster.line(0).await;
        say(&mut sender, &client.address, "hello").await;
        senders.push(sender);
    }
    eventually("there is a connection for each", || server.taken() == 1 + CONVERSATIONS).await;
    server.set_reads(true);
    let mut heard = HashSet::new();
    for _ in 0..CONVERSATIONS {
        heard.insert(client.reader.line().await);
    }
    let expected = senders.iter().map(|sender| format!("{} say : hello", sender.address));
    assert_eq!(heard, expected.collect::<HashSet<String>>());
}

#[tokio::test]
async fn who_it_is_from_is_believed_of_the_server_alone() {
    let server = server().await;
    let other = self::server().await;
    let cluster = start_with(2, &[server.name(), other.name()], |_| {}).await;
    let mut recipient = cluster.line(0).await;
    let there = |name: &NodeName| format!("{name}:123456").parse::<Address>().unwrap();
    let legacy = there(server.name());

    // The tests' own machine is the one of the servers, at 127.0.0.1 alone.
    let mut forger = LineClient::connect_from([127, 0, 0, 2], cluster.nodes[0].tcp_addr().unwrap()).await;
    forger.writer.send(&line(&legacy, &recipient.address, "forged")).await;
    recipient.reader.expect_message(&forger.address, "forged").await;

    let mut passes_on = cluster.line(0).await;
    for from in [&legacy, &there(other.name())] {
        passes_on.writer.send(&line(from, &recipient.address, "true")).await;
        recipient.reader.expect_message(from, "true").await;
    }
    // For others than its own clients it does not speak.
    for from in [
        &recipient.address,
        &there(cluster.nodes[1].name()),
        &"127.0.0.1:1:123456".parse().unwrap(),
    ] {
        passes_on.writer.send(&line(from, &recipient.address, "forged")).await;
        recipient.reader.expect_message(&passes_on.address, "forged").await;
    }
    passes_on.expect_nothing_else().await;
}

#[tokio::test]
async fn a_server_is_at_the_addresses_that_its_name_stands_for() {
    let server: NodeName = "localhost:1".parse().unwrap();
    let cluster = start_with(1, &[&server], |_| {}).await;
    let mut recipient = cluster.line(0).await;
    let mut passes_on = cluster.line(0).await;
    let legacy = format!("{server}:123456").parse().unwrap();
    let line = line(&legacy, &recipient.address, "hello");
    let believed = async {
        // The node looks the name up as it starts, and does not wait for that.
        loop {
            passes_on.writer.send(&line).await;
            let said = recipient.reader.line().await;
            if said == format!("{legacy} say : hello") {
                return;
            }
            assert_eq!(said, format!("{} say : hello", passes_on.address));
        }
    };
    within("the name is looked up", believed).await;
}

#[tokio::test]
async fn what_a_server_passes_on_goes_no_further() {
    let server = server().await;
    let other = self::server().await;
    let cluster = start_with(2, &[server.name(), other.name()], |_| {}).await;
    let legacy = format!("{}:123456", server.name()).parse::<Address>().unwrap();
    let mut third = cluster.line(1).await;
    let on_another = client_of(&other).await;
    let on_the_same = client_of(&server).await;
    let mut passes_on = cluster.line(0).await;
    let gone = format!("{}:nobody", cluster.nodes[0].name()).parse().unwrap();
    for to in [&third.address, &on_another.address, &on_the_same.address, &gone] {
        passes_on.writer.send(&line(&legacy, to, "on")).await;
        passes_on.reader.expect_error(Code::NoSuchClient).await;
    }
    assert_eq!(cluster.nodes[0].counters()["refused-hop"], 3);
    passes_on.expect_nothing_else().await;
    third.expect_nothing_else().await;
    assert_eq!((server.taken(), other.taken()), (1, 1));
}

#[tokio::test]
async fn a_receipt_says_that_nobody_knows_and_without_one_nothing_is_said() {
    let server = server().await;
    let cluster = start(1, &server).await;
    let mut client = client_of(&server).await;
    let mut sender = cluster.line(0).await;
    let to = client.address.clone();
    for _ in 0..3 {
        say(&mut sender, &to, "no receipt, please").await;
        client
            .reader
            .expect_message(&sender.address, "no receipt, please")
            .await;
    }
    let nobody = format!("{}:nobody", server.name()).parse().unwrap();
    for to in [&to, &nobody] {
        sender.say_with_id(to, "hello", "1").await;
        // The first line that it gets, so none was written for the others, which are behind it.
        expect_receipt(&mut sender, "1", "unknown", Code::Unconfirmed).await;
    }
    client.reader.expect_message(&sender.address, "hello").await;
    sender.expect_nothing_else().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_or_not_meant_can_not_be_reached() {
    let gone: NodeName = own_port().into();
    let closes = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute: NodeName = closes.local_addr().unwrap().into();
    let port = own_port();
    let alias: NodeName = format!("localhost:{}", port.port()).parse().unwrap();
    let certs = Certs::named(&[port.into()]);
    let mut config = node_config(&certs, 0);
    (config.tcp, config.advertise) = (Some(port.into()), Some(port.into()));
    // A node by another name than its own would write to itself without end.
    config.legacy_nodes = vec![gone.clone(), mute.clone(), alias.clone()];
    let node = Node::start(config).await.unwrap();
    let mut sender = LineClient::connect(node.tcp_addr()).await;
    let closing = async {
        loop {
            drop(closes.accept().await.unwrap());
        }
    };
    let sending = async {
        for (number, name) in [gone, mute, alias].into_iter().enumerate() {
            for _ in 0..2 {
                let to = format!("{name}:123456").parse().unwrap();
                sender.say_with_id(&to, "hello?", &number.to_string()).await;
                sender
                    .reader
                    .expect_refused(&number.to_string(), Code::NodeUnreachable)
                    .await;
            }
        }
    };
    tokio::select! {
        () = closing => {}
        () = sending => {}
    }
    assert_eq!(node.counters()["refused-legacy"], 6);
    // Without a receipt it is an error.
    say(
        &mut sender,
        &format!("127.0.0.1:{}:1", own_port().port()).parse().unwrap(),
        "",
    )
    .await;
    sender.reader.expect_error(Code::NoSuchNode).await;
}

#[tokio::test]
async fn who_writes_to_a_server_that_takes_nothing_waits_and_nobody_else_does() {
    const ROOM: usize = 4;
    const MESSAGES: usize = ROOM + 2;
    // The system takes its connections; it does not.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stuck: NodeName = listener.local_addr().unwrap().into();
    let server = server().await;
    let cluster = start_with(2, &[&stuck, server.name()], |config| config.limits.link_messages = ROOM).await;
    let mut client = client_of(&server).await;
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    let mut sender = cluster.line(0).await;
    let mut another = cluster.line(0).await;
    let to = format!("{stuck}:123456").parse().unwrap();
    let lines: Vec<String> = (0..MESSAGES)
        .map(|number| message_line_with_id(&to, "hello?", &number.to_string()))
        .collect();
    let waiting = async {
        sender.writer.send(&lines.join("\n")).await;
        let own = sender.address.clone();
        sender.say(&own, "is it my turn?").await;
        let held = timeout(HELD, sender.reader.line()).await;
        assert!(held.is_err(), "{held:?}");
        // Another server is none of this one's business.
        say(&mut another, &client.address, "hello").await;
        client.reader.expect_message(&another.address, "hello").await;
        let mut answered = HashSet::new();
        let mut turn = false;
        while answered.len() < MESSAGES {
            let line = sender.reader.line().await;
            match serde_json::from_str::<Value>(&line) {
                Ok(receipt) => {
                    assert_eq!(
                        (&receipt["status"], &receipt["code"]),
                        (&"refused".into(), &Code::NodeUnreachable.as_str().into())
                    );
                    answered.insert(receipt["id"].to_string());
                }
                Err(_) => turn = line.ends_with("is it my turn?"),
            }
        }
        if !turn {
            sender.reader.expect_message(&own, "is it my turn?").await;
        }
    };
    bystanders.during(waiting).await;
    drop(listener);
}

#[tokio::test]
async fn a_shutdown_waits_for_what_is_under_way_to_a_server() {
    const MESSAGES: usize = 10;
    let server = server().await;
    let mut cluster = start(1, &server).await;
    let mut client = client_of(&server).await;
    let mut sender = cluster.line(0).await;
    let lines: Vec<String> = (0..MESSAGES)
        .map(|number| message_line_with_id(&client.address, &number.to_string(), &number.to_string()))
        .collect();
    sender.writer.send(&lines.join("\n")).await;
    client.reader.expect_message(&sender.address, "0").await;
    let node = cluster.nodes.remove(0);
    assert!(within("the shutdown", node.shutdown()).await, "everything ends in time");
    let mut unconfirmed = 0;
    while let Some(line) = sender.reader.next().await {
        if !line.starts_with("error : shutting-down : ") {
            let receipt: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(receipt["code"], Code::Unconfirmed.as_str(), "{receipt}");
            assert_eq!(receipt["id"], unconfirmed.to_string());
            unconfirmed += 1;
        }
    }
    for number in 1..unconfirmed {
        client.reader.expect_message(&sender.address, &number.to_string()).await;
    }
    assert_eq!(server.lines().len(), unconfirmed);
}

#[tokio::test]
async fn a_shutdown_waits_also_for_messages_of_who_has_left() {
    const MESSAGES: usize = 10;
    let server = server().await;
    let mut cluster = start(1, &server).await;
    let mut client = client_of(&server).await;
    let mut sender = cluster.line(0).await;
    let (from, to) = (sender.address.clone(), client.address.clone());
    let lines: Vec<String> = (0..MESSAGES)
        .map(|number| line(&from, &to, &number.to_string()))
        .collect();
    sender.writer.send(&lines.join("\n")).await;
    client.reader.expect_message(&from, "0").await;
    server.set_reads(false);
    drop(sender);
    // It has ended its sending side, and the node waits with it for its messages, until it finds it gone.
    let mut another = cluster.line(0).await;
    let found_gone = async {
        while cluster.nodes[0].clients() > 1 {
            another.say_with_id(&from, "are you there?", "1").await;
            another.reader.json().await;
        }
    };
    within("the sender is found to be gone", found_gone).await;
    drop(another);
    eventually("all have left", || cluster.nodes[0].clients() == 0).await;
    let node = cluster.nodes.remove(0);
    // The shutdown has begun by the time the server goes on.
    let (in_time, ()) = tokio::join!(node.shutdown(), async { server.set_reads(true) });
    assert!(in_time);
    let mut heard = HashSet::new();
    for _ in 1..MESSAGES {
        heard.insert(client.reader.line().await);
    }
    let expected = (1..MESSAGES).map(|number| format!("{from} say : {number}"));
    assert_eq!(heard, expected.collect::<HashSet<String>>());
}

#[tokio::test]
async fn a_shutdown_gives_up_what_a_server_does_not_take() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stuck: NodeName = listener.local_addr().unwrap().into();
    let server = server().await;
    let adjust = |config: &mut Config| config.grace = Duration::from_secs(1);
    let mut cluster = start_with(1, &[&stuck, server.name()], adjust).await;
    let client = client_of(&server).await;
    server.set_reads(false);
    let mut sender = cluster.line(0).await;
    // One is written and not read, one waits for it, and one is not written.
    sender.say_with_id(&client.address, "hello?", "written").await;
    sender.say_with_id(&client.address, "hello?", "behind").await;
    let to = format!("{stuck}:123456").parse().unwrap();
    sender.say_with_id(&to, "hello?", "unwritten").await;
    eventually("the server has its connection", || server.taken() == 2).await;
    let node = cluster.nodes.remove(0);
    assert!(
        !within("the shutdown", node.shutdown()).await,
        "not everything has ended"
    );
    let mut ends = Vec::new();
    while let Some(line) = sender.reader.next().await {
        if let Ok(receipt) = serde_json::from_str::<Value>(&line) {
            assert_eq!(receipt["code"], Code::ShuttingDown.as_str(), "{receipt}");
            ends.push([&receipt["id"], &receipt["status"]].map(|text| text.as_str().unwrap().to_owned()));
        }
    }
    ends.sort();
    let expected = [["behind", "refused"], ["unwritten", "refused"], ["written", "unknown"]];
    assert_eq!(ends, expected.map(|end| end.map(str::to_owned)));
}
