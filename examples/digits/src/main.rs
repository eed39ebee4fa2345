//! Trains a small convolutional network on handwritten digits, on the GPU, by SGD with momentum, and compares ways to
//! parametrize its weights.
//!
//!     cargo run --release -p digits
//!     cargo run --release -p digits -- --epochs 10 --seeds 3 --rates 0.01,0.03,0.1,0.3,1 --out docs/digits.svg
//!
//! Plain weights, weight normalization with two kinds of initialization, and weight normalization with mean-only batch
//! normalization start from the same directions and see the same images. A step is one submission: network.rs records
//! it, with this example's own kernels (kernels.wgsl) for the batch and the loss among those of the crate.
//!
//! Exit code: 0 done, 2 the arguments, the file or the GPU would not do.
use std::error::Error;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use digits::compare::{Plan, Run};
use digits::data::TRAINING;
use digits::network::Variant;
use digits::picture;
use tinyjson::JsonValue;
use weightnorm::Gpu;

const HELP: &str = "\
Trains a network on handwritten digits on the GPU and compares plain weights with weight normalization

Usage: digits [OPTIONS]

  --epochs <N>     times that a run sees the 1,297 training images [default: 3]
  --rates <A,B>    learning rates [default: 0.01,0.1,0.3,1]
  --seeds <N>      runs for each variant and rate, each with other weights and another order [default: 2]
  --batch <N>      images of a step [default: 64]
  --out <SVG>      where the picture goes [default: target/digits.svg]
  --json           prints one line of JSON instead of text
  -h, --help       prints this
";

struct Arguments {
    plan: Plan,
    out: PathBuf,
    json: bool,
    help: bool,
}

impl Arguments {
    fn parse() -> Result<Arguments, lexopt::Error> {
        use lexopt::prelude::*;
        let plan = Plan { epochs: 3, batch: 64, rates: vec![0.01, 0.1, 0.3, 1.0], seeds: 2 };
        let mut arguments = Arguments { plan, out: "target/digits.svg".into(), json: false, help: false };
        let plan = &mut arguments.plan;
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("epochs") => plan.epochs = parser.value()?.parse()?,
                Long("seeds") => plan.seeds = parser.value()?.parse()?,
                Long("batch") => plan.batch = parser.value()?.parse()?,
                Long("rates") => {
                    let rates = parser.value()?.string()?;
                    plan.rates = rates
                        .split(',')
                        .map(str::parse)
                        .collect::<Result<_, _>>()
                        .map_err(|e| format!("--rates {rates}: {e}"))?;
                }
                Long("out") => arguments.out = parser.value()?.into(),
                Long("json") => arguments.json = true,
                Long("help") | Short('h') => arguments.help = true,
                other => return Err(other.unexpected()),
            }
        }
        plan.rates.sort_by(f64::total_cmp);
        plan.rates.dedup();
        if plan.rates.iter().any(|&rate| !(rate > 0.0 && rate < 1e6)) {
            return Err("--rates: expected numbers above 0, below a million".into());
        }
        for (name, value, most) in
            [("epochs", plan.epochs, 10_000), ("seeds", plan.seeds as usize, 1000), ("batch", plan.batch, TRAINING)]
        {
            if !(1..=most).contains(&value) {
                return Err(format!("--{name} {value}: expected 1 to {most}").into());
            }
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    match Arguments::parse().map_err(Into::into).and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("digits: {}", error.to_string().replace('\n', " "));
            ExitCode::from(2)
        }
    }
}

fn run(Arguments { plan, out, json, help }: &Arguments) -> Result<(), Box<dyn Error>> {
    if *help {
        print!("{HELP}");
        return Ok(());
    }
    let gpu = Gpu::new()?;
    // What cannot be written is better known before the training than after it.
    let mut file = create(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let count = Variant::ALL.len() * plan.rates.len() * plan.seeds as usize;
    let (start, mut done) = (Instant::now(), 0);
    let terminal = std::io::stderr().is_terminal();
    let runs = plan.compare(&gpu, |run| {
        done += 1;
        if terminal {
            eprint!("\r{done} of {count} runs, rate {}, {:16}", run.rate, run.variant.key());
        }
    })?;
    let time = start.elapsed();
    if terminal {
        eprintln!();
    }
    file.write_all(picture::draw(plan, &runs, &gpu.report().info.name).as_bytes())
        .map_err(|e| format!("{}: {e}", out.display()))?;
    if *json {
        println!("{}", to_json(plan, &gpu, &runs, time)?);
    } else {
        print(plan, &gpu, &runs, time);
        println!("written:    {}", out.display());
    }
    Ok(())
}

fn create(path: &Path) -> std::io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), std::fs::create_dir_all)?;
    File::create(path)
}

fn print(plan: &Plan, gpu: &Gpu, runs: &[Run], time: Duration) {
    let Plan { epochs, batch, seeds, .. } = plan;
    println!("{}", gpu.report());
    let step = time.as_secs_f64() * 1e3 / (runs.len() * epochs * plan.steps()) as f64;
    println!("training:   {epochs} epochs of {} steps, batches of {batch}, momentum 0.9, {seeds} seeds", plan.steps());
    println!("time:       {:.1} s for {} runs, {step:.2} ms a step", time.as_secs_f64(), runs.len());
    println!(
        "results:    test images told right in the end, %: the mean (and the range) of the seeds; and the mean of"
    );
    println!("            the loss over the last epoch's batches\n");
    println!("{:>8}  {:<16}{:>22}{:>12}", "rate", "variant", "right, %", "loss");
    for &rate in &plan.rates {
        for variant in Variant::ALL {
            let of = plan.summary(runs, variant, rate);
            let range = format!("({:.1} - {:.1})", 100.0 * of.least, 100.0 * of.most);
            let accuracy = format!("{:.1} {range:>15}", 100.0 * of.accuracy);
            println!("{rate:>8}  {:<16}{accuracy:>22}{:>12.5}", variant.key(), of.training_loss);
        }
        println!();
    }
}

/// What is no number is null.
fn to_json(plan: &Plan, gpu: &Gpu, runs: &[Run], time: Duration) -> Result<String, Box<dyn Error>> {
    let info = gpu.report().info;
    let text = |text: &str| JsonValue::String(text.to_owned());
    let number = |x: f64| if x.is_finite() { JsonValue::Number(x) } else { JsonValue::Null };
    let object = |fields: &[(&str, JsonValue)]| {
        JsonValue::Object(fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
    };
    let mut results = vec![];
    for variant in Variant::ALL {
        for &rate in &plan.rates {
            let of = plan.summary(runs, variant, rate);
            results.push(object(&[
                ("variant", text(variant.key())),
                ("rate", number(rate)),
                ("accuracy", number(of.accuracy)),
                ("least_accuracy", number(of.least)),
                ("most_accuracy", number(of.most)),
                ("training_loss", number(of.training_loss)),
                ("test_loss", number(of.test_loss)),
            ]));
        }
    }
    let line = object(&[
        ("adapter", text(&info.name)),
        ("driver", text(format!("{} {}", info.driver, info.driver_info).trim())),
        ("backend", text(&format!("{:?}", info.backend))),
        ("epochs", number(plan.epochs as f64)),
        ("batch", number(plan.batch as f64)),
        ("seeds", number(plan.seeds as f64)),
        ("seconds", number(time.as_secs_f64())),
        ("results", JsonValue::Array(results)),
    ]);
    Ok(line.stringify()?)
}
