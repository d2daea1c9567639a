//! What clients do too often, too slowly or too long meets a limit, is counted, and costs the others nothing.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;
use tokio::time::sleep;
use trunkline::{Address, Code, Config, Node};

use crate::support::{
    Bystanders, Certs, Cluster, LineClient, LineReader, NodeCommand, RawQuic, connect_quic, eventually,
    message_line_with_id, node_config,
};

/// A short time for a limit to hold, so that a test is over soon.
const SOON: Duration = Duration::from_secs(1);

/// Between two bytes of a client that is slow: often enough that it is never silent for long.
const DRIP: Duration = Duration::from_millis(50);

/// The code that a node closes a connection with.
const PROTOCOL: u64 = 1;

fn count(node: &Node, counter: &str) -> u64 {
    node.counters()[counter]
}

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

/// An address that no client has.
fn nobody(node: &Node, number: usize) -> Address {
    format!("{}:nobody-{number}", node.name()).parse().unwrap()
}

#[tokio::test]
async fn one_source_gets_no_more_places_than_its_share() {
    let cluster = Cluster::start_with(1, |config| config.limits.max_per_source = 2).await;
    let node = &cluster.nodes[0];
    let (first, _second) = (cluster.line(0).await, cluster.quic(0).await);
    let (mut reader, _writer) = LineReader::connect(node.tcp_addr().unwrap()).await;
    reader.expect_error(Code::RateLimited).await;
    reader.expect_end().await;
    let mut raw = RawQuic::connect(node.quic_addr(), &cluster.certs, b"trunkline/1", None)
        .await
        .unwrap();
    raw.say(&json!({"cmd": "hello", "version": 1})).await;
    assert_eq!(raw.hear().await.unwrap()["code"], Code::RateLimited.as_str());
    assert_eq!((count(node, "refused-source"), count(node, "refused-clients")), (2, 0));
    // Others have their own.
    let _other = LineClient::connect_from([127, 0, 0, 2], node.tcp_addr().unwrap()).await;
    // And a place that is free again can be had.
    drop(first);
    eventually("the first has left", || node.clients() == 2).await;
    let _again = cluster.line(0).await;
}

