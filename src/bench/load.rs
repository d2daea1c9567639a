//! Sends and receives, and counts.
//!
//! At full speed each sender is a task. At a given rate one thread writes for all of them: only a thread that sleeps by
//! itself is woken within microseconds of when a message is due.

use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::report::{Figures, Looked};
use super::speech::{Said, Speech};
use super::tally::{Stamp, Tally};
use super::{BenchError, Extent, Target, Transport, Workload};
use crate::Client;
use crate::address::Address;
use crate::client::Event;

/// How long a client may take until it may speak.
const READY: Duration = Duration::from_secs(10);

/// Without an arrival for so long, what has not come is lost.
const QUIET: Duration = Duration::from_secs(5);

/// How often it is looked whether all has come, and progress is told.
const LOOK: Duration = Duration::from_millis(50);

/// About how much a sender at full speed writes at once.
const CHUNK: usize = 32 * 1024;

/// How much is read at once.
const READ: usize = 64 * 1024;

/// How long the one who writes for all waits where a pair has as much under way as it may.
const HELD: Duration = Duration::from_micros(50);

/// How far a run has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// What part of it is over, 0 to 1.
    pub part: f64,
    /// Messages that have arrived.
    pub arrived: u64,
}

/// What all tasks of a run share.
struct Run {
    workload: Workload,
    start: Instant,
    pairs: Vec<Pair>,
    tally: Mutex<Tally>,
    /// Of the run's time, in nanoseconds.
    measured: Range<u64>,
    /// Nothing more is sent.
    stop: CancellationToken,
    failure: Mutex<Option<BenchError>>,
}

#[derive(Default)]
struct Pair {
    sent: AtomicU64,
    received: AtomicU64,
    room: Notify,
    /// The relay wants to know whether the sender is alive.
    pinged: AtomicBool,
}

impl Run {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn pair(&self, pair: usize) -> Result<&Pair, BenchError> {
        let unknown = || BenchError::Workload(format!("there is no pair {pair}"));
        self.pairs.get(pair).ok_or_else(unknown)
    }

    /// How many messages a pair may send now, of which it has sent this many.
    fn room(&self, pair: &Pair, sent: u64) -> u64 {
        let under_way = sent.saturating_sub(pair.received.load(Ordering::Acquire));
        let room = self.workload.window.saturating_sub(under_way);
        match self.workload.extent {
            Extent::Count(count) => room.min(count.saturating_sub(sent)),
            Extent::Time { .. } => room,
        }
    }

    fn is_over(&self, sent: u64) -> bool {
        matches!(self.workload.extent, Extent::Count(count) if sent >= count) || self.stop.is_cancelled()
    }

    fn totals(&self) -> (u64, u64) {
        let sum = |of: fn(&Pair) -> &AtomicU64| self.pairs.iter().map(|pair| of(pair).load(Ordering::Acquire)).sum();
        (sum(|pair| &pair.sent), sum(|pair| &pair.received))
    }

    fn fail(&self, error: BenchError) {
        self.failure.lock().get_or_insert(error);
        self.stop.cancel();
    }

    /// Messages of a pair have arrived.
    fn received(&self, pair: usize, new: u64) -> Result<(), BenchError> {
        let pair = self.pair(pair)?;
        pair.received.fetch_add(new, Ordering::AcqRel);
        pair.room.notify_one();
        Ok(())
    }
}

/// A client that talks over TCP.
struct Talker {
    speech: Speech,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    buffer: BytesMut,
}

/// A client of any kind.
enum Peer {
    Talker(Talker),
    Quic(Box<Client>),
}

fn speech(transport: Transport) -> Option<Speech> {
    match transport {
        Transport::Line => Some(Speech::Line),
        Transport::Nats => Some(Speech::Nats),
        Transport::Redis => Some(Speech::Redis),
        Transport::Quic => None,
    }
}

