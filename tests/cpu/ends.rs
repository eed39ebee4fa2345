//! Gates and snakes of convolutions: what they give, and their gradients against differences.
use weightnorm::{ArgumentError, Axis, ConvGeometry, Error, Gate, cpu};

use crate::common::compare;

const X_SHAPE: [usize; 3] = [2, 3, 7];
const W_SHAPE: [usize; 3] = [6, 3, 3];
const SCALE: f64 = -1.5;

fn numbers(seed: usize, count: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 37 + seed * 101) % 97) as f64 / 48.5 - 1.0).collect()
}

/// A layer with α of its input, and a gate behind a condition; or without the gate.
#[derive(Clone)]
struct Layer {
    x: Vec<f64>,
    v: Vec<f64>,
    g: Vec<f64>,
    bias: Vec<f64>,
    alpha: Vec<f64>,
    condition: Vec<f64>,
    dy: Vec<f64>,
    gate: Option<Gate>,
}

impl Layer {
    fn new(gate: Option<Gate>) -> Layer {
        let z = 2 * 6 * 7;
        let dy = numbers(7, if gate.is_some() { z / 2 } else { z });
        let alpha = vec![0.5, -0.75, 3.0];
        let (x, v, g, bias) = (numbers(1, 42), numbers(2, 54), numbers(3, 6), numbers(4, 6));
        Layer { x, v, g, bias, alpha, condition: numbers(6, z), dy, gate }
    }

    fn geometry() -> ConvGeometry {
        ConvGeometry::default().padding(1)
    }

    fn w(&self) -> Vec<f64> {
        cpu::normalize(&self.v, &W_SHAPE, Some(&self.g), Axis::Kept(0), Default::default()).unwrap()
    }

    fn y(&self, gate: Option<Gate>) -> Vec<f64> {
        let (input_snake, residual) = (Some(&self.alpha[..]), Some(&self.condition[..]));
        let ends = cpu::ConvEnds { input_snake, residual, scale: SCALE, gate, ..Default::default() };
        cpu::conv(&self.x, &X_SHAPE, &self.w(), &W_SHAPE, Some(&self.bias), &Layer::geometry(), &ends).unwrap()
    }

    fn loss(&self) -> f64 {
        self.y(self.gate).iter().zip(&self.dy).map(|(y, dy)| y * dy).sum()
    }

    /// dx, dv, dg, dbias, dα, dcondition.
    fn gradients(&self) -> [Vec<f64>; 6] {
        let z = self.y(None);
        let dz = self.gate.map_or(Ok(self.dy.clone()), |gate| cpu::gate_backward(gate, &z, &[2, 6, 7], &self.dy));
        let dz: Vec<f64> = dz.unwrap().iter().map(|dz| SCALE * dz).collect();
        let entered: Vec<f64> = self.x.iter().enumerate().map(|(i, &x)| cpu::snake(x, self.alpha[i / 7 % 3])).collect();
        let (v, g) = (&self.v[..], Some(&self.g[..]));
        let weight = cpu::Weight::Normalized { v, g, axis: Axis::Kept(0), eps: Default::default() };
        let none = weightnorm::Activation::None;
        let d = cpu::conv_backward(&entered, &X_SHAPE, weight, &W_SHAPE, &dz, &Layer::geometry(), none).unwrap();
        let (dx, dalpha) = cpu::snake_backward(&self.x, &X_SHAPE, &self.alpha, &d.dx).unwrap();
        [dx, d.dv, d.dg.unwrap(), d.dbias, dalpha, dz]
    }

    fn parts(&mut self) -> [&mut Vec<f64>; 6] {
        [&mut self.x, &mut self.v, &mut self.g, &mut self.bias, &mut self.alpha, &mut self.condition]
    }

    fn differences(&self, part: usize) -> Vec<f64> {
        let h = 1e-5;
        let moved = |at: usize, by: f64| {
            let mut layer = self.clone();
            layer.parts()[part][at] += by;
            layer.loss()
        };
        let count = self.clone().parts()[part].len();
        (0..count).map(|at| (moved(at, h) - moved(at, -h)) / (2.0 * h)).collect()
    }
}

#[test]
fn gradients_of_gates_and_snakes_are_those_of_differences() {
    for gate in [None, Some(Gate::TanhSigmoid), Some(Gate::Glu)] {
        let layer = Layer::new(gate);
        for (part, gradient) in layer.gradients().iter().enumerate() {
            // Third derivatives of some tens, times h², and roundings of the loss over h.
            let bound = |i: usize| 1e-7 * (1.0 + gradient[i].abs());
            compare(gradient, &layer.differences(part), None, bound)
                .unwrap_or_else(|e| panic!("{gate:?}, {part}: {e}"));
        }
    }
    let wrong: Vec<f64> = Layer::new(None).gradients()[4].iter().map(|d| d * 1.00001).collect();
    assert!(compare(&wrong, &Layer::new(None).differences(4), None, |i| 1e-7 * (1.0 + wrong[i].abs())).is_err());
}

#[test]
fn gates_of_what_is_known() {
    let three = 3f64.ln(); // whose sigmoid is 3/4
    assert_eq!(cpu::gated(-5.0, 0.0, Gate::Glu), -2.5);
    assert!((cpu::gated(2.0, three, Gate::Glu) - 1.5).abs() < 1e-15);
    assert!((cpu::gated(three / 2.0, three, Gate::TanhSigmoid) - 0.375).abs() < 1e-15);
    assert_eq!(cpu::gated(f64::INFINITY, -f64::INFINITY, Gate::TanhSigmoid), 0.0);
    assert!(cpu::gated(f64::NAN, 0.0, Gate::TanhSigmoid).is_nan());
    // Halves of each image's channels.
    let x = [1.0, 2.0, 3.0, 4.0];
    let w = [1.0, 0.0, 2.0, 0.0]; // channels x, 0, 2x, 0
    let ends = cpu::ConvEnds { gate: Some(Gate::Glu), ..Default::default() };
    let y = cpu::conv(&x, &[2, 1, 2], &w, &[4, 1, 1], None, &ConvGeometry::default(), &ends).unwrap();
    let gated = |x: f64| x / (1.0 + (-2.0 * x).exp());
    let expected = [gated(1.0), gated(2.0), 0.0, 0.0, gated(3.0), gated(4.0), 0.0, 0.0];
    compare(&y, &expected, None, |_| 1e-15).unwrap();
}

#[test]
fn gates_want_shapes_that_fit() {
    let ends = cpu::ConvEnds { gate: Some(Gate::Glu), ..Default::default() };
    let odd = cpu::conv(&[1.0], &[1, 1, 1], &[1.0], &[1, 1, 1], None, &ConvGeometry::default(), &ends);
    assert!(matches!(odd, Err(Error::Argument(ArgumentError::Variant { .. }))), "{odd:?}");
    let odd = cpu::gate_backward(Gate::Glu, &[1.0], &[1, 1, 1], &[]);
    assert!(matches!(odd, Err(Error::Argument(ArgumentError::Shape { .. }))), "{odd:?}");
    let long = cpu::gate_backward(Gate::Glu, &[1.0; 4], &[1, 2, 2], &[1.0; 3]);
    assert!(matches!(long, Err(Error::Argument(ArgumentError::Length { .. }))), "{long:?}");
    let alphas = cpu::snake_backward(&[1.0; 4], &[1, 2, 2], &[1.0], &[1.0; 4]);
    assert!(matches!(alphas, Err(Error::Argument(ArgumentError::Length { .. }))), "{alphas:?}");
}
