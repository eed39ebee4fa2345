//! Gains, biases and their gradients in f16 and bf16, where a kernel takes f32: a copy in scratch memory stands for
//! them. (Gains and the bias of `linear` are read as they are stored.)
use std::array;

use crate::memory::Scratch;
use crate::weight::rescale::copy;
use crate::{DType, Error, Recorder, Tensor};

/// From one copy to the next: the largest alignment that a device may ask for.
const ALIGNMENT: u64 = 256;

/// Records with f32 copies of those of `vectors` that are stored in 16 bits: filled before if `read`, rounded back to
/// them behind if `written`. One dispatch each for either. `record` leaves `Scratch::Vectors` alone.
pub(crate) fn in_f32<const N: usize>(
    ops: &mut Recorder<'_, '_>,
    (read, written): (bool, bool),
    vectors: [Option<&Tensor>; N],
    record: impl FnOnce(&mut Recorder<'_, '_>, [Option<&Tensor>; N]) -> Result<(), Error>,
) -> Result<(), Error> {
    let packed = vectors.map(|vector| vector.filter(|v| v.dtype() != DType::F32 && !v.is_empty()));
    let room = |v: &Tensor| (v.len() as u64 * DType::F32.size()).next_multiple_of(ALIGNMENT);
    let bytes = packed.iter().flatten().map(|v| room(v)).sum();
    if bytes == 0 {
        return record(ops, vectors);
    }
    let scratch = ops.scratch(Scratch::Vectors, bytes)?;
    let mut copies = array::from_fn::<_, N, _>(|_| None);
    let mut offset = 0;
    for (own, vector) in copies.iter_mut().zip(packed) {
        let Some(vector) = vector else { continue };
        let wide = own.insert(Tensor::in_scratch(ops.gpu(), scratch.clone(), offset, vector.shape()));
        offset += room(vector);
        if read {
            copy(ops, vector, wide)?;
        }
    }
    record(ops, array::from_fn(|i| copies[i].as_ref().or(vectors[i])))?;
    for (narrow, vector) in copies.iter().zip(packed) {
        if let (Some(narrow), Some(vector), true) = (narrow, vector, written) {
            copy(ops, narrow, vector)?;
        }
    }
    Ok(())
}
