//! What a trained network writes: a character at a time on the GPU, drawn on the CPU.
use weightnorm::{DType, Error, Gpu, Linear, Recurrent, Tensor};

use crate::data::{Random, Text};

/// `count` characters behind a line break, as if they came of the text. `folded`: see `Network::folded`. Below a
/// `temperature` of 1 the network keeps to what it is surer of.
pub fn write(
    gpu: &Gpu,
    text: &Text,
    [input, hidden, output, gates, bias]: &[Tensor; 5],
    (count, temperature, seed): (usize, f64, u64),
) -> Result<String, Error> {
    let (classes, units) = (text.alphabet.len(), hidden.shape()[1]);
    let c = gpu.zeros(&[1, units], DType::F32)?;
    let mut h = gpu.zeros(&[1, units], DType::F32)?;
    let mut random = Random::new(seed);
    let mut last = text.alphabet.iter().position(|&c| c == '\n').unwrap_or(0);
    let mut written = String::new();
    for _ in 0..count {
        let mut one_hot = vec![0f32; classes];
        one_hot[last] = 1.0;
        let x = gpu.upload(&one_hot, &[1, classes])?;
        h = gpu.recurrent(Recurrent::lstm(&x, input, hidden).bias(gates).h0(&h).c(&c))?;
        let logits = gpu.linear(Linear::new(&h, output).bias(bias))?.read::<f32>()?;
        last = draw(&logits, temperature, random.unit());
        written.push(text.alphabet[last]);
    }
    Ok(written)
}

/// One of the characters by softmax of logits / temperature: that at which the sum of the probabilities passes `at`,
/// 0 to 1.
pub fn draw(logits: &[f32], temperature: f64, at: f64) -> usize {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let share = |&z: &f32| (f64::from(z - most) / temperature).exp();
    let mut left = at * logits.iter().map(share).sum::<f64>();
    for (code, share) in logits.iter().map(share).enumerate() {
        if left < share {
            return code;
        }
        left -= share;
    }
    // Rounding, or logits that are no numbers.
    logits.len() - 1
}
