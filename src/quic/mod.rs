//! QUIC clients: the listener, and what comes before a session.

mod codec;
mod session;
mod sessions;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;
use tracing::{debug, error};

use crate::address::ClientId;
use crate::admission::{Full, Place, Places};
use crate::carrier::{ControlStream, close};
use crate::clients::ClientContext;
use crate::counters::Counter;
use crate::delivery::RangeSet;
use crate::outcome::Code;
use crate::permission::Login;
use crate::phase::Phase;
use crate::tls::credentials::{Entry, NoGood, Role};
use crate::tls::identity::IdentityError;
use crate::tls::peer_client;
use crate::transport::{Connection, ConnectionError, Endpoint, Incoming, RecvStream, SendStream, StreamError};
use crate::wire::client::{self as wire, FromClient, FromNode, Resume, Token};
use session::serve;
use sessions::{Arrival, Sessions};

/// How long a last word may take to reach the client before the connection is closed.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Accepts QUIC clients until the node shuts down, and refuses them then, until it stops.
pub(crate) async fn listen(endpoint: Endpoint, context: Arc<ClientContext>) {
    let (limits, counters) = (&context.limits, &context.counters);
    let greetings = Places::new(limits.max_handshakes, limits.max_handshakes_per_source);
    let sessions = Arc::new(Sessions::new());
    let most_connections = limits
        .max_clients
        .saturating_add(limits.max_handshakes.saturating_mul(2));
    loop {
        let incoming = tokio::select! {
            biased;
            () = context.phase.reached(Phase::Closing) => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            if !context.phase.has_reached(Phase::Draining) {
                error!("the UDP socket of QUIC clients has failed");
                context.failed.cancel();
            }
            return;
        };
        if context.phase.has_reached(Phase::Draining) {
            counters.bump(Counter::HandshakesRefused);
            incoming.refuse();
            continue;
        }
        // Proof of the address first. It costs a round trip, once for a connection that lasts. Without it quinn-proto sends up to
        // 3.5 times of what came to an address that may be forged: one packet over what RFC 9000, section 8.1 allows. And with
        // it a place is taken up by who really has the address.
        if !incoming.is_validated() && incoming.may_retry() {
            counters.bump(Counter::Retries);
            incoming.retry();
            continue;
        }
        // A connection is kept for a while after it was closed, and how long that is its client has a say in.
        if endpoint.open_connections() > most_connections {
            counters.bump(Counter::HandshakesIgnored);
            incoming.ignore();
            continue;
        }
        let greeting = match greetings.take(incoming.remote_address().ip().into()) {
            Ok(greeting) => greeting,
            Err(full) => {
                counters.bump(match full {
                    Full::All => Counter::HandshakesIgnored,
                    Full::Source => Counter::HandshakesIgnoredSource,
                });
                incoming.ignore();
                continue;
            }
        };
        let (context, sessions) = (Arc::clone(&context), Arc::clone(&sessions));
        context
            .tracker
            .clone()
            .spawn(async move { greet_and_serve(incoming, greeting, &sessions, &context).await });
    }
}

async fn greet_and_serve(incoming: Incoming, greeting: Place, sessions: &Arc<Sessions>, context: &ClientContext) {
    let remote = incoming.remote_address();
    let Hello {
        connection,
        control,
        name,
        login,
        entry,
        resumable,
        resume,
    } = match timeout(context.limits.hello, greet(incoming, context)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => {
            context.counters.bump(Counter::HandshakesFailed);
            debug!(%remote, "no client: {error}");
            return;
        }
        Err(_) => {
            context.counters.bump(Counter::HandshakesLate);
            debug!(%remote, "no client: no hello within {:?}", context.limits.hello);
            return;
        }
    };
    let (token, taken) = match resume {
        Some(Resume { token, taken }) => (Some(token), taken.into()),
        None => (None, RangeSet::new()),
    };
    let arrival = Arrival {
        connection,
        control,
        taken,
        login: login.map(Box::new),
        entry,
    };
    if let Some(token) = token {
        if let Err(Arrival {
            connection, control, ..
        }) = sessions.hand_over(&token, name.as_ref(), arrival)
        {
            let code = Code::SessionGone;
            turn_away(&connection, control.send, code, code.advice()).await;
        }
        return;
    }
    match context.admit(remote.ip()) {
        Ok(admission) => {
            drop(greeting);
            serve(arrival, name, resumable, sessions, &admission, context).await;
        }
        Err(text) => {
            debug!(%remote, "refused: {text}");
            turn_away(&arrival.connection, arrival.control.send, Code::RateLimited, text).await;
        }
    }
}

