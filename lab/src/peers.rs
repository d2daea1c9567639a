//! The relays that are compared, as processes on free ports of this machine: Trunkline, nats-server, redis-server.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use trunkline::bench::speech::{Said, Speech};
use trunkline::bench::{Target, Transport};
use trunkline::certs;

use crate::nodes::{Join, Mesh};
use crate::process::{DEADLINE, Directory, Log, Process};
use crate::redis_server::Server;
use crate::trials::{Clients, Relay};

/// How long to wait for a message before the next is sent, while a route comes up.
const PROBE: Duration = Duration::from_millis(20);

/// What is started.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `trunkline`.
    pub trunkline: PathBuf,
    /// `nats-server`.
    pub nats: PathBuf,
    /// `redis-server`.
    pub redis: PathBuf,
}

/// Relays that serve; killed when dropped.
#[derive(Debug)]
pub enum Running {
    /// Trunkline.
    Trunkline(Mesh),
    /// Trunkline, joined by a redis-server.
    Joined(Mesh, Server),
    /// nats-server.
    Nats(Nats),
    /// redis-server.
    Redis(Server),
}

impl Running {
    /// Starts relays, and waits until they serve and pass messages on to each other.
    ///
    /// # Errors
    ///
    /// When there is no such program, or one does not come up in time.
    pub fn start(relay: &Relay, programs: &Programs) -> anyhow::Result<Self> {
        Ok(match *relay {
            Relay::Trunkline { nodes, flags } => {
                let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
                Self::Trunkline(Mesh::start(&programs.trunkline, nodes, &flags)?)
            }
            Relay::Joined { nodes } => {
                let server = redis(&programs.redis)?;
                let flags = ["--redis".to_owned(), format!("redis://{}", server.addr())];
                let mesh = Mesh::start_joined(&programs.trunkline, nodes, &flags, Join::Flags)?;
                Self::Joined(mesh, server)
            }
            Relay::Nats { servers, tls } => Self::Nats(Nats::start(&programs.nats, servers, tls)?),
            Relay::Redis => Self::Redis(redis(&programs.redis)?),
        })
    }

    /// Where clients connect to each.
    pub fn at(&self, clients: Clients) -> Vec<SocketAddr> {
        match self {
            Self::Trunkline(mesh) | Self::Joined(mesh, _) => {
                let nodes = mesh.nodes.iter();
                nodes
                    .map(|node| match clients {
                        Clients::Tcp => node.tcp,
                        Clients::Quic => node.quic,
                    })
                    .collect()
            }
            Self::Nats(nats) => nats.servers.iter().map(|(_, at)| *at).collect(),
            Self::Redis(redis) => vec![redis.addr()],
        }
    }

    /// The same, for the load.
    pub fn targets(&self, clients: Clients) -> Vec<Target> {
        let transport = match (self, clients) {
            (Self::Trunkline(_) | Self::Joined(..), Clients::Tcp) => Transport::Line,
            (Self::Trunkline(_) | Self::Joined(..), Clients::Quic) => Transport::Quic,
            (Self::Nats(_), _) => Transport::Nats,
            (Self::Redis(_), _) => Transport::Redis,
        };
        let at = self.at(clients).into_iter();
        at.map(|at| Target {
            transport,
            at: at.into(),
        })
        .collect()
    }

    /// What their TCP clients speak.
    pub fn speech(&self) -> Speech {
        match self {
            Self::Trunkline(_) | Self::Joined(..) => Speech::Line,
            Self::Nats(_) => Speech::Nats,
            Self::Redis(_) => Speech::Redis,
        }
    }

    /// Their process ids.
    pub fn ids(&self) -> Vec<u32> {
        match self {
            Self::Trunkline(mesh) => mesh.nodes.iter().map(crate::nodes::Node::id).collect(),
            Self::Joined(mesh, redis) => {
                let nodes = mesh.nodes.iter().map(crate::nodes::Node::id);
                nodes.chain([redis.id()]).collect()
            }
            Self::Nats(nats) => nats.servers.iter().map(|(process, _)| process.id()).collect(),
            Self::Redis(redis) => vec![redis.id()],
        }
    }

    /// Where `node-ca.pem` is, for QUIC clients. Relays without such have no directory.
    pub fn certs(&self) -> PathBuf {
        match self {
            Self::Trunkline(mesh) | Self::Joined(mesh, _) => mesh.certs().to_owned(),
            Self::Nats(_) | Self::Redis(_) => PathBuf::new(),
        }
    }
}

/// Servers, each with a route to each other. Their directory goes with them.
#[derive(Debug)]
pub struct Nats {
    /// Each server, and where its clients connect.
    servers: Vec<(Process, SocketAddr)>,
    _dir: Directory,
}

/// How a server is joined to others.
struct Cluster<'a> {
    /// Where those before it wait for routes.
    routes: &'a [SocketAddr],
    /// Its certificate and key, and the authority's certificate.
    tls: Option<[PathBuf; 3]>,
}

/// What a server is told to be. Beside its ports: what its clients may have in its buffers, and how long one may take
/// nothing, is more than any load here needs, so that none is thrown out.
fn nats_config(cluster: Option<&Cluster<'_>>) -> String {
    let mut text = "host: \"127.0.0.1\"\n\
                    port: -1\n\
                    max_payload: 4194304\n\
                    max_pending: 1073741824\n\
                    write_deadline: \"60s\"\n"
        .to_owned();
    // Writing to a string can't fail.
    if let Some(Cluster { routes, tls }) = cluster {
        let _ = write!(text, "cluster {{\n  name: lab\n  host: \"127.0.0.1\"\n  port: -1\n");
        let routes: Vec<String> = routes.iter().map(|at| format!("\"nats-route://{at}\"")).collect();
        if !routes.is_empty() {
            let _ = writeln!(text, "  routes: [{}]", routes.join(", "));
        }
        if let Some(files) = tls {
            let _ = writeln!(text, "  tls {{");
            for (name, file) in ["cert_file", "key_file", "ca_file"].iter().zip(files) {
                let _ = writeln!(text, "    {name}: \"{}\"", file.display());
            }
            let _ = write!(text, "    verify: true\n    timeout: 5\n  }}\n");
        }
        let _ = writeln!(text, "}}");
    }
    text
}

