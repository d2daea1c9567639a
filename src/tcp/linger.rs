//! The end of a legacy client's connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::turn::Turn;

/// After the last line: how long, and how much, is still read from a client and thrown away. Closing with unread input
/// would reset the connection, and the client might never see what was written to it.
pub(super) const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 << 20;

/// How much of that is read at once: little, as thousands of clients that are put out together have it all at once. With 64
/// KiB 500 of them took 25 MB.
const LINGER_READ: usize = 4 * 1024;

/// Lets the client read what was written to it before the connection is closed.
pub(super) async fn linger(socket: &mut TcpStream) {
    // Fails where the other side is gone.
    let _ = socket.shutdown().await;
    let discard = async {
        let mut waste = vec![0; LINGER_READ];
        let mut total = 0;
        let mut turn = Turn::new();
        while total < LINGER_BYTES {
            match socket.read(&mut waste).await {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    total += length;
                    turn.bytes(length).await;
                }
            }
        }
    };
    // The deadline is the normal end for a client that goes on writing.
    let _ = timeout(LINGER, discard).await;
}
