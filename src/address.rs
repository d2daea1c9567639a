//! Names of nodes, ids of clients, and the addresses made of both.
//!
//! Everything here is parsed once, at the edge; past that a [`NodeName`], a [`ClientId`] or an [`Address`] is known
//! to be well formed and in its one canonical spelling, so equality of values is equality of nodes and clients.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use smol_str::{SmolStr, format_smolstr};

/// The longest host, in bytes: the limit of a DNS name (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 253;

/// The longest client id, in bytes.
pub const MAX_CLIENT_ID: usize = 64;

/// The longest address as text, in bytes: host, brackets, port, id and two colons.
pub const MAX_ADDRESS: usize = MAX_HOST + 2 + 1 + 5 + 1 + MAX_CLIENT_ID;

/// The name of a node: `HOST:PORT`, the address its clients know it by.
///
/// The host is an IPv4 address, an IPv6 address in brackets, or a DNS name (kept in lower case). The port is 1 to
/// 65535.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(SmolStr);

impl NodeName {
    /// The name as it is written, `HOST:PORT`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host alone; an IPv6 address comes without its brackets.
    pub fn host(&self) -> &str {
        let host = self.0.rsplit_once(':').map_or("", |(host, _)| host);
        host.strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or_default()
    }
}

impl FromStr for NodeName {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let HostPort(text) = text.parse()?;
        if text.ends_with(":0") {
            return Err(AddressError::BadPort);
        }
        Ok(Self(text))
    }
}

/// `HOST:PORT` as something to bind or to dial: like a node's name, but port 0 is legal and means any free port.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort(SmolStr);

impl HostPort {
    /// The pair as it is written; `tokio::net` resolves it in this form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or_default()
    }

    /// The same host with another port.
    pub fn with_port(&self, port: u16) -> Self {
        let host = self.0.rsplit_once(':').map_or("", |(host, _)| host);
        Self(format_smolstr!("{host}:{port}"))
    }
}

impl From<NodeName> for HostPort {
    fn from(NodeName(text): NodeName) -> Self {
        Self(text)
    }
}

impl From<std::net::SocketAddr> for HostPort {
    fn from(addr: std::net::SocketAddr) -> Self {
        NodeName::from(addr).into()
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, digits) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        let port = parse_port(digits)?;
        if let Some(inner) = host.strip_prefix('[') {
            let ip: Ipv6Addr = inner
                .strip_suffix(']')
                .and_then(|ip| ip.parse().ok())
                .ok_or(AddressError::BadHost)?;
            return Ok(Self(format_smolstr!("[{ip}]:{port}")));
        }
        if host.is_empty() || host.len() > MAX_HOST {
            return Err(AddressError::BadHost);
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !host.bytes().all(is_name) || host.starts_with(['.', '-']) {
            return Err(AddressError::BadHost);
        }
        // Only digits and dots: an IPv4 address or nothing, so `1.2.3` never goes out as a DNS query.
        if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && !matches!(host.parse(), Ok(IpAddr::V4(_)))
        {
            return Err(AddressError::BadHost);
        }
        // Nearly all come as they are kept, and to copy that costs far less than to write it anew.
        let has_zeros = digits.starts_with('0') && digits.len() > 1;
        if !has_zeros && !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Ok(Self(SmolStr::new(text)));
        }
        let host = host.to_ascii_lowercase();
        Ok(Self(format_smolstr!("{host}:{port}")))
    }
}

impl From<std::net::SocketAddr> for NodeName {
    /// The name of a node known by a socket address; an IPv6 scope is left out.
    fn from(addr: std::net::SocketAddr) -> Self {
        match addr.ip() {
            IpAddr::V4(ip) => Self(format_smolstr!("{ip}:{}", addr.port())),
            IpAddr::V6(ip) => Self(format_smolstr!("[{ip}]:{}", addr.port())),
        }
    }
}

/// The id of a client on its node.
///
/// Ids a node gives out are digits from 1 to 9, six or more of them. Ids granted by name are 1 to 64 letters,
/// digits, `.`, `_` or `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(SmolStr);

impl ClientId {
    /// The id as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An id from digits that a node drew.
    pub(crate) const fn from_digits(digits: SmolStr) -> Self {
        Self(digits)
    }

