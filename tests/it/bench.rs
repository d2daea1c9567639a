//! `trunkline bench`, as its users run it.

use serde_json::Value;

use crate::support::{Carrier, Certs, NodeCommand, Process};

/// Runs it with these arguments; gives its figures.
async fn figures(args: &[&str]) -> Value {
    let ended = Process::trunkline(&[&["bench", "--json"], args].concat()).ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[tokio::test]
async fn messages_are_counted_checked_and_timed_whatever_clients_come_by() {
    let certs = Certs::make(2);
    let carrier = Carrier::of_environment().await;
    let mut command = NodeCommand::new(&certs, 0);
    carrier.join_process(&mut command, &[]);
    let first = command.start().await;
    let mut command = NodeCommand::new(&certs, 1);
    carrier.join_process(&mut command, &[first.peer()]);
    let mut second = command.start().await;
    second.process.stderr.until("\"link up\"").await;
    let dir = certs.dir().display().to_string();
    let svg = certs.dir().join("plot.svg").display().to_string();
    let own = std::process::id().to_string();
    let (line, quic) = (format!("tcp://{}", first.tcp()), format!("quic://{}", second.quic()));
    let common = ["--certs", &dir, "--pairs", "3", "--size", "64"];

    let counted = figures(
        &[
            &common[..],
            &["--count", "500", "--pid", &own, "--svg", &svg, &line, &quic],
        ]
        .concat(),
    )
    .await;
    assert_eq!((&counted["messages"], &counted["sent"]), (&1500.into(), &1500.into()));
    assert!(counted["latency"]["p50"].as_f64() > Some(0.0));
    for process in [&counted["processes"][0], &counted["own"]] {
        assert!(process["peak"].as_u64() > Some(1 << 20));
    }
    assert!(std::fs::read_to_string(&svg).unwrap().contains("tcp://"));

    let paced = [
        &common[..],
        &["--rate", "600", "--warm-up", "0.2", "--duration", "1", &quic, &line],
    ]
    .concat();
    let paced = figures(&paced).await;
    let rate = paced["per_second"].as_f64().unwrap();
    assert!((400.0..800.0).contains(&rate), "{rate}");
    for what in ["lost", "repeated", "reordered", "strange"] {
        assert_eq!((&counted[what], &paced[what]), (&0.into(), &0.into()), "{what}");
    }

    // More than goes through: what was due in the time that is measured is not even sent in it, and nothing is known of its latency.
    let far = ["--rate", "100000000", "--warm-up", "0.2", "--duration", "0.2", &line];
    assert_eq!(figures(&far).await["latency"], Value::Null);

    let text = Process::trunkline(&["bench", "--count", "10", "--pairs", "1", &line])
        .ended()
        .await;
    assert!(
        text.stdout.contains("0 lost, 0 repeated, 0 out of order"),
        "{}",
        text.stdout
    );
}

#[tokio::test]
async fn what_can_not_be_measured_is_said() {
    for (args, text) in [
        (&["http://127.0.0.1:1"][..], "not tcp://HOST:PORT"),
        (&["--size", "8"], "at least 16 bytes"),
        (&["--size", "99999999999"], "at most 1073741824 bytes"),
        (&["--duration", "300000"], "three days"),
        (
            &["tcp://127.0.0.1:1", "nats://127.0.0.1:1"],
            "do not understand each other",
        ),
        (&["nats://127.0.0.1:1"], "can't connect to nats://127.0.0.1:1"),
    ] {
        let ended = Process::trunkline(&[&["bench"], args].concat()).ended().await;
        assert_ne!(ended.code, Some(0));
        assert!(ended.stderr.contains(text), "{}", ended.stderr);
    }
}
