//! A convolution in numbers: what the parameters of its dispatches say, and the limits that it keeps.
use super::cut::{CHANNELS, Extents, GROUPS, Range, Region, WIDE, Widths, regions};
use super::geometry::{PadMode, Sides};
use super::kernels::{ConvParams, Pass};
use crate::choose::{Facts, Traits};
use crate::kernel::Constants;
use crate::product::epilogue::{FINISH_THREADS, ProductWindow};
use crate::product::plan::{PARTIAL_BYTES, ProductFacts, ProductPlan};
use crate::product::selection::{Problem, Selection};
use crate::product::shape::BK;
use crate::product::tile::{Family, Tile};
use crate::windows::{Capacities, MAX_ITERATIONS, can_be_added_up, windows};
use crate::{ArgumentError, Axis, DType, Error, Gate, LimitError, Tensor};
use bytemuck::Zeroable;

/// The product that a convolution comes to.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    pub pass: Pass,
    /// Of every group.
    pub rows: u64,
    pub columns: u64,
    pub depth: u64,
    pub groups: u64,
    /// Rows of an image or channel, columns of a channel, steps of a channel or image.
    pub units: [u64; 3],
    /// All that follows from the geometry.
    pub params: ConvParams,
    pub sides: Sides,
    /// Only positions that the stride divides meet a tap.
    divided: bool,
    two: bool,
    /// What has Scales of its own: SCALE_AXIS of `params_windows.wgsl`.
    scale_axis: u32,
    pad_mode: PadMode,
    pub gate: Option<Gate>,
}

/// Height and width in one word.
fn packed([height, width]: [usize; 2]) -> u32 {
    (height as u32) << 16 | width as u32
}

fn area([height, width]: [usize; 2]) -> u64 {
    height as u64 * width as u64
}

/// Elements from an image to the next. Past 32 bits a binding has but one.
fn a_image(sides: &Sides) -> u32 {
    (sides.groups as u64 * sides.channels as u64 * sides.a_plane()) as u32
}

fn c_image(sides: &Sides) -> u32 {
    (sides.wide as u64 * sides.c_plane()) as u32
}

/// Past these a shader would count wrong.
const LARGEST_SIDE: u64 = 0xffff;
const LONGEST_SUM: u64 = 1 << 20;
const MOST_ROWS: u64 = 1 << 31;

fn at_most(what: &'static str, size: u64, limit: u64) -> Result<(), Error> {
    if size > limit { Err(LimitError::TooLarge { what, size, limit }.into()) } else { Ok(()) }
}

impl Product {
    /// c of a.
    pub fn windows(sides: &Sides) -> Result<Product, Error> {
        let per_group = sides.wide / sides.groups;
        let product = Product::new(Pass::Windows, sides, sides.c_size, sides.kernel, per_group as u64, sides.channels)?;
        Ok(Product {
            params: ConvParams {
                a_image: a_image(sides),
                a_width: sides.a_size[1] as u32,
                heights: packed([sides.c_size[0], sides.a_size[0]]),
                reach: packed(sides.dilation),
                c_image: c_image(sides),
                c_width: sides.c_size[1] as u32,
                phases: packed([1, 1]),
                ..product.params
            },
            ..product
        })
    }

