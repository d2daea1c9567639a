//! Payloads and slots that move, against a model of a cluster.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const CHANNELS: [&str; 3] = ["a", "b", "c"];
const MASTERS: [&str; 3] = ["m:1", "m:2", "m:3"];

fn at(text: &str) -> HostPort {
    text.parse().unwrap()
}

fn cluster(owner: &str) -> Topology {
    let (host, port) = owner.split_once(':').unwrap();
    let master = vec![Value::Bytes(host.into()), Value::Integer(port.parse().unwrap())];
    let entry = vec![Value::Integer(0), Value::Integer(16383), Value::Array(master)];
    let slots = Slots::read(&Value::Array(vec![Value::Array(entry)]), &at(owner));
    Topology::Cluster(slots.unwrap())
}

fn push(lanes: &mut Lanes, channel: &'static str, payload: u32) -> oneshot::Receiver<Outcome> {
    let room = lanes.room(channel.as_bytes()).unwrap();
    let room = room.try_acquire_many_owned(OVERHEAD as u32).unwrap();
    let payload = Bytes::copy_from_slice(&payload.to_be_bytes());
    let channel = Bytes::from_static(channel.as_bytes());
    lanes.push(channel, payload, false, room, Instant::now()).unwrap().0
}

/// A cluster as it is: who has each slot, and what waits to be read by each master.
struct Model {
    owners: HashMap<u16, usize>,
    wires: [VecDeque<(Bytes, u32)>; 3],
    /// What each master has published, in its order.
    published: Vec<(Bytes, u32)>,
}

impl Model {
    /// A master reads a command; gives its answer.
    fn read(&mut self, master: usize) -> Option<Value> {
        let (channel, payload) = self.wires[master].pop_front()?;
        let slot = slot_of(&channel);
        let owner = self.owners[&slot];
        if owner == master {
            self.published.push((channel, payload));
            return Some(Value::Integer(1));
        }
        let text = format!("MOVED {slot} {}", MASTERS[owner]);
        Some(Value::Error(text.as_str().into()))
    }
}

/// Slots move and connections break at any time: each channel keeps its order, each payload is published once and
/// said so, or is said to be unknown.
#[tokio::test]
async fn a_channel_keeps_its_order_whatever_moves() {
    for seed in 0..2000 {
        let mut random = SmallRng::seed_from_u64(seed);
        let breaks = seed % 2 == 1;
        let mut lanes = Lanes::new();
        lanes.set_topology(cluster(MASTERS[0]));
        let mut model = Model {
            owners: CHANNELS
                .iter()
                .map(|channel| (slot_of(channel.as_bytes()), 0))
                .collect(),
            wires: Default::default(),
            published: Vec::new(),
        };
        let mut answers: [VecDeque<Value>; 3] = Default::default();
        let (mut outcomes, mut next, mut commands, mut ended) = (Vec::new(), 0, Vec::new(), Vec::new());
        let mut steps = 300;
        loop {
            let is_winding_down = steps == 0;
            steps -= usize::from(!is_winding_down);
            let master = random.random_range(0..3);
            match random.random_range(0..if is_winding_down { 6 } else { 10 }) {
                0 | 1 => {
                    lanes.take(&at(MASTERS[master]), random.random_range(1..100), &mut commands);
                    for command in commands.drain(..) {
                        let payload = u32::from_be_bytes(command.payload[..].try_into().unwrap());
                        model.wires[master].push_back((command.channel, payload));
                    }
                }
                2 | 3 => answers[master].extend(model.read(master)),
                4 | 5 => {
                    if let Some(answer) = answers[master].pop_front() {
                        lanes.answered(&at(MASTERS[master]), &answer, &mut ended).unwrap();
                    }
                }
                6 | 7 => {
                    let channel = CHANNELS[random.random_range(0..3)];
                    outcomes.push((channel, next, push(&mut lanes, channel, next)));
                    next += 1;
                }
                8 => {
                    let channel = CHANNELS[random.random_range(0..3)];
                    // Back within a round trip: no order outlives that.
                    let is_under_way = model.wires[master].iter().any(|(to, _)| to == channel.as_bytes())
                        || answers[master].iter().any(|answer| matches!(answer, Value::Error(_)));
                    if is_under_way && model.owners[&slot_of(channel.as_bytes())] != master {
                        continue;
                    }
                    model.owners.insert(slot_of(channel.as_bytes()), master);
                    if random.random_bool(0.3) {
                        lanes.moved(slot_of(channel.as_bytes()), &at(MASTERS[master]));
                    }
                }
                _ if breaks => {
                    model.wires[master].clear();
                    answers[master].clear();
                    let error = BusError::Closed;
                    ended.extend(lanes.lost(&at(MASTERS[master]), &error));
                }
                _ => {}
            }
            Ended::tell(std::mem::take(&mut ended));
            let is_idle = |master: &Master| master.queue.is_empty() && master.flying.is_empty();
            if is_winding_down && lanes.masters.values().all(is_idle) {
                break;
            }
        }
        assert!(lanes.moving.is_empty(), "seed {seed}");
        for channel in CHANNELS {
            let published = model.published.iter().filter(|(at, _)| at == channel.as_bytes());
            let published: Vec<u32> = published.map(|(_, payload)| *payload).collect();
            assert!(
                published.is_sorted_by(|one, next| one < next),
                "seed {seed}: {channel}: {published:?}"
            );
            for (_, payload, outcome) in outcomes.iter_mut().filter(|(to, ..)| *to == channel) {
                match outcome.try_recv().unwrap() {
                    Ok(_) => assert!(published.contains(payload), "seed {seed}: {payload}"),
                    Err(PublishError::Unknown(_)) => assert!(breaks, "seed {seed}: {payload}"),
                    // It was sent on too often.
                    Err(_) => assert!(!published.contains(payload), "seed {seed}: {payload}"),
                }
            }
        }
        let (mut all, count) = (model.published.clone(), model.published.len());
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "seed {seed}: none twice");
        // All room is given back.
        for master in lanes.masters.values() {
            assert_eq!(master.room.available_permits(), MOST_UNDER_WAY, "seed {seed}");
        }
    }
}

