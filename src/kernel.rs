//! Private plumbing: shader modules, pipelines, and the recording of one dispatch.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::walk::Word;
use crate::{Error, Gpu, Parameters, trusted};

/// No invocation may loop more often than this, all its loops together: lavapipe silently stops it after 65,535.
pub(crate) const MAX_ITERATIONS: u64 = 60_000;

/// The line of each shader that declares the parameters of a dispatch, and what stands there on a device without
/// immediates.
const IMMEDIATE: &str = "var<immediate> p: Params;";
const UNIFORM: &str = "@group(0) @binding(15) var<uniform> p: Params;";
const UNIFORM_BINDING: u32 = 15;
/// How an entry point begins, and its parameter with the number of the invocation.
const WORKGROUP_SIZE: &str = "@compute @workgroup_size(";
const INVOCATION: &str = "@builtin(local_invocation_index) t";
/// Binding numbers in use: below this.
pub(crate) const MAX_BINDINGS: u64 = UNIFORM_BINDING as u64 + 1;

macro_rules! shader {
    ($file:literal) => {
        include_str!(concat!("../shaders/", $file, ".wgsl"))
    };
}

/// A complete WGSL module: the files that are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Module {
    NormsWords,
    NormsQuads(Word),
    Normalize,
    NormalizeQuads(Word),
    NormalizeRows(Word, Held),
    NormalizeBlocks(Word, Held),
    /// `word`: of what is read or written in quads; [`Word::Short`] where nothing is.
    Product {
        ends: Ends,
        family: Family,
        reads: Reads,
        writes: Writes,
        word: Word,
    },
    BatchWords,
    BatchQuads(Word),
    Few(Word),
    Optimizer,
    OptimizerQuads(Word),
    SetWords,
    SetQuads(Word),
    Probe,
}

/// The quads that an invocation may hold, of which there are fewer: `held.wgsl`. What is done to each is written out there, and drivers
/// take long over calls that will turn out to be dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Held {
    Four = 4,
    Eight = 8,
    Sixteen = 16,
    ThirtyTwo = 32,
}

impl Held {
    /// For so many.
    pub(crate) fn of(quads: u64) -> Held {
        match quads {
            0..=4 => Held::Four,
            5..=8 => Held::Eight,
            9..=16 => Held::Sixteen,
            _ => Held::ThirtyTwo,
        }
    }

    /// Without the lines whose calls begin with a later quad.
    fn keep(self, source: &str) -> String {
        let late = |line: &str| {
            let number =
                ["take(", "give("].iter().find_map(|call| line.trim_start().strip_prefix(call)?.split_once('u'));
            number.and_then(|(number, _)| number.parse::<u32>().ok()).is_some_and(|first| first >= self as u32)
        };
        source.lines().filter(|line| !late(line)).flat_map(|line| [line, "\n"]).collect()
    }
}

/// What a product starts from and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Ends {
    Linear,
    Gradient,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Family {
    /// From workgroup memory.
    Tile,
    /// From registers, for few rows of A.
    Stream,
    /// By the lanes of a subgroup.
    Lanes,
    /// In cooperative matrices of 8 by 8.
    Coop8,
    /// In cooperative matrices of 16 by 16.
    Coop16,
}

/// How the operands of a product are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Reads {
    /// Element by element: anything.
    Words,
    /// Both f16 or bf16, four at a time.
    Pairs,
    /// Both f32, four at a time.
    Quads,
}

/// How the result of a product is written, and read what is shaped as it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Writes {
    /// f32, element by element.
    Words,
    /// f16 or bf16.
    Halves,
    /// All f32, four at a time.
    Quads,
}

