//! The example's own kernels, kernels.wgsl: each call is set up once and recorded in every step, into the same pass as
//! what the crate records.
use weightnorm::{Error, Gpu, Tensor, wgpu};

/// The compiled kernels.
pub struct Kernels {
    gpu: Gpu,
    gather: wgpu::ComputePipeline,
    loss: wgpu::ComputePipeline,
}

/// A kernel with its buffers.
pub struct Call {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    groups: u32,
}

impl Kernels {
    pub fn new(gpu: &Gpu) -> Kernels {
        let module = gpu.device().create_shader_module(wgpu::include_wgsl!("kernels.wgsl"));
        let pipeline = |entry: &str| {
            gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&format!("digits.{entry}")),
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: Default::default(),
                cache: None,
            })
        };
        Kernels { gather: pipeline("gather"), loss: pipeline("loss"), gpu: gpu.clone() }
    }

    /// x, of those of `images` that `batch` names.
    pub fn gather(&self, images: &Tensor, batch: &Tensor, x: &Tensor) -> Result<Call, Error> {
        self.call(&self.gather, &[images, batch, x], x.len().div_ceil(64) as u32)
    }

    /// `result`, the loss and the share that was told right, and the gradient of the logits.
    pub fn loss(&self, [logits, labels, batch]: [&Tensor; 3], dy: &Tensor, result: &Tensor) -> Result<Call, Error> {
        self.call(&self.loss, &[logits, labels, batch, dy, result], 1)
    }

    fn call(&self, pipeline: &wgpu::ComputePipeline, tensors: &[&Tensor], groups: u32) -> Result<Call, Error> {
        let entries: Vec<_> = (0..)
            .zip(tensors)
            .map(|(binding, tensor)| {
                let size = wgpu::BufferSize::new(4 * tensor.len() as u64);
                let part = wgpu::BufferBinding { buffer: tensor.buffer()?, offset: tensor.offset(), size };
                Ok(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(part) })
            })
            .collect::<Result<_, Error>>()?;
        let bind_group = self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("digits"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Ok(Call { pipeline: pipeline.clone(), bind_group, groups })
    }
}

impl Call {
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.groups, 1, 1);
    }
}
