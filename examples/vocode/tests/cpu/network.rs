//! The network on the CPU: PyTorch's numbers, stretches, and a bound that notices what is wrong.
use vocode::network::Before;
use vocode::reference::{F32, F64_TWICE, vocode};
use weightnorm::Activation;

use crate::common::{MODELS, io, model, noise, others, within};

#[test]
fn vocode_reference_is_pytorch_s() {
    for name in MODELS {
        let (input, expected) = io(name);
        let reference = vocode(&model(name), &input, Some(&F64_TWICE)).unwrap();
        within(&reference.samples, &expected, &reference).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(reference.bound.iter().all(|&bound| bound > 0.0 && bound < 1e-11), "{name}");
    }
}

/// Each as small as what it is to notice: one number of a weight, a wrong slope, a padding, an order.
#[test]
fn vocode_bound_notices_what_is_wrong() {
    let (input, _) = io("dac_small");
    let network = model("dac_small");
    let reference = vocode(&network, &input, Some(&F32)).unwrap();
    let size = reference.samples.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    assert!(reference.bound.iter().all(|&bound| bound < 1e-3 * size), "a bound says something");
    let last = network.layers.len() - 1;
    for (what, change) in [
        (
            "a weight",
            Box::new(|network: &mut vocode::network::Network| network.layers[5].weight.v[3] += 0.05)
                as Box<dyn Fn(&mut vocode::network::Network)>,
        ),
        ("a bias", Box::new(|network| network.layers[4].bias[0] += 0.01)),
        (
            "an alpha",
            Box::new(|network| {
                let Before::Snake(alpha) = &mut network.layers[9].before else { panic!("DAC has snakes") };
                alpha[0] += 0.05;
            }),
        ),
        (
            "a dilation",
            Box::new(|network| {
                network.layers[4].dilation = 1;
                network.layers[4].padding = 3;
            }),
        ),
        ("a residual", Box::new(|network| network.layers[3].accumulate = false)),
        ("no tanh", Box::new(move |network| network.layers[last].after = Activation::None)),
        (
            "half precision",
            Box::new(|network| {
                for layer in &mut network.layers {
                    for v in &mut layer.weight.v {
                        *v = weightnorm::half::f16::from_f32(*v).to_f32();
                    }
                }
            }),
        ),
    ] {
        let mut wrong = model("dac_small");
        change(&mut wrong);
        let samples = vocode(&wrong, &input, None).unwrap().samples;
        within(&samples, &reference.samples, &reference).expect_err(what);
    }
}

/// What a stretch keeps is what the whole input gives there, to the last bit.
#[test]
fn vocode_stretches_are_parts_of_the_whole() {
    for network in others() {
        let frames = 33;
        let input = noise(&network, frames);
        let whole = vocode(&network, &input, None).unwrap().samples;
        assert_eq!(whole.len(), network.samples(frames).unwrap());
        for chunk in [1, 7, 40] {
            let mut samples = vec![];
            for stretch in network.stretches(frames, chunk).unwrap() {
                let rows = input.chunks(frames);
                let part: Vec<f32> = rows.flat_map(|row| &row[stretch.frames.clone()]).copied().collect();
                samples.extend_from_slice(&vocode(&network, &part, None).unwrap().samples[stretch.kept]);
            }
            assert!(samples == whole, "{}, {chunk} frames at a time", network.title);
        }
    }
}

/// No more is read than a stretch wants: with one frame less on either side something differs.
#[test]
fn vocode_stretches_have_no_frame_too_many() {
    for network in others() {
        let frames = 61;
        let input = noise(&network, frames);
        let stretch = network.stretch(frames, 30..31).unwrap();
        assert!(stretch.frames.start > 0 && stretch.frames.end < frames, "{}: {stretch:?}", network.title);
        let samples = |input: &[f32]| {
            let all = vocode(&network, input, None).unwrap().samples;
            let first = stretch.frames.start * network.hop() + stretch.kept.start;
            all[first..first + stretch.kept.len()].to_vec()
        };
        let whole = samples(&input);
        for (frame, matters) in [
            (stretch.frames.start - 1, false),
            (stretch.frames.start, true),
            (stretch.frames.end - 1, true),
            (stretch.frames.end, false),
        ] {
            let mut other = input.clone();
            other[frame] += 1e3;
            assert_eq!(samples(&other) != whole, matters, "{}: frame {frame} of {stretch:?}", network.title);
        }
    }
}
