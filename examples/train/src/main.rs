//! Trains a network on the GPU, a DeepSDF decoder from scratch, and compares ways to parametrize its weights.
//!
//!     cargo run --release -p train
//!     cargo run --release -p train -- --full --image docs/training.png
//!
//! The network learns the signed distance to the union of three orthogonal cylinders, whose radius is its latent number.
//! Plain weights, weight normalization with two kinds of initialization, and weight normalization with mean-only batch
//! normalization start from the same directions and see the same points, at several learning rates and with several
//! seeds each. A step is one submission; step.rs records it, with this example's own kernels (kernels.wgsl) for the
//! loss and the skip connection among those of the crate.
//!
//! Exit code: 0 done, 2 the arguments, a file or the GPU would not do.
mod chart;

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use weightnorm::{DType, Gpu, Tensor};

use train::shape::{self, Random};
use train::step::{INPUT, Network, Optimizer, Variant};

/// Trains a DeepSDF network on the GPU and compares plain weights with weight normalization.
#[derive(Parser)]
struct Arguments {
    /// The whole comparison: the decoder at its real width, larger batches, more steps. For a GPU
    #[arg(long)]
    full: bool,
    /// The width of the hidden layers [default: 32; with --full 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(8..=1024))]
    width: Option<u16>,
    /// Points in a batch, a multiple of 16 [default: 128; with --full 2048]
    #[arg(long, value_name = "N", value_parser = batch)]
    batch: Option<usize>,
    /// Steps of a run [default: 200; with --full 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: Option<u32>,
    /// Seeds, and so runs, for each variant and learning rate
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=50))]
    seeds: u8,
    /// Learning rates [default: 0.001,0.003,0.01,0.03,0.1; for sgd 0.01,0.03,0.1,0.3,1]
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', value_parser = rate)]
    rates: Vec<f64>,
    /// Who makes the steps
    #[arg(long, value_enum, default_value = "adam")]
    optimizer: OptimizerName,
    /// Where the losses go: variant, rate, seed, step, points, loss
    #[arg(long, value_name = "CSV", default_value = "target/train.csv")]
    csv: PathBuf,
    /// Where the picture goes, a PNG
    #[arg(long, value_name = "PNG", default_value = "target/train.png")]
    image: PathBuf,
    /// Prints one line of JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum OptimizerName {
    Adam,
    /// With a momentum of 0.9
    Sgd,
}

fn batch(text: &str) -> Result<usize, String> {
    let valid = |&n: &usize| (16..=65_536).contains(&n) && n.is_multiple_of(16);
    text.parse().ok().filter(valid).ok_or_else(|| "expected a multiple of 16, at most 65536".into())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&r: &f64| r > 0.0 && r.is_finite()).ok_or_else(|| "expected a number above 0".into())
}

/// What is compared.
struct Plan {
    width: usize,
    batch: usize,
    steps: usize,
    seeds: u64,
    rates: Vec<f64>,
    optimizer: Optimizer,
}

/// One training run.
struct Run {
    variant: Variant,
    rate: f64,
    seed: u64,
    /// The loss of each batch, before the step on it.
    losses: Vec<f32>,
    /// The loss in the end, over points that no step saw; NaN or infinite where the run diverged.
    held_out: f64,
}

/// Batches that no step sees.
const HELD_OUT: usize = 32;
/// Steps between two waits for the GPU.
const IN_FLIGHT: usize = 8;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("train: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let image = &arguments.image;
    if image.extension().is_none_or(|e| e != "png") {
        return Err(format!("--image {}: the name of a picture ends in .png", image.display()).into());
    }
    // What cannot be written is better known before the training than after it.
    let csv = create(&arguments.csv)?;
    drop(create(image)?);
    let plan = Plan::new(arguments);

    let gpu = Gpu::new()?;
    let start = Instant::now();
    let runs = plan.compare(&gpu)?;
    let time = start.elapsed();

    write_csv(csv, &runs).map_err(|e| format!("{}: {e}", arguments.csv.display()))?;
    chart::draw(image, &plan, &runs)?;
    if arguments.json {
        println!("{}", plan.json(&gpu, &runs, time));
    } else {
        plan.print(&gpu, &runs, time);
        println!("written:    {}, {}", arguments.csv.display(), image.display());
    }
    Ok(())
}

