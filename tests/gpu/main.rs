//! Every test of the kernels that needs a GPU.
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/misuse.rs"]
mod misuse;
#[path = "../common/ranges.rs"]
mod ranges;
#[path = "../common/suite.rs"]
mod suite;

mod activation;
mod arena;
mod backward;
mod banks;
mod batch;
mod conv;
mod conv_ends;
mod conv_weights;
mod conv_windows;
mod coop;
mod cosine;
mod data;
mod device;
mod dora;
mod ends_backward;
mod errors;
mod gain_sets;
mod gains;
mod gates;
mod golden;
mod host;
mod launch;
mod limits;
mod linear;
mod mlstm;
mod normalize;
mod norms;
mod numbers;
mod optimizer;
mod owner;
mod problem;
mod profile;
mod properties;
mod recording;
mod recurrent;
mod recurrent_windows;
mod registers;
mod set;
mod threads;
mod ties;
mod train;
mod tune;

use std::process::ExitCode;

use suite::{Extent, Failed, Needs, Outcome, Suite};

fn main() -> ExitCode {
    let first = |suite: &mut Suite| {
        suite.set_apart(include_str!("apart.txt"));
        arena::register(suite);
        golden::register(suite);
        banks::register(suite);
        backward::register(suite);
        batch::register(suite);
        owner::register(suite);
        optimizer::register(suite);
        norms::register(suite);
        normalize::register(suite);
    };
    let second = |suite: &mut Suite| {
        activation::register(suite);
        linear::register(suite);
        gains::register(suite);
        conv::register(suite);
        conv_ends::register(suite);
        conv_weights::register(suite);
        conv_windows::register(suite);
        gates::register(suite);
        recurrent::register(suite);
        recurrent_windows::register(suite);
        mlstm::register(suite);
        registers::register(suite);
        ends_backward::register(suite);
        coop::register(suite);
        cosine::register(suite);
        dora::register(suite);
        numbers::register(suite);
        properties::register(suite);
        host::register(suite);
        limits::register(suite);
        launch::register(suite);
        errors::register(suite);
        recording::register(suite);
        set::register(suite);
        profile::register(suite);
        threads::register(suite);
        ties::register(suite);
        train::register(suite);
        tune::register(suite);
    };
    suite::run(first, second)
}
