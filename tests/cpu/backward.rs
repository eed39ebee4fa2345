//! normalize_backward and linear_backward against finite differences, and against each other.
use proptest::prelude::*;
use weightnorm::{Activation, Axis, Eps, cpu};

use crate::common::{compare, linear_terms, normalize_terms, row_of};

const POLICIES: [Eps; 7] = [
    Eps::None,
    Eps::InsideSqrt(1e-12),
    Eps::InsideSqrt(0.25),
    Eps::Clamp(1e-12),
    Eps::Clamp(0.5),
    Eps::After(1e-3),
    Eps::After(0.5),
];

/// How a row is made to lie: as it comes, or of a norm of so many e (0: a zero row). Under [`Eps::None`] as it comes.
/// At n = e a clamp has no derivative, and the differences reach 2h = 0.002 n̂ to either side: a row that comes within
/// 1 % of there is moved away, which no other policy needs.
const ROWS: [Option<f64>; 5] = [None, None, Some(0.0), Some(0.3), Some(3.0)];

/// A direction with ordinary, zero and near-zero rows, a gain with zeros and negatives, a policy.
#[derive(Debug, Clone)]
struct Direction {
    shape: Vec<usize>,
    v: Vec<f64>,
    g: Option<Vec<f64>>,
    axis: Axis,
    eps: Eps,
}

fn vector(len: usize) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-2f64..2.0, len)
}

/// `axis` past the last one is the whole tensor.
fn direction(shape: Vec<usize>, axis: usize, policy: usize) -> impl Strategy<Value = Direction> {
    let axis = if axis < shape.len() { Axis::Kept(axis) } else { Axis::Whole };
    let kept = if let Axis::Kept(k) = axis { shape[k] } else { 1 };
    let eps = POLICIES[policy];
    let gain = prop_oneof![4 => -2f64..2.0, 1 => Just(0.0)];
    let g = prop::option::weighted(0.8, prop::collection::vec(gain, kept));
    let v = prop::collection::vec((0.1f64..2.0, any::<bool>()), shape.iter().product::<usize>());
    (v, g, prop::collection::vec(0..ROWS.len(), kept)).prop_map(move |(v, g, rows)| {
        let mut v: Vec<f64> = v.into_iter().map(|(x, negative)| if negative { -x } else { x }).collect();
        if eps != Eps::None {
            let norms = cpu::row_norms(&v, &shape, axis, Eps::None).unwrap();
            for (at, v) in v.iter_mut().enumerate() {
                let j = row_of(at, &shape, axis);
                let e = f64::from(eps.value());
                let at_clamp = matches!(eps, Eps::Clamp(_)) && (norms[j] / e - 1.0).abs() < 0.01;
                if let Some(factor) = ROWS[rows[j]].or(at_clamp.then_some(0.3)) {
                    *v *= factor * e / norms[j];
                }
            }
        }
        Direction { shape: shape.clone(), v, g, axis, eps }
    })
}

impl Direction {
    fn g(&self) -> Option<&[f64]> {
        self.g.as_deref()
    }

    fn weight(&self) -> cpu::Weight<'_> {
        cpu::Weight::Normalized { v: &self.v, g: self.g(), axis: self.axis, eps: self.eps }
    }

    fn w(&self) -> Vec<f64> {
        cpu::normalize(&self.v, &self.shape, self.g(), self.axis, self.eps).unwrap()
    }

    /// With v[at] moved by h.
    fn moved(&self, at: usize, h: f64) -> Direction {
        let mut moved = self.clone();
        moved.v[at] += h;
        moved
    }

    /// With g_j moved by h; a gain that is not there counts as 1.
    fn moved_gain(&self, j: usize, h: f64) -> Direction {
        let kept = if let Axis::Kept(k) = self.axis { self.shape[k] } else { 1 };
        let mut moved = self.clone();
        moved.g.get_or_insert_with(|| vec![1.0; kept])[j] += h;
        moved
    }

    /// A step of v[at] that is small against the radius over which w bends there: n̂, but n where e is added to n,
    /// whose w bends at n = 0 sharply; a zero row gets a step so small that the bend itself, h/e, does not show.
    fn step(&self, at: usize) -> f64 {
        let j = row_of(at, &self.shape, self.axis);
        let norm = |eps| cpu::row_norms(&self.v, &self.shape, self.axis, eps).unwrap()[j];
        match self.eps {
            Eps::After(e) if norm(Eps::None) == 0.0 => 1e-10 * f64::from(e),
            Eps::After(_) => 1e-3 * norm(Eps::None),
            eps => 1e-3 * norm(eps),
        }
    }
}

