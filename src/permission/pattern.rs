//! Which addresses are meant: `HOST:PORT:ID`, with `*` for any run of characters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::address::{Address, HostPort, MAX_ADDRESS, MAX_CLIENT_ID};

/// What stands for any run of characters, the empty one too.
const ANY: char = '*';

/// A set of addresses: `HOST:PORT:ID`, where each of the three parts may hold `*` for any run of characters.
///
/// The parts are compared with those of the canonical spelling of an address, each for itself: a `*` of the host never
/// reaches into the port. A host without `*` is brought into its canonical spelling, one with `*` into lower case.
///
/// ```
/// use trunkline::{Address, Pattern};
///
/// let team: Pattern = "10.0.0.*:1215:team-*".parse().unwrap();
/// assert!(team.matches(&"10.0.0.7:1215:team-a".parse().unwrap()));
/// assert!(!team.matches(&"10.0.0.7:1216:team-a".parse().unwrap()));
/// ```
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    host: WildMatch,
    port: WildMatch,
    id: WildMatch,
}

impl Pattern {
    /// Whether the address is meant.
    pub fn matches(&self, address: &Address) -> bool {
        let (host, port) = address.node.as_str().rsplit_once(':').unwrap_or_default();
        self.host.matches(host) && self.port.matches(port) && self.id.matches(address.id.as_str())
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_ADDRESS {
            return Err(PatternError::TooLong);
        }
        let (node, id) = text.rsplit_once(':').ok_or(PatternError::Parts)?;
        let (host, port) = node.rsplit_once(':').ok_or(PatternError::Parts)?;
        let is_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*');
        if id.is_empty() || id.len() > MAX_CLIENT_ID || !id.bytes().all(is_id) {
            return Err(PatternError::Id);
        }
        Ok(Self {
            host: WildMatch::new(&canonical_host(host)?),
            port: WildMatch::new(&canonical_port(port)?),
            id: WildMatch::new(id),
        })
    }
}

/// The host as the canonical spelling of an address has it, as far as that can be known.
fn canonical_host(host: &str) -> Result<String, PatternError> {
    if !host.contains(ANY) {
        let bound: HostPort = format!("{host}:0").parse().map_err(|_| PatternError::Host)?;
        let host = bound.as_str().rsplit_once(':').map(|(host, _)| host.to_owned());
        return host.ok_or(PatternError::Host);
    }
    // Inside brackets stands an IPv6 address, and only there a colon.
    let (inner, is_inner): (&str, fn(u8) -> bool) = match host.strip_prefix('[') {
        Some(inner) => {
            let inner = inner.strip_suffix(']').ok_or(PatternError::Host)?;
            (inner, |byte| {
                byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'*')
            })
        }
        None => (host, |byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*')
        }),
    };
    if !inner.bytes().all(is_inner) {
        return Err(PatternError::Host);
    }
    Ok(host.to_ascii_lowercase())
}

