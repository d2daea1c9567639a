//! A node for tests of the lab, which can't name the program of another package: it takes the flags that the fault run
//! gives to `trunkline node`, and says where it listens as that does. It ends with its stdin, or when told to.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use trunkline::{Config, HostPort, Limits, Node, NodeName, Peer, StartError};
use trunkline_lab::fleet::EXIT_PORT_TAKEN;

#[derive(Debug, Parser)]
#[command(about = "Run a node, for tests of the lab")]
enum Args {
    /// Run a node
    Node(NodeArgs),
}

#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// Taken for the sake of the other program
    #[arg(long)]
    log_format: String,
    /// Where legacy clients connect
    #[arg(long)]
    tcp: HostPort,
    /// Where QUIC clients connect
    #[arg(long)]
    quic: HostPort,
    /// Where other nodes connect
    #[arg(long)]
    link: HostPort,
    /// The node's name
    #[arg(long)]
    advertise: NodeName,
    /// Where the certificates are
    #[arg(long)]
    certs: PathBuf,
    /// Another node to link to
    #[arg(long = "peer")]
    peers: Vec<Peer>,
    /// How long a message waits for a node that can't be reached, in seconds
    #[arg(long)]
    link_wait: u64,
    /// How long a QUIC client may take to come back, in seconds
    #[arg(long)]
    resume_grace: u64,
    /// How long a client may take nothing, in seconds
    #[arg(long)]
    stall: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args::Node(args) = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: NodeArgs) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    let config = Config {
        tcp: Some(args.tcp),
        quic: Some(args.quic),
        link: Some(args.link),
        advertise: Some(args.advertise.clone()),
        peers: args.peers,
        certs: args.certs,
        limits: Limits {
            link_wait: Duration::from_secs(args.link_wait),
            resume_grace: Duration::from_secs(args.resume_grace),
            stall: Duration::from_secs(args.stall),
            ..Limits::default()
        },
        ..Config::default()
    };
    let node = match Node::start(config).await {
        Ok(node) => node,
        Err(error @ StartError::Bind { .. }) => {
            eprintln!("{error}");
            return Ok(ExitCode::from(EXIT_PORT_TAKEN));
        }
        Err(error) => return Err(error.into()),
    };
    let up = serde_json::json!({
        "message": "node up",
        "name": args.advertise.to_string(),
        "tcp": node.tcp_addr().map(|addr| addr.to_string()),
        "quic": node.quic_addr().to_string(),
        "link": node.link_addr().to_string(),
    });
    eprintln!("{up}");
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().spawn(move || {
        // Whoever started this node is gone.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    })?;
    tokio::select! {
        _ = end => {}
        _ = terminate.recv() => {}
    }
    node.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
