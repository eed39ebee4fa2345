//! Devices with other limits, and recording by hand.
use weightnorm::internals::Kind;
use weightnorm::{Error, Gpu, Recorder};

use crate::Failed;
use crate::problem::{adapter_of, adopted};
use crate::suite::shared;

/// A device of the caller's on the adapter of `gpu`, with the limits that `change` leaves. One for all who ask for the
/// same.
pub fn limited(gpu: &Gpu, change: impl FnOnce(&mut wgpu::Limits)) -> Result<Gpu, Failed> {
    let (_instance, adapter) = adapter_of(gpu, wgpu::MemoryBudgetThresholds::default())?;
    let mut limits = Gpu::wanted(&adapter).limits;
    change(&mut limits);
    shared(limits.clone(), gpu.traits().kind, None, || adopted(gpu, |wanted| *wanted = limits))
}

/// The same device, taken for one of this kind.
pub fn of_kind(gpu: &Gpu, kind: Kind) -> Result<Gpu, Failed> {
    if gpu.traits().kind == kind {
        return Ok(gpu.clone());
    }
    shared(gpu.device().limits(), kind, Some(gpu.device().clone()), || Ok(gpu.as_kind(kind)?))
}

/// Bindings of 1 MiB and 64 workgroups in a dimension.
pub fn small(gpu: &Gpu) -> Result<Gpu, Failed> {
    limited(gpu, |limits| {
        limits.max_storage_buffer_binding_size = 1 << 20;
        limits.max_compute_workgroups_per_dimension = 64;
    })
}

/// Bindings of 8 KiB at multiples of 256 bytes and 27 workgroups in a dispatch: windows everywhere.
pub fn tiny(gpu: &Gpu) -> Result<Gpu, Failed> {
    limited(gpu, |limits| {
        limits.min_storage_buffer_offset_alignment = 256;
        limits.max_storage_buffer_binding_size = 8 << 10;
        limits.max_compute_workgroups_per_dimension = 3;
    })
}

/// Records on an encoder of ours and submits it: the dispatches it took.
pub fn recorded(gpu: &Gpu, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>) -> Result<u64, Error> {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut ops = gpu.record(&mut encoder);
    record(&mut ops)?;
    let count = ops.dispatch_count();
    drop(ops);
    gpu.queue().submit([encoder.finish()]);
    Ok(count)
}

/// The dispatches that it takes, recorded and not run.
pub fn counted(gpu: &Gpu, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>) -> Result<u64, Error> {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut ops = gpu.record(&mut encoder);
    record(&mut ops)?;
    Ok(ops.dispatch_count())
}

/// The error of something that has to fail before it records anything.
pub fn refused(gpu: &Gpu, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>) -> Result<Error, Failed> {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut ops = gpu.record(&mut encoder);
    match record(&mut ops) {
        Err(error) if ops.dispatch_count() == 0 => Ok(error),
        Err(error) => Err(format!("{error}: after {} dispatches", ops.dispatch_count()).into()),
        Ok(()) => Err("not refused".into()),
    }
}
