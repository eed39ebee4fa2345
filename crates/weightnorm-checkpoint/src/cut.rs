//! Tensors cut into windows.
use std::ops::Range;

use weightnorm::Layout;

/// Bytes that a row takes besides its elements: g and its norm, each also in f64, and what is known of it.
pub(super) const ROW: u64 = 32;

/// A part of a tensor that lies together: `outer` times `rows.len()` times `inner` elements from `first` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub first: u64,
    pub outer: usize,
    pub rows: Range<usize>,
    pub inner: usize,
}

impl Window {
    pub fn shape(&self) -> [usize; 3] {
        [self.outer, self.rows.len(), self.inner]
    }

    pub fn len(&self) -> usize {
        self.outer * self.rows.len() * self.inner
    }
}

/// How a tensor is cut: as many slices, rows or elements of one row as fit. An element takes `size` bytes, a row
/// [`ROW`] besides.
pub(super) struct Cut {
    layout: Layout,
    outer: usize,
    rows: usize,
    inner: usize,
}

impl Cut {
    pub fn new(layout: Layout, size: u64, capacity: u64) -> Cut {
        let Layout { outer, kept, inner } = layout.wide();
        let row = inner * size + ROW;
        let fit = |count: u64| count.try_into().unwrap_or(usize::MAX);
        let (outer, rows, inner) =
            if let Some(rest) = capacity.checked_sub(kept * ROW).filter(|&r| r >= kept * inner * size) {
                (fit((rest / (kept * inner * size).max(1)).min(outer)), layout.kept, layout.inner)
            } else if row <= capacity {
                (1, fit(capacity / row), layout.inner)
            } else {
                (1, 1, fit((capacity - ROW) / size))
            };
        Cut { layout, outer: outer.max(1), rows: rows.max(1), inner: inner.max(1) }
    }

    /// Whether every window holds all of its rows.
    pub fn whole_rows(&self) -> bool {
        self.inner >= self.layout.inner && self.outer >= self.layout.outer
    }

    /// Rows that stand in the same windows.
    pub fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        steps(self.layout.kept, self.rows)
    }

    /// All windows of a block.
    pub fn windows(&self, rows: &Range<usize>) -> impl Iterator<Item = Window> {
        let Layout { outer, kept, inner } = self.layout;
        steps(outer, self.outer).flat_map(move |os| {
            steps(inner, self.inner).map(move |is| Window {
                first: (os.start as u64 * kept as u64 + rows.start as u64) * inner as u64 + is.start as u64,
                outer: os.len(),
                rows: rows.clone(),
                inner: is.len(),
            })
        })
    }
}

/// 0 to `all` in pieces of `step`, the last one maybe shorter.
pub(super) fn steps(all: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..all).step_by(step).map(move |at| at..all.min(at.saturating_add(step)))
}
