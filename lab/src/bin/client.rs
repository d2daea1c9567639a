//! A client of the fault run: sends numbered messages to whom it is told, and writes what it sends, sees and is told
//! to a file. What to do comes on stdin, a line each:
//!
//! - `to ADDRESS…`: send to these from now on, by turns drawn by chance
//! - `slow MS`: take that long for each message
//! - `rebind`: go on from another UDP port
//! - `quiet`: send no more; `idle` is said on stdout once all is answered
//! - `stop`, or the end: leave
//!
//! It says `address ADDRESS` on stdout once it is connected, and ends by itself when its session has ended.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::BufRead;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use rand::Rng;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use trunkline::client::{Receipt, Unsettled};
use trunkline::{Address, Client, NodeName};
use trunkline_checker::{Event, Outcome};
use trunkline_lab::journal::{Journal, body, now, number_in};

/// How long to try to connect: the node may be starting, stopped, or behind a wire that is cut.
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);

/// How long one try may take.
const CONNECT_TRY: Duration = Duration::from_secs(5);

/// How long between two tries.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How long a TCP client that leaves may read what comes before the end of its connection.
const LAST_READ: Duration = Duration::from_secs(5);

/// What a message is that was seen and that nobody sent.
const NOBODY_SENT: u64 = u64::MAX;

/// Send and receive numbered messages, and write down what happens
#[derive(Debug, Parser)]
struct Args {
    /// The number of this client, which no other has
    #[arg(long)]
    number: u32,

    /// The number of its node
    #[arg(long)]
    node: usize,

    /// Connect here by TCP
    #[arg(
        long,
        value_name = "HOST:PORT",
        conflicts_with = "quic",
        required_unless_present = "quic"
    )]
    tcp: Option<SocketAddr>,

    /// Connect here by QUIC
    #[arg(long, value_name = "HOST:PORT")]
    quic: Option<NodeName>,

    /// Where the certificates are
    #[arg(long, value_name = "DIR")]
    certs: PathBuf,

    /// The file to write what happens to
    #[arg(long, value_name = "FILE")]
    journal: PathBuf,

    /// Messages a second
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    rate: u32,
}

/// What goes on.
struct Session {
    args: Args,
    journal: Journal,
    address: String,
    recipients: RefCell<Vec<Address>>,
    /// How long each message takes to be read.
    slow: Cell<Duration>,
    /// No more is to be sent.
    quiet: Cell<bool>,
    /// To leave.
    stop: Cell<bool>,
    /// The session has ended.
    cut_off: Cell<bool>,
    /// Messages that are not answered.
    pending: RefCell<HashSet<u64>>,
    sent: Cell<u32>,
    changed: Notify,
}

/// Why a client ends.
enum End {
    Stopped,
    CutOff,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (lines, commands) = unbounded_channel();
    std::thread::Builder::new().spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        match (args.tcp, args.quic.clone()) {
            (Some(node), _) => over_tcp(args, node, commands).await,
            (None, Some(node)) => over_quic(args, node, commands).await,
            (None, None) => bail!("--tcp or --quic"),
        }
    });
    // The thread that reads stdin may go on; it holds nothing.
    runtime.shutdown_background();
    ended
}

impl Session {
    /// Begins: the client has this address; it began to connect at `since`.
    fn new(args: Args, address: String, since: u64, confirms: bool) -> anyhow::Result<Self> {
        let journal = Journal::open(&args.journal)?;
        journal.write(Event::Joined {
            client: address.clone(),
            node: args.node,
            confirms,
            since,
        })?;
        println!("address {address}");
        Ok(Self {
            args,
            journal,
            address,
            recipients: RefCell::default(),
            slow: Cell::default(),
            quiet: Cell::default(),
            stop: Cell::default(),
            cut_off: Cell::default(),
            pending: RefCell::default(),
            sent: Cell::default(),
            changed: Notify::new(),
        })
    }

    /// Does what it is told. Ends only with an error.
    async fn obey(
        &self,
        mut commands: UnboundedReceiver<String>,
        rebind: impl Fn() -> std::io::Result<()>,
    ) -> anyhow::Error {
        while let Some(line) = commands.recv().await {
            let words: Vec<&str> = line.split(' ').collect();
            match *words.as_slice() {
                ["to", ref addresses @ ..] => {
                    *self.recipients.borrow_mut() =
                        addresses.iter().filter_map(|address| address.parse().ok()).collect();
                }
                ["slow", ms] => self.slow.set(Duration::from_millis(ms.parse().unwrap_or_default())),
                ["rebind"] => {
                    if let Err(error) = rebind() {
                        return error.into();
                    }
                }
                ["quiet"] => self.quiet.set(true),
                ["stop"] => self.stop.set(true),
                _ => return anyhow::anyhow!("not a command: {line}"),
            }
            self.changed.notify_one();
        }
        self.quiet.set(true);
        self.stop.set(true);
        self.changed.notify_one();
        std::future::pending().await
    }

