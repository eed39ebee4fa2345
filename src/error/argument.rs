//! What is wrong with an argument.
use super::text::{Shape, Short};
use crate::DType;

/// An argument does not fit its operator or function. It names both.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// A tensor has a shape that the operator cannot take.
    #[error("{op}: {arg} has shape {}, expected {}", Shape(got), Short(expected))]
    Shape {
        /// The operator.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What would fit.
        expected: String,
    },
    /// A tensor has a storage type that the operator cannot take.
    #[error("{op}: {arg} is {got:?}, expected {expected:?}")]
    DType {
        /// The operator.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// Its storage type.
        got: DType,
        /// The one that fits.
        expected: DType,
    },
    /// The kept axis does not exist.
    #[error("kept axis {axis} of a tensor of rank {rank}")]
    Axis {
        /// The axis asked for.
        axis: usize,
        /// The rank of the tensor.
        rank: usize,
    },
    /// The e of an eps policy is not a positive normal number up to 2^126 (see [`Eps`](crate::Eps)).
    #[error("eps is {eps:e}, expected a positive normal number of at most 2^126")]
    Eps {
        /// The value given.
        eps: f32,
    },
    /// A number that the caller gives, or one that an operator makes of it, is NaN, infinite in f32 or out of its
    /// range.
    #[error("{op}: {what} is {got:?}, expected {expected}")]
    Number {
        /// The operator.
        op: &'static str,
        /// What the number is.
        what: &'static str,
        /// The number.
        got: f64,
        /// What would fit.
        expected: &'static str,
    },
    /// An argument that may be left out is needed here.
    #[error("{op}: {arg} is missing{}", where_it_comes_from(arg))]
    Missing {
        /// The operator.
        op: &'static str,
        /// The argument.
        arg: &'static str,
    },
    /// An optimizer step has number 0: the first is 1.
    #[error("{op}: steps count from 1")]
    Step {
        /// The operator.
        op: &'static str,
    },
    /// A set of weights computes norms, and takes none that are known.
    #[error("{op}: norms are computed, known ones are not taken")]
    KnownNorms {
        /// The operator.
        op: &'static str,
    },
    /// A forced kernel variant, or one of a [`TuningTable`](crate::TuningTable), cannot run here.
    #[error("{op}: the forced variant {got} cannot run: {}", Short(reason))]
    Variant {
        /// The operator.
        op: &'static str,
        /// The variant.
        got: String,
        /// Why not.
        reason: String,
    },
    /// An output overlaps an input. In one buffer they have to lie in different 32-bit words; in a browser in different
    /// multiples of [`wgpu::Limits::min_storage_buffer_offset_alignment`] bytes.
    #[error(
        "{op}: output {output} overlaps input {input}.\nGive {output} memory of its own, or use the form that works in place, \
         where there is one"
    )]
    Alias {
        /// The operator.
        op: &'static str,
        /// The output.
        output: &'static str,
        /// The input that it overlaps.
        input: &'static str,
    },
    /// Two outputs overlap, as [`ArgumentError::Alias`] has it.
    #[error("{op}: outputs {first} and {second} overlap")]
    Overlap {
        /// The operator.
        op: &'static str,
        /// One output.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A tensor, buffer, queue or pipeline cache belongs to another device than that of this [`Gpu`](crate::Gpu).
    #[error("{op}: {arg} belongs to another device")]
    OtherGpu {
        /// The operator, or the function.
        op: &'static str,
        /// The argument.
        arg: &'static str,
    },
    /// A buffer was made without a usage that is needed.
    #[error("{op}: the buffer of {arg} lacks {missing:?}")]
    Usage {
        /// The operator.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// The missing flags.
        missing: wgpu::BufferUsages,
    },
    /// A tensor does not start at a multiple of 4 bytes.
    #[error("a tensor starts at byte {offset}, expected a multiple of 4")]
    Offset {
        /// The byte offset given.
        offset: u64,
    },
    /// A buffer ends before the last 32-bit word of the tensor.
    #[error("a tensor ends at byte {needed} (whole words), but its buffer at {size}")]
    BufferTooShort {
        /// Bytes needed, from the start of the buffer.
        needed: u64,
        /// Bytes there.
        size: u64,
    },
    /// A slice of the host does not hold as many elements as the shape says.
    #[error("{got} elements for shape {}, which holds {expected}", Shape(shape))]
    Length {
        /// Elements given.
        got: usize,
        /// Elements the shape holds.
        expected: usize,
        /// The shape.
        shape: Vec<usize>,
    },
    /// A member of a set is wrong.
    #[error("member {index} of the set: {error}")]
    Member {
        /// The number of the member, from 0.
        index: usize,
        /// What is wrong with it.
        error: Box<ArgumentError>,
    },
}

/// How to come by an argument that only another call gives.
fn where_it_comes_from(arg: &str) -> &'static str {
    match arg {
        "u" => ": the forward pass saves it (Linear::u)",
        "output" => ": the y of the forward pass (Conv::output)",
        "y" => ": that of the forward pass (Recurrent::output)",
        "saved" => ": what the forward pass keeps (Recurrent::saved)",
        _ => "",
    }
}
