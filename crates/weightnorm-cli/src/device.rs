//! Which adapter to use, and what there is to choose from.
use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weightnorm::{Gpu, Options, Tile, wgpu};
use weightnorm_checkpoint::Device;

use crate::output::{Failure, Kind, Report};

/// The choice of an adapter.
#[derive(Args)]
pub struct DeviceArguments {
    /// The adapter: its number or part of its name, as `weightnorm devices` lists them with the same --backend
    /// [default: the first that can run the kernels; WGPU_ADAPTER_NAME narrows it]. `reference` computes checkpoints on
    /// the CPU in f64: slowly, and without any driver
    #[arg(long, value_name = "N|NAME", help_heading = "Device")]
    device: Option<String>,
    #[command(flatten)]
    backend: BackendArgument,
}

#[derive(Args)]
pub struct BackendArgument {
    /// The API to reach adapters through [default: WGPU_BACKEND, or all]
    #[arg(long, value_name = "API", help_heading = "Device")]
    backend: Option<Backend>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    Vulkan,
    Metal,
    Dx12,
    Gl,
}

impl BackendArgument {
    fn backends(&self) -> Result<wgpu::Backends, Failure> {
        let Some(backend) = self.backend else { return Ok(Gpu::backends_of_environment()?) };
        let can = wgpu::Instance::enabled_backend_features();
        if !can.contains(backend.flag()) {
            let message =
                format!("--backend {}: this system cannot have that, only {}", backend.name(), names(can, " and "));
            return Err(Failure { kind: Kind::Device, message });
        }
        Ok(backend.flag())
    }

    fn adapters(&self) -> Result<Vec<wgpu::Adapter>, Failure> {
        Ok(pollster::block_on(Gpu::adapters(self.backends()?)))
    }

    /// What is wrong where there are none.
    fn no_adapter(&self) -> Result<weightnorm::Error, Failure> {
        let tried = names(self.backends()? & wgpu::Instance::enabled_backend_features(), ", ");
        Ok(weightnorm::Error::Device(weightnorm::DeviceError::NoAdapter {
            tried: if tried.is_empty() { "noop".to_owned() } else { tried },
        }))
    }
}