    /// Whether a node gave this id out by itself. Such an id dies with the node's process; one granted by name is
    /// the same client's after a restart.
    pub fn is_temporary(&self) -> bool {
        self.0.bytes().all(|byte| matches!(byte, b'1'..=b'9'))
    }
}

impl FromStr for ClientId {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let is_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_CLIENT_ID || !text.bytes().all(is_id) {
            return Err(AddressError::BadId);
        }
        Ok(Self(SmolStr::new(text)))
    }
}

/// Where a message goes to or comes from: `HOST:PORT:ID`, the node's name and the client's id on it.
///
/// ```
/// let address: trunkline::Address = "[::1]:1215:651444".parse().unwrap();
/// assert_eq!(address.node.host(), "::1");
/// assert_eq!(address.id.as_str(), "651444");
/// assert!("127.0.0.1:1215".parse::<trunkline::Address>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The node the client is on.
    pub node: NodeName,
    /// The client's id there.
    pub id: ClientId,
}

impl Address {
    /// Whether this text is the address as it is written, in its one spelling.
    pub(crate) fn is_written(&self, text: &str) -> bool {
        let id = text
            .strip_prefix(self.node.as_str())
            .and_then(|rest| rest.strip_prefix(':'));
        id == Some(self.id.as_str())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.len() > MAX_ADDRESS {
            return Err(AddressError::TooLong);
        }
        let (node, id) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        Ok(Self {
            node: node.parse()?,
            id: id.parse()?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.id)
    }
}

macro_rules! display_as_str {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}
display_as_str!(NodeName, HostPort, ClientId);

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    // `u16::from_str` takes a leading `+`.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::BadPort);
    }
    text.parse().map_err(|_| AddressError::BadPort)
}

/// Why a text is no node name, client id or address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no colon where a port or an id should follow.
    #[error("an address is HOST:PORT:ID, a node's name HOST:PORT")]
    NoPort,
    /// The host is neither an IP address nor a DNS name.
    #[error("the host is no IPv4 address, [IPv6 address] or DNS name")]
    BadHost,
    /// The port is not a number from 1 to 65535.
    #[error("the port is no number from 1 to 65535")]
    BadPort,
    /// The id is empty, too long or has a character an id can't have.
    #[error("the id is not 1 to 64 letters, digits, '.', '_' or '-'")]
    BadId,
    /// The whole is longer than any address.
    #[error("longer than any address can be")]
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_an_address() {
        for (text, host, port, id) in [
            ("127.0.0.1:1215:651444", "127.0.0.1", 1215, "651444"),
            ("[::1]:1215:123456", "::1", 1215, "123456"),
            ("[0:0:0:0:0:0:0:1]:1:9", "::1", 1, "9"),
            ("Relay.Example.com:65535:a.b_c-D", "relay.example.com", 65535, "a.b_c-D"),
            ("h:0080:1", "h", 80, "1"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(
                (address.node.host(), address.node.port(), address.id.as_str()),
                (host, port, id)
            );
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
        let other: Address = "h:80:1".parse().unwrap();
        assert_eq!("H:0080:1".parse::<Address>().unwrap(), other);
    }

    #[test]
    fn what_is_none() {
        use AddressError::{BadHost, BadId, BadPort, NoPort, TooLong};
        for (text, error) in [
            ("", NoPort),
            ("nocolon", NoPort),
            // It reads as the node `127.0.0.1`, without a port.
            ("127.0.0.1:1215", NoPort),
            ("127.0.0.1:0:1", BadPort),
            ("127.0.0.1:+12:1", BadPort),
            ("127.0.0.1:65536:1", BadPort),
            ("1.2.3:1215:1", BadHost),
            ("::1:1215:1", BadHost),
            ("[::1:1215:1", BadHost),
            ("-a:1:1", BadHost),
            ("a b:1:1", BadHost),
            (":1:1", BadHost),
            ("a:1:", BadId),
            ("a:1:x y", BadId),
            ("a:1:é", BadId),
        ] {
            assert_eq!(text.parse::<Address>().unwrap_err(), error, "{text}");
        }
        let long = "x".repeat(MAX_ADDRESS + 1);
        assert_eq!(long.parse::<Address>().unwrap_err(), TooLong);
        let id = format!("a:1:{}", "x".repeat(MAX_CLIENT_ID + 1));
        assert_eq!(id.parse::<Address>().unwrap_err(), BadId);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text in "\\PC{0,80}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            }
        }
    }
}
