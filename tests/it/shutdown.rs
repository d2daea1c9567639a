//! How nodes end, and what they say when they can't begin.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::timeout;
use trunkline::client::Event;
use trunkline::{Code, Node};
use trunkline_lab::wire::Settings;

use crate::support::{
    Carrier, Certs, Cluster, HELD, LineClient, LineReader, NodeCommand, Process, Relay, connect_quic, eventually,
    message_line, message_line_with_id, node_config, peer, within,
};

/// Reads receipts up to the end of the connection; gives the ids that were delivered. Whatever else is said must be
/// that the node shuts down.
async fn delivered(reader: &mut LineReader) -> Vec<usize> {
    let mut delivered = Vec::new();
    while let Some(line) = reader.next().await {
        if line.starts_with("error : ") {
            assert!(line.starts_with("error : shutting-down : "), "{line}");
            continue;
        }
        let receipt: Value = serde_json::from_str(&line).unwrap();
        match receipt["status"].as_str() {
            Some("delivered") => delivered.push(receipt["id"].as_str().unwrap().parse().unwrap()),
            _ => assert_eq!(receipt["code"], "shutting-down", "{receipt}"),
        }
    }
    delivered
}

/// Reads messages up to the end of the connection or the last of `all`; gives the numbers that they hold.
async fn seen(client: &mut LineClient, all: usize) -> Vec<usize> {
    let mut seen = Vec::new();
    while seen.len() < all {
        match client.reader.next().await {
            None => break,
            Some(line) if line.starts_with("error : shutting-down : ") => {}
            Some(line) => seen.push(line.rsplit_once(' ').unwrap().1.parse().unwrap()),
        }
    }
    seen
}

#[tokio::test]
async fn what_was_accepted_is_delivered_and_answered_before_the_exit() {
    const MESSAGES: usize = 5000;
    for signal in ["TERM", "INT"] {
        let certs = Certs::make(2);
        let carrier = Carrier::of_environment().await;
        let mut config = node_config(&certs, 1);
        carrier.join(&mut config, Vec::new());
        let other = Node::start(config).await.unwrap();
        let mut command = NodeCommand::new(&certs, 0);
        carrier.join_process(&mut command, &[peer(&other)]);
        let mut node = command.start().await;
        node.process.stderr.until("link up").await;

        let mut here = LineClient::connect(node.tcp()).await;
        let mut there = LineClient::connect(other.tcp_addr()).await;
        let mut senders = [
            LineClient::connect(node.tcp()).await,
            LineClient::connect(node.tcp()).await,
        ];
        for (sender, recipient) in senders.iter_mut().zip([&here, &there]) {
            let lines: String = (0..MESSAGES)
                .map(|number| message_line_with_id(&recipient.address, &number.to_string(), &number.to_string()) + "\n")
                .collect();
            assert!(within("a write", sender.writer.write_while_taken(lines.as_bytes())).await);
        }
        // Some have arrived; others are on their way, or not even read.
        for (recipient, sender) in [(&mut here, &senders[0]), (&mut there, &senders[1])] {
            recipient.reader.expect_message(&sender.address, "0").await;
        }
        node.process.signal(signal);

        let [first, second] = &mut senders;
        let ((delivered_here, seen_here), delivered_there) = tokio::join!(
            async { tokio::join!(delivered(&mut first.reader), seen(&mut here, usize::MAX)) },
            delivered(&mut second.reader),
        );
        assert_eq!(node.process.status().await.code(), Some(0), "after SIG{signal}");
        let seen_there = seen(&mut there, delivered_there.len().saturating_sub(1)).await;
        for (mut delivered, seen) in [(delivered_here, seen_here), (delivered_there, seen_there)] {
            println!("SIG{signal}: {} of {MESSAGES} were accepted", delivered.len());
            // All up to where it stopped reading, in order, and nothing else: `0` was read above.
            assert!(seen.iter().copied().eq(1..=seen.len()), "{seen:?}");
            delivered.sort_unstable();
            assert!(delivered.iter().copied().eq(0..=seen.len()), "{delivered:?}");
        }
        there.expect_nothing_else().await;
    }
}

