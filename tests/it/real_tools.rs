//! The tools that people use: `nc` and `telnet`, as Debian has them.

use crate::support::{Cluster, Process, message_line, message_line_with_id};

#[tokio::test]
async fn netcat_delivers_what_is_piped_into_it_and_prints_the_answers() {
    let cluster = Cluster::start(2).await;
    let mut recipient = cluster.line(1).await;
    let addr = cluster.nodes[0].tcp_addr();
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
async fn a_telnet_session() {
    let cluster = Cluster::start(2).await;
    let mut friend = cluster.line(1).await;
    let addr = cluster.nodes[0].tcp_addr();
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