    /// a of c. With `by_taps` each column is a channel, as where taps have norms of their own.
    pub fn phases(sides: &Sides, by_taps: bool) -> Result<Product, Error> {
        let axes = [0, 1];
        let apart = |i: usize| sides.stride[i] > 1 && sides.dilation[i] > 1 && sides.kernel[i] > 1;
        let divided = axes.into_iter().any(apart) || (by_taps && sides.stride != [1, 1]);
        let phases = if divided { [1, 1] } else { sides.stride };
        let taps = axes.map(|i| sides.kernel[i].div_ceil(phases[i]));
        // Taps lie a dilation apart where there is no stride, else one after another for each phase.
        let reach = axes.map(|i| if divided || sides.stride[i] == 1 { sides.dilation[i] } else { 1 });
        let rows = axes.map(|i| (sides.a_size[i] + sides.before[i]).div_ceil(phases[i]));
        let columns = sides.channels as u64 * area(phases);
        let per_group = sides.wide / sides.groups;
        let product = Product::new(Pass::Phases, sides, rows, taps, columns, per_group)?;
        at_most("columns of a transposed convolution", columns, LONGEST_SUM)?;
        Ok(Product {
            divided,
            params: ConvParams {
                a_image: c_image(sides),
                a_width: sides.c_size[1] as u32,
                heights: packed([sides.a_size[0], sides.c_size[0]]),
                reach: packed(reach),
                c_image: a_image(sides),
                c_width: sides.a_size[1] as u32,
                phases: packed(phases),
                ..product.params
            },
            ..product
        })
    }

    /// The gradient of v.
    pub fn taps(sides: &Sides) -> Result<Product, Error> {
        let windows = Product::windows(sides)?;
        let rows = sides.channels as u64 * area(sides.kernel);
        let [image, _, taps] = windows.units;
        Ok(Product { pass: Pass::Taps, rows, depth: windows.rows, units: [taps, 1, image], ..windows })
    }

    fn new(
        pass: Pass,
        sides: &Sides,
        positions: [usize; 2],
        taps: [usize; 2],
        columns: u64,
        channels: usize,
    ) -> Result<Product, Error> {
        let Sides { batch, kernel, stride, dilation, before, .. } = *sides;
        for (what, [height, width]) in
            [("stride", stride), ("dilation", dilation), ("padding", before), ("taps of a kernel", kernel)]
        {
            at_most(what, height.max(width) as u64, LARGEST_SIDE)?;
        }
        at_most("height of an image", sides.a_size[0].max(sides.c_size[0]) as u64, LARGEST_SIDE)?;
        let depth = channels as u64 * area(taps);
        at_most("products of a sum", depth, LONGEST_SUM - 1)?;
        let image = area(positions).next_multiple_of(4);
        at_most("positions", image.saturating_mul(batch as u64), MOST_ROWS)?;
        // Positions between two sides of an image and its padding, as signed numbers.
        let widest = sides.a_size[1].max(sides.c_size[1]) as u64;
        at_most("width of an image", widest, MOST_ROWS / 2)?;
        let params = ConvParams {
            v_row: (sides.channels as u64 * area(kernel)) as u32,
            positions: area(positions) as u32,
            width: positions[1] as u32,
            taps: packed(taps),
            kernel: packed(kernel),
            stride: packed(stride),
            lead: packed(before),
            scale: 1.0,
            ..ConvParams::zeroed()
        };
        Ok(Product {
            pass,
            rows: image * batch as u64,
            columns,
            depth,
            groups: sides.groups as u64,
            units: [image, columns / (sides.extents()[pass.axes()[1]]).max(1), area(taps)],
            params,
            sides: *sides,
            divided: false,
            two: sides.rank == 2,
            scale_axis: 0,
            pad_mode: sides.pad_mode,
            gate: None,
        })
    }

    /// The same with two columns for each channel of the result.
    pub fn gated(self, gate: Option<Gate>) -> Product {
        let params = ConvParams { c_image: self.params.c_image / self.halves(gate) as u32, ..self.params };
        Product { gate, params, ..self }
    }

    fn halves(&self, gate: Option<Gate>) -> u64 {
        if gate.is_some() { 2 } else { 1 }
    }

    /// Columns that become one element.
    pub fn pair(&self) -> u64 {
        self.halves(self.gate)
    }