    /// The next message to send, written down as sent; `None` when there is none to be sent now.
    fn next(&self) -> anyhow::Result<Option<(u64, Address)>> {
        if self.quiet.get() || self.cut_off.get() {
            return Ok(None);
        }
        let recipients = self.recipients.borrow();
        let Some(to) = recipients.get(rand::rng().random_range(0..recipients.len().max(1))) else {
            return Ok(None);
        };
        self.sent.set(self.sent.get() + 1);
        let message = u64::from(self.args.number) << 32 | u64::from(self.sent.get());
        self.pending.borrow_mut().insert(message);
        self.journal.write(Event::Sent {
            message,
            from: self.address.clone(),
            to: to.to_string(),
        })?;
        Ok(Some((message, to.clone())))
    }

    fn seen(&self, text: &str, from: &str) -> std::io::Result<()> {
        let message = number_in(text).unwrap_or(NOBODY_SENT);
        if message == NOBODY_SENT {
            eprintln!("seen, and sent by nobody: {from}: {text:?}");
        }
        self.journal.write(Event::Seen {
            message,
            from: from.to_owned(),
            by: self.address.clone(),
        })
    }

    fn told(&self, message: u64, outcome: Outcome, code: &str) -> std::io::Result<()> {
        self.journal.write_told(message, outcome, code)?;
        self.pending.borrow_mut().remove(&message);
        self.changed.notify_one();
        Ok(())
    }

    fn is_cut_off(&self) {
        self.cut_off.set(true);
        self.changed.notify_one();
    }

    /// Waits for the end. Answers come even after the session has ended.
    async fn end(&self) -> End {
        let mut idle_said = false;
        loop {
            let all_answered = self.pending.borrow().is_empty();
            if self.quiet.get() && all_answered && !idle_said {
                idle_said = true;
                println!("idle");
            }
            if self.cut_off.get() && all_answered {
                return End::CutOff;
            }
            if self.stop.get() {
                return End::Stopped;
            }
            self.changed.notified().await;
        }
    }

    /// Writes down the end. Whoever leaves without being answered is not said to have left: nothing excuses that.
    fn ended(&self, end: &End) -> std::io::Result<()> {
        let client = self.address.clone();
        match end {
            End::CutOff => self.journal.write(Event::CutOff { client }),
            End::Stopped if self.pending.borrow().is_empty() => self.journal.write(Event::Gone { client }),
            End::Stopped => Ok(()),
        }
    }

