//! Real redis-servers on free ports of this machine, alone or three masters as a cluster, and what may be done to them.
//! They keep nothing on disk, and end with their owner. All here waits where it is called.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use crate::ports::own_port;
use crate::process::{Directory, Log, Process};

/// How long anything that is waited for may take. Far more than it does, so that a busy machine fails no test.
const DEADLINE: Duration = Duration::from_secs(40);

/// How often is looked for what is waited for.
const LOOK: Duration = Duration::from_millis(10);

/// The masters of a cluster: the fewest that Redis makes one of.
pub const MASTERS: usize = 3;

/// The slots of a cluster, which its masters share out.
const SLOTS: usize = 16384;

/// What a server has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A short text: `OK`.
    Status(String),
    /// A refusal.
    Error(String),
    /// A number.
    Integer(i64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Nothing, where bytes or an array could be.
    Null,
    /// Several.
    Array(Vec<Self>),
}

/// What a server is beside a plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Tls,
    Clustered,
}

/// A redis-server.
#[derive(Debug)]
pub struct Server {
    process: Process,
    program: PathBuf,
    ports: Ports,
    options: Vec<String>,
    dir: Directory,
}

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
struct Ports {
    plain: u16,
    /// For TLS, or for the other servers of a cluster.
    second: Option<u16>,
}

