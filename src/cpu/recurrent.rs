//! Recurrent cells over whole sequences, and the gradients through time.
use super::activation::logistic;
use super::{LinearGradients, Weight, check_elements, check_features, check_size, linear, linear_backward};
use crate::{Activation, Cell, Error};
#[cfg(doc)]
use crate::{ArgumentError, LimitError};

/// A layer of recurrent cells over a sequence: what a step is, [`Cell`] says.
///
/// ```text
/// z[t,b] = W·x[t,b] + bias      q[t,b] = U·h[t−1,b] + hidden_bias      h[t], c[t] = the step of z, q, h[t−1], c[t−1]
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Recurrent<'a> {
    /// Which cell. It has G gates ([`Cell::gates`]).
    pub cell: Cell,
    /// `[T, B, I]`.
    pub x: &'a [f64],
    /// T steps, B sequences, I features.
    pub x_shape: [usize; 3],
    /// H, the units.
    pub units: usize,
    /// W, `[G·H, I]`.
    pub input: Weight<'a>,
    /// U, `[G·H, H]`.
    pub hidden: Weight<'a>,
    /// `[G·H]`.
    pub bias: Option<&'a [f64]>,
    /// `[G·H]`.
    pub hidden_bias: Option<&'a [f64]>,
    /// h before the first step, `[B, H]`; without it zeros.
    pub h0: Option<&'a [f64]>,
    /// c before the first step, `[B, H]`; without it zeros. Of an LSTM alone.
    pub c0: Option<&'a [f64]>,
}

/// What a layer of recurrent cells gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// h of every step, `[T, B, H]`.
    pub y: Vec<f64>,
    /// c after the last step, `[B, H]`, of an LSTM.
    pub c: Option<Vec<f64>>,
}

/// The gradients of a layer of recurrent cells.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentGradients {
    /// dx, and the gradients of W and its bias.
    pub input: LinearGradients,
    /// The gradient of h0 as dx, and those of U and its bias.
    pub hidden: LinearGradients,
    /// Of c0, of an LSTM.
    pub dc: Option<Vec<f64>>,
}

/// What a step leaves of a unit: i, f, g, o of an LSTM; r, z, n, q of a GRU, where q is what r multiplies; h.
type Gates = [f64; 4];

/// All steps, for the way back.
struct Steps {
    /// `[T][B·H]`.
    gates: Vec<Vec<Gates>>,
    /// `[T + 1][B·H]`: before the first step and after each.
    h: Vec<Vec<f64>>,
    c: Vec<Vec<f64>>,
}

/// A layer of recurrent cells, [`Recurrent`]: y, and c of an LSTM.
///
/// # Errors
/// [`ArgumentError::Length`], [`ArgumentError::Shape`], [`LimitError::TensorTooLarge`], and those of the weights.
pub fn recurrent(layer: &Recurrent) -> Result<Sequence, Error> {
    sequence_of(layer, None)
}

/// A multiplicative LSTM, whatever the cell of `layer`: with m for h in q.
///
/// ```text
/// m[t,b] = (Wm·x[t,b]) ⊙ (Um·h[t−1,b])
/// ```
///
/// - `of_m`: Wm, `[H, I]`, and Um, `[H, H]`.
///
/// # Errors
/// As [`recurrent`].
pub fn mlstm(layer: &Recurrent, of_m: [Weight; 2]) -> Result<Sequence, Error> {
    sequence_of(&Recurrent { cell: Cell::Lstm, ..*layer }, Some(of_m))
}

fn sequence_of(layer: &Recurrent, of_m: Option<[Weight; 2]>) -> Result<Sequence, Error> {
    let mut steps = layer.steps(of_m)?;
    let c = steps.c.pop().filter(|_| layer.cell == Cell::Lstm);
    Ok(Sequence { y: steps.h[1..].concat(), c })
}

