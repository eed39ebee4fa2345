//! Private plumbing: shader modules, pipelines, and the recording of one dispatch.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::trusted;

/// No invocation may loop more often than this, all its loops together: lavapipe silently stops it after 65,535.
pub(crate) const MAX_ITERATIONS: u64 = 60_000;

/// The line of each shader that declares the parameters of a dispatch, and what stands there on a device without
/// immediates.
const IMMEDIATE: &str = "var<immediate> p: Params;";
const UNIFORM: &str = "@group(0) @binding(15) var<uniform> p: Params;";
const UNIFORM_BINDING: u32 = 15;
/// Binding numbers in use: below this.
pub(crate) const MAX_BINDINGS: u64 = UNIFORM_BINDING as u64 + 1;

macro_rules! joined {
    ($($file:literal),*) => { concat!($(include_str!(concat!("../shaders/", $file)), "\n"),*) };
}

/// A complete WGSL module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Module {
    NormsWords,
    NormsQuads,
    Normalize,
    NormalizeQuads,
    NormalizeRows,
    LinearWords,
    LinearHalves,
    GradientWords,
    GradientHalves,
    BatchWords,
    BatchQuads,
    Optimizer,
    OptimizerQuads,
}

impl Module {
    pub const ALL: [Module; 13] = [
        Module::NormsWords,
        Module::NormsQuads,
        Module::Normalize,
        Module::NormalizeQuads,
        Module::NormalizeRows,
        Module::LinearWords,
        Module::LinearHalves,
        Module::GradientWords,
        Module::GradientHalves,
        Module::BatchWords,
        Module::BatchQuads,
        Module::Optimizer,
        Module::OptimizerQuads,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Module::NormsWords => "norms_words",
            Module::NormsQuads => "norms_quads",
            Module::Normalize => "normalize",
            Module::NormalizeQuads => "normalize_quads",
            Module::NormalizeRows => "normalize_rows",
            Module::LinearWords => "linear_words",
            Module::LinearHalves => "linear_halves",
            Module::GradientWords => "gradient_words",
            Module::GradientHalves => "gradient_halves",
            Module::BatchWords => "batch_words",
            Module::BatchQuads => "batch_quads",
            Module::Optimizer => "optimizer",
            Module::OptimizerQuads => "optimizer_quads",
        }
    }

    /// The WGSL with the parameters as immediates.
    pub fn source(self) -> &'static str {
        match self {
            Module::NormsWords => joined!("numbers.wgsl", "norms_words.wgsl", "norms.wgsl"),
            Module::NormsQuads => joined!("numbers.wgsl", "norms_quads.wgsl", "norms.wgsl"),
            Module::Normalize => joined!("numbers.wgsl", "normalize.wgsl"),
            Module::NormalizeQuads => joined!("numbers.wgsl", "normalize_quads.wgsl"),
            Module::NormalizeRows => joined!("numbers.wgsl", "normalize_rows.wgsl"),
            Module::LinearWords => {
                joined!("numbers.wgsl", "out_words.wgsl", "tile.wgsl", "parts.wgsl", "linear.wgsl")
            }
            Module::LinearHalves => {
                joined!("numbers.wgsl", "out_halves.wgsl", "tile.wgsl", "parts.wgsl", "linear.wgsl")
            }
            Module::GradientWords => {
                joined!("numbers.wgsl", "out_words.wgsl", "tile.wgsl", "parts.wgsl", "gradient.wgsl")
            }
            Module::GradientHalves => {
                joined!("numbers.wgsl", "out_halves.wgsl", "tile.wgsl", "parts.wgsl", "gradient.wgsl")
            }
            Module::BatchWords => joined!("numbers.wgsl", "batch_words.wgsl", "batch.wgsl"),
            Module::BatchQuads => joined!("numbers.wgsl", "batch_quads.wgsl", "batch.wgsl"),
            Module::Optimizer => joined!("numbers.wgsl", "optimizer_steps.wgsl", "optimizer.wgsl"),
            Module::OptimizerQuads => joined!("numbers.wgsl", "optimizer_steps.wgsl", "optimizer_quads.wgsl"),
        }
    }

    /// The WGSL with the parameters as a uniform buffer.
    pub fn uniform_source(self) -> String {
        self.source().replace(IMMEDIATE, UNIFORM)
    }
}

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
    pub modules: &'static [Module],
    pub bindings: &'static [(u32, Access)],
}

const NORMS: &[Module] = &[Module::NormsWords, Module::NormsQuads];
const BATCH: &[Module] = &[Module::BatchWords, Module::BatchQuads];
const LINEAR: &[Module] = &[Module::LinearWords, Module::LinearHalves];
const GRADIENTS: &[Module] = &[Module::GradientWords, Module::GradientHalves];

pub static ROW_SUMS: Kernel = Kernel {
    entry: "row_sums",
    modules: NORMS,
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Write), (4, Write), (5, Read), (6, Read)],
};
pub static COLUMN_SUMS: Kernel =
    Kernel { entry: "column_sums", modules: NORMS, bindings: &[(0, Read), (2, Write), (5, Read)] };
pub static FINISH_SUMS: Kernel = Kernel {
    entry: "finish_sums",
    modules: NORMS,
    bindings: &[(1, Read), (2, Write), (3, Write), (4, Write), (6, Read)],
};
pub static KNOWN_NORMS: Kernel =
    Kernel { entry: "known_norms", modules: NORMS, bindings: &[(1, Read), (3, Write), (4, Write), (6, Read)] };
pub static NORMALIZE: Kernel =
    Kernel { entry: "normalize", modules: &[Module::Normalize], bindings: &[(0, Read), (1, Read), (2, Write)] };