/// Σ c·(df/dh) of a vector f(h) at 0: central differences, the error of order h² removed by a second pair. The vectors
/// are subtracted before they are added up, so that elements that do not change cancel exactly.
fn derivative(f: impl Fn(f64) -> Vec<f64>, c: &[f64], h: f64) -> f64 {
    let difference = |h: f64| -> f64 {
        let (above, below) = (f(h), f(-h));
        c.iter().zip(above.iter().zip(&below)).map(|(c, (a, b))| c * (a - b)).sum()
    };
    (8.0 * difference(h) - difference(2.0 * h)) / (12.0 * h)
}

/// The fourth-order difference is off by about h⁴ = 1e-12 of the terms, its rounding by 2⁻⁵³/h ~ 1e-13.
#[track_caller]
fn assert_near(got: &[f64], expected: &[f64], terms: &[f64], what: &str) {
    if let Err(message) = compare(got, expected, None, |i| 1e-9 * terms[i]) {
        panic!("{what}: {message}");
    }
}

/// Equal up to roundings.
#[track_caller]
fn assert_same(got: &[f64], expected: &[f64], terms: &[f64], what: &str) {
    if let Err(message) = compare(got, expected, None, |i| 1e-13 * terms[i]) {
        panic!("{what}: {message}");
    }
}

#[test]
fn normalize_backward_by_hand() {
    // v = (3, 4), n = 5, dw = (1, 0): dg = 3/5; dv = g/5 · ((1, 0) − 3/5 · (3/5, 4/5)).
    let backward = |g: Option<&[f64]>, eps| {
        cpu::normalize_backward(&[1.0, 0.0], &[3.0, 4.0], &[1, 2], g, Axis::Kept(0), eps).unwrap()
    };
    let check = |(dv, dg): (Vec<f64>, Vec<f64>), expected_dv: [f64; 2], expected_dg: f64| {
        assert_same(&dv, &expected_dv, &[1.0; 2], "dv");
        assert_same(&dg, &[expected_dg], &[1.0], "dg");
    };
    check(backward(None, Eps::None), [0.128, -0.096], 0.6);
    check(backward(Some(&[-10.0]), Eps::None), [-1.28, 0.96], 0.6);
    check(backward(Some(&[0.0]), Eps::None), [0.0, 0.0], 0.6);
    check(backward(None, Eps::Clamp(4.0)), [0.128, -0.096], 0.6);
    // Below the clamp w = v/10, a plain scale.
    check(backward(None, Eps::Clamp(10.0)), [0.1, 0.0], 0.3);
    // n̂ = 13: dg = 3/13, dv = 1/13 · ((1, 0) − 3/13 · (3/13, 4/13)).
    check(backward(None, Eps::InsideSqrt(144.0)), [160.0 / 2197.0, -12.0 / 2197.0], 3.0 / 13.0);
    // n̂ = 10, d = 5: dg = 3/10, dv = 1/10 · ((1, 0) − 3/10 · (3/5, 4/5)).
    check(backward(None, Eps::After(5.0)), [0.082, -0.024], 0.3);
}

