//! A tile on a device: how a workgroup computes it, and the longest sums that it may form.
use super::tile::{Family, Tile};
use crate::choose::{APPLE_REGISTERS, QUALCOMM_REGISTERS, Traits};
use crate::windows::MAX_ITERATIONS;

/// A split has a multiple of so many steps of k: what `product/tile.wgsl` stages at a time, at most.
pub(crate) const BK: u64 = 16;
/// Workgroup memory of `tile128x128` with so many: 33 vectors a step each of A and B, and norms of 128 columns and as
/// many rows.
const HUGE_BYTES: u64 = 2 * 33 * 16 * BK + 8 * 256;

/// A [`Tile`] on a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileShape {
    pub tile: Tile,
    /// WX, WY, TM, TN of `product/shape.wgsl`.
    pub wx: u64,
    pub wy: u64,
    pub tm: u64,
    pub tn: u64,
    /// Invocations of a workgroup.
    pub threads: u64,
    /// BK of `product/tile.wgsl`: 16, with which each invocation of `tile64x64` stages a block of A and one of B; 8
    /// where that takes more registers or workgroup memory than there are.
    pub steps: u64,
}

impl TileShape {
    /// `lanes`: of a subgroup, for the tiles that are computed by one. `b_along_k`: how B is stored, for those that
    /// read it straight from memory.
    pub fn new(tile: Tile, lanes: Option<u64>, b_along_k: bool) -> TileShape {
        let lanes = lanes.unwrap_or(8);
        let [wx, wy, tm, tn] = match tile {
            Tile::Tile128x128 => [16, 16, 8, 8],
            Tile::Tile64x64 => [8, 8, 8, 8],
            Tile::Tile32x32 => [8, 8, 4, 4],
            Tile::Tile128x8 => [2, 32, 4, 4],
            Tile::Gemv8 => [if b_along_k { 2 } else { 8 }, 8, 1, 4],
            Tile::Gemv4 => [if b_along_k { 2 } else { 8 }, 4, 1, 4],
            Tile::Gemv2 => [if b_along_k { 2 } else { 8 }, 2, 1, 4],
            Tile::Gemv1 => [if b_along_k { 1 } else { 8 }, 1, 1, 4],
            Tile::Subgroup64 => [lanes, 1, 64, 8],
            Tile::Subgroup32 => [lanes, 1, 32, 8],
            Tile::Subgroup16 => [lanes, 1, 16, 8],
            // With more columns a lane, rows of B that lie a power of two apart drive each other out of the cache.
            Tile::Subgroup8 => [lanes, 1, 8, 4],
            Tile::Subgroup4 => [lanes, 1, 4, 4],
            Tile::Subgroup2 => [lanes, 1, 2, 4],
            Tile::Subgroup1 => [lanes, 1, 1, 4],
            // Four of the smallest subgroups.
            Tile::Narrow4 => [1, 64, 4, 4],
            Tile::Narrow8 => [1, 64, 4, 8],
            Tile::Cooperative8 => [8, lanes / 2, 64 / lanes, 4],
            Tile::Cooperative16 => [16, lanes / 4, 256 / lanes, 4],
        };
        let threads = match (tile.family(), b_along_k) {
            (Family::Stream, true) => 64,
            (Family::Stream, false) => 128,
            _ => wx * wy,
        };
        TileShape { tile, wx, wy, tm, tn, threads, steps: BK }
    }

    /// For a result of so many columns: the lanes of a subgroup have half as many each, where half of the lanes would
    /// be idle else.
    pub fn for_columns(self, columns: u64) -> TileShape {
        let halves = self.tile.family() == Family::Subgroup && self.tn == 8 && columns <= self.wx * 4;
        TileShape { tn: if halves { 4 } else { self.tn }, ..self }
    }

    /// For products whose loop keeps more than that of a layer: where A is `gathered` through a view, and where neither
    /// operand has k along its rows (`across_k`). Apple's GPUs have no registers for 64 sums of an invocation then, and
    /// Qualcomm's none for a second block of what is gathered.
    pub fn for_registers(self, traits: Traits, gathered: bool, across_k: bool) -> TileShape {
        let halves = self.tile.family() == Family::Tile && (gathered || across_k);
        let tn = if halves && traits.registers <= APPLE_REGISTERS { self.tn.min(4) } else { self.tn };
        let few = gathered && traits.registers <= QUALCOMM_REGISTERS;
        let steps = if few && self.tile.has_large_blocks() { 8 } else { self.steps };
        TileShape { tn, steps, ..self }
    }

    pub fn rows(self) -> u64 {
        self.wy * self.tm
    }

