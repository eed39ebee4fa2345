//! The unsafe code of the crate.
#![expect(unsafe_code, reason = "shader modules without loop bounding; the block says why it is sound")]

use crate::ParameterPassing;
use crate::source::{Module, Shared};

const UNCHECKED: [&str; 6] =
    ["product/linear", "product/conv", "product/gradient", "product/cell", "product/cell_gradient", "weight/held_rows"];

/// A shader module without naga's loop counters and, for those named below, without its index checks.
///
/// naga bounds every loop by a counter, which keeps drivers from unrolling: an 8x8 register tile has 22 %
/// multiply-adds in its hottest block with the counters and 70 % without, on AMD RDNA3; 79 % without index checks too.
pub(crate) fn shader_module(
    device: &wgpu::Device,
    module: Module,
    shared: Shared,
    parameters: ParameterPassing,
) -> wgpu::ShaderModule {
    let source = match parameters {
        ParameterPassing::Auto => module.source(shared),
        ParameterPassing::Uniform | ParameterPassing::Reversed => module.uniform_source(shared),
    };
    let label = format!("weightnorm.{}", module.name());
    let descriptor =
        wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(source.into()) };
    let checks = wgpu::ShaderRuntimeChecks {
        bounds_checks: !UNCHECKED.contains(&module.file),
        force_loop_bounding: false,
        ..wgpu::ShaderRuntimeChecks::checked()
    };
    // SAFETY: the source is always one of this crate's own, since a `Module` names no other. Without
    // `force_loop_bounding` a loop that never ends is undefined behaviour: each loop counts towards a bound that was
    // known when it was entered, which stands as a comment beside the loop, and the host keeps the parameters such that
    // the bounds of an invocation add up to at most `windows::MAX_ITERATIONS`. Without `bounds_checks` an index past
    // the end of a buffer or an array is: in the products every index into a buffer is that of a row, column and step
    // that `left_of`, a comparison or a clamp found to be there (u is read where y is written), the host binds what the
    // rows, columns and steps of the parameters take up (of convolutions all elements from the first to the last image, group and channel of a region:
    // a window or a weight is read at the first element of its channel or of v where a comparison found it not to be
    // there, a residual where y is written, a condition at both halves of that, α at a channel that is there; of
    // recurrent cells all gates of the rows of a dispatch, which has all columns), and the indices into arrays follow
    // from constants. In `held_rows` an item is one of `count`, from the parameters or from a
    // table that the host alone writes and binds that many items of; an invocation has quads of a row below the item's
    // `count`, none past its end (`first + k * run` with k below its own `count`, or the row's first one), and the host
    // binds all rows of all items, and g for them.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}
