//! What was seen: figures, as a table, as JSON, as a plot.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use plotters::prelude::{
    BLACK, ChartBuilder, Color as _, IntoDrawingArea as _, IntoLogRange as _, LineSeries, PathElement, RGBColor,
    SVGBackend, SeriesLabelPosition, WHITE,
};
use serde::{Deserialize, Serialize};

use super::tally::Tally;
use super::usage::Usage;
use super::{BenchError, Workload};

/// How many points a curve of latencies has.
const POINTS: u32 = 200;

/// Up to which part it is drawn, all but one of so many: beyond it a curve is of single messages.
const LAST_ONE_OF: f64 = 10_000.0;

/// What is drawn of a latency that is shorter still, in milliseconds.
const SHORTEST: f64 = 0.001;

/// From which part of a processor on this program, which has one thread, may be what sets the pace.
const BUSY: f64 = 0.9;

/// What one run has shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    /// Where the senders were.
    pub from: String,
    /// Where the receivers were.
    pub to: String,
    /// Pairs of a sender and a receiver.
    pub pairs: usize,
    /// Bytes of a body.
    pub size: usize,
    /// Messages that one pair might have under way.
    pub window: u64,
    /// Messages a second that were due; none: as fast as it went.
    pub rate: Option<u64>,
    /// Seconds that were measured.
    pub seconds: f64,
    /// Messages that arrived in that time.
    pub messages: u64,
    /// Those a second.
    pub per_second: f64,
    /// Messages sent in all, with those before and after what was measured.
    pub sent: u64,
    /// Of those: never came.
    pub lost: u64,
    /// Came again.
    pub repeated: u64,
    /// Came after a later one of their pair.
    pub reordered: u64,
    /// What came and was none of the run.
    pub strange: u64,
    /// From when a message was due until it was read, in milliseconds; none where no message came that was due in what was measured, as
    /// with a rate that is far from being kept.
    pub latency: Option<Latency>,
    /// What the processes took that were looked at.
    pub processes: Vec<Process>,
    /// Processor time of all of them for a message, in microseconds.
    pub cpu_per_message: Option<f64>,
    /// What this process took, which has all clients in one thread; none where the system does not tell as Linux does.
    pub own: Option<Process>,
    /// Latencies in milliseconds by percentile, to be drawn: each pair is of how many messages there are for one that took longer, 1 to
    /// 10,000, and of what all but that one took at most.
    pub curve: Vec<(f64, f64)>,
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Latency {
    /// Half of all messages took no longer.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// What a process took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Processor time in what was measured, in seconds.
    pub cpu: f64,
    /// Memory at the end, in bytes.
    pub memory: u64,
    /// The most memory it ever had, in bytes.
    pub peak: u64,
}

impl Process {
    fn new(pid: u32, before: &Usage, after: &Usage) -> Self {
        Self {
            pid,
            cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
            memory: after.memory,
            peak: after.peak,
        }
    }
}

/// How much processes have taken at one time.
pub(super) struct Looked {
    own: Option<Usage>,
    processes: Vec<Usage>,
}

