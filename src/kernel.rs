//! Private plumbing: shader modules, pipelines, and the recording of one dispatch.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::source::Module;
use crate::{Error, Gpu, Parameters, trusted};

/// No invocation may loop more often than this, all its loops together: lavapipe silently stops it after 65,535.
pub(crate) const MAX_ITERATIONS: u64 = 60_000;

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
use Access::{Read, Write};

/// An entry point and the storage buffers it binds, in the order in which [`Dispatch::buffers`] lists them.
#[derive(Debug)]
#[doc(hidden)]
pub struct Kernel {
    pub entry: &'static str,
    /// [`Module::file`] of the modules that have it.
    pub file: &'static str,
    pub bindings: &'static [(u32, Access)],
}

pub static ROW_SUMS: Kernel = Kernel {
    entry: "row_sums",
    file: "weight/norms",
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Write), (4, Write), (5, Read), (6, Read)],
};
pub static COLUMN_SUMS: Kernel =
    Kernel { entry: "column_sums", file: "weight/norms", bindings: &[(0, Read), (2, Write), (5, Read)] };
pub static FINISH_SUMS: Kernel = Kernel {
    entry: "finish_sums",
    file: "weight/norms",
    bindings: &[(1, Read), (2, Write), (3, Write), (4, Write), (6, Read)],
};
pub static KNOWN_NORMS: Kernel =
    Kernel { entry: "known_norms", file: "weight/norms", bindings: &[(1, Read), (3, Write), (4, Write), (6, Read)] };
pub static NORMALIZE: Kernel =
    Kernel { entry: "normalize", file: "weight/normalize", bindings: &[(0, Read), (1, Read), (2, Write)] };
pub static NORMALIZE_IN_PLACE: Kernel =
    Kernel { entry: "normalize_in_place", file: "weight/normalize", bindings: &[(1, Read), (2, Write)] };
pub static NORMALIZE_BACKWARD: Kernel = Kernel {
    entry: "normalize_backward",
    file: "weight/normalize",
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Read)],
};
pub static NORMALIZE_QUADS: Kernel = Kernel {
    entry: "normalize_quads",
    file: "weight/normalize_quads",
    bindings: &[(0, Read), (1, Read), (2, Write), (4, Read)],
};
pub static NORMALIZE_QUADS_IN_PLACE: Kernel = Kernel {
    entry: "normalize_quads_in_place",
    file: "weight/normalize_quads",
    bindings: &[(1, Read), (2, Write), (4, Read)],
};
pub static NORMALIZE_QUADS_BACKWARD: Kernel = Kernel {
    entry: "normalize_quads_backward",
    file: "weight/normalize_quads",
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Read), (4, Read)],
};
pub static NORMALIZE_ROWS: Kernel =
    Kernel { entry: "normalize_rows", file: "weight/normalize_rows", bindings: &[(0, Read), (1, Read), (2, Write)] };