    /// Columns that meet at the end stay in one region and one window, and an invocation adds up the pieces of both.
    fn keep_pairs(&self, plan: &mut Plan, columns: u64, binding: u64) -> Result<(), Error> {
        at_most(
            "splits of a sum",
            if can_be_added_up(2 * plan.splits, 1) { 0 } else { plan.splits },
            MAX_ITERATIONS / 4,
        )?;
        let all = self.sides.extents()[WIDE];
        if plan.step[WIDE] < all {
            let (what, size) = ("all channels of an image before a gate in bytes", all * self.sides.c_plane() * 4);
            return Err(LimitError::TooLarge { what, size, limit: binding }.into());
        }
        if plan.product.columns < columns {
            plan.product.columns = plan.product.columns / 2 * 2;
            at_most("columns of a gate", if plan.product.columns == 0 { 2 } else { 0 }, 1)?;
        }
        Ok(())
    }

    /// The same with a Scale for each index of a kept axis of v along the sum.
    pub fn scaled_by(self, axis: usize) -> Product {
        let scale_axis = match (axis, self.two) {
            (0 | 1, _) => 0,
            (2, true) => 1,
            _ => 2,
        };
        Product { scale_axis, ..self }
    }

    pub fn constants(&self, axis: Option<Axis>, a: &Tensor) -> Constants {
        let mut constants: Constants = vec![
            ("TWO_D", self.two.into()),
            ("PAD_MODE", self.pad_mode as u32),
            ("BACKWARD", (self.pass == Pass::Phases).into()),
            ("TAPS_ARE_ROWS", (self.pass == Pass::Taps).into()),
            ("DIVIDED", self.divided.into()),
            ("PHASED", (self.pass == Pass::Phases).into()),
            ("SCALE_AXIS", self.scale_axis),
            ("SCALE_BY_GROUP", (self.pass == Pass::Phases && axis == Some(Axis::Kept(0))).into()),
        ];
        constants.push(("A_DTYPE", a.dtype().code()));
        constants.extend(self.gate.map(|gate| ("GATE", gate.code())));
        constants
    }

    /// The tile, where none is forced: one whose columns are not much more than there are.
    pub fn tile(&self, traits: Traits) -> Tile {
        // Four rows at a time, which have to be positions.
        let narrow = if self.columns <= 4 { Tile::Narrow4 } else { Tile::Narrow8 };
        if self.columns <= 8 && self.rows > 8 && self.pass != Pass::Taps && narrow.runs(traits) {
            return narrow;
        }
        let large = |tile: Tile| tile.runs(traits) && self.depth <= tile.longest(traits);
        let groups = |tile: Tile| self.groups * tile.grid(traits, true, self.rows, self.columns).0;
        if let Some(lanes) = Tile::Subgroup4.lanes(traits).filter(|_| !traits.is_gpu()) {
            return Tile::choose_lanes(lanes, self.groups, [self.rows, self.columns, self.depth]);
        }
        match self.columns {
            ..=8 if self.rows > 8 => Tile::Tile128x8, // of gradients of weights
            ..=48 => Tile::Tile32x32,
            _ if traits.is_gpu() && large(Tile::Tile128x128) && groups(Tile::Tile128x128) >= traits.enough_groups() => {
                Tile::Tile128x128
            }
            _ if traits.is_gpu() && groups(Tile::Tile64x64) < traits.enough_groups() => Tile::Tile32x32,
            _ => Tile::Tile64x64,
        }
    }
}

/// How a product is cut for a device: into regions of what is bound, and each of these into windows of rows and columns
/// and pieces of sums.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Of the largest region.
    pub product: ProductPlan,
    pub step: Extents,
    /// Steps of the sums, or of all pieces of them.
    pub depth: u64,
    /// Pieces of a sum, in all regions.
    pub splits: u64,
    /// Whether sums of squares are kept beside pieces.
    beside: u64,
}

impl Plan {
    /// What is bound at once; along the sum all of it.
    pub fn regions(&self, product: &Product) -> Vec<Region> {
        let [rows, columns, _] = product.pass.axes();
        regions(product.sides.extents().map(|n| (0, n)), self.step, &[GROUPS, columns, rows])
    }

