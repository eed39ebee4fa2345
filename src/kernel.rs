//! Kernels as the host knows them, and the pipelines made of them.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::scope::Scopes;
use crate::source::{Module, Shared};
use crate::{Error, ParameterPassing, unchecked};

const UNIFORM_BINDING: u32 = 15;
/// Binding numbers in use: below this.
pub(crate) const MAX_BINDINGS: u64 = UNIFORM_BINDING as u64 + 1;

/// How a kernel uses a storage buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub enum Access {
    Read,
    Write,
}
/// An entry point and the storage buffers it binds, in the order in which
/// [`Dispatch::buffers`](crate::record::Dispatch::buffers) lists them.
#[derive(Debug)]
#[doc(hidden)]
pub struct Kernel {
    pub entry: &'static str,
    /// [`Module::file`] of the modules that have it.
    pub file: &'static str,
    pub bindings: &'static [(u32, Access)],
    /// Invocations of a workgroup, as the host counts on them; none where it sets them by constants.
    pub threads: Option<u64>,
    /// Of [`Dispatch::params`](crate::record::Dispatch::params).
    pub params: &'static [Field],
}

impl Kernel {
    /// Bytes of its parameters.
    pub(crate) fn param_bytes(&self) -> u32 {
        self.params.last().map_or(0, |field| field.offset as u32 + 4)
    }
}

/// A field of the parameters of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub struct Field {
    pub name: &'static str,
    /// `u32` or `f32`.
    pub scalar: &'static str,
    pub offset: usize,
}

/// Declares the parameters of kernels, named as in the shader's `Params`, and the list of their fields beside them.
macro_rules! params {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($field:ident: $scalar:ident,)* }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        $visibility struct $name {
            $(pub(crate) $field: $scalar),*
        }

        impl $name {
            pub(crate) const FIELDS: &'static [$crate::kernel::Field] = &[$($crate::kernel::Field {
                name: stringify!($field),
                scalar: stringify!($scalar),
                offset: std::mem::offset_of!($name, $field),
            }),*];
        }
    };
}
pub(crate) use params;

/// Declares kernels, and `KERNELS`, the list of them: file and entry point, [`Kernel::threads`], parameters, bindings.
macro_rules! kernels {
    ($($name:ident = $file:literal $entry:literal, $threads:expr, $params:ident, [$($binding:literal $access:ident),*];)*) => {
        $(pub(crate) static $name: $crate::kernel::Kernel = $crate::kernel::Kernel {
            entry: $entry,
            file: $file,
            bindings: &[$(($binding, $crate::kernel::Access::$access)),*],
            threads: $threads,
            params: $params::FIELDS,
        };)*
        pub(crate) static KERNELS: &[&$crate::kernel::Kernel] = &[$(&$name),*];
    };
}
pub(crate) use kernels;

pub(crate) type Constants = Vec<(&'static str, u32)>;

/// What a pipeline is made of.
pub(crate) struct Variant<'a> {
    pub kernel: &'static Kernel,
    pub module: Module,
    pub shared: Shared,
    pub constants: &'a Constants,
}

/// The kernel by its entry point, and the rest of its [`Variant`].
type PipelineKey = (&'static str, Module, Shared, Constants);

pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub label: String,
}

/// A pipeline, once it is built. Locked while it is: whoever wants the same one waits instead of building it too.
type PipelineSlot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// What pipelines are built with.
pub(crate) struct Build<'a> {
    pub device: &'a wgpu::Device,
    pub scopes: &'a Scopes,
    pub parameters: ParameterPassing,
}

/// Pipelines, built once per variant and kept.
pub(crate) struct Pipelines {
    /// The caller's.
    cache: Option<wgpu::PipelineCache>,
    modules: Mutex<HashMap<(Module, Shared), wgpu::ShaderModule>>,
    slots: Mutex<HashMap<PipelineKey, PipelineSlot>>,
}

impl Pipelines {
    pub fn new(cache: Option<wgpu::PipelineCache>) -> Self {
        Pipelines { cache, modules: Mutex::default(), slots: Mutex::default() }
    }