#[test]
fn normalize_backward_of_a_zero_row() {
    for eps in POLICIES {
        let (dv, dg) =
            cpu::normalize_backward(&[2.0, -3.0], &[0.0, 0.0], &[1, 2], Some(&[4.0]), Axis::Kept(0), eps).unwrap();
        if eps == Eps::None {
            assert!(dv.iter().chain(&dg).all(|d| d.is_nan()));
            continue;
        }
        let norm = cpu::row_norms(&[0.0], &[1], Axis::Whole, eps).unwrap()[0];
        assert_eq!(dg, [0.0], "{eps:?}");
        assert_same(&dv, &[8.0 / norm, -12.0 / norm], &[8.0 / norm, 12.0 / norm], "dv");
    }
}

/// Norms from 1e-38 to 1e38: dv runs against them, dg does not depend on them.
#[test]
fn normalize_backward_over_the_whole_range_of_f32() {
    for scale in [1e-38, 1e-30, 1e-15, 1.0, 1e15, 1e30, 1e38] {
        let v = [3.0 * scale, 4.0 * scale];
        let (dv, dg) = cpu::normalize_backward(&[1.0, 0.0], &v, &[1, 2], None, Axis::Kept(0), Eps::None).unwrap();
        assert_same(&dv, &[0.128 / scale, -0.096 / scale], &[1.0 / scale; 2], "dv");
        assert_same(&dg, &[0.6], &[1.0], "dg");
    }
}

#[test]
fn normalize_backward_keeps_nan_in_its_row() {
    for eps in [Eps::None, Eps::InsideSqrt(1e-12), Eps::Clamp(1e-12), Eps::Clamp(2f32.powi(126)), Eps::After(1e-3)] {
        let v = [1.0, f64::NAN, f64::INFINITY, 1.0, 3.0, 4.0, 1.0, 1.0];
        let mut dw = [1.0; 8];
        dw[7] = f64::NAN;
        let (dv, dg) = cpu::normalize_backward(&dw, &v, &[4, 2], None, Axis::Kept(0), eps).unwrap();
        assert_eq!(dg.iter().map(|d| d.is_nan()).collect::<Vec<_>>(), [true, true, false, true], "{eps:?}");
        assert!(dv[0].is_nan() && dv[1].is_nan() && dv[2].is_nan() && dv[7].is_nan(), "{eps:?}");
        assert!(dv[4].is_finite() && dv[5].is_finite(), "{eps:?}");
    }
}

#[test]
fn backward_of_empty_tensors() {
    let (dv, dg) = cpu::normalize_backward(&[], &[], &[5, 0], None, Axis::Kept(0), Eps::default()).unwrap();
    assert!(dv.is_empty() && dg == [0.0; 5]);

    let v = [3.0, 4.0];
    let weight = cpu::Weight::Normalized { v: &v, g: None, axis: Axis::Kept(0), eps: Eps::None };
    let of_no_batch = cpu::linear_backward(&[], &[0, 2], weight, &[1, 2], None, Activation::None, &[]).unwrap();
    assert!(of_no_batch.dx.is_empty());
    assert_eq!((of_no_batch.dv, of_no_batch.dg, of_no_batch.dbias), (vec![0.0; 2], Some(vec![0.0]), vec![0.0]));
    let of_no_inputs =
        cpu::linear_backward(&[], &[3, 0], cpu::Weight::Plain(&[]), &[2, 0], None, Activation::None, &[1.0; 6])
            .unwrap();
    assert_eq!((of_no_inputs.dg, of_no_inputs.dbias), (None, vec![3.0; 2]));
    let of_no_outputs =
        cpu::linear_backward(&[1.0; 6], &[3, 2], cpu::Weight::Plain(&[]), &[0, 2], None, Activation::None, &[])
            .unwrap();
    assert_eq!(of_no_outputs.dx, [0.0; 6]);
}

