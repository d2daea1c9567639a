//! The `trunkline` program: reads its arguments, hands over to the library, and says how it went by its exit code.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A message costs a dozen small allocations, most of them quinn-proto's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
