//! Makes sound of frames on the GPU: HiFi-GAN's generator or DAC's decoder, weight-normalized.
//!
//!     cargo run --release -p vocode
//!     cargo run --release -p vocode -- MODEL.safetensors --input IO.safetensors --output sound.wav
//!     cargo run --release -p vocode -- --random v1 --chunk 16
//!
//! Every layer is one dispatch of the crate's kernels, and all are one submission (vocoder.rs). Samples are compared
//! with the file's, and with the CPU reference (reference.rs). Without any GPU driver the reference does it all.
//! tests/data/README.md describes the files.
//!
//! Exit code: 0 done, 1 the error exceeds its bound, 2 the arguments, a file or the GPU would not do.
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use tinyjson::JsonValue;
use vocode::file::File;
use vocode::hifigan;
use vocode::network::Network;
use vocode::random::{Random, Variant};
use vocode::reference::{self, Reference};
use vocode::sound::Sound;
use vocode::vocoder::{Vocoder, stretches};
use weightnorm::{Gpu, cpu};

const HELP: &str = "\
Makes sound with a weight-normalized decoder on the GPU and checks the result

Usage: vocode [OPTIONS] [MODEL]

  MODEL            a safetensors file of HiFi-GAN's generator or DAC's decoder, as tests/data/README.md describes it
                   [default: hifigan_small in tests/data, with its input]
  --input <IO>     a safetensors file with `input` [1, channels, frames] and maybe `expected` [1, 1, samples]
  --random <V>     instead of MODEL: HiFi-GAN v1, v2 or v3 with random weights; without --input a second of noise
  --output <WAV>   writes the sound, 16 bits a sample, which every player takes
  --chunk <N>      streams: N frames a submission, and beside them what their sound depends on
  --check <N>      compares the sound of the first N frames with the CPU reference [default: what takes it seconds]
  --json           prints one line of JSON instead of text
  -h, --help       prints this
";

#[derive(Default)]
struct Arguments {
    model: Option<PathBuf>,
    input: Option<PathBuf>,
    random: Option<Variant>,
    output: Option<PathBuf>,
    chunk: Option<usize>,
    check: Option<usize>,
    json: bool,
    help: bool,
}

impl Arguments {
    fn parse() -> Result<Arguments, lexopt::Error> {
        use lexopt::prelude::*;
        let mut arguments = Arguments::default();
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("input") => arguments.input = Some(parser.value()?.into()),
                Long("random") => arguments.random = Some(parser.value()?.parse()?),
                Long("output") => arguments.output = Some(parser.value()?.into()),
                Long("chunk") => arguments.chunk = Some(parser.value()?.parse()?),
                Long("check") => arguments.check = Some(parser.value()?.parse()?),
                Long("json") => arguments.json = true,
                Long("help") | Short('h') => arguments.help = true,
                Value(path) if arguments.model.is_none() => arguments.model = Some(path.into()),
                other => return Err(other.unexpected()),
            }
        }
        match &arguments {
            Arguments { model: Some(_), random: Some(_), .. } => Err("MODEL or --random, not both".into()),
            Arguments { model: Some(_), input: None, .. } if !arguments.help => {
                Err("--input is missing: the frames for MODEL".into())
            }
            Arguments { chunk: Some(0), .. } => Err("--chunk 0: a chunk has frames".into()),
            _ => Ok(arguments),
        }
    }
}

fn main() -> ExitCode {
    match Arguments::parse().map_err(Into::into).and_then(|arguments| run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("vocode: {error}");
            ExitCode::from(2)
        }
    }
}

