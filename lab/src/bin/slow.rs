//! What slow, stopped and flooding clients cost the others: two nodes on loopback, everything else in this process.
//!
//! With several builds (`--trunkline` more than once) they take turns, so that what else the machine does falls on all.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Parser, ValueEnum};
use socket2::SockRef;
use tokio::sync::watch;
use tokio::task::JoinSet;
use trunkline::{Address, Client, Limits, MESSAGE_OVERHEAD, Outcome};
use trunkline_lab::namespace::{join, sleep_precisely};
use trunkline_lab::nodes::{Node, Nodes, connect};
use trunkline_lab::talk::{WARM_UP, intact, runtime, talk, tell_both, unharmed};
use trunkline_lab::target::{Said, Target};

/// How much is pushed at a reader that has stopped, and in what pieces.
const PUSHED: u64 = 1 << 30;
const PUSHED_BODY: usize = 4096;

const MIB: f64 = (1 << 20) as f64;

/// Measure what slow clients cost the others
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct Args {
    /// What to measure
    scenario: Scenario,

    /// The program to measure; several take turns
    #[arg(long, value_name = "FILE", required = true)]
    trunkline: Vec<PathBuf>,

    /// How many times
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u32,

    /// How long to measure at a time, where it is not a number of messages
    #[arg(long, value_name = "N", default_value_t = 8)]
    seconds: u32,

    /// The client that pushes at a reader that has stopped, if not one of each kind
    #[arg(long, value_name = "KIND")]
    sender: Option<Kind>,

    /// The reader that has stopped, if not one of each kind
    #[arg(long, value_name = "KIND")]
    reader: Option<Kind>,

    /// Conversations that are measured
    #[arg(long, value_name = "N", default_value_t = 50)]
    pairs: u16,

    /// Their messages a second in all
    #[arg(long, value_name = "N", default_value_t = 2000)]
    rate: u32,

    /// Megabytes that are piped
    #[arg(long, value_name = "N", default_value_t = 200)]
    megabytes: u64,

    /// Megabytes a second that are read of them
    #[arg(long, value_name = "N", default_value_t = 5)]
    megabytes_a_second: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// A reader that stops while a sender pushes 1 GiB at it: what others, and the nodes' memory, notice of it
    Stopped,
    /// `cat FILE | nc NODE` to a reader on the other node that is limited to some megabytes a second
    Pipe,
    /// Twelve clients that flood a node: what two others notice
    Flood,
    /// All pairs at full speed
    Throughput,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    sleep_precisely();
    match args.scenario {
        Scenario::Stopped => {
            let kinds = |one: Option<Kind>| one.map_or_else(|| vec![Kind::Tcp, Kind::Quic], |one| vec![one]);
            for reader in kinds(args.reader) {
                for sender in kinds(args.sender) {
                    for build in &args.trunkline {
                        stopped(&args, build, sender, reader)?;
                    }
                }
            }
        }
        scenario => {
            for round in 0..args.rounds {
                for build in &args.trunkline {
                    print!("round {round}, {}: ", build.display());
                    match scenario {
                        Scenario::Pipe => pipe(&args, &Nodes::start(build, &[])?)?,
                        Scenario::Flood => flood(&args, &Nodes::start(build, &[])?)?,
                        Scenario::Stopped | Scenario::Throughput => throughput(&args, &Nodes::start(build, &[])?)?,
                    }
                }
            }
        }
    }
    Ok(())
}

// --- a reader that stops ----------------------------------------------------------------------------------------------

/// How a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Tcp,
    Quic,
}

/// What became of what was pushed.
#[derive(Debug, Default)]
struct Pushed {
    messages: u64,
    /// How many messages ended how.
    ends: BTreeMap<String, u64>,
}

/// The bytes that a node has taken of a sender so far, and whether the sender is to stop.
#[derive(Debug, Default)]
struct Pushing {
    taken: AtomicU64,
    over: AtomicBool,
}

