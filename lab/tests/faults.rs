//! A small fault run: real processes, faults from a seed, and the judgement of what the clients wrote down.

use std::process::Command;

/// Plays a few faults, none of them long. What it prints is shown when the test fails.
#[test]
fn promises_hold_under_load_while_nodes_and_wires_fail() {
    let logs = tempfile::tempdir().unwrap();
    let seed = rand::random::<u32>().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_trunkline-lab-faults"))
        .args(["--node", env!("CARGO_BIN_EXE_trunkline-lab-node")])
        .args(["--client", env!("CARGO_BIN_EXE_trunkline-lab-client")])
        .args(["--seed", &seed, "--faults", "14", "--longest", "5"])
        .args(["--link-wait", "20", "--resume-grace", "20", "--stall", "20", "--logs"])
        .arg(logs.path())
        .output()
        .unwrap();
    println!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if !output.status.success() {
        println!("kept: {}", logs.keep().display());
    }
    assert!(output.status.success());
}
