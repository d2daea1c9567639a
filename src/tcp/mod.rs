//! Legacy clients: accepts their connections, and has each served by a session.

mod addressee;
#[cfg(feature = "hot-paths")]
pub(crate) mod bare;
mod deadline;
mod linger;
mod login;
mod session;
mod writer;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::admission::{Place, Places};
use crate::clients::{Admission, ClientContext, FULL};
use crate::counters::Counter;
use crate::outcome::Code;
use crate::phase::Phase;
use crate::wire::line;
use linger::{LINGER, linger};

/// How long to wait before accepting again when the system has no descriptor or memory for one more connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many clients for which there is no place may be told so at once; more are closed without a word.
pub(crate) const TURNED_AWAY: usize = 64;

/// How many clients may be about to log in at once, in all and from one source; more are turned away.
const LOGINS: usize = 1024;
const LOGINS_OF_SOURCE: usize = 64;

/// Accepts legacy clients until the node stops, as many at once as there are `descriptors` for.
pub(crate) async fn listen(listener: TcpListener, descriptors: usize, context: Arc<ClientContext>) {
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY));
    let descriptors = Arc::new(Semaphore::new(descriptors.min(Semaphore::MAX_PERMITS)));
    let logins = Places::new(LOGINS, LOGINS_OF_SOURCE);
    loop {
        let accepted = tokio::select! {
            biased;
            () = context.phase.reached(Phase::Draining) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((_, remote)) if !context.lets_in_from(remote.ip()) => {}
            Ok((mut socket, remote)) => {
                let (context, turned_away) = (Arc::clone(&context), Arc::clone(&turned_away));
                // Decided here, before the next is accepted: who is refused does not take up a descriptor meanwhile.
                match admit(remote, &descriptors, &logins, &context) {
                    Ok((places, login)) => {
                        context.tracker.clone().spawn(async move {
                            // Nothing of this is kept while the client is served.
                            let (mut lines, login) = match login::come_in(&mut socket, login, &context).await {
                                Ok(let_in) => let_in,
                                // Its places are its own until it is gone.
                                Err(refusal) => {
                                    if let Some((code, text)) = refusal
                                        && let Ok(_place) = turned_away.try_acquire()
                                    {
                                        // Asked for, not kept: that would take room in the task of each client.
                                        debug!(remote = ?socket.peer_addr(), "turned away: {text}");
                                        turn_away(socket, code, &text).await;
                                    }
                                    return drop(places);
                                }
                            };
                            session::serve(&mut socket, &mut lines, login, &context, &places.0).await;
                            drop(places);
                        });
                    }
                    Err((code, text)) => {
                        debug!(%remote, "turned away: {text}");
                        if let Ok(place) = Arc::clone(&turned_away).try_acquire_owned() {
                            context.tracker.spawn(async move {
                                turn_away(socket, code, text).await;
                                drop(place);
                            });
                        }
                    }
                }
            }
            // Trouble of that connection alone.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                context.counters.bump(Counter::AcceptErrors);
                warn!("can't accept TCP clients, and try again: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A place among clients with a descriptor, and one among those that are to log in.
type Admitted = ((Admission, OwnedSemaphorePermit), Option<Place>);

/// What a client needs to be let in: a place, a descriptor, and a place among those that are to log in if it has to. Else
/// what it is told.
fn admit(
    remote: SocketAddr,
    descriptors: &Arc<Semaphore>,
    logins: &Arc<Places>,
    context: &ClientContext,
) -> Result<Admitted, (Code, &'static str)> {
    let Ok(descriptor) = Arc::clone(descriptors).try_acquire_owned() else {
        context.counters.bump(Counter::RefusedDescriptors);
        return Err((Code::RateLimited, FULL));
    };
    let login = match context.rule.takes_tokens() {
        true => match logins.take(remote.ip().into()) {
            Ok(place) => Some(place),
            Err(_) => {
                context.counters.bump(Counter::RefusedLogins);
                return Err((Code::RateLimited, FULL));
            }
        },
        false => None,
    };
    match context.admit(remote.ip()) {
        Ok(admission) => Ok(((admission, descriptor), login)),
        Err(text) => Err((Code::RateLimited, text)),
    }
}

/// Tells a client why it is not let in.
async fn turn_away(mut socket: TcpStream, code: Code, text: &str) {
    let mut out = Vec::new();
    line::write_error(&mut out, line::Format::Text, code, text);
    // Told or not, it is closed.
    let told = async {
        socket.write_all(&out).await?;
        socket.shutdown().await
    };
    if let Ok(Ok(())) = timeout(LINGER, told).await {
        linger(&mut socket).await;
    }
}
