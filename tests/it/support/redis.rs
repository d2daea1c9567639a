//! A real redis-server on a free port, and what a test may do to it.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::{DEADLINE, LOOK, own_port};

/// A redis-server in a process of its own, with nothing on disk; ended when dropped.
#[derive(Debug)]
pub(crate) struct Redis {
    dir: TempDir,
    pub(crate) addr: SocketAddr,
    extra: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts one, and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more of its settings, as on its command line.
    pub(crate) async fn start_with(extra: &[&str]) -> Self {
        let mut redis = Self {
            dir: tempfile::tempdir().unwrap(),
            addr: own_port(),
            extra: extra.iter().map(|&setting| setting.to_owned()).collect(),
            child: None,
        };
        redis.start_again().await;
        redis
    }

    /// Where nodes find it, as `--redis` wants it.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Starts it on the same port, after [`kill`](Self::kill).
    pub(crate) async fn start_again(&mut self) {
        let port = self.addr.port().to_string();
        let mut command = Command::new("redis-server");
        command
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .args(&self.extra)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .expect("redis-server starts; scripts/test.sh installs it if it is missing");
        self.child = Some(child);
        let deadline = Instant::now() + DEADLINE;
        while !self.answers().await {
            assert!(
                Instant::now() < deadline,
                "redis-server answers: not within {DEADLINE:?}"
            );
            sleep(LOOK).await;
        }
    }

    async fn answers(&self) -> bool {
        // Without a password it may say that one is needed.
        let answer = self.try_ask("PING").await;
        answer.is_ok_and(|answer| answer.starts_with("+PONG") || answer.starts_with("-NOAUTH"))
    }

    /// What it answers to a command of one line.
    pub(crate) async fn ask(&self, command: &str) -> String {
        self.try_ask(command).await.unwrap()
    }

    async fn try_ask(&self, command: &str) -> std::io::Result<String> {
        let mut connection = TcpStream::connect(self.addr).await?;
        connection.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut answer = vec![0; 64 * 1024];
        let length = connection.read(&mut answer).await?;
        answer.truncate(length);
        Ok(String::from_utf8_lossy(&answer).into_owned())
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

    /// Its process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
