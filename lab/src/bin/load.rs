//! The load: senders in one namespace write to receivers in another, each message at its due time, and every message
//! that arrives is checked. All in one process, so that there is one clock.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use trunkline_lab::control::Control;
use trunkline_lab::figures::{Check, Figures, Load};
use trunkline_lab::namespace::{join, sleep_precisely, spawn_in};
use trunkline_lab::row::{Kind, ROWS, Row, find};
use trunkline_lab::target::{Said, Target};

/// How long a client waits for its greeting.
const GREETING: Duration = Duration::from_secs(5);

/// How long the load goes on before the wire is cut, and after it is back.
const BEFORE_CUT: Duration = Duration::from_secs(5);
const AFTER_CUT: Duration = Duration::from_secs(10);

/// Messages of this first time are checked; their latencies are not recorded.
const WARM_UP: Duration = Duration::from_secs(2);

/// Without an arrival for so long, what has not come is lost; after a cut at least for as long as that took, as TCP
/// waits twice as long each time before it tries again.
const QUIET: Duration = Duration::from_secs(10);

/// Repeated messages would come within this time after the last.
const REPEATS: Duration = Duration::from_secs(1);

/// Measure one row with one relay
#[derive(Debug, Parser)]
struct Args {
    /// What is measured
    #[arg(long, value_enum)]
    target: Option<Target>,

    /// The row to measure
    #[arg(long, value_name = "NAME")]
    row: Option<String>,

    /// Print the names of all rows, and end
    #[arg(long)]
    rows: bool,

    /// Print how many links a row has, and end
    #[arg(long, value_name = "NAME")]
    links: Option<String>,

    /// The senders' namespace
    #[arg(long, value_name = "NAMESPACE", default_value = "a")]
    a: String,

    /// The receivers' namespace
    #[arg(long, value_name = "NAMESPACE", default_value = "b")]
    b: String,

    /// The senders' node; one for each link of the row
    #[arg(long, value_name = "IP:PORT", default_value = "10.77.0.1:1215")]
    to_a: Vec<SocketAddr>,

    /// The receivers' node; one for each link of the row
    #[arg(long, value_name = "IP:PORT", default_value = "10.77.0.2:1215")]
    to_b: Vec<SocketAddr>,

    /// Where the wire takes commands
    #[arg(long, value_name = "PATH", default_value = "wire.sock")]
    wire: PathBuf,

    /// How long to measure, in rows without a cut
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,

    /// Senders, each with a receiver
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: u16,

    /// Messages a second over each link
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,

    /// A file for the figures, as JSON
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// What senders were told.
#[derive(Debug, Default)]
struct Told {
    delivered: u64,
    errors: u64,
    error: String,
    broken: u64,
}

/// What the threads of a run share.
struct Run {
    target: Target,
    load: Load,
    receipts: bool,
    check: Mutex<Check>,
    told: Mutex<Told>,
    /// Whether a sender is to answer a ping: reading and writing are on different threads.
    pinged: Vec<AtomicBool>,
    start: Instant,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.rows {
        for row in ROWS {
            println!("{}", row.name);
        }
        return Ok(());
    }
    if let Some(name) = &args.links {
        println!("{}", row(name)?.links);
        return Ok(());
    }
    let (Some(target), Some(name)) = (args.target, &args.row) else {
        bail!("say what to measure: --target and --row");
    };
    let row = row(name)?;
    sleep_precisely();
    let mut figures = measure(&args, target, row)?;
    figures.row = row.name.to_owned();
    figures.target = Some(target);
    print(&figures, row);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)?)
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

fn row(name: &str) -> anyhow::Result<&'static Row> {
    find(name).with_context(|| format!("no row is called {name}; --rows lists them"))
}

