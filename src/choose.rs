//! What a device is like, and the table from that to the variants of the kernels that are bound by memory.
use crate::windows::Capacities;
use crate::{DType, Tensor, needs};

/// What decides how work is shared out. Tests set it; else it is the device's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub struct Traits {
    pub kind: Kind,
    /// A GPU within a processor, which has about a tenth of a discrete one's units.
    pub integrated: bool,
    /// Lanes of a subgroup, where all subgroups are of one size and shaders may use them.
    pub subgroup: Option<u64>,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u64,
    /// Words of registers that an invocation can have, by maker: what does not fit is spilled to memory.
    pub registers: u64,
    /// Invocations that a workgroup can have.
    pub invocations: u64,
    /// Lanes of the smallest subgroup, where cooperative matrices of 8 by 8, and of 16 by 16, can be used.
    pub cooperative: [Option<u64>; 2],
}

/// All that plans depend on, in numbers: the limits of a device, and what it is like. See [`Launch`](crate::Launch).
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub(crate) traits: Traits,
    pub(crate) capacities: Capacities,
}

/// A GPU wants neighbouring invocations to read neighbouring addresses, and many of them. A software driver runs
/// invocations one bundle after the other: each bundle had better go through memory in order, and few of them do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub enum Kind {
    Gpu,
    /// It computes on the CPU.
    Software,
}

/// 256 halves of words, of a G13 (Mesa's asahi compiler).
pub(crate) const APPLE_REGISTERS: u64 = 128;
/// 48 vectors of four words, of an A740 (Mesa's ir3 compiler).
pub(crate) const QUALCOMM_REGISTERS: u64 = 192;

/// Invocations in a workgroup.
const THREADS: u64 = 64;
/// Workgroups that fill a large GPU; long rows are split until there are so many.
pub(crate) const ENOUGH_GROUPS: u64 = 512;
/// Words of a quad, what wide loads and stores take.
pub(crate) const QUAD_WORDS: u64 = 4;

/// Of 2^32, without its whole part.
const GOLDEN_RATIO: u32 = 0x9e37_79b9;

impl Traits {
    /// A device's own, but for what tests say.
    pub(crate) fn of(
        info: &wgpu::AdapterInfo,
        limits: &wgpu::Limits,
        features: wgpu::Features,
        kind: Option<Kind>,
        registers: Option<u64>,
    ) -> Traits {
        let own = if info.device_type == wgpu::DeviceType::Cpu { Kind::Software } else { Kind::Gpu };
        let (size, one_size) = (info.subgroup_min_size, info.subgroup_min_size == info.subgroup_max_size);
        let has_subgroups = features.contains(wgpu::Features::SUBGROUP);
        Traits {
            kind: kind.unwrap_or(own),
            integrated: match info.device_type {
                wgpu::DeviceType::IntegratedGpu => true,
                // A browser does not tell; most GPUs that it runs on are.
                wgpu::DeviceType::Other => info.backend == wgpu::Backend::BrowserWebGpu,
                _ => false,
            },
            subgroup: (has_subgroups && one_size && [4, 8, 16].contains(&size)).then_some(u64::from(size)),
            workgroup_bytes: limits.max_compute_workgroup_storage_size.into(),
            registers: registers.unwrap_or(match info.vendor {
                _ if info.backend == wgpu::Backend::Metal => APPLE_REGISTERS,
                needs::QUALCOMM => QUALCOMM_REGISTERS,
                _ => 255,
            }),
            invocations: u64::from(needs::workgroup_capacity(limits)),
            cooperative: [None; 2],
        }
    }

    /// With cooperative matrices of these sides, in subgroups of `lanes` at least.
    pub(crate) fn with_cooperative(self, sides: &[u32], lanes: u32) -> Traits {
        let cooperative = [8, 16].map(|side| sides.contains(&side).then_some(u64::from(lanes)));
        Traits { cooperative, ..self }
    }

    pub(crate) fn is_gpu(self) -> bool {
        self.kind == Kind::Gpu
    }

    /// Workgroups that keep the device busy.
    pub(crate) fn enough_groups(self) -> u64 {
        match self.kind {
            Kind::Gpu => ENOUGH_GROUPS,
            Kind::Software => 16,
        }
    }

