//! The network on the GPU: every layer of a batch of points recorded into one pass, one submission.
use std::error::Error;
use std::time::{Duration, Instant};

use weightnorm::{Activation, DType, DeviceReport, Eps, Gpu, Linear, Tensor, Weight, WeightNorm, wgpu};

use crate::model::Model;
use crate::reference::activation;

/// A model in GPU memory.
pub struct Decoder {
    gpu: Gpu,
    layers: Vec<Layer>,
    /// What goes from layer to layer, in turns.
    hidden: [Tensor; 2],
    /// Points at a time.
    batch: usize,
}

/// How long a batch takes, the median of `runs`.
pub struct Speed {
    pub time: Duration,
    pub runs: usize,
    pub batch: usize,
    pub dispatch_count: u64,
}

struct Layer {
    concat: Option<Concat>,
    v: Tensor,
    g: Option<Tensor>,
    bias: Tensor,
    activation: Activation,
}

impl Decoder {
    pub fn new(gpu: &Gpu, model: &Model) -> Result<Decoder, Box<dyn Error>> {
        let mut layers = vec![];
        for (i, layer) in model.layers.iter().enumerate() {
            let (outs, ins) = (layer.v.rows, layer.v.columns);
            layers.push(Layer {
                concat: layer.skip.then(|| Concat::new(gpu, ins - model.input_width(), model.input_width())),
                v: gpu.upload(&layer.v.data, &[outs, ins])?,
                g: layer.g.as_ref().map(|g| gpu.upload(g, &[outs])).transpose()?,
                bias: gpu.upload(&layer.bias, &[outs])?,
                activation: activation(model, i),
            });
        }
        let widest = model.layers.iter().map(|layer| layer.v.rows.max(layer.v.columns)).max().unwrap_or(1);
        let report = gpu.report();
        // The crate splits tensors that are larger than a binding; concat.wgsl does not. Nor should one submission
        // keep a driver that computes on the CPU for more than about a second.
        let in_binding = report.limits.max_storage_buffer_binding_size as usize / (4 * widest);
        let in_time = if on_cpu(gpu) { (1 << 28) / model.work() } else { usize::MAX };
        let batch = in_binding.min(in_time).clamp(1, 65_536);
        let hidden = || gpu.zeros(&[batch, widest], DType::F32);
        Ok(Decoder { gpu: gpu.clone(), layers, hidden: [hidden()?, hidden()?], batch })
    }

    pub fn report(&self) -> DeviceReport {
        self.gpu.report()
    }

    /// Points of a submission at most.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Records all layers for up to `batch` rows of [latent, point]. Returns the output, one number a point, and how
    /// many dispatches that takes.
    fn record(&self, x: &Tensor, encoder: &mut wgpu::CommandEncoder) -> Result<(Tensor, u64), weightnorm::Error> {
        let gpu = &self.gpu;
        let points = x.shape()[0];
        let mut dispatch_count = 0;
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let mut turns = self.hidden.iter().cycle();
        let mut next = |width| {
            let hidden = turns.next().expect("a cycle has no end");
            Tensor::from_buffer(gpu, hidden.buffer()?, 0, &[points, width], DType::F32)
        };
        let mut h = x.clone();
        for layer in &self.layers {
            if let Some(concat) = &layer.concat {
                let joined = next(concat.width)?;
                concat.record(gpu, &mut pass, [&h, x, &joined], points)?;
                h = joined;
                dispatch_count += 1;
            }
            let weight = match &layer.g {
                Some(g) => Weight::Normalized(WeightNorm::new(&layer.v, g).eps(Eps::None)),
                None => Weight::Plain(&layer.v),
            };
            let y = next(layer.v.shape()[0])?;
            let mut ops = gpu.record_pass(&mut pass);
            ops.linear(Linear::new(&h, weight).bias(&layer.bias).activation(layer.activation), &y)?;
            dispatch_count += ops.dispatch_count();
            h = y;
        }
        Ok((h, dispatch_count))
    }

