//! How a client gets to its node, the first time and when it comes back.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ConnectError, Shared};
use crate::address::NodeName;
use crate::backoff::Backoff;
use crate::carrier::{BreakOff, CONTROL_PRIORITY, ControlStream};
use crate::delivery::RangeSet;
use crate::outcome::Code;
use crate::transport::{self, ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, StreamError};
use crate::wire::client::{self as wire, FromClient, FromNode, Resume, ResumeOffer, Token, Welcome};

/// How long one attempt to come back may take, and the first and the longest wait between two.
const ATTEMPT: Duration = Duration::from_secs(3);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Tries to come back to the session for as long as the node keeps it.
pub(super) async fn come_back(
    shared: &Shared,
    way: &Way,
    offer: &ResumeOffer,
) -> Option<(Connection, ControlStream, RangeSet)> {
    let deadline = Instant::now() + Duration::from_millis(offer.grace_ms);
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    while Instant::now() < deadline {
        let resume = Resume {
            token: offer.token.clone(),
            taken: shared.exchange.taken().into(),
        };
        // From a new socket: the old one may be why the connection broke.
        let connecting = async {
            let endpoint = way.endpoint().map_err(ConnectError::Socket)?;
            *shared.endpoint.lock() = endpoint.clone();
            way.connect(&endpoint, Some(resume)).await
        };
        match timeout(ATTEMPT, connecting).await {
            Ok(Ok((connection, welcome, control))) => {
                let taken = welcome.taken?;
                return Some((connection, control, taken.into()));
            }
            Ok(Err(ConnectError::Refused(_, code, _)))
                if [Code::SessionGone, Code::NotAllowed]
                    .map(Code::as_str)
                    .contains(&&*code) =>
            {
                return None;
            }
            Ok(Err(_)) | Err(_) => sleep(backoff.next(rand::random())).await,
        }
    }
    None
}

/// How a client gets to its node.
pub(super) struct Way {
    pub(super) tracker: TaskTracker,
    /// Cancelled once nothing more is to be said.
    pub(super) drained: CancellationToken,
    pub(super) config: ClientConfig,
    pub(super) addr: SocketAddr,
    pub(super) node: NodeName,
    /// What the client logs in with: the last that the node has accepted.
    pub(super) token: Mutex<Option<Token>>,
}

/// A new UDP socket for talking to this address.
pub(super) fn any_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))
}

impl Way {
    /// An endpoint on a socket of its own.
    pub(super) fn endpoint(&self) -> io::Result<Endpoint> {
        transport::endpoint(
            EndpointConfig::default(),
            None,
            any_socket(self.addr)?,
            &self.tracker,
            &self.drained,
        )
    }

    /// Connects and greets, as a new client or to come back.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        resume: Option<Resume>,
    ) -> Result<(Connection, Welcome, ControlStream), ConnectError> {
        let failed = |error: &dyn fmt::Display| ConnectError::Connection(self.node.clone(), error.to_string());
        let connection = endpoint
            .connect(self.config.clone(), self.addr, self.node.host())
            .map_err(|error| failed(&error))?
            .await
            .map_err(|error| failed(&error))?;
        let (welcome, control) = self.greet(&connection, resume).await?;
        Ok((connection, welcome, control))
    }

    async fn greet(
        &self,
        connection: &Connection,
        resume: Option<Resume>,
    ) -> Result<(Welcome, ControlStream), ConnectError> {
        let lost = |error: &dyn fmt::Display| ConnectError::Connection(self.node.clone(), error.to_string());
        let refused = |code: String, text: String| ConnectError::Refused(self.node.clone(), code, text);
        let (mut send, mut recv) = connection.open_control().await.map_err(|error| lost(&error))?;
        // A session that it may have come back to already is to go on; one that has just begun is not.
        let break_off = resume.is_some().then(|| BreakOff::new(connection));
        send.set_priority(CONTROL_PRIORITY);
        let hello = FromClient::Hello {
            version: wire::VERSION,
            resumable: true,
            resume,
            token: self.token.lock().clone(),
        };
        let mut out = BytesMut::new();
        wire::write_line(&mut out, &hello);
        send.write_all(&out).await.map_err(|error| lost(&error))?;
        let mut buffer = BytesMut::new();
        loop {
            match wire::read_line(&mut buffer).map_err(|error| lost(&error))? {
                Some(FromNode::Welcome(welcome)) if welcome.version == wire::VERSION => {
                    if let Some(break_off) = break_off {
                        break_off.disarm();
                    }
                    return Ok((welcome, ControlStream { send, recv, buffer }));
                }
                Some(FromNode::Welcome(welcome)) => {
                    let text = format!("it speaks version {}, this client {}", welcome.version, wire::VERSION);
                    return Err(refused(Code::UnsupportedVersion.to_string(), text));
                }
                Some(FromNode::Error { code, text }) => return Err(refused(code, text)),
                Some(
                    FromNode::Receipt(_)
                    | FromNode::Confirm(_)
                    | FromNode::Login { .. }
                    | FromNode::GoingAway
                    | FromNode::Other,
                ) => {}
                None => match recv.read(wire::MAX_HEADER).await {
                    Ok(Some(bytes)) => buffer.extend_from_slice(&bytes),
                    Ok(None) => return Err(lost(&"it ended the control stream without a welcome")),
                    Err(StreamError::Lost(ConnectionError::ApplicationClosed(closed))) => {
                        let text = String::from_utf8_lossy(&closed.reason).escape_debug().to_string();
                        return Err(refused(format!("closed with code {}", closed.error_code), text));
                    }
                    Err(error) => return Err(lost(&error)),
                },
            }
        }
    }
}
