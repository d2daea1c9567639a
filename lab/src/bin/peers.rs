//! Compares Trunkline with nats-server and Redis on this machine. They take turns, each run with relays started afresh, so
//! that what else the machine does falls on all.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use trunkline::bench::report::{Figures, plot};
use trunkline::bench::usage::Usage;
use trunkline::bench::{Extent, Transport, Workload, load};
use trunkline_lab::charts::{self, Bar};
use trunkline_lab::comparison::{Quantity, Row, Sample, Table, summary};
use trunkline_lab::crowd::{self, Until};
use trunkline_lab::peers::{Programs, Running};
use trunkline_lab::talk::runtime;
use trunkline_lab::trials::{BODIES, Clients, Entrant, Flow, SIZES, Task, Trial, Ways, all, parts};

/// Messages of this first time are checked, and not measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// The same where the load is spread over processes, which take some seconds to connect their clients, and are not done at
/// the same instant.
const WARM_UP_TOGETHER: Duration = Duration::from_secs(5);

/// How long after the last client has come memory is looked at: what was needed to let it in may go first.
const SETTLED: Duration = Duration::from_secs(2);

/// How long a run may take beside what is measured. The longest wait within one is that for what does not come.
const SLACK: Duration = Duration::from_secs(120);

/// By what share of it a load may miss its rate.
const KEPT: f64 = 0.05;

const KIB: f64 = 1024.0;

/// Compare Trunkline with nats-server and Redis
#[derive(Debug, Parser)]
struct Args {
    /// Print the names of all workloads, and end
    #[arg(long)]
    list: bool,

    /// A workload, if not all of them; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// How often each relay has its turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// How long to measure at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,

    /// The program to measure
    #[arg(long, value_name = "FILE", default_value = "trunkline")]
    trunkline: PathBuf,

    /// The nats-server to compare it with
    #[arg(long, value_name = "FILE", default_value = "nats-server")]
    nats: PathBuf,

    /// The redis-server to compare it with
    #[arg(long, value_name = "FILE", default_value = "redis-server")]
    redis: PathBuf,

    /// Where to write the tables, as Markdown
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,

    /// The directory to write plots to
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let trials = all();
    if args.list {
        for trial in &trials {
            println!("{:<20} {}", trial.name, trial.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let trials = chosen(trials, &args.only)?;
    let comparing = Comparing {
        programs: Programs {
            trunkline: args.trunkline.clone(),
            nats: args.nats.clone(),
            redis: args.redis.clone(),
        },
        measured: Duration::from_secs(args.seconds.into()),
        open_files: open_files(&trials)?,
    };
    // As the one of `trunkline bench`.
    runtime()?.block_on(async {
        tokio::select! {
            done = comparing.run(&args, &trials) => done,
            // What runs ends with what is dropped here.
            error = told_to_end() => Err(error),
        }
    })
}

fn chosen(trials: Vec<Trial>, only: &[String]) -> anyhow::Result<Vec<Trial>> {
    if only.is_empty() {
        return Ok(trials);
    }
    for name in only {
        ensure!(
            trials.iter().any(|trial| trial.name == name),
            "no workload is called {name}; --list tells what there is"
        );
    }
    let is_chosen = |trial: &Trial| only.iter().any(|name| name == trial.name);
    Ok(trials.into_iter().filter(is_chosen).collect())
}

/// Raises the limit of open files, which the relays inherit, to what the system allows; gives it.
fn open_files(trials: &[Trial]) -> anyhow::Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let most = usize::try_from(most)?;
    for trial in trials {
        let needed = trial.entrants.iter().map(Entrant::open_files).max().unwrap_or_default();
        ensure!(
            needed <= most,
            "{} needs {needed} open files in a process, and the hard limit is {most}: raise it (ulimit -Hn), or leave that \
             workload out (--only)",
            trial.name
        );
    }
    Ok(most)
}

/// Waits for a signal that says to end.
async fn told_to_end() -> anyhow::Error {
    let wait = async |kind| -> std::io::Result<()> {
        signal(kind)?.recv().await;
        Ok(())
    };
    let told = tokio::select! {
        told = wait(SignalKind::interrupt()) => told,
        told = wait(SignalKind::terminate()) => told,
        told = wait(SignalKind::hangup()) => told,
    };
    match told {
        Ok(()) => anyhow!("ended by a signal"),
        Err(error) => error.into(),
    }
}

/// What one run has shown.
struct Run {
    sample: Sample,
    /// Of a load that was one.
    figures: Option<Figures>,
}

/// What a trial has shown.
struct Outcome<'a> {
    trial: &'a Trial,
    rows: Vec<Row>,
    /// Of each entrant.
    figures: Vec<Vec<Figures>>,
}

impl Outcome<'_> {
    fn table(&self) -> Table<'_> {
        Table {
            quantities: self.trial.quantities,
            rows: &self.rows,
            comparisons: &self.trial.comparisons,
        }
    }

    /// Whether Trunkline did what it promises, and each other relay ran at all.
    fn is_well(&self) -> bool {
        self.trial.entrants.iter().zip(&self.rows).all(|(entrant, row)| {
            if entrant.is_ours() {
                row.failed() == 0 && row.flaws().are_none()
            } else {
                row.failed() < row.rounds.len()
            }
        })
    }
}

