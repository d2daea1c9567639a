//! Real redis-servers for nodes to be joined by, and what a test may do to them while nodes run: nothing here holds up
//! the thread that the nodes may be on.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use trunkline_lab::redis_server::{self, Answer, Server};

/// A redis-server in a process of its own; ended when dropped.
#[derive(Debug)]
pub(crate) struct Redis {
    /// Absent while something is done to it.
    server: Option<Server>,
    pub(crate) addr: SocketAddr,
}

/// Has something done that waits.
async fn done<T: Send + 'static>(what: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> T {
    spawn_blocking(what).await.unwrap().unwrap()
}

impl Redis {
    /// Starts one, and waits until it serves.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more of its settings, as on its command line.
    pub(crate) async fn start_with(extra: &'static [&'static str]) -> Self {
        let server = done(|| Server::with(extra)).await;
        Self {
            addr: server.addr(),
            server: Some(server),
        }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Where nodes find it, as `--redis` wants it.
    pub(crate) fn url(&self) -> String {
        self.server().url()
    }

    /// Starts it on the same port, after [`kill`](Self::kill).
    pub(crate) async fn start_again(&mut self) {
        let mut server = self.server.take().unwrap();
        let server = done(move || server.start_again().map(|()| server)).await;
        self.server = Some(server);
    }

    /// What it answers to a command, which it must do.
    pub(crate) fn ask(&self, command: &[&str]) -> Answer {
        // It answers at once, whatever the nodes are about.
        self.server().done(command).unwrap()
    }

    /// A connection on which all that it is asked from now on is told.
    pub(crate) async fn monitor(&self) -> TcpStream {
        let mut connection = TcpStream::connect(self.addr).await.unwrap();
        connection.write_all(b"MONITOR\r\n").await.unwrap();
        let mut answer = [0; 5];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+OK\r\n");
        connection
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, signal: &str) {
        self.server().signal(signal).unwrap();
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.server.as_mut().unwrap().kill().unwrap();
    }
}

/// Three masters of a cluster; ended when dropped.
#[derive(Debug, Clone)]
pub(crate) struct RedisCluster(Arc<redis_server::Cluster>);

impl RedisCluster {
    /// Starts them, and waits until they serve.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more of their settings, as on their command lines.
    pub(crate) async fn start_with(extra: &'static [&'static str]) -> Self {
        Self(Arc::new(done(|| redis_server::Cluster::with(extra)).await))
    }

    /// Where nodes find them, as `--redis` wants it.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.0.urls()
    }

    /// Moves a channel's slot from the master that has it to the next one. Gives which that is.
    pub(crate) async fn move_on(&self, channel: String) -> usize {
        let cluster = Arc::clone(&self.0);
        done(move || {
            let slot = cluster.slot(&channel)?;
            let from = cluster.owner(slot)?;
            let to = (from + 1) % redis_server::MASTERS;
            cluster.move_slot(slot, from, to)?;
            Ok(to)
        })
        .await
    }

    /// How many have subscribed to a channel at this master.
    pub(crate) fn subscribers(&self, master: usize, channel: &str) -> i64 {
        let answer = self.0.masters[master]
            .done(&["PUBSUB", "SHARDNUMSUB", channel])
            .unwrap();
        match answer {
            Answer::Array(parts) => match parts[..] {
                [_, Answer::Integer(count)] => count,
                _ => panic!("{parts:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}