impl Module {
    pub fn all() -> Vec<Module> {
        let mut all = vec![
            Module::NormsWords,
            Module::Normalize,
            Module::BatchWords,
            Module::Optimizer,
            Module::SetWords,
            Module::Probe,
        ];
        for word in [Word::Short, Word::Long] {
            all.extend([Module::NormsQuads(word), Module::NormalizeQuads(word), Module::BatchQuads(word)]);
            all.extend([Module::Few(word), Module::OptimizerQuads(word), Module::SetQuads(word)]);
            all.extend([Module::NormalizeRows, Module::NormalizeBlocks].map(|module| module(word, Held::ThirtyTwo)));
        }
        for ends in [Ends::Linear, Ends::Gradient] {
            for family in [Family::Tile, Family::Stream, Family::Lanes, Family::Coop8, Family::Coop16] {
                // Cooperative matrices are for f16 alone.
                let f32_too = !matches!(family, Family::Coop8 | Family::Coop16);
                for reads in [Reads::Words, Reads::Pairs].into_iter().chain(f32_too.then_some(Reads::Quads)) {
                    for writes in [Writes::Words, Writes::Halves, Writes::Quads] {
                        // Long words are for CPUs, cooperative matrices for GPUs.
                        let long = f32_too && Module::has_quads(reads, writes);
                        let words = [Word::Short].into_iter().chain(long.then_some(Word::Long));
                        all.extend(words.map(|word| Module::Product { ends, family, reads, writes, word }));
                    }
                }
            }
        }
        all
    }

    /// Whether a product reads or writes anything in quads.
    pub(crate) fn has_quads(reads: Reads, writes: Writes) -> bool {
        reads != Reads::Words || writes == Writes::Quads
    }

