//! Trains on several processes, by MPI: on the GPUs of one machine or of many.
//!
//!     cargo build --release --manifest-path examples/distributed/Cargo.toml
//!     mpirun -n 2 examples/distributed/target/release/distributed train --check
//!     mpirun -n 4 examples/distributed/target/release/distributed layer --split in
//!
//! `docs/distributed.md` says what is communicated, when which way pays, and what it costs.
//!
//! Exit code: 0 done, 2 the arguments would not do, 3 a rank failed, and has ended all of them; that of a signal where a
//! rank was killed.
mod checkpoint;
mod device;
mod ranks;
mod reference;
mod training;
mod wide;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use mpi::topology::SimpleCommunicator;

use ranks::Ranks;

/// Weight-normalized layers on several processes. Run it by mpirun
#[derive(Parser)]
enum Command {
    Train(training::Training),
    Layer(wide::Wide),
}

const FAILED: i32 = 3;

fn main() -> ExitCode {
    let command = Command::parse();
    let Some(universe) = mpi::initialize() else {
        eprintln!("MPI did not start");
        return ExitCode::from(FAILED as u8);
    };
    let ranks = Ranks::new(universe.world());
    let name = format!("rank {} of {}", ranks.rank, ranks.size);
    // A panic must end the others too: they would wait for this rank for ever.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        Ranks::new(SimpleCommunicator::world()).abort(FAILED)
    }));
    if let Err(error) = run(&command, &ranks) {
        eprintln!("{name}: {error}. Ending all of them");
        ranks.abort(FAILED);
    }
    ExitCode::SUCCESS
}

fn run(command: &Command, ranks: &Ranks<SimpleCommunicator>) -> Result<(), Box<dyn Error>> {
    let gpu = device::gpu(ranks.local())?;
    if ranks.rank == 0 {
        let info = gpu.report().info;
        println!("{} ranks; rank 0 on {} ({:?})", ranks.size, info.name, info.backend);
    }
    match command {
        Command::Train(training) => training.run(&gpu, ranks),
        Command::Layer(wide) => wide.run(&gpu, ranks),
    }
}
