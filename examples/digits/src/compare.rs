//! The comparison: every variant at every learning rate with every seed.
use weightnorm::{DType, Error, Gpu, Tensor, wgpu};

use crate::data::{self, Digits, TRAINING};
use crate::network::{Batch, Images, Network, Variant};

/// What is compared.
pub struct Plan {
    pub epochs: usize,
    pub batch: usize,
    /// From small to large.
    pub rates: Vec<f64>,
    pub seeds: u64,
}

/// One training run.
pub struct Run {
    pub variant: Variant,
    pub rate: f64,
    pub seed: u64,
    /// The loss of each batch, before the step on it. NaN or infinite where the run diverged.
    pub losses: Vec<f32>,
    /// The loss of the test images after each epoch, and the share of them that was told right.
    pub tests: Vec<[f32; 2]>,
}

/// The runs of a variant at a rate: a mean over the seeds, and their range.
pub struct Summary {
    /// The share of test images that was told right in the end.
    pub accuracy: f64,
    pub least: f64,
    pub most: f64,
    /// The loss of the batches of the last epoch.
    pub training_loss: f64,
    pub test_loss: f64,
}

/// Steps between two waits for the GPU.
const IN_FLIGHT: usize = 8;

impl Plan {
    /// Steps of an epoch: what fills no batch is left out, others each time.
    pub fn steps(&self) -> usize {
        TRAINING / self.batch
    }

    /// All runs. `done` hears of each.
    pub fn compare(&self, gpu: &Gpu, mut done: impl FnMut(&Run)) -> Result<Vec<Run>, Error> {
        let digits = Digits::shipped();
        let images = Images::new(gpu, &digits)?;
        let batch = images.batch(0..self.batch)?;
        let population = images.batch(0..TRAINING)?;
        let test = images.batch(TRAINING..digits.labels.len())?;
        let networks =
            Variant::ALL.into_iter().map(|variant| Network::new(gpu, variant)).collect::<Result<Vec<_>, _>>()?;
        let results = gpu.zeros(&[self.epochs * (self.steps() + 1), 2], DType::F32)?;
        let mut runs = vec![];
        for seed in 1..=self.seeds {
            // The same images in the same order for all runs of a seed.
            let order = data::order(seed, self.epochs, self.batch);
            let order: Vec<f32> = order.into_iter().map(|image| image as f32).collect();
            let order = gpu.upload(&order, &[order.len()])?;
            for &rate in &self.rates {
                for (variant, network) in Variant::ALL.into_iter().zip(&networks) {
                    network.start(seed, &batch, &order)?;
                    self.train(gpu, network, [&batch, &population, &test], [&order, &results], rate)?;
                    let results = results.read::<f32>()?;
                    let (losses, tests) = results.split_at(2 * self.epochs * self.steps());
                    let losses = losses.iter().step_by(2).copied().collect();
                    let tests = tests.chunks(2).map(|test| [test[0], test[1]]).collect();
                    runs.push(Run { variant, rate, seed, losses, tests });
                    runs.last().into_iter().for_each(&mut done);
                }
            }
        }
        // What the example's own kernels did wrong, if anything.
        gpu.check()?;
        Ok(runs)
    }

    /// The results of the steps come first, those of the epochs behind them.
    fn train(
        &self,
        gpu: &Gpu,
        network: &Network,
        [batch, population, test]: [&Batch; 3],
        [order, results]: [&Tensor; 2],
        rate: f64,
    ) -> Result<(), Error> {
        let steps = self.epochs * self.steps();
        for number in 1..=steps {
            network.step(batch, order, results, number, rate)?;
            if number % self.steps() == 0 {
                network.evaluate(test, population, (results, steps + number / self.steps() - 1))?;
            }
            if number % IN_FLIGHT == 0 {
                // Whoever waits for it hears what went wrong, too.
                let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
            }
        }
        gpu.check()
    }

    /// Of the runs of a variant at a rate.
    pub fn summary(&self, runs: &[Run], variant: Variant, rate: f64) -> Summary {
        let runs: Vec<&Run> = select(runs, variant, rate).collect();
        let mean = |of: &dyn Fn(&Run) -> f64| runs.iter().map(|run| of(run)).sum::<f64>() / runs.len() as f64;
        let last = |run: &Run| run.tests.last().map_or([f64::NAN; 2], |test| test.map(f64::from));
        let accuracies = || runs.iter().map(|run| last(run)[1]);
        let tail = |run: &Run| -> f64 {
            let losses = &run.losses[run.losses.len() - self.steps()..];
            losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
        };
        Summary {
            accuracy: mean(&|run| last(run)[1]),
            least: accuracies().fold(f64::INFINITY, f64::min),
            most: accuracies().fold(f64::NEG_INFINITY, f64::max),
            training_loss: mean(&tail),
            test_loss: mean(&|run| last(run)[0]),
        }
    }
}

/// The runs of a variant at a rate.
pub fn select(runs: &[Run], variant: Variant, rate: f64) -> impl Iterator<Item = &Run> {
    runs.iter().filter(move |run| run.variant == variant && run.rate == rate)
}