/// The gradients of [`recurrent`], given dy, `[T, B, H]`, and the gradient of c after the last step, `[B, H]`, without
/// which it is zero. With dh and dc the gradients that reach a step from behind, and those before activations, by gate:
///
/// ```text
/// LSTM   dc += dh·o·(1 − tanh²c)    di = dc·g·i(1−i)    df = dc·c[t−1]·f(1−f)    dg = dc·i·(1−g²)
///        do = dh·tanh(c)·o(1−o)     dc[t−1] = dc·f
/// GRU    dn = dh·(1−z)(1−n²)        dz = dh·(h[t−1] − n)·z(1−z)    dr = dn·q·r(1−r)
///        dW of dr, dz, dn           dU of dr, dz, dn·r             dh[t−1] = dh·z + ..
/// RNN    dh·(1 − h²)
/// dh[t−1] = dy[t−1] + Uᵀ·(those of U)
/// ```
///
/// # Errors
/// As [`recurrent`].
pub fn recurrent_backward(layer: &Recurrent, dy: &[f64], dc: Option<&[f64]>) -> Result<RecurrentGradients, Error> {
    let [length, batch, _] = layer.x_shape;
    check_size("z of all steps", &[length, batch, layer.cell.gates(), layer.units])?;
    let (units, rows) = (layer.units, layer.cell.gates() * layer.units);
    check_elements("dy", &[length, batch, units], dy.len())?;
    check_elements("dc", &[batch, units], dc.map_or(batch * units, <[f64]>::len))?;
    let steps = layer.steps(None)?;
    let u = layer.hidden.product(&[rows, units])?;

    let mut dc = dc.map_or(vec![0.0; batch * units], <[f64]>::to_vec);
    let mut dh = vec![0.0; batch * units];
    let mut of_input = vec![0.0; length * batch * rows];
    let mut of_hidden = of_input.clone();
    for t in (0..length).rev() {
        for b in 0..batch {
            for unit in 0..units {
                let at = b * units + unit;
                let (h, c, gates) = (steps.h[t][at], [steps.c[t][at], steps.c[t + 1][at]], steps.gates[t][at]);
                let own = layer.step_backward(gates, h, c, dh[at] + dy[t * batch * units + at], &mut dc[at]);
                dh[at] = own.dh;
                for gate in 0..layer.cell.gates() {
                    let row = (t * batch + b) * rows + gate * units + unit;
                    of_input[row] = own.of_input[gate];
                    of_hidden[row] = own.of_hidden[gate];
                }
            }
        }
        for b in 0..batch {
            for k in 0..rows {
                for unit in 0..units {
                    dh[b * units + unit] += of_hidden[(t * batch + b) * rows + k] * u[k * units + unit];
                }
            }
        }
    }

    let before = steps.h[..length].concat();
    let none = Activation::None;
    let i = layer.x_shape[2];
    let input = linear_backward(layer.x, &layer.x_shape, layer.input, &[rows, i], None, none, &of_input)?;
    let shape = [length, batch, units];
    let hidden = linear_backward(&before, &shape, layer.hidden, &[rows, units], None, none, &of_hidden)?;
    let dc = Some(dc).filter(|_| layer.cell == Cell::Lstm);
    Ok(RecurrentGradients { input, hidden: LinearGradients { dx: dh, ..hidden }, dc })
}

