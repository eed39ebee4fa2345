//! Tensors as they would lie in a `.safetensors` file, read from where they are: elements in row-major order from
//! storages in which they stand by strides.
use std::fs::File;
use std::io;

use crate::at::read_at;

/// Bytes of a storage that are read at once where a tensor's elements do not lie together. A multiple of every size of
/// an element.
const BLOCK: u64 = 16 << 20;

/// A tensor.
#[derive(Debug)]
pub struct View {
    /// Its place in the data of the `.safetensors` file that it would be.
    pub begin: u64,
    pub end: u64,
    /// The place of its first element in the file.
    pub at: u64,
    /// Where its elements do not lie together.
    pub strided: Option<Strided>,
}

/// Element (i₀, i₁, ..) stands at Σ iₐ·strideₐ.
#[derive(Debug)]
pub struct Strided {
    /// Bytes of an element.
    pub size: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// All tensors, in the order of their places, without holes.
#[derive(Debug)]
pub struct Views(pub Vec<View>);

impl Views {
    /// Bytes of that data from `offset` on.
    pub fn read(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        let first = self.0.partition_point(|view| view.end <= offset);
        for view in &self.0[first..] {
            if done == bytes.len() {
                break;
            }
            let skip = offset + done as u64 - view.begin;
            let count = (view.end - view.begin - skip).min((bytes.len() - done) as u64) as usize;
            let part = &mut bytes[done..done + count];
            match &view.strided {
                None => read_at(file, part, view.at + skip)?,
                Some(strided) => strided.read(file, view.at, skip, part)?,
            }
            done += count;
        }
        if done == bytes.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl Strided {
    /// As it has to be kept, or `None` where row-major order is the order of the storage. `shape` without zeros.
    pub fn new(size: u64, shape: &[u64], strides: &[u64]) -> Option<Strided> {
        let mut expected = 1;
        let is_plain = shape.iter().zip(strides).rev().all(|(&d, &stride)| {
            let fits = d == 1 || stride == expected;
            expected *= d;
            fits
        });
        // That of an axis of one index may be anything, and takes nobody anywhere.
        let strides = shape.iter().zip(strides).map(|(&d, &stride)| if d == 1 { 0 } else { stride }).collect();
        (!is_plain).then(|| Strided { size, shape: shape.to_vec(), strides })
    }

    /// Bytes of the tensor from `skip` on, block by block of what of the storage they span.
    fn read(&self, file: &File, at: u64, skip: u64, bytes: &mut [u8]) -> io::Result<()> {
        let (first, last) = (skip / self.size, (skip + bytes.len() as u64).div_ceil(self.size));
        let (mut low, mut high) = (u64::MAX, 0);
        self.each(first, last, |_, place| (low, high) = (low.min(place), high.max(place)));
        let mut block = vec![];
        // Every place of an element is a multiple of its size from the lowest one on, so that no block cuts one.
        while low <= high {
            let end = (high + self.size).min(low.saturating_add(BLOCK));
            block.resize((end - low) as usize, 0);
            read_at(file, &mut block, at + low)?;
            let mut next = u64::MAX;
            self.each(first, last, |element, place| {
                if place >= end {
                    next = next.min(place);
                } else if place >= low {
                    let from = element * self.size;
                    // The first and the last element may be wanted in part.
                    let begin = from.max(skip);
                    let stop = (from + self.size).min(skip + bytes.len() as u64);
                    let source = &block[(place - low + begin - from) as usize..(place - low + stop - from) as usize];
                    bytes[(begin - skip) as usize..(stop - skip) as usize].copy_from_slice(source);
                }
            });
            low = next;
        }
        Ok(())
    }

    /// Elements `first` to `last` with their places in bytes.
    fn each(&self, first: u64, last: u64, mut take: impl FnMut(u64, u64)) {
        let mut index = vec![0; self.shape.len()];
        let (mut rest, mut place) = (first, 0);
        for axis in (0..index.len()).rev() {
            index[axis] = rest % self.shape[axis];
            rest /= self.shape[axis];
            place += index[axis] * self.strides[axis];
        }
        for element in first..last {
            take(element, place * self.size);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                place += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                place -= index[axis] * self.strides[axis];
                index[axis] = 0;
            }
        }
    }
}
