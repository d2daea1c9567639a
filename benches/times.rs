//! How long the hot paths take on this machine: `cargo bench`, with names of benchmarks for some of them.
//!
//! `budgets/` counts the instructions of the same workloads, which tells more exactly whether a change made them dearer, and
//! nothing of what a cache miss, a branch or a lock that another thread holds costs. That is seen here.

#![expect(clippy::unwrap_used, reason = "what can't be set up is not to be timed")]

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use tempfile::TempDir;
use trunkline::certs;
use trunkline::hot_paths::{
    Arrival, BATCH, CLUSTER, Clients, FrameToLine, LineToFrame, MESSAGES, Machine, NODES, Shared, Writer, escape, parse,
};

/// How many conversations a workload has: those of the other measurements, and many.
const CONVERSATIONS: [usize; 2] = [16, 1000];

/// The lengths of bodies, in bytes.
const BODIES: [usize; 4] = [16, 128, 1024, 16_384];

/// What bodies are made of.
const PLAIN: &str = "What is said to one another all day. ";
const ACCENTS: &str = "À l’aube, « déjà vu » — žluťoučký kůň 🐎. ";
const ESCAPED: &str = "a\tb\r\n\u{1b}[31m\"c\"\\ ";

fn main() {
    divan::main();
}

/// A directory with the certificates of the workloads' nodes.
fn made() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    certs::make(dir.path(), &NODES.map(|name| name.parse().unwrap()), CLUSTER).unwrap();
    dir
}

/// So many bytes of a text, up to a whole character.
fn body(of: &str, length: usize) -> String {
    let mut body = of.repeat(length / of.len() + 1);
    body.truncate(body.floor_char_boundary(length));
    body
}

#[divan::bench(args = CONVERSATIONS)]
fn line_to_frame(bencher: Bencher<'_, '_>, conversations: usize) {
    let certs = made();
    let mut workload = LineToFrame::new(certs.path(), conversations);
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .bench_local(|| workload.run());
}

#[divan::bench(args = CONVERSATIONS)]
fn frame_to_line(bencher: Bencher<'_, '_>, conversations: usize) {
    let certs = made();
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .with_inputs(|| FrameToLine::new(certs.path(), conversations))
        .bench_local_refs(FrameToLine::run);
}

mod machine {
    use super::*;

    #[divan::bench(args = CONVERSATIONS)]
    fn in_order(bencher: Bencher<'_, '_>, conversations: usize) {
        run(bencher, conversations, Arrival::InOrder);
    }

    #[divan::bench(args = CONVERSATIONS)]
    fn shuffled(bencher: Bencher<'_, '_>, conversations: usize) {
        run(bencher, conversations, Arrival::Shuffled);
    }

    fn run(bencher: Bencher<'_, '_>, conversations: usize, arrival: Arrival) {
        let mut workload = Machine::new(conversations, arrival);
        bencher
            .counter(ItemsCount::new(MESSAGES))
            .bench_local(|| workload.run());
    }
}

mod registry {
    use super::*;

    const CLIENTS: usize = 1000;

    #[divan::bench(threads = [1, 2])]
    fn pass_on(bencher: Bencher<'_, '_>) {
        let clients = Clients::new(CLIENTS);
        bencher.counter(ItemsCount::new(MESSAGES)).bench(|| clients.pass_on());
    }

    #[divan::bench]
    fn come_and_go(bencher: Bencher<'_, '_>) {
        let clients = Clients::new(CLIENTS);
        bencher
            .counter(ItemsCount::new(CLIENTS))
            .bench(|| clients.come_and_go());
    }
}

/// Submitted, transmitted and settled by one thread, and by two at once.
#[divan::bench(threads = [1, 2])]
fn exchange(bencher: Bencher<'_, '_>) {
    let shared = Shared::default();
    bencher.counter(ItemsCount::new(BATCH)).bench(|| shared.pass());
}

mod lines {
    use super::*;

    #[divan::bench(args = BODIES, consts = [false, true])]
    fn parsed<const ESCAPES: bool>(bencher: Bencher<'_, '_>, length: usize) {
        let body = body(if ESCAPES { ESCAPED } else { PLAIN }, length);
        let [from, to] = NODES.map(|node| format!("{node}:111111"));
        let line = serde_json::json!({"from": from, "to": to, "body": body, "cmd": "sendMsg"}).to_string();
        bencher
            .counter(BytesCount::new(line.len()))
            .bench(|| parse(black_box(line.as_bytes())));
    }

    #[divan::bench(args = BODIES, consts = [false, true])]
    fn written<const JSON: bool>(bencher: Bencher<'_, '_>, length: usize) {
        let (writer, body, mut out) = (Writer::new(JSON), body(PLAIN, length), Vec::new());
        bencher
            .counter(BytesCount::new(length))
            .bench_local(|| writer.write(&mut out, black_box(body.as_bytes())));
    }

    #[divan::bench(args = BODIES)]
    fn escaped_plain(bencher: Bencher<'_, '_>, length: usize) {
        escaped(bencher, &body(PLAIN, length));
    }

    #[divan::bench(args = BODIES)]
    fn escaped_accents(bencher: Bencher<'_, '_>, length: usize) {
        escaped(bencher, &body(ACCENTS, length));
    }

    #[divan::bench(args = BODIES)]
    fn escaped_controls(bencher: Bencher<'_, '_>, length: usize) {
        escaped(bencher, &body(ESCAPED, length));
    }

    fn escaped(bencher: Bencher<'_, '_>, body: &str) {
        let mut out = Vec::new();
        bencher
            .counter(BytesCount::of_str(body))
            .bench_local(|| escape(&mut out, black_box(body.as_bytes())));
    }
}
