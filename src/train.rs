//! Hyper-parameters of the optimizer steps, the same for the GPU and for [`cpu`](crate::cpu).
//!
//! All in f64, because 1 − β is: in f32 1 − 0.999 would be off by 1e-5 of itself. The host makes of them what a kernel
//! needs. Nothing is checked: a β of 1 divides by zero, as the formulas say.

/// Learning rate and weight decay of one of the two parameters g and v: a parameter group of PyTorch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// γ, the learning rate.
    pub rate: f64,
    /// λ, the weight decay. On v it is no regularization, since w does not depend on the length of v; on g it is.
    pub weight_decay: f64,
}

impl Group {
    /// A rate, and no decay.
    pub fn new(rate: f64) -> Self {
        Group { rate, weight_decay: 0.0 }
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
    pub g: Group,
    /// γ and λ of v.
    pub v: Group,
    /// μ, for both.
    pub momentum: f64,
    /// τ, for both.
    pub dampening: f64,
    /// Nesterov's form.
    pub nesterov: bool,
}

impl Sgd {
    /// One rate for g and v, no momentum, no decay.
    pub fn new(rate: f64) -> Self {
        let group = Group::new(rate);
        Sgd { g: group, v: group, momentum: 0.0, dampening: 0.0, nesterov: false }
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
    pub g: Group,
    /// γ and λ of v.
    pub v: Group,
    /// β₁, for both.
    pub beta1: f64,
    /// β₂, for both.
    pub beta2: f64,
    /// ε, for both.
    pub eps: f64,
    /// AdamW: the decay acts on the parameter, not on the gradient.
    pub decoupled: bool,
}

impl Adam {
    /// Adam with one rate for g and v, PyTorch's β₁ = 0.9, β₂ = 0.999, ε = 1e-8, no decay.
    pub fn new(rate: f64) -> Self {
        let group = Group::new(rate);
        Adam { g: group, v: group, beta1: 0.9, beta2: 0.999, eps: 1e-8, decoupled: false }
    }

    /// AdamW: [`Adam::new`] with a decoupled decay of g. (PyTorch decays every parameter, by 0.01 unless told.)
    pub fn adamw(rate: f64, weight_decay: f64) -> Self {
        Adam { g: Group { rate, weight_decay }, decoupled: true, ..Adam::new(rate) }
    }

    /// (1 − β₁ᵗ, √(1 − β₂ᵗ)) for step t, the first being 1.
    pub(crate) fn corrections(&self, step: u64) -> (f64, f64) {
        let t = step as f64;
        (1.0 - self.beta1.powf(t), (1.0 - self.beta2.powf(t)).sqrt())
    }
}
