//! A node that dies without a word: `kill -9`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;
use trunkline::{Address, Node};

use crate::support::{
    Carrier, Certs, DEADLINE, LineClient, LineReader, LineWriter, NodeCommand, NodeProcess, RawQuic, linked,
    message_line_with_id, name, node_config, peer, within,
};

/// How soon after the node is up again its link must be.
const LINKED_WITHIN: Duration = Duration::from_secs(2);

/// Which node names the other, and which is there first where none has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialler {
    Survivor,
    Victim,
}

/// A node that lives on, in this process, and one that is to be killed.
struct Pair {
    certs: Certs,
    survivor: Node,
    victim: NodeProcess,
}

impl Pair {
    async fn start(dialler: Dialler, link_wait: Duration) -> Self {
        let certs = Certs::make(2);
        let mut config = node_config(&certs, 0);
        config.limits.link_wait = link_wait;
        let mut command = NodeCommand::new(&certs, 1);
        let carrier = Carrier::of_environment().await;
        let (survivor, victim) = match dialler {
            Dialler::Survivor => {
                carrier.join_process(&mut command, &[]);
                let victim = command.start().await;
                carrier.join(&mut config, vec![victim.peer()]);
                (Node::start(config).await.unwrap(), victim)
            }
            Dialler::Victim => {
                carrier.join(&mut config, Vec::new());
                let survivor = Node::start(config).await.unwrap();
                carrier.join_process(&mut command, &[peer(&survivor)]);
                (survivor, command.start().await)
            }
        };
        linked(&survivor, 1).await;
        Self {
            certs,
            survivor,
            victim,
        }
    }
}

/// How each message ended, by its id: status and code. Fails for one that is answered twice.
type Answers = HashMap<String, (String, Option<String>)>;

async fn answers(reader: &mut LineReader, until: impl Fn(&Answers) -> bool) -> Answers {
    let mut answers = Answers::new();
    while !until(&answers) {
        let receipt = reader.json().await;
        let text = |key: &str| receipt.get(key).and_then(Value::as_str).map(str::to_owned);
        assert_eq!(text("cmd").as_deref(), Some("receipt"));
        let id = text("id").unwrap();
        let twice = answers.insert(id.clone(), (text("status").unwrap(), text("code")));
        assert_eq!(twice, None, "message {id} was answered twice");
    }
    answers
}

/// Reads messages up to the end of the connection; gives their bodies.
async fn bodies(mut reader: LineReader, from: Address) -> Vec<String> {
    let start = format!("{from} say : ");
    let mut bodies = Vec::new();
    // The last line may have been cut off by the death of its writer.
    while let Some(line) = reader.raw_line().await.filter(|line| line.ends_with(b"\r\n")) {
        let line = String::from_utf8(line).unwrap();
        let body = line.strip_prefix(&start).unwrap_or_else(|| panic!("{line:?}"));
        bodies.push(body.trim_end().to_owned());
    }
    bodies
}

/// What was said to the victim's clients until it died, and what is told of it afterwards.
struct Flow {
    sender: LineClient,
    /// How many messages were sent to a legacy client, with the ids 0, 1 and so on.
    sent: usize,
    /// What that client saw.
    seen: Vec<String>,
}

/// Kills the victim while messages flow to it. One more, with the id `held`, is certain to be under way then: its
/// recipient has it, and does not say so.
async fn kill_while_messages_flow(pair: &mut Pair) -> Flow {
    let LineClient {
        address: from,
        mut reader,
        mut writer,
    } = LineClient::connect(pair.survivor.tcp_addr()).await;
    let recipient = LineClient::connect(pair.victim.tcp()).await;
    let to = recipient.address.clone();
    let mut reading = JoinSet::new();
    reading.spawn(bodies(recipient.reader, from.clone()));

    let (silent, silent_address) = RawQuic::join(pair.victim.quic(), &pair.certs).await;
    writer
        .send(&message_line_with_id(&silent_address, "held", "held"))
        .await;
    assert!(silent.message().await.ends_with(b"\nheld"));

    let mut sent = 0;
    send(&mut writer, &to, &mut sent, 1000).await;
    // Some have arrived and been answered; more follow, and meanwhile it dies.
    let before = answers(&mut reader, |answers| answers.len() == 300).await;
    assert!(before.values().all(|(status, _)| status == "delivered"));
    send(&mut writer, &to, &mut sent, 300).await;
    pair.victim.process.kill();
    send(&mut writer, &to, &mut sent, 300).await;

    let seen = within("the recipient's end", reading.join_next())
        .await
        .unwrap()
        .unwrap();
    // What was answered before is put back by counting on from there.
    Flow {
        sender: LineClient {
            address: from,
            reader,
            writer,
        },
        sent,
        seen,
    }
    .without(&before)
}

async fn send(writer: &mut LineWriter, to: &Address, sent: &mut usize, count: usize) {
    for _ in 0..count {
        let id = sent.to_string();
        writer.send(&message_line_with_id(to, &id, &id)).await;
        *sent += 1;
    }
}

