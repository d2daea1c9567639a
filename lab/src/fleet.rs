//! The processes of the fault run. Each is killed when its handle is dropped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What a node exits with when a port of its is taken.
pub const EXIT_PORT_TAKEN: u8 = 69;

/// Where the ports of nodes are drawn from: below those that systems give to whoever asks for any, so that nobody gets
/// one while its node is down.
const PORTS: Range<u16> = 10_000..30_000;

/// How many times to draw ports for a node.
const DRAWS: u32 = 10;

/// A process, all of whose output is read.
#[derive(Debug)]
struct Process {
    child: Child,
    /// Open for as long as the process is to run: some end with it.
    stdin: Option<ChildStdin>,
}

impl Process {
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = i32::try_from(self.child.id()).context("not a process id")?;
        kill(Pid::from_raw(id), signal).with_context(|| format!("can't send {signal}"))
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fail for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hands over each line of a stream, and copies all to a file if there is one, on a thread of its own.
fn read_lines(
    stream: impl Read + Send + 'static,
    mut copy: Option<File>,
    mut each: impl FnMut(Option<String>) + Send + 'static,
) -> anyhow::Result<()> {
    std::thread::Builder::new().spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some(file) = &mut copy {
                // A log that is incomplete is better than a reader that stops.
                let _ = writeln!(file, "{line}");
            }
            each(Some(line));
        }
        each(None);
    })?;
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<File> {
    let file = File::options().append(true).create(true).open(path);
    file.with_context(|| format!("can't write {}", path.display()))
}

/// How to start a node, once or again.
#[derive(Debug, Clone)]
pub struct NodeSetup {
    /// The program, which takes what `trunkline node` takes.
    pub program: PathBuf,
    /// Its name.
    pub name: String,
    /// Where the certificates are.
    pub certs: PathBuf,
    /// TCP, QUIC, links.
    pub ports: [SocketAddr; 3],
    /// As `--peer` wants them.
    pub peers: Vec<String>,
    /// More arguments.
    pub limits: Vec<String>,
    /// The file for what it says.
    pub log: PathBuf,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    process: Process,
    /// What starts the same node again, on the same ports.
    pub setup: NodeSetup,
}

impl Node {
    /// Starts a node on free ports of this machine and waits until it is up.
    pub async fn start_anywhere(mut setup: NodeSetup) -> anyhow::Result<Self> {
        for _ in 0..DRAWS {
            setup.ports = setup
                .ports
                .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(PORTS))));
            if let Some(node) = Self::try_start(setup.clone()).await? {
                return Ok(node);
            }
        }
        bail!("no free ports for the node {}; see {}", setup.name, setup.log.display());
    }

    /// Starts a node on the ports that it is to have, and waits until it is up.
    pub async fn start(setup: NodeSetup) -> anyhow::Result<Self> {
        let taken = format!(
            "a port of the node {} is taken; see {}",
            setup.name,
            setup.log.display()
        );
        Self::try_start(setup).await?.context(taken)
    }

    /// Gives nothing when a port is taken.
    async fn try_start(setup: NodeSetup) -> anyhow::Result<Option<Self>> {
        let [tcp, quic, link] = setup.ports.map(|port| port.to_string());
        let mut command = Command::new(&setup.program);
        command
            .args(["node", "--log-format", "json", "--tcp", &tcp, "--quic", &quic])
            .args(["--link", &link, "--advertise", &setup.name, "--certs"])
            .arg(&setup.certs)
            .args(setup.peers.iter().flat_map(|peer| ["--peer", peer]))
            .args(&setup.limits)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.with_context(|| format!("can't run {}", setup.program.display()))?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let stdin = child.stdin.take();
        let mut process = Process { child, stdin };
        let (lines, mut said) = unbounded_channel();
        read_lines(stderr, Some(open(&setup.log)?), move |line| {
            // After it is up nobody listens.
            let _ = lines.send(line);
        })?;
        loop {
            let Some(Some(line)) = said.recv().await else {
                // Nothing more is said: it has ended, or is to.
                process.child.kill()?;
                if process.child.wait()?.code() == Some(EXIT_PORT_TAKEN.into()) {
                    return Ok(None);
                }
                bail!("the node {} did not come up; see {}", setup.name, setup.log.display());
            };
            let Ok(line) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            if line.get("message").and_then(Value::as_str) == Some("node up") {
                return Ok(Some(Self { process, setup }));
            }
        }
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process.signal(signal)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.process.child.try_wait()?.is_some())
    }
}

/// What a client says.
#[derive(Debug)]
pub struct Said {
    /// Its number.
    pub number: u32,
    /// A line, or that it has ended.
    pub line: Option<String>,
}

/// How to start a client.
#[derive(Debug, Clone)]
pub struct ClientSetup {
    /// The program.
    pub program: PathBuf,
    /// The client's number, which no other has.
    pub number: u32,
    /// The number of its node.
    pub node: usize,
    /// `--tcp` or `--quic`, and where.
    pub way: [String; 2],
    /// Where the certificates are.
    pub certs: PathBuf,
    /// Messages a second.
    pub rate: u32,
    /// The directory for its journal, and for what it complains of.
    pub logs: PathBuf,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    process: Process,
    /// Its number.
    pub number: u32,
    /// Its address, once it has said it.
    pub address: Option<String>,
    /// What it writes down.
    pub journal: PathBuf,
    /// All it sent was answered, after it was told to be quiet.
    pub idle: bool,
}

impl Client {
    /// Starts a client; what it says comes by `said`.
    pub fn start(setup: &ClientSetup, said: &UnboundedSender<Said>) -> anyhow::Result<Self> {
        let number = setup.number;
        let file = |suffix: &str| setup.logs.join(format!("client-{number}.{suffix}"));
        let mut command = Command::new(&setup.program);
        command
            .args(["--number", &number.to_string(), "--node", &setup.node.to_string()])
            .args(["--rate", &setup.rate.to_string(), "--certs"])
            .arg(&setup.certs)
            .args(&setup.way)
            .arg("--journal")
            .arg(file("journal"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(open(&file("log"))?);
        let child = command.spawn();
        let mut child = child.with_context(|| format!("can't run {}", setup.program.display()))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stdin = child.stdin.take();
        let process = Process { child, stdin };
        let said = said.clone();
        read_lines(stdout, None, move |line| {
            // Nobody listens at the end of the run.
            let _ = said.send(Said { number, line });
        })?;
        Ok(Self {
            process,
            number,
            address: None,
            journal: file("journal"),
            idle: false,
        })
    }

    /// Tells it what to do. One that is about to end need not hear it.
    pub fn tell(&mut self, line: &str) {
        if let Some(stdin) = &mut self.process.stdin {
            let _ = stdin.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process.signal(signal)
    }

    /// Waits for one that has said its last. Fails unless it ended well.
    pub fn ended(&mut self) -> anyhow::Result<()> {
        let status = self.process.child.wait()?;
        ensure!(status.success(), "client {} ended with {status}", self.number);
        Ok(())
    }
}

/// Where clients are heard.
pub type Hearing = UnboundedReceiver<Said>;
