//! What an operator computes, as values: the kept axis, the eps policy, the activation, the storage type.
/// The axis of `v` that keeps one norm per index; the norm runs over all others.
///
/// An enum because PyTorch spells the whole tensor `dim=None` or `-1`, and its `-1` is *not* the last axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// One norm per index of this axis (PyTorch's `dim=k`). 0 is the output axis of linear and convolution weights.
    Kept(usize),
    /// One norm for the whole tensor (PyTorch's `dim=None`).
    Whole,
}

impl Default for Axis {
    /// Axis 0, as in PyTorch.
    fn default() -> Self {
        Axis::Kept(0)
    }
}

/// How the effective norm n̂ is made of the norm n, and what keeps a zero row finite.
///
/// Every policy but [`Eps::None`] wants its e as a positive normal f32 of at most 2^126, so that a zero row
/// always gives w = 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Eps {
    /// n̂ = n. A zero row gives NaN. PyTorch's `weight_norm`.
    None,
    /// n̂ = sqrt(n² + e). Flax, with 1e-12.
    InsideSqrt(f32),
    /// n̂ = max(n, e). `torch.nn.functional.normalize`, ggml.
    Clamp(f32),
    /// n̂ = n + e. EDM2.
    After(f32),
}

impl Default for Eps {
    /// `Clamp(1e-12)`, as in `torch.nn.functional.normalize`.
    fn default() -> Self {
        Eps::Clamp(1e-12)
    }
}

impl Eps {
    /// The number e, 0 for [`Eps::None`].
    pub fn value(self) -> f32 {
        match self {
            Eps::None => 0.0,
            Eps::InsideSqrt(e) | Eps::Clamp(e) | Eps::After(e) => e,
        }
    }

    /// The number by which the shaders know the policy.
    pub(crate) fn code(self) -> u32 {
        match self {
            Eps::None => 0,
            Eps::InsideSqrt(_) => 1,
            Eps::Clamp(_) => 2,
            Eps::After(_) => 3,
        }
    }
}

/// An activation of a layer's output, or of the input of a convolution. NaN passes through every one, and 0 stays 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Activation {
    /// y
    #[default]
    None,
    /// max(y, 0)
    Relu,
    /// y where y ≥ 0, else slope · y. The slope is finite.
    LeakyRelu(f32),
    /// y where y ≥ 0, else exp(y) − 1
    Elu,
    /// y/2 · (1 + erf(y/√2)): GELU, PyTorch's default
    Gelu,
    /// y/2 · (1 + tanh(√(2/π) · (y + 0.044715 y³))): GELU's tanh form
    GeluTanh,
    /// y / (1 + exp(-y))
    Silu,
    /// tanh(y)
    Tanh,
}

impl Activation {
    /// The number by which the shaders know the activation.
    pub(crate) fn code(self) -> u32 {
        match self {
            Activation::None => 0,
            Activation::Relu => 1,
            Activation::LeakyRelu(_) => 2,
            Activation::Elu => 3,
            Activation::Gelu => 4,
            Activation::GeluTanh => 5,
            Activation::Silu => 6,
            Activation::Tanh => 7,
        }
    }

    pub(crate) fn slope(self) -> f32 {
        match self {
            Activation::LeakyRelu(slope) => slope,
            _ => 0.0,
        }
    }
}

/// How a convolution makes a channel of y of two channels of what it sums up: a the first, b the second half of them.
/// NaN passes through, as in PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// tanh(a) · sigmoid(b), of WaveNet, WaveGlow and VITS
    TanhSigmoid,
    /// a · sigmoid(b): `torch.nn.functional.glu`
    Glu,
}

impl Gate {
    /// The number by which the shaders know the gate.
    pub(crate) fn code(self) -> u32 {
        match self {
            Gate::TanhSigmoid => 1,
            Gate::Glu => 2,
        }
    }
}

/// A recurrent cell: how a step makes h' of h, of z = W·x + b of the input, and of q = U·h + b' of h itself. σ is the
/// logistic function; the rows of W, U, b and b' are those of the gates one after another, in PyTorch's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cell {
    /// i, f, o = σ(z + q), g = tanh(z + q), c' = f·c + i·g, h' = o·tanh(c'); the gates are i, f, g, o.
    Lstm,
    /// r, z = σ(z + q), n = tanh(z + r·q), h' = (1 − z)·n + z·h; the gates are r, z, n.
    Gru,
    /// h' = tanh(z + q), one gate.
    Rnn,
}

impl Cell {
    /// Gates of a unit, so that a weight has as many times `hidden` rows.
    pub fn gates(self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::Gru => 3,
            Cell::Rnn => 1,
        }
    }

    /// The number by which the shaders know the cell.
    pub(crate) fn code(self) -> u32 {
        match self {
            Cell::Lstm => 0,
            Cell::Gru => 1,
            Cell::Rnn => 2,
        }
    }
}

/// The storage type of a tensor's elements. All arithmetic is f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision, 4 bytes.
    F32,
    /// IEEE half precision, 2 bytes, two to a 32-bit word.
    F16,
    /// bfloat16: the upper half of an f32, 2 bytes, two to a 32-bit word.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> u64 {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// Elements in a 32-bit word.
    pub(crate) fn per_word(self) -> u64 {
        4 / self.size()
    }

    /// The number by which the shaders know the type.
    pub(crate) fn code(self) -> u32 {
        match self {
            DType::F32 => 0,
            DType::F16 => 1,
            DType::Bf16 => 2,
        }
    }
}

/// A Rust type that is a [`DType`]: `f32`, [`half::f16`] and [`half::bf16`].
///
/// ```
/// use weightnorm::{DType, Element, half};
/// assert_eq!((f32::DTYPE, half::bf16::DTYPE), (DType::F32, DType::Bf16));
/// ```
///
/// There are no others, and nobody can make any:
///
/// ```compile_fail,E0277
/// #[derive(Clone, Copy)]
/// struct Mine(f32);
/// unsafe impl bytemuck::Zeroable for Mine {}
/// unsafe impl bytemuck::Pod for Mine {}
/// impl weightnorm::Element for Mine {
///     const DTYPE: weightnorm::DType = weightnorm::DType::F32;
/// }
/// ```
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync {
    /// Its storage type.
    const DTYPE: DType;
}

mod sealed {
    /// Who could implement [`Element`](super::Element) could have the kernels read what they do not know.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
}
