//! `trunkline listen`: prints what comes in.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use trunkline::client::{Event, Received};

use super::{ClientArgs, gone};

/// Print what comes in, one line a message, until interrupted or the node is gone.
#[derive(Debug, clap::Args)]
pub(crate) struct ListenArgs {
    #[command(flatten)]
    client: ClientArgs,

    /// Print JSON: first {"cmd":"welcome","address":…}, then {"cmd":"message","from":…,"to":…,"body":…}
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: ListenArgs) -> anyhow::Result<ExitCode> {
    let client = args.client.connect().await?;
    let greeting = if args.json {
        format!("{{\"cmd\":\"welcome\",\"address\":\"{}\"}}", client.address())
    } else {
        format!("you is  : {}", client.address())
    };
    if !print(&greeting)? {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let event = tokio::select! {
            event = client.receive() => event,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                client.close().await;
                return Ok(ExitCode::SUCCESS);
            }
        };
        match event {
            Some(Event::Message(message)) => {
                if !print(&line(&message, args.json))? {
                    client.close().await;
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Some(_) => {}
            None => anyhow::bail!(gone(&client)),
        }
    }
}

fn line(message: &Received, json: bool) -> String {
    if json {
        message.json()
    } else {
        format!("{} say : {}", message.from, message.text())
    }
}

/// Prints a line at once. Says whether anyone still reads.
fn print(line: &str) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        printed => printed.map(|()| true),
    }
}
