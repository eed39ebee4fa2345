//! What one dispatch may take: the limits, and the windows of a whole that keep within them.

/// No invocation may loop more often than this, all its loops together: lavapipe silently stops it after 65,535.
pub(crate) const MAX_ITERATIONS: u64 = 60_000;

/// Multiply-adds, or elements moved, that a CPU behind GL does in well under a second.
pub(crate) const GL_WORK: u64 = 1 << 28;

/// Partial sums of products kept at a time; a larger product is computed in pieces.
const MAX_PARTIAL_BYTES: u64 = 64 << 20;

/// `0 .. total` in pieces of at most `step`: (first, count) of each.
pub(crate) fn windows(total: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..total.div_ceil(step)).map(move |i| (i * step, step.min(total - i * step)))
}

/// Whether `lanes` invocations can add up so many partial sums, plainly and then with exponents.
pub(crate) fn can_be_added_up(sums: u64, lanes: u64) -> bool {
    sums.div_ceil(lanes) <= MAX_ITERATIONS / 2
}

/// What one dispatch holds, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacities {
    /// Bytes of a tensor that one binding can hold wherever the tensor starts. Positions within a binding stay below
    /// 2^31.
    pub binding: u64,
    /// Workgroups.
    pub groups: u64,
    /// Bytes of a binding.
    pub whole_binding: u64,
    /// Bindings start at multiples of so many bytes.
    pub alignment: u64,
    /// An output and any other tensor lie in different multiples of so many bytes of a buffer: words, since halves of a
    /// word are written together; in a browser all that may be bound together.
    pub apart: u64,
    /// Workgroups along one dimension.
    pub groups_along: u32,
    /// Whether no dispatch may take long.
    pub gl: bool,
}

impl Capacities {
    /// For tests of plans.
    #[cfg(test)]
    pub const LARGE: Capacities = Capacities {
        binding: 1 << 27,
        whole_binding: 1 << 27,
        alignment: 256,
        apart: 4,
        groups_along: 65_535,
        groups: 1 << 31,
        gl: false,
    };

    pub fn of(limits: &wgpu::Limits, backend: wgpu::Backend) -> Capacities {
        // Whole quads, since some bindings are of these.
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment).max(16);
        let size = limits.max_storage_buffer_binding_size.min(1 << 31);
        Capacities {
            binding: size.saturating_sub(alignment) / 4 * 4,
            whole_binding: limits.max_storage_buffer_binding_size,
            alignment,
            apart: if backend == wgpu::Backend::BrowserWebGpu { alignment } else { 4 },
            groups_along: limits.max_compute_workgroups_per_dimension,
            groups: u64::from(limits.max_compute_workgroups_per_dimension).pow(3).min(1 << 31),
            gl: backend == wgpu::Backend::Gl,
        }
    }

    /// Units that may be worked on at once, given the work for each.
    pub fn work(self, each: u64) -> u64 {
        if self.gl { (GL_WORK / each.max(1)).max(1) } else { u64::MAX }
    }

    /// Units that fit a binding, given the bytes of each; with none, any number.
    pub fn bound(self, bytes_each: u64) -> u64 {
        self.binding.checked_div(bytes_each).unwrap_or(u64::MAX)
    }

    /// Partial sums of products, of so many bytes, that can be kept at a time.
    pub fn partial_sums(self, bytes_each: u64) -> u64 {
        MAX_PARTIAL_BYTES.min(self.binding) / bytes_each
    }

    /// The units that one dispatch takes, without a limit so far.
    pub fn step(self) -> Step {
        Step { capacities: self, most: u64::MAX }
    }
}

/// How many units one dispatch takes: as many as all limits named allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    capacities: Capacities,
    most: u64,
}

impl Step {
    /// Each takes so many bytes of a binding.
    pub fn bound(self, bytes_each: u64) -> Step {
        self.at_most(self.capacities.bound(bytes_each))
    }

    /// A workgroup does so many.
    pub fn in_groups(self, in_group: u64) -> Step {
        self.at_most(self.capacities.groups.saturating_mul(in_group))
    }

    /// Each is so much work.
    pub fn work(self, each: u64) -> Step {
        self.at_most(self.capacities.work(each))
    }

    pub fn at_most(self, most: u64) -> Step {
        Step { most: self.most.min(most), ..self }
    }

    pub fn get(self) -> u64 {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Capacities = Capacities::LARGE;
    const SMALL: Capacities = Capacities { binding: 8188, groups: 27, ..LARGE };

    #[test]
    fn windows_cover_a_whole_once() {
        assert_eq!(windows(10, 4).collect::<Vec<_>>(), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(windows(0, 4).count(), 0);
        assert_eq!(windows(3, u64::MAX).collect::<Vec<_>>(), [(0, 3)]);
    }

    #[test]
    fn a_step_keeps_every_limit_that_it_was_told() {
        assert_eq!(SMALL.step().get(), u64::MAX);
        assert_eq!(SMALL.step().bound(4).get(), 2047);
        assert_eq!(SMALL.step().bound(4).in_groups(64).get(), 27 * 64);
        assert_eq!(SMALL.step().bound(0).in_groups(64).work(1 << 40).at_most(5).get(), 5);
        let gl = Capacities { gl: true, ..SMALL };
        assert_eq!((gl.step().work(1 << 20).get(), gl.step().work(1 << 40).get()), (1 << 8, 1));
        assert_eq!((SMALL.partial_sums(8), Capacities { binding: 1 << 31, ..SMALL }.partial_sums(8)), (1023, 8 << 20));
    }
}
