//! Escaping, so that no text can forge a line or drive a terminal.
//!
//! What is escaped: control characters (C0, DEL and C1) and the line separators U+2028 and U+2029. They come out as
//! `\n`, `\r`, `\t` or `\u001b` (four hex digits, as in JSON).

/// How many bytes are looked at together; one block is a few vector instructions.
const BLOCK: usize = 32;

const HEX: [u8; 16] = *b"0123456789abcdef";

/// Appends `body` to `out` as one line of text that does nothing to a terminal.
///
/// Control characters and line separators come out escaped (see the [module](self)), bytes that are no UTF-8 as
/// `\x9f`. Everything else, backslashes too, is copied byte for byte, so this is for reading: it can't be undone.
pub(crate) fn escape_into(out: &mut Vec<u8>, body: &[u8]) {
    if is_printable_ascii(body) {
        out.extend_from_slice(body);
        return;
    }
    if let Ok(text) = std::str::from_utf8(body) {
        escape::<false>(out, text);
        return;
    }
    for chunk in body.utf8_chunks() {
        escape::<false>(out, chunk.valid());
        for &byte in chunk.invalid() {
            out.extend_from_slice(b"\\x");
            hex_into(out, byte);
        }
    }
}

/// Appends `text` to `out` as the inside of a JSON string, without the quotes around it.
///
/// More is escaped than JSON asks for (see the [module](self)), so that a JSON line can't drive a terminal either.
pub(crate) fn json_into(out: &mut Vec<u8>, text: &str) {
    escape::<true>(out, text);
}

fn escape<const JSON: bool>(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len());
    let mut copied = 0;
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        if let Some(block) = rest.first_chunk::<BLOCK>()
            && !block.iter().fold(false, |any, &byte| any | may_start::<JSON>(byte))
        {
            at += BLOCK;
            continue;
        }
        let end = bytes.len().min(at + BLOCK);
        while at < end {
            let rest = bytes.get(at..end).unwrap_or_default();
            at += rest
                .iter()
                .position(|&byte| may_start::<JSON>(byte))
                .unwrap_or(rest.len());
            let Some((point, len)) = bytes.get(at..).and_then(special::<JSON>) else {
                at += 1;
                continue;
            };
            out.extend_from_slice(bytes.get(copied..at).unwrap_or_default());
            escaped_into(out, point);
            at += len;
            copied = at;
        }
    }
    out.extend_from_slice(bytes.get(copied..).unwrap_or_default());
}

/// Whether an escaped character may start with this byte.
const fn may_start<const JSON: bool>(byte: u8) -> bool {
    (byte < 0x20) | (byte == 0x7f) | (byte == 0xc2) | (byte == 0xe2) | (JSON & ((byte == b'"') | (byte == b'\\')))
}

/// The code point to escape that this UTF-8 starts with, if it does, and its length in bytes.
const fn special<const JSON: bool>(utf8: &[u8]) -> Option<(u16, usize)> {
    match *utf8 {
        [byte @ (0..=0x1f | 0x7f), ..] => Some((byte as u16, 1)),
        [byte @ (b'"' | b'\\'), ..] if JSON => Some((byte as u16, 1)),
        [0xc2, byte @ 0x80..=0x9f, ..] => Some((byte as u16, 2)),
        [0xe2, 0x80, 0xa8, ..] => Some((0x2028, 3)),
        [0xe2, 0x80, 0xa9, ..] => Some((0x2029, 3)),
        _ => None,
    }
}

