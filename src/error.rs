use crate::DType;

/// Everything that can go wrong. Nothing is recorded, and nothing of the caller's written, before an operator
/// has checked all its arguments.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No adapter that wgpu can use was found.
    #[error(
        "no GPU adapter found ({tried}). Install a Vulkan driver: Debian and Ubuntu `apt install libvulkan1 \
         mesa-vulkan-drivers` (it includes lavapipe, which needs no GPU), Fedora `dnf install vulkan-loader \
         mesa-vulkan-drivers`; macOS 10.13 and later has Metal, Windows 10 and later has DX12: update the \
         graphics driver there. WGPU_BACKEND and WGPU_ADAPTER_NAME narrow the choice: unset them to see every adapter"
    )]
    NoAdapter {
        /// What was looked for.
        tried: String,
    },
    /// The adapter refused to make a device.
    #[error("adapter {adapter} gave no device: {reason}")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// What it said.
        reason: String,
    },
    /// The device cannot run the kernels.
    #[error("the device lacks {what}")]
    Unsupported {
        /// What is missing.
        what: String,
    },
    /// A tensor has a shape that the operator cannot take.
    #[error("{op}: {arg} has shape {got:?}, expected {expected}")]
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
    /// A number that the caller gives, or one that an operator makes of it, is NaN, infinite in f32 or out of its range.
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
    #[error("{op}: {arg} is missing")]
    Missing {
        /// The operator.
        op: &'static str,
        /// The argument.
        arg: &'static str,
    },
    /// A member of a set is wrong.
    #[error("member {index} of the set: {error}")]
    Member {
        /// The number of the member, from 0.
        index: usize,
        /// What is wrong with it.
        error: Box<Error>,
    },
    /// A set of weights computes norms, and takes none that are known.
    #[error("{op}: norms are computed, known ones are not taken")]
    KnownNorms {
        /// The operator.
        op: &'static str,
    },
    /// An optimizer step has number 0: the first is 1.
    #[error("{op}: steps count from 1")]
    Step {
        /// The operator.
        op: &'static str,
    },
    /// No tile has this name.
    #[error("no tile is called {got:?}, expected one of {expected}")]
    UnknownTile {
        /// The name given.
        got: String,
        /// The names there are.
        expected: String,
    },
    /// A text is not that of [`Choices`](crate::Choices).
    #[error("line {line} of the choices is {got:?}, expected {expected}")]
    Choices {
        /// The number of the line, from 1.
        line: usize,
        /// The line.
        got: String,
        /// What would fit.
        expected: String,
    },
    /// A forced kernel variant, or one of [`Choices`](crate::Choices), cannot run here.
    #[error("{op}: the forced variant {got} cannot run: {reason}")]
    Variant {
        /// The operator.
        op: &'static str,
        /// The variant.
        got: String,
        /// Why not.
        reason: String,
    },
    /// An output shares a buffer with an input. wgpu tracks use per buffer: give the output a buffer of its own,
    /// or use the operator's in-place form.
    #[error("{op}: output {output} shares its buffer with input {input}")]
    Alias {
        /// The operator.
        op: &'static str,
        /// The output.
        output: &'static str,
        /// The input in the same buffer.
        input: &'static str,
    },
    /// Two outputs overlap in one buffer.
    #[error("{op}: outputs {first} and {second} overlap")]
    Overlap {
        /// The operator.
        op: &'static str,
        /// One output.
        first: &'static str,
        /// The other.
        second: &'static str,
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
    #[error("{got} elements for shape {shape:?}, which holds {expected}")]
    Length {
        /// Elements given.
        got: usize,
        /// Elements the shape holds.
        expected: usize,
        /// The shape.
        shape: Vec<usize>,
    },
    /// More than the device, or the crate (2^32 - 1 elements), can hold.
    #[error("{what} is {size}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A tensor belongs to another [`Gpu`](crate::Gpu).
    #[error("{op}: {arg} belongs to another Gpu")]
    OtherGpu {
        /// The operator.
        op: &'static str,
        /// The argument.
        arg: &'static str,
    },
    /// The device is out of memory.
    #[error("out of memory: {what} of {bytes} bytes")]
    OutOfMemory {
        /// What was being allocated.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// The device is lost. Make a new [`Gpu`](crate::Gpu).
    #[error("the device is lost: {reason}")]
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// wgpu reported an error that this crate did not foresee.
    #[error("wgpu: {message}")]
    Wgpu {
        /// wgpu's words.
        message: String,
    },
}
