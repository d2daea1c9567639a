//! A client that reads slowly, or not at all, holds up those who write to it and nobody else.

use std::cell::Cell;
use std::time::{Duration, Instant};

use trunkline::{Code, Limits};

use crate::support::{
    Carrier, Certs, Cluster, DEADLINE, HELD, LineClient, NodeCommand, message_line, message_line_with_id,
};

/// What is written to the slow reader: more than all buffers on the way take.
const MESSAGES: usize = 4000;
const BODY: usize = 8192;

fn body(number: usize) -> String {
    format!("{number} {}", "x".repeat(BODY))
}

/// The sender is on one node, the slow reader on another or the same.
async fn a_slow_reader(node: usize) {
    let cluster = Cluster::start(2).await;
    let mut slow = LineClient::connect_small(cluster.nodes[node].tcp_addr()).await;
    let mut sender = cluster.line(0).await;
    let (mut one, mut other) = (cluster.line(0).await, cluster.line(node).await);
    let to = slow.address.clone();

    let written = Cell::new(0);
    let writing = async {
        for number in 0..MESSAGES {
            let line = message_line(&to, &body(number)) + "\n";
            assert!(sender.writer.write_while_taken(line.as_bytes()).await);
            written.set(number + 1);
        }
    };
    let reading = async {
        // Others talk until the sender has been held for a while.
        let (mut last, mut since, started) = (0, Instant::now(), Instant::now());
        while since.elapsed() < HELD {
            assert!(started.elapsed() < DEADLINE, "the sender is not held");
            if written.get() != last {
                (last, since) = (written.get(), Instant::now());
            }
            one.say(&other.address, "meanwhile").await;
            other.reader.expect_message(&one.address, "meanwhile").await;
            other.say(&one.address, "meanwhile").await;
            one.reader.expect_message(&other.address, "meanwhile").await;
        }
        println!("held at message {last}");
        assert!(
            last < MESSAGES,
            "all was taken from the sender, and nothing read by the recipient"
        );
        for number in 0..MESSAGES {
            slow.reader.expect_message(&sender.address, &body(number)).await;
        }
    };
    tokio::join!(writing, reading);
    // No error came meanwhile, and nothing came twice.
    sender.expect_nothing_else().await;
    slow.expect_nothing_else().await;
}

#[tokio::test]
async fn of_the_same_node() {
    a_slow_reader(0).await;
}

#[tokio::test]
async fn of_another_node() {
    a_slow_reader(1).await;
}

#[tokio::test]
async fn one_that_stops_while_much_is_pushed_at_it_costs_neither_others_nor_memory() {
    const PUSHED: usize = 128 << 20;
    // At each node what one sender may have under way and a line that is being read, once as it came and once as it
    // goes out, and as much again for what the allocator keeps.
    let allowed = {
        let limits = Limits::default();
        4 * (limits.client_bytes + limits.max_message)
    };
    let certs = Certs::make(2);
    let carrier = Carrier::of_environment().await;
    let mut command = NodeCommand::new(&certs, 1);
    carrier.join_process(&mut command, &[]);
    let there = command.start().await;
    let mut command = NodeCommand::new(&certs, 0);
    carrier.join_process(&mut command, &[there.peer()]);
    let mut here = command.start().await;
    here.process.stderr.until("link up").await;

    let reader = LineClient::connect_small(there.tcp()).await;
    let mut sender = LineClient::connect(here.tcp()).await;
    let (mut one, mut other) = (
        LineClient::connect(here.tcp()).await,
        LineClient::connect(there.tcp()).await,
    );
    let before = [&here, &there].map(|node| node.process.peak_memory());
    let line = message_line(&reader.address, &body(0)) + "\n";
    let written = Cell::new(0);
    let writing = async {
        while written.get() < PUSHED && sender.writer.write_while_taken(line.as_bytes()).await {
            written.set(written.get() + line.len());
        }
    };
    let talking = async {
        let (mut last, mut since, started) = (0, Instant::now(), Instant::now());
        while since.elapsed() < HELD {
            assert!(started.elapsed() < DEADLINE, "the sender is not held");
            if written.get() != last {
                (last, since) = (written.get(), Instant::now());
            }
            one.say(&other.address, "meanwhile").await;
            other.reader.expect_message(&one.address, "meanwhile").await;
            other.say(&one.address, "meanwhile").await;
            one.reader.expect_message(&other.address, "meanwhile").await;
        }
    };
    tokio::select! {
        () = talking => {}
        () = async { writing.await; std::future::pending().await } => unreachable!(),
    }
    let after = [&here, &there].map(|node| node.process.peak_memory());
    println!(
        "held after {} bytes; peak memory {before:?}, then {after:?}",
        written.get()
    );
    assert!(written.get() < PUSHED);
    for (before, after) in before.into_iter().zip(after) {
        assert!(after - before <= allowed, "{before}, then {after}");
    }
    // Others were refused nothing, and neither was the sender.
    one.expect_nothing_else().await;
    other.expect_nothing_else().await;
    let told = tokio::time::timeout(Duration::ZERO, sender.reader.next()).await;
    assert!(told.is_err(), "{told:?}");
}

