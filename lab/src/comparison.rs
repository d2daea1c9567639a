//! Pure: what runs of relays that took turns come to: medians, ratios round by round, and whether aims are met.

use std::fmt::Write as _;

use trunkline::bench::report::Figures;

/// What is measured of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Messages a second.
    Messages,
    /// Processor time of all relays for a message, in microseconds.
    Cpu,
    /// Half of all messages took no longer, in milliseconds.
    P50,
    /// 99 of 100 messages took no longer, in milliseconds.
    P99,
    /// How much of a processor the process of the clients was at work, in percent. It has one thread: near 100 the clients, not
    /// the relays, set the pace.
    Load,
    /// Memory that a client takes, in KiB.
    ClientMemory,
    /// Memory that 1,000 conversations take at both their nodes together, in KiB.
    ConversationMemory,
    /// Connections accepted a second.
    Connections,
    /// Processor time for a connection, in microseconds.
    ConnectionCpu,
}

impl Quantity {
    /// What it is called.
    pub fn title(self) -> &'static str {
        match self {
            Self::Messages => "messages a second",
            Self::Cpu => "CPU a message, µs",
            Self::P50 => "p50, ms",
            Self::P99 => "p99, ms",
            Self::Load => "clients' CPU, %",
            Self::ClientMemory => "memory a client, KiB",
            Self::ConversationMemory => "memory of 1,000 conversations, KiB",
            Self::Connections => "connections a second",
            Self::ConnectionCpu => "CPU a connection, µs",
        }
    }

    /// A value of it.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Messages | Self::Connections | Self::Load => grouped(value),
            Self::Cpu => format!("{value:.2}"),
            Self::P50 | Self::P99 => format!("{value:.3}"),
            Self::ClientMemory | Self::ConversationMemory | Self::ConnectionCpu => format!("{value:.1}"),
        }
    }
}

/// A number in whole, its digits in threes.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What went wrong with messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flaws {
    /// Never came.
    pub lost: u64,
    /// Came again.
    pub repeated: u64,
    /// Came after a later one of their conversation.
    pub reordered: u64,
    /// Came, and were none of the run.
    pub strange: u64,
}

impl Flaws {
    /// Whether there are none.
    pub fn are_none(self) -> bool {
        self == Self::default()
    }

    fn and(self, other: Self) -> Self {
        Self {
            lost: self.lost + other.lost,
            repeated: self.repeated + other.repeated,
            reordered: self.reordered + other.reordered,
            strange: self.strange + other.strange,
        }
    }
}

/// What one run has shown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// What was measured.
    pub values: Vec<(Quantity, f64)>,
    /// What went wrong.
    pub flaws: Flaws,
}

impl Sample {
    /// What loads that went on at once have shown together, each of which looked at all relays.
    pub fn of(loads: &[Figures]) -> Self {
        let mut sample = Self::default();
        for figures in loads {
            sample.flaws = sample.flaws.and(Flaws {
                lost: figures.lost,
                repeated: figures.repeated,
                reordered: figures.reordered,
                strange: figures.strange,
            });
        }
        let messages: f64 = loads.iter().map(|figures| figures.per_second).sum();
        // The loads do not begin at the same instant, so each has its own share of a second of processor time.
        let shares = loads
            .iter()
            .map(|figures| figures.processes.iter().map(|process| process.cpu).sum::<f64>() / figures.seconds);
        let busy = shares.sum::<f64>() / loads.len().max(1) as f64;
        sample.values.push((Quantity::Messages, messages));
        sample.values.push((Quantity::Cpu, busy * 1e6 / messages));
        // Percentiles of several loads can't be put together.
        if let [figures] = loads {
            if let Some(latency) = &figures.latency {
                sample.values.push((Quantity::P50, latency.p50));
                sample.values.push((Quantity::P99, latency.p99));
            }
            if let Some(own) = &figures.own {
                sample.values.push((Quantity::Load, own.cpu / figures.seconds * 100.0));
            }
        }
        sample
    }

    /// A value, if it was measured.
    pub fn value(&self, quantity: Quantity) -> Option<f64> {
        let found = self.values.iter().find(|(of, _)| *of == quantity);
        found.map(|(_, value)| *value).filter(|value| value.is_finite())
    }
}

