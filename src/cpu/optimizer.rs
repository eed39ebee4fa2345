//! Optimizer steps on g and v together. The formulas stand at [`Sgd`] and [`Adam`].
use super::normalize;
use crate::{Adam, ArgumentError, Axis, Eps, Error, ParamGroup, Sgd};

/// What [`sgd_step`] remembers: as many steps as were made, and m of g and of v.
#[derive(Debug, Clone, PartialEq)]
pub struct SgdState {
    /// Steps made.
    pub step: u64,
    /// m of g.
    pub g: Vec<f64>,
    /// m of v.
    pub v: Vec<f64>,
}

impl SgdState {
    /// Before the first step, for a gain and a direction of these lengths.
    pub fn new(g: usize, v: usize) -> Self {
        SgdState { step: 0, g: vec![0.0; g], v: vec![0.0; v] }
    }
}

/// What [`adam_step`] remembers: as many steps as were made, and the moments of g and of v.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamState {
    /// Steps made.
    pub step: u64,
    /// Of g.
    pub g: Moments,
    /// Of v.
    pub v: Moments,
}

/// Running means of the gradient and of its square.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// m
    pub first: Vec<f64>,
    /// s
    pub second: Vec<f64>,
}

impl AdamState {
    /// Before the first step, for a gain and a direction of these lengths.
    pub fn new(g: usize, v: usize) -> Self {
        let zeros = |len| Moments { first: vec![0.0; len], second: vec![0.0; len] };
        AdamState { step: 0, g: zeros(g), v: zeros(v) }
    }
}

/// One step of stochastic gradient descent on g and v; the formulas stand at [`Sgd`].
///
/// - `g` and `dg`, `v` and `dv`, and the state's m of each, have the same lengths. Either may be empty: an ordinary
///   weight is a v without g, a bias a g without v.
/// - With `normalize_direction` = (shape of v, kept axis, policy) v is then made [`normalize`](super::normalize)`(v)`,
///   rows of unit norm. This leaves w where it was; m is not touched. A zero row stays, but becomes NaN under
///   [`Eps::None`].
///
/// # Errors
/// [`ArgumentError::Number`] for a number out of its range; [`ArgumentError::Length`]; with `normalize_direction` those
/// of [`normalize`](super::normalize). Nothing is changed then.
pub fn sgd_step(
    sgd: &Sgd,
    g: &mut [f64],
    dg: &[f64],
    v: &mut [f64],
    dv: &[f64],
    state: &mut SgdState,
    normalize_direction: Option<(&[usize], Axis, Eps)>,
) -> Result<(), Error> {
    let step = state.step.saturating_add(1);
    sgd.check("sgd_step", step)?;
    check_lengths(g.len(), &[dg, &state.g])?;
    check_lengths(v.len(), &[dv, &state.v])?;
    check_projection(v, normalize_direction)?;

    state.step = step;
    let into_momentum = sgd.into_momentum(state.step);
    let update = |group: ParamGroup, parameter: &mut [f64], gradient: &[f64], momentum: &mut [f64]| {
        for ((p, d), m) in parameter.iter_mut().zip(gradient).zip(momentum) {
            let d = d + group.weight_decay * *p;
            let mut direction = d;
            if sgd.momentum != 0.0 {
                *m = sgd.momentum * *m + into_momentum * d;
                direction = if sgd.nesterov { d + sgd.momentum * *m } else { *m };
            }
            *p -= group.learning_rate * direction;
        }
    };
    update(sgd.g, g, dg, &mut state.g);
    update(sgd.v, v, dv, &mut state.v);
    projected(v, normalize_direction)
}

/// One step of Adam or AdamW on g and v; the formulas stand at [`Adam`].
///
/// Lengths, `normalize_direction` and errors are those of [`sgd_step`].
///
/// # Errors
/// As [`sgd_step`].
pub fn adam_step(
    adam: &Adam,
    g: &mut [f64],
    dg: &[f64],
    v: &mut [f64],
    dv: &[f64],
    state: &mut AdamState,
    normalize_direction: Option<(&[usize], Axis, Eps)>,
) -> Result<(), Error> {
    let step = state.step.saturating_add(1);
    adam.check("adam_step", step)?;
    check_lengths(g.len(), &[dg, &state.g.first, &state.g.second])?;
    check_lengths(v.len(), &[dv, &state.v.first, &state.v.second])?;
    check_projection(v, normalize_direction)?;

    state.step = step;
    let (correction1, root_correction2) = adam.corrections(state.step);
    let update =
        |group: ParamGroup, parameter: &mut [f64], gradient: &[f64], Moments { first, second }: &mut Moments| {
            for (((p, d), m), s) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
                let mut d = *d;
                if adam.decoupled {
                    *p *= 1.0 - group.learning_rate * group.weight_decay;
                } else {
                    d += group.weight_decay * *p;
                }
                *m = adam.beta1 * *m + (1.0 - adam.beta1) * d;
                *s = adam.beta2 * *s + (1.0 - adam.beta2) * d * d;
                *p -= group.learning_rate / correction1 * *m / (s.sqrt() / root_correction2 + adam.eps);
            }
        };
    update(adam.g, g, dg, &mut state.g);
    update(adam.v, v, dv, &mut state.v);
    projected(v, normalize_direction)
}

/// Gradient and state are as long as the parameter.
fn check_lengths(expected: usize, slices: &[&[f64]]) -> Result<(), Error> {
    match slices.iter().find(|slice| slice.len() != expected) {
        Some(slice) => Err(ArgumentError::Length { got: slice.len(), expected, shape: vec![expected] }.into()),
        None => Ok(()),
    }
}

/// A projection whose arguments are wrong is found before anything changes.
fn check_projection(v: &[f64], normalize_direction: Option<(&[usize], Axis, Eps)>) -> Result<(), Error> {
    match normalize_direction {
        Some((shape, axis, eps)) => super::row_norms(v, shape, axis, eps).map(drop),
        None => Ok(()),
    }
}

/// v ← v/n̂.
fn projected(v: &mut [f64], normalize_direction: Option<(&[usize], Axis, Eps)>) -> Result<(), Error> {
    if let Some((shape, axis, eps)) = normalize_direction {
        v.copy_from_slice(&normalize(v, shape, None, axis, eps)?);
    }
    Ok(())
}
