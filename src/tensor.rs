//! Tensors over buffers.
use futures_channel::oneshot;

use crate::memory::Memory;
use crate::{ArgumentError, DType, DeviceError, Element, Error, Gpu, LimitError};

/// The largest number of elements: positions are u32 in the shaders.
const MAX_ELEMENTS: u64 = u32::MAX as u64;

const TENSOR_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// A row-major tensor in (a part of) a [`wgpu::Buffer`]. Cheap to clone; a clone is the same memory.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// None of a launcher's.
    gpu: Option<Gpu>,
    memory: Memory,
    offset: u64,
    shape: Vec<usize>,
    dtype: DType,
}

impl Tensor {
    pub(crate) fn upload<T: Element>(gpu: &Gpu, data: &[T], shape: &[usize]) -> Result<Tensor, Error> {
        let expected = element_count("upload", shape)?;
        if data.len() as u64 != expected {
            let shape = shape.to_vec();
            return Err(ArgumentError::Length { got: data.len(), expected: expected as usize, shape }.into());
        }
        let bytes: &[u8] = bytemuck::cast_slice(data);
        Tensor::written(gpu, "upload", shape, T::DTYPE, |mut all| all.slice(..bytes.len()).copy_from_slice(bytes))
    }

    /// One word again and again.
    pub(crate) fn repeat(gpu: &Gpu, word: u32, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        Tensor::written(gpu, "a tensor", shape, dtype, |all| all.into_chunks().0.fill(word.to_ne_bytes()))
    }

