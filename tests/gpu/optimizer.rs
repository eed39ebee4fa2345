//! Optimizer steps: each of 50 from the GPU's own state against the CPU reference, and all 50 in a row.
use weightnorm::cpu::{self, Moments};
use weightnorm::internals::Kind;
use weightnorm::{
    Adam, AdamState, ArgumentError, Axis, DType, Eps, Error, Gpu, ParamGroup, Parameter, Sgd, SgdState, WeightNorm,
};

use crate::common::{compare, gamma, storage_bound};
use crate::data::{DTYPES, Guarded, OFFSETS, POLICIES, all, must_fail, norm_chain, random, rounded, upload};
use crate::device::{of_kind, recorded, refused, small, tiny};
use crate::{Extent, Needs, Outcome, Suite};

const STEPS: u64 = 50;

pub fn register(suite: &mut Suite) {
    let mut test = |name: &str, test: fn(&Gpu) -> Outcome| {
        suite.test(&format!("optimizer::{name}"), Needs::Nothing, test);
    };
    test("windows", windows);
    test("fifty_steps_in_a_row", fifty_steps_in_a_row);
    test("repeat", repeat);
    test("range", range);
    test("non_finite", non_finite);
    test("errors", errors);
    let mut sampled =
        |name: &str, test: fn(&Gpu, Extent) -> Outcome| suite.sampled(&format!("optimizer::{name}"), test);
    sampled("steps", steps);
    sampled("projection", projection);
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    Sgd(Sgd),
    Adam(Adam),
}

/// Every kernel: plain, momentum with dampening, Nesterov's, Adam, AdamW; g and v with rates and decays of their own.
fn methods() -> [Method; 5] {
    let g = ParamGroup { learning_rate: 0.05, weight_decay: 0.1 };
    let v = ParamGroup { learning_rate: 0.02, weight_decay: 0.03 };
    let sgd = Sgd { g, v, momentum: 0.0, dampening: 0.0, nesterov: false };
    let adam = Adam { g, v, ..Adam::new(0.0) };
    [
        Method::Sgd(sgd),
        Method::Sgd(Sgd { momentum: 0.9, dampening: 0.25, ..sgd }),
        Method::Sgd(Sgd { momentum: 0.8, nesterov: true, ..sgd }),
        Method::Adam(adam),
        Method::Adam(Adam { decoupled: true, ..adam }),
    ]
}

/// v, g, m and s of v, m and s of g; or as many bounds.
type Values = Vec<Vec<f64>>;

/// What a step changes, between guards.
struct Tensors {
    v: Guarded,
    g: Guarded,
    /// m and s of v, m and s of g.
    state: Vec<Guarded>,
}

impl Tensors {
    fn read(&self) -> Result<Values, String> {
        [&self.v, &self.g].into_iter().chain(&self.state).map(Guarded::read).collect()
    }
}

#[derive(Debug, Clone)]
struct Case {
    method: Method,
    shape: Vec<usize>,
    dtype: DType,
    dv_dtype: DType,
    gains: usize,
    g_dtype: DType,
    dg_dtype: DType,
    project: Option<(Axis, Eps)>,
    offset: u64,
}

