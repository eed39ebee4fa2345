//! dx beside a padding of other than zeros: what falls on the padding belongs to the elements that were read there.
//! Shader: `conv/fold.wgsl`.
use super::geometry::{PadMode, Sides};
use super::kernels::{FOLD, FOLD_THREADS, FoldParams, fold_module};
use crate::binding::bind;
use crate::kernel::Constants;
use crate::memory::Scratch;
use crate::record::Dispatch;
use crate::windows::{MAX_ITERATIONS, windows};
use crate::{DType, Error, LimitError, Recorder, Tensor};

/// A convolution whose dx is folded: as it is, and as one of a padded input.
#[derive(Clone, Copy)]
pub(crate) struct Fold {
    sides: Sides,
    pub padded: Sides,
}

impl Fold {
    /// None beside a padding of zeros, on which nothing falls, and without any.
    pub fn of(sides: &Sides) -> Result<Option<Fold>, Error> {
        if sides.pad_mode == PadMode::Zero {
            return Ok(None);
        }
        let padded = sides.padded();
        if padded.a_size == sides.a_size {
            return Ok(None);
        }
        let most = [0, 1].map(|axis| {
            let (size, all) = (sides.a_size[axis] as u64, padded.a_size[axis] as u64);
            match sides.pad_mode {
                PadMode::Replicate => all + 1 - size,
                _ => 3,
            }
        });
        // Of both loops.
        let size = most[0].saturating_mul(most[1] + 1);
        if size > MAX_ITERATIONS {
            let what = "padded positions at which one element is read";
            return Err(LimitError::TooLarge { what, size, limit: MAX_ITERATIONS }.into());
        }
        Ok(Some(Fold { sides: *sides, padded }))
    }

    /// Where the gradient of the padded input goes: f32.
    pub fn scratch(&self, ops: &mut Recorder<'_, '_>) -> Result<Tensor, Error> {
        let shape = self.padded.a_shape();
        let memory = ops.scratch(Scratch::Factors, shape.iter().product::<usize>() as u64 * DType::F32.size())?;
        Ok(Tensor::in_scratch(ops.gpu(), memory, 0, &shape))
    }

    /// Adds up what is in `padded`.
    pub fn record(&self, ops: &mut Recorder<'_, '_>, padded: &Tensor, dx: &Tensor) -> Result<(), Error> {
        let capacities = ops.facts().capacities;
        let sides = &self.sides;
        let (plane, padded_plane) = (sides.a_plane(), self.padded.a_plane());
        let planes = (sides.batch * sides.groups * sides.channels) as u64;
        let step = capacities.step().bound(padded_plane * DType::F32.size()).bound(plane * dx.dtype().size());
        let replicated = sides.pad_mode == PadMode::Replicate;
        let mut constants: Constants = vec![("REPLICATED", replicated.into())];
        if dx.dtype() != DType::F32 {
            constants.push(("Y_DTYPE", dx.dtype().code()));
        }
        for (first, count) in windows(planes, step.get().max(1)) {
            let (source, padded_first) = bind(capacities, Some(padded), first * padded_plane, count * padded_plane);
            let (target, dx_first) = bind(capacities, Some(dx), first * plane, count * plane);
            let at_once = capacities.step().in_groups(FOLD_THREADS).work(1).get();
            for (begin, elements) in windows(count * plane, at_once) {
                ops.dispatch(&Dispatch {
                    kernel: &FOLD,
                    module: fold_module(dx.dtype()),
                    constants: &constants,
                    buffers: &[source.clone(), target.clone()],
                    params: FoldParams {
                        begin: begin as u32,
                        end: (begin + elements) as u32,
                        height: sides.a_size[0] as u32,
                        width: sides.a_size[1] as u32,
                        padded_height: self.padded.a_size[0] as u32,
                        padded_width: self.padded.a_size[1] as u32,
                        before_y: sides.before[0] as u32,
                        before_x: sides.before[1] as u32,
                        padded_first,
                        dx_first,
                    },
                    groups: elements.div_ceil(FOLD_THREADS),
                    work: elements,
                })?;
            }
        }
        Ok(())
    }
}