pub static NORMALIZE_IN_PLACE: Kernel =
    Kernel { entry: "normalize_in_place", modules: &[Module::Normalize], bindings: &[(1, Read), (2, Write)] };
pub static NORMALIZE_BACKWARD: Kernel = Kernel {
    entry: "normalize_backward",
    modules: &[Module::Normalize],
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Read)],
};
pub static NORMALIZE_QUADS: Kernel = Kernel {
    entry: "normalize_quads",
    modules: &[Module::NormalizeQuads],
    bindings: &[(0, Read), (1, Read), (2, Write)],
};
pub static NORMALIZE_QUADS_IN_PLACE: Kernel = Kernel {
    entry: "normalize_quads_in_place",
    modules: &[Module::NormalizeQuads],
    bindings: &[(1, Read), (2, Write)],
};
pub static NORMALIZE_QUADS_BACKWARD: Kernel = Kernel {
    entry: "normalize_quads_backward",
    modules: &[Module::NormalizeQuads],
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Read)],
};
pub static NORMALIZE_ROWS: Kernel = Kernel {
    entry: "normalize_rows",
    modules: &[Module::NormalizeRows],
    bindings: &[(0, Read), (1, Read), (2, Write)],
};
pub static LINEAR_WHOLE: Kernel = Kernel {
    entry: "linear",
    modules: LINEAR,
    bindings: &[(0, Read), (1, Read), (2, Read), (3, Read), (4, Read), (5, Write), (6, Write), (7, Write)],
};
pub static LINEAR_PARTIAL: Kernel =
    Kernel { entry: "linear_partial", modules: LINEAR, bindings: &[(0, Read), (1, Read), (4, Read), (8, Write)] };
pub static LINEAR_FINISH: Kernel = Kernel {
    entry: "linear_finish",
    modules: LINEAR,
    bindings: &[(2, Read), (3, Read), (4, Read), (5, Write), (6, Write), (7, Write), (8, Write)],
};
pub static GRADIENT: Kernel = Kernel {
    entry: "gradient",
    modules: GRADIENTS,
    bindings: &[(0, Read), (1, Read), (2, Read), (3, Read), (4, Read), (5, Write), (6, Read)],
};
pub static GRADIENT_PARTIAL: Kernel = Kernel {
    entry: "gradient_partial",
    modules: GRADIENTS,
    bindings: &[(0, Read), (1, Read), (2, Read), (3, Read), (8, Write)],
};
pub static GRADIENT_FINISH: Kernel = Kernel {
    entry: "gradient_finish",
    modules: GRADIENTS,
    bindings: &[(2, Read), (3, Read), (4, Read), (5, Write), (6, Read), (8, Write)],
};
pub static BATCH_SUMS: Kernel = Kernel {
    entry: "batch_sums",
    modules: BATCH,
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Write), (4, Write), (5, Write)],
};
pub static BATCH_FINISH: Kernel =
    Kernel { entry: "batch_finish", modules: BATCH, bindings: &[(2, Write), (3, Write), (4, Write), (5, Write)] };
pub static SUBTRACT_MEANS: Kernel =
    Kernel { entry: "subtract_means", modules: BATCH, bindings: &[(0, Read), (1, Read), (6, Read), (7, Write)] };
const STEP: &[(u32, Access)] =
    &[(0, Write), (1, Read), (2, Write), (3, Write), (4, Write), (5, Read), (6, Write), (7, Write)];
pub static OPTIMIZER: Kernel = Kernel { entry: "optimizer", modules: &[Module::Optimizer], bindings: STEP };
pub static OPTIMIZER_ROWS: Kernel = Kernel { entry: "optimizer_rows", modules: &[Module::Optimizer], bindings: STEP };
pub static OPTIMIZER_QUADS: Kernel =
    Kernel { entry: "optimizer_quads", modules: &[Module::OptimizerQuads], bindings: STEP };

/// Every kernel, for the tests of the binding tables.
#[doc(hidden)]
pub static KERNELS: [&Kernel; 23] = [
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
];

pub(crate) type Constants = Vec<(&'static str, u32)>;

/// What identifies a pipeline: the kernel by its entry point, the module, the override constants.
type Key = (&'static str, Module, Constants);

pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub label: String,
}

/// Pipelines, built once per variant and kept.
#[derive(Default)]
pub(crate) struct Pipelines {
    modules: Mutex<HashMap<Module, wgpu::ShaderModule>>,
    built: Mutex<HashMap<Key, Arc<Pipeline>>>,
}

impl Pipelines {
    pub fn get(
        &self,
        device: &wgpu::Device,
        immediates: bool,
        kernel: &'static Kernel,
        module: Module,
        constants: &Constants,
    ) -> Arc<Pipeline> {
        let key = (kernel.entry, module, constants.clone());
        if let Some(found) = self.built.lock().expect("no panic while held").get(&key) {
            return found.clone();
        }
        // Built outside of the lock: another thread may build the same one meanwhile, which does no harm.
        let shader = self.module(device, immediates, module);
        let pipeline = Arc::new(build(device, immediates, kernel, module, constants, &shader));
        self.built.lock().expect("no panic while held").entry(key).or_insert(pipeline).clone()
    }

    /// Pipelines built so far.
    pub fn count(&self) -> usize {
        self.built.lock().expect("no panic while held").len()
    }

    fn module(&self, device: &wgpu::Device, immediates: bool, module: Module) -> wgpu::ShaderModule {
        let mut modules = self.modules.lock().expect("no panic while held");
        modules.entry(module).or_insert_with(|| trusted::shader_module(device, module, immediates)).clone()
    }
}

fn build(
    device: &wgpu::Device,
    immediates: bool,
    kernel: &'static Kernel,
    module: Module,
    constants: &Constants,
    shader: &wgpu::ShaderModule,
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
        cache: None,
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
