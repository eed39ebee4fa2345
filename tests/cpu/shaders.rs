//! The shaders, checked by naga without a driver: validity, and the binding tables of the host.
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess};
use weightnorm::internals::{Access, Family, KERNELS, Module};

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

#[test]
fn shaders_are_valid_with_either_kind_of_parameters() {
    for module in Module::all() {
        parse(&module.source());
        let uniform = module.uniform_source();
        assert!(uniform.contains("var<uniform>") && !uniform.contains("var<immediate>"), "{}", module.name());
        let (parsed, _) = parse(&uniform);
        assert!(!parsed.global_variables.iter().any(|(_, v)| v.space == AddressSpace::Immediate));
        let reversed = module.reversed_source();
        parse(&reversed);
        let by_subgroups =
            matches!(module, Module::Product { family, .. } if !matches!(family, Family::Tile | Family::Stream));
        let entries = if by_subgroups { 0 } else { uniform.matches("@compute").count() };
        assert_eq!(reversed.matches("- 1u - t_reversed;").count(), entries, "{}", module.name());
    }
}

#[test]
fn shaders_validation_finds_a_fault() {
    let broken = Module::NormsWords.source().replace("sqrt(square.m", "sqrt(square");
    assert!(naga::front::wgsl::parse_str(&broken).is_err_and(|e| !e.emit_to_string(&broken).is_empty()));
}

/// Each entry point uses exactly the storage buffers of its kernel's table, with the access that stands there, and
/// no more than the 8 that WebGPU grants.
#[test]
fn shaders_bind_what_the_host_binds() {
    for module in Module::all() {
        let (parsed, info) = parse(&module.source());
        for (index, entry) in parsed.entry_points.iter().enumerate() {
            let kernel = KERNELS
                .iter()
                .find(|k| k.entry == entry.name && k.stem == module.stem())
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
        assert!(Module::all().into_iter().filter(|m| m.stem() == kernel.stem).any(|m| has(&m)), "{}", kernel.entry);
    }
}

/// The parameters fit the 64 bytes of immediates that every device with them has.
#[test]
fn shaders_parameters_fit_immediates() {
    for module in Module::all() {
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
