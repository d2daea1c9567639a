//! Who gets in by a token, what it lets a client do, and what becomes of clients when tokens and keys come to their end.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use trunkline::client::{Event, Options, RenewError};
use trunkline::permission::Permissions;
use trunkline::{Address, Client, ClientRule, Code, Config, Node, Outcome};

use crate::support::{
    Carrier, Certs, Cluster, LONG, LineClient, LineReader, LineWriter, NodeCommand, Process, RawQuic, connect_quic,
    eventually, free_token, name, node_config, now, own_port, sign, token, within,
};

const CLIENT_ALPN: &[u8] = b"trunkline/1";

/// How long a client may stay whose token is over.
const OUT_WITHIN: Duration = Duration::from_secs(5);

/// No refusal of a login comes sooner.
const REFUSED_AFTER: Duration = Duration::from_millis(100);

fn asks_for_tokens(config: &mut Config) {
    config.clients = ClientRule::Token;
}

/// Nodes that ask for tokens, of keys that are there.
async fn cluster(nodes: usize) -> Cluster {
    Cluster::start_on(Certs::with_token_key(nodes), nodes, asks_for_tokens).await
}

fn bob() -> Address {
    format!("{}:bob", name(0)).parse().unwrap()
}

fn login_line(token: &str) -> String {
    json!({"cmd": "login", "token": token}).to_string()
}

/// Logs in over TCP; gives the line that the node answers with.
async fn answer(addr: SocketAddr, first: &str) -> (String, LineReader, LineWriter) {
    let (mut reader, mut writer) = LineReader::connect(addr).await;
    writer.send(first).await;
    (reader.line().await, reader, writer)
}

/// A legacy client that has logged in.
async fn line_client(node: &Node, token: &str) -> LineClient {
    let (greeting, reader, writer) = answer(node.tcp_addr().unwrap(), &login_line(token)).await;
    let address = greeting.strip_prefix("you is  : ");
    let address = address.unwrap_or_else(|| panic!("{greeting}")).parse().unwrap();
    LineClient {
        address,
        reader,
        writer,
    }
}

/// A QUIC client that has logged in.
async fn quic_client(node: &Node, certs: &Certs, token: &str) -> Client {
    let addr = node.quic_addr().into();
    let connecting = Client::connect_with(&addr, certs.dir(), Options::new().token(token));
    within("a QUIC client connects", connecting).await.unwrap()
}

/// A QUIC client written by hand that says hello with these keys more; gives the answer.
async fn hello(addr: SocketAddr, certs: &Certs, identity: Option<&str>, more: Value) -> (RawQuic, Value) {
    let mut client = RawQuic::connect(addr, certs, CLIENT_ALPN, identity).await.unwrap();
    let mut hello = json!({"cmd": "hello", "version": 1});
    hello.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.say(&hello).await;
    let answer = client.hear().await.expect("an answer to hello");
    (client, answer)
}

