//! Convolutions, checked and recorded.
use super::Conv;
use super::geometry::Sides;
use super::kernels::{CONV_FINISH, CONV_PARTIAL, CONV_WHOLE, ConvParams, Pass, READS};
use super::plan::{Product, check_tile};
use crate::arguments::{Arguments, expect_per_norm, expect_shape};
use crate::binding::{Bound, Span, View, bind, offsets};
use crate::choose::Facts;
use crate::contract::{norms_shape, stored_as};
use crate::kernel::Constants;
use crate::linear::epilogue::NormSource;
use crate::linear::write_norms;
use crate::memory::Scratch;
use crate::product::epilogue::FINISH_THREADS;
use crate::product::plan::{PARTIAL_BYTES, ProductFacts, ProductPlan};
use crate::product::selection::{Problem, Selection};
use crate::product::tile::Tile;
use crate::product::variant::RESULTS;
use crate::record::Dispatch;
use crate::weight::norms::{Form, scales};
use crate::windows::{Capacities, windows};
use crate::{Axis, DType, Error, Gpu, Recorder, Tensor};

impl Gpu {
    /// A convolution: see [`Conv`].
    ///
    /// # Errors
    /// As [`Conv`] lists them.
    pub fn conv(&self, conv: Conv<'_>) -> Result<Tensor, Error> {
        let shape = conv.geometry.conv_shape(conv.x.shape(), conv.weight.v().shape())?;
        let y = self.zeros_of("conv: y", &shape, conv.x.dtype())?;
        self.run(|ops| ops.conv(conv, &y))?;
        Ok(y)
    }

    /// A transposed convolution: see [`Conv`].
    ///
    /// # Errors
    /// As [`Conv`] lists them.
    pub fn conv_transposed(&self, conv: Conv<'_>) -> Result<Tensor, Error> {
        let shape = conv.geometry.conv_transposed_shape(conv.x.shape(), conv.weight.v().shape())?;
        let y = self.zeros_of("conv_transposed: y", &shape, conv.x.dtype())?;
        self.run(|ops| ops.conv_transposed(conv, &y))?;
        Ok(y)
    }
}

impl Recorder<'_, '_> {
    /// Records a convolution into `y`: [`ConvGeometry::conv_shape`](crate::ConvGeometry::conv_shape), any storage type.
    ///
    /// # Errors
    /// As [`Conv`] lists them.
    pub fn conv(&mut self, conv: Conv<'_>, y: &Tensor) -> Result<(), Error> {
        let op = "conv";
        let sides = Sides::of_conv(op, &conv.geometry, conv.x.shape(), conv.weight.v().shape())?;
        expect_shape(op, "y", y, &sides.c_shape())?;
        let product = Product::windows(&sides)?;
        let outs = sides.wide;
        let norm = source_of(&conv, |axis| if axis == 0 { NormSource::Fused } else { NormSource::In });
        forward(self, op, &conv, y, &sides, &product, (norm, outs))
    }

    /// Records a transposed convolution into `y`:
    /// [`ConvGeometry::conv_transposed_shape`](crate::ConvGeometry::conv_transposed_shape), any storage type.
    ///
    /// # Errors
    /// As [`Conv`] lists them.
    pub fn conv_transposed(&mut self, conv: Conv<'_>, y: &Tensor) -> Result<(), Error> {
        let op = "conv_transposed";
        let sides = Sides::of_transposed(op, &conv.geometry, conv.x.shape(), conv.weight.v().shape())?;
        expect_shape(op, "y", y, &sides.a_shape())?;
        let by_taps = conv.weight.normalized().is_some_and(|weight| matches!(weight.axis, Axis::Kept(2..)));
        let product = Product::phases(&sides, by_taps)?;
        let outs = sides.groups * sides.channels;
        let norm = source_of(&conv, |axis| if axis == 1 { NormSource::Given } else { NormSource::In });
        forward(self, op, &conv, y, &sides, &product, (norm, outs))
    }
}

/// Where the norms come from, given that for a kept axis. Known norms of an output channel need not be summed up.
fn source_of(conv: &Conv<'_>, kept: impl Fn(usize) -> NormSource) -> NormSource {
    let Some(weight) = conv.weight.normalized() else { return NormSource::Plain };
    match weight.axis {
        Axis::Whole => NormSource::Whole,
        Axis::Kept(axis) => match kept(axis) {
            NormSource::Fused if weight.norms.is_some() => NormSource::Given,
            source => source,
        },
    }
}

