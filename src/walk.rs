//! How kernels that are bound by memory walk through it: the table from what the adapter is to their variants.
use std::cell::Cell;

use crate::{DType, Gpu, Tensor};

/// A GPU wants neighbouring invocations to read neighbouring addresses, and many of them. A driver on a CPU runs
/// invocations one bundle after the other: each bundle had better walk through memory, and few of them do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub enum Walk {
    Gpu,
    Cpu,
}

/// Invocations in a workgroup.
const THREADS: u64 = 64;
/// 32-bit words of a quad, what wide loads and stores take.
pub(crate) const QUAD_WORDS: u64 = 4;

thread_local! {
    static FORCED: Cell<Option<Walk>> = const { Cell::new(None) };
}

/// Runs `f` with what it records made for this kind of device. For tests.
#[doc(hidden)]
pub fn with_walk<T>(walk: Walk, f: impl FnOnce() -> T) -> T {
    let before = FORCED.replace(Some(walk));
    let result = f();
    FORCED.set(before);
    result
}

impl Walk {
    pub fn of(gpu: &Gpu) -> Walk {
        let own = if gpu.is_cpu() { Walk::Cpu } else { Walk::Gpu };
        FORCED.get().unwrap_or(own)
    }

    /// Workgroups that keep the device busy.
    pub(crate) fn enough_groups(self) -> u64 {
        match self {
            Walk::Gpu => 512,
            Walk::Cpu => 16,
        }
    }

    /// Invocations that share a sum of `units` terms, of which there are `sums`.
    pub(crate) fn lanes(self, sums: u64, units: u64) -> u64 {
        match (self, units) {
            (_, 0..=16) => 1,
            (Walk::Gpu, 17..=256) => 8,
            (Walk::Gpu, _) => THREADS,
            (Walk::Cpu, _) if sums >= 8 * THREADS => 1,
            (Walk::Cpu, 17..=256) if sums >= 2 * THREADS => 1,
            (Walk::Cpu, 17..=256) => 8,
            (Walk::Cpu, _) => (8 * THREADS / sums.max(1)).next_power_of_two().clamp(8, THREADS),
        }
    }

    /// Rows of `units` terms that one invocation sums up, where it has each for itself: what is done once for all of
    /// them costs little then.
    pub(crate) fn rows_of_a_lane(self, rows: u64, units: u64) -> u64 {
        match self {
            Walk::Cpu if units <= 16 && rows >= 256 * THREADS => 16,
            _ => 1,
        }
    }

    /// Neighbouring invocations, of `lanes`, that read neighbouring units.
    pub(crate) fn run(self, lanes: u64) -> u64 {
        match self {
            Walk::Gpu => lanes,
            // As many as a bundle has on most CPUs.
            Walk::Cpu => lanes.min(8),
        }
    }

    /// Quads of a row that one invocation takes down the columns of a matrix.
    pub(crate) fn column_quads(self) -> u64 {
        match self {
            Walk::Gpu => 1,
            Walk::Cpu => 4,
        }
    }
}

/// Elements of a quad.
pub(crate) fn quad(dtype: DType) -> u64 {
    QUAD_WORDS * dtype.per_word()
}

/// Whether these tensors, all of one storage type, can be read and written in whole quads where `length` elements lie
/// together from the start and from every multiple of it.
pub(crate) fn in_quads<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, length: u64) -> bool {
    let mut dtype = None;
    tensors.into_iter().all(|tensor| {
        tensor.offset().is_multiple_of(4 * QUAD_WORDS)
            && length.is_multiple_of(quad(tensor.dtype()))
            && *dtype.get_or_insert(tensor.dtype()) == tensor.dtype()
    })
}
