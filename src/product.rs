//! The matrix product C[m,n] = Σ_k A[m,k]·B[n,k] that forward and backward are made of: tiles, windows, splits.
//! Shaders: `shaders/product`.
use std::fmt;
use std::str::FromStr;

use bytemuck::{Pod, Zeroable};

use crate::choose::Traits;
use crate::gpu::Scratch;
use crate::kernel::{Constants, Kernel, MAX_ITERATIONS};
use crate::norms::windows;
use crate::record::{Dispatch, Span, View, firsts};
use crate::source::Module;
use crate::tune::Key;
use crate::{DType, Error, Gpu, Recorder, Tensor};

/// `Params` of `product/shape.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Params {
    rows: u32,
    columns: u32,
    depth: u32,
    a_stride: u32,
    b_stride: u32,
    c_stride: u32,
    split_length: u32,
    split_first: u32,
    splits: u32,
    firsts: u32,
    more_firsts: u32,
    policy: u32,
    eps: f32,
    slope: f32,
}

/// How a product is computed: what fills the slot `family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// From workgroup memory.
    Tile,
    /// From registers, for few rows of A.
    Stream,
    /// By the lanes of a subgroup, for software drivers.
    Subgroup,
    /// In cooperative matrices of 8 by 8.
    Cooperative8,
    /// In cooperative matrices of 16 by 16.
    Cooperative16,
}

impl Family {
    const ALL: [Family; 5] =
        [Family::Tile, Family::Stream, Family::Subgroup, Family::Cooperative8, Family::Cooperative16];

    /// Software drivers read mixed types element by element; cooperative matrices take f16 alone.
    fn can_read(self, reads: [Read; 2]) -> bool {
        match self {
            Family::Tile | Family::Stream => true,
            Family::Subgroup => reads[0] == reads[1],
            Family::Cooperative8 | Family::Cooperative16 => reads[0] == reads[1] && reads[0] != Read::Quad,
        }
    }

    /// The module of a product with this epilogue.
    fn module(self, epilogue: &'static str, [a, b]: [Read; 2], result: &'static str) -> Module {
        let family = match self {
            Family::Tile => "product/tile",
            Family::Stream => "product/stream",
            Family::Subgroup => "product/subgroup",
            Family::Cooperative8 | Family::Cooperative16 => "product/cooperative",
        };
        let a = match a {
            Read::Scalar => "product/a_scalar",
            Read::Quad => "product/a_quad",
            Read::Pair => "product/a_pair",
        };
        let b = match b {
            Read::Scalar => "product/b_scalar",
            Read::Quad => "product/b_quad",
            Read::Pair => "product/b_pair",
        };
        let module = Module::new(epilogue).fill("family", family).fill("a", a).fill("b", b).fill("result", result);
        match self {
            Family::Cooperative8 => module.fill("matrix", "product/matrix8"),
            Family::Cooperative16 => module.fill("matrix", "product/matrix16"),
            _ => module,
        }
    }
}

/// How an operand is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Element by element: anything.
    Scalar,
    /// f32, four at a time.
    Quad,
    /// f16 or bf16, four at a time.
    Pair,
}

impl Read {
    /// What comes together: both operands four at a time, or neither.
    const BOTH: [[Read; 2]; 5] = [
        [Read::Scalar, Read::Scalar],
        [Read::Quad, Read::Quad],
        [Read::Pair, Read::Pair],
        [Read::Pair, Read::Quad],
        [Read::Quad, Read::Pair],
    ];
}

const LINEAR: &str = "product/linear";
const GRADIENT: &str = "product/gradient";
const RESULTS: [&str; 3] = ["product/result_scalar", "product/result_packed", "product/result_vec4"];

/// Every module of a product.
pub(crate) fn modules() -> Vec<Module> {
    let mut all = vec![];
    for epilogue in [LINEAR, GRADIENT] {
        for family in Family::ALL {
            for reads in Read::BOTH.into_iter().filter(|reads| family.can_read(*reads)) {
                all.extend(RESULTS.map(|result| family.module(epilogue, reads, result)));
            }
        }
    }
    all
}