pub static LINEAR_WHOLE: Kernel = Kernel {
    entry: "linear",
    file: "product/linear",
    bindings: &[(0, Read), (1, Read), (2, Read), (3, Read), (4, Read), (5, Write), (6, Write), (7, Write)],
};
pub static LINEAR_PARTIAL: Kernel = Kernel {
    entry: "linear_partial",
    file: "product/linear",
    bindings: &[(0, Read), (1, Read), (4, Read), (8, Write)],
};
pub static LINEAR_FINISH: Kernel = Kernel {
    entry: "linear_finish",
    file: "product/linear",
    bindings: &[(2, Read), (3, Read), (4, Read), (5, Write), (6, Write), (7, Write), (8, Write)],
};
pub static GRADIENT: Kernel = Kernel {
    entry: "gradient",
    file: "product/gradient",
    bindings: &[(0, Read), (1, Read), (2, Read), (5, Write), (6, Read)],
};
pub static GRADIENT_PARTIAL: Kernel = Kernel {
    entry: "gradient_partial",
    file: "product/gradient",
    bindings: &[(0, Read), (1, Read), (2, Read), (8, Write)],
};
pub static GRADIENT_FINISH: Kernel = Kernel {
    entry: "gradient_finish",
    file: "product/gradient",
    bindings: &[(2, Read), (5, Write), (6, Read), (8, Write)],
};
pub static BATCH_SUMS: Kernel = Kernel {
    entry: "batch_sums",
    file: "batch/statistics",
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Write), (4, Write), (5, Write), (6, Read), (7, Read)],
};
pub static BATCH_FINISH: Kernel = Kernel {
    entry: "batch_finish",
    file: "batch/statistics",
    bindings: &[(2, Write), (3, Write), (4, Write), (5, Write), (6, Read), (7, Read)],
};
pub static SUBTRACT_MEANS: Kernel = Kernel {
    entry: "subtract_means",
    file: "batch/statistics",
    bindings: &[(0, Read), (1, Read), (6, Read), (7, Write)],
};
const STEP: &[(u32, Access)] =
    &[(0, Write), (1, Read), (2, Write), (3, Write), (4, Write), (5, Read), (6, Write), (7, Write)];
pub static OPTIMIZER: Kernel = Kernel { entry: "optimizer", file: "optimizer/words", bindings: STEP };
pub static OPTIMIZER_ROWS: Kernel = Kernel { entry: "optimizer_rows", file: "optimizer/words", bindings: STEP };

pub static SET_ROWS: Kernel = Kernel {
    entry: "set_rows",
    file: "weight/set",
    bindings: &[(0, Read), (1, Read), (2, Read), (3, Read), (4, Write), (5, Write), (6, Write)],
};
pub static SET_COLUMNS: Kernel =
    Kernel { entry: "set_columns", file: "weight/set", bindings: &[(0, Read), (1, Read), (2, Read), (4, Write)] };
pub static SET_FINISH: Kernel = Kernel {
    entry: "set_finish",
    file: "weight/set",
    bindings: &[(0, Read), (3, Read), (4, Write), (5, Write), (6, Write)],
};
pub static SET_RESCALE: Kernel = Kernel {
    entry: "set_rescale",
    file: "weight/set",
    bindings: &[(0, Read), (1, Read), (2, Read), (5, Read), (7, Write)],
};

pub static PROBE_COPY: Kernel = Kernel { entry: "probe_copy", file: "probe", bindings: &[(0, Read), (1, Write)] };
pub static PROBE_READ: Kernel = Kernel { entry: "probe_read", file: "probe", bindings: &[(0, Read), (2, Write)] };
pub static PROBE_MULTIPLY_ADD: Kernel = Kernel { entry: "probe_multiply_add", file: "probe", bindings: &[(2, Write)] };
pub static OPTIMIZER_QUADS: Kernel = Kernel { entry: "optimizer_quads", file: "optimizer/quads", bindings: STEP };

/// Every module, for tests and other compilers.
#[doc(hidden)]
pub fn modules() -> Vec<Module> {
    let mut all = vec![crate::profile::PROBE];
    all.extend(crate::norms::MODULES);
    all.extend(crate::normalize::MODULES);
    all.extend(crate::set::MODULES);
    all.extend(crate::batch::MODULES);
    all.extend(crate::optimizer::MODULES);
    all.extend(crate::product::modules());
    all
}

