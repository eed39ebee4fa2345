//! The weight-normalized matrix product. Shader: `linear.wgsl`.
use bytemuck::{Pod, Zeroable};

use crate::contract::norms_shape;
use crate::gpu::Scratch;
use crate::kernel::{self, Constants, MAX_ITERATIONS, Module};
use crate::norms::{Form, Job, windows};
use crate::record::{Arguments, Dispatch, View, expect_dtype, expect_per_norm, firsts};
use crate::{Activation, Axis, DType, Error, Gpu, Recorder, Tensor, WeightNorm};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    batch: u32,
    outs: u32,
    ins: u32,
    stride: u32,
    y_stride: u32,
    split_length: u32,
    split_first: u32,
    splits: u32,
    firsts: u32,
    more_firsts: u32,
    policy: u32,
    eps: f32,
    slope: f32,
}

/// The weight of a linear layer: ordinary, or weight-normalized.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// w itself, `[out_features, in_features]`.
    Plain(&'a Tensor),
    /// w = g·v/n̂.
    Normalized(WeightNorm<'a>),
}

impl<'a> From<&'a Tensor> for Weight<'a> {
    fn from(w: &'a Tensor) -> Self {
        Weight::Plain(w)
    }
}

impl<'a> From<WeightNorm<'a>> for Weight<'a> {
    fn from(weight: WeightNorm<'a>) -> Self {
        Weight::Normalized(weight)
    }
}

impl<'a> Weight<'a> {
    fn v(&self) -> &'a Tensor {
        match self {
            Weight::Plain(w) => w,
            Weight::Normalized(weight) => weight.v,
        }
    }

    fn normalized(&self) -> Option<WeightNorm<'a>> {
        match self {
            Weight::Plain(_) => None,
            Weight::Normalized(weight) => Some(*weight),
        }
    }
}

/// A shape of the product kernel: how much of y a workgroup computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tile {
    /// 64 rows by 64 columns, 8 by 8 an invocation.
    Large,
    /// 32 by 32, 4 by 4 an invocation.
    Medium,
    /// 8 rows by 64 columns, 2 by 4 an invocation: a few rows of x.
    Wide,
    /// 128 rows by 8 columns, 4 by 4 an invocation: a few output features.
    Tall,
}

impl Tile {
    /// All of them.
    pub const ALL: [Tile; 4] = [Tile::Large, Tile::Medium, Tile::Wide, Tile::Tall];

    /// WX, WY, TM, TN of `linear.wgsl`.
    fn sizes(self) -> [u64; 4] {
        match self {
            Tile::Large => [8, 8, 8, 8],
            Tile::Medium => [8, 8, 4, 4],
            Tile::Wide => [16, 4, 2, 4],
            Tile::Tall => [2, 32, 4, 4],
        }
    }

    fn rows(self) -> u64 {
        let [_, wy, tm, _] = self.sizes();
        wy * tm
    }

    fn columns(self) -> u64 {
        let [wx, _, _, tn] = self.sizes();
        wx * tn
    }

    /// The most columns of x and v that an invocation may go through within `MAX_ITERATIONS`, if it has to form
    /// every one of its sums again. Multiple of BK.
    pub(crate) fn max_length(self) -> u64 {
        let [wx, wy, tm, tn] = self.sizes();
        let stages = |length: u64| (length * BK / 4).div_ceil(wx * wy);
        // `product`: staging x, staging v (four columns each may be scaled), BK multiply-add steps, for each BK columns.
        let product = 1 + stages(self.rows()) + 5 * stages(self.columns()) + BK;
        // Sixteen columns at a time: redo_dot of each element, is_zero_row of each row and quad, redo_squares.
        let redo = tm * tn + tm * tn / 4 + self.columns().div_ceil(wx * wy);
        // The loops over elements, stages and columns besides.
        let besides = 1_000;
        (MAX_ITERATIONS - besides) / (product + redo) * BK
    }

    /// The tile for a product, the one table of it.
    fn choose(batch: u64, outs: u64, ins: u64) -> Tile {
        match (batch, outs) {
            (_, ..=8) if batch > 8 => Tile::Tall,
            (..=8, _) => Tile::Wide,
            (..=48, _) | (_, ..=48) => Tile::Medium,
            _ if ins > Tile::Large.max_length() => Tile::Medium,
            _ => Tile::Large,
        }
    }
}

