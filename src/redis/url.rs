//! Where Redis is and how to get in: settings, and what is wrong with them. Pure.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::address::{HostPort, NodeName};
use crate::network::is_loopback;

/// The port of Redis where a URL names none.
const DEFAULT_PORT: u16 = 6379;

/// The longest prefix of keys and channels. It travels with each message.
const MAX_PREFIX: usize = 64;

/// How the bus reaches Redis.
#[derive(Debug, Clone)]
pub(crate) struct RedisConfig {
    /// Where to look first, one or more; of a cluster the rest is found from there. All have the same scheme, user,
    /// password and database, which hold for the nodes of a cluster too.
    pub(crate) seeds: Vec<RedisUrl>,
    /// What all keys and channels begin with: up to 64 letters, digits, `.`, `_`, `-`.
    pub(crate) prefix: String,
    /// The authorities whose certificates are taken from `rediss://` servers, a file in PEM; `None`: the system's.
    pub(crate) ca: Option<PathBuf>,
    /// Whether `redis://` may lead to other machines.
    pub(crate) plaintext_allowed: bool,
    /// The longest payload, in bytes. One that is longer is refused by [`Bus::publish`](super::Bus::publish), and
    /// passed over where it comes in.
    pub(crate) max_payload: usize,
}

impl RedisConfig {
    /// Looks for what is wrong with the settings together.
    ///
    /// # Errors
    ///
    /// The text says what to do.
    pub(crate) fn check(&self) -> Result<(), UrlError> {
        let Some(first) = self.seeds.first() else {
            return Err(UrlError(
                "say where Redis is, with --redis redis://HOST:PORT".to_owned(),
            ));
        };
        if self.seeds.iter().any(|seed| !seed.gets_in_like(first)) {
            let text = "all --redis must have the same scheme, user, password and database: they are one cluster";
            return Err(UrlError(text.to_owned()));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if self.prefix.is_empty() || self.prefix.len() > MAX_PREFIX || !self.prefix.bytes().all(is_plain) {
            return Err(UrlError(format!(
                "--redis-prefix must be 1 to {MAX_PREFIX} letters, digits, '.', '_' or '-'"
            )));
        }
        if self.ca.is_some() && !first.tls {
            return Err(UrlError(
                "--redis-ca is for rediss:// alone: write rediss:// with --redis, or leave it out".to_owned(),
            ));
        }
        if let Some(seed) = self.seeds.iter().find(|seed| !seed.tls && !seed.is_near())
            && !self.plaintext_allowed
        {
            return Err(plaintext(&seed.at));
        }
        Ok(())
    }

    /// The channel of a node, `PREFIX:to:NAME`.
    pub(crate) fn channel(&self, node: &NodeName) -> String {
        format!("{}:to:{node}", self.prefix)
    }

    /// The channel on which nodes say that they came or left.
    pub(super) fn news(&self) -> String {
        format!("{}:news", self.prefix)
    }

    /// What the keys of nodes begin with; the name follows.
    pub(super) fn entries(&self) -> String {
        format!("{}:node:", self.prefix)
    }
}

/// Why nothing goes to this server in plaintext.
pub(super) fn plaintext(at: &HostPort) -> UrlError {
    UrlError(format!(
        "redis:// to {at} would send the password of Redis, and which node writes to which, in the clear: use rediss://, \
         or say --redis-plaintext if the network between is trusted"
    ))
}

/// `redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/DB]`. In user and password, `%XX` is a byte.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) tls: bool,
    pub(super) at: HostPort,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
}

impl RedisUrl {
    fn gets_in_like(&self, other: &Self) -> bool {
        let way = |url: &Self| (url.tls, url.user.clone(), url.password.clone(), url.database);
        way(self) == way(other)
    }

    /// Whether it surely leads to this machine.
    fn is_near(&self) -> bool {
        let host = host(&self.at);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(is_loopback)
    }
}

/// The host alone; an IPv6 address comes without its brackets.
pub(super) fn host(at: &HostPort) -> &str {
    let host = at.as_str().rsplit_once(':').map_or("", |(host, _)| host);
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

impl FromStr for RedisUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        // The text itself is not shown: it may have a password in it.
        let wrong = |what: &str| {
            UrlError(format!(
                "--redis wants redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/DB]: {what}"
            ))
        };
        let (tls, rest) = match text.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            Some(_) | None => return Err(wrong("it begins with neither redis:// nor rediss://")),
        };
        let (login, place) = rest
            .rsplit_once('@')
            .map_or((None, rest), |(login, place)| (Some(login), place));
        let (place, database) = place.split_once('/').unwrap_or((place, ""));
        let database = match database {
            "" => 0,
            digits => digits
                .parse()
                .map_err(|_| wrong("what follows HOST:PORT/ is no number of a database"))?,
        };
        let has_port = place.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let at = if has_port {
            place.parse()
        } else {
            format!("{place}:{DEFAULT_PORT}").parse()
        };
        let at: HostPort = at.map_err(|error| wrong(&format!("the server: {error}")))?;
        if at.port() == 0 {
            return Err(wrong("no server has port 0"));
        }
        let (user, password) = match login.map(|login| login.split_once(':')) {
            None => (None, None),
            Some(None) => return Err(wrong("there is a user without a password: USER:PASSWORD@")),
            Some(Some((user, password))) => {
                let bad = || wrong("'%' is followed by two hexadecimal digits; a '%' itself is %25");
                let user = decoded(user).ok_or_else(bad)?;
                let password = decoded(password).ok_or_else(bad)?;
                if password.is_empty() {
                    return Err(wrong("the password is empty"));
                }
                ((!user.is_empty()).then_some(user), Some(password))
            }
        };
        Ok(Self {
            tls,
            at,
            user,
            password,
            database,
        })
    }
}

