//! Many conversations at full speed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;
use trunkline::Address;

use crate::support::{Cluster, LineClient, LineWriter, message_line};

const PAIRS: usize = 16;
const MESSAGES: usize = 20_000;
const BODY: usize = 128;

/// How long all of it may take: a debug build on a busy machine.
const ALL_WITHIN: Duration = Duration::from_secs(240);

fn body(pair: usize, number: usize) -> String {
    let mut body = format!("{pair}/{number} ");
    body.extend(std::iter::repeat_n('.', BODY - body.len()));
    body
}

async fn write_all(mut writer: LineWriter, pair: usize, to: Address) {
    let mut chunk = String::new();
    for number in 0..MESSAGES {
        chunk += &message_line(&to, &body(pair, number));
        chunk.push('\n');
        if chunk.len() >= 32 * 1024 || number == MESSAGES - 1 {
            assert!(writer.write_while_taken(chunk.as_bytes()).await, "pair {pair}");
            chunk.clear();
        }
    }
}

async fn read_all(mut recipient: LineClient, pair: usize, from: Address) {
    for number in 0..MESSAGES {
        let line = recipient.reader.raw_line().await.unwrap();
        let expected = format!("{from} say : {}\r\n", body(pair, number));
        assert!(
            line == expected.as_bytes(),
            "pair {pair}, message {number}: {:?}",
            String::from_utf8_lossy(&line)
        );
    }
    recipient.expect_nothing_else().await;
}

/// Writes to a client that never reads, for as long as its node takes more.
async fn stuff(mut writer: LineWriter, to: Address, over: Arc<AtomicBool>) {
    let line = message_line(&to, &"x".repeat(4096)) + "\n";
    while !over.load(Ordering::Relaxed) && writer.write_while_taken(line.as_bytes()).await {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_arrive_in_order_while_a_slow_reader_stalls_nobody() {
    let cluster = Cluster::start_with(2, |config| config.limits.stall = ALL_WITHIN).await;
    let started = Instant::now();
    let mut slow = Vec::new();
    let mut stuffing = JoinSet::new();
    let over = Arc::new(AtomicBool::new(false));
    // One is stuffed from its own node, one over the link.
    for node in 0..2 {
        let reader = LineClient::connect_small(cluster.nodes[1].tcp_addr()).await;
        let sender = cluster.line(node).await;
        stuffing.spawn(stuff(sender.writer, reader.address.clone(), Arc::clone(&over)));
        slow.push((reader, sender.reader));
    }
    let mut pairs = JoinSet::new();
    for pair in 0..PAIRS {
        let (sender, recipient) = (cluster.line(0).await, cluster.line(1).await);
        pairs.spawn(write_all(sender.writer, pair, recipient.address.clone()));
        pairs.spawn(read_all(recipient, pair, sender.address));
    }
    let all = async {
        while let Some(done) = pairs.join_next().await {
            done.unwrap();
        }
    };
    timeout(ALL_WITHIN, all)
        .await
        .unwrap_or_else(|_| panic!("not within {ALL_WITHIN:?}"));
    let took = started.elapsed();
    let rate = (PAIRS * MESSAGES) as f64 / took.as_secs_f64();
    println!("{} messages in {took:?}: {rate:.0} a second", PAIRS * MESSAGES);
    // Those who write to the slow ones were held all the while, not refused.
    assert_eq!(stuffing.len(), 2);
    assert!(stuffing.try_join_next().is_none());
    over.store(true, Ordering::Relaxed);
    drop(slow);
}
