//! The kernels of weights and sets of weights, and what one workgroup does: an item. The items of a dispatch follow
//! from its parameters, by the same arithmetic here as in `shaders/weight/item_one.wgsl`.
use bytemuck::Zeroable;

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

/// What an item reaches, in the order in which the first words of a table's item give their places.
pub(crate) const V: usize = 0;
/// One or more tensors of v's shape, one after another: pieces, whose sum dw is.
pub(crate) const DW: usize = 1;
/// The gains; of [`Action::Center`](super::job::Action) the bias.
pub(crate) const G: usize = 2;
/// Partial sums.
pub(crate) const SUMS: usize = 3;
/// What is written for the norms, or read of them; of [`Kind::HeldGradients`] dg.
pub(crate) const OUT: usize = 4;
/// Where elements are rescaled w or dv, else what is written beside the norms.
pub(crate) const LAST: usize = 5;
/// Norms that are known, or centers. Not in tables: sets have none.
pub(crate) const KNOWN: usize = 6;
pub(crate) const SLOTS: usize = 7;

/// Declares the kernels, each for one weight and for a set, then those for one weight alone, with what their bindings
/// are.
macro_rules! of_one_and_of_sets {
    ($($kind:ident $one:ident $table:ident $entry:literal [$($binding:literal $access:ident $slot:ident),*];)*
     =>
     $($kind1:ident $one1:ident $entry1:literal [$($binding1:literal $access1:ident $slot1:ident),*];)*) => {
        kernels! {
            $($one = "weight/item_one" $entry, Some(THREADS), Params, [$($binding $access),*];
            $table = "weight/item_table" $entry, Some(THREADS), TableParams, [0 Read, $($binding $access),*];)*
            $($one1 = "weight/item_one" $entry1, Some(THREADS), Params, [$($binding1 $access1),*];)*
        }

        /// The kernels, in the order of their dispatches.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind {
            $($kind,)*
            $($kind1),*
        }

        impl Kind {
            /// Those of sets.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            pub fn kernel(self, in_table: bool) -> &'static Kernel {
                match (self, in_table) {
                    $((Kind::$kind, false) => &$one, (Kind::$kind, true) => &$table,)*
                    $((Kind::$kind1, _) => &$one1,)*
                }
            }

            /// What is bound, but for the table.
            pub fn slots(self) -> &'static [usize] {
                match self {
                    $(Kind::$kind => &[$($slot),*],)*
                    $(Kind::$kind1 => &[$($slot1),*],)*
                }
            }
        }
    };
}

of_one_and_of_sets! {
    HeldRows HELD_ROWS TABLE_HELD_ROWS "held_rows" [1 Read V, 3 Read G, 7 Write LAST];
    RowSums ROW_SUMS TABLE_ROW_SUMS "row_sums"
        [1 Read V, 2 Read DW, 3 Read G, 4 Write SUMS, 5 Write OUT, 6 Write LAST, 8 Read KNOWN];
    ColumnSums COLUMN_SUMS TABLE_COLUMN_SUMS "column_sums" [1 Read V, 2 Read DW, 4 Write SUMS];
    FinishSums FINISH_SUMS TABLE_FINISH_SUMS "finish_sums"
        [3 Read G, 4 Write SUMS, 5 Write OUT, 6 Write LAST, 8 Read KNOWN];
    KnownNorms KNOWN_NORMS TABLE_KNOWN_NORMS "known_norms" [3 Read G, 5 Write OUT, 6 Write LAST, 8 Read KNOWN];
    Rescale RESCALE TABLE_RESCALE "rescale" [1 Read V, 2 Read DW, 3 Read G, 4 Read KNOWN, 5 Read OUT, 7 Write LAST];
    =>
    HeldGradients HELD_GRADIENTS "held_gradients"
        [1 Read V, 2 Read DW, 3 Read G, 5 Write OUT, 7 Write LAST, 8 Read KNOWN];
}

const WORDS: Module = Module::new("weight/all");
const HELD: Module = Module::new("weight/held_rows");
const GRADIENTS: Module = Module::new("weight/held_gradients");
pub(crate) const MODULES: [Module; 8] = [
    WORDS,
    WORDS.fill("access", "weight/quads"),
    WORDS.fill("item", "weight/item_table"),
    WORDS.fill("item", "weight/item_table").fill("access", "weight/quads"),
    HELD,
    HELD.fill("item", "weight/item_table"),
    GRADIENTS,
    GRADIENTS.fill("access", "weight/quads"),
];

impl Kind {
    pub fn module(self, in_table: bool, in_quads: bool) -> Module {
        match self {
            Kind::HeldRows => MODULES[4 + usize::from(in_table)],
            Kind::HeldGradients => MODULES[6 + usize::from(in_quads)],
            _ => MODULES[2 * usize::from(in_table) + usize::from(in_quads)],
        }
    }

    /// Whether it writes w.
    pub fn is_elementwise(self) -> bool {
        matches!(self, Kind::HeldRows | Kind::HeldGradients | Kind::Rescale)
    }

    /// Whether it reads sums over elements.
    pub fn sums_up(self) -> bool {
        matches!(self, Kind::RowSums | Kind::ColumnSums)
    }
}

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
pub(crate) const OF_OUT: u32 = 24;

/// `bit` if it is set.
pub(crate) fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
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
    /// Quads that a lane holds, and whether all lanes hold so many: [`Kind::HeldRows`]; units:
    /// [`Kind::HeldGradients`].
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
    /// With nothing in it.
    pub fn none(kind: Kind, unit: u64) -> Cut {
        let (elements, norms, sums) = Default::default();
        let params = Params::zeroed();
        Cut { kind, params, lane_bits: 0, run_bits: 0, unit, held: 0, full: false, elements, norms, sums, work: 0 }
    }

    /// All of it as one item.
    pub fn whole(&self) -> Item {
        let elements = Part::new(0, self.elements.count);
        Item { words: [0; 8], elements, norms: self.norms, sums: self.sums, work: self.work }
    }

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
            Kind::HeldRows | Kind::HeldGradients | Kind::RowSums => {
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

/// Elements of a unit where tensors of these types are read and written together: UNIT of `item.wgsl`.
pub(crate) fn unit_of(dtypes: &[DType]) -> u64 {
    if dtypes.iter().all(|&dtype| dtype == DType::F32) { 4 } else { 8 }
}