/// What is the same for all runs.
struct Comparing {
    programs: Programs,
    measured: Duration,
    /// How many files a process may have open.
    open_files: usize,
}

impl Comparing {
    async fn run(&self, args: &Args, trials: &[Trial]) -> anyhow::Result<ExitCode> {
        let mut outcomes = Vec::with_capacity(trials.len());
        for trial in trials {
            println!("{}: {}", trial.name, trial.title);
            let outcome = self.take_turns(trial, args.rounds).await;
            println!("\n{}", outcome.table().markdown());
            outcomes.push(outcome);
        }
        println!("{}", in_short(&outcomes));
        let plots = match &args.plots {
            Some(dir) => draw(dir, &outcomes)?,
            None => Vec::new(),
        };
        if let Some(file) = &args.table {
            let text = document(&outcomes, &plots);
            std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))?;
        }
        let mut code = ExitCode::SUCCESS;
        for outcome in outcomes.iter().filter(|outcome| !outcome.is_well()) {
            println!("FAILED: {}", outcome.trial.name);
            code = ExitCode::FAILURE;
        }
        Ok(code)
    }

    async fn take_turns<'a>(&self, trial: &'a Trial, rounds: u32) -> Outcome<'a> {
        let mut outcome = Outcome {
            trial,
            rows: Vec::with_capacity(trial.entrants.len()),
            figures: vec![Vec::new(); trial.entrants.len()],
        };
        for entrant in &trial.entrants {
            outcome.rows.push(Row {
                label: entrant.label.clone(),
                rounds: Vec::new(),
            });
        }
        for round in 1..=rounds {
            let places = outcome.rows.iter_mut().zip(&mut outcome.figures);
            for (entrant, (row, figures)) in trial.entrants.iter().zip(places) {
                let run = self.measure(entrant).await;
                match &run {
                    Ok(run) => println!("  {round}, {}: {}", entrant.label, shown(&run.sample)),
                    Err(error) => println!("  {round}, {}: FAILED: {error:#}", entrant.label),
                }
                let run = run.ok();
                row.rounds.push(run.as_ref().map(|run| run.sample.clone()));
                figures.extend(run.and_then(|run| run.figures));
            }
        }
        outcome
    }

    async fn measure(&self, entrant: &Entrant) -> anyhow::Result<Run> {
        // Nothing else is under way that it could hold up.
        let relays = Running::start(&entrant.relay, &self.programs)?;
        let run = async {
            Ok(match entrant.task {
                Task::Flow(flow) => {
                    let mut figures = self.flow(&relays, &flow).await?;
                    let sample = Sample::of(&figures);
                    kept(flow.rate, &sample)?;
                    Run {
                        sample,
                        figures: figures.pop().filter(|_| figures.is_empty()),
                    }
                }
                Task::Idle { clients, count } => idle(&relays, clients, count).await?.into(),
                Task::Accept { connections } => accept(&relays, connections).await?.into(),
                Task::Conversations { count } => conversations(&relays, count).await?.into(),
            })
        };
        match timeout(self.measured + SLACK, run).await {
            Ok(run) => run,
            Err(_) => bail!("it does not end"),
        }
    }

    /// Has messages flow between relays: by `trunkline bench`, more than one where a process may not have enough files open; where
    /// there are several ways to go at once, by this process, so that it is one too.
    async fn flow(&self, relays: &Running, flow: &Flow) -> anyhow::Result<Vec<Figures>> {
        let targets = relays.targets(flow.clients);
        let from_each = || targets.iter().cloned();
        let ways: Vec<_> = match flow.ways {
            Ways::One => targets
                .first()
                .cloned()
                .zip(targets.last().cloned())
                .into_iter()
                .collect(),
            Ways::Ring => from_each().zip(from_each().cycle().skip(1)).collect(),
        };
        let parts = parts(flow.pairs, self.open_files);
        let loads = ways.len() * parts;
        let share = |all: usize, load: usize| all / loads + usize::from(load < all % loads);
        let mut running = JoinSet::new();
        for _ in 0..parts {
            for (from, to) in &ways {
                let pairs = share(flow.pairs, running.len());
                let workload = Workload {
                    from: from.clone(),
                    to: to.clone(),
                    pairs,
                    size: flow.size,
                    window: flow.window,
                    rate: flow.rate.map(|rate| rate * pairs as u64 / flow.pairs as u64),
                    extent: Extent::Time {
                        warm_up: if parts == 1 { WARM_UP } else { WARM_UP_TOGETHER },
                        measured: self.measured,
                    },
                    pids: relays.ids(),
                    certs: relays.certs(),
                };
                if ways.len() > 1 && parts == 1 {
                    running.spawn(async move { Ok(load::run(&workload, |_| ()).await?) });
                } else {
                    let program = self.programs.trunkline.clone();
                    running.spawn(async move { elsewhere(&program, &workload).await });
                }
            }
        }
        let mut all = Vec::with_capacity(loads);
        while let Some(figures) = running.join_next().await {
            all.push(figures??);
        }
        Ok(all)
    }
}