/// Does something with a file that is there. Every error names it.
fn with_file<T>(path: &Path, make: impl FnOnce(&mut File<'_>) -> Result<T, String>) -> Result<T, String> {
    let name = |e: String| format!("{}: {e}", path.display());
    let bytes = std::fs::read(path).map_err(|e| name(e.to_string()))?;
    File::parse(&bytes).and_then(|mut file| make(&mut file)).map_err(name)
}

/// Multiply-adds that take the reference some seconds.
const CHECKED_WORK: usize = 400_000_000;

/// Whether every error is within its bound.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    if arguments.help {
        print!("{HELP}");
        return Ok(true);
    }
    let shipped = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name);
    let (network, input) = match arguments.random {
        Some(variant) => (hifigan::network(&variant.config(), &mut Random(1))?, arguments.input.clone()),
        None => {
            let path = arguments.model.clone().unwrap_or_else(|| shipped("hifigan_small.safetensors"));
            let input = arguments.input.clone().unwrap_or_else(|| shipped("hifigan_small.io.safetensors"));
            (with_file(&path, Network::of_file)?, Some(input))
        }
    };
    let sound = match &input {
        Some(path) => with_file(path, |file| Sound::of_file(file, &network))?,
        None => Sound::noise(&network),
    };
    let gpu = match Gpu::new() {
        Ok(gpu) => Ok(gpu),
        Err(none @ weightnorm::Error::Device(weightnorm::DeviceError::NoAdapter { .. })) => {
            Err(none.to_string().replace('\n', " "))
        }
        Err(error) => return Err(error.into()),
    };

    let all = sound.frames;
    let checked = match (&gpu, arguments.check) {
        (Err(_), _) => all,
        (Ok(_), Some(frames)) => frames.min(all),
        (Ok(_), None) => frames_of_work(&network, all)?,
    };
    let part = network.stretch(all, 0..checked)?;
    let start = Instant::now();
    let reference = match (&gpu, checked) {
        (Ok(_), 0) => None,
        (Ok(_), _) => Some(reference::vocode(&network, &sound.first(part.frames.end), Some(&reference::F32))?),
        (Err(_), _) => {
            let rounding = sound.expected.as_ref().map(|_| &reference::F64_TWICE);
            Some(reference::vocode(&network, &sound.input, rounding)?)
        }
    };
    let reference_seconds = start.elapsed().as_secs_f64();

    let done = match &gpu {
        Ok(gpu) => on_gpu(gpu, &network, &sound, arguments.chunk)?,
        Err(_) => {
            let samples: Vec<f64> = reference.as_ref().map_or(vec![], |reference| reference.samples.clone());
            Done { samples, seconds: reference_seconds, norm_share: None, runs: 1, dispatches: 0, submissions: 0 }
        }
    };
    let compared = |expected: &[f64]| {
        let Reference { bound, .. } = reference.as_ref()?;
        Some(Comparison::new(&done.samples, expected, &bound[..part.kept.end.min(bound.len())]))
    };
    let from_file = sound.expected.as_ref().and_then(|expected| compared(expected));
    let from_cpu = reference.as_ref().filter(|_| gpu.is_ok()).and_then(|reference| compared(&reference.samples));
    let both = || from_file.iter().chain(&from_cpu);
    let within = both().all(|comparison| comparison.within);

    if let Some(path) = &arguments.output {
        write_wav(path, network.sampling_rate, &done.samples).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let first = from_file.as_ref().or(from_cpu.as_ref());
    let rate = network.sampling_rate as f64;
    let seconds_per_second = done.samples.len() as f64 / rate / done.seconds;
    if arguments.json {
        let info = gpu.as_ref().ok().map(|gpu| gpu.report().info);
        let text = |text: String| JsonValue::String(text);
        let number = |number: f64| if number.is_finite() { JsonValue::Number(number) } else { JsonValue::Null };
        let maybe = |value: Option<f64>| value.map_or(JsonValue::Null, number);
        let fields = [
            ("model", text(network.title.clone())),
            ("device", text(if info.is_some() { "adapter" } else { "reference" }.to_owned())),
            ("adapter", info.as_ref().map_or(JsonValue::Null, |info| text(info.name.clone()))),
            ("backend", info.as_ref().map_or(JsonValue::Null, |info| text(format!("{:?}", info.backend)))),
            ("frames", number(all as f64)),
            ("samples", number(done.samples.len() as f64)),
            ("sampling_rate", number(rate)),
            ("compared_samples", number(first.map_or(0, |comparison| comparison.count) as f64)),
            ("max_abs_error", maybe(first.map(|comparison| comparison.largest))),
            ("max_abs_error_to_cpu", maybe(from_cpu.as_ref().map(|comparison| comparison.largest))),
            ("bound", maybe(first.map(|comparison| comparison.bound))),
            ("within_bound", first.map_or(JsonValue::Null, |_| JsonValue::Boolean(within))),
            ("dispatches", number(done.dispatches as f64)),
            ("submissions", number(done.submissions as f64)),
            ("seconds_per_second", number(seconds_per_second)),
            ("norm_share", maybe(done.norm_share)),
            ("runs", number(done.runs as f64)),
        ];
        let fields = fields.map(|(key, value)| value.stringify().map(|value| format!("{key:?}:{value}")));
        let line = fields.into_iter().collect::<Result<Vec<_>, _>>()?.join(",");
        println!("{{{line}}}");
        return Ok(within);
    }
    match &gpu {
        Ok(gpu) => println!("{}", gpu.report()),
        Err(none) => println!("CPU reference, f64: {none}"),
    }
    println!("model:      {}, {} layers", network.title, network.layers.len());
    let length = done.samples.len() as f64 / rate;
    println!("sound:      {} samples of {all} frames, {length:.2} s at {rate} Hz", done.samples.len());
    match first {
        Some(Comparison { count, bound, .. }) => {
            let errors = [("the file's float64", &from_file), ("the CPU reference", &from_cpu)];
            let told = errors.iter().filter_map(|(name, comparison)| {
                comparison.as_ref().map(|comparison| format!("{:.1e} to {name}", comparison.largest))
            });
            println!("max error:  {}, of {count} samples", told.collect::<Vec<_>>().join(", "));
            let verdict = if within { "every sample is within" } else { "NOT every sample is within" };
            println!("bound:      {bound:.1e} or less, from the arithmetic; {verdict} its own");
        }
        None if gpu.is_ok() => {
            println!("max error:  not compared: the reference would take minutes, --check asks for it")
        }
        None => {}
    }
    if gpu.is_ok() {
        let times = if done.submissions == 1 { "submission" } else { "submissions" };
        println!("dispatches: {} a submission, {} {times}", done.dispatches, done.submissions);
    }
    let runs = if done.runs == 1 { "one run".to_owned() } else { format!("median of {} runs", done.runs) };
    println!("speed:      {seconds_per_second:.2} s of sound a second: {runs} of {:.3} s", done.seconds);
    if let Some(share) = done.norm_share {
        println!("weight norm: {:.1} % of that: what known norms save, noise included", 100.0 * share);
    }
    if let Some(path) = &arguments.output {
        println!("sound in:   {}, 16 bits a sample", path.display());
    }
    Ok(within)
}

