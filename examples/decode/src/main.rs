//! Decodes a trained, weight-normalized network on the GPU: a DeepSDF decoder, the signed distance to a shape.
//!
//!     cargo run --release -p decode
//!     cargo run --release -p decode --features image -- MODEL.safetensors --image slice.png
//!
//! All layers of a batch of points are recorded into one pass of one encoder, with this example's own kernel for the
//! skip connection among those of the crate (decoder.rs). The output is compared with the file's, which PyTorch
//! computed in float64, and with the CPU reference. Without any GPU driver the reference does it all (reference.rs).
//! tests/data/README.md describes the file.
//!
//! Exit code: 0 done, 1 the error exceeds its bound, 2 the arguments, the file or the GPU would not do.
#[cfg_attr(not(feature = "image"), path = "no_picture.rs")]
mod picture;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use tinyjson::JsonValue;
use weightnorm::{Gpu, cpu, wgpu};

use decode::decoder::{Decoder, Speed};
use decode::model::{Model, narrow};
use decode::reference;

const HELP: &str = "\
Decodes a trained, weight-normalized DeepSDF network on the GPU and checks the result

Usage: decode [OPTIONS] [MODEL]

  MODEL            a safetensors file as tests/data/README.md describes it [default: round_cross in tests/data]
  --image <PNG>    draws a slice of the signed distance field; a build with `--features image` can
  --slice <Z>      the z of the slice, for a network in three dimensions [default: 0]
  --latent <I>     the latent code of the slice [default: 0]
  --json           prints one line of JSON instead of text
  -h, --help       prints this
";