/// Whether a load kept to its rate: one that first could not, and made up for it later, says nothing of that rate.
fn kept(rate: Option<u64>, sample: &Sample) -> anyhow::Result<()> {
    let Some(rate) = rate else { return Ok(()) };
    let went = sample.value(Quantity::Messages).unwrap_or_default();
    ensure!(
        (went / rate as f64 - 1.0).abs() <= KEPT,
        "the rate was not kept: {went:.0} a second, and not {rate}"
    );
    Ok(())
}

impl From<Sample> for Run {
    fn from(sample: Sample) -> Self {
        Self { sample, figures: None }
    }
}

/// Runs a load by `trunkline bench`.
async fn elsewhere(trunkline: &Path, workload: &Workload) -> anyhow::Result<Figures> {
    let output = Command::new(trunkline)
        .args(arguments(workload)?)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("can't run {}", trunkline.display()))?;
    // It exits with 1 when something was lost, which the figures say.
    serde_json::from_slice(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("no figures of trunkline bench ({}): {}", output.status, said.trim())
    })
}

/// What tells `trunkline` to run a load.
fn arguments(workload: &Workload) -> anyhow::Result<Vec<OsString>> {
    let Extent::Time { warm_up, measured } = workload.extent else {
        bail!("a load without a time");
    };
    let mut arguments: Vec<OsString> = vec!["bench".into(), "--json".into()];
    let mut flag = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    flag("--pairs", workload.pairs.to_string().into());
    flag("--size", workload.size.to_string().into());
    flag("--window", workload.window.to_string().into());
    flag("--warm-up", warm_up.as_secs_f64().to_string().into());
    flag("--duration", measured.as_secs_f64().to_string().into());
    if let Some(rate) = workload.rate {
        flag("--rate", rate.to_string().into());
    }
    // Other relays have none.
    if workload.from.transport == Transport::Quic {
        flag("--certs", workload.certs.clone().into());
    }
    for pid in &workload.pids {
        flag("--pid", pid.to_string().into());
    }
    arguments.extend([workload.from.to_string().into(), workload.to.to_string().into()]);
    Ok(arguments)
}