/// As many frames as the reference can do in some seconds.
fn frames_of_work(network: &Network, all: usize) -> Result<usize, weightnorm::Error> {
    let mut frames = all;
    while frames > 0 && network.work(network.stretch(all, 0..frames)?.frames.end)? > CHECKED_WORK {
        frames -= 1;
    }
    Ok(frames)
}

/// What a device has made.
struct Done {
    samples: Vec<f64>,
    seconds: f64,
    /// The part of the time that goes to norms.
    norm_share: Option<f64>,
    runs: usize,
    /// Of a submission.
    dispatches: u64,
    submissions: usize,
}

fn on_gpu(gpu: &Gpu, network: &Network, sound: &Sound, chunk: Option<usize>) -> Result<Done, weightnorm::Error> {
    let stretches = stretches(gpu, network, sound.frames, chunk)?;
    let most = stretches.iter().map(|stretch| stretch.frames.len()).max().unwrap_or(0);
    let mut vocoder = Vocoder::new(gpu, network, most)?;
    let mut samples = vec![];
    for stretch in &stretches {
        samples.extend(cpu::widen(&vocoder.vocode(&sound.input, stretch)?));
    }
    let dispatches = vocoder.dispatch_count();
    let speed = vocoder.speed(&sound.input, &stretches)?;
    let norm_share = Some(1.0 - speed.with_known_norms / speed.seconds);
    let (seconds, runs, submissions) = (speed.seconds, speed.runs, stretches.len());
    Ok(Done { samples, seconds, norm_share, runs, dispatches, submissions })
}

/// 16 bits, one channel.
fn write_wav(path: &Path, sampling_rate: usize, samples: &[f64]) -> Result<(), hound::Error> {
    let (sample_rate, sample_format) = (sampling_rate as u32, hound::SampleFormat::Int);
    let spec = hound::WavSpec { channels: 1, sample_rate, bits_per_sample: 16, sample_format };
    let mut writer = hound::WavWriter::create(path, spec)?;
    for sample in samples {
        writer.write_sample((sample * f64::from(i16::MAX)).round() as i16)?;
    }
    writer.finalize()
}

/// The samples beside what they should be, as many as have a bound.
struct Comparison {
    count: usize,
    /// The largest error; NaN if there is one.
    largest: f64,
    /// The largest bound of a sample.
    bound: f64,
    /// Whether each sample is within its bound. A NaN is right where one is expected.
    within: bool,
}

impl Comparison {
    fn new(samples: &[f64], expected: &[f64], bound: &[f64]) -> Comparison {
        let enough = samples.len() >= bound.len() && expected.len() >= bound.len();
        let mut result = Comparison { count: bound.len(), largest: 0.0, bound: 0.0, within: enough };
        for ((&got, &expected), &bound) in samples.iter().zip(expected).zip(bound) {
            result.bound = result.bound.max(bound);
            if got == expected || got.is_nan() && expected.is_nan() {
                continue;
            }
            let error = (got - expected).abs();
            result.within &= error <= bound;
            if error.is_nan() || error > result.largest {
                result.largest = error;
            }
        }
        result
    }
}