fn escaped_into(out: &mut Vec<u8>, point: u16) {
    let [high, low] = point.to_be_bytes();
    let short = match (high, low) {
        (0, b'\n') => b'n',
        (0, b'\r') => b'r',
        (0, b'\t') => b't',
        (0, b'"' | b'\\') => low,
        _ => {
            out.extend_from_slice(b"\\u");
            hex_into(out, high);
            hex_into(out, low);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn hex_into(out: &mut Vec<u8>, byte: u8) {
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or_default();
    out.extend_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
}

fn is_printable_ascii(bytes: &[u8]) -> bool {
    let odd = |any: bool, &byte: &u8| any | !matches!(byte, 0x20..=0x7e);
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    !blocks.iter().any(|block| block.iter().fold(false, odd)) && !rest.iter().fold(false, odd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(body: &[u8]) -> String {
        let mut out = Vec::new();
        escape_into(&mut out, body);
        String::from_utf8(out).unwrap()
    }

    fn json(text: &str) -> String {
        let mut out = Vec::new();
        json_into(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    fn is_harmless(line: &str) -> bool {
        !line
            .chars()
            .any(|char| char.is_control() || matches!(char, '\u{2028}' | '\u{2029}'))
    }

    /// Text as people and attackers write it: mostly plain, with what matters here mixed in, in runs past a block.
    fn text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[ -~]{0,70}",
            "[\\x00-\\x1f\\x7f\"\\\\]{0,3}",
            "[\u{80}-\u{a5}\u{2026}-\u{202b}\u{e2}\u{c2}é日]{0,20}",
            any::<char>().prop_map(String::from),
        ];
        proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn what_is_escaped() {
        for (body, text) in [
            (&b""[..], ""),
            (b"plain ~ text", "plain ~ text"),
            (b"a\\b\"c\\n", "a\\b\"c\\n"),
            (b"\0\t\n\r\x1b[2J\x1f\x7f", r"\u0000\t\n\r\u001b[2J\u001f\u007f"),
            ("\u{80}\u{9b}2J\u{9f}\u{a0}".as_bytes(), "\\u0080\\u009b2J\\u009f\u{a0}"),
            (
                "\u{2027}\u{2028}\u{2029}\u{202a}".as_bytes(),
                "\u{2027}\\u2028\\u2029\u{202a}",
            ),
            (b"\xff\x9b2J \xe2\x80 \xc2", r"\xff\x9b2J \xe2\x80 \xc2"),
            ("日本語 🦀\n".as_bytes(), "日本語 🦀\\n"),
        ] {
            assert_eq!(escaped(body), text, "{body:?}");
        }
    }

    #[test]
    fn what_is_escaped_in_json() {
        assert_eq!(
            json("a\\b\"c\n\u{1b}\u{7f}\u{9b}\u{2028}é"),
            "a\\\\b\\\"c\\n\\u001b\\u007f\\u009b\\u2028é"
        );
    }

    #[test]
    fn a_character_that_spans_two_blocks_is_seen() {
        for before in 0..3 * BLOCK {
            for (special, escape) in [("\u{9b}", "\\u009b"), ("\u{2028}", "\\u2028"), ("\n", "\\n")] {
                let (head, tail) = ("x".repeat(before), "y".repeat(2 * BLOCK));
                let body = format!("{head}{special}{tail}");
                assert_eq!(escaped(body.as_bytes()), format!("{head}{escape}{tail}"));
                assert_eq!(json(&body), format!("{head}{escape}{tail}"));
            }
        }
    }

    proptest! {
        #[test]
        fn text_is_escaped_as_character_by_character(text in text()) {
            let mut expected = String::new();
            for char in text.chars() {
                match char {
                    '\n' => expected.push_str("\\n"),
                    '\r' => expected.push_str("\\r"),
                    '\t' => expected.push_str("\\t"),
                    '\u{2028}' | '\u{2029}' => expected.push_str(&format!("\\u{:04x}", u32::from(char))),
                    _ if char.is_control() => expected.push_str(&format!("\\u{:04x}", u32::from(char))),
                    _ => expected.push(char),
                }
            }
            prop_assert_eq!(escaped(text.as_bytes()), expected);
        }

        #[test]
        fn json_leads_back_to_the_text(text in text()) {
            let json = json(&text);
            prop_assert!(is_harmless(&json));
            prop_assert_eq!(serde_json::from_str::<String>(&format!("\"{json}\"")).unwrap(), text);
        }

        #[test]
        fn no_bytes_come_through_as_controls(body: Vec<u8>) {
            let out = escaped(&body);
            prop_assert!(is_harmless(&out));
        }
    }
}
