//! What NVIDIA's own assembler makes of a kernel: naga's Metal text, which is C++, by clang to PTX, by ptxas to code.
//!
//! ptxas is the back end of NVIDIA's Vulkan driver too; the front end there is another. `ptxas.h` is what Metal has and
//! the kernels use. Set up by `ptxas.sh`.
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use naga::back::msl;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};

use crate::driver::Built;
use crate::{Translated, at};

/// The architecture: Hopper.
const ARCHITECTURE: &str = "sm_90";
/// Registers of a multiprocessor, and the most warps that it runs.
const REGISTERS: u64 = 65_536;
const WARPS: u64 = 64;

pub struct Ptxas {
    clang: PathBuf,
    tools: PathBuf,
    pub version: String,
}

impl Ptxas {
    /// Of the folder that `ptxas.sh` set up.
    pub fn new(folder: &Path) -> Result<Self, String> {
        let clang = folder.join("clang/usr/lib");
        let python = std::fs::read_dir(folder.join("venv/lib")).map_err(at(folder.display()))?;
        let mut packages = python.flatten().map(|p| p.path().join("site-packages/nvidia"));
        let nvidia = packages.find_map(|p| std::fs::read_dir(p).ok()).ok_or("no package of NVIDIA's in venv")?;
        let mut tools = nvidia.flatten().map(|p| p.path().join("bin"));
        let tools = tools.find(|bin| bin.join("ptxas").exists()).ok_or("no ptxas in venv")?;
        let text = run(Command::new(tools.join("ptxas")).arg("--version"))?;
        let release = text.lines().find_map(|line| line.split(", ").find(|part| part.starts_with('V')));
        let version = format!("ptxas {}", release.unwrap_or("unknown"));
        Ok(Ptxas { clang, tools, version })
    }

