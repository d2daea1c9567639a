//! Linked nodes as processes of their own, on free ports of this machine, and plain TCP clients of theirs.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::process::{DEADLINE, Directory, Log, Process};

/// A running node; killed when dropped.
#[derive(Debug)]
pub struct Node {
    process: Process,
    /// Where TCP clients connect.
    pub tcp: SocketAddr,
    /// Where QUIC clients connect.
    pub quic: SocketAddr,
    link: SocketAddr,
}

/// How nodes find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// They are told.
    Peers,
    /// By what their flags say.
    Flags,
}

/// Nodes, each linked with each other. Their directory goes with them.
#[derive(Debug)]
pub struct Mesh {
    /// The nodes.
    pub nodes: Vec<Node>,
    dir: Directory,
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

impl Mesh {
    /// Starts so many nodes of this build, each with these further flags, and waits until all links are up.
    ///
    /// # Errors
    ///
    /// When one does not come up in time.
    pub fn start(trunkline: &Path, count: usize, flags: &[String]) -> anyhow::Result<Self> {
        Self::start_joined(trunkline, count, flags, Join::Peers)
    }

    /// The same, with nodes that find each other as `join` says.
    ///
    /// # Errors
    ///
    /// When one does not come up in time.
    pub fn start_joined(trunkline: &Path, count: usize, flags: &[String], join: Join) -> anyhow::Result<Self> {
        // Nothing is bound to the names: nodes and clients are told where to connect.
        let names: Vec<String> = (1..=count).map(|number| format!("127.0.0.1:{number}")).collect();
        let dir = Directory::new()?;
        let made = Command::new(trunkline)
            .arg("certs")
            .arg("--certs")
            .arg(dir.path())
            .args(&names)
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("can't run {}", trunkline.display()))?;
        if !made.success() {
            bail!("no certificates: {made}");
        }
        let (mut nodes, mut peers) = (Vec::with_capacity(count), Vec::new());
        // The last first, so that each dials those behind it.
        for name in names.iter().rev() {
            let node = Node::start(trunkline, dir.path(), name, &peers, flags)?;
            if join == Join::Peers {
                peers.push(format!("{name}={}", node.link));
            }
            nodes.push(node);
        }
        nodes.reverse();
        for node in &nodes {
            for _ in 1..count {
                node.process.logged("\"link up\"")?;
            }
        }
        Ok(Self { nodes, dir })
    }

    /// Where the certificates are.
    pub fn certs(&self) -> &Path {
        self.dir.path()
    }
}

impl Nodes {
    /// Starts two nodes of this build, each with these further flags.
    ///
    /// # Errors
    ///
    /// When one does not come up in time.
    pub fn start(trunkline: &Path, flags: &[String]) -> anyhow::Result<Self> {
        let Mesh { nodes, dir } = Mesh::start(trunkline, 2, flags)?;
        let [a, b] = <[Node; 2]>::try_from(nodes).map_err(|_| anyhow!("not two nodes"))?;
        Ok(Self { a, b, dir })
    }

    /// Where the certificates are.
    pub fn certs(&self) -> &Path {
        self.dir.path()
    }
}

impl Node {
    fn start(trunkline: &Path, certs: &Path, name: &str, peers: &[String], flags: &[String]) -> anyhow::Result<Self> {
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
            .args(peers.iter().flat_map(|peer| ["--peer", peer]))
            .args(flags);
        let process = Process::start(&mut command, Log::Stderr)?;
        let up: Value = serde_json::from_str(&process.logged("\"node up\"")?)?;
        let port = |field: &str| -> anyhow::Result<SocketAddr> {
            let text = up.get(field).and_then(Value::as_str).context("no address in the log")?;
            Ok(text.parse()?)
        };
        Ok(Self {
            tcp: port("tcp")?,
            quic: port("quic")?,
            link: port("link")?,
            process,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Has the node end as on SIGTERM; gives what it has counted, by name.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn stop(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let id = i32::try_from(self.id()).context("no process id")?;
        kill(Pid::from_raw(id), Signal::SIGTERM)?;
        let mut counted = BTreeMap::new();
        loop {
            let line = self.process.line()?.context("the node ended without saying so")?;
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
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next());
            Ok(kib.context("no such field in /proc")?.parse::<u64>()? * 1024)
        };
        Ok((field("VmHWM:")?, field("VmRSS:")?))
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