/// Why a connection came to nothing before the client was let in.
#[derive(Debug, thiserror::Error)]
enum GreetingError {
    #[error(transparent)]
    Lost(#[from] ConnectionError),
    #[error(transparent)]
    Read(#[from] StreamError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    NoGood(#[from] NoGood),
    #[error("{0}")]
    Refused(String),
}

/// A connection whose client has said hello.
struct Hello {
    connection: Connection,
    control: ControlStream,
    /// As its token or its certificate says.
    name: Option<ClientId>,
    /// What its token grants, if it has shown one.
    login: Option<Login>,
    entry: Option<Entry>,
    resumable: bool,
    resume: Option<Resume>,
}

/// Who a connection's certificate says that its client is, if it was to show one.
fn identify(connection: &Connection, context: &ClientContext) -> Result<Option<(ClientId, Entry)>, GreetingError> {
    let identity = || match peer_client(connection, &context.cluster)? {
        Some(name) => Ok(Some((name, context.credentials.admit(Role::Client, connection)?))),
        None => Ok(None),
    };
    identity().inspect_err(|error: &GreetingError| connection.close(close::IDENTITY, error.to_string().as_bytes()))
}

async fn greet(incoming: Incoming, context: &ClientContext) -> Result<Hello, GreetingError> {
    let connection = incoming.accept().await?;
    let (name, entry) = identify(&connection, context)?.unzip();
    let (send, mut recv) = connection.accept_control().await?;
    let mut buffer = BytesMut::new();
    let (code, text) = match read_hello(&mut recv, &mut buffer).await? {
        Ok(HelloLine {
            version: wire::VERSION,
            resumable,
            resume,
            token,
        }) => match log_in(token, name.as_ref(), context).await {
            Ok(login) => {
                return Ok(Hello {
                    connection,
                    control: ControlStream { send, recv, buffer },
                    name: login.as_ref().map(|login| login.subject.clone()).or(name),
                    login,
                    entry,
                    resumable,
                    resume,
                });
            }
            Err(text) => (Code::NotAllowed, text),
        },
        Ok(HelloLine { version, .. }) => (
            Code::UnsupportedVersion,
            format!("version {version} is not spoken here, {} is", wire::VERSION),
        ),
        Err(text) => (Code::ProtocolError, text),
    };
    turn_away(&connection, send, code, &text).await;
    Err(GreetingError::Refused(text))
}

/// What a client may do by the token in its hello, if it may or has to show one; `name` is that of its certificate.
async fn log_in(
    token: Option<Token>,
    name: Option<&ClientId>,
    context: &ClientContext,
) -> Result<Option<Login>, String> {
    let Some(Token(token)) = token else {
        if name.is_some() || !context.rule.takes_tokens() {
            return Ok(None);
        }
        let asked = context.log_in(Err(
            "this node asks for a token: show one, by --token FILE or as `token` of hello",
        ));
        return asked.await.map(Some);
    };
    let login = context.log_in(Ok(&token)).await?;
    match name {
        Some(name) if *name != login.subject => {
            let text = "the token is of another client than the certificate; show one of the two";
            context.log_in(Err(text)).await.map(Some)
        }
        Some(_) | None => Ok(Some(login)),
    }
}

/// What the first line of a client says.
struct HelloLine {
    version: u32,
    resumable: bool,
    resume: Option<Resume>,
    token: Option<Token>,
}

async fn read_hello(recv: &mut RecvStream, buffer: &mut BytesMut) -> Result<Result<HelloLine, String>, StreamError> {
    loop {
        match wire::read_line(buffer) {
            Ok(Some(FromClient::Hello {
                version,
                resumable,
                resume,
                token,
            })) => {
                return Ok(Ok(HelloLine {
                    version,
                    resumable,
                    resume,
                    token,
                }));
            }
            Ok(Some(_)) => return Ok(Err("the first line is not hello".to_owned())),
            Ok(None) => {}
            Err(error) => return Ok(Err(error.to_string())),
        }
        match recv.read(wire::MAX_HEADER).await? {
            Some(bytes) => buffer.extend_from_slice(&bytes),
            None => return Ok(Err("the control stream ended before hello".to_owned())),
        }
    }
}

/// Says why, and closes once that has arrived.
async fn turn_away(connection: &Connection, mut send: SendStream, code: Code, text: &str) {
    let mut out = BytesMut::new();
    let error = FromNode::Error {
        code: code.as_str().to_owned(),
        text: text.to_owned(),
    };
    wire::write_line(&mut out, &error);
    let said = async {
        send.write_all(&out).await?;
        send.finish();
        send.ended().await;
        Ok::<(), StreamError>(())
    };
    // Heard or not, the connection is closed.
    let _ = timeout(LAST_WORD, said).await;
    let close_code = match code {
        Code::UnsupportedVersion => close::VERSION,
        Code::RateLimited => close::BUSY,
        Code::SessionGone => close::DONE,
        Code::NotAllowed => close::IDENTITY,
        _ => close::PROTOCOL,
    };
    connection.close(close_code, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;
    use crate::Client;
    use crate::config::{Config, Limits};
    use crate::node::Node;
    use crate::tls::ClientTls;

    async fn node(limits: Limits) -> (Node, tempfile::TempDir) {
        let certs = tempfile::tempdir().unwrap();
        let name = "127.0.0.1:1215".parse().unwrap();
        crate::certs::make(certs.path(), std::slice::from_ref(&name), "test").unwrap();
        let config = Config {
            tcp: Some("127.0.0.1:0".parse().unwrap()),
            quic: Some("127.0.0.1:0".parse().unwrap()),
            link: Some("127.0.0.1:0".parse().unwrap()),
            advertise: Some(name),
            certs: certs.path().to_owned(),
            grace: Duration::from_secs(1),
            limits,
            ..Config::default()
        };
        (Node::start(config).await.unwrap(), certs)
    }

    /// A client that does as it likes, after the welcome.
    async fn stranger(
        node: &Node,
        certs: &tempfile::TempDir,
    ) -> (quinn::Endpoint, quinn::Connection, quinn::SendStream, quinn::RecvStream) {
        let config = quinn::ClientConfig::new(ClientTls::load(certs.path(), None).unwrap());
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(config, node.quic_addr(), "127.0.0.1").unwrap();
        let connection = connecting.await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"{\"cmd\":\"hello\",\"version\":1}\n").await.unwrap();
        recv.read_chunk(4096, true).await.unwrap().unwrap();
        (endpoint, connection, send, recv)
    }

    #[tokio::test]
    async fn refusals_do_not_add_up() {
        let (node, certs) = node(Limits::default()).await;
        let quic: crate::NodeName = format!("127.0.0.1:{}", node.quic_addr().port()).parse().unwrap();
        let client = Client::connect(&quic, certs.path()).await.unwrap();
        let nobody: Address = "127.0.0.1:1215:nobody".parse().unwrap();
        for number in 0..20_000 {
            let receipt = client.send_with_receipt(&nobody, "x").await;
            assert!(receipt.is_ok(), "at message {number}");
        }
        client.close().await;
        node.shutdown().await;
    }

    #[tokio::test]
    async fn streams_that_never_end_are_bounded() {
        let (node, certs) = node(Limits::default()).await;
        let (_endpoint, connection, _send, _recv) = stranger(&node, &certs).await;
        let part = vec![b'x'; 500 * 1024];
        let mut streams = Vec::new();
        let filled = async {
            for id in 1..=20 {
                let mut stream = connection.open_uni().await?;
                let header = format!("{{\"to\":\"127.0.0.1:1215:1\",\"id\":{id}}}\n");
                stream.write_all(header.as_bytes()).await?;
                stream.write_all(&part).await?;
                streams.push(stream);
            }
            Ok::<(), quinn::WriteError>(())
        };
        assert!(timeout(Duration::from_secs(20), filled).await.unwrap().is_err());
        let closed = connection.closed().await;
        assert!(
            matches!(&closed, ConnectionError::ApplicationClosed(why) if why.error_code == close::PROTOCOL),
            "{closed}"
        );
        node.shutdown().await;
    }
}