    fn written(
        gpu: &Gpu,
        what: &'static str,
        shape: &[usize],
        dtype: DType,
        write: impl FnOnce(wgpu::WriteOnly<'_, [u8]>),
    ) -> Result<Tensor, Error> {
        Tensor::made(gpu, what, shape, dtype, |size| gpu.create_written_buffer("tensor", size, TENSOR_USAGE, write))
    }

    pub(crate) fn zeros(gpu: &Gpu, what: &'static str, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        Tensor::made(gpu, what, shape, dtype, |size| gpu.create_buffer("tensor", size, TENSOR_USAGE))
    }

    fn made(
        gpu: &Gpu,
        what: &'static str,
        shape: &[usize],
        dtype: DType,
        make: impl FnOnce(u64) -> Result<wgpu::Buffer, Error>,
    ) -> Result<Tensor, Error> {
        gpu.check()?;
        let bytes = element_count(what, shape)? * dtype.size();
        let size = bytes.next_multiple_of(16).max(16);
        let limit = gpu.limits().max_buffer_size;
        if size > limit {
            return Err(LimitError::TensorTooLarge { what, shape: shape.to_vec(), size, unit: "bytes", limit }.into());
        }
        Ok(Tensor::of(gpu, make(size)?, 0, shape, dtype))
    }

    /// Several in one buffer.
    pub(crate) fn zeros_together(gpu: &Gpu, tensors: &[(&[usize], DType)]) -> Result<Vec<Tensor>, Error> {
        gpu.check()?;
        // Outputs of an operator lie so far apart.
        let apart = gpu.capacities().apart.max(16);
        let mut bytes = 0u64;
        let mut places = vec![];
        for &(shape, dtype) in tensors {
            places.push(bytes);
            bytes += (element_count("zeros", shape)? * dtype.size()).next_multiple_of(apart);
        }
        let buffer = gpu.create_buffer("tensors", bytes.max(16), TENSOR_USAGE)?;
        let placed = tensors.iter().zip(places);
        Ok(placed.map(|(&(shape, dtype), offset)| Tensor::of(gpu, buffer.clone(), offset, shape, dtype)).collect())
    }

    /// Of checked places.
    fn of(gpu: &Gpu, buffer: wgpu::Buffer, offset: u64, shape: &[usize], dtype: DType) -> Tensor {
        Tensor { gpu: Some(gpu.clone()), memory: Memory::Buffer(buffer), offset, shape: shape.to_vec(), dtype }
    }

    /// A tensor in a buffer that a [`Launch`](crate::Launch) knows by its number, from byte `offset` on: the caller
    /// sees to it that the buffer is large enough. It has no device, so that operators of [`Gpu`] refuse it, and
    /// [`Tensor::read`] too.
    ///
    /// # Errors
    /// [`ArgumentError::Offset`] unless `offset` is a multiple of 4; [`LimitError::TensorTooLarge`].
    pub fn of_launcher(number: u64, offset: u64, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        if !offset.is_multiple_of(4) {
            return Err(ArgumentError::Offset { offset }.into());
        }
        element_count("tensor", shape)?;
        Ok(Tensor { gpu: None, memory: Memory::Numbered(number), offset, shape: shape.to_vec(), dtype })
    }

    /// Of scratch memory, which is large enough: f32.
    pub(crate) fn in_scratch(gpu: Option<&Gpu>, memory: Memory, offset: u64, shape: &[usize]) -> Tensor {
        Tensor { offset, ..Tensor::in_scratch_as(gpu, memory, shape, DType::F32) }
    }

    /// From the start of scratch memory, which is large enough.
    pub(crate) fn in_scratch_as(gpu: Option<&Gpu>, memory: Memory, shape: &[usize], dtype: DType) -> Tensor {
        Tensor { gpu: gpu.cloned(), memory, offset: 0, shape: shape.to_vec(), dtype }
    }

    /// A tensor in (a part of) a buffer of yours: row-major, `shape`, from byte `offset` on. The buffer needs `STORAGE`
    /// for every operator, and `COPY_SRC` to be read back.
    ///
    /// The buffer has to be one of this device ([`Gpu::device`]), whoever made it. That is checked by a harmless
    /// mistake with it, an `unmap` of what is not mapped, since wgpu does not tell whose a buffer is: the error of a
    /// foreign one goes to its own device, where it may be logged, or be printed as a panic that is caught here. This
    /// takes some microseconds: adopt a buffer once, not for each step. Not checked are buffers that are mapped, or
    /// that the host can map (`MAP_READ`, `MAP_WRITE`), and in a browser none: it reports a foreign buffer itself,
    /// after the call (see [`Gpu::check`]).
    ///
    /// # Errors
    /// [`ArgumentError::Offset`] unless `offset` is a multiple of 4; [`ArgumentError::BufferTooShort`] if the buffer
    /// ends before the tensor's last 32-bit word; [`LimitError::TensorTooLarge`]; [`ArgumentError::OtherGpu`] for a
    /// buffer of another device; [`DeviceError::Lost`].
    pub fn from_buffer(
        gpu: &Gpu,
        buffer: &wgpu::Buffer,
        offset: u64,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor, Error> {
        if !offset.is_multiple_of(4) {
            return Err(ArgumentError::Offset { offset }.into());
        }
        let bytes = (element_count("tensor", shape)? * dtype.size()).next_multiple_of(4);
        let needed = offset.saturating_add(bytes);
        if needed > buffer.size() {
            return Err(ArgumentError::BufferTooShort { needed, size: buffer.size() }.into());
        }
        gpu.expect_buffer("tensor", buffer)?;
        Ok(Tensor::of(gpu, buffer.clone(), offset, shape, dtype))
    }

    /// The sizes of its axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The storage type of its elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of its elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer it lies in.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] for a tensor of [`Tensor::of_launcher`]: wgpu has no buffer of it.
    pub fn buffer(&self) -> Result<&wgpu::Buffer, Error> {
        match &self.memory {
            Memory::Buffer(buffer) => Ok(buffer),
            Memory::Numbered(_) => {
                Err(DeviceError::Unsupported { what: "a buffer of a launcher's tensor".to_owned() }.into())
            }
        }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The byte of the buffer at which it starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The same memory with another shape of as many elements.
    ///
    /// # Errors
    /// [`ArgumentError::Length`].
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor, Error> {
        if element_count("reshape", shape)? != self.len() as u64 {
            let expected = shape.iter().product();
            return Err(ArgumentError::Length { got: self.len(), expected, shape: shape.to_vec() }.into());
        }
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// Elements from `first` on, with a shape of their own: within the tensor. 16-bit ones may start within a word, and
    /// are for bindings alone then.
    pub(crate) fn part(&self, first: usize, shape: &[usize]) -> Tensor {
        let offset = self.offset + first as u64 * self.dtype.size();
        Tensor { offset, shape: shape.to_vec(), ..self.clone() }
    }

    /// Waits for the elements and copies them to the host. `T` has to be the tensor's own storage type.
    ///
    /// # Errors
    /// [`ArgumentError::DType`]; [`ArgumentError::Usage`] if the buffer lacks `COPY_SRC`; [`DeviceError::Lost`],
    /// [`DeviceError::OutOfMemory`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read<T: Element>(&self) -> Result<Vec<T>, Error> {
        pollster::block_on(self.fetch(true))
    }

    /// [`Tensor::read`] without blocking. The future polls the device by itself: no other poller is needed.
    ///
    /// # Errors
    /// As [`Tensor::read`].
    pub async fn read_async<T: Element>(&self) -> Result<Vec<T>, Error> {
        self.fetch(false).await
    }

    pub(crate) async fn fetch<T: Element>(&self, block: bool) -> Result<Vec<T>, Error> {
        if T::DTYPE != self.dtype {
            return Err(ArgumentError::DType { op: "read", arg: "T", got: T::DTYPE, expected: self.dtype }.into());
        }
        let (Some(gpu), Memory::Buffer(buffer)) = (&self.gpu, &self.memory) else {
            return Err(DeviceError::Unsupported { what: "reading a tensor of a launcher's".to_owned() }.into());
        };
        gpu.check()?;
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            return Err(
                ArgumentError::Usage { op: "read", arg: "the tensor", missing: wgpu::BufferUsages::COPY_SRC }.into()
            );
        }
        if self.is_empty() {
            return Ok(vec![]);
        }
        let (device, queue) = (gpu.device(), gpu.queue());
        let bytes = self.len() as u64 * self.dtype.size();
        let words = bytes.next_multiple_of(4);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = gpu.create_buffer("readback", words, usage)?;
        gpu.scoped("a readback", words, || {
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(buffer, self.offset, &staging, 0, words);
            queue.submit([encoder.finish()]);
        })?;
        let (sender, receiver) = oneshot::channel();
        // What fails here the callback hears too; without a scope wgpu's own handler would panic on it.
        let started = gpu.scoped("a readback", words, || {
            staging.map_async(wgpu::MapMode::Read, .., move |result| drop(sender.send(result)));
        });
        if block {
            // What a failed poll means, the callback says.
            let _ = device.poll(wgpu::PollType::wait_indefinitely());
        }
        let mapped = wait(device, receiver).await;
        // A lost device fails the mapping, and says why to its own handler.
        gpu.settled().await?;
        let lost = |reason: String| Error::Device(DeviceError::Lost { reason });
        match mapped {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(lost(format!("a readback could not be mapped: {e}"))),
            Err(oneshot::Canceled) => return Err(lost("a readback was dropped".to_owned())),
        }
        started?;
        let view = staging.get_mapped_range(..).map_err(|e| lost(e.to_string()))?;
        let mut data = vec![T::zeroed(); self.len()];
        bytemuck::cast_slice_mut::<T, u8>(&mut data).copy_from_slice(&view[..bytes as usize]);
        Ok(data)
    }

    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref()
    }

    /// Bytes of its elements.
    pub(crate) fn bytes(&self) -> u64 {
        self.len() as u64 * self.dtype.size()
    }

    /// Multiply-adds of a product of this matrix, whose rows lie along its last axis, and a weight of `outs` rows. In
    /// u64: usize has 32 bits in a browser.
    pub(crate) fn products(&self, outs: usize) -> u64 {
        self.len() as u64 * outs as u64
    }

    /// Bytes from the start of the buffer to the end of the last word.
    pub(crate) fn end(&self) -> u64 {
        self.offset + (self.len() as u64 * self.dtype.size()).next_multiple_of(4)
    }
}

impl Gpu {
    /// Uploads a slice as a tensor of `shape`, in the storage type of its elements.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] if the shape holds another number of elements; [`LimitError::TensorTooLarge`],
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Lost`].
    pub fn upload<T: Element>(&self, data: &[T], shape: &[usize]) -> Result<Tensor, Error> {
        Tensor::upload(self, data, shape)
    }

    /// A new tensor of zeros.
    ///
    /// # Errors
    /// [`LimitError::TensorTooLarge`], [`DeviceError::OutOfMemory`], [`DeviceError::Lost`].
    pub fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        self.zeros_of("zeros", shape, dtype)
    }

    /// [`Gpu::zeros`] for an operator, whose result it is.
    pub(crate) fn zeros_of(&self, what: &'static str, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        Tensor::zeros(self, what, shape, dtype)
    }
}

/// Awaits what a callback of the device sends. Such callbacks run only when somebody polls the device, and on native
/// platforms nobody else may do so.
async fn wait<T>(device: &wgpu::Device, mut receiver: oneshot::Receiver<T>) -> Result<T, oneshot::Canceled> {
    std::future::poll_fn(|context| {
        use std::future::Future;
        use std::task::Poll;
        let _ = device.poll(wgpu::PollType::Poll);
        let poll = std::pin::Pin::new(&mut receiver).poll(context);
        if cfg!(not(target_arch = "wasm32")) && poll.is_pending() {
            std::thread::yield_now();
            context.waker().wake_by_ref();
        }
        match poll {
            Poll::Ready(sent) => Poll::Ready(sent),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The number of elements of a shape. The sizes beside a zero are held to the same limit, so that no product of
/// sizes overflows anywhere.
fn element_count(what: &'static str, shape: &[usize]) -> Result<u64, Error> {
    let product = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1) as u64)).unwrap_or(u64::MAX);
    if product > MAX_ELEMENTS {
        let (shape, size, unit) = (shape.to_vec(), product, "elements");
        return Err(LimitError::TensorTooLarge { what, shape, size, unit, limit: MAX_ELEMENTS }.into());
    }
    Ok(if shape.contains(&0) { 0 } else { product })
}
