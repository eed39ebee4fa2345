//! The shaders, checked by naga without a driver: validity, and the binding tables of the host.
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess};
use weightnorm::internals::{Access, FILES, Field, Import, Kernel, Module, SLOTS, Shared, imports, kernels, modules};

fn parse(source: &str) -> (naga::Module, naga::valid::ModuleInfo) {
    let module = naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    let info = Validator::new(
        ValidationFlags::all(),
        Capabilities::IMMEDIATES
            | Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | Capabilities::SUBGROUP
            | Capabilities::SHADER_FLOAT16
            | Capabilities::COOPERATIVE_MATRIX,
    )
    .validate(&module)
    .unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    (module, info)
}

fn text(file: &str) -> &'static str {
    FILES.iter().find(|(name, _)| *name == file).unwrap_or_else(|| panic!("no file {file}")).1
}

/// Each file with its imports and the defaults of its slots.
#[test]
fn shaders_are_valid_file_by_file() {
    for &(file, _) in FILES {
        let source = Module { file, slots: [("", ""); SLOTS] }.source(Shared::default());
        // A product's structures of parameters may have none that uses them.
        parse(&source);
    }
}

#[test]
fn shaders_have_no_long_lines() {
    for (file, text) in FILES {
        let long = text.lines().position(|line| line.chars().count() > 120);
        assert_eq!(long, None, "{file}");
    }
}

/// No file imports itself by any way, and each lies in the folder: an unlisted one would not be composed.
#[test]
fn shaders_import_downward_only() {
    fn visit(file: &'static str, above: &mut Vec<&'static str>) {
        assert!(!above.contains(&file), "{file} imports itself: {above:?}");
        above.push(file);
        for import in imports(text(file)) {
            let (Import::File(below) | Import::Slot(_, below)) = import;
            visit(below, above);
        }
        above.pop();
    }
    FILES.iter().for_each(|(file, _)| visit(file, &mut vec![]));
}

/// What fills a slot declares the same functions as its default, with the same parameters, and the same aliases and
/// constants that its users name.
#[test]
fn shaders_fill_slots_with_what_they_want() {
    let declared = |file: &'static str| -> std::collections::BTreeSet<String> {
        let files = Module { file, slots: [("", ""); SLOTS] }.files();
        let functions = files.iter().flat_map(|file| text(file).lines()).filter_map(|line| {
            // By types: `name(u32, f32) -> f32`.
            let (name, rest) = line.strip_prefix("fn ")?.split('{').next()?.trim().split_once('(')?;
            let (parameters, result) = rest.rsplit_once(')')?;
            let types = parameters.split(", ").map(|parameter| parameter.split(": ").nth(1).unwrap_or_default());
            Some(format!("{name}({}){result}", types.collect::<Vec<_>>().join(", ")))
        });
        functions.collect()
    };
    let mut slots = 0;
    for module in modules() {
        for file in module.files() {
            for import in imports(text(file)) {
                let Import::Slot(slot, default) = import else { continue };
                let Some((_, filler)) = module.slots.iter().find(|filled| filled.0 == slot) else { continue };
                slots += 1;
                // What the users of the slot call of its default, they find in the filler.
                let users = text(file);
                for function in declared(default).difference(&declared(filler)) {
                    let name = function.split('(').next().unwrap_or_default();
                    assert!(
                        !users.contains(&format!("{name}(")),
                        "{filler} lacks {function} of {default}, which {file} calls"
                    );
                }
            }
        }
    }
    assert!(slots > 100, "{slots}");
}

#[test]
fn shaders_are_valid_with_either_kind_of_parameters() {
    for module in modules() {
        parse(&module.source(Shared::default()));
        let uniform = module.uniform_source(Shared::default());
        assert!(uniform.contains("var<uniform>") && !uniform.contains("var<immediate>"), "{}", module.name());
        let (parsed, _) = parse(&uniform);
        assert!(!parsed.global_variables.iter().any(|(_, v)| v.space == AddressSpace::Immediate));
    }
}

/// The modules of arenas: each entry point with all that it reads as `read_write`.
#[test]
fn shaders_are_valid_where_buffers_are_shared() {
    let all = Shared::of(0..15);
    for module in modules() {
        let (parsed, _) = parse(&module.source(all));
        for (_, variable) in parsed.global_variables.iter() {
            let AddressSpace::Storage { access } = variable.space else { continue };
            let name = variable.name.as_deref().unwrap_or_default();
            let is_table = ["rows", "columns", "finishes", "rescales"].contains(&name);
            assert_eq!(access.contains(StorageAccess::STORE), !is_table, "{}: {name}", module.name());
        }
        parse(&module.uniform_source(all));
    }
}

#[test]
fn shaders_validation_finds_a_fault() {
    let broken = modules()[1].source(Shared::default()).replace("sqrt(square.m", "sqrt(square");
    assert!(naga::front::wgsl::parse_str(&broken).is_err_and(|e| !e.emit_to_string(&broken).is_empty()));
}