fn canonical_port(port: &str) -> Result<String, PatternError> {
    if port.contains(ANY) {
        let legal = port.bytes().all(|byte| byte.is_ascii_digit() || byte == b'*');
        return legal.then(|| port.to_owned()).ok_or(PatternError::Port);
    }
    let number = port
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| port.parse::<u16>());
    match number {
        Some(Ok(number)) if number > 0 => Ok(number.to_string()),
        _ => Err(PatternError::Port),
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.host, self.port, self.id)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It has not the three parts.
    #[error("a pattern is HOST:PORT:ID, each with `*` for any run of characters; *:*:bob is bob on any node")]
    Parts,
    /// The host is none, and can be none with any text for each `*`.
    #[error("the host is no IPv4 address, [IPv6 address] or DNS name, in which * stands for any run of characters")]
    Host,
    /// The port likewise.
    #[error("the port is no number from 1 to 65535, nor digits and *")]
    Port,
    /// The id likewise.
    #[error("the id is not 1 to 64 letters, digits, '.', '_', '-' or *")]
    Id,
    /// The whole is longer than any address.
    #[error("longer than any address can be")]
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_pattern_means() {
        for (pattern, meant, others) in [
            (
                "*:*:bob",
                &["n:1:bob", "[::1]:65535:bob"][..],
                &["n:1:bobo", "n:1:Bob", "n:1:a.bob"][..],
            ),
            (
                "10.0.0.1:1215:*",
                &["10.0.0.1:1215:a"],
                &["10.0.0.11:1215:a", "10.0.0.1:121:a"],
            ),
            ("*:*:*", &["n:1:a", "[::1]:1:a"], &[]),
            (
                "[0:0::1]:01:b*",
                &["[::1]:1:b", "[::1]:1:bob"],
                &["[::1]:11:b", "[::2]:1:b"],
            ),
            ("[fe80:*]:*:x", &["[fe80::1]:9:x"], &["[fec0::1]:9:x", "n:9:x"]),
            (
                "N.Example:1*:a*c",
                &["n.example:1215:abc", "n.example:1:ac"],
                &["n.example:21:ac", "n.example:1:acb"],
            ),
            // No part reaches into another.
            ("a*:1:x", &["a.b:1:x"], &["a:2:x"]),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            for address in meant {
                assert!(pattern.matches(&address.parse().unwrap()), "{pattern} means {address}");
            }
            for address in others {
                assert!(
                    !pattern.matches(&address.parse().unwrap()),
                    "{pattern} does not mean {address}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_pattern() {
        use PatternError::{Host, Id, Parts, Port, TooLong};
        for (text, error) in [
            ("", Parts),
            ("bob", Parts),
            ("*:bob", Parts),
            (":*:bob", Host),
            ("a b:*:bob", Host),
            ("?:*:bob", Host),
            ("1.2.3:*:bob", Host),
            ("::*:*:bob", Host),
            ("[::*:*:bob", Host),
            ("[*g]:*:bob", Host),
            ("*::bob", Port),
            ("*:0:bob", Port),
            ("*:65536:bob", Port),
            ("*:+1:bob", Port),
            ("*:1?:bob", Port),
            ("*:*:", Id),
            ("*:*:b?b", Id),
            ("*:*:b b", Id),
        ] {
            assert_eq!(text.parse::<Pattern>().unwrap_err(), error, "{text}");
        }
        let long = format!("*:*:{}", "x".repeat(MAX_ADDRESS));
        assert_eq!(long.parse::<Pattern>().unwrap_err(), TooLong);
    }

    /// As a pattern's part is defined, and as slow as that is.
    fn is_meant(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skipped| is_meant(rest, &text[skipped..])),
            Some((byte, rest)) => text.first() == Some(byte) && is_meant(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text in "\\PC{0,40}|[a-f0-9.:*\\[\\]?_-]{0,30}") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                let again: Pattern = pattern.to_string().parse().unwrap();
                prop_assert_eq!(&again, &pattern);
                prop_assert_eq!(again.to_string(), pattern.to_string());
            }
        }

        #[test]
        fn an_address_is_meant_as_the_definition_says(
            host in "[ab*]{1,5}", port in "[12*]{1,3}", id in "[ab*]{1,6}",
            at in ("[ab]{1,5}", 1u16..300, "[ab]{1,6}"),
        ) {
            let pattern: Pattern = format!("{host}:{port}:{id}").parse().unwrap();
            let address: Address = format!("{}:{}:{}", at.0, at.1, at.2).parse().unwrap();
            let meant = is_meant(host.as_bytes(), at.0.as_bytes())
                && is_meant(port.as_bytes(), at.1.to_string().as_bytes())
                && is_meant(id.as_bytes(), at.2.as_bytes());
            prop_assert_eq!(pattern.matches(&address), meant);
        }

        #[test]
        fn an_address_is_a_pattern_that_means_itself_alone(
            one in "[a-z]{1,5}:[1-9]{1,3}:[A-Za-z0-9._-]{1,10}", other in "[a-z]{1,5}:[1-9]{1,3}:[A-Za-z0-9._-]{1,10}",
        ) {
            let pattern: Pattern = one.parse().unwrap();
            prop_assert!(pattern.matches(&one.parse().unwrap()));
            prop_assert_eq!(pattern.matches(&other.parse().unwrap()), one == other);
        }
    }
}
