//! A convolution in numbers: what the parameters of its dispatches say, and the limits that it keeps.
use super::geometry::{PadMode, Sides};
use super::kernels::{ConvParams, Pass};
use crate::choose::Traits;
use crate::kernel::Constants;
use crate::product::shape::BK;
use crate::product::tile::{Family, Tile};
use crate::{ArgumentError, Axis, Error, LimitError, Tensor};
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
    /// All that follows from the geometry.
    pub params: ConvParams,
    /// Only positions that the stride divides meet a tap.
    divided: bool,
    two: bool,
    /// What has Scales of its own: SCALE_AXIS of `params_windows.wgsl`.
    scale_axis: u32,
    pad_mode: PadMode,
}

/// Height and width in one word.
fn packed([height, width]: [usize; 2]) -> u32 {
    (height as u32) << 16 | width as u32
}

fn area([height, width]: [usize; 2]) -> u64 {
    height as u64 * width as u64
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
                a_image: (sides.groups * sides.channels) as u32 * area(sides.a_size) as u32,
                a_width: sides.a_size[1] as u32,
                heights: packed([sides.c_size[0], sides.a_size[0]]),
                reach: packed(sides.dilation),
                c_image: sides.wide as u32 * area(sides.c_size) as u32,
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
                a_image: sides.wide as u32 * area(sides.c_size) as u32,
                a_width: sides.c_size[1] as u32,
                heights: packed([sides.a_size[0], sides.c_size[0]]),
                reach: packed(reach),
                c_image: (sides.groups * sides.channels) as u32 * area(sides.a_size) as u32,
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
        Ok(Product { pass: Pass::Taps, rows, depth: windows.rows, ..windows })
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
            group_columns: columns as u32,
            positions: area(positions) as u32,
            width: positions[1] as u32,
            channels: channels as u32,
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
            params,
            divided: false,
            two: sides.rank == 2,
            scale_axis: 0,
            pad_mode: sides.pad_mode,
        })
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
            // Lanes have four rows at least.
            return Tile::choose_subgroup(lanes, self.rows.max(4), self.columns, self.depth);
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
