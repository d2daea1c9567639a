//! Real servers, ended by their process ids when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tempfile::TempDir;

use super::DEADLINE;
use crate::wire::resp::{Answers, Value, write_command};

/// A redis-server of its own, which keeps nothing.
pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
    pub(super) tls_port: Option<u16>,
    options: Vec<String>,
    dir: TempDir,
}

/// A port that is free, and that nobody gets who asks the system for any: those begin at 32768. So a server that comes
/// back finds it free again.
fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Starts a server; `None`: something of it was not free.
fn start(port: u16, options: &[String], dir: &TempDir) -> Option<Child> {
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
    ]);
    command.arg(dir.path()).args(options);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.unwrap_or_else(|error| {
        panic!("can't run redis-server: {error}; install Debian's redis-server, as scripts/test.sh does")
    });
    let lines = lines(child.stdout.take().unwrap());
    let deadline = Instant::now() + DEADLINE;
    let mut said = String::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains("Ready to accept connections") => return Some(child),
            Ok(line) => said += &format!("{line}\n"),
            Err(_) => {
                let _ = child.kill();
                child.wait().unwrap();
                assert!(
                    said.contains("ddress already in use"),
                    "redis-server does not start:\n{said}"
                );
                return None;
            }
        }
    }
}

/// The lines that a process writes, read to the end so that it never waits.
fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // An error: nobody reads them any more.
            let _ = sender.send(line);
        }
    });
    lines
}

impl Server {
    pub(super) fn start() -> Self {
        Self::with(&[])
    }

    /// A server with more options.
    pub(super) fn with(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        loop {
            let port = free_port();
            let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
            if let Some(child) = start(port, &options, &dir) {
                return Self {
                    child,
                    port,
                    tls_port: None,
                    options,
                    dir,
                };
            }
        }
    }

    /// The same, which speaks TLS at a second port.
    pub(super) fn with_tls(options: &[&str]) -> Self {
        let tls_port = free_port();
        let port = tls_port.to_string();
        let mut server = Self::with(&[&["--tls-port", &port, "--tls-auth-clients", "no"], options].concat());
        server.tls_port = Some(tls_port);
        server
    }

    fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// Kills the server as a power cut does.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again at the same place.
    pub(super) fn start_again(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        self.child = loop {
            if let Some(child) = start(self.port, &self.options, &self.dir) {
                break child;
            }
            assert!(Instant::now() < deadline, "the port is not free again");
        };
    }

    /// Sends a signal, by its name without `SIG`.
    pub(super) fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Has a command done on a connection of its own.
    pub(super) fn say(&self, command: &[&str]) -> Value {
        let mut stream = TcpStream::connect(self.addr()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut bytes = BytesMut::new();
        write_command(
            &mut bytes,
            &command.iter().map(|part| part.as_bytes()).collect::<Vec<_>>(),
        );
        stream.write_all(&bytes).unwrap();
        bytes.clear();
        let mut answers = Answers::new(1 << 20);
        loop {
            if let Some(answer) = answers.next(&mut bytes).unwrap() {
                return answer;
            }
            let mut piece = [0; 4096];
            let length = stream.read(&mut piece).unwrap();
            assert!(length > 0, "closed after {command:?}");
            bytes.extend_from_slice(&piece[..length]);
        }
    }

    /// The same, which has to be done.
    pub(super) fn done(&self, command: &[&str]) -> Value {
        let answer = self.say(command);
        assert!(!matches!(answer, Value::Error(_)), "{command:?}: {answer:?}");
        answer
    }

    /// A bulk of text.
    pub(super) fn text(&self, command: &[&str]) -> String {
        let answer = self.done(command);
        String::from_utf8(answer.text().unwrap().to_vec()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three masters, with a third of the slots each.
pub(super) struct Cluster {
    pub(super) masters: Vec<Server>,
}

/// Waits until something holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Cluster {
    pub(super) fn start() -> Self {
        Self::with(&[])
    }

    pub(super) fn with(options: &[&str]) -> Self {
        let masters: Vec<_> = (0..3)
            .map(|_| {
                let bus = free_port().to_string();
                let mut all = vec![
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &bus,
                    "--cluster-node-timeout",
                    "2000",
                ];
                all.extend(options);
                Server::with(&all)
            })
            .collect();
        for (master, slots) in masters
            .iter()
            .zip([("0", "5460"), ("5461", "10922"), ("10923", "16383")])
        {
            master.done(&["CLUSTER", "ADDSLOTSRANGE", slots.0, slots.1]);
        }
        for (index, master) in masters.iter().enumerate() {
            master.done(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for other in &masters[1..] {
            let (port, bus) = (other.port.to_string(), &other.options[3]);
            masters[0].done(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]);
        }
        let is_whole = |master: &Server| {
            let info = master.text(&["CLUSTER", "INFO"]);
            let nodes = master.text(&["CLUSTER", "NODES"]);
            info.contains("cluster_state:ok")
                && info.contains("cluster_slots_ok:16384")
                && nodes.lines().filter(|line| line.contains(" connected ")).count() == 3
        };
        wait_until("the cluster is whole", || masters.iter().all(is_whole));
        Self { masters }
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.masters.iter().map(Server::url).collect()
    }

    /// The master that has a slot, as all of them say.
    pub(super) fn owner(&self, slot: u16) -> usize {
        let mut owner = 0;
        wait_until("all masters say the same", || {
            let owners: Vec<_> = self
                .masters
                .iter()
                .map(|master| Self::owner_for(master, slot))
                .collect();
            let same = owners.iter().all(|owner| *owner == owners[0]);
            owner = self.masters.iter().position(|master| master.port == owners[0]).unwrap();
            same
        });
        owner
    }

    fn owner_for(master: &Server, slot: u16) -> u16 {
        use super::super::topology::Slots;
        let at = format!("127.0.0.1:{}", master.port).parse().unwrap();
        let slots = Slots::read(&master.done(&["CLUSTER", "SLOTS"]), &at).unwrap();
        slots.owner(slot).unwrap().port()
    }

    /// Moves an empty slot as `redis-cli --cluster reshard` does.
    pub(super) fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let id = |index: usize| self.masters[index].text(&["CLUSTER", "MYID"]);
        let (slot, from_id, to_id) = (slot.to_string(), id(from), id(to));
        self.masters[to].done(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
        self.masters[from].done(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
        for index in [to, from, 3 - from - to] {
            self.masters[index].done(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
    }
}