#[tokio::test]
async fn clients_over_the_bound_are_counted() {
    let cluster = Cluster::start_with(1, |config| config.limits.max_clients = 1).await;
    let _first = cluster.line(0).await;
    let (mut reader, _writer) = LineReader::connect(cluster.nodes[0].tcp_addr().unwrap()).await;
    reader.expect_error(Code::RateLimited).await;
    assert_eq!(count(&cluster.nodes[0], "refused-clients"), 1);
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_put_out_if_the_node_is_told_so() {
    let cluster = Cluster::start_with(1, |config| config.limits.first_line = Some(SOON)).await;
    let node = &cluster.nodes[0];
    let mut talker = cluster.line(0).await;
    talker.expect_nothing_else().await;
    let (mut silent, mut begun) = (cluster.line(0).await, cluster.line(0).await);
    begun.writer.write(b"{").await;
    for client in [&mut silent, &mut begun] {
        client.reader.expect_error(Code::ProtocolError).await;
        client.reader.expect_end().await;
    }
    assert_eq!(count(node, "ended-first-line"), 2);
    talker.expect_nothing_else().await;
}

#[tokio::test]
async fn who_is_idle_is_put_out_if_the_node_is_told_so() {
    let cluster = Cluster::start_with(1, |config| config.limits.idle = Some(SOON)).await;
    let node = &cluster.nodes[0];
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    bystanders
        .during(async {
            let mut silent = cluster.line(0).await;
            let (quic, _) = RawQuic::join(node.quic_addr(), &cluster.certs).await;
            silent.reader.expect_error(Code::NotAllowed).await;
            silent.reader.expect_end().await;
            quic.closed().await;
        })
        .await;
    assert_eq!(count(node, "ended-idle"), 2);
}

#[tokio::test]
async fn a_line_that_comes_byte_by_byte_is_given_up() {
    let cluster = Cluster::start_with(1, |config| config.limits.line_time = SOON).await;
    let node = &cluster.nodes[0];
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    bystanders
        .during(async {
            let LineClient {
                mut reader, mut writer, ..
            } = cluster.line(0).await;
            let started = Instant::now();
            let dripping = async {
                while writer.write_while_taken(b"x").await {
                    sleep(DRIP).await;
                }
            };
            let reading = async {
                reader.expect_error(Code::ProtocolError).await;
                assert!(started.elapsed() >= SOON);
                reader.expect_end().await;
            };
            tokio::join!(dripping, reading);
        })
        .await;
    assert_eq!(count(node, "ended-slow-line"), 1);
}

#[tokio::test]
async fn lines_that_end_in_time_may_come_byte_by_byte_for_ever() {
    let cluster = Cluster::start_with(1, |config| config.limits.line_time = SOON).await;
    let mut slow = cluster.line(0).await;
    let started = Instant::now();
    while started.elapsed() < 2 * SOON {
        for byte in [b"{", b"}", b"\n"] {
            slow.writer.write(byte).await;
            sleep(DRIP).await;
        }
        slow.reader.expect_error(Code::UnknownCmd).await;
    }
}

#[tokio::test]
async fn a_message_that_comes_byte_by_byte_ends_the_connection() {
    let cluster = Cluster::start_with(1, |config| config.limits.line_time = SOON).await;
    let node = &cluster.nodes[0];
    let mut bystanders = Bystanders::join(&cluster, 0).await;
    bystanders
        .during(async {
            let (client, address) = RawQuic::join(node.quic_addr(), &cluster.certs).await;
            let started = Instant::now();
            let dripping = async {
                let mut stream = client.connection.open_uni().await.unwrap();
                let header = format!("{{\"to\":\"{address}\",\"id\":1}}\n");
                let mut written = stream.write_all(header.as_bytes()).await;
                while written.is_ok() {
                    sleep(DRIP).await;
                    written = stream.write_all(b"x").await;
                }
            };
            let ((), (code, reason)) = tokio::join!(dripping, client.closed());
            assert_eq!(code, PROTOCOL, "{reason}");
            assert!(started.elapsed() >= SOON && reason.contains("in time"), "{reason}");
        })
        .await;
    assert_eq!(
        (count(node, "ended-slow-stream"), count(node, "ended-protocol")),
        (1, 0)
    );
}

#[tokio::test]
async fn a_program_that_takes_a_message_bit_by_bit_is_disconnected() {
    const RATE: u32 = 1 << 20;
    let cluster = Cluster::start_with(1, |config| {
        config.limits.stall = SOON;
        config.limits.min_rate = RATE;
    })
    .await;
    let node = &cluster.nodes[0];
    let (slow, address) = RawQuic::join(node.quic_addr(), &cluster.certs).await;
    let mut sender = cluster.line(0).await;
    sender.say_with_id(&address, &"x".repeat(1 << 19), "1").await;
    let reading = async {
        let mut stream = slow.connection.accept_uni().await.unwrap();
        // It reads all the while, and never says that it took the message.
        while let Ok(Some(_)) = stream.read_chunk(100, true).await {
            sleep(DRIP).await;
        }
    };
    let told = async {
        let receipt = sender.reader.json().await;
        assert_eq!(
            (&receipt["status"], &receipt["code"]),
            (&json!("unknown"), &json!(Code::RecipientGone.as_str()))
        );
    };
    tokio::select! {
        () = async { reading.await; std::future::pending().await } => unreachable!(),
        () = told => {}
    }
    assert_eq!(count(node, "ended-stalled"), 1);
}

/// Messages of a client over its rate, with their receipts in order.
async fn over_the_rate(adjust: impl Fn(&mut Config), body: &str, messages: usize, least: Duration) {
    let cluster = Cluster::start_with(1, adjust).await;
    let node = &cluster.nodes[0];
    let mut bystander = LineClient::connect_from([127, 0, 0, 2], node.tcp_addr().unwrap()).await;
    let mut recipient = cluster.line(0).await;
    let to = recipient.address.clone();

    let mut line = cluster.line(0).await;
    let started = Instant::now();
    let lines: String = (0..messages)
        .map(|number| message_line_with_id(&to, &format!("{number} {body}"), &number.to_string()) + "\n")
        .collect();
    line.writer.write(lines.as_bytes()).await;
    for number in 0..messages {
        recipient
            .reader
            .expect_message(&line.address, &format!("{number} {body}"))
            .await;
        line.reader.expect_delivered(&number.to_string()).await;
        if number % 10 == 0 {
            bystander.expect_nothing_else().await;
        }
    }
    let took = started.elapsed();
    assert!(took >= least, "{took:?}");
    let held = count(node, "held-rate");
    assert!(held > 0);

    let quic = cluster.quic(0).await;
    let started = Instant::now();
    for number in 0..messages {
        quic.send(&to, format!("{number} {body}")).await.unwrap();
    }
    for number in 0..messages {
        recipient
            .reader
            .expect_message(quic.address(), &format!("{number} {body}"))
            .await;
    }
    let took = started.elapsed();
    assert!(took >= least, "{took:?}");
    assert!(count(node, "held-rate") > held);
    assert_eq!(count(node, "refused-window"), 0);
}

#[tokio::test]
async fn a_client_over_its_rate_of_messages_is_held_and_loses_nothing() {
    // 50 at once, the other 50 in a second.
    let rate = |config: &mut Config| config.limits.client_message_rate = Some(number(50));
    over_the_rate(rate, "x", 100, SOON * 9 / 10).await;
}

#[tokio::test]
async fn a_client_over_its_rate_of_bytes_is_held_and_loses_nothing() {
    let rate = |config: &mut Config| {
        config.limits.max_message = 10_000;
        config.limits.client_byte_rate = Some(number(100_000));
    };
    over_the_rate(rate, &"x".repeat(5000), 40, SOON * 9 / 10).await;
}

/// Guesses ids of a node; gives how long it took to have all answers.
async fn guess(client: &mut LineClient, node: &Node, ids: std::ops::Range<usize>) -> Duration {
    let started = Instant::now();
    for id in ids {
        client.say(&nobody(node, id), "anyone?").await;
        client.reader.expect_error(Code::NoSuchClient).await;
    }
    started.elapsed()
}

#[tokio::test]
async fn who_guesses_ids_is_held_to_a_rate_with_all_its_connections() {
    const BURST: usize = 5;
    let cluster = Cluster::start_with(2, |config| {
        config.limits.miss_burst = number(BURST as u32);
        config.limits.miss_rate = number(10);
    })
    .await;
    let node = &cluster.nodes[0];
    let mut bystanders = [
        LineClient::connect_from([127, 0, 0, 2], node.tcp_addr().unwrap()).await,
        cluster.line(0).await,
    ];
    for bystander in &mut bystanders {
        bystander.expect_nothing_else().await;
    }
    for target in &cluster.nodes {
        // A recipient that has left while much was on the way to it is no guess.
        let mut client = cluster.line(0).await;
        let gone = nobody(target, 1000);
        for _ in 0..100 {
            client.say(&gone, "still there?").await;
            client.reader.expect_error(Code::NoSuchClient).await;
        }
        let started = Instant::now();
        guess(&mut client, target, 0..BURST).await;
        // One more connection has no more tries.
        let mut another = cluster.line(0).await;
        guess(&mut another, target, BURST..3 * BURST).await;
        let took = started.elapsed();
        let least = Duration::from_millis(100) * (3 * BURST - BURST - 2) as u32;
        assert!(took >= least, "{took:?}");
        // Who is not of that source, or is and has shown that it knows an address, waits for nothing.
        for bystander in &mut bystanders {
            bystander.expect_nothing_else().await;
        }
    }
    assert_eq!(count(node, "misses"), 2 * (3 * BURST as u64 + 1));
    assert!(count(node, "held-misses") > 0);
    assert_eq!(
        count(&cluster.nodes[1], "misses"),
        0,
        "they are counted where they come in"
    );
}

#[tokio::test]
async fn a_program_that_guesses_ids_is_held_too() {
    let cluster = Cluster::start_with(1, |config| {
        config.limits.miss_burst = number(5);
        config.limits.miss_rate = number(10);
    })
    .await;
    let node = &cluster.nodes[0];
    let client = connect_quic(node.quic_addr(), &cluster.certs).await;
    let started = Instant::now();
    for id in 0..15 {
        let receipt = client.send_with_receipt(&nobody(node, id), "anyone?").await;
        receipt.unwrap().await;
    }
    assert!(started.elapsed() >= SOON * 7 / 10, "{:?}", started.elapsed());
    assert!(count(node, "held-misses") > 0);
}

#[tokio::test]
async fn handshakes_that_do_not_end_are_bounded_by_source_and_in_time() {
    const EACH: usize = 3;
    let cluster = Cluster::start_with(1, |config| {
        config.limits.max_handshakes_per_source = EACH;
        config.limits.hello = SOON;
    })
    .await;
    let node = &cluster.nodes[0];
    let mut silent = Vec::new();
    for _ in 0..EACH {
        let raw = RawQuic::connect(node.quic_addr(), &cluster.certs, b"trunkline/1", None).await;
        silent.push(raw.unwrap());
    }
    // It comes again until there is a place.
    let late = cluster.quic(0).await;
    assert!(count(node, "handshakes-ignored-source") > 0);
    assert_eq!(count(node, "handshakes-late"), EACH as u64);
    assert!(count(node, "retries") > EACH as u64);
    late.send(late.address(), "at last").await.unwrap();
    drop(silent);
}

#[tokio::test]
async fn handshakes_are_bounded_in_all() {
    let cluster = Cluster::start_with(1, |config| {
        config.limits.max_handshakes = 2;
        config.limits.hello = SOON;
    })
    .await;
    let node = &cluster.nodes[0];
    let mut silent = Vec::new();
    for _ in 0..2 {
        let raw = RawQuic::connect(node.quic_addr(), &cluster.certs, b"trunkline/1", None).await;
        silent.push(raw.unwrap());
    }
    let _late = cluster.quic(0).await;
    assert!(count(node, "handshakes-ignored") > 0);
    assert_eq!(count(node, "handshakes-ignored-source"), 0);
}

#[tokio::test]
async fn strangers_on_the_link_port_are_counted() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    // Without a certificate of a node: the handshake seems done to it, and is not.
    let stranger = RawQuic::connect(node.link_addr(), &cluster.certs, b"trunkline-link/1", None).await;
    eventually("it is refused", || count(node, "link-handshakes-failed") == 1).await;
    assert_eq!(count(node, "link-retries"), 1);
    drop(stranger);
}