fn measure(args: &Args, target: Target, row: &Row) -> anyhow::Result<Figures> {
    let mut wire = Control::connect(&args.wire)?;
    wire.say("clear")?;
    for line in row.wire {
        wire.say(line)?;
    }
    let measured = match row.cut {
        Some(cut) => BEFORE_CUT + cut + AFTER_CUT,
        None => Duration::from_secs(args.seconds.into()),
    };
    let links = row.links;
    ensure!(
        args.to_a.len() == links && args.to_b.len() == links,
        "the row has {links} links: say --to-a and --to-b for each"
    );
    let rate = args.rate * u32::try_from(links)?;
    let count = |time: Duration| (time.as_secs_f64() * f64::from(rate)) as u64;
    let load = Load {
        pairs: args.pairs.into(),
        links,
        rate,
        body: row.body,
        messages: count(WARM_UP + measured),
        warm_up: count(WARM_UP),
    };
    let mut quiet = QUIET.max(row.cut.unwrap_or_default());
    if row.kind() == Kind::Shared {
        // What the wire does not hold is sent when the load is over.
        quiet = quiet.max(2 * measured);
    }
    let receivers = connect(&args.b, &args.to_b, target, load, true)?;
    // A cluster of NATS tells its other servers of a subject; there is no sign that it has.
    std::thread::sleep(Duration::from_secs(1));
    let senders = connect(&args.a, &args.to_a, target, load, false)?;
    let addresses = receivers.iter().map(|(_, address)| address.clone()).collect();
    let run = Arc::new(Run {
        target,
        load,
        receipts: target == Target::Trunkline && row.cut.is_some(),
        check: Mutex::new(Check::new(load)?),
        told: Mutex::default(),
        pinged: (0..load.pairs).map(|_| AtomicBool::new(false)).collect(),
        start: Instant::now() + Duration::from_millis(200),
    });
    let before = wire.stats()?;
    let (stop, stopped) = watch::channel(false);
    let (receiving, hearing) = (read_all(&run, receivers, &stopped, true)?, {
        let clones: Result<Vec<_>, _> = senders
            .iter()
            .map(|(socket, address)| Ok::<_, std::io::Error>((socket.try_clone()?, address.clone())))
            .collect();
        read_all(&run, clones?, &stopped, false)?
    });
    let sending = {
        let run = Arc::clone(&run);
        std::thread::spawn(move || send(&run, senders, addresses, quiet))
    };
    sleep_until(run.start + WARM_UP);
    run.check.lock().count_links(true);
    if let Some(cut) = row.cut {
        sleep_until(run.start + WARM_UP + BEFORE_CUT);
        wire.say("cut both")?;
        sleep_until(run.start + WARM_UP + BEFORE_CUT + cut);
        // Before the wire is told: nothing that was late may pass as having come in time.
        run.check.lock().mended(run.start.elapsed());
        wire.say("mend")?;
    }
    sleep_until(run.start + WARM_UP + measured);
    run.check.lock().count_links(false);
    let after = wire.stats()?;
    let unsent = join(sending)?;
    wait_for_the_last(&run, quiet);
    stop.send_replace(true);
    join(receiving)?;
    join(hearing)?;

    let mut figures = run.check.lock().figures();
    let told = std::mem::take(&mut *run.told.lock());
    figures.delivered = run.receipts.then_some(told.delivered);
    figures.errors = told.errors;
    figures.error = told.error;
    figures.broken = told.broken;
    if unsent > 0 {
        eprintln!("{unsent} bytes could not be written to the senders' node");
    }
    let [ab, ba] = wire.stats()?;
    let [ab_before, _] = before;
    let [ab_after, _] = after;
    let seconds = (WARM_UP + measured).as_secs_f64();
    figures.megabits = ab_after.bytes.saturating_sub(ab_before.bytes) as f64 * 8.0 / seconds / 1e6;
    figures.wire = [ab, ba];
    Ok(figures)
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

/// Waits until every message is there, or none has come for long.
fn wait_for_the_last(run: &Run, quiet: Duration) {
    let sent = run.start.elapsed();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let (complete, last) = {
            let check = run.check.lock();
            (check.received == run.load.messages, check.last.max(sent))
        };
        if complete {
            std::thread::sleep(REPEATS);
            return;
        }
        if run.start.elapsed() > last + quiet {
            return;
        }
    }
}

type Clients = Vec<(TcpStream, String)>;

/// Connects clients from within a namespace, and gives each with its address.
fn connect(
    namespace: &str,
    nodes: &[SocketAddr],
    target: Target,
    load: Load,
    receive: bool,
) -> anyhow::Result<Clients> {
    let nodes = nodes.to_vec();
    join(spawn_in(namespace, move || {
        (0..load.pairs)
            .map(|pair| {
                let node = *nodes.get(load.link(pair)).context("a link without a node")?;
                let mut socket =
                    TcpStream::connect_timeout(&node, GREETING).with_context(|| format!("can't connect to {node}"))?;
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(GREETING))?;
                socket.write_all(target.hello(receive.then_some(pair)).as_bytes())?;
                let address = greeting(&mut socket, target, pair).with_context(|| format!("no greeting by {node}"))?;
                socket.set_nonblocking(true)?;
                Ok((socket, address))
            })
            .collect()
    })?)
}

fn greeting(socket: &mut TcpStream, target: Target, pair: usize) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some((said, taken)) = target.said(&bytes) {
            if let Said::Greeting(greeting) = said {
                return Ok(target.address(greeting, pair));
            }
            bytes.drain(..taken);
        }
        match socket.read(&mut buffer)? {
            0 => bail!("the connection was closed"),
            length => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
        }
    }
}

type Thread = std::thread::JoinHandle<anyhow::Result<()>>;

