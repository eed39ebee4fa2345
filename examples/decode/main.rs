//! Decodes a trained, weight-normalized network on the GPU: a DeepSDF decoder, the signed distance to a shape.
//!
//!     cargo run --release --example decode
//!     cargo run --release --example decode -- MODEL.safetensors --image slice.png
//!
//! All layers of a batch of points are recorded into one pass of one encoder, with this example's own kernel for the
//! skip connection among those of the crate (decoder.rs). The output is compared with the file's, which PyTorch
//! computed in float64, and with the CPU reference. tests/data/README.md describes the file.
//!
//! Exit code: 0 done, 1 the error exceeds its bound, 2 the arguments, the file or the GPU would not do.
mod decoder;
mod model;
mod picture;
mod reference;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use weightnorm::Gpu;

use decoder::Decoder;
use model::Model;

/// Decodes a trained, weight-normalized DeepSDF network on the GPU and checks the result.
#[derive(Parser)]
struct Arguments {
    /// The model, a safetensors file as tests/data/README.md describes it [default: round_cross in tests/data]
    model: Option<PathBuf>,
    /// Draws a slice of the signed distance field, a PNG
    #[arg(long, value_name = "PNG")]
    image: Option<PathBuf>,
    /// The z of the slice, for a network in three dimensions
    #[arg(long, value_name = "Z", requires = "image", allow_negative_numbers = true)]
    slice: Option<f64>,
    /// The latent code of the slice
    #[arg(long, value_name = "I", requires = "image", default_value_t = 0)]
    latent: usize,
    /// Prints one line of JSON instead of text
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
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
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/round_cross.safetensors");
    let path = arguments.model.as_ref().unwrap_or(&shipped);
    let model = Model::load(path)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    if let Some(out) = arguments.image.as_ref().filter(|out| out.extension().is_none_or(|e| e != "png")) {
        return Err(format!("--image {}: the name of a picture ends in .png", out.display()).into());
    }
    let slice = arguments.image.as_ref().map(|_| picture::Slice::new(&model, arguments.latent, arguments.slice));
    let slice = slice.transpose()?;

    let gpu = Gpu::new()?;
    let decoder = Decoder::new(&gpu, &model)?;
    let sdf = decoder.decode(&model.inputs(0, &model.points.data))?;
    let reference = reference::decode(&model)?;
    let from_file = Comparison::new(&sdf, &model.expected_sdf, &reference.bound);
    let from_cpu = Comparison::new(&sdf, &reference.sdf, &reference.bound);
    let within = from_file.within && from_cpu.within;

    let runs = if decoder::on_cpu(&gpu) { 5 } else { 101 };
    let points: Vec<f32> =
        model.points.data.iter().copied().cycle().take(decoder.batch * model.points.columns).collect();
    let (time, dispatch_count) = decoder.time(&model.inputs(0, &points), runs)?;
    let points_per_second = decoder.batch as f64 / time.as_secs_f64();

    if let (Some(slice), Some(out)) = (&slice, &arguments.image) {
        picture::draw(out, &name, slice, |points| decoder.decode(&model.inputs(slice.latent, points)))?;
    }

    let report = gpu.report();
    if arguments.json {
        let line = serde_json::json!({
            "model": path,
            "adapter": report.info.name,
            "driver": format!("{} {}", report.info.driver, report.info.driver_info).trim(),
            "backend": format!("{:?}", report.info.backend),
            "points": sdf.len(),
            "max_abs_error": from_file.largest,
            "max_abs_error_to_cpu": from_cpu.largest,
            "bound": from_file.bound,
            "within_bound": within,
            "points_per_second": points_per_second.round() as u64,
            "batch": decoder.batch,
            "runs": runs,
            "image": arguments.image,
        });
        println!("{line}");
        return Ok(within);
    }
    println!("{report}");
    println!("model:      {name}, {}", model.summary());
    println!("points:     {}, latent code 0", sdf.len());
    println!(
        "max error:  {:.1e} to the file's float64, {:.1e} to the CPU reference",
        from_file.largest, from_cpu.largest
    );
    let verdict = if within { "every point is within" } else { "NOT every point is within" };
    println!("bound:      {:.1e} or less, from the arithmetic; {verdict} its own", from_file.bound);
    let count = decoder.batch;
    println!(
        "speed:      {points_per_second:.0} points/s: median of {runs} runs of {count} points in {dispatch_count} dispatches"
    );
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
    fn new(sdf: &[f32], expected: &[f64], bound: &[f64]) -> Comparison {
        let mut result = Comparison { largest: 0.0, bound: 0.0, within: sdf.len() == expected.len() };
        for ((&got, &expected), &bound) in sdf.iter().zip(expected).zip(bound) {
            let got = f64::from(got);
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
