//! The dispatches of a convolution.
use super::Conv;
use super::kernels::{CONV_FINISH, CONV_PARTIAL, CONV_WHOLE, ConvParams, Pass, READS};
use super::plan::Product;
use crate::binding::{Span, View, bind, offsets};
use crate::choose::Facts;
use crate::contract::stored_as;
use crate::kernel::Constants;
use crate::linear::epilogue::NormSource;
use crate::memory::{Memory, Scratch};
use crate::product::epilogue::{FINISH_THREADS, ProductWindow};
use crate::product::plan::{PARTIAL_BYTES, ProductFacts, ProductPlan};
use crate::product::selection::{Problem, Selection};
use crate::product::tile::{Family, Tile};
use crate::product::variant::RESULTS;
use crate::record::Dispatch;
use crate::windows::{Capacities, windows};
use crate::{Activation, Axis, DType, Error, LimitError, Recorder, Tensor};

/// A product whose arguments are checked.
pub(crate) struct Layer<'a> {
    pub product: Product,
    /// Operand A.
    pub x: &'a Tensor,
    /// Operand B.
    pub v: &'a Tensor,
    pub g: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
    pub y: &'a Tensor,
    pub norm: NormSource,
    /// And how many words.
    pub norms_in: Option<(View<'a>, u64)>,
    pub norms_out: Option<&'a Tensor>,
    pub axis: Option<Axis>,
    pub ends: Ends<'a>,
    pub policy: (u32, f32),
}

/// What is done to elements as they are read, and to sums: `conv_ends.wgsl`.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    /// Of operands A and B; they share a slope, since one of them is x.
    pub inputs: [Activation; 2],
    pub extra: Option<(Extra, &'a Tensor)>,
    pub scale: f32,
    /// Add to what y holds.
    pub add: bool,
    pub activation: Activation,
}

/// What the one tensor more is: EXTRA of `extra.wgsl`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Extra {
    Residual = 1,
    Snake,
    InputSnake,
}

impl Default for Ends<'_> {
    fn default() -> Self {
        let none = Activation::None;
        Ends { inputs: [none, none], extra: None, scale: 1.0, add: false, activation: none }
    }
}

impl<'a> Ends<'a> {
    /// Of a forward product, whose A is x.
    pub fn of(conv: &Conv<'a>) -> Ends<'a> {
        let residual = conv.residual.map(|residual| (Extra::Residual, residual));
        let snake = conv.snake.map(|alpha| (Extra::Snake, alpha));
        let input_snake = conv.input_snake.map(|alpha| (Extra::InputSnake, alpha));
        Ends {
            inputs: [conv.input_activation, Activation::None],
            extra: residual.or(snake).or(input_snake),
            scale: conv.scale,
            add: conv.accumulate,
            activation: conv.activation,
        }
    }

    fn input_slope(&self) -> f32 {
        self.inputs.into_iter().map(Activation::slope).find(|&slope| slope != 0.0).unwrap_or(0.0)
    }

    /// Of elements as they are read.
    fn input_constants(&self) -> Constants {
        let codes = ["A_ACTIVATION", "B_ACTIVATION"].into_iter().zip(self.inputs.map(Activation::code));
        codes.filter(|&(_, code)| code != 0).chain(self.extra_constants(|extra| extra == Extra::InputSnake)).collect()
    }

    /// Of sums.
    fn end_constants(&self) -> Constants {
        let mut constants: Constants = vec![("ACTIVATION", self.activation.code()), ("ADD", self.add.into())];
        constants.extend(self.extra_constants(|extra| extra != Extra::InputSnake));
        constants
    }

    fn extra_constants(&self, wanted: impl Fn(Extra) -> bool) -> Constants {
        let extra = self.extra.filter(|&(extra, _)| wanted(extra));
        let code =
            |(extra, tensor): (Extra, &Tensor)| [("EXTRA", extra as u32), ("EXTRA_DTYPE", tensor.dtype().code())];
        extra.into_iter().flat_map(code).collect()
    }
}

/// Sums in pieces: how many, and their plan.
pub(crate) struct Pieces {
    plan: ProductPlan,
    window: ProductWindow,
    pub count: u64,
}

/// What dispatches bind, always whole: places within them are those of tensors.
struct Bindings<'a> {
    x: Option<Span<'a>>,
    v: Option<Span<'a>>,
    /// g, bias, norms, y, norms that are written, what is extra.
    ends: Vec<Option<Span<'a>>>,
    firsts: [u32; 4],
    more_offsets: [u32; 4],
}