/// y = act(w·x + bias), `product` being that of x and the weight, with `outs` output channels.
fn forward(
    ops: &mut Recorder<'_, '_>,
    op: &'static str,
    conv: &Conv<'_>,
    y: &Tensor,
    sides: &Sides,
    product: &Product,
    (mut norm, outs): (NormSource, usize),
) -> Result<(), Error> {
    let (v, normalized) = (conv.weight.v(), conv.weight.normalized());
    check(ops, op, conv, y, outs)?;
    // Without anything to sum up, w plays no part in y.
    if y.is_empty() || product.depth == 0 {
        norm = NormSource::Plain;
    }
    if let (Some(weight), Some(norms)) = (normalized, conv.norms)
        && (norm == NormSource::Plain || (norm == NormSource::Given && weight.norms.is_some()))
    {
        write_norms(ops, weight, norms)?;
    }
    if y.is_empty() {
        return Ok(());
    }
    let axis = normalized.map(|weight| weight.axis);
    let product = match (axis, norm) {
        (Some(Axis::Kept(axis)), NormSource::In) => product.scaled_by(axis, sides),
        _ => *product,
    };
    let norms_in = match (normalized, norm) {
        (Some(weight), NormSource::Given) => match weight.norms {
            Some(norms) => Some((View::of(norms), norms.len() as u64)),
            None => Some((scales(ops, weight, Form::Norms, conv.norms)?, v.shape()[1] as u64)),
        },
        (Some(weight), NormSource::Whole) => Some((scales(ops, weight, Form::Wide, conv.norms)?, 2)),
        (Some(weight), NormSource::In) => {
            let norms: usize = norms_shape(v.shape(), weight.axis).iter().product();
            Some((scales(ops, weight, Form::Scales, conv.norms)?, 2 * norms as u64))
        }
        _ => None,
    };
    let layer = Layer {
        product,
        x: conv.x,
        v,
        // With Scales the gain is part of them.
        g: normalized.and_then(|w| w.g).filter(|_| norm != NormSource::In && norm != NormSource::Plain),
        bias: conv.bias,
        y,
        norm,
        norms_in,
        norms_out: conv.norms.filter(|_| norm == NormSource::Fused),
        axis,
        activation: conv.activation,
        policy: normalized.map_or((0, 0.0), |w| (w.eps.code(), w.eps.value())),
    };
    layer.record(ops, conv.selection)
}

fn check(ops: &mut Recorder<'_, '_>, op: &'static str, conv: &Conv<'_>, y: &Tensor, outs: usize) -> Result<(), Error> {
    let &Conv { x, weight, bias, activation, norms, selection, .. } = conv;
    let (v, normalized) = (weight.v(), weight.normalized());
    activation.check(op)?;
    if let Some(weight) = normalized {
        weight.check(op)?;
    }
    if let Some(bias) = bias {
        expect_shape(op, "bias", bias, &[outs])?;
    }
    if let Some(norms) = norms {
        let Some(weight) = normalized else {
            let expected = "a weight with norms".to_owned();
            return Err(Error::Shape { op, arg: "norms", got: norms.shape().to_vec(), expected });
        };
        expect_per_norm(op, "norms", norms, &norms_shape(v.shape(), weight.axis))?;
    }
    check_tile(op, selection.tile)?;
    let Facts { traits, capacities } = ops.facts();
    selection.check(op, traits, false)?;
    for (what, tensor) in [("x of a convolution in bytes", x), ("its weight in bytes", v), ("its y in bytes", y)] {
        if tensor.bytes() > capacities.binding {
            return Err(Error::TooLarge { what, size: tensor.bytes(), limit: capacities.binding });
        }
    }
    // Each element of the side of c goes through all taps.
    let windows = if op == "conv" { y } else { x };
    let taps = v.shape()[1..].iter().product::<usize>() as u64;
    Arguments::new(op)
        .input("x", x)
        .input("weight", v)
        .input("g", normalized.and_then(|w| w.g))
        .input("known norms", normalized.and_then(|w| w.norms))
        .input("bias", bias)
        .output("y", y)
        .output("norms", norms)
        .operations(2 * windows.len() as u64 * taps + normalized.map_or(0, |w| w.norms_operations()))
        .begin(ops)
}

/// A layer whose arguments are checked.
struct Layer<'a> {
    product: Product,
    x: &'a Tensor,
    v: &'a Tensor,
    g: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    y: &'a Tensor,
    norm: NormSource,
    /// And how many words.
    norms_in: Option<(View<'a>, u64)>,
    norms_out: Option<&'a Tensor>,
    axis: Option<Axis>,
    activation: crate::Activation,
    policy: (u32, f32),
}

