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
/// Words of a quad, what wide loads and stores take.
pub(crate) const QUAD_WORDS: u64 = 4;

/// The words of a quad, `quad32.wgsl` or `quad64.wgsl`, and of what is read and written as one: `four32.wgsl` or `four64.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Word {
    /// Of 32 bits.
    Short,
    /// Of 64 bits.
    Long,
}

impl Word {
    /// What memory is best read in on this device, where a quad need start at no more than 16 bytes: `four32.wgsl` or `four64.wgsl`.
    pub(crate) fn best(gpu: &Gpu) -> Word {
        Walk::of(gpu).word(gpu)
    }

    /// Elements of a quad.
    pub(crate) fn quad(self, dtype: DType) -> u64 {
        self.quad_bytes() / dtype.size()
    }

    fn quad_bytes(self) -> u64 {
        match self {
            Word::Short => 4 * QUAD_WORDS,
            Word::Long => 8 * QUAD_WORDS,
        }
    }

    /// The words in whose quads these tensors can be read and written, see [`in_quads`], the best first.
    pub(crate) fn all<'a>(
        gpu: &Gpu,
        tensors: impl Iterator<Item = &'a Tensor> + Clone,
        length: u64,
    ) -> impl Iterator<Item = Word> {
        let best = Word::best(gpu);
        let words = [Word::Long, Word::Short].into_iter().filter(move |&word| word == Word::Short || word == best);
        words.filter(move |word| word.fits(tensors.clone(), length))
    }

    /// The best of [`Word::all`].
    pub(crate) fn of<'a>(gpu: &Gpu, tensors: impl Iterator<Item = &'a Tensor> + Clone, length: u64) -> Option<Word> {
        Word::all(gpu, tensors, length).next()
    }

    /// Whether quads hold, from this offset on, every `length` elements that lie together.
    pub(crate) fn holds(self, offset: u64, length: u64, dtype: DType) -> bool {
        offset.is_multiple_of(self.quad_bytes()) && length.is_multiple_of(self.quad(dtype))
    }

    fn fits<'a>(self, tensors: impl Iterator<Item = &'a Tensor>, length: u64) -> bool {
        let mut dtype = None;
        tensors.into_iter().all(|tensor| {
            self.holds(tensor.offset(), length, tensor.dtype())
                && *dtype.get_or_insert(tensor.dtype()) == tensor.dtype()
        })
    }
}

