//! One server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use trunkline_lab::redis_server::Server;

use super::super::bus::{EVENTS, Event};
use super::super::error::{BusError, PublishError};
use super::{MAX_PAYLOAD, Node, config, number, numbered, within};

#[tokio::test]
async fn what_is_published_comes_to_whom_it_is_for() {
    let server = Server::start().unwrap();
    let urls = [format!("{}/0", server.url())];
    let (one, mut other) = (Node::up(&urls, "one").await, Node::up(&urls, "other").await);
    assert_eq!(one.publish("t:to:other", "hello").await, Ok(1));
    assert_eq!(other.payload().await, "hello");
    assert_eq!(one.publish("t:to:nobody", "hello").await, Ok(0));
    // Any bytes, and as many as are allowed.
    let long = Bytes::from((0..MAX_PAYLOAD).map(|index| index as u8).collect::<Vec<_>>());
    assert_eq!(one.publish("t:to:other", long.clone()).await, Ok(1));
    assert_eq!(other.payload().await, long);
    assert_eq!(one.publish("t:to:other", Bytes::new()).await, Ok(1));
    assert_eq!(other.payload().await, "");
    one.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_payloads_come_in_order() {
    const COUNT: u32 = 100_000;
    let server = Server::start().unwrap();
    let urls = [server.url()];
    let (one, mut other) = (Node::up(&urls, "one").await, Node::up(&urls, "other").await);
    let sending = async {
        let mut under_way = FuturesOrdered::new();
        for index in 0..COUNT {
            under_way.push_back(one.bus.publish("t:to:other", numbered(index)).await);
        }
        assert!(under_way.all(async |outcome| outcome == Ok(1)).await);
    };
    let receiving = async {
        for index in 0..COUNT {
            assert_eq!(number(&other.payload().await), index);
        }
    };
    within("all of it", async { tokio::join!(sending, receiving) }).await;
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn a_payload_that_is_too_long_is_refused_and_passed_over() {
    let server = Server::start().unwrap();
    let mut node = Node::up(&[server.url()], "n").await;
    let length = MAX_PAYLOAD + 1;
    let refused = node.publish("t:to:n", vec![0; length]).await;
    assert_eq!(refused, Err(PublishError::TooLong(length, MAX_PAYLOAD)));
    server
        .done(&["PUBLISH", "t:to:n", &"x".repeat(3 * MAX_PAYLOAD)])
        .unwrap();
    assert_eq!(node.publish("t:to:n", "after").await, Ok(1));
    assert_eq!(node.payload().await, "after");
    node.end().await;
}

/// Publishes numbers without end until told to stop; gives those whose ends were good, in order, and how many there
/// were.
async fn stream(node: &Node, channel: &str, sent: &AtomicU32, stop: &AtomicBool) -> Vec<u32> {
    let (mut under_way, mut good) = (FuturesOrdered::new(), Vec::new());
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) || !under_way.is_empty() {
        if !stop.load(Ordering::Relaxed) && under_way.len() < 200 {
            let publishing = node.bus.publish(channel, numbered(next)).await;
            let number = next;
            under_way.push_back(async move { (number, publishing.await) });
            next += 1;
            sent.store(next, Ordering::Relaxed);
            continue;
        }
        match under_way.next().await {
            Some((number, Ok(1))) => good.push(number),
            // Published while nobody had subscribed.
            Some((_, Ok(0))) | None => {}
            Some((_, Err(PublishError::Unknown(BusError::Unreachable(..))))) => {}
            Some((number, other)) => panic!("{number}: {other:?}"),
        }
    }
    good
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_killed_are_told_and_made_again() {
    let server = Server::start().unwrap();
    let urls = [server.url()];
    let (one, mut other) = (Node::up(&urls, "one").await, Node::up(&urls, "other").await);
    let (sent, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let streaming = stream(&one, "t:to:other", &sent, &stop);
    let receiving = async {
        let (mut got, mut losses) = (Vec::new(), 0);
        for round in 0..10 {
            let goal = sent.load(Ordering::Relaxed) + 500;
            while got.last().is_none_or(|last| *last < goal) {
                match other.event().await {
                    Event::Message(payload) => got.push(number(&payload)),
                    Event::Lost(_) => losses += 1,
                    Event::Subscribed => {}
                }
            }
            let kind = if round % 2 == 0 { "pubsub" } else { "normal" };
            server.done(&["CLIENT", "KILL", "TYPE", kind]).unwrap();
            if kind == "pubsub" {
                loop {
                    match other.event().await {
                        Event::Message(payload) => got.push(number(&payload)),
                        Event::Lost(_) => break,
                        Event::Subscribed => panic!("subscribed twice"),
                    }
                }
                losses += 1;
                assert_eq!(other.event().await, Event::Subscribed);
            }
        }
        stop.store(true, Ordering::Relaxed);
        (got, losses)
    };
    let (good, (mut got, losses)) = within("all of it", async { tokio::join!(streaming, receiving) }).await;
    assert_eq!(losses, 5);
    let last_good = *good.last().unwrap();
    while got.last().is_none_or(|last| *last < last_good) {
        got.push(number(&other.payload().await));
    }
    assert!(got.is_sorted_by(|one, next| one < next), "in order, and none twice");
    let got: std::collections::HashSet<_> = got.into_iter().collect();
    // What the kernel still held for a connection that was killed is gone, though Redis had passed it to it.
    let missing = good.iter().filter(|number| !got.contains(number)).count();
    assert!(missing < good.len() / 2, "{missing} of {} are missing", good.len());
    one.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_noticed_and_taken_up_again() {
    let server = Server::start().unwrap();
    let urls = [server.url()];
    let (one, mut other) = (Node::up(&urls, "one").await, Node::up(&urls, "other").await);
    assert_eq!(one.publish("t:to:other", "before").await, Ok(1));
    assert_eq!(other.payload().await, "before");
    server.signal("STOP").unwrap();
    let (hung, why) = tokio::join!(one.publish("t:to:other", "hung"), other.lost());
    assert!(matches!(hung, Err(PublishError::Unknown(_))), "{hung:?}");
    assert!(why.contains("silent"), "{why}");
    // While it hangs, nothing waits for ever.
    let waiting = one.publish("t:to:other", "waiting").await;
    assert!(matches!(waiting, Err(PublishError::Unsent(_))), "{waiting:?}");
    server.signal("CONT").unwrap();
    loop {
        // What was written before may still be published.
        if other.event().await == Event::Subscribed {
            break;
        }
    }
    while one.publish("t:to:other", "after").await != Ok(1) {}
    while other.payload().await != "after" {}
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn a_server_that_starts_anew_is_found_again() {
    let mut server = Server::start().unwrap();
    let urls = [server.url()];
    let mut node = Node::up(&urls, "n").await;
    server.kill().unwrap();
    node.lost().await;
    let early = node.bus.publish("t:to:n", "early".into()).await;
    server.start_again().unwrap();
    assert_eq!(node.event().await, Event::Subscribed);
    // It waited in the queue. Whether anyone had subscribed by then is a matter of luck.
    within("the end of the early one", early).await.unwrap();
    assert_eq!(node.publish("t:to:n", "late").await, Ok(1));
    while node.payload().await != "late" {}
    node.end().await;
}

#[tokio::test]
async fn no_more_waits_to_be_published_than_may() {
    const PAYLOAD: usize = 64 * 1024;
    let server = Server::start().unwrap();
    let node = Node::up(&[server.url()], "n").await;
    server.signal("STOP").unwrap();
    let mut under_way = Vec::new();
    let payload = Bytes::from(vec![0; PAYLOAD]);
    loop {
        let publishing = node.bus.publish("t:to:other", payload.clone());
        match tokio::time::timeout(std::time::Duration::from_millis(500), publishing).await {
            Ok(publishing) => under_way.push(publishing),
            Err(_) => break,
        }
    }
    let most = 8 * 1024 * 1024 / PAYLOAD;
    assert!((most - 2..=most).contains(&under_way.len()), "{}", under_way.len());
    for publishing in under_way {
        within("the end of each", publishing).await.unwrap_err();
    }
    server.signal("CONT").unwrap();
    while node.publish("t:to:other", "x").await.is_err() {}
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_more_is_read_while_nobody_takes_events() {
    let server = Server::with(&["--client-output-buffer-limit", "pubsub 4mb 0 0"]).unwrap();
    let urls = [server.url()];
    let (one, mut other) = (Node::up(&urls, "one").await, Node::up(&urls, "other").await);
    let mut sent = 0;
    // Until Redis has thrown it out.
    let mut is_taken = true;
    while is_taken {
        let payload = [&numbered(sent)[..], &[0; 60_000]].concat();
        is_taken = one.publish("t:to:other", payload).await == Ok(1);
        sent += 1;
    }
    assert_eq!(other.events.len(), EVENTS);
    let mut expected = 0;
    let why = loop {
        match other.event().await {
            Event::Message(payload) => {
                assert_eq!(number(&payload), expected);
                expected += 1;
            }
            Event::Lost(why) => break why,
            Event::Subscribed => panic!("subscribed without a loss"),
        }
    };
    assert!(
        expected < sent && expected as usize >= EVENTS,
        "{expected} of {sent}, {why}"
    );
    assert_eq!(other.event().await, Event::Subscribed);
    assert_eq!(one.publish("t:to:other", "after").await, Ok(1));
    assert_eq!(other.payload().await, "after");
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    let server = Server::with(&["--requirepass", "right"]).unwrap();
    let login = |login: &str| config(&[format!("redis://{login}127.0.0.1:{}", server.addr().port())]);
    for wrong in ["", ":wrong@", "nobody:right@"] {
        let error = Node::failure(login(wrong)).await;
        assert!(
            matches!(error, BusError::Login(..)) && error.needs_attention(),
            "{error:?}"
        );
        assert!(error.to_string().contains("--redis redis://USER:PASSWORD@"), "{error}");
    }
    let node = Node::start(login(":right@"), "n");
    within("the start", node.bus.started()).await.unwrap();
    assert!(!format!("{:?}", node.bus).contains("right"));
    node.end().await;
    let open = Server::start().unwrap();
    let error = Node::failure(config(&[format!("redis://:pw@127.0.0.1:{}", open.addr().port())])).await;
    assert!(matches!(error, BusError::Login(..)), "{error:?}");
}

#[tokio::test]
async fn a_user_who_may_too_little_is_told_what_is_needed() {
    let server = Server::start().unwrap();
    let user = |rules: &[&str]| {
        let mut command = vec!["ACL", "SETUSER", "me", "reset", "on", ">pw"];
        command.extend(rules);
        server.done(&command).unwrap();
        config(&[format!("redis://me:pw@127.0.0.1:{}", server.addr().port())])
    };
    for rules in [
        &["+@all", "~*", "resetchannels"][..],
        &["+@all", "~*", "&other:*"],
        &["+@all", "-subscribe", "~*", "&*"],
        &["+@all", "-ping", "~*", "&*"],
        &["+@all", "-cluster", "~*", "&*"],
    ] {
        let error = Node::failure(user(rules)).await;
        assert!(
            matches!(error, BusError::Permission(..)) && error.needs_attention(),
            "{error:?}"
        );
        assert!(error.to_string().contains("ACL SETUSER"), "{error}");
    }
    // What the text says is enough.
    let error = BusError::of_answer(&"h:1".parse().unwrap(), "PING", b"NOPERM").to_string();
    let (_, rules) = error.split_once("ACL SETUSER NAME ").unwrap();
    let (rules, _) = rules.split_once(", with").unwrap();
    let rules = rules.replace("PREFIX", "t");
    let node = Node::start(user(&rules.split_whitespace().collect::<Vec<_>>()), "n");
    within("the start", node.bus.started()).await.unwrap();
    let name = "a:1".parse().unwrap();
    node.bus
        .announce(&name, "info".into(), std::time::Duration::from_secs(60))
        .unwrap();
    within("news", node.bus.news()).await;
    assert_eq!(node.bus.nodes().await.unwrap().nodes, [(name, "info".into())]);
    assert_eq!(node.publish("t:to:n", "x").await, Ok(1));
    // What it may not do to others' channels is an error, and no more than that.
    let forbidden = node.publish("other", "x").await;
    assert!(
        matches!(forbidden, Err(PublishError::Unsent(BusError::Permission(..)))),
        "{forbidden:?}"
    );
    assert_eq!(node.publish("t:to:n", "x").await, Ok(1));
    node.end().await;
}

#[tokio::test]
async fn a_database_that_is_not_there_is_refused() {
    let server = Server::start().unwrap();
    let url = |database: u32| config(&[format!("{}/{database}", server.url())]);
    let error = Node::failure(url(9999)).await;
    assert!(
        matches!(error, BusError::Config(_)) && error.to_string().contains("/DB"),
        "{error:?}"
    );
    let node = Node::start(url(3), "n");
    within("the start", node.bus.started()).await.unwrap();
    node.end().await;
}

#[tokio::test]
async fn several_servers_that_are_no_cluster_are_refused() {
    let (one, other) = (Server::start().unwrap(), Server::start().unwrap());
    let error = Node::failure(config(&[one.url(), other.url()])).await;
    assert!(matches!(error, BusError::Config(_)), "{error:?}");
}

#[tokio::test]
async fn tls_is_spoken_with_who_has_a_certificate_of_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let authority = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (own, other) = (authority(), authority());
    std::fs::write(path("ca.pem"), own.pem()).unwrap();
    std::fs::write(path("other.pem"), other.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &own)
        .unwrap();
    std::fs::write(path("server.pem"), certificate.pem()).unwrap();
    std::fs::write(path("server.key"), key.serialize_pem()).unwrap();
    let (certificate, key, ca) = (path("server.pem"), path("server.key"), path("ca.pem"));
    let server = Server::with_tls(&[
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ])
    .unwrap();
    let with = |host: &str, ca: Option<&str>| {
        let mut config = config(&[format!("rediss://{host}:{}", server.tls_addr().unwrap().port())]);
        config.ca = ca.map(Into::into);
        config
    };
    let mut node = Node::start(with("127.0.0.1", Some(&ca)), "n");
    within("the start", node.bus.started()).await.unwrap();
    assert_eq!(node.event().await, Event::Subscribed);
    let long = Bytes::from(vec![7; MAX_PAYLOAD]);
    for _ in 0..20 {
        assert_eq!(node.publish("t:to:n", long.clone()).await, Ok(1));
        assert_eq!(node.payload().await, long);
    }
    node.end().await;

    for config in [
        with("127.0.0.1", Some(&path("other.pem"))),
        with("localhost", Some(&ca)),
        with("127.0.0.1", None),
    ] {
        let error = Node::failure(config).await;
        assert!(
            matches!(error, BusError::Tls(..)) && error.to_string().contains("--redis-ca"),
            "{error:?}"
        );
    }
    let mut plain = config(&[format!("rediss://127.0.0.1:{}", server.addr().port())]);
    plain.ca = Some(ca.clone().into());
    let error = Node::failure(plain).await;
    assert!(error.to_string().contains("does not answer in TLS"), "{error:?}");
    let missing = Node::refused(with("127.0.0.1", Some(&path("missing.pem"))));
    assert!(missing.to_string().contains("missing.pem"), "{missing}");
}