/// Memory of all relays together, in KiB.
fn memory(relays: &Running) -> anyhow::Result<f64> {
    let mut sum = 0;
    for pid in relays.ids() {
        sum += Usage::of(pid)?.memory;
    }
    Ok(sum as f64 / KIB)
}

/// What memory has grown by for each of so many.
async fn growth(relays: &Running, before: f64, count: usize) -> anyhow::Result<f64> {
    sleep(SETTLED).await;
    Ok((memory(relays)? - before) / count as f64)
}

async fn idle(relays: &Running, clients: Clients, count: usize) -> anyhow::Result<Sample> {
    let at = *relays.at(clients).first().context("no relay")?;
    let before = memory(relays)?;
    let each = match clients {
        Clients::Tcp => {
            let _open = crowd::tcp(at, relays.speech(), count, Until::Ready).await?;
            growth(relays, before, count).await?
        }
        Clients::Quic => {
            let _open = crowd::quic(at, &relays.certs(), count).await?;
            growth(relays, before, count).await?
        }
    };
    Ok(Sample {
        values: vec![(Quantity::ClientMemory, each)],
        ..Sample::default()
    })
}

async fn accept(relays: &Running, connections: usize) -> anyhow::Result<Sample> {
    let at = *relays.at(Clients::Tcp).first().context("no relay")?;
    let id = *relays.ids().first().context("no relay")?;
    let cpu = || -> anyhow::Result<[f64; 2]> {
        Ok([Usage::of(id)?, Usage::of(std::process::id())?].map(|usage| usage.cpu.as_secs_f64()))
    };
    let ([relay, clients], start) = (cpu()?, Instant::now());
    let _open = crowd::tcp(at, relays.speech(), connections, Until::FirstWord).await?;
    let (took, [relay_then, clients_then]) = (start.elapsed().as_secs_f64(), cpu()?);
    let count = connections as f64;
    Ok(Sample {
        values: vec![
            (Quantity::Connections, count / took),
            (Quantity::ConnectionCpu, (relay_then - relay) * 1e6 / count),
            (Quantity::Load, (clients_then - clients) * 100.0 / took),
        ],
        ..Sample::default()
    })
}

async fn conversations(relays: &Running, count: usize) -> anyhow::Result<Sample> {
    let at = relays.at(Clients::Tcp);
    let (from, to) = at.first().zip(at.last()).context("no relays")?;
    let mut receivers = crowd::tcp(*to, relays.speech(), count, Until::Ready).await?;
    let mut senders = crowd::tcp(*from, relays.speech(), count, Until::Ready).await?;
    sleep(SETTLED).await;
    let before = memory(relays)?;
    crowd::greet(&mut senders, &mut receivers).await?;
    let each = growth(relays, before, count).await?;
    Ok(Sample {
        values: vec![(Quantity::ConversationMemory, 1000.0 * each)],
        ..Sample::default()
    })
}

// --- what is told -----------------------------------------------------------------------------------------------------

/// A run in a line.
fn shown(sample: &Sample) -> String {
    let values = sample.values.iter();
    let mut values: Vec<String> = values
        .map(|(quantity, value)| format!("{} {}", quantity.title(), quantity.show(*value)))
        .collect();
    if !sample.flaws.are_none() {
        values.push(format!("{:?}", sample.flaws));
    }
    values.join("; ")
}

/// What a plot shows, and its file.
type Plot = (&'static str, &'static str);