/// A relay, and what each round has shown of it; `None`: the run failed.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// What it is called.
    pub label: String,
    /// The rounds.
    pub rounds: Vec<Option<Sample>>,
}

impl Row {
    fn spread(&self, quantity: Quantity) -> Option<Spread> {
        Spread::of(self.rounds.iter().flatten().filter_map(|sample| sample.value(quantity)))
    }

    /// The median over the rounds.
    pub fn median(&self, quantity: Quantity) -> Option<f64> {
        self.spread(quantity).map(|spread| spread.median)
    }

    /// All that went wrong in all rounds.
    pub fn flaws(&self) -> Flaws {
        let flaws = self.rounds.iter().flatten().map(|sample| sample.flaws);
        flaws.fold(Flaws::default(), Flaws::and)
    }

    /// How many runs failed.
    pub fn failed(&self) -> usize {
        self.rounds.iter().filter(|round| round.is_none()).count()
    }
}

/// Values of several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The one in the middle; of an even number the mean of the two.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (lower, upper) = (values.get((values.len() - 1) / 2)?, values.get(values.len() / 2)?);
        Some(Self {
            median: f64::midpoint(*lower, *upper),
            least,
            most,
        })
    }

    /// The ratios of values of the same round, one to the other.
    fn of_ratios(of: &Row, to: &Row, quantity: Quantity) -> Option<Self> {
        let rounds = of.rounds.iter().zip(&to.rounds);
        let ratios = rounds.filter_map(|(of, to)| Some(of.as_ref()?.value(quantity)? / to.as_ref()?.value(quantity)?));
        Self::of(ratios.filter(|ratio| ratio.is_finite()))
    }
}

/// What a value is to keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// No less than this.
    AtLeast(f64),
    /// No more than this.
    AtMost(f64),
}

impl Bound {
    /// Whether a value keeps to it.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

/// Two relays that are compared, by their places in the table, or one that is looked at by itself.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Whose figures are judged.
    pub of: usize,
    /// By what they are divided; `None`: by nothing.
    pub to: Option<usize>,
    /// The aims.
    pub aims: Vec<(Quantity, Bound)>,
}

/// What a comparison came to.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// What was compared.
    pub quantity: Quantity,
    /// Whose it is.
    pub of: String,
    /// To whose it was compared, if to any.
    pub to: Option<String>,
    /// The ratios of all rounds, or the values.
    pub spread: Spread,
    /// The aim, if there is one.
    pub bound: Option<Bound>,
}

impl Verdict {
    /// Whether the aim is met by the median, if there is one.
    pub fn is_met(&self) -> Option<bool> {
        self.bound.map(|bound| bound.is_met(self.spread.median))
    }

    /// What was compared, in words.
    pub fn subject(&self) -> String {
        let title = self.quantity.title();
        match &self.to {
            Some(to) => format!("{title}: {} to {to}", self.of),
            None => format!("{title}: {}", self.of),
        }
    }

    /// The median and the range.
    pub fn outcome(&self) -> String {
        let Spread { median, least, most } = self.spread;
        let show = |value| self.show(value);
        format!("{} ({} to {})", show(median), show(least), show(most))
    }

    /// The aim, in words.
    pub fn aim(&self) -> String {
        match self.bound {
            None => "none".to_owned(),
            Some(Bound::AtLeast(least)) => format!("at least {}", self.show(least)),
            Some(Bound::AtMost(most)) => format!("at most {}", self.show(most)),
        }
    }

    fn show(&self, value: f64) -> String {
        match self.to {
            Some(_) => format!("{value:.2}"),
            None => self.quantity.show(value),
        }
    }
}

/// Relays that took turns.
#[derive(Debug)]
pub struct Table<'a> {
    /// What was measured of each.
    pub quantities: &'a [Quantity],
    /// The relays.
    pub rows: &'a [Row],
    /// What is compared.
    pub comparisons: &'a [Comparison],
}