impl Recurrent<'_> {
    fn steps(&self, of_m: Option<[Weight; 2]>) -> Result<Steps, Error> {
        let Recurrent { cell, x, x_shape, units, .. } = *self;
        let [length, batch, i] = x_shape;
        check_size("z of all steps", &[length, batch, cell.gates(), units])?;
        let rows = cell.gates() * units;
        for (arg, state) in [("h0", self.h0), ("c0", self.c0)] {
            check_elements(arg, &[batch, units], state.map_or(batch * units, <[f64]>::len))?;
        }
        check_features("recurrent", "hidden_bias", self.hidden_bias, rows)?;
        let (w, u) = (self.input.product(&[rows, i])?, self.hidden.product(&[rows, units])?);
        let z = linear(x, &x_shape, &w, &[rows, i], self.bias, Activation::None)?;
        let none = Activation::None;
        let of_m = match of_m {
            Some([w, u]) => {
                let (w, u) = (w.product(&[units, i])?, u.product(&[units, units])?);
                Some((linear(x, &x_shape, &w, &[units, i], None, none)?, u))
            }
            None => None,
        };

        let start = |state: Option<&[f64]>| state.map_or(vec![0.0; batch * units], <[f64]>::to_vec);
        let mut steps = Steps { gates: vec![], h: vec![start(self.h0)], c: vec![start(self.c0)] };
        for t in 0..length {
            let (h, c) = (&steps.h[t], &steps.c[t]);
            let m = match &of_m {
                Some((of_x, u)) => {
                    let of_h = linear(h, &[batch, units], u, &[units, units], None, none)?;
                    let of_x = &of_x[t * batch * units..];
                    of_x.iter().zip(of_h).map(|(x, h)| x * h).collect()
                }
                None => h.clone(),
            };
            let q = linear(&m, &[batch, units], &u, &[rows, units], self.hidden_bias, none)?;
            let (mut gates, mut next_h, mut next_c) = (vec![], vec![], vec![]);
            for b in 0..batch {
                for unit in 0..units {
                    let (at, row) = (b * units + unit, b * rows + unit);
                    let z = |gate: usize| z[t * batch * rows + row + gate * units];
                    let q = |gate: usize| q[row + gate * units];
                    let (left, h, c) = self.step(z, q, h[at], c[at]);
                    gates.push(left);
                    next_h.push(h);
                    next_c.push(c);
                }
            }
            steps.gates.push(gates);
            steps.h.push(next_h);
            steps.c.push(next_c);
        }
        Ok(steps)
    }

    /// A step of a unit, of z and q by gate: what it leaves, h' and c'.
    fn step(&self, z: impl Fn(usize) -> f64, q: impl Fn(usize) -> f64, h: f64, c: f64) -> (Gates, f64, f64) {
        let sum = |gate: usize| z(gate) + q(gate);
        match self.cell {
            Cell::Lstm => {
                let (i, f, g, o) = (logistic(sum(0)), logistic(sum(1)), sum(2).tanh(), logistic(sum(3)));
                let c = f * c + i * g;
                ([i, f, g, o], o * c.tanh(), c)
            }
            Cell::Gru => {
                let (r, z_gate) = (logistic(sum(0)), logistic(sum(1)));
                let n = (z(2) + r * q(2)).tanh();
                ([r, z_gate, n, q(2)], (1.0 - z_gate) * n + z_gate * h, 0.0)
            }
            Cell::Rnn => {
                let h = sum(0).tanh();
                ([h, 0.0, 0.0, 0.0], h, 0.0)
            }
        }
    }

    /// The way back through a step of a unit, given dh. `h` is from before the step, `c` from before and behind it;
    /// dc becomes that of before.
    fn step_backward(&self, gates: Gates, h: f64, c: [f64; 2], dh: f64, dc: &mut f64) -> Back {
        match (self.cell, gates) {
            (Cell::Lstm, [i, f, g, o]) => {
                let tanh = c[1].tanh();
                let d = *dc + dh * o * (1.0 - tanh * tanh);
                *dc = d * f;
                let of_o = dh * tanh * o * (1.0 - o);
                let all = [d * g * i * (1.0 - i), d * c[0] * f * (1.0 - f), d * i * (1.0 - g * g), of_o];
                Back { of_input: all, of_hidden: all, dh: 0.0 }
            }
            (Cell::Gru, [r, z, n, q]) => {
                let of_n = dh * (1.0 - z) * (1.0 - n * n);
                let of_z = dh * (h - n) * z * (1.0 - z);
                let of_r = of_n * q * r * (1.0 - r);
                Back { of_input: [of_r, of_z, of_n, 0.0], of_hidden: [of_r, of_z, of_n * r, 0.0], dh: dh * z }
            }
            (Cell::Rnn, [h, ..]) => {
                let all = [dh * (1.0 - h * h), 0.0, 0.0, 0.0];
                Back { of_input: all, of_hidden: all, dh: 0.0 }
            }
        }
    }
}

/// The gradients of z and of q by gate, and what of dh[t−1] does not go through U.
struct Back {
    of_input: [f64; 4],
    of_hidden: [f64; 4],
    dh: f64,
}