#[derive(Default)]
struct Arguments {
    model: Option<PathBuf>,
    image: Option<PathBuf>,
    slice: Option<f64>,
    latent: Option<usize>,
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
                Long("image") => arguments.image = Some(parser.value()?.into()),
                Long("slice") => arguments.slice = Some(parser.value()?.parse()?),
                Long("latent") => arguments.latent = Some(parser.value()?.parse()?),
                Long("json") => arguments.json = true,
                Long("help") | Short('h') => arguments.help = true,
                Value(path) if arguments.model.is_none() => arguments.model = Some(path.into()),
                other => return Err(other.unexpected()),
            }
        }
        if arguments.image.is_none() && (arguments.slice.is_some() || arguments.latent.is_some()) {
            return Err("--slice and --latent are for a picture: --image is missing".into());
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    match Arguments::parse().map_err(Into::into).and_then(|arguments| run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("decode: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every error is within its bound.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    if arguments.help {
        print!("{HELP}");
        return Ok(true);
    }
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/round_cross.safetensors");
    let path = arguments.model.as_ref().unwrap_or(&shipped);
    let model = Model::load(path)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    if let Some(out) = arguments.image.as_ref().filter(|out| out.extension().is_none_or(|e| e != "png")) {
        return Err(format!("--image {}: the name of a picture ends in .png", out.display()).into());
    }
    let latent = arguments.latent.unwrap_or(0);
    let slice = arguments.image.as_ref().map(|_| picture::Slice::new(&model, latent, arguments.slice));
    let slice = slice.transpose()?;

    let inputs = model.inputs(0, &model.points.data);
    let decoder = match Gpu::new() {
        Ok(gpu) => Ok(Decoder::new(&gpu, &model)?),
        Err(none @ weightnorm::Error::Device(weightnorm::DeviceError::NoAdapter { .. })) => {
            Err(none.to_string().replace('\n', " "))
        }
        Err(error) => return Err(error.into()),
    };
    let rounding = if decoder.is_ok() { reference::F32 } else { reference::F64_TWICE };
    let start = Instant::now();
    let reference = reference::decode(&model, &inputs, &rounding)?;
    let reference_time = start.elapsed();
    let sdf = match &decoder {
        Ok(decoder) => cpu::widen(&decoder.decode(&inputs)?),
        Err(_) => reference.sdf.clone(),
    };
    let from_file = Comparison::new(&sdf, &model.expected_sdf, &reference.bound);
    let from_cpu = Comparison::new(&sdf, &reference.sdf, &reference.bound);
    let within = from_file.within && from_cpu.within;

    let speed = match &decoder {
        Ok(decoder) => decoder.speed(&model)?,
        Err(_) => Speed { time: reference_time, runs: 1, batch: sdf.len(), dispatch_count: 0 },
    };
    let points_per_second = speed.batch as f64 / speed.time.as_secs_f64();

    if let (Some(slice), Some(out)) = (&slice, &arguments.image) {
        picture::draw(out, &name, slice, |latent, points| {
            let inputs = model.inputs(latent, points);
            match &decoder {
                Ok(decoder) => decoder.decode(&inputs),
                Err(_) => Ok(narrow(reference::decode(&model, &inputs, &rounding)?.sdf)),
            }
        })?;
    }

    let report = decoder.as_ref().map(Decoder::report);
    if arguments.json {
        let info = report.as_ref().map(|report| &report.info).ok();
        let text = |text: String| JsonValue::String(text);
        let number = |number: f64| if number.is_finite() { JsonValue::Number(number) } else { JsonValue::Null };
        let of_adapter = |value: &dyn Fn(&wgpu::AdapterInfo) -> JsonValue| info.map_or(JsonValue::Null, value);
        let fields = [
            ("model", text(path.display().to_string())),
            ("device", text(if info.is_some() { "adapter" } else { "reference" }.to_owned())),
            ("adapter", of_adapter(&|info| text(info.name.clone()))),
            ("driver", of_adapter(&|info| text(format!("{} {}", info.driver, info.driver_info).trim().to_owned()))),
            ("backend", of_adapter(&|info| text(format!("{:?}", info.backend)))),
            ("points", number(sdf.len() as f64)),
            ("max_abs_error", number(from_file.largest)),
            ("max_abs_error_to_cpu", of_adapter(&|_| number(from_cpu.largest))),
            ("bound", number(from_file.bound)),
            ("within_bound", JsonValue::Boolean(within)),
            ("points_per_second", number(points_per_second.round())),
            ("batch", number(speed.batch as f64)),
            ("runs", number(speed.runs as f64)),
            ("image", arguments.image.as_ref().map_or(JsonValue::Null, |path| text(path.display().to_string()))),
        ];
        let fields = fields.map(|(key, value)| value.stringify().map(|value| format!("{key:?}:{value}")));
        let line = fields.into_iter().collect::<Result<Vec<_>, _>>()?.join(",");
        println!("{{{line}}}");
        return Ok(within);
    }
    match &report {
        Ok(report) => println!("{report}"),
        Err(none) => println!("CPU reference, f64: {none}"),
    }
    println!("model:      {name}, {}", model.summary());
    println!("points:     {}, latent code 0", sdf.len());
    let to_cpu = format!(", {:.1e} to the CPU reference", from_cpu.largest);
    println!(
        "max error:  {:.1e} to the file's float64{}",
        from_file.largest,
        if report.is_ok() { to_cpu.as_str() } else { "" }
    );
    let verdict = if within { "every point is within" } else { "NOT every point is within" };
    println!("bound:      {:.1e} or less, from the arithmetic; {verdict} its own", from_file.bound);
    let Speed { runs, batch, dispatch_count, .. } = speed;
    match &report {
        Ok(_) => println!(
            "speed:      {points_per_second:.0} points/s: median of {runs} runs of {batch} points in {dispatch_count} dispatches"
        ),
        Err(_) => println!("speed:      {points_per_second:.0} points/s: one run of {batch} points, with their bounds"),
    }
    if let Some(out) = &arguments.image {
        println!("picture:    {}", out.display());
    }
    Ok(within)
}

/// The outputs beside what they should be.
struct Comparison {
    /// The largest error; NaN if there is one.
    largest: f64,
    /// The largest bound of a point.
    bound: f64,
    /// Whether each point is within its bound. A NaN is right where one is expected.
    within: bool,
}

impl Comparison {
    fn new(sdf: &[f64], expected: &[f64], bound: &[f64]) -> Comparison {
        let mut result = Comparison { largest: 0.0, bound: 0.0, within: sdf.len() == expected.len() };
        for ((&got, &expected), &bound) in sdf.iter().zip(expected).zip(bound) {
            if got == expected || got.is_nan() && expected.is_nan() {
                continue;
            }
            let error = (got - expected).abs();
            result.within &= error <= bound;
            if error.is_nan() || error > result.largest {
                result.largest = error;
            }
            result.bound = result.bound.max(bound);
        }
        result
    }
}