    /// Invocations that share a sum of `units` terms, of which there are `sums`.
    pub(crate) fn lanes(self, sums: u64, units: u64) -> u64 {
        match (self.kind, units) {
            (_, 0..=16) => 1,
            (Kind::Gpu, 17..=256) => 8,
            (Kind::Gpu, _) => THREADS,
            (Kind::Software, _) if sums >= 8 * THREADS => 1,
            (Kind::Software, 17..=256) if sums >= 2 * THREADS => 1,
            (Kind::Software, 17..=256) => 8,
            (Kind::Software, _) => (8 * THREADS / sums.max(1)).next_power_of_two().clamp(8, THREADS),
        }
    }

    /// Neighbouring invocations, of `lanes`, that read neighbouring units.
    pub(crate) fn run(self, lanes: u64) -> u64 {
        match self.kind {
            Kind::Gpu => lanes,
            // As many as a bundle has on most CPUs.
            Kind::Software => lanes.min(8),
        }
    }

    /// How a workgroup holds rows of `quads`, if it pays.
    pub(crate) fn held_rows(self, rows: u64, quads: u64) -> Option<HeldRows> {
        if quads == 0 || quads > MAX_HELD_QUADS {
            return None;
        }
        let lanes = match self.kind {
            Kind::Gpu => quads.div_ceil(2).next_power_of_two().min(THREADS),
            // Reading anew costs less than a barrier, but for the second dispatch.
            Kind::Software if rows * quads <= 4096 => quads.div_ceil(16).next_power_of_two().max(8),
            Kind::Software => return None,
        };
        Some(HeldRows { lanes, held: quads.div_ceil(lanes) })
    }

    /// Elements of a work item, where `all` of them are shared out: as few as keep the device busy, and enough to make
    /// up for what is done once.
    pub(crate) fn elements_of_an_item(self, all: u64) -> u64 {
        match self.kind {
            Kind::Gpu => (all / (4 * self.enough_groups())).clamp(2048, 16_384),
            Kind::Software => (all / (8 * self.enough_groups())).clamp(8192, 65_536),
        }
    }

    /// Work items in the order of their workgroups. A GPU takes them as they come, and the longest first leave short
    /// ones for the end. Drivers on CPUs share the workgroups out beforehand, a stretch of them for each thread: in the
    /// order of multiples of the golden ratio every stretch has long and short ones alike.
    pub(crate) fn balanced<T>(self, mut items: Vec<T>, work: impl Fn(&T) -> u64) -> Vec<T> {
        items.sort_by_key(|item| std::cmp::Reverse(work(item)));
        if self.kind == Kind::Gpu {
            return items;
        }
        let mut spread: Vec<_> = (0u32..).map(|i| i.wrapping_mul(GOLDEN_RATIO)).zip(items).collect();
        spread.sort_by_key(|&(place, _)| place);
        spread.into_iter().map(|(_, item)| item).collect()
    }

    /// Elements of the stretches in which a set sums up long rows; rows of up to twice as many are not split.
    pub(crate) fn stretch_of_a_set(self, target: u64) -> u64 {
        match self.kind {
            Kind::Gpu => target,
            Kind::Software => 8192,
        }
    }

    /// Invocations that share a row or stretch of so many octets in a set. On a CPU one: to add up between them takes
    /// barriers, with which variables live in memory there.
    pub(crate) fn lanes_of_a_set(self, octets: u64) -> u64 {
        match self.kind {
            Kind::Gpu => octets.div_ceil(2).next_power_of_two().clamp(1, THREADS),
            Kind::Software => 1,
        }
    }

    /// Rows or stretches of a work item of `target` elements.
    pub(crate) fn rows_of_a_set(self, target: u64, length: u64) -> u64 {
        match self.kind {
            Kind::Gpu => (target / length.max(1)).max(1),
            Kind::Software => (target / length.max(1)).next_multiple_of(THREADS).max(THREADS),
        }
    }

    /// Whether an optimizer's step does the projection of `elements` too, which reads all of them twice.
    pub(crate) fn projects_at_once(self, elements: u64) -> bool {
        self.kind == Kind::Gpu || elements <= 16_384
    }

