//! Conversations between clients of two nodes, measured while something else goes on.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::figures::{Check, Figures, Load};
use crate::namespace::join;
use crate::nodes::connect;
use crate::target::{Said, Target};

/// Messages of this first time are checked; their latencies are not recorded.
pub const WARM_UP: Duration = Duration::from_secs(1);

/// Without an arrival for so long, what has not come is lost.
const QUIET: Duration = Duration::from_secs(10);

/// A runtime for the thread that calls this.
///
/// # Errors
///
/// When the system gives none.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Measures conversations from clients of one node to clients of another, for so many seconds after the warm-up.
///
/// # Errors
///
/// When a client can't connect, or is disconnected while it sends.
pub fn talk(seconds: u32, from: SocketAddr, to: SocketAddr, pairs: u16, rate: u32) -> anyhow::Result<Figures> {
    let count = |time: Duration| (time.as_secs_f64() * f64::from(rate)) as u64;
    let load = Load {
        pairs: pairs.into(),
        links: 1,
        rate,
        body: 128,
        messages: count(WARM_UP + Duration::from_secs(seconds.into())),
        warm_up: count(WARM_UP),
    };
    let clients = |node| {
        (0..pairs)
            .map(move |_| connect(node))
            .collect::<anyhow::Result<Vec<_>>>()
    };
    let (receivers, mut senders) = (clients(to)?, clients(from)?);
    let addresses: Vec<String> = receivers.iter().map(|(_, address)| address.clone()).collect();
    let check = Arc::new(Mutex::new(Check::new(load)?));
    let start = Instant::now() + Duration::from_millis(100);
    let (stop, mut stopped) = watch::channel(false);
    let reading = {
        let check = Arc::clone(&check);
        std::thread::spawn(move || {
            runtime()?.block_on(async {
                let mut reading = JoinSet::new();
                for (pair, (socket, _)) in receivers.into_iter().enumerate() {
                    socket.set_nonblocking(true)?;
                    let socket = tokio::net::TcpStream::from_std(socket)?;
                    let check = Arc::clone(&check);
                    reading.spawn(async move { read_pair(pair, socket, &check, start).await });
                }
                let _ = stopped.wait_for(|stopped| *stopped).await;
                Ok(())
            })
        })
    };
    let mut line = Vec::new();
    for number in 0..load.messages {
        std::thread::sleep((start + load.due(number)).saturating_duration_since(Instant::now()));
        let pair = load.pair(number);
        let (Some((socket, _)), Some(address)) = (senders.get_mut(pair), addresses.get(pair)) else {
            bail!("no pair {pair}");
        };
        line.clear();
        Target::Trunkline.message(address, &load.body(number), None, &mut line);
        socket.write_all(&line)?;
    }
    let sent = start.elapsed();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let check = check.lock();
        if check.received == load.messages || start.elapsed() > check.last.max(sent) + QUIET {
            break;
        }
    }
    stop.send_replace(true);
    join(reading)?;
    let mut figures = check.lock().figures();
    for (socket, _) in &mut senders {
        socket.set_nonblocking(true)?;
        let mut said = String::new();
        // Ends with `WouldBlock`.
        let _ = socket.read_to_string(&mut said);
        figures.errors += said.lines().count() as u64;
    }
    Ok(figures)
}

async fn read_pair(pair: usize, mut socket: tokio::net::TcpStream, check: &Mutex<Check>, start: Instant) {
    use tokio::io::AsyncReadExt;
    let mut bytes = Vec::with_capacity(16 * 1024);
    while socket.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
        let mut at = 0;
        while let Some((said, taken)) = Target::Trunkline.said(bytes.get(at..).unwrap_or_default()) {
            at += taken;
            if let Said::Body(body) = said {
                check.lock().arrived(pair, body, start.elapsed());
            }
        }
        bytes.drain(..at);
    }
}

/// What became of the messages, in words.
pub fn intact(figures: &Figures) -> String {
    let Figures {
        lost,
        repeated,
        reordered,
        wrong,
        errors,
        ..
    } = figures;
    format!("lost {lost}, repeated {repeated}, out of order {reordered}, wrong {wrong}, errors {errors}")
}

/// Prints what the conversations of one round were like without and with what is measured.
pub fn tell_both(round: u32, without: &Figures, with: &Figures) {
    println!(
        "  {round}: p50 / p99 / max without {:.3} / {:.3} / {:.3} ms, with {:.3} / {:.3} / {:.3}; ratio of p99 {:.2}",
        without.p50,
        without.p99,
        without.max,
        with.p50,
        with.p99,
        with.max,
        with.p99 / without.p99
    );
    println!("     without: {}; with: {}", intact(without), intact(with));
}

/// Whether all that was sent came, as it was to.
///
/// # Errors
///
/// When it did not.
pub fn unharmed(talks: &[&Figures]) -> anyhow::Result<()> {
    for figures in talks {
        let harm = figures.lost + figures.repeated + figures.reordered + figures.wrong + figures.errors;
        ensure!(harm == 0, "the others were harmed: {}", intact(figures));
    }
    Ok(())
}
