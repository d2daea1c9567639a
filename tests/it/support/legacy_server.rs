//! An existing server as `docs/protocol.md` describes it, with all its faults.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use trunkline::NodeName;

/// A server that greets, takes a line at a time, drops lines that arrive together, prints whatever `from` claims, dials
/// anew for each message to another server, and says nothing to anyone of what went wrong.
#[derive(Debug)]
pub(crate) struct LegacyServer {
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    name: NodeName,
    /// How long it holds a sender whose message it has passed on.
    hold: Duration,
    /// How much later than the others it reads each other connection.
    lag: Duration,
    clients: Mutex<HashMap<String, UnboundedSender<Vec<u8>>>>,
    /// Whether it reads at all.
    reads: watch::Sender<bool>,
    /// How many connections it has taken.
    taken: AtomicUsize,
    /// The lines it has read, those that it dropped not among them.
    lines: Mutex<Vec<String>>,
}

impl LegacyServer {
    /// A server on a port that the system chooses.
    pub(crate) async fn start(hold: Duration, lag: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(State {
            name: listener.local_addr().unwrap().into(),
            hold,
            lag,
            clients: Mutex::default(),
            reads: watch::Sender::new(true),
            taken: AtomicUsize::new(0),
            lines: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&state)));
        Self { state, _tasks: tasks }
    }

    pub(crate) fn name(&self) -> &NodeName {
        &self.state.name
    }

    /// Whether it reads what comes on its connections from now on.
    pub(crate) fn set_reads(&self, reads: bool) {
        self.state.reads.send_replace(reads);
    }

    /// How many connections it has taken.
    pub(crate) fn taken(&self) -> usize {
        self.state.taken.load(Ordering::SeqCst)
    }

    /// The lines it has read.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.state.lines.lock().clone()
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut sessions = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let number = state.taken.fetch_add(1, Ordering::SeqCst);
        let (reader, writer) = socket.into_split();
        let (sender, receiver) = unbounded_channel();
        let id: String = (0..6).map(|_| rand::random_range('1'..='9')).collect();
        sender
            .send(format!("you is  : {}:{id}\r\n", state.name).into_bytes())
            .unwrap();
        state.clients.lock().insert(id.clone(), sender);
        sessions.spawn(write(writer, receiver));
        sessions.spawn(read(reader, number, id, Arc::clone(&state)));
    }
}

async fn write(mut writer: OwnedWriteHalf, mut queue: UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read(mut reader: OwnedReadHalf, number: usize, id: String, state: Arc<State>) {
    let mut reads = state.reads.subscribe();
    if number.is_multiple_of(2) {
        sleep(state.lag).await;
    }
    let mut line = Vec::new();
    loop {
        reads.wait_for(|reads| *reads).await.unwrap();
        match reader.read_buf(&mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) if !line.ends_with(b"\n") => continue,
            Ok(_) => {}
        }
        let is_one = line.iter().filter(|&&byte| byte == b'\n').count() == 1;
        if is_one && let Ok(Value::Object(fields)) = serde_json::from_slice(&line) {
            state.lines.lock().push(String::from_utf8_lossy(&line).into_owned());
            pass_on(&line, &fields, &state).await;
        }
        line.clear();
    }
    state.clients.lock().remove(&id);
}

async fn pass_on(line: &[u8], fields: &Map<String, Value>, state: &State) {
    let field = |name: &str| {
        let value = fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        value.and_then(|(_, value)| value.as_str()).unwrap_or_default()
    };
    let Some((node, id)) = field("to").rsplit_once(':') else {
        return;
    };
    if field("cmd") != "sendMsg" {
        return;
    }
    if node == state.name.as_str() {
        if let Some(client) = state.clients.lock().get(id) {
            let said = format!("{} say : {}\r\n", field("from"), field("body"));
            let _ = client.send(said.into_bytes());
        }
    } else if let Ok(mut socket) = TcpStream::connect(node).await {
        // The greeting is not even read, so that the connection ends in a reset.
        let _ = socket.write_all(line).await;
        sleep(state.hold).await;
    }
}
