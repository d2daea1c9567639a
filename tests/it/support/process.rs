//! Real processes: killed by their id when dropped, read line by line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Instant;

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use trunkline::Peer;

use super::{Carrier, Certs, eventually, name, own_port, within};

/// The program under test.
const TRUNKLINE: &str = env!("CARGO_BIN_EXE_trunkline");

/// A process with all its standard streams piped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

/// The lines that a process writes to one stream.
#[derive(Debug)]
pub(crate) struct Output {
    lines: UnboundedReceiver<String>,
    /// Those that were read, for the message of a test that fails.
    seen: Vec<String>,
}

/// How a process ended, and all that it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    /// Starts the program under test.
    pub(crate) fn trunkline<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Self {
        Self::trunkline_with(args, &[])
    }

    /// The same, with these variables in its environment.
    pub(crate) fn trunkline_with<S: AsRef<std::ffi::OsStr>>(args: &[S], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(TRUNKLINE);
        command.args(args).env_remove("RUST_LOG").env_remove("TRUNKLINE_TOKEN");
        Self::start(command.envs(variables.iter().copied())).unwrap()
    }

    /// Starts a tool of the system, which must be there.
    pub(crate) fn tool(program: &str, package: &str, args: &[&str]) -> Self {
        Self::start(Command::new(program).args(args)).unwrap_or_else(|error| {
            panic!("can't run {program}: {error}; install Debian's {package}, as scripts/test.sh does")
        })
    }

    /// The same, with so many file descriptors at most.
    fn trunkline_with_files(files: u64, args: &[String]) -> Self {
        let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &limited, TRUNKLINE]).args(args);
        Self::start(command.env_remove("RUST_LOG")).unwrap()
    }

    /// The id by which the system knows the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn start(command: &mut Command) -> std::io::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            stdout,
            stderr,
        })
    }

    /// Writes to the process's stdin.
    pub(crate) fn write(&mut self, text: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("stdin is still open");
        stdin.write_all(text.as_ref()).and_then(|()| stdin.flush()).unwrap();
    }

    /// Ends the process's stdin.
    pub(crate) fn end_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Kills the process as `kill -9` does, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The most memory that the process has had so far, in bytes.
    pub(crate) fn peak_memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Waits for the process's end.
    pub(crate) async fn status(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Ends stdin and waits for the process's end.
    pub(crate) async fn ended(mut self) -> Ended {
        self.end_stdin();
        let code = self.status().await.code();
        Ended {
            code,
            stdout: self.stdout.rest().await,
            stderr: self.stderr.rest().await,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, lines) = unbounded_channel();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line);
                if sender.send(text.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Self {
            lines,
            seen: Vec::new(),
        }
    }

    /// The next line; `None` once the process has closed the stream.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let line = within("a line of a process", self.lines.recv()).await;
        self.seen.extend(line.clone());
        line
    }

    /// The next line, which must come.
    pub(crate) async fn line(&mut self) -> String {
        self.next().await.expect("a line, not the end of a process's output")
    }

    /// Reads up to the first line that contains this text.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        loop {
            match self.next().await {
                Some(line) if line.contains(text) => return line,
                Some(_) => {}
                None => panic!("no line with {text:?} in:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// How many lines so far contain this text.
    pub(crate) fn count(&mut self, text: &str) -> usize {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.push(line);
        }
        self.seen.iter().filter(|line| line.contains(text)).count()
    }

    /// All lines, those read before too, up to the end.
    pub(crate) async fn rest(&mut self) -> String {
        while self.next().await.is_some() {}
        self.seen.join("\n")
    }
}

/// How to start a node as a process of its own, once or again.
#[derive(Debug, Clone)]
pub(crate) struct NodeCommand {
    index: usize,
    certs: PathBuf,
    /// TCP, QUIC, links.
    pub(crate) ports: [SocketAddr; 3],
    /// As `--peer` wants them.
    pub(crate) peers: Vec<String>,
    /// What it is joined to others by, beside peers.
    pub(crate) carrier: Carrier,
    pub(crate) extra: Vec<String>,
    /// How many file descriptors it may have, if not as many as this process.
    pub(crate) files: Option<u64>,
}

/// A node in a process of its own.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    pub(crate) process: Process,
    /// What starts the same node again, on the same ports.
    pub(crate) command: NodeCommand,
    /// When it said that it is up.
    pub(crate) up: Instant,
}

impl NodeCommand {
    /// A node on free ports, without peers.
    pub(crate) fn new(certs: &Certs, index: usize) -> Self {
        Self {
            index,
            certs: certs.dir().to_owned(),
            ports: [(); 3].map(|()| own_port()),
            peers: Vec::new(),
            carrier: Carrier::Quic,
            extra: Vec::new(),
            files: None,
        }
    }

    pub(crate) fn args(&self) -> Vec<String> {
        let [tcp, quic, link] = self.ports.map(|port| port.to_string());
        let certs = self.certs.display().to_string();
        let advertise = name(self.index).to_string();
        let mut args: Vec<String> = [
            "node",
            "--log-format",
            "json",
            "--tcp",
            &tcp,
            "--quic",
            &quic,
            "--link",
            &link,
            "--advertise",
            &advertise,
            "--certs",
            &certs,
        ]
        .map(str::to_owned)
        .to_vec();
        for peer in &self.peers {
            args.extend(["--peer".to_owned(), peer.clone()]);
        }
        args.extend(self.carrier.flags());
        args.extend(self.extra.iter().cloned());
        args
    }

    /// Starts the node and waits until it is up.
    pub(crate) async fn start(mut self) -> NodeProcess {
        let mut process = match self.files {
            Some(files) => Process::trunkline_with_files(files, &self.args()),
            None => Process::trunkline(&self.args()),
        };
        let line = process.stderr.until("\"node up\"").await;
        let up = Instant::now();
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["name"], name(self.index).as_str());
        self.ports = ["tcp", "quic", "link"].map(|field| line[field].as_str().unwrap().parse().unwrap());
        NodeProcess {
            process,
            command: self,
            up,
        }
    }
}

impl NodeProcess {
    pub(crate) fn tcp(&self) -> SocketAddr {
        self.command.ports[0]
    }

    pub(crate) fn quic(&self) -> SocketAddr {
        self.command.ports[1]
    }

    pub(crate) fn link(&self) -> SocketAddr {
        self.command.ports[2]
    }

    /// The node as another names it with `--peer`.
    pub(crate) fn as_peer(&self) -> String {
        let Peer { name, link } = self.peer();
        format!("{name}={link}")
    }

    /// The same, for a node of this process.
    pub(crate) fn peer(&self) -> Peer {
        Peer {
            name: name(self.command.index),
            link: self.link().into(),
        }
    }
}
