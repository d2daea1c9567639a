//! What links by Redis bear: two nodes that a redis-server joins, conversations between them, and trouble with the server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use trunkline_lab::figures::Figures;
use trunkline_lab::namespace::{join, sleep_precisely};
use trunkline_lab::nodes::{Join, Mesh};
use trunkline_lab::redis_server::{Answer, Cluster, Server};
use trunkline_lab::talk::{intact, talk, unharmed};

/// The channel of the node that receives.
const CHANNEL: &str = "trunkline:to:127.0.0.1:2";

/// How long all is well before the trouble begins, and how long a server is away that is started again.
const CALM: Duration = Duration::from_secs(2);
const AWAY: Duration = Duration::from_millis(500);

/// How long a server is stopped.
const STOPPED: Duration = Duration::from_secs(10);

/// Play trouble to the Redis between two nodes
#[derive(Debug, Parser)]
struct Args {
    /// The program to measure
    #[arg(long, value_name = "FILE")]
    trunkline: PathBuf,

    /// The trouble, if not each kind
    #[arg(long, value_name = "NAME")]
    trouble: Option<Trouble>,

    /// How long messages are sent
    #[arg(long, value_name = "N", default_value_t = 20)]
    seconds: u32,

    /// Conversations
    #[arg(long, value_name = "N", default_value_t = 16)]
    pairs: u16,

    /// Their messages a second in all
    #[arg(long, value_name = "N", default_value_t = 2000)]
    rate: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Trouble {
    /// None
    Nothing,
    /// It is killed and started again, three times
    Restarted,
    /// It is stopped for 10 s
    Stopped,
    /// Its connections for pub/sub are ended, once a second
    Disconnected,
    /// The slot of the receiving node's channel goes from master to master of a cluster, every two seconds
    Moved,
    /// A replica takes the place of that slot's master, and gives it back
    TakenOver,
}

/// What joins the nodes.
enum Redis {
    One(Box<Server>),
    Several {
        cluster: Box<Cluster>,
        replica: Option<Server>,
    },
}

impl Trouble {
    fn what(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Restarted => "killed, started again after 0.5 s, three times",
            Self::Stopped => "stopped (SIGSTOP) for 10 s",
            Self::Disconnected => "`CLIENT KILL TYPE pubsub`, once a second",
            Self::Moved => "cluster: the slot of the receiver's channel moves every 2 s",
            Self::TakenOver => "cluster: a replica takes over from the channel's master, and back",
        }
    }

    fn redis(self) -> anyhow::Result<Redis> {
        Ok(match self {
            Self::Nothing | Self::Restarted | Self::Stopped | Self::Disconnected => {
                Redis::One(Box::new(Server::start()?))
            }
            Self::Moved => Redis::Several {
                cluster: Box::new(Cluster::start()?),
                replica: None,
            },
            Self::TakenOver => {
                let cluster = Box::new(Cluster::start()?);
                let master = cluster.owner(cluster.slot(CHANNEL)?)?;
                let replica = Some(cluster.add_replica(master)?);
                Redis::Several { cluster, replica }
            }
        })
    }

    /// Plays it, until about the end. Gives how often it came.
    fn play(self, redis: &mut Redis, end: Instant) -> anyhow::Result<u32> {
        sleep(CALM);
        let goes_on = || Instant::now() + CALM < end;
        let mut times = 0;
        match (self, redis) {
            (Self::Restarted, Redis::One(server)) => {
                while goes_on() && times < 3 {
                    server.kill()?;
                    sleep(AWAY);
                    server.start_again()?;
                    times += 1;
                    sleep(2 * CALM);
                }
            }
            (Self::Stopped, Redis::One(server)) => {
                server.signal("STOP")?;
                sleep(STOPPED);
                server.signal("CONT")?;
                times = 1;
            }
            (Self::Disconnected, Redis::One(server)) => {
                while goes_on() {
                    let ended = server.done(&["CLIENT", "KILL", "TYPE", "pubsub"])?;
                    times += u32::from(ended != Answer::Integer(0));
                    sleep(CALM / 2);
                }
            }
            (Self::Moved, Redis::Several { cluster, .. }) => {
                let slot = cluster.slot(CHANNEL)?;
                let mut at = cluster.owner(slot)?;
                while goes_on() {
                    let to = (at + 1) % cluster.masters.len();
                    cluster.move_slot(slot, at, to)?;
                    (at, times) = (to, times + 1);
                    sleep(CALM);
                }
            }
            (Self::TakenOver, Redis::Several { cluster, replica }) => {
                let replica = replica.as_ref().context("no replica")?;
                let master = cluster.masters.get(cluster.owner(cluster.slot(CHANNEL)?)?);
                let master = master.context("no such master")?;
                replica.take_over()?;
                sleep(2 * CALM);
                master.take_over()?;
                times = 2;
            }
            _ => {}
        }
        Ok(times)
    }
}

impl Redis {
    fn urls(&self) -> Vec<String> {
        match self {
            Self::One(server) => vec![server.url()],
            Self::Several { cluster, .. } => cluster.urls(),
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    sleep_precisely();
    let troubles = args
        .trouble
        .map_or_else(|| Trouble::value_variants().to_vec(), |one| vec![one]);
    println!("| Redis is | times | sent | lost, repeated, out of order, refused | p50 / p99 / slowest, ms |");
    println!("|---|--:|--:|---|---|");
    let mut is_well = true;
    for trouble in troubles {
        match measure(&args, trouble) {
            Ok(()) => {}
            Err(error) => {
                println!("FAILED: {}: {error:#}", trouble.what());
                is_well = false;
            }
        }
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(args: &Args, trouble: Trouble) -> anyhow::Result<()> {
    let mut redis = trouble.redis()?;
    let flags: Vec<String> = redis
        .urls()
        .into_iter()
        .flat_map(|url| ["--redis".to_owned(), url])
        .collect();
    let mesh = Mesh::start_joined(&args.trunkline, 2, &flags, Join::Flags)?;
    let [sending, receiving] = mesh.nodes.as_slice() else {
        anyhow::bail!("not two nodes");
    };
    let end = Instant::now() + Duration::from_secs(args.seconds.into());
    let playing = std::thread::spawn(move || {
        let times = trouble.play(&mut redis, end)?;
        Ok((redis, times))
    });
    let figures = talk(args.seconds, sending.tcp, receiving.tcp, args.pairs, args.rate);
    let (redis, times) = join(playing)?;
    let figures = figures?;
    let counted = [sending, receiving].map(|node| node.stop());
    drop(redis);
    row(args, trouble, times, &figures);
    for counted in counted {
        tell(&counted?);
    }
    unharmed(&[&figures]).with_context(|| intact(&figures))
}

fn row(args: &Args, trouble: Trouble, times: u32, figures: &Figures) {
    println!(
        "| {} | {times} | {} | {}, {}, {}, {} | {:.2} / {:.1} / {:.0} |",
        trouble.what(),
        (args.seconds + 1) * args.rate,
        figures.lost,
        figures.repeated,
        figures.reordered,
        figures.errors,
        figures.p50,
        figures.p99,
        figures.max,
    );
}

/// What a node has counted of packets that it has refused, which nobody forges here.
fn tell(counted: &BTreeMap<String, u64>) {
    for (name, count) in counted.iter().filter(|(name, _)| name.starts_with("bus-")) {
        eprintln!("  {name} {count}");
    }
}