impl Flow {
    /// Takes out what was answered already, which must be the first messages.
    fn without(mut self, answered: &Answers) -> Self {
        for number in 0..answered.len() {
            assert!(answered.contains_key(&number.to_string()));
        }
        assert!(self.seen.len() >= answered.len(), "delivered messages were not seen");
        let rest = self.seen.split_off(answered.len());
        for (number, body) in self.seen.iter().enumerate() {
            assert_eq!(*body, number.to_string());
        }
        self.seen = rest;
        self.sent -= answered.len();
        self
    }

    /// Every message must be answered, once, and the answer be true. Ends may have these codes.
    async fn check(&mut self, codes: &[&str], unknown: &str) {
        let expected = self.sent + 1;
        let mut answers = answers(&mut self.sender.reader, |answers| answers.len() == expected).await;
        assert_eq!(
            answers.remove("held"),
            Some(("unknown".to_owned(), Some(unknown.to_owned())))
        );
        for (id, (status, code)) in &answers {
            let seen = self.seen.contains(id);
            match status.as_str() {
                "delivered" => assert!(seen, "{id} is said to be delivered, and was not seen"),
                "refused" => assert!(!seen, "{id} is said to be refused, and was seen"),
                _ => assert_eq!(code.as_deref(), Some(unknown), "{id}"),
            }
            if let Some(code) = code {
                assert!(codes.contains(&code.as_str()), "{id}: {status} {code}");
            }
        }
        let numbers: Vec<usize> = self.seen.iter().map(|body| body.parse().unwrap()).collect();
        assert!(
            numbers.windows(2).all(|pair| pair[0] < pair[1]),
            "out of order: {numbers:?}"
        );
        self.sender.expect_nothing_else().await;
    }
}

async fn restarted(dialler: Dialler, downtime: Duration) {
    let mut pair = Pair::start(dialler, Duration::from_secs(60)).await;
    let mut flow = kill_while_messages_flow(&mut pair).await;
    // This is what is tested: a time in which there is no node.
    sleep(downtime).await;
    let victim = pair.victim.command.clone().start().await;

    let mut newcomer = LineClient::connect(victim.tcp()).await;
    let sender = &mut LineClient::connect(pair.survivor.tcp_addr()).await;
    let mut tries = 0;
    loop {
        tries += 1;
        sender.say_with_id(&newcomer.address, "welcome back", "1").await;
        let receipt = sender.reader.json().await;
        if receipt["status"] == "delivered" {
            break;
        }
        // Until the link has found the new process, what is sent may still be meant for the one that is gone.
        let code = receipt["code"].as_str();
        assert!(matches!(code, Some("node-restarted" | "no-such-client")), "{receipt}");
        assert!(victim.up.elapsed() < DEADLINE, "no message gets through");
    }
    let took = victim.up.elapsed();
    println!("{dialler:?} dials, down for {downtime:?}: linked again after {took:?}, at try {tries}");
    assert!(took < LINKED_WITHIN, "linked again only after {took:?}");
    assert_eq!(pair.survivor.linked(), [name(1)]);
    newcomer.reader.expect_message(&sender.address, "welcome back").await;
    newcomer.say(&sender.address, "thank you").await;
    sender.reader.expect_message(&newcomer.address, "thank you").await;

    flow.check(
        &["node-restarted", "no-such-client", "recipient-gone"],
        "node-restarted",
    )
    .await;
    newcomer.expect_nothing_else().await;
}

#[tokio::test]
async fn restarted_at_once_dialled_by_the_survivor() {
    restarted(Dialler::Survivor, Duration::ZERO).await;
}

#[tokio::test]
async fn restarted_at_once_dialling_the_survivor() {
    restarted(Dialler::Victim, Duration::ZERO).await;
}

#[tokio::test]
async fn restarted_after_a_while_dialled_by_the_survivor() {
    restarted(Dialler::Survivor, Duration::from_secs(4)).await;
}

#[tokio::test]
async fn restarted_after_a_while_dialling_the_survivor() {
    restarted(Dialler::Victim, Duration::from_secs(4)).await;
}

#[tokio::test]
async fn not_restarted_senders_are_told_when_link_wait_ends() {
    const WAIT: Duration = Duration::from_secs(2);
    for dialler in [Dialler::Survivor, Dialler::Victim] {
        let mut pair = Pair::start(dialler, WAIT).await;
        let mut flow = kill_while_messages_flow(&mut pair).await;
        let killed = Instant::now();
        flow.check(
            &["node-unreachable", "recipient-gone", "no-such-client"],
            "node-unreachable",
        )
        .await;
        let took = killed.elapsed();
        println!("{dialler:?} dials: all was answered after {took:?}");
        assert!(took < WAIT + Duration::from_secs(2), "answered only after {took:?}");
        assert!(pair.survivor.linked().is_empty());
    }
}
