//! Training on the GPU, beside the same steps of the CPU reference.
#[path = "../../../../tests/common/suite.rs"]
mod suite;

use std::process::{Command, ExitCode};

use characters::data::{Random, Sizes, Text};
use characters::network::{self, Optimizer, Variant};
use characters::reference;
use suite::{Needs, Outcome, Suite};
use tinyjson::JsonValue;
use weightnorm::{DType, Error, Gpu};

fn main() -> ExitCode {
    let first = |suite: &mut Suite| {
        // The parametrization with more operators.
        suite.test("characters_steps_are_those_of_the_reference", Needs::Nothing, |gpu| {
            steps(gpu, &[(Variant::Normalized, Optimizer::Sgd, 0.3)])
        });
    };
    let second = |suite: &mut Suite| {
        suite.test("characters_steps_are_those_of_the_reference_in_full", Needs::Time, |gpu| {
            let rates = Optimizer::ALL.into_iter().zip([0.3, 0.01]);
            let all = rates.flat_map(|(optimizer, rate)| Variant::ALL.map(|variant| (variant, optimizer, rate)));
            steps(gpu, &all.collect::<Vec<_>>())
        });
        suite.test("characters_program", Needs::Time, program);
    };
    suite::run(first, second)
}

const SEED: u64 = 3;
const SIZES: Sizes = Sizes { units: 12, batch: 4, length: 3 };
const STEPS: usize = 4;

/// The losses before each step, one more of the held-out part behind the last, and all parameters then.
struct Trained<T> {
    losses: Vec<T>,
    parameters: Vec<T>,
}

fn on_gpu(gpu: &Gpu, network: &network::Network, text: &Text, rule: (Optimizer, f64)) -> Result<Trained<f32>, Error> {
    let codes = network::upload(gpu, text)?;
    let (training, held_out) = (network.stream(&codes, text.training())?, network.stream(&codes, text.held_out())?);
    let clip = network.clipping(&training)?;
    let results = gpu.zeros(&[STEPS + 1, 2], DType::F32)?;
    network.start(SEED)?;
    for number in 1..=STEPS {
        network.step(&training, &clip, &results, number, rule)?;
    }
    network.evaluate(&held_out, 0, (&results, STEPS))?;
    gpu.check()?;
    let losses = results.read::<f32>()?.into_iter().step_by(2).collect();
    Ok(Trained { losses, parameters: network.read()?.concat() })
}

/// The same by the reference, from weights that are off by at most `error` of themselves.
fn on_cpu(text: &Text, variant: Variant, rule: (Optimizer, f64), error: f64) -> Result<Trained<f64>, Error> {
    let mut network = reference::Network::start(variant, SEED, SIZES, text.alphabet.len())?;
    let mut random = Random::new(1);
    network.parameters.iter_mut().flatten().for_each(|x| *x *= 1.0 + error * random.signed());
    let steps = (1..=STEPS).map(|number| Ok(network.step(text, number, rule)?.0));
    let mut losses = steps.collect::<Result<Vec<_>, Error>>()?;
    network.rewind();
    losses.push(network.loss(text, text.held_out(), 0)?.loss);
    Ok(Trained { losses, parameters: network.parameters.concat() })
}

/// The losses and parameters of the reference, up to what the rounding of the forward pass's longest sum, 88 terms in
/// f32, makes of them where every step has it anew: weights that are off by as much are so in every step of a sequence.
/// Another rate is told apart, and the same run again has the same bits.
fn steps(gpu: &Gpu, cases: &[(Variant, Optimizer, f64)]) -> Outcome {
    let text = Text::shipped();
    let rounding = 88.0 * 2f64.powi(-24);
    for &(variant, optimizer, rate) in cases {
        let case = format!("{variant:?}, {optimizer:?}");
        let network = network::Network::new(gpu, variant, SIZES, text.alphabet.len(), STEPS)?;
        let rule = (optimizer, rate);
        let got = on_gpu(gpu, &network, &text, rule)?;
        let exact = on_cpu(&text, variant, rule, 0.0)?;
        let [off, other] =
            [(rate, rounding), (1.01 * rate, 0.0)].map(|(rate, e)| on_cpu(&text, variant, (optimizer, rate), e));
        let (off, other) = (off?, other?);
        let mut most = 0f64;
        for (step, (&loss, &exact)) in got.losses.iter().zip(&exact.losses).enumerate() {
            most = most.max((off.losses[step] - exact).abs());
            let bound = (step + 1) as f64 * most + rounding * (1.0 + exact);
            let error = (f64::from(loss) - exact).abs();
            if error.is_nan() || error > bound {
                return Err(format!("{case}, step {step}: {loss}, not {exact}: {error:.1e}, bound {bound:.1e}").into());
            }
            if step == STEPS && (other.losses[step] - exact).abs() < bound {
                return Err(
                    format!("{case}: a bound of {bound:.1e} tells no other rate, {}", other.losses[step]).into()
                );
            }
        }
        let from_exact = |others: &mut dyn Iterator<Item = f64>| {
            others.zip(&exact.parameters).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
        };
        let bound = STEPS as f64 * from_exact(&mut off.parameters.iter().copied());
        let error = from_exact(&mut got.parameters.iter().copied().map(f64::from));
        if error.is_nan() || error > bound || from_exact(&mut other.parameters.iter().copied()) < bound {
            return Err(format!("{case}: parameters are off by {error:.1e}, bound {bound:.1e}").into());
        }
        if exact.losses[STEPS - 1] >= exact.losses[0] {
            return Err(format!("{case}: the loss did not fall: {:?}", exact.losses).into());
        }
        let bits = |of: &Trained<f32>| of.losses.iter().chain(&of.parameters).map(|x| x.to_bits()).collect::<Vec<_>>();
        if bits(&on_gpu(gpu, &network, &text, rule)?) != bits(&got) {
            return Err(format!("{case}: other bits when repeated").into());
        }
    }
    Ok(())
}

/// The program as a user runs it, on the driver of these tests.
fn program(gpu: &Gpu) -> Outcome {
    let out = std::env::temp_dir().join(format!("characters-{}.svg", std::process::id()));
    let arguments = ["--steps", "60", "--units", "32", "--sgd", "none", "--adam", "0.03", "--write", "40", "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_characters")).args(arguments).arg("--out").arg(&out).output()?;
    let text = String::from_utf8(output.stdout)?;
    let line: JsonValue =
        text.parse().map_err(|e| format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    let results = line["results"].get::<Vec<JsonValue>>().ok_or("no results")?;
    let number = |of: &JsonValue, key: &str| of[key].get::<f64>().copied().unwrap_or(f64::NAN);
    // How often each character comes would be worth 4.3 bits.
    let learned = |of: &JsonValue| number(of, "held_out") < 4.0 && number(of, "training") < 4.0;
    let written = line["written"].get::<String>().ok_or("nothing written")?;
    let right = output.status.success()
        && text.lines().count() == 1
        && line["backend"] == JsonValue::String(format!("{:?}", gpu.report().info.backend))
        && results.len() == Variant::ALL.len()
        && results.iter().all(learned)
        && written.chars().count() == 40;
    let picture = std::fs::read_to_string(&out)?;
    std::fs::remove_file(&out)?;
    if !right {
        return Err(text.into());
    }
    // Two curves, and two of the ends.
    let curves = picture.matches(r#"stroke-width="1.8""#).count();
    if !picture.starts_with("<svg") || !picture.ends_with("</svg>\n") || curves != 4 || picture.contains("NaN") {
        return Err(format!("{curves} curves in the picture").into());
    }
    Ok(())
}
