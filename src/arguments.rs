//! The checks that every operator makes before it records anything.
use std::collections::BTreeMap;

use crate::memory::Memory;
use crate::windows::Capacities;
use crate::{ArgumentError, Cost, DType, Error, Gpu, Recorder, Tensor};

/// An operator's tensors, checked together before anything is recorded. They tell the least it has to move as well.
pub(crate) struct Arguments<'a> {
    op: &'static str,
    inputs: Vec<(&'static str, &'a Tensor)>,
    outputs: Vec<(&'static str, &'a Tensor)>,
    cost: Cost,
}

impl<'a> Arguments<'a> {
    pub fn new(op: &'static str) -> Self {
        Arguments { op, inputs: vec![], outputs: vec![], cost: Cost::default() }
    }

    pub fn input(self, arg: &'static str, tensor: impl Into<Option<&'a Tensor>>) -> Self {
        self.input_if(true, arg, tensor)
    }

    /// An input that is not read in every case.
    pub fn input_if(mut self, read: bool, arg: &'static str, tensor: impl Into<Option<&'a Tensor>>) -> Self {
        if let Some(tensor) = tensor.into() {
            self.inputs.push((arg, tensor));
            self.cost.read += if read { tensor.bytes() } else { 0 };
        }
        self
    }

    pub fn output(self, arg: &'static str, tensor: impl Into<Option<&'a Tensor>>) -> Self {
        self.output_onto(false, arg, tensor)
    }

    /// An output whose former contents are read as well, or may be.
    pub fn output_onto(mut self, read: bool, arg: &'static str, tensor: impl Into<Option<&'a Tensor>>) -> Self {
        if let Some(tensor) = tensor.into() {
            self.outputs.push((arg, tensor));
            self.cost.written += tensor.bytes();
            self.cost.read += if read { tensor.bytes() } else { 0 };
        }
        self
    }

    /// The operations it takes: see [`Cost`].
    pub fn operations(mut self, operations: u64) -> Self {
        self.cost.operations = operations;
        self
    }

    /// Device, usage and aliasing of all of them. The operator begins, for a profile.
    pub fn begin(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let cost = self.check_for(ops.gpu(), ops.facts().capacities)?;
        ops.begin(self.op, cost);
        Ok(())
    }

    /// The same without a beginning. Returns what it takes.
    pub fn check(&self, gpu: &Gpu) -> Result<Cost, Error> {
        self.check_for(Some(gpu), gpu.capacities())
    }

    #[expect(clippy::mutable_key_type, reason = "buffers are ordered by which they are, and that stays")]
    fn check_for(&self, gpu: Option<&Gpu>, capacities: Capacities) -> Result<Cost, Error> {
        gpu.map_or(Ok(()), Gpu::reported)?;
        let op = self.op;
        for &(arg, tensor) in self.inputs.iter().chain(&self.outputs) {
            match (gpu, tensor.gpu(), tensor.memory()) {
                (Some(gpu), Some(own), Memory::Buffer(buffer)) if own.is_one_with(gpu) => {
                    let missing = wgpu::BufferUsages::STORAGE - buffer.usage();
                    if !missing.is_empty() {
                        return Err(ArgumentError::Usage { op, arg, missing }.into());
                    }
                }
                (None, None, Memory::Numbered(_)) => {}
                _ => return Err(ArgumentError::OtherGpu { op, arg }.into()),
            }
        }
        // What has to lie apart, in bytes of a buffer.
        let range = |tensor: &Tensor| (tensor.offset() / capacities.apart * capacities.apart, tensor.end());
        // The outputs so far. They do not overlap, so of those that begin before another one's end the last reaches
        // furthest.
        let mut written: BTreeMap<(&Memory, u64), (u64, &str)> = BTreeMap::new();
        let overlapping = |written: &BTreeMap<_, (u64, &'static str)>, tensor: &Tensor| {
            let (begin, end) = range(tensor);
            let (_, &(its_end, arg)) = written.range((tensor.memory(), 0)..(tensor.memory(), end)).next_back()?;
            (its_end > begin).then_some(arg)
        };
        for &(output, tensor) in self.outputs.iter().filter(|(_, tensor)| !tensor.is_empty()) {
            if let Some(last) = overlapping(&written, tensor) {
                let (begin, end) = range(tensor);
                let is_it = |t: &Tensor| {
                    let (its_begin, its_end) = range(t);
                    t.memory() == tensor.memory() && !t.is_empty() && its_begin < end && begin < its_end
                };
                let first = self.outputs.iter().find(|(_, t)| is_it(t)).map_or(last, |&(first, _)| first);
                return Err(ArgumentError::Overlap { op, first, second: output }.into());
            }
            let (begin, end) = range(tensor);
            written.insert((tensor.memory(), begin), (end, output));
        }
        for &(input, tensor) in self.inputs.iter().filter(|(_, tensor)| !tensor.is_empty()) {
            if let Some(output) = overlapping(&written, tensor) {
                return Err(ArgumentError::Alias { op, output, input }.into());
            }
        }
        Ok(self.cost)
    }
}

/// Checks a storage type.
pub(crate) fn expect_dtype(op: &'static str, arg: &'static str, tensor: &Tensor, dtype: DType) -> Result<(), Error> {
    if tensor.dtype() != dtype {
        return Err(ArgumentError::DType { op, arg, got: tensor.dtype(), expected: dtype }.into());
    }
    Ok(())
}

/// Checks a shape.
pub(crate) fn expect_shape(op: &'static str, arg: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<(), Error> {
    if tensor.shape() != shape {
        return Err(
            ArgumentError::Shape { op, arg, got: tensor.shape().to_vec(), expected: format!("{shape:?}") }.into()
        );
    }
    Ok(())
}

/// Checks one f32 per kept index: the norms' shape (ones but at the kept axis), or flat.
pub(crate) fn expect_per_norm(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor,
    norms_shape: &[usize],
) -> Result<(), Error> {
    expect_dtype(op, arg, tensor, DType::F32)?;
    expect_gain(op, arg, tensor, norms_shape)
}

/// Checks the scales of so many norms.
pub(crate) fn expect_scales(op: &'static str, scales: &Tensor, kept: usize) -> Result<(), Error> {
    expect_dtype(op, "scales", scales, DType::F32)?;
    expect_shape(op, "scales", scales, &[kept, 2])
}

/// Checks one element of any storage type per kept index, shaped as [`expect_per_norm`] has it.
pub(crate) fn expect_gain(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor,
    norms_shape: &[usize],
) -> Result<(), Error> {
    let count: usize = norms_shape.iter().product();
    let scalar = count == 1 && tensor.len() == 1;
    if tensor.shape() != norms_shape && tensor.shape() != [count] && !scalar {
        let expected = format!("{norms_shape:?} or [{count}]");
        return Err(ArgumentError::Shape { op, arg, got: tensor.shape().to_vec(), expected }.into());
    }
    Ok(())
}
