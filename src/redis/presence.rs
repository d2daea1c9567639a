//! Which nodes there are: each keeps an entry that goes unless it is refreshed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Connection, MAX_ENTRY};
use super::error::BusError;
use super::lanes::Topology;
use super::scout::ask;
use super::shared::{Shared, Trouble};
use super::topology::Redirect;
use crate::address::{HostPort, NodeName};
use crate::phase::Phase;
use crate::wire::resp::Value;

/// The most nodes that are listed.
pub(super) const MOST_NODES: usize = 16_384;

/// How many keys Redis looks at for one answer. It takes it a fraction of a millisecond, in which it does nothing else.
const SCAN_COUNT: &[u8] = b"1000";

/// The most answers to one scan: of a billion keys.
const MOST_SCANS: usize = 1_000_000;

/// How many entries are asked for at once.
const ENTRIES_AT_ONCE: usize = 256;

/// How often a command is sent on.
const MOST_REDIRECTS: usize = 5;

/// The wait after a refresh that failed.
const RETRY: Duration = Duration::from_secs(1);

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_millis(400);

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) node: NodeName,
    pub(super) info: Bytes,
    pub(super) ttl: Duration,
}

/// Keeps up the entry until the node leaves, and removes it then.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut announcement = shared.announcement.subscribe();
    let mut trouble = Trouble::default();
    let mut kept: Option<Announcement> = None;
    let mut commander = Commander::default();
    let mut refresh = Instant::now();
    loop {
        let mut is_lost = false;
        tokio::select! {
            () = shared.phase.reached(Phase::Leaving) => break,
            changed = announcement.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            () = shared.announce_again.notified() => is_lost = true,
            () = sleep_until(refresh), if announcement.borrow().is_some() => {}
        }
        let Some(wanted) = announcement.borrow_and_update().clone() else {
            continue;
        };
        let former = kept.as_ref().filter(|kept| kept.node != wanted.node).cloned();
        let keeping = async {
            if let Some(former) = former {
                remove(&shared, &mut commander, &former.node).await?;
            }
            keep(&shared, &mut commander, &wanted).await
        };
        let result = tokio::select! {
            result = keeping => result,
            () = shared.phase.reached(Phase::Leaving) => break,
        };
        match result {
            Ok(()) => {
                trouble.is_over();
                refresh = Instant::now() + wanted.ttl / 3;
                if is_lost || kept.as_ref() != Some(&wanted) {
                    tell(&shared, &wanted.node).await;
                }
                kept = Some(wanted);
            }
            Err(error) => {
                trouble.tell("the bus can't tell the other nodes of this one", &error);
                refresh = Instant::now() + RETRY.min(wanted.ttl / 3);
                kept = None;
            }
        }
    }
    let announced = announcement.borrow().clone();
    if let Some(announced) = announced {
        // In vain: the entry goes by itself.
        let _ = timeout(GOODBYE, async {
            if remove(&shared, &mut commander, &announced.node).await.is_ok() {
                tell(&shared, &announced.node).await;
            }
        })
        .await;
    }
}

/// Says that a node came or left.
async fn tell(shared: &Shared, node: &NodeName) {
    let news = shared.dialler.config.news();
    let payload = Bytes::copy_from_slice(node.as_str().as_bytes());
    // Who did not hear it sees it at the next look.
    let _ = shared.publish(news.as_bytes(), payload, true).await.await;
}

async fn keep(shared: &Shared, commander: &mut Commander, announcement: &Announcement) -> Result<(), BusError> {
    let key = format!("{}{}", shared.dialler.config.entries(), announcement.node);
    let ttl = announcement.ttl.as_millis().max(1).to_string();
    let command: [&[u8]; 5] = [b"SET", key.as_bytes(), &announcement.info, b"PX", ttl.as_bytes()];
    match commander.call(shared, key.as_bytes(), &command).await? {
        (_, Value::Status(_)) => Ok(()),
        (at, Value::Error(error)) => Err(BusError::of_answer(&at, "SET", &error)),
        (at, _) => Err(BusError::nonsense(&at, "SET")),
    }
}

async fn remove(shared: &Shared, commander: &mut Commander, node: &NodeName) -> Result<(), BusError> {
    let key = format!("{}{node}", shared.dialler.config.entries());
    commander
        .call(shared, key.as_bytes(), &[b"DEL", key.as_bytes()])
        .await?;
    Ok(())
}

