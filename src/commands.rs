//! Command encoders, and commands that are submitted in pieces where they have to be.
use crate::windows::GL_WORK;
use crate::{Error, Gpu};

pub(crate) const PASS: wgpu::ComputePassDescriptor<'static> =
    wgpu::ComputePassDescriptor { label: Some("weightnorm"), timestamp_writes: None };

pub(crate) fn new_encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("weightnorm") })
}

/// Commands of the crate's own, not of a caller's encoder. On GL they are submitted in pieces of [`GL_WORK`]: another
/// thread that waits for GL's context lock panics after six seconds.
pub(crate) struct Commands {
    encoder: wgpu::CommandEncoder,
    /// In `encoder`.
    work: u64,
}

impl Commands {
    pub fn new(gpu: &Gpu) -> Commands {
        Commands { encoder: new_encoder(gpu), work: 0 }
    }

    /// A pass of `work`.
    pub fn pass(
        &mut self,
        gpu: &Gpu,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
        work: u64,
        record: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) -> Result<(), Error> {
        record(&mut self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { timestamp_writes, ..PASS }));
        self.work += work;
        if gpu.is_gl() && self.work >= GL_WORK {
            self.work = 0;
            let full = std::mem::replace(&mut self.encoder, new_encoder(gpu));
            gpu.scoped("a submission", 0, || gpu.queue().submit([full.finish()]))?;
            let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
        }
        Ok(())
    }

    pub fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        &mut self.encoder
    }

    /// What is left.
    pub fn submit(self, gpu: &Gpu) -> Result<(), Error> {
        gpu.scoped("a submission", 0, || gpu.queue().submit([self.encoder.finish()]))?;
        Ok(())
    }
}
