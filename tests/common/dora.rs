//! What [`cpu::dora`] and its gradients are, and by how much f32 may be off.
use weightnorm::{DType, cpu};

use super::cosine::Bounded;
use super::{abs, gamma, storage_bound};

/// Those of every result.
pub struct DoraBounds {
    pub norms: Bounded,
    pub w: Bounded,
    pub y: Bounded,
    pub dx: Bounded,
    pub da: Bounded,
    pub db: Bounded,
    pub dmagnitude: Bounded,
    pub dbias: Bounded,
}

/// The terms: with absolute values, every difference a sum. Norms are those of the weight itself.
pub struct DoraTerms {
    pub norms: Vec<f64>,
    /// Relative errors of n̂ in units of a rounding of each term.
    pub norm_terms: Vec<f64>,
    pub w: Vec<f64>,
    pub y: Vec<f64>,
    pub gradients: cpu::DoraGradients,
}

pub fn dora_terms(
    (x, x_shape): (&[f64], &[usize]),
    weight: &cpu::DoraWeight<'_>,
    bias: Option<&[f64]>,
    dy: &[f64],
    through_norms: bool,
) -> DoraTerms {
    let [outs, ins] = weight.shape;
    let rank = weight.rank;
    let norms = cpu::dora_norms(weight).unwrap();
    let (base, a, b, m) = (abs(weight.base), abs(weight.a), abs(weight.b), abs(weight.magnitude));
    let s = weight.scaling.abs();
    let low = |j: usize, k: usize| s * (0..rank).map(|r| b[j * rank + r] * a[r * ins + k]).sum::<f64>();
    let sum: Vec<f64> = (0..outs * ins).map(|i| base[i] + low(i / ins, i % ins)).collect();
    let squares = |values: &[f64], j: usize| values[j * ins..][..ins].iter().map(|a| a * a).sum::<f64>();
    let norm_term = |j: usize| {
        // By A·W0ᵀ and A·Aᵀ unless the row is short; else the row itself, by Cauchy and Schwarz.
        let signed = |k: usize| (0..rank).map(|r| weight.b[j * rank + r] * weight.a[r * ins + k]).sum::<f64>() * s;
        let parts = squares(&base, j) + (0..ins).map(|k| signed(k) * signed(k)).sum::<f64>();
        let (all, n) = (squares(&sum, j), norms[j]);
        if n * n * 64.0 < 0.99 * parts { 2.0 * all.sqrt() / n } else { all / (n * n) }
    };
    let norm_terms = (0..outs).map(norm_term).collect();
    let w: Vec<f64> = (0..outs * ins).map(|i| m[i / ins] * sum[i] / norms[i / ins]).collect();
    let (x, dy) = (abs(x), abs(dy));
    let batch = dy.len() / outs.max(1);
    let at = |i: usize, j: usize| dy[i * outs + j];
    let y = (0..batch * outs)
        .map(|i| {
            let (row, j) = (i / outs, i % outs);
            (0..ins).map(|k| x[row * ins + k] * w[j * ins + k]).sum::<f64>() + bias.map_or(0.0, |b| b[j].abs())
        })
        .collect();
    assert_eq!(x_shape.iter().product::<usize>(), x.len());
    let dx = (0..batch * ins).map(|i| (0..outs).map(|j| at(i / ins, j) * w[j * ins + i % ins]).sum()).collect();
    let dw: Vec<f64> =
        (0..outs * ins).map(|i| (0..batch).map(|row| at(row, i / ins) * x[row * ins + i % ins]).sum()).collect();
    let dmagnitude: Vec<f64> =
        (0..outs).map(|j| (0..ins).map(|k| dw[j * ins + k] * sum[j * ins + k]).sum::<f64>() / norms[j]).collect();
    let dbias = (0..outs).map(|j| (0..batch).map(|row| at(row, j)).sum()).collect();
    let of_sum = |i: usize| {
        let j = i / ins;
        let correction = if through_norms { dmagnitude[j] * sum[i] / norms[j] } else { 0.0 };
        m[j] / norms[j] * (dw[i] + correction)
    };
    let of_sum: Vec<f64> = (0..outs * ins).map(of_sum).collect();
    let da = (0..rank * ins)
        .map(|i| s * (0..outs).map(|j| b[j * rank + i / ins] * of_sum[j * ins + i % ins]).sum::<f64>())
        .collect();
    let db = (0..outs * rank)
        .map(|i| s * (0..ins).map(|k| of_sum[i / rank * ins + k] * a[i % rank * ins + k]).sum::<f64>())
        .collect();
    let gradients = cpu::DoraGradients { dx, da, db, dmagnitude, dbias };
    DoraTerms { norms, norm_terms, w, y, gradients }
}

/// Of x and its gradient, of y, of W0 and the merged weight stored in these types; the other gradients are f32.
///
/// `chain` is that of all sums that feed each other: x·W0ᵀ, the rank, the batch, outputs; and squares. Of a norm it is
/// that of the products with A, of A·Aᵀ, and of the form of the rank; 30 for quotients, roots, and numbers stored
/// between two products.
pub fn dora_bounds(
    x: (&[f64], &[usize]),
    weight: &cpu::DoraWeight<'_>,
    bias: Option<&[f64]>,
    dy: &[f64],
    through_norms: bool,
    [x_type, y_type, base_type]: [DType; 3],
) -> DoraBounds {
    let [outs, ins] = weight.shape;
    let rank = weight.rank;
    let terms = dora_terms(x, weight, bias, dy, through_norms);
    let batch = dy.len() / outs.max(1);
    let of_norms = gamma((ins + 2 * rank + 30) as f64);
    let norm_errors: Vec<f64> = terms.norm_terms.iter().map(|term| of_norms * term).collect();
    let worst = norm_errors.iter().fold(0f64, |a, &b| a.max(b));
    let roundings = gamma((2 * ins + outs + batch + 3 * rank + 60) as f64);
    let bounded = |value: Vec<f64>, terms: &[f64], error: &dyn Fn(usize) -> f64, dtype: DType| {
        let bound = |(i, value): (usize, &f64)| {
            let e = (roundings + error(i)) * terms[i];
            e + storage_bound(dtype, value.abs() + e)
        };
        let bounds = value.iter().enumerate().map(bound).collect();
        (value, bounds)
    };
    let y = cpu::dora(x.0, x.1, weight, bias).unwrap();
    let w = cpu::dora_merge(weight).unwrap();
    let gradients = cpu::dora_backward(x.0, x.1, weight, dy, through_norms).unwrap();
    let own = |times: f64, columns: usize| {
        let errors = norm_errors.clone();
        move |i: usize| times * errors[i / columns]
    };
    // n̂ goes into the terms of the norm four times at most: m/n̂, dm, 1/d.
    let times = if through_norms { 4.0 } else { 1.0 };
    DoraBounds {
        norms: bounded(terms.norms.clone(), &terms.norms, &own(1.0, 1), DType::F32),
        w: bounded(w, &terms.w, &own(1.0, ins), base_type),
        y: bounded(y, &terms.y, &|i| norm_errors[i % outs], y_type),
        dx: bounded(gradients.dx, &terms.gradients.dx, &|_| worst, x_type),
        da: bounded(gradients.da, &terms.gradients.da, &|_| times * worst, DType::F32),
        db: bounded(gradients.db, &terms.gradients.db, &own(times, rank), DType::F32),
        dmagnitude: bounded(gradients.dmagnitude, &terms.gradients.dmagnitude, &own(1.0, 1), DType::F32),
        dbias: bounded(gradients.dbias, &terms.gradients.dbias, &|_| 0.0, DType::F32),
    }
}
