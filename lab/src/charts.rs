//! The plots of what relays that took turns have shown, as SVG.

use std::error::Error;
use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color as _, DrawingArea, IntoDrawingArea as _, IntoFont as _, IntoLogRange as _,
    LineSeries, PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};

use crate::comparison::{Bound, Spread, grouped};

const BLUE: RGBColor = RGBColor(0, 90, 181);
const LIGHT_BLUE: RGBColor = RGBColor(170, 205, 240);
const RED: RGBColor = RGBColor(220, 50, 32);
const GRID: RGBColor = RGBColor(235, 235, 235);

/// Height of a bar, with what is between two, in pixels.
const BAR: u32 = 40;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn written(file: &Path, drawn: Result<(), Box<dyn Error + '_>>) -> anyhow::Result<()> {
    drawn
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("can't write {}", file.display()))
}

/// Draws what goes through with bodies of each size: messages, and megabytes, a second. Each point is a size in bytes, and
/// messages a second.
///
/// # Errors
///
/// When the file can't be written, or there is nothing to draw.
pub fn bodies(file: &Path, points: &[(f64, f64)]) -> anyhow::Result<()> {
    let megabytes: Vec<(f64, f64)> = points
        .iter()
        .map(|(size, messages)| (*size, size * messages / 1e6))
        .collect();
    let all = points.iter().chain(&megabytes);
    ensure!(
        !points.is_empty() && all.clone().all(|(size, much)| *size > 0.0 && *much > 0.0),
        "there is nothing to draw"
    );
    let draw = || -> Result<(), Box<dyn Error + '_>> {
        let area = SVGBackend::new(file, (900, 400)).into_drawing_area();
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally(450);
        panel(&left, "messages a second", points)?;
        panel(&right, "MB a second", &megabytes)?;
        area.present()?;
        Ok(())
    };
    written(file, draw())
}

fn panel<'a>(area: &Area<'a>, title: &str, points: &[(f64, f64)]) -> Result<(), Box<dyn Error + 'a>> {
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = || points.iter().map(of);
        values().fold(f64::INFINITY, f64::min) * 0.7..values().fold(0.0, f64::max) * 1.5
    };
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(72)
        .build_cartesian_2d(range(|point| point.0).log_scale(), range(|point| point.1).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("bytes of a body")
        .y_desc(title)
        .x_label_formatter(&|size| grouped(*size))
        .y_label_formatter(&|much| {
            if *much < 10.0 {
                format!("{much}")
            } else {
                grouped(*much)
            }
        })
        .light_line_style(GRID)
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), BLUE.stroke_width(2)))?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, BLUE.filled())))?;
    Ok(())
}

/// A ratio that is drawn.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What was compared.
    pub name: String,
    /// The ratios of all rounds.
    pub spread: Spread,
    /// The aim, if there is one.
    pub aim: Option<Bound>,
}

/// Draws ratios as bars, with their ranges and aims.
///
/// # Errors
///
/// When the file can't be written, or there is nothing to draw.
pub fn ratios(file: &Path, title: &str, bars: &[Bar]) -> anyhow::Result<()> {
    ensure!(!bars.is_empty(), "there is nothing to draw");
    let aim = |bar: &Bar| match bar.aim {
        Some(Bound::AtLeast(aim) | Bound::AtMost(aim)) => aim,
        None => 0.0,
    };
    let right = bars.iter().map(|bar| bar.spread.most.max(aim(bar))).fold(1.0, f64::max) * 1.05;
    let count = u32::try_from(bars.len())?;
    let draw = || -> Result<(), Box<dyn Error + '_>> {
        let area = SVGBackend::new(file, (800, 110 + BAR * count)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .caption(title, ("sans-serif", 16))
            .x_label_area_size(40)
            .build_cartesian_2d(0.0..right, f64::from(count)..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_desc("bar: median ratio; black line: range of the rounds; red line: aim")
            .light_line_style(GRID)
            .draw()?;
        for (index, bar) in (0u32..).zip(bars) {
            let top = f64::from(index);
            let line = |at: f64| vec![(at, top + 0.08), (at, top + 0.92)];
            let Spread { median, least, most } = bar.spread;
            let filled = Rectangle::new([(0.0, top + 0.15), (median, top + 0.85)], LIGHT_BLUE.filled());
            chart.draw_series([filled])?;
            let range = vec![(least, top + 0.78), (most, top + 0.78)];
            chart.draw_series([PathElement::new(range, BLACK.stroke_width(2))])?;
            if bar.aim.is_some() {
                chart.draw_series([PathElement::new(line(aim(bar)), RED.stroke_width(2))])?;
            }
            let name = format!("{}: {median:.2}", bar.name);
            let font = ("sans-serif", 14).into_font();
            chart.draw_series([Text::new(name, (right * 0.01, top + 0.32), font)])?;
        }
        area.present()?;
        Ok(())
    };
    written(file, draw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Directory;

    #[test]
    fn plots_are_written() {
        let dir = Directory::new().unwrap();
        let file = dir.path().join("plot.svg");
        bodies(&file, &[(32.0, 1e6), (1024.0, 5e5), (1e6, 1500.0)]).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.contains("messages a second") && svg.contains("MB a second"),
            "{svg}"
        );
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(bodies(&file, &[]).is_err());
        assert!(bodies(&file, &[(32.0, 0.0)]).is_err());
        let bar = Bar {
            name: "one to another".to_owned(),
            spread: Spread::of([1.0, 1.5, 2.0]).unwrap(),
            aim: Some(Bound::AtLeast(1.2)),
        };
        ratios(&file, "Messages a second", &[bar.clone(), bar]).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        assert_eq!(svg.matches("one to another: 1.50").count(), 2, "{svg}");
        assert!(ratios(&file, "", &[]).is_err());
    }
}
