//! The unsafe code of the crate.
#![expect(unsafe_code, reason = "shader modules without loop bounding; the block says why it is sound")]

use crate::kernel::Module;

/// A shader module without naga's loop counters.
///
/// naga bounds every loop by a counter, which keeps drivers from unrolling: an 8x8 register tile has 22 %
/// multiply-adds in its hottest block with the counters and 70 % without, on AMD RDNA3. All other checks stay on.
pub(crate) fn shader_module(device: &wgpu::Device, module: Module, immediates: bool) -> wgpu::ShaderModule {
    let source = if immediates { module.source().into() } else { module.uniform_source().into() };
    let label = format!("weightnorm.{}", module.name());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(source) };
    let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
    // SAFETY: without `force_loop_bounding` a loop that never ends is undefined behaviour. The source is always one
    // of this crate's own, since a `Module` names no other; each of its loops counts towards a bound that was known
    // when it was entered, which stands as a comment beside the loop, and the host keeps the parameters such that
    // the bounds of an invocation add up to at most `kernel::MAX_ITERATIONS`.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}
