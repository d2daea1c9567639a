//! How many there may be at once, in all and from one source.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Who is counted as one: an IPv4 address, or an IPv6 network of 64 bits, which is the least that anyone is given, so that
/// its addresses cost nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// An address, also one that is written as an IPv6 address.
    V4(Ipv4Addr),
    /// The first 64 bits of an address.
    V6([u8; 8]),
}

impl From<IpAddr> for Source {
    fn from(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(addr) => Self::V4(addr),
            IpAddr::V6(addr) => {
                let [a, b, c, d, e, f, g, h, ..] = addr.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// There is no place: as many are taken as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// In all.
    All,
    /// From this source.
    Source,
}

/// Places of one kind.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    per_source: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Only those that have a place: no more entries than places are taken.
    by_source: HashMap<Source, usize>,
}

impl Places {
    /// So many places in all, and so many for one source.
    pub(crate) fn new(all: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            per_source,
            taken: Mutex::default(),
        })
    }

    /// Takes a place for this source, whose address must be proved: else anyone could take up the places of another by
    /// writing that one's address into a packet.
    pub(crate) fn take(self: &Arc<Self>, source: Source) -> Result<Place, Full> {
        let mut taken = self.taken.lock();
        if taken.all >= self.all {
            return Err(Full::All);
        }
        // An entry is made only with a place, so none is left behind.
        let of_source = taken.by_source.get(&source).copied().unwrap_or_default();
        if of_source >= self.per_source {
            return Err(Full::Source);
        }
        taken.by_source.insert(source, of_source + 1);
        taken.all += 1;
        Ok(Place {
            places: Arc::clone(self),
            source,
        })
    }
}

/// A place that is taken; dropping it frees it.
#[derive(Debug)]
#[must_use = "the place is free again when this is dropped"]
pub(crate) struct Place {
    places: Arc<Places>,
    source: Source,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(count) = taken.by_source.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(addr: &str) -> Source {
        addr.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_ne!(source("::ffff:192.0.2.1"), source("::ffff:192.0.2.2"));
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff::2"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
    }

    #[test]
    fn each_bound_holds_and_lets_go() {
        let places = Places::new(3, 2);
        let (a, b) = (source("192.0.2.1"), source("192.0.2.2"));
        let first = places.take(a).unwrap();
        let second = places.take(a).unwrap();
        assert_eq!(places.take(a).unwrap_err(), Full::Source);
        let third = places.take(b).unwrap();
        assert_eq!(places.take(b).unwrap_err(), Full::All);
        drop(first);
        let again = places.take(a).unwrap();
        drop((second, third, again));
        assert_eq!(places.taken.lock().all, 0);
    }

    #[test]
    fn nothing_is_kept_of_sources_without_a_place() {
        let places = Places::new(2, 1);
        let _held = places.take(source("192.0.2.1")).unwrap();
        for host in 0..1000_u32 {
            drop(places.take(Source::V4(host.into())).unwrap());
        }
        let _full = places.take(source("192.0.2.2")).unwrap();
        for host in 0..1000_u32 {
            assert_eq!(places.take(Source::V4(host.into())).unwrap_err(), Full::All);
        }
        assert_eq!(places.taken.lock().by_source.len(), 2);
    }
}
