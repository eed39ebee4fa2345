//! Buffers: scratch memory, and what is made for an operator.
use crate::{DeviceError, Error, Gpu, LimitError};

/// What a tensor lies in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Memory {
    /// A buffer of the device.
    Buffer(wgpu::Buffer),
    /// One that a launcher knows by its number.
    Numbered(u64),
}

impl Memory {
    pub fn number(&self) -> Option<u64> {
        if let Memory::Numbered(number) = self { Some(*number) } else { None }
    }
}

/// The scratch buffers, [`SCRATCH_BUFFERS`](crate::SCRATCH_BUFFERS) of them. One dispatch may read norms and quotients,
/// and write factors and partial sums, and wgpu tracks use per buffer.
#[derive(Clone, Copy)]
pub(crate) enum Scratch {
    Sums,
    Scales,
    Norms,
    Factors,
    Vectors,
    ActivationGradient,
}

impl Gpu {
    /// Preallocates scratch memory, five buffers of `bytes` each, so that recording allocates none up to that size.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`LimitError::TooLarge`], [`DeviceError::Lost`].
    pub fn reserve(&self, bytes: u64) -> Result<(), Error> {
        self.check()?;
        use Scratch::{ActivationGradient, Factors, Norms, Scales, Sums};
        for which in [Sums, Scales, Norms, Factors, ActivationGradient] {
            self.scratch(which, bytes)?;
        }
        Ok(())
    }

    /// A scratch buffer of at least `bytes`. What was recorded with a smaller one keeps that one.
    pub(crate) fn scratch(&self, which: Scratch, bytes: u64) -> Result<wgpu::Buffer, Error> {
        let mut scratch = self.scratch_cells().lock().expect("no panic while held");
        let slot = &mut scratch[which as usize];
        if let Some(buffer) = slot.as_ref().filter(|b| b.size() >= bytes) {
            return Ok(buffer.clone());
        }
        let limit = self.limits().max_buffer_size / 16 * 16;
        if bytes > limit {
            return Err(LimitError::TooLarge { what: "scratch memory in bytes", size: bytes, limit }.into());
        }
        let size = bytes.checked_next_power_of_two().unwrap_or(limit).clamp(4096, limit.max(4096));
        let buffer = self.create_buffer("scratch memory", size, wgpu::BufferUsages::STORAGE)?;
        Ok(slot.insert(buffer).clone())
    }

    pub(crate) fn create_buffer(
        &self,
        what: &'static str,
        size: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, Error> {
        self.create_buffer_as(what, size, usage, false)
    }

    /// A new buffer that `write` fills, of bytes that are zero before.
    pub(crate) fn create_written_buffer(
        &self,
        what: &'static str,
        size: u64,
        usage: wgpu::BufferUsages,
        write: impl FnOnce(wgpu::WriteOnly<'_, [u8]>),
    ) -> Result<wgpu::Buffer, Error> {
        let buffer = self.create_buffer_as(what, size, usage, true)?;
        {
            let lost =
                |e| Error::Device(DeviceError::Lost { reason: format!("a new buffer could not be written: {e}") });
            let mut view = buffer.get_mapped_range_mut(..).map_err(lost)?;
            write(view.slice(..));
        }
        self.scoped(what, size, || buffer.unmap())?;
        Ok(buffer)
    }

    fn create_buffer_as(
        &self,
        what: &'static str,
        size: u64,
        usage: wgpu::BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<wgpu::Buffer, Error> {
        let limit = self.limits().max_buffer_size;
        if size > limit {
            return Err(LimitError::TooLarge { what: "a buffer in bytes", size, limit }.into());
        }
        let label = format!("weightnorm.{what}");
        let descriptor = wgpu::BufferDescriptor { label: Some(&label), size, usage, mapped_at_creation };
        self.scopes().create_buffer(self.device(), what, &descriptor)
    }

    /// Runs `make` and gives back the error that wgpu raises meanwhile, if any: in a browser the next [`Gpu::reported`]
    /// does.
    pub(crate) fn scoped<T>(&self, what: &'static str, bytes: u64, make: impl FnOnce() -> T) -> Result<T, Error> {
        self.scopes().scoped(self.device(), what, bytes, make)
    }
}
