//! Writes the table and the plot of what the load has measured.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use trunkline_lab::figures::Figures;
use trunkline_lab::report::{markdown, svg};

/// Write lab.md and lab.svg
#[derive(Debug, Parser)]
struct Args {
    /// The directory with the figures, a JSON file for each run
    #[arg(long, value_name = "DIR")]
    figures: PathBuf,

    /// The directory to write to
    #[arg(long, value_name = "DIR", default_value = "docs")]
    out: PathBuf,

    /// How long rows without a cut were measured
    #[arg(long, value_name = "N", default_value_t = 20)]
    seconds: u32,

    /// A line about the machine or the run; may be given several times
    #[arg(long = "fact", value_name = "TEXT")]
    facts: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut figures: Vec<Figures> = Vec::new();
    for file in std::fs::read_dir(&args.figures).with_context(|| format!("no directory {}", args.figures.display()))? {
        let path = file?.path();
        let text = std::fs::read_to_string(&path)?;
        figures.push(serde_json::from_str(&text).with_context(|| format!("not figures: {}", path.display()))?);
    }
    for (name, text) in [
        ("lab.md", markdown(&figures, &args.facts, args.seconds)),
        ("lab.svg", svg(&figures)),
    ] {
        let path = args.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}
