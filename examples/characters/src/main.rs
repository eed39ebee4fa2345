//! Trains a language model of characters on the GPU, an LSTM, by SGD and by Adam, and compares plain weights with
//! weight normalization; then it writes.
//!
//!     cargo run --release -p characters
//!     cargo run --release -p characters -- --steps 600 --units 128 --seeds 2 --sgd 0.1,0.3,1,3 \
//!         --adam 0.001,0.003,0.01,0.03 --out docs/characters.svg
//!
//! Both start from the same weights and see the same characters. A step is one submission: network.rs records it, with
//! this example's own kernels (kernels.wgsl) for what is read, the loss and the clipping, among those of the crate.
//!
//! Exit code: 0 done, 2 the arguments, the file or the GPU would not do.
use std::error::Error;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use characters::compare::{Plan, Run, summary};
use characters::data::{Sizes, Text};
use characters::network::Variant;
use characters::{picture, write};
use tinyjson::JsonValue;
use weightnorm::Gpu;

const HELP: &str = "\
Trains an LSTM on the characters of a text on the GPU and compares plain weights with weight normalization; then writes

Usage: characters [OPTIONS]

  --steps <N>        steps of a run [default: 100]
  --units <N>        of the LSTM [default: 64]
  --batch <N>        sequences that are read beside each other [default: 32]
  --length <N>       characters of each in a step, as far as gradients go back [default: 32]
  --sgd <A,B>        learning rates of SGD, or none [default: 0.3,3]
  --adam <A,B>       learning rates of Adam, or none [default: 0.003,0.03]
  --seeds <N>        runs for each rate, each with other weights [default: 1]
  --write <N>        characters that the best network writes in the end [default: 300]
  --temperature <T>  below 1 it keeps to what it is surer of [default: 0.7]
  --out <SVG>        where the picture goes [default: target/characters.svg]
  --json             prints one line of JSON instead of text
  -h, --help         prints this
";

struct Arguments {
    plan: Plan,
    write: usize,
    temperature: f64,
    out: PathBuf,
    json: bool,
    help: bool,
}

impl Arguments {
    fn parse() -> Result<Arguments, lexopt::Error> {
        use lexopt::prelude::*;
        let sizes = Sizes { units: 64, batch: 32, length: 32 };
        let plan = Plan { sizes, steps: 100, rates: [vec![0.3, 3.0], vec![0.003, 0.03]], seeds: 1 };
        let out = "target/characters.svg".into();
        let mut arguments = Arguments { plan, write: 300, temperature: 0.7, out, json: false, help: false };
        let plan = &mut arguments.plan;
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("steps") => plan.steps = parser.value()?.parse()?,
                Long("units") => plan.sizes.units = parser.value()?.parse()?,
                Long("batch") => plan.sizes.batch = parser.value()?.parse()?,
                Long("length") => plan.sizes.length = parser.value()?.parse()?,
                Long("sgd") => plan.rates[0] = rates("sgd", &parser.value()?.string()?)?,
                Long("adam") => plan.rates[1] = rates("adam", &parser.value()?.string()?)?,
                Long("seeds") => plan.seeds = parser.value()?.parse()?,
                Long("write") => arguments.write = parser.value()?.parse()?,
                Long("temperature") => arguments.temperature = parser.value()?.parse()?,
                Long("out") => arguments.out = parser.value()?.into(),
                Long("json") => arguments.json = true,
                Long("help") | Short('h') => arguments.help = true,
                other => return Err(other.unexpected()),
            }
        }
        if plan.columns().is_empty() {
            return Err("--sgd none, --adam none: nothing is left to compare".into());
        }
        for (name, value, most) in [
            ("steps", plan.steps, 100_000),
            ("units", plan.sizes.units, 2048),
            ("batch", plan.sizes.batch, 128),
            ("length", plan.sizes.length, 64),
            ("seeds", plan.seeds as usize, 1000),
        ] {
            if !(1..=most).contains(&value) {
                return Err(format!("--{name} {value}: expected 1 to {most}").into());
            }
        }
        if arguments.write > 1_000_000 {
            return Err(format!("--write {}: expected up to 1000000", arguments.write).into());
        }
        if !(arguments.temperature >= 0.01 && arguments.temperature <= 100.0) {
            return Err(format!("--temperature {}: expected 0.01 to 100", arguments.temperature).into());
        }
        Ok(arguments)
    }
}

/// From small to large.
fn rates(name: &str, text: &str) -> Result<Vec<f64>, lexopt::Error> {
    if text == "none" {
        return Ok(vec![]);
    }
    let rates = text.split(',').map(str::parse).collect::<Result<Vec<f64>, _>>();
    let mut rates = rates.map_err(|e| format!("--{name} {text}: {e}"))?;
    if rates.iter().any(|&rate| !(rate > 0.0 && rate < 1e6)) {
        return Err(format!("--{name}: expected numbers above 0, below a million").into());
    }
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    Ok(rates)
}

