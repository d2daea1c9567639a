//! A small fault run: real processes, faults from a seed, and the judgement of what the clients wrote down.

#![allow(clippy::expect_used, reason = "a test that goes wrong is to end there and then")]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use trunkline_checker::log::Line;
use trunkline_checker::{Event, Outcome};

/// Has the fault run do something; gives whether it ended well, and what it printed.
fn faults(logs: &Path, args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_trunkline-lab-faults"))
        .args(["--link-wait", "20", "--resume-grace", "10", "--stall", "20", "--logs"])
        .arg(logs)
        .args(args)
        .output()
        .expect("the program runs");
    let printed = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.success(), printed.concat())
}

/// A journal of a client that confirms what it saw, its text, and a line of it that says that it saw a message whose
/// sender was told that it was delivered. Of others nobody can say that they are lost.
fn journal(logs: &Path) -> Option<(PathBuf, String, String)> {
    let paths = std::fs::read_dir(logs)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    let journals: Vec<(PathBuf, String)> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "journal"))
        .filter_map(|path| std::fs::read_to_string(&path).ok().map(|text| (path, text)))
        .collect();
    let event = |line: &str| line.parse().map(|line: Line| line.event).ok();
    let lines = journals.iter().flat_map(|(_, text)| text.lines());
    let delivered: HashSet<u64> = lines
        .filter_map(|line| match event(line)? {
            Event::Told {
                message,
                outcome: Outcome::Delivered,
            } => Some(message),
            _ => None,
        })
        .collect();
    let confirms = |text: &str| {
        let first = text.lines().next().and_then(event);
        matches!(first, Some(Event::Joined { confirms: true, .. }))
    };
    let seen = |line: &&str| matches!(event(line), Some(Event::Seen { message, .. }) if delivered.contains(&message));
    journals
        .iter()
        .filter(|(_, text)| confirms(text))
        .find_map(|(path, text)| {
            let line = text.lines().find(seen)?;
            Some((path.clone(), text.clone(), format!("{line}\n")))
        })
}

#[test]
fn promises_hold_under_load_while_nodes_and_wires_fail() {
    let logs = tempfile::tempdir().expect("a directory");
    let seed = rand::random::<u32>().to_string();
    let (node, client) = (
        env!("CARGO_BIN_EXE_trunkline-lab-node"),
        env!("CARGO_BIN_EXE_trunkline-lab-client"),
    );
    let args = [
        "--faults",
        "14",
        "--longest",
        "5",
        "--seed",
        &seed,
        "--node",
        node,
        "--client",
        client,
    ];
    let (well, printed) = faults(logs.path(), &args);
    println!("{printed}");
    if !well {
        println!("kept: {}", logs.keep().display());
        panic!("a promise was broken");
    }

    // The judge would have found it.
    let (path, text, seen) = journal(logs.path()).expect("a client that saw something");
    for (planted, breach) in [(String::new(), "lost: 1"), (seen.repeat(2), "repeated: 1")] {
        std::fs::write(&path, text.replacen(&seen, &planted, 1)).expect("a file to write to");
        let (well, printed) = faults(logs.path(), &["--judge"]);
        assert!(!well && printed.contains(breach), "{printed}");
    }
}
