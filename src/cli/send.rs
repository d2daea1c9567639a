//! `trunkline send`: sends one message and says by its exit code what became of it.

use std::io::Read;
use std::process::ExitCode;

use anyhow::Context;
use trunkline::{Address, Outcome};

use super::ClientArgs;

/// The exit code of a message whose fate is unknown.
const EXIT_UNKNOWN: u8 = 2;

/// Send one message and wait for its receipt.
///
/// Exits with 0 when it was delivered, 1 when it was refused (the code is on stderr), 2 when nobody knows.
#[derive(Debug, clap::Args)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    client: ClientArgs,

    /// Whom it is for
    #[arg(long, value_name = "ADDRESS")]
    to: Address,

    /// What it says; `-` reads it from stdin, to its end
    #[arg(default_value = "-")]
    body: String,
}

pub(crate) async fn run(args: SendArgs) -> anyhow::Result<ExitCode> {
    // Before the body, which may come by stdin too.
    let options = args.client.options()?;
    let body = if args.body == "-" {
        let mut body = Vec::new();
        std::io::stdin().read_to_end(&mut body).context("can't read stdin")?;
        body
    } else {
        args.body.into_bytes()
    };
    let client = args.client.connect_with(options).await?;
    let receipt = client.send_with_receipt(&args.to, body).await?;
    let outcome = receipt.await;
    client.close().await;
    if let Some(code) = outcome.code() {
        eprintln!("{}: {code}: {}", outcome.status(), code.advice());
    }
    Ok(match outcome {
        Outcome::Delivered => ExitCode::SUCCESS,
        Outcome::Refused(_) => ExitCode::FAILURE,
        Outcome::Unknown(_) => ExitCode::from(EXIT_UNKNOWN),
    })
}