impl Case {
    fn new(method: Method, shape: &[usize], dtype: DType) -> Case {
        let gains = shape[0];
        let (g_dtype, dg_dtype) = (DType::F32, DType::F32);
        Case {
            method,
            shape: shape.to_vec(),
            dtype,
            dv_dtype: dtype,
            gains,
            g_dtype,
            dg_dtype,
            project: None,
            offset: 0,
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn gradients(&self, step: u64) -> (Vec<f64>, Vec<f64>) {
        (random(100 + step, self.len(), self.dv_dtype), random(200 + step, self.gains, self.dg_dtype))
    }

    /// State tensors of each parameter.
    fn state_count(&self) -> usize {
        match self.method {
            Method::Sgd(sgd) => usize::from(sgd.momentum != 0.0),
            Method::Adam(_) => 2,
        }
    }

    fn tensors(&self, gpu: &Gpu) -> Result<Tensors, Error> {
        let mut state = vec![];
        for shape in [&self.shape[..], &[self.gains]] {
            for _ in 0..self.state_count() {
                let zeros = vec![0.0; shape.iter().product()];
                state.push(match self.method {
                    // The first step does not read what is there.
                    Method::Sgd(_) => Guarded::poisoned(gpu, shape, DType::F32, self.offset)?,
                    Method::Adam(_) => Guarded::holding(gpu, &zeros, shape, DType::F32, self.offset)?,
                });
            }
        }
        let values = self.start();
        Ok(Tensors {
            v: Guarded::holding(gpu, &values[0], &self.shape, self.dtype, self.offset)?,
            g: Guarded::holding(gpu, &values[1], &[self.gains], self.g_dtype, self.offset)?,
            state,
        })
    }

    /// v, g and the state before the first step.
    fn start(&self) -> Values {
        let mut values = vec![random(1, self.len(), self.dtype), random(2, self.gains, self.g_dtype)];
        for len in [self.len(), self.gains] {
            values.extend((0..self.state_count()).map(|_| vec![0.0; len]));
        }
        values
    }

    /// Records a step: the dispatches it took.
    fn step(&self, gpu: &Gpu, tensors: &Tensors, step: u64) -> Result<u64, Error> {
        let (dv, dg) = self.gradients(step);
        // Where v is, at an aligned place, so that both can be read four words at once.
        let place = if self.offset == 0 { 0 } else { step as usize };
        let dv = upload(gpu, &dv, &self.shape, self.dv_dtype, place)?;
        let dg = upload(gpu, &dg, &[self.gains], self.dg_dtype, 1)?;
        let mut weight = Parameter::new(&tensors.v.tensor, &dv);
        let gained = self.gains > 0;
        if gained {
            weight = weight.gain(&tensors.g.tensor, &dg);
        }
        if let Some((axis, eps)) = self.project {
            weight = weight.normalize_direction(axis, eps);
        }
        let state = |i: usize| tensors.state[i].tensor.clone();
        recorded(gpu, |ops| match &self.method {
            Method::Sgd(sgd) => {
                let kept = sgd.momentum != 0.0;
                let state = SgdState { v: kept.then(|| state(0)), g: (kept && gained).then(|| state(1)) };
                ops.sgd_step(weight, &state, step, sgd)
            }
            Method::Adam(adam) => {
                let moments = |i: usize| weightnorm::Moments { first: state(i), second: state(i + 1) };
                ops.adam_step(weight, &AdamState { v: moments(0), g: gained.then(|| moments(2)) }, step, adam)
            }
        })
    }

    /// One step of the reference, and how far an f32 step may be from it: values of v, g, and of the state.
    fn reference(&self, values: &[Vec<f64>], step: u64) -> Result<(Values, Values), Error> {
        let (dv, dg) = self.gradients(step);
        let (mut v, mut g) = (values[0].clone(), values[1].clone());
        let project = self.project.map(|(axis, eps)| (&self.shape[..], axis, eps));
        let count = self.state_count();
        let old = |i: usize, len: usize| values.get(2 + i).cloned().unwrap_or_else(|| vec![0.0; len]);
        let mut after = vec![];
        match &self.method {
            Method::Sgd(sgd) => {
                let mut state = cpu::SgdState { step: step - 1, v: old(0, v.len()), g: old(1, g.len()) };
                cpu::sgd_step(sgd, &mut g, &dg, &mut v, &dv, &mut state, project)?;
                if count > 0 {
                    after.extend([state.v, state.g]);
                }
            }
            Method::Adam(adam) => {
                let moments = |i: usize| Moments { first: values[i].clone(), second: values[i + 1].clone() };
                let mut state = cpu::AdamState { step: step - 1, v: moments(2), g: moments(4) };
                cpu::adam_step(adam, &mut g, &dg, &mut v, &dv, &mut state, project)?;
                after.extend([state.v.first, state.v.second, state.g.first, state.g.second]);
            }
        }
        let mut bounds = vec![];
        let mut of_state = vec![];
        for (i, (old, new, d)) in [(&values[0], &v, &dv), (&values[1], &g, &dg)].into_iter().enumerate() {
            let state = |k: usize, j: usize| if k < count { values[2 + i * count + k][j] } else { 0.0 };
            let errors = |j: usize| self.errors(i, [old[j], d[j], state(0, j), state(1, j)], step);
            let errors: Vec<[f64; 3]> = (0..new.len()).map(errors).collect();
            bounds.push(errors.iter().map(|e| e[0]).collect::<Vec<_>>());
            (0..count).for_each(|k| of_state.push(errors.iter().map(|e| e[1 + k]).collect()));
        }
        bounds.extend(of_state);
        // n̂ and the quotient, and what the step itself was off by: v is of the size of n̂ / √length at most.
        if let Some((axis, eps)) = self.project {
            let mut stepped = self.clone();
            stepped.project = None;
            let (before, errors) = stepped.reference(values, step)?;
            let norms = cpu::row_norms(&before[0], &self.shape, axis, eps)?;
            let norm_of = crate::data::norm_of(&self.shape, axis);
            let length = crate::data::norm_length(&self.shape, axis);
            let mut moved = vec![0f64; norms.len()];
            let stored = |j: usize| errors[0][j] + storage_bound(self.dtype, before[0][j].abs());
            for j in 0..v.len() {
                moved[norm_of(j)] += stored(j).powi(2);
            }
            let roundings = gamma(norm_chain(length) as f64 / 2.0 + 24.0);
            for (j, bound) in bounds[0].iter_mut().enumerate() {
                let n = norm_of(j);
                *bound = (stored(j) + before[0][j].abs() * (roundings + 2.0 * moved[n].sqrt() / norms[n])) / norms[n];
            }
        }
        Ok(([vec![v, g], after].concat(), bounds))
    }

    /// How far θ, m and s of one element may be from the reference after one step, before they are stored.
    fn errors(&self, parameter: usize, [theta, d, m, s]: [f64; 4], step: u64) -> [f64; 3] {
        let group = |g, v| if parameter == 0 { v } else { g };
        let few = gamma(8.0);
        match self.method {
            Method::Sgd(sgd) => {
                let ParamGroup { learning_rate, weight_decay } = group(sgd.g, sgd.v);
                let all = d.abs() + weight_decay * theta.abs() + sgd.momentum * m.abs();
                [few * (theta.abs() + 2.0 * learning_rate * all), few * all, 0.0]
            }
            Method::Adam(adam) => {
                let ParamGroup { learning_rate, weight_decay } = group(adam.g, adam.v);
                let size = d.abs() + if adam.decoupled { 0.0 } else { weight_decay * theta.abs() };
                let largest_m = adam.beta1 * m.abs() + (1.0 - adam.beta1) * size;
                let largest_s = adam.beta2 * s + (1.0 - adam.beta2) * size * size;
                let d = if adam.decoupled { d } else { d + weight_decay * theta };
                let s = adam.beta2 * s + (1.0 - adam.beta2) * d * d;
                let (correction, root) =
                    (1.0 - adam.beta1.powf(step as f64), (1.0 - adam.beta2.powf(step as f64)).sqrt());
                // |√(s + e) - √s| is below √e, and below e / √s.
                let e = few * largest_s;
                let root_error = e.sqrt().min(e / s.sqrt());
                let below = s.sqrt() / root + adam.eps;
                let relative = root_error / root / below + gamma(24.0);
                let relative = relative / (1.0 - relative.min(0.5));
                let moved = learning_rate / correction / below * (few * largest_m + largest_m * relative);
                [few * theta.abs() + moved, few * largest_m, e]
            }
        }
    }

    /// Steps, each compared with a step of the reference from where the GPU was. The dispatches of the last one.
    fn run(&self, gpu: &Gpu, steps: u64) -> Result<u64, crate::Failed> {
        let tensors = self.tensors(gpu)?;
        let mut values = self.start();
        let mut count = 0;
        for step in 1..=steps {
            count = self.step(gpu, &tensors, step)?;
            let (expected, bounds) = self.reference(&values, step)?;
            values = tensors.read()?;
            self.compare(&values, &expected, &bounds).map_err(|e| format!("step {step}, {e}"))?;
            // The control.
            if step == steps && !values[0].is_empty() {
                let mut wrong = values.clone();
                wrong[0][0] += 0.1;
                must_fail("a wrong v", self.compare(&wrong, &expected, &bounds))?;
            }
        }
        Ok(count)
    }

    fn compare(&self, got: &[Vec<f64>], expected: &[Vec<f64>], bounds: &[Vec<f64>]) -> Result<(), String> {
        assert_eq!(got.len(), expected.len());
        for (i, ((got, expected), bounds)) in got.iter().zip(expected).zip(bounds).enumerate() {
            let dtype = [self.dtype, self.g_dtype].get(i).copied().unwrap_or(DType::F32);
            let bound = |j: usize| bounds[j] + storage_bound(dtype, expected[j].abs() + bounds[j]);
            compare(got, expected, Some(dtype), bound).map_err(|e| format!("output {i}: {e}"))?;
        }
        Ok(())
    }
}

/// One dispatch each, or none for nothing.
fn steps(gpu: &Gpu, extent: Extent) -> Outcome {
    all(extent.of(cases(), 4), |case| {
        let count = case.run(gpu, STEPS)?;
        let expected = u64::from(case.len() + case.gains > 0);
        if count == expected { Ok(()) } else { Err(format!("{count} dispatches, expected {expected}").into()) }
    })
}

/// Every kernel, storage type and awkward size; dv in f32 and in v's type; with a gain and without.
fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (i, method) in methods().into_iter().enumerate() {
        for (k, dtype) in DTYPES.into_iter().enumerate() {
            let shapes = [&[1][..], &[37], &[5, 51], &[3, 257], &[2, 3, 5]];
            let shape = shapes[(i + k) % shapes.len()];
            let gains = [0, shape[0], 263][(i + 2 * k) % 3];
            let dv_dtype = if i % 2 == 0 { dtype } else { DType::F32 };
            let offset = OFFSETS[(i + k) % OFFSETS.len()];
            let g_dtype = DTYPES[(i + 2 * k + 1) % DTYPES.len()];
            let dg_dtype = if k % 2 == 0 { g_dtype } else { DType::F32 };
            cases.push(Case { gains, dv_dtype, g_dtype, dg_dtype, offset, ..Case::new(method, shape, dtype) });
        }
    }
    // In quads of words, more than a workgroup's.
    for method in methods() {
        cases.extend(DTYPES.map(|dtype| Case::new(method, &[27, 88], dtype)));
    }
    // Gains in 16 bits: odd and even counts, more than a workgroup's, at every place.
    for (i, method) in methods().into_iter().enumerate() {
        for (k, g_dtype) in [DType::F16, DType::Bf16].into_iter().enumerate() {
            for (n, gains) in [1, 64, 1_027].into_iter().enumerate() {
                let dg_dtype = if (i + k + n) % 2 == 0 { g_dtype } else { DType::F32 };
                let offset = OFFSETS[(i + k + n) % OFFSETS.len()];
                cases.push(Case { gains, g_dtype, dg_dtype, offset, ..Case::new(method, &[3], DType::F32) });
            }
        }
    }
    // Nothing at all, and a gain alone.
    cases.push(Case { gains: 0, ..Case::new(methods()[0], &[0, 3], DType::F32) });
    cases.push(Case { gains: 7, ..Case::new(methods()[3], &[0, 3], DType::F16) });
    cases
}

/// Projections, and whether the step's one dispatch does them. Every storage type with AdamW, one with each of the
/// others.
fn projections() -> Vec<(Case, bool)> {
    let mut cases = vec![];
    for (i, method) in methods().into_iter().enumerate() {
        for (k, dtype) in DTYPES.into_iter().enumerate().filter(|(k, _)| i == 4 || i % DTYPES.len() == *k) {
            let even = dtype == DType::F32;
            let eps = POLICIES[(i + k) % POLICIES.len()];
            for (n, (shape, axis, at_once)) in [
                (&[37, 66][..], Axis::Kept(0), true),
                (&[37, 65], Axis::Kept(0), even),
                (&[131, 6], Axis::Kept(0), true),
                (&[3, 1_030], Axis::Kept(0), true),
                (&[3, 5, 9], Axis::Kept(1), false),
                (&[9, 10], Axis::Kept(1), false),
                (&[3, 4, 10], Axis::Whole, true),
            ]
            .into_iter()
            .enumerate()
            {
                let offset = OFFSETS[(i + k + n) % OFFSETS.len()];
                cases.push((Case { project: Some((axis, eps)), offset, ..Case::new(method, shape, dtype) }, at_once));
            }
        }
    }
    cases
}

/// Steps with a projection: one dispatch, and those of `normalize_in_place` where the rows are not contiguous, share
/// words or are long.
fn projection(gpu: &Gpu, extent: Extent) -> Outcome {
    let project = Some((Axis::Kept(0), Eps::default()));
    let long = Case { project, ..Case::new(methods()[4], &[2, 16_385], DType::F32) };
    let mut cases = extent.of(projections(), 5);
    cases.push((Case { shape: vec![2, 16_384], offset: 4, ..long.clone() }, true));
    cases.push((long, false));
    cases.extend(DTYPES.map(|dtype| (Case { project, ..Case::new(methods()[4], &[37, 64], dtype) }, true)));
    let check = |gpu: &Gpu, case: &Case, at_once: bool| -> Outcome {
        let count = case.run(gpu, 2)?;
        let v = gpu.zeros(&case.shape, case.dtype)?;
        let (axis, eps) = case.project.ok_or("a projection")?;
        let more = recorded(gpu, |ops| ops.normalize_in_place(WeightNorm::unit(&v).axis(axis).eps(eps)))?;
        let expected = if at_once { 1 } else { 1 + more };
        if count == expected { Ok(()) } else { Err(format!("{count} dispatches, expected {expected}").into()) }
    };
    // Dispatches of their own on a software driver.
    let large = Case { project, ..Case::new(methods()[4], &[260, 64], DType::F32) };
    for (kind, at_once) in [(Kind::Gpu, true), (Kind::Software, false)] {
        check(&of_kind(gpu, kind)?, &large, at_once)?;
    }
    all(cases, |(case, at_once)| check(gpu, case, *at_once))
}

fn windows(gpu: &Gpu) -> Outcome {
    let (small, tiny) = (small(gpu)?, tiny(gpu)?);
    let [sgd, .., adamw] = methods();
    let project = Some((Axis::Kept(0), Eps::default()));
    for (device, case) in [
        (&small, Case::new(adamw, &[901, 401], DType::F32)),
        (&small, Case { dv_dtype: DType::F32, ..Case::new(adamw, &[300_001], DType::Bf16) }),
        (&small, Case { gains: 300_001, ..Case::new(sgd, &[3], DType::F16) }),
        (&small, Case { gains: 300_001, g_dtype: DType::Bf16, ..Case::new(adamw, &[3], DType::F16) }),
        (
            &tiny,
            Case {
                gains: 4_097,
                offset: 12,
                g_dtype: DType::F16,
                dg_dtype: DType::F16,
                ..Case::new(sgd, &[3], DType::F32)
            },
        ),
        (&small, Case { project, ..Case::new(adamw, &[901, 402], DType::F16) }),
        (&tiny, Case { offset: 12, ..Case::new(adamw, &[61, 67], DType::F16) }),
        (&tiny, Case { offset: 12, project, ..Case::new(adamw, &[61, 67], DType::F32) }),
        (&tiny, Case { offset: 12, project, ..Case::new(adamw, &[61, 66], DType::Bf16) }),
        (&tiny, Case { project, ..Case::new(sgd, &[4_001, 2], DType::F16) }),
    ] {
        let count = case.run(device, 2).map_err(|e| format!("{case:?}: {}", e.message().unwrap_or("failed")))?;
        assert!(count > 1, "{case:?}: {count} dispatch");
    }
    Ok(())
}

/// The trajectory of f32 state stays with the reference's, and 50 roundings of a packed v within their sum.
fn fifty_steps_in_a_row(gpu: &Gpu) -> Outcome {
    for method in methods() {
        for dtype in DTYPES {
            let case = Case { dv_dtype: DType::F32, ..Case::new(method, &[5, 33], dtype) };
            let tensors = case.tensors(gpu)?;
            let mut values = case.start();
            let mut sums: Vec<Vec<f64>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
            for step in 1..=STEPS {
                case.step(gpu, &tensors, step)?;
                let (expected, bounds) = case.reference(&values, step)?;
                values = expected;
                for (i, (sums, bounds)) in sums.iter_mut().zip(&bounds).enumerate() {
                    let dtype = if i == 0 { dtype } else { DType::F32 };
                    let stored = |j: usize| bounds[j] + storage_bound(dtype, values[i][j].abs());
                    // Twice: what is off already is off a little more or less after a step.
                    sums.iter_mut().enumerate().for_each(|(j, sum)| *sum += 2.0 * stored(j));
                }
            }
            // With a decay, m and s follow a packed v whose roundings are no part of their own bounds.
            let compared = if dtype == DType::F32 { values.len() } else { 2 };
            let got = tensors.read()?[..compared].to_vec();
            values.truncate(compared);
            case.compare(&got, &values, &sums).map_err(|e| format!("{method:?} {dtype:?}: {e}"))?;
            values[0][3] += 1.0;
            must_fail("a wrong v", case.compare(&got, &values, &sums))?;
        }
    }
    Ok(())
}

fn repeat(gpu: &Gpu) -> Outcome {
    let case =
        Case { project: Some((Axis::Kept(0), Eps::default())), ..Case::new(methods()[4], &[33, 130], DType::F16) };
    let run = || -> Result<Vec<u64>, crate::Failed> {
        let tensors = case.tensors(gpu)?;
        for step in 1..=5 {
            case.step(gpu, &tensors, step)?;
        }
        Ok(tensors.read()?.concat().iter().map(|x| x.to_bits()).collect())
    };
    let first = run()?;
    assert!(run()? == first && run()? == first, "another result");
    Ok(())
}

/// Rows of v and gradients near the ends of f32.
fn range(gpu: &Gpu) -> Outcome {
    let still = Sgd::new(0.0);
    for (dtype, scales) in [(DType::F32, [3e25, 3e-25, 0.0, 1.0, 1e37]), (DType::Bf16, [1e20, 1e-20, 0.0, 1.0, 1e37])] {
        for columns in [6, 130, 700] {
            let row = random(3, columns, dtype);
            let values: Vec<f64> =
                scales.iter().flat_map(|scale| row.iter().map(move |x| rounded(x * scale, dtype))).collect();
            let shape = [scales.len(), columns];
            let v = Guarded::holding(gpu, &values, &shape, dtype, 0)?;
            let dv = gpu.zeros(&shape, dtype)?;
            let weight = Parameter::new(&v.tensor, &dv).normalize_direction(Axis::Kept(0), Eps::Clamp(1e-30));
            let count = recorded(gpu, |ops| ops.sgd_step(weight, &SgdState::default(), 1, &still))?;
            assert_eq!(count, 1);
            let expected = cpu::normalize(&values, &shape, None, Axis::Kept(0), Eps::Clamp(1e-30))?;
            let bound = |i: usize| crate::common::weight_bound(norm_chain(columns), expected[i], dtype);
            compare(&v.read()?, &expected, Some(dtype), bound).map_err(|e| format!("{dtype:?} {columns}: {e}"))?;
        }
    }
    // Nothing moves without a gradient, and nothing breaks with an extreme one.
    let start = [1.0, -2.0, 3.0, 4.0, 0.0];
    let v = upload(gpu, &start, &[5], DType::F32, 0)?;
    let dv = upload(gpu, &[0.0, 1e-25, 1e25, -1e25, 0.0], &[5], DType::F32, 0)?;
    gpu.adam_step(Parameter::new(&v, &dv), &gpu.adam_state(&v, None)?, 1, &Adam::new(0.1))?;
    compare(&crate::golden::read(&v)?, &start, Some(DType::F32), |_| 1e-6)?;
    Ok(())
}

/// A NaN stays in its element, or in its row where that is projected.
fn non_finite(gpu: &Gpu) -> Outcome {
    for method in methods() {
        for (project, spoiled) in [(None, 8..9), (Some((Axis::Kept(0), Eps::default())), 6..12)] {
            let mut case = Case { project, gains: 0, ..Case::new(method, &[3, 6], DType::F32) };
            case.dv_dtype = DType::F16;
            let v = upload(gpu, &random(1, 18, DType::F32), &[3, 6], DType::F32, 0)?;
            let mut gradient = random(2, 18, DType::F32);
            gradient[8] = f64::NAN;
            let dv = upload(gpu, &gradient, &[3, 6], DType::F32, 0)?;
            let mut weight = Parameter::new(&v, &dv);
            if let Some((axis, eps)) = project {
                weight = weight.normalize_direction(axis, eps);
            }
            match &case.method {
                Method::Sgd(sgd) => gpu.sgd_step(weight, &gpu.sgd_state(&v, None)?, 1, sgd)?,
                Method::Adam(adam) => gpu.adam_step(weight, &gpu.adam_state(&v, None)?, 1, adam)?,
            }
            let nan: Vec<bool> = v.read::<f32>()?.iter().map(|x| x.is_nan()).collect();
            let expected: Vec<bool> = (0..18).map(|i| spoiled.contains(&i)).collect();
            assert_eq!(nan, expected, "{method:?} {project:?}");
        }
    }
    Ok(())
}

fn errors(gpu: &Gpu) -> Outcome {
    let f32s = |shape: &[usize]| gpu.zeros(shape, DType::F32);
    let (v, dv, g, dg) = (f32s(&[4, 3])?, f32s(&[4, 3])?, f32s(&[4, 1])?, f32s(&[4])?);
    let state = gpu.adam_state(&v, Some(&g))?;
    let adam = |weight: Parameter<'_>, state: &AdamState, step| {
        refused(gpu, |ops| ops.adam_step(weight, state, step, &Adam::new(0.1)))
    };
    let weight = Parameter::new(&v, &dv).gain(&g, &dg);
    assert!(matches!(adam(weight, &state, 0)?, Error::Argument(ArgumentError::Step { op: "adam_step" })));
    assert!(matches!(
        adam(weight, &gpu.adam_state(&v, None)?, 1)?,
        Error::Argument(ArgumentError::Missing { arg: "the state of g", .. })
    ));
    assert!(matches!(
        adam(weight, &gpu.adam_state(&g, Some(&g))?, 1)?,
        Error::Argument(ArgumentError::Shape { arg: "m of v", .. })
    ));
    assert!(matches!(
        adam(weight, &gpu.adam_state(&v, Some(&v))?, 1)?,
        Error::Argument(ArgumentError::Shape { arg: "m of g", .. })
    ));
    let halves = gpu.zeros(&[4, 3], DType::F16)?;
    assert!(matches!(
        adam(Parameter::new(&v, &halves), &state, 1)?,
        Error::Argument(ArgumentError::DType { arg: "dv", .. })
    ));
    assert!(matches!(
        adam(Parameter::new(&v, &f32s(&[12])?), &state, 1)?,
        Error::Argument(ArgumentError::Shape { arg: "dv", .. })
    ));
    assert!(matches!(
        adam(weight.gain(&g, &f32s(&[5])?), &state, 1)?,
        Error::Argument(ArgumentError::Shape { arg: "dg", .. })
    ));
    // dg is f32 or as g.
    let (half_gain, half_gradient) = (gpu.zeros(&[4], DType::Bf16)?, gpu.zeros(&[4], DType::F16)?);
    assert!(matches!(
        adam(weight.gain(&half_gain, &half_gradient), &state, 1)?,
        Error::Argument(ArgumentError::DType { arg: "dg", .. })
    ));
    assert!(matches!(
        adam(weight.gain(&g, &half_gradient), &state, 1)?,
        Error::Argument(ArgumentError::DType { arg: "dg", .. })
    ));
    let m = weightnorm::Moments { first: half_gain.clone(), second: dg.clone() };
    let half_state = AdamState { g: Some(m), ..state.clone() };
    assert!(matches!(adam(weight, &half_state, 1)?, Error::Argument(ArgumentError::DType { arg: "m of g", .. })));
    assert!(matches!(
        adam(Parameter::new(&v, &v), &state, 1)?,
        Error::Argument(ArgumentError::Alias { output: "v", input: "dv", .. })
    ));
    let twice = AdamState { v: weightnorm::Moments { second: state.v.first.clone(), ..state.v.clone() }, g: None };
    assert!(matches!(adam(Parameter::new(&v, &dv), &twice, 1)?, Error::Argument(ArgumentError::Overlap { .. })));
    assert!(matches!(
        adam(weight.normalize_direction(Axis::Kept(2), Eps::None), &state, 1)?,
        Error::Argument(ArgumentError::Axis { .. })
    ));
    assert!(matches!(
        adam(weight.normalize_direction(Axis::Kept(0), Eps::Clamp(-1.0)), &state, 1)?,
        Error::Argument(ArgumentError::Eps { .. })
    ));

    let sgd = |weight: Parameter<'_>, state: &SgdState, step| {
        refused(gpu, |ops| ops.sgd_step(weight, state, step, &Sgd { momentum: 0.9, ..Sgd::new(0.1) }))
    };
    assert!(matches!(
        sgd(weight, &SgdState::default(), 1)?,
        Error::Argument(ArgumentError::Missing { arg: "the state of v", .. })
    ));
    assert!(matches!(
        sgd(weight, &gpu.sgd_state(&v, None)?, 1)?,
        Error::Argument(ArgumentError::Missing { arg: "the state of g", .. })
    ));
    assert!(matches!(
        sgd(weight, &gpu.sgd_state(&v, Some(&g))?, 0)?,
        Error::Argument(ArgumentError::Step { op: "sgd_step" })
    ));
    let of_halves = SgdState { v: Some(halves), g: Some(dg.clone()) };
    assert!(matches!(sgd(weight, &of_halves, 1)?, Error::Argument(ArgumentError::DType { arg: "m of v", .. })));
    Ok(())
}