/// What dispatches bind, always whole: places within them are those of tensors.
struct Bindings<'a> {
    x: Bound<'a>,
    v: Bound<'a>,
    /// g, bias, norms, y, norms that are written, u, which is none.
    ends: Vec<Option<Span<'a>>>,
    y_first: u32,
    more_offsets: [u32; 4],
}

impl<'a> Layer<'a> {
    fn bindings(&self, capacities: Capacities) -> Bindings<'a> {
        let all = |tensor: Option<&'a Tensor>| bind(capacities, tensor, 0, tensor.map_or(0, |t| t.len() as u64));
        let (g, bias, y, norms_out) = (all(self.g), all(self.bias), all(Some(self.y)), all(self.norms_out));
        let norms_in = self.norms_in.as_ref().map_or((None, 0), |(view, words)| view.bind(capacities, 0, *words));
        Bindings {
            x: all(Some(self.x)),
            v: all(Some(self.v)),
            ends: vec![g.0, bias.0, norms_in.0, y.0, norms_out.0, None],
            y_first: y.1,
            more_offsets: [g.1, bias.1, norms_in.1, norms_out.1],
        }
    }

    fn plan(&self, facts: Facts, selection: Selection) -> Result<ProductPlan, Error> {
        let Product { rows, columns, depth, .. } = self.product;
        let dtypes = [self.x.dtype(), self.v.dtype()];
        let facts_of = ProductFacts {
            problem: Problem { along_k: [true, true], dtypes, size: [rows, columns, depth] },
            c_bytes: 4,
            cooperative: false,
            bytes_per_step: 0,
            column_sums: self.norm == NormSource::Fused,
        };
        let tile = selection.tile.unwrap_or_else(|| self.product.tile(facts.traits));
        // Whatever is bound is bound whole, and fits.
        let capacities = Capacities { binding: 1 << 40, ..facts.capacities };
        ProductPlan::new(&facts_of, facts.traits, capacities, Selection { tile: Some(tile), ..selection })
    }

    fn record(&self, ops: &mut Recorder<'_, '_>, selection: Selection) -> Result<(), Error> {
        let facts = ops.facts();
        let Facts { capacities, .. } = facts;
        let plan = self.plan(facts, selection)?;
        let Product { rows, columns, depth, groups, .. } = self.product;
        let splits = plan.split_length.map_or(1, |length| depth.div_ceil(length));
        let beside = u64::from(self.norm == NormSource::Fused);
        let bindings = self.bindings(capacities);
        for window in plan.windows([rows, columns, depth]) {
            let (tiles, work) = (plan.tiles(&window), plan.work(&window));
            let sums = splits * window.columns * (window.rows + beside);
            let mut most = (capacities.groups / (tiles * splits)).min(capacities.work(work));
            if plan.split_length.is_some() {
                most = most.min(capacities.partial_sums(PARTIAL_BYTES) / sums);
                if most == 0 {
                    let (what, limit) = ("partial sums", capacities.partial_sums(PARTIAL_BYTES));
                    return Err(Error::TooLarge { what, size: sums, limit });
                }
            }
            for (group, group_count) in windows(groups, most.clamp(1, groups)) {
                let params = ConvParams {
                    rows: window.rows as u32,
                    columns: window.columns as u32,
                    depth: depth as u32,
                    split_length: plan.split_length.unwrap_or(depth) as u32,
                    splits: splits as u32,
                    group_first: group as u32,
                    group_count: group_count as u32,
                    row_first: window.row as u32,
                    column_first: window.column as u32,
                    policy: self.policy.0,
                    eps: self.policy.1,
                    slope: self.activation.slope(),
                    offsets: offsets([bindings.x.1, bindings.v.1, bindings.y_first, 0]),
                    more_offsets: offsets(bindings.more_offsets),
                    ..self.product.params
                };
                let first = window.row == 0;
                let Some(split_length) = plan.split_length else {
                    let mut buffers = vec![bindings.x.0.clone(), bindings.v.0.clone()];
                    buffers.extend(bindings.ends.clone());
                    let mut constants = self.end_constants(first);
                    constants.extend(self.sum_constants(&plan, &bindings));
                    ops.dispatch(&Dispatch {
                        kernel: &CONV_WHOLE,
                        module: self.product.pass.module(self.read(&bindings), self.result(&bindings)),
                        constants: &constants,
                        buffers: &buffers,
                        params,
                        groups: tiles * group_count,
                        work: work * group_count,
                    })?;
                    continue;
                };
                let count = sums * group_count;
                let scratch = ops.scratch(Scratch::Sums, count * PARTIAL_BYTES)?;
                let (part, _) = View::scratch(scratch, PARTIAL_BYTES).bind(capacities, 0, count);
                for (split, split_count) in windows(splits, plan.split_step) {
                    let mut constants: Constants = vec![("NORM", self.norm as u32)];
                    constants.extend(self.sum_constants(&plan, &bindings));
                    ops.dispatch(&Dispatch {
                        kernel: &CONV_PARTIAL,
                        module: self.product.pass.module(self.read(&bindings), RESULTS[0]),
                        constants: &constants,
                        buffers: &[bindings.x.0.clone(), bindings.v.0.clone(), bindings.ends[2].clone(), part.clone()],
                        params: ConvParams { split_first: split as u32, ..params },
                        groups: tiles * split_count * group_count,
                        work: work / splits * split_count * group_count,
                    })?;
                }
                let elements = window.rows * window.columns * group_count;
                let mut buffers = bindings.ends.clone();
                buffers.push(part);
                let result = if self.y.dtype() == DType::F32 { RESULTS[0] } else { RESULTS[1] };
                let mut constants = self.end_constants(first);
                constants.push(("PHASED", (self.product.pass == Pass::Phases).into()));
                debug_assert!(split_length > 0);
                ops.dispatch(&Dispatch {
                    kernel: &CONV_FINISH,
                    module: self.product.pass.module(READS[0], result),
                    constants: &constants,
                    buffers: &buffers,
                    params,
                    groups: elements.div_ceil(FINISH_THREADS),
                    work: elements * splits,
                })?;
            }
        }
        Ok(())
    }

    /// How v is read: four elements at a time where its rows are whole quads.
    fn read(&self, bindings: &Bindings<'_>) -> &'static str {
        let in_quads = self.product.depth.is_multiple_of(4) && bindings.v.1.is_multiple_of(4);
        match (self.product.pass, in_quads, self.v.dtype()) {
            (Pass::Windows, true, DType::F32) => READS[1],
            (Pass::Windows, true, _) => READS[2],
            _ => READS[0],
        }
    }

    /// How y is written: four positions at a time where each image's channel is whole quads.
    fn result(&self, bindings: &Bindings<'_>) -> &'static str {
        let in_quads = self.product.params.positions.is_multiple_of(4) && bindings.y_first.is_multiple_of(4);
        match (self.y.dtype(), self.product.pass) {
            (DType::F32, Pass::Windows) if in_quads => RESULTS[2],
            (DType::F32, _) => RESULTS[0],
            _ => RESULTS[1],
        }
    }

    /// Of what becomes of the sums.
    fn end_constants(&self, first: bool) -> Constants {
        let mut constants: Constants = vec![
            ("NORM", self.norm as u32),
            ("ACTIVATION", self.activation.code()),
            ("HAS_GAIN", self.g.is_some().into()),
            ("HAS_BIAS", self.bias.is_some().into()),
            ("WRITE_NORMS", (first && self.norms_out.is_some()).into()),
        ];
        if self.y.dtype() != DType::F32 {
            constants.push(("Y_DTYPE", self.y.dtype().code()));
        }
        constants.extend(stored_as("GAIN_DTYPE", self.g).into_iter().chain(stored_as("BIAS_DTYPE", self.bias)));
        constants
    }

    /// Of the sums.
    fn sum_constants(&self, plan: &ProductPlan, bindings: &Bindings<'_>) -> Constants {
        let shape = plan.tile;
        let mut constants = self.product.constants(self.axis, self.x);
        constants.extend([
            ("WX", shape.wx as u32),
            ("WY", shape.wy as u32),
            ("TM", shape.tm as u32),
            ("TN", shape.tn as u32),
            ("STEP", 4 * shape.wx as u32),
            ("BK", shape.steps as u32),
            ("IN_PIECES", (shape.tile == Tile::Tall).into()),
            ("WHOLE_STEPS", (self.product.depth > 0 && self.product.depth.is_multiple_of(shape.steps)).into()),
            ("SQUARES", (self.norm == NormSource::Fused).into()),
            ("SCALED_B", (self.norm == NormSource::In).into()),
        ]);
        if self.read(bindings) != READS[1] {
            constants.push(("B_DTYPE", self.v.dtype().code()));
        }
        constants
    }
}