    /// `is_product`: limited by arithmetic.
    pub fn build(&self, kernel: &Translated, entry: &str, is_product: bool) -> Result<Built, String> {
        let folder = std::env::temp_dir().join(format!("isa-ptxas-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(at(folder.display()))?;
        let built = self.build_in(&folder, kernel, entry, is_product);
        let _ = std::fs::remove_dir_all(&folder);
        built
    }

    fn build_in(&self, folder: &Path, kernel: &Translated, entry: &str, is_product: bool) -> Result<Built, String> {
        let unchecked = BoundsCheckPolicy::Unchecked;
        let options = msl::Options {
            lang_version: (2, 4),
            fake_missing_bindings: true,
            bounds_check_policies: BoundsCheckPolicies {
                index: unchecked,
                buffer: unchecked,
                image_load: unchecked,
                binding_array: unchecked,
            },
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            ..Default::default()
        };
        let stage = naga::ShaderStage::Compute;
        let pipeline = msl::PipelineOptions { entry_point: Some((stage, entry.to_owned())), ..Default::default() };
        let (metal, _) =
            msl::write_string(&kernel.module, &kernel.info, &options, &pipeline).map_err(|e| e.to_string())?;
        let threads = kernel.module.entry_points.iter().find(|e| e.name == entry).map_or(1, |e| e.workgroup_size[0]);
        let (source, ptx, cubin) = (folder.join("k.cu"), folder.join("k.ptx"), folder.join("k.cubin"));
        let header = include_str!("ptxas.h");
        // Left to itself, ptxas makes small kernels wait for their reads, and spill, so that 2048 invocations fit on a
        // multiprocessor: those that memory limits are asked for one workgroup at least, which lifts that.
        let bounds = if is_product { format!("{threads}") } else { format!("{threads}, 1") };
        let text = format!("{header}{}", cuda(&metal, threads, &bounds)?);
        std::fs::write(&source, text).map_err(at(source.display()))?;
        // Denormals count as zero, and products and sums may be contracted, as Vulkan's drivers have it.
        run(Command::new(self.clang.join("llvm-19/bin/clang++"))
            .env("LD_LIBRARY_PATH", self.clang.join("x86_64-linux-gnu"))
            .args(["-x", "cuda", "-std=c++20", "--cuda-device-only", "-nocudainc", "-nocudalib", "-O3", "-S"])
            .args(["-w", "-ffp-contract=fast", "-fcuda-flush-denormals-to-zero", "-mllvm", "-unroll-threshold=4000"])
            .args(["-Xclang", "-cl-single-precision-constant"])
            .args(["-Xclang", "-target-feature", "-Xclang", "+ptx78", &format!("--cuda-gpu-arch={ARCHITECTURE}")])
            .args([&source, Path::new("-o"), &ptx]))?;
        let told = run(Command::new(self.tools.join("ptxas"))
            .args(["-v", "-O3", &format!("-arch={ARCHITECTURE}")])
            .args([&ptx, Path::new("-o"), &cubin]))?;
        let assembly = run(Command::new(self.tools.join("nvdisasm")).arg("-c").arg(&cubin))?;
        let before = |word: &str| {
            let number = told.split_once(word).and_then(|(before, _)| before.split_whitespace().last()?.parse().ok());
            number.ok_or(format!("ptxas does not tell of{word}: {told}"))
        };
        let registers: u64 = before(" registers")?;
        let spills = before(" bytes spill stores")? / 4;
        let warps = WARPS.min(REGISTERS / (32 * registers.next_multiple_of(8)));
        let statistics = [("GPRs", registers), ("Spills", spills), ("Max warps/SM", warps)];
        Ok(Built { statistics: statistics.map(|(name, value)| (name.to_owned(), value)).into(), assembly })
    }
}

/// What it says on both outputs.
fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(at(&name))?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { Ok(text) } else { Err(format!("{name}: {text}")) }
}

/// Metal's text as CUDA's: loops as `for` has them, and the kernel's arguments as the parameters, workgroup memory and
/// special registers that they are. `bounds`: of the launches.
fn cuda(metal: &str, threads: u32, bounds: &str) -> Result<String, String> {
    let text = metal.lines().filter(|line| !line.starts_with("#include") && *line != "using metal::uint;");
    let text = with_for_loops(text.collect::<Vec<_>>().join("\n"));
    let (functions, kernel) = text.split_once("[[max_total_threads").ok_or("no kernel")?;
    let (_, kernel) = kernel.split_once(" kernel void ").ok_or("no kernel")?;
    let (head, body) = kernel.split_once("\n) {").ok_or("no arguments")?;
    let arguments = head.split_once('(').ok_or("no arguments")?.1;
    let (mut parameters, mut locals) = (vec![], String::new());
    for argument in arguments.split("\n, ").map(str::trim) {
        let declaration = argument.split(" [[").next().unwrap_or_default();
        let (of_type, name) = declaration.rsplit_once(' ').ok_or(format!("an argument: {argument}"))?;
        let of_type = of_type.trim_end_matches('&');
        if let Some(of_type) = of_type.strip_prefix("device ") {
            // No two buffers overlap, as a read-only binding of Vulkan tells the driver.
            parameters.push(format!("{of_type}* __restrict__ {name}_"));
            let _ = writeln!(locals, "{of_type}& {name} = *{name}_;");
        } else if let Some(of_type) = of_type.strip_prefix("constant ") {
            parameters.push(format!("const {of_type} {name}"));
        } else if let Some(of_type) = of_type.strip_prefix("threadgroup ") {
            let _ = writeln!(locals, "static __attribute__((shared)) {of_type} {name};");
        } else {
            let register = argument.split_once("[[").map_or("", |(_, rest)| rest.trim_end_matches("]]"));
            let _ = writeln!(locals, "{of_type} {name} = {register}();");
            if register == "thread_index_in_threadgroup" {
                // As every driver knows.
                let _ = writeln!(locals, "__builtin_assume({name} < {threads});");
            }
        }
    }
    let parameters = parameters.join(", ");
    Ok(format!(
        "{functions}#pragma clang attribute pop\nextern \"C\" __attribute__((global)) __attribute__((launch_bounds({bounds}))) \
         void k({parameters}) {{\n{locals}{body}\n#pragma clang force_cuda_host_device end\n"
    ))
}

/// naga writes a loop's end as `if (!first) { .. } first = false;` at the start of the next turn, which no compiler of a
/// driver gets to see.
fn with_for_loops(mut text: String) -> String {
    while let Some(start) = text.find("bool loop_init") {
        let name = text[start + 5..].split(' ').next().unwrap_or_default().to_owned();
        let open = start + text[start..].find(&format!("if (!{name}) {{")).expect("naga's form");
        let end_start = open + format!("if (!{name}) {{").len();
        let end_of_turn = closing(&text, end_start);
        let body = end_of_turn + text[end_of_turn..].find(&format!("{name} = false;")).expect("naga's form");
        let body = body + format!("{name} = false;").len();
        let end = text[end_start..end_of_turn].to_owned();
        text.replace_range(start..body, &format!("for (;; ({{{end}}})) {{"));
    }
    text
}

/// The place of the brace that closes what is open at `from`.
fn closing(text: &str, from: usize) -> usize {
    let mut open = 1;
    let end = text[from..].bytes().position(|byte| {
        open += i32::from(byte == b'{') - i32::from(byte == b'}');
        open == 0
    });
    from + end.expect("naga closes its braces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_metal() {
        let metal = "uint f(\n    uint a\n) {\n    bool loop_init = true;\n    while(true) {\n        if (!loop_init) {\n            i = i + 1u;\n        }\n        \
                     loop_init = false;\n        break;\n    }\n}\n[[max_total_threads_per_threadgroup(64)]] kernel void main_(\n  \
                     metal::uint3 w [[threadgroup_position_in_grid]]\n, device type_1 const& v [[user(fake0)]]\n, threadgroup type_2& s\n, \
                     constant Params& p [[user(fake0)]]\n) {\n    return;\n}\n";
        let found = cuda(metal, 64, "64").unwrap();
        let words = found.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words,
            "uint f( uint a ) { for (;; ({ i = i + 1u; })) { break; } } #pragma clang attribute pop extern \"C\" __attribute__((global)) \
             __attribute__((launch_bounds(64))) void k(type_1 const* __restrict__ v_, const Params p) { metal::uint3 w = \
             threadgroup_position_in_grid(); type_1 const& v = *v_; static __attribute__((shared)) type_2 s; return; } \
             #pragma clang force_cuda_host_device end"
        );
    }
}