/// Waits until something holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !holds()? {
        if Instant::now() >= deadline {
            bail!("{what}: not within {DEADLINE:?}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Starts a server; `None`: a port was not free.
fn launch(program: &Path, ports: Ports, options: &[String], dir: &Directory) -> anyhow::Result<Option<Process>> {
    let mut command = Command::new(program);
    command.args(["--port", &ports.plain.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]);
    command.arg(dir.path()).args(options);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let process =
        Process::start(&mut command, Log::Stdout).context("install Debian's redis-server, as scripts/test.sh does")?;
    match process.logged("Ready to accept connections") {
        Ok(_) => Ok(Some(process)),
        Err(error) if error.to_string().contains("ddress already in use") => Ok(None),
        Err(error) => Err(error),
    }
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// When there is no `redis-server`, or it does not come up.
    pub fn start() -> anyhow::Result<Self> {
        Self::with(&[])
    }

    /// Starts one with more options, as they stand on its command line.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn with(options: &[&str]) -> anyhow::Result<Self> {
        Self::of(Path::new("redis-server"), options)
    }

    /// The same, of this program.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn of(program: &Path, options: &[&str]) -> anyhow::Result<Self> {
        Self::start_as(Kind::Plain, program, options)
    }

    /// Starts one that speaks TLS at a second port, with options that say which certificate it has.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn with_tls(options: &[&str]) -> anyhow::Result<Self> {
        Self::start_as(Kind::Tls, Path::new("redis-server"), options)
    }

    fn start_as(kind: Kind, program: &Path, more: &[&str]) -> anyhow::Result<Self> {
        let dir = Directory::new()?;
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            let plain = own_port()?.port();
            let second = match kind {
                Kind::Plain => None,
                Kind::Tls | Kind::Clustered => Some(own_port()?.port()),
            };
            let port = second.unwrap_or_default().to_string();
            let own: &[&str] = match kind {
                Kind::Plain => &[],
                Kind::Tls => &["--tls-port", &port, "--tls-auth-clients", "no"],
                Kind::Clustered => &[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &port,
                    "--cluster-node-timeout",
                    "2000",
                ],
            };
            let options: Vec<String> = own.iter().chain(more).map(|&option| option.to_owned()).collect();
            let ports = Ports { plain, second };
            if let Some(process) = launch(program, ports, &options, &dir)? {
                return Ok(Self {
                    process,
                    program: program.to_owned(),
                    ports,
                    options,
                    dir,
                });
            }
        }
        Err(anyhow!("redis-server does not start on any free port"))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.plain).into()
    }

    /// Where it listens for TLS.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.ports.second.map(|port| (Ipv4Addr::LOCALHOST, port).into())
    }

    /// Where nodes find it, as `--redis` wants it.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it as a power cut does.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.process.kill()?)
    }

    /// Starts it at the same place, after [`kill`](Self::kill).
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(process) = launch(&self.program, self.ports, &self.options, &self.dir)? {
                self.process = process;
                return Ok(());
            }
        }
        Err(anyhow!("the port {} is not free again", self.ports.plain))
    }

    /// Sends it a signal, by its name without `SIG`.
    ///
    /// # Errors
    ///
    /// When there is no such signal, or the system refuses.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        self.process.signal(signal)
    }

    /// Has a replica of a cluster take the place of its master, which becomes a replica, and waits until it has.
    ///
    /// # Errors
    ///
    /// When it refuses, or does not in time.
    pub fn take_over(&self) -> anyhow::Result<()> {
        // The masters have 5 s to vote, which is not enough on a machine that does much else; then it is asked again.
        let mut asked: Option<Instant> = None;
        wait_until("the replica is the master", || {
            if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(6)) {
                self.say(&["CLUSTER", "FAILOVER"])?;
                asked = Some(Instant::now());
            }
            Ok(self.text(&["INFO", "replication"])?.contains("role:master"))
        })
    }

    /// Has a command done on a connection of its own.
    ///
    /// # Errors
    ///
    /// When no answer comes. One that is an error is an answer.
    pub fn say(&self, command: &[&str]) -> anyhow::Result<Answer> {
        let told = || format!("{command:?} at {}", self.addr());
        let mut stream = TcpStream::connect(self.addr()).with_context(told)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut bytes = format!("*{}\r\n", command.len());
        for part in command {
            bytes += &format!("${}\r\n{part}\r\n", part.len());
        }
        stream.write_all(bytes.as_bytes()).with_context(told)?;
        answer(&mut BufReader::new(stream)).with_context(told)
    }

    /// The same, which has to be done.
    ///
    /// # Errors
    ///
    /// When no answer comes, or an error.
    pub fn done(&self, command: &[&str]) -> anyhow::Result<Answer> {
        match self.say(command)? {
            Answer::Error(error) => bail!("{command:?}: {error}"),
            answer => Ok(answer),
        }
    }

    /// The same, answered with text.
    ///
    /// # Errors
    ///
    /// When no answer comes, or another.
    pub fn text(&self, command: &[&str]) -> anyhow::Result<String> {
        match self.done(command)? {
            Answer::Status(text) => Ok(text),
            Answer::Bytes(text) => Ok(String::from_utf8(text)?),
            other => bail!("{command:?}: {other:?} is no text"),
        }
    }
}

/// Reads an answer.
fn answer(from: &mut impl BufRead) -> anyhow::Result<Answer> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.strip_suffix("\r\n").context("the connection was closed")?;
    let (kind, rest) = line.split_at_checked(1).context("an empty line")?;
    let rest = rest.to_owned();
    Ok(match kind {
        "+" => Answer::Status(rest),
        "-" => Answer::Error(rest),
        ":" => Answer::Integer(rest.parse()?),
        "$" | "*" if rest == "-1" => Answer::Null,
        "$" => {
            let mut bytes = vec![0; rest.parse::<usize>()? + 2];
            from.read_exact(&mut bytes)?;
            bytes.truncate(bytes.len() - 2);
            Answer::Bytes(bytes)
        }
        "*" => {
            let parts = (0..rest.parse::<usize>()?).map(|_| answer(from));
            Answer::Array(parts.collect::<anyhow::Result<_>>()?)
        }
        _ => bail!("no answer begins so: {line}"),
    })
}

/// Three masters, with a third of the slots each.
#[derive(Debug)]
pub struct Cluster {
    /// The masters.
    pub masters: [Server; MASTERS],
}

