//! A layer in f64, and how far f32 may be from it.
use weightnorm::cpu::{self, Weight};
use weightnorm::{Activation, Axis, Eps, Error};

/// y = g·(x·v)/n̂ + bias, and the gradients for a dy.
pub struct Layer<'a> {
    pub batch: usize,
    pub outs: usize,
    pub ins: usize,
    pub x: &'a [f32],
    pub v: &'a [f32],
    pub g: &'a [f32],
    pub bias: &'a [f32],
    pub dy: &'a [f32],
}

/// A number, and how far a right result may be from it.
#[derive(Clone, Copy)]
pub struct Close {
    exact: f64,
    bound: f64,
}

/// The results of a layer, in the order of their names: y, dx, dv, dg, dbias.
pub struct Results(pub [Vec<Close>; 5]);

pub const NAMES: [&str; 5] = ["y", "dx", "dv", "dg", "dbias"];

impl Layer<'_> {
    /// A bound is that of sums of f32 in any order, to first order: of m terms, (m + 16)·2⁻²⁴ times the sum of their
    /// magnitudes, which is the same formula on absolute values. The 16 is for what is done before and after a sum:
    /// divisions, roots, the sum over ranks. n̂ is half of such a sum, of in_features.
    ///
    /// | | sums that it goes through |
    /// |---|---|
    /// | y | the product, n̂: 2·(in + 16) |
    /// | dx | over out_features, n̂: out + in + 32 |
    /// | dg | over the batch, u, n̂: 2·(batch + in + 16) |
    /// | dv | dw, dg, n̂ twice: 4·(batch + in + 16) |
    /// | dbias | over the batch: batch + 16 |
    pub fn results(&self) -> Result<Results, Error> {
        let Layer { batch, outs, ins, .. } = *self;
        let (x_shape, v_shape) = ([batch, ins], [outs, ins]);
        let compute = |absolute: bool| {
            let widen = |numbers: &[f32]| -> Vec<f64> {
                numbers.iter().map(|&x| f64::from(if absolute { x.abs() } else { x })).collect()
            };
            let [x, v, g, bias, dy] = [self.x, self.v, self.g, self.bias, self.dy].map(widen);
            let (axis, eps) = (Axis::Kept(0), Eps::Clamp(1e-12));
            let w = cpu::normalize(&v, &v_shape, Some(&g), axis, eps)?;
            let norms = cpu::row_norms(&v, &v_shape, axis, eps)?;
            let y = cpu::linear(&x, &x_shape, &w, &v_shape, Some(&bias), Activation::None)?;
            let weight = Weight::Normalized { v: &v, g: Some(&g), axis, eps };
            let d = cpu::linear_backward(&x, &x_shape, weight, &v_shape, Some(&bias), Activation::None, &dy)?;
            let (mut dv, dg) = (d.dv, d.dg.expect("the weight has a gain"));
            if absolute {
                // dv = g/n̂·(dw - dg·v/n̂): the magnitude is with a plus.
                for (at, dv) in dv.iter_mut().enumerate() {
                    let row = at / ins;
                    *dv += 2.0 * g[row] / norms[row] * dg[row] * v[at] / norms[row];
                }
            }
            Ok::<_, Error>([y, d.dx, dv, dg, d.dbias])
        };
        let [exact, magnitudes] = [compute(false)?, compute(true)?];
        let terms = [2 * (ins + 16), outs + ins + 32, 4 * (batch + ins + 16), 2 * (batch + ins + 16), batch + 16];
        let close = |((exact, magnitudes), terms): ((Vec<f64>, Vec<f64>), usize)| {
            let e = terms as f64 * 2f64.powi(-24);
            let all = exact.into_iter().zip(magnitudes);
            all.map(|(exact, magnitude)| Close { exact, bound: e * magnitude }).collect()
        };
        let mut all = exact.into_iter().zip(magnitudes).zip(terms).map(close);
        Ok(Results([(); 5].map(|()| all.next().expect("five of them"))))
    }
}

/// The largest error, as a part of its bound: above 1, or NaN, it is wrong.
pub fn worst(got: &[f32], close: &[Close]) -> f64 {
    if got.len() != close.len() {
        return f64::INFINITY;
    }
    let parts = got.iter().zip(close).map(|(&got, &Close { exact, bound })| {
        let error = (f64::from(got) - exact).abs();
        // A bound of 0 is kept exactly.
        if error == 0.0 { 0.0 } else { error / bound }
    });
    parts.fold(0.0, |worst, part| if part.is_nan() || part > worst { part } else { worst })
}
