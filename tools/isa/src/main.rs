//! Prints one row for each variant of VARIANTS: what RADV, Mesa's compiler for AMD GPUs, makes of it for the chip that
//! `RADV_FORCE_FAMILY` names. No GPU is needed: started so, the driver compiles and runs nothing.
//!
//!     isa SHADERS VARIANTS [ASSEMBLY]
//!
//! SHADERS is the folder that `cargo run --example shaders` of the crate writes. A line of VARIANTS is
//! `LABEL MODULE ENTRY NAME=VALUE ..`, the overrides as the host sets them. ASSEMBLY is a folder for what the driver
//! prints. `check.sh` goes through the chips and compares with the committed table.
mod assembly;
mod driver;

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::{back, front, valid};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (shaders, variants, assembly) = match &arguments[..] {
        [shaders, variants] => (shaders, variants, None),
        [shaders, variants, assembly] => (shaders, variants, Some(assembly.as_str())),
        _ => {
            eprintln!("usage: isa SHADERS VARIANTS [ASSEMBLY]");
            return ExitCode::from(2);
        }
    };
    match run(shaders, variants, assembly) {
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

fn run(shaders: &str, variants: &str, assembly: Option<&str>) -> Result<(), String> {
    let driver = driver::Driver::new()?;
    // The first line names the compiler: rows of another version cannot be compared.
    println!("# {}", driver.version);
    println!("{}", Row::HEADER);
    let list = std::fs::read_to_string(variants).map_err(at(variants))?;
    for line in list.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let variant = Variant::parse(line)?;
        if variant.module.contains("coop") && !driver.cooperative {
            let Variant { label, module, entry, .. } = variant;
            println!("{label:24} {module:28} {entry:18} {:8}no cooperative matrices", driver.chip);
            continue;
        }
        let path = Path::new(shaders).join(format!("{}.wgsl", variant.module));
        let source = std::fs::read_to_string(&path).map_err(at(path.display()))?;
        let (spirv, bindings) = variant.compile(&source).map_err(at(variant.label))?;
        let built = driver.build(&spirv, variant.entry, &bindings).map_err(at(variant.label))?;
        if let Some(folder) = assembly {
            let path = Path::new(folder).join(format!("{}.{}.txt", variant.label, driver.chip));
            std::fs::write(&path, &built.assembly).map_err(at(path.display()))?;
        }
        println!("{}", Row { variant: &variant, chip: &driver.chip, built: &built });
    }
    Ok(())
}

struct Variant<'a> {
    label: &'a str,
    module: &'a str,
    entry: &'a str,
    constants: back::PipelineConstants,
}

impl<'a> Variant<'a> {
    fn parse(line: &'a str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (Some(label), Some(module), Some(entry)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("not LABEL MODULE ENTRY ..: {line}"));
        };
        let pair = |word: &str| Some((word.split_once('=')?.0.to_owned(), word.split_once('=')?.1.parse().ok()?));
        let constants = words
            .map(|word| pair(word).ok_or(format!("{label}: not NAME=NUMBER: {word}")))
            .collect::<Result<_, _>>()?;
        Ok(Variant { label, module, entry, constants })
    }

    /// The SPIR-V that wgpu would hand to the driver, and the bindings it declares.
    fn compile(&self, source: &str) -> Result<(Vec<u32>, Vec<driver::Binding>), String> {
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
        // As src/unchecked.rs has it.
        let unchecked = BoundsCheckPolicy::Unchecked;
        let is_product = self.module.starts_with("linear") || self.module.starts_with("gradient");
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
        let pipeline = back::spv::PipelineOptions { shader_stage: stage, entry_point: self.entry.to_owned() };
        let spirv = back::spv::write_vec(&module, &info, &options, Some(&pipeline)).map_err(|e| e.to_string())?;
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
    const HEADER: &'static str = "variant                  module                       entry              chip    VGPRs spills    LDS subgroups  hottest   mad";
}

impl Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Variant { label, module, entry, .. }, built) = (self.variant, self.built);
        let hottest = assembly::hottest_block(&built.assembly);
        write!(f, "{label:24} {module:28} {entry:18} {:8}", self.chip)?;
        let spills = built.statistic("Spilled VGPRs") + built.statistic("Spilled SGPRs");
        write!(f, "{:5} {spills:6} {:6}", built.statistic("VGPRs"), built.statistic("LDS size"))?;
        write!(f, "{:10} {:8}", built.statistic("Subgroups per SIMD"), hottest.instructions)?;
        write!(f, "{:4} %", 100 * hottest.multiply_adds / hottest.instructions.max(1))
    }
}
