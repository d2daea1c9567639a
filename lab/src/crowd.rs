//! Many clients at once, that connect and then do next to nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use trunkline::Client;
use trunkline::bench::speech::{Said, Speech};

use crate::process::DEADLINE;

/// How many TCP clients are on their way in at once.
const UNDER_WAY: usize = 64;

/// How many QUIC clients are. A node has no more than 64 handshakes of one source under way; most of the time of one goes into
/// the cryptography, for which there are no more processors than this.
const QUIC_UNDER_WAY: usize = 16;

/// Up to where clients are to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until the relay has said something: then it has accepted the connection.
    FirstWord,
    /// Until it has been told that the client wants to receive, and has answered.
    Ready,
}

/// A TCP client that is connected; disconnected when dropped.
#[derive(Debug)]
pub struct Member {
    speech: Speech,
    socket: TcpStream,
    buffer: BytesMut,
    /// Where it can be written to, if it is ready.
    pub address: String,
}

/// Calls `connect` with each number below `count`, so many at once.
async fn gather<T, F>(
    count: usize,
    under_way: usize,
    connect: impl Fn(usize) -> F + Clone + Send + 'static,
) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut working = JoinSet::new();
    for _ in 0..under_way {
        let (next, connect) = (Arc::clone(&next), connect.clone());
        working.spawn(async move {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, anyhow::Error>(done);
                }
                let connected = timeout(DEADLINE, connect(number)).await;
                let connected = connected.with_context(|| format!("no answer to client {number}"))?;
                done.push(connected.with_context(|| format!("client {number}"))?);
            }
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(done) = working.join_next().await {
        all.extend(done??);
    }
    Ok(all)
}

/// Connects so many TCP clients to a relay, 64 at once.
///
/// # Errors
///
/// When one can't connect, or the relay does not let it in.
pub async fn tcp(at: SocketAddr, speech: Speech, count: usize, until: Until) -> anyhow::Result<Vec<Member>> {
    gather(count, UNDER_WAY, move |number| async move {
        let mut member = Member {
            speech,
            socket: TcpStream::connect(at).await?,
            buffer: BytesMut::new(),
            address: String::new(),
        };
        member.socket.set_nodelay(true)?;
        let channel = format!("crowd.{number}");
        if until == Until::Ready {
            member
                .socket
                .write_all(speech.opening(Some(&channel)).as_bytes())
                .await?;
        }
        let ready = member.hear(|said| match (said, until) {
            (Said::Ready(ready), _) => Some(ready.to_owned()),
            (_, Until::FirstWord) => Some(String::new()),
            (_, Until::Ready) => None,
        });
        member.address = speech.address(&ready.await?, &channel);
        Ok(member)
    })
    .await
}

/// Connects so many QUIC clients to a node.
///
/// # Errors
///
/// When one can't connect, or the node does not let it in.
pub async fn quic(at: SocketAddr, certs: &Path, count: usize) -> anyhow::Result<Vec<Client>> {
    let certs: Arc<Path> = certs.into();
    gather(count, QUIC_UNDER_WAY, move |_| {
        let certs = Arc::clone(&certs);
        async move { Ok(Client::connect(&at.into(), &certs).await?) }
    })
    .await
}

/// Has each of these write a message to one of those, and waits until all have come.
///
/// # Errors
///
/// When one does not come, or a relay refuses it.
pub async fn greet(senders: &mut [Member], receivers: &mut [Member]) -> anyhow::Result<()> {
    let mut message = Vec::new();
    for (sender, receiver) in senders.iter_mut().zip(receivers.iter()) {
        message.clear();
        sender.speech.message(&receiver.address, b"hello", &mut message);
        sender.socket.write_all(&message).await?;
    }
    for receiver in receivers {
        let heard = receiver.hear(|said| match said {
            Said::Body(_) => Some(()),
            Said::Ready(_) | Said::Ping | Said::Error(_) | Said::Other => None,
        });
        timeout(DEADLINE, heard).await.context("a message did not come")??;
    }
    Ok(())
}

impl Member {
    /// Waits until the relay says what is waited for.
    async fn hear<T>(&mut self, awaited: impl Fn(Said<'_>) -> Option<T>) -> anyhow::Result<T> {
        loop {
            while let Some((said, taken)) = self.speech.said(&self.buffer) {
                if let Said::Error(text) = said {
                    bail!("the relay says {text}");
                }
                let found = awaited(said);
                self.buffer.advance(taken);
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                bail!("the relay has closed the connection");
            }
        }
    }
}
