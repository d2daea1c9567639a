//! One connection to one server: dialled, secured, logged in. Everything it waits for has a deadline.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::BusError;
use super::url::{RedisConfig, host, plaintext};
use crate::address::HostPort;
use crate::network::is_loopback;
use crate::tls::redis::redis_client;
use crate::wire::resp::{Answers, Value, write_command};

/// How long a connection may take until it is logged in.
const DIAL: Duration = Duration::from_secs(4);

/// How long the handshake of TLS may take: a server that speaks none there says nothing at all.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// How long Redis may say nothing while an answer is due. Redis does one thing at a time, and some take it a second.
pub(super) const SILENCE: Duration = Duration::from_secs(4);

/// How much room is made for what comes when little is left: one read of the system's.
const READ: usize = 64 * 1024;

/// The longest string in an answer beside payloads: what a node announces.
pub(super) const MAX_ENTRY: usize = 64 * 1024;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Makes connections that are logged in.
pub(super) struct Dialler {
    pub(super) config: RedisConfig,
    tls: Option<TlsConnector>,
}

impl Dialler {
    /// Checks the settings.
    pub(super) fn new(config: RedisConfig) -> Result<Self, BusError> {
        config.check()?;
        let tls = match config.seeds.first() {
            Some(seed) if seed.tls => Some(TlsConnector::from(
                redis_client(config.ca.as_deref()).map_err(BusError::Config)?,
            )),
            Some(_) | None => None,
        };
        Ok(Self { config, tls })
    }

    /// Where to look first.
    pub(super) fn seeds(&self) -> impl Iterator<Item = &HostPort> {
        self.config.seeds.iter().map(|seed| &seed.at)
    }

    /// Connects to a server and logs in.
    pub(super) async fn dial(&self, at: &HostPort) -> Result<Connection, BusError> {
        timeout(DIAL, async {
            let stream = self.stream(at).await?;
            let max_string = self.config.max_payload.max(MAX_ENTRY);
            let mut connection = Connection::new(stream, at.clone(), max_string);
            self.log_in(&mut connection).await?;
            Ok(connection)
        })
        .await
        .unwrap_or_else(|_| {
            Err(BusError::Unreachable(
                at.clone(),
                format!("no answer within {} seconds", DIAL.as_secs()),
            ))
        })
    }

    async fn stream(&self, at: &HostPort) -> Result<Box<dyn Io>, BusError> {
        let unreachable = |error: io::Error| BusError::Unreachable(at.clone(), error.to_string());
        let tcp = TcpStream::connect(at.as_str()).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let Some(tls) = &self.tls else {
            // A cluster may name other machines than the seeds.
            let peer = tcp.peer_addr().map_err(unreachable)?;
            if !self.config.plaintext_allowed && !is_loopback(peer.ip()) {
                return Err(plaintext(at).into());
            }
            return Ok(Box::new(tcp));
        };
        let unfit = |error: String| BusError::Tls(at.clone(), error);
        let name = ServerName::try_from(host(at).to_owned()).map_err(|error| unfit(error.to_string()))?;
        match timeout(HANDSHAKE, tls.connect(name, tcp)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(unfit(error.to_string())),
            Err(_) => {
                let text = "it does not answer in TLS: if that is its port without, write redis:// or the other port";
                Err(BusError::Unreachable(at.clone(), text.to_owned()))
            }
        }
    }

