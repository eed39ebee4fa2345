//! What is too large.
use super::text::Shape;

/// More than the crate can count, or the device can hold. Smaller parts would do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// More than the device can hold of what an operator works with.
    #[error("{what}: {size}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A tensor has more elements than the crate can count (2^32 - 1), or more bytes than a buffer of the device holds.
    #[error("{what}: a tensor of shape {} has {size} {unit}, the limit is {limit}. Make it in parts", Shape(shape))]
    TensorTooLarge {
        /// The operator or the argument.
        what: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Its size: `u64::MAX` if it is larger than that.
        size: u64,
        /// What is counted: elements or bytes.
        unit: &'static str,
        /// The limit.
        limit: u64,
    },
}