    /// Units of a row from which it is worth items of its own, which have one norm each.
    pub(crate) fn least_units_along(self) -> u64 {
        match self.kind {
            Kind::Gpu => THREADS / 2,
            Kind::Software => 256,
        }
    }

    /// Rows down which an invocation goes in its columns, at most.
    pub(crate) fn most_rows_down(self) -> u64 {
        match self.kind {
            Kind::Gpu => 16,
            Kind::Software => 32,
        }
    }

    /// Whether the columns of a matrix of `units` quads a row are best summed up in quads: on a GPU only wide ones are
    /// read by neighbours then.
    pub(crate) fn sums_columns_in_quads(self, units: u64) -> bool {
        self.kind == Kind::Software || units >= THREADS / 2
    }

    /// Rows that one invocation reads together on its way down the columns of a matrix, 1 or 4.
    pub(crate) fn rows_at_once(self) -> u64 {
        match self.kind {
            Kind::Gpu => 4,
            Kind::Software => 1,
        }
    }

    /// Rows that are worth an invocation of their own, where it sums up columns of a batch. A GPU waits a quarter of a
    /// microsecond for reads that it needs before it can go on.
    pub(crate) fn least_rows_of_a_piece(self) -> u64 {
        match self.kind {
            Kind::Gpu => 32,
            Kind::Software => 64,
        }
    }

    /// Columns of a workgroup that adds up `splits` partial sums of each, of `columns` at most if several invocations
    /// share one.
    pub(crate) fn columns_to_finish(self, columns: u64, splits: u64) -> u64 {
        match self.kind {
            Kind::Gpu if splits > 16 => columns.min(8),
            // Without barriers.
            Kind::Software if splits <= 32 => THREADS,
            _ => columns,
        }
    }

    /// Quads of a row that one invocation takes down the columns of a matrix.
    pub(crate) fn column_quads(self) -> u64 {
        match self.kind {
            Kind::Gpu => 1,
            Kind::Software => 4,
        }
    }
}

/// How a workgroup holds rows.
pub(crate) struct HeldRows {
    /// Invocations of a row.
    pub lanes: u64,
    /// Quads that each of them holds.
    pub held: u64,
}

/// The longest row that one workgroup holds, in quads.
const MAX_HELD_QUADS: u64 = 1024;

/// How invocations that sum up columns share a row of `units` quads.
pub(crate) struct ColumnQuads {
    /// Quads of an invocation.
    pub quads: u64,
    /// Quads from one of them to the next.
    pub run: u64,
    /// Invocations.
    pub blocks: u64,
}

impl ColumnQuads {
    pub fn new(traits: Traits, units: u64) -> ColumnQuads {
        ColumnQuads::of(traits, units, traits.column_quads())
    }

    /// Of one quad each, for a matrix of few rows: as many invocations as can be.
    pub fn of_one(traits: Traits, units: u64) -> ColumnQuads {
        ColumnQuads::of(traits, units, 1)
    }

    fn of(traits: Traits, units: u64, most: u64) -> ColumnQuads {
        let quads = most.min(units.max(1));
        let run = traits.run(THREADS).min(units.div_ceil(quads).next_power_of_two());
        ColumnQuads { quads, run, blocks: units.div_ceil(run * quads) * run }
    }
}

/// Invocations that share a sum of `count` terms.
pub(crate) fn lanes_for(count: u64) -> u64 {
    match count {
        0..=16 => 1,
        17..=256 => 8,
        _ => THREADS,
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

#[cfg(test)]
mod tests {
    use wgpu::{AdapterInfo, Backend, DeviceType, Features, Limits};

    use super::*;

    #[test]
    fn a_gpu_that_a_browser_does_not_tell_of_is_an_integrated_one() {
        let integrated = |device_type, backend| {
            let info = AdapterInfo::new(device_type, backend);
            Traits::of(&info, &Limits::default(), Features::empty(), None, None).integrated
        };
        assert!(integrated(DeviceType::Other, Backend::BrowserWebGpu));
        assert!(integrated(DeviceType::IntegratedGpu, Backend::Vulkan));
        assert!(!integrated(DeviceType::Other, Backend::Gl) && !integrated(DeviceType::DiscreteGpu, Backend::Vulkan));
    }
}
