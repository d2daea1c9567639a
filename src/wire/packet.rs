//! What two nodes write to each other through a bus, such as Redis: packets, of which all but those of a handshake are
//! sealed, with many items in one.
//!
//! `docs/protocol.md` draws the bytes. Every number is big endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::address::NodeName;

/// The bytes of a session's id.
pub(crate) const SESSION_ID: usize = 16;

/// The bytes before what is sealed: they are not secret, and can't be changed unnoticed.
pub(crate) const SEALED_HEADER: usize = 1 + SESSION_ID + 8;

/// What sealing adds at the end.
pub(crate) const TAG: usize = 16;

/// The most bytes of a handshake in one packet: a chain of certificates and what goes with it fits many times.
const MAX_SHAKE: usize = 64 * 1024;

const OPEN: u8 = 1;
const SHAKE: u8 = 2;
const SEALED: u8 = 3;

const MESSAGE: u8 = 1;
const FRAME: u8 = 2;
const CLOSE: u8 = 3;

/// Which session between two nodes a packet is of: drawn by the one that opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(pub(crate) [u8; SESSION_ID]);

/// What one publication holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    /// A node wants a session. What it says of itself is proved later, or not.
    Open {
        session: SessionId,
        epoch: u64,
        from: NodeName,
        tls: Bytes,
    },
    /// More of the handshake.
    Shake { session: SessionId, epoch: u64, tls: Bytes },
    /// Items that only the other node of the session can read.
    Sealed {
        session: SessionId,
        number: u64,
        /// The whole packet, as sealed.
        bytes: Bytes,
    },
}

/// One of the things in a sealed packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A message, as on a stream of its own.
    Message(Bytes),
    /// A frame, as on a control stream.
    Frame(BytesMut),
    /// The session is over, for this reason.
    Close { code: u32, reason: String },
}

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("no packet of this protocol")]
    BadPacket,
    #[error("an item whose content does not fit its kind")]
    BadItem,
}

/// Writes the packet that wants a session.
pub(crate) fn open(session: SessionId, epoch: u64, from: &NodeName, tls: &[u8]) -> Bytes {
    let name = from.as_str().as_bytes();
    let mut out = BytesMut::with_capacity(1 + SESSION_ID + 8 + 2 + name.len() + tls.len());
    out.put_u8(OPEN);
    out.put_slice(&session.0);
    out.put_u64(epoch);
    // A name is far shorter.
    out.put_u16(name.len() as u16);
    out.put_slice(name);
    out.put_slice(tls);
    out.freeze()
}

/// Writes a packet with more of a handshake.
pub(crate) fn shake(session: SessionId, epoch: u64, tls: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + SESSION_ID + 8 + tls.len());
    out.put_u8(SHAKE);
    out.put_slice(&session.0);
    out.put_u64(epoch);
    out.put_slice(tls);
    out.freeze()
}

/// Begins a packet that is to be sealed; the items follow.
pub(crate) fn begin_sealed(session: SessionId, number: u64, out: &mut BytesMut) {
    out.put_u8(SEALED);
    out.put_slice(&session.0);
    out.put_u64(number);
}

/// Reads a packet.
pub(crate) fn read(packet: Bytes) -> Result<Packet, Malformed> {
    let bad = |_| Malformed::BadPacket;
    let mut rest = packet.clone();
    let kind = rest.try_get_u8().map_err(bad)?;
    let mut id = [0; SESSION_ID];
    rest.try_copy_to_slice(&mut id).map_err(bad)?;
    let session = SessionId(id);
    let number = rest.try_get_u64().map_err(bad)?;
    if kind != SEALED && rest.len() > MAX_SHAKE {
        return Err(Malformed::BadPacket);
    }
    match kind {
        OPEN => {
            let length = usize::from(rest.try_get_u16().map_err(bad)?);
            if rest.len() < length {
                return Err(Malformed::BadPacket);
            }
            let name = rest.split_to(length);
            let from = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok());
            Ok(Packet::Open {
                session,
                epoch: number,
                from: from.ok_or(Malformed::BadPacket)?,
                tls: rest,
            })
        }
        SHAKE => Ok(Packet::Shake {
            session,
            epoch: number,
            tls: rest,
        }),
        SEALED if rest.len() >= TAG => Ok(Packet::Sealed {
            session,
            number,
            bytes: packet,
        }),
        _ => Err(Malformed::BadPacket),
    }
}

