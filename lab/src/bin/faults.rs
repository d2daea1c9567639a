//! The fault run: two nodes and their clients as processes of their own, faults drawn from a seed, and at the end a
//! judgement of what the clients wrote down. Ends with 1 if a promise was broken, and keeps all logs then.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, timeout};
use trunkline_checker::log::{Line, by_code, merge};
use trunkline_checker::{Event, Finding, Outcome, Rules, Tally, check};
use trunkline_lab::fleet::{Client, ClientSetup, Hearing, Node, NodeSetup, Said};
use trunkline_lab::journal::{Journal, now};
use trunkline_lab::proxy::Proxy;
use trunkline_lab::schedule::{Fault, Kind, Lane, draw};
use trunkline_lab::wire::Path as WirePath;

/// Where clients are, and by what: node, and whether by QUIC. Each lane of the schedule has all four sorts.
const PLACES: [(usize, bool); 8] = [
    (0, false),
    (0, false),
    (0, true),
    (0, true),
    (1, false),
    (1, false),
    (1, true),
    (1, true),
];

/// What the nodes are called.
const NAMES: [&str; 2] = ["127.0.0.1:1", "127.0.0.1:2"];

/// How long a node may take to notice that a client was killed.
const NOTICE: Duration = Duration::from_millis(100);

/// Beyond the nodes' limits: how long a message may take because a process was stopped, or the machine is busy.
const MARGIN: Duration = Duration::from_secs(30);

/// How long clients and nodes may take to end once they are told to.
const ENDING: Duration = Duration::from_secs(30);

/// How long clients converse before the first fault, and after the last.
const CALM: Duration = Duration::from_secs(2);

/// Play faults to two nodes and their clients, and judge what the clients saw
#[derive(Debug, Parser)]
struct Args {
    /// The node's program: `trunkline`, or one that takes the same arguments
    #[arg(long, value_name = "FILE", required_unless_present = "judge")]
    node: Option<PathBuf>,

    /// The client's program
    #[arg(long, value_name = "FILE", required_unless_present = "judge")]
    client: Option<PathBuf>,

    /// Play nothing; judge the logs of an earlier run
    #[arg(long)]
    judge: bool,

    /// How many faults
    #[arg(long, value_name = "N", default_value_t = 200)]
    faults: usize,

    /// What the faults are drawn from [default: by chance]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// The longest fault, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    longest: u64,

    /// Messages a second from each client
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    rate: u32,

    /// The nodes' `--link-wait`, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    link_wait: u64,

    /// The nodes' `--resume-grace`, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    resume_grace: u64,

    /// The nodes' `--stall`, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stall: u64,

    /// An empty directory for certificates and logs, or one to be made
    #[arg(long, value_name = "DIR")]
    logs: PathBuf,