    /// The file with the entry points.
    pub fn stem(self) -> &'static str {
        match self {
            Module::NormsWords | Module::NormsQuads(_) => "norms",
            Module::Normalize => "normalize",
            Module::NormalizeQuads(_) => "normalize_quads",
            Module::NormalizeRows(..) => "normalize_rows",
            Module::NormalizeBlocks(..) => "normalize_blocks",
            Module::Product { ends: Ends::Linear, .. } => "linear",
            Module::Product { ends: Ends::Gradient, .. } => "gradient",
            Module::BatchWords | Module::BatchQuads(_) => "batch",
            Module::Few(_) => "few",
            Module::Optimizer => "optimizer",
            Module::OptimizerQuads(_) => "optimizer_quads",
            Module::SetWords | Module::SetQuads(_) => "set",
            Module::Probe => "probe",
        }
    }

    /// The stem, and what distinguishes the modules that share it.
    pub fn name(self) -> String {
        let long = |word| if word == Word::Long { "64" } else { "" };
        let (family, reads, writes, word) = match self {
            Module::Product { family, reads, writes, word, .. } => (family, reads, writes, word),
            Module::NormsWords | Module::BatchWords | Module::SetWords => return format!("{}_words", self.stem()),
            Module::NormsQuads(word) | Module::BatchQuads(word) | Module::SetQuads(word) => {
                return format!("{}_quads{}", self.stem(), long(word));
            }
            Module::NormalizeQuads(word)
            | Module::NormalizeRows(word, _)
            | Module::NormalizeBlocks(word, _)
            | Module::Few(word)
            | Module::OptimizerQuads(word) => return format!("{}{}", self.stem(), long(word)),
            Module::Normalize | Module::Optimizer | Module::Probe => return self.stem().to_owned(),
        };
        let family = match family {
            Family::Tile => "tile",
            Family::Stream => "stream",
            Family::Lanes => "lanes",
            Family::Coop8 => "coop8",
            Family::Coop16 => "coop16",
        };
        let reads = match reads {
            Reads::Words => "words",
            Reads::Pairs => "pairs",
            Reads::Quads => "quads",
        };
        let writes = match writes {
            Writes::Words => "",
            Writes::Halves => "_to_halves",
            Writes::Quads => "_to_quads",
        };
        format!("{}_{family}_{reads}{writes}{}", self.stem(), long(word))
    }

    /// The WGSL with the parameters as immediates.
    pub fn source(self) -> String {
        let directives = match self {
            Module::Product { family: Family::Coop8, .. } => Some(shader!("coop8")),
            Module::Product { family: Family::Coop16, .. } => Some(shader!("coop16")),
            _ => None,
        };
        let mut files: Vec<_> = directives.into_iter().chain([shader!("numbers")]).collect();
        match self {
            Module::NormsWords => files.extend([shader!("combine"), shader!("norms_words"), shader!("norms")]),
            Module::NormsQuads(word) => {
                files.extend([shader!("combine"), quads_of(word), shader!("norms_quads"), shader!("norms")]);
            }
            Module::Normalize => files.push(shader!("normalize")),
            Module::NormalizeQuads(word) => files.extend([quads_of(word), shader!("normalize_quads")]),
            Module::NormalizeRows(word, _) => {
                let across = match word {
                    Word::Short => shader!("across_workgroup"),
                    Word::Long => shader!("across_subgroup"),
                };
                files.extend([quads_of(word), shader!("held"), across, shader!("normalize_rows")]);
            }
            Module::NormalizeBlocks(word, _) => {
                files.extend([quads_of(word), shader!("held"), shader!("normalize_blocks")]);
            }
            Module::BatchWords => files.extend([shader!("batch_words"), shader!("batch")]),
            Module::BatchQuads(word) => files.extend([fours_of(word), shader!("batch_quads"), shader!("batch")]),
            Module::Few(word) => files.extend([fours_of(word), shader!("few")]),
            Module::Optimizer => files.extend([shader!("optimizer_steps"), shader!("optimizer")]),
            Module::OptimizerQuads(word) => {
                files.extend([fours_of(word), shader!("optimizer_steps"), shader!("optimizer_quads")]);
            }
            Module::Product { ends, family, reads, writes, word } => files.extend([
                if Module::has_quads(reads, writes) { fours_of(word) } else { "" },
                match reads {
                    Reads::Words => shader!("in_words"),
                    Reads::Pairs => shader!("in_pairs"),
                    Reads::Quads => shader!("in_quads"),
                },
                match writes {
                    Writes::Words => concat!(shader!("out_words"), "\n", shader!("with_c")),
                    Writes::Halves => concat!(shader!("out_halves"), "\n", shader!("with_c")),
                    Writes::Quads => shader!("out_quads"),
                },
                shader!("product"),
                match family {
                    Family::Tile => concat!(shader!("workgroup"), "\n", shader!("tile")),
                    Family::Stream => concat!(shader!("workgroup"), "\n", shader!("stream")),
                    Family::Lanes => shader!("lanes"),
                    Family::Coop8 | Family::Coop16 => concat!(shader!("workgroup"), "\n", shader!("coop")),
                },
                shader!("parts"),
                match ends {
                    Ends::Linear => shader!("linear"),
                    Ends::Gradient => shader!("gradient"),
                },
            ]),
            Module::SetWords => files.extend([shader!("combine"), shader!("set_words"), shader!("set")]),
            Module::SetQuads(word) => {
                files.extend([shader!("combine"), fours_of(word), shader!("set_quads"), shader!("set")]);
            }
            Module::Probe => files.push(shader!("probe")),
        }
        let source = files.join("\n");
        match self {
            Module::NormalizeRows(_, held) | Module::NormalizeBlocks(_, held) => held.keep(&source),
            _ => source,
        }
    }

    /// The WGSL with the parameters as a uniform buffer.
    pub fn uniform_source(self) -> String {
        self.source().replace(IMMEDIATE, UNIFORM)
    }

    /// The same with the invocations of a workgroup in reverse order, where they are not those of subgroups.
    pub fn reversed_source(self) -> String {
        let source = self.uniform_source();
        let code = |line: &str| line.split("//").next().unwrap_or_default().contains("subgroup");
        if source.lines().any(code) {
            return source;
        }
        let mut reversed = String::new();
        let mut size = "";
        for line in source.lines() {
            size = line.strip_prefix(WORKGROUP_SIZE).and_then(|rest| rest.strip_suffix(')')).unwrap_or(size);
            reversed += &line.replace(INVOCATION, &format!("{INVOCATION}_reversed"));
            reversed.push('\n');
            // The parameters of an entry point have lines of their own, those of other functions have not.
            if line == ") {" {
                reversed += &format!("    let t = {size} - 1u - t_reversed;\n");
            }
        }
        reversed
    }
}