    fn ticks(&self) -> tokio::time::Interval {
        let mut ticks = interval(Duration::from_secs(1) / self.args.rate.max(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks
    }
}

/// Calls until it succeeds or the time is over. Says when the try began that succeeded.
async fn connected<T>(connect: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<(T, u64)> {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    loop {
        let since = now();
        let tried = timeout(CONNECT_TRY, connect()).await.map_err(anyhow::Error::from);
        match tried.flatten() {
            Ok(connected) => return Ok((connected, since)),
            Err(error) if Instant::now() > deadline => return Err(error.context("no connection")),
            Err(_) => sleep(CONNECT_PAUSE).await,
        }
    }
}

async fn over_quic(args: Args, node: NodeName, commands: UnboundedReceiver<String>) -> anyhow::Result<()> {
    let (client, since) = connected(async || Ok(Client::connect(&node, &args.certs).await?)).await?;
    let session = Session::new(args, client.address().to_string(), since, true)?;
    let (receipts, awaited) = unbounded_channel();
    let end = tokio::select! {
        end = session.end() => end,
        failed = session.obey(commands, || client.rebind()) => return Err(failed),
        failed = send_over_quic(&session, &client, receipts) => return failed,
        failed = receive_over_quic(&session, &client) => return failed,
        failed = await_receipts(&session, awaited) => return failed,
    };
    session.ended(&end)?;
    client.close().await;
    Ok(())
}

/// Sends. Ends only with an error.
async fn send_over_quic(
    session: &Session,
    client: &Client,
    receipts: UnboundedSender<(u64, Receipt)>,
) -> anyhow::Result<()> {
    let mut ticks = session.ticks();
    loop {
        ticks.tick().await;
        let Some((message, to)) = session.next()? else {
            continue;
        };
        match client.send_with_receipt(&to, body(message)).await {
            Ok(receipt) => receipts.send((message, receipt))?,
            // It was not sent at all.
            Err(_) => session.told(message, Outcome::Refused, "not-sent")?,
        }
    }
}

async fn receive_over_quic(session: &Session, client: &Client) -> anyhow::Result<()> {
    while let Some(event) = client.receive_unsettled().await {
        let Unsettled::Message(delivery) = event else {
            bail!("news of a message sent without a receipt");
        };
        pause(session).await;
        let message = delivery.message();
        session.seen(&message.text(), &message.from.to_string())?;
        delivery.accept();
    }
    session.is_cut_off();
    std::future::pending().await
}

async fn await_receipts(session: &Session, mut awaited: UnboundedReceiver<(u64, Receipt)>) -> anyhow::Result<()> {
    let mut all = JoinSet::new();
    loop {
        tokio::select! {
            Some((message, receipt)) = awaited.recv() => {
                all.spawn(async move { (message, receipt.await) });
            }
            Some(told) = all.join_next() => {
                let (message, outcome) = told?;
                let code = outcome.code().map(|code| code.to_string()).unwrap_or_default();
                let outcome = match outcome {
                    trunkline::Outcome::Delivered => Outcome::Delivered,
                    trunkline::Outcome::Refused(_) => Outcome::Refused,
                    trunkline::Outcome::Unknown(_) => Outcome::Unknown,
                };
                session.told(message, outcome, &code)?;
            }
            else => return Ok(()),
        }
    }
}

/// Takes its time for a message.
async fn pause(session: &Session) {
    let slow = session.slow.get();
    if !slow.is_zero() {
        sleep(slow).await;
    }
}

async fn over_tcp(args: Args, node: SocketAddr, commands: UnboundedReceiver<String>) -> anyhow::Result<()> {
    let greeted = async || {
        let (reader, writer) = TcpStream::connect(node).await?.into_split();
        let mut reader = BufReader::new(reader);
        let mut greeting = String::new();
        reader.read_line(&mut greeting).await?;
        let address = greeting
            .trim_end()
            .strip_prefix("you is  : ")
            .context("not greeted")?
            .to_owned();
        anyhow::Ok((address, reader, writer))
    };
    let ((address, mut reader, mut writer), since) = connected(greeted).await?;
    let session = Session::new(args, address, since, false)?;
    let receiving = receive_over_tcp(&session, &mut reader);
    tokio::pin!(receiving);
    let end = tokio::select! {
        end = session.end() => end,
        failed = session.obey(commands, || Ok(())) => return Err(failed),
        failed = send_over_tcp(&session, &mut writer) => return failed,
        received = &mut receiving => received.map(|_| End::CutOff)?,
    };
    session.ended(&end)?;
    // Fails for a connection that is gone.
    let _ = writer.shutdown().await;
    if matches!(end, End::Stopped)
        && let Ok(received) = timeout(LAST_READ, receiving).await
        && received?
    {
        let client = session.address.clone();
        session.journal.write(Event::ReadAll { client })?;
    }
    Ok(())
}

/// Sends. Ends only with an error.
async fn send_over_tcp(session: &Session, writer: &mut OwnedWriteHalf) -> anyhow::Result<()> {
    let mut ticks = session.ticks();
    loop {
        ticks.tick().await;
        let Some((message, to)) = session.next()? else {
            continue;
        };
        let line = json!({"to": to.to_string(), "body": body(message), "id": message.to_string(), "cmd": "sendMsg"});
        if writer.write_all(format!("{line}\n").as_bytes()).await.is_err() {
            // The reader will find the end too.
            return std::future::pending().await;
        }
    }
}

/// Receives until the connection has ended. Gives whether it was read to its end, and did not break.
async fn receive_over_tcp(session: &Session, reader: &mut BufReader<OwnedReadHalf>) -> anyhow::Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).await;
        // The last line of a connection that breaks may be a part of one.
        if read.is_err() || !line.ends_with(b"\n") {
            return Ok(read.is_ok() && line.is_empty());
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\r', '\n']);
        if text.starts_with('{') {
            let receipt: Value = serde_json::from_str(text)?;
            let field = |name: &str| receipt.get(name).and_then(Value::as_str).unwrap_or_default();
            let outcome = match field("status") {
                "delivered" => Outcome::Delivered,
                "refused" => Outcome::Refused,
                "unknown" => Outcome::Unknown,
                _ => bail!("not a receipt: {text}"),
            };
            session.told(field("id").parse()?, outcome, field("code"))?;
        } else if let Some((from, said)) = text.split_once(" say : ") {
            pause(session).await;
            session.seen(said, from)?;
        } else {
            bail!("not expected: {text}");
        }
    }
}