/// What the host says of each kernel is what stands in the WGSL: its storage buffers, no more than the 8 that WebGPU
/// grants, with their access; the invocations of a workgroup; the parameters by name, place and type.
#[test]
fn shaders_are_as_the_host_knows_them() {
    let kernels = kernels();
    let mut seen = vec![false; kernels.len()];
    for module in modules() {
        let (parsed, info) = parse(&module.source(Shared::default()));
        for (index, entry) in parsed.entry_points.iter().enumerate() {
            let name = format!("{}.{}", module.name(), entry.name);
            let is_its = |k: &&Kernel| k.entry == entry.name && module.files().contains(&k.file);
            let place = kernels.iter().position(is_its).unwrap_or_else(|| panic!("{name} has no kernel"));
            seen[place] = true;
            let kernel = kernels[place];
            assert_eq!(
                bindings(&parsed, &info, index),
                expected_bindings(&parsed, &info, index, kernel, module),
                "{name}"
            );
            assert!(kernel.bindings.len() <= 8, "{name}");
            assert_eq!(threads(entry), kernel.threads, "{name}: invocations of a workgroup");
            assert_eq!(parameters(&parsed), kernel.params, "{name}: parameters");
        }
    }
    for (kernel, seen) in kernels.iter().zip(seen) {
        assert!(seen, "no module has {}", kernel.entry);
    }
}

/// What the comparison above compares tells one shader from another.
#[test]
fn shaders_comparison_finds_a_fault() {
    let kernel = kernels().into_iter().find(|k| k.entry == "optimizer").expect("it is there");
    let module = modules().into_iter().find(|m| m.file == kernel.file).expect("it is there");
    let seen = |from: &str, to: &str| {
        let source = module.source(Shared::default());
        assert!(source.contains(from), "{from}");
        let (parsed, info) = parse(&source.replace(from, to));
        let index = parsed.entry_points.iter().position(|e| e.name == kernel.entry).expect("it stays");
        let whole = (bindings(&parsed, &info, index), threads(&parsed.entry_points[index]), parameters(&parsed));
        [whole.0 == kernel.bindings, whole.1 == kernel.threads, whole.2 == kernel.params]
    };
    assert_eq!(seen("const THREADS = 64u;", "const THREADS = 64u;"), [true; 3]);
    assert_eq!(seen("const THREADS = 64u;", "const THREADS = 32u;"), [true, false, true]);
    assert_eq!(seen("    v_rate: f32,", "    spare: u32,\n    v_rate: f32,"), [true, true, false]);
    assert_eq!(seen("var<storage, read> dg:", "var<storage, read_write> dg:"), [false, true, true]);
}

/// The storage buffers that an entry point uses.
fn bindings(parsed: &naga::Module, info: &naga::valid::ModuleInfo, entry: usize) -> Vec<(u32, Access)> {
    let used = info.get_entry_point(entry);
    let mut bindings: Vec<(u32, Access)> = parsed
        .global_variables
        .iter()
        .filter(|(handle, _)| !used[*handle].is_empty())
        .filter_map(|(_, variable)| match variable.space {
            AddressSpace::Storage { access } => {
                let written = access.contains(StorageAccess::STORE);
                let access = if written { Access::Write } else { Access::Read };
                Some((variable.binding.expect("a storage buffer is bound").binding, access))
            }
            _ => None,
        })
        .collect();
    bindings.sort_by_key(|b| b.0);
    bindings
}

/// Those of the host, but for the scales that cooperative matrices never read, which are bound all the same.
fn expected_bindings(
    parsed: &naga::Module,
    info: &naga::valid::ModuleInfo,
    entry: usize,
    kernel: &Kernel,
    module: Module,
) -> Vec<(u32, Access)> {
    let scales = if module.name().contains("coop") { &[(2, Access::Read), (4, Access::Read)][..] } else { &[] };
    let bindings = bindings(parsed, info, entry);
    kernel.bindings.iter().copied().filter(|b| bindings.contains(b) || !scales.contains(b)).collect()
}

/// The invocations of a workgroup, unless overrides say how many.
fn threads(entry: &naga::EntryPoint) -> Option<u64> {
    let chosen = entry.workgroup_size_overrides.is_some_and(|sizes| sizes.iter().any(Option::is_some));
    (!chosen).then(|| entry.workgroup_size.iter().map(|&size| u64::from(size)).product())
}

/// The fields of the parameters.
fn parameters(parsed: &naga::Module) -> Vec<Field> {
    let immediate = parsed.global_variables.iter().find(|(_, v)| v.space == AddressSpace::Immediate);
    let (_, variable) = immediate.expect("every module has parameters");
    let naga::TypeInner::Struct { members, .. } = &parsed.types[variable.ty].inner else { panic!("a structure") };
    let field = |member: &naga::StructMember| Field {
        name: member.name.clone().expect("WGSL names its members").leak(),
        scalar: match parsed.types[member.ty].inner {
            naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
            naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
            ref other => panic!("a parameter of another type: {other:?}"),
        },
        offset: member.offset as usize,
    };
    members.iter().map(field).collect()
}

/// The parameters fit the 64 bytes of immediates that every device with them has; those of convolutions 128, which take
/// a uniform buffer where there are fewer.
#[test]
fn shaders_parameters_fit_immediates() {
    for module in modules() {
        let (parsed, _) = parse(&module.source(Shared::default()));
        let (_, variable) = parsed
            .global_variables
            .iter()
            .find(|(_, v)| v.space == AddressSpace::Immediate)
            .unwrap_or_else(|| panic!("{} has no parameters", module.name()));
        let size = parsed.types[variable.ty].inner.size(parsed.to_ctx());
        let most = if module.file == "product/conv" { 128 } else { 64 };
        assert!(size <= most, "{}: {size} bytes", module.name());
    }
}
