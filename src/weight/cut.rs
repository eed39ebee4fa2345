//! One dispatch on a weight in numbers: its items are derived by arithmetic, here as in `shaders/weight/item_one.wgsl`.
use crate::DType;
use crate::kernel::{Kernel, kernels, params};
use crate::source::Module;

/// Invocations in a workgroup.
pub(crate) const THREADS: u64 = 64;

params! {
    /// Of `item_one.wgsl`, which says what they are.
    #[derive(Debug)]
    pub(crate) struct Params {
        count: u32,
        across: u32,
        each: u32,
        all: u32,
        length: u32,
        stride: u32,
        rows: u32,
        step: u32,
        inner: u32,
        kept: u32,
        position: u32,
        part: u32,
        places: u32,
        more_places: u32,
        flags: u32,
        eps: f32,
    }
}

params! {
    /// Of `item_table.wgsl`.
    pub(crate) struct TableParams {
        count: u32,
        first: u32,
        takes_gains: u32,
    }
}

kernels! {
    ROW_SUMS = "weight/item_one" "row_sums", Some(THREADS), Params,
        [1 Read, 2 Read, 3 Read, 4 Write, 5 Write, 6 Write, 7 Read];
    COLUMN_SUMS = "weight/item_one" "column_sums", Some(THREADS), Params, [1 Read, 2 Read, 4 Write];
    FINISH_SUMS = "weight/item_one" "finish_sums", Some(THREADS), Params, [3 Read, 4 Write, 5 Write, 6 Write, 7 Read];
    KNOWN_NORMS = "weight/item_one" "known_norms", Some(THREADS), Params, [3 Read, 5 Write, 6 Write, 7 Read];
    RESCALE = "weight/item_one" "rescale", Some(THREADS), Params, [1 Read, 2 Read, 3 Read, 4 Read, 5 Read, 7 Write];
    HELD_ROWS = "weight/item_one" "held_rows", Some(THREADS), Params, [1 Read, 3 Read, 7 Write];
    TABLE_ROW_SUMS = "weight/item_table" "row_sums", Some(THREADS), TableParams,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Write, 5 Write, 6 Write, 7 Read];
    TABLE_COLUMN_SUMS = "weight/item_table" "column_sums", Some(THREADS), TableParams,
        [0 Read, 1 Read, 2 Read, 4 Write];
    TABLE_FINISH_SUMS = "weight/item_table" "finish_sums", Some(THREADS), TableParams,
        [0 Read, 3 Read, 4 Write, 5 Write, 6 Write, 7 Read];
    TABLE_KNOWN_NORMS = "weight/item_table" "known_norms", Some(THREADS), TableParams,
        [0 Read, 3 Read, 5 Write, 6 Write, 7 Read];
    TABLE_RESCALE = "weight/item_table" "rescale", Some(THREADS), TableParams,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Read, 5 Read, 7 Write];
    TABLE_HELD_ROWS = "weight/item_table" "held_rows", Some(THREADS), TableParams, [0 Read, 1 Read, 3 Read, 7 Write];
}

const KERNELS_IN_WORDS: Module = Module::new("weight/all");
const HELD: Module = Module::new("weight/held_rows");
pub(crate) const MODULES: [Module; 6] = [
    KERNELS_IN_WORDS,
    KERNELS_IN_WORDS.fill("access", "weight/quads"),
    KERNELS_IN_WORDS.fill("item", "weight/item_table"),
    KERNELS_IN_WORDS.fill("item", "weight/item_table").fill("access", "weight/quads"),
    HELD,
    HELD.fill("item", "weight/item_table"),
];

/// What the storage types of an item's tensors, its flags and the place of known norms are in `flags`: `item.wgsl`.
pub(crate) const OF_V: u32 = 0;
pub(crate) const OF_DW: u32 = 2;
pub(crate) const OF_W: u32 = 4;
pub(crate) const OF_POLICY: u32 = 6;
pub(crate) const HAS_GAIN: u32 = 0x100;
pub(crate) const DIRECT: u32 = 0x200;
pub(crate) const HAS_BESIDE: u32 = 0x400;
pub(crate) const WHOLE: u32 = 0x800;
pub(crate) const KEEPS: u32 = 0x1000;
pub(crate) const OF_GAIN: u32 = 13;
pub(crate) const OF_KNOWN: u32 = 16;

/// The kernels, in the order of their dispatches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    HeldRows,
    RowSums,
    ColumnSums,
    FinishSums,
    KnownNorms,
    Rescale,
}

/// The operands of the kernels. Binding numbers are those of the shaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    V,
    Dw,
    /// CENTER: the bias.
    G,
    Sums,
    /// CENTER.
    Centers,
    /// What is written for the norms.
    Out,
    /// The same, read.
    Scales,
    Beside,
    Known,
    W,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::HeldRows, Kind::RowSums, Kind::ColumnSums, Kind::FinishSums, Kind::KnownNorms, Kind::Rescale];

    /// For one weight, and for a set.
    pub fn kernels(self) -> [&'static Kernel; 2] {
        match self {
            Kind::HeldRows => [&HELD_ROWS, &TABLE_HELD_ROWS],
            Kind::RowSums => [&ROW_SUMS, &TABLE_ROW_SUMS],
            Kind::ColumnSums => [&COLUMN_SUMS, &TABLE_COLUMN_SUMS],
            Kind::FinishSums => [&FINISH_SUMS, &TABLE_FINISH_SUMS],
            Kind::KnownNorms => [&KNOWN_NORMS, &TABLE_KNOWN_NORMS],
            Kind::Rescale => [&RESCALE, &TABLE_RESCALE],
        }
    }

    pub fn module(self, in_table: bool, in_quads: bool) -> Module {
        match self {
            Kind::HeldRows => MODULES[4 + usize::from(in_table)],
            _ => MODULES[2 * usize::from(in_table) + usize::from(in_quads)],
        }
    }

    /// What its bindings are, but for the table.
    pub fn operands(self) -> &'static [Operand] {
        use Operand::{Beside, Centers, Dw, G, Known, Out, Scales, Sums, V, W};
        match self {
            Kind::HeldRows => &[V, G, W],
            Kind::RowSums => &[V, Dw, G, Sums, Out, Beside, Known],
            Kind::ColumnSums => &[V, Dw, Sums],
            Kind::FinishSums => &[G, Sums, Out, Beside, Known],
            Kind::KnownNorms => &[G, Out, Beside, Known],
            Kind::Rescale => &[V, Dw, G, Centers, Scales, W],
        }
    }
}

