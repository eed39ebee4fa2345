//! Optimizer steps on a direction and a gain together. Shaders: `shaders/optimizer`.
pub(crate) mod step;

use bytemuck::Zeroable;

use crate::{Adam, ArgumentError, Axis, DType, Eps, Error, Gpu, ParamGroup, Recorder, Sgd, Tensor};
use step::{OptimizerParams, OptimizerStep, Rule, SteppedTensor};

/// What an optimizer step changes: a direction v and, with it, a gain g; or an ordinary weight or a bias in v's place.
/// With [`Sgd`] or [`Adam`], which hold the formulas, the request of [`Gpu::sgd_step`], [`Gpu::adam_step`] and the like
/// of [`Recorder`].
///
/// ```
/// # use weightnorm::{Adam, AdamState, Error, Gpu, Parameter, Tensor};
/// # fn f(gpu: &Gpu, [v, dv, g, dg, bias, dbias]: [&Tensor; 6], state: [&AdamState; 2], step: u64) -> Result<(), Error> {
/// let adam = Adam::new(1e-3);
/// gpu.adam_step(Parameter::new(v, dv).gain(g, dg), state[0], step, &adam)?;
/// gpu.adam_step(Parameter::new(bias, dbias), state[1], step, &adam)
/// # }
/// ```
///
/// - v and g: any storage type. dv and dg: f32, or the storage type of v and g. The state: f32, as many elements as v
///   and g.
/// - `step` counts from 1. The state of SGD is needed where there is momentum; the first step does not read it.
/// - Reference: `torch.optim.SGD`, `Adam`, `AdamW`.
///
/// # Dispatches
/// One. With [`Parameter::normalize_direction`] it does that too where the rows are contiguous (kept axis 0), of at
/// most 16,384 words (two elements each of a packed type), and none ends within a word or is longer than a binding.
/// Else, and on a CPU where that is faster, those of [`Recorder::normalize_in_place`] follow. More past the limits of a
/// binding or a dispatch.
///
/// # Errors
/// [`ArgumentError::Missing`] without a state that is needed; [`ArgumentError::Step`] for step 0;
/// [`ArgumentError::Number`] for a learning rate, decay, momentum, β or ε out of its range ([`Sgd`], [`Adam`]);
/// [`ArgumentError::Shape`] or [`ArgumentError::DType`] if the tensors do not fit; [`ArgumentError::Axis`],
/// [`ArgumentError::Eps`]. Besides those of every operator ([`Error`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Parameter<'a> {
    v: &'a Tensor,
    dv: &'a Tensor,
    gain: Option<(&'a Tensor, &'a Tensor)>,
    direction: Option<(Axis, Eps)>,
}

impl<'a> Parameter<'a> {
    /// `v`: any shape and storage type. `dv`, its gradient: the same shape, f32 or v's storage type.
    pub fn new(v: &'a Tensor, dv: &'a Tensor) -> Self {
        Parameter { v, dv, gain: None, direction: None }
    }

    /// A gain, of any storage type, and its gradient, f32 or the gain's storage type, with as many elements as each
    /// other.
    pub fn gain(self, g: &'a Tensor, dg: &'a Tensor) -> Self {
        Parameter { gain: Some((g, dg)), ..self }
    }

    /// After the step v ← v/n̂, rows of norm 1, which leaves w = g·v/n̂ where it was. A zero row stays, but becomes NaN
    /// under [`Eps::None`]. The optimizer's state is not touched.
    pub fn normalize_direction(self, axis: Axis, eps: Eps) -> Self {
        Parameter { direction: Some((axis, eps)), ..self }
    }
}

/// What [`Gpu::sgd_step`] remembers where there is momentum: m of v and of g. f32, as many elements as v and g.
#[derive(Debug, Clone, Default)]
pub struct SgdState {
    /// m of v.
    pub v: Option<Tensor>,
    /// m of g.
    pub g: Option<Tensor>,
}

/// What [`Gpu::adam_step`] remembers.
#[derive(Debug, Clone)]
pub struct AdamState {
    /// Of v.
    pub v: Moments,
    /// Of g.
    pub g: Option<Moments>,
}

/// Running means of the gradient and of its square: f32, as many elements as the parameter, zeros before the first
/// step.
#[derive(Debug, Clone)]
pub struct Moments {
    /// m
    pub first: Tensor,
    /// s
    pub second: Tensor,
}

impl Moments {
    fn zeros(gpu: &Gpu, parameter: &Tensor) -> Result<Moments, Error> {
        let zeros = || gpu.zeros(parameter.shape(), DType::F32);
        Ok(Moments { first: zeros()?, second: zeros()? })
    }
}

impl Gpu {
    /// Zeros for [`Gpu::sgd_step`] with momentum, as many as v and g have elements.
    ///
    /// # Errors
    /// Those of every operator ([`Error`]).
    pub fn sgd_state(&self, v: &Tensor, g: Option<&Tensor>) -> Result<SgdState, Error> {
        let zeros = |parameter: &Tensor| self.zeros(parameter.shape(), DType::F32);
        Ok(SgdState { v: Some(zeros(v)?), g: g.map(zeros).transpose()? })
    }

