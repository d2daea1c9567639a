//! The commands, as a person or a script runs them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use trunkline::Address;
use trunkline::client::Event;
use trunkline_lab::wire::Settings;

use crate::support::{Carrier, Certs, Cluster, LineClient, NodeCommand, Process, RawQuic, Relay, within};

/// A command of a client, with its node and certificates.
fn command(command: &str, node: SocketAddr, certs: &Certs, more: &[&str]) -> Process {
    let (node, certs) = (node.to_string(), certs.dir().display().to_string());
    let mut args = vec![command, "--node", &node, "--certs", &certs];
    args.extend(more);
    Process::trunkline(&args)
}

fn send(cluster: &Cluster, more: &[&str]) -> Process {
    command("send", cluster.nodes[0].quic_addr(), &cluster.certs, more)
}

#[tokio::test]
async fn send_says_by_its_exit_code_what_became_of_the_message() {
    let cluster = Cluster::start(2).await;
    for node in 0..2 {
        let mut recipient = cluster.line(node).await;
        let ended = send(&cluster, &["--to", &recipient.address.to_string(), "hello you"])
            .ended()
            .await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        assert!(recipient.reader.line().await.ends_with(" say : hello you"));
    }
    for (to, code) in [
        ("127.0.0.1:1:nobody", "no-such-client"),
        ("127.0.0.1:2:nobody", "no-such-client"),
        ("127.0.0.1:9:nobody", "no-such-node"),
    ] {
        let ended = send(&cluster, &["--to", to, "hello?"]).ended().await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains(code), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn send_takes_the_body_from_stdin() {
    let cluster = Cluster::start(1).await;
    let recipient = cluster.quic(0).await;
    let to = recipient.address().to_string();
    for args in [&["--to", &to, "-"][..], &["--to", &to]] {
        let mut sending = send(&cluster, args);
        sending.write(b"two\nlines\n\0\xff");
        sending.end_stdin();
        match within("the message", recipient.receive()).await {
            Some(Event::Message(message)) => assert_eq!(message.body, &b"two\nlines\n\0\xff"[..]),
            event => panic!("{event:?}"),
        }
        assert_eq!(sending.ended().await.code, Some(0));
    }
}

#[tokio::test]
async fn send_exits_with_2_when_nobody_knows() {
    let certs = Certs::make(2);
    let carrier = Carrier::of_environment().await;
    let mut victim = NodeCommand::new(&certs, 1);
    carrier.join_process(&mut victim, &[]);
    let mut victim = victim.start().await;
    let mut node = NodeCommand::new(&certs, 0);
    carrier.join_process(&mut node, &[victim.peer()]);
    let mut node = node.start().await;
    node.process.stderr.until("link up").await;
    // It has the message, and says nothing of it.
    let (recipient, address) = RawQuic::join(victim.quic(), &certs).await;
    let sending = command("send", node.quic(), &certs, &["--to", &address.to_string(), "hello?"]);
    assert!(recipient.message().await.ends_with(b"\nhello?"));
    victim.process.kill();
    let _victim = victim.command.clone().start().await;
    let ended = sending.ended().await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("node-restarted"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_node_that_is_not_there_or_not_trusted_is_an_error() {
    let cluster = Cluster::start(1).await;
    let others = Certs::make(1);
    let to = "127.0.0.1:1:nobody";
    let addr = cluster.nodes[0].quic_addr();
    let ended = command("send", addr, &others, &["--to", to, "x"]).ended().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(&addr.to_string()), "{}", ended.stderr);

    let nowhere = tempfile::tempdir().unwrap();
    let missing = nowhere.path().join("missing").display().to_string();
    let ended = Process::trunkline(&[
        "send",
        "--node",
        &addr.to_string(),
        "--certs",
        &missing,
        "--to",
        to,
        "x",
    ])
    .ended()
    .await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("node-ca.pem"), "{}", ended.stderr);
}

#[tokio::test]
async fn listen_prints_what_comes_in() {
    let cluster = Cluster::start(2).await;
    let mut sender = cluster.line(1).await;
    let mut listening = command("listen", cluster.nodes[0].quic_addr(), &cluster.certs, &[]);
    let greeting = listening.stdout.line().await;
    let address: Address = greeting.strip_prefix("you is  : ").unwrap().parse().unwrap();
    for body in ["hello", "you"] {
        sender.say_with_id(&address, body, body).await;
        assert_eq!(
            listening.stdout.line().await,
            format!("{} say : {body}", sender.address)
        );
        sender.reader.expect_delivered(body).await;
    }
    sender.say(&address, "two\r\nlines\u{1b}[2J").await;
    assert_eq!(
        listening.stdout.line().await,
        format!(r"{} say : two\r\nlines\u001b[2J", sender.address)
    );
    listening.signal("INT");
    assert_eq!(listening.ended().await.code, Some(0));
}

#[tokio::test]
async fn listen_prints_json_and_says_when_the_node_is_gone() {
    let mut cluster = Cluster::start(1).await;
    let mut sender = cluster.line(0).await;
    let mut listening = command("listen", cluster.nodes[0].quic_addr(), &cluster.certs, &["--json"]);
    let welcome: serde_json::Value = serde_json::from_str(&listening.stdout.line().await).unwrap();
    assert_eq!(welcome["cmd"], "welcome");
    let address: Address = welcome["address"].as_str().unwrap().parse().unwrap();
    sender.say(&address, "two\r\nlines\u{1b}[2J").await;
    let message: serde_json::Value = serde_json::from_str(&listening.stdout.line().await).unwrap();
    assert_eq!(
        message,
        json!({
            "cmd": "message",
            "from": sender.address.to_string(),
            "to": address.to_string(),
            "body": "two\r\nlines\u{1b}[2J",
        })
    );
    assert!(cluster.nodes.remove(0).shutdown().await);
    let ended = listening.ended().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("the node is gone"), "{}", ended.stderr);
}

#[tokio::test]
async fn chat_with_lines_from_a_pipe() {
    let cluster = Cluster::start(2).await;
    let mut friend = cluster.line(1).await;
    let mut chat = command("chat", cluster.nodes[0].quic_addr(), &cluster.certs, &[]);
    let greeting = chat.stdout.line().await;
    let address: Address = greeting.strip_prefix("you is  : ").unwrap().parse().unwrap();

    // Without --to it writes to whoever wrote first.
    friend.say(&address, "hello").await;
    assert_eq!(chat.stdout.line().await, format!("{} say : hello", friend.address));
    chat.stdout.until("you write to ").await;
    chat.write("how are you?\n");
    friend.reader.expect_message(&address, "how are you?").await;
    assert_eq!(chat.stdout.line().await, "delivered : how are you?");

    chat.write("/to 127.0.0.1:2:nobody\nanyone?\n");
    chat.stdout.until("you write to 127.0.0.1:2:nobody").await;
    let refused = chat.stdout.line().await;
    assert!(
        refused.starts_with("refused : no-such-client : ") && refused.ends_with(" : anyone?"),
        "{refused}"
    );
    chat.write("/to nowhere\n");
    chat.stdout.until("nowhere: ").await;
    chat.write("/what\n");
    chat.stdout.until("/to ADDRESS").await;

    // What was typed before the end is sent and answered; no colours in a pipe.
    chat.write(format!("/to {}\n//slash\nlast", friend.address));
    let ended = chat.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    friend.reader.expect_message(&address, "/slash").await;
    friend.reader.expect_message(&address, "last").await;
    assert!(
        ended.stdout.ends_with("delivered : /slash\ndelivered : last"),
        "{}",
        ended.stdout
    );
    assert!(!ended.stdout.contains('\u{1b}'));
}

#[tokio::test]
async fn chat_sends_a_whole_file() {
    let cluster = Cluster::start(2).await;
    let mut friend = LineClient::connect(cluster.nodes[1].tcp_addr()).await;
    let to = friend.address.to_string();
    let mut chat = command("chat", cluster.nodes[0].quic_addr(), &cluster.certs, &["--to", &to]);
    let lines: String = (0..3000).map(|number| format!("line {number}\n")).collect();
    chat.write(lines);
    chat.write("/quit\n");
    let ended = chat.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout.matches("delivered : ").count(), 3000);
    let address = ended
        .stdout
        .lines()
        .next()
        .unwrap()
        .strip_prefix("you is  : ")
        .unwrap()
        .parse()
        .unwrap();
    for number in 0..3000 {
        friend.reader.expect_message(&address, &format!("line {number}")).await;
    }
}

