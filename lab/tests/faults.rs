//! A small fault run: real processes, faults from a seed, and the judgement of what the clients wrote down.

#![allow(clippy::expect_used, reason = "a test that goes wrong is to end there and then")]

use std::path::{Path, PathBuf};
use std::process::Command;

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

/// A journal of a client that confirms what it saw, its text, and a line of it that says that it saw a message.
fn journal(logs: &Path) -> Option<(PathBuf, String, String)> {
    let entries = std::fs::read_dir(logs).ok()?;
    entries.filter_map(|entry| Some(entry.ok()?.path())).find_map(|path| {
        let text = std::fs::read_to_string(&path).ok()?;
        let (first, _) = text.split_once('\n')?;
        let seen = text.lines().find(|line| line.contains(" seen "))?.to_owned();
        let confirms = path.extension()? == "journal" && first.contains(" confirms ");
        confirms.then_some((path, text, format!("{seen}\n")))
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