impl Backend {
    fn flag(self) -> wgpu::Backends {
        match self {
            Backend::Vulkan => wgpu::Backends::VULKAN,
            Backend::Metal => wgpu::Backends::METAL,
            Backend::Dx12 => wgpu::Backends::DX12,
            Backend::Gl => wgpu::Backends::GL,
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// As `--backend` calls them.
fn names(backends: wgpu::Backends, between: &str) -> String {
    let named = Backend::value_variants().iter().filter(|backend| backends.contains(backend.flag()));
    named.map(|backend| backend.name()).collect::<Vec<_>>().join(between)
}

/// What computes.
pub enum Chosen {
    Gpu(Gpu),
    Reference,
}

impl Chosen {
    pub fn device(&self) -> Device<'_> {
        match self {
            Chosen::Gpu(gpu) => gpu.into(),
            Chosen::Reference => Device::Reference,
        }
    }

    pub fn text(&self) -> String {
        match self {
            Chosen::Gpu(gpu) => device_text(&gpu.report().info),
            Chosen::Reference => "the reference | CPU, in f64".to_owned(),
        }
    }

    pub fn json(&self) -> Value {
        match self {
            Chosen::Gpu(gpu) => device_json(&gpu.report().info),
            Chosen::Reference => json!({ "name": REFERENCE, "kind": "cpu", "backend": null, "driver": null }),
        }
    }
}

/// What --device calls the reference on the CPU.
const REFERENCE: &str = "reference";

impl DeviceArguments {
    /// The adapter asked for, or the reference.
    pub fn choose(&self) -> Result<Chosen, Failure> {
        if !self.is_reference() {
            return self.open().map(Chosen::Gpu).map_err(|Failure { kind, message }| {
                let advice = format!("--device {REFERENCE} computes on the CPU without a driver, slowly");
                let message = format!("{message}{}{advice}", if message.contains('\n') { "; " } else { "\n" });
                Failure { kind, message }
            });
        }
        match self.backend.backend {
            Some(_) => Err(Failure::usage(format!("--device {REFERENCE} has no --backend: leave one of the two out"))),
            None => Ok(Chosen::Reference),
        }
    }

    fn is_reference(&self) -> bool {
        self.device.as_deref() == Some(REFERENCE)
    }

    /// A device on the adapter asked for.
    pub fn open(&self) -> Result<Gpu, Failure> {
        if self.is_reference() {
            return Err(Failure::usage(format!("--device {REFERENCE} is no adapter: there is nothing to measure")));
        }
        let (by, name) = match &self.device {
            Some(device) => ("--device", device.clone()),
            None => ("WGPU_ADAPTER_NAME", std::env::var("WGPU_ADAPTER_NAME").unwrap_or_default()),
        };
        let name = name.trim();
        let number = self.device.as_ref().and_then(|device| device.parse::<usize>().ok());
        let mut adapters = self.backend.adapters()?;
        if adapters.is_empty() {
            return Err(self.backend.no_adapter()?.into());
        }
        let named = |adapter: &wgpu::Adapter| adapter.get_info().name.to_lowercase().contains(&name.to_lowercase());
        let place = match number {
            Some(number) => Some(number).filter(|&n| n < adapters.len()),
            None => adapters.iter().position(named),
        };
        let Some(place) = place else {
            let list: Vec<String> =
                adapters.iter().enumerate().map(|(n, a)| format!("{n} ({})", a.get_info().name)).collect();
            let (what, there) = (if number.is_some() { "that number" } else { "that in its name" }, list.join(", "));
            let message = format!("{by} is {name:?}: no adapter has {what}. There are: {there}");
            return Err(Failure { kind: Kind::Device, message });
        };
        Ok(pollster::block_on(Gpu::on_adapter(&adapters.swap_remove(place), Options::default()))?)
    }
}

/// Adapter, driver and backend.
pub fn device_json(info: &wgpu::AdapterInfo) -> Value {
    json!({
        "name": info.name,
        "kind": kind(info.device_type),
        "backend": info.backend.to_str(),
        "driver": driver(info),
    })
}

fn driver(info: &wgpu::AdapterInfo) -> String {
    format!("{} {}", info.driver, info.driver_info).trim().to_owned()
}

/// The adapter in a line.
pub fn device_text(info: &wgpu::AdapterInfo) -> String {
    format!("{} | {} | {}", info.name, driver(info), info.backend)
}

fn kind(kind: wgpu::DeviceType) -> &'static str {
    match kind {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "cpu",
        wgpu::DeviceType::Other => "other",
    }
}

/// Lists the adapters of this machine, and what would be used of each.
#[derive(Args)]
#[command(after_long_help = "\
The first one that can run the kernels is what every command uses unless --device says otherwise.

Exit codes: 0 done, 1 no adapter can run the kernels, 2 usage error.")]
pub struct Devices {
    #[command(flatten)]
    backend: BackendArgument,
}

impl Devices {
    pub fn run(&self) -> Result<Report, Failure> {
        let adapters = self.backend.adapters()?;
        let listed: Vec<Listed> = adapters.iter().map(Listed::new).collect();
        let usable = listed.iter().any(|l| l.uses.is_ok());
        let mut text = String::new();
        for (number, adapter) in listed.iter().enumerate() {
            adapter.write(&mut text, number);
        }
        let mut json = json!({ "devices": listed.iter().map(Listed::json).collect::<Vec<_>>() });
        if !usable {
            let hint = self.backend.no_adapter()?;
            let hint = format!("{hint}\nfold, split and check do without one: --device {REFERENCE}");
            let _ = writeln!(text, "{hint}");
            json["hint"] = hint.into();
        }
        Ok(Report::new(!usable, text, json))
    }
}

/// An adapter and what came of making a device on it.
struct Listed {
    info: wgpu::AdapterInfo,
    features: wgpu::Features,
    limits: wgpu::Limits,
    matrices: Vec<String>,
    uses: Result<Uses, weightnorm::Error>,
}

/// What the crate uses of an adapter.
struct Uses {
    immediates: bool,
    tiles: Vec<String>,
    lanes: bool,
    timestamps: bool,
}

impl Listed {
    fn new(adapter: &wgpu::Adapter) -> Listed {
        let info = adapter.get_info();
        let uses = pollster::block_on(Gpu::on_adapter(adapter, Options::default())).map(|gpu| {
            let tiles: Vec<Tile> = Tile::all_on(&gpu).collect();
            Uses {
                immediates: gpu.report().immediates,
                lanes: info.device_type == wgpu::DeviceType::Cpu && tiles.contains(&Tile::Subgroup1),
                tiles: tiles.iter().map(Tile::to_string).collect(),
                timestamps: gpu.timing() == weightnorm::Timing::Timestamps,
            }
        });
        let matrices = adapter.cooperative_matrix_properties();
        let matrices = matrices
            .iter()
            .map(|p| format!("{}x{}x{} {:?}→{:?}", p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type).to_lowercase());
        let (features, limits) = (adapter.features(), adapter.limits());
        Listed { matrices: matrices.collect(), info, features, limits, uses }
    }

