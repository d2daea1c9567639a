//! Pure: the tables and the plot of what was measured.

use std::fmt::Write;

use crate::figures::Figures;
use crate::row::{Kind, ROWS, Row};
use crate::target::Target;

const TARGETS: [Target; 2] = [Target::Trunkline, Target::Nats];

/// The rows that were measured, each with what was seen of a target.
fn measured(figures: &[Figures], kind: Kind) -> impl Iterator<Item = (&'static Row, &Figures)> {
    ROWS.iter().filter(move |row| row.kind() == kind).flat_map(move |row| {
        TARGETS.iter().flat_map(move |target| {
            figures
                .iter()
                .filter(move |one| one.row == row.name && one.target == Some(*target))
                .map(move |one| (row, one))
        })
    })
}

/// The tables, each under its title.
pub fn markdown(figures: &[Figures]) -> String {
    let mut text = String::from(
        "![Latencies](lab.svg)\n\n\
         ### Latency\n\n\
         | wire | relay | p50 ms | p90 ms | p99 ms | slowest ms | lost | repeated | out of order |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (row, one) in measured(figures, Kind::Latency) {
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} | {} |",
            row.title,
            name(one),
            one.p50,
            one.p90,
            one.p99,
            one.max,
            one.lost,
            one.repeated,
            one.reordered
        );
    }
    text.push_str(
        "\n### Cuts\n\nThe load goes on for 5 s, then the wire is cut both ways, then it is back and the load goes on for \
         10 s more. *Backlog*\nis how long after the wire's return the last message arrived that was due before it. \
         Trunkline's senders ask for\nreceipts here; NATS has none.\n\n\
         | wire | relay | backlog s | slowest s | sent | lost | repeated | out of order | senders were told |\n\
         |---|---|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for (row, one) in measured(figures, Kind::Cut) {
        let backlog = one
            .backlog
            .map_or_else(|| "never".to_owned(), |backlog| format!("{backlog:.2}"));
        let told = match (one.delivered, one.errors) {
            (Some(delivered), 0) => format!("{delivered} delivered"),
            (Some(delivered), errors) => format!("{delivered} delivered, {errors} not"),
            (None, 0) => "nothing".to_owned(),
            (None, errors) => format!("{errors} errors"),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {backlog} | {:.2} | {} | {} | {} | {} | {told} |",
            row.title,
            name(one),
            one.max / 1000.0,
            one.sent,
            one.lost,
            one.repeated,
            one.reordered
        );
    }
    text.push_str(
        "\n### Two links on a narrow wire\n\nTwo pairs of nodes, 50 senders each, and twice the load of the narrow wire \
         above: more than it holds. The shares are of\nwhat arrived while both were loaded; what had to wait came \
         afterwards.\n\n\
         | wire | relay | first link | second link | sent | lost | repeated | out of order |\n\
         |---|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for (row, one) in measured(figures, Kind::Shared) {
        let all = one.by_link.iter().sum::<u64>().max(1) as f64;
        let shares = one
            .by_link
            .iter()
            .map(|count| format!("{:.0} %", *count as f64 / all * 100.0));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.title,
            name(one),
            shares.collect::<Vec<_>>().join(" | "),
            one.sent,
            one.lost,
            one.repeated,
            one.reordered
        );
    }
    text
}

fn name(figures: &Figures) -> &'static str {
    figures.target.map_or("", Target::name)
}

const LEFT: f64 = 250.0;
const TOP: f64 = 70.0;
const WIDTH: f64 = 620.0;
const LINE: f64 = 22.0;
const GROUP: f64 = 2.0 * LINE + 14.0;