impl Table<'_> {
    /// What the comparisons came to: ratios of all quantities, and without another relay what there is an aim for.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for comparison in self.comparisons {
            let Some(of) = self.rows.get(comparison.of) else {
                continue;
            };
            let to = comparison.to.and_then(|to| self.rows.get(to));
            // What the clients take says how to read a figure, and is none to compare.
            for &quantity in self.quantities.iter().filter(|quantity| **quantity != Quantity::Load) {
                let aim = comparison.aims.iter().find(|(of, _)| *of == quantity);
                let spread = match to {
                    Some(to) => Spread::of_ratios(of, to, quantity),
                    None => of.spread(quantity).filter(|_| aim.is_some()),
                };
                if let Some(spread) = spread {
                    verdicts.push(Verdict {
                        quantity,
                        of: of.label.clone(),
                        to: to.map(|to| to.label.clone()),
                        spread,
                        bound: aim.map(|(_, bound)| *bound),
                    });
                }
            }
        }
        verdicts
    }

    /// The medians of each relay, then what they were compared to.
    pub fn markdown(&self) -> String {
        let mut text = "| relay |".to_owned();
        // Writing to a string can't fail.
        for quantity in self.quantities {
            let _ = write!(text, " {} |", quantity.title());
        }
        text.push_str(" lost, repeated, out of order |\n|---|");
        text.push_str(&"--:|".repeat(self.quantities.len()));
        text.push_str("---|\n");
        for row in self.rows {
            let _ = write!(text, "| {} |", row.label);
            for quantity in self.quantities {
                let median = row.median(*quantity);
                let shown = median.map_or_else(|| "none".to_owned(), |value| quantity.show(value));
                let _ = write!(text, " {shown} |");
            }
            let _ = writeln!(text, " {} |", flaws(row));
        }
        let verdicts = self.verdicts();
        if !verdicts.is_empty() {
            text.push_str("\n| compared | median (range) | aim | met |\n|---|--:|---|---|\n");
        }
        for verdict in verdicts {
            let met = match verdict.is_met() {
                None => "",
                Some(true) => "yes",
                Some(false) => "**no**",
            };
            let (subject, outcome, aim) = (verdict.subject(), verdict.outcome(), verdict.aim());
            let _ = writeln!(text, "| {subject} | {outcome} | {aim} | {met} |");
        }
        text
    }
}

fn flaws(row: &Row) -> String {
    let Flaws {
        lost,
        repeated,
        reordered,
        strange,
    } = row.flaws();
    let mut text = format!("{lost}, {repeated}, {reordered}");
    if strange > 0 {
        let _ = write!(text, "; {strange} that nobody sent");
    }
    if row.failed() > 0 {
        let _ = write!(text, "; {} of {} runs failed", row.failed(), row.rounds.len());
    }
    text
}

