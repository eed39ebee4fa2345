//! Hyper-parameters of the optimizer steps, the same for the GPU and for [`cpu`](crate::cpu).
//!
//! All in f64, because 1 − β is: in f32 1 − 0.999 would be off by 1e-5 of itself. The host makes of them what a kernel
//! needs. A step with a number out of its range is refused ([`ArgumentError::Number`]): the ranges are PyTorch's, and
//! every number has to be finite in f32.
use crate::contract::Range;
use crate::{ArgumentError, Error};

/// Learning rate and weight decay of one of the two parameters g and v: a `param_group` of PyTorch, where they are `lr`
/// and `weight_decay`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamGroup {
    /// γ, the learning rate, 0 or more.
    pub learning_rate: f64,
    /// λ, the weight decay, 0 or more. On v it is no regularization, since w does not depend on the length of v; on g
    /// it is.
    pub weight_decay: f64,
}

impl ParamGroup {
    /// A learning rate, and no decay.
    pub fn new(learning_rate: f64) -> Self {
        ParamGroup { learning_rate, weight_decay: 0.0 }
    }

    fn check(self, op: &'static str, [learning_rate, weight_decay]: [&'static str; 2]) -> Result<(), Error> {
        Range::NotNegative.check(op, learning_rate, self.learning_rate)?;
        Range::NotNegative.check(op, weight_decay, self.weight_decay)
    }
}

/// Stochastic gradient descent, `torch.optim.SGD`. With θ for g or v and d for its gradient:
///
/// ```text
/// d ← d + λθ
/// m ← d in the first step, then μm + (1 − τ)d        (m = d where μ = 0)
/// θ ← θ − γm            Nesterov: θ ← θ − γ(d + μm)
/// ```
///
/// PyTorch wants μ > 0 and τ = 0 for Nesterov's form; here it does nothing where μ = 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// γ and λ of g.
    pub g: ParamGroup,
    /// γ and λ of v.
    pub v: ParamGroup,
    /// μ, for both, 0 or more.
    pub momentum: f64,
    /// τ, for both, finite.
    pub dampening: f64,
    /// Nesterov's form.
    pub nesterov: bool,
}

impl Sgd {
    /// One learning rate for g and v, no momentum, no decay.
    pub fn new(learning_rate: f64) -> Self {
        let group = ParamGroup::new(learning_rate);
        Sgd { g: group, v: group, momentum: 0.0, dampening: 0.0, nesterov: false }
    }

    /// Checks the numbers for step `step`, the first being 1.
    pub(crate) fn check(&self, op: &'static str, step: u64) -> Result<(), Error> {
        check_step(op, step)?;
        check_groups(op, [self.g, self.v])?;
        Range::NotNegative.check(op, "the momentum", self.momentum)?;
        Range::Finite.check(op, "the dampening", self.dampening)
    }

    /// What the gradient is multiplied by on its way into m, in step `step` (the first is 1).
    pub(crate) fn into_momentum(self, step: u64) -> f64 {
        if step <= 1 { 1.0 } else { 1.0 - self.dampening }
    }
}

/// Adam, `torch.optim.Adam`, and AdamW, `torch.optim.AdamW`. With θ for g or v, d for its gradient, t = 1, 2, …:
///
/// ```text
/// Adam: d ← d + λθ            AdamW: θ ← θ − γλθ
/// m ← β₁m + (1 − β₁)d         s ← β₂s + (1 − β₂)d²
/// θ ← θ − γ/(1 − β₁ᵗ) · m / ( √s / √(1 − β₂ᵗ) + ε )
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// γ and λ of g.
    pub g: ParamGroup,
    /// γ and λ of v.
    pub v: ParamGroup,
    /// β₁, for both, from 0 to below 1.
    pub beta1: f64,
    /// β₂, for both, from 0 to below 1.
    pub beta2: f64,
    /// ε, for both, 0 or more. With 0, a θ whose gradients were all 0 becomes NaN, as in PyTorch.
    pub eps: f64,
    /// AdamW: the decay acts on the parameter, not on the gradient.
    pub decoupled: bool,
}

impl Adam {
    /// Adam with one learning rate for g and v, PyTorch's β₁ = 0.9, β₂ = 0.999, ε = 1e-8, no decay.
    pub fn new(learning_rate: f64) -> Self {
        let group = ParamGroup::new(learning_rate);
        Adam { g: group, v: group, beta1: 0.9, beta2: 0.999, eps: 1e-8, decoupled: false }
    }

    /// AdamW: [`Adam::new`] with a decoupled decay of g. (PyTorch decays every parameter, by 0.01 unless told.)
    pub fn adamw(learning_rate: f64, weight_decay: f64) -> Self {
        Adam { g: ParamGroup { learning_rate, weight_decay }, decoupled: true, ..Adam::new(learning_rate) }
    }

    /// Checks the numbers for step `step`, the first being 1, and what a kernel takes of them.
    pub(crate) fn check(&self, op: &'static str, step: u64) -> Result<(), Error> {
        check_step(op, step)?;
        check_groups(op, [self.g, self.v])?;
        Range::BelowOne.check(op, "beta1", self.beta1)?;
        Range::BelowOne.check(op, "beta2", self.beta2)?;
        Range::NotNegative.check(op, "eps", self.eps)?;
        let (correction, _) = self.corrections(step);
        for (group, [corrected, decay]) in [
            (self.g, ["the learning rate of g / (1 - beta1^t)", "the learning rate of g * its weight decay"]),
            (self.v, ["the learning rate of v / (1 - beta1^t)", "the learning rate of v * its weight decay"]),
        ] {
            Range::Finite.check(op, corrected, group.learning_rate / correction)?;
            if self.decoupled {
                Range::Finite.check(op, decay, group.learning_rate * group.weight_decay)?;
            }
        }
        Ok(())
    }

    /// (1 − β₁ᵗ, √(1 − β₂ᵗ)) for step t, the first being 1.
    pub(crate) fn corrections(&self, step: u64) -> (f64, f64) {
        let t = step as f64;
        (1.0 - self.beta1.powf(t), (1.0 - self.beta2.powf(t)).sqrt())
    }
}

fn check_step(op: &'static str, step: u64) -> Result<(), Error> {
    if step == 0 { Err(ArgumentError::Step { op }.into()) } else { Ok(()) }
}

fn check_groups(op: &'static str, [g, v]: [ParamGroup; 2]) -> Result<(), Error> {
    g.check(op, ["the learning rate of g", "the weight decay of g"])?;
    v.check(op, ["the learning rate of v", "the weight decay of v"])
}
