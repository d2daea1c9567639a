//! The commands. Each is thin over the library.

#[cfg(feature = "bench")]
mod bench;
mod certs;
mod chat;
mod listen;
mod node;
mod send;
mod terminal;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use trunkline::address::ClientId;
use trunkline::client::Options;
use trunkline::{Client, NodeName};

/// The exit code for bad arguments or configuration (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// The exit code when a port can't be bound (`EX_UNAVAILABLE`).
const EXIT_UNAVAILABLE: u8 = 69;

/// An encrypted message relay: TCP line clients and QUIC clients, on nodes joined by QUIC.
#[derive(Debug, Parser)]
#[command(name = "trunkline", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// What to log, as `RUST_LOG` takes it: a level, or `module=level,…` [default: info for a node, else warn]
    #[arg(long, global = true, env = "RUST_LOG", hide_env = true, value_name = "FILTER")]
    log: Option<String>,

    /// How log lines on stderr are written
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    Node(Box<node::NodeArgs>),
    /// Make certificates
    Certs(certs::CertsArgs),
    /// Make tokens
    Token(Box<token::TokenArgs>),
    /// Talk to others: a line typed is a message sent
    Chat(chat::ChatArgs),
    /// Send one message and wait for its receipt
    Send(send::SendArgs),
    /// Print what comes in
    Listen(listen::ListenArgs),
    /// Measure a relay
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
}

/// How a client finds its node.
#[derive(Debug, clap::Args)]
struct ClientArgs {
    /// The node to connect to by QUIC
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1215")]
    node: NodeName,

    /// Where node-ca.pem is, which the node's certificate must be signed by
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: PathBuf,

    /// Show the certificate client-NAME.pem from there, and be NAME
    #[arg(long, value_name = "NAME")]
    name: Option<ClientId>,

    /// Show the token in this file, or with - on the first line of stdin [env: TRUNKLINE_TOKEN, the token itself]
    #[arg(long, value_name = "FILE|-")]
    token: Option<PathBuf>,
}

/// Where a token comes from if no file is named. Not an argument: those can be seen by all users of the machine.
const TOKEN_VARIABLE: &str = "TRUNKLINE_TOKEN";

impl ClientArgs {
    /// What the client shows of itself. Reads stdin, if that is where the token is.
    fn options(&self) -> anyhow::Result<Options> {
        let token = match &self.token {
            Some(path) if path.as_os_str() == "-" => {
                let mut line = String::new();
                std::io::stdin()
                    .read_line(&mut line)
                    .context("can't read a token from stdin")?;
                Some(line)
            }
            Some(path) => {
                let text = std::fs::read_to_string(path);
                Some(text.with_context(|| format!("can't read the token in {}", path.display()))?)
            }
            None => std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()),
        };
        let mut options = Options::new();
        if let Some(name) = &self.name {
            options = options.name(name.clone());
        }
        if let Some(token) = token {
            options = options.token(&token);
        }
        Ok(options)
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        self.connect_with(self.options()?).await
    }

    async fn connect_with(&self, options: Options) -> anyhow::Result<Client> {
        Ok(Client::connect_with(&self.node, &self.certs, options).await?)
    }
}

/// What to say when nothing more comes.
fn gone(client: &Client) -> String {
    match client.ended_because() {
        Some(why) => format!("the node has ended this: {why}"),
        None => "the node is gone".to_owned(),
    }
}

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Printing fails only when nobody reads.
            let _ = error.print();
            return if asked {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(EXIT_USAGE)
            };
        }
    };
    let default = if matches!(cli.command, Command::Node(_)) {
        "info"
    } else {
        "warn"
    };
    let filter = cli
        .log
        .as_deref()
        .filter(|filter| !filter.is_empty())
        .unwrap_or(default);
    if let Err(error) = start_logs(filter, cli.log_format) {
        eprintln!("trunkline: --log {filter}: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    let done = match cli.command {
        Command::Node(args) => node::run(*args),
        Command::Certs(args) => certs::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Token(args) => token::run(*args),
        Command::Chat(args) => in_runtime(chat::run(args)),
        Command::Send(args) => in_runtime(send::run(args)),
        Command::Listen(args) => in_runtime(listen::run(args)),
        #[cfg(feature = "bench")]
        Command::Bench(args) => in_runtime(bench::run(args)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("trunkline: {error:#}");
        ExitCode::FAILURE
    })
}

fn start_logs(filter: &str, format: LogFormat) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(filter)?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => logs.with_ansi(terminal::stderr_takes_colours()).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Runs a client's command on one thread, which is plenty for it.
fn in_runtime(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(command);
    // A thread that waits for a key is not waited for.
    runtime.shutdown_background();
    done
}
