//! The table: which tile computes a product, where nothing else says.
use super::selection::Problem;
use super::shape::{BK, TileShape};
use super::tile::{Family, Tile};
use crate::choose::Traits;

impl Tile {
    /// The table: the tile for a product, where nothing else says which, and the length of the pieces of its sums where
    /// a GPU had better form them in pieces. `cooperative`: whether cooperative matrices can do it, which are for GPUs.
    pub(crate) fn choose(traits: Traits, cooperative: bool, problem: &Problem) -> (Tile, Option<u32>) {
        let [rows, columns, depth] = problem.size;
        let busy = Busy::of(traits);
        // `Some` where a CPU computes, in subgroups of one size.
        let lanes = Tile::Subgroup1.lanes(traits).filter(|_| busy.is_none());
        let fits = |tile: &Tile| busy.is_some() && tile.runs(traits) && depth <= tile.longest(traits);
        let coop = [Tile::Cooperative16, Tile::Cooperative8].into_iter().filter(|_| cooperative).find(fits);
        let pieces = |tile: Tile| {
            let (groups, _) = tile.grid(traits, problem.along_k[1], rows, columns);
            busy.as_ref().map_or(1, |busy| busy.pieces(tile, groups, depth))
        };
        let longest = TileShape::new(Tile::Tile64x64, None, true).max_length();
        // A read word by word, across k: `tile64x64` took two to three times as long.
        let ragged = !problem.along_k[0] && !rows.is_multiple_of(4);
        let keeps_busy =
            |busy: &Busy| !ragged && busy.can_be_kept(Tile::Tile64x64.grid(traits, true, rows, columns).0, depth);
        let largest = Tile::Tile128x128.shape(traits, true);
        let largest_runs = Tile::Tile128x128.runs(traits) && largest.steps == BK && depth <= largest.max_length();
        let largest_keeps_busy = |busy: &Busy| {
            largest_runs && depth > 64 && Tile::Tile128x128.grid(traits, true, rows, columns).0 >= busy.enough
        };
        // Few columns: sums in pieces, since many such layers want them exact.
        let lanes = lanes.filter(|_| columns > 8);
        let tile = match (lanes, rows, columns) {
            (_, _, ..=8) if rows > 8 => Tile::Tile128x8,
            (Some(lanes), _, _) => Tile::choose_subgroup(lanes, rows, columns, depth),
            (None, 1, _) => Tile::Gemv1,
            (None, 2, _) => Tile::Gemv2,
            (None, ..=4, _) => Tile::Gemv4,
            (None, ..=8, _) if busy.is_none() => Tile::Gemv8,
            (None, ..=16, _) if busy.is_some() => Tile::Gemv4,
            (None, ..=48, _) | (None, _, ..=48) => Tile::Tile32x32,
            (None, _, _) if coop.is_some() => coop.unwrap_or(Tile::Tile64x64),
            // It can form longer sums whole.
            (None, _, _) if depth > longest && pieces(Tile::Tile64x64) == 1 => Tile::Tile32x32,
            // Half of the reads of `tile64x64`, where a GPU has enough workgroups of it.
            (None, _, _) if !ragged && busy.as_ref().is_some_and(largest_keeps_busy) => Tile::Tile128x128,
            // Where a GPU wants more workgroups.
            (None, _, _) if !busy.as_ref().is_none_or(keeps_busy) => Tile::Tile32x32,
            (None, _, _) => Tile::Tile64x64,
        };
        let pieces = if tile.is_cooperative() { 1 } else { pieces(tile) };
        let length = depth.div_ceil(pieces).next_multiple_of(BK);
        (tile, (pieces > 1 && length <= tile.longest(traits)).then_some(length as u32))
    }

