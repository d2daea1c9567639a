//! Which master of a cluster has which slot. Pure.

use std::collections::BTreeMap;

use crate::address::HostPort;
use crate::wire::resp::Value;

/// The slots of a cluster.
pub(crate) const SLOTS: u16 = 16384;

/// The most masters that are believed in: Redis itself advises against more than 1,000.
const MAX_MASTERS: usize = 1024;

/// Who has which slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slots {
    /// The last slot of each range, with its first one and its master.
    ranges: BTreeMap<u16, (u16, HostPort)>,
}

impl Slots {
    /// What `CLUSTER SLOTS` has answered, asked of this server; `None`: it makes no sense.
    pub(crate) fn read(answer: &Value, from: &HostPort) -> Option<Self> {
        let Value::Array(entries) = answer else {
            return None;
        };
        let mut slots = Self {
            ranges: BTreeMap::new(),
        };
        for entry in entries {
            let Value::Array(entry) = entry else {
                return None;
            };
            let [Value::Integer(first), Value::Integer(last), Value::Array(master), ..] = entry.as_slice() else {
                return None;
            };
            let [host, Value::Integer(port), ..] = master.as_slice() else {
                return None;
            };
            let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
            if first > last || last >= SLOTS {
                return None;
            }
            // A node that does not know its own address yet says nothing, or `?` where it has no host name: it means
            // the one it was asked at.
            let host = match host {
                Value::Null => "",
                host => std::str::from_utf8(host.text()?).ok()?,
            };
            let host = if host == "?" { "" } else { host };
            slots.ranges.insert(last, (first, place(host, *port, from)?));
        }
        let lasts = slots.ranges.keys();
        let firsts = slots.ranges.values().skip(1).map(|(first, _)| first);
        let apart = lasts.zip(firsts).all(|(last, first)| last < first);
        (apart && slots.masters().len() <= MAX_MASTERS).then_some(slots)
    }

    /// The master of a slot.
    pub(crate) fn owner(&self, slot: u16) -> Option<&HostPort> {
        let (_, (first, owner)) = self.ranges.range(slot..).next()?;
        (*first <= slot).then_some(owner)
    }

    /// All masters, each once.
    pub(crate) fn masters(&self) -> Vec<HostPort> {
        let mut masters: Vec<_> = self.ranges.values().map(|(_, owner)| owner.clone()).collect();
        masters.sort();
        masters.dedup();
        masters
    }

    /// One slot has another master.
    pub(crate) fn set(&mut self, slot: u16, owner: HostPort) {
        if let Some((&last, (first, old))) = self
            .ranges
            .range(slot..)
            .next()
            .filter(|(_, (first, _))| *first <= slot)
        {
            let (first, old) = (*first, old.clone());
            self.ranges.remove(&last);
            if let Some(before) = slot.checked_sub(1).filter(|before| *before >= first) {
                self.ranges.insert(before, (first, old.clone()));
            }
            if slot < last {
                self.ranges.insert(last, (slot + 1, old));
            }
        }
        self.ranges.insert(slot, (slot, owner));
    }
}

/// Where a slot is now, as an error says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// For good.
    Moved(u16, HostPort),
    /// For this one command.
    Ask(u16, HostPort),
}

impl Redirect {
    /// Reads an error of this server's; `None`: it is another one.
    pub(crate) fn read(error: &[u8], from: &HostPort) -> Option<Self> {
        let mut words = std::str::from_utf8(error).ok()?.split(' ');
        let (code, slot, target) = (words.next()?, words.next()?, words.next()?);
        let slot = slot.parse().ok().filter(|slot| *slot < SLOTS)?;
        let (host, port) = target.rsplit_once(':')?;
        let place = || place(if host == "?" { "" } else { host }, port.parse().ok()?, from);
        match code {
            "MOVED" => Some(Self::Moved(slot, place()?)),
            "ASK" => Some(Self::Ask(slot, place()?)),
            _ => None,
        }
    }
}

/// A server; no host means that of the other one.
fn place(host: &str, port: i64, from: &HostPort) -> Option<HostPort> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    if host.is_empty() {
        return Some(from.with_port(port));
    }
    let text = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    text.parse().ok()
}