    fn has(&self, feature: wgpu::Features) -> bool {
        self.features.contains(feature)
    }

    fn write(&self, text: &mut String, number: usize) {
        let Listed { info, limits, matrices, .. } = self;
        let mut lines = vec![("driver", driver(info))];
        match &self.uses {
            Err(error) => lines.push(("not usable", error.to_string())),
            Ok(uses) => {
                let parameters = if uses.immediates { "immediates" } else { "a uniform buffer for each dispatch" };
                let family = if uses.lanes { "subgroup lanes" } else { "tiles in workgroup memory" };
                let profiles = if uses.timestamps { "timestamps of the device" } else { "wall clock" };
                lines.push(("parameters", parameters.to_owned()));
                lines.push(("products", family.to_owned()));
                lines.push(("tiles", uses.tiles.join(" ")));
                lines.push(("profiles", profiles.to_owned()));
            }
        }
        let subgroups = match (self.has(wgpu::Features::SUBGROUP), info.subgroup_min_size, info.subgroup_max_size) {
            (false, ..) => "none".to_owned(),
            (true, least, most) if least == most => format!("of {least} lanes"),
            (true, least, most) => format!("of {least} to {most} lanes"),
        };
        lines.push(("subgroups", subgroups));
        let f16 = if self.has(wgpu::Features::SHADER_F16) { "yes" } else { "no" };
        lines.push(("native f16", format!("{f16} (not needed: f16 and bf16 work everywhere)")));
        let matrices = match matrices.as_slice() {
            [] => "none".to_owned(),
            some => format!("{}; off: experimental, see `Options` of the library", some.join(", ")),
        };
        lines.push(("matrices", matrices));
        let sizes = format!(
            "{} in a buffer, {} in a binding, {} workgroups in a dimension",
            mebibytes(limits.max_buffer_size),
            mebibytes(limits.max_storage_buffer_binding_size),
            limits.max_compute_workgroups_per_dimension
        );
        lines.push(("limits", sizes));
        let workgroup = format!(
            "{} invocations, {} KiB of memory, {} storage buffers",
            limits.max_compute_invocations_per_workgroup,
            limits.max_compute_workgroup_storage_size >> 10,
            limits.max_storage_buffers_per_shader_stage
        );
        lines.push(("workgroup", workgroup));
        let _ = writeln!(text, "{number}  {} ({}, {})", info.name, kind(info.device_type), info.backend);
        for (name, what) in lines {
            let _ = writeln!(text, "   {name:<11} {what}");
        }
    }

    fn json(&self) -> Value {
        let Listed { info, limits, .. } = self;
        let subgroups = self.has(wgpu::Features::SUBGROUP).then_some([info.subgroup_min_size, info.subgroup_max_size]);
        let mut json = device_json(info);
        json["vendor_id"] = info.vendor.into();
        json["device_id"] = info.device.into();
        json["usable"] = self.uses.is_ok().into();
        json["reason"] = self.uses.as_ref().err().map(ToString::to_string).into();
        json["features"] = json!({
            "immediates": self.has(wgpu::Features::IMMEDIATES),
            "subgroup_sizes": subgroups,
            "timestamps": self.has(wgpu::Features::TIMESTAMP_QUERY),
            "pipeline_cache": self.has(wgpu::Features::PIPELINE_CACHE),
            "f16": self.has(wgpu::Features::SHADER_F16),
            "cooperative_matrices": self.matrices,
        });
        json["limits"] = json!({
            "buffer_bytes": limits.max_buffer_size,
            "binding_bytes": limits.max_storage_buffer_binding_size,
            "workgroups_per_dimension": limits.max_compute_workgroups_per_dimension,
            "invocations_per_workgroup": limits.max_compute_invocations_per_workgroup,
            "workgroup_memory_bytes": limits.max_compute_workgroup_storage_size,
            "storage_buffers": limits.max_storage_buffers_per_shader_stage,
            "immediate_bytes": limits.max_immediate_size,
        });
        json["uses"] = match &self.uses {
            Err(_) => Value::Null,
            Ok(uses) => json!({
                "parameters": if uses.immediates { "immediates" } else { "uniform" },
                "products": if uses.lanes { "lanes" } else { "tiles" },
                "tiles": uses.tiles,
                "clock": if uses.timestamps { "timestamps" } else { "wall" },
                // The program does not turn on what is experimental.
                "cooperative_matrices": [],
            }),
        };
        json
    }
}

fn mebibytes(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 40 => format!("{:.1} TiB", b as f64 / (1u64 << 40) as f64),
        b if b >= 1 << 30 => format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64),
        b => format!("{} MiB", b >> 20),
    }
}