    /// For a convolution of so many groups on a CPU, whose lanes have four rows at least. Many rows are up to three
    /// times as fast, but take lavapipe a second more to compile each time that a program starts.
    pub(crate) fn choose_lanes(lanes: u64, groups: u64, [rows, columns, depth]: [u64; 3]) -> Tile {
        match rows {
            _ if groups * rows * columns * depth >= WORTH_MANY_ROWS => {
                Tile::choose_subgroup(lanes, rows.max(4), columns, depth)
            }
            ..=4 => Tile::Subgroup4,
            _ => Tile::Subgroup8,
        }
    }

    /// That which takes the least time for its rows and columns, the last tiles filled up. The rates are GFLOP/s of a
    /// product of 512 by 512 by 512 on lavapipe with 8 lanes and two cores.
    pub(crate) fn choose_subgroup(lanes: u64, rows: u64, columns: u64, depth: u64) -> Tile {
        const RATES: [(Tile, u64); 7] = [
            (Tile::Subgroup64, 63),
            (Tile::Subgroup32, 52),
            (Tile::Subgroup16, 44),
            (Tile::Subgroup8, 30),
            (Tile::Subgroup4, 18),
            (Tile::Subgroup2, 10),
            (Tile::Subgroup1, 5),
        ];
        // With a short sum writing the result is the work, which few rows at a time do faster.
        let most_rows = if depth <= 32 { 16 } else { 64 };
        let time = |&&(tile, rate): &&(Tile, u64)| {
            let whole = TileShape::new(tile, Some(lanes), true);
            let shape = whole.for_columns(columns);
            // Half of the columns take more than half of the time: 1.4 times the rate of idle lanes was seen.
            let rate = if shape.tn < whole.tn { rate * 3 / 4 } else { rate };
            // A sum that has to be split costs a second dispatch and a pass over the partial sums.
            let split = if depth > shape.max_length() { 5 } else { 4 };
            rows.next_multiple_of(shape.tm) * columns.next_multiple_of(shape.columns()) * split * 1_000 / rate
        };
        let candidates = RATES.iter().filter(|(tile, _)| TileShape::new(*tile, Some(lanes), true).tm <= most_rows);
        candidates.min_by_key(time).map_or(Tile::Subgroup32, |(tile, _)| *tile)
    }
}

/// Multiply-adds that take a CPU some 50 ms.
const WORTH_MANY_ROWS: u64 = 1 << 27;

/// What keeps a GPU busy with a product. The numbers are those with which an H200 (132 multiprocessors) took the least
/// time, or nearly, for the layers of `benches/results/2026-11-28-h200-tiles.csv`; a GPU within a processor has about a
/// tenth of it.
struct Busy {
    /// Workgroups from which on sums are formed whole.
    enough: u64,
    /// Workgroups of `tile64x64` to aim at with pieces of sums otherwise.
    wanted: u64,
}

/// Steps of k that are worth a second dispatch.
const LEAST_PIECE: u64 = 256;

impl Busy {
    /// None on a CPU, which is busy with anything.
    fn of(traits: Traits) -> Option<Busy> {
        match traits {
            traits if !traits.is_gpu() => None,
            Traits { integrated: true, .. } => Some(Busy { enough: 24, wanted: 64 }),
            _ => Some(Busy { enough: 192, wanted: 512 }),
        }
    }

    /// By so many workgroups of `tile64x64`, with pieces or without. With short sums the epilogue is the work, and more
    /// and smaller workgroups do them sooner.
    fn can_be_kept(&self, groups: u64, depth: u64) -> bool {
        depth > 64 && groups * (depth / LEAST_PIECE).max(1) >= self.enough
    }

    fn pieces(&self, tile: Tile, groups: u64, depth: u64) -> u64 {
        let (enough, wanted, least) = match tile {
            // A quarter of the work in each.
            Tile::Tile32x32 => (self.enough, 2 * self.wanted, LEAST_PIECE),
            // Soon done with a step.
            _ if tile.family() == Family::Stream => (self.wanted, self.wanted, 4 * LEAST_PIECE),
            _ => (self.enough, self.wanted, LEAST_PIECE),
        };
        if groups >= enough { 1 } else { (wanted / groups).min(depth / least).max(1) }
    }
}