type Thread<T> = JoinHandle<anyhow::Result<T>>;

/// A client that reads nothing, until it is told to go.
fn stopped_reader(kind: Kind, nodes: &Nodes, gone: watch::Receiver<bool>) -> anyhow::Result<(Thread<()>, String)> {
    let (mut gone, (node, certs)) = (gone, (nodes.b.quic, nodes.certs().to_owned()));
    match kind {
        Kind::Tcp => {
            let (socket, address) = connect(nodes.b.tcp)?;
            let thread = std::thread::spawn(move || {
                let _ = runtime()?.block_on(gone.wait_for(|gone| *gone));
                drop(socket);
                Ok(())
            });
            Ok((thread, address))
        }
        Kind::Quic => {
            let (sender, address) = std::sync::mpsc::channel();
            let thread = std::thread::spawn(move || {
                runtime()?.block_on(async {
                    let client = Client::connect(&node.into(), &certs).await?;
                    sender.send(client.address().to_string())?;
                    let _ = gone.wait_for(|gone| *gone).await;
                    Ok(())
                })
            });
            let address = address.recv().context("the QUIC reader did not connect")?;
            Ok((thread, address))
        }
    }
}

fn push(kind: Kind, nodes: &Nodes, to: String, at: Instant, pushing: Arc<Pushing>) -> anyhow::Result<Thread<Pushed>> {
    match kind {
        Kind::Tcp => {
            let (socket, _) = connect(nodes.a.tcp)?;
            Ok(std::thread::spawn(move || push_lines(&socket, &to, at, &pushing)))
        }
        Kind::Quic => {
            let (node, certs) = (nodes.a.quic, nodes.certs().to_owned());
            Ok(std::thread::spawn(move || {
                runtime()?.block_on(async {
                    let client = Client::connect(&node.into(), &certs).await?;
                    push_streams(&client, &to.parse()?, at, &pushing).await
                })
            }))
        }
    }
}

