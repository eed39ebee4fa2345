//! The networks on the GPU.
#[path = "../common/mod.rs"]
mod common;
#[path = "../../../../tests/common/suite.rs"]
mod suite;

use std::process::{Command, ExitCode};

use tinyjson::JsonValue;
use vocode::network::Network;
use vocode::random::{Random, Variant};
use vocode::reference::{self, F32};
use vocode::vocoder::Vocoder;
use weightnorm::{Gpu, cpu};

use common::{MODELS, folded, io, model, model_with, noise, others, path, renamed, within};
use suite::{Needs, Outcome, Suite};

fn main() -> ExitCode {
    let first = |suite: &mut Suite| {
        suite.test("vocode_hifigan_is_pytorch_s", Needs::Nothing, |gpu| shipped(gpu, MODELS[0], 78 + 1));
        suite.test("vocode_dac_is_pytorch_s", Needs::Time, |gpu| shipped(gpu, MODELS[1], 23 + 1));
    };
    let second = |suite: &mut Suite| {
        // Folded it takes pipelines of its own.
        suite.test("vocode_hifigan_in_every_form", Needs::Time, |gpu| in_every_form(gpu, MODELS[0], 78 + 1));
        suite.test("vocode_dac_in_every_form", Needs::Time, |gpu| in_every_form(gpu, MODELS[1], 23 + 1));
        suite.test("vocode_of_other_shapes", Needs::Time, other_shapes);
        suite.test("vocode_counts_dispatches_of_real_shapes", Needs::Time, real_shapes);
        suite.test("vocode_program", Needs::Nothing, program);
    };
    suite::run(first, second)
}

/// All frames at once.
fn whole(gpu: &Gpu, network: &Network, input: &[f32]) -> Result<(Vec<f32>, u64), weightnorm::Error> {
    chunks(gpu, network, input, usize::MAX)
}

/// The samples, and the dispatches of a submission.
fn chunks(gpu: &Gpu, network: &Network, input: &[f32], chunk: usize) -> Result<(Vec<f32>, u64), weightnorm::Error> {
    let frames = input.len() / network.channels;
    let stretches = network.stretches(frames, chunk.min(frames))?;
    let most = stretches.iter().map(|stretch| stretch.frames.len()).max().unwrap_or(0);
    let mut vocoder = Vocoder::new(gpu, network, most)?;
    let mut samples = vec![];
    for stretch in &stretches {
        samples.extend(vocoder.vocode(input, stretch)?);
    }
    Ok((samples, vocoder.dispatch_count()))
}

/// A shipped model, beside PyTorch's samples and the reference's.
fn shipped(gpu: &Gpu, name: &str, dispatches: u64) -> Outcome {
    let (network, (input, expected)) = (model(name), io(name));
    let reference = reference::vocode(&network, &input, Some(&F32))?;
    let (samples, count) = whole(gpu, &network, &input)?;
    let wide = cpu::widen(&samples);
    within(&wide, &expected, &reference)?;
    within(&wide, &reference.samples, &reference)?;
    if count != dispatches {
        return Err(format!("{count} dispatches instead of {dispatches}").into());
    }
    Ok(())
}

/// In chunks, in the newer spelling, and folded.
fn in_every_form(gpu: &Gpu, name: &str, dispatches: u64) -> Outcome {
    let (network, (input, expected)) = (model(name), io(name));
    let reference = reference::vocode(&network, &input, Some(&F32))?;
    let (samples, _) = whole(gpu, &network, &input)?;
    for chunk in [1, 6] {
        let (streamed, count) = chunks(gpu, &network, &input, chunk)?;
        if streamed != samples || count != dispatches {
            return Err(format!("{chunk} frames at a time: other samples, or {count} dispatches").into());
        }
    }
    let (newer, count) = whole(gpu, &model_with(name, renamed)?, &input)?;
    if newer != samples || count != dispatches {
        return Err(format!("the newer spelling: other samples, or {count} dispatches").into());
    }
    let (plain, count) = whole(gpu, &model_with(name, folded)?, &input)?;
    within(&cpu::widen(&plain), &expected, &reference)?;
    if count != dispatches - 1 {
        return Err(format!("folded: {count} dispatches instead of {}", dispatches - 1).into());
    }
    Ok(())
}

fn other_shapes(gpu: &Gpu) -> Outcome {
    for network in others() {
        let input = noise(&network, 33);
        let reference = reference::vocode(&network, &input, Some(&F32))?;
        let (samples, count) = whole(gpu, &network, &input)?;
        let told = |e: String| format!("{}: {e}", network.title);
        within(&cpu::widen(&samples), &reference.samples, &reference).map_err(told)?;
        if count != network.layers.len() as u64 + 1 {
            return Err(told(format!("{count} dispatches")).into());
        }
        if chunks(gpu, &network, &input, 7)?.0 != samples {
            return Err(told("other samples in chunks".to_owned()).into());
        }
    }
    Ok(())
}

/// One frame is enough to count.
fn real_shapes(gpu: &Gpu) -> Outcome {
    for (variant, dispatches) in [(Variant::V1, 78 + 1), (Variant::V2, 78 + 1), (Variant::V3, 23 + 1)] {
        let network = vocode::hifigan::network(&variant.config(), &mut Random(1))?;
        let (samples, count) = whole(gpu, &network, &noise(&network, 1))?;
        let finite = samples.iter().all(|sample| sample.is_finite());
        if count != dispatches || samples.len() != 256 || !finite {
            return Err(format!("{variant:?}: {count} dispatches, {} samples, finite: {finite}", samples.len()).into());
        }
    }
    Ok(())
}

/// The program as a user runs it, on the driver of these tests.
fn program(gpu: &Gpu) -> Outcome {
    let file = |name: &str| path(name).to_string_lossy().into_owned();
    let (model, io) = (file("dac_small.safetensors"), file("dac_small.io.safetensors"));
    for (more, submissions, dispatches) in [(&[][..], 1.0, 24.0), (&["--chunk", "8"][..], 3.0, 24.0)] {
        let command = [&model[..], "--input", &io, "--json"];
        let output = Command::new(env!("CARGO_BIN_EXE_vocode")).args(command).args(more).output()?;
        let text = String::from_utf8(output.stdout)?;
        let line: JsonValue = text.parse().map_err(|e| format!("{e}: {text}"))?;
        let number = |key: &str| line[key].get::<f64>().copied().ok_or(format!("{key}: {text}"));
        let right = output.status.success()
            && text.lines().count() == 1
            && line["device"] == JsonValue::String("adapter".into())
            && line["backend"] == JsonValue::String(format!("{:?}", gpu.report().info.backend))
            && line["within_bound"] == JsonValue::Boolean(true)
            && number("max_abs_error")? <= number("bound")?
            && number("max_abs_error_to_cpu")? <= number("bound")?
            && (number("samples")?, number("compared_samples")?) == (1280.0, 1280.0)
            && (number("submissions")?, number("dispatches")?) == (submissions, dispatches)
            && number("seconds_per_second")? > 0.0
            && number("norm_share")? < 1.0;
        if !right {
            return Err(format!("{more:?}: {text}{}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    Ok(())
}
