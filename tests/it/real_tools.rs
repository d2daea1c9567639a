//! The tools that people use: `nc` and `telnet`, as Debian has them.

use std::fmt::Write;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use crate::support::{Cluster, Process, message_line, message_line_with_id};

#[tokio::test]
async fn netcat_delivers_what_is_piped_into_it_and_prints_the_answers() {
    let cluster = Cluster::start(2).await;
    let mut recipient = cluster.line(1).await;
    let addr = cluster.nodes[0].tcp_addr().unwrap();
    let mut nc = Process::tool(
        "nc",
        "netcat-openbsd",
        &["-N", &addr.ip().to_string(), &addr.port().to_string()],
    );
    for number in 0..50 {
        nc.write(message_line(&recipient.address, &number.to_string()) + "\n");
    }
    nc.write("what?\n");
    nc.write(message_line_with_id(
        &recipient.address,
        "the last line lacks its end",
        "last",
    ));
    let ended = nc.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let address = lines[0].strip_prefix("you is  : ").unwrap().parse().unwrap();
    assert!(lines[1].starts_with("error : bad-json : "), "{lines:?}");
    assert_eq!(lines[2..], [r#"{"cmd":"receipt","id":"last","status":"delivered"}"#]);
    for number in 0..50 {
        recipient.reader.expect_message(&address, &number.to_string()).await;
    }
    recipient
        .reader
        .expect_message(&address, "the last line lacks its end")
        .await;
    recipient.expect_nothing_else().await;
}

#[tokio::test]
async fn a_file_piped_to_a_reader_that_is_slower_arrives_whole_and_in_order() {
    const LINES: usize = 20_000;
    const BODY: usize = 1000;
    const BYTES_A_SECOND: f64 = 8e6;
    let cluster = Cluster::start(2).await;
    let mut recipient = cluster.line(1).await;
    let body = |number: usize| format!("{number:.<BODY$}");
    let mut lines = String::new();
    for number in 0..LINES {
        let line = message_line_with_id(&recipient.address, &body(number), &number.to_string());
        writeln!(lines, "{line}").unwrap();
    }
    let file = cluster.certs.dir().join("lines");
    std::fs::write(&file, lines).unwrap();
    let addr = cluster.nodes[0].tcp_addr().unwrap();
    let pipe = format!("cat '{}' | nc -N {} {}", file.display(), addr.ip(), addr.port());
    let mut nc = Process::tool("sh", "netcat-openbsd", &["-c", &pipe]);
    let greeting = nc.stdout.line().await;
    let from = greeting.strip_prefix("you is  : ").unwrap().parse().unwrap();
    let reading = async {
        let (started, mut bytes) = (Instant::now(), 0);
        for number in 0..LINES {
            recipient.reader.expect_message(&from, &body(number)).await;
            bytes += BODY;
            let due = started + Duration::from_secs_f64(bytes as f64 / BYTES_A_SECOND);
            sleep_until(due.into()).await;
        }
    };
    let answers = async {
        // What it is told, in any order: that each line was delivered.
        let mut delivered = vec![false; LINES];
        for _ in 0..LINES {
            let receipt: serde_json::Value = serde_json::from_str(&nc.stdout.line().await).unwrap();
            assert_eq!(receipt["status"], "delivered", "{receipt}");
            let number: usize = receipt["id"].as_str().unwrap().parse().unwrap();
            assert!(!std::mem::replace(&mut delivered[number], true), "{receipt}");
        }
        let ended = nc.ended().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    };
    tokio::join!(reading, answers);
    recipient.expect_nothing_else().await;
}

#[tokio::test]
async fn a_telnet_session() {
    let cluster = Cluster::start(2).await;
    let mut friend = cluster.line(1).await;
    let addr = cluster.nodes[0].tcp_addr().unwrap();
    let mut telnet = Process::tool("telnet", "telnet", &[&addr.ip().to_string(), &addr.port().to_string()]);
    let greeting = telnet.stdout.until("you is  : ").await;
    let address = greeting.strip_prefix("you is  : ").unwrap().parse().unwrap();
    for number in 0..10 {
        let body = format!("line {number}");
        telnet.write(message_line(&friend.address, &body) + "\n");
        friend.reader.expect_message(&address, &body).await;
        friend.say(&address, &body).await;
        assert_eq!(telnet.stdout.line().await, format!("{} say : {body}", friend.address));
    }
    telnet.write("hello?\n");
    assert!(telnet.stdout.line().await.starts_with("error : bad-json : "));
    telnet.write(message_line_with_id(&friend.address, "bye", "1") + "\n");
    assert_eq!(
        telnet.stdout.line().await,
        r#"{"cmd":"receipt","id":"1","status":"delivered"}"#
    );
    friend.reader.expect_message(&address, "bye").await;
    friend.expect_nothing_else().await;
    telnet.ended().await;
}