/// Columns of x and v that `linear.wgsl` stages at a time.
const BK: u64 = 16;
/// Invocations in a workgroup of `linear_finish`.
const FINISH_THREADS: u64 = 64;
/// Partial sums kept at a time; a larger product is computed in pieces.
const MAX_PARTIAL_BYTES: u64 = 64 << 20;

/// What else a linear layer may do. `LinearOptions::default()` does nothing else.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LinearOptions<'a> {
    /// Applied to y.
    pub activation: Activation,
    /// Where the effective norms are written, as the backward pass and later calls want them: f32, shaped as g.
    pub norms: Option<&'a Tensor>,
    /// Forces a tile, for tests and tuning.
    pub tile: Option<Tile>,
    /// Forces the split of in_features into pieces of this many columns (rounded up to a multiple of 16), for tests and
    /// tuning.
    pub split_length: Option<u32>,
}

impl<'a> LinearOptions<'a> {
    /// Applies an activation to y.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Writes the effective norms out.
    pub fn norms(mut self, norms: &'a Tensor) -> Self {
        self.norms = Some(norms);
        self
    }

    /// Forces a tile.
    pub fn tile(mut self, tile: Tile) -> Self {
        self.tile = Some(tile);
        self
    }

    /// Forces a split of in_features.
    pub fn split_length(mut self, split_length: u32) -> Self {
        self.split_length = Some(split_length);
        self
    }
}

impl Gpu {
    /// A linear layer, weight-normalized or ordinary.
    ///
    ///     y[.., j] = Σ_k x[.., k] · w[j, k] + bias_j        w = g·v/n̂
    ///
    /// `x`: `[.., in_features]`. `weight`: `[out_features, in_features]`, a [`WeightNorm`] of kept axis 0 (out), 1 (in)
    /// or the whole tensor, or a [`Tensor`] w. `bias`: f32, `[out_features]`. Returns `[.., out_features]` in x's
    /// storage type; x, the weight and y may differ in it.
    ///
    /// For kept axis 0 the norms are summed up inside the product: w is never stored, v read no more often than by the
    /// ordinary product. y is right wherever it, and the sum of |x·w|, is representable. NaN and infinity in row j of v
    /// reach column j of y and nothing else. Error: a small multiple of in_features · 2^-24 · Σ|x·w|, and y's rounding.
    /// Reference: PyTorch's `weight_norm(torch.nn.Linear(..))`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`] if the arguments do not fit; [`Error::Axis`], [`Error::Eps`],
    /// [`Error::OtherGpu`], [`Error::Usage`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn linear<'a>(
        &self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        self.linear_with(x, weight, bias, &LinearOptions::default())
    }

    /// [`Gpu::linear`] with options.
    ///
    /// # Errors
    /// As [`Gpu::linear`]; [`Error::Variant`], [`Error::Overlap`].
    pub fn linear_with<'a>(
        &self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
        options: &LinearOptions<'_>,
    ) -> Result<Tensor, Error> {
        let weight = weight.into();
        let y = self.zeros(&y_shape(x, weight.v())?, x.dtype())?;
        self.run(|ops| ops.linear_into_with(x, weight, bias, &y, options))?;
        Ok(y)
    }
}

const OP: &str = "linear";

/// `[.., in_features]` and `[out_features, in_features]` to `[.., out_features]`.
fn y_shape(x: &Tensor, v: &Tensor) -> Result<Vec<usize>, Error> {
    let &[outs, ins] = v.shape() else {
        let expected = "[out_features, in_features]".to_owned();
        return Err(Error::Shape { op: OP, arg: "weight", got: v.shape().to_vec(), expected });
    };
    match x.shape() {
        [batch @ .., last] if *last == ins => Ok([batch, &[outs]].concat()),
        _ => Err(Error::Shape { op: OP, arg: "x", got: x.shape().to_vec(), expected: format!("[.., {ins}]") }),
    }
}

/// Where the norms of a product come from: NORM of `linear.wgsl`.
#[derive(Clone, Copy, PartialEq)]
enum Norm {
    Plain,
    Fused,
    Given,
    Whole,
    In,
}

