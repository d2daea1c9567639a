//! `trunkline bench`: measures a relay.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use trunkline::bench::load::{self, Progress};
use trunkline::bench::report::{Figures, plot};
use trunkline::bench::{Extent, Target, Workload};

use super::node::seconds;

/// Measure a relay: pairs of clients, a sender and a receiver, that check every message.
///
/// A relay is named by a URL: tcp:// (legacy clients) and quic:// for Trunkline, nats:// for nats-server, redis:// for a
/// Redis server. At full speed each pair has as much under way as --window says; with --rate a latency counts from when a
/// message was due, whatever became of those before it. Exits with 1 if a message was lost, repeated or out of order.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Where the senders connect
    #[arg(value_name = "URL", default_value = "tcp://127.0.0.1:1215")]
    from: Target,

    /// Where the receivers connect [default: where the senders do]
    #[arg(value_name = "URL")]
    to: Option<Target>,

    /// Pairs of a sender and a receiver
    #[arg(long, value_name = "N", default_value_t = 16)]
    pairs: usize,

    /// Bytes of a body, at least 16
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    size: usize,

    /// Messages that one pair may have under way
    #[arg(long, value_name = "N", default_value_t = 1024)]
    window: u64,

    /// Messages a second of all pairs together [default: as fast as it goes]
    #[arg(long, value_name = "N")]
    rate: Option<u64>,

    /// How long to measure, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    duration: Duration,

    /// How long to run before that
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    warm_up: Duration,

    /// Measure so many messages of each pair, in place of a time
    #[arg(long, value_name = "N", conflicts_with_all = ["duration", "warm_up"])]
    count: Option<u64>,

    /// A process to look at, for its CPU time and memory; may be given several times
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,

    /// Where node-ca.pem is, for QUIC clients
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: PathBuf,

    /// Print the figures as JSON, in one line
    #[arg(long)]
    json: bool,

    /// Draw the latencies into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let workload = Workload {
        to: args.to.unwrap_or_else(|| args.from.clone()),
        from: args.from,
        pairs: args.pairs,
        size: args.size,
        window: args.window,
        rate: args.rate,
        extent: match args.count {
            Some(count) => Extent::Count(count),
            None => Extent::Time {
                warm_up: args.warm_up,
                measured: args.duration,
            },
        },
        pids: args.pids,
        certs: args.certs,
    };
    let bar = progress_bar()?;
    let figures = load::run(&workload, |progress| show(&bar, progress)).await;
    bar.finish_and_clear();
    let figures = figures?;
    if let Some(file) = &args.svg {
        plot(file, &[(name(&figures), &figures)])?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print!("{}", figures.table());
    }
    Ok(if figures.all_is_well() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn name(figures: &Figures) -> String {
    format!("{} to {}", figures.from, figures.to)
}

/// Parts of the bar.
const STEPS: u64 = 1000;

fn progress_bar() -> anyhow::Result<ProgressBar> {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{wide_bar} {msg}").context("no progress bar")?;
    let bar = ProgressBar::with_draw_target(Some(STEPS), target);
    bar.set_style(style);
    Ok(bar)
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_position((progress.part * STEPS as f64) as u64);
    bar.set_message(format!("{} messages", progress.arrived));
}
