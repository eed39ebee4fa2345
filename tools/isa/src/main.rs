//! Prints one row for each variant of VARIANTS: what the first Vulkan driver's compiler makes of it, or NVIDIA's assembler
//! where PTXAS names the folder that `ptxas.sh` set up. No GPU is needed: Mesa's drivers for AMD, NVIDIA, Apple and
//! Qualcomm GPUs can be started so that they compile and run nothing.
//!
//!     isa SHADERS VARIANTS CHIP [ASSEMBLY]
//!
//! SHADERS is the folder that `cargo run --example shaders` of the crate writes. A line of VARIANTS is
//! `LABEL MODULE ENTRY NAME=VALUE ..`, the overrides as the host sets them. CHIP is what a row says of the driver. ASSEMBLY
//! is a folder for what the driver prints, and for the SPIR-V. `check.sh` goes through the chips and compares with the committed table.
mod assembly;
mod driver;
mod ptxas;

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::{back, front, valid};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (shaders, variants, chip, assembly) = match &arguments[..] {
        [shaders, variants, chip] => (shaders, variants, chip, None),
        [shaders, variants, chip, assembly] => (shaders, variants, chip, Some(assembly.as_str())),
        _ => {
            eprintln!("usage: isa SHADERS VARIANTS CHIP [ASSEMBLY]");
            return ExitCode::from(2);
        }
    };
    match run(shaders, variants, chip, assembly) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isa: {error}");
            ExitCode::from(2)
        }
    }
}

/// `what: error`, for people.
fn at<E: Display>(what: impl Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

fn run(shaders: &str, variants: &str, chip: &str, assembly: Option<&str>) -> Result<(), String> {
    let compiler = Compiler::new()?;
    // The first line names the compiler: rows of another version cannot be compared.
    println!("# {}", compiler.version());
    println!("{}", Row::HEADER);
    let list = std::fs::read_to_string(variants).map_err(at(variants))?;
    for line in list.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let variant = Variant::parse(line, chip)?;
        if variant.module.contains("coop") && !compiler.cooperative() {
            let Variant { label, entry, .. } = variant;
            println!("{label:24} {entry:18} {chip:8} no cooperative matrices");
            continue;
        }
        let path = Path::new(shaders).join(format!("{}.wgsl", variant.module));
        let source = std::fs::read_to_string(&path).map_err(at(path.display()))?;
        let kernel = variant.translate(&source).map_err(at(variant.label))?;
        let (spirv, bindings) = variant.spirv(&kernel).map_err(at(variant.label))?;
        let built = match &compiler {
            Compiler::Driver(driver) => driver.build(&spirv, variant.entry, &bindings),
            Compiler::Ptxas(ptxas) => ptxas.build(&kernel, variant.entry, variant.is_product()),
        };
        let built = built.map_err(at(variant.label))?;
        if let Some(folder) = assembly {
            let path = Path::new(folder).join(format!("{}.{chip}.txt", variant.label));
            std::fs::write(&path, &built.assembly).map_err(at(path.display()))?;
            let bytes: Vec<u8> = spirv.iter().flat_map(|word| word.to_le_bytes()).collect();
            let path = path.with_extension("spv");
            std::fs::write(&path, bytes).map_err(at(path.display()))?;
        }
        println!("{}", Row { variant: &variant, chip, built: &built });
    }
    Ok(())
}

/// What makes code of a kernel.
enum Compiler {
    /// The first Vulkan driver.
    Driver(Box<driver::Driver>),
    /// NVIDIA's assembler, where PTXAS names its folder.
    Ptxas(ptxas::Ptxas),
}

impl Compiler {
    fn new() -> Result<Self, String> {
        Ok(match std::env::var_os("PTXAS") {
            Some(folder) => Compiler::Ptxas(ptxas::Ptxas::new(Path::new(&folder))?),
            None => Compiler::Driver(Box::new(driver::Driver::new()?)),
        })
    }

    fn version(&self) -> &str {
        match self {
            Compiler::Driver(driver) => &driver.version,
            Compiler::Ptxas(ptxas) => &ptxas.version,
        }
    }

    fn cooperative(&self) -> bool {
        matches!(self, Compiler::Driver(driver) if driver.cooperative)
    }
}

/// A module with its overrides filled in.
struct Translated {
    module: naga::Module,
    info: valid::ModuleInfo,
}

struct Variant<'a> {
    label: &'a str,
    module: &'a str,
    entry: &'a str,
    constants: back::PipelineConstants,
}