#[tokio::test]
async fn the_same_ports_can_be_bound_at_once_after_a_signal() {
    let certs = Certs::make(1);
    let mut command = NodeCommand::new(&certs, 0);
    for _ in 0..3 {
        let mut node = command.start().await;
        // Connections of every kind, which the node is the one to close.
        let mut client = LineClient::connect(node.tcp()).await;
        let quic = connect_quic(node.quic(), &certs).await;
        client.say(quic.address(), "hello").await;
        assert!(matches!(
            within("the message", quic.receive()).await,
            Some(Event::Message(_))
        ));
        node.process.signal("TERM");
        assert_eq!(node.process.status().await.code(), Some(0));
        client.reader.expect_error(Code::ShuttingDown).await;
        client.reader.expect_end().await;
        command = node.command.clone();
    }
    command.start().await;
}

#[tokio::test]
async fn the_same_ports_can_be_bound_at_once_after_a_shutdown() {
    let mut cluster = Cluster::start(2).await;
    let mut client = cluster.line(0).await;
    let quic = cluster.quic(0).await;
    let other = cluster.line(1).await;
    client.say_with_id(&other.address, "hello", "1").await;
    client.reader.expect_delivered("1").await;
    let node = cluster.nodes.remove(0);
    let ports = (node.tcp_addr().unwrap(), node.quic_addr(), node.link_addr());
    assert!(within("the shutdown", node.shutdown()).await, "everything ends in time");
    let bound = (
        TcpListener::bind(ports.0),
        UdpSocket::bind(ports.1),
        UdpSocket::bind(ports.2),
    );
    assert!(matches!(bound, (Ok(_), Ok(_), Ok(_))), "{bound:?}");
    drop(bound);

    let mut config = node_config(&cluster.certs, 0);
    (config.tcp, config.quic, config.link) = (Some(ports.0.into()), Some(ports.1.into()), Some(ports.2.into()));
    let again = Node::start(config).await.unwrap();
    assert_eq!((again.tcp_addr().unwrap(), again.quic_addr(), again.link_addr()), ports);
    assert!(within("the end of the old connection", quic.receive()).await.is_none());
    LineClient::connect(again.tcp_addr()).await.expect_nothing_else().await;
}

#[tokio::test]
async fn a_node_that_is_dropped_frees_its_ports() {
    let cluster = Cluster::start(2).await;
    let Cluster {
        nodes,
        certs: _certs,
        carrier: _carrier,
    } = cluster;
    let ports: Vec<_> = nodes.iter().map(Node::link_addr).collect();
    drop(nodes);
    eventually("the ports are free", || {
        ports.iter().all(|port| UdpSocket::bind(port).is_ok())
    })
    .await;
}

#[tokio::test]
async fn what_can_not_end_is_given_up_when_the_grace_is_over_and_its_senders_are_told() {
    const GRACE: Duration = Duration::from_secs(1);
    let certs = Certs::make(1);
    let mut config = node_config(&certs, 0);
    config.grace = GRACE;
    let node = Node::start(config).await.unwrap();
    // One gets the message and never says that it took it, the other never reads.
    let program = connect_quic(node.quic_addr(), &certs).await;
    let slow = LineClient::connect_small(node.tcp_addr()).await;
    let large = "x".repeat(1 << 20);
    let mut senders = Vec::new();
    for (to, body, fills) in [(program.address(), "hello?", false), (&slow.address, &large, true)] {
        let mut sender = LineClient::connect(node.tcp_addr()).await;
        let mut filler = LineClient::connect(node.tcp_addr()).await;
        if fills {
            // Behind so much nothing more gets into the system's buffers, however large those are.
            filler.writer.stuff(&message_line(to, body)).await;
        }
        sender.say_with_id(to, body, "1").await;
        sender.expect_nothing_else().await;
        senders.push((sender, filler));
    }
    let started = Instant::now();
    assert!(
        !within("the shutdown", node.shutdown()).await,
        "it says that not everything had ended"
    );
    let took = started.elapsed();
    assert!(took >= GRACE && took < GRACE + Duration::from_secs(5), "{took:?}");
    for (sender, _filler) in &mut senders {
        sender.reader.expect_error(Code::ShuttingDown).await;
        let receipt = sender.reader.json().await;
        assert_eq!(
            (&receipt["status"], &receipt["code"]),
            (&"unknown".into(), &Code::ShuttingDown.as_str().into())
        );
        sender.reader.expect_end().await;
    }
}

