//! Parts of buffers as dispatches bind them.
use std::borrow::Cow;

use wgpu::util::align_to;

use crate::Tensor;
use crate::windows::Capacities;

/// A part of a buffer for one binding, from an address that the device can bind.
#[derive(Clone)]
pub(crate) struct Span<'a> {
    buffer: Cow<'a, wgpu::Buffer>,
    offset: u64,
    size: u64,
}

impl<'a> Span<'a> {
    /// Bytes that the device can bind.
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64, size: u64) -> Span<'a> {
        Span { buffer: Cow::Borrowed(buffer), offset, size }
    }

    pub fn binding(&self) -> wgpu::BufferBinding<'_> {
        wgpu::BufferBinding { buffer: &self.buffer, offset: self.offset, size: wgpu::BufferSize::new(self.size) }
    }
}

/// Elements in a buffer: of a tensor, or in scratch memory.
#[derive(Clone)]
pub(crate) struct View<'a> {
    pub buffer: Cow<'a, wgpu::Buffer>,
    pub offset: u64,
    pub element: u64,
}

impl<'a> View<'a> {
    pub fn of(tensor: &'a Tensor) -> View<'a> {
        View { buffer: Cow::Borrowed(tensor.buffer()), offset: tensor.offset(), element: tensor.dtype().size() }
    }

    /// Scratch memory as elements of `element` bytes.
    pub fn scratch(buffer: wgpu::Buffer, element: u64) -> View<'static> {
        View { buffer: Cow::Owned(buffer), offset: 0, element }
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
        let span = Span { buffer: self.buffer.clone(), offset, size: end - offset };
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
