use std::fmt;

use crate::DType;

/// Everything that can go wrong. Nothing is recorded, and nothing of the caller's written, before an operator
/// has checked all its arguments.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No adapter that wgpu can use was found.
    #[error(
        "no GPU adapter found (tried {tried}).\nInstall a Vulkan driver: `apt install libvulkan1 mesa-vulkan-drivers` \
         (Debian, Ubuntu; needs no GPU), `dnf install vulkan-loader mesa-vulkan-drivers` (Fedora); on macOS and Windows \
         update the graphics driver"
    )]
    NoAdapter {
        /// What was looked for.
        tried: String,
    },
    /// A variable of the environment leaves no adapter to choose, though there may be some.
    #[error("{variable} is {:?}: {reason}", Short(value))]
    AdapterChoice {
        /// `WGPU_BACKEND` or `WGPU_ADAPTER_NAME`.
        variable: &'static str,
        /// What it is set to.
        value: String,
        /// What is wrong with that, and what there is.
        reason: String,
    },
    /// The adapter refused to make a device.
    #[error("adapter {adapter} gave no device: {}", Short(reason))]
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
    #[error("{op}: {arg} is missing{}", where_it_comes_from(arg))]
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
    #[error("no tile is called {:?}, expected one of {expected}", Short(got))]
    UnknownTile {
        /// The name given.
        got: String,
        /// The names there are.
        expected: String,
    },
    /// A text is not that of [`Choices`](crate::Choices).
    #[error("line {line} of the choices is {:?}, expected {expected}", Short(got))]
    Choices {
        /// The number of the line, from 1.
        line: usize,
        /// The line.
        got: String,
        /// What would fit.
        expected: String,
    },
    /// A forced kernel variant, or one of [`Choices`](crate::Choices), cannot run here.
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
    /// Two outputs overlap, as [`Error::Alias`] has it.
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
    #[error("{got} elements for shape {}, which holds {expected}", Shape(shape))]
    Length {
        /// Elements given.
        got: usize,
        /// Elements the shape holds.
        expected: usize,
        /// The shape.
        shape: Vec<usize>,
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
    /// A tensor, buffer, queue or pipeline cache belongs to another device than that of this [`Gpu`](crate::Gpu).
    #[error("{op}: {arg} belongs to another device")]
    OtherGpu {
        /// The operator, or the function.
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
    #[error("the device is lost: {}. Make a new Gpu", Short(reason))]
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// wgpu reported an error that this crate did not foresee.
    #[error("wgpu: {}", Short(message))]
    Wgpu {
        /// wgpu's words.
        message: String,
    },
}

/// A shape, of which the first axes tell enough.
struct Shape<'a>(&'a [usize]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [first @ .., _, _] if first.len() > 6 => {
                f.write_str("[")?;
                first[..6].iter().try_for_each(|size| write!(f, "{size}, "))?;
                write!(f, "..] of rank {}", self.0.len())
            }
            all => write!(f, "{all:?}"),
        }
    }
}

/// A text of somebody else's, in one line, of which beginning and end tell enough.
struct Short<'a>(&'a str);

impl Short<'_> {
    const LENGTH: usize = 140;

    fn line(&self) -> String {
        // wgpu's headings say nothing.
        let lines = self.0.lines().map(str::trim);
        let lines = lines.filter(|line| !["", "Validation Error", "Caused by:"].contains(line));
        let line = lines.collect::<Vec<_>>().join(": ");
        let count = line.chars().count();
        if count <= Self::LENGTH {
            return line;
        }
        let begin: String = line.chars().take(Self::LENGTH / 2).collect();
        let end: String = line.chars().skip(count - Self::LENGTH / 2).collect();
        format!("{} .. {}", begin.trim_end(), end.trim_start())
    }
}

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.line())
    }
}