/// The slot of a key or a channel: CRC16 (XMODEM) of it, or of what stands between its first `{` and the next `}`.
pub(crate) fn slot_of(key: &[u8]) -> u16 {
    let tag = || {
        let (_, behind) = key.split_at_checked(key.iter().position(|byte| *byte == b'{')? + 1)?;
        let (tag, _) = behind.split_at_checked(behind.iter().position(|byte| *byte == b'}')?)?;
        (!tag.is_empty()).then_some(tag)
    };
    let crc = tag().unwrap_or(key).iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
        })
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> HostPort {
        text.parse().unwrap()
    }

    fn entry(first: i64, last: i64, host: &str, port: i64) -> Value {
        let host = Value::Bytes(host.into());
        let master = vec![
            host,
            Value::Integer(port),
            Value::Bytes("id".into()),
            Value::Array(vec![]),
        ];
        Value::Array(vec![Value::Integer(first), Value::Integer(last), Value::Array(master)])
    }

    #[test]
    fn slots_are_those_of_redis() {
        // As CLUSTER KEYSLOT says.
        for (key, slot) in [
            ("123456789", 12739),
            ("foo", 12182),
            ("{foo}bar", 12182),
            ("a{foo}{bar}", 12182),
            ("{}foo", 9500),
            ("", 0),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn the_owner_of_each_slot_is_found_and_changed() {
        let answer = Value::Array(vec![
            entry(0, 99, "10.0.0.1", 1),
            entry(100, 100, "", 2),
            entry(200, 16383, "::1", 3),
        ]);
        let mut slots = Slots::read(&answer, &at("me:7")).unwrap();
        let owner = |slots: &Slots, slot| slots.owner(slot).map(|owner| owner.as_str().to_owned());
        assert_eq!(owner(&slots, 0).as_deref(), Some("10.0.0.1:1"));
        assert_eq!(owner(&slots, 99).as_deref(), Some("10.0.0.1:1"));
        assert_eq!(owner(&slots, 100).as_deref(), Some("me:2"));
        assert_eq!(owner(&slots, 101), None);
        assert_eq!(owner(&slots, 16383).as_deref(), Some("[::1]:3"));
        for slot in [0, 50, 99, 100, 150, 200, 16383] {
            let before: Vec<_> = (0..SLOTS).map(|slot| owner(&slots, slot)).collect();
            slots.set(slot, at("new:9"));
            for other in 0..SLOTS {
                let expected = if other == slot {
                    Some("new:9".to_owned())
                } else {
                    before[usize::from(other)].clone()
                };
                assert_eq!(owner(&slots, other), expected, "{other} after {slot}");
            }
        }
        assert_eq!(slots.masters().len(), 3);
    }

    #[test]
    fn a_list_of_slots_that_makes_no_sense_is_refused() {
        let from = at("me:7");
        for answer in [
            Value::Null,
            Value::Array(vec![Value::Null]),
            Value::Array(vec![Value::Array(vec![])]),
            Value::Array(vec![entry(5, 4, "h", 1)]),
            Value::Array(vec![entry(0, 16384, "h", 1)]),
            Value::Array(vec![entry(-1, 5, "h", 1)]),
            Value::Array(vec![entry(0, 5, "h h", 1)]),
            Value::Array(vec![entry(0, 5, "h", 0)]),
            Value::Array(vec![entry(0, 5, "h", 1), entry(5, 6, "g", 1)]),
            Value::Array((0..2000).map(|slot| entry(slot, slot, "h", slot + 1)).collect()),
        ] {
            assert_eq!(Slots::read(&answer, &from), None);
        }
    }

    #[test]
    fn redirects_are_read() {
        let from = at("me:7");
        let read = |text: &str| Redirect::read(text.as_bytes(), &from);
        assert_eq!(
            read("MOVED 3999 127.0.0.1:6381"),
            Some(Redirect::Moved(3999, at("127.0.0.1:6381")))
        );
        assert_eq!(read("ASK 1 ::1:6381"), Some(Redirect::Ask(1, at("[::1]:6381"))));
        assert_eq!(read("MOVED 1 :6381"), Some(Redirect::Moved(1, at("me:6381"))));
        for text in [
            "MOVED",
            "MOVED 1",
            "MOVED x h:1",
            "MOVED 16384 h:1",
            "MOVED 1 h",
            "MOVED 1 h:0",
            "ERR 1 h:1",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