    async fn log_in(&self, connection: &mut Connection) -> Result<(), BusError> {
        let Some(seed) = self.config.seeds.first() else {
            return Ok(());
        };
        let database = seed.database.to_string();
        let mut commands: Vec<(&'static str, Vec<&[u8]>)> = Vec::new();
        match (&seed.user, &seed.password) {
            (Some(user), Some(password)) => {
                commands.push(("AUTH", vec![b"AUTH", user.as_bytes(), password.as_bytes()]));
            }
            (None, Some(password)) => commands.push(("AUTH", vec![b"AUTH", password.as_bytes()])),
            (_, None) => {}
        }
        if seed.database != 0 {
            commands.push(("SELECT", vec![b"SELECT", database.as_bytes()]));
        }
        // Without a password, this tells whether one is wanted; and whether Redis is ready.
        commands.push(("PING", vec![b"PING"]));
        for (_, command) in &commands {
            connection.write(command);
        }
        connection.flush().await?;
        for (name, _) in &commands {
            match connection.next().await? {
                Value::Status(_) => {}
                Value::Error(error) => return Err(BusError::of_answer(&connection.at, name, &error)),
                _ => return Err(BusError::nonsense(&connection.at, name)),
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialler")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A connection that is logged in.
pub(super) struct Connection {
    pub(super) at: HostPort,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

/// The half that answers come from.
pub(super) struct Reader {
    at: HostPort,
    half: ReadHalf<Box<dyn Io>>,
    input: BytesMut,
    answers: Answers,
}

/// The half that commands go to.
pub(super) struct Writer {
    at: HostPort,
    half: WriteHalf<Box<dyn Io>>,
    /// What is still to be written.
    pub(super) output: BytesMut,
    /// Something was written that may stand in a buffer of TLS.
    is_unflushed: bool,
}

fn broken(at: &HostPort, error: &io::Error) -> BusError {
    BusError::Unreachable(at.clone(), format!("the connection broke: {error}"))
}

/// The error of a connection on which an answer did not come.
pub(super) fn silent(at: &HostPort) -> BusError {
    BusError::Unreachable(at.clone(), format!("it was silent for {} seconds", SILENCE.as_secs()))
}

impl Connection {
    fn new(stream: Box<dyn Io>, at: HostPort, max_string: usize) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: Reader {
                at: at.clone(),
                half: reader,
                input: BytesMut::new(),
                answers: Answers::new(max_string),
            },
            writer: Writer {
                at: at.clone(),
                half: writer,
                output: BytesMut::new(),
                is_unflushed: false,
            },
            at,
        }
    }

    /// Appends a command to what is to be written.
    pub(super) fn write(&mut self, command: &[&[u8]]) {
        write_command(&mut self.writer.output, command);
    }

    /// Writes all that there is.
    pub(super) async fn flush(&mut self) -> Result<(), BusError> {
        while self.writer.has_more() {
            self.writer.go_on().await?;
        }
        Ok(())
    }

    /// The next answer. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Value, BusError> {
        loop {
            if let Some(answer) = self.reader.parse()? {
                return Ok(answer);
            }
            self.reader.fill().await?;
        }
    }

    /// Sends commands and gives their answers, errors among them. Not cancel safe: the connection is of no use after.
    pub(super) async fn call(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Value>, BusError> {
        for command in commands {
            self.write(command);
        }
        let mut answers = Vec::with_capacity(commands.len());
        timeout(SILENCE, self.flush())
            .await
            .unwrap_or_else(|_| Err(silent(&self.at)))?;
        while answers.len() < commands.len() {
            let answer = timeout(SILENCE, self.next()).await;
            answers.push(answer.unwrap_or_else(|_| Err(silent(&self.at)))?);
        }
        Ok(answers)
    }
}

impl Reader {
    /// Takes what has come. Cancel safe.
    pub(super) async fn fill(&mut self) -> Result<(), BusError> {
        if self.input.capacity() - self.input.len() < READ / 4 {
            self.input.reserve(READ);
        }
        match self.half.read_buf(&mut self.input).await {
            Ok(0) => Err(BusError::Unreachable(
                self.at.clone(),
                "it has closed the connection".to_owned(),
            )),
            Ok(_) => Ok(()),
            Err(error) => Err(broken(&self.at, &error)),
        }
    }

    /// The next answer of what has come; `None`: more has to come.
    pub(super) fn parse(&mut self) -> Result<Option<Value>, BusError> {
        self.answers
            .next(&mut self.input)
            .map_err(|error| BusError::not_resp(&self.at, error))
    }
}

impl Writer {
    /// Whether there is anything to write.
    pub(super) fn has_more(&self) -> bool {
        !self.output.is_empty() || self.is_unflushed
    }

    /// Writes some of it. Cancel safe.
    pub(super) async fn go_on(&mut self) -> Result<(), BusError> {
        let result = if self.output.is_empty() {
            let flushed = self.half.flush().await;
            self.is_unflushed = false;
            flushed
        } else {
            self.half.write(&self.output).await.and_then(|written| {
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.output.advance(written);
                self.is_unflushed = true;
                Ok(())
            })
        };
        result.map_err(|error| broken(&self.at, &error))
    }
}
