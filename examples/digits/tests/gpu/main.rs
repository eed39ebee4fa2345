//! Training on the GPU, beside the same steps of the CPU reference.
#[path = "../../../../tests/common/suite.rs"]
mod suite;

use std::process::{Command, ExitCode};

use digits::data::{Digits, Random, order};
use digits::network::{self, Variant};
use digits::reference;
use suite::{Needs, Outcome, Suite};
use tinyjson::JsonValue;
use weightnorm::{DType, Error, Gpu};

fn main() -> ExitCode {
    let first = |suite: &mut Suite| {
        // The variant with the most operators; each other one takes a dozen pipelines of its own.
        suite.test("digits_steps_are_those_of_the_reference", Needs::Nothing, |gpu| steps(gpu, &[Variant::MeanOnly]));
    };
    let second = |suite: &mut Suite| {
        suite.test("digits_steps_are_those_of_the_reference_in_full", Needs::Time, |gpu| steps(gpu, &Variant::ALL));
        suite.test("digits_evaluation_subtracts_the_means_of_all", Needs::Time, evaluation);
        suite.test("digits_program", Needs::Time, program);
    };
    suite::run(first, second)
}

const SEED: u64 = 3;
const BATCH: usize = 24;
const STEPS: usize = 5;
const RATE: f64 = 0.1;

/// The losses before each step on the GPU, and one more behind the last.
fn on_gpu(gpu: &Gpu, network: &network::Network, batch: &network::Batch) -> Result<Vec<f32>, Error> {
    let order: Vec<f32> = order(SEED, 1, BATCH).into_iter().map(|image| image as f32).collect();
    let order = gpu.upload(&order, &[order.len()])?;
    let results = gpu.zeros(&[STEPS + 1, 2], DType::F32)?;
    network.start(SEED, batch, &order)?;
    for number in 1..=STEPS {
        network.step(batch, &order, &results, number, RATE)?;
    }
    network.evaluate(batch, batch, (&results, STEPS))?;
    gpu.check()?;
    Ok(results.read::<f32>()?.into_iter().step_by(2).collect())
}

/// The same by the reference, from weights that are off by at most `error` of themselves.
fn on_cpu(variant: Variant, rate: f64, error: f64) -> Result<Vec<f64>, Error> {
    let (digits, order) = (Digits::shipped(), order(SEED, 1, BATCH));
    let images = |step: usize| reference::Images::of(&digits, &order[step * BATCH..][..BATCH]);
    let mut network = reference::Network::start(variant, SEED, &images(0))?;
    let mut random = Random::new(1);
    for layer in &mut network.layers {
        for x in layer.v.iter_mut().chain(&mut layer.g).chain(&mut layer.bias) {
            *x *= 1.0 + error * random.signed();
        }
    }
    let mut losses = (0..STEPS).map(|step| network.step(&images(step), rate)).collect::<Result<Vec<_>, _>>()?;
    losses.push(network.loss(&images(STEPS - 1))?.0);
    Ok(losses)
}

/// The losses of the reference, up to what the rounding of the forward pass's longest sum, 128 terms in
/// f32, makes of them where every step has it anew. Another rate is told apart, and the same run again has the same
/// bits.
fn steps(gpu: &Gpu, variants: &[Variant]) -> Outcome {
    let images = network::Images::new(gpu, &Digits::shipped())?;
    let batch = images.batch(0..BATCH)?;
    let rounding = 128.0 * 2f64.powi(-24);
    for &variant in variants {
        let network = network::Network::new(gpu, variant)?;
        let losses = on_gpu(gpu, &network, &batch)?;
        let exact = on_cpu(variant, RATE, 0.0)?;
        let [disturbed, faster] = [on_cpu(variant, RATE, rounding)?, on_cpu(variant, 1.01 * RATE, 0.0)?];
        let mut most = 0f64;
        for (step, (&loss, &exact)) in losses.iter().zip(&exact).enumerate() {
            most = most.max((disturbed[step] - exact).abs());
            let bound = (step + 1) as f64 * most + rounding * (1.0 + exact);
            let error = (f64::from(loss) - exact).abs();
            if error.is_nan() || error > bound {
                return Err(
                    format!("{variant:?}, step {step}: {loss}, not {exact}: {error:.1e}, bound {bound:.1e}").into()
                );
            }
            if step == STEPS && (faster[step] - exact).abs() < bound {
                return Err(format!("{variant:?}: a bound of {bound:.1e} tells no other rate, {}", faster[step]).into());
            }
        }
        if exact[STEPS] >= exact[STEPS - 1] {
            return Err(format!("{variant:?}: the last step did not help: {exact:?}").into());
        }
        let bits = |losses: &[f32]| losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>();
        let again = on_gpu(gpu, &network, &batch)?;
        if bits(&again) != bits(&losses) {
            return Err(format!("{variant:?}: {losses:?} and then {again:?}").into());
        }
    }
    Ok(())
}