/// How many of all aims are met, and those that are not. Each verdict comes with the title of what it is about.
pub fn summary(verdicts: &[(&str, Verdict)]) -> String {
    let with_aim = || verdicts.iter().filter(|(_, verdict)| verdict.bound.is_some());
    let met = with_aim().filter(|(_, verdict)| verdict.is_met() == Some(true)).count();
    let mut text = format!("{met} of {} aims are met.", with_aim().count());
    if met < with_aim().count() {
        text.push_str(" These are not:\n\n");
    }
    for (title, verdict) in with_aim().filter(|(_, verdict)| verdict.is_met() == Some(false)) {
        let (subject, outcome, aim) = (verdict.subject(), verdict.outcome(), verdict.aim());
        // Writing to a string can't fail.
        let _ = writeln!(text, "- {title}. {subject}: {outcome}, where the aim is {aim}");
    }
    text.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use trunkline::bench::report::{Latency, Process};

    use super::*;

    fn row(label: &str, values: &[f64]) -> Row {
        let sample = |value: &f64| {
            Some(Sample {
                values: vec![(Quantity::Messages, *value), (Quantity::Cpu, 10.0 / value)],
                flaws: Flaws::default(),
            })
        };
        Row {
            label: label.to_owned(),
            rounds: values.iter().map(sample).collect(),
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied()).map(|spread| spread.median);
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some(3.0));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(spread(&[4.0, 9.0, 1.0, 2.0]), Some(3.0));
        let all = Spread::of([5.0, 1.0, 2.0]).unwrap();
        assert_eq!((all.least, all.most), (1.0, 5.0));
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The medians alone, 20 to 10, would say 2.
        let (of, to) = (row("a", &[30.0, 10.0, 20.0]), row("b", &[20.0, 10.0, 5.0]));
        let spread = Spread::of_ratios(&of, &to, Quantity::Messages).unwrap();
        assert_eq!((spread.median, spread.least, spread.most), (1.5, 1.0, 4.0));
        assert_eq!(Spread::of_ratios(&of, &to, Quantity::P50), None);
        // A round that failed for one has no ratio, and the others keep theirs.
        let mut of = of;
        of.rounds[0] = None;
        let spread = Spread::of_ratios(&of, &to, Quantity::Messages).unwrap();
        assert_eq!((spread.least, spread.most), (1.0, 4.0));
    }

    #[test]
    fn the_table_has_medians_ratios_and_what_fell_short() {
        let mut rows = [
            row("A", &[1_200_000.0, 1_300_000.0]),
            row("B", &[1_000_000.0, 1_000_000.0]),
        ];
        rows[1].rounds[1].as_mut().unwrap().flaws.lost = 7;
        rows[1].rounds.push(None);
        let comparisons = [
            Comparison {
                of: 0,
                to: Some(1),
                aims: vec![(Quantity::Messages, Bound::AtLeast(1.3))],
            },
            Comparison {
                of: 0,
                to: None,
                aims: vec![(Quantity::Messages, Bound::AtLeast(250_000.0))],
            },
        ];
        let table = Table {
            quantities: &[Quantity::Messages, Quantity::Cpu],
            rows: &rows,
            comparisons: &comparisons,
        };
        let text = table.markdown();
        for line in [
            "| relay | messages a second | CPU a message, µs | lost, repeated, out of order |",
            "| A | 1,250,000 | 0.00 | 0, 0, 0 |",
            "| B | 1,000,000 | 0.00 | 7, 0, 0; 1 of 3 runs failed |",
            "| messages a second: A to B | 1.25 (1.20 to 1.30) | at least 1.30 | **no** |",
            "| CPU a message, µs: A to B | 0.80 (0.77 to 0.83) | none |  |",
            "| messages a second: A | 1,250,000 (1,200,000 to 1,300,000) | at least 250,000 | yes |",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        let verdicts: Vec<_> = table.verdicts().into_iter().map(|verdict| ("Both", verdict)).collect();
        let text = summary(&verdicts);
        assert!(
            text.starts_with("1 of 2 aims are met. These are not:\n\n- Both. messages a second: A to B"),
            "{text}"
        );
        assert_eq!(summary(&[]), "0 of 0 aims are met.\n");
    }

    #[test]
    fn a_number_is_grouped() {
        let shown = [0.0, 999.4, 1000.0, 123_456.0, 1_234_567.8].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "123,456", "1,234,568"]);
    }

    #[test]
    fn loads_add_up() {
        let process = |pid, cpu| Process {
            pid,
            cpu,
            memory: 0,
            peak: 0,
        };
        let figures = |per_second, cpu, lost| Figures {
            from: String::new(),
            to: String::new(),
            pairs: 1,
            size: 32,
            window: 1,
            rate: None,
            seconds: 2.0,
            messages: 0,
            per_second,
            sent: 0,
            lost,
            repeated: 0,
            reordered: 1,
            strange: 0,
            latency: Some(Latency {
                p50: 1.0,
                p90: 2.0,
                p99: 3.0,
                p999: 4.0,
                max: 5.0,
            }),
            processes: vec![process(1, cpu), process(2, cpu)],
            cpu_per_message: None,
            own: Some(process(3, 1.5)),
            curve: Vec::new(),
        };
        // Both look at the same two relays, which are at work for 0.4 and 0.6 of each second.
        let both = Sample::of(&[figures(1000.0, 0.4, 0), figures(3000.0, 0.6, 2)]);
        assert_eq!(both.value(Quantity::Messages), Some(4000.0));
        assert_eq!(both.value(Quantity::Cpu).map(f64::round), Some(125.0));
        assert_eq!(both.value(Quantity::P99), None);
        assert_eq!((both.flaws.lost, both.flaws.reordered), (2, 2));
        assert!(!both.flaws.are_none());
        let one = Sample::of(&[figures(1000.0, 0.4, 0)]);
        assert_eq!(
            (one.value(Quantity::P50), one.value(Quantity::P99)),
            (Some(1.0), Some(3.0))
        );
        assert_eq!(one.value(Quantity::Load), Some(75.0));
        // Nothing came: there is no processor time for a message.
        assert_eq!(Sample::of(&[figures(0.0, 0.4, 9)]).value(Quantity::Cpu), None);
    }
}