    /// The caller's, if there is one.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn cache(&self) -> Option<&wgpu::PipelineCache> {
        self.cache.as_ref()
    }

    /// Has all built anew.
    pub fn forget(&self) {
        self.modules.lock().expect("no panic while held").clear();
        self.slots.lock().expect("no panic while held").clear();
    }

    /// What failed to be built, for want of memory say, is not kept.
    pub fn get(&self, on: &Build<'_>, variant: &Variant<'_>) -> Result<Arc<Pipeline>, Error> {
        let &Variant { kernel, module, shared, constants } = variant;
        let key = (kernel.entry, module, shared, constants.clone());
        let slot = self.slots.lock().expect("no panic while held").entry(key).or_default().clone();
        let mut built = slot.lock().expect("no panic while held");
        if let Some(pipeline) = &*built {
            return Ok(pipeline.clone());
        }
        let &Build { device, scopes, parameters } = on;
        let made = scopes.scoped(device, "a pipeline", 0, || {
            let shader = self.module(device, parameters, module, shared);
            let reversed = parameters == ParameterPassing::Reversed && !module.by_subgroups();
            let constants = if reversed { &[&constants[..], &[("REVERSED", 1)]].concat() } else { constants };
            let variant = Variant { constants, ..*variant };
            build(device, parameters == ParameterPassing::Auto, &variant, &shader, self.cache.as_ref())
        });
        if made.is_err() {
            self.modules.lock().expect("no panic while held").remove(&(module, shared));
        }
        Ok(built.insert(Arc::new(made?)).clone())
    }

    /// Pipelines built so far.
    pub fn count(&self) -> usize {
        let slots: Vec<PipelineSlot> = self.slots.lock().expect("no panic while held").values().cloned().collect();
        slots.iter().filter(|slot| slot.lock().expect("no panic while held").is_some()).count()
    }

    fn module(
        &self,
        device: &wgpu::Device,
        parameters: ParameterPassing,
        module: Module,
        shared: Shared,
    ) -> wgpu::ShaderModule {
        let mut modules = self.modules.lock().expect("no panic while held");
        let make = || unchecked::shader_module(device, module, shared, parameters);
        modules.entry((module, shared)).or_insert_with(make).clone()
    }
}

/// What profiles and debuggers call a variant.
pub(crate) fn label(kernel: &Kernel, module: Module, constants: &Constants) -> String {
    let name = format!("weightnorm.{}.{}", module.name(), kernel.entry);
    constants.iter().fold(name, |label, (constant, value)| format!("{label}.{constant}={value}"))
}

fn build(
    device: &wgpu::Device,
    immediates: bool,
    &Variant { kernel, module, shared, constants }: &Variant<'_>,
    shader: &wgpu::ShaderModule,
    cache: Option<&wgpu::PipelineCache>,
) -> Pipeline {
    let label = label(kernel, module, constants);
    let buffer = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let storage = |&(binding, access): &(u32, Access)| {
        buffer(binding, wgpu::BufferBindingType::Storage { read_only: access == Access::Read && !shared.has(binding) })
    };
    let mut entries: Vec<_> = kernel.bindings.iter().map(storage).collect();
    if !immediates {
        entries.push(buffer(UNIFORM_BINDING, wgpu::BufferBindingType::Uniform));
    }
    let layout =
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(&label),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: if immediates { kernel.param_bytes().next_multiple_of(4) } else { 0 },
    });
    let constants: Vec<_> = constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&label),
        layout: Some(&pipeline_layout),
        module: shader,
        entry_point: Some(kernel.entry),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &constants,
            // Every word of workgroup memory is written before it is read, but for columns past an edge, whose results
            // are dropped.
            zero_initialize_workgroup_memory: false,
        },
        cache,
    });
    Pipeline { pipeline, layout, label }
}

/// Bytes of parameters that a dispatch may have: what Vulkan, Metal and DX12 grant as immediates.
pub(crate) const MAX_PARAMS: u32 = 128;

/// Bytes of immediates that a device with them grants at least, as in WebGPU. Kernels with more of parameters take them
/// from a uniform buffer where a device grants no more.
pub(crate) const LEAST_IMMEDIATES: u32 = 64;

/// The uniform buffer's binding number, for a bind group entry.
pub(crate) fn uniform_entry(buffer: &wgpu::Buffer) -> wgpu::BindGroupEntry<'_> {
    wgpu::BindGroupEntry { binding: UNIFORM_BINDING, resource: buffer.as_entire_binding() }
}

/// Workgroups along the three dimensions for `groups` of them, the fewest more than that; the shaders count them
/// flat and leave the surplus idle.
pub(crate) fn grid(groups: u64, per_dimension: u32) -> [u32; 3] {
    let limit = u64::from(per_dimension);
    let z = groups.div_ceil(limit * limit).max(1);
    let y = groups.div_ceil(z).div_ceil(limit).max(1);
    let x = groups.div_ceil(z).div_ceil(y).max(1);
    [x as u32, y as u32, z as u32]
}

#[cfg(test)]
mod tests {
    use super::grid;

    #[test]
    fn grid_covers_and_wastes_little() {
        for limit in [64, 65_535] {
            for groups in [1, 2, 63, 64, 65, 4_095, 4_097, 65_535, 65_536, 200_000, 262_144] {
                let [x, y, z] = grid(groups, limit);
                let all = u64::from(x) * u64::from(y) * u64::from(z);
                assert!(x <= limit && y <= limit && z <= limit, "{groups} in {x} {y} {z}");
                assert!(all >= groups && all - groups < u64::from(y) * u64::from(z) + 64, "{groups} in {x} {y} {z}");
            }
        }
    }
}
