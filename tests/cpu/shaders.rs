//! The shaders, checked by naga without a driver: validity, and the binding tables of the host.
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess};
use weightnorm::internals::{Access, FILES, Import, KERNELS, Module, imports, modules};

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
        let source = Module { file, slots: [("", ""); 5] }.source();
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
        let files = Module { file, slots: [("", ""); 5] }.files();
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
        parse(&module.source());
        let uniform = module.uniform_source();
        assert!(uniform.contains("var<uniform>") && !uniform.contains("var<immediate>"), "{}", module.name());
        let (parsed, _) = parse(&uniform);
        assert!(!parsed.global_variables.iter().any(|(_, v)| v.space == AddressSpace::Immediate));
    }
}

#[test]
fn shaders_validation_finds_a_fault() {
    let broken = modules()[1].source().replace("sqrt(square.m", "sqrt(square");
    assert!(naga::front::wgsl::parse_str(&broken).is_err_and(|e| !e.emit_to_string(&broken).is_empty()));
}

/// Each entry point uses exactly the storage buffers of its kernel's table, with the access that stands there, and
/// no more than the 8 that WebGPU grants.
#[test]
fn shaders_bind_what_the_host_binds() {
    for module in modules() {
        let (parsed, info) = parse(&module.source());
        for (index, entry) in parsed.entry_points.iter().enumerate() {
            let kernel = KERNELS
                .iter()
                .find(|k| k.entry == entry.name && module.files().contains(&k.file))
                .unwrap_or_else(|| panic!("{}.{} has no table", module.name(), entry.name));
            let used = info.get_entry_point(index);
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
            // Cooperative matrices never read a scale of what they multiply: bound all the same.
            let scales = if module.name().contains("coop") { &[(2, Access::Read), (4, Access::Read)][..] } else { &[] };
            let mut expected = kernel.bindings.to_vec();
            expected.retain(|b| bindings.contains(b) || !scales.contains(b));
            assert_eq!(bindings, expected, "{}.{}", module.name(), entry.name);
            assert!(bindings.len() <= 8, "{}.{}", module.name(), entry.name);
        }
    }
    for kernel in KERNELS {
        let has = |module: &Module| parse(&module.source()).0.entry_points.iter().any(|e| e.name == kernel.entry);
        assert!(
            modules().into_iter().filter(|m| m.files().contains(&kernel.file)).any(|m| has(&m)),
            "{}",
            kernel.entry
        );
    }
}

/// The parameters fit the 64 bytes of immediates that every device with them has.
#[test]
fn shaders_parameters_fit_immediates() {
    for module in modules() {
        let (parsed, _) = parse(&module.source());
        let (_, variable) = parsed
            .global_variables
            .iter()
            .find(|(_, v)| v.space == AddressSpace::Immediate)
            .unwrap_or_else(|| panic!("{} has no parameters", module.name()));
        let size = parsed.types[variable.ty].inner.size(parsed.to_ctx());
        assert!(size <= 64, "{}: {size} bytes", module.name());
    }
}
