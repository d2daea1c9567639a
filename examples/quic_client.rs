//! A QUIC client for programs: connects, sends, receives, closes.
//!
//! ```text
//! cargo run --release --example quic_client NODE [TO]
//! ```
//!
//! Run it once with a node alone: it prints its address and answers what comes. Run it again with that address as TO.

use std::path::Path;

use anyhow::Context;
use trunkline::client::Event;
use trunkline::{Address, Client, NodeName, Outcome};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let node: NodeName = args.next().context("usage: quic_client NODE [TO]")?.parse()?;
    let to: Option<Address> = args.next().map(|to| to.parse()).transpose()?;

    // The node must show a certificate of the authority in certs/node-ca.pem: nobody else can pass for it.
    let client = Client::connect(&node, Path::new("certs")).await?;
    println!("I am {}", client.address());

    if let Some(to) = to {
        // A body is any bytes. `send` waits only while as much is under way as the node allows; should this message
        // fail, `receive` tells.
        client.send(&to, "hello").await?;

        // With a receipt, which is a future: it can be awaited now, later, or beside others.
        let receipt = client.send_with_receipt(&to, "how are you?").await?;
        match receipt.await {
            Outcome::Delivered => println!("delivered"),
            Outcome::Refused(code) => println!("refused: {}", code.advice()),
            Outcome::Unknown(code) => println!("it may have come or not: {}", code.advice()),
        }
    } else {
        // `None` comes when the connection is gone.
        while let Some(event) = client.receive().await {
            match event {
                Event::Message(message) => {
                    // `text` is safe to print: what could drive a terminal is escaped.
                    println!("{} says: {}", message.from, message.text());
                    client.send(&message.from, "thank you").await?;
                }
                Event::Failed(failed) => println!("to {}: {}", failed.to, failed.outcome.status()),
                _ => {}
            }
        }
    }

    // Waits until all that was sent has ended. Merely dropping the client would not.
    client.close().await;
    Ok(())
}
