//! The comparison: either parametrization by either optimizer at every learning rate with every seed.
use weightnorm::{DType, Error, Gpu, Tensor, wgpu};

use crate::data::{Sizes, Text};
use crate::network::{self, Network, Optimizer, Variant};

/// What is compared.
pub struct Plan {
    pub sizes: Sizes,
    pub steps: usize,
    /// Of SGD and of Adam, from small to large.
    pub rates: [Vec<f64>; 2],
    pub seeds: u64,
}

/// One training run. All losses are in bits per character.
pub struct Run {
    pub variant: Variant,
    pub optimizer: Optimizer,
    pub rate: f64,
    pub seed: u64,
    /// Of each step, before it. NaN or infinite where the run diverged.
    pub losses: Vec<f64>,
    /// Of the held-out part, after each [`POINTS`]th of the steps.
    pub held_out: Vec<f64>,
    /// The share of steps whose gradients were clipped.
    pub clipped: f64,
    /// How many times as long the rows of the weights are in the end as they were at first: the mean.
    pub growth: f64,
}

/// The runs of a variant by an optimizer at a rate: means over the seeds, and the range of what is held out.
pub struct Summary {
    pub held_out: f64,
    pub least: f64,
    pub most: f64,
    /// Of the last tenth of the steps.
    pub training: f64,
    pub clipped: f64,
    pub growth: f64,
}

/// How often the held-out part is looked at.
pub const POINTS: usize = 8;

/// Steps between two waits for the GPU.
const IN_FLIGHT: usize = 8;

impl Plan {
    /// All runs, and the weights of the one that had the least loss in the end. `done` hears of each.
    pub fn compare(
        &self,
        gpu: &Gpu,
        text: &Text,
        mut done: impl FnMut(&Run),
    ) -> Result<(Vec<Run>, Option<[Tensor; 5]>), Error> {
        let codes = network::upload(gpu, text)?;
        let mut runs: Vec<Run> = vec![];
        let (mut best, mut least) = (None, f64::INFINITY);
        for variant in Variant::ALL {
            let held_out = text.held_out().len() / self.sizes.batch / self.sizes.length;
            let network = Network::new(gpu, variant, self.sizes, text.alphabet.len(), self.steps.max(held_out))?;
            for (optimizer, rates) in Optimizer::ALL.into_iter().zip(&self.rates) {
                for &rate in rates {
                    for seed in 1..=self.seeds {
                        let run = self.train(gpu, (&network, text, &codes), (optimizer, rate), seed)?;
                        let loss = run.held_out.last().copied().unwrap_or(f64::NAN);
                        if loss < least {
                            (best, least) = (Some(network.folded()?), loss);
                        }
                        done(&run);
                        runs.push(run);
                    }
                }
            }
        }
        // What the example's own kernels did wrong, if anything.
        gpu.check()?;
        Ok((runs, best))
    }

    fn train(
        &self,
        gpu: &Gpu,
        (network, text, codes): (&Network, &Text, &Tensor),
        (optimizer, rate): (Optimizer, f64),
        seed: u64,
    ) -> Result<Run, Error> {
        let [training, held_out] = [text.training(), text.held_out()].map(|part| network.stream(codes, part));
        let (training, held_out) = (training?, held_out?);
        let clip = network.clipping(&training)?;
        let results = gpu.zeros(&[self.steps + POINTS * held_out.steps, 2], DType::F32)?;
        network.start(seed)?;
        let lengths = network.row_lengths()?;
        let mut point = 0;
        for number in 1..=self.steps {
            network.step(&training, &clip, &results, number, (optimizer, rate))?;
            while POINTS * number >= (point + 1) * self.steps {
                network.rewind(&held_out)?;
                let first = self.steps + point * held_out.steps;
                for step in 0..held_out.steps {
                    network.evaluate(&held_out, step, (&results, first + step))?;
                }
                point += 1;
            }
            if number % IN_FLIGHT == 0 {
                // Whoever waits for it hears what went wrong, too.
                let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
            }
        }
        gpu.check()?;
        let results = results.read::<f32>()?;
        let (of_steps, of_points) = results.split_at(2 * self.steps);
        let bits: fn(&[f32]) -> f64 = |result| f64::from(result[0]) / std::f64::consts::LN_2;
        let clipped = of_steps.chunks(2).filter(|result| result[1] > 1.0).count();
        let of_point = |point: &[f32]| point.chunks(2).map(bits).sum::<f64>() / held_out.steps as f64;
        let grown: Vec<f64> = network.row_lengths()?.iter().zip(&lengths).map(|(end, start)| end / start).collect();
        Ok(Run {
            variant: network.variant,
            optimizer,
            rate,
            seed,
            losses: of_steps.chunks(2).map(bits).collect(),
            held_out: of_points.chunks(2 * held_out.steps).map(of_point).collect(),
            clipped: clipped as f64 / self.steps as f64,
            growth: grown.iter().sum::<f64>() / grown.len() as f64,
        })
    }

    /// Every optimizer with each of its rates.
    pub fn columns(&self) -> Vec<(Optimizer, f64)> {
        let of =
            |(optimizer, rates): (Optimizer, &Vec<f64>)| rates.iter().map(move |&rate| (optimizer, rate)).collect();
        Optimizer::ALL.into_iter().zip(&self.rates).flat_map(|both| -> Vec<_> { of(both) }).collect()
    }
}

/// Of the runs of a variant by an optimizer at a rate.
pub fn summary(runs: &[Run], variant: Variant, column: (Optimizer, f64)) -> Summary {
    let runs: Vec<&Run> = select(runs, variant, column).collect();
    let mean = |of: &dyn Fn(&Run) -> f64| runs.iter().map(|run| of(run)).sum::<f64>() / runs.len() as f64;
    let last = |run: &Run| run.held_out.last().copied().unwrap_or(f64::NAN);
    let tail = |run: &Run| {
        let losses = &run.losses[run.losses.len() - run.losses.len().div_ceil(10)..];
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    Summary {
        held_out: mean(&last),
        least: runs.iter().map(|run| last(run)).fold(f64::INFINITY, f64::min),
        most: runs.iter().map(|run| last(run)).fold(f64::NEG_INFINITY, f64::max),
        training: mean(&tail),
        clipped: mean(&|run| run.clipped),
        growth: mean(&|run| run.growth),
    }
}

/// The runs of a variant by an optimizer at a rate.
pub fn select(runs: &[Run], variant: Variant, (optimizer, rate): (Optimizer, f64)) -> impl Iterator<Item = &Run> {
    runs.iter().filter(move |run| run.variant == variant && run.optimizer == optimizer && run.rate == rate)
}