/// The files of a directory, with their bytes and modes.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            (path.clone(), (std::fs::read(path).unwrap(), mode))
        })
        .collect()
}

#[tokio::test]
async fn certs_are_revoked_and_lists_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_str().unwrap();
    let run = async |more: &[&str]| {
        let args = [&["certs", "--certs", place], more].concat();
        Process::trunkline(&args).ended().await
    };
    assert_eq!(run(&["--client", "bob", "127.0.0.1:1215"]).await.code, Some(0));
    let nothing = run(&["--renew-lists"]).await;
    assert!(nothing.stdout.contains("nothing to renew"), "{}", nothing.stdout);
    let list = dir.path().join("client-ca.crl").display().to_string();
    let bob = dir.path().join("client-bob.pem").display().to_string();
    assert_eq!(run(&["--revoke", &bob]).await.stdout, list);
    assert_eq!(run(&["--renew-lists"]).await.stdout, list);
    let missing = run(&["--revoke", "nothing.pem"]).await;
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("can't read nothing.pem"), "{}", missing.stderr);
}

#[tokio::test]
async fn certs_run_twice_adds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("certs");
    let args = ["certs", "--certs", place.to_str().unwrap(), "--client", "guest"];
    let ended = Process::trunkline(&args).ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let first = files(&place);
    // Two authorities, three nodes, one client; a certificate and a key each.
    assert_eq!(first.len(), 12);
    assert_eq!(ended.stdout.lines().count(), 12);
    for (path, (_, mode)) in &first {
        let expected = if path.extension().unwrap() == "key" {
            0o600
        } else {
            0o644
        };
        assert_eq!(*mode, expected, "{}", path.display());
    }
    let ended = Process::trunkline(&args).ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("nothing to add"), "{}", ended.stdout);
    assert_eq!(files(&place), first);
}