impl<'a> Layer<'a> {
    fn bindings(&self, capacities: Capacities) -> Bindings<'a> {
        let all = |tensor: Option<&'a Tensor>| bind(capacities, tensor, 0, tensor.map_or(0, |t| t.len() as u64));
        let (g, bias, y, norms_out) = (all(self.g), all(self.bias), all(Some(self.y)), all(self.norms_out));
        let extra = all(self.ends.extra.map(|(_, tensor)| tensor));
        let (x, v) = (all(Some(self.x)), all(Some(self.v)));
        let norms_in = self.norms_in.as_ref().map_or((None, 0), |(view, words)| view.bind(capacities, 0, *words));
        Bindings {
            firsts: [x.1, v.1, y.1, extra.1],
            x: x.0,
            v: v.0,
            ends: vec![g.0, bias.0, norms_in.0, y.0, norms_out.0, extra.0],
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
        let split_length = selection.split_length.or_else(|| self.product.pieces(facts.traits, tile));
        // Whatever is bound is bound whole, and fits.
        let capacities = Capacities { binding: 1 << 40, ..facts.capacities };
        ProductPlan::new(&facts_of, facts.traits, capacities, Selection { tile: Some(tile), split_length })
    }

    pub fn record(&self, ops: &mut Recorder<'_, '_>, selection: Selection) -> Result<(), Error> {
        let facts = ops.facts();
        let Facts { capacities, .. } = facts;
        let plan = self.plan(facts, selection)?;
        let Product { rows, columns, depth, groups, .. } = self.product;
        let splits = self.splits(&plan);
        let bindings = self.bindings(capacities);
        for window in plan.windows([rows, columns, depth]) {
            let (tiles, work) = (plan.tiles(&window), plan.work(&window));
            for (group, group_count) in windows(groups, self.groups_at_once(capacities, &plan, &window)?) {
                let params = self.params(&plan, &bindings, &window, (group, group_count));
                let first = window.row == 0;
                if plan.split_length.is_none() {
                    let mut buffers = vec![bindings.x.clone(), bindings.v.clone()];
                    buffers.extend(bindings.ends.clone());
                    let mut constants = self.end_constants(first);
                    constants.extend(self.sum_constants(&plan, &bindings));
                    ops.dispatch(&Dispatch {
                        kernel: &CONV_WHOLE,
                        module: self.product.pass.module(
                            plan.tile.tile.family(),
                            self.read(&plan, &bindings),
                            self.result(&bindings),
                        ),
                        constants: &constants,
                        buffers: &buffers,
                        params,
                        groups: tiles * group_count,
                        work: work * group_count,
                    })?;
                    continue;
                }
                let bytes = self.sums(&plan, &window) * group_count * self.product.pass.partial_bytes();
                let memory = ops.scratch(Scratch::Sums, bytes)?;
                let part = self.record_partials(ops, &plan, &bindings, &window, params, memory)?;
                let elements = window.rows * window.columns * group_count;
                let mut buffers = bindings.ends.clone();
                buffers.push(part);
                let result = if self.y.dtype() == DType::F32 { RESULTS[0] } else { RESULTS[1] };
                let mut constants = self.end_constants(first);
                constants.push(("PHASED", (self.product.pass == Pass::Phases).into()));
                ops.dispatch(&Dispatch {
                    kernel: &CONV_FINISH,
                    module: self.product.pass.module(Family::Tile, READS[0], result),
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

    fn splits(&self, plan: &ProductPlan) -> u64 {
        plan.split_length.map_or(1, |length| self.product.depth.div_ceil(length))
    }

    /// Partial sums of a group.
    fn sums(&self, plan: &ProductPlan, window: &ProductWindow) -> u64 {
        let beside = u64::from(self.norm == NormSource::Fused);
        self.splits(plan) * window.columns * (window.rows + beside)
    }

    /// Groups of a dispatch.
    fn groups_at_once(&self, capacities: Capacities, plan: &ProductPlan, window: &ProductWindow) -> Result<u64, Error> {
        let (tiles, work) = (plan.tiles(window), plan.work(window));
        let mut most = (capacities.groups / (tiles * self.splits(plan))).min(capacities.work(work));
        if plan.split_length.is_some() {
            let (size, limit) = (self.sums(plan, window), capacities.partial_sums(PARTIAL_BYTES));
            most = most.min(limit / size);
            if most == 0 {
                return Err(LimitError::TooLarge { what: "partial sums", size, limit }.into());
            }
        }
        Ok(most.clamp(1, self.product.groups))
    }

    fn params(
        &self,
        plan: &ProductPlan,
        bindings: &Bindings<'_>,
        window: &ProductWindow,
        (group, group_count): (u64, u64),
    ) -> ConvParams {
        let depth = self.product.depth;
        ConvParams {
            rows: window.rows as u32,
            columns: window.columns as u32,
            depth: depth as u32,
            split_length: plan.split_length.unwrap_or(depth) as u32,
            splits: self.splits(plan) as u32,
            group_first: group as u32,
            group_count: group_count as u32,
            row_first: window.row as u32,
            column_first: window.column as u32,
            policy: self.policy.0,
            eps: self.policy.1,
            slope: self.ends.activation.slope(),
            input_slope: self.ends.input_slope(),
            scale: self.ends.scale,
            offsets: offsets(bindings.firsts),
            more_offsets: offsets(bindings.more_offsets),
            ..self.product.params
        }
    }

    /// The partial sums of a window, from the start of `memory` on.
    fn record_partials(
        &self,
        ops: &mut Recorder<'_, '_>,
        plan: &ProductPlan,
        bindings: &Bindings<'a>,
        window: &ProductWindow,
        params: ConvParams,
        memory: Memory,
    ) -> Result<Option<Span<'static>>, Error> {
        let (splits, group_count) = (self.splits(plan), u64::from(params.group_count));
        let (tiles, work) = (plan.tiles(window), plan.work(window));
        let sums = View::scratch(memory, self.product.pass.partial_bytes());
        let (part, _) = sums.bind(ops.facts().capacities, 0, self.sums(plan, window) * group_count);
        for (split, split_count) in windows(splits, plan.split_step) {
            let mut constants: Constants = vec![("NORM", self.norm as u32)];
            constants.extend(self.sum_constants(plan, bindings));
            let of_input = self.ends.extra.is_some_and(|(extra, _)| extra == Extra::InputSnake);
            let input_extra = bindings.ends[5].clone().filter(|_| of_input);
            ops.dispatch(&Dispatch {
                kernel: &CONV_PARTIAL,
                module: self.product.pass.module(plan.tile.tile.family(), self.read(plan, bindings), RESULTS[0]),
                constants: &constants,
                buffers: &[bindings.x.clone(), bindings.v.clone(), bindings.ends[2].clone(), input_extra, part.clone()],
                params: ConvParams { split_first: split as u32, ..params },
                groups: tiles * split_count * group_count,
                work: work / splits * split_count * group_count,
            })?;
        }
        Ok(part)
    }

    /// The pieces of the sums, where they can all be kept at a time. Each lies as y does.
    pub fn pieces(&self, facts: Facts, selection: Selection) -> Result<Option<Pieces>, Error> {
        let plan = self.plan(facts, selection)?;
        let Product { rows, columns, depth, groups, .. } = self.product;
        let all: Vec<_> = plan.windows([rows, columns, depth]).take(2).collect();
        let (&[window], Some(_)) = (&all[..], plan.split_length) else { return Ok(None) };
        let at_once = self.groups_at_once(facts.capacities, &plan, &window)? == groups;
        let count = self.splits(&plan);
        Ok(at_once.then_some(Pieces { plan, window, count }))
    }

    /// Records them into `memory`.
    pub fn record_pieces(&self, ops: &mut Recorder<'_, '_>, pieces: &Pieces, memory: Memory) -> Result<(), Error> {
        let Pieces { plan, window, .. } = pieces;
        let bindings = self.bindings(ops.facts().capacities);
        let params = self.params(plan, &bindings, window, (0, self.product.groups));
        self.record_partials(ops, plan, &bindings, window, params, memory).map(drop)
    }

    /// How v is read: four elements at a time where its rows are whole quads.
    fn read(&self, plan: &ProductPlan, bindings: &Bindings<'_>) -> &'static str {
        // All invocations of a narrow tile read the same of v, which is little.
        let narrow = plan.tile.tile.family() == Family::Narrow;
        let in_quads = !narrow && self.product.depth.is_multiple_of(4) && bindings.firsts[1].is_multiple_of(4);
        match (self.product.pass, in_quads, self.v.dtype()) {
            (Pass::Windows, true, DType::F32) => READS[1],
            (Pass::Windows, true, _) => READS[2],
            _ => READS[0],
        }
    }

    /// How y is written: four positions at a time where each image's channel is whole quads.
    fn result(&self, bindings: &Bindings<'_>) -> &'static str {
        let in_quads = self.product.params.positions.is_multiple_of(4) && bindings.firsts[2].is_multiple_of(4);
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
            ("HAS_GAIN", self.g.is_some().into()),
            ("HAS_BIAS", self.bias.is_some().into()),
            ("WRITE_NORMS", (first && self.norms_out.is_some()).into()),
        ];
        if self.y.dtype() != DType::F32 {
            constants.push(("Y_DTYPE", self.y.dtype().code()));
        }
        constants.extend(self.ends.end_constants());
        constants.extend(stored_as("GAIN_DTYPE", self.g).into_iter().chain(stored_as("BIAS_DTYPE", self.bias)));
        constants
    }

    /// Of the sums.
    fn sum_constants(&self, plan: &ProductPlan, bindings: &Bindings<'_>) -> Constants {
        let shape = plan.tile;
        let mut constants = self.product.constants(self.axis, self.x);
        constants.extend(self.ends.input_constants());
        constants.extend([
            ("WX", shape.wx as u32),
            ("WY", shape.wy as u32),
            ("TM", shape.tm as u32),
            ("TN", shape.tn as u32),
            ("SQUARES", (self.norm == NormSource::Fused).into()),
            ("SCALED_B", (self.norm == NormSource::In).into()),
        ]);
        let depth = self.product.depth;
        match shape.tile.family() {
            Family::Subgroup => {
                let length = plan.split_length.unwrap_or(depth);
                constants.extend([
                    ("RAGGED", (self.read(plan, bindings) == READS[0] || !depth.is_multiple_of(8)).into()),
                    ("REDO_STEPS", shape.redo_steps(length) as u32),
                ]);
            }
            Family::Narrow => {
                constants.push(("COLUMNS", self.product.columns.clamp(1, shape.tn).next_power_of_two() as u32));
            }
            _ => constants.extend([
                ("STEP", 4 * shape.wx as u32),
                ("BK", shape.steps as u32),
                ("IN_PIECES", (shape.tile == Tile::Tile128x8).into()),
                ("WHOLE_STEPS", (depth > 0 && depth.is_multiple_of(shape.steps)).into()),
            ]),
        }
        if self.read(plan, bindings) != READS[1] {
            constants.push(("B_DTYPE", self.v.dtype().code()));
        }
        constants
    }
}