    /// Where to write the table to as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// All that runs.
struct World {
    args: Args,
    journal: Journal,
    nodes: [RefCell<Option<Node>>; 2],
    clients: [RefCell<Option<Client>>; PLACES.len()],
    /// The wire between the nodes, as the first node dials the second and as the second dials the first.
    links: [Proxy; 2],
    /// A wire for each QUIC client.
    wires: Vec<Option<Proxy>>,
    said: UnboundedSender<Said>,
    numbers: Cell<u32>,
    /// The last faults are over: no new clients.
    ending: Cell<bool>,
    changed: Notify,
    /// Faults that were played, and for how long in all.
    played: RefCell<BTreeMap<Kind, (u32, Duration)>>,
    /// What went wrong with the processes themselves.
    complaints: RefCell<Vec<String>>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.judge {
        let judged = judge(&args.logs, rules(&args))?;
        print!("{}", messages_table(&judged, rules(&args))?);
        return Ok(verdict(&[], &judged, &args.logs));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            code = run(args) => code,
            // What runs ends with its handles.
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("seed {seed}, logs in {}", args.logs.display());
    std::fs::create_dir_all(&args.logs)?;
    let logs = args.logs.clone();
    let rules = rules(&args);
    let quic = PLACES.map(|(_, quic)| quic);
    let plan = draw(seed, args.faults, Duration::from_secs(args.longest), &quic);
    let out = args.out.clone();
    let started = Instant::now();
    let (world, hearing) = World::start(args, seed).await?;
    {
        let mut plan = plan.into_iter();
        let mut next = || plan.next().unwrap_or((Lane::Link, Vec::new()));
        let [one, two, three, four] = [next(), next(), next(), next()];
        let play = async {
            sleep(CALM).await;
            tokio::try_join!(world.play(one), world.play(two), world.play(three), world.play(four))?;
            world.end().await
        };
        tokio::select! {
            played = play => played?,
            failed = world.hear(hearing) => return failed.map(|()| ExitCode::FAILURE),
        }
    }
    let complaints = world.complaints.take();
    let played = world.played.take();
    drop(world);

    let judged = judge(&logs, rules)?;
    let table = table(seed, started.elapsed(), &played, &judged, rules)?;
    print!("{table}");
    if let Some(out) = out {
        std::fs::write(&out, &table).with_context(|| format!("can't write {}", out.display()))?;
    }
    Ok(verdict(&complaints, &judged, &logs))
}

/// Says what is wrong, if anything is.
fn verdict(complaints: &[String], judged: &Judged, logs: &Path) -> ExitCode {
    for complaint in complaints {
        println!("wrong: {complaint}");
    }
    for finding in judged.findings.iter().take(50) {
        println!("breach: {finding:?}");
    }
    let nothing = judged.tally.sent == 0;
    if nothing {
        println!("wrong: nothing was sent");
    }
    if complaints.is_empty() && judged.findings.is_empty() && !nothing {
        return ExitCode::SUCCESS;
    }
    println!("the logs are in {}", logs.display());
    ExitCode::FAILURE
}

fn rules(args: &Args) -> Rules {
    Rules {
        deadline: u64::try_from(deadline(args).as_nanos()).ok(),
        only_deaths_excuse: true,
        notice: u64::try_from(NOTICE.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// Within how long each message is to be answered.
fn deadline(args: &Args) -> Duration {
    Duration::from_secs(args.link_wait + args.resume_grace + args.stall) + MARGIN
}

impl World {
    async fn start(args: Args, seed: u64) -> anyhow::Result<(Self, Hearing)> {
        let certs = args.logs.join("certs");
        let names = NAMES.map(str::parse).into_iter().collect::<Result<Vec<_>, _>>()?;
        trunkline::certs::make(&certs, &names, "faults")?;
        // Where the nodes are is not known before they are up, and they are to know each other from then on.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let setup = |index: usize, name: &str, peers: Vec<String>| NodeSetup {
            program: args.node.clone().unwrap_or_default(),
            name: name.to_owned(),
            certs: certs.clone(),
            ports: [nowhere; 3],
            peers,
            limits: [
                ("--link-wait", args.link_wait),
                ("--resume-grace", args.resume_grace),
                ("--stall", args.stall),
            ]
            .into_iter()
            .flat_map(|(flag, seconds)| [flag.to_owned(), seconds.to_string()])
            .collect(),
            log: args.logs.join(format!("node-{index}.log")),
        };
        let [first, second] = NAMES;
        let links = [Proxy::to(nowhere, seed).await?, Proxy::to(nowhere, !seed).await?];
        let [to_second, to_first] = links.each_ref().map(Proxy::addr);
        let nodes = [
            Node::start_anywhere(setup(0, first, vec![format!("{second}={to_second}")])).await?,
            Node::start_anywhere(setup(1, second, vec![format!("{first}={to_first}")])).await?,
        ];
        let [[_, _, first_link], [_, _, second_link]] = nodes.each_ref().map(|node| node.setup.ports);
        for (link, port) in links.iter().zip([second_link, first_link]) {
            link.aim(port);
        }
        let quic_ports = nodes.each_ref().map(|node| node.setup.ports[1]);
        let mut wires = Vec::new();
        for (place, (node, quic)) in (0..).zip(PLACES) {
            let port = quic_ports.get(node).copied().filter(|_| quic);
            wires.push(match port {
                Some(port) => Some(Proxy::to(port, seed + 1 + place).await?),
                None => None,
            });
        }
        let (said, hearing) = unbounded_channel();
        let world = Self {
            journal: Journal::open(&args.logs.join("faults.journal"))?,
            args,
            nodes: nodes.map(|node| RefCell::new(Some(node))),
            clients: Default::default(),
            links,
            wires,
            said,
            numbers: Cell::new(0),
            ending: Cell::new(false),
            changed: Notify::new(),
            played: RefCell::default(),
            complaints: RefCell::default(),
        };
        for place in 0..PLACES.len() {
            world.start_client(place)?;
        }
        Ok((world, hearing))
    }

    fn node(&self, index: usize) -> &RefCell<Option<Node>> {
        let [first, second] = &self.nodes;
        if index == 0 { first } else { second }
    }

    /// Does something with the client in a place, if there is one.
    fn with_client<T>(&self, place: usize, work: impl FnOnce(&mut Client) -> T) -> Option<T> {
        self.clients.get(place)?.borrow_mut().as_mut().map(work)
    }

    /// A new client takes the place of an earlier one.
    fn start_client(&self, place: usize) -> anyhow::Result<()> {
        let (Some(&(node, _)), Some(slot)) = (PLACES.get(place), self.clients.get(place)) else {
            return Ok(());
        };
        self.numbers.set(self.numbers.get() + 1);
        let way = match self.wires.get(place) {
            Some(Some(wire)) => ["--quic".to_owned(), wire.addr().to_string()],
            _ => {
                let tcp = self.tcp_port(node).context("a node is gone for good")?;
                ["--tcp".to_owned(), tcp.to_string()]
            }
        };
        let setup = ClientSetup {
            program: self.args.client.clone().unwrap_or_default(),
            number: self.numbers.get(),
            node,
            way,
            certs: self.args.logs.join("certs"),
            rate: self.args.rate,
            logs: self.args.logs.clone(),
        };
        *slot.borrow_mut() = Some(Client::start(&setup, &self.said)?);
        Ok(())
    }

    fn tcp_port(&self, node: usize) -> Option<SocketAddr> {
        let node = self.node(node).borrow();
        let [tcp, ..] = node.as_ref()?.setup.ports;
        Some(tcp)
    }

    /// Hears what clients say. Ends only with an error.
    async fn hear(&self, mut hearing: Hearing) -> anyhow::Result<()> {
        while let Some(Said { number, line }) = hearing.recv().await {
            let place = (0..PLACES.len())
                .find(|&place| self.with_client(place, |client| client.number == number) == Some(true));
            // One that was killed, and has a successor.
            let Some(place) = place else {
                continue;
            };
            match line.as_deref().map(|line| line.split_once(' ').unwrap_or((line, ""))) {
                Some(("address", address)) => {
                    self.with_client(place, |client| client.address = Some(address.to_owned()));
                    self.introduce();
                    if self.ending.get() {
                        self.with_client(place, |client| client.tell("quiet"));
                    }
                }
                Some(("idle", _)) => {
                    self.with_client(place, |client| client.idle = true);
                }
                Some(_) => bail!("a client said {line:?}"),
                None => {
                    if let Some(Err(error)) = self.with_client(place, Client::ended) {
                        self.complain(format!("{error:#}"));
                    }
                    if let Some(slot) = self.clients.get(place) {
                        slot.borrow_mut().take();
                    }
                    if !self.ending.get() {
                        self.start_client(place)?;
                    }
                }
            }
            self.changed.notify_one();
        }
        Ok(())
    }

    fn complain(&self, complaint: String) {
        self.complaints.borrow_mut().push(complaint);
    }

    /// Tells each client the addresses of all others.
    fn introduce(&self) {
        let address = |place| self.with_client(place, |client| client.address.clone()).flatten();
        let addresses: Vec<Option<String>> = (0..PLACES.len()).map(address).collect();
        for place in 0..PLACES.len() {
            let mut line = "to".to_owned();
            for (other, address) in addresses.iter().enumerate() {
                if let Some(address) = address.as_ref().filter(|_| other != place) {
                    line.push(' ');
                    line.push_str(address);
                }
            }
            self.with_client(place, |client| client.tell(&line));
        }
    }

    /// Plays the faults of one lane.
    async fn play(&self, (_, faults): (Lane, Vec<Fault>)) -> anyhow::Result<()> {
        for fault in faults {
            sleep(fault.gap).await;
            println!(
                "{:>9.3} {} for {:.1} s{}",
                Duration::from_nanos(now()).as_secs_f64(),
                fault.kind,
                fault.length.as_secs_f64(),
                match fault.kind {
                    Kind::NodeKilled | Kind::NodeStopped => format!(", node {}", fault.target),
                    Kind::Loss | Kind::Reorder | Kind::Duplicate => format!(", {:.0} %", fault.share * 100.0),
                    kind if kind >= Kind::ClientStopped => format!(", place {}", fault.target),
                    _ => String::new(),
                }
            );
            self.one(&fault).await.with_context(|| fault.kind.to_string())?;
            let mut played = self.played.borrow_mut();
            let (count, length) = played.entry(fault.kind).or_default();
            *count += 1;
            *length += fault.length;
        }
        Ok(())
    }

    async fn one(&self, fault: &Fault) -> anyhow::Result<()> {
        let Fault {
            kind,
            length,
            target,
            share,
            ..
        } = *fault;
        match kind {
            Kind::Loss => self.on_link(length, |path| path.settings.loss = share).await,
            Kind::Duplicate => self.on_link(length, |path| path.settings.duplicate = share).await,
            Kind::Reorder => {
                let reorder = |path: &mut WirePath| {
                    path.settings.reorder = share;
                    path.settings.reorder_by = Duration::from_millis(20);
                };
                self.on_link(length, reorder).await;
            }
            Kind::Jitter => {
                let jitter = |path: &mut WirePath| {
                    path.settings.delay = Duration::from_millis(40);
                    path.settings.jitter = Duration::from_millis(30);
                };
                self.on_link(length, jitter).await;
            }
            Kind::ShortCut | Kind::LongCut => self.on_link(length, |path| path.cut = true).await,
            Kind::CutThere => self.on_links(length, |[there, _]| there.cut = true).await,
            Kind::CutBack => self.on_links(length, |[_, back]| back.cut = true).await,
            Kind::NodeKilled => self.restart(&[target], length).await?,
            Kind::BothNodesKilled => self.restart(&[0, 1], length).await?,
            Kind::NodeStopped => {
                let signal = |signal| {
                    self.node(target)
                        .borrow()
                        .as_ref()
                        .map(|node| node.signal(signal))
                        .transpose()
                };
                let node = target;
                self.journal.write(Event::NodeStopped { node })?;
                signal(Signal::SIGSTOP)?;
                sleep(length).await;
                signal(Signal::SIGCONT)?;
                self.journal.write(Event::NodeResumed { node })?;
            }
            Kind::ClientStopped => {
                let number = self.with_client(target, |client| client.signal(Signal::SIGSTOP).map(|()| client.number));
                let number = number.transpose()?;
                sleep(length).await;
                let go_on = |client: &mut Client| match Some(client.number) == number {
                    true => client.signal(Signal::SIGCONT),
                    false => Ok(()),
                };
                self.with_client(target, go_on).transpose()?;
            }
            Kind::ClientKilled => {
                let known = self.with_client(target, |client| client.address.clone()).flatten();
                if let Some(client) = known.clone() {
                    self.journal.write(Event::Gone { client })?;
                }
                self.with_client(target, Client::kill).transpose()?;
                // It may have joined without being heard. Then nobody sends to it, and this is not too late.
                if known.is_none()
                    && let Some(client) = self.with_client(target, |client| joined(&client.journal)).flatten()
                {
                    self.journal.write(Event::Gone { client })?;
                }
                self.start_client(target)?;
                self.introduce();
            }
            Kind::ClientCutOff => {
                self.on_wire_of(target, length, |path| path.cut = true).await;
            }
            Kind::ClientLoss => {
                self.on_wire_of(target, length, |path| path.settings.loss = share).await;
            }
            Kind::ClientRebound => {
                self.with_client(target, |client| client.tell("rebind"));
            }
            Kind::SlowReader => {
                self.with_client(target, |client| client.tell("slow 200"));
                sleep(length).await;
                self.with_client(target, |client| client.tell("slow 0"));
            }
        }
        Ok(())
    }

    /// Changes the link's wire, both ways, for a while.
    async fn on_link(&self, length: Duration, change: impl Fn(&mut WirePath)) {
        self.on_links(length, |paths| paths.into_iter().for_each(&change)).await;
    }

    /// Changes the link's wire, from the first node to the second and back, for a while.
    async fn on_links(&self, length: Duration, change: impl Fn([&mut WirePath; 2])) {
        let [dialled_by_first, dialled_by_second] = &self.links;
        let there = on_wire(dialled_by_first, length, |[there, back]| change([there, back]));
        let back = on_wire(dialled_by_second, length, |[back, there]| change([there, back]));
        tokio::join!(there, back);
    }

    /// Changes the wire of a QUIC client, both ways, for a while.
    async fn on_wire_of(&self, place: usize, length: Duration, change: impl Fn(&mut WirePath)) {
        if let Some(Some(wire)) = self.wires.get(place) {
            on_wire(wire, length, |paths| paths.iter_mut().for_each(change)).await;
        }
    }

    /// Kills nodes, and starts them again after a while.
    async fn restart(&self, indices: &[usize], length: Duration) -> anyhow::Result<()> {
        for &node in indices {
            // Before it happens: what it explains comes after.
            self.journal.write(Event::NodeDied { node })?;
        }
        let mut setups = Vec::new();
        for &index in indices {
            if let Some(node) = self.node(index).borrow_mut().as_mut() {
                if node.has_ended()? {
                    self.complain(format!("node {index} ended by itself"));
                }
                node.kill()?;
                setups.push((index, node.setup.clone()));
            }
        }
        sleep(length).await;
        for (index, setup) in setups {
            let node = Node::start(setup).await?;
            *self.node(index).borrow_mut() = Some(node);
        }
        Ok(())
    }

    /// Waits until something gets from each node to each again. Lets everything that was sent end, and then the clients and
    /// the nodes.
    async fn end(&self) -> anyhow::Result<()> {
        let healed = now();
        sleep(CALM).await;
        let by = Instant::now() + deadline(&self.args);
        loop {
            let apart = self.apart(healed)?;
            if apart.is_empty() {
                break;
            }
            if Instant::now() > by {
                self.complain(format!(
                    "nothing is delivered from node to node after all is healed: {apart:?}"
                ));
                break;
            }
            sleep(CALM).await;
        }
        self.ending.set(true);
        self.all(|client| client.tell("quiet"));
        let all_idle = || (0..PLACES.len()).all(|place| self.with_client(place, |client| client.idle).unwrap_or(true));
        if timeout(deadline(&self.args), self.until(all_idle)).await.is_err() {
            self.complain("not all was answered in time".to_owned());
        }
        self.all(|client| client.tell("stop"));
        let all_gone = || (0..PLACES.len()).all(|place| self.with_client(place, |_| ()).is_none());
        if timeout(ENDING, self.until(all_gone)).await.is_err() {
            self.complain("not all clients ended by themselves".to_owned());
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(mut node) = node.borrow_mut().take() else {
                continue;
            };
            if node.has_ended()? {
                self.complain(format!("node {index} ended by itself"));
                continue;
            }
            node.signal(Signal::SIGTERM)?;
            let deadline = Instant::now() + ENDING;
            while !node.has_ended()? {
                if Instant::now() > deadline {
                    self.complain(format!("node {index} did not end by itself"));
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// From which node to which nothing was delivered that was sent since then, by what the clients wrote down that are
    /// there now.
    fn apart(&self, since: u64) -> anyhow::Result<BTreeSet<(usize, usize)>> {
        let mut apart: BTreeSet<(usize, usize)> = [(0, 0), (0, 1), (1, 0), (1, 1)].into();
        let mut nodes = HashMap::new();
        for (place, (node, _)) in PLACES.into_iter().enumerate() {
            let address = self.with_client(place, |client| client.address.clone()).flatten();
            nodes.extend(address.map(|address| (address, node)));
        }
        for (place, (from, _)) in PLACES.into_iter().enumerate() {
            let Some(journal) = self.with_client(place, |client| client.journal.clone()) else {
                continue;
            };
            let mut sent = HashMap::new();
            for line in lines_of(&journal)?.into_iter().filter(|line| line.at >= since) {
                match line.event {
                    Event::Sent { message, to, .. } => {
                        sent.insert(message, to);
                    }
                    Event::Told {
                        message,
                        outcome: Outcome::Delivered,
                    } => {
                        if let Some(&to) = sent.get(&message).and_then(|to| nodes.get(to)) {
                            apart.remove(&(from, to));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(apart)
    }

    fn all(&self, work: impl Fn(&mut Client)) {
        for place in 0..PLACES.len() {
            self.with_client(place, &work);
        }
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        while !holds() {
            self.changed.notified().await;
        }
    }
}

/// Changes a wire for a while. Then it is perfect again.
async fn on_wire(wire: &Proxy, length: Duration, change: impl FnOnce(&mut [WirePath; 2])) {
    wire.change(change);
    sleep(length).await;
    wire.change(|paths| {
        for path in paths {
            path.cut = false;
            path.settings = Default::default();
        }
    });
}

/// The whole lines of a journal, which may be written to meanwhile, or not be there yet.
fn lines_of(journal: &Path) -> anyhow::Result<Vec<Line>> {
    let text = match std::fs::read_to_string(journal) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("can't read {}", journal.display()))?,
    };
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    Ok(whole.lines().map(str::parse).collect::<Result<_, _>>()?)
}

/// The address of the client whose journal this is; `None` if it has not joined.
fn joined(journal: &Path) -> Option<String> {
    match lines_of(journal).ok()?.into_iter().next()?.event {
        Event::Joined { client, .. } => Some(client),
        _ => None,
    }
}

/// What is found in the logs.
struct Judged {
    tally: Tally,
    findings: Vec<Finding>,
    codes: BTreeMap<(&'static str, String), u64>,
    clients: usize,
}

fn judge(logs: &Path, rules: Rules) -> anyhow::Result<Judged> {
    let mut texts = Vec::new();
    let mut paths = BTreeSet::new();
    for entry in std::fs::read_dir(logs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "journal") {
            paths.insert(path);
        }
    }
    for path in paths {
        texts.push(std::fs::read_to_string(path)?);
    }
    let lines = merge(texts.iter().map(String::as_str))?;
    let codes = by_code(&lines)
        .into_iter()
        .map(|((status, code), count)| ((status, code.to_owned()), count))
        .collect();
    let clients = lines
        .iter()
        .filter(|line| matches!(line.event, Event::Joined { .. }))
        .count();
    let (tally, findings) = check(lines.into_iter().map(|line| (line.at, line.event)), rules);
    Ok(Judged {
        tally,
        findings,
        codes,
        clients,
    })
}

fn table(
    seed: u64,
    took: Duration,
    played: &BTreeMap<Kind, (u32, Duration)>,
    judged: &Judged,
    rules: Rules,
) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let faults: u32 = played.values().map(|(count, _)| count).sum();
    writeln!(
        out,
        "\nSeed {seed}; {:.0} s; {} clients, {} at a time.\n",
        took.as_secs_f64(),
        judged.clients,
        PLACES.len()
    )?;
    writeln!(out, "| fault | times | seconds in all |\n|---|--:|--:|")?;
    for (kind, (count, length)) in played {
        writeln!(out, "| {kind} | {count} | {:.0} |", length.as_secs_f64())?;
    }
    writeln!(out, "| {} kinds | {faults} | |\n", played.len())?;
    out.push_str(&messages_table(judged, rules)?);
    Ok(out)
}

fn messages_table(judged: &Judged, rules: Rules) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let tally = &judged.tally;
    let seconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
    writeln!(out, "| messages | |\n|---|--:|")?;
    writeln!(out, "| sent | {} |\n| seen | {} |", tally.sent, tally.seen)?;
    writeln!(out, "| delivered | {} |", tally.delivered)?;
    for ((status, code), count) in &judged.codes {
        writeln!(out, "| {status}: {code} | {count} |")?;
    }
    writeln!(
        out,
        "| the sender was gone before it could be told | {} |",
        tally.nobody_to_tell
    )?;
    writeln!(
        out,
        "| delivered to the connection of a TCP client that was then gone | {} |",
        tally.unverifiable
    )?;
    writeln!(
        out,
        "| slowest answer, s | {:.1} (within {:.0}) |\n",
        seconds(tally.slowest),
        seconds(rules.deadline.unwrap_or_default())
    )?;
    let mut breaches = BTreeMap::new();
    for finding in &judged.findings {
        *breaches.entry(finding.breach).or_insert(0) += 1;
    }
    writeln!(out, "Breaches: {}.", judged.findings.len())?;
    for (breach, count) in breaches {
        writeln!(out, "- {breach}: {count}")?;
    }
    Ok(out)
}