fn create(path: &Path) -> Result<File, String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| File::create(path))
        .map_err(|e| format!("{}: {e}", path.display()))
}

impl Plan {
    fn new(arguments: &Arguments) -> Plan {
        let full = arguments.full;
        let (optimizer, rates) = match arguments.optimizer {
            OptimizerName::Adam => (Optimizer::Adam, [0.001, 0.003, 0.01, 0.03, 0.1]),
            OptimizerName::Sgd => (Optimizer::Sgd, [0.01, 0.03, 0.1, 0.3, 1.0]),
        };
        let mut rates = if arguments.rates.is_empty() { rates.to_vec() } else { arguments.rates.clone() };
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        Plan {
            width: arguments.width.map_or(if full { 128 } else { 32 }, usize::from),
            batch: arguments.batch.unwrap_or(if full { 2048 } else { 128 }),
            steps: arguments.steps.map_or(if full { 2000 } else { 200 }, |steps| steps as usize),
            seeds: arguments.seeds.into(),
            rates,
            optimizer,
        }
    }

    /// Every run.
    fn compare(&self, gpu: &Gpu) -> Result<Vec<Run>, Box<dyn Error>> {
        let network = |variant| Network::new(gpu, variant, self.optimizer, self.width, self.batch);
        let networks = Variant::ALL.into_iter().map(network).collect::<Result<Vec<_>, _>>()?;
        let batches = |seed: u64, count: usize| {
            let points = shape::points(&mut Random::new(seed), count * self.batch);
            gpu.upload(&points, &[count, self.batch, INPUT])
        };
        let held_out = batches(u64::MAX, HELD_OUT)?;
        let losses = gpu.zeros(&[self.steps + HELD_OUT], DType::F32)?;

        let run_count = networks.len() * self.rates.len() * self.seeds as usize;
        let progress = ProgressBar::new((run_count * self.steps) as u64)
            .with_style(ProgressStyle::with_template("{wide_bar} {percent:>3} %, {eta} left   {msg:34}")?);
        let mut runs = vec![];
        for seed in 1..=self.seeds {
            // The same points for all runs of a seed.
            let points = batches(seed << 32, self.steps)?;
            for &rate in &self.rates {
                for (variant, network) in Variant::ALL.into_iter().zip(&networks) {
                    progress.set_message(format!("{}, rate {rate}, seed {seed}", variant.key()));
                    self.train(gpu, network, (seed, rate), [&points, &held_out], &losses, &progress)?;
                    let mut losses = losses.read::<f32>()?;
                    let tail = losses.split_off(self.steps);
                    let held_out = tail.iter().map(|&loss| f64::from(loss)).sum::<f64>() / HELD_OUT as f64;
                    runs.push(Run { variant, rate, seed, losses, held_out });
                }
            }
        }
        progress.finish_and_clear();
        // What the example's own kernels did wrong, if anything.
        gpu.check()?;
        Ok(runs)
    }

    fn train(
        &self,
        gpu: &Gpu,
        network: &Network,
        (seed, rate): (u64, f64),
        [points, held_out]: [&Tensor; 2],
        losses: &Tensor,
        progress: &ProgressBar,
    ) -> Result<(), Box<dyn Error>> {
        network.start(seed, (points, 0))?;
        for step in 0..self.steps {
            network.step((points, step), (losses, step), step as u64 + 1, rate)?;
            if step % IN_FLIGHT == IN_FLIGHT - 1 {
                gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
                progress.inc(IN_FLIGHT as u64);
            }
        }
        progress.inc((self.steps % IN_FLIGHT) as u64);
        for i in 0..HELD_OUT {
            network.evaluate((held_out, i), (losses, self.steps + i))?;
        }
        Ok(())
    }