/// The plot: for each row and relay a line from p50 by p90 to p99, over a logarithmic scale.
pub fn svg(figures: &[Figures]) -> String {
    let rows: Vec<&Row> = ROWS
        .iter()
        // How long messages wait for a wire that is too narrow for them tells of the load only.
        .filter(|row| row.kind() != Kind::Shared && figures.iter().any(|one| one.row == row.name))
        .collect();
    let plotted = figures.iter().filter(|one| rows.iter().any(|row| row.name == one.row));
    let values = || plotted.clone().flat_map(|one| [one.p50, one.p90, one.p99]);
    let least = values().fold(f64::INFINITY, f64::min).max(0.1);
    let most = values().fold(1.0, f64::max);
    // Whole powers of ten around all there is.
    let (first, last) = (
        least.log10().floor(),
        most.log10().ceil().max(least.log10().floor() + 1.0),
    );
    let x = |ms: f64| LEFT + (ms.max(0.1).log10() - first).max(0.0) / (last - first) * WIDTH;
    let bottom = TOP + GROUP * rows.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"20\" y=\"26\" font-size=\"16\" font-weight=\"bold\">Latency from when a message was due, in ms\
         </text>\n",
        w = LEFT + WIDTH + 60.0,
        h = bottom + 40.0
    );
    for (target, x) in TARGETS.iter().zip([20.0, 130.0]) {
        let _ = writeln!(
            svg,
            "<circle cx=\"{}\" cy=\"46\" r=\"5\" fill=\"{}\"/><text x=\"{}\" y=\"50\">{}</text>",
            x + 5.0,
            colour(*target),
            x + 16.0,
            target.name()
        );
    }
    svg.push_str(
        "<text x=\"250\" y=\"50\" fill=\"#666\">circle p50, bar p90, diamond p99 (written beside it)</text>\n",
    );
    let mut power = first;
    while power <= last {
        for step in [1.0, 2.0, 5.0] {
            let ms = step * 10f64.powf(power);
            if x(ms) > LEFT + WIDTH + 0.5 {
                break;
            }
            let (at, main) = (x(ms), step < 1.5);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"{}\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\" fill=\"#666\">{ms}</text>",
                if main { "#bbb" } else { "#eee" },
                bottom + 18.0
            );
        }
        power += 1.0;
    }
    for (index, row) in (0u32..).zip(&rows) {
        let top = TOP + GROUP * f64::from(index);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 14.0,
            top + GROUP / 2.0 + 4.0,
            row.title
        );
        for (line, target) in (0u32..).zip(TARGETS) {
            let y = top + 7.0 + LINE * (f64::from(line) + 0.5);
            let of = figures
                .iter()
                .find(|one| one.row == row.name && one.target == Some(target));
            if let Some(one) = of {
                mark(&mut svg, one, colour(target), y, [x(one.p50), x(one.p90), x(one.p99)]);
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn mark(svg: &mut String, one: &Figures, colour: &str, y: f64, [p50, p90, p99]: [f64; 3]) {
    let mut beside = if one.p99 < 100.0 {
        format!("{:.1}", one.p99)
    } else {
        format!("{:.0}", one.p99)
    };
    // What never came has no latency: without this the loser of most would look the fastest.
    if one.lost > 0 {
        let _ = write!(beside, ", of what came; {} of {} lost", one.lost, one.sent);
    }
    let _ = writeln!(
        svg,
        "<g fill=\"{colour}\" stroke=\"{colour}\"><line x1=\"{p50:.1}\" y1=\"{y}\" x2=\"{p99:.1}\" y2=\"{y}\" \
         stroke-width=\"2\"/><circle cx=\"{p50:.1}\" cy=\"{y}\" r=\"4.5\"/>\
         <line x1=\"{p90:.1}\" y1=\"{}\" x2=\"{p90:.1}\" y2=\"{}\" stroke-width=\"3\"/>\
         <path d=\"M{p99:.1} {} l5 5 l-5 5 l-5 -5 z\"/></g><text x=\"{:.1}\" y=\"{}\" font-size=\"11\" \
         fill=\"{colour}\">{beside}</text>",
        y - 7.0,
        y + 7.0,
        y - 5.0,
        p99 + 9.0,
        y + 4.0
    );
}

fn colour(target: Target) -> &'static str {
    match target {
        Target::Trunkline => "#0b6e4f",
        Target::Nats => "#b5541c",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Vec<Figures> {
        [
            ("clean", Target::Nats),
            ("clean", Target::Trunkline),
            ("cut-5", Target::Trunkline),
            ("shared", Target::Trunkline),
        ]
        .into_iter()
        .map(|(row, target)| Figures {
            row: row.to_owned(),
            target: Some(target),
            p50: 10.0,
            p90: 20.0,
            p99: 5000.0,
            by_link: vec![30, 10],
            ..Figures::default()
        })
        .collect()
    }

    #[test]
    fn each_figure_is_in_its_table_in_the_order_of_the_rows() {
        let text = markdown(&figures());
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| 10 ms")).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].contains("Trunkline") && lines[1].contains("NATS") && lines[2].contains("never"));
        assert!(lines[3].contains("| 75 % | 25 % |"), "{}", lines[3]);
    }

    #[test]
    fn the_plot_has_a_mark_for_each_figure() {
        let svg = svg(&figures());
        assert_eq!(svg.matches("<path").count(), 3);
        assert!(svg.contains(">5000</text>") && svg.ends_with("</svg>\n"));
    }
}
