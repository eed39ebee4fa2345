//! What arguments have to be, whatever the operator: numbers in their range, and a tensor seen from its kept axis.
use crate::{Activation, ArgumentError, Axis, DType, Eps, Error, Tensor};

impl Eps {
    /// Whether kernels can compute with its e: a normal f32 above zero, at most 2¹²⁶. Else [`ArgumentError::Eps`], as
    /// every operator tells it.
    pub fn check(self) -> Result<(), Error> {
        let e = self.value();
        let largest = f32::from_bits((127 + 126) << 23);
        match self {
            Eps::None => Ok(()),
            _ if e.is_normal() && e > 0.0 && e <= largest => Ok(()),
            _ => Err(ArgumentError::Eps { eps: e }.into()),
        }
    }
}

/// What a number that the caller gives has to be. Kernels compute in f32, so it has to be finite there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Range {
    Finite,
    NotNegative,
    /// 0 ≤ a < 1
    BelowOne,
    /// 0 ≤ a ≤ 1
    Fraction,
}

impl Range {
    pub fn check(self, op: &'static str, what: &'static str, got: f64) -> Result<(), Error> {
        let (fits, expected) = match self {
            Range::Finite => (true, "a finite f32"),
            Range::NotNegative => (got >= 0.0, "a finite f32, 0 or more"),
            Range::BelowOne => ((0.0..1.0).contains(&got), "a number from 0 to below 1"),
            Range::Fraction => ((0.0..=1.0).contains(&got), "a number from 0 to 1"),
        };
        if fits && (got as f32).is_finite() {
            Ok(())
        } else {
            Err(ArgumentError::Number { op, what, got, expected }.into())
        }
    }
}

impl Activation {
    pub(crate) fn check(self, op: &'static str) -> Result<(), Error> {
        Range::Finite.check(op, "the slope of leaky ReLU", self.slope().into())
    }
}

/// The storage type of a gain or a bias as a constant of the kernel that reads it, where that is not f32.
pub(crate) fn stored_as(name: &'static str, tensor: Option<&Tensor>) -> Option<(&'static str, u32)> {
    tensor.map(Tensor::dtype).filter(|&dtype| dtype != DType::F32).map(|dtype| (name, dtype.code()))
}

/// A tensor seen from its kept axis: element (o, j, i) lies at `(o * kept + j) * inner + i`, and belongs to norm j.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout<T = usize> {
    /// What lies before the kept axis.
    pub outer: T,
    /// The norms.
    pub kept: T,
    /// What lies behind the kept axis.
    pub inner: T,
}

impl Layout {
    /// The sizes as u64, for arithmetic with bytes.
    pub fn wide(self) -> Layout<u64> {
        Layout { outer: self.outer as u64, kept: self.kept as u64, inner: self.inner as u64 }
    }

    /// Where only one norm exists, or nothing lies before the kept axis, the rows are contiguous: `outer` is 1. An axis
    /// that the shape does not have is [`ArgumentError::Axis`].
    pub fn new(shape: &[usize], axis: Axis) -> Result<Layout, Error> {
        let layout = match axis {
            Axis::Whole => Layout { outer: 1, kept: 1, inner: shape.iter().product() },
            Axis::Kept(k) if k < shape.len() => {
                Layout { outer: shape[..k].iter().product(), kept: shape[k], inner: shape[k + 1..].iter().product() }
            }
            Axis::Kept(k) => return Err(ArgumentError::Axis { axis: k, rank: shape.len() }.into()),
        };
        Ok(match layout {
            Layout { outer, kept: 1, inner } => Layout { outer: 1, kept: 1, inner: outer * inner },
            other => other,
        })
    }

    /// The elements of the tensor.
    #[expect(clippy::len_without_is_empty, reason = "sizes, not a collection")]
    pub fn len(&self) -> usize {
        self.outer * self.kept * self.inner
    }
}

/// The shape of the norms and of g: `shape` with ones everywhere but at the kept axis.
pub fn norms_shape(shape: &[usize], axis: Axis) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, &d)| if axis == Axis::Kept(i) { d } else { 1 }).collect()
}
