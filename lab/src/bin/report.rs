//! Writes the table and the plot of what the load has measured.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use trunkline_lab::figures::Figures;
use trunkline_lab::report::{markdown, svg};

/// Write the tables and the plot of docs/lab.md
#[derive(Debug, Parser)]
struct Args {
    /// The directory with the figures, a JSON file for each run
    #[arg(long, value_name = "DIR")]
    figures: PathBuf,

    /// Where to write the tables, as Markdown
    #[arg(long, value_name = "FILE")]
    table: PathBuf,

    /// Where to write the plot, as SVG
    #[arg(long, value_name = "FILE")]
    plot: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut figures: Vec<Figures> = Vec::new();
    for file in std::fs::read_dir(&args.figures).with_context(|| format!("no directory {}", args.figures.display()))? {
        let path = file?.path();
        let text = std::fs::read_to_string(&path)?;
        figures.push(serde_json::from_str(&text).with_context(|| format!("not figures: {}", path.display()))?);
    }
    for (path, text) in [(args.table, markdown(&figures)), (args.plot, svg(&figures))] {
        std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}