#[test]
fn linear_backward_by_hand() {
    let (x, w, dy) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0], [1.0, -2.0]);
    let plain =
        cpu::linear_backward(&x, &[2, 2], cpu::Weight::Plain(&w), &[1, 2], None, Activation::None, &dy).unwrap();
    assert_eq!((plain.dx, plain.dv), (vec![5.0, 6.0, -10.0, -12.0], vec![-5.0, -6.0]));
    assert_eq!((plain.dg, plain.dbias), (None, vec![-1.0]));
}

#[test]
fn linear_saved_by_hand() {
    let (x, v) = ([1.0, 1.0, 2.0, 0.0], [3.0, 4.0, 0.0, 2.0]);
    let saved = |axis| cpu::linear_saved(&x, &[2, 2], &v, &[2, 2], axis, Eps::None).unwrap();
    let out = saved(Axis::Kept(0));
    assert_eq!((out.norms, out.u), (vec![5.0, 2.0], Some(vec![1.4, 1.0, 1.2, 0.0])));
    let whole = saved(Axis::Whole);
    let n = 29f64.sqrt();
    assert_eq!((whole.norms, whole.u), (vec![n], Some(vec![7.0 / n, 2.0 / n, 6.0 / n, 0.0])));
    assert_eq!(saved(Axis::Kept(1)).u, None);
}

/// A linear layer; without a direction an ordinary weight `w`.
#[derive(Debug, Clone)]
struct Layer {
    batch: usize,
    outs: usize,
    ins: usize,
    x: Vec<f64>,
    w: Vec<f64>,
    direction: Option<Direction>,
    bias: Vec<f64>,
    dy: Vec<f64>,
}

/// Kept axis out, in, the whole, or (`axis` = 3) an ordinary weight.
fn layer() -> impl Strategy<Value = Layer> {
    ((1usize..5, 1usize..5, 1usize..8), 0usize..4, 0..POLICIES.len()).prop_flat_map(|((b, n, k), axis, policy)| {
        let vectors = (vector(b * k), vector(n * k), vector(n), vector(b * n));
        (vectors, direction(vec![n, k], axis, policy)).prop_map(move |((x, w, bias, dy), direction)| Layer {
            batch: b,
            outs: n,
            ins: k,
            x,
            w,
            direction: (axis < 3).then_some(direction),
            bias,
            dy,
        })
    })
}

