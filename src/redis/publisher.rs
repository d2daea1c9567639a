//! Publishing: one connection to each server that something is published at.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::connection::{Connection, SILENCE, silent};
use super::error::BusError;
use super::lanes::Ended;
use super::shared::{PATIENCE, Shared, Trouble, backoff};
use crate::address::HostPort;
use crate::wire::resp::write_command;

/// How many bytes are gathered for one write, when so many wait.
const GATHER: usize = 256 * 1024;

/// How long a connection may be idle before it is asked whether it still lives.
const IDLE: Duration = Duration::from_secs(1);

/// How often is looked for what has waited too long while there is no connection.
const LOOK: Duration = Duration::from_millis(250);

/// After how long a connection counts as good.
const GOOD: Duration = Duration::from_secs(1);

/// Has a task look after each server, until the node has stopped.
pub(super) async fn run(shared: Arc<Shared>, tracker: TaskTracker) {
    let attending = async {
        loop {
            let unattended = shared.lanes.lock().unattended();
            for (at, wake) in unattended {
                tracker.spawn(attend(Arc::clone(&shared), at, wake));
            }
            shared.attend.notified().await;
        }
    };
    tokio::select! {
        () = shared.stopped() => {}
        () = attending => {}
    }
    shared.close();
}

/// Looks after one server.
async fn attend(shared: Arc<Shared>, at: HostPort, wake: Arc<Notify>) {
    tokio::select! {
        () = shared.stopped() => {}
        () = connect(&shared, &at, &wake) => {}
    }
}

/// Keeps up a connection as long as the server has a slot.
async fn connect(shared: &Shared, at: &HostPort, wake: &Notify) {
    let (mut backoff, mut trouble) = (backoff(), Trouble::default());
    let mut last = BusError::Unreachable(at.clone(), "there was no answer yet".to_owned());
    loop {
        let error = match patiently(shared, at, &last, shared.dialler.dial(at)).await {
            Ok(mut connection) => {
                let begun = Instant::now();
                let error = serve(shared, &mut connection, wake).await;
                let ended = shared.lanes.lock().lost(at, &error);
                Ended::tell(ended);
                if begun.elapsed() > GOOD {
                    backoff.reset();
                    trouble.is_over();
                }
                error
            }
            Err(error) => error,
        };
        trouble.tell("the bus can't publish", &error);
        if shared.lanes.lock().retire(at) {
            return;
        }
        shared.look.notify_one();
        shared.attend.notify_one();
        patiently(shared, at, &error, sleep(backoff.next(rand::random()))).await;
        last = error;
    }
}

/// Waits for something, while what has waited too long for the server ends for this reason.
async fn patiently<T>(shared: &Shared, at: &HostPort, why: &BusError, what: impl Future<Output = T>) -> T {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(what);
    loop {
        tokio::select! {
            biased;
            done = &mut what => return done,
            _ = look.tick() => {
                let ended = shared.lanes.lock().expire(at, Instant::now(), PATIENCE, why);
                Ended::tell(ended);
            }
        }
    }
}

/// Writes what waits and reads what became of it, until the connection is of no use any more, for the reason given.
async fn serve(shared: &Shared, connection: &mut Connection, wake: &Notify) -> BusError {
    let Connection { at, reader, writer } = connection;
    let at = &*at;
    let (mut commands, mut ended) = (Vec::new(), Vec::new());
    let mut heard = Instant::now();
    loop {
        if writer.output.len() < GATHER {
            let is_awaited = {
                let mut lanes = shared.lanes.lock();
                let is_awaited = lanes.is_awaited(at);
                lanes.take(at, GATHER - writer.output.len(), &mut commands);
                is_awaited
            };
            if !is_awaited && !commands.is_empty() {
                // The wait for an answer begins now.
                heard = Instant::now();
            }
            for command in commands.drain(..) {
                write_command(&mut writer.output, &[command.name, &command.channel, &command.payload]);
            }
        }
        let is_awaited = shared.lanes.lock().is_awaited(at);
        let due = heard + if is_awaited { SILENCE } else { IDLE };
        let is_writing = writer.has_more();
        tokio::select! {
            filled = reader.fill() => {
                if let Err(error) = filled {
                    return error;
                }
                heard = Instant::now();
                let mut moved = false;
                let result = loop {
                    match reader.parse() {
                        Ok(Some(answer)) => match shared.lanes.lock().answered(at, &answer, &mut ended) {
                            Ok(now) => moved |= now,
                            Err(error) => break Err(error),
                        },
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                };
                Ended::tell(std::mem::take(&mut ended));
                if moved {
                    shared.look.notify_one();
                }
                if shared.lanes.lock().has_unattended() {
                    shared.attend.notify_one();
                }
                if let Err(error) = result {
                    return error;
                }
            }
            written = writer.go_on(), if is_writing => {
                if let Err(error) = written {
                    return error;
                }
                if !writer.output.is_empty() {
                    // It takes some: a long payload on a slow way may take its time.
                    heard = Instant::now();
                }
            }
            () = wake.notified(), if writer.output.len() < GATHER => {}
            () = sleep_until(due) => {
                if is_awaited {
                    return silent(at);
                }
                write_command(&mut writer.output, &[b"PING"]);
                shared.lanes.lock().pinged(at);
                heard = Instant::now();
            }
        }
    }
}
