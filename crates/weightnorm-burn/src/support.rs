//! Which devices the kernels run on, what they are like, and whether an operator fits.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device};
use burn_cubecl::CubeDevice;
use burn_cubecl::cubecl::device::{WgpuBackend, WgpuDevice, WgpuDeviceKind};
use burn_cubecl::cubecl::ir::DeviceProperties;
use burn_cubecl::cubecl::ir::features::Plane;
use weightnorm::{
    Axis, Error, Facts, Gradients, Launch, NormalizeBackward, Planned, Recorder, SCRATCH_BUFFERS, Tensor, WeightNorm,
    wgpu,
};

use crate::layer::{Kept, Layer, Parts, Wanted};

/// How an operator is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By this crate's kernels.
    Kernels,
    /// By Burn's operators.
    Operators,
}

/// The types that the kernels read and write.
pub(crate) fn storage_type(dtype: DType) -> Option<weightnorm::DType> {
    match dtype {
        DType::F32 => Some(weightnorm::DType::F32),
        DType::F16 => Some(weightnorm::DType::F16),
        DType::BF16 => Some(weightnorm::DType::Bf16),
        _ => None,
    }
}

/// Burn's wgpu runtime where it takes WGSL, which it does not where it compiles SPIR-V or MSL.
fn cube_device(device: &Device) -> Option<&CubeDevice> {
    let plain = match device.as_dispatch() {
        DispatchDevice::Autodiff(device) => device,
        device => device,
    };
    match plain {
        DispatchDevice::Cube(device @ CubeDevice::Wgpu(_)) => Some(device),
        _ => None,
    }
}

/// Whether layers on this device go to the kernels of this crate: it is one of Burn's wgpu runtime, which compiles WGSL
/// there. On all others they are Burn's operators.
pub fn has_kernels(device: &Device) -> bool {
    cube_device(device).and_then(known_facts).is_some()
}

/// What a device is like, once for each.
fn known_facts(device: &CubeDevice) -> Option<Facts> {
    static ALL: Mutex<Option<HashMap<CubeDevice, Option<Facts>>>> = Mutex::new(None);
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    if let Some(known) = all.get(device) {
        return *known;
    }
    let facts = find_facts(device);
    all.insert(device.clone(), facts);
    facts
}

fn find_facts(device: &CubeDevice) -> Option<Facts> {
    let CubeDevice::Wgpu(wgpu) = device else { return None };
    let client = device.client();
    if client.name() != "wgpu<wgsl>" {
        return None;
    }
    let (info, limits, features) = described(wgpu, client.properties());
    Facts::new(&info, &limits, features).ok()
}

/// Of a device that [`decide`] has let through.
pub(crate) fn facts_of(device: &CubeDevice) -> Facts {
    known_facts(device).expect("a device that was asked for before")
}

/// cubecl's words for a device in wgpu's, as far as plans depend on them. It takes all features of an adapter.
fn described(device: &WgpuDevice, properties: &DeviceProperties) -> (wgpu::AdapterInfo, wgpu::Limits, wgpu::Features) {
    let hardware = &properties.hardware;
    let lanes = (hardware.plane_size_min, hardware.plane_size_max);
    // What cubecl says where wgpu says nothing: GL has no subgroups, and browsers do not tell.
    let lanes_unknown = lanes == (8, 128);
    let backend = match device.backend {
        _ if cfg!(target_family = "wasm") => wgpu::Backend::BrowserWebGpu,
        WgpuBackend::Gl => wgpu::Backend::Gl,
        _ if cfg!(target_vendor = "apple") => wgpu::Backend::Metal,
        _ if lanes_unknown => wgpu::Backend::Gl,
        _ => wgpu::Backend::Vulkan,
    };
    let mut info = wgpu::AdapterInfo::new(kind(device, properties), backend);
    let is_software = info.device_type == wgpu::DeviceType::Cpu;
    // On CPUs cubecl does not use subgroups, but has asked wgpu for them.
    let has_subgroups = hardware_has_subgroups(properties) || is_software && !lanes_unknown;
    let features = if has_subgroups { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() };
    (info.subgroup_min_size, info.subgroup_max_size) = lanes;

    let largest = properties.memory.max_page_size;
    let limits = wgpu::Limits {
        max_buffer_size: largest,
        max_storage_buffer_binding_size: largest,
        min_storage_buffer_offset_alignment: properties.memory.alignment as u32,
        max_compute_workgroup_storage_size: hardware.max_shared_memory_size as u32,
        max_compute_invocations_per_workgroup: hardware.max_units_per_cube,
        max_compute_workgroup_size_x: hardware.max_cube_dim.0,
        max_compute_workgroup_size_y: hardware.max_cube_dim.1,
        max_compute_workgroup_size_z: hardware.max_cube_dim.2,
        max_compute_workgroups_per_dimension: hardware.max_cube_count.0,
        max_storage_buffers_per_shader_stage: hardware.max_bindings + 1,
        ..wgpu::Limits::default()
    };
    (info, limits, features)
}

fn hardware_has_subgroups(properties: &DeviceProperties) -> bool {
    properties.features.plane.contains(Plane::Ops)
}