fn main() -> ExitCode {
    match Arguments::parse().map_err(Into::into).and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("characters: {}", error.to_string().replace('\n', " "));
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { plan, out, .. } = arguments;
    if arguments.help {
        print!("{HELP}");
        return Ok(());
    }
    let gpu = Gpu::new()?;
    // What cannot be written is better known before the training than after it.
    let mut file = create(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let text = Text::shipped();
    let count = Variant::ALL.len() * plan.columns().len() * plan.seeds as usize;
    let (start, mut done) = (Instant::now(), 0);
    let terminal = std::io::stderr().is_terminal();
    let (runs, best) = plan.compare(&gpu, &text, |run| {
        done += 1;
        if terminal {
            eprint!("\r{done} of {count} runs, {} {}, {:12}", run.optimizer.key(), run.rate, run.variant.key());
        }
    })?;
    let time = start.elapsed();
    if terminal {
        eprintln!();
    }
    // Where all runs diverged nobody can write.
    let drawn = (arguments.write, arguments.temperature, 1);
    let written = best.map(|folded| write::write(&gpu, &text, &folded, drawn)).transpose()?.unwrap_or_default();
    file.write_all(picture::draw(plan, &runs, &gpu.report().info.name).as_bytes())
        .map_err(|e| format!("{}: {e}", out.display()))?;
    if arguments.json {
        println!("{}", to_json(plan, &gpu, &runs, time, &written)?);
    } else {
        print(plan, &gpu, &text, &runs, time);
        println!("written at a temperature of {}:\n\n{written}\n", arguments.temperature);
        println!("picture:    {}", out.display());
    }
    Ok(())
}

fn create(path: &Path) -> std::io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), std::fs::create_dir_all)?;
    File::create(path)
}

fn print(plan: &Plan, gpu: &Gpu, text: &Text, runs: &[Run], time: Duration) {
    let Plan { sizes: Sizes { units, batch, length }, steps, seeds, .. } = plan;
    println!("{}", gpu.report());
    let (training, held_out) = (text.training().len(), text.held_out().len());
    println!("text:       {training} characters to learn, {held_out} held out, {} different", text.alphabet.len());
    println!("training:   LSTM of {units} units, {steps} steps of {batch} x {length} characters, {seeds} seeds");
    let step = time.as_secs_f64() * 1e3 / (runs.len() * steps) as f64;
    println!("time:       {:.1} s for {} runs, {step:.1} ms a step with its share", time.as_secs_f64(), runs.len());
    println!("results:    bits per character: of what is held out in the end, the mean (and the range) of the seeds;");
    println!("            of the last tenth of the steps; the share of steps whose gradients were clipped; and how");
    println!("            many times as long the rows of the weights became\n");
    let heads = ["variant", "held out", "training", "clipped", "growth"];
    let [variant, held_out, training, clipped, growth] = heads;
    println!("{:13}  {variant:<12}{held_out:>24}{training:>10}{clipped:>9}{growth:>8}", "         rate");
    for (optimizer, rate) in plan.columns() {
        for variant in Variant::ALL {
            let of = summary(runs, variant, (optimizer, rate));
            let bits = format!("{:.3} {:>15}", of.held_out, format!("({:.3} - {:.3})", of.least, of.most));
            let clipped = format!("{:.0} %", 100.0 * of.clipped);
            let name = optimizer.key();
            let [variant, training, growth] =
                [variant.key(), &format!("{:.3}", of.training), &format!("{:.2}", of.growth)];
            println!("{name:<5}{rate:>8}  {variant:<12}{bits:>24}{training:>10}{clipped:>9}{growth:>8}");
        }
        println!();
    }
}

/// What is no number is null.
fn to_json(plan: &Plan, gpu: &Gpu, runs: &[Run], time: Duration, written: &str) -> Result<String, Box<dyn Error>> {
    let info = gpu.report().info;
    let text = |text: &str| JsonValue::String(text.to_owned());
    let number = |x: f64| if x.is_finite() { JsonValue::Number(x) } else { JsonValue::Null };
    let object = |fields: &[(&str, JsonValue)]| {
        JsonValue::Object(fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
    };
    let mut results = vec![];
    for (optimizer, rate) in plan.columns() {
        for variant in Variant::ALL {
            let of = summary(runs, variant, (optimizer, rate));
            results.push(object(&[
                ("variant", text(variant.key())),
                ("optimizer", text(optimizer.key())),
                ("rate", number(rate)),
                ("held_out", number(of.held_out)),
                ("least_held_out", number(of.least)),
                ("most_held_out", number(of.most)),
                ("training", number(of.training)),
                ("clipped", number(of.clipped)),
                ("growth", number(of.growth)),
            ]));
        }
    }
    let line = object(&[
        ("adapter", text(&info.name)),
        ("driver", text(format!("{} {}", info.driver, info.driver_info).trim())),
        ("backend", text(&format!("{:?}", info.backend))),
        ("units", number(plan.sizes.units as f64)),
        ("batch", number(plan.sizes.batch as f64)),
        ("length", number(plan.sizes.length as f64)),
        ("steps", number(plan.steps as f64)),
        ("seeds", number(plan.seeds as f64)),
        ("seconds", number(time.as_secs_f64())),
        ("results", JsonValue::Array(results)),
        ("written", text(written)),
    ]);
    Ok(line.stringify()?)
}