const RATIOS: Plot = (
    "Messages a second, Trunkline's to those of others",
    "benchmarks-throughput.svg",
);
const LATENCY: Plot = ("Latencies at 5,000 messages a second", "benchmarks-latency.svg");
const LARGER: Plot = ("What goes through with larger bodies", "benchmarks-bodies.svg");

/// Draws what there is to draw of these trials; gives what was drawn.
fn draw(dir: &Path, outcomes: &[Outcome<'_>]) -> anyhow::Result<Vec<Plot>> {
    std::fs::create_dir_all(dir).with_context(|| format!("can't make the directory {}", dir.display()))?;
    let mut drawn = Vec::new();
    let bars: Vec<Bar> = outcomes.iter().flat_map(bars).collect();
    if !bars.is_empty() {
        charts::ratios(&dir.join(RATIOS.1), RATIOS.0, &bars)?;
        drawn.push(RATIOS);
    }
    let curves: Vec<(String, &Figures)> = outcomes.iter().flat_map(curves).collect();
    if !curves.is_empty() {
        plot(&dir.join(LATENCY.1), &curves)?;
        drawn.push(LATENCY);
    }
    let bodies = outcomes.iter().find(|outcome| outcome.trial.name == BODIES);
    let points: Vec<(f64, f64)> = bodies
        .into_iter()
        .flat_map(|outcome| SIZES.iter().zip(&outcome.rows))
        .filter_map(|((_, size), row)| Some((*size as f64, row.median(Quantity::Messages)?)))
        .collect();
    if !points.is_empty() {
        charts::bodies(&dir.join(LARGER.1), &points)?;
        drawn.push(LARGER);
    }
    Ok(drawn)
}

/// Ratios of throughput to other relays.
fn bars(outcome: &Outcome<'_>) -> Vec<Bar> {
    let at_full_speed = outcome
        .trial
        .entrants
        .iter()
        .all(|entrant| matches!(entrant.task, Task::Flow(Flow { rate: None, .. })));
    let verdicts = outcome.table().verdicts();
    verdicts
        .into_iter()
        .filter(|verdict| at_full_speed && verdict.quantity == Quantity::Messages)
        .filter_map(|verdict| {
            Some(Bar {
                name: format!("{}: to {}", outcome.trial.title, verdict.to?),
                spread: verdict.spread,
                aim: verdict.bound,
            })
        })
        .collect()
}

/// For each relay at a rate, where relays are compared: the latencies of the round with the median p99.
fn curves<'a>(outcome: &'a Outcome<'_>) -> Vec<(String, &'a Figures)> {
    let trial = outcome.trial;
    let at_a_rate = |entrant: &Entrant| matches!(entrant.task, Task::Flow(Flow { rate: Some(_), .. }));
    if !trial.quantities.contains(&Quantity::P99) || !trial.entrants.iter().all(at_a_rate) {
        return Vec::new();
    }
    let place = trial.title.split(',').next().unwrap_or_default();
    let entrants = trial.entrants.iter().zip(&outcome.figures);
    entrants
        .filter_map(|(entrant, figures)| {
            let rounds = figures.iter().filter_map(|one| Some((one.latency?.p99, one)));
            let mut rounds: Vec<(f64, &Figures)> = rounds.collect();
            rounds.sort_by(|(one, _), (other, _)| one.total_cmp(other));
            let (_, median) = *rounds.get(rounds.len().saturating_sub(1) / 2)?;
            Some((format!("{place}: {}", entrant.label), median))
        })
        .collect()
}

