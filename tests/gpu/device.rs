//! Devices with other limits, and recording by hand.
use weightnorm::{Error, Gpu, Options, Parameters, Recorder};

use crate::Failed;

/// A device of the caller's on the adapter of `gpu`, with the limits that `change` leaves.
pub fn limited(gpu: &Gpu, change: impl FnOnce(&mut wgpu::Limits)) -> Result<Gpu, Failed> {
    let report = gpu.report();
    let backends = wgpu::Backends::from(report.info.backend);
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.backends = backends;
    let adapters = pollster::block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
    let adapter = adapters.into_iter().find(|a| a.get_info().name == report.info.name);
    let adapter = adapter.ok_or("the adapter is gone")?;
    let wanted = Gpu::wanted(&adapter);
    let mut required_limits = wanted.limits;
    change(&mut required_limits);
    let descriptor =
        wgpu::DeviceDescriptor { required_features: wanted.features, required_limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    let parameters = if report.immediates { Parameters::Auto } else { Parameters::Uniform };
    Ok(Gpu::from_wgpu(device, queue, Options::default().parameters(parameters).kind(gpu.traits().kind))?)
}

/// Bindings of 1 MiB and 64 workgroups in a dimension.
pub fn small(gpu: &Gpu) -> Result<Gpu, Failed> {
    limited(gpu, |limits| {
        limits.max_storage_buffer_binding_size = 1 << 20;
        limits.max_compute_workgroups_per_dimension = 64;
    })
}

/// Bindings of 8 KiB and 27 workgroups in a dispatch: windows everywhere.
pub fn tiny(gpu: &Gpu) -> Result<Gpu, Failed> {
    limited(gpu, |limits| {
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
