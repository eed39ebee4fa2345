//! Recurrent cells once more, each number with what it may be off by in an arithmetic whose roundings are `unit` of a
//! result: the bounds of every result of a sequence and of its gradients.
use weightnorm::{Axis, Cell, DType, Eps, cpu};

/// A number, and what it may be off by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Off {
    pub v: f64,
    pub e: f64,
}

fn exact(v: f64) -> Off {
    Off { v, e: 0.0 }
}

/// The errors of the functions are those of `activated_bound` and `gated_bound`, rounded up.
#[derive(Clone, Copy)]
struct Arithmetic {
    unit: f64,
}

impl Arithmetic {
    fn rounded(self, v: f64, e: f64) -> Off {
        Off { v, e: e + self.unit * (v.abs() + e) }
    }

    fn add(self, a: Off, b: Off) -> Off {
        self.rounded(a.v + b.v, a.e + b.e)
    }

    fn sub(self, a: Off, b: Off) -> Off {
        self.rounded(a.v - b.v, a.e + b.e)
    }

    fn mul(self, a: Off, b: Off) -> Off {
        self.rounded(a.v * b.v, a.v.abs() * b.e + b.v.abs() * a.e + a.e * b.e)
    }

    fn product<const N: usize>(self, factors: [Off; N]) -> Off {
        factors.into_iter().fold(exact(1.0), |all, factor| self.mul(all, factor))
    }

    /// Its slope is nowhere within a.e further from that at a than 0.77 times as much.
    fn tanh(self, a: Off) -> Off {
        let v = a.v.tanh();
        let slope = (1.0 - v * v + 0.77 * a.e).min(1.0);
        Off { v, e: slope * a.e + 16.0 * self.unit * if a.v.abs() < 0.25 { v.abs() } else { 1.0 } }
    }

    /// The same with 0.1.
    fn sigmoid(self, a: Off) -> Off {
        let v = 1.0 / (1.0 + (-a.v).exp());
        let slope = (v * (1.0 - v) + 0.1 * a.e).min(0.25);
        Off { v, e: slope * a.e + (16.0 + 4.0 * a.v.abs().min(120.0)) * self.unit * v }
    }

    /// 1 − a², of an a that tanh or its like gave.
    fn slope(self, a: Off) -> Off {
        self.sub(exact(1.0), self.mul(a, a))
    }

    /// a(1 − a)
    fn sigmoid_slope(self, a: Off) -> Off {
        self.mul(a, self.sub(exact(1.0), a))
    }

    /// A sum of products in any order, of terms that are scaled besides.
    fn dot(self, terms: impl Iterator<Item = (Off, Off)>) -> Off {
        let (mut v, mut e, mut sizes, mut count) = (0.0, 0.0, 0.0, 0.0);
        for (a, b) in terms {
            v += a.v * b.v;
            e += a.v.abs() * b.e + b.v.abs() * a.e + a.e * b.e;
            sizes += (a.v * b.v).abs();
            count += 1.0;
        }
        Off { v, e: e + (count + 12.0) * self.unit * sizes }
    }
}

/// The results, with what they may be off by.
#[derive(Default)]
pub struct Tracked {
    pub y: Vec<Off>,
    pub c: Vec<Off>,
    pub dx: Vec<Off>,
    pub dh0: Vec<Off>,
    pub dc: Vec<Off>,
    pub input: OfWeight,
    pub hidden: OfWeight,
}

/// The gradients of a weight and its bias.
#[derive(Default)]
pub struct OfWeight {
    pub dv: Vec<Off>,
    pub dg: Vec<Off>,
    pub dbias: Vec<Off>,
}

/// A weight, `[rows, width]`.
struct Weights<'a> {
    of: cpu::Weight<'a>,
    shape: [usize; 2],
    w: Vec<Off>,
}

