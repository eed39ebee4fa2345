//! What the kernels need of a device, what is of use to them, and what it costs to lack that.
use crate::{DeviceError, Error, Options, ParameterPassing, adapter, kernel};

/// The smallest binding that every operator can be split over.
const MIN_BINDING: u64 = 8192;

/// What cooperative matrices take, beside subgroups.
pub(crate) const COOPERATIVE: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

const UNIFORM: &str = "each dispatch makes a small buffer, a quarter of the time of a small operator";
const PRODUCTS_ON_CPU: &str = "products take two to four times as long";

/// Features and limits that an owner of a device should ask for, as far as the adapter has them. See
/// [`Gpu::wanted`](crate::Gpu::wanted).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeviceRequirements {
    /// Optional features that are of use.
    pub features: wgpu::Features,
    /// The adapter's own limits: larger bindings mean fewer dispatches.
    pub limits: wgpu::Limits,
}

impl DeviceRequirements {
    pub(crate) fn of(adapter: &wgpu::Adapter) -> DeviceRequirements {
        DeviceRequirements { features: adapter.features() & USEFUL, limits: adapter.limits() }
    }
}

/// The features that are of use.
const USEFUL: wgpu::Features = wgpu::Features::IMMEDIATES
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::TIMESTAMP_QUERY)
    .union(wgpu::Features::PIPELINE_CACHE);

/// How a dispatch gets its parameters: `Auto` is immediates, since the device has them.
pub(crate) fn parameters(device: &wgpu::Device, asked: ParameterPassing) -> ParameterPassing {
    let immediates = device.features().contains(wgpu::Features::IMMEDIATES)
        && device.limits().max_immediate_size >= kernel::LEAST_IMMEDIATES;
    if asked == ParameterPassing::Auto && !immediates { ParameterPassing::Uniform } else { asked }
}

/// Refuses limits that the kernels do not fit.
pub(crate) fn check_limits(limits: &wgpu::Limits) -> Result<(), Error> {
    let unsupported = |what| Err(DeviceError::Unsupported { what }.into());
    for (what, has, needs) in [
        ("storage buffers in a stage", limits.max_storage_buffers_per_shader_stage, 8),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, 16_384),
        ("invocations in a workgroup", limits.max_compute_invocations_per_workgroup, 128),
        ("invocations along x", limits.max_compute_workgroup_size_x, 128),
        ("workgroups in a dimension", limits.max_compute_workgroups_per_dimension, 1),
        ("bindings in a bind group", limits.max_bindings_per_bind_group, kernel::MAX_BINDINGS as u32),
    ] {
        if has < needs {
            return unsupported(format!("{what}: it has {has}, {needs} are needed"));
        }
    }
    // Windows hold a few elements at least.
    let binding = limits.max_storage_buffer_binding_size;
    if binding < MIN_BINDING {
        return unsupported(format!("bindings of {MIN_BINDING} bytes, only of {binding}"));
    }
    // A place within a binding is handed to the shaders in 8 bits.
    let alignment = limits.min_storage_buffer_offset_alignment;
    if alignment > 256 {
        return unsupported(format!("bindings at multiples of 256 bytes, only of {alignment}"));
    }
    Ok(())
}

/// Refuses a device that cannot run the kernels as the options ask for.
pub(crate) fn check(device: &wgpu::Device, options: &Options) -> Result<(), Error> {
    let limits = device.limits();
    check_limits(&limits)?;
    let unsupported = |what| Err(DeviceError::Unsupported { what }.into());
    let (uniforms, bytes) = (limits.max_uniform_buffers_per_shader_stage, limits.max_uniform_buffer_binding_size);
    let fit = uniforms >= 1 && bytes >= u64::from(kernel::MAX_PARAMS);
    match options.parameter_passing {
        asked if parameters(device, asked) == ParameterPassing::Auto || fit => {}
        ParameterPassing::Auto => {
            let (least, size) = (kernel::LEAST_IMMEDIATES, kernel::MAX_PARAMS);
            let what = format!("room for parameters: {least} bytes of immediates, or a uniform buffer of {size}");
            return unsupported(what);
        }
        _ => return unsupported(format!("uniform buffers of {} bytes, which the options ask for", kernel::MAX_PARAMS)),
    }
    if options.pipeline_cache.is_some() && !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return unsupported("pipeline caches".to_owned());
    }
    Ok(())
}