/// Text in which `%XX` was a byte.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            u8::try_from(high * 16 + low).ok()?
        } else {
            byte
        };
        decoded.push(byte);
    }
    String::from_utf8(decoded).ok()
}

impl fmt::Display for RedisUrl {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "rediss://" } else { "redis://" })?;
        if self.password.is_some() {
            let user = self.user.as_deref().unwrap_or_default();
            write!(f, "{}:***@", user.escape_debug())?;
        }
        write!(f, "{}/{}", self.at, self.database)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong with the settings of Redis. No text has a password in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(pub(super) String);

#[cfg(test)]
mod tests {
    use super::*;

    fn config(seeds: &[&str]) -> RedisConfig {
        RedisConfig {
            seeds: seeds.iter().map(|seed| seed.parse().unwrap()).collect(),
            prefix: "trunkline".to_owned(),
            ca: None,
            plaintext_allowed: false,
            max_payload: 1024,
        }
    }

    #[test]
    fn urls_are_read() {
        let read = |text: &str| {
            let RedisUrl {
                tls,
                at,
                user,
                password,
                database,
            } = text.parse().unwrap();
            (tls, at.as_str().to_owned(), user, password, database)
        };
        let some = |text: &str| Some(text.to_owned());
        for (text, expected) in [
            ("redis://localhost", (false, "localhost:6379".to_owned(), None, None, 0)),
            (
                "redis://:pw@10.0.0.1:7000/",
                (false, "10.0.0.1:7000".to_owned(), None, some("pw"), 0),
            ),
            (
                "rediss://me:p%40%3a%25@[::1]:1/12",
                (true, "[::1]:1".to_owned(), some("me"), some("p@:%"), 12),
            ),
            (
                "redis://a:b:c@[::1]",
                (false, "[::1]:6379".to_owned(), some("a"), some("b:c"), 0),
            ),
            (
                "redis://u:p@q/?#@h:1",
                (false, "h:1".to_owned(), some("u"), some("p@q/?#"), 0),
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_without_telling_the_password() {
        for text in [
            "",
            "localhost:6379",
            "http://u:hunter2@localhost",
            "redis://",
            "redis://u:hunter2@",
            "redis://u:hunter2@h:0",
            "redis://u:hunter2@h:99999",
            "redis://u:hunter2@h/x",
            "redis://u:hunter2%@h",
            "redis://u:hunter2%zz@h",
            "redis://u:hunter2@h?db=1",
            "redis://u:hunter2@h/1?x",
            "redis://hunter2@h",
            "redis://u:@h",
            "redis://u:hunter2@h/99999999999",
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(error.starts_with("--redis wants"), "{error}");
            assert!(!error.contains("ter2"), "{error}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: RedisUrl = "rediss://me:hunter2@h:1/3".parse().unwrap();
        assert_eq!(format!("{url} {url:?}"), "rediss://me:***@h:1/3 rediss://me:***@h:1/3");
    }

    #[test]
    fn plaintext_stays_on_this_machine_unless_it_may_leave_it() {
        for near in ["redis://localhost", "redis://127.9.9.9:1", "redis://[::1]"] {
            config(&[near]).check().unwrap();
        }
        for far in [
            "redis://10.0.0.1",
            "redis://example.org",
            "redis://[::2]",
            "redis://0.0.0.0",
        ] {
            let mut config = config(&[far]);
            let error = config.check().unwrap_err().to_string();
            assert!(
                error.contains("--redis-plaintext") && error.contains("rediss://"),
                "{error}"
            );
            config.plaintext_allowed = true;
            config.check().unwrap();
        }
        config(&["rediss://example.org"]).check().unwrap();
    }

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        assert!(config(&[]).check().is_err());
        assert!(
            config(&["redis://localhost:1", "redis://:pw@localhost:2"])
                .check()
                .is_err()
        );
        config(&["redis://localhost:1", "redis://localhost:2"]).check().unwrap();
        for prefix in ["", "a b", "a*", "{a}", "a:b", &"x".repeat(65)] {
            let mut config = config(&["redis://localhost"]);
            config.prefix = prefix.to_owned();
            assert!(config.check().is_err(), "{prefix}");
        }
        let mut config = config(&["redis://localhost"]);
        config.ca = Some("ca.pem".into());
        assert!(config.check().unwrap_err().to_string().contains("--redis-ca"));
    }
}