/// The list of nodes, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Nodes with what they announced, by name.
    pub(crate) nodes: Vec<(NodeName, Bytes)>,
    /// Why there may be more: one of the masters did not answer.
    pub(crate) missing: Option<BusError>,
}

/// The nodes that have an entry.
pub(super) async fn nodes(shared: &Shared) -> Result<Listing, BusError> {
    let mut commander = shared.commander.lock().await;
    let topology = commander.topology(shared).await?;
    let prefix = shared.dialler.config.entries();
    let (mut found, mut missing) = (BTreeMap::new(), None);
    for at in topology.masters() {
        let keys = match commander.scan(shared, &at, &format!("{prefix}*")).await {
            Ok(keys) => keys,
            Err(error) => {
                missing = Some(error);
                continue;
            }
        };
        for key in keys {
            let name = key
                .strip_prefix(prefix.as_bytes())
                .and_then(|name| std::str::from_utf8(name).ok());
            if let Some(name) = name.and_then(|name| name.parse::<NodeName>().ok())
                && found.len() < MOST_NODES
            {
                found.insert(name, at.clone());
            }
        }
    }
    let (nodes, unread) = commander.entries(shared, &prefix, found).await;
    let missing = missing.or(unread);
    Ok(Listing { nodes, missing })
}

/// Connections for commands, one to each server, kept from one to the next.
#[derive(Default)]
pub(super) struct Commander {
    connections: HashMap<HostPort, Connection>,
}

impl Commander {
    /// Has commands done at one server.
    async fn call_at(&mut self, shared: &Shared, at: &HostPort, commands: &[&[&[u8]]]) -> Result<Vec<Value>, BusError> {
        // What is dropped on the way is not put back: an answer may still come on it.
        if let Some(mut kept) = self.connections.remove(at)
            && let Ok(answers) = kept.call(commands).await
        {
            self.connections.insert(at.clone(), kept);
            return Ok(answers);
        }
        // One that was idle may have been closed meanwhile. All that is done here can be done twice.
        let mut fresh = shared.dialler.dial(at).await?;
        let answers = fresh.call(commands).await?;
        self.connections.insert(at.clone(), fresh);
        Ok(answers)
    }

    /// Has a command done where its key is. Gives the answer, and whose it is.
    async fn call(&mut self, shared: &Shared, key: &[u8], command: &[&[u8]]) -> Result<(HostPort, Value), BusError> {
        let topology = shared.topology();
        let slot = topology.slot_of(key);
        let mut at = topology.owner(slot).cloned().ok_or_else(|| shared.why_nowhere())?;
        let mut is_asked = false;
        for _ in 0..=MOST_REDIRECTS {
            let asking: &[&[u8]] = &[b"ASKING"];
            let commands = if is_asked { vec![asking, command] } else { vec![command] };
            let answer = match self.call_at(shared, &at, &commands).await {
                Ok(mut answers) => answers.pop().ok_or_else(|| BusError::nonsense(&at, "a command"))?,
                Err(error) => {
                    shared.look.notify_one();
                    return Err(error);
                }
            };
            let redirect = match &answer {
                Value::Error(error) => Redirect::read(error, &at),
                _ => None,
            };
            match redirect {
                Some(Redirect::Moved(slot, to)) => {
                    shared.lanes.lock().moved(slot, &to);
                    shared.attend.notify_one();
                    shared.look.notify_one();
                    (at, is_asked) = (to, false);
                }
                Some(Redirect::Ask(_, to)) => (at, is_asked) = (to, true),
                None => return Ok((at, answer)),
            }
        }
        Err(BusError::NotReady(
            at,
            "the masters of the cluster do not agree who has a slot".to_owned(),
        ))
    }