fn push_lines(socket: &TcpStream, to: &str, at: Instant, pushing: &Arc<Pushing>) -> anyhow::Result<Pushed> {
    let answers = {
        let (socket, pushing) = (socket.try_clone()?, Arc::clone(pushing));
        std::thread::spawn(move || {
            let mut ends = BTreeMap::new();
            for line in BufReader::new(socket).lines() {
                let line = line?;
                let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                let field = |name| value.get(name).and_then(serde_json::Value::as_str);
                let end = match (field("status"), field("code")) {
                    (Some("delivered"), _) => "delivered".to_owned(),
                    (Some(status), Some(code)) => format!("{status} ({code})"),
                    _ => line,
                };
                if end != "delivered" {
                    pushing.over.store(true, Ordering::Relaxed);
                }
                *ends.entry(end).or_default() += 1;
            }
            Ok::<_, anyhow::Error>(ends)
        })
    };
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
    socket.set_write_timeout(Some(Duration::from_millis(100)))?;
    let body = "x".repeat(PUSHED_BODY);
    let (mut socket, mut messages, mut taken) = (socket, 0, 0);
    let mut line = Vec::new();
    while taken < PUSHED && !pushing.over.load(Ordering::Relaxed) {
        line.clear();
        Target::Trunkline.message(to, &body, Some(messages), &mut line);
        // Up to its end, so that every line that was begun has an answer.
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match socket.write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
        messages += 1;
        taken += line.len() as u64;
        pushing.taken.store(taken, Ordering::Relaxed);
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    Ok(Pushed {
        messages,
        ends: join(answers)?,
    })
}

async fn push_streams(client: &Client, to: &Address, at: Instant, pushing: &Pushing) -> anyhow::Result<Pushed> {
    tokio::time::sleep_until(at.into()).await;
    let body = bytes::Bytes::from(vec![b'x'; PUSHED_BODY]);
    let mut receipts = JoinSet::new();
    let mut pushed = Pushed::default();
    let mut taken = 0;
    while taken < PUSHED && !pushing.over.load(Ordering::Relaxed) {
        tokio::select! {
            receipt = client.send_with_receipt(to, body.clone()) => {
                receipts.spawn(receipt?);
                pushed.messages += 1;
                taken += PUSHED_BODY as u64;
                pushing.taken.store(taken, Ordering::Relaxed);
            }
            Some(outcome) = receipts.join_next() => pushed.ended(outcome?, pushing),
        }
    }
    while let Some(outcome) = receipts.join_next().await {
        pushed.ended(outcome?, pushing);
    }
    Ok(pushed)
}

impl Pushed {
    fn ended(&mut self, outcome: Outcome, pushing: &Pushing) {
        let end = match outcome {
            Outcome::Delivered => "delivered".to_owned(),
            Outcome::Refused(code) => format!("refused ({code})"),
            Outcome::Unknown(code) => format!("unknown ({code})"),
        };
        if outcome != Outcome::Delivered {
            pushing.over.store(true, Ordering::Relaxed);
        }
        *self.ends.entry(end).or_default() += 1;
    }
}

/// What the UDP sockets of a node, for clients and for links, are read into: 32 reads of 64 packets of 1,472 bytes each
/// (quinn 0.11, with GRO). It is there from the beginning, and counts once bursts have filled it.
const RECEIVE_BUFFERS: usize = 2 * 32 * 64 * 1472;

/// What the documentation of `Limits` allows a node to hold of messages for the one sender and the one reader, and its receive
/// buffers.
fn bound() -> [f64; 2] {
    let limits = Limits::default();
    let largest = limits.max_message + 1024 + MESSAGE_OVERHEAD;
    let from_sender = limits.client_bytes + largest + largest + 64 * 1024;
    let to_reader = limits.outbox_bytes + largest;
    [from_sender, to_reader].map(|messages| (messages + RECEIVE_BUFFERS) as f64 / MIB)
}

fn stopped(args: &Args, build: &std::path::Path, sender: Kind, reader: Kind) -> anyhow::Result<()> {
    println!(
        "{}: a {sender:?} sender, a {reader:?} reader that takes nothing",
        build.display()
    );
    // Its end comes after what is measured.
    let stall = args.seconds + 4;
    let nodes = Nodes::start(build, &["--stall".to_owned(), stall.to_string()])?;
    let memory = |node: &Node| node.memory().map(|(most, now)| (most as f64 / MIB, now as f64 / MIB));
    let (mut ratios, mut base) = (Vec::new(), None);
    for round in 0..args.rounds {
        let without = talk(args.seconds, nodes.a.tcp, nodes.b.tcp, args.pairs, args.rate)?;
        let [(a0, _), (b0, _)] = *base.get_or_insert([memory(&nodes.a)?, memory(&nodes.b)?]);

        let (gone, waits) = watch::channel(false);
        let (reading, address) = stopped_reader(reader, &nodes, waits)?;
        let pushing = Arc::new(Pushing::default());
        let at = Instant::now() + WARM_UP + Duration::from_millis(500);
        let pushed = push(sender, &nodes, address, at, Arc::clone(&pushing))?;
        let with = talk(args.seconds, nodes.a.tcp, nodes.b.tcp, args.pairs, args.rate)?;
        let taken = pushing.taken.load(Ordering::Relaxed);
        let held = !pushing.over.load(Ordering::Relaxed) && taken < PUSHED;
        let pushed = join(pushed)?;
        gone.send_replace(true);
        join(reading)?;

        let [(a, a_now), (b, b_now)] = [memory(&nodes.a)?, memory(&nodes.b)?];
        tell_both(round, &without, &with);
        println!(
            "     taken of the sender {:.2} MiB, held {held}; {} messages, of which {:?}",
            taken as f64 / MIB,
            pushed.messages,
            pushed.ends
        );
        println!(
            "     peak memory {a:.1} and {b:.1} MiB (before {a0:.1} and {b0:.1}, bound {:.1} and {:.1} more), now {a_now:.1} and {b_now:.1}",
            bound()[0],
            bound()[1]
        );
        unharmed(&[&without, &with])?;
        ensure!(held, "the sender was not held");
        ensure!(
            pushed.ends.values().sum::<u64>() == pushed.messages,
            "not every message had an end"
        );
        ensure!(a - a0 < bound()[0] && b - b0 < bound()[1], "more memory than stated");
        ratios.push(with.p99 / without.p99);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "  median of the ratios of p99: {:.2}",
        ratios.get(ratios.len() / 2).copied().unwrap_or_default()
    );
    Ok(())
}

// --- a pipe to a slow reader ------------------------------------------------------------------------------------------

fn pipe(args: &Args, nodes: &Nodes) -> anyhow::Result<()> {
    let (reader, address) = connect(nodes.b.tcp)?;
    let rate = args.megabytes_a_second * 1_000_000;
    let mut file = Vec::new();
    let mut lines = 0;
    while (file.len() as u64) < args.megabytes * 1_000_000 {
        Target::Trunkline.message(&address, &format!("{lines:.<120}"), Some(lines), &mut file);
        lines += 1;
    }
    let started = Instant::now();
    let reading = std::thread::spawn(move || read_slowly(reader, lines, rate));
    let mut nc = Command::new("nc")
        .args(["-N", &nodes.a.tcp.ip().to_string(), &nodes.a.tcp.port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("can't run nc; install Debian's netcat-openbsd")?;
    let (mut stdin, stdout) = (
        nc.stdin.take().context("no stdin")?,
        nc.stdout.take().context("no stdout")?,
    );
    let length = file.len();
    let writing = std::thread::spawn(move || Ok(stdin.write_all(&file)?));
    let (mut delivered, mut other) = (0_u64, Vec::new());
    for line in BufReader::new(stdout).lines().skip(1) {
        let line = line?;
        if line.contains("\"status\":\"delivered\"") {
            delivered += 1;
        } else {
            other.push(line);
        }
    }
    let status = nc.wait()?;
    let took = started.elapsed();
    join(writing)?;
    let read = join(reading)?;
    let [(a, _), (b, _)] = [nodes.a.memory()?, nodes.b.memory()?];
    println!(
        "{length} bytes, {lines} lines by nc; {read} bytes read, all lines there and in order; nc ended after \
         {:.1} s ({status}), {delivered} delivered, others {other:?}; peak memory {:.1} and {:.1} MiB",
        took.as_secs_f64(),
        a as f64 / MIB,
        b as f64 / MIB
    );
    ensure!(
        delivered == lines && other.is_empty() && status.success(),
        "not all was answered"
    );
    Ok(())
}

/// Reads numbered lines at most at this rate, and fails at the first that is not the next.
fn read_slowly(mut socket: TcpStream, lines: u64, rate: u64) -> anyhow::Result<u64> {
    let (mut bytes, mut total, mut next) = (Vec::new(), 0_u64, 0_u64);
    let mut buffer = vec![0; 64 * 1024];
    let started = Instant::now();
    while next < lines {
        let read = socket.read(&mut buffer)?;
        ensure!(read > 0, "the connection ended at line {next} of {lines}");
        total += read as u64;
        bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let mut at = 0;
        while let Some((said, taken)) = Target::Trunkline.said(bytes.get(at..).unwrap_or_default()) {
            at += taken;
            let Said::Body(body) = said else {
                bail!("something else than a message: {said:?}");
            };
            let number: u64 = std::str::from_utf8(body)?.trim_end_matches('.').parse()?;
            ensure!(number == next, "line {number} came where {next} was due");
            next += 1;
        }
        bytes.drain(..at);
        let due = started + Duration::from_secs_f64(total as f64 / rate as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(total)
}

// --- clients that flood -----------------------------------------------------------------------------------------------

/// What a flooding client writes, again and again.
fn nonsense(kind: usize) -> Vec<u8> {
    match kind % 4 {
        0 => vec![b'\n'; 64 * 1024],
        1 => vec![b'x'; 64 * 1024],
        2 => (0..64 * 1024).map(|_| rand::random()).collect(),
        _ => {
            let mut lines = Vec::new();
            while lines.len() < 64 * 1024 {
                Target::Trunkline.message("127.0.0.1:9:111111", "hello", None, &mut lines);
            }
            lines
        }
    }
}

fn flood(args: &Args, nodes: &Nodes) -> anyhow::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let node = nodes.a.tcp;
    let before = talk(args.seconds, node, node, 1, 500)?;
    let threads: Vec<Thread<u64>> = (0..12)
        .map(|kind| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let (bytes, mut total, mut waste) = (nonsense(kind), 0, vec![0; 64 * 1024]);
                while !over.load(Ordering::Relaxed) {
                    // A client that can't be followed is closed, and comes back.
                    let mut socket = TcpStream::connect(node)?;
                    socket.set_nonblocking(true)?;
                    while !over.load(Ordering::Relaxed) {
                        let (written, read) = (socket.write(&bytes), socket.read(&mut waste));
                        let idle = |done: &std::io::Result<usize>| {
                            done.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
                        };
                        match (&written, &read) {
                            (_, Ok(0)) => break,
                            (written, read) if idle(written) && idle(read) => {
                                std::thread::sleep(Duration::from_micros(200));
                            }
                            (Err(_), _) if !idle(&written) => break,
                            (_, Err(_)) if !idle(&read) => break,
                            (Ok(length), _) => total += *length as u64,
                            _ => {}
                        }
                    }
                }
                Ok(total)
            })
        })
        .collect();
    let during = talk(args.seconds, node, node, 1, 500)?;
    over.store(true, Ordering::Relaxed);
    let mut total = 0;
    for thread in threads {
        total += join(thread)?;
    }
    println!(
        "p50 / p99 / max before {:.2} / {:.2} / {:.2} ms, during {:.2} / {:.2} / {:.2}; {}; flooded with {:.0} MB/s",
        before.p50,
        before.p99,
        before.max,
        during.p50,
        during.p99,
        during.max,
        intact(&during),
        total as f64 / 1e6 / f64::from(args.seconds)
    );
    unharmed(&[&before, &during])
}

// --- full speed -------------------------------------------------------------------------------------------------------

fn throughput(args: &Args, nodes: &Nodes) -> anyhow::Result<()> {
    let pairs = usize::from(args.pairs);
    let counted = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let mut sending = Vec::new();
    for _ in 0..pairs {
        let ((mut receiver, address), (mut sender, _)) = (connect(nodes.b.tcp)?, connect(nodes.a.tcp)?);
        SockRef::from(&sender).set_send_buffer_size(256 * 1024)?;
        let counted = Arc::clone(&counted);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = receiver.read(&mut buffer) {
                let lines = buffer
                    .get(..read)
                    .unwrap_or_default()
                    .iter()
                    .filter(|byte| **byte == b'\n');
                counted.fetch_add(lines.count() as u64, Ordering::Relaxed);
            }
        });
        let over = Arc::clone(&over);
        sending.push(std::thread::spawn(move || {
            let mut chunk = Vec::new();
            while chunk.len() < 32 * 1024 {
                Target::Trunkline.message(&address, &"x".repeat(128), None, &mut chunk);
            }
            while !over.load(Ordering::Relaxed) {
                sender.write_all(&chunk)?;
            }
            Ok::<_, std::io::Error>(sender)
        }));
    }
    std::thread::sleep(WARM_UP);
    let (before, started) = (counted.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(Duration::from_secs(args.seconds.into()));
    let rate = (counted.load(Ordering::Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    for thread in sending {
        drop(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
    }
    println!("{rate:.0} messages a second");
    Ok(())
}
