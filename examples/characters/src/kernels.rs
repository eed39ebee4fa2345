//! The example's own kernels, kernels.wgsl: each call is set up once and recorded in every step, into the same pass as
//! what the crate records.
use weightnorm::{Error, Gpu, Tensor, wgpu};

/// The compiled kernels.
pub struct Kernels {
    gpu: Gpu,
    gather: wgpu::ComputePipeline,
    loss: wgpu::ComputePipeline,
    mean: wgpu::ComputePipeline,
    clip: wgpu::ComputePipeline,
}

/// A kernel with its buffers.
pub struct Call {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    groups: [u32; 2],
}

/// What a device may dispatch in one dimension.
const MOST_GROUPS: usize = 65_535;

impl Kernels {
    /// For so many different characters, and sequences beside each other.
    pub fn new(gpu: &Gpu, classes: usize, batch: usize) -> Kernels {
        let module = gpu.device().create_shader_module(wgpu::include_wgsl!("kernels.wgsl"));
        let constants = [("CLASSES", classes as f64), ("SEQUENCES", batch as f64)];
        let pipeline = |entry: &str| {
            gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&format!("characters.{entry}")),
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
                cache: None,
            })
        };
        let [gather, loss, mean, clip] = ["gather", "loss", "mean", "clip"].map(pipeline);
        Kernels { gpu: gpu.clone(), gather, loss, mean, clip }
    }

    /// x and the characters behind it, of the part of the text.
    pub fn gather(&self, [text, part, x, next]: [&Tensor; 4]) -> Result<Call, Error> {
        self.call(&self.gather, &[text, part, x, next], x.len())
    }

    /// The loss of each row, and the gradient of the logits.
    pub fn loss(&self, [logits, next, d_logits, losses]: [&Tensor; 4]) -> Result<Call, Error> {
        self.call(&self.loss, &[logits, next, d_logits, losses], losses.len())
    }

    /// The mean loss, in `result`.
    pub fn mean(&self, losses: &Tensor, result: &Tensor) -> Result<Call, Error> {
        self.call(&self.mean, &[losses, result], 1)
    }

    /// Scales gradients that are too long. Their norm goes to `result`.
    pub fn clip(&self, [norm, gradients, result]: [&Tensor; 3]) -> Result<Call, Error> {
        self.call(&self.clip, &[norm, gradients, result], gradients.len())
    }

    fn call(&self, pipeline: &wgpu::ComputePipeline, tensors: &[&Tensor], count: usize) -> Result<Call, Error> {
        let entries: Vec<_> = (0..)
            .zip(tensors)
            .map(|(binding, tensor)| {
                let size = wgpu::BufferSize::new(4 * tensor.len() as u64);
                let part = wgpu::BufferBinding { buffer: tensor.buffer()?, offset: tensor.offset(), size };
                Ok(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(part) })
            })
            .collect::<Result<_, Error>>()?;
        let bind_group = self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("characters"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let groups = count.div_ceil(64);
        let rows = groups.div_ceil(MOST_GROUPS);
        let groups = [groups.div_ceil(rows) as u32, rows as u32];
        Ok(Call { pipeline: pipeline.clone(), bind_group, groups })
    }
}

impl Call {
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.groups[0], self.groups[1], 1);
    }
}