#[tokio::test]
async fn what_waits_too_long_ends_and_what_follows_closing_is_refused() {
    let mut lanes = Lanes::new();
    assert!(lanes.room(b"a").is_none());
    lanes.set_topology(Topology::Single(at("m:1")));
    let mut first = push(&mut lanes, "a", 1);
    let now = Instant::now();
    let patience = Duration::from_secs(5);
    Ended::tell(lanes.expire(&at("m:1"), now, patience, &BusError::Closed));
    assert!(first.try_recv().is_err());
    Ended::tell(lanes.expire(&at("m:1"), now + patience, patience, &BusError::Closed));
    assert_eq!(first.try_recv(), Ok(Err(PublishError::Unsent(BusError::Closed))));
    let mut flying = push(&mut lanes, "a", 2);
    lanes.take(&at("m:1"), 1, &mut Vec::new());
    let mut queued = push(&mut lanes, "a", 3);
    Ended::tell(lanes.close());
    assert_eq!(flying.try_recv(), Ok(Err(PublishError::Unknown(BusError::Closed))));
    assert_eq!(queued.try_recv(), Ok(Err(PublishError::Unsent(BusError::Closed))));
}

#[test]
fn an_answer_to_nothing_is_an_error() {
    let mut lanes = Lanes::new();
    lanes.set_topology(Topology::Single(at("m:1")));
    let answered = lanes.answered(&at("m:1"), &Value::Integer(1), &mut Vec::new());
    assert!(matches!(answered, Err(BusError::Nonsense(..))));
}

#[tokio::test]
async fn a_server_without_slots_is_forgotten_once_it_is_idle() {
    let mut lanes = Lanes::new();
    lanes.set_topology(cluster("m:1"));
    let outcome = push(&mut lanes, "a", 1);
    assert!(!lanes.retire(&at("m:1")));
    lanes.take(&at("m:1"), 1, &mut Vec::new());
    lanes.set_topology(cluster("m:2"));
    assert!(!lanes.retire(&at("m:1")));
    Ended::tell(lanes.lost(&at("m:1"), &BusError::Closed));
    assert!(lanes.retire(&at("m:1")) && !lanes.retire(&at("m:2")));
    assert!(matches!(outcome.await, Ok(Err(PublishError::Unknown(_)))));
}