#[tokio::test]
async fn two_chats_that_are_fed_at_once_do_not_wait_for_each_other() {
    /// More than one may have under way to the other.
    const LINES: usize = 1500;
    let cluster = Cluster::start(2).await;
    let (mut wires, mut chats) = (Vec::new(), Vec::new());
    for node in &cluster.nodes {
        // So long that both have sent all they may before anything comes.
        let delay = Settings {
            delay: Duration::from_millis(50),
            ..Settings::default()
        };
        let wire = Relay::bad_to(node.quic_addr(), &delay).await;
        let mut chat = command("chat", wire.addr(), &cluster.certs, &[]);
        wires.push(wire);
        let greeting = chat.stdout.line().await;
        chats.push((chat, greeting.strip_prefix("you is  : ").unwrap().to_owned()));
    }
    let addresses = [chats[1].1.clone(), chats[0].1.clone()];
    let talks = chats.into_iter().zip(addresses).map(|((mut chat, _), to)| async move {
        let lines: String = (0..LINES)
            .map(|number| format!("{number} {}\n", ".".repeat(1000)))
            .collect();
        // It takes no more at some point, and then the pipe does not.
        let feeding = tokio::task::spawn_blocking(move || {
            chat.write(format!("/to {to}\n{lines}"));
            chat
        });
        let mut chat = feeding.await.unwrap();
        let (mut delivered, mut heard) = (0, 0);
        while delivered < LINES || heard < LINES {
            let line = chat.stdout.line().await;
            delivered += usize::from(line.starts_with("delivered : "));
            heard += usize::from(line.contains(" say : "));
        }
        // Still there for the other's last answers.
        chat
    });
    drop(join_all(talks).await);
}