/// A shape of the product kernels: how they compute, and how much of the result a workgroup does.
///
/// Every product is computed by the tile that is forced ([`LinearOptions::tile`](crate::LinearOptions::tile),
/// [`Gradients::tile`](crate::Gradients::tile)); else by that of the [`Choices`](crate::Choices) for exactly this product;
/// else by that of a table. It takes lanes where a CPU computes and the device can, memory everywhere else, and of these
/// a tile that the rows and columns of the product fill well and, on a GPU, that makes enough workgroups to keep it busy,
/// where need be with the sums in pieces.
///
/// [`Display`](fmt::Display) writes the names in lower case, and [`FromStr`] reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tile {
    /// From workgroup memory, 128 rows by 128 columns, 8 by 8 an invocation: half of what `Large` reads for a multiply-add.
    /// Chosen only if it is asked for, or by [`Gpu::tune`].
    Huge,
    /// From workgroup memory, 64 rows by 64 columns, 8 by 8 an invocation.
    Large,
    /// From workgroup memory, 32 by 32, 4 by 4 an invocation.
    Medium,
    /// From workgroup memory, 128 rows by 8 columns, 4 by 4 an invocation: a few output features.
    Tall,
    /// From registers, 8 rows by 8 columns, or by 32 for dx and dv: a few rows of x, at the speed at which the weight comes
    /// from memory.
    Stream8,
    /// 4 rows by as many columns.
    Stream4,
    /// 2 rows by as many columns.
    Stream2,
    /// 1 row by 4 columns, or by 32.
    Stream1,
    /// By a subgroup of 8 or 16 lanes, 64 rows by 8 columns a lane. As the others of its name for devices whose subgroups
    /// have one size: those that compute on a CPU.
    Lanes64,
    /// 32 rows by 8 columns a lane.
    Lanes32,
    /// 16 rows by 8 columns a lane.
    Lanes16,
    /// 8 rows by 4 columns a lane.
    Lanes8,
    /// 4 rows by 4 columns a lane.
    Lanes4,
    /// 2 rows by 4 columns a lane.
    Lanes2,
    /// 1 row by 4 columns a lane.
    Lanes1,
    /// In cooperative matrices of 8 by 8, 32 rows by 32 columns. As [`Tile::Coop16`] for products of two matrices stored as
    /// f16, neither of which is scaled before it is multiplied, on devices that were asked for the experimental feature:
    /// [`Options::cooperative_matrices`](crate::Options::cooperative_matrices).
    Coop8,
    /// In cooperative matrices of 16 by 16, 64 rows by 64 columns.
    Coop16,
}

impl Tile {
    /// All of them.
    pub const ALL: [Tile; 17] = [
        Tile::Huge,
        Tile::Large,
        Tile::Medium,
        Tile::Tall,
        Tile::Stream8,
        Tile::Stream4,
        Tile::Stream2,
        Tile::Stream1,
        Tile::Lanes64,
        Tile::Lanes32,
        Tile::Lanes16,
        Tile::Lanes8,
        Tile::Lanes4,
        Tile::Lanes2,
        Tile::Lanes1,
        Tile::Coop8,
        Tile::Coop16,
    ];

    /// Whether a device can run it.
    pub fn runs_on(self, gpu: &Gpu) -> bool {
        match self.family() {
            Family::Tile | Family::Stream => self.shape(gpu, true).threads <= gpu.workgroup_capacity(),
            _ => self.lanes(gpu).is_some(),
        }
    }

    /// Those that a device can run.
    pub fn all_on(gpu: &Gpu) -> impl Iterator<Item = Tile> {
        Tile::ALL.into_iter().filter(|tile| tile.runs_on(gpu))
    }

    /// The longest sum that it forms in one piece, in steps of k.
    pub fn max_length(self, gpu: &Gpu) -> u64 {
        self.shape(gpu, true).max_length()
    }

    /// On this device.
    fn shape(self, gpu: &Gpu, b_along_k: bool) -> Shape {
        let mut shape = Shape::new(self, self.lanes(gpu), b_along_k);
        let traits = gpu.traits();
        if traits.spills && self == Tile::Large || traits.workgroup_bytes < HUGE_BYTES && self == Tile::Huge {
            shape.steps = 8;
        }
        shape
    }

    /// Lanes of a subgroup as the device would compute it, for the tiles that depend on them.
    fn lanes(self, gpu: &Gpu) -> Option<u64> {
        match self.family() {
            Family::Tile | Family::Stream => gpu.traits().subgroup,
            // With four, `large` takes half the time (SwiftShader), which takes minutes and gigabytes to compile these besides.
            Family::Subgroup => gpu.traits().subgroup.filter(|&lanes| lanes >= 8),
            Family::Cooperative8 => gpu.cooperative(8),
            Family::Cooperative16 => gpu.cooperative(16),
        }
    }

    pub(crate) fn family(self) -> Family {
        match self {
            Tile::Huge | Tile::Large | Tile::Medium | Tile::Tall => Family::Tile,
            Tile::Stream8 | Tile::Stream4 | Tile::Stream2 | Tile::Stream1 => Family::Stream,
            Tile::Coop8 => Family::Cooperative8,
            Tile::Coop16 => Family::Cooperative16,
            _ => Family::Subgroup,
        }
    }

    pub(crate) fn is_cooperative(self) -> bool {
        matches!(self.family(), Family::Cooperative8 | Family::Cooperative16)
    }

    /// Workgroups that a product of rows by columns takes, and multiply-adds for each step of k, past its edges too.
    pub(crate) fn grid(self, gpu: &Gpu, b_along_k: bool, rows: u64, columns: u64) -> (u64, u64) {
        let shape = self.shape(gpu, b_along_k);
        let groups = rows.div_ceil(shape.rows()) * columns.div_ceil(shape.columns());
        (groups, groups * shape.rows() * shape.columns())
    }