/// `count` of something from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Part {
    pub first: u64,
    pub count: u64,
}

impl Part {
    pub fn new(first: u64, count: u64) -> Part {
        Part { first, count }
    }

    /// Of this part, `count` from `first` on. Of none it is none.
    fn within(self, first: u64, count: u64) -> Part {
        if self.count == 0 { self } else { Part { first: self.first + first, count } }
    }
}

/// A dispatch whose places within bindings are not known yet.
#[derive(Debug, Clone)]
pub(crate) struct Cut {
    pub kind: Kind,
    pub params: Params,
    /// log2 of the lanes of a sum, and of the neighbours that read neighbouring units.
    pub lane_bits: u32,
    pub run_bits: u32,
    /// Elements of a unit.
    pub unit: u64,
    /// Quads that a lane holds, and whether all lanes hold so many: [`Kind::HeldRows`].
    pub held: u64,
    pub full: bool,
    /// Of v, dw and w.
    pub elements: Part,
    /// Of g and of what is written or read for norms.
    pub norms: Part,
    pub sums: Part,
    pub work: u64,
}

/// What one workgroup does: its own words after those of the member, and what of the tensors it needs.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub words: [u32; 8],
    pub elements: Part,
    pub norms: Part,
    pub sums: Part,
    pub work: u64,
}

impl Cut {
    fn turns(&self, count: u64) -> u64 {
        count.div_ceil(THREADS >> self.lane_bits)
    }

    /// Item `id`, with the elements counted from [`Cut::elements`] on; norms and partial sums are its own.
    pub fn item(&self, id: u64) -> Item {
        let p = &self.params;
        let [across, each, all, length, stride] = [p.across, p.each, p.all, p.length, p.stride].map(u64::from);
        let [rows, step, inner, kept] = [p.rows, p.step, p.inner, p.kept].map(u64::from);
        let first = u64::from(p.more_places >> 8 & 0xff);
        let (x, y) = (id % across.max(1) * each, id / across.max(1));
        let count = each.min(all.saturating_sub(x));
        let (lane_bits, run_bits) = (u64::from(self.lane_bits), u64::from(self.run_bits));
        let (words, elements, norms, sums, work) = match self.kind {
            Kind::HeldRows | Kind::RowSums => {
                let begin = first + y * stride + x * length;
                let end = first + (y + 1) * stride;
                let own = (count * length).min(end - begin);
                let words = [begin, length, count, self.turns(count), lane_bits, run_bits, end, 0];
                let sums = self.sums.within(y * all + x, count);
                (words, Part::new(begin, own), self.norms.within(x, count), sums, own)
            }
            Kind::ColumnSums => {
                let row = y * step;
                let own_rows = step.min(rows - row);
                let begin = first + row * stride + x;
                let units = if p.flags & WHOLE == 0 { count } else { count / self.unit };
                let sums = self.sums.within(row / length * all + x, (own_rows.div_ceil(length) - 1) * all + count);
                let words = [begin, stride, own_rows, length, all, units, 0, 0];
                let elements = Part::new(begin, (own_rows - 1) * stride + count);
                (words, elements, Part::default(), sums, own_rows * count)
            }
            Kind::FinishSums | Kind::KnownNorms => {
                let sums = self.sums.within(x * inner, (rows.max(1) - 1) * stride + count * inner);
                let words = [rows, stride, inner, count, self.turns(count), lane_bits, 0, 0];
                (words, Part::default(), self.norms.within(x, count), sums, count * rows * inner)
            }
            Kind::Rescale => {
                let row = y * stride;
                let begin = (row + x).max(first);
                // Behind the last row of a matrix an item may have nothing.
                let end = (row + (x + length).min(stride)).min(all).max(begin);
                let units = step * self.unit;
                let width = if length > each { each.min(units - x) / self.unit } else { THREADS };
                let words = [begin, end, inner, kept, p.position.into(), step, width, run_bits];
                let begins = u64::from(p.position.wrapping_add(begin as u32));
                let (j, last) = (begins / inner, (begins + (end - begin).max(1) - 1) / inner);
                let fits = j % kept + last - j < kept;
                let norms = if fits { self.norms.within(j % kept, last - j + 1) } else { self.norms };
                (words, Part::new(begin, end - begin), norms, Part::default(), end - begin)
            }
        };
        // The host keeps them in range.
        Item { words: words.map(|word| word as u32), elements, norms, sums, work }
    }
}

/// Bytes of the elements that tensors of these types have at one place.
pub(crate) fn widest(types: &[Option<DType>]) -> u64 {
    types.iter().flatten().map(|dtype| dtype.size()).max().unwrap_or(4)
}

/// Elements of a unit where tensors of these types are read and written together: UNIT of `item.wgsl`.
pub(crate) fn unit_of(types: &[Option<DType>]) -> u64 {
    if types.iter().flatten().all(|&dtype| dtype == DType::F32) { 4 } else { 8 }
}
