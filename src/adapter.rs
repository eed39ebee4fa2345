//! The adapters of this machine, and the choice among them.
#[cfg(target_arch = "wasm32")]
use crate::{DeviceError, Error};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::{adapters, backends_of_environment, like, pick};

/// A browser lists none.
#[cfg(target_arch = "wasm32")]
pub(crate) fn like(_: &wgpu::AdapterInfo) -> Option<wgpu::Adapter> {
    None
}

/// The browser's own choice.
#[cfg(target_arch = "wasm32")]
pub(crate) async fn pick() -> Result<wgpu::Adapter, Error> {
    let options =
        wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
    wgpu::Instance::default()
        .request_adapter(&options)
        .await
        .map_err(|e| DeviceError::NoAdapter { tried: format!("WebGPU: {e}") }.into())
}

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::sync::OnceLock;

    use crate::{DeviceError, Error};

    /// The names that `WGPU_BACKEND` may have, as wgpu reads them.
    const BACKENDS: [(&str, wgpu::Backends); 5] = [
        ("vulkan", wgpu::Backends::VULKAN),
        ("metal", wgpu::Backends::METAL),
        ("dx12", wgpu::Backends::DX12),
        ("gl", wgpu::Backends::GL),
        ("noop", wgpu::Backends::NOOP),
    ];
    const BACKEND: &str = "WGPU_BACKEND";
    const NAME: &str = "WGPU_ADAPTER_NAME";

    /// One for the process: wgpu numbers what it makes within an instance, and mistakes what another one made for its
    /// own. It has every backend, since none can be added later.
    fn instance() -> &'static wgpu::Instance {
        static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
        INSTANCE.get_or_init(|| {
            let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
            descriptor.backends = wgpu::Backends::all();
            wgpu::Instance::new(descriptor)
        })
    }

    /// Those behind these backends, best first.
    pub(crate) async fn adapters(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
        let mut adapters = instance().enumerate_adapters(backends - wgpu::Backends::GL).await;
        if backends.contains(wgpu::Backends::GL) {
            // On GL an instance has one context, and each listing guards it by a lock of its own: so there is one
            // listing.
            static ON_GL: OnceLock<Vec<wgpu::Adapter>> = OnceLock::new();
            let list = || pollster::block_on(instance().enumerate_adapters(wgpu::Backends::GL));
            adapters.extend_from_slice(ON_GL.get_or_init(list));
        }
        let rank = |adapter: &wgpu::Adapter| {
            let info = adapter.get_info();
            let kind = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => 0,
                wgpu::DeviceType::IntegratedGpu => 1,
                wgpu::DeviceType::VirtualGpu => 2,
                wgpu::DeviceType::Other => 3,
                wgpu::DeviceType::Cpu => 4,
            };
            // GL may not know that it runs on a CPU.
            let software = info.name.to_lowercase().contains("llvmpipe");
            (!runs_compute(adapter), software, kind, info.backend == wgpu::Backend::Gl)
        };
        adapters.sort_by_key(rank);
        adapters
    }

    /// The adapter that a caller's device was made on, for what it can do. Not on GL, where a listing may take the
    /// caller's context from his thread.
    pub(crate) fn like(info: &wgpu::AdapterInfo) -> Option<wgpu::Adapter> {
        let backends = wgpu::Backends::from(info.backend) - wgpu::Backends::GL;
        if backends.is_empty() {
            return None;
        }
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        descriptor.backends = backends;
        let adapters = pollster::block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
        let key =
            |a: &wgpu::AdapterInfo| (a.name.clone(), a.vendor, a.device, a.device_pci_bus_id.clone(), a.driver.clone());
        adapters.into_iter().find(|adapter| key(&adapter.get_info()) == key(info))
    }

    fn runs_compute(adapter: &wgpu::Adapter) -> bool {
        let flags = adapter.get_downlevel_capabilities().flags;
        flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
            && adapter.limits().max_storage_buffers_per_shader_stage >= 8
    }

    /// The backends that the environment leaves.
    pub(crate) fn backends_of_environment() -> Result<wgpu::Backends, Error> {
        backends(&variable(BACKEND), wgpu::Instance::enabled_backend_features())
    }

    /// The best one, as far as the environment leaves a choice.
    pub(crate) async fn pick() -> Result<wgpu::Adapter, Error> {
        let backends = backends_of_environment()?;
        let name = variable(NAME);
        let adapters = adapters(backends).await;
        let described: Vec<_> = adapters.iter().map(|a| (a.get_info().name, runs_compute(a))).collect();
        let place = choose(&described, &name, || names(backends).join(", "))?;
        Ok(adapters.into_iter().nth(place).expect("one of them was chosen"))
    }

    /// What a variable of the environment says; empty is as good as unset.
    fn variable(name: &str) -> String {
        std::env::var_os(name).unwrap_or_default().to_string_lossy().trim().to_owned()
    }

    fn names(backends: wgpu::Backends) -> Vec<&'static str> {
        BACKENDS.iter().filter(|(_, b)| backends.contains(*b)).map(|&(name, _)| name).collect()
    }

    /// The backends that a list with commas names, all of them if it names none. `can`: those that this system can
    /// have.
    fn backends(list: &str, can: wgpu::Backends) -> Result<wgpu::Backends, Error> {
        let fail =
            |reason| Err(DeviceError::AdapterChoice { variable: BACKEND, value: list.to_owned(), reason }.into());
        let mut asked = wgpu::Backends::empty();
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let backend = match name.to_lowercase().as_str() {
                // Of those alone that have names: wgpu warns of others, and goes on.
                "vulkan" | "vk" | "metal" | "mtl" | "dx12" | "d3d12" | "opengl" | "gles" | "gl" | "webgpu" | "noop" => {
                    wgpu::Backends::from_comma_list(name)
                }
                _ => return fail(format!("there is no backend {name:?}, only vulkan, metal, dx12 and gl")),
            };
            asked |= backend;
        }
        match asked {
            none if none.is_empty() => Ok(wgpu::Backends::all()),
            some if some.intersects(can) => Ok(some & can),
            _ => {
                fail(format!("this system cannot have that, only {}", names(can - wgpu::Backends::NOOP).join(" and ")))
            }
        }
    }

    /// The place of the first adapter, by name and whether it can compute, that has `name` in its name. `tried`: the
    /// backends.
    fn choose(adapters: &[(String, bool)], name: &str, tried: impl Fn() -> String) -> Result<usize, Error> {
        let fits = |adapter: &str| adapter.to_lowercase().contains(&name.to_lowercase());
        if let Some(place) = adapters.iter().position(|(adapter, able)| *able && fits(adapter)) {
            return Ok(place);
        }
        let list = |adapters: Vec<&str>| match adapters.as_slice() {
            [first @ .., last] if first.len() < 4 => {
                first.iter().map(|a| format!("{a:?}, ")).collect::<String>() + &format!("{last:?}")
            }
            many => format!("{:?}, {:?}, {:?} and {} more", many[0], many[1], many[2], many.len() - 3),
        };
        let of = |take: &dyn Fn(&str, bool) -> bool| {
            let taken: Vec<_> = adapters.iter().filter(|(a, able)| take(a, *able)).map(|(a, _)| a.as_str()).collect();
            (!taken.is_empty()).then(|| list(taken))
        };
        let by_name =
            |reason| Err(DeviceError::AdapterChoice { variable: NAME, value: name.to_owned(), reason }.into());
        match (name, of(&|a, _| fits(a)), of(&|_, able| able)) {
            ("", None, _) => Err(DeviceError::NoAdapter { tried: tried() }.into()),
            ("", Some(unable), _) => {
                Err(DeviceError::NoAdapter { tried: format!("{}; {unable} cannot run compute shaders", tried()) }
                    .into())
            }
            (_, _, None) if adapters.is_empty() => Err(DeviceError::NoAdapter { tried: tried() }.into()),
            (_, Some(unable), _) => by_name(format!("{unable} cannot run compute shaders")),
            (_, None, able) => {
                let able = able.unwrap_or_else(|| "none that can run compute shaders".to_owned());
                by_name(format!("no adapter has that in its name. There are: {able}"))
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        const CAN: wgpu::Backends = wgpu::Backends::VULKAN.union(wgpu::Backends::GL);

        #[test]
        fn backends_are_those_that_are_named() {
            for (list, expected) in [
                ("", wgpu::Backends::all()),
                (" , ,", wgpu::Backends::all()),
                ("vulkan", wgpu::Backends::VULKAN),
                ("VK, gl", CAN),
                ("gles,metal", wgpu::Backends::GL),
            ] {
                assert_eq!(backends(list, CAN), Ok(expected), "{list:?}");
            }
        }

        #[test]
        fn backends_that_are_wrong_or_not_here_are_told_apart() {
            for (list, text) in [
                (
                    "vulcan",
                    r#"WGPU_BACKEND is "vulcan": there is no backend "vulcan", only vulkan, metal, dx12 and gl"#,
                ),
                ("gl,x", r#"WGPU_BACKEND is "gl,x": there is no backend "x", only vulkan, metal, dx12 and gl"#),
                ("metal", r#"WGPU_BACKEND is "metal": this system cannot have that, only vulkan and gl"#),
                ("dx12,webgpu", r#"WGPU_BACKEND is "dx12,webgpu": this system cannot have that, only vulkan and gl"#),
            ] {
                assert_eq!(backends(list, CAN).unwrap_err().to_string(), text);
            }
        }

        #[test]
        fn the_name_narrows_the_choice() {
            let adapters = [("Old", false), ("Big GPU", true), ("big llvmpipe", true)];
            let adapters = adapters.map(|(name, able)| (name.to_owned(), able));
            let chosen = |name| choose(&adapters, name, || "vulkan, gl".to_owned()).map_err(|e| e.to_string());
            assert_eq!(chosen(""), Ok(1));
            assert_eq!(chosen("LLVM"), Ok(2));
            assert_eq!(chosen("old").unwrap_err(), r#"WGPU_ADAPTER_NAME is "old": "Old" cannot run compute shaders"#);
            let text =
                r#"WGPU_ADAPTER_NAME is "x": no adapter has that in its name. There are: "Big GPU", "big llvmpipe""#;
            assert_eq!(chosen("x").unwrap_err(), text);
            let none = |adapters: &[(String, bool)], name| {
                choose(adapters, name, || "vulkan, gl".to_owned()).unwrap_err().to_string()
            };
            assert!(none(&[], "").starts_with("no GPU adapter found (tried vulkan, gl)."));
            assert!(none(&[], "x").starts_with("no GPU adapter found (tried vulkan, gl)."));
            let text = "no GPU adapter found (tried vulkan, gl; \"Old\" cannot run compute shaders).";
            assert!(none(&adapters[..1], "").starts_with(text));
            let many = vec![("An adapter".to_owned(), true); 9];
            assert!(none(&many, "x").ends_with(r#"There are: "An adapter", "An adapter", "An adapter" and 6 more"#));
        }
    }
}