impl Looked {
    /// Looks at those that a workload names, and at this one.
    pub(super) fn at(workload: &Workload) -> Result<Self, BenchError> {
        Ok(Self {
            own: Usage::of(std::process::id()).ok(),
            processes: workload
                .pids
                .iter()
                .map(|pid| Usage::of(*pid))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

impl Figures {
    pub(super) fn new(
        workload: &Workload,
        tally: &Tally,
        sent: u64,
        messages: u64,
        measured: Duration,
        before: &Looked,
        after: &Looked,
    ) -> Self {
        let latencies = tally.latencies();
        let at = |quantile| milliseconds(latencies.value_at_quantile(quantile));
        let usage = before.processes.iter().zip(&after.processes).zip(&workload.pids);
        let processes: Vec<_> = usage
            .map(|((before, after), pid)| Process::new(*pid, before, after))
            .collect();
        let own = before.own.as_ref().zip(after.own.as_ref());
        let seconds = measured.as_secs_f64();
        let cpu: f64 = processes.iter().map(|process| process.cpu).sum();
        Self {
            from: workload.from.to_string(),
            to: workload.to.to_string(),
            pairs: workload.pairs,
            size: workload.size,
            window: workload.window,
            rate: workload.rate,
            seconds,
            messages,
            per_second: if seconds > 0.0 { messages as f64 / seconds } else { 0.0 },
            sent,
            lost: sent.saturating_sub(tally.arrived),
            repeated: tally.repeated,
            reordered: tally.reordered,
            strange: tally.strange,
            latency: (!latencies.is_empty()).then(|| Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: milliseconds(latencies.max()),
            }),
            cpu_per_message: (messages > 0 && !processes.is_empty()).then(|| cpu * 1e6 / messages as f64),
            processes,
            own: own.map(|(before, after)| Process::new(std::process::id(), before, after)),
            curve: if latencies.is_empty() {
                Vec::new()
            } else {
                curve(latencies)
            },
        }
    }

    /// Whether every message came, once and in order.
    pub fn all_is_well(&self) -> bool {
        (self.lost, self.repeated, self.reordered, self.strange) == (0, 0, 0, 0)
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let rate = self
            .rate
            .map_or_else(|| "full speed".to_owned(), |rate| format!("{rate} a second"));
        let mut text = format!(
            "{} to {}: {} pairs, {} bytes, at most {} under way a pair, {rate}\n",
            self.from, self.to, self.pairs, self.size, self.window
        );
        let mut row = |name: &str, value: String| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "  {name:<22} {value}");
        };
        row("messages", format!("{} in {:.2} s", self.messages, self.seconds));
        let megabytes = self.per_second * self.size as f64 / 1e6;
        row("a second", format!("{:.0} ({megabytes:.1} MB)", self.per_second));
        row(
            "latency, ms",
            self.latency.map_or_else(
                || "none: nothing has come that was due in this time; is the rate more than goes through?".to_owned(),
                |Latency {
                     p50,
                     p90,
                     p99,
                     p999,
                     max,
                 }| {
                    format!("p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p999:.3}  max {max:.3}")
                },
            ),
        );
        row(
            "of those sent",
            format!(
                "{}: {} lost, {} repeated, {} out of order",
                self.sent, self.lost, self.repeated, self.reordered
            ),
        );
        let took = |process: &Process| {
            format!(
                "{:.2} s CPU ({:.0} %), {:.1} MB, at most {:.1} MB",
                process.cpu,
                self.part_of(process) * 100.0,
                process.memory as f64 / 1e6,
                process.peak as f64 / 1e6
            )
        };
        for process in &self.processes {
            row(&format!("process {}", process.pid), took(process));
        }
        if let Some(cpu) = self.cpu_per_message {
            row("CPU a message", format!("{cpu:.2} µs"));
        }
        if let Some(own) = &self.own {
            let busy = if self.part_of(own) < BUSY {
                ""
            } else {
                ": busy; relays may be faster than it"
            };
            row("this program", took(own) + busy);
        }
        text
    }

    /// How much of one processor a process had, from 0 on.
    fn part_of(&self, process: &Process) -> f64 {
        if self.seconds > 0.0 {
            process.cpu / self.seconds
        } else {
            0.0
        }
    }
}

/// Latencies by percentile, closer to each other the closer to 100: the first number is how many messages there are for each
/// that took longer, 1 at the least.
fn curve(latencies: &Histogram<u64>) -> Vec<(f64, f64)> {
    (0..=POINTS)
        .map(|point| {
            let one_of = LAST_ONE_OF.powf(f64::from(point) / f64::from(POINTS));
            let latency = latencies.value_at_quantile(1.0 - 1.0 / one_of);
            (one_of, milliseconds(latency).max(SHORTEST))
        })
        .collect()
}

const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 90, 181),
    RGBColor(220, 50, 32),
    RGBColor(0, 130, 90),
    RGBColor(150, 90, 200),
    RGBColor(200, 130, 0),
    RGBColor(90, 90, 90),
];