/// How to come by an argument that only another call gives.
fn where_it_comes_from(arg: &str) -> &'static str {
    if arg == "u" { ": the forward pass saves it (LinearOptions::u)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::Error::{self, *};

    /// Every variant, with more in it than anybody wants to read.
    fn all() -> Vec<Error> {
        let long = || "a driver's words, of which there are many, ".repeat(40);
        let lines = || "Validation Error\n\nCaused by:\n  In Device::create_bind_group\n    ".to_owned() + &long();
        let shape = || vec![u32::MAX as usize; 50];
        let (op, arg) = ("mean_only_batch_norm_backward", "the second moment of g");
        let mut all = vec![
            NoAdapter { tried: "vulkan, metal, dx12, gl".to_owned() },
            AdapterChoice { variable: "WGPU_ADAPTER_NAME", value: long(), reason: "no adapter has it".to_owned() },
            NoDevice { adapter: "an adapter".to_owned(), reason: lines() },
            Unsupported { what: "bindings of 8192 bytes, only of 4096".to_owned() },
            Error::Shape { op, arg, got: shape(), expected: format!("{:?}", shape()) },
            DType { op, arg, got: crate::DType::F16, expected: crate::DType::F32 },
            Axis { axis: usize::MAX, rank: usize::MAX },
            Eps { eps: f32::NAN },
            Missing { op, arg },
            Missing { op, arg: "u" },
            KnownNorms { op },
            Step { op },
            UnknownTile { got: long(), expected: crate::Tile::ALL.map(|tile| tile.to_string()).join(", ") },
            Choices { line: usize::MAX, got: long(), expected: "forward, input or weight".to_owned() },
            Variant { op, got: "split_length 4294967295, medium".to_owned(), reason: long() },
            Alias { op, output: arg, input: arg },
            Overlap { op, first: arg, second: arg },
            Usage { op, arg, missing: wgpu::BufferUsages::STORAGE },
            Offset { offset: u64::MAX },
            BufferTooShort { needed: u64::MAX, size: u64::MAX },
            Length { got: usize::MAX, expected: usize::MAX, shape: shape() },
            TensorTooLarge { what: op, shape: shape(), size: u64::MAX, unit: "elements", limit: u64::MAX },
            TooLarge { what: "scratch memory in bytes", size: u64::MAX, limit: u64::MAX },
            OtherGpu { op, arg },
            OutOfMemory { what: "scratch memory", bytes: u64::MAX },
            DeviceLost { reason: lines() },
            Wgpu { message: lines() },
            Number { op, what: "the rate of g", got: f64::MIN_POSITIVE, expected: "a finite f32, 0 or more" },
        ];
        let error = Box::new(Alias { op, output: arg, input: arg });
        all.push(Member { index: usize::MAX, error });
        all
    }

    /// A variant that is missing above does not compile here.
    fn number(error: &Error) -> usize {
        match error {
            NoAdapter { .. } => 0,
            AdapterChoice { .. } => 1,
            NoDevice { .. } => 2,
            Unsupported { .. } => 3,
            Error::Shape { .. } => 4,
            DType { .. } => 5,
            Axis { .. } => 6,
            Eps { .. } => 7,
            Missing { .. } => 8,
            Member { .. } => 9,
            KnownNorms { .. } => 10,
            Step { .. } => 11,
            UnknownTile { .. } => 12,
            Choices { .. } => 13,
            Variant { .. } => 14,
            Alias { .. } => 15,
            Overlap { .. } => 16,
            Usage { .. } => 17,
            Offset { .. } => 18,
            BufferTooShort { .. } => 19,
            Length { .. } => 20,
            TensorTooLarge { .. } => 21,
            TooLarge { .. } => 22,
            OtherGpu { .. } => 23,
            OutOfMemory { .. } => 24,
            DeviceLost { .. } => 25,
            Wgpu { .. } => 26,
            Number { .. } => 27,
        }
    }

    #[test]
    fn every_message_is_one_or_two_lines() {
        let all = all();
        let mut numbers: Vec<_> = all.iter().map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, (0..28).collect::<Vec<_>>());
        for error in all {
            let text = error.to_string();
            assert!(text.lines().count() <= 2 && text.chars().count() <= 320, "{} in {text}", text.chars().count());
            assert!(!text.contains("  ") && text.lines().all(|line| !line.trim().is_empty()), "{text:?}");
        }
    }

    #[test]
    fn what_is_short_stays_whole() {
        let text = |error: Error| error.to_string();
        let message =
            "Validation Error\n\nCaused by:\n  In Device::create_buffer, label = 'wrong'\n    No usage\n".to_owned();
        assert_eq!(text(Wgpu { message }), "wgpu: In Device::create_buffer, label = 'wrong': No usage");
        let (got, expected) = (vec![3, 4, 5, 6, 7, 8, 9, 10], "[4]".to_owned());
        let shape = text(Error::Shape { op: "normalize", arg: "g", got, expected });
        assert_eq!(shape, "normalize: g has shape [3, 4, 5, 6, 7, 8, 9, 10], expected [4]");
        let got = vec![1, 2, 3, 4, 5, 6, 7, 8, 9];
        let shape = text(Length { got: 1, expected: 362_880, shape: got });
        assert_eq!(shape, "1 elements for shape [1, 2, 3, 4, 5, 6, ..] of rank 9, which holds 362880");
    }
}