/// Connects a client, the receiver on a channel of its own; gives what that is written to as well.
async fn connect(target: &Target, receiver: Option<&str>, workload: &Workload) -> Result<(Peer, String), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Connect(target.clone(), error.to_string());
    let connecting = async {
        let Some(speech) = speech(target.transport) else {
            let node = target.at.as_str().parse().map_err(|error| failed(&error))?;
            let client = Client::connect(&node, &workload.certs)
                .await
                .map_err(|error| failed(&error))?;
            let address = client.address().to_string();
            return Ok((Peer::Quic(Box::new(client)), address));
        };
        let stream = TcpStream::connect(target.at.as_str())
            .await
            .map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let (reader, writer) = stream.into_split();
        let mut talker = Talker {
            speech,
            reader,
            writer,
            buffer: BytesMut::new(),
        };
        let opening = speech.opening(receiver);
        talker
            .writer
            .write_all(opening.as_bytes())
            .await
            .map_err(|error| failed(&error))?;
        let ready = talker.ready().await.map_err(|error| failed(&error))?;
        let address = speech.address(&ready, receiver.unwrap_or_default());
        Ok((Peer::Talker(talker), address))
    };
    match timeout(READY, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(failed(&format_args!("no answer within {READY:?}"))),
    }
}

impl Talker {
    async fn ready(&mut self) -> Result<String, std::io::Error> {
        loop {
            while let Some((said, taken)) = self.speech.said(&self.buffer) {
                let ready = match said {
                    Said::Ready(address) => Some(address.to_owned()),
                    Said::Error(text) => return Err(std::io::Error::other(text.to_owned())),
                    Said::Body(_) | Said::Ping | Said::Other => None,
                };
                self.buffer.advance(taken);
                if let Some(address) = ready {
                    return Ok(address);
                }
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Runs a workload. `told` hears how far it has come, some times a second.
///
/// # Errors
///
/// When the workload makes no sense, a client can't connect, its connection breaks, or a relay refuses something. What is
/// lost or repeated is no error: the figures say so.
pub async fn run(workload: &Workload, told: impl Fn(Progress)) -> Result<Figures, BenchError> {
    workload.check()?;
    // Runs that go on at once do not hear each other.
    let name = format!("bench-{:08x}", rand::random::<u32>());
    let mut senders = Vec::with_capacity(workload.pairs);
    let mut receivers = Vec::with_capacity(workload.pairs);
    for pair in 0..workload.pairs {
        receivers.push(connect(&workload.to, Some(&format!("{name}.{pair}")), workload).await?);
        senders.push(connect(&workload.from, None, workload).await?.0);
    }
    let measured = match workload.extent {
        Extent::Count(_) => 0..u64::MAX,
        Extent::Time { warm_up, measured } => nanoseconds(warm_up)..nanoseconds(warm_up + measured),
    };
    let run = Arc::new(Run {
        workload: workload.clone(),
        start: Instant::now(),
        pairs: (0..workload.pairs).map(|_| Pair::default()).collect(),
        tally: Mutex::new(Tally::new(workload.pairs)),
        measured,
        stop: CancellationToken::new(),
        failure: Mutex::new(None),
    });
    let tracker = TaskTracker::new();
    let finished = CancellationToken::new();
    let mut addresses = Vec::with_capacity(workload.pairs);
    for (pair, (peer, address)) in receivers.into_iter().enumerate() {
        addresses.push(address);
        let (run, finished) = (Arc::clone(&run), finished.clone());
        tracker.spawn(async move {
            tokio::select! {
                received = receive(&run, pair, peer) => if let Err(error) = received {
                    run.fail(error);
                },
                () = finished.cancelled() => {}
            }
        });
    }
    let pacing = send_all(&run, senders, &addresses, &tracker, &finished)?;
    let figures = measure(&run, told).await;
    run.stop.cancel();
    finished.cancel();
    if let Some(thread) = pacing {
        // It looks at `stop` before each message, so it is at its end.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
    tracker.close();
    let _ = timeout(QUIET, tracker.wait()).await;
    match run.failure.lock().take() {
        Some(error) => Err(error),
        None => figures,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Starts all senders; gives the thread that writes for them, if they keep to a rate.
fn send_all(
    run: &Arc<Run>,
    senders: Vec<Peer>,
    addresses: &[String],
    tracker: &TaskTracker,
    finished: &CancellationToken,
) -> Result<Option<std::thread::JoinHandle<()>>, BenchError> {
    let mut paced = Vec::new();
    for (pair, (sender, to)) in senders.into_iter().zip(addresses).enumerate() {
        let to = to.clone();
        let (run, finished) = (Arc::clone(run), finished.clone());
        let rate = run.workload.rate;
        let mut queue = None;
        if rate.is_some() {
            paced.push(match &sender {
                Peer::Talker(talker) => Way::Talk(None, talker.speech, to.clone()),
                Peer::Quic(_) => {
                    let (bodies, taken) = mpsc::unbounded_channel();
                    queue = Some(taken);
                    Way::Hand(bodies)
                }
            });
        }
        let side = |what: String| BenchError::Client {
            pair,
            side: "sender",
            what,
        };
        match sender {
            Peer::Talker(Talker {
                speech,
                reader,
                writer,
                buffer,
            }) => {
                let writer = if rate.is_some() {
                    let stream = reader.reunite(writer).map_err(|error| side(error.to_string()))?;
                    let stream = stream.into_std().map_err(|error| side(error.to_string()))?;
                    let reading = stream
                        .try_clone()
                        .and_then(TcpStream::from_std)
                        .map_err(|error| side(error.to_string()))?;
                    if let Some(Way::Talk(place, ..)) = paced.last_mut() {
                        *place = Some(stream);
                    }
                    let (reader, _kept) = reading.into_split();
                    let run = Arc::clone(&run);
                    let finished = finished.clone();
                    tracker.spawn(async move {
                        let _kept = _kept;
                        tokio::select! {
                            heard = hear(&run, pair, speech, reader, buffer) => if let Err(error) = heard {
                                run.fail(error);
                            },
                            () = finished.cancelled() => {}
                        }
                    });
                    continue;
                } else {
                    writer
                };
                tracker.spawn(async move {
                    let work = async {
                        tokio::try_join!(
                            hear(&run, pair, speech, reader, buffer),
                            push(&run, pair, speech, writer, &to)
                        )
                    };
                    tokio::select! {
                        worked = work => if let Err(error) = worked {
                            run.fail(error);
                        },
                        () = finished.cancelled() => {}
                    }
                });
            }
            Peer::Quic(client) => {
                tracker.spawn(async move {
                    tokio::select! {
                        worked = push_quic(&run, pair, &client, &to, queue) => if let Err(error) = worked {
                            run.fail(error);
                        },
                        () = finished.cancelled() => {}
                    }
                    client.close().await;
                });
            }
        }
    }
    if paced.is_empty() {
        return Ok(None);
    }
    let run = Arc::clone(run);
    let thread = std::thread::Builder::new().name("pacer".to_owned()).spawn(move || {
        if let Err(error) = pace(&run, paced) {
            run.fail(error);
        }
    });
    thread
        .map(Some)
        .map_err(|error| BenchError::Workload(error.to_string()))
}

/// What a relay says to a sender: nothing good, in general.
async fn hear(
    run: &Run,
    pair: usize,
    speech: Speech,
    mut reader: OwnedReadHalf,
    mut buffer: BytesMut,
) -> Result<(), BenchError> {
    let failed = |what: String| BenchError::Client {
        pair,
        side: "sender",
        what,
    };
    loop {
        while let Some((said, taken)) = speech.said(&buffer) {
            match said {
                Said::Error(text) => return Err(failed(text.to_owned())),
                Said::Ping => run.pair(pair)?.pinged.store(true, Ordering::Release),
                Said::Ready(_) | Said::Body(_) | Said::Other => {}
            }
            buffer.advance(taken);
        }
        buffer.reserve(READ);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return Err(failed("the relay closed its connection".to_owned())),
            Ok(_) => {}
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// Sends as fast as there is room, over TCP.
async fn push(
    run: &Run,
    number: usize,
    speech: Speech,
    mut writer: OwnedWriteHalf,
    to: &str,
) -> Result<(), BenchError> {
    let pair = run.pair(number)?;
    let (mut out, mut body, mut sent) = (Vec::with_capacity(2 * CHUNK), Vec::new(), 0);
    while !run.is_over(sent) {
        let freed = pair.room.notified();
        let mut room = run.room(pair, sent);
        if room == 0 {
            tokio::select! {
                () = freed => {}
                () = run.stop.cancelled() => {}
            }
            continue;
        }
        let due = run.now();
        while room > 0 && out.len() < CHUNK {
            Stamp { number: sent, due }.write(run.workload.size, &mut body);
            speech.message(to, &body, &mut out);
            (sent, room) = (sent + 1, room - 1);
        }
        if pair.pinged.swap(false, Ordering::AcqRel) {
            out.extend_from_slice(speech.alive());
        }
        pair.sent.store(sent, Ordering::Release);
        writer.write_all(&out).await.map_err(|error| BenchError::Client {
            pair: number,
            side: "sender",
            what: error.to_string(),
        })?;
        out.clear();
    }
    // Kept open until all has come.
    std::future::pending().await
}

/// Sends as fast as there is room, or what is handed over, by QUIC.
async fn push_quic(
    run: &Run,
    number: usize,
    client: &Client,
    to: &str,
    queue: Option<mpsc::UnboundedReceiver<Vec<u8>>>,
) -> Result<(), BenchError> {
    let failed = |what: String| BenchError::Client {
        pair: number,
        side: "sender",
        what,
    };
    let pair = run.pair(number)?;
    let to: Address = to.parse().map_err(|error| failed(format!("{to}: {error}")))?;
    let sending = async {
        if let Some(mut queue) = queue {
            while let Some(body) = queue.recv().await {
                client
                    .send(&to, body)
                    .await
                    .map_err(|error| failed(error.to_string()))?;
            }
        }
        let (mut body, mut sent) = (Vec::new(), pair.sent.load(Ordering::Acquire));
        while run.workload.rate.is_none() && !run.is_over(sent) {
            let freed = pair.room.notified();
            if run.room(pair, sent) == 0 {
                tokio::select! {
                    () = freed => {}
                    () = run.stop.cancelled() => {}
                }
                continue;
            }
            let stamp = Stamp {
                number: sent,
                due: run.now(),
            };
            stamp.write(run.workload.size, &mut body);
            sent += 1;
            pair.sent.store(sent, Ordering::Release);
            client
                .send(&to, body.clone())
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    };
    let told = async {
        while let Some(event) = client.receive().await {
            if let Event::Failed(lost) = event {
                return Err(failed(format!("{:?}", lost.outcome)));
            }
        }
        Err(failed("its session has ended".to_owned()))
    };
    tokio::pin!(told);
    tokio::select! {
        sent = sending => sent?,
        told = &mut told => return told,
    }
    told.await
}

/// How the one who writes for all reaches a sender.
enum Way {
    Talk(Option<std::net::TcpStream>, Speech, String),
    Hand(mpsc::UnboundedSender<Vec<u8>>),
}

/// Sends each message when it is due.
fn pace(run: &Run, mut ways: Vec<Way>) -> Result<(), BenchError> {
    let Some(rate) = run.workload.rate else {
        return Ok(());
    };
    // Without it the system lets a sleeper sleep up to 50 µs longer. Fails nowhere that matters: it is later, no more.
    let _ = nix::sys::prctl::set_timerslack(1);
    let (mut out, mut body) = (Vec::new(), Vec::new());
    let pairs = ways.len();
    for index in 0u64.. {
        let number = usize::try_from(index).unwrap_or(usize::MAX) % pairs;
        let (pair, Some(way)) = (run.pair(number)?, ways.get_mut(number)) else {
            break;
        };
        let sent = index / pairs as u64;
        let due = u64::try_from(u128::from(index) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX);
        let early = due.saturating_sub(run.now());
        if early > 0 {
            std::thread::sleep(Duration::from_nanos(early));
        }
        while !run.is_over(sent) && run.room(pair, sent) == 0 {
            std::thread::sleep(HELD);
        }
        if run.is_over(sent) {
            break;
        }
        Stamp { number: sent, due }.write(run.workload.size, &mut body);
        pair.sent.store(sent + 1, Ordering::Release);
        match way {
            Way::Talk(Some(stream), speech, to) => {
                out.clear();
                if pair.pinged.swap(false, Ordering::AcqRel) {
                    out.extend_from_slice(speech.alive());
                }
                speech.message(to, &body, &mut out);
                write(run, stream, &out).map_err(|error| BenchError::Client {
                    pair: number,
                    side: "sender",
                    what: error.to_string(),
                })?;
            }
            Way::Talk(None, ..) => break,
            // Closed only when the run is over.
            Way::Hand(bodies) => drop(bodies.send(std::mem::take(&mut body))),
        }
    }
    Ok(())
}

/// Writes to a socket that does not block, for as long as the run goes on: its relay may not read.
fn write(run: &Run, stream: &mut std::net::TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes.advance(written),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if run.stop.is_cancelled() {
                    return Ok(());
                }
                std::thread::sleep(HELD);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads and checks what comes for a pair.
async fn receive(run: &Run, pair: usize, peer: Peer) -> Result<(), BenchError> {
    let failed = |what: String| BenchError::Client {
        pair,
        side: "receiver",
        what,
    };
    let Talker {
        speech,
        mut reader,
        mut writer,
        mut buffer,
    } = match peer {
        Peer::Talker(talker) => talker,
        Peer::Quic(client) => {
            while let Some(event) = client.receive().await {
                if let Event::Message(message) = event {
                    let new = run.tally.lock().arrive(pair, &message.body, run.now(), &run.measured);
                    run.received(pair, new.into())?;
                }
            }
            return Err(failed("its session has ended".to_owned()));
        }
    };
    loop {
        let (mut new, mut at, mut pinged) = (0, 0, false);
        {
            let now = run.now();
            let mut tally = run.tally.lock();
            while let Some((said, taken)) = speech.said(buffer.get(at..).unwrap_or_default()) {
                match said {
                    Said::Body(body) => new += u64::from(tally.arrive(pair, body, now, &run.measured)),
                    Said::Ping => pinged = true,
                    Said::Error(text) => return Err(failed(text.to_owned())),
                    Said::Ready(_) | Said::Other => {}
                }
                at += taken;
            }
        }
        buffer.advance(at);
        if new > 0 {
            run.received(pair, new)?;
        }
        if pinged {
            writer
                .write_all(speech.alive())
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        buffer.reserve(READ);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return Err(failed("the relay closed its connection".to_owned())),
            Ok(_) => {}
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// Waits for the run's end, and looks at the processes at the beginning and end of what is measured.
async fn measure(run: &Run, told: impl Fn(Progress)) -> Result<Figures, BenchError> {
    let look = || Looked::at(&run.workload);
    let tell = |part: f64| {
        told(Progress {
            part,
            arrived: run.totals().1,
        });
    };
    let mut before = (look()?, Instant::now(), 0);
    let mut after = None;
    match run.workload.extent {
        Extent::Time { warm_up, measured } => {
            let whole = warm_up + measured;
            loop {
                let elapsed = run.start.elapsed();
                if run.stop.is_cancelled() || elapsed >= whole {
                    break;
                }
                let until = if elapsed < warm_up { warm_up } else { whole };
                sleep(LOOK.min(until.saturating_sub(elapsed))).await;
                if elapsed < warm_up && run.start.elapsed() >= warm_up {
                    before = (look()?, Instant::now(), run.totals().1);
                }
                tell(run.start.elapsed().as_secs_f64() / whole.as_secs_f64());
            }
            after = Some((look()?, Instant::now(), run.totals().1));
            run.stop.cancel();
        }
        Extent::Count(_) => {}
    }
    let (mut last, mut since) = (run.totals().1, Instant::now());
    loop {
        let (sent, received) = run.totals();
        let all = match run.workload.extent {
            Extent::Count(count) => count.saturating_mul(run.workload.pairs as u64),
            Extent::Time { .. } => sent,
        };
        if received != last {
            (last, since) = (received, Instant::now());
        }
        if received >= all || run.failure.lock().is_some() || since.elapsed() >= QUIET {
            break;
        }
        if after.is_none() {
            tell(received as f64 / all as f64);
        }
        sleep(LOOK.min(Duration::from_millis(5))).await;
    }
    let (looked, end, arrived) = match after {
        Some(after) => after,
        None => (look()?, since, last),
    };
    tell(1.0);
    let sent = run.totals().0;
    let tally = run.tally.lock();
    Ok(Figures::new(
        &run.workload,
        &tally,
        sent,
        arrived.saturating_sub(before.2),
        end.saturating_duration_since(before.1),
        &before.0,
        &looked,
    ))
}
