//! The example's own kernels, kernels.wgsl: each call is set up once and recorded in every step, into the same pass as
//! what the crate records.
use weightnorm::{Error, Gpu, Tensor};

/// The compiled kernels, for batches of one size.
pub struct Kernels {
    gpu: Gpu,
    join: wgpu::ComputePipeline,
    join_backward: wgpu::ComputePipeline,
    relu: wgpu::ComputePipeline,
    loss: wgpu::ComputePipeline,
}

/// A kernel with its buffers.
pub struct Call {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    groups: u32,
}

impl Kernels {
    pub fn new(gpu: &Gpu, points: usize) -> Kernels {
        let module = gpu.device().create_shader_module(wgpu::include_wgsl!("kernels.wgsl"));
        let pipeline = |entry: &str, constants: &[(&str, f64)]| {
            gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&format!("train.{entry}")),
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
                cache: None,
            })
        };
        let points = [("POINTS", points as f64)];
        Kernels {
            join: pipeline("join", &points),
            join_backward: pipeline("join_backward", &points),
            relu: pipeline("relu", &[]),
            loss: pipeline("loss", &points),
            gpu: gpu.clone(),
        }
    }

    /// joined = [h, x], point by point.
    pub fn join(&self, h: &Tensor, x: &Tensor, joined: &Tensor) -> Result<Call, Error> {
        self.call(&self.join, &[h, x, joined], joined.len())
    }

    /// dh, of the gradient of joined = [h, x].
    pub fn join_backward(&self, joined: &Tensor, dh: &Tensor) -> Result<Call, Error> {
        self.call(&self.join_backward, &[joined, dh], dh.len())
    }

    /// h = max(h, 0)
    pub fn relu(&self, h: &Tensor) -> Result<Call, Error> {
        self.call(&self.relu, &[h], h.len())
    }

    /// The loss of the output f for the points x, and its gradient df.
    pub fn loss(&self, x: &Tensor, f: &Tensor, df: &Tensor, loss: &Tensor) -> Result<Call, Error> {
        self.call(&self.loss, &[x, f, df, loss], 1)
    }

    fn call(&self, pipeline: &wgpu::ComputePipeline, tensors: &[&Tensor], invocations: usize) -> Result<Call, Error> {
        let entries: Vec<_> = (0..)
            .zip(tensors)
            .map(|(binding, tensor)| {
                let size = wgpu::BufferSize::new(4 * tensor.len() as u64);
                let part = wgpu::BufferBinding { buffer: tensor.buffer()?, offset: tensor.offset(), size };
                Ok(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(part) })
            })
            .collect::<Result<_, Error>>()?;
        let bind_group = self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("train"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Ok(Call { pipeline: pipeline.clone(), bind_group, groups: invocations.div_ceil(64) as u32 })
    }
}

impl Call {
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.groups, 1, 1);
    }
}
