//! Every test of the program that needs a GPU.
#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../../../weightnorm-checkpoint/tests/common/files.rs"]
mod files;
#[path = "../common/program.rs"]
mod program;
#[path = "../../../../tests/common/suite.rs"]
mod suite;

mod cases;
mod cli;

use std::process::ExitCode;

use suite::{Failed, Needs, Outcome, Suite};

fn main() -> ExitCode {
    suite::run(cli::register, cases::register)
}
