//! A bad wire between two network namespaces: two TUN devices, and between them packets go through the model of
//! `wire`. It runs until it is killed, and its devices end with it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tappers::Interface;
use tappers::linux::Tun;
use trunkline_lab::control::command;
use trunkline_lab::namespace::{join, sleep_precisely, spawn_in};
use trunkline_lab::wire::Path;

/// Larger than any packet that a device passes on.
const MOST_BYTES: usize = 65_536;

/// How many packets are taken from one device before the other has its turn.
const RUN: usize = 64;

/// Join two network namespaces by a wire with faults that can be set while it runs
#[derive(Debug, Parser)]
struct Args {
    /// The namespace at one end
    #[arg(long, value_name = "NAMESPACE")]
    a: String,

    /// The namespace at the other end
    #[arg(long, value_name = "NAMESPACE")]
    b: String,

    /// What the device is called in both namespaces
    #[arg(long, value_name = "NAME", default_value = "wire")]
    device: String,

    /// Where to take commands: a Unix socket to make
    #[arg(long, value_name = "PATH")]
    control: PathBuf,

    /// What chance is drawn from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

type Paths = Arc<Mutex<[Path; 2]>>;

/// A packet under way: when it comes out, a number that keeps the order of equals, the end it comes out at, its bytes.
type UnderWay = Reverse<(Duration, u64, usize, Vec<u8>)>;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    sleep_precisely();
    let devices = [device(&args.a, &args.device)?, device(&args.b, &args.device)?];
    let paths = Paths::default();
    let listener =
        UnixListener::bind(&args.control).with_context(|| format!("can't listen at {}", args.control.display()))?;
    let told = Arc::clone(&paths);
    std::thread::Builder::new().spawn(move || {
        for socket in listener.incoming().flatten() {
            // Whoever stops speaking is gone; the next one is listened to.
            let _ = listen(socket, &told);
        }
    })?;
    carry(&devices, &paths, StdRng::seed_from_u64(args.seed))
}

/// Makes a device in a namespace.
fn device(namespace: &str, name: &str) -> anyhow::Result<Tun> {
    let interface = Interface::new(name).with_context(|| format!("no name for a device: {name}"))?;
    let made = spawn_in(namespace, move || {
        let tun = Tun::create_named(interface).context("can't make a TUN device")?;
        tun.set_nonblocking(true)?;
        Ok(tun)
    })?;
    join(made).with_context(|| format!("in the namespace {namespace}"))
}

/// Does what one connection says, line by line.
fn listen(socket: UnixStream, paths: &Paths) -> std::io::Result<()> {
    let mut answers = socket.try_clone()?;
    for line in BufReader::new(socket).lines() {
        let answer = match command(&line?, &mut paths.lock()) {
            Ok(answer) => answer,
            Err(error) => format!("error: {error:#}"),
        };
        answers.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}

/// Carries packets for ever.
fn carry(devices: &[Tun; 2], paths: &Paths, mut chance: StdRng) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut heap: BinaryHeap<UnderWay> = BinaryHeap::new();
    let mut number = 0;
    let mut buffer = vec![0; MOST_BYTES];
    let [a, b] = devices;
    loop {
        while let Some(Reverse((due, ..))) = heap.peek()
            && *due <= start.elapsed()
            && let Some(Reverse((_, _, end, packet))) = heap.pop()
        {
            // A device that takes nothing (it is down, its queue is full) loses packets, as devices do.
            let _ = if end == 0 { a.send(&packet) } else { b.send(&packet) };
        }
        let wait = heap
            .peek()
            .map(|Reverse((due, ..))| TimeSpec::from_duration(due.saturating_sub(start.elapsed())));
        let mut polled = [
            PollFd::new(a.as_fd(), PollFlags::POLLIN),
            PollFd::new(b.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut polled, wait, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("can't wait for packets"),
        }
        let readable = polled.map(|device| device.any().unwrap_or(true));
        for (from, device) in devices.iter().enumerate() {
            if readable.get(from) != Some(&true) {
                continue;
            }
            for _ in 0..RUN {
                let length = match device.recv(&mut buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("can't read from a device"),
                };
                let packet = buffer.get(..length).unwrap_or_default();
                let arrivals = match paths.lock().get_mut(from) {
                    Some(path) => path.send(start.elapsed(), length, &mut chance),
                    None => [None, None],
                };
                for due in arrivals.into_iter().flatten() {
                    number += 1;
                    heap.push(Reverse((due, number, 1 - from, packet.to_vec())));
                }
            }
        }
    }
}
