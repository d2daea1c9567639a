//! Finds out what kind of Redis it is, and of a cluster which master has which slot.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;
use tracing::info;

use super::connection::Connection;
use super::error::BusError;
use super::lanes::Topology;
use super::shared::{Shared, Trouble, backoff};
use super::topology::Slots;
use crate::address::HostPort;
use crate::wire::resp::Value;

/// The least time between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// How many servers are asked at once, the seeds before all.
const ASKED: usize = 16;

/// Looks at the start and whenever somebody wants it, until the node has stopped.
pub(super) async fn run(shared: Arc<Shared>) {
    let (mut backoff, mut trouble) = (backoff(), Trouble::default());
    let looking = async {
        loop {
            let wait = match look(&shared).await {
                Ok(topology) => {
                    backoff.reset();
                    trouble.is_over();
                    if shared.topology() != topology {
                        info!(masters = topology.masters().len(), "found Redis");
                    }
                    shared.set_topology(topology);
                    shared.look.notified().await;
                    PAUSE
                }
                Err(error) => {
                    trouble.tell("the bus finds no Redis", &error);
                    *shared.trouble.lock() = Some(error.clone());
                    shared.set_started(Err(error));
                    backoff.next(rand::random())
                }
            };
            sleep(wait).await;
        }
    };
    tokio::select! {
        () = shared.stopped() => {}
        () = looking => {}
    }
}

/// Asks all that are known, and takes the first good answer.
async fn look(shared: &Shared) -> Result<Topology, BusError> {
    let mut asked: Vec<HostPort> = shared.dialler.seeds().cloned().collect();
    for master in shared.topology().masters() {
        if !asked.contains(&master) {
            asked.push(master);
        }
    }
    asked.truncate(ASKED);
    let mut answers: FuturesUnordered<_> = asked
        .iter()
        .map(|at| async move { ask(&mut shared.dialler.dial(at).await?, shared).await })
        .collect();
    let mut worst: Option<BusError> = None;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(topology) => return Ok(topology),
            Err(error) => {
                // One that somebody has to mend says more than one that is merely not there.
                if worst
                    .as_ref()
                    .is_none_or(|worst| error.needs_attention() && !worst.needs_attention())
                {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or(BusError::Closed))
}

/// Asks one server.
pub(super) async fn ask(connection: &mut Connection, shared: &Shared) -> Result<Topology, BusError> {
    let answers = connection.call(&[&[b"CLUSTER", b"SLOTS"]]).await?;
    let at = &connection.at;
    match answers.first() {
        Some(Value::Error(error)) => match BusError::of_answer(at, "CLUSTER SLOTS", error) {
            // A server that is no cluster, or does not even know of clusters.
            BusError::Refused(..) if shared.dialler.seeds().nth(1).is_some() => Err(BusError::Config(format!(
                "Redis at {at} is no cluster: several --redis are for the nodes of one cluster alone"
            ))),
            BusError::Refused(..) => Ok(Topology::Single(at.clone())),
            error => Err(error),
        },
        Some(answer) => match Slots::read(answer, at) {
            Some(slots) if slots.masters().is_empty() => {
                let text = "no server of the cluster has any slot yet".to_owned();
                Err(BusError::NotReady(at.clone(), text))
            }
            Some(slots) => Ok(Topology::Cluster(slots)),
            None => Err(BusError::nonsense(at, "CLUSTER SLOTS")),
        },
        None => Err(BusError::nonsense(at, "CLUSTER SLOTS")),
    }
}