    /// The table: the tile for a product, where nothing else says which, and the length of the pieces of its sums where a GPU
    /// had better form them in pieces. `cooperative`: whether cooperative matrices can do it, which are for GPUs.
    pub(crate) fn choose(gpu: &Gpu, cooperative: bool, key: &Key) -> (Tile, Option<u32>) {
        let [rows, columns, depth] = key.size;
        let busy = Busy::of(gpu);
        // `Some` where a CPU computes, in subgroups of one size.
        let lanes = Tile::Lanes1.lanes(gpu).filter(|_| busy.is_none());
        let fits = |tile: &Tile| busy.is_some() && tile.runs_on(gpu) && depth <= tile.max_length(gpu);
        let coop = [Tile::Coop16, Tile::Coop8].into_iter().filter(|_| cooperative).find(fits);
        let pieces = |tile: Tile| {
            let (groups, _) = tile.grid(gpu, key.along_k[1], rows, columns);
            busy.as_ref().map_or(1, |busy| busy.pieces(tile, groups, depth))
        };
        let longest = Shape::new(Tile::Large, None, true).max_length();
        // A read word by word, across k: `large` took two to three times as long.
        let ragged = !key.along_k[0] && !rows.is_multiple_of(4);
        let keeps_busy = |busy: &Busy| !ragged && busy.can_be_kept(Tile::Large.grid(gpu, true, rows, columns).0, depth);
        let tile = match (lanes, rows, columns) {
            (_, _, ..=8) if rows > 8 => Tile::Tall,
            (Some(lanes), _, _) => Tile::choose_lanes(lanes, rows, columns, depth),
            (None, 1, _) => Tile::Stream1,
            (None, 2, _) => Tile::Stream2,
            (None, ..=4, _) => Tile::Stream4,
            (None, ..=8, _) if busy.is_none() => Tile::Stream8,
            (None, ..=16, _) if busy.is_some() => Tile::Stream4,
            (None, ..=48, _) | (None, _, ..=48) => Tile::Medium,
            (None, _, _) if coop.is_some() => coop.unwrap_or(Tile::Large),
            // It can form longer sums whole.
            (None, _, _) if depth > longest && pieces(Tile::Large) == 1 => Tile::Medium,
            // Where a GPU wants more workgroups.
            (None, _, _) if !busy.as_ref().is_none_or(keeps_busy) => Tile::Medium,
            (None, _, _) => Tile::Large,
        };
        let pieces = if tile.is_cooperative() { 1 } else { pieces(tile) };
        let length = depth.div_ceil(pieces).next_multiple_of(BK);
        (tile, (pieces > 1 && length <= tile.max_length(gpu)).then_some(length as u32))
    }

    /// That which takes the least time for its rows and columns, the last tiles filled up. The rates are GFLOP/s of a
    /// product of 512 by 512 by 512 on lavapipe with 8 lanes and two cores.
    fn choose_lanes(lanes: u64, rows: u64, columns: u64, depth: u64) -> Tile {
        const RATES: [(Tile, u64); 7] = [
            (Tile::Lanes64, 63),
            (Tile::Lanes32, 52),
            (Tile::Lanes16, 44),
            (Tile::Lanes8, 30),
            (Tile::Lanes4, 18),
            (Tile::Lanes2, 10),
            (Tile::Lanes1, 5),
        ];
        // With a short sum writing the result is the work, which few rows at a time do faster.
        let most_rows = if depth <= 32 { 16 } else { 64 };
        let time = |&&(tile, rate): &&(Tile, u64)| {
            let shape = Shape::new(tile, Some(lanes), true);
            // A sum that has to be split costs a second dispatch and a pass over the partial sums.
            let split = if depth > shape.max_length() { 5 } else { 4 };
            rows.next_multiple_of(shape.tm) * columns.next_multiple_of(shape.columns()) * split * 1_000 / rate
        };
        let candidates = RATES.iter().filter(|(tile, _)| Shape::new(*tile, Some(lanes), true).tm <= most_rows);
        candidates.min_by_key(time).map_or(Tile::Lanes32, |(tile, _)| *tile)
    }
}

/// What keeps a GPU busy with a product. The numbers are those with which an H200 (132 multiprocessors) took the least time, or
/// nearly, for the layers of `benches/results/2026-11-28-h200-tiles.csv`; a GPU within a processor has about a tenth of it.
struct Busy {
    /// Workgroups from which on sums are formed whole.
    enough: u64,
    /// Workgroups of `large` to aim at with pieces of sums otherwise.
    wanted: u64,
}

/// Steps of k that are worth a second dispatch.
const LEAST_PIECE: u64 = 256;

impl Busy {
    /// None on a CPU, which is busy with anything.
    fn of(gpu: &Gpu) -> Option<Busy> {
        match gpu.traits() {
            traits if !traits.is_gpu() => None,
            Traits { integrated: true, .. } => Some(Busy { enough: 24, wanted: 64 }),
            _ => Some(Busy { enough: 192, wanted: 512 }),
        }
    }

    /// By so many workgroups of `large`, with pieces or without. With short sums the ends are the work, and more and smaller
    /// workgroups do them sooner.
    fn can_be_kept(&self, groups: u64, depth: u64) -> bool {
        depth > 64 && groups * (depth / LEAST_PIECE).max(1) >= self.enough
    }

