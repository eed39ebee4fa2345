//! Data parallel training of the network of `examples/train`: every rank has all weights and some of the points.
//!
//! A batch is cut into shards, a power of two of them, whatever the number of ranks: each rank has as many shards. The
//! gradients of shards are added up in one order (`ranks::tree`), so that 1, 2 or 4 ranks come to the same bits, as
//! long as their devices are of one kind.
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

use mpi::traits::Communicator;
use weightnorm::{DType, Gpu, Tensor};

use crate::checkpoint;
use crate::ranks::{Ranks, digest, tree};
use crate::reference::{Layer, NAMES, worst};
use train::shape::{self, Random};
use train::step::{INPUT, Network, Optimizer, Variant};

/// Trains the network of examples/train, each rank on its part of every batch
#[derive(clap::Args)]
pub struct Training {
    /// Steps, those of a checkpoint among them
    #[arg(long, default_value_t = 20)]
    steps: u64,
    /// Parts of a batch, a power of two: each rank gets as many
    #[arg(long, default_value_t = 4)]
    shards: usize,
    /// Points of a shard, a multiple of 16
    #[arg(long, default_value_t = 32, value_parser = points)]
    points: usize,
    /// The width of the hidden layers
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(8..=1024))]
    width: u16,
    #[arg(long, default_value_t = 0.003)]
    rate: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where rank 0 writes all that the training goes on from, and the others read it: a safetensors file
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Steps from one checkpoint to the next
    #[arg(long, value_name = "STEPS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Goes on from the checkpoint, if there is one
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Compares the gradients of the first step made here, and of the last, with those of the whole batch in f64
    #[arg(long)]
    check: bool,
    /// For tests: this rank is killed in this step (counted from 1), or while it writes the checkpoint after it
    #[arg(long, value_name = "RANK,STEP[,write]")]
    fail: Option<Fault>,
    /// For tests: this rank loses its device in this step
    #[arg(long, value_name = "RANK,STEP")]
    lose: Option<Fault>,
}

/// What goes wrong on purpose: where, when, and whether in the middle of a checkpoint.
#[derive(Clone, Copy, PartialEq)]
struct Fault {
    rank: usize,
    step: u64,
    writing: bool,
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut next = || parts.next().and_then(|part| part.parse::<u64>().ok());
        let (rank, step) = next().zip(next()).ok_or("expected RANK,STEP")?;
        let writing = match parts.collect::<Vec<_>>()[..] {
            [] => false,
            ["write"] => true,
            _ => return Err("expected RANK,STEP or RANK,STEP,write".into()),
        };
        Ok(Fault { rank: rank as usize, step, writing })
    }
}

fn points(text: &str) -> Result<usize, String> {
    let valid = |n: &usize| (16..=65_536).contains(n) && n.is_multiple_of(16);
    text.parse().ok().filter(valid).ok_or_else(|| "expected a multiple of 16, at most 65536".into())
}

impl Training {
    pub fn run<C: Communicator>(&self, gpu: &Gpu, ranks: &Ranks<C>) -> Result<(), Box<dyn Error>> {
        let &Training { steps, shards, points, .. } = self;
        if !shards.is_power_of_two() || !shards.is_multiple_of(ranks.size) {
            return Err(format!(
                "--shards {shards}: expected a power of two, of which {} ranks have each as many",
                ranks.size
            )
            .into());
        }
        let network = Network::new(gpu, Variant::Normalized, Optimizer::Adam, self.width.into(), points)?;
        let batches = steps as usize * shards;
        let numbers = shape::points(&mut Random::new(self.seed << 32), batches * points);
        let all_points = gpu.upload(&numbers, &[batches, points, INPUT])?;

        network.start(self.seed, (&all_points, 0))?;
        let mut done = 0;
        if let Some(path) = self.checkpoint.as_ref().filter(|path| self.resume && path.exists()) {
            done = checkpoint::read(path, gpu, &network).map_err(|e| format!("{}: {e}", path.display()))?;
            if ranks.rank == 0 {
                println!("goes on after step {done}");
            }
        }
        // One may not see the file, if it is not on a file system that all share.
        ranks.agree("the number of steps that the checkpoint has", done)?;
        ranks.agree("the parameters at the start", parameters(&network)?)?;

        for step in done + 1..=steps {
            let check = self.check && (step == done + 1 || step == steps);
            let turn = self.turn(gpu, ranks, &network, &all_points, step, check);
            turn.map_err(|e| format!("step {step}: {e}"))?;
        }
        if ranks.rank == 0 {
            println!("parameters: {:016x}", parameters(&network)?);
        }
        Ok(())
    }