impl Cluster {
    /// Starts one, and waits until it is whole.
    ///
    /// # Errors
    ///
    /// When there is no `redis-server`, or the cluster does not come up.
    pub fn start() -> anyhow::Result<Self> {
        Self::with(&[])
    }

    /// The same, each master with more options.
    ///
    /// # Errors
    ///
    /// As [`Cluster::start`].
    pub fn with(options: &[&str]) -> anyhow::Result<Self> {
        let master = || Server::start_as(Kind::Clustered, Path::new("redis-server"), options);
        let masters = [master()?, master()?, master()?];
        for (index, master) in masters.iter().enumerate() {
            let (first, behind) = (index * SLOTS / MASTERS, (index + 1) * SLOTS / MASTERS);
            let last = behind - 1;
            master.done(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])?;
            master.done(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()])?;
        }
        let [first, others @ ..] = &masters;
        for other in others {
            let (port, bus) = (other.ports.plain, other.ports.second.unwrap_or_default());
            first.done(&["CLUSTER", "MEET", "127.0.0.1", &port.to_string(), &bus.to_string()])?;
        }
        wait_until("the cluster is whole", || {
            for master in &masters {
                let info = master.text(&["CLUSTER", "INFO"])?;
                let nodes = master.text(&["CLUSTER", "NODES"])?;
                let connected = nodes.lines().filter(|line| line.contains(" connected "));
                if !info.contains("cluster_state:ok")
                    || !info.contains("cluster_slots_ok:16384")
                    || connected.count() != MASTERS
                {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(Self { masters })
    }

    /// Where nodes find each master, as `--redis` wants it.
    pub fn urls(&self) -> Vec<String> {
        self.masters.iter().map(Server::url).collect()
    }

    /// The slot of a key or a channel.
    ///
    /// # Errors
    ///
    /// When the first master does not say.
    pub fn slot(&self, key: &str) -> anyhow::Result<u16> {
        let [first, ..] = &self.masters;
        match first.done(&["CLUSTER", "KEYSLOT", key])? {
            Answer::Integer(slot) => Ok(slot.try_into()?),
            other => bail!("{other:?} is no slot"),
        }
    }

    /// The master that has a slot, once all of them say the same.
    ///
    /// # Errors
    ///
    /// When they don't in time.
    pub fn owner(&self, slot: u16) -> anyhow::Result<usize> {
        let mut owner = None;
        wait_until("all masters say the same", || {
            let owners = self.masters.iter().map(|master| port_of(master, slot));
            let owners = owners.collect::<anyhow::Result<Vec<_>>>()?;
            let at = |master: &Server| owners.iter().all(|port| *port == Some(master.ports.plain));
            owner = self.masters.iter().position(at);
            Ok(owner.is_some())
        })?;
        owner.context("no master has it")
    }

    /// Starts a replica of a master, and waits until it is in step and all masters know it.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn add_replica(&self, of: usize) -> anyhow::Result<Server> {
        let master = self.masters.get(of).context("no such master")?;
        let replica = Server::start_as(Kind::Clustered, Path::new("redis-server"), &[])?;
        master.done(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"])?;
        let (port, bus) = (replica.ports.plain, replica.ports.second.unwrap_or_default());
        master.done(&["CLUSTER", "MEET", "127.0.0.1", &port.to_string(), &bus.to_string()])?;
        let (master_id, id) = (master.text(&["CLUSTER", "MYID"])?, replica.text(&["CLUSTER", "MYID"])?);
        wait_until("the replica knows its master", || {
            Ok(!matches!(
                replica.say(&["CLUSTER", "REPLICATE", &master_id])?,
                Answer::Error(_)
            ))
        })?;
        wait_until("the replica is in step, and known", || {
            let in_step = replica
                .text(&["INFO", "replication"])?
                .contains("master_link_status:up");
            for master in &self.masters {
                let nodes = master.text(&["CLUSTER", "NODES"])?;
                let known = nodes
                    .lines()
                    .any(|line| line.starts_with(&id) && line.contains(" slave ") && line.ends_with(" connected"));
                if !in_step || !known {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(replica)
    }

    /// Moves an empty slot to another master as `redis-cli --cluster reshard` does.
    ///
    /// # Errors
    ///
    /// When a master refuses.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        let master = |index: usize| self.masters.get(index).context("no such master");
        let (giver, taker) = (master(from)?, master(to)?);
        let (slot, giver_id) = (slot.to_string(), giver.text(&["CLUSTER", "MYID"])?);
        let taker_id = taker.text(&["CLUSTER", "MYID"])?;
        taker.done(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &giver_id])?;
        giver.done(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &taker_id])?;
        let others = self.masters.iter().enumerate();
        let others = others.filter(|(index, _)| *index != from && *index != to);
        for master in [taker, giver].into_iter().chain(others.map(|(_, master)| master)) {
            master.done(&["CLUSTER", "SETSLOT", &slot, "NODE", &taker_id])?;
        }
        Ok(())
    }
}

/// The port of the master that has a slot, as this one says.
fn port_of(master: &Server, slot: u16) -> anyhow::Result<Option<u16>> {
    let Answer::Array(ranges) = master.done(&["CLUSTER", "SLOTS"])? else {
        bail!("CLUSTER SLOTS is no list");
    };
    for range in ranges {
        let Answer::Array(range) = range else {
            bail!("{range:?} is no range of slots");
        };
        let [Answer::Integer(first), Answer::Integer(last), Answer::Array(owner), ..] = range.as_slice() else {
            bail!("{range:?} is no range of slots");
        };
        let [_, Answer::Integer(port), ..] = owner.as_slice() else {
            bail!("{owner:?} is no master");
        };
        if (*first..=*last).contains(&slot.into()) {
            return Ok(Some((*port).try_into()?));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_each_kind_are_read() {
        let mut bytes = &b"*5\r\n+OK\r\n-ERR no\r\n:-7\r\n$-1\r\n$4\r\na\r\nb\r\n*-1\r\n?\r\n"[..];
        let parts = vec![
            Answer::Status("OK".to_owned()),
            Answer::Error("ERR no".to_owned()),
            Answer::Integer(-7),
            Answer::Null,
            Answer::Bytes(b"a\r\nb".to_vec()),
        ];
        assert_eq!(answer(&mut bytes).unwrap(), Answer::Array(parts));
        assert_eq!(answer(&mut bytes).unwrap(), Answer::Null);
        assert!(answer(&mut bytes).unwrap_err().to_string().contains('?'));
        assert!(answer(&mut bytes).unwrap_err().to_string().contains("closed"));
    }

    #[test]
    fn a_server_comes_back_at_the_same_place_and_a_wrong_option_is_told() {
        let mut server = Server::with(&["--databases", "3"]).unwrap();
        server.done(&["SET", "key", "value"]).unwrap();
        assert_eq!(server.text(&["GET", "key"]).unwrap(), "value");
        let addr = server.addr();
        server.kill().unwrap();
        server.say(&["PING"]).unwrap_err();
        server.start_again().unwrap();
        assert_eq!(server.addr(), addr);
        assert_eq!(server.say(&["GET", "key"]).unwrap(), Answer::Null);
        server.done(&["SELECT", "3"]).unwrap_err();
        Server::with(&["--no-such-option", "1"]).unwrap_err();
    }

    #[test]
    fn a_slot_of_a_cluster_moves() {
        let cluster = Cluster::start().unwrap();
        let slot = cluster.slot("foo").unwrap();
        assert_eq!((slot, cluster.owner(slot).unwrap()), (12182, 2));
        cluster.move_slot(slot, 2, 0).unwrap();
        assert_eq!(cluster.owner(slot).unwrap(), 0);
        assert_eq!(cluster.owner(slot - 1).unwrap(), 2);
    }
}