/// Half of the lines of a sender whose recipient takes none: few enough to be read at once.
const HALF: usize = 50;

#[tokio::test]
async fn lines_that_wait_for_room_when_the_grace_is_over_are_answered_too() {
    let certs = Certs::make(1);
    let mut config = node_config(&certs, 0);
    config.grace = Duration::from_secs(1);
    // Half of the messages fill what may be under way; the rest is read, and waits.
    config.limits.client_messages = HALF;
    let node = Node::start(config).await.unwrap();
    let program = connect_quic(node.quic_addr(), &certs).await;
    let mut sender = LineClient::connect(node.tcp_addr()).await;
    for half in [0..HALF, HALF..2 * HALF] {
        let lines: Vec<_> = half
            .map(|id| message_line_with_id(program.address(), "hello?", &id.to_string()))
            .collect();
        sender.writer.send(&lines.join("\n")).await;
        // The node is in this very thread, so it has read them by then.
        let answer = timeout(HELD, sender.reader.json()).await;
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(!within("the shutdown", node.shutdown()).await);
    let mut ids = Vec::new();
    while ids.len() < 2 * HALF {
        let line = sender.reader.line().await;
        if let Ok(receipt) = serde_json::from_str::<Value>(&line) {
            let id: usize = receipt["id"].as_str().unwrap().parse().unwrap();
            let status = if id < HALF { "unknown" } else { "refused" };
            assert_eq!(
                (&receipt["status"], &receipt["code"]),
                (&status.into(), &Code::ShuttingDown.as_str().into()),
                "{id}"
            );
            ids.push(id);
        }
    }
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..2 * HALF));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let certs = Certs::make(2);
    let node = NodeCommand::new(&certs, 0).start().await;
    for (index, flag) in ["--tcp", "--quic", "--link"].into_iter().enumerate() {
        let mut command = NodeCommand::new(&certs, 1);
        command.ports[index] = node.command.ports[index];
        let ended = Process::trunkline(&command.args()).ended().await;
        assert_eq!(ended.code, Some(69), "{flag}: {}", ended.stderr);
        let port = node.command.ports[index].to_string();
        assert!(
            ended.stderr.contains(&port) && ended.stderr.contains(flag),
            "{}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn bad_arguments_and_configurations() {
    let certs = Certs::make(1);
    let dir = certs.dir().to_str().unwrap().to_owned();
    let rows: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["no-such-command"], "no-such-command"),
        (&["node", "--tcp", "nowhere"], "--tcp"),
        (&["node", "--tcp", "127.0.0.1:99999"], "--tcp"),
        (&["node", "--link-wait", "soon"], "--link-wait"),
        (&["node", "--link-wait=-1"], "--link-wait"),
        (&["node", "--peer", "127.0.0.1"], "--peer"),
        (&["node", "--max-message", "0"], "--max-message"),
        (&["node", "--max-clients", "0"], "--max-clients"),
        (&["node", "--stall", "0"], "--stall"),
        (&["node", "--login", "0"], "--login"),
        (&["node", "--clients", "open,token"], "--clients"),
        (&["node", "--tcp-allow", "10.0.0.0/33"], "--tcp-allow"),
        (&["node", "--no-such-flag"], "--no-such-flag"),
        (&["node", "--log", "a=b=c"], "--log"),
        (
            &["node", "--advertise", "127.0.0.1:1", "--peer", "127.0.0.1:1"],
            "this node itself",
        ),
        (&["node", "--legacy-node", "127.0.0.1"], "--legacy-node"),
        (
            &["node", "--advertise", "127.0.0.1:1", "--legacy-node", "127.0.0.1:1"],
            "--legacy-node 127.0.0.1:1 is this node itself",
        ),
        (
            &[
                "node",
                "--advertise",
                "127.0.0.1:1",
                "--peer",
                "127.0.0.1:2",
                "--legacy-node",
                "127.0.0.1:2",
            ],
            "leave out --peer",
        ),
        (&["send", "hello"], "--to"),
        (&["send", "--to", "nowhere", "hello"], "--to"),
    ];
    for (args, named) in rows {
        let mut args: Vec<&str> = args.to_vec();
        if args.first() == Some(&"node") {
            args.extend(["--quic", "127.0.0.1:0", "--link", "127.0.0.1:0", "--certs", &dir]);
            if !args.contains(&"--tcp") {
                args.extend(["--tcp", "127.0.0.1:0"]);
            }
        }
        let ended = Process::trunkline(&args).ended().await;
        assert_eq!(ended.code, Some(64), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(named), "{args:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_missing_certificate_is_named_with_the_command_that_makes_it() {
    let certs = Certs::make(1);
    let ended = Process::trunkline(&NodeCommand::new(&certs, 1).args()).ended().await;
    assert_eq!(ended.code, Some(64), "{}", ended.stderr);
    for part in ["node-127.0.0.1-2.pem", "trunkline certs"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    let command = ended
        .stderr
        .split('`')
        .find(|part| part.starts_with("trunkline certs"))
        .unwrap_or_else(|| panic!("no command in backquotes: {}", ended.stderr));
    // What it says helps.
    let args: Vec<&str> = command.split_whitespace().skip(1).collect();
    let made = Process::trunkline(&args).ended().await;
    assert_eq!(made.code, Some(0), "{args:?}: {}", made.stderr);
    NodeCommand::new(&certs, 1).start().await;
}

#[tokio::test]
async fn clients_of_both_kinds_see_the_end_of_their_node() {
    let certs = Certs::make(1);
    let node = Node::start(node_config(&certs, 0)).await.unwrap();
    let mut line = LineClient::connect(node.tcp_addr()).await;
    let quic = connect_quic(node.quic_addr(), &certs).await;
    let (in_time, event) = tokio::join!(node.shutdown(), within("the end", quic.receive()));
    assert!(in_time);
    assert_eq!(event, None);
    line.reader.expect_error(Code::ShuttingDown).await;
    line.reader.expect_end().await;
}

#[tokio::test]
async fn who_is_far_away_does_not_hold_up_the_end() {
    // QUIC keeps a closed connection for nine round trips, as long as they were measured: 11 s.
    let far = Settings {
        delay: Duration::from_millis(600),
        ..Settings::default()
    };
    let within_reason = Duration::from_secs(5);
    let mut cluster = Cluster::start(1).await;
    let wire = Relay::bad_to(cluster.nodes[0].quic_addr(), &far).await;
    let (stays, leaves) = (
        connect_quic(wire.addr(), &cluster.certs).await,
        connect_quic(wire.addr(), &cluster.certs).await,
    );
    let started = Instant::now();
    leaves.close().await;
    println!("the client's end took {:?}", started.elapsed());
    assert!(started.elapsed() < within_reason);
    let started = Instant::now();
    cluster.nodes.remove(0).shutdown().await;
    println!("the node's end took {:?}", started.elapsed());
    assert!(started.elapsed() < within_reason);
    drop(stays);
}