/// A checked product: y = x·wᵀ for a [batch, ins] x and an [outs, ins] w.
struct Product<'a> {
    x: &'a Tensor,
    v: &'a Tensor,
    g: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    y: &'a Tensor,
    batch: u64,
    outs: u64,
    ins: u64,
    norm: Norm,
    norms_in: Option<View<'a>>,
    norms_out: Option<&'a Tensor>,
    policy: u32,
    eps: f32,
    activation: Activation,
    tile: Tile,
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::linear`] into `y`: `[.., out_features]`, any storage type.
    ///
    /// One dispatch for an ordinary weight, for kept axis 0, and with known norms and kept axis 0; else those of the
    /// norms besides ([`Recorder::row_norms_into`], or one if they are known). One more where in_features is split
    /// (beyond some 7,000), one more per window past the limit of a binding or a dispatch.
    ///
    /// # Errors
    /// As [`Gpu::linear`]; [`Error::Alias`].
    pub fn linear_into<'a>(
        &mut self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<(), Error> {
        self.linear_into_with(x, weight, bias, y, &LinearOptions::default())
    }

    /// [`Recorder::linear_into`] with options.
    ///
    /// # Errors
    /// As [`Recorder::linear_into`]; [`Error::Variant`], [`Error::Overlap`].
    pub fn linear_into_with<'a>(
        &mut self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
        y: &Tensor,
        options: &LinearOptions<'_>,
    ) -> Result<(), Error> {
        let weight = weight.into();
        let split_length = self.check_linear(x, weight, bias, y, options)?;
        let v = weight.v();
        let (outs, ins) = (v.shape()[0] as u64, v.shape()[1] as u64);
        let batch = y.shape()[..y.shape().len() - 1].iter().product::<usize>() as u64;
        let normalized = weight.normalized();

        // Without anything to sum up, w plays no part in y, and its norms are those of empty rows.
        let fused = normalized.is_some_and(|w| w.axis == Axis::Kept(0) && w.norms.is_none()) && batch * ins > 0;
        let in_scales = normalized.is_some_and(|w| w.axis != Axis::Kept(0)) && batch * outs * ins > 0;
        if let (Some(weight), Some(norms), false) = (normalized, options.norms, fused || in_scales) {
            self.write_norms(weight, norms)?;
        }
        if batch * outs == 0 {
            return Ok(());
        }
        let (norm, norms_in) = match normalized {
            _ if ins == 0 => (Norm::Plain, None),
            None => (Norm::Plain, None),
            Some(weight) => match (weight.axis, weight.norms) {
                (Axis::Kept(0), None) => (Norm::Fused, None),
                (Axis::Kept(0), Some(norms)) => (Norm::Given, Some(View::of(norms))),
                (Axis::Whole, _) => (Norm::Whole, Some(self.scales(weight, Form::Wide, options.norms)?)),
                (Axis::Kept(_), _) => (Norm::In, Some(self.scales(weight, Form::Scales, options.norms)?)),
            },
        };
        let product = Product {
            x,
            v,
            // On the contraction the gain is part of the scales.
            g: normalized.and_then(|w| w.g).filter(|_| norm != Norm::In && norm != Norm::Plain),
            bias,
            y,
            batch,
            outs,
            ins,
            norm,
            norms_in,
            norms_out: options.norms.filter(|_| norm == Norm::Fused),
            policy: normalized.map_or(0, |w| w.eps.code()),
            eps: normalized.map_or(0.0, |w| w.eps.value()),
            activation: options.activation,
            tile: options.tile.unwrap_or_else(|| Tile::choose(batch, outs, ins)),
        };
        let whole = ins <= product.columns_in_binding(self.gpu());
        match split_length {
            None if whole && ins <= product.tile.max_length() => self.unsplit(&product),
            forced => self.split_columns(&product, forced),
        }
    }

    fn check_linear(
        &self,
        x: &Tensor,
        weight: Weight<'_>,
        bias: Option<&Tensor>,
        y: &Tensor,
        options: &LinearOptions<'_>,
    ) -> Result<Option<u64>, Error> {
        let v = weight.v();
        let shape = y_shape(x, v)?;
        crate::record::expect_shape(OP, "y", y, &shape)?;
        if let Some(weight) = weight.normalized() {
            weight.check(OP)?;
        }
        if let Some(bias) = bias {
            expect_dtype(OP, "bias", bias, DType::F32)?;
            crate::record::expect_shape(OP, "bias", bias, &v.shape()[..1])?;
        }
        let normalized = weight.normalized();
        if let Some(norms) = options.norms {
            let Some(weight) = normalized else {
                let expected = "a weight with norms".to_owned();
                return Err(Error::Shape { op: OP, arg: "norms", got: norms.shape().to_vec(), expected });
            };
            expect_per_norm(OP, "norms", norms, &norms_shape(v.shape(), weight.axis))?;
        }
        Arguments::new(OP)
            .input("x", x)
            .input("weight", v)
            .input("g", normalized.and_then(|w| w.g))
            .input("known norms", normalized.and_then(|w| w.norms))
            .input("bias", bias)
            .output("y", y)
            .output("norms", options.norms)
            .check(self.gpu())?;
        let Some(split_length) = options.split_length else { return Ok(None) };
        let rounded = u64::from(split_length).next_multiple_of(BK);
        let tile = options.tile.unwrap_or(Tile::Large);
        if rounded == 0 || rounded > tile.max_length() {
            let reason = format!("a split has 1 to {} columns with this tile", tile.max_length());
            return Err(Error::Variant { op: OP, got: format!("split_length {split_length}, {tile:?}"), reason });
        }
        Ok(Some(rounded))
    }

    /// The norms alone, where no product makes them.
    fn write_norms(&mut self, weight: WeightNorm<'_>, norms: &Tensor) -> Result<(), Error> {
        self.norms(&Job {
            v: weight.v,
            axis: weight.axis,
            eps: weight.eps,
            known: weight.norms,
            gain: None,
            form: Form::Norms,
            out: View::of(norms),
            norms_too: None,
        })
    }

    fn unsplit(&mut self, product: &Product<'_>) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        let tile = product.tile;
        let window = product.window(self, product.ins, 0)?;
        for (j, outs) in windows(product.outs, window.outs) {
            for (b, batch) in windows(product.batch, window.batch) {
                let (x, x_first) = View::of(product.x).bind(&gpu, b * product.ins, batch * product.ins);
                let (v, v_first) = View::of(product.v).bind(&gpu, j * product.ins, outs * product.ins);
                let mut ends = product.ends(&gpu, b, batch, j, outs);
                if product.norm == Norm::In {
                    ends.norms_in = product.scales(&gpu, 0, product.ins);
                }
                let more_firsts = ends.firsts();
                self.dispatch(&Dispatch {
                    kernel: &kernel::LINEAR_WHOLE,
                    module: product.module(),
                    constants: &product.constants(b == 0, true),
                    buffers: &[x, v, ends.g.0, ends.bias.0, ends.norms_in.0, ends.y.0, ends.norms_out.0],
                    params: Params {
                        batch: batch as u32,
                        outs: outs as u32,
                        ins: product.ins as u32,
                        splits: 1,
                        firsts: firsts([x_first, v_first, ends.y.1, 0]),
                        more_firsts,
                        ..product.params()
                    },
                    groups: batch.div_ceil(tile.rows()) * outs.div_ceil(tile.columns()),
                    work: batch.next_multiple_of(tile.rows()) * outs.next_multiple_of(tile.columns()) * product.ins,
                })?;
            }
        }
        Ok(())
    }

    /// Partial sums over pieces of in_features, then their sum.
    fn split_columns(&mut self, product: &Product<'_>, forced: Option<u64>) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        let &Product { ins, tile, .. } = product;
        let in_binding = product.columns_in_binding(&gpu) / BK * BK;
        let longest = tile.max_length().min(in_binding);
        let even = ins.div_ceil(ins.div_ceil(longest).max(1)).next_multiple_of(BK);
        let split_length = forced.unwrap_or(even).min(longest).max(BK);
        let splits = ins.div_ceil(split_length);
        let in_work = self.work_capacity(tile.rows() * tile.columns() * split_length);
        let split_step = (in_binding / split_length).min(in_work).max(1);
        let window = product.window(self, ins.min(split_step * split_length), splits)?;
        let tiles = window.batch.div_ceil(tile.rows()) * window.outs.div_ceil(tile.columns());
        let split_step = split_step.min((gpu.group_capacity() / tiles).max(1));
        let fused = u64::from(product.norm == Norm::Fused);
        let sums_count = |batch: u64, outs: u64| splits * outs * (batch + fused);
        let sums = View::scratch(gpu.scratch(Scratch::Sums, sums_count(window.batch, window.outs) * 8)?, 8);
        for (j, outs) in windows(product.outs, window.outs) {
            for (b, batch) in windows(product.batch, window.batch) {
                let (part, _) = sums.bind(&gpu, 0, sums_count(batch, outs));
                let ends = product.ends(&gpu, b, batch, j, outs);
                let more_firsts = ends.firsts();
                let params = Params {
                    batch: batch as u32,
                    outs: outs as u32,
                    split_length: split_length as u32,
                    splits: splits as u32,
                    ..product.params()
                };
                for (split, split_count) in windows(splits, split_step) {
                    let k = split * split_length;
                    let k_count = (split_count * split_length).min(ins - k);
                    let span = |rows: u64| (rows - 1) * ins + k_count;
                    let (x, x_first) = View::of(product.x).bind(&gpu, b * ins + k, span(batch));
                    let (v, v_first) = View::of(product.v).bind(&gpu, j * ins + k, span(outs));
                    let (scales, scales_first) = product.scales(&gpu, k, k_count);
                    let tiles = batch.div_ceil(tile.rows()) * outs.div_ceil(tile.columns());
                    self.dispatch(&Dispatch {
                        kernel: &kernel::LINEAR_PARTIAL,
                        module: product.module(),
                        constants: &product.constants(false, true),
                        buffers: &[x, v, scales, part.clone()],
                        params: Params {
                            ins: k_count as u32,
                            split_first: split as u32,
                            firsts: firsts([x_first, v_first, 0, 0]),
                            more_firsts: firsts([0, 0, scales_first, 0]),
                            ..params
                        },
                        groups: tiles * split_count,
                        work: tiles * tile.rows() * tile.columns() * k_count,
                    })?;
                }
                self.dispatch(&Dispatch {
                    kernel: &kernel::LINEAR_FINISH,
                    module: product.module(),
                    constants: &product.constants(b == 0, false),
                    buffers: &[ends.g.0, ends.bias.0, ends.norms_in.0, ends.y.0, ends.norms_out.0, part],
                    params: Params { firsts: firsts([0, 0, ends.y.1, 0]), more_firsts, ..params },
                    groups: (batch * outs).div_ceil(FINISH_THREADS),
                    work: batch * outs * splits,
                })?;
            }
        }
        Ok(())
    }
}

type Bound<'a> = (Option<crate::record::Span<'a>>, u32);

/// What the end of a product reads and writes, for one window of y.
struct Ends<'a> {
    g: Bound<'a>,
    bias: Bound<'a>,
    norms_in: Bound<'a>,
    y: Bound<'a>,
    norms_out: Bound<'a>,
}

impl Ends<'_> {
    fn firsts(&self) -> u32 {
        firsts([self.g.1, self.bias.1, self.norms_in.1, self.norms_out.1])
    }
}

/// How much of y one dispatch takes.
struct Window {
    batch: u64,
    outs: u64,
}

impl<'a> Product<'a> {
    fn module(&self) -> Module {
        if self.y.dtype() == DType::F32 { Module::LinearWords } else { Module::LinearHalves }
    }

    fn params(&self) -> Params {
        Params {
            stride: self.ins as u32,
            y_stride: self.outs as u32,
            policy: self.policy,
            eps: self.eps,
            slope: self.activation.slope(),
            ..Params::zeroed()
        }
    }

    /// The override constants of a variant; those that do not matter to it keep their defaults, so that fewer are built.
    fn constants(&self, first_rows: bool, tiled: bool) -> Constants {
        let mut constants: Constants = vec![("NORM", self.norm as u32)];
        if tiled {
            let [wx, wy, tm, tn] = self.tile.sizes().map(|s| s as u32);
            constants.extend([("WX", wx), ("WY", wy), ("TM", tm), ("TN", tn)]);
            constants.extend([("X_DTYPE", self.x.dtype().code()), ("V_DTYPE", self.v.dtype().code())]);
        }
        constants.extend([
            ("ACTIVATION", self.activation.code()),
            ("HAS_GAIN", self.g.is_some().into()),
            ("HAS_BIAS", self.bias.is_some().into()),
            ("WRITE_NORMS", (first_rows && self.norms_out.is_some()).into()),
        ]);
        if self.y.dtype() != DType::F32 {
            constants.push(("Y_DTYPE", self.y.dtype().code()));
        }
        constants
    }

    /// Columns of one row of x, of v, and of their scales, that a binding holds.
    fn columns_in_binding(&self, gpu: &Gpu) -> u64 {
        let element = self.x.dtype().size().max(self.v.dtype().size());
        gpu.binding_capacity() / if self.norm == Norm::In { 8 } else { element }
    }

    /// The largest window that fits bindings, scratch and dispatches, `k_count` columns of x and v at a time.
    fn window(&self, recorder: &Recorder<'_, '_>, k_count: u64, splits: u64) -> Result<Window, Error> {
        let gpu = recorder.gpu();
        let capacity = gpu.binding_capacity();
        // Rows of `ins` elements of which the last one needs k_count.
        let rows = |element: u64| (capacity / element).saturating_sub(k_count) / self.ins.max(1) + 1;
        let y_capacity = capacity / self.y.dtype().size();
        let tile = self.tile;
        let groups = gpu.group_capacity();
        // Windows of whole tiles, as long as there is one.
        let in_tiles = |count: u64, size: u64| if count < size { count.max(1) } else { count / size * size };
        let in_work = |work: u64, size: u64| in_tiles(recorder.work_capacity(work).max(size), size);
        let mut outs = self.outs.min(rows(self.v.dtype().size())).min(capacity / 4).min(y_capacity);
        outs = outs.min(groups * tile.columns()).min(in_work(tile.rows() * k_count, tile.columns()));
        let columns = outs.next_multiple_of(tile.columns());
        let mut batch = self.batch.min(rows(self.x.dtype().size())).min((y_capacity - outs) / self.outs.max(1) + 1);
        batch = batch.min((groups / (columns / tile.columns())).max(1) * tile.rows());
        batch = batch.min(in_work(columns * k_count, tile.rows()));
        if splits > 0 {
            let partial = MAX_PARTIAL_BYTES.min(capacity) / 8;
            let rows = batch.min(tile.rows());
            outs = outs.min(in_tiles(partial / (splits * (rows + 1)), tile.columns()));
            batch = batch.min((groups * FINISH_THREADS / outs).max(1));
            batch = batch.min(in_tiles((partial / (splits * outs)).saturating_sub(1), tile.rows()));
            if splits * outs * (batch + 1) > partial || splits > MAX_ITERATIONS / 2 {
                return Err(Error::TooLarge { what: "splits of in_features", size: splits, limit: partial / 2 });
            }
        }
        Ok(Window { batch, outs })
    }

    /// The scales of `count` columns, with [`Norm::In`].
    fn scales(&self, gpu: &Gpu, k: u64, count: u64) -> Bound<'a> {
        let scales = self.norms_in.as_ref().filter(|_| self.norm == Norm::In);
        scales.map_or((None, 0), |scales| scales.bind(gpu, 2 * k, 2 * count))
    }

    fn ends(&self, gpu: &Gpu, b: u64, batch: u64, j: u64, outs: u64) -> Ends<'a> {
        let columns = |tensor: Option<&'a Tensor>| tensor.map_or((None, 0), |t| View::of(t).bind(gpu, j, outs));
        Ends {
            g: match self.norm {
                Norm::Whole => self.g.map_or((None, 0), |t| View::of(t).bind(gpu, 0, 1)),
                _ => columns(self.g),
            },
            bias: columns(self.bias),
            norms_in: match (&self.norms_in, self.norm) {
                (Some(norms), Norm::Given) => norms.bind(gpu, j, outs),
                (Some(norms), Norm::Whole) => norms.bind(gpu, 0, 2),
                // With the columns they belong to.
                _ => (None, 0),
            },
            y: View::of(self.y).bind(gpu, b * self.outs + j, (batch - 1) * self.outs + outs),
            norms_out: columns(self.norms_out),
        }
    }
}
