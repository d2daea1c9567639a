//! Servers that are none, or that are no good.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::super::error::{BusError, PublishError};
use super::{Node, config};

/// A server that answers each connection with these pieces, one whenever something comes, and then closes or hangs.
/// Gives its URL; it ends with the test.
async fn server(pieces: &[&[u8]], hangs: bool) -> String {
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    TaskTracker::new().spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let pieces = pieces.clone();
            TaskTracker::new().spawn(async move {
                let mut heard = [0; 4096];
                for piece in pieces {
                    if stream.read(&mut heard).await.is_err() || stream.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                while hangs && stream.read(&mut heard).await.is_ok_and(|length| length > 0) {}
            });
        }
    });
    url
}

async fn failure(pieces: &[&[u8]]) -> BusError {
    Node::failure(config(&[server(pieces, false).await])).await
}

#[tokio::test]
async fn what_is_not_redis_is_said_to_be_none() {
    for pieces in [
        &[&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]][..],
        &[b"SSH-2.0-OpenSSH_9.2\r\n"],
        &[b"\x00\x01\x02\x03\xff\xff\xff\xff"],
        &[b"$5\r\nhello\r\n"],
        &[b":1\r\n"],
        &[b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n"],
        &[b"+PONG\r\n", b"$5\r\nhello\r\n"],
        &[b"+PONG\r\n", b"*1\r\n*3\r\n:0\r\n:99999\r\n*2\r\n$1\r\nh\r\n:1\r\n"],
    ] {
        let error = failure(pieces).await;
        assert!(
            matches!(error, BusError::Nonsense(..)) && error.needs_attention(),
            "{error:?}"
        );
        assert!(error.to_string().contains("--redis"), "{error}");
    }
}

#[tokio::test]
async fn what_is_not_there_or_says_nothing_is_not_waited_for() {
    for pieces in [&[&b""[..]][..], &[b"+PONG\r\n", b""]] {
        let error = failure(pieces).await;
        assert!(
            matches!(error, BusError::Unreachable(..)) && !error.needs_attention(),
            "{error:?}"
        );
    }
    let error = Node::failure(config(&[server(&[], true).await])).await;
    assert!(error.to_string().contains("no answer within"), "{error}");
    let error = Node::failure(config(&["redis://127.0.0.1:1".to_owned()])).await;
    assert!(matches!(error, BusError::Unreachable(..)), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_ready_is_told_apart_from_one_that_is_wrong() {
    let error = failure(&[b"-LOADING Redis is loading the dataset in memory\r\n"]).await;
    assert!(
        matches!(error, BusError::NotReady(..)) && !error.needs_attention(),
        "{error:?}"
    );
    let error = failure(&[b"-ERR max number of clients reached\r\n"]).await;
    assert!(matches!(error, BusError::NotReady(..)), "{error:?}");
}

#[tokio::test]
async fn the_end_of_the_node_does_not_wait_for_a_server() {
    let node = Node::start(config(&[server(&[], true).await]), "n");
    let bus = node.bus.clone();
    let mut publishing = Box::pin(bus.publish("t:to:other", "x".into()));
    let early = tokio::time::timeout(Duration::from_millis(10), &mut publishing).await;
    assert!(early.is_err());
    node.end().await;
    let outcome = publishing.await.await;
    assert_eq!(outcome, Err(PublishError::Unsent(BusError::Closed)));
}