    /// Zeros for [`Gpu::adam_step`], as many as v and g have elements.
    ///
    /// # Errors
    /// As [`Gpu::sgd_state`].
    pub fn adam_state(&self, v: &Tensor, g: Option<&Tensor>) -> Result<AdamState, Error> {
        let g = g.map(|g| Moments::zeros(self, g)).transpose()?;
        Ok(AdamState { v: Moments::zeros(self, v)?, g })
    }

    /// One step of stochastic gradient descent, [`Sgd`], in place.
    ///
    /// # Errors
    /// As [`Parameter`].
    pub fn sgd_step(&self, parameter: Parameter<'_>, state: &SgdState, step: u64, sgd: &Sgd) -> Result<(), Error> {
        self.run(|ops| ops.sgd_step(parameter, state, step, sgd))
    }

    /// One step of Adam or AdamW, [`Adam`], in place. A d below 1e-19 counts as zero in s, and one beyond 1e19 as
    /// infinite, which leaves θ where it is.
    ///
    /// # Errors
    /// As [`Parameter`].
    pub fn adam_step(&self, parameter: Parameter<'_>, state: &AdamState, step: u64, adam: &Adam) -> Result<(), Error> {
        self.run(|ops| ops.adam_step(parameter, state, step, adam))
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::sgd_step`].
    ///
    /// # Errors
    /// As [`Parameter`].
    pub fn sgd_step(&mut self, parameter: Parameter<'_>, state: &SgdState, step: u64, sgd: &Sgd) -> Result<(), Error> {
        const OP: &str = "sgd_step";
        sgd.check(OP, step)?;
        let rule = match sgd {
            Sgd { momentum: 0.0, .. } => Rule::Sgd,
            Sgd { nesterov: true, .. } => Rule::Nesterov,
            _ => Rule::Momentum,
        };
        let needed = rule != Rule::Sgd;
        let m_v = state.v.as_ref().filter(|_| needed);
        let m_g = state.g.as_ref().filter(|_| needed);
        expect_state(OP, "the state of v", needed, m_v)?;
        expect_state(OP, "the state of g", needed && parameter.gain.is_some(), m_g)?;
        let params = OptimizerParams {
            first_step: (step == 1).into(),
            v_rate: sgd.v.learning_rate as f32,
            v_decay: sgd.v.weight_decay as f32,
            g_rate: sgd.g.learning_rate as f32,
            g_decay: sgd.g.weight_decay as f32,
            inertia: sgd.momentum as f32,
            fresh: sgd.into_momentum(step) as f32,
            ..OptimizerParams::zeroed()
        };
        let v = SteppedTensor { value: parameter.v, gradient: parameter.dv, first: m_v, second: None };
        let g = parameter.gain.map(|(value, gradient)| SteppedTensor { value, gradient, first: m_g, second: None });
        step::record(self, OP, &OptimizerStep { v, g, direction: parameter.direction, rule, params })
    }

    /// Records [`Gpu::adam_step`].
    ///
    /// # Errors
    /// As [`Parameter`].
    pub fn adam_step(
        &mut self,
        parameter: Parameter<'_>,
        state: &AdamState,
        step: u64,
        adam: &Adam,
    ) -> Result<(), Error> {
        const OP: &str = "adam_step";
        adam.check(OP, step)?;
        expect_state(OP, "the state of g", parameter.gain.is_some(), state.g.as_ref())?;
        let (correction, root) = adam.corrections(step);
        let decay = |group: ParamGroup| match adam.decoupled {
            true => 1.0 - group.learning_rate * group.weight_decay,
            false => group.weight_decay,
        };
        let params = OptimizerParams {
            v_rate: (adam.v.learning_rate / correction) as f32,
            v_decay: decay(adam.v) as f32,
            g_rate: (adam.g.learning_rate / correction) as f32,
            g_decay: decay(adam.g) as f32,
            fresh: (1.0 - adam.beta1) as f32,
            fresh_square: (1.0 - adam.beta2) as f32,
            root: root as f32,
            eps: adam.eps as f32,
            ..OptimizerParams::zeroed()
        };
        let v = with_moments((parameter.v, parameter.dv), &state.v);
        let g = parameter.gain.zip(state.g.as_ref()).map(|(gain, moments)| with_moments(gain, moments));
        let rule = if adam.decoupled { Rule::AdamW } else { Rule::Adam };
        step::record(self, OP, &OptimizerStep { v, g, direction: parameter.direction, rule, params })
    }
}

/// A parameter with all that Adam remembers of it.
fn with_moments<'a>((value, gradient): (&'a Tensor, &'a Tensor), moments: &'a Moments) -> SteppedTensor<'a> {
    SteppedTensor { value, gradient, first: Some(&moments.first), second: Some(&moments.second) }
}

fn expect_state<T>(op: &'static str, arg: &'static str, needed: bool, state: Option<T>) -> Result<(), Error> {
    if needed && state.is_none() { Err(ArgumentError::Missing { op, arg }.into()) } else { Ok(()) }
}
