//! Counts the instructions of the hot paths under callgrind, and fails where one is over its budget: `scripts/budgets.sh`.
//!
//! The budgets are in `budgets.txt`. What sets a workload up, and what takes it down, does not count.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "what can't be set up is not to be counted"
)]
#![expect(
    clippy::exit,
    missing_docs,
    unused_qualifications,
    reason = "that is what the macros make"
)]

use std::hint::black_box;
use std::path::Path;

use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use trunkline::certs;
use trunkline::hot_paths::{Arrival, CLUSTER, Clients, FrameToLine, LineToFrame, MESSAGES, Machine, NODES};

/// What each case may cost.
const BUDGETS: &str = include_str!("budgets.txt");

/// How many clients the registry has.
const CLIENTS: usize = 1000;

/// Fails the run if a case takes more instructions than its budget.
fn within(case: &str) -> LibraryBenchmarkConfig {
    let budget = BUDGETS.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(case)).then(|| words.next()?.parse::<u64>().ok())?
    });
    let budget = budget.unwrap_or_else(|| panic!("{case} has no budget in budgets.txt"));
    let mut callgrind = Callgrind::with_args(["cache-sim=no"]);
    callgrind.hard_limits([(EventKind::Ir, budget)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

/// Has a workload made with the certificates of its nodes.
fn with_certs<W>(make: impl FnOnce(&Path) -> W) -> W {
    let dir = tempfile::tempdir().unwrap();
    certs::make(dir.path(), &NODES.map(|name| name.parse().unwrap()), CLUSTER).unwrap();
    make(dir.path())
}

fn to_frame(conversations: usize) -> LineToFrame {
    with_certs(|certs| LineToFrame::new(certs, conversations))
}

#[library_benchmark(setup = to_frame)]
#[bench::of_16(args = (16), config = within("line_to_frame.of_16"))]
#[bench::of_1000(args = (1000), config = within("line_to_frame.of_1000"))]
fn line_to_frame(mut workload: LineToFrame) -> LineToFrame {
    assert_eq!(workload.run(), MESSAGES);
    workload
}

fn to_line(conversations: usize) -> FrameToLine {
    with_certs(|certs| FrameToLine::new(certs, conversations))
}

#[library_benchmark(setup = to_line)]
#[bench::of_16(args = (16), config = within("frame_to_line.of_16"))]
#[bench::of_1000(args = (1000), config = within("frame_to_line.of_1000"))]
fn frame_to_line(mut workload: FrameToLine) -> FrameToLine {
    black_box(workload.run());
    workload
}

#[library_benchmark(setup = Machine::new)]
#[bench::of_16(args = (16, Arrival::InOrder), config = within("machine_in_order.of_16"))]
#[bench::of_1000(args = (1000, Arrival::InOrder), config = within("machine_in_order.of_1000"))]
fn machine_in_order(mut workload: Machine) -> Machine {
    assert_eq!(workload.run(), MESSAGES);
    workload
}

#[library_benchmark(setup = Machine::new)]
#[bench::of_16(args = (16, Arrival::Shuffled), config = within("machine_shuffled.of_16"))]
#[bench::of_1000(args = (1000, Arrival::Shuffled), config = within("machine_shuffled.of_1000"))]
fn machine_shuffled(mut workload: Machine) -> Machine {
    assert_eq!(workload.run(), MESSAGES);
    workload
}

#[library_benchmark(setup = Clients::new)]
#[bench::of_1000(args = (CLIENTS), config = within("pass_on.of_1000"))]
fn pass_on(workload: Clients) -> Clients {
    assert_eq!(workload.pass_on(), MESSAGES);
    workload
}

#[library_benchmark(setup = Clients::new)]
#[bench::of_1000(args = (CLIENTS), config = within("come_and_go.of_1000"))]
fn come_and_go(workload: Clients) -> Clients {
    black_box(workload.come_and_go());
    workload
}

library_benchmark_group!(
    name = hot_paths,
    benchmarks = [
        line_to_frame,
        frame_to_line,
        machine_in_order,
        machine_shuffled,
        pass_on,
        come_and_go
    ]
);

main!(library_benchmark_groups = hot_paths);
