//! The gradients of the network on the CPU are those of finite differences. The GPU is compared with this network.
use digits::data::{Digits, Random, order};
use digits::network::Variant;
use digits::reference::{Images, Network};
use weightnorm::Error;

/// The parameters of a layer that are looked at: v, g, bias.
fn of_layer(network: &mut Network, layer: usize, which: usize) -> &mut Vec<f64> {
    let layer = &mut network.layers[layer];
    [&mut layer.v, &mut layer.g, &mut layer.bias].into_iter().nth(which).unwrap()
}

#[test]
fn digits_gradients_are_those_of_finite_differences() -> Result<(), Error> {
    let digits = Digits::shipped();
    let images = Images::of(&digits, &order(1, 1, 8)[..8]);
    for variant in Variant::ALL {
        let mut network = Network::start(variant, 5, &images)?;
        // Paper with biases of 0 would be at the kink of the ReLU.
        let mut random = Random::new(2);
        network.layers.iter_mut().flat_map(|layer| &mut layer.bias).for_each(|b| *b += 0.1 * random.signed());
        let (_, gradients) = network.loss(&images)?;
        for (layer, gradient) in gradients.iter().enumerate() {
            for (which, gradient) in [&gradient.v, &gradient.g, &gradient.bias].into_iter().enumerate() {
                let size = gradient.iter().map(|d| d * d).sum::<f64>().sqrt();
                // A few of them, of different channels and taps.
                for at in (0..gradient.len()).step_by(gradient.len() / 3 + 1) {
                    let mut loss_at = |step: f64| -> Result<f64, Error> {
                        of_layer(&mut network, layer, which)[at] += step;
                        let (loss, _) = network.loss(&images)?;
                        of_layer(&mut network, layer, which)[at] -= step;
                        Ok(loss)
                    };
                    let h = 1e-6;
                    let difference = (loss_at(h)? - loss_at(-h)?) / (2.0 * h);
                    let error = (difference - gradient[at]).abs();
                    // Rounding of the loss over h, and h² times its third derivative.
                    assert!(
                        error <= 1e-8 * (1.0 + size),
                        "{variant:?}, layer {layer}, parameter {which} {at}: {difference} and {}",
                        gradient[at]
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn digits_data_dependent_init_gives_mean_0_and_variance_1() -> Result<(), Error> {
    let digits = Digits::shipped();
    let images = Images::of(&digits, &order(1, 1, 32)[..32]);
    let network = Network::start(Variant::DataDependent, 5, &images)?;
    // Of logits with mean 0 and variance 1 the loss is below log 10 + 1, and not that of equal logits.
    let (loss, gradients) = network.loss(&images)?;
    assert!((2.4..3.4).contains(&loss), "{loss}");
    // A gain of every feature: with that the loss does not depend on how long v is.
    assert!(gradients.iter().zip(&network.layers).all(|(d, layer)| {
        let row = layer.v.len() / layer.g.len();
        let along = |j: usize| (j * row..(j + 1) * row).map(|at| d.v[at] * layer.v[at]).sum::<f64>();
        (0..layer.g.len()).all(|j| along(j).abs() < 1e-12)
    }));
    Ok(())
}
