//! Every test of checkpoints that needs a GPU.
#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../common/files.rs"]
mod files;
#[path = "../common/killed.rs"]
mod killed;
#[path = "../../../../tests/common/suite.rs"]
mod suite;

mod checkpoint;
mod merge;
mod processes;
mod pytorch;
mod split;
mod tied;
mod tiny;

use std::process::ExitCode;

use suite::{Failed, Needs, Outcome, Suite};

fn main() -> ExitCode {
    let second = |suite: &mut Suite| {
        split::register(suite);
        merge::register(suite);
        processes::register(suite);
        pytorch::register(suite);
        tied::register(suite);
        tiny::register(suite);
    };
    suite::run(checkpoint::register, second)
}
