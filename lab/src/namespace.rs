//! Threads in another network namespace. What a thread opens there stays there.

use std::fs::File;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, setns};

/// Makes sleeps of this thread, and of those it starts from now on, precise to a microsecond (50 are usual).
pub fn sleep_precisely() {
    // Without it the figures are a little worse, not wrong.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1000");
}

/// Runs `work` on a thread of its own in the network namespace that `ip netns` knows as `name`.
pub fn spawn_in<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
    let path = format!("/run/netns/{name}");
    let namespace = File::open(&path).with_context(|| format!("no network namespace {path}"))?;
    let name = name.to_owned();
    Ok(std::thread::Builder::new().spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("can't enter the namespace {name}"))?;
        work()
    })?)
}

/// Waits for such a thread.
pub fn join<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}