impl Layer {
    fn weight(&self) -> cpu::Weight<'_> {
        self.direction.as_ref().map_or(cpu::Weight::Plain(&self.w), Direction::weight)
    }

    fn y(&self) -> Vec<f64> {
        let w = self.direction.as_ref().map_or_else(|| self.w.clone(), Direction::w);
        let (x_shape, w_shape) = ([self.batch, self.ins], [self.outs, self.ins]);
        cpu::linear(&self.x, &x_shape, &w, &w_shape, Some(&self.bias), Activation::None).unwrap()
    }

    fn backward(&self) -> cpu::LinearGradients {
        let (x_shape, w_shape) = ([self.batch, self.ins], [self.outs, self.ins]);
        cpu::linear_backward(&self.x, &x_shape, self.weight(), &w_shape, None, Activation::None, &self.dy).unwrap()
    }

    fn terms(&self) -> cpu::LinearGradients {
        linear_terms(&self.x, self.weight(), &[self.outs, self.ins], &self.dy)
    }

    /// ∂(Σ dy·y) for each of `got`, which `moved` moves, and how far it may be off: 1e-9 of its terms, as in
    /// `assert_near`, and the rounding of those products that change at all, (2K + 16)·2⁻⁵³·|x·w| each, over h.
    fn differences(
        &self,
        got: &[f64],
        terms: &[f64],
        what: &str,
        h: impl Fn(usize) -> f64,
        moved: impl Fn(&mut Layer, usize, f64),
    ) -> Result<(), String> {
        let products = |at, h| {
            let mut layer = self.clone();
            moved(&mut layer, at, h);
            layer.products()
        };
        let dy: Vec<f64> = self.dy.iter().flat_map(|&dy| vec![dy; self.ins + 1]).collect();
        let expected: Vec<f64> = (0..got.len()).map(|at| derivative(|h| products(at, h), &dy, h(at))).collect();
        let rounding = |at: usize| -> f64 {
            let pairs = products(at, 2.0 * h(at)).into_iter().zip(products(at, -2.0 * h(at)));
            let sum: f64 = dy.iter().zip(pairs).filter(|(_, (a, b))| a != b).map(|(dy, (a, _))| (dy * a).abs()).sum();
            2f64.powi(-53) * (2 * self.ins + 16) as f64 * sum / h(at)
        };
        compare(got, &expected, None, |at| 1e-9 * terms[at] + rounding(at))
            .map(drop)
            .map_err(|e| format!("{what}: {e}"))
    }

    /// Every gradient against the differences.
    fn check_differences(&self, got: &cpu::LinearGradients) -> Result<(), String> {
        let terms = self.terms();
        self.differences(&got.dbias, &terms.dbias, "dbias", |_| 0.5, |layer, j, h| layer.bias[j] += h)?;
        // Elsewhere the bias would only add its rounding to differences that may be tiny.
        let mut layer = self.clone();
        layer.bias.fill(0.0);
        layer.differences(&got.dx, &terms.dx, "dx", |_| 0.5, |layer, at, h| layer.x[at] += h)?;
        let Some(direction) = &self.direction else {
            assert_eq!(got.dg, None);
            return layer.differences(&got.dv, &terms.dv, "dw", |_| 0.5, |layer, at, h| layer.w[at] += h);
        };
        layer.differences(
            &got.dv,
            &terms.dv,
            "dv",
            |at| direction.step(at),
            |layer, at, h| {
                layer.direction = Some(direction.moved(at, h));
            },
        )?;
        let (dg, dg_terms) = (got.dg.as_ref().unwrap(), terms.dg.as_ref().unwrap());
        layer.differences(
            dg,
            dg_terms,
            "dg",
            |_| 0.5,
            |layer, j, h| {
                layer.direction = Some(direction.moved_gain(j, h));
            },
        )
    }

    /// What each y is the sum of: x·w for each k, and the bias.
    fn products(&self) -> Vec<f64> {
        let w = self.direction.as_ref().map_or_else(|| self.w.clone(), Direction::w);
        let outputs = (0..self.batch).flat_map(|b| (0..self.outs).map(move |j| (b, j)));
        outputs
            .flat_map(|(b, j)| {
                let (x, w) = (&self.x[b * self.ins..][..self.ins], &w[j * self.ins..][..self.ins]);
                x.iter().zip(w).map(|(x, w)| x * w).chain([self.bias[j]]).collect::<Vec<_>>()
            })
            .collect()
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() }
}

/// A direction of rank 1 to 4 and dw.
fn normalization() -> impl Strategy<Value = (Direction, Vec<f64>)> {
    (prop::collection::vec(1usize..4, 1..=4), 0usize..5, 0..POLICIES.len()).prop_flat_map(|(shape, axis, policy)| {
        let dw = vector(shape.iter().product());
        (direction(shape, axis, policy), dw)
    })
}

