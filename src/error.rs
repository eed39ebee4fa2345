//! Errors, by what failed.
mod argument;
mod device;
mod limit;
mod parse;
mod text;

pub use argument::ArgumentError;
pub use device::DeviceError;
pub use limit::LimitError;
pub use parse::ParseError;

/// Everything that can go wrong. Nothing is recorded, and nothing of the caller's written, before an operator has
/// checked all its arguments.
///
/// An operator's own documentation lists what is wrong with its own arguments. Besides, every operator may return
///
/// - [`ArgumentError::OtherGpu`] for a tensor of another device, [`ArgumentError::Usage`] for a buffer without
///   `STORAGE`, [`ArgumentError::Alias`] and [`ArgumentError::Overlap`] for outputs that overlap something,
/// - [`DeviceError::OutOfMemory`], [`DeviceError::Lost`] and what [`Gpu::check`](crate::Gpu::check) tells,
/// - [`LimitError::TooLarge`] for scratch memory or partial sums beyond what the device can hold, and
///   [`LimitError::TensorTooLarge`] for a result that is allocated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no device, it cannot do this, or it failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An argument does not fit.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// Something is too large.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A text is not what it is read as.
    #[error(transparent)]
    Parse(#[from] ParseError),
}

impl Error {
    /// The same of a member of a set, with its number.
    pub(crate) fn of_member(self, index: usize) -> Error {
        match self {
            Error::Argument(error) => ArgumentError::Member { index, error: Box::new(error) }.into(),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every variant, with more in it than anybody wants to read.
    fn all() -> Vec<Error> {
        let long = || "a driver's words, of which there are many, ".repeat(40);
        let lines = || "Validation Error\n\nCaused by:\n  In Device::create_bind_group\n    ".to_owned() + &long();
        let shape = || vec![u32::MAX as usize; 50];
        let (op, arg) = ("mean_only_batch_norm_backward", "the second moment of g");
        let mut all = vec![
            DeviceError::NoAdapter { tried: "vulkan, metal, dx12, gl".to_owned() }.into(),
            DeviceError::AdapterChoice {
                variable: "WGPU_ADAPTER_NAME",
                value: long(),
                reason: "no adapter has it".to_owned(),
            }
            .into(),
            DeviceError::NoDevice { adapter: "an adapter".to_owned(), reason: lines() }.into(),
            DeviceError::Unsupported { what: "bindings of 8192 bytes, only of 4096".to_owned() }.into(),
            ArgumentError::Shape { op, arg, got: shape(), expected: format!("{:?}", shape()) }.into(),
            ArgumentError::DType { op, arg, got: crate::DType::F16, expected: crate::DType::F32 }.into(),
            ArgumentError::Axis { axis: usize::MAX, rank: usize::MAX }.into(),
            ArgumentError::Eps { eps: f32::NAN }.into(),
            ArgumentError::Missing { op, arg }.into(),
            ArgumentError::Missing { op, arg: "u" }.into(),
            ArgumentError::KnownNorms { op }.into(),
            ArgumentError::Step { op }.into(),
            ParseError::Tile { got: long(), expected: crate::Tile::NAMES.to_owned() }.into(),
            ParseError::TuningTable { line: usize::MAX, got: long(), expected: "forward, input or weight".to_owned() }
                .into(),
            ArgumentError::Variant { op, got: "split_length 4294967295, Tile32x32".to_owned(), reason: long() }.into(),
            ArgumentError::Alias { op, output: arg, input: arg }.into(),
            ArgumentError::Overlap { op, first: arg, second: arg }.into(),
            ArgumentError::Usage { op, arg, missing: wgpu::BufferUsages::STORAGE }.into(),
            ArgumentError::Offset { offset: u64::MAX }.into(),
            ArgumentError::BufferTooShort { needed: u64::MAX, size: u64::MAX }.into(),
            ArgumentError::Length { got: usize::MAX, expected: usize::MAX, shape: shape() }.into(),
            LimitError::TensorTooLarge { what: op, shape: shape(), size: u64::MAX, unit: "elements", limit: u64::MAX }
                .into(),
            LimitError::TooLarge { what: "scratch memory in bytes", size: u64::MAX, limit: u64::MAX }.into(),
            ArgumentError::OtherGpu { op, arg }.into(),
            DeviceError::OutOfMemory { what: "scratch memory", bytes: u64::MAX }.into(),
            DeviceError::Lost { reason: lines() }.into(),
            DeviceError::Wgpu { message: lines() }.into(),
            ArgumentError::Number {
                op,
                what: "the learning rate of g",
                got: f64::MIN_POSITIVE,
                expected: "a finite f32, 0 or more",
            }
            .into(),
        ];
        let error = Box::new(ArgumentError::Alias { op, output: arg, input: arg });
        all.push(ArgumentError::Member { index: usize::MAX, error }.into());
        all
    }

    /// A variant that is missing above does not compile here.
    fn number(error: &Error) -> usize {
        match error {
            Error::Device(DeviceError::NoAdapter { .. }) => 0,
            Error::Device(DeviceError::AdapterChoice { .. }) => 1,
            Error::Device(DeviceError::NoDevice { .. }) => 2,
            Error::Device(DeviceError::Unsupported { .. }) => 3,
            Error::Argument(ArgumentError::Shape { .. }) => 4,
            Error::Argument(ArgumentError::DType { .. }) => 5,
            Error::Argument(ArgumentError::Axis { .. }) => 6,
            Error::Argument(ArgumentError::Eps { .. }) => 7,
            Error::Argument(ArgumentError::Missing { .. }) => 8,
            Error::Argument(ArgumentError::Member { .. }) => 9,
            Error::Argument(ArgumentError::KnownNorms { .. }) => 10,
            Error::Argument(ArgumentError::Step { .. }) => 11,
            Error::Parse(ParseError::Tile { .. }) => 12,
            Error::Parse(ParseError::TuningTable { .. }) => 13,
            Error::Argument(ArgumentError::Variant { .. }) => 14,
            Error::Argument(ArgumentError::Alias { .. }) => 15,
            Error::Argument(ArgumentError::Overlap { .. }) => 16,
            Error::Argument(ArgumentError::Usage { .. }) => 17,
            Error::Argument(ArgumentError::Offset { .. }) => 18,
            Error::Argument(ArgumentError::BufferTooShort { .. }) => 19,
            Error::Argument(ArgumentError::Length { .. }) => 20,
            Error::Limit(LimitError::TensorTooLarge { .. }) => 21,
            Error::Limit(LimitError::TooLarge { .. }) => 22,
            Error::Argument(ArgumentError::OtherGpu { .. }) => 23,
            Error::Device(DeviceError::OutOfMemory { .. }) => 24,
            Error::Device(DeviceError::Lost { .. }) => 25,
            Error::Device(DeviceError::Wgpu { .. }) => 26,
            Error::Argument(ArgumentError::Number { .. }) => 27,
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
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let message =
            "Validation Error\n\nCaused by:\n  In Device::create_buffer, label = 'wrong'\n    No usage\n".to_owned();
        assert_eq!(text(&DeviceError::Wgpu { message }), "wgpu: In Device::create_buffer, label = 'wrong': No usage");
        let (got, expected) = (vec![3, 4, 5, 6, 7, 8, 9, 10], "[4]".to_owned());
        let shape = text(&ArgumentError::Shape { op: "normalize", arg: "g", got, expected });
        assert_eq!(shape, "normalize: g has shape [3, 4, 5, 6, 7, 8, 9, 10], expected [4]");
        let got = vec![1, 2, 3, 4, 5, 6, 7, 8, 9];
        let shape = text(&ArgumentError::Length { got: 1, expected: 362_880, shape: got });
        assert_eq!(shape, "1 elements for shape [1, 2, 3, 4, 5, 6, ..] of rank 9, which holds 362880");
    }
}