    pub fn columns(self) -> u64 {
        self.wx * self.tn
    }

    /// The most steps of k that an invocation may go through within `MAX_ITERATIONS`, if it has to form every one of
    /// its sums again. A multiple of BK.
    pub fn max_length(self) -> u64 {
        self.max_length_of(BK)
    }

    /// The same where sums are formed again by `redo_steps` of k at a time.
    fn max_length_of(self, redo_steps: u64) -> u64 {
        let threads = self.threads;
        // `product`, for each BK of k.
        let product = match self.tile.family() {
            Family::Tile => {
                let stages = |length: u64| (length / 4 * self.steps / 4).div_ceil(threads);
                // Fetching and staging A and B, which takes no more than this, and multiply-adds, two steps at a time.
                BK / self.steps * (1 + stages(self.rows()) + 5 * stages(self.columns()) + self.steps / 2)
            }
            // A team takes 16 quads of k or more at a time, four steps each may be scaled.
            Family::Stream => 2,
            // Everything within a step of four k is unrolled.
            Family::Subgroup | Family::Narrow => BK / 4,
            // Fetching and staging A and B, two steps of k; twice, if a subgroup is the whole workgroup.
            Family::Cooperative8 | Family::Cooperative16 => 2 * (1 + 4 * (self.rows() * BK / 4).div_ceil(threads) + 2),
        };
        // exact_dot of each element, a_in_range, b_in_range, exact_squares.
        let redo = self.tm * self.tn + self.tm + self.tn * self.tm.div_ceil(8) + self.columns().div_ceil(threads);
        // Twice for `stream`: lavapipe was seen to cut the last of its sums at sixteen loops over k, more than these
        // are.
        let redo = if self.tile.family() == Family::Stream { 2 * redo } else { redo };
        // The loops over elements, stages and columns besides.
        let besides = 2_000;
        (MAX_ITERATIONS - besides) / (product + redo * BK / redo_steps) * BK
    }

    /// Steps of k at a time where sums over so many are formed again: lanes take as few as `MAX_ITERATIONS` allows.
    pub fn redo_steps(self, length: u64) -> u64 {
        let few = [4, 8].into_iter().filter(|_| self.tile.family() == Family::Subgroup);
        few.clone().find(|&steps| self.max_length_of(steps) >= length).unwrap_or(BK)
    }
}

impl Tile {
    /// On such a device.
    pub(crate) fn shape(self, traits: Traits, b_along_k: bool) -> TileShape {
        let mut shape = TileShape::new(self, self.lanes(traits), b_along_k);
        if (traits.registers <= APPLE_REGISTERS && self.has_large_blocks())
            || (traits.workgroup_bytes < HUGE_BYTES && self == Tile::Tile128x128)
        {
            shape.steps = 8;
        }
        shape
    }

    /// Whether an invocation stages blocks of so many rows that 16 steps of them want many registers.
    fn has_large_blocks(self) -> bool {
        matches!(self, Tile::Tile64x64 | Tile::Tile128x8)
    }

    /// Lanes of a subgroup as the device would compute it, for the tiles that depend on them.
    pub(crate) fn lanes(self, traits: Traits) -> Option<u64> {
        match self.family() {
            Family::Tile | Family::Stream | Family::Narrow => traits.subgroup,
            // With four, `tile64x64` takes half the time (SwiftShader), which takes minutes and gigabytes to compile
            // these besides.
            Family::Subgroup => traits.subgroup.filter(|&lanes| lanes >= 8),
            Family::Cooperative8 => traits.cooperative[0],
            Family::Cooperative16 => traits.cooperative[1],
        }
    }

    /// Whether a device can run it.
    pub(crate) fn runs(self, traits: Traits) -> bool {
        match self.family() {
            Family::Tile | Family::Stream | Family::Narrow => self.shape(traits, true).threads <= traits.invocations,
            _ => self.lanes(traits).is_some(),
        }
    }

    /// The longest sum that it forms in one piece.
    pub(crate) fn longest(self, traits: Traits) -> u64 {
        let shape = self.shape(traits, true);
        shape.max_length().min(shape.for_registers(traits, true, true).max_length())
    }

    /// Workgroups that a product of rows by columns takes, and multiply-adds for each step of k, past its edges too.
    pub(crate) fn grid(self, traits: Traits, b_along_k: bool, rows: u64, columns: u64) -> (u64, u64) {
        let shape = self.shape(traits, b_along_k);
        let groups = rows.div_ceil(shape.rows()) * columns.div_ceil(shape.columns());
        (groups, groups * shape.rows() * shape.columns())
    }
}