/// Every kernel, for the tests of the binding tables.
#[doc(hidden)]
pub static KERNELS: [&Kernel; 30] = [
    &ROW_SUMS,
    &COLUMN_SUMS,
    &FINISH_SUMS,
    &KNOWN_NORMS,
    &NORMALIZE,
    &NORMALIZE_IN_PLACE,
    &NORMALIZE_BACKWARD,
    &NORMALIZE_QUADS,
    &NORMALIZE_QUADS_IN_PLACE,
    &NORMALIZE_QUADS_BACKWARD,
    &NORMALIZE_ROWS,
    &LINEAR_WHOLE,
    &LINEAR_PARTIAL,
    &LINEAR_FINISH,
    &GRADIENT,
    &GRADIENT_PARTIAL,
    &GRADIENT_FINISH,
    &BATCH_SUMS,
    &BATCH_FINISH,
    &SUBTRACT_MEANS,
    &OPTIMIZER,
    &OPTIMIZER_ROWS,
    &OPTIMIZER_QUADS,
    &SET_ROWS,
    &SET_COLUMNS,
    &SET_FINISH,
    &SET_RESCALE,
    &PROBE_COPY,
    &PROBE_READ,
    &PROBE_MULTIPLY_ADD,
];

pub(crate) type Constants = Vec<(&'static str, u32)>;

/// What identifies a pipeline: the kernel by its entry point, the module, the override constants.
type Key = (&'static str, Module, Constants);

pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub label: String,
}

/// A pipeline, once it is built. Locked while it is: whoever wants the same one waits instead of building it too.
type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// Pipelines, built once per variant and kept.
pub(crate) struct Pipelines {
    /// The caller's.
    cache: Option<wgpu::PipelineCache>,
    modules: Mutex<HashMap<Module, wgpu::ShaderModule>>,
    slots: Mutex<HashMap<Key, Slot>>,
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
    pub fn get(
        &self,
        gpu: &Gpu,
        kernel: &'static Kernel,
        module: Module,
        constants: &Constants,
    ) -> Result<Arc<Pipeline>, Error> {
        let key = (kernel.entry, module, constants.clone());
        let slot = self.slots.lock().expect("no panic while held").entry(key).or_default().clone();
        let mut built = slot.lock().expect("no panic while held");
        if let Some(pipeline) = &*built {
            return Ok(pipeline.clone());
        }
        let (device, parameters) = (gpu.device(), gpu.parameters());
        let made = gpu.guarded("a pipeline", 0, || {
            let shader = self.module(device, parameters, module);
            let reversed = parameters == Parameters::Reversed && !module.by_subgroups();
            let constants = if reversed { &[&constants[..], &[("REVERSED", 1)]].concat() } else { constants };
            build(device, gpu.immediates(), kernel, module, constants, &shader, self.cache.as_ref())
        });
        if made.is_err() {
            self.modules.lock().expect("no panic while held").remove(&module);
        }
        Ok(built.insert(Arc::new(made?)).clone())
    }

    /// Pipelines built so far.
    pub fn count(&self) -> usize {
        let slots: Vec<Slot> = self.slots.lock().expect("no panic while held").values().cloned().collect();
        slots.iter().filter(|slot| slot.lock().expect("no panic while held").is_some()).count()
    }

    fn module(&self, device: &wgpu::Device, parameters: Parameters, module: Module) -> wgpu::ShaderModule {
        let mut modules = self.modules.lock().expect("no panic while held");
        modules.entry(module).or_insert_with(|| trusted::shader_module(device, module, parameters)).clone()
    }
}

fn build(
    device: &wgpu::Device,
    immediates: bool,
    kernel: &'static Kernel,
    module: Module,
    constants: &Constants,
    shader: &wgpu::ShaderModule,
    cache: Option<&wgpu::PipelineCache>,
) -> Pipeline {
    let label = constants.iter().fold(format!("weightnorm.{}.{}", module.name(), kernel.entry), |l, (name, value)| {
        format!("{l}.{name}={value}")
    });
    let buffer = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let storage = |&(binding, access): &(u32, Access)| {
        buffer(binding, wgpu::BufferBindingType::Storage { read_only: access == Read })
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
        immediate_size: if immediates { MAX_PARAMS } else { 0 },
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

/// Bytes of parameters that a dispatch may have: what wgpu's WebGPU feature grants at least.
pub(crate) const MAX_PARAMS: u32 = 64;

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