impl Nats {
    fn start(program: &Path, count: usize, tls: bool) -> anyhow::Result<Self> {
        let dir = Directory::new()?;
        let names = (1..=count).map(|number| format!("127.0.0.1:{number}").parse());
        let names = names.collect::<Result<Vec<_>, _>>()?;
        if tls {
            certs::make(dir.path(), &names, certs::DEFAULT_CLUSTER)?;
        }
        let (mut servers, mut routes) = (Vec::with_capacity(count), Vec::new());
        for name in &names {
            let file = |stem: &str, extension| dir.path().join(stem).with_added_extension(extension);
            let tls = tls.then(|| {
                let stem = certs::node_stem(name);
                [file(&stem, "pem"), file(&stem, "key"), file("node-ca", "pem")]
            });
            let cluster = Cluster { routes: &routes, tls };
            let path = dir.path().join(format!("{}.conf", servers.len()));
            std::fs::write(&path, nats_config((count > 1).then_some(&cluster)))?;
            let process = Process::start(Command::new(program).arg("-c").arg(&path), Log::Stderr)?;
            const CLIENTS: &str = "Listening for client connections on ";
            const ROUTES: &str = "Listening for route connections on ";
            let at = if count > 1 {
                let [clients, others] = process.logged_each([CLIENTS, ROUTES])?;
                routes.push(told(&others, ROUTES)?);
                told(&clients, CLIENTS)?
            } else {
                told(&process.logged(CLIENTS)?, CLIENTS)?
            };
            servers.push((process, at));
        }
        for (from, (_, at)) in servers.iter().enumerate() {
            for (to, (_, other)) in servers.iter().enumerate() {
                if from != to {
                    carries(*at, *other).with_context(|| format!("no route from server {from} to {to}"))?;
                }
            }
        }
        Ok(Self { servers, _dir: dir })
    }
}

/// The address that stands behind this text.
fn told(line: &str, text: &str) -> anyhow::Result<SocketAddr> {
    let (_, at) = line.split_once(text).with_context(|| format!("no address: {line}"))?;
    at.trim().parse().with_context(|| format!("not an address: {line}"))
}

/// Waits until a message from one server reaches a client of another.
fn carries(from: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    const CHANNEL: &str = "probe";
    let until = Instant::now() + DEADLINE;
    let connect = |at: SocketAddr, receiver| -> std::io::Result<TcpStream> {
        let mut socket = TcpStream::connect_timeout(&at, DEADLINE)?;
        socket.set_nodelay(true)?;
        socket.write_all(Speech::Nats.opening(receiver).as_bytes())?;
        Ok(socket)
    };
    let (mut receiver, mut sender) = (connect(to, Some(CHANNEL))?, connect(from, None)?);
    receiver.set_read_timeout(Some(PROBE))?;
    let (mut message, mut heard, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
    Speech::Nats.message(CHANNEL, b"up", &mut message);
    while Instant::now() < until {
        sender.write_all(&message)?;
        match receiver.read(&mut buffer) {
            Ok(0) => bail!("the server has closed the connection"),
            Ok(read) => heard.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        let mut at = 0;
        while let Some((said, taken)) = Speech::Nats.said(heard.get(at..).unwrap_or_default()) {
            match said {
                Said::Body(_) => return Ok(()),
                Said::Error(text) => bail!("the server says {text}"),
                Said::Ready(_) | Said::Ping | Said::Other => at += taken,
            }
        }
        heard.drain(..at);
    }
    bail!("nothing came within {DEADLINE:?}")
}

/// A server that throws nobody out for what it has not read.
fn redis(program: &Path) -> anyhow::Result<Server> {
    Server::of(program, &["--client-output-buffer-limit", "pubsub", "0", "0", "0"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_what_it_has_to_know() {
        let alone = nats_config(None);
        assert!(alone.contains("port: -1\n") && !alone.contains("cluster"), "{alone}");
        let routes = ["127.0.0.1:7".parse().unwrap(), "127.0.0.1:8".parse().unwrap()];
        let plain = nats_config(Some(&Cluster {
            routes: &routes,
            tls: None,
        }));
        assert!(
            plain.contains("routes: [\"nats-route://127.0.0.1:7\", \"nats-route://127.0.0.1:8\"]\n"),
            "{plain}"
        );
        assert!(!plain.contains("tls"), "{plain}");
        let tls = nats_config(Some(&Cluster {
            routes: &[],
            tls: Some(["a.pem", "a.key", "ca.pem"].map(PathBuf::from)),
        }));
        assert!(
            tls.contains("key_file: \"a.key\"\n    ca_file: \"ca.pem\"\n    verify: true\n"),
            "{tls}"
        );
        assert!(!tls.contains("routes"), "{tls}");
        for text in [plain, tls] {
            assert_eq!(text.matches('{').count(), text.matches('}').count(), "{text}");
        }
    }

    #[test]
    fn an_address_is_read_from_a_log() {
        let line = "[1] 2026/01/01 00:00:00.000000 [INF] Listening for client connections on 127.0.0.1:4222";
        let at = told(line, "Listening for client connections on ").unwrap();
        assert_eq!(at, "127.0.0.1:4222".parse().unwrap());
        assert!(told(line, "on the moon ").is_err());
    }
}