impl<'a> Weights<'a> {
    fn new(of: cpu::Weight<'a>, shape: [usize; 2], unit: f64) -> Weights<'a> {
        let w = match of {
            cpu::Weight::Plain(w) => w.iter().map(|&w| exact(w)).collect(),
            cpu::Weight::Normalized { v, g, axis, eps } => {
                let w = cpu::normalize(v, &shape, g, axis, eps).unwrap();
                let relative = norm_error(&shape, axis) + 8.0;
                w.into_iter().map(|v| Off { v, e: relative * unit * v.abs() }).collect()
            }
        };
        Weights { of, shape, w }
    }

    fn row(&self, j: usize) -> &[Off] {
        &self.w[j * self.shape[1]..][..self.shape[1]]
    }

    /// Of dz, `[N, rows]`, and the operand, `[N, width]`.
    fn gradients(&self, by: Arithmetic, dz: &[Off], operand: &[Off]) -> OfWeight {
        let [rows, width] = self.shape;
        let count = dz.len() / rows;
        let column = |j: usize| (0..count).map(move |n| dz[n * rows + j]);
        let dw: Vec<Off> = (0..rows * width)
            .map(|at| by.dot(column(at / width).zip((0..count).map(|n| operand[n * width + at % width]))))
            .collect();
        let dbias = (0..rows).map(|j| by.dot(column(j).map(|dz| (dz, exact(1.0))))).collect();
        let cpu::Weight::Normalized { v, g, axis, eps } = self.of else {
            return OfWeight { dv: dw, dg: vec![], dbias };
        };
        let norms = cpu::row_norms(v, &self.shape, axis, eps).unwrap();
        let d = match eps {
            Eps::After(_) => cpu::row_norms(v, &self.shape, axis, Eps::None).unwrap(),
            _ => norms.clone(),
        };
        let row = |at: usize| super::row_of(at, &self.shape, axis);
        let relative = (norm_error(&self.shape, axis) + 8.0) * by.unit;
        let of_row = |value: f64| Off { v: value, e: relative * value.abs() };
        let dg: Vec<Off> = (0..norms.len())
            .map(|j| {
                let own = (0..dw.len()).filter(|&at| row(at) == j);
                by.dot(own.map(|at| (dw[at], of_row(v[at] / norms[j]))))
            })
            .collect();
        let dv = (0..dw.len())
            .map(|at| {
                let j = row(at);
                // Under `Eps::After` a row of zeros has none.
                let correction = by.mul(dg[j], of_row(if v[at] == 0.0 { 0.0 } else { v[at] / d[j] }));
                by.mul(of_row(g.map_or(1.0, |g| g[j]) / norms[j]), by.sub(dw[at], correction))
            })
            .collect();
        OfWeight { dv, dg, dbias }
    }
}

/// Roundings in a norm.
fn norm_error(shape: &[usize], axis: Axis) -> f64 {
    let norms: usize = weightnorm::norms_shape(shape, axis).iter().product();
    (shape.iter().product::<usize>() / norms.max(1)) as f64 / 2.0 + 12.0
}

/// Of an LSTM with m for h in its sums, by Wm and Um: y and c.
pub fn tracked_mlstm(layer: &cpu::Recurrent, of_m: [cpu::Weight<'_>; 2], unit: f64, y: DType) -> [Vec<Off>; 2] {
    let none = vec![0.0; layer.x_shape[0] * layer.x_shape[1] * layer.units];
    let tracked = tracked_with(layer, Some(of_m), (&none, None), unit, Some(y));
    [tracked.y, tracked.c]
}

/// Given dy, and dc behind the last step. h is rounded to how y is stored, and read like that by the next step.
pub fn tracked(layer: &cpu::Recurrent, of: (&[f64], Option<&[f64]>), unit: f64, y: Option<DType>) -> Tracked {
    tracked_with(layer, None, of, unit, y)
}

fn tracked_with(
    layer: &cpu::Recurrent,
    of_m: Option<[cpu::Weight<'_>; 2]>,
    (dy, dc): (&[f64], Option<&[f64]>),
    unit: f64,
    y: Option<DType>,
) -> Tracked {
    let stored = |h: Off| y.map_or(0.0, |dtype| super::storage_bound(dtype, h.v.abs() + h.e));
    let by = Arithmetic { unit };
    let cpu::Recurrent { cell, x, x_shape: [length, batch, i], units, .. } = *layer;
    let rows = cell.gates() * units;
    let (w, u) = (Weights::new(layer.input, [rows, i], unit), Weights::new(layer.hidden, [rows, units], unit));
    let exacts = |values: &[f64]| values.iter().map(|&v| exact(v)).collect::<Vec<_>>();
    let start = |state: Option<&[f64]>| state.map_or(vec![Off::default(); batch * units], exacts);
    let bias = |bias: Option<&[f64]>, j: usize| exact(bias.map_or(0.0, |b| b[j]));
    let x = exacts(x);
    let of_m = of_m.map(|[w, u]| (Weights::new(w, [units, i], unit), Weights::new(u, [units, units], unit)));
    let (mut h, mut c, mut gates) = (vec![start(layer.h0)], vec![start(layer.c0)], vec![]);
    for t in 0..length {
        let (mut next_h, mut next_c, mut left) = (vec![], vec![], vec![]);
        let m: Option<Vec<Off>> = of_m.as_ref().map(|(w, u)| {
            let times = |at: usize| {
                let (b, j) = (at / units, at % units);
                let (x_row, h_row) = (&x[(t * batch + b) * i..][..i], &h[t][b * units..][..units]);
                let dot = |a: &[Off], b: &[Off]| by.dot(a.iter().copied().zip(b.iter().copied()));
                by.mul(dot(x_row, w.row(j)), dot(h_row, u.row(j)))
            };
            (0..batch * units).map(times).collect()
        });
        for at in 0..batch * units {
            let (b, unit_) = (at / units, at % units);
            let operand = m.as_ref().unwrap_or(&h[t]);
            let (x_row, h_row) = (&x[(t * batch + b) * i..][..i], &operand[b * units..][..units]);
            let z = |gate: usize| {
                let j = gate * units + unit_;
                by.add(by.dot(x_row.iter().copied().zip(w.row(j).iter().copied())), bias(layer.bias, j))
            };
            let q = |gate: usize| {
                let j = gate * units + unit_;
                by.add(by.dot(h_row.iter().copied().zip(u.row(j).iter().copied())), bias(layer.hidden_bias, j))
            };
            let sum = |gate: usize| by.add(z(gate), q(gate));
            let (own, new_h, new_c) = match cell {
                Cell::Lstm => {
                    let (i, f, g, o) = (by.sigmoid(sum(0)), by.sigmoid(sum(1)), by.tanh(sum(2)), by.sigmoid(sum(3)));
                    let c = by.add(by.mul(f, c[t][at]), by.mul(i, g));
                    ([i, f, g, o], by.mul(o, by.tanh(c)), c)
                }
                Cell::Gru => {
                    let (r, z_gate, q) = (by.sigmoid(sum(0)), by.sigmoid(sum(1)), q(2));
                    let n = by.tanh(by.add(z(2), by.mul(r, q)));
                    let kept = by.mul(z_gate, h[t][at]);
                    ([r, z_gate, n, q], by.add(by.mul(by.sub(exact(1.0), z_gate), n), kept), exact(0.0))
                }
                Cell::Rnn => {
                    let h = by.tanh(sum(0));
                    ([h; 4], h, exact(0.0))
                }
            };
            left.push(own);
            next_h.push(Off { e: new_h.e + stored(new_h), ..new_h });
            next_c.push(new_c);
        }
        h.push(next_h);
        c.push(next_c);
        gates.push(left);
    }

    let zeros = vec![Off::default(); length * batch * rows];
    let (mut of_input, mut of_hidden) = (zeros.clone(), zeros);
    let (mut dh, mut dc) = (vec![Off::default(); batch * units], start(dc));
    for t in (0..length).rev() {
        for at in 0..batch * units {
            let d = by.add(dh[at], exact(dy[t * batch * units + at]));
            let one = exact(1.0);
            let [first, second, third, fourth] = gates[t][at];
            let (of_z, of_q, carried) = match cell {
                Cell::Lstm => {
                    let (i, f, g, o, tanh) = (first, second, third, fourth, by.tanh(c[t + 1][at]));
                    let of_c = by.add(dc[at], by.product([d, o, by.slope(tanh)]));
                    dc[at] = by.mul(of_c, f);
                    let all = [
                        by.product([of_c, g, by.sigmoid_slope(i)]),
                        by.product([of_c, c[t][at], by.sigmoid_slope(f)]),
                        by.product([of_c, i, by.slope(g)]),
                        by.product([d, tanh, by.sigmoid_slope(o)]),
                    ];
                    (all, all, exact(0.0))
                }
                Cell::Gru => {
                    let (r, z, n, q) = (first, second, third, fourth);
                    let of_n = by.product([d, by.sub(one, z), by.slope(n)]);
                    let of_z = by.product([d, by.sub(h[t][at], n), by.sigmoid_slope(z)]);
                    let of_r = by.product([of_n, q, by.sigmoid_slope(r)]);
                    let none = exact(0.0);
                    ([of_r, of_z, of_n, none], [of_r, of_z, by.mul(of_n, r), none], by.mul(d, z))
                }
                Cell::Rnn => {
                    let all = [by.mul(d, by.slope(first)); 4];
                    (all, all, exact(0.0))
                }
            };
            dh[at] = carried;
            for gate in 0..cell.gates() {
                let row = (t * batch + at / units) * rows + gate * units + at % units;
                (of_input[row], of_hidden[row]) = (of_z[gate], of_q[gate]);
            }
        }
        for at in 0..batch * units {
            let dz = &of_hidden[(t * batch + at / units) * rows..][..rows];
            let column = (0..rows).map(|k| (dz[k], u.w[k * units + at % units]));
            dh[at] = by.add(dh[at], by.dot(column));
        }
    }
    let dx = (0..length * batch * i)
        .map(|at| {
            let dz = &of_input[at / i * rows..][..rows];
            by.dot((0..rows).map(|k| (dz[k], w.w[k * i + at % i])))
        })
        .collect();
    let y = h[1..].concat();
    let before = h[..length].concat();
    Tracked {
        input: w.gradients(by, &of_input, &x),
        hidden: u.gradients(by, &of_hidden, &before),
        y,
        c: c.pop().unwrap_or_default(),
        dx,
        dh0: dh,
        dc,
    }
}