/// A CPU has no card. Of GPUs an integrated one wants less work at a time; the default device is a discrete one where
/// there is one.
fn kind(device: &WgpuDevice, properties: &DeviceProperties) -> wgpu::DeviceType {
    if properties.identity.physical.is_none() {
        return wgpu::DeviceType::Cpu;
    }
    match device.kind {
        WgpuDeviceKind::IntegratedGpu(_) => wgpu::DeviceType::IntegratedGpu,
        WgpuDeviceKind::DefaultDevice => {
            let some = |kind| {
                let device = WgpuDevice::new(kind).on(device.backend);
                let id = CubeDevice::Wgpu(device).to_id();
                !CubeDevice::enumerate(id).is_empty()
            };
            let discrete = some(WgpuDeviceKind::DiscreteGpu(0)) || !some(WgpuDeviceKind::IntegratedGpu(0));
            if discrete { wgpu::DeviceType::DiscreteGpu } else { wgpu::DeviceType::IntegratedGpu }
        }
        _ => wgpu::DeviceType::DiscreteGpu,
    }
}

/// What is asked for, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Problem {
    Layer {
        layer: Layer,
        x: Vec<usize>,
        v: Vec<usize>,
        g: Vec<usize>,
        bias: Option<Vec<usize>>,
        dtype: DType,
        tracked: bool,
    },
    Weight {
        v: Vec<usize>,
        g: Vec<usize>,
        axis: usize,
        dtype: DType,
        tracked: bool,
    },
}

/// A launcher that launches nothing.
struct Plan;

impl Launch for Plan {
    fn scratch(&mut self, which: usize, _bytes: u64) -> Result<u64, Error> {
        assert!(which < SCRATCH_BUFFERS);
        Ok(1000 + which as u64)
    }

    fn launch(&mut self, _dispatch: &Planned<'_>) -> Result<(), Error> {
        Ok(())
    }
}

impl Problem {
    fn dtype(&self) -> DType {
        match self {
            Problem::Layer { dtype, .. } | Problem::Weight { dtype, .. } => *dtype,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Problem::Layer { x, v, .. } => x.contains(&0) || v.contains(&0),
            Problem::Weight { v, .. } => v.contains(&0),
        }
    }

    /// Plans it, forward and backward.
    fn plan(&self, facts: Facts) -> Result<(), Error> {
        let mut number = 0;
        let mut tensor = |shape: &[usize], dtype| {
            number += 1;
            Tensor::of_launcher(number, 0, shape, dtype)
        };
        let dtype = storage_type(self.dtype()).unwrap_or(weightnorm::DType::F32);
        let f32 = weightnorm::DType::F32;
        let mut launcher = Plan;
        let mut ops = Recorder::launching(facts, &mut launcher);
        match self {
            Problem::Weight { v, g, axis, tracked, .. } => {
                let [v, w, dv] = [tensor(v, dtype)?, tensor(v, dtype)?, tensor(v, dtype)?];
                let [g, dg] = [tensor(g, f32)?, tensor(g, f32)?];
                let weight = WeightNorm::new(&v, &g).axis(Axis::Kept(*axis));
                ops.normalize(weight, &w)?;
                if *tracked {
                    ops.normalize_backward(NormalizeBackward::new(&w, weight), &Gradients::default().dv(&dv).dg(&dg))?;
                }
            }
            Problem::Layer { layer, x, v, g, bias, tracked, .. } => {
                let shape = layer.output(x, v);
                let (u_shape, features) = (layer.kept(&shape), layer.features(&shape));
                let [x, dx] = [tensor(x, dtype)?, tensor(x, dtype)?];
                let [v, dv] = [tensor(v, dtype)?, tensor(v, dtype)?];
                let [y, dy] = [tensor(&shape, dtype)?, tensor(&shape, dtype)?];
                let [dg, norms, u] = [tensor(g, f32)?, tensor(g, f32)?, tensor(&u_shape, f32)?];
                let (g, dbias) = (tensor(g, f32)?, tensor(&[features], f32)?);
                let bias = bias.as_ref().map(|bias| tensor(bias, f32)).transpose()?;
                let parts = Parts { x: &x, v: &v, g: &g, bias: bias.as_ref() };
                let kept = || Kept { u: &u, norms: &norms };
                layer.forward(&mut ops, &parts, &y, tracked.then(kept))?;
                if *tracked {
                    let gradients = Wanted::ALL.gradients(&dx, &dv, &dg, &dbias);
                    layer.backward(&mut ops, &Parts { bias: None, ..parts }, kept(), &dy, &gradients)?;
                }
            }
        }
        Ok(())
    }
}

/// Plans that are remembered.
const MOST_PLANS: usize = 4096;

/// By the kernels, if the device has them and the operator fits it; by Burn's operators else.
///
/// # Errors
/// Arguments that do not fit each other, on any device.
pub(crate) fn decide(device: &Device, problem: Problem) -> Result<Way, Error> {
    static ALL: Mutex<Option<HashMap<(Option<CubeDevice>, Problem), Way>>> = Mutex::new(None);
    let cube = cube_device(device).cloned();
    let key = (cube, problem);
    let find = || {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.get_or_insert_default().get(&key).copied()
    };
    if let Some(way) = find() {
        return Ok(way);
    }
    let (cube, problem) = &key;
    let facts = cube.as_ref().and_then(known_facts);
    let launches = facts.is_some() && storage_type(problem.dtype()).is_some();
    let way = if problem.is_empty() {
        Way::Operators
    } else {
        match problem.plan(facts.map_or_else(any_facts, Ok)?) {
            Ok(()) if launches => Way::Kernels,
            Err(Error::Argument(error)) => return Err(error.into()),
            _ => Way::Operators,
        }
    };
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    if all.len() >= MOST_PLANS {
        all.clear();
    }
    all.insert(key, way);
    Ok(way)
}

/// Of a device of which only errors of arguments are wanted.
fn any_facts() -> Result<Facts, Error> {
    let info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, wgpu::Backend::Vulkan);
    Facts::new(&info, &wgpu::Limits::default(), wgpu::Features::empty())
}