    /// The middle one of the held-out losses over the seeds, at each rate.
    fn medians(&self, runs: &[Run], variant: Variant) -> Vec<f64> {
        let at = |&rate: &f64| median(select(runs, variant, rate).map(|run| run.held_out).collect());
        self.rates.iter().map(at).collect()
    }

    /// The rate with the least median.
    fn best_rate(&self, runs: &[Run], variant: Variant) -> f64 {
        let medians = self.medians(runs, variant);
        let rates = self.rates.iter().zip(medians);
        rates.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(f64::NAN, |(&rate, _)| rate)
    }

    fn print(&self, gpu: &Gpu, runs: &[Run], time: Duration) {
        println!("{}", gpu.report());
        let Plan { width, batch, steps, seeds, .. } = self;
        println!(
            "network:    DeepSDF, width {width}; {steps} steps of {batch} points with {:?}; {seeds} seeds",
            self.optimizer
        );
        let step = time.as_secs_f64() * 1e3 / (runs.len() * steps) as f64;
        println!("time:       {:.1} s for {} runs, {step:.2} ms a step", time.as_secs_f64(), runs.len());
        println!(
            "loss:       mean |f - d| over {} points that no step saw, the median of the seeds\n",
            HELD_OUT * batch
        );
        let cells = |name: &str, cells: Vec<String>| {
            println!("{name:<15}{}", cells.iter().map(|cell| format!("{cell:>9}")).collect::<String>());
        };
        cells("rate", self.rates.iter().map(f64::to_string).collect());
        for variant in Variant::ALL {
            cells(variant.key(), self.medians(runs, variant).iter().map(|loss| format!("{loss:.5}")).collect());
        }
        println!();
    }

    fn json(&self, gpu: &Gpu, runs: &[Run], time: Duration) -> serde_json::Value {
        let info = gpu.report().info;
        let result = |variant: Variant| {
            let final_losses = |&rate: &f64| select(runs, variant, rate).map(|run| run.held_out).collect::<Vec<_>>();
            serde_json::json!({
                "variant": variant.key(),
                "best_rate": self.best_rate(runs, variant),
                "held_out_loss": self.rates.iter().map(final_losses).collect::<Vec<_>>(),
            })
        };
        serde_json::json!({
            "adapter": info.name,
            "driver": format!("{} {}", info.driver, info.driver_info).trim(),
            "backend": format!("{:?}", info.backend),
            "optimizer": format!("{:?}", self.optimizer).to_lowercase(),
            "width": self.width,
            "batch": self.batch,
            "steps": self.steps,
            "rates": self.rates,
            "seconds": time.as_secs_f64(),
            "variants": Variant::ALL.map(result),
        })
    }
}

/// The runs of a variant at a rate.
fn select(runs: &[Run], variant: Variant, rate: f64) -> impl Iterator<Item = &Run> {
    runs.iter().filter(move |run| run.variant == variant && run.rate == rate)
}

/// The middle one, the lower one of two; NaN counts as the largest of all.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
    numbers.get(numbers.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

fn write_csv(file: File, runs: &[Run]) -> std::io::Result<()> {
    let mut csv = BufWriter::new(file);
    writeln!(csv, "variant,rate,seed,step,points,loss")?;
    for Run { variant, rate, seed, losses, held_out } in runs {
        let variant = variant.key();
        for (step, loss) in losses.iter().enumerate() {
            writeln!(csv, "{variant},{rate},{seed},{},training,{loss}", step + 1)?;
        }
        writeln!(csv, "{variant},{rate},{seed},{},held_out,{held_out}", losses.len())?;
    }
    csv.flush()
}
