//! The gradients of the network on the CPU are those of finite differences. The GPU is compared with this network.
use characters::data::{Sizes, Text};
use characters::network::{Optimizer, Variant};
use characters::reference::Network;
use weightnorm::Error;

const SIZES: Sizes = Sizes { units: 5, batch: 3, length: 4 };

#[test]
fn characters_gradients_are_those_of_finite_differences() -> Result<(), Error> {
    let text = Text::shipped();
    for variant in Variant::ALL {
        let mut network = Network::start(variant, 5, SIZES, text.alphabet.len())?;
        // The step before leaves states, and biases that are not 0.
        network.step(&text, 1, (Optimizer::Sgd, 1.0))?;
        let gradients = network.loss(&text, text.training(), 1)?.gradients;
        assert_eq!(gradients.len(), if variant == Variant::Plain { 5 } else { 8 });
        for (which, gradient) in gradients.iter().enumerate() {
            let size = gradient.iter().map(|d| d * d).sum::<f64>().sqrt();
            // A few of them, of different rows and columns.
            for at in (0..gradient.len()).step_by(gradient.len() / 5 + 1) {
                let mut loss_at = |step: f64| -> Result<f64, Error> {
                    network.parameters[which][at] += step;
                    let loss = network.loss(&text, text.training(), 1)?.loss;
                    network.parameters[which][at] -= step;
                    Ok(loss)
                };
                let h = 1e-6;
                let difference = (loss_at(h)? - loss_at(-h)?) / (2.0 * h);
                let error = (difference - gradient[at]).abs();
                // Rounding of the loss over h, and h² times its third derivative.
                let case = format!("{variant:?}, parameter {which} {at}: {difference} and {}", gradient[at]);
                assert!(error <= 1e-8 * (1.0 + size), "{case}");
            }
        }
    }
    Ok(())
}
