//! Seals what two nodes write to each other through a bus, and opens it again. Pure.
//!
//! Each session has two keys of its own, one a direction (AES-256-GCM). A packet's number is its nonce, so none is used
//! twice with a key. Session and number are authenticated with what is sealed; the names and the epochs of the two nodes
//! are bound into the keys (`handshake.rs`). So a packet that was altered, moved to another session or another
//! direction, or made by someone else does not open, and one that comes again is known by its number.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::{Bytes, BytesMut};

use crate::wire::packet::{self, SEALED_HEADER, SessionId, TAG};

/// The bytes of a key.
pub(crate) const KEY: usize = 32;

/// The key of one direction.
pub(crate) type Key = [u8; KEY];

/// Why a packet was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It was altered, is of another session, or was made by who has no key.
    #[error("a packet that the other node has not sealed for this session")]
    Forged,
    /// It was taken before.
    #[error("a packet that was taken before")]
    Replayed,
}

/// What has come of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// It is the next one, and holds this.
    Next(BytesMut),
    /// It is a later one: those between are lost.
    Later,
}

/// After so many bytes a key is worn: RFC 8446, section 5.5, has 2^24.5 records of 16 KiB for AES-GCM.
const WORN: u64 = 1 << 38;

/// Every number is far below what a `u64` holds, as a key is [worn](Sealer::is_worn) long before.
fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn key(key: &Key) -> LessSafeKey {
    // Fails for a key of another length alone.
    #[expect(clippy::expect_used, reason = "the length is in the type")]
    let key = UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes");
    LessSafeKey::new(key)
}

/// Seals the packets of one direction.
#[derive(Debug)]
pub(crate) struct Sealer {
    key: LessSafeKey,
    session: SessionId,
    next: u64,
    /// How many bytes were sealed.
    bytes: u64,
}

impl Sealer {
    pub(crate) fn new(of: &Key, session: SessionId) -> Self {
        Self {
            key: key(of),
            session,
            next: 0,
            bytes: 0,
        }
    }

    /// Whether the key has sealed as much as one should. The session is to end then, and the next one has others.
    pub(crate) fn is_worn(&self) -> bool {
        self.bytes >= WORN
    }

    /// Begins the next packet; items are to be appended, and then it is to be [sealed](Self::seal).
    pub(crate) fn begin(&self, out: &mut BytesMut) {
        packet::begin_sealed(self.session, self.next, out);
    }

    /// Seals a packet that was begun.
    pub(crate) fn seal(&mut self, mut packet: BytesMut) -> Bytes {
        let number = self.next;
        self.next += 1;
        self.bytes = self.bytes.saturating_add(packet.len() as u64);
        packet.reserve(TAG);
        let mut header = packet;
        let mut items = header.split_off(SEALED_HEADER);
        let sealed = self
            .key
            .seal_in_place_separate_tag(nonce(number), Aad::from(&header[..]), &mut items);
        match sealed {
            Ok(tag) => items.extend_from_slice(tag.as_ref()),
            // What is too long to be sealed (64 GiB) is never made. Without a tag nobody takes it, and it is missed.
            Err(_) => items.clear(),
        }
        header.unsplit(items);
        header.freeze()
    }
}

/// Opens the packets of one direction, each once and in order.
#[derive(Debug)]
pub(crate) struct Opener {
    key: LessSafeKey,
    next: u64,
}

impl Opener {
    pub(crate) fn new(of: &Key) -> Self {
        Self { key: key(of), next: 0 }
    }

    /// Opens a packet with this number. One that is refused changes nothing.
    pub(crate) fn open(&mut self, number: u64, packet: Bytes) -> Result<Opened, Refused> {
        if number < self.next {
            return Err(Refused::Replayed);
        }
        let mut packet = packet
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        if packet.len() < SEALED_HEADER + TAG {
            return Err(Refused::Forged);
        }
        let mut sealed = packet.split_off(SEALED_HEADER);
        let opened = self
            .key
            .open_in_place(nonce(number), Aad::from(&packet[..]), &mut sealed);
        let length = opened.map_err(|_| Refused::Forged)?.len();
        if number > self.next {
            return Ok(Opened::Later);
        }
        self.next += 1;
        sealed.truncate(length);
        Ok(Opened::Next(sealed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::Packet;

    const SESSION: SessionId = SessionId([1; 16]);

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(&[5; KEY], SESSION), Opener::new(&[5; KEY]))
    }

    fn sealed(sealer: &mut Sealer, text: &str) -> Bytes {
        let mut packet = BytesMut::new();
        sealer.begin(&mut packet);
        packet.extend_from_slice(text.as_bytes());
        sealer.seal(packet)
    }

    fn open(opener: &mut Opener, packet: Bytes) -> Result<Opened, Refused> {
        let Packet::Sealed { number, bytes, .. } = packet::read(packet).unwrap() else {
            panic!("it is sealed");
        };
        opener.open(number, bytes)
    }

    #[test]
    fn what_was_sealed_is_opened_once_and_in_order() {
        let (mut sealer, mut opener) = pair();
        let packets = ["one", "two", "three", "four"].map(|text| sealed(&mut sealer, text));
        assert!(!packets[0].windows(3).any(|part| part == b"one"));
        for (packet, text) in packets.iter().zip(["one", "two"]) {
            assert_eq!(open(&mut opener, packet.clone()), Ok(Opened::Next(text.into())));
        }
        assert_eq!(open(&mut opener, packets[0].clone()), Err(Refused::Replayed));
        assert_eq!(open(&mut opener, packets[3].clone()), Ok(Opened::Later));
        assert_eq!(open(&mut opener, packets[2].clone()), Ok(Opened::Next("three".into())));
    }

    #[test]
    fn a_key_is_worn_after_so_many_bytes() {
        let (mut sealer, _) = pair();
        sealer.bytes = WORN - 100;
        assert!(!sealer.is_worn());
        sealed(&mut sealer, &"x".repeat(100));
        assert!(sealer.is_worn());
    }

    #[test]
    fn what_was_altered_or_sealed_for_others_is_refused_and_changes_nothing() {
        let (mut sealer, mut opener) = pair();
        let packet = sealed(&mut sealer, "one");
        // All but the kind of the packet, by which it is found to be one.
        for at in 1..packet.len() {
            let mut altered = packet.to_vec();
            altered[at] ^= 1;
            let refused = open(&mut opener, altered.into());
            assert_eq!(refused, Err(Refused::Forged), "byte {at}");
        }
        let mut of_another_key = Sealer::new(&[6; KEY], SESSION);
        let mut of_another_session = Sealer::new(&[5; KEY], SessionId([2; 16]));
        let forged = sealed(&mut of_another_key, "one");
        assert_eq!(open(&mut opener, forged), Err(Refused::Forged));
        // With the same key it would open, so the keys of sessions differ; its id is authenticated all the same.
        let mut moved = sealed(&mut of_another_session, "one").to_vec();
        moved[1..17].copy_from_slice(&SESSION.0);
        assert_eq!(open(&mut opener, moved.into()), Err(Refused::Forged));
        assert_eq!(open(&mut opener, packet), Ok(Opened::Next("one".into())));
    }
}