/// Reads all that comes to these clients, until it is told to stop.
fn read_all(
    run: &Arc<Run>,
    clients: Clients,
    stopped: &watch::Receiver<bool>,
    receive: bool,
) -> anyhow::Result<Thread> {
    let (run, mut stopped) = (Arc::clone(run), stopped.clone());
    Ok(std::thread::Builder::new().spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut reading = JoinSet::new();
            for (pair, (socket, _)) in clients.into_iter().enumerate() {
                let socket = tokio::net::TcpStream::from_std(socket)?;
                let run = Arc::clone(&run);
                reading.spawn(async move {
                    // Ended or failed, the connection is gone too early.
                    let _ = read(&run, pair, socket, receive).await;
                    run.told.lock().broken += 1;
                });
            }
            let _ = stopped.wait_for(|stopped| *stopped).await;
            Ok(())
        })
    })?)
}

async fn read(run: &Run, pair: usize, mut socket: tokio::net::TcpStream, receive: bool) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(16 * 1024);
    loop {
        if socket.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        let mut at = 0;
        let mut ping = false;
        while let Some((said, taken)) = run.target.said(bytes.get(at..).unwrap_or_default()) {
            at += taken;
            match said {
                Said::Body(body) => run.check.lock().arrived(pair, body, run.start.elapsed()),
                Said::Ping => ping = true,
                Said::Delivered => run.told.lock().delivered += 1,
                Said::Error(text) => {
                    let mut told = run.told.lock();
                    told.errors += 1;
                    told.error = text.to_owned();
                }
                Said::Greeting(_) | Said::Other => {}
            }
        }
        bytes.drain(..at);
        if ping && receive {
            socket.write_all(b"PONG\r\n").await?;
        } else if ping && let Some(pinged) = run.pinged.get(pair) {
            pinged.store(true, Ordering::Relaxed);
        }
    }
}

/// Writes each message at its due time; gives the bytes that could not be written. A sender that is not read from holds
/// up its own messages only.
fn send(run: &Run, senders: Clients, addresses: Vec<String>, patience: Duration) -> anyhow::Result<usize> {
    let mut senders: Vec<_> = senders
        .into_iter()
        .zip(addresses)
        .map(|((socket, _), address)| (socket, address, Vec::new()))
        .collect();
    for number in 0..run.load.messages {
        sleep_until(run.start + run.load.due(number));
        let pair = run.load.pair(number);
        let Some((socket, address, waiting)) = senders.get_mut(pair) else {
            bail!("no sender {pair}");
        };
        if run
            .pinged
            .get(pair)
            .is_some_and(|pinged| pinged.swap(false, Ordering::Relaxed))
        {
            waiting.extend_from_slice(b"PONG\r\n");
        }
        let id = run.receipts.then_some(number);
        run.target.message(address, &run.load.body(number), id, waiting);
        write(socket, waiting)?;
    }
    // What a node did not take in time gets another while.
    let until = Instant::now() + patience;
    while senders.iter().any(|(.., waiting)| !waiting.is_empty()) && Instant::now() < until {
        for (socket, _, waiting) in &mut senders {
            write(socket, waiting)?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(senders.iter().map(|(.., waiting)| waiting.len()).sum())
}

/// Writes what a socket takes at once. What a broken connection does not take is lost, and is counted as such.
fn write(mut socket: &TcpStream, waiting: &mut Vec<u8>) -> anyhow::Result<()> {
    while !waiting.is_empty() {
        match socket.write(waiting) {
            Ok(written) => drop(waiting.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => waiting.clear(),
        }
    }
    Ok(())
}

fn print(figures: &Figures, row: &Row) {
    let target = figures.target.map_or("", Target::name);
    println!("{} ({}), {target}", row.title, row.name);
    println!(
        "  latency ms   p50 {:.2}   p90 {:.2}   p99 {:.2}   max {:.2}",
        figures.p50, figures.p90, figures.p99, figures.max
    );
    println!(
        "  sent {}   lost {}   repeated {}   out of order {}   wrong {}",
        figures.sent, figures.lost, figures.repeated, figures.reordered, figures.wrong
    );
    if row.cut.is_some() {
        match figures.backlog {
            Some(backlog) => println!("  backlog delivered {backlog:.3} s after the wire's return"),
            None => println!("  nothing of the backlog came"),
        }
    }
    if row.links > 1 {
        println!("  over each link while all were loaded: {:?}", figures.by_link);
    }
    if let Some(delivered) = figures.delivered {
        println!("  senders were told: {delivered} delivered");
    }
    if figures.errors > 0 {
        println!(
            "  senders were told {} errors, such as: {}",
            figures.errors, figures.error
        );
    }
    if figures.broken > 0 {
        println!("  {} connections of clients broke", figures.broken);
    }
    let [ab, ba] = &figures.wire;
    println!(
        "  wire: {:.2} Mbit/s from A to B; packets {} and {} back; lost {} and {}; dropped {} and {}",
        figures.megabits, ab.packets, ba.packets, ab.lost, ba.lost, ab.dropped, ba.dropped
    );
}