    /// A step, and the checkpoint after it where one is due; and what is to go wrong in it.
    fn turn<C: Communicator>(
        &self,
        gpu: &Gpu,
        ranks: &Ranks<C>,
        network: &Network,
        points: &Tensor,
        step: u64,
        check: bool,
    ) -> Result<(), Box<dyn Error>> {
        let due = |fault: Option<Fault>, writing| fault == Some(Fault { rank: ranks.rank, step, writing });
        if due(self.fail, false) {
            die();
        }
        if due(self.lose, false) {
            gpu.device().destroy();
        }
        let loss = self.step(gpu, ranks, network, points, step, check)?;
        let is_checkpoint = step % self.every == 0 || step == self.steps;
        if is_checkpoint {
            // Ranks that have drifted apart would go on training nonsense.
            ranks.agree("the parameters", parameters(network)?)?;
        }
        if ranks.rank == 0 {
            println!("step {step}: loss {loss}");
            if let Some(path) = self.checkpoint.as_ref().filter(|_| is_checkpoint) {
                let halfway = || {
                    if due(self.fail, true) {
                        die()
                    }
                };
                let written = checkpoint::write(path, network, step, halfway);
                written.map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        Ok(())
    }

    /// One step, the same on every rank but for the points. Returns the mean loss of the batch before it.
    fn step<C: Communicator>(
        &self,
        gpu: &Gpu,
        ranks: &Ranks<C>,
        network: &Network,
        points: &Tensor,
        number: u64,
        check: bool,
    ) -> Result<f32, Box<dyn Error>> {
        let own = self.shards / ranks.size;
        let first = (number as usize - 1) * self.shards + ranks.rank * own;
        // Of each shard the gradients of all v, of all g and biases, and the loss, in one vector.
        let (mut terms, mut seen) = (vec![], vec![]);
        for shard in first..first + own {
            let loss = network.gradients_of((points, shard))?.read::<f32>()?[0];
            let mut term = vec![];
            for gradients in &network.gradients {
                term.extend(gradients.read::<f32>()?);
            }
            term.push(loss);
            terms.push(term);
            if check {
                seen.push(Seen::read(network)?);
            }
        }
        let mut mean = ranks.sum(&tree(terms))?;
        // A power of two: exact.
        mean.iter_mut().for_each(|number| *number /= self.shards as f32);
        let loss = mean.pop().expect("it was pushed");
        let mut rest = &mean[..];
        for gradients in &network.gradients {
            let (these, others) = rest.split_at(gradients.len());
            gpu.queue().write_buffer(gradients.buffer()?, gradients.offset(), bytemuck::cast_slice(these));
            rest = others;
        }
        if check {
            self.check(ranks, network, &seen)?;
        }
        network.apply(number, self.rate)?;
        Ok(loss)
    }

    /// Compares the mean gradients with those of the whole batch, layer by layer: of what each layer saw on all ranks.
    fn check<C: Communicator>(&self, ranks: &Ranks<C>, network: &Network, seen: &[Seen]) -> Result<(), Box<dyn Error>> {
        let mut largest = 0.0f64;
        for (i, layer) in network.layers.iter().enumerate() {
            let gathered = |of: fn(&Seen) -> &[Vec<f32>]| {
                ranks.gather(&seen.iter().flat_map(|seen| of(seen)[i].iter().copied()).collect::<Vec<f32>>())
            };
            let (x, mut dy) = (gathered(|seen| &seen.inputs), gathered(|seen| &seen.dy));
            // The loss of a shard is a mean over its points, that of the batch over all.
            dy.iter_mut().for_each(|dy| *dy /= self.shards as f32);
            let &[outs, ins] = layer.v.shape() else { return Err("v has two axes".into()) };
            let g = layer.g.as_ref().ok_or("the network has gains")?;
            let dg = layer.dg.as_ref().ok_or("the network has gains")?;
            let (v, g, bias) = (layer.v.read::<f32>()?, g.read::<f32>()?, layer.bias.read::<f32>()?);
            let batch = self.shards * self.points;
            let exact = Layer { batch, outs, ins, x: &x, v: &v, g: &g, bias: &bias, dy: &dy }.results()?;
            for (what, tensor) in [(2, &layer.dv), (3, dg), (4, &layer.dbias)] {
                let worst = worst(&tensor.read::<f32>()?, &exact.0[what]);
                if worst.is_nan() || worst > 1.0 {
                    return Err(format!("{} of layer {i} is {worst:.1e} times its bound off", NAMES[what]).into());
                }
                largest = largest.max(worst);
            }
        }
        if ranks.rank == 0 {
            println!("gradients are those of the whole batch in f64: largest error {largest:.1e} of its bound");
        }
        Ok(())
    }
}

/// What went into each layer for one shard, and the gradients of what came out before the activation.
struct Seen {
    inputs: Vec<Vec<f32>>,
    dy: Vec<Vec<f32>>,
}

impl Seen {
    fn read(network: &Network) -> Result<Seen, weightnorm::Error> {
        let layers = 0..network.layers.len();
        Ok(Seen {
            inputs: layers.clone().map(|i| network.input(i).read()).collect::<Result<_, _>>()?,
            dy: layers.map(|i| network.layers[i].dy.read()).collect::<Result<_, _>>()?,
        })
    }
}

/// A digest of the parameters and of the optimizer's state.
fn parameters(network: &Network) -> Result<u64, weightnorm::Error> {
    let mut all = vec![];
    for (_, tensor) in checkpoint::tensors(network) {
        debug_assert_eq!(tensor.dtype(), DType::F32);
        all.extend(tensor.read::<f32>()?);
    }
    Ok(digest(&all))
}

/// As if somebody, or the system out of memory, had killed this process: no word, no clean-up.
fn die() -> ! {
    let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    std::process::abort()
}