    /// The network's output for rows of [latent, point], as many as you like.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn decode(&self, inputs: &[f32]) -> Result<Vec<f32>, weightnorm::Error> {
        let mut sdf = vec![];
        for rows in self.batches(inputs) {
            sdf.extend(self.submit(rows)?.read::<f32>()?);
        }
        // What the example's own kernel did wrong, if anything.
        self.gpu.check()?;
        Ok(sdf)
    }

    /// [`Decoder::decode`] without blocking: a browser cannot wait.
    pub async fn decode_async(&self, inputs: &[f32]) -> Result<Vec<f32>, weightnorm::Error> {
        let mut sdf = vec![];
        for rows in self.batches(inputs) {
            sdf.extend(self.submit(rows)?.read_async::<f32>().await?);
        }
        self.gpu.check()?;
        Ok(sdf)
    }

    fn batches<'a>(&self, inputs: &'a [f32]) -> std::slice::Chunks<'a, f32> {
        inputs.chunks(self.batch * self.layers[0].input_width())
    }

    /// Submits a batch. The output is overwritten by the next one.
    fn submit(&self, rows: &[f32]) -> Result<Tensor, weightnorm::Error> {
        let width = self.layers[0].input_width();
        let x = self.gpu.upload(rows, &[rows.len() / width, width])?;
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let (y, _) = self.record(&x, &mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(y)
    }

    /// Times one batch of the file's points, from the first call of the crate to the end of the work on the GPU.
    pub fn speed(&self, model: &Model) -> Result<Speed, Box<dyn Error>> {
        let runs = if on_cpu(&self.gpu) { 5 } else { 101 };
        let numbers = self.batch * model.points.columns;
        let points: Vec<f32> = model.points.data.iter().copied().cycle().take(numbers).collect();
        let x = self.gpu.upload(&model.inputs(0, &points), &[self.batch, model.input_width()])?;
        let mut times = vec![];
        let mut dispatch_count = 0;
        for _ in 0..=runs {
            let start = Instant::now();
            let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            dispatch_count = self.record(&x, &mut encoder)?.1;
            self.gpu.queue().submit([encoder.finish()]);
            self.gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
            times.push(start.elapsed());
        }
        times.remove(0); // the warm-up
        times.sort();
        Ok(Speed { time: times[times.len() / 2], runs, batch: self.batch, dispatch_count })
    }
}

impl Layer {
    /// The width of this layer's input before a skip connection widens it.
    fn input_width(&self) -> usize {
        self.concat.as_ref().map_or(self.v.shape()[1], |concat| concat.h_width)
    }
}

/// Whether the adapter computes on the CPU. GL may not know.
fn on_cpu(gpu: &Gpu) -> bool {
    let info = gpu.report().info;
    info.device_type == wgpu::DeviceType::Cpu || info.name.to_lowercase().contains("llvmpipe")
}

/// The example's own kernel, concat.wgsl: the crate has no such operator.
struct Concat {
    pipeline: wgpu::ComputePipeline,
    h_width: usize,
    width: usize,
}

impl Concat {
    fn new(gpu: &Gpu, h_width: usize, x_width: usize) -> Concat {
        let module = gpu.device().create_shader_module(wgpu::include_wgsl!("concat.wgsl"));
        let constants = [("H", h_width as f64), ("X", x_width as f64)];
        let pipeline = gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("decode.concat"),
            layout: None,
            module: &module,
            entry_point: Some("concat"),
            compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
            cache: None,
        });
        Concat { pipeline, h_width, width: h_width + x_width }
    }

    fn record(
        &self,
        gpu: &Gpu,
        pass: &mut wgpu::ComputePass<'_>,
        tensors: [&Tensor; 3],
        points: usize,
    ) -> Result<(), weightnorm::Error> {
        let entries: Vec<_> = (0..)
            .zip(tensors)
            .map(|(binding, tensor)| {
                let size = wgpu::BufferSize::new(4 * tensor.len() as u64);
                let part = wgpu::BufferBinding { buffer: tensor.buffer()?, offset: tensor.offset(), size };
                Ok(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(part) })
            })
            .collect::<Result<_, weightnorm::Error>>()?;
        let bind_group = gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("decode.concat"),
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        pass.dispatch_workgroups(self.width.div_ceil(16) as u32, points.div_ceil(16) as u32, 1);
        Ok(())
    }
}