#[tokio::test]
async fn links_that_do_not_greet_are_bounded_by_source_and_in_time() {
    let certs = Certs::make(2);
    let mut config = node_config(&certs, 0);
    config.limits.max_handshakes_per_source = 1;
    let node = Node::start(config).await.unwrap();
    let knock = || RawQuic::connect(node.link_addr(), &certs, b"trunkline-link/1", Some("node-127.0.0.1-2"));
    let _silent = knock().await.unwrap();
    // It comes again until there is a place.
    let _late = knock().await.unwrap();
    assert!(count(&node, "link-handshakes-ignored-source") > 0);
    assert_eq!(count(&node, "link-handshakes-late"), 1);
    node.shutdown().await;
}

#[tokio::test]
async fn connections_never_take_the_last_file_descriptors() {
    // The node keeps 128 of them.
    const FILES: u64 = 300;
    const PLACES: usize = 172;
    let certs = Certs::make(1);
    let mut command = NodeCommand::new(&certs, 0);
    command.files = Some(FILES);
    let mut node = command.start().await;
    assert_eq!(node.process.stderr.count("fewer TCP clients than --max-clients"), 1);
    let mut clients = Vec::new();
    for _ in 0..PLACES {
        clients.push(LineClient::connect(node.tcp()).await);
    }
    let mut waiting = Vec::new();
    for _ in 0..FILES {
        waiting.push(LineReader::connect(node.tcp()).await);
    }
    let (mut reader, _) = waiting.remove(0);
    reader.expect_error(Code::RateLimited).await;
    reader.expect_end().await;
    // What needs no more of them goes on.
    let quic = connect_quic(node.quic(), &certs).await;
    quic.send(&clients[0].address, "still here").await.unwrap();
    clients[0].reader.expect_message(quic.address(), "still here").await;
    drop((clients, waiting));
    // And so do connections, when others have ended.
    loop {
        let (mut reader, writer) = LineReader::connect(node.tcp()).await;
        if reader.next().await.is_some_and(|line| line.starts_with("you is")) {
            break;
        }
        drop(writer);
    }
    assert_eq!(node.process.stderr.count("can't accept"), 0);
    node.process.signal("TERM");
    let ended = node.process.ended().await;
    assert_eq!(ended.code, Some(0));
    let told = ended.stderr.lines().find(|line| line.contains("counted in all: "));
    assert!(
        told.is_some_and(|line| line.contains("refused-descriptors=")),
        "{told:?}"
    );
}

#[tokio::test]
async fn accepting_goes_on_after_the_system_had_no_more_descriptors() {
    let certs = Certs::make(1);
    let mut node = NodeCommand::new(&certs, 0).start().await;
    let mut before = LineClient::connect(node.tcp()).await;
    let pid = Pid::from_raw(node.process.id().try_into().unwrap());
    let all = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(3),
        ..all
    };
    let granted = prlimit(pid, Resource::Nofile, none).unwrap();
    // The system takes the connection; the node can't.
    let (mut reader, _writer) = LineReader::connect(node.tcp()).await;
    node.process.stderr.until("can't accept TCP clients").await;
    before.expect_nothing_else().await;
    prlimit(pid, Resource::Nofile, granted).unwrap();
    assert!(reader.line().await.starts_with("you is  : "));
    node.process.signal("TERM");
    let ended = node.process.ended().await;
    assert!(ended.stderr.contains("accept-errors="), "{}", ended.stderr);
}