fn quads_of(word: Word) -> &'static str {
    match word {
        Word::Short => shader!("quad32"),
        Word::Long => shader!("quad64"),
    }
}

fn fours_of(word: Word) -> &'static str {
    match word {
        Word::Short => shader!("four32"),
        Word::Long => shader!("four64"),
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
    /// [`Module::stem`] of the modules that may have it.
    pub stem: &'static str,
    pub bindings: &'static [(u32, Access)],
}

pub static ROW_SUMS: Kernel = Kernel {
    entry: "row_sums",
    stem: "norms",
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Write), (4, Write), (5, Read), (6, Read)],
};
pub static COLUMN_SUMS: Kernel =
    Kernel { entry: "column_sums", stem: "norms", bindings: &[(0, Read), (2, Write), (5, Read)] };
pub static FINISH_SUMS: Kernel = Kernel {
    entry: "finish_sums",
    stem: "norms",
    bindings: &[(1, Read), (2, Write), (3, Write), (4, Write), (6, Read)],
};
pub static KNOWN_NORMS: Kernel =
    Kernel { entry: "known_norms", stem: "norms", bindings: &[(1, Read), (3, Write), (4, Write), (6, Read)] };
pub static NORMALIZE: Kernel =
    Kernel { entry: "normalize", stem: "normalize", bindings: &[(0, Read), (1, Read), (2, Write)] };
pub static NORMALIZE_IN_PLACE: Kernel =
    Kernel { entry: "normalize_in_place", stem: "normalize", bindings: &[(1, Read), (2, Write)] };
pub static NORMALIZE_BACKWARD: Kernel =
    Kernel { entry: "normalize_backward", stem: "normalize", bindings: &[(0, Read), (1, Read), (2, Write), (3, Read)] };
pub static NORMALIZE_QUADS: Kernel = Kernel {
    entry: "normalize_quads",
    stem: "normalize_quads",
    bindings: &[(0, Read), (1, Read), (2, Write), (4, Read)],
};
pub static NORMALIZE_QUADS_IN_PLACE: Kernel = Kernel {
    entry: "normalize_quads_in_place",
    stem: "normalize_quads",
    bindings: &[(1, Read), (2, Write), (4, Read)],
};
pub static NORMALIZE_QUADS_BACKWARD: Kernel = Kernel {
    entry: "normalize_quads_backward",
    stem: "normalize_quads",
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Read), (4, Read)],
};
pub static NORMALIZE_ROWS: Kernel =
    Kernel { entry: "normalize_rows", stem: "normalize_rows", bindings: &[(0, Read), (1, Read), (2, Write)] };
pub static NORMALIZE_BLOCKS: Kernel = Kernel {
    entry: "normalize_blocks",
    stem: "normalize_blocks",
    bindings: &[(0, Read), (1, Read), (2, Write), (4, Read)],
};
pub static NORM_BLOCKS: Kernel = Kernel {
    entry: "norm_blocks",
    stem: "normalize_blocks",
    bindings: &[(0, Read), (2, Write), (3, Write), (5, Write)],
};
pub static LINEAR_WHOLE: Kernel = Kernel {
    entry: "linear",
    stem: "linear",
    bindings: &[(0, Read), (1, Read), (2, Read), (3, Read), (4, Read), (5, Write), (6, Write), (7, Write)],
};
pub static LINEAR_PARTIAL: Kernel =
    Kernel { entry: "linear_partial", stem: "linear", bindings: &[(0, Read), (1, Read), (4, Read), (8, Write)] };
pub static LINEAR_FINISH: Kernel = Kernel {
    entry: "linear_finish",
    stem: "linear",
    bindings: &[(2, Read), (3, Read), (4, Read), (5, Write), (6, Write), (7, Write), (8, Write)],
};
pub static GRADIENT: Kernel =
    Kernel { entry: "gradient", stem: "gradient", bindings: &[(0, Read), (1, Read), (2, Read), (5, Write), (6, Read)] };
