//! The `trunkline` program: reads its arguments, hands over to the library, and says how it went by its exit code.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