/// Draws the latencies of runs, by percentile, with a name for each.
///
/// # Errors
///
/// When the file can't be written, or there is nothing to draw.
pub fn plot(file: &Path, runs: &[(String, &Figures)]) -> anyhow::Result<()> {
    let all = || runs.iter().flat_map(|(_, run)| run.curve.iter().map(|point| point.1));
    let lowest = all().fold(f64::INFINITY, f64::min);
    let highest = all().fold(0.0, f64::max);
    anyhow::ensure!(lowest.is_finite(), "there is nothing to draw");
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(file, (800, 450)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(
                (1.0..LAST_ONE_OF).log_scale(),
                (lowest * 0.8..highest * 1.25).log_scale(),
            )?;
        chart
            .configure_mesh()
            .x_desc("part of all messages that took no longer")
            .y_desc("latency from when a message was due, ms")
            .x_label_formatter(&|one_of| format!("{} %", 100.0 - 100.0 / one_of))
            .light_line_style(RGBColor(235, 235, 235))
            .draw()?;
        for ((name, run), colour) in runs.iter().zip(COLOURS.iter().cycle()) {
            let line = LineSeries::new(run.curve.iter().copied(), colour.stroke_width(2));
            chart
                .draw_series(line)?
                .label(name.clone())
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()?;
        area.present()?;
        Ok(())
    };
    draw()
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| format!("can't write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tally::Stamp;
    use crate::bench::{Extent, Target};

    fn figures() -> Figures {
        let target: Target = "tcp://127.0.0.1:1215".parse().unwrap();
        let workload = Workload {
            from: target.clone(),
            to: target,
            pairs: 1,
            size: 32,
            window: 8,
            rate: None,
            extent: Extent::Count(4),
            pids: vec![7],
            certs: "certs".into(),
        };
        let mut tally = Tally::new(1);
        let mut body = Vec::new();
        for number in [0, 2, 2] {
            Stamp { number, due: 0 }.write(32, &mut body);
            tally.arrive(0, &body, 2_000_000 * (number + 1), &(0..u64::MAX));
        }
        let looked = |seconds: u64| {
            let usage = |cpu| Usage {
                cpu: Duration::from_millis(cpu),
                memory: 1 << 20,
                peak: 2 << 20,
            };
            Looked {
                own: Some(usage(1900 * seconds)),
                processes: vec![usage(1000 * seconds)],
            }
        };
        let seconds = Duration::from_secs(2);
        Figures::new(&workload, &tally, 4, 2, seconds, &looked(1), &looked(2))
    }

    #[test]
    fn figures_are_told_in_every_form() {
        let figures = figures();
        assert!(!figures.all_is_well());
        assert_eq!((figures.lost, figures.repeated, figures.reordered), (2, 1, 0));
        assert_eq!(figures.cpu_per_message, Some(500_000.0));
        let table = figures.table();
        assert!(table.contains("2 lost, 1 repeated, 0 out of order"), "{table}");
        assert!(table.contains("1.00 s CPU (50 %)"), "{table}");
        assert!(
            table.contains("1.90 s CPU (95 %), 1.0 MB, at most 2.1 MB: busy"),
            "{table}"
        );
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(json["per_second"], 1.0);
        // Whoever reads them can draw them.
        let figures: Figures = serde_json::from_value(json).unwrap();
        assert_eq!(figures.own.map(|own| own.cpu), Some(1.9));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plot.svg");
        plot(&file, &[("one".to_owned(), &figures)]).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("one"), "{svg}");
        let mut none = figures;
        (none.latency, none.curve) = (None, Vec::new());
        assert!(none.table().contains("none: nothing has come"), "{}", none.table());
    }
}
