//! What floods cost the others: two nodes on loopback, conversations between them, and a process that floods one of the
//! nodes from an address of its own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, TokioRuntime};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use socket2::{Domain, Socket, Type};
use tokio::task::JoinSet;
use trunkline_lab::figures::Figures;
use trunkline_lab::namespace::sleep_precisely;
use trunkline_lab::nodes::{Node, Nodes};
use trunkline_lab::talk::{runtime, talk, tell_both, unharmed};
use trunkline_lab::target::Target;

/// Where floods come from; those who talk come from 127.0.0.1.
const FLOODER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// How much there is of each flood, at most.
const CONNECTIONS: u32 = 10_000;
const HANDSHAKES: u32 = 5_000;
const SLOW_LINES: u32 = 500;
const LINE: u64 = 1 << 30;
const STREAMS: u64 = 1_000_000;

/// How long a flooder may take to end once it is told to.
const END: Duration = Duration::from_secs(20);

const MIB: f64 = (1 << 20) as f64;

/// Measure what floods cost the others
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Start nodes, talk, flood, and say what came of it
    Run(RunArgs),
    /// Flood a node until stdin ends
    Flood(FloodArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The program to measure
    #[arg(long, value_name = "FILE")]
    trunkline: PathBuf,

    /// The flood, if not all of them
    #[arg(long, value_name = "NAME")]
    flood: Option<Flood>,

    /// How many pairs of runs
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u32,

    /// How long a run is
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u32,

    /// Conversations that are measured
    #[arg(long, value_name = "N", default_value_t = 16)]
    pairs: u16,

    /// Their messages a second in all
    #[arg(long, value_name = "N", default_value_t = 2000)]
    rate: u32,

    /// Where to write the table, as Markdown
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct FloodArgs {
    flood: Flood,
    #[arg(long)]
    tcp: SocketAddr,
    #[arg(long)]
    quic: SocketAddr,
    #[arg(long)]
    certs: PathBuf,
    /// What the flood is spread over
    #[arg(long)]
    seconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Flood {
    /// Connections that never speak
    Silent,
    /// First packets of QUIC handshakes, and nothing after them
    Initials,
    /// QUIC handshakes without a hello
    Greetings,
    /// Lines that come at a byte a second
    SlowLines,
    /// A client at full speed
    Rate,
    /// Messages to ids that nobody has
    Guesses,
    /// A line that does not end
    LongLine,
    /// Tiny QUIC streams
    Streams,
}

impl Flood {
    /// Flags that the nodes are started with beside the defaults.
    fn flags(self) -> &'static [&'static str] {
        match self {
            // The default, 60 s, is longer than a run.
            Self::SlowLines => &["--line-time", "4"],
            // Those who talk send 125 a second each.
            Self::Rate => &["--client-message-rate", "1000"],
            _ => &[],
        }
    }

    /// What is flooded with, for people.
    fn what(self) -> &'static str {
        match self {
            Self::Silent => "10,000 TCP connections that never speak",
            Self::Initials => "5,000 first packets of QUIC handshakes",
            Self::Greetings => "5,000 QUIC handshakes without a `hello`",
            Self::SlowLines => "500 lines at a byte a second",
            Self::Rate => "a TCP client at full speed, over its rate",
            Self::Guesses => "a TCP client that guesses ids",
            Self::LongLine => "lines without an end, 1 GiB",
            Self::Streams => "up to a million tiny QUIC streams",
        }
    }

    /// The counter that shows the flood.
    fn counter(self) -> &'static str {
        match self {
            Self::Silent => "refused-source",
            Self::Initials => "retries",
            Self::Greetings => "handshakes-late",
            Self::SlowLines => "ended-slow-line",
            Self::Rate => "held-rate",
            Self::Guesses => "held-misses",
            Self::LongLine => "ended-long-line",
            // No limit is met: it is one client in its turn.
            Self::Streams => "refused-no-client",
        }
    }

    /// How much more memory the flooded node may take, in MiB: what the limits let the flood have, and as much again as the
    /// node takes for those who talk.
    fn bound(self) -> f64 {
        match self {
            // 1,024 of one source, with some 16 KiB each.
            Self::Silent => 24.0,
            // Nothing is kept of them; what is received at once, a socket's buffer, is 8 MiB.
            Self::Initials => 12.0,
            // 64 of one source, with some 61 KiB each, and the buffer.
            Self::Greetings => 16.0,
            // 500 with some 16 KiB each.
            Self::SlowLines => 16.0,
            // What one client may have under way, and a line of it.
            Self::Rate | Self::Guesses => 8.0,
            // The line's limit, twice while it grows, for one connection at a time.
            Self::LongLine => 8.0,
            // What a QUIC client may have in streams, and under way.
            Self::Streams => 12.0,
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    sleep_precisely();
    match args.role {
        Role::Run(args) => run(&args),
        Role::Flood(args) => {
            flood(&args)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

// --- the run ----------------------------------------------------------------------------------------------------------

/// A flooder, ended when dropped.
struct Flooder {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Flooder {
    fn start(flood: Flood, nodes: &Nodes, seconds: u32) -> anyhow::Result<Self> {
        let name = flood.to_possible_value().context("no such flood")?;
        // Floods come from elsewhere: here the flooder gets what is left of the processor.
        let mut child = Command::new("nice")
            .args(["-n", "19"])
            .arg(std::env::current_exe()?)
            .arg("flood")
            .arg(name.get_name())
            .args(["--tcp", &nodes.a.tcp.to_string(), "--quic", &nodes.a.quic.to_string()])
            .arg("--certs")
            .arg(nodes.certs())
            .args(["--seconds", &seconds.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }

    /// Tells it to end; gives what it says of what it did.
    fn stop(mut self) -> anyhow::Result<String> {
        drop(self.stdin.take());
        let deadline = Instant::now() + END;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "the flooder does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "the flooder failed, so this was no flood: {status}");
        let mut said = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut said)?;
        }
        Ok(said.trim().to_owned())
    }
}

impl Drop for Flooder {
    fn drop(&mut self) {
        // Fail for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let floods = args
        .flood
        .map_or_else(|| Flood::value_variants().to_vec(), |one| vec![one]);
    let mut table = String::from(
        "| flood | p50 without, with (ms) | p99 without, with (ms) | median of the ratios of p99 | lost, repeated, out of order | \
         peak memory more, and its bound (MiB) | counted |\n|---|---|---|--:|---|---|---|\n",
    );
    let mut failures = Vec::new();
    for flood in floods {
        println!("{}", flood.what());
        match measure(args, flood, &mut table) {
            Ok(()) => {}
            Err(error) => {
                println!("  FAILED: {error:#}");
                failures.push(flood);
            }
        }
    }
    println!("\n{table}");
    if let Some(file) = &args.table {
        std::fs::write(file, &table).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measure(args: &RunArgs, flood: Flood, table: &mut String) -> anyhow::Result<()> {
    let flags: Vec<String> = flood.flags().iter().map(|&flag| flag.to_owned()).collect();
    let nodes = Nodes::start(&args.trunkline, &flags)?;
    let talk = || talk(args.seconds, nodes.a.tcp, nodes.b.tcp, args.pairs, args.rate);
    let peak = |node: &Node| node.memory().map(|(most, _)| most as f64 / MIB);
    let mut base = None;
    let mut pairs: Vec<(Figures, Figures)> = Vec::new();
    for round in 0..args.rounds {
        let without = talk()?;
        let before = *base.get_or_insert(peak(&nodes.a)?);
        let flooder = Flooder::start(flood, &nodes, args.seconds)?;
        let with = talk()?;
        let said = flooder.stop()?;
        tell_both(round, &without, &with);
        println!(
            "     peak memory {:.1} MiB, before {before:.1}; the flooder: {said}",
            peak(&nodes.a)?
        );
        pairs.push((without, with));
    }
    let more = peak(&nodes.a)? - base.unwrap_or_default();
    let counted = nodes.a.stop()?;
    println!("     counted: {}", shown(&counted));
    row(flood, &pairs, more, &counted, table)?;
    for (without, with) in &pairs {
        unharmed(&[without, with])?;
    }
    ensure!(
        more <= flood.bound(),
        "{more:.1} MiB more memory than without the flood"
    );
    let counter = flood.counter();
    ensure!(counted.contains_key(counter), "{counter} was not counted");
    Ok(())
}

fn shown(counted: &BTreeMap<String, u64>) -> String {
    let all: Vec<String> = counted.iter().map(|(name, count)| format!("{name} {count}")).collect();
    all.join(", ")
}

fn row(
    flood: Flood,
    pairs: &[(Figures, Figures)],
    more: f64,
    counted: &BTreeMap<String, u64>,
    table: &mut String,
) -> std::fmt::Result {
    let each = |of: fn(&Figures) -> f64| -> String {
        let pairs = pairs.iter();
        let pairs: Vec<String> = pairs
            .map(|(without, with)| format!("{:.2}, {:.2}", of(without), of(with)))
            .collect();
        pairs.join("; ")
    };
    let mut ratios: Vec<f64> = pairs.iter().map(|(without, with)| with.p99 / without.p99).collect();
    ratios.sort_by(f64::total_cmp);
    let sum = |of: fn(&Figures) -> u64| -> u64 { pairs.iter().map(|(a, b)| of(a) + of(b)).sum() };
    let counter = flood.counter();
    let count = counted.get(counter).copied().unwrap_or_default();
    writeln!(
        table,
        "| {} | {} | {} | {:.2} | {}, {}, {} | {more:.1} of {:.0} | `{counter}` {count} |",
        flood.what(),
        each(|figures| figures.p50),
        each(|figures| figures.p99),
        ratios.get(ratios.len() / 2).copied().unwrap_or_default(),
        sum(|figures| figures.lost),
        sum(|figures| figures.repeated),
        sum(|figures| figures.reordered),
        flood.bound()
    )
}

// --- the floods -------------------------------------------------------------------------------------------------------

fn flood(args: &FloodArgs) -> anyhow::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    std::thread::spawn(move || {
        // Whoever started this has had enough, or is gone.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    let over = || over.load(Ordering::Relaxed);
    match args.flood {
        Flood::Silent => silent(args, &over),
        Flood::SlowLines => slow_lines(args, &over),
        Flood::Rate => full_speed(args, &over),
        Flood::Guesses => guesses(args, &over),
        Flood::LongLine => long_line(args, &over),
        Flood::Initials => runtime()?.block_on(initials(args, &over)),
        Flood::Greetings => runtime()?.block_on(greetings(args, &over)),
        Flood::Streams => runtime()?.block_on(streams(args, &over)),
    }
}

/// The time of each of so many that are spread over the run.
fn spread(args: &FloodArgs, count: u32) -> Duration {
    Duration::from_secs(args.seconds.into()) / count
}

/// Waits until it is over.
fn rest(over: &impl Fn() -> bool) {
    while !over() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn connect(node: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((FLOODER, 0)).into())?;
    socket.connect(&node.into())?;
    Ok(socket.into())
}

fn silent(args: &FloodArgs, over: &impl Fn() -> bool) -> anyhow::Result<()> {
    let (start, each) = (Instant::now(), spread(args, CONNECTIONS));
    let mut open = Vec::new();
    for number in 0..CONNECTIONS {
        if over() {
            break;
        }
        std::thread::sleep((start + each * number).saturating_duration_since(Instant::now()));
        open.push(connect(args.tcp)?);
    }
    rest(over);
    println!("{} connections", open.len());
    Ok(())
}

fn slow_lines(args: &FloodArgs, over: &impl Fn() -> bool) -> anyhow::Result<()> {
    let (mut open, mut dialled) = (Vec::new(), 0_u64);
    while !over() {
        while open.len() < SLOW_LINES as usize {
            open.push(connect(args.tcp)?);
            dialled += 1;
        }
        // One that was given up comes again.
        open.retain_mut(|socket: &mut TcpStream| socket.write_all(b"x").is_ok());
        for _ in 0..50 {
            if over() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    println!("{dialled} connections");
    Ok(())
}

/// Writes lines as fast as they are taken, and throws away what comes back.
fn pour(node: SocketAddr, over: &impl Fn() -> bool, mut lines: impl FnMut(&mut Vec<u8>)) -> anyhow::Result<u64> {
    let mut socket = connect(node)?;
    socket.set_nonblocking(true)?;
    let (mut waste, mut total, mut chunk, mut at) = (vec![0; 64 * 1024], 0, Vec::new(), 0);
    while !over() {
        if at == chunk.len() {
            chunk.clear();
            at = 0;
            lines(&mut chunk);
        }
        let written = socket.write(chunk.get(at..).unwrap_or_default());
        let read = socket.read(&mut waste);
        let blocked =
            |done: &std::io::Result<usize>| done.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        match (&written, &read) {
            (_, Ok(0)) => break,
            (written, read) if blocked(written) && blocked(read) => std::thread::sleep(Duration::from_micros(200)),
            (Ok(length), _) => {
                at += length;
                total += *length as u64;
            }
            (Err(_), _) if !blocked(&written) => break,
            _ => {}
        }
    }
    Ok(total)
}

fn full_speed(args: &FloodArgs, over: &impl Fn() -> bool) -> anyhow::Result<()> {
    let (mut receiver, address) = {
        let mut socket = connect(args.tcp)?;
        let mut greeting = vec![0; 256];
        let length = socket.read(&mut greeting)?;
        let greeting = String::from_utf8_lossy(greeting.get(..length).unwrap_or_default()).into_owned();
        let address = greeting
            .trim_end()
            .strip_prefix("you is  : ")
            .context("not a greeting")?;
        (socket, address.to_owned())
    };
    std::thread::spawn(move || {
        let mut waste = vec![0; 64 * 1024];
        while let Ok(1..) = receiver.read(&mut waste) {}
    });
    let body = "x".repeat(128);
    let total = pour(args.tcp, over, |chunk| {
        while chunk.len() < 16 * 1024 {
            Target::Trunkline.message(&address, &body, None, chunk);
        }
    })?;
    println!("{total} bytes taken");
    Ok(())
}

fn guesses(args: &FloodArgs, over: &impl Fn() -> bool) -> anyhow::Result<()> {
    let mut total = 0;
    // One that is held for long comes by a new connection: that is to be no way around.
    while !over() {
        let until = Instant::now() + Duration::from_secs(1);
        let over = || over() || Instant::now() > until;
        total += pour(args.tcp, &over, |chunk| {
            while chunk.len() < 16 * 1024 {
                // With a zero in it, so that it is no one's who talks.
                let (node, id) = (rand::random_range(1..=2), rand::random_range(0..100_000));
                Target::Trunkline.message(&format!("127.0.0.1:{node}:0{id:05}"), "anyone?", None, chunk);
            }
        })?;
    }
    println!("{total} bytes taken");
    Ok(())
}

fn long_line(args: &FloodArgs, over: &impl Fn() -> bool) -> anyhow::Result<()> {
    let (mut total, mut connections) = (0, 0_u64);
    while !over() && total < LINE {
        total += pour(args.tcp, over, |chunk| chunk.resize(64 * 1024, b'x'))?;
        connections += 1;
    }
    rest(over);
    println!("{total} bytes on {connections} connections");
    Ok(())
}

fn client_config(certs: &Path) -> anyhow::Result<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certs.join("node-ca.pem"))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"trunkline/1".to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?)))
}

fn endpoint() -> anyhow::Result<Endpoint> {
    let socket = UdpSocket::bind((FLOODER, 0))?;
    Ok(Endpoint::new(
        EndpointConfig::default(),
        None,
        socket,
        Arc::new(TokioRuntime),
    )?)
}

/// Has handshakes begin towards a socket of this process, and passes on to the node what comes there: what the node says
/// reaches nobody.
async fn initials(args: &FloodArgs, over: &impl Fn() -> bool) -> anyhow::Result<()> {
    let (config, endpoint) = (client_config(&args.certs)?, endpoint()?);
    let sink = tokio::net::UdpSocket::bind((FLOODER, 0)).await?;
    let to_node = tokio::net::UdpSocket::bind((FLOODER, 0)).await?;
    let (start, each) = (tokio::time::Instant::now(), spread(args, HANDSHAKES));
    let (mut buffer, mut passed, mut begun) = (vec![0; 2048], 0_u64, 0);
    while !over() {
        let due = start + each * begun;
        tokio::select! {
            received = sink.recv(&mut buffer) => {
                let length = received?;
                to_node.send_to(buffer.get(..length).unwrap_or_default(), args.quic).await?;
                passed += 1;
            }
            () = tokio::time::sleep_until(due), if begun < HANDSHAKES => {
                // Dropped at once: nothing is sent again.
                let connecting = endpoint.connect_with(config.clone(), sink.local_addr()?, "127.0.0.1")?;
                tokio::task::yield_now().await;
                drop(connecting);
                begun += 1;
            }
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    println!("{begun} handshakes begun, {passed} packets passed on");
    Ok(())
}

async fn greetings(args: &FloodArgs, over: &impl Fn() -> bool) -> anyhow::Result<()> {
    let (config, endpoint) = (client_config(&args.certs)?, endpoint()?);
    let (start, each) = (tokio::time::Instant::now(), spread(args, HANDSHAKES));
    let mut handshakes = JoinSet::new();
    let (mut begun, mut done) = (0, 0_u64);
    while !over() {
        let due = start + each * begun;
        tokio::select! {
            () = tokio::time::sleep_until(due), if begun < HANDSHAKES => {
                let connecting = endpoint.connect_with(config.clone(), args.quic, "127.0.0.1")?;
                handshakes.spawn(async move {
                    let connection: Connection = connecting.await?;
                    // Silent until the node closes it.
                    connection.closed().await;
                    Ok::<_, quinn::ConnectionError>(())
                });
                begun += 1;
            }
            Some(ended) = handshakes.join_next() => done += u64::from(matches!(ended, Ok(Ok(())))),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    println!("{begun} handshakes begun, {done} of them done and closed by the node");
    Ok(())
}

async fn streams(args: &FloodArgs, over: &impl Fn() -> bool) -> anyhow::Result<()> {
    let (config, endpoint) = (client_config(&args.certs)?, endpoint()?);
    let connection = endpoint.connect_with(config, args.quic, "127.0.0.1")?.await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(b"{\"cmd\":\"hello\",\"version\":1}\n").await?;
    let opened = Cell::new(0_u64);
    let opening = async {
        while !over() && opened.get() < STREAMS {
            let mut stream = connection.open_uni().await?;
            let number = opened.get() + 1;
            opened.set(number);
            // To one that is not there: it is refused at once.
            let message = format!("{{\"to\":\"127.0.0.1:1:nobody\",\"id\":{number}}}\nx");
            stream.write_all(message.as_bytes()).await?;
            let _ = stream.finish();
        }
        while !over() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    let told = async { while let Ok(Some(_)) = recv.read_chunk(64 * 1024, true).await {} };
    let (opening, told) = (std::pin::pin!(opening), std::pin::pin!(told));
    tokio::select! {
        done = opening => done?,
        () = told => anyhow::bail!("the node has closed the connection"),
    }
    println!("{} streams", opened.get());
    Ok(())
}