/// With mean-only batch normalization the loss of some images depends on which means are subtracted, else it does not.
fn evaluation(gpu: &Gpu) -> Outcome {
    let images = network::Images::new(gpu, &Digits::shipped())?;
    let [all, some, others] = [0..2 * BATCH, 0..BATCH, BATCH..2 * BATCH].map(|range| images.batch(range));
    let (all, some, others) = (all?, some?, others?);
    let results = gpu.zeros(&[3, 2], DType::F32)?;
    for variant in [Variant::Normalized, Variant::MeanOnly] {
        let network = network::Network::new(gpu, variant)?;
        // No variant of these two looks at the first batch.
        network.start(SEED, &some, &results)?;
        for (at, (batch, means)) in [(&all, &all), (&some, &all), (&others, &all)].into_iter().enumerate() {
            network.evaluate(batch, means, (&results, at))?;
        }
        let of_all = results.read::<f32>()?;
        for i in 0..2 {
            // The mean of two halves that the same means are subtracted from.
            let (whole, halves) = (f64::from(of_all[i]), f64::from(of_all[2 + i] + of_all[4 + i]) / 2.0);
            if (whole - halves).abs() > 128.0 * 2f64.powi(-24) * (1.0 + whole) {
                return Err(format!("{variant:?}: {whole} of all, {halves} of the halves").into());
            }
        }
        network.evaluate(&some, &others, (&results, 0))?;
        let same = results.read::<f32>()?[0].to_bits() == of_all[2].to_bits();
        if same != (variant == Variant::Normalized) {
            return Err(format!("{variant:?}: the means of others give the same: {same}").into());
        }
    }
    Ok(())
}

/// The program as a user runs it, on the driver of these tests.
fn program(gpu: &Gpu) -> Outcome {
    let out = std::env::temp_dir().join(format!("digits-{}.svg", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_digits"))
        .args(["--epochs", "2", "--seeds", "1", "--rates", "0.1", "--json", "--out"])
        .arg(&out)
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line: JsonValue =
        text.parse().map_err(|e| format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    let results = line["results"].get::<Vec<JsonValue>>().ok_or("no results")?;
    let number = |of: &JsonValue, key: &str| of[key].get::<f64>().copied().unwrap_or(f64::NAN);
    // Two epochs are enough for four images out of five.
    let learned = |of: &JsonValue| number(of, "accuracy") > 0.8 && number(of, "training_loss") < 1.0;
    let right = output.status.success()
        && text.lines().count() == 1
        && line["backend"] == JsonValue::String(format!("{:?}", gpu.report().info.backend))
        && results.len() == Variant::ALL.len()
        && results.iter().all(learned);
    let picture = std::fs::read_to_string(&out)?;
    std::fs::remove_file(&out)?;
    if !right {
        return Err(text.into());
    }
    // Four loss curves, four of errors, four of the legend, and the lines of the axes.
    let curves = picture.matches(r#"stroke-width="1.8""#).count();
    if !picture.starts_with("<svg") || !picture.ends_with("</svg>\n") || curves != 8 || picture.contains("NaN") {
        return Err(format!("{curves} curves in the picture").into());
    }
    Ok(())
}