/// What a device of a caller's lacks of [`DeviceRequirements`], and what that costs: a line for each.
pub(crate) fn lacks(device: &wgpu::Device) -> Vec<String> {
    let (info, has) = (device.adapter_info(), device.features());
    let adapter = adapter::like(&info);
    let can = adapter.as_ref().map_or(wgpu::Features::all(), wgpu::Adapter::features);
    let missing = (USEFUL & can) - has;
    let maybe = if adapter.is_none() { ", if the adapter has it" } else { "" };
    let on_cpu = info.device_type == wgpu::DeviceType::Cpu;
    let costs = [
        (
            "SUBGROUP",
            wgpu::Features::SUBGROUP,
            if on_cpu { PRODUCTS_ON_CPU } else { "products of few rows are slower" },
        ),
        ("IMMEDIATES", wgpu::Features::IMMEDIATES, UNIFORM),
        ("TIMESTAMP_QUERY", wgpu::Features::TIMESTAMP_QUERY, "profiles have the host's clock only"),
        ("PIPELINE_CACHE", wgpu::Features::PIPELINE_CACHE, "pipelines cannot be kept from run to run"),
    ];
    let costs = costs.into_iter().filter(|(_, feature, _)| missing.contains(*feature));
    let mut lines: Vec<_> = costs.map(|(name, _, cost)| format!("{name}{maybe}: {cost}")).collect();
    let Some(can) = adapter.map(|adapter| adapter.limits()) else { return lines };
    let has_limits = device.limits();
    let limits = |l: &wgpu::Limits| {
        [l.max_buffer_size, l.max_storage_buffer_binding_size, l.max_compute_workgroups_per_dimension.into()]
    };
    let names = [
        ("max_buffer_size", "larger tensors are refused"),
        ("max_storage_buffer_binding_size", "larger tensors take more dispatches"),
        ("max_compute_workgroups_per_dimension", "larger tensors take more dispatches"),
    ];
    for (((name, cost), has), can) in names.into_iter().zip(limits(&has_limits)).zip(limits(&can)) {
        if has < can {
            lines.push(format!("{name} of {can}, it has {has}: {cost}"));
        }
    }
    if has.contains(wgpu::Features::IMMEDIATES) && has_limits.max_immediate_size < kernel::LEAST_IMMEDIATES {
        lines.push(format!("max_immediate_size of {}: {UNIFORM}", kernel::LEAST_IMMEDIATES));
    }
    lines
}

/// Workgroups are lines of invocations.
pub(crate) fn workgroup_capacity(limits: &wgpu::Limits) -> u32 {
    limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
}

/// The numbers of vendors among PCI devices.
const NVIDIA: u32 = 0x10de;
pub(crate) const QUALCOMM: u32 = 0x5143;

/// The sides of the cooperative matrices of f16 with sums in f32 that `product/cooperative.wgsl` can use.
pub(crate) fn cooperative_sides(device: &wgpu::Device, options: &Options, lanes: u32) -> Vec<u32> {
    let (features, limits, info) = (device.features(), device.limits(), device.adapter_info());
    if !options.experimental.is_enabled() || !features.contains(COOPERATIVE | wgpu::Features::SUBGROUP) {
        return vec![];
    }
    // wgpu 30 asks for Vulkan's memory model with them, but does not say which memory invocations share, as that model
    // wants it (gfx-rs/wgpu#8805). On an H200 (NVIDIA 580.159) one of the tests failed and ten had not ended after two
    // minutes.
    if info.vendor == NVIDIA && info.backend == wgpu::Backend::Vulkan {
        return vec![];
    }
    let listed = |side| {
        options.cooperative_matrices.iter().any(|p| {
            use wgpu::CooperativeScalarType::{F16, F32};
            [p.m_size, p.n_size, p.k_size] == [side; 3] && (p.ab_type, p.cr_type) == (F16, F32)
        })
    };
    let threads = workgroup_capacity(&limits);
    let fits = |side: u32, bytes| {
        // An invocation has 2 to 32 rows of C, and stages a sixteenth of A and B or at least a quad of each.
        lanes.is_power_of_two()
            && (side * side / 32..=side * side / 2).contains(&lanes)
            && 4 * lanes <= threads
            && bytes <= limits.max_compute_workgroup_storage_size
    };
    // What the shader declares, in bytes: the tile of C, what is staged of A and B, three numbers a column.
    [(8, 5 << 10), (16, 16 << 10)]
        .into_iter()
        .filter(|&(side, bytes)| listed(side) && fits(side, bytes))
        .map(|(side, _)| side)
        .collect()
}
