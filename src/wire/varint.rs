//! Variable-length integers, as QUIC encodes them (RFC 9000, section 16): 1, 2, 4 or 8 bytes, up to 2^62 - 1.

use bytes::{Buf, BufMut};

/// The largest number that can be written.
pub(crate) const MAX: u64 = (1 << 62) - 1;

/// Appends a number. One above [`MAX`] is written as [`MAX`].
pub(crate) fn write(out: &mut impl BufMut, number: u64) {
    match number {
        0..0x40 => out.put_u8(number as u8),
        0x40..0x4000 => out.put_u16(0x4000 | number as u16),
        0x4000..0x4000_0000 => out.put_u32(0x8000_0000 | number as u32),
        _ => out.put_u64(0xc000_0000_0000_0000 | number.min(MAX)),
    }
}

/// Takes a number off the front; `None`, with nothing taken, when it is not all there.
pub(crate) fn read(from: &mut impl Buf) -> Option<u64> {
    let first = *from.chunk().first()?;
    let length = 1 << (first >> 6);
    if from.remaining() < length {
        return None;
    }
    let number = from.get_uint(length);
    // The two highest bits are the length.
    Some(number & (u64::MAX >> (64 - 8 * length + 2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_9000() {
        for (number, bytes) in [
            (
                151_288_809_941_952_652,
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..],
            ),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (15_293, &[0x7b, 0xbd]),
            (37, &[0x25]),
        ] {
            let mut out = Vec::new();
            write(&mut out, number);
            assert_eq!(out, bytes);
            assert_eq!(read(&mut &bytes[..]), Some(number));
            assert_eq!(read(&mut &bytes[..bytes.len() - 1]), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number in any::<u64>(), shift in 0u32..64) {
            let number = (number >> shift).min(MAX);
            let mut out = Vec::new();
            write(&mut out, number);
            prop_assert_eq!(read(&mut &out[..]), Some(number));
        }
    }
}