    /// Rows, columns and steps of a region.
    pub fn size(&self, product: &Product, region: &Region) -> [u64; 3] {
        let [rows, columns, _] = product.pass.axes();
        [region[rows].1 * product.units[0], region[columns].1 * product.units[1], self.depth]
    }

    /// The parts of a region along the sum.
    pub fn parts(&self, product: &Product, region: Region) -> Vec<Region> {
        regions(region, self.step, &[product.pass.axes()[2]])
    }

    /// Partial sums of a group.
    pub fn sums(&self, window: &ProductWindow) -> u64 {
        self.splits * window.columns * (window.rows + self.beside)
    }

    /// Groups in one dispatch, of which `columns` are bound: those of several have all of their columns.
    pub fn groups(&self, capacities: Capacities, window: &ProductWindow, columns: u64) -> u64 {
        if window.columns < columns {
            return 1;
        }
        let most = capacities.groups / (self.product.tiles(window) * self.splits);
        let most = most.min(capacities.work(self.product.work(window)));
        let most = match self.product.split_length {
            None => most,
            Some(_) => most
                .min(capacities.partial_sums(PARTIAL_BYTES) / self.sums(window))
                .min(capacities.groups * FINISH_THREADS / (window.rows * window.columns)),
        };
        most.max(1)
    }
}

impl Product {
    /// `dtypes`: of A, of B, and of the widest of what is shaped as C. `squares`: norms are summed up beside it.
    pub fn plan(&self, facts: Facts, dtypes: [DType; 3], squares: bool, selection: Selection) -> Result<Plan, Error> {
        let Facts { traits, capacities } = facts;
        let [a, b, c] = dtypes.map(DType::size);
        let widths = match self.pass {
            Pass::Windows => Widths { a, weight: b, c },
            Pass::Phases => Widths { c: a, weight: b, a: c },
            Pass::Taps => Widths { a, c: b, weight: c },
        };
        let step = self.sides.fitting(capacities, widths)?;
        let [rows, columns, steps] = self.pass.axes();
        let tile = selection.tile.unwrap_or_else(|| self.tile(traits));
        let mut split_length = selection.split_length.or_else(|| self.pieces(traits, tile)).map(u64::from);
        let mut depth = self.depth;
        let all = self.sides.extents()[steps];
        if step[steps] < all {
            // Each part is cut into pieces from its own start.
            let (part, longest) = (step[steps] * self.units[2], tile.longest(traits));
            let even = part.div_ceil(part.div_ceil(longest));
            let length = split_length.unwrap_or(even).next_multiple_of(BK).min(longest);
            let pieces = windows(all, step[steps]).map(|(_, count)| (count * self.units[2]).div_ceil(length));
            depth = pieces.sum::<u64>() * length;
            split_length = Some(length);
        }
        // What is bound has to have a row and a column, of which there are none where nothing is computed.
        let size = [step[rows] * self.units[0], step[columns] * self.units[1]].map(|n| n.max(1));
        let facts_of = ProductFacts {
            problem: Problem { along_k: [true, true], dtypes: [dtypes[0], dtypes[1]], size: [size[0], size[1], depth] },
            c_bytes: 4,
            cooperative: false,
            bytes_per_step: 0,
            column_sums: squares,
            row_sums: false,
            bound: true,
            gathered: true,
        };
        let selection = Selection { tile: Some(tile), split_length: split_length.map(|length| length as u32) };
        let mut product = ProductPlan::new(&facts_of, traits, capacities, selection)?;
        let splits = product.split_length.map_or(1, |length| depth.div_ceil(length));
        if self.pass != Pass::Taps && product.rows < size[0] {
            // Four positions are written together.
            product.rows = product.rows / 4 * 4;
            if product.rows == 0 {
                let (what, limit) = ("partial sums of four positions", capacities.partial_sums(PARTIAL_BYTES));
                return Err(LimitError::TooLarge { what, size: 4 * splits, limit }.into());
            }
        }
        let mut plan = Plan { product, step, depth, splits, beside: squares.into() };
        if self.gate.is_some() {
            self.keep_pairs(&mut plan, size[1], capacities.binding)?;
        }
        Ok(plan)
    }