pub static GRADIENT_PARTIAL: Kernel =
    Kernel { entry: "gradient_partial", stem: "gradient", bindings: &[(0, Read), (1, Read), (2, Read), (8, Write)] };
pub static GRADIENT_FINISH: Kernel =
    Kernel { entry: "gradient_finish", stem: "gradient", bindings: &[(2, Read), (5, Write), (6, Read), (8, Write)] };
pub static BATCH_SUMS: Kernel = Kernel {
    entry: "batch_sums",
    stem: "batch",
    bindings: &[(0, Read), (1, Read), (2, Write), (3, Write), (4, Write), (5, Write), (6, Read), (7, Read)],
};
pub static BATCH_FINISH: Kernel = Kernel {
    entry: "batch_finish",
    stem: "batch",
    bindings: &[(2, Write), (3, Write), (4, Write), (5, Write), (6, Read), (7, Read)],
};
pub static SUBTRACT_MEANS: Kernel =
    Kernel { entry: "subtract_means", stem: "batch", bindings: &[(0, Read), (1, Read), (6, Read), (7, Write)] };
pub static FEW: Kernel = Kernel {
    entry: "few",
    stem: "few",
    bindings: &[(0, Read), (1, Read), (2, Read), (3, Read), (4, Write), (5, Write)],
};
pub static FEW_FINISH: Kernel = Kernel { entry: "few_finish", stem: "few", bindings: &[(4, Write), (6, Write)] };
const STEP: &[(u32, Access)] =
    &[(0, Write), (1, Read), (2, Write), (3, Write), (4, Write), (5, Read), (6, Write), (7, Write)];
pub static OPTIMIZER: Kernel = Kernel { entry: "optimizer", stem: "optimizer", bindings: STEP };
pub static OPTIMIZER_ROWS: Kernel = Kernel { entry: "optimizer_rows", stem: "optimizer", bindings: STEP };

pub static SET_ROWS: Kernel = Kernel {
    entry: "set_rows",
    stem: "set",
    bindings: &[(0, Read), (1, Read), (2, Read), (3, Read), (4, Write), (5, Write), (6, Write)],
};
pub static SET_COLUMNS: Kernel =
    Kernel { entry: "set_columns", stem: "set", bindings: &[(0, Read), (1, Read), (2, Read), (4, Write)] };
pub static SET_FINISH: Kernel =
    Kernel { entry: "set_finish", stem: "set", bindings: &[(0, Read), (3, Read), (4, Write), (5, Write), (6, Write)] };
pub static SET_RESCALE: Kernel =
    Kernel { entry: "set_rescale", stem: "set", bindings: &[(0, Read), (1, Read), (2, Read), (5, Read), (7, Write)] };

pub static PROBE_COPY: Kernel = Kernel { entry: "probe_copy", stem: "probe", bindings: &[(0, Read), (1, Write)] };
pub static PROBE_READ: Kernel = Kernel { entry: "probe_read", stem: "probe", bindings: &[(0, Read), (2, Write)] };
pub static PROBE_MULTIPLY_ADD: Kernel = Kernel { entry: "probe_multiply_add", stem: "probe", bindings: &[(2, Write)] };
pub static OPTIMIZER_QUADS: Kernel = Kernel { entry: "optimizer_quads", stem: "optimizer_quads", bindings: STEP };

/// Every kernel, for the tests of the binding tables.
#[doc(hidden)]
pub static KERNELS: [&Kernel; 34] = [
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
    &NORMALIZE_BLOCKS,
    &NORM_BLOCKS,
    &LINEAR_WHOLE,
    &LINEAR_PARTIAL,
    &LINEAR_FINISH,
    &GRADIENT,
    &GRADIENT_PARTIAL,
    &GRADIENT_FINISH,
    &BATCH_SUMS,
    &BATCH_FINISH,
    &SUBTRACT_MEANS,
    &FEW,
    &FEW_FINISH,
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
