//! Parts of buffers as dispatches bind them.
use std::borrow::Cow;

use wgpu::util::align_to;

use crate::Tensor;
use crate::memory::Memory;
use crate::windows::Capacities;

/// A part of a buffer for one binding, from an address that the device can bind.
#[derive(Clone)]
pub(crate) struct Span<'a> {
    memory: Cow<'a, Memory>,
    offset: u64,
    size: u64,
}

impl<'a> Span<'a> {
    /// Bytes that the device can bind.
    pub fn new(memory: &'a Memory, offset: u64, size: u64) -> Span<'a> {
        Span { memory: Cow::Borrowed(memory), offset, size }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Offset and size in bytes.
    pub fn range(&self) -> (u64, u64) {
        (self.offset, self.size)
    }

    /// As wgpu binds it; none of a numbered buffer.
    pub fn binding(&self) -> Option<wgpu::BufferBinding<'_>> {
        let Memory::Buffer(buffer) = self.memory() else { return None };
        Some(wgpu::BufferBinding { buffer, offset: self.offset, size: wgpu::BufferSize::new(self.size) })
    }
}

/// Elements in a buffer: of a tensor, or in scratch memory.
#[derive(Clone)]
pub(crate) struct View<'a> {
    pub memory: Cow<'a, Memory>,
    pub offset: u64,
    pub element: u64,
}

impl<'a> View<'a> {
    pub fn of(tensor: &'a Tensor) -> View<'a> {
        View { memory: Cow::Borrowed(tensor.memory()), offset: tensor.offset(), element: tensor.dtype().size() }
    }

    /// Scratch memory as elements of `element` bytes.
    pub fn scratch(memory: Memory, element: u64) -> View<'static> {
        View { memory: Cow::Owned(memory), offset: 0, element }
    }

    /// Binds `count` elements from `first` on: the span, and the place of `first` within it in elements. Devices bind
    /// at multiples of an alignment of at most 256 bytes, so that place is below 128 and fits 8 bits.
    pub fn bind(&self, capacities: Capacities, first: u64, count: u64) -> Bound<'a> {
        if count == 0 {
            return (None, 0);
        }
        let begin = self.offset + first * self.element;
        let alignment = capacities.alignment;
        let offset = begin / alignment * alignment;
        let end = align_to(begin + count * self.element, 4);
        let span = Span { memory: self.memory.clone(), offset, size: end - offset };
        (Some(span), ((begin - offset) / self.element) as u32)
    }
}

/// A span and the place of its first element, as [`View::bind`] gives them.
pub(crate) type Bound<'a> = (Option<Span<'a>>, u32);

/// [`View::bind`] of a tensor that need not be there.
pub(crate) fn bind<'a>(capacities: Capacities, tensor: Option<&'a Tensor>, first: u64, count: u64) -> Bound<'a> {
    tensor.map_or((None, 0), |tensor| View::of(tensor).bind(capacities, first, count))
}

/// Up to four places within bindings, 8 bits each.
pub(crate) fn offsets(places: [u32; 4]) -> u32 {
    debug_assert!(places.iter().all(|&p| p < 256), "bound at a multiple of at most 256 bytes");
    u32::from_le_bytes(places.map(|p| p as u8))
}