    fn pieces(&self, tile: Tile, groups: u64, depth: u64) -> u64 {
        let (enough, wanted, least) = match tile {
            // A quarter of the work in each.
            Tile::Medium => (self.enough, 2 * self.wanted, LEAST_PIECE),
            // Soon done with a step.
            _ if tile.family() == Family::Stream => (self.wanted, self.wanted, 4 * LEAST_PIECE),
            _ => (self.enough, self.wanted, LEAST_PIECE),
        };
        if groups >= enough { 1 } else { (wanted / groups).min(depth / least).max(1) }
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

impl FromStr for Tile {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownTile`].
    fn from_str(name: &str) -> Result<Tile, Error> {
        Tile::ALL.into_iter().find(|tile| tile.to_string() == name).ok_or_else(|| {
            let names: Vec<_> = Tile::ALL.iter().map(Tile::to_string).collect();
            Error::UnknownTile { got: name.to_owned(), expected: names.join(", ") }
        })
    }
}

/// A [`Tile`] on a device.
#[derive(Debug, Clone, Copy)]
struct Shape {
    tile: Tile,
    /// WX, WY, TM, TN of `product/shape.wgsl`.
    wx: u64,
    wy: u64,
    tm: u64,
    tn: u64,
    /// Invocations of a workgroup.
    threads: u64,
    /// BK of `product/tile.wgsl`: 16, with which each invocation of `large` stages a block of A and one of B; 8 where that takes
    /// more registers or workgroup memory than there are.
    steps: u64,
}

impl Shape {
    /// `lanes`: of a subgroup, for the tiles that are computed by one. `b_along_k`: how B is stored, for those that read it
    /// straight from memory.
    fn new(tile: Tile, lanes: Option<u64>, b_along_k: bool) -> Shape {
        let lanes = lanes.unwrap_or(8);
        let [wx, wy, tm, tn] = match tile {
            Tile::Huge => [16, 16, 8, 8],
            Tile::Large => [8, 8, 8, 8],
            Tile::Medium => [8, 8, 4, 4],
            Tile::Tall => [2, 32, 4, 4],
            Tile::Stream8 => [if b_along_k { 2 } else { 8 }, 8, 1, 4],
            Tile::Stream4 => [if b_along_k { 2 } else { 8 }, 4, 1, 4],
            Tile::Stream2 => [if b_along_k { 2 } else { 8 }, 2, 1, 4],
            Tile::Stream1 => [if b_along_k { 1 } else { 8 }, 1, 1, 4],
            Tile::Lanes64 => [lanes, 1, 64, 8],
            Tile::Lanes32 => [lanes, 1, 32, 8],
            Tile::Lanes16 => [lanes, 1, 16, 8],
            // With more columns a lane, rows of B that lie a power of two apart drive each other out of the cache.
            Tile::Lanes8 => [lanes, 1, 8, 4],
            Tile::Lanes4 => [lanes, 1, 4, 4],
            Tile::Lanes2 => [lanes, 1, 2, 4],
            Tile::Lanes1 => [lanes, 1, 1, 4],
            // Four of the smallest subgroups.
            Tile::Coop8 => [8, lanes / 2, 64 / lanes, 4],
            Tile::Coop16 => [16, lanes / 4, 256 / lanes, 4],
        };
        let steps = BK;
        let threads = match (tile.family(), b_along_k) {
            (Family::Stream, true) => 64,
            (Family::Stream, false) => 128,
            _ => wx * wy,
        };
        Shape { tile, wx, wy, tm, tn, threads, steps }
    }

    fn rows(self) -> u64 {
        self.wy * self.tm
    }

    fn columns(self) -> u64 {
        self.wx * self.tn
    }

    /// The most steps of k that an invocation may go through within `MAX_ITERATIONS`, if it has to form every one of
    /// its sums again. A multiple of BK.
    fn max_length(self) -> u64 {
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
            Family::Subgroup => BK / 4,
            // Fetching and staging A and B, two steps of k; twice, if a subgroup is the whole workgroup.
            Family::Cooperative8 | Family::Cooperative16 => 2 * (1 + 4 * (self.rows() * BK / 4).div_ceil(threads) + 2),
        };
        // exact_dot of each element, a_in_range, b_in_range, exact_squares.
        let redo = self.tm * self.tn + self.tm + self.tn * self.tm.div_ceil(8) + self.columns().div_ceil(threads);
        // Twice for `stream`: lavapipe was seen to cut the last of its sums at sixteen loops over k, more than these are.
        let redo = if self.tile.family() == Family::Stream { 2 * redo } else { redo };
        // The loops over elements, stages and columns besides.
        let besides = 2_000;
        (MAX_ITERATIONS - besides) / (product + redo * BK / redo_steps) * BK
    }

    /// Steps of k at a time where sums over so many are formed again: lanes take as few as `MAX_ITERATIONS` allows.
    fn redo_steps(self, length: u64) -> u64 {
        let few = [4, 8].into_iter().filter(|_| self.tile.family() == Family::Subgroup);
        few.clone().find(|&steps| self.max_length_of(steps) >= length).unwrap_or(BK)
    }
}

/// Workgroup memory of `huge` with 16 steps of k: 33 vectors a step each of A and B, and 128 norms.
const HUGE_BYTES: u64 = 2 * 33 * 16 * BK + 8 * 128;
/// A split has a multiple of so many steps of k: what `product/tile.wgsl` stages at a time, at most.
const BK: u64 = 16;
/// `FINISH_THREADS` of `product/split.wgsl`.
const FINISH_THREADS: u64 = 64;
/// Partial sums kept at a time; a larger product is computed in pieces.
const MAX_PARTIAL_BYTES: u64 = 64 << 20;

/// Partial sums that can be kept at a time.
fn partial_capacity(gpu: &Gpu) -> u64 {
    MAX_PARTIAL_BYTES.min(gpu.binding_capacity()) / 8
}

/// A or B: a matrix with k along its rows, (m, k), or along its columns, (k, m).
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub tensor: &'a Tensor,
    pub along_k: bool,
}

/// Whether cooperative matrices can multiply them.
pub(crate) fn are_halves<'a>(operands: impl IntoIterator<Item = &'a Tensor>) -> bool {
    operands.into_iter().all(|operand| operand.dtype() == DType::F16)
}

/// A forced variant, for tests and tuning.
#[derive(Clone, Copy, Default)]
pub(crate) struct Forced {
    pub tile: Option<Tile>,
    pub split_length: Option<u32>,
}

impl Forced {
    /// Whether the device can do it. `cooperative`: whether cooperative matrices can do all that is asked for.
    pub fn check(&self, op: &'static str, gpu: &Gpu, cooperative: bool) -> Result<(), Error> {
        if let Some(tile) = self.tile.filter(|tile| !tile.runs_on(gpu)) {
            let reason = match tile.family() {
                Family::Cooperative8 | Family::Cooperative16 => {
                    "the device has no cooperative matrices of this size, or they were not asked for"
                }
                Family::Tile | Family::Stream => "the device has no workgroups of so many invocations",
                Family::Subgroup => {
                    "the device has no subgroups of one size of 8 or 16 lanes, or they were not asked for"
                }
            };
            return Err(Error::Variant { op, got: format!("{tile:?}"), reason: reason.to_owned() });
        }
        if let Some(tile) = self.tile.filter(|tile| tile.is_cooperative() && !cooperative) {
            let reason = "cooperative matrices multiply f16 by f16, and nothing that is scaled before";
            return Err(Error::Variant { op, got: format!("{tile:?}"), reason: reason.to_owned() });
        }
        let Some(split_length) = self.split_length else { return Ok(()) };
        let tile = self.tile.unwrap_or(Tile::Large);
        let longest = tile.max_length(gpu);
        if split_length == 0 || u64::from(split_length).next_multiple_of(BK) > longest {
            let reason = format!("a split has 1 to {longest} steps with this tile");
            return Err(Error::Variant { op, got: format!("split_length {split_length}, {tile:?}"), reason });
        }
        Ok(())
    }
}

/// The part of a product that one dispatch computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub row: u64,
    pub rows: u64,
    pub column: u64,
    pub columns: u64,
    pub k: u64,
    pub depth: u64,
}

impl Window {
    /// Binds the part of a (.., width) matrix that has the window's rows and columns.
    pub fn of_result<'a>(&self, gpu: &Gpu, view: &View<'a>, width: u64) -> Bound<'a> {
        view.bind(gpu, self.row * width + self.column, (self.rows - 1) * width + self.columns)
    }
}

/// A span and the place of its first element, as [`View::bind`] gives them.
pub(crate) type Bound<'a> = (Option<Span<'a>>, u32);

/// Which of the three kernels of a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Stage {
    Whole,
    Partial,
    Finish,
}

/// What an end wants of a dispatch, besides A, B and the partial sums.
pub(crate) struct EndOf<'a> {
    pub constants: Constants,
    /// The kernel's bindings after A and B (which `Finish` lacks), without the partial sums.
    pub buffers: Vec<Option<Span<'a>>>,
    /// The upper two places of `firsts`, and `more_firsts`.
    pub firsts: [u32; 2],
    pub more_firsts: [u32; 4],
    /// Whether all that is shaped as C is f32, in rows of whole quads that start at multiples of four elements.
    pub quads: bool,
}

/// What a product starts from and what becomes of it: the ends of a shader.
pub(crate) trait End<'a> {
    /// The kernels of [`Stage::Whole`], `Partial` and `Finish`.
    fn kernels(&self) -> [&'static Kernel; 3];
    /// The storage type of the result.
    fn out(&self) -> DType;
    fn of(&self, gpu: &Gpu, stage: Stage, window: &Window) -> EndOf<'a>;
    /// Whether B is scaled before it is multiplied.
    fn scales_b(&self) -> bool;
    /// Bytes that one step of k needs in a binding of the end, if any.
    fn bytes_per_step(&self) -> u64;
    /// Sums of squares kept beside the partial sums of C: one for each column and split, or none.
    fn column_sums(&self) -> bool;
    fn policy(&self) -> (u32, f32);
    fn slope(&self) -> f32;
}

/// A product whose arguments are checked. Nothing of it is empty, but depth may be 0.
pub(crate) struct Product<'a> {
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    /// Bytes of an element of the widest tensor shaped as C.
    pub c_bytes: u64,
    pub rows: u64,
    pub columns: u64,
    pub depth: u64,
    pub forced: Forced,
    pub end: &'a dyn End<'a>,
}

/// How a product is cut: steps of rows, columns and k that one dispatch takes, and the length of a split if the sum is
/// split.
#[derive(Debug)]
struct Plan {
    tile: Shape,
    rows: u64,
    columns: u64,
    split_length: Option<u64>,
    /// Splits in one dispatch.
    split_step: u64,
}

impl Recorder<'_, '_> {
    pub(crate) fn product(&mut self, product: &Product<'_>) -> Result<(), Error> {
        let plan = product.plan(self)?;
        match plan.split_length {
            None => self.whole_sums(product, &plan),
            Some(split_length) => self.split_sums(product, &plan, split_length),
        }
    }

    fn whole_sums(&mut self, product: &Product<'_>, plan: &Plan) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        for window in product.windows(plan) {
            let (a, a_first) = product.a.bind(&gpu, window.row, window.rows, &window, product.rows, product.depth);
            let (b, b_first) =
                product.b.bind(&gpu, window.column, window.columns, &window, product.columns, product.depth);
            let reads = product.reads(plan.tile.tile.family(), &window, a_first, b_first);
            let end = product.end.of(&gpu, Stage::Whole, &window);
            let mut buffers = vec![a, b];
            buffers.extend(end.buffers);
            self.dispatch(&Dispatch {
                kernel: product.end.kernels()[Stage::Whole as usize],
                module: product.module(plan.tile.tile, reads, end.quads && window.columns.is_multiple_of(4)),
                constants: &product.constants(plan.tile, end.constants, reads, &window, window.depth),
                buffers: &buffers,
                params: Params {
                    splits: 1,
                    split_length: window.depth as u32,
                    firsts: firsts([a_first, b_first, end.firsts[0], end.firsts[1]]),
                    more_firsts: firsts(end.more_firsts),
                    ..product.params(&window)
                },
                groups: plan.tiles(&window),
                work: plan.work(&window),
            })?;
        }
        Ok(())
    }

    /// Partial sums over pieces of k, then their sum.
    fn split_sums(&mut self, product: &Product<'_>, plan: &Plan, split_length: u64) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        let splits = product.depth.div_ceil(split_length);
        let count = |window: &Window| splits * window.columns * (window.rows + u64::from(product.end.column_sums()));
        let largest = Window { row: 0, rows: plan.rows, column: 0, columns: plan.columns, k: 0, depth: product.depth };
        let sums = View::scratch(gpu.scratch(Scratch::Sums, count(&largest) * 8)?, 8);
        for window in product.windows(plan) {
            let (part, _) = sums.bind(&gpu, 0, count(&window));
            let params = Params { splits: splits as u32, split_length: split_length as u32, ..product.params(&window) };
            for (split, split_count) in windows(splits, plan.split_step) {
                let k = split * split_length;
                let piece = Window { k, depth: (split_count * split_length).min(product.depth - k), ..window };
                let (a, a_first) = product.a.bind(&gpu, piece.row, piece.rows, &piece, product.rows, product.depth);
                let (b, b_first) =
                    product.b.bind(&gpu, piece.column, piece.columns, &piece, product.columns, product.depth);
                let reads = product.reads(plan.tile.tile.family(), &piece, a_first, b_first);
                let end = product.end.of(&gpu, Stage::Partial, &piece);
                let mut buffers = vec![a, b];
                buffers.extend(end.buffers);
                buffers.push(part.clone());
                self.dispatch(&Dispatch {
                    kernel: product.end.kernels()[Stage::Partial as usize],
                    module: product.module(plan.tile.tile, reads, false),
                    constants: &product.constants(plan.tile, end.constants, reads, &piece, split_length),
                    buffers: &buffers,
                    params: Params {
                        depth: piece.depth as u32,
                        split_first: split as u32,
                        firsts: firsts([a_first, b_first, end.firsts[0], end.firsts[1]]),
                        more_firsts: firsts(end.more_firsts),
                        ..params
                    },
                    groups: plan.tiles(&piece) * split_count,
                    work: plan.work(&piece),
                })?;
            }
            let end = product.end.of(&gpu, Stage::Finish, &window);
            let mut buffers = end.buffers;
            buffers.push(part);
            self.dispatch(&Dispatch {
                kernel: product.end.kernels()[Stage::Finish as usize],
                module: product.module(Tile::Large, Read::BOTH[0], false),
                constants: &end.constants,
                buffers: &buffers,
                params: Params {
                    firsts: firsts([0, 0, end.firsts[0], end.firsts[1]]),
                    more_firsts: firsts(end.more_firsts),
                    ..params
                },
                groups: (window.rows * window.columns).div_ceil(FINISH_THREADS),
                work: window.rows * window.columns * splits,
            })?;
        }
        Ok(())
    }
}

impl<'a> Operand<'a> {
    /// Binds the rows `first ..` of the product and the window's steps of k; the whole matrix has `rows` by `depth`.
    fn bind(&self, gpu: &Gpu, first: u64, count: u64, window: &Window, rows: u64, depth: u64) -> Bound<'a> {
        let view = View::of(self.tensor);
        match (window.depth, self.along_k) {
            (0, _) => (None, 0),
            (_, true) => view.bind(gpu, first * depth + window.k, (count - 1) * depth + window.depth),
            (_, false) => view.bind(gpu, window.k * rows + first, (window.depth - 1) * rows + count),
        }
    }

    /// Rows of the product, with `steps` of k each, that a binding of so many elements holds.
    fn rows_in(&self, elements: u64, rows: u64, depth: u64, steps: u64) -> u64 {
        if self.along_k {
            if steps > elements { 0 } else { ((elements - steps) / depth.max(1) + 1).min(rows) }
        } else {
            elements.saturating_sub(steps.saturating_sub(1) * rows).min(rows)
        }
    }

    /// Steps of k that a binding of so many elements holds together with all the rows (k along the columns), or with
    /// one row (k along the rows).
    fn steps_in(&self, elements: u64, rows: u64) -> u64 {
        if self.along_k { elements } else { (elements.saturating_sub(rows) / rows + 1).max(1) }
    }

    fn elements_in_binding(&self, gpu: &Gpu) -> u64 {
        gpu.binding_capacity() / self.tensor.dtype().size()
    }
}

impl Plan {
    fn tiles(&self, window: &Window) -> u64 {
        window.rows.div_ceil(self.tile.rows()) * window.columns.div_ceil(self.tile.columns())
    }

    /// Multiply-adds of a dispatch.
    fn work(&self, window: &Window) -> u64 {
        self.tiles(window) * self.tile.rows() * self.tile.columns() * window.depth.max(1)
    }
}

impl<'a> Product<'a> {
    /// What choices know it by.
    fn key(&self) -> Key {
        Key {
            along_k: [self.a.along_k, self.b.along_k],
            dtypes: [self.a.tensor.dtype(), self.b.tensor.dtype()],
            size: [self.rows, self.columns, self.depth],
        }
    }

    fn windows(&self, plan: &Plan) -> impl Iterator<Item = Window> {
        let (rows, depth, row_step) = (self.rows, self.depth, plan.rows);
        windows(self.columns, plan.columns).flat_map(move |(column, columns)| {
            windows(rows, row_step).map(move |(row, rows)| Window { row, rows, column, columns, k: 0, depth })
        })
    }

    fn params(&self, window: &Window) -> Params {
        let (policy, eps) = self.end.policy();
        let stride = |operand: &Operand<'_>, rows: u64| if operand.along_k { self.depth } else { rows } as u32;
        Params {
            rows: window.rows as u32,
            columns: window.columns as u32,
            depth: window.depth as u32,
            a_stride: stride(&self.a, self.rows),
            b_stride: stride(&self.b, self.columns),
            c_stride: self.columns as u32,
            policy,
            eps,
            slope: self.end.slope(),
            ..Params::zeroed()
        }
    }

    /// `quads`: whether the result and all that is shaped as it can be written four elements at a time.
    fn module(&self, tile: Tile, reads: [Read; 2], quads: bool) -> Module {
        let result = match self.end.out() {
            DType::F32 if quads => RESULTS[2],
            DType::F32 => RESULTS[0],
            DType::F16 | DType::Bf16 => RESULTS[1],
        };
        tile.family().module(self.end.kernels()[0].file, reads, result)
    }

    /// How the operands are read, given the places of their first elements within their bindings.
    fn reads(&self, family: Family, window: &Window, a_first: u32, b_first: u32) -> [Read; 2] {
        let whole_quads = |operand: &Operand<'_>, first: u32, rows: u64, all_rows: u64| {
            let lengths = if operand.along_k { [self.depth, window.depth] } else { [all_rows, rows] };
            first.is_multiple_of(4) && lengths.iter().all(|length| length.is_multiple_of(4))
        };
        let in_quads = whole_quads(&self.a, a_first, window.rows, self.rows)
            && whole_quads(&self.b, b_first, window.columns, self.columns);
        let read = |operand: Operand<'_>| if operand.tensor.dtype() == DType::F32 { Read::Quad } else { Read::Pair };
        let reads = [self.a, self.b].map(read);
        if in_quads && family.can_read(reads) { reads } else { Read::BOTH[0] }
    }

    /// `length`: steps of k that an invocation goes through.
    fn constants(
        &self,
        shape: Shape,
        mut constants: Constants,
        [a, b]: [Read; 2],
        window: &Window,
        length: u64,
    ) -> Constants {
        let Shape { wx, wy, tm, tn, threads, .. } = shape;
        constants.extend([("WX", wx as u32), ("WY", wy as u32), ("TM", tm as u32), ("TN", tn as u32)]);
        constants.extend([("A_ALONG_K", self.a.along_k.into()), ("B_ALONG_K", self.b.along_k.into())]);
        if a != Read::Quad {
            constants.push(("A_DTYPE", self.a.tensor.dtype().code()));
        }
        if b != Read::Quad {
            constants.push(("B_DTYPE", self.b.tensor.dtype().code()));
        }
        constants.extend([("SQUARES", self.end.column_sums().into()), ("SCALED_B", self.end.scales_b().into())]);
        match shape.tile.family() {
            Family::Tile => constants.extend([
                ("BK", shape.steps as u32),
                ("STEP", 4 * wx as u32),
                ("WHOLE_STEPS", (window.depth > 0 && window.depth.is_multiple_of(shape.steps)).into()),
            ]),
            Family::Stream => constants.extend([("THREADS", threads as u32), ("WK", (threads / wx) as u32)]),
            Family::Subgroup => constants.extend([
                ("RAGGED", (a == Read::Scalar || !window.depth.is_multiple_of(8)).into()),
                ("REDO_STEPS", shape.redo_steps(length) as u32),
            ]),
            Family::Cooperative8 | Family::Cooperative16 => constants.push(("LANES", (wx * wy / 4) as u32)),
        }
        constants
    }

    /// Rows and columns of C for one dispatch: those that fit the bindings with `steps` of k each.
    fn fitting(&self, gpu: &Gpu, steps: u64) -> (u64, u64) {
        let rows = self.a.rows_in(self.a.elements_in_binding(gpu), self.rows, self.depth, steps);
        let columns = self.b.rows_in(self.b.elements_in_binding(gpu), self.columns, self.depth, steps);
        let c = gpu.binding_capacity() / self.c_bytes;
        // What an end knows of each row or column: factors of the norms take most.
        let each = gpu.binding_capacity() / 16;
        let columns = columns.min(c).min(each);
        (rows.min(c.saturating_sub(columns) / self.columns + 1).min(each), columns)
    }

    fn plan(&self, recorder: &Recorder<'_, '_>) -> Result<Plan, Error> {
        let gpu = recorder.gpu();
        let cooperative = are_halves([self.a.tensor, self.b.tensor]) && !self.end.scales_b();
        let forced = match self.forced {
            Forced { tile: None, split_length: None } => gpu.choices().get(&self.key(), cooperative),
            forced => forced,
        };
        let (tile, split_length) = match forced.tile {
            Some(tile) => (tile, forced.split_length),
            None => {
                let (tile, length) = Tile::choose(gpu, cooperative, &self.key());
                // The table's pieces only where each has a place for a row of tiles.
                let fits = |&length: &u32| {
                    let sums = self.depth.div_ceil(length.into()) * (tile.grid(gpu, self.b.along_k, 1, 1).1 + 1);
                    sums <= partial_capacity(gpu)
                };
                (tile, forced.split_length.or(length.filter(fits)))
            }
        };
        let tile = tile.shape(gpu, self.b.along_k);
        let groups = gpu.group_capacity();
        let end_steps = gpu.binding_capacity().checked_div(self.end.bytes_per_step()).unwrap_or(u64::MAX);
        let (rows, columns) = self.fitting(gpu, self.depth);
        // Where k lies along the columns, windows of k keep the rows whole: the other way round they would be many.
        let cut = |operand: &Operand<'_>, fitting: u64, all: u64| fitting == 0 || (!operand.along_k && fitting < all);
        // A sum of nothing, as over an empty batch, has no pieces, however large the result is.
        let whole = self.depth == 0
            || (split_length.is_none()
                && self.depth <= tile.max_length().min(end_steps)
                && !cut(&self.a, rows, self.rows)
                && !cut(&self.b, columns, self.columns));
        let (splits, mut plan) = if whole {
            (1, Plan { tile, rows, columns, split_length: None, split_step: 1 })
        } else {
            let steps = self.a.steps_in(self.a.elements_in_binding(gpu), self.rows);
            let steps = steps.min(self.b.steps_in(self.b.elements_in_binding(gpu), self.columns)).min(end_steps);
            let longest = tile.max_length().min(steps / BK * BK).max(BK);
            let even = self.depth.div_ceil(self.depth.div_ceil(longest).max(1)).next_multiple_of(BK);
            let wanted = split_length.map(|length| u64::from(length).next_multiple_of(BK));
            let split_length = wanted.unwrap_or(even).min(longest);
            let splits = self.depth.div_ceil(split_length);
            let in_work = recorder.work_capacity(tile.rows() * tile.columns() * split_length);
            let split_step = (steps / split_length).min(in_work).clamp(1, splits);
            let (rows, columns) = self.fitting(gpu, (split_step * split_length).min(self.depth));
            (splits, Plan { tile, rows, columns, split_length: Some(split_length), split_step })
        };
        let too_large = |what, size, limit| Err(Error::TooLarge { what, size, limit });
        if plan.rows == 0 || plan.columns == 0 {
            return too_large("a row of a matrix in bytes", self.depth * 4, gpu.binding_capacity());
        }
        if splits > MAX_ITERATIONS / 2 {
            return too_large("splits of a sum", splits, MAX_ITERATIONS / 2);
        }
        // Windows of whole tiles, as long as there is one.
        let in_tiles = |count: u64, size: u64| if count < size { count.max(1) } else { count / size * size };
        let steps = if whole { self.depth } else { plan.split_step * plan.split_length.unwrap_or(0) }.max(1);
        let in_work = |work: u64, size: u64| in_tiles(recorder.work_capacity(work).max(size), size);
        plan.columns = plan.columns.min(groups * tile.columns()).min(in_work(tile.rows() * steps, tile.columns()));
        let tiles_n = plan.columns.div_ceil(tile.columns());
        plan.rows = plan.rows.min((groups / tiles_n).max(1) * tile.rows());
        plan.rows = plan.rows.min(in_work(tiles_n * tile.columns() * steps, tile.rows()));
        if plan.split_length.is_some() {
            let capacity = partial_capacity(gpu);
            let beside = u64::from(self.end.column_sums());
            let rows = plan.rows.min(tile.rows());
            plan.columns = plan.columns.min(in_tiles(capacity / (splits * (rows + beside)), tile.columns()));
            plan.rows = plan.rows.min((groups * FINISH_THREADS / plan.columns).max(1));
            plan.rows =
                plan.rows.min(in_tiles((capacity / (splits * plan.columns)).saturating_sub(beside), tile.rows()));
            if splits * plan.columns * (plan.rows + beside) > capacity {
                return too_large("partial sums", splits * (1 + beside), capacity);
            }
            let tiles = plan.rows.div_ceil(tile.rows()) * plan.columns.div_ceil(tile.columns());
            plan.split_step = plan.split_step.min((groups / tiles).max(1));
        }
        Ok(plan)
    }
}