    /// The topology as it is now, asked of the first master that answers.
    async fn topology(&mut self, shared: &Shared) -> Result<Topology, BusError> {
        let known = shared.topology();
        match &known {
            Topology::Unknown => return Err(shared.why_nowhere()),
            Topology::Single(_) => return Ok(known),
            Topology::Cluster(_) => {}
        }
        let mut last = None;
        for at in known.masters() {
            let kept = self.connections.remove(&at);
            let asked = match kept {
                Some(mut kept) => ask(&mut kept, shared).await.map(|topology| (topology, kept)),
                None => Err(BusError::Closed),
            };
            let asked = match asked {
                Ok(asked) => Ok(asked),
                Err(_) => match shared.dialler.dial(&at).await {
                    Ok(mut fresh) => ask(&mut fresh, shared).await.map(|topology| (topology, fresh)),
                    Err(error) => Err(error),
                },
            };
            match asked {
                Ok((topology, connection)) => {
                    self.connections.insert(at, connection);
                    let masters = topology.masters();
                    self.connections.retain(|at, _| masters.contains(at));
                    if topology != known {
                        shared.set_topology(topology.clone());
                    }
                    return Ok(topology);
                }
                Err(error) => last = Some(error),
            }
        }
        shared.look.notify_one();
        Err(last.unwrap_or_else(|| shared.why_nowhere()))
    }

    /// The keys of a server that match a pattern.
    async fn scan(&mut self, shared: &Shared, at: &HostPort, pattern: &str) -> Result<Vec<Bytes>, BusError> {
        let nonsense = || BusError::nonsense(at, "SCAN");
        let (mut keys, mut cursor) = (Vec::new(), Bytes::from_static(b"0"));
        for _ in 0..MOST_SCANS {
            let command: &[&[u8]] = &[b"SCAN", &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", SCAN_COUNT];
            let answers = self.call_at(shared, at, &[command]).await?;
            let parts = match answers.into_iter().next() {
                Some(Value::Array(parts)) => parts,
                Some(Value::Error(error)) => return Err(BusError::of_answer(at, "SCAN", &error)),
                _ => return Err(nonsense()),
            };
            let mut parts = parts.into_iter();
            let (Some(Value::Bytes(next)), Some(Value::Array(found))) = (parts.next(), parts.next()) else {
                return Err(nonsense());
            };
            for key in found {
                if let Value::Bytes(key) = key
                    && keys.len() < MOST_NODES
                {
                    keys.push(key.freeze());
                }
            }
            if &next[..] == b"0" {
                return Ok(keys);
            }
            cursor = next.freeze();
        }
        Err(nonsense())
    }

    /// What stands in the entries of these nodes, each found at a server, and why some could not be read.
    async fn entries(
        &mut self,
        shared: &Shared,
        prefix: &str,
        found: BTreeMap<NodeName, HostPort>,
    ) -> (Vec<(NodeName, Bytes)>, Option<BusError>) {
        let mut places: HashMap<HostPort, Vec<(NodeName, String)>> = HashMap::new();
        for (name, at) in found {
            let key = format!("{prefix}{name}");
            places.entry(at).or_default().push((name, key));
        }
        let (mut entries, mut missing) = (Vec::new(), None);
        for (at, names) in places {
            for names in names.chunks(ENTRIES_AT_ONCE) {
                if let Err(error) = self.entries_at(shared, &at, names, &mut entries).await {
                    missing = Some(error);
                    break;
                }
            }
        }
        entries.sort();
        (entries, missing)
    }

    async fn entries_at(
        &mut self,
        shared: &Shared,
        at: &HostPort,
        names: &[(NodeName, String)],
        entries: &mut Vec<(NodeName, Bytes)>,
    ) -> Result<(), BusError> {
        let commands: Vec<[&[u8]; 2]> = names.iter().map(|(_, key)| [&b"GET"[..], key.as_bytes()]).collect();
        let commands: Vec<&[&[u8]]> = commands.iter().map(|command| &command[..]).collect();
        let answers = self.call_at(shared, at, &commands).await?;
        for ((name, key), answer) in names.iter().zip(answers) {
            let answer = match answer {
                // Its slot is on its way to another master.
                Value::Error(error) if Redirect::read(&error, at).is_some() => {
                    self.call(shared, key.as_bytes(), &[b"GET", key.as_bytes()]).await?.1
                }
                answer => answer,
            };
            match answer {
                Value::Bytes(info) if info.len() <= MAX_ENTRY => entries.push((name.clone(), info.freeze())),
                Value::Error(error) => {
                    let error = BusError::of_answer(at, "GET", &error);
                    if error.needs_attention() {
                        return Err(error);
                    }
                }
                // It has gone since, or is no entry.
                _ => {}
            }
        }
        Ok(())
    }
}