fn normalize_backward(direction: &Direction, dw: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let Direction { shape, v, axis, eps, .. } = direction;
    cpu::normalize_backward(dw, v, shape, direction.g(), *axis, *eps).unwrap()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn normalize_backward_equals_finite_differences((case, dw) in normalization()) {
        let (dv, dg) = normalize_backward(&case, &dw);
        let (dv_terms, dg_terms) = normalize_terms(&dw, &case.v, &case.shape, case.g(), case.axis, case.eps);
        let expected_dv: Vec<_> =
            (0..dv.len()).map(|at| derivative(|h| case.moved(at, h).w(), &dw, case.step(at))).collect();
        assert_near(&dv, &expected_dv, &dv_terms, "dv");
        let expected_dg: Vec<_> =
            (0..dg.len()).map(|j| derivative(|h| case.moved_gain(j, h).w(), &dw, 0.5)).collect();
        assert_near(&dg, &expected_dg, &dg_terms, "dg");
    }

    /// w does not change along v.
    #[test]
    fn normalize_backward_is_orthogonal_to_v((case, dw) in normalization()) {
        let case = Direction { eps: Eps::None, v: case.v.iter().map(|v| v + 3.0).collect(), ..case };
        let (dv, dg) = normalize_backward(&case, &dw);
        let (terms, _) = normalize_terms(&dw, &case.v, &case.shape, case.g(), case.axis, case.eps);
        let (mut dots, mut sums) = (vec![0.0; dg.len()], vec![0.0; dg.len()]);
        for at in 0..dv.len() {
            let j = row_of(at, &case.shape, case.axis);
            dots[j] += dv[at] * case.v[at];
            sums[j] += terms[at] * case.v[at].abs();
        }
        assert_same(&dots, &vec![0.0; dots.len()], &sums, "dv·v");
    }

    #[test]
    fn normalize_backward_runs_against_the_scale_of_v((case, dw) in normalization(), c in 1e-20f64..1e20) {
        let case = Direction { eps: Eps::None, v: case.v.iter().map(|v| v + 3.0).collect(), ..case };
        let scaled = Direction { v: case.v.iter().map(|v| c * v).collect(), ..case.clone() };
        let ((dv, dg), (scaled_dv, scaled_dg)) = (normalize_backward(&case, &dw), normalize_backward(&scaled, &dw));
        let (dv_terms, dg_terms) = normalize_terms(&dw, &case.v, &case.shape, case.g(), case.axis, case.eps);
        assert_same(&scaled_dv.iter().map(|d| c * d).collect::<Vec<_>>(), &dv, &dv_terms, "dv");
        assert_same(&scaled_dg, &dg, &dg_terms, "dg");
    }

    /// dv is linear in g, and dg does not depend on it.
    #[test]
    fn normalize_backward_is_linear_in_g((case, dw) in normalization()) {
        let (dv, dg) = normalize_backward(&case, &dw);
        let (unit_dv, unit_dg) = normalize_backward(&Direction { g: None, ..case.clone() }, &dw);
        let (terms, _) = normalize_terms(&dw, &case.v, &case.shape, case.g(), case.axis, case.eps);
        let gain = |at| case.g().map_or(1.0, |g| g[row_of(at, &case.shape, case.axis)]);
        let expected: Vec<_> = unit_dv.iter().enumerate().map(|(at, d)| gain(at) * d).collect();
        assert_same(&dv, &expected, &terms, "dv");
        prop_assert_eq!(dg, unit_dg);
    }

    #[test]
    fn linear_backward_equals_finite_differences(layer in layer()) {
        layer.check_differences(&layer.backward()).unwrap();
    }

    /// The control: each gradient in turn with one element off by a thousandth of its terms.
    #[test]
    fn finite_differences_find_a_wrong_gradient(layer in layer(), which in 0usize..4) {
        let (mut wrong, terms) = (layer.backward(), layer.terms());
        let none = Vec::new();
        let (gradient, terms) = match which {
            0 => (Some(&mut wrong.dx), &terms.dx),
            1 => (Some(&mut wrong.dv), &terms.dv),
            2 => (wrong.dg.as_mut(), terms.dg.as_ref().unwrap_or(&none)),
            _ => (Some(&mut wrong.dbias), &terms.dbias),
        };
        let Some(gradient) = gradient else { return Ok(()) };
        let largest = (0..terms.len()).max_by(|&a, &b| terms[a].total_cmp(&terms[b])).unwrap();
        if terms[largest] == 0.0 {
            return Ok(());
        }
        gradient[largest] += 1e-3 * terms[largest];
        let message = layer.check_differences(&wrong).unwrap_err();
        prop_assert!(message.contains("1 of"), "{}", message);
    }

    /// The forms of the fused backward pass (no dw before the correction, the scale on dy or at the end) and what
    /// `linear_saved` is for, by loops of their own.
    #[test]
    fn linear_backward_equals_the_fused_forms(layer in layer()) {
        let Some(direction) = &layer.direction else { return Ok(()) };
        let (got, terms) = (layer.backward(), layer.terms());
        let Layer { batch, outs, ins, x, dy, .. } = &layer;
        let (batch, outs, ins) = (*batch, *outs, *ins);
        let Direction { shape, v, axis, eps, .. } = direction;
        let saved = cpu::linear_saved(x, &[batch, ins], v, shape, *axis, *eps).unwrap();
        let scales: Vec<f64> =
            saved.norms.iter().enumerate().map(|(j, n)| direction.g().map_or(1.0, |g| g[j]) / n).collect();
        let row = |j: usize, k: usize| match axis { Axis::Kept(0) => j, Axis::Kept(_) => k, Axis::Whole => 0 };

        let mut dx = vec![0.0; batch * ins];
        let mut dg = vec![0.0; saved.norms.len()];
        for b in 0..batch {
            for k in 0..ins {
                let term = |j: usize| dy[b * outs + j] * v[j * ins + k];
                dx[b * ins + k] = match axis {
                    Axis::Kept(0) => (0..outs).map(|j| term(j) * scales[j]).sum(),
                    _ => {
                        let q = (0..outs).map(term).sum::<f64>();
                        if *axis == Axis::Kept(1) {
                            dg[k] += x[b * ins + k] * q / saved.norms[k];
                        }
                        q * scales[row(0, k)]
                    }
                };
            }
            if let Some(u) = &saved.u {
                (0..outs).for_each(|j| dg[row(j, 0)] += dy[b * outs + j] * u[b * outs + j]);
            }
        }
        assert_same(&got.dx, &dx, &terms.dx, "dx");
        assert_same(got.dg.as_ref().unwrap(), &dg, terms.dg.as_ref().unwrap(), "dg");

        let plain = cpu::row_norms(v, shape, *axis, Eps::None).unwrap();
        let dv: Vec<f64> = (0..outs * ins).map(|at| {
            let (j, k) = (at / ins, at % ins);
            let r = row(j, k);
            let product = (0..batch).map(|b| dy[b * outs + j] * x[b * ins + k]).sum::<f64>();
            let correction = match eps {
                Eps::Clamp(e) if plain[r] < f64::from(*e) => 0.0,
                Eps::After(_) if plain[r] == 0.0 => 0.0,
                Eps::After(_) => dg[r] * (v[at] / plain[r]),
                _ => dg[r] * (v[at] / saved.norms[r]),
            };
            scales[r] * (product - correction)
        }).collect();
        assert_same(&got.dv, &dv, &terms.dv, "dv");
    }

    /// u is what the gain multiplies.
    #[test]
    fn linear_saved_gives_y(layer in layer()) {
        let Some(direction) = &layer.direction else { return Ok(()) };
        let Direction { shape, v, axis, eps, .. } = direction;
        let saved = cpu::linear_saved(&layer.x, &[layer.batch, layer.ins], v, shape, *axis, *eps).unwrap();
        prop_assert_eq!(&saved.norms, &cpu::row_norms(v, shape, *axis, *eps).unwrap());
        let Some(u) = saved.u else { return Ok(()) };
        let (n, whole) = (layer.outs, *axis == Axis::Whole);
        let gain = |j: usize| direction.g().map_or(1.0, |g| g[if whole { 0 } else { j }]);
        let y: Vec<_> = u.iter().enumerate().map(|(at, u)| gain(at % n) * u + layer.bias[at % n]).collect();
        compare(&layer.y(), &y, None, |_| 1e-13).unwrap();
    }
}