/// How many aims are met, and those that are not.
fn in_short(outcomes: &[Outcome<'_>]) -> String {
    let verdicts = outcomes.iter().flat_map(|outcome| {
        let verdicts = outcome.table().verdicts().into_iter();
        verdicts.map(|verdict| (outcome.trial.title, verdict))
    });
    summary(&verdicts.collect::<Vec<_>>())
}

/// What goes into the document.
fn document(outcomes: &[Outcome<'_>], plots: &[Plot]) -> String {
    let mut text = in_short(outcomes);
    // Writing to a string can't fail.
    for (title, file) in plots {
        let _ = write!(text, "\n![{title}]({file})\n");
    }
    for outcome in outcomes {
        let Trial { name, title, about, .. } = outcome.trial;
        let _ = write!(
            text,
            "\n### {title}\n\n`{name}`: {about}\n\n{}",
            outcome.table().markdown()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use trunkline::bench::Target;
    use trunkline_lab::comparison::Flaws;

    use super::*;

    /// What these rounds of each relay, by how many messages were lost, have shown; `None`: the run failed.
    fn rows(trial: &Trial, rounds: &[&[Option<u64>]]) -> Vec<Row> {
        let entrants = trial.entrants.iter().zip(rounds);
        let row = |(entrant, rounds): (&Entrant, &&[Option<u64>])| Row {
            label: entrant.label.clone(),
            rounds: rounds.iter().map(|lost| lost.map(sample)).collect(),
        };
        entrants.map(row).collect()
    }

    fn sample(lost: u64) -> Sample {
        Sample {
            values: vec![(Quantity::Messages, 1000.0)],
            flaws: Flaws {
                lost,
                ..Flaws::default()
            },
        }
    }

    #[test]
    fn what_is_lost_by_trunkline_fails_and_what_others_lose_is_told() {
        let trials = all();
        let trial = trials.first().unwrap();
        let well = [Some(0), Some(0)];
        for (rounds, is_well) in [
            ([&well, &well, &well], true),
            ([&[Some(0), Some(1)], &well, &well], false),
            ([&[Some(0), None], &well, &well], false),
            ([&well, &[Some(9), Some(0)], &[Some(0), None]], true),
            ([&well, &[None, None], &well], false),
        ] {
            let rows = rows(trial, &rounds.map(|rounds| &rounds[..]));
            let outcome = Outcome {
                trial,
                rows,
                figures: Vec::new(),
            };
            assert_eq!(outcome.is_well(), is_well, "{rounds:?}");
        }
    }

    #[test]
    fn the_document_has_each_table_under_its_title() {
        let trials = all();
        let trial = trials.first().unwrap();
        let outcome = Outcome {
            trial,
            rows: rows(trial, &[&[Some(0)], &[Some(5)], &[None]]),
            figures: Vec::new(),
        };
        let text = document(&[outcome], &[RATIOS]);
        assert!(text.starts_with("0 of 1 aims are met."), "{text}");
        for part in [
            "benchmarks-throughput.svg",
            "\n### Across nodes, 16 pairs\n\n`across`: ",
            "| 5, 0, 0 |",
            "1 of 1 runs failed",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn only_clients_by_quic_are_told_where_certificates_are() {
        let arguments = |url: &str, certs: &str| {
            let target: Target = url.parse().unwrap();
            let workload = Workload {
                from: target.clone(),
                to: target,
                pairs: 1,
                size: 32,
                window: 1,
                rate: Some(5),
                extent: Extent::Time {
                    warm_up: WARM_UP,
                    measured: Duration::from_millis(500),
                },
                pids: vec![7, 8],
                certs: certs.into(),
            };
            let arguments = arguments(&workload).unwrap();
            arguments.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        let head = "bench --json --pairs 1 --size 32 --window 1 --warm-up 1 --duration 0.5 --rate 5";
        assert_eq!(
            arguments("nats://h:1", ""),
            format!("{head} --pid 7 --pid 8 nats://h:1 nats://h:1")
        );
        assert_eq!(
            arguments("quic://h:1", "certs"),
            format!("{head} --certs certs --pid 7 --pid 8 quic://h:1 quic://h:1")
        );
    }

    #[test]
    fn a_workload_that_is_not_there_is_no_workload() {
        let chosen = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            chosen(all(), &names).map(|trials| trials.len())
        };
        assert_eq!(chosen(&[]).unwrap(), all().len());
        assert_eq!(chosen(&["quic", "across"]).unwrap(), 2);
        assert!(chosen(&["quick"]).unwrap_err().to_string().contains("quick"));
    }
}
