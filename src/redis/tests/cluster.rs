//! A cluster of three masters.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use trunkline_lab::redis_server::{Answer, Cluster};

use super::super::bus::Event;
use super::super::error::BusError;
use super::super::topology::slot_of;
use super::{Node, config, number, numbered, within};

/// A name whose channel this master has.
fn name_at(cluster: &Cluster, master: usize) -> String {
    let names = (0..).map(|index| format!("n{index}"));
    let mut at = names.filter(|name| cluster.owner(slot_of(format!("t:to:{name}").as_bytes())).unwrap() == master);
    at.next().unwrap()
}

#[tokio::test]
async fn what_is_published_comes_to_whom_it_is_for_at_whatever_master() {
    let cluster = Cluster::start().unwrap();
    let mut nodes = Vec::new();
    for (master, seed) in [0, 1, 2].into_iter().zip(cluster.urls()) {
        // Each knows another master first.
        nodes.push(Node::up(&[seed], &name_at(&cluster, (master + 1) % 3)).await);
    }
    let channels: Vec<_> = nodes.iter().map(|node| node.channel.clone()).collect();
    for from in 0..3 {
        for (to, channel) in channels.iter().enumerate() {
            assert_eq!(nodes[from].publish(channel, format!("{from} to {to}")).await, Ok(1));
            assert_eq!(nodes[to].payload().await, format!("{from} to {to}"));
        }
    }
    // Each channel is at its own master alone.
    for (index, channel) in channels.iter().enumerate() {
        let counts: Vec<_> = cluster
            .masters
            .iter()
            .map(|master| {
                format!("{:?}", master.done(&["PUBSUB", "SHARDNUMSUB", channel]).unwrap()).contains("Integer(1)")
            })
            .collect();
        assert_eq!(counts.iter().position(|has| *has), Some((index + 1) % 3));
        assert_eq!(counts.iter().filter(|has| **has).count(), 1);
    }
    for node in nodes {
        node.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_is_followed_and_keeps_its_order() {
    const EACH: u32 = 3000;
    let cluster = Cluster::start().unwrap();
    let name = name_at(&cluster, 0);
    let (one, mut other) = (
        Node::up(&cluster.urls(), "one").await,
        Node::up(&cluster.urls(), &name).await,
    );
    let channel = other.channel.clone();
    let slot = slot_of(channel.as_bytes());
    let mut next = 0;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let first = next;
        let sending = async {
            let mut under_way = FuturesOrdered::new();
            for index in first..first + EACH {
                under_way.push_back(one.bus.publish(&channel, numbered(index)).await);
                if index == first + EACH / 2 {
                    tokio::task::block_in_place(|| cluster.move_slot(slot, from, to).unwrap());
                }
            }
            // None is refused; what was published while nobody had subscribed is lost, and says so.
            let ends: Vec<_> = under_way.collect().await;
            ends.into_iter()
                .map(|end| end.unwrap())
                .filter(|receivers| *receivers == 1)
                .count()
        };
        let receiving = async {
            let (mut got, mut is_lost, mut is_back) = (Vec::new(), false, false);
            while !is_back {
                match other.event().await {
                    Event::Message(payload) => got.push(number(&payload)),
                    Event::Lost(why) => {
                        assert!(why.contains("slot"), "{why}");
                        is_lost = true;
                    }
                    Event::Subscribed => {
                        assert!(is_lost);
                        is_back = true;
                    }
                }
            }
            got
        };
        let (delivered, mut got) = within("the move", async { tokio::join!(sending, receiving) }).await;
        next += EACH;
        assert_eq!(one.publish(&channel, numbered(next)).await, Ok(1));
        loop {
            let number = number(&other.payload().await);
            if number == next {
                break;
            }
            got.push(number);
        }
        next += 1;
        assert!(got.is_sorted_by(|one, next| one < next), "in order, and none twice");
        assert_eq!(got.len(), delivered, "each that was delivered came");
    }
    one.end().await;
    other.end().await;
}

/// A replica takes subscriptions without a word, and gets nothing of what is published at its master.
#[tokio::test]
async fn a_replica_that_takes_over_is_followed() {
    let cluster = Cluster::start().unwrap();
    let replica = cluster.add_replica(0).unwrap();
    let name = name_at(&cluster, 0);
    let (one, mut other) = (
        Node::up(&cluster.urls(), "one").await,
        Node::up(&cluster.urls(), &name).await,
    );
    let channel = other.channel.clone();
    assert_eq!(one.publish(&channel, "before").await, Ok(1));
    assert_eq!(other.payload().await, "before");
    replica.take_over().unwrap();
    other.lost().await;
    // As long as the masters do not agree on who it is, the subscription may be lost again, with what was on its way. It says so.
    within("a payload is delivered", async {
        let mut is_subscribed = false;
        loop {
            while one.publish(&channel, "after").await != Ok(1) {
                tokio::task::yield_now().await;
            }
            let came = loop {
                match other.event().await {
                    Event::Subscribed => is_subscribed = true,
                    Event::Lost(_) => break None,
                    Event::Message(payload) => break Some(payload),
                }
            };
            if let Some(payload) = came {
                assert_eq!(payload, "after");
                assert!(is_subscribed);
                break;
            }
            is_subscribed = false;
        }
    })
    .await;
    one.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_hangs_holds_up_only_its_own_channels() {
    let cluster = Cluster::start().unwrap();
    let (near, far) = (name_at(&cluster, 0), name_at(&cluster, 1));
    let (mut one, other) = (
        Node::up(&cluster.urls(), &near).await,
        Node::up(&cluster.urls(), &far).await,
    );
    cluster.masters[1].signal("STOP").unwrap();
    let (own, others) = (one.channel.clone(), other.channel.clone());
    let hung = one.bus.publish(&others, "x".into()).await;
    for index in 0..1000 {
        assert_eq!(one.publish(&own, numbered(index)).await, Ok(1));
        assert_eq!(number(&one.payload().await), index);
    }
    cluster.masters[1].signal("CONT").unwrap();
    // Either it was soon enough, or it was given up.
    let _ = within("the end of the one that hung", hung).await;
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn a_cluster_that_is_too_old_or_asked_for_a_database_is_refused() {
    let cluster = Cluster::with(&["--rename-command", "SSUBSCRIBE", ""]).unwrap();
    let error = Node::failure(config(&cluster.urls())).await;
    assert!(
        matches!(error, BusError::TooOld(_)) && error.to_string().contains("7.0"),
        "{error:?}"
    );
    let error = Node::failure(config(&[format!("{}/1", cluster.masters[0].url())])).await;
    assert!(
        matches!(error, BusError::Config(_)) && error.to_string().contains("/DB"),
        "{error:?}"
    );
}

#[tokio::test]
async fn slots_are_counted_as_redis_does() {
    let cluster = Cluster::start().unwrap();
    for key in [
        "",
        "a",
        "foo",
        "t:to:127.0.0.1:1215",
        "{}foo",
        "{a}b",
        "x{a}{b}",
        "{a",
        "a}b{c}",
        "\u{fc}",
    ] {
        let slot = cluster.masters[0].done(&["CLUSTER", "KEYSLOT", key]).unwrap();
        assert_eq!(slot, Answer::Integer(slot_of(key.as_bytes()).into()), "{key}");
    }
}
