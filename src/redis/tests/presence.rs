//! The list of nodes.

use std::time::Duration;

use bytes::Bytes;
use trunkline_lab::redis_server::{Answer, Cluster, Server};

use super::super::bus::Event;
use super::super::presence::MOST_NODES;
use super::{Node, within};
use crate::address::NodeName;
use crate::phase::Phase;

const LONG: Duration = Duration::from_secs(600);

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn entry(node: &str, info: &str) -> (NodeName, Bytes) {
    (name(node), info.to_owned().into())
}

/// Waits until the list is this. Each change is told.
async fn listed(node: &Node, expected: &[(NodeName, Bytes)]) {
    within(format!("{expected:?}"), async {
        while node.bus.nodes().await.unwrap().nodes != expected {
            node.bus.news().await;
        }
    })
    .await;
}

/// Comes, changes and goes, at one server or a cluster.
async fn come_and_go(urls: &[String]) {
    let (one, other) = (Node::up(urls, "one").await, Node::up(urls, "other").await);
    one.bus.announce(&name("a:1"), "first".into(), LONG).unwrap();
    listed(&other, &[entry("a:1", "first")]).await;
    other.bus.announce(&name("[::1]:2"), Bytes::new(), LONG).unwrap();
    let both = [entry("[::1]:2", ""), entry("a:1", "first")];
    listed(&one, &both).await;
    listed(&other, &both).await;
    one.bus.announce(&name("a:1"), "second".into(), LONG).unwrap();
    listed(&other, &[entry("[::1]:2", ""), entry("a:1", "second")]).await;
    one.lead.enter(Phase::Leaving);
    listed(&other, &[entry("[::1]:2", "")]).await;
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn nodes_see_each_other_come_change_and_leave() {
    come_and_go(&[Server::start().unwrap().url()]).await;
    let server = Server::start().unwrap();
    come_and_go(&[server.url()]).await;
}

#[tokio::test]
async fn nodes_see_each_other_in_a_cluster() {
    let cluster = Cluster::start().unwrap();
    come_and_go(&cluster.urls()[..1]).await;
    // Wherever their entries lie.
    let node = Node::up(&cluster.urls(), "n").await;
    let entries: Vec<_> = (0..100).map(|index| entry(&format!("n{index:03}:1"), "x")).collect();
    for (name, info) in &entries {
        let key = format!("t:node:{name}");
        let owner = cluster.owner(super::super::topology::slot_of(key.as_bytes())).unwrap();
        let info = std::str::from_utf8(info).unwrap();
        cluster.masters[owner].done(&["SET", &key, info]).unwrap();
    }
    assert_eq!(node.bus.nodes().await.unwrap().nodes, entries);
    node.end().await;
}

#[tokio::test]
async fn an_entry_goes_unless_it_is_refreshed() {
    const TTL: Duration = Duration::from_millis(1500);
    let server = Server::start().unwrap();
    let (one, other) = (
        Node::up(&[server.url()], "one").await,
        Node::up(&[server.url()], "other").await,
    );
    one.bus.announce(&name("a:1"), "x".into(), TTL).unwrap();
    listed(&other, &[entry("a:1", "x")]).await;
    let left = || match server.done(&["PTTL", "t:node:a:1"]).unwrap() {
        Answer::Integer(left) => left,
        other => panic!("{other:?}"),
    };
    // Each time that it has gone on, it was refreshed.
    let mut refreshed = 0;
    let mut before = left();
    within("three refreshes", async {
        while refreshed < 3 {
            let now = left();
            assert!(now > 0, "it is gone");
            refreshed += u32::from(now > before);
            before = now;
            tokio::task::yield_now().await;
        }
    })
    .await;
    // It dies without a goodbye.
    drop(one.lead);
    one.tracker.close();
    within("its end", async {
        while !other.bus.nodes().await.unwrap().nodes.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    other.end().await;
}

#[tokio::test]
async fn an_entry_is_back_as_soon_as_a_server_is_that_forgot_it() {
    let mut server = Server::start().unwrap();
    let mut node = Node::up(&[server.url()], "n").await;
    node.bus.announce(&name("a:1"), "x".into(), LONG).unwrap();
    listed(&node, &[entry("a:1", "x")]).await;
    server.kill().unwrap();
    node.lost().await;
    server.start_again().unwrap();
    assert_eq!(node.event().await, Event::Subscribed);
    listed(&node, &[entry("a:1", "x")]).await;
    node.end().await;
}

#[tokio::test]
async fn entries_of_no_node_are_passed_over_and_all_are_not_too_many() {
    let server = Server::start().unwrap();
    let node = Node::up(&[server.url()], "n").await;
    for (key, value) in [
        ("t:node:", "x"),
        ("t:node:nonsense", "x"),
        ("t:node:a:0", "x"),
        ("tt:node:a:1", "x"),
    ] {
        server.done(&["SET", key, value]).unwrap();
    }
    server.done(&["LPUSH", "t:node:list:1", "x"]).unwrap();
    server.done(&["SET", "t:node:long:1", &"x".repeat(100_000)]).unwrap();
    server.done(&["SET", "t:node:b:1", "good"]).unwrap();
    assert_eq!(node.bus.nodes().await.unwrap().nodes, [entry("b:1", "good")]);
    let many = format!(
        "for i = 1, {} do redis.call('SET', 't:node:n' .. i .. ':1', 'x') end",
        MOST_NODES + 1000
    );
    server.done(&["EVAL", &many, "0"]).unwrap();
    assert!(node.bus.nodes().await.unwrap().nodes.len() <= MOST_NODES);
    node.end().await;
}
