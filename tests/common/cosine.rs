//! What [`cpu::cosine`] and its gradients are, and by how much f32 may be off.
use weightnorm::{Activation, Axis, DType, Eps, cpu};

use super::{abs, dg_bound, dot_bound, dv_bound, linear_terms, norm_bound, norm_chain, normalize_terms};

/// Expected values, and the bound of each.
pub type Bounded = (Vec<f64>, Vec<f64>);

/// Those of every result.
pub struct CosineBounds {
    pub y: Bounded,
    pub u: Bounded,
    pub norms: Bounded,
    pub dx: Bounded,
    pub dv: Bounded,
    pub dg: Bounded,
}

/// The terms of y, dx, dv and dg: as they are, with absolute values.
pub fn cosine_terms(
    (x, x_shape): (&[f64], &[usize; 2]),
    (v, v_shape): (&[f64], &[usize; 2]),
    g: Option<&[f64]>,
    eps: Eps,
    dy: &[f64],
) -> [Vec<f64>; 4] {
    let axis = Axis::Kept(0);
    let unit_x = cpu::normalize(x, x_shape, None, axis, eps).unwrap();
    let w = cpu::normalize(v, v_shape, g, axis, eps).unwrap();
    let y = cpu::linear(&abs(&unit_x), x_shape, &abs(&w), v_shape, None, Activation::None).unwrap();
    let linear = linear_terms(&unit_x, cpu::Weight::Normalized { v, g, axis, eps }, v_shape, dy);
    let (dx, _) = normalize_terms(&linear.dx, x, x_shape, None, axis, eps);
    [y, dx, linear.dv, linear.dg.unwrap()]
}

/// Of x, v and y stored in these types. What the norm of a row of x adds to the roundings of a linear layer is what
/// that of a row of v does: half of a chain, and 12. For x̂, which dv is made of, a division more.
pub fn cosine_bounds(
    x @ (x_data, x_shape): (&[f64], &[usize; 2]),
    v @ (v_data, v_shape): (&[f64], &[usize; 2]),
    g: Option<&[f64]>,
    eps: Eps,
    dy: &[f64],
    [x_type, v_type, y_type]: [DType; 3],
) -> CosineBounds {
    let &[rows, ins] = x_shape;
    let outs = v_shape[0];
    let axis = Axis::Kept(0);
    let with = |value: Vec<f64>, bound: &dyn Fn(usize, f64) -> f64| {
        let bounds = value.iter().enumerate().map(|(i, &value)| bound(i, value)).collect();
        (value, bounds)
    };
    let y = cpu::cosine(x_data, x_shape, v_data, v_shape, g, eps).unwrap();
    let u = cpu::cosine(x_data, x_shape, v_data, v_shape, None, eps).unwrap();
    let norms = cpu::row_norms(v_data, v_shape, axis, eps).unwrap();
    let cpu::CosineGradients { dx, dv, dg } =
        cpu::cosine_backward(x_data, x_shape, v_data, v_shape, g, eps, dy).unwrap();
    let [y_terms, dx_terms, dv_terms, dg_terms] = cosine_terms(x, v, g, eps, dy);
    let [u_terms, ..] = cosine_terms(x, v, None, eps, dy);
    // 1.5 chains of a dot product with one norm.
    let chain = ins + ins.div_ceil(3) + 16;
    let norm = norm_chain(ins);
    let of_x = ins / 2 + 20;
    CosineBounds {
        y: with(y, &|i, y| dot_bound(chain, y_terms[i], y, y_type)),
        u: with(u, &|i, u| dot_bound(chain, u_terms[i], u, DType::F32)),
        norms: with(norms, &|_, n| norm_bound(ins, n)),
        dx: with(dx, &|i, dx| dv_bound(norm, outs + norm + 24 + ins, dx_terms[i], dx, x_type)),
        dv: with(dv, &|i, dv| dv_bound(norm, rows + ins + 2 * of_x, dv_terms[i], dv, v_type)),
        dg: with(dg, &|i, dg| dg_bound(norm, rows + ins + of_x, dg_terms[i], dg)),
    }
}