#[tokio::test]
async fn one_that_takes_nothing_is_disconnected_and_its_senders_are_told() {
    const STALL: Duration = Duration::from_secs(1);
    let cluster = Cluster::start_with(2, |config| config.limits.stall = STALL).await;
    for node in 0..2 {
        let mut dead = LineClient::connect_small(cluster.nodes[node].tcp_addr()).await;
        let LineClient {
            mut writer, mut reader, ..
        } = cluster.line(0).await;
        let (mut one, mut other) = (cluster.line(0).await, cluster.line(node).await);
        let to = dead.address.clone();
        let writing = async {
            for number in 0..MESSAGES {
                let line = message_line_with_id(&to, &body(number), &number.to_string()) + "\n";
                assert!(writer.write_while_taken(line.as_bytes()).await);
            }
        };
        let reading = async {
            let mut codes = Vec::new();
            let mut gone = false;
            for _ in 0..MESSAGES {
                let receipt = reader.json().await;
                match receipt["status"].as_str() {
                    // Into the buffers of the system, before it was noticed.
                    Some("delivered") => assert!(!gone, "{receipt}"),
                    status @ Some("refused" | "unknown") => {
                        // Of the one whose line was being written, and of no other, nobody knows.
                        assert!(status == Some("refused") || !gone, "{receipt}");
                        gone = true;
                        codes.push(receipt["code"].as_str().unwrap().to_owned());
                        one.say(&other.address, "meanwhile").await;
                        other.reader.expect_message(&one.address, "meanwhile").await;
                    }
                    status => panic!("{status:?}"),
                }
            }
            // Those in its queue first; those that came later found nobody.
            assert_eq!(codes.first().map(String::as_str), Some(Code::RecipientGone.as_str()));
            codes.dedup();
            assert!(codes.len() <= 2, "{codes:?}");
            assert!(
                codes.iter().skip(1).all(|code| code == Code::NoSuchClient.as_str()),
                "{codes:?}"
            );
        };
        tokio::join!(writing, reading);
        // It may read what was written to it, and then finds itself disconnected.
        while dead.reader.next().await.is_some() {}
    }
}

#[tokio::test]
async fn a_program_that_takes_nothing_is_disconnected_and_its_senders_are_told() {
    const STALL: Duration = Duration::from_secs(1);
    let cluster = Cluster::start_with(2, |config| config.limits.stall = STALL).await;
    for node in 0..2 {
        let recipient = cluster.quic(node).await;
        let mut sender = cluster.line(0).await;
        let started = Instant::now();
        sender.say_with_id(recipient.address(), "hello?", "1").await;
        sender.say(recipient.address(), "hello?").await;
        let receipt = sender.reader.json().await;
        let took = started.elapsed();
        // The program may have seen it, though it never said so.
        assert_eq!(
            (&receipt["status"], &receipt["code"]),
            (&"unknown".into(), &"recipient-gone".into())
        );
        sender.reader.expect_error(Code::RecipientGone).await;
        assert!(took >= STALL && took < 3 * STALL, "{took:?}");
        sender.say(recipient.address(), "still there?").await;
        sender.reader.expect_error(Code::NoSuchClient).await;
    }
}

#[tokio::test]
async fn a_stampede_beyond_the_recipients_bound_is_refused() {
    let cluster = Cluster::start_with(2, |config| config.limits.outbox_bytes = 64 << 10).await;
    for node in 0..2 {
        let mut slow = LineClient::connect_small(cluster.nodes[node].tcp_addr()).await;
        let LineClient {
            address: from,
            mut writer,
            mut reader,
        } = cluster.line(0).await;
        let writing = async {
            for number in 0..MESSAGES {
                writer
                    .send(&message_line_with_id(&slow.address, &body(number), &number.to_string()))
                    .await;
            }
        };
        let reading = async {
            let mut delivered = Vec::new();
            let mut full = 0;
            while full < 100 {
                let receipt = reader.json().await;
                match receipt["status"].as_str() {
                    Some("delivered") => delivered.push(receipt["id"].as_str().unwrap().parse().unwrap()),
                    _ => {
                        assert_eq!(receipt["code"], Code::RecipientFull.as_str(), "{receipt}");
                        full += 1;
                    }
                }
            }
            delivered
        };
        let delivered = tokio::select! {
            delivered = reading => delivered,
            () = async { writing.await; std::future::pending().await } => unreachable!(),
        };
        // What was said to be delivered is there, in order.
        for number in delivered {
            slow.reader.expect_message(&from, &body(number)).await;
        }
    }
}
