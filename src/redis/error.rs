//! What Redis refuses, in words that say what to do. Pure.

use crate::address::HostPort;
use crate::wire::resp::NotResp;

use super::url::UrlError;

/// The most of a server's own words that is told.
const MAX_WORDS: usize = 200;

/// Why there is no connection to Redis, or why it refused a command. The text says at which server, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BusError {
    /// The settings are of no use, or the authorities can't be read.
    #[error("{0}")]
    Config(String),
    /// Nothing answers there, in time or at all; or the connection broke.
    #[error("Redis at {0}: {1}")]
    Unreachable(HostPort, String),
    /// The server's certificate is not accepted, or it speaks no TLS.
    #[error(
        "Redis at {0} is not accepted: {1}; rediss:// wants a server with TLS 1.3 and a certificate for this very \
         host, of an authority in --redis-ca FILE or else of one that the system trusts"
    )]
    Tls(HostPort, String),
    /// No password, a wrong one, or an unknown user.
    #[error("Redis at {0} does not let the node in: {1}; correct user and password in --redis redis://USER:PASSWORD@…")]
    Login(HostPort, String),
    /// The user may not do what the bus has to.
    #[error("Redis at {0} forbids {1}: {2}; allow the user what the bus needs: ACL SETUSER NAME {NEEDS}")]
    Permission(HostPort, &'static str, String),
    /// It still reads its data, or the cluster is down: this ends by itself.
    #[error("Redis at {0} is not ready: {1}")]
    NotReady(HostPort, String),
    /// A cluster without sharded pub/sub.
    #[error(
        "Redis at {0} is a cluster that does not know SSUBSCRIBE: a cluster must be Redis 7.0 or Valkey, or later; one \
         server without a cluster may be older"
    )]
    TooOld(HostPort),
    /// What answers there is not Redis, or says something that makes no sense.
    #[error("what answers at {0} is not Redis as the bus knows it: {1}; correct --redis")]
    Nonsense(HostPort, String),
    /// Another error of the server's.
    #[error("Redis at {0} refuses {1}: {2}")]
    Refused(HostPort, &'static str, String),
    /// The node shuts down.
    #[error("the node shuts down")]
    Closed,
}

/// What the bus needs to be allowed.
const NEEDS: &str = "resetchannels &PREFIX:* ~PREFIX:node:* +ping +select +subscribe +publish +ssubscribe +spublish \
    +get +set +del +scan +cluster|slots +asking, with the --redis-prefix for PREFIX";

impl BusError {
    /// Whether somebody has to change something: a retry alone won't help.
    pub(crate) fn needs_attention(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::Tls(..)
            | Self::Login(..)
            | Self::Permission(..)
            | Self::TooOld(_)
            | Self::Nonsense(..) => true,
            Self::Unreachable(..) | Self::NotReady(..) | Self::Refused(..) | Self::Closed => false,
        }
    }

    /// What a server has answered to a command with an error.
    pub(super) fn of_answer(at: &HostPort, command: &'static str, error: &[u8]) -> Self {
        let words = words(error);
        let code = words.split(' ').next().unwrap_or_default();
        let at = at.clone();
        match code {
            "NOAUTH" | "WRONGPASS" => Self::Login(at, words),
            "NOPERM" => Self::Permission(at, command, words),
            "LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "BUSY" => Self::NotReady(at, words),
            "ERR" if command == "AUTH" => Self::Login(at, words),
            "ERR" if command == "SELECT" => Self::Config(format!(
                "Redis at {at} has no such database: {words}; correct /DB in --redis, and leave it out for a cluster"
            )),
            // What it says to a client beyond `maxclients`, before it closes.
            "ERR" if words.contains("max number of clients") => Self::NotReady(at, words),
            "ERR" if command == "SSUBSCRIBE" && words.contains("unknown command") => Self::TooOld(at),
            // Only one that lets this machine alone in answers so, and it closes then.
            "DENIED" => Self::Login(at, words),
            _ => Self::Refused(at, command, words),
        }
    }

    /// An answer that is none to what was asked.
    pub(super) fn nonsense(at: &HostPort, command: &'static str) -> Self {
        Self::Nonsense(at.clone(), format!("its answer to {command} makes no sense"))
    }

    /// Bytes that are not its protocol.
    pub(super) fn not_resp(at: &HostPort, error: NotResp) -> Self {
        Self::Nonsense(at.clone(), error.to_string())
    }
}

impl From<UrlError> for BusError {
    fn from(error: UrlError) -> Self {
        Self::Config(error.to_string())
    }
}

/// Another's words as they can be shown: not many, and without control characters.
fn words(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().take(MAX_WORDS).flat_map(char::escape_debug).collect()
}

/// Why a payload was not published, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    /// It was not published, and won't be.
    #[error("not published: {0}")]
    Unsent(BusError),
    /// It was written, and then the connection broke or was given up as silent: nobody knows.
    #[error("perhaps published: {0}")]
    Unknown(BusError),
    /// It is longer than [`RedisConfig::max_payload`](super::RedisConfig::max_payload).
    #[error("not published: it has {0} bytes, and {1} are allowed")]
    TooLong(usize, usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_refuses_is_told_apart() {
        let at: HostPort = "h:1".parse().unwrap();
        let of = |command, text: &str| BusError::of_answer(&at, command, text.as_bytes());
        for text in [
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
        ] {
            assert!(matches!(of("PING", text), BusError::Login(..)));
        }
        let text = "ERR AUTH <password> called without any password configured for the default user.";
        assert!(matches!(of("AUTH", text), BusError::Login(..)));
        assert!(matches!(
            of("PUBLISH", "NOPERM no"),
            BusError::Permission(_, "PUBLISH", _)
        ));
        assert!(matches!(
            of("PING", "LOADING Redis is loading the dataset in memory"),
            BusError::NotReady(..)
        ));
        assert!(matches!(
            of("SSUBSCRIBE", "ERR unknown command `SSUBSCRIBE`"),
            BusError::TooOld(_)
        ));
        assert!(matches!(of("PING", "ERR x"), BusError::Refused(..)));
        let told = of("PING", &format!("ERR \u{1b}[31m\n{}", "x".repeat(10_000))).to_string();
        assert!(told.len() < 300 && !told.contains(['\u{1b}', '\n']), "{told}");
    }
}