impl<'a> Variant<'a> {
    /// `CHIP:NAME=VALUE` is for that chip alone, in place of another value before it.
    fn parse(line: &'a str, chip: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (Some(label), Some(module), Some(entry)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("not LABEL MODULE ENTRY ..: {line}"));
        };
        let pair = |word: &str| Some((word.split_once('=')?.0.to_owned(), word.split_once('=')?.1.parse().ok()?));
        let own = |word: &'a str| match word.split_once(':') {
            Some((other, word)) => (other == chip).then_some(word),
            None => Some(word),
        };
        let constants = words
            .filter_map(own)
            .map(|word| pair(word).ok_or(format!("{label}: not NAME=NUMBER: {word}")))
            .collect::<Result<_, _>>()?;
        Ok(Variant { label, module, entry, constants })
    }

    fn is_product(&self) -> bool {
        self.constants.contains_key("TM")
    }

    /// Multiply-adds of an invocation for the BK steps of k that a product in tiles stages at a time.
    fn multiply_adds_per_step(&self) -> Option<usize> {
        let value = |name: &str| self.constants.get(name).map(|value| *value as usize);
        Some(value("TM")? * value("TN")? * value("BK")?)
    }

    fn translate(&self, source: &str) -> Result<Translated, String> {
        let module = front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
        for name in self.constants.keys() {
            if !module.overrides.iter().any(|(_, o)| o.name.as_ref() == Some(name)) {
                return Err(format!("the module has no override {name}"));
            }
        }
        let info = valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all())
            .validate(&module)
            .map_err(|e| e.emit_to_string(source))?;
        let stage = naga::ShaderStage::Compute;
        let (module, info) =
            back::pipeline_constants::process_overrides(&module, &info, Some((stage, self.entry)), &self.constants)
                .map_err(|e| e.to_string())?;
        Ok(Translated { module: module.into_owned(), info: info.into_owned() })
    }

    /// The SPIR-V that wgpu would hand to the driver, and the bindings it declares.
    fn spirv(&self, Translated { module, info }: &Translated) -> Result<(Vec<u32>, Vec<driver::Binding>), String> {
        // As src/unchecked.rs has it.
        let unchecked = BoundsCheckPolicy::Unchecked;
        let is_product = ["linear", "conv_", "gradient"].iter().any(|family| self.module.starts_with(family));
        let options = back::spv::Options {
            lang_version: (1, 6),
            flags: back::spv::WriterFlags::LABEL_VARYINGS,
            bounds_check_policies: BoundsCheckPolicies {
                index: if is_product { unchecked } else { BoundsCheckPolicy::Restrict },
                buffer: unchecked, // the driver's robustBufferAccess2 checks
                image_load: unchecked,
                binding_array: unchecked,
            },
            zero_initialize_workgroup_memory: back::spv::ZeroInitializeWorkgroupMemoryMode::None,
            force_loop_bounding: false,
            ..Default::default()
        };
        let stage = naga::ShaderStage::Compute;
        let pipeline = back::spv::PipelineOptions { shader_stage: stage, entry_point: self.entry.to_owned() };
        let spirv = back::spv::write_vec(module, info, &options, Some(&pipeline)).map_err(|e| e.to_string())?;
        let bindings = module.global_variables.iter().filter_map(|(_, variable)| {
            let uniform = variable.space == naga::AddressSpace::Uniform;
            Some(driver::Binding { number: variable.binding?.binding, uniform })
        });
        Ok((spirv, bindings.collect()))
    }
}

struct Row<'a> {
    variant: &'a Variant<'a>,
    chip: &'a str,
    built: &'a driver::Built,
}

impl Row<'_> {
    const HEADER: &'static str = "variant                  entry              chip     registers spills   subgroups   loop  madds  share  waits  bytes";
}

impl Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (variant, built) = (self.variant, self.built);
        write!(f, "{:24} {:18} {:8}", variant.label, variant.entry, self.chip)?;
        let registers = built.statistic(&["VGPRs", "Number of GPRs", "GPRs", "Registers used"]);
        let spills = built.statistic(&["Spilled VGPRs", "Spilled SGPRs", "Spills to memory", "Spills", "STP Count"]);
        let subgroups = built.statistic(&["Subgroups per SIMD", "Max warps/SM", "Threads", "Max Waves Per Core"]);
        write!(f, "{registers:10} {spills:6} {subgroups:11}")?;
        if built.assembly.is_empty() {
            return write!(f, "{0:>7} {0:>6} {0:>6} {0:>6} {0:>6}", "-");
        }
        let program = assembly::Program::parse(&built.assembly);
        let found = if variant.is_product() {
            program.product_loop(variant.multiply_adds_per_step())
        } else {
            program.memory_loop()
        };
        let share = 100 * found.multiply_adds / found.instructions.max(1);
        write!(f, "{:7} {:6} {share:4} %", found.instructions, found.multiply_adds)?;
        write!(f, "{:7} {:6}", found.full_waits, found.bytes_in_flight)
    }
}
