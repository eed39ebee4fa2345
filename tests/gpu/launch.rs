//! A launcher of plans that is not the crate's own: numbered buffers, and pipelines made of `Planned::plain_wgsl`
//! alone, with wgpu's checks. What it computes is what the crate computes.
use std::collections::HashMap;

use weightnorm::{
    DType, Eps, Error, Facts, Gpu, Gradients, Launch, Linear, LinearBackward, NormalizeBackward, Planned, Recorder,
    SCRATCH_BUFFERS, Tensor, Tile, WeightNorm,
};

use crate::data::{random, to_bytes};
use crate::golden::read;
use crate::{Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("launch::layer", Needs::Nothing, layer);
}

/// Buffers by number, and what was compiled.
struct Launcher<'a> {
    gpu: &'a Gpu,
    buffers: HashMap<u64, wgpu::Buffer>,
    pipelines: HashMap<String, wgpu::ComputePipeline>,
    encoder: wgpu::CommandEncoder,
}

const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl Launcher<'_> {
    fn make(&mut self, number: u64, size: u64, usage: wgpu::BufferUsages) -> &wgpu::Buffer {
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = self.gpu.device().create_buffer(&descriptor);
        self.buffers.insert(number, buffer);
        &self.buffers[&number]
    }
}

const SCRATCH: u64 = 1000;

impl Launch for Launcher<'_> {
    fn scratch(&mut self, which: usize, bytes: u64) -> Result<u64, Error> {
        assert!(which < SCRATCH_BUFFERS);
        let number = SCRATCH + which as u64;
        if self.buffers.get(&number).is_none_or(|buffer| buffer.size() < bytes) {
            self.make(number, bytes.next_multiple_of(256), USAGE);
        }
        Ok(number)
    }

    fn launch(&mut self, dispatch: &Planned<'_>) -> Result<(), Error> {
        let device = self.gpu.device().clone();
        let (text, entry) = (dispatch.plain_wgsl(), dispatch.entry_point());
        let pipeline = self.pipelines.entry(dispatch.label()).or_insert_with(|| {
            let source = wgpu::ShaderSource::Wgsl(text.into());
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: Default::default(),
                cache: None,
            })
        });
        let pipeline = pipeline.clone();
        // Its own buffer for each binding that is not used.
        let nothing: Vec<_> = (0..16)
            .map(|_| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: 16,
                    usage: USAGE,
                    mapped_at_creation: false,
                })
            })
            .collect();
        let size = (dispatch.parameters().len() as u64).next_multiple_of(16);
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let parameters =
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        self.gpu.queue().write_buffer(&parameters, 0, dispatch.parameters());
        let mut entries = vec![];
        for (place, bound) in dispatch.bindings().enumerate() {
            let (buffer, offset, size) = match bound.buffer {
                Some(number) => (&self.buffers[&number], bound.offset, wgpu::BufferSize::new(bound.size)),
                None => (&nothing[place], 0, None),
            };
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
            entries.push(wgpu::BindGroupEntry { binding: place as u32, resource });
        }
        let binding = entries.len() as u32;
        entries.push(wgpu::BindGroupEntry { binding, resource: parameters.as_entire_binding() });
        let layout = pipeline.get_bind_group_layout(0);
        let bind_group =
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
        let mut pass = self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        let [x, y, z] = dispatch.workgroups();
        pass.dispatch_workgroups(x, y, z);
        Ok(())
    }
}

/// Norms, rescaling, and a layer forward and backward, all in one buffer of the launcher's.
fn layer(gpu: &Gpu) -> Outcome {
    let shapes: [(&[usize], DType); 15] = [
        (&[33, 52], DType::F16),
        (&[65, 52], DType::F32),
        (&[65], DType::F32),
        (&[65], DType::F32),
        (&[33, 65], DType::F32),
        (&[65, 52], DType::F16),
        (&[65], DType::F32),
        (&[33, 65], DType::F32),
        (&[33, 65], DType::F32),
        (&[33, 52], DType::F16),
        (&[65, 52], DType::F32),
        (&[65], DType::F32),
        (&[65], DType::F32),
        (&[65, 52], DType::F32),
        (&[65, 52], DType::F32),
    ];
    let record = |ops: &mut Recorder<'_, '_>, tensors: &[Tensor]| {
        let [x, v, g, bias, y, w, norms, u, dy, dx, dv, dg, dbias, dw, dv_of_w] = tensors else { unreachable!() };
        // The tile of other tests, so that half of the pipelines are built already.
        let (weight, tile) = (WeightNorm::new(v, g), Tile::Tile32x32);
        ops.row_norms(WeightNorm::unit(v).eps(Eps::None), norms)?;
        ops.normalize(weight, w)?;
        ops.linear(Linear::new(x, weight).bias(bias).u(u).tile(tile), y)?;
        let gradients = Gradients::default().dx(dx).dv(dv).dg(dg).dbias(dbias);
        ops.linear_backward(LinearBackward::new(x, weight.norms(norms), dy).u(u).tile(tile), &gradients)?;
        ops.normalize_backward(NormalizeBackward::new(dw, weight), &Gradients::default().dv(dv_of_w))
    };
    let (mut bytes, mut places) = (vec![], vec![]);
    for (i, &(shape, dtype)) in shapes.iter().enumerate() {
        places.push(bytes.len() as u64);
        bytes.extend(to_bytes(&random(i as u64, shape.iter().product(), dtype), dtype));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(16), 0);

    let words = bytemuck::pod_collect_to_vec::<u8, f32>(&bytes);
    let own = gpu.upload(&words, &[words.len()])?;
    let own_parts: Result<Vec<_>, Error> = shapes
        .iter()
        .zip(&places)
        .map(|(&(shape, dtype), &at)| Tensor::from_buffer(gpu, own.buffer()?, at, shape, dtype))
        .collect();
    let own_parts = own_parts?;
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut ops = gpu.record(&mut encoder);
    record(&mut ops, &own_parts)?;
    let count = ops.dispatch_count();
    drop(ops);
    gpu.queue().submit([encoder.finish()]);

    let limits = gpu.report().limits;
    // The type says which tables: those of a GPU, as the other device has them.
    let mut info = gpu.report().info;
    info.device_type = wgpu::DeviceType::DiscreteGpu;
    let facts = Facts::new(&info, &limits, wgpu::Features::empty())?;
    let encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut launcher = Launcher { gpu, buffers: HashMap::new(), pipelines: HashMap::new(), encoder };
    let arena = launcher.make(7, bytes.len() as u64, USAGE).clone();
    gpu.queue().write_buffer(&arena, 0, &bytes);
    let parts: Result<Vec<_>, Error> =
        shapes.iter().zip(&places).map(|(&(shape, dtype), &at)| Tensor::of_launcher(7, at, shape, dtype)).collect();
    let mut ops = Recorder::launching(facts, &mut launcher);
    record(&mut ops, &parts?)?;
    assert_eq!(ops.dispatch_count(), count);
    drop(ops);
    gpu.queue().submit([launcher.encoder.finish()]);

    for (i, (&(shape, dtype), &at)) in shapes.iter().zip(&places).enumerate() {
        let [ours, theirs] = [read(&own_parts[i])?, read(&Tensor::from_buffer(gpu, &arena, at, shape, dtype)?)?];
        let largest = ours.iter().fold(0.0, |m: f64, r| m.max(r.abs()));
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() <= 1e-6 * largest, "tensor {i}: {b}, the crate has {a}");
        }
    }
    gpu.check()?;
    Ok(())
}