/// Of 2^32, without its whole part.
const GOLDEN_RATIO: u32 = 0x9e37_79b9;

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

    /// The words that memory is best read in.
    pub(crate) fn word(self, gpu: &Gpu) -> Word {
        // Drivers on CPUs read and write lane by lane, whatever the width. GPUs want no more than 16 bytes.
        if self == Walk::Cpu && gpu.long_words() { Word::Long } else { Word::Short }
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

    /// Neighbouring rows of `units` terms that one invocation sums up, where it has each for itself: what is done once
    /// for all of them costs little then. 1, or a multiple of four.
    pub(crate) fn rows_of_a_lane(self, rows: u64, units: u64) -> u64 {
        match self {
            Walk::Cpu if units <= 32 => match rows / (self.enough_groups() * THREADS) {
                0..4 => 1,
                each => 1 << each.min(64).ilog2(),
            },
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

    /// For `rows` rows of `quads`, if it pays. `subgroup`: the lanes of one where a CPU computes in subgroups.
    pub(crate) fn held_rows(self, rows: u64, quads: u64, word: Word, subgroup: Option<u64>) -> Option<HeldRows> {
        let (threads, lanes) = match (self, word) {
            _ if quads == 0 => return None,
            (Walk::Gpu, _) if quads <= MAX_HELD_QUADS => (THREADS, quads.div_ceil(2).next_power_of_two().min(THREADS)),
            // A subgroup for each row. Longer ones are faster read anew than held by several.
            (Walk::Cpu, Word::Long) => {
                let lanes = subgroup?;
                (lanes * (rows / self.enough_groups()).clamp(1, THREADS / lanes), lanes)
            }
            // Reading anew costs less than a barrier, but for the second dispatch.
            (Walk::Cpu, Word::Short) if quads <= MAX_HELD_QUADS && rows * quads <= 4096 => {
                let lanes = quads.div_ceil(16).next_power_of_two().max(8);
                (lanes, lanes)
            }
            _ => return None,
        };
        let held = quads.div_ceil(lanes);
        (held <= MAX_HELD).then_some(HeldRows { threads, lanes, held })
    }

    /// For `rows` rows of `columns` elements, if they are short and it pays: to normalize them, or for their norms alone.
    pub(crate) fn row_blocks(
        self,
        rows: u64,
        columns: u64,
        dtype: DType,
        word: Word,
        norms_alone: bool,
    ) -> Option<RowBlocks> {
        let quad = word.quad(dtype);
        if self == Walk::Gpu || columns == 0 || columns > MAX_HELD * quad {
            return None;
        }
        // The fewest rows that fill quads, a divisor of those in a quad.
        let mut each = [1, 2, 4, 8].into_iter().find(|each| (each * columns).is_multiple_of(quad))?;
        // What is done once for a block had better be done for many rows; with more quads the code outgrows its cache.
        let enough = if norms_alone { 20 } else { 8 };
        while each < 8 && 2 * each * columns <= enough * quad && rows.is_multiple_of(2 * each) {
            each *= 2;
        }
        let quads = each * columns / quad;
        // Beyond that an invocation had better share its row.
        let most = if columns.is_multiple_of(quad) { 16 } else { MAX_HELD };
        // Norms of whole quads are summed up as fast without, but for writing them.
        if norms_alone && columns.is_multiple_of(quad) && (word == Word::Short || each < 8 || quads > 8) {
            return None;
        }
        (rows.is_multiple_of(each) && quads <= most).then_some(RowBlocks { rows: each, quads })
    }

    /// Elements of a work item, where `all` of them are shared out: as few as keep the device busy, and enough to make up
    /// for what is done once.
    pub(crate) fn elements_of_an_item(self, all: u64) -> u64 {
        match self {
            Walk::Gpu => (all / (4 * self.enough_groups())).clamp(2048, 16_384),
            Walk::Cpu => (all / (8 * self.enough_groups())).clamp(8192, 65_536),
        }
    }

    /// Work items in the order of their workgroups. A GPU takes them as they come, and the longest first leave short ones
    /// for the end. Drivers on CPUs share the workgroups out beforehand, a stretch of them for each thread: in the order of
    /// multiples of the golden ratio every stretch has long and short ones alike.
    pub(crate) fn balanced<T>(self, mut items: Vec<T>, work: impl Fn(&T) -> u64) -> Vec<T> {
        items.sort_by_key(|item| std::cmp::Reverse(work(item)));
        if self == Walk::Gpu {
            return items;
        }
        let mut spread: Vec<_> = (0u32..).map(|i| i.wrapping_mul(GOLDEN_RATIO)).zip(items).collect();
        spread.sort_by_key(|&(place, _)| place);
        spread.into_iter().map(|(_, item)| item).collect()
    }

    /// Elements of the stretches in which a set sums up long rows; rows of up to twice as many are not split.
    pub(crate) fn stretch_of_a_set(self, target: u64) -> u64 {
        match self {
            Walk::Gpu => target,
            Walk::Cpu => 8192,
        }
    }

    /// Invocations that share a row or stretch of so many octets in a set. On a CPU one: to add up between them takes
    /// barriers, with which variables live in memory there.
    pub(crate) fn lanes_of_a_set(self, octets: u64) -> u64 {
        match self {
            Walk::Gpu => octets.div_ceil(2).next_power_of_two().clamp(1, THREADS),
            Walk::Cpu => 1,
        }
    }

    /// Rows or stretches of a work item of `target` elements.
    pub(crate) fn rows_of_a_set(self, target: u64, length: u64) -> u64 {
        match self {
            Walk::Gpu => (target / length.max(1)).max(1),
            Walk::Cpu => (target / length.max(1)).next_multiple_of(THREADS).max(THREADS),
        }
    }

    /// Whether an optimizer's step does the projection of `elements` too, which reads all of them twice.
    pub(crate) fn projects_at_once(self, elements: u64) -> bool {
        self == Walk::Gpu || elements <= 16_384
    }

    /// Whether norms of `quads` each, which repeat `times`, are so short that an invocation had better stay in its columns.
    pub(crate) fn goes_down(self, times: u64, quads: u64) -> bool {
        times > 1 && quads < self.width()
    }

    /// Invocations side by side that read neighbouring quads.
    fn width(self) -> u64 {
        match self {
            Walk::Gpu => THREADS,
            Walk::Cpu => 8,
        }
    }

    /// For rows of `quads`, each for itself.
    pub(crate) fn pieces(self, quads: u64) -> Pieces {
        let most = match self {
            Walk::Gpu => 4,
            Walk::Cpu => 32,
        };
        let pieces = quads.div_ceil(self.width() * most);
        let each = quads.div_ceil(pieces * self.width()).next_multiple_of(4);
        Pieces { run: quads.div_ceil(pieces * each), each }
    }

    /// For `rows` rows of `quads`, down which each invocation goes in its columns: whole rows side by side.
    pub(crate) fn pieces_down(self, rows: u64, quads: u64) -> Pieces {
        let most = match self {
            Walk::Gpu => 16,
            Walk::Cpu => 32,
        };
        let enough = rows * quads / (self.enough_groups() * THREADS);
        Pieces { run: quads * self.width().div_ceil(quads), each: enough.clamp(1, most).next_multiple_of(4) }
    }

    /// Whether the columns of a matrix of `units` quads a row are best summed up in quads: on a GPU only wide ones are read
    /// by neighbours then.
    pub(crate) fn sums_columns_in_quads(self, units: u64) -> bool {
        self == Walk::Cpu || units >= THREADS / 2
    }

    /// Rows that one invocation reads together on its way down the columns of a matrix, 1 or 4.
    pub(crate) fn rows_at_once(self) -> u64 {
        match self {
            Walk::Gpu => 4,
            Walk::Cpu => 1,
        }
    }

    /// Rows that are worth an invocation of their own, where it sums up columns of a batch. A GPU waits a quarter of a microsecond
    /// for reads that it needs before it can go on.
    pub(crate) fn least_rows_of_a_piece(self) -> u64 {
        match self {
            Walk::Gpu => 32,
            Walk::Cpu => 64,
        }
    }

    /// Columns of a workgroup that adds up `splits` partial sums of each, of `columns` at most if several invocations share one.
    pub(crate) fn columns_to_finish(self, columns: u64, splits: u64) -> u64 {
        match self {
            Walk::Gpu if splits > 16 => columns.min(8),
            // Without barriers.
            Walk::Cpu if splits <= 32 => THREADS,
            _ => columns,
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

/// How `normalize_rows` holds rows.
pub(crate) struct HeldRows {
    /// Invocations of a workgroup.
    pub threads: u64,
    /// Invocations of a row.
    pub lanes: u64,
    /// Quads that each of them holds.
    pub held: u64,
}

/// The longest row that one workgroup holds, in quads.
const MAX_HELD_QUADS: u64 = 1024;

/// How `normalize_blocks` takes rows.
pub(crate) struct RowBlocks {
    /// Rows of a block.
    pub rows: u64,
    /// Quads of a block.
    pub quads: u64,
}

/// The quads that an invocation holds at most: `held.wgsl`.
const MAX_HELD: u64 = 32;

/// How `normalize_quads` shares out quads.
pub(crate) struct Pieces {
    /// Invocations side by side, and quads from one of an invocation's to its next.
    pub run: u64,
    /// Quads of an invocation, a multiple of four.
    pub each: u64,
}

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
    pub fn new(walk: Walk, units: u64) -> ColumnQuads {
        ColumnQuads::of(walk, units, walk.column_quads())
    }

    /// Of one quad each, for a matrix of few rows: as many invocations as can be.
    pub fn of_one(walk: Walk, units: u64) -> ColumnQuads {
        ColumnQuads::of(walk, units, 1)
    }

    fn of(walk: Walk, units: u64, most: u64) -> ColumnQuads {
        let quads = most.min(units.max(1));
        let run = walk.run(THREADS).min(units.div_ceil(quads).next_power_of_two());
        ColumnQuads { quads, run, blocks: units.div_ceil(run * quads) * run }
    }
}

/// Elements of a quad of short words.
pub(crate) fn quad(dtype: DType) -> u64 {
    Word::Short.quad(dtype)
}

/// Whether these tensors, all of one storage type, can be read and written in whole quads of short words where `length`
/// elements lie together from the start and from every multiple of it.
pub(crate) fn in_quads<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, length: u64) -> bool {
    Word::Short.fits(tensors.into_iter(), length)
}