async fn receive(client: &Client, from: &Address, body: &str) {
    match within("a message", client.receive()).await {
        Some(Event::Message(message)) => assert_eq!((&message.from, &message.text()[..]), (from, body)),
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn each_fault_of_a_token_at_each_port() {
    let cluster = cluster(1).await;
    let (certs, node) = (&cluster.certs, &cluster.nodes[0]);
    let strange = Certs::with_token_key(1);
    let claims = |more: Value| {
        let mut claims = json!({"sub": "bob", "aud": "trunkline", "exp": now() + 600});
        claims
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        claims
    };
    let signed = |more: Value| sign(certs, &claims(more));
    let whole = signed(json!({}));
    let changed = whole.replacen('.', ".e", 1);
    for (what, token, wrong) in [
        ("good", whole.clone(), None),
        ("expired", signed(json!({"exp": now() - 10})), Some("has expired")),
        (
            "not yet valid",
            signed(json!({"nbf": now() + 60})),
            Some("not valid yet"),
        ),
        (
            "of another cluster",
            signed(json!({"aud": "other"})),
            Some("not for this cluster"),
        ),
        (
            "of another key",
            sign(&strange, &claims(json!({}))),
            Some("signature is unknown"),
        ),
        ("changed", changed, Some("signature is unknown")),
        (
            "cut off",
            whole[..whole.len() - 38].to_owned(),
            Some("signature is unknown"),
        ),
        ("without an end", signed(json!({"exp": null})), Some("claims")),
        ("of a given id", signed(json!({"sub": "123456"})), Some("claims")),
        (
            "with an unknown restriction",
            signed(json!({"trunkline": {"sned": []}})),
            Some("claims"),
        ),
        (
            "too long",
            signed(json!({"iss": "x".repeat(5000)})),
            Some("longer than 4096"),
        ),
        ("no token", "password".to_owned(), Some("no JSON Web Token")),
        ("empty", String::new(), Some("no JSON Web Token")),
    ] {
        let started = Instant::now();
        let (line, mut reader, _writer) = answer(node.tcp_addr().unwrap(), &login_line(&token)).await;
        match wrong {
            None => assert_eq!(line, format!("you is  : {}", bob()), "{what}"),
            Some(wrong) => {
                assert!(
                    started.elapsed() >= REFUSED_AFTER,
                    "{what} was told after {:?}",
                    started.elapsed()
                );
                assert!(
                    line.starts_with("error : not-allowed : ") && line.contains(wrong),
                    "{what}: {line}"
                );
                reader.expect_end().await;
            }
        }
        let started = Instant::now();
        let (client, answer) = hello(node.quic_addr(), certs, None, json!({"token": token})).await;
        match wrong {
            None => assert_eq!(answer["address"], bob().to_string(), "{what}"),
            Some(wrong) => {
                assert!(
                    started.elapsed() >= REFUSED_AFTER,
                    "{what} was told after {:?}",
                    started.elapsed()
                );
                assert_eq!(answer["code"], "not-allowed", "{what}");
                assert!(answer["text"].as_str().unwrap().contains(wrong), "{what}: {answer}");
                assert_eq!(client.closed().await.0, 6, "{what}");
            }
        }
    }
    let (client, answer) = hello(node.quic_addr(), certs, None, json!({})).await;
    assert_eq!((&answer["code"], client.closed().await.0), (&json!("not-allowed"), 6));
    eventually("nobody is left", || node.clients() == 0).await;
}

#[tokio::test]
async fn over_tcp_a_login_comes_first() {
    let certs = Certs::with_token_key(1);
    let mut config = node_config(&certs, 0);
    asks_for_tokens(&mut config);
    config.limits.login = Duration::from_millis(300);
    let node = Node::start(config).await.unwrap();
    let addr = node.tcp_addr().unwrap();
    let long = format!("{{\"cmd\":\"login\",\"token\":\"{}", "x".repeat(40_000));
    for (first, code) in [
        (r#"{"cmd":"hello","format":"json"}"#, "not-allowed"),
        (
            r#"{"to":"127.0.0.1:1:bob","body":"x","cmd":"sendMsg","id":"7"}"#,
            "not-allowed",
        ),
        (r#"{"cmd":"login","token":7}"#, "not-allowed"),
        ("hello", "not-allowed"),
        ("", "not-allowed"),
        (&long, "not-allowed"),
        ("GET / HTTP/1.1", "bad-json"),
    ] {
        let (line, mut reader, _writer) = answer(addr, first).await;
        assert!(line.starts_with(&format!("error : {code} : ")), "{first:.60}: {line}");
        reader.expect_end().await;
    }
    // One that says nothing, or does not come to an end.
    for beginning in [&b""[..], b"{\"cmd\":\"login\""] {
        let (mut reader, mut writer) = LineReader::connect(addr).await;
        writer.write(beginning).await;
        let text = reader.expect_error(Code::NotAllowed).await;
        assert!(text.contains("in time"), "{text}");
        reader.expect_end().await;
    }
    assert_eq!(node.clients(), 0);

    // What comes with the login is followed, also the beginning of a line; the time to log in is over then.
    let token = free_token(&certs, "bob");
    let (mut reader, mut writer) = LineReader::connect(addr).await;
    let both = format!(
        "{}\n{}\n{{\"cmd\":",
        login_line(&token),
        r#"{"cmd":"hello","format":"json"}"#
    );
    writer.write(both.as_bytes()).await;
    assert_eq!(reader.line().await, format!("you is  : {}", bob()));
    let mut other = line_client(&node, &free_token(&certs, "ann")).await;
    other.say(&bob(), "hello").await;
    assert_eq!(reader.json().await["body"], "hello");
    writer
        .send(&format!(
            "\"sendMsg\",\"to\":\"{}\",\"body\":\"and you\"}}",
            other.address
        ))
        .await;
    other.reader.expect_message(&bob(), "and you").await;
}

#[tokio::test]
async fn what_a_token_does_not_allow_is_refused() {
    let cluster = cluster(2).await;
    let (certs, nodes) = (&cluster.certs, &cluster.nodes);
    let restricted = |subject: &str| {
        let send = ["*:*:bob", "127.0.0.1:2:*"].map(|pattern| pattern.parse().unwrap());
        let permissions = Permissions {
            send: Some(send.to_vec()),
            receive: Some(false),
            ..Permissions::default()
        };
        token(certs, subject, LONG, permissions)
    };
    let mut bob = line_client(&nodes[0], &free_token(certs, "bob")).await;
    let free = quic_client(&nodes[0], certs, &free_token(certs, "free")).await;
    let mut there = line_client(&nodes[1], &free_token(certs, "there")).await;
    let mut line = line_client(&nodes[0], &restricted("line")).await;
    let quic = quic_client(&nodes[0], certs, &restricted("quic")).await;

    for (to, end) in [
        (bob.address.clone(), Outcome::Delivered),
        (there.address.clone(), Outcome::Delivered),
        (free.address().clone(), Outcome::Refused(Code::NotAllowed)),
        // It is not even said whether there is one.
        (
            "127.0.0.1:1:nobody".parse().unwrap(),
            Outcome::Refused(Code::NotAllowed),
        ),
        (
            "127.0.0.1:2:nobody".parse().unwrap(),
            Outcome::Refused(Code::NoSuchClient),
        ),
    ] {
        line.say_with_id(&to, "from line", "7").await;
        let receipt = quic.send_with_receipt(&to, "from quic").await.unwrap();
        assert_eq!(within("a receipt", receipt).await, end, "{to}");
        match end {
            Outcome::Refused(code) => line.reader.expect_refused("7", code).await,
            _ => line.reader.expect_delivered("7").await,
        }
        if end == Outcome::Delivered {
            let recipient = if to == bob.address { &mut bob } else { &mut there };
            let mut bodies = [recipient.reader.line().await, recipient.reader.line().await];
            bodies.sort();
            assert!(bodies[0].ends_with("line say : from line"), "{bodies:?}");
            assert!(bodies[1].ends_with("quic say : from quic"), "{bodies:?}");
        }
    }
    line.say(free.address(), "without a receipt").await;
    line.reader.expect_error(Code::NotAllowed).await;

    // Neither may receive: from here, and from another node.
    for to in [&line.address, quic.address()] {
        bob.say_with_id(to, "hello", "8").await;
        bob.reader.expect_refused("8", Code::NotAllowed).await;
        there.say_with_id(to, "hello", "9").await;
        there.reader.expect_refused("9", Code::NotAllowed).await;
    }
    // Twice three messages of the two, and one without a receipt.
    assert_eq!(nodes[0].counters()["refused-permission"], 5);
    // Not a word of it came; its own messages to itself would not, either.
    line.writer.send("nonsense").await;
    line.reader.expect_error(Code::BadJson).await;
}

#[tokio::test]
async fn a_client_is_held_to_the_rate_of_its_token_until_it_shows_another() {
    const MESSAGES: usize = 60;
    let cluster = cluster(1).await;
    let (certs, node) = (&cluster.certs, &cluster.nodes[0]);
    let slow = |subject: &str| {
        let permissions = Permissions {
            // So many at once, and half of the rest in each second.
            message_rate: Some(20.try_into().unwrap()),
            ..Permissions::default()
        };
        token(certs, subject, LONG, permissions)
    };
    let held = || node.counters()["held-rate"];
    let mut bob = line_client(node, &free_token(certs, "bob")).await;
    let mut line = line_client(node, &slow("line")).await;
    let quic = quic_client(node, certs, &slow("quic")).await;
    let addresses = [line.address.clone(), quic.address().clone()];
    for (round, from) in addresses.iter().cycle().take(4).enumerate() {
        let (is_line, is_free) = (round % 2 == 0, round >= 2);
        if is_free {
            let free = free_token(certs, from.id.as_str());
            match is_line {
                true => line.writer.send(&login_line(&free)).await,
                false => quic.renew(&free).await.unwrap(),
            }
        }
        let (started, before) = (Instant::now(), held());
        for number in 0..MESSAGES {
            let body = format!("{round}, {number}");
            match is_line {
                true => line.say(&bob.address, &body).await,
                false => quic.send(&bob.address, body).await.unwrap(),
            }
        }
        for number in 0..MESSAGES {
            bob.reader.expect_message(from, &format!("{round}, {number}")).await;
        }
        // Less than the two seconds that it takes, as the burst is not exact to the millisecond.
        assert_eq!(
            started.elapsed() < Duration::from_millis(1900),
            is_free,
            "round {round}"
        );
        assert_eq!(held() == before, is_free, "round {round}");
    }
}

#[tokio::test]
async fn a_client_whose_token_expires_is_out_and_who_wrote_to_it_is_told() {
    let cluster = cluster(1).await;
    let (certs, node) = (&cluster.certs, &cluster.nodes[0]);
    let sender = quic_client(node, certs, &free_token(certs, "sender")).await;
    let short = |subject: &str| token(certs, subject, Duration::from_secs(1), Permissions::default());
    let end = SystemTime::now() + Duration::from_secs(1);
    let mut line = line_client(node, &short("line")).await;
    let resumable = json!({"token": short("quic"), "resumable": true});
    let (quic, welcome) = hello(node.quic_addr(), certs, None, resumable).await;
    // It never answers this one.
    let to: Address = welcome["address"].as_str().unwrap().parse().unwrap();
    let receipt = sender.send_with_receipt(&to, "hello").await.unwrap();
    quic.message().await;

    let text = line.reader.expect_error(Code::NotAllowed).await;
    assert!(text.contains("expired"), "{text}");
    line.reader.expect_end().await;
    let (code, reason) = quic.closed().await;
    assert!(code == 6 && reason.contains("expired"), "{code} {reason}");
    let after = SystemTime::now().duration_since(end).unwrap();
    println!("both were out {after:?} after their tokens' end");
    assert!(after < OUT_WITHIN);
    assert_eq!(
        within("a receipt", receipt).await,
        Outcome::Unknown(Code::RecipientGone)
    );
    eventually("both are gone", || node.clients() == 1).await;
    for to in [&line.address, &to] {
        let receipt = sender.send_with_receipt(to, "hello?").await.unwrap();
        assert_eq!(within("a receipt", receipt).await, Outcome::Refused(Code::NoSuchClient));
    }
    // The session is no more, also for one who comes with a good token.
    let resume = json!({"token": welcome["resume"]["token"], "taken": {"below": 1}});
    let again = json!({"token": free_token(certs, "quic"), "resumable": true, "resume": resume});
    let (_, answer) = hello(node.quic_addr(), certs, None, again).await;
    assert_eq!(answer["code"], "session-gone");
}

#[tokio::test]
async fn a_key_that_is_taken_away_ends_its_clients_and_no_others() {
    let cluster = cluster(1).await;
    let (certs, node) = (&cluster.certs, &cluster.nodes[0]);
    let next = Certs::with_token_key(1);
    let pem = |certs: &Certs| std::fs::read_to_string(certs.dir().join("token.pem")).unwrap();
    let (old, new) = (pem(certs), pem(&next));
    let public = certs.dir().join("token.pem");
    let mut line = line_client(node, &free_token(certs, "line")).await;
    let quic = quic_client(node, certs, &free_token(certs, "quic")).await;

    std::fs::write(&public, format!("{old}{new}")).unwrap();
    let later_token = free_token(&next, "later");
    let addr = node.quic_addr().into();
    let later = async {
        loop {
            // Until the node has read the keys.
            match Client::connect_with(&addr, certs.dir(), Options::new().token(&later_token)).await {
                Ok(client) => return client,
                Err(error) => assert!(error.to_string().contains("signature is unknown"), "{error}"),
            }
        }
    };
    let later = within("the new key is known", later).await;
    let mut still = line_client(node, &free_token(certs, "still")).await;

    std::fs::write(&public, new).unwrap();
    let since = Instant::now();
    line.reader.expect_error(Code::NotAllowed).await;
    still.reader.expect_error(Code::NotAllowed).await;
    assert_eq!(within("the end", quic.receive()).await, None);
    println!("they were out after {:?}", since.elapsed());
    assert!(since.elapsed() < OUT_WITHIN);
    eventually("one is left", || node.clients() == 1).await;
    let receipt = later.send_with_receipt(later.address(), "still here").await.unwrap();
    receive(&later, later.address(), "still here").await;
    assert_eq!(within("a receipt", receipt).await, Outcome::Delivered);
    let of_old_key = sign(certs, &json!({"sub": "line", "aud": "trunkline", "exp": now() + 600}));
    let (refused, ..) = answer(node.tcp_addr().unwrap(), &login_line(&of_old_key)).await;
    assert!(refused.contains("signature is unknown"), "{refused}");
}

#[tokio::test]
async fn who_renews_its_token_stays_and_may_do_what_the_new_one_says() {
    let cluster = cluster(1).await;
    let (certs, node) = (&cluster.certs, &cluster.nodes[0]);
    let short = |subject: &str| token(certs, subject, Duration::from_secs(1), Permissions::default());
    let mute = |subject: &str| {
        let permissions = Permissions {
            send: Some(Vec::new()),
            ..Permissions::default()
        };
        token(certs, subject, LONG, permissions)
    };
    let mut line = line_client(node, &short("line")).await;
    let quic = quic_client(node, certs, &short("quic")).await;
    let mut gone = line_client(node, &short("gone")).await;

    let renew = |token: &str, id: &str| json!({"cmd": "login", "token": token, "id": id}).to_string();
    line.writer.send(&renew(&mute("quic"), "other")).await;
    line.reader.expect_refused("other", Code::NotAllowed).await;
    line.writer.send(&renew("nonsense", "bad")).await;
    line.reader.expect_refused("bad", Code::NotAllowed).await;
    line.writer.send(&renew(&free_token(certs, "line"), "1")).await;
    line.reader.expect_delivered("1").await;
    for (token, why) in [
        (mute("line"), "another client"),
        ("nonsense".to_owned(), "no JSON Web Token"),
    ] {
        match within("an answer", quic.renew(&token)).await {
            Err(RenewError::Refused(code, text)) => {
                assert!(code == "not-allowed" && text.contains(why), "{code}: {text}");
            }
            other => panic!("{other:?}"),
        }
    }
    within("an answer", quic.renew(&free_token(certs, "quic")))
        .await
        .unwrap();

    // The one that did not is out, and with it everyone whose token was over then.
    gone.reader.expect_error(Code::NotAllowed).await;
    gone.reader.expect_end().await;
    line.say_with_id(quic.address(), "hello", "2").await;
    receive(&quic, &line.address, "hello").await;
    line.reader.expect_delivered("2").await;
    let receipt = quic.send_with_receipt(&line.address, "and you").await.unwrap();
    line.reader.expect_message(quic.address(), "and you").await;
    assert_eq!(within("a receipt", receipt).await, Outcome::Delivered);

    // From now on neither may send.
    line.writer.send(&renew(&mute("line"), "3")).await;
    line.reader.expect_delivered("3").await;
    line.say_with_id(quic.address(), "hello", "4").await;
    line.reader.expect_refused("4", Code::NotAllowed).await;
    within("an answer", quic.renew(&mute("quic"))).await.unwrap();
    let receipt = quic.send_with_receipt(&line.address, "hello").await.unwrap();
    assert_eq!(within("a receipt", receipt).await, Outcome::Refused(Code::NotAllowed));
}

#[tokio::test]
async fn tokens_shown_one_after_the_other_are_answered_in_order_and_too_many_are_no_use() {
    let cluster = cluster(1).await;
    let (certs, addr) = (&cluster.certs, cluster.nodes[0].quic_addr());
    let token = free_token(certs, "bob");
    let (mut client, _) = hello(addr, certs, None, json!({"token": token})).await;
    let lines = |tokens: &[&str]| {
        let lines = tokens.iter().map(|token| login_line(token) + "\n");
        lines.collect::<String>()
    };
    client.write(lines(&[&token, "bad", &token]).as_bytes()).await;
    for refused in [false, true, false] {
        let answer = client.hear().await.expect("an answer");
        assert_eq!(answer["cmd"], "login");
        assert_eq!(answer.get("code").is_some(), refused, "{answer}");
    }
    client.write(lines(&["bad"; 20]).as_bytes()).await;
    assert_eq!(client.closed().await.0, 1);
}

#[tokio::test]
async fn a_session_is_resumed_only_with_a_token_of_the_same_client() {
    let cluster = cluster(1).await;
    let (certs, addr) = (&cluster.certs, cluster.nodes[0].quic_addr());
    let (bob, ann) = (free_token(certs, "bob"), free_token(certs, "ann"));
    let (client, welcome) = hello(addr, certs, None, json!({"token": bob, "resumable": true})).await;
    let secret = welcome["resume"]["token"].clone();
    let resume = |token: Option<&str>| {
        let mut hello = json!({"resumable": true, "resume": {"token": secret, "taken": {"below": 1}}});
        if let Some(token) = token {
            hello["token"] = token.into();
        }
        hello
    };
    for (token, code) in [
        (Some(&ann[..]), "session-gone"),
        (None, "not-allowed"),
        (Some("x.y.z"), "not-allowed"),
    ] {
        let (_, answer) = hello(addr, certs, None, resume(token)).await;
        assert_eq!(answer["code"], code, "{token:?}");
    }
    let expired = sign(certs, &json!({"sub": "bob", "aud": "trunkline", "exp": now() - 10}));
    let (_, answer) = hello(addr, certs, None, resume(Some(&expired))).await;
    assert_eq!(answer["code"], "not-allowed");
    let (_back, answer) = hello(addr, certs, None, resume(Some(&bob))).await;
    assert_eq!(
        (&answer["cmd"], &answer["address"]),
        (&json!("welcome"), &welcome["address"])
    );
    // The earlier connection served until then.
    assert_eq!(client.closed().await.0, 2);
}

#[tokio::test]
async fn a_client_that_comes_back_shows_the_token_that_it_has_renewed() {
    let cluster = cluster(1).await;
    let (certs, node) = (&cluster.certs, &cluster.nodes[0]);
    let wire = crate::support::Relay::cut_to(node.quic_addr(), 0.0).await;
    wire.mend();
    let short = token(certs, "bob", Duration::from_secs(1), Permissions::default());
    let mut witness = line_client(
        node,
        &token(certs, "witness", Duration::from_secs(1), Permissions::default()),
    )
    .await;
    let addr = wire.addr().into();
    let connecting = Client::connect_with(&addr, certs.dir(), Options::new().token(&short));
    let client = within("a QUIC client connects", connecting).await.unwrap();
    within("an answer", client.renew(&free_token(certs, "bob")))
        .await
        .unwrap();
    witness.reader.expect_error(Code::NotAllowed).await;
    let mut peer = line_client(node, &free_token(certs, "ann")).await;
    wire.end_connections();
    let receipt = client.send_with_receipt(&peer.address, "I am back").await.unwrap();
    peer.reader.expect_message(client.address(), "I am back").await;
    assert_eq!(within("a receipt", receipt).await, Outcome::Delivered);
}

#[tokio::test]
async fn an_id_granted_by_token_is_the_same_after_a_reconnect_and_a_restart() {
    let certs = Certs::with_token_key(2);
    let rule = ["--clients", "token"].map(str::to_owned);
    let carrier = Carrier::of_environment().await;
    let mut there = NodeCommand::new(&certs, 1);
    there.extra = rule.to_vec();
    carrier.join_process(&mut there, &[]);
    let mut there = there.start().await;
    let mut command = NodeCommand::new(&certs, 0);
    command.extra = rule.to_vec();
    carrier.join_process(&mut command, &[there.peer()]);
    let mut node = command.start().await;
    node.process.stderr.until("link up").await;
    there.process.stderr.until("link up").await;
    let bobs = free_token(&certs, "bob");
    let (_, _ann, mut to_ann) = answer(there.tcp(), &login_line(&free_token(&certs, "ann"))).await;
    let message = |body: &str| json!({"cmd": "sendMsg", "to": bob().to_string(), "body": body}).to_string();
    for (body, restart) in [
        ("first", false),
        ("after a reconnect", false),
        ("after a restart", true),
    ] {
        if restart {
            let command = node.command.clone();
            node.process.kill();
            node = command.start().await;
            node.process.stderr.until("link up").await;
            // What is sent by the other node's old connection, before it has heard of the new one, is unknown.
            there.process.stderr.until("link up").await;
        }
        let (greeting, mut reader, _writer) = answer(node.tcp(), &login_line(&bobs)).await;
        assert_eq!(greeting, format!("you is  : {}", bob()));
        to_ann.send(&message(body)).await;
        let ann: Address = format!("{}:ann", name(1)).parse().unwrap();
        reader.expect_message(&ann, body).await;
    }
}

#[tokio::test]
async fn of_two_with_one_name_the_last_one_has_it_whatever_they_come_by() {
    let cluster = cluster(1).await;
    let (certs, node) = (&cluster.certs, &cluster.nodes[0]);
    let token = free_token(certs, "bob");
    let mut first = line_client(node, &token).await;
    let mut second = line_client(node, &token).await;
    first.reader.expect_end().await;
    second.expect_nothing_else().await;
    let third = quic_client(node, certs, &token).await;
    second.reader.expect_end().await;
    assert_eq!(third.address(), &bob());
    let mut fourth = line_client(node, &token).await;
    assert_eq!(within("the end", third.receive()).await, None);
    fourth.expect_nothing_else().await;
    assert_eq!(node.clients(), 1);
}

#[tokio::test]
async fn either_a_certificate_or_a_token_will_do() {
    let certs = Certs::with_token_key(1);
    let mut config = node_config(&certs, 0);
    config.clients = ClientRule::CertificateOrToken;
    let node = Node::start(config).await.unwrap();
    let guest = "guest".parse().unwrap();
    let addr = node.quic_addr().into();
    let connecting = Client::connect_with(&addr, certs.dir(), Options::new().name(guest));
    let by_certificate = within("a QUIC client connects", connecting).await.unwrap();
    let mut by_token = line_client(&node, &free_token(&certs, "bob")).await;
    let guest = by_certificate.address().clone();
    assert_eq!(guest.id.as_str(), "guest");
    by_token.say(&guest, "hello").await;
    receive(&by_certificate, &by_token.address, "hello").await;

    let both = |subject: &str| json!({"token": free_token(&certs, subject)});
    let (_, answer) = hello(node.quic_addr(), &certs, Some("client-guest"), both("bob")).await;
    assert_eq!(answer["code"], "not-allowed");
    let (_, answer) = hello(node.quic_addr(), &certs, Some("client-guest"), both("guest")).await;
    assert_eq!(answer["address"], guest.to_string());
    let (_, answer) = hello(node.quic_addr(), &certs, None, json!({})).await;
    assert_eq!(answer["code"], "not-allowed");
}

#[tokio::test]
async fn a_node_that_takes_no_tokens_says_so() {
    let certs = Certs::with_token_key(1);
    let node = Node::start(node_config(&certs, 0)).await.unwrap();
    let token = free_token(&certs, "bob");
    let (_, answer) = hello(node.quic_addr(), &certs, None, json!({"token": token})).await;
    assert_eq!(answer["code"], "not-allowed");
    let mut line = LineClient::connect(node.tcp_addr()).await;
    line.writer.send(&login_line(&token)).await;
    let text = line.reader.expect_error(Code::NotAllowed).await;
    assert!(text.contains("takes no tokens"), "{text}");
    line.expect_nothing_else().await;
    connect_quic(node.quic_addr(), &certs).await.close().await;
}

/// An address of this machine by which others could reach it.
fn outer_address() -> Option<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent by this.
    socket.connect("192.0.2.1:9").ok()?;
    let addr = socket.local_addr().unwrap();
    (!addr.ip().is_loopback() && !addr.ip().is_unspecified()).then_some(addr)
}

#[tokio::test]
async fn legacy_clients_come_from_the_networks_that_are_named() {
    let Some(outer) = outer_address() else {
        println!("this machine has no address but loopback: nothing to try");
        return;
    };
    let certs = Certs::make(1);
    for (networks, let_in) in [
        (vec!["198.51.100.0/24".to_owned()], false),
        (vec![outer.ip().to_string()], true),
    ] {
        let mut config = node_config(&certs, 0);
        let port = own_port().port();
        config.tcp = Some(SocketAddr::from(([0, 0, 0, 0], port)).into());
        config.tcp_allow = networks.iter().map(|network| network.parse().unwrap()).collect();
        let node = Node::start(config).await.unwrap();
        LineClient::connect(SocketAddr::from(([127, 0, 0, 1], port))).await;
        let (mut reader, _writer) = LineReader::connect(SocketAddr::new(outer.ip(), port)).await;
        assert_eq!(reader.next().await.is_some(), let_in);
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_node_does_not_start_open_to_other_machines_unless_it_is_told_to() {
    let certs = Certs::with_token_key(1);
    let any = "0.0.0.0:0";
    let loopback = "127.0.0.1:0";
    let rows: &[(&[&str], Option<&str>)] = &[
        (&["--tcp", loopback, "--quic", loopback], None),
        (&["--tcp", loopback, "--quic", any], Some("--insecure-open")),
        (&["--tcp", "off", "--quic", any], Some("--clients token")),
        (&["--tcp", any, "--quic", loopback], Some("--tcp-allow")),
        (&["--tcp", any], Some("--tcp-allow")),
        (&["--tcp", "[::]:0", "--quic", loopback], Some("--tcp-allow")),
        (&["--tcp", any, "--quic", any, "--insecure-open"], None),
        (&["--tcp", any, "--quic", loopback, "--tcp-allow", "10.0.0.0/8"], None),
        (
            &["--tcp", any, "--quic", any, "--tcp-allow", "10.0.0.0/8"],
            Some("--insecure-open"),
        ),
        (
            &["--tcp", any, "--quic", any, "--clients", "token"],
            Some("--tcp-allow"),
        ),
        (&["--tcp", "off", "--quic", any, "--clients", "token"], None),
        (&["--tcp", loopback, "--quic", any, "--clients", "token"], None),
        (
            &[
                "--tcp",
                any,
                "--quic",
                any,
                "--clients",
                "token",
                "--tcp-allow",
                "10.0.0.1",
            ],
            None,
        ),
        (
            &["--tcp", loopback, "--quic", loopback, "--clients", "certificate"],
            Some("--tcp off"),
        ),
        (
            &[
                "--tcp",
                loopback,
                "--quic",
                loopback,
                "--clients",
                "certificate",
                "--insecure-open",
            ],
            Some("--tcp off"),
        ),
        (&["--tcp", "off", "--quic", any, "--clients", "certificate"], None),
        (
            &["--tcp", loopback, "--quic", any, "--clients", "token,certificate"],
            None,
        ),
        (
            &["--tcp", "off", "--quic", loopback, "--tcp-allow", "10.0.0.0/8"],
            Some("--tcp-allow"),
        ),
    ];
    for (flags, wrong) in rows {
        let (advertise, dir) = (name(0).to_string(), certs.dir().display().to_string());
        let mut args = vec!["node", "--link", loopback, "--advertise", &advertise, "--certs", &dir];
        args.extend(*flags);
        let mut process = Process::trunkline(&args);
        match wrong {
            None => {
                process.stderr.until("node up").await;
                process.signal("TERM");
                assert_eq!(process.ended().await.code, Some(0), "{flags:?}");
            }
            Some(wrong) => {
                let ended = process.ended().await;
                assert_eq!(ended.code, Some(64), "{flags:?}: {}", ended.stderr);
                assert!(ended.stderr.contains(wrong), "{flags:?}: {}", ended.stderr);
            }
        }
    }
    let certs = Certs::make(1);
    let mut command = NodeCommand::new(&certs, 0);
    command.extra = ["--clients", "token"].map(str::to_owned).to_vec();
    let ended = Process::trunkline(&command.args()).ended().await;
    assert_eq!(ended.code, Some(64), "{}", ended.stderr);
    assert!(ended.stderr.contains("trunkline token"), "{}", ended.stderr);
}

#[tokio::test]
async fn without_tcp_a_node_is_known_by_its_quic_address() {
    let certs = Certs::make(0);
    let quic = own_port();
    trunkline::certs::make(certs.dir(), &[quic.into()], trunkline::certs::DEFAULT_CLUSTER).unwrap();
    let config = Config {
        tcp: None,
        quic: Some(quic.into()),
        link: Some(own_port().into()),
        certs: certs.dir().to_owned(),
        ..Config::default()
    };
    let node = Node::start(config).await.unwrap();
    assert_eq!((node.name(), node.tcp_addr()), (&quic.into(), None));
    let client = connect_quic(quic, &certs).await;
    assert_eq!(client.address().node, quic.into());
}

#[tokio::test]
async fn no_token_is_ever_logged() {
    let certs = Certs::with_token_key(1);
    let mut command = NodeCommand::new(&certs, 0);
    command.extra = ["--clients", "token", "--log", "trace"].map(str::to_owned).to_vec();
    let mut node = command.start().await;
    let (quic, tcp) = (node.quic(), node.tcp());
    let good = free_token(&certs, "bob");
    let expired = sign(&certs, &json!({"sub": "bob", "aud": "trunkline", "exp": now() - 10}));
    for token in [&good, &expired] {
        let (line, _reader, mut writer) = answer(tcp, &login_line(token)).await;
        if line.starts_with("you is") {
            writer.send(&login_line(&expired)).await;
        }
        let (mut client, welcome) = hello(quic, &certs, None, json!({"token": token})).await;
        if welcome["cmd"] == "welcome" {
            client.say(&json!({"cmd": "login", "token": expired})).await;
            assert_eq!(client.hear().await.unwrap()["code"], "not-allowed");
        }
    }
    node.process.signal("TERM");
    let log = node.process.stderr.rest().await;
    assert!(log.contains("refused a login"), "the log says nothing of logins");
    for token in [&good, &expired] {
        for part in token.split('.').skip(1) {
            assert!(!log.contains(part), "the log has {part}");
        }
    }
}

#[tokio::test]
async fn tokens_are_made_shown_and_used_by_the_commands() {
    let certs = Certs::make(1);
    let dir = certs.dir().display().to_string();
    let run = async |args: &[&str], stdin: &str| {
        let mut process = Process::trunkline(&[args, &["--certs", &dir]].concat());
        process.write(stdin);
        process.ended().await
    };
    let made = run(
        &["token", "--expires", "12h", "--send", "*:*:ann", "--no-receive", "bob"],
        "",
    )
    .await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    assert!(
        made.stderr.contains("token.key") && made.stderr.contains("token.pem"),
        "{}",
        made.stderr
    );
    let bobs = made.stdout;
    let made = run(&["token", "--expires", "30d", "ann"], "").await;
    assert_eq!((made.code, &made.stderr[..]), (Some(0), ""));
    let anns = made.stdout;

    let shown = run(&["token", "--show"], &bobs).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stdout);
    for part in ["\"sub\": \"bob\"", "*:*:ann", "\"receive\": false", "accepted"] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    let shown = run(&["token", "--show", "--cluster", "other"], &bobs).await;
    assert_eq!(shown.code, Some(1));
    assert!(
        shown.stdout.contains("not accepted: it is not for this cluster"),
        "{}",
        shown.stdout
    );
    for (args, wrong) in [
        (&["token", "bob"][..], "--expires"),
        (&["token", "--expires", "soon", "bob"], "--expires"),
        (&["token", "--expires", "1h"], "SUBJECT"),
        (&["token", "--expires", "1h", "--send", "bob", "bob"], "--send"),
        (&["token", "--show", "bob"], "--show"),
    ] {
        let ended = run(args, "").await;
        assert_eq!(ended.code, Some(64), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(wrong), "{args:?}: {}", ended.stderr);
    }
    let ended = run(&["token", "--expires", "1h", "123456"], "").await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);

    let mut config = node_config(&certs, 0);
    asks_for_tokens(&mut config);
    let node = Node::start(config).await.unwrap();
    let quic = node.quic_addr().to_string();
    let file: PathBuf = certs.dir().join("bobs.token");
    std::fs::write(&file, &bobs).unwrap();
    let at = ["--node", &quic, "--certs", &dir];
    let listen = [&["listen"][..], &at].concat();
    let mut listening = Process::trunkline_with(&listen, &[("TRUNKLINE_TOKEN", &anns)]);
    let ann = listening.stdout.line().await;
    let ann = ann.strip_prefix("you is  : ").unwrap();
    assert_eq!(ann, format!("{}:ann", name(0)));
    let file = file.display().to_string();
    let send = [&["send"][..], &at, &["--to", ann]].concat();
    for (more, stdin, body) in [
        (&["--token", &file[..], "by file"][..], "", "by file"),
        (&["--token", "-", "by stdin"], &bobs, "by stdin"),
        (&["--token", "-"], &format!("{bobs}\nboth by stdin"), "both by stdin"),
    ] {
        let mut sending = Process::trunkline(&[&send[..], more].concat());
        sending.write(stdin);
        let ended = sending.ended().await;
        assert_eq!(ended.code, Some(0), "{more:?}: {}", ended.stderr);
        assert_eq!(listening.stdout.line().await, format!("{} say : {body}", bob()));
    }
    let ended = Process::trunkline(&[&send[..], &["hello"]].concat()).ended().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("--token"), "{}", ended.stderr);
    std::fs::remove_file(certs.dir().join("token.pem")).unwrap();
    let ended = listening.ended().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("expired or is not accepted"), "{}", ended.stderr);
}
