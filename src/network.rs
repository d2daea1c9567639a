//! Where connections come from.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

/// The length of what an IPv4 address has before it when it is written as an IPv6 one (RFC 4291, section 2.5.5.2).
const MAPPED: u8 = 96;

/// A set of IP addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.
///
/// An IPv4 address that comes as an IPv6 one (`::ffff:10.0.0.1`, as on a socket that serves both) is the IPv4 one, in a
/// network as in an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Whether the address lies in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }
}

impl FromStr for Network {
    type Err = UnknownNetwork;

    fn from_str(text: &str) -> Result<Self, UnknownNetwork> {
        let net = match text.parse() {
            Ok(ip) => IpNet::from(IpAddr::to_canonical(&ip)),
            Err(_) => text.parse().map_err(|_| UnknownNetwork)?,
        };
        let IpAddr::V4(ip) = net.addr().to_canonical() else {
            return Ok(Self(net.trunc()));
        };
        let length = match net {
            IpNet::V4(_) => Some(net.prefix_len()),
            // A shorter one holds more than IPv4 addresses, and those as IPv6 ones never come.
            IpNet::V6(_) => net.prefix_len().checked_sub(MAPPED),
        };
        let net = length.and_then(|length| Ipv4Net::new(ip, length).ok());
        net.map(|net| Self(net.trunc().into())).ok_or(UnknownNetwork)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither an IP address nor a network such as 10.0.0.0/8 or 2001:db8::/32")]
pub struct UnknownNetwork;

/// Whether a connection from this address is taken, where only these networks and this machine may connect; `None`: all may.
pub(crate) fn may_connect(ip: IpAddr, networks: Option<&[Network]>) -> bool {
    match networks {
        Some(networks) => is_loopback(ip) || networks.iter().any(|network| network.contains(ip)),
        None => true,
    }
}

/// Whether only this machine can write to an address.
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_network() {
        for (network, inside, outside) in [
            (
                "10.0.0.0/8",
                &["10.1.2.3", "::ffff:10.1.2.3"][..],
                &["11.0.0.1", "::ffff:11.0.0.1", "::1"][..],
            ),
            ("10.9.9.9/8", &["10.1.2.3"], &["11.0.0.1"]),
            ("192.0.2.7", &["192.0.2.7", "::ffff:192.0.2.7"], &["192.0.2.8"]),
            ("::ffff:10.0.0.0/104", &["10.1.2.3", "::ffff:10.1.2.3"], &["11.0.0.1"]),
            ("::ffff:192.0.2.7", &["192.0.2.7"], &["192.0.2.8"]),
            ("2001:db8::/32", &["2001:db8:1::1"], &["2001:db9::1", "10.0.0.1"]),
            ("0.0.0.0/0", &["10.0.0.1", "::ffff:10.0.0.1"], &["2001:db8::1"]),
            ("::/0", &["2001:db8::1"], &["10.0.0.1", "::ffff:10.0.0.1"]),
        ] {
            let network: Network = network.parse().unwrap();
            for ip in inside {
                assert!(network.contains(ip.parse().unwrap()), "{ip} in {network}");
            }
            for ip in outside {
                assert!(!network.contains(ip.parse().unwrap()), "{ip} not in {network}");
            }
            assert_eq!(network.to_string().parse(), Ok(network));
        }
        for text in [
            "",
            "10",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "example.com",
            "::ffff:10.0.0.0/95",
        ] {
            assert_eq!(text.parse::<Network>(), Err(UnknownNetwork), "{text}");
        }
    }

    #[test]
    fn who_may_connect() {
        let networks: [Network; 2] = ["10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().unwrap());
        for (ip, by_list, by_none) in [
            ("127.0.0.1", true, true),
            ("::1", true, true),
            ("::ffff:127.0.0.1", true, true),
            ("10.0.0.1", true, false),
            ("::ffff:10.0.0.1", true, false),
            ("2001:db8::1", true, false),
            ("11.0.0.1", false, false),
            ("::", false, false),
        ] {
            let ip = ip.parse().unwrap();
            assert_eq!(may_connect(ip, Some(&networks)), by_list, "{ip}");
            assert_eq!(may_connect(ip, Some(&[])), by_none, "{ip}");
            assert!(may_connect(ip, None));
        }
    }

    #[test]
    fn what_is_loopback() {
        for (ip, is) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(ip.parse().unwrap()), is, "{ip}");
        }
    }
}