/// Appends a message; `write` appends what would stand on its stream.
pub(crate) fn write_message(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    write_item(out, MESSAGE, write);
}

/// Appends a frame; `write` appends what would stand on the control stream.
pub(crate) fn write_frame(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    write_item(out, FRAME, write);
}

/// Appends that the session is over.
pub(crate) fn write_close(out: &mut BytesMut, code: u32, reason: &str) {
    write_item(out, CLOSE, |out| {
        out.put_u32(code);
        out.put_slice(reason.as_bytes());
    });
}

fn write_item(out: &mut BytesMut, kind: u8, write: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    let at = out.len();
    out.put_u32(0);
    write(out);
    let length = out.len() - at - size_of::<u32>();
    if let Some(place) = out.get_mut(at..at + size_of::<u32>()) {
        // A message is bounded far below.
        place.copy_from_slice(&(length as u32).to_be_bytes());
    }
}

/// Takes an item off the front of what was opened; `None` at its end. What a later version may add is skipped.
pub(crate) fn next_item(plain: &mut BytesMut) -> Result<Option<Item>, Malformed> {
    loop {
        let bad = |_| Malformed::BadItem;
        if plain.is_empty() {
            return Ok(None);
        }
        let kind = plain.try_get_u8().map_err(bad)?;
        let length = plain.try_get_u32().map_err(bad)? as usize;
        if plain.len() < length {
            return Err(Malformed::BadItem);
        }
        let mut content = plain.split_to(length);
        match kind {
            MESSAGE => return Ok(Some(Item::Message(content.freeze()))),
            FRAME => return Ok(Some(Item::Frame(content))),
            CLOSE => {
                let code = content.try_get_u32().map_err(bad)?;
                let reason = String::from_utf8_lossy(&content).into_owned();
                return Ok(Some(Item::Close { code, reason }));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SESSION: SessionId = SessionId([7; SESSION_ID]);

    #[test]
    fn packets_of_a_handshake_are_read_as_they_were_written() {
        let from: NodeName = "127.0.0.1:1215".parse().unwrap();
        let read_back = read(open(SESSION, 5, &from, b"hello")).unwrap();
        let tls = Bytes::from_static(b"hello");
        let expected = Packet::Open {
            session: SESSION,
            epoch: 5,
            from,
            tls: tls.clone(),
        };
        assert_eq!(read_back, expected);
        let expected = Packet::Shake {
            session: SESSION,
            epoch: 6,
            tls,
        };
        assert_eq!(read(shake(SESSION, 6, b"hello")), Ok(expected));
        assert_eq!(
            read(shake(SESSION, 6, &vec![0; MAX_SHAKE + 1])),
            Err(Malformed::BadPacket)
        );
    }

    #[test]
    fn items_are_read_as_they_were_written() {
        let mut out = BytesMut::new();
        write_message(&mut out, |out| out.put_slice(b"message"));
        out.put_slice(&[99, 0, 0, 0, 1, 0]);
        write_frame(&mut out, |out| out.put_slice(b"frame"));
        write_close(&mut out, 3, "done");
        let items: Vec<_> = std::iter::from_fn(|| next_item(&mut out).unwrap()).collect();
        let close = Item::Close {
            code: 3,
            reason: "done".to_owned(),
        };
        assert_eq!(
            items,
            [
                Item::Message("message".into()),
                Item::Frame(BytesMut::from("frame")),
                close
            ]
        );
    }

    proptest! {
        #[test]
        fn anything_is_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(Bytes::from(bytes.clone()));
            let mut plain = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next_item(&mut plain) {}
        }
    }
}
