//! Two linked nodes as processes of their own, on free ports of this machine, and plain TCP clients of theirs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything that is waited for may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Names of the nodes. Nothing is bound to them: nodes and clients are told where to connect.
const NAMES: [&str; 2] = ["127.0.0.1:1", "127.0.0.1:2"];

/// A running node; killed when dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
    log: Receiver<String>,
    /// Where TCP clients connect.
    pub tcp: SocketAddr,
    /// Where QUIC clients connect.
    pub quic: SocketAddr,
    link: SocketAddr,
}

/// Two nodes, linked. Their directory goes with them.
#[derive(Debug)]
pub struct Nodes {
    /// The node that senders are on.
    pub a: Node,
    /// The node that receivers are on.
    pub b: Node,
    dir: Directory,
}

#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left behind is in the system's temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Nodes {
    /// Starts two nodes of this build, each with these further flags.
    pub fn start(trunkline: &Path, flags: &[String]) -> anyhow::Result<Self> {
        let dir = Directory(std::env::temp_dir().join(format!("trunkline-lab-{:016x}", rand::random::<u64>())));
        let made = Command::new(trunkline)
            .arg("certs")
            .arg("--certs")
            .arg(&dir.0)
            .args(NAMES)
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("can't run {}", trunkline.display()))?;
        if !made.success() {
            bail!("no certificates: {made}");
        }
        let [name_a, name_b] = NAMES;
        let b = Node::start(trunkline, &dir.0, name_b, None, flags)?;
        let peer = format!("{name_b}={}", b.link);
        let a = Node::start(trunkline, &dir.0, name_a, Some(&peer), flags)?;
        a.logged("\"link up\"")?;
        b.logged("\"link up\"")?;
        Ok(Self { a, b, dir })
    }

    /// Where the certificates are.
    pub fn certs(&self) -> &Path {
        &self.dir.0
    }
}

impl Node {
    fn start(trunkline: &Path, certs: &Path, name: &str, peer: Option<&str>, flags: &[String]) -> anyhow::Result<Self> {
        let any = "127.0.0.1:0";
        let mut command = Command::new(trunkline);
        command
            .args([
                "node",
                "--log-format",
                "json",
                "--tcp",
                any,
                "--quic",
                any,
                "--link",
                any,
            ])
            .args(["--advertise", name])
            .arg("--certs")
            .arg(certs)
            .args(flags);
        if let Some(peer) = peer {
            command.args(["--peer", peer]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let (sender, log) = channel();
        if let Some(stderr) = child.stderr.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    // Read on when nobody asks any more, so that the node is never held by its log.
                    let _ = sender.send(line);
                }
            });
        }
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut node = Self {
            child,
            log,
            tcp: unknown,
            quic: unknown,
            link: unknown,
        };
        let up: Value = serde_json::from_str(&node.logged("\"node up\"")?)?;
        let port = |field: &str| -> anyhow::Result<SocketAddr> {
            let text = up.get(field).and_then(Value::as_str).context("no address in the log")?;
            Ok(text.parse()?)
        };
        (node.tcp, node.quic, node.link) = (port("tcp")?, port("quic")?, port("link")?);
        Ok(node)
    }

    /// Waits for a line of the log with this text.
    fn logged(&self, text: &str) -> anyhow::Result<String> {
        loop {
            let line = self.log.recv_timeout(DEADLINE);
            let line = line.with_context(|| format!("the node does not say {text}"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// Has the node end as on SIGTERM; gives what it has counted, by name.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn stop(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let id = i32::try_from(self.child.id()).context("no process id")?;
        kill(Pid::from_raw(id), Signal::SIGTERM)?;
        let mut counted = BTreeMap::new();
        loop {
            let line = self.log.recv_timeout(DEADLINE).context("the node does not end")?;
            if line.contains("\"node down\"") {
                return Ok(counted);
            }
            let value: Value = serde_json::from_str(&line).unwrap_or_default();
            let told = value.get("message").and_then(Value::as_str).unwrap_or_default();
            if let Some(all) = told.strip_prefix("counted in all: ") {
                let pairs = all.split(' ').filter_map(|one| one.split_once('='));
                counted = pairs
                    .filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)))
                    .collect();
            }
        }
    }

    /// The most memory that the node has had so far, and what it has now, in bytes.
    pub fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next());
            Ok(kib.context("no such field in /proc")?.parse::<u64>()? * 1024)
        };
        Ok((field("VmHWM:")?, field("VmRSS:")?))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fail for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new TCP client of a node, and its address.
pub fn connect(node: SocketAddr) -> anyhow::Result<(TcpStream, String)> {
    let mut socket = TcpStream::connect_timeout(&node, DEADLINE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    let mut greeting = Vec::new();
    // Byte by byte: what comes behind it is for others to read.
    while greeting.last() != Some(&b'\n') {
        let mut byte = [0];
        socket.read_exact(&mut byte).context("no greeting")?;
        greeting.extend(byte);
    }
    socket.set_read_timeout(None)?;
    let greeting = String::from_utf8(greeting)?;
    let address = greeting
        .trim_end()
        .strip_prefix("you is  : ")
        .context("not a greeting")?;
    Ok((socket, address.to_owned()))
}