    /// Elements of A, of B and of C in a region.
    pub fn ranges(&self, region: &Region) -> [Range; 3] {
        let sides = &self.sides;
        let [a, c, weight] = [sides.a_range(region), sides.c_range(region), sides.weight_range(region)];
        match self.pass {
            Pass::Windows => [a, weight, c],
            Pass::Phases => [c, weight, a],
            Pass::Taps => [a, c, weight],
        }
    }

    /// Channels of A in a region, and of C.
    pub fn channels(&self, region: &Region) -> [Range; 2] {
        let [a, c] = [self.sides.channels_of(region), self.sides.wide_of(region)];
        if self.pass == Pass::Phases { [c, a] } else { [a, c] }
    }

    /// What a norm belongs to in a region: a channel of C, of a phased product within its group.
    pub fn norms(&self, region: &Region) -> Range {
        if self.pass == Pass::Phases { region[CHANNELS] } else { self.sides.wide_of(region) }
    }

    /// The Scales of steps in a region.
    pub fn scales(&self, region: &Region, all: u64) -> Range {
        match (self.scale_axis, self.pass) {
            (0, Pass::Phases) => self.sides.wide_of(region),
            (0, _) => region[CHANNELS],
            _ => (0, all),
        }
    }

    /// The parameters of a dispatch that follow from what it binds.
    pub fn bound(&self, region: &Region) -> ConvParams {
        let [_, _, steps] = self.pass.axes();
        let channels = region[if self.pass == Pass::Phases { WIDE } else { CHANNELS }].1;
        let depth = region[steps].1 * self.units[2];
        ConvParams {
            depth: depth as u32,
            channels: channels as u32,
            group_count: region[GROUPS].1 as u32,
            ..self.params
        }
    }
}

impl Product {
    /// The length of the pieces of sums over positions, where whole ones would keep few workgroups busy.
    pub fn pieces(&self, traits: Traits, tile: Tile) -> Option<u32> {
        let groups = self.groups * tile.grid(traits, true, self.rows, self.columns).0;
        let wanted = (traits.enough_groups() / groups.max(1)).min(self.depth / LEAST_PIECE);
        if self.pass != Pass::Taps || !traits.is_gpu() || wanted < 2 {
            return None;
        }
        let length = self.depth.div_ceil(wanted).next_multiple_of(BK);
        (length <= tile.longest(traits)).then_some(length as u32)
    }
}

/// Steps of k that are worth a second dispatch.
const LEAST_PIECE: u64 = 512;

/// Lanes have four rows at least, which are written together.
fn has_lanes(tile: Tile) -> bool {
    tile.family() == Family::Subgroup && !matches!(tile, Tile::Subgroup1 | Tile::Subgroup2)
}

/// A tile that convolutions have. `weights`: the gradient of a weight is among what is asked for.
pub(crate) fn check_tile(op: &'static str, tile: Option<Tile>, weights: bool) -> Result<(), Error> {
    let has = |tile: Tile| match tile.family() {
        Family::Tile => true,
        Family::Narrow => !weights,
        _ => has_lanes(tile),
    };
    match tile.filter(|&tile| !has(tile)) {
        Some(tile) => {
            let narrow = if weights { "" } else { ", Narrow4, Narrow8" };
            let reason = format!("it is computed by Tile32x32 to Tile128x128, Subgroup4 to Subgroup64{narrow}");
            Err(ArgumentError::Variant { op, got: format!("{tile:?}"), reason }.into())
        }
        None => Ok(()),
    }
}
