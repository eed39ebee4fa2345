//! The dispatches of a convolution.
use super::Conv;
use super::cut::{GROUPS, Range, Region};
use super::kernels::{CONV_FINISH, CONV_PARTIAL, CONV_WHOLE, ConvParams, Pass, READS};
use super::plan::{Plan, Product};
use crate::binding::{Span, View, bind, offsets};
use crate::choose::Facts;
use crate::contract::stored_as;
use crate::kernel::Constants;
use crate::linear::epilogue::NormSource;
use crate::memory::{Memory, Scratch};
use crate::product::epilogue::{FINISH_THREADS, ProductWindow};
use crate::product::selection::Selection;
use crate::product::tile::{Family, Tile};
use crate::product::variant::RESULTS;
use crate::record::Dispatch;
use crate::windows::{Capacities, windows};
use crate::{Activation, Axis, DType, Error, Recorder, Tensor};

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
    /// Of operand A.
    InputSnake,
    SnakeOfB,
}

impl Extra {
    /// Whether it belongs to elements as they are read.
    fn of_input(self) -> bool {
        matches!(self, Extra::InputSnake | Extra::SnakeOfB)
    }
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

    /// The widest type of what is shaped as y, of which this is the type.
    pub fn widest(&self, y: DType) -> DType {
        match self.extra {
            Some((Extra::Residual, residual)) if residual.dtype().size() > y.size() => residual.dtype(),
            _ => y,
        }
    }

    fn input_slope(&self) -> f32 {
        self.inputs.into_iter().map(Activation::slope).find(|&slope| slope != 0.0).unwrap_or(0.0)
    }

    /// Of elements as they are read.
    fn input_constants(&self) -> Constants {
        let codes = ["A_ACTIVATION", "B_ACTIVATION"].into_iter().zip(self.inputs.map(Activation::code));
        codes.filter(|&(_, code)| code != 0).chain(self.extra_constants(Extra::of_input)).collect()
    }

    /// Of sums.
    fn end_constants(&self) -> Constants {
        let mut constants: Constants = vec![("ACTIVATION", self.activation.code()), ("ADD", self.add.into())];
        constants.extend(self.extra_constants(|extra| !extra.of_input()));
        constants
    }

    fn extra_constants(&self, wanted: impl Fn(Extra) -> bool) -> Constants {
        let extra = self.extra.filter(|&(extra, _)| wanted(extra));
        let code =
            |(extra, tensor): (Extra, &Tensor)| [("EXTRA", extra as u32), ("EXTRA_DTYPE", tensor.dtype().code())];
        extra.into_iter().flat_map(code).collect()
    }
}

/// Sums in pieces: how many, and where they are formed.
pub(crate) struct Pieces {
    plan: Plan,
    region: Region,
    window: ProductWindow,
    pub count: u64,
}

/// What dispatches bind of a region.
struct Bindings<'a> {
    a: Option<Span<'a>>,
    b: Option<Span<'a>>,
    /// g, bias, norms, y, norms that are written, what is extra.
    ends: [Option<Span<'a>>; 6],
    params: ConvParams,
    /// Whether v is read, and y written, four elements at a time.
    in_quads: [bool; 2],
}

impl<'a> Layer<'a> {
    /// Of a region that has a part of the sum, or with `finished` all of it and nothing that belongs to steps.
    fn bindings(&self, capacities: Capacities, region: &Region, finished: bool) -> Bindings<'a> {
        let product = &self.product;
        let of = |tensor: Option<&'a Tensor>, (first, count): Range| bind(capacities, tensor, first, count);
        let [of_a, of_b, of_c] = product.ranges(region);
        let [inputs, outputs] = product.channels(region);
        let (a, b) = match finished {
            true => ((None, 0), (None, 0)),
            false => (of(Some(self.x), of_a), of(Some(self.v), of_b)),
        };
        let of_norms = product.norms(region);
        let norms_in = self.norms_in.as_ref().map_or((None, 0), |(view, words)| match self.norm {
            NormSource::In if finished => (None, 0),
            NormSource::In => {
                let (first, count) = product.scales(region, words / 2);
                view.bind(capacities, 2 * first, 2 * count)
            }
            NormSource::Whole => view.bind(capacities, 0, *words),
            _ => view.bind(capacities, of_norms.0, of_norms.1),
        });
        let g = of(self.g, if self.norm == NormSource::Whole { (0, 1) } else { of_norms });
        // Of whole images, where there is a gate.
        let of_y = (of_c.0 / product.pair(), of_c.1 / product.pair());
        let (bias, y, norms_out) = (of(self.bias, outputs), of(Some(self.y), of_y), of(self.norms_out, of_norms));
        let extra = self.ends.extra.map_or((None, 0), |(extra, tensor)| match extra {
            Extra::Residual => of(Some(tensor), of_c),
            Extra::Snake => of(Some(tensor), outputs),
            Extra::InputSnake | Extra::SnakeOfB if finished => (None, 0),
            Extra::InputSnake => of(Some(tensor), inputs),
            Extra::SnakeOfB => of(Some(tensor), outputs),
        });
        let quads = |n: u64| n.is_multiple_of(4);
        let params = product.bound(region);
        let rows_of_v = quads(product.depth) && quads(params.depth.into()) && quads(b.1.into());
        Bindings {
            a: a.0,
            b: b.0,
            ends: [g.0, bias.0, norms_in.0, y.0, norms_out.0, extra.0],
            params: ConvParams {
                offsets: offsets([a.1, b.1, y.1, extra.1]),
                more_offsets: offsets([g.1, bias.1, norms_in.1, norms_out.1]),
                policy: self.policy.0,
                eps: self.policy.1,
                slope: self.ends.activation.slope(),
                input_slope: self.ends.input_slope(),
                scale: self.ends.scale,
                ..params
            },
            in_quads: [rows_of_v, quads(params.positions.into()) && quads(y.1.into())],
        }
    }

    pub fn record(&self, ops: &mut Recorder<'_, '_>, selection: Selection) -> Result<(), Error> {
        let facts = ops.facts();
        let product = &self.product;
        let plan = self.plan(facts, selection)?;
        for region in plan.regions(product) {
            let size = plan.size(product, &region);
            for window in plan.product.windows(size) {
                let (first, count) = region[GROUPS];
                for (group, groups) in windows(count, plan.groups(facts.capacities, &window, size[1]).min(count)) {
                    let mut region = region;
                    region[GROUPS] = (first + group, groups);
                    match plan.product.split_length {
                        None => self.whole_sums(ops, &plan, &region, &window)?,
                        Some(_) => self.split_sums(ops, &plan, &region, &window)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Of a dispatch in a window of a region.
    fn params(&self, plan: &Plan, bindings: &Bindings<'a>, window: &ProductWindow) -> ConvParams {
        ConvParams {
            rows: window.rows as u32,
            columns: window.columns as u32,
            split_length: plan.product.split_length.unwrap_or(plan.depth) as u32,
            splits: plan.splits as u32,
            row_first: window.row as u32,
            column_first: window.column as u32,
            ..bindings.params
        }
    }

    /// The first rows write the norms.
    fn is_first(&self, region: &Region, window: &ProductWindow) -> bool {
        window.row == 0 && region[self.product.pass.axes()[0]].0 == 0
    }

    fn whole_sums(
        &self,
        ops: &mut Recorder<'_, '_>,
        plan: &Plan,
        region: &Region,
        window: &ProductWindow,
    ) -> Result<(), Error> {
        let bindings = self.bindings(ops.facts().capacities, region, false);
        let groups = region[GROUPS].1;
        let mut constants = self.end_constants(self.is_first(region, window));
        constants.extend(self.sum_constants(plan, &bindings));
        let read = self.read(plan, &bindings);
        let mut buffers = vec![bindings.a.clone(), bindings.b.clone()];
        buffers.extend(bindings.ends.clone());
        ops.dispatch(&Dispatch {
            kernel: &CONV_WHOLE,
            module: self.product.pass.module(plan.product.tile.tile.family(), read, self.result(&bindings)),
            constants: &constants,
            buffers: &buffers,
            params: self.params(plan, &bindings, window),
            groups: plan.product.tiles(window) * groups,
            work: plan.product.work(window) * groups,
        })
    }

    /// Pieces of the sums, and what becomes of their sum.
    fn split_sums(
        &self,
        ops: &mut Recorder<'_, '_>,
        plan: &Plan,
        region: &Region,
        window: &ProductWindow,
    ) -> Result<(), Error> {
        let groups = region[GROUPS].1;
        let bytes = plan.sums(window) * groups * self.product.pass.partial_bytes();
        let memory = ops.scratch(Scratch::Sums, bytes)?;
        let sums = self.partial_sums(ops, plan, region, window, memory)?;
        let bindings = self.bindings(ops.facts().capacities, region, true);
        let pair = self.product.pair();
        let elements = window.rows * window.columns / pair * groups;
        let mut constants = self.end_constants(self.is_first(region, window));
        constants.push(("PHASED", (self.product.pass == Pass::Phases).into()));
        constants.extend(self.product.gate.map(|gate| ("GATE", gate.code())));
        let mut buffers = bindings.ends.to_vec();
        buffers.push(sums);
        let result = if self.y.dtype() == DType::F32 { RESULTS[0] } else { RESULTS[1] };
        ops.dispatch(&Dispatch {
            kernel: &CONV_FINISH,
            module: self.product.pass.module(Family::Tile, READS[0], result),
            constants: &constants,
            buffers: &buffers,
            params: self.params(plan, &bindings, window),
            groups: elements.div_ceil(FINISH_THREADS),
            work: elements * pair * plan.splits,
        })
    }

    /// Pieces of the sums, in each part of the region along them, from the start of `memory` on.
    fn partial_sums(
        &self,
        ops: &mut Recorder<'_, '_>,
        plan: &Plan,
        region: &Region,
        window: &ProductWindow,
        memory: Memory,
    ) -> Result<Option<Span<'static>>, Error> {
        let (capacities, groups) = (ops.facts().capacities, region[GROUPS].1);
        let of_all = View::scratch(memory, self.product.pass.partial_bytes());
        let (sums, _) = of_all.bind(capacities, 0, plan.sums(window) * groups);
        let (tiles, family) = (plan.product.tiles(window), plan.product.tile.tile.family());
        let mut before = 0;
        for part in plan.parts(&self.product, *region) {
            let bindings = self.bindings(capacities, &part, false);
            let [_, _, norms, _, _, extra] = &bindings.ends;
            let extra = extra.clone().filter(|_| self.ends.extra.is_some_and(|(extra, _)| extra.of_input()));
            let mut constants: Constants = vec![("NORM", self.norm as u32)];
            constants.extend(self.sum_constants(plan, &bindings));
            let splits = u64::from(bindings.params.depth).div_ceil(plan.product.split_length.unwrap_or(plan.depth));
            for (split, split_count) in windows(splits, plan.product.split_step) {
                ops.dispatch(&Dispatch {
                    kernel: &CONV_PARTIAL,
                    module: self.product.pass.module(family, self.read(plan, &bindings), RESULTS[0]),
                    constants: &constants,
                    buffers: &[bindings.a.clone(), bindings.b.clone(), norms.clone(), extra.clone(), sums.clone()],
                    params: ConvParams {
                        split_first: (before + split) as u32,
                        window_split: before as u32,
                        ..self.params(plan, &bindings, window)
                    },
                    groups: tiles * split_count * groups,
                    work: plan.product.work(window) / plan.splits * split_count * groups,
                })?;
            }
            before += splits;
        }
        Ok(sums)
    }

    fn plan(&self, facts: Facts, selection: Selection) -> Result<Plan, Error> {
        let dtypes = [self.x.dtype(), self.v.dtype(), self.ends.widest(self.y.dtype())];
        self.product.plan(facts, dtypes, self.norm == NormSource::Fused, selection)
    }

    /// The pieces of the sums, where they can all be kept at a time. Each lies as y does.
    pub fn pieces(&self, facts: Facts, selection: Selection) -> Result<Option<Pieces>, Error> {
        let plan = self.plan(facts, selection)?;
        let regions = plan.regions(&self.product);
        let (&[region], Some(_)) = (&regions[..], plan.product.split_length) else { return Ok(None) };
        let size = plan.size(&self.product, &region);
        let windows: Vec<_> = plan.product.windows(size).take(2).collect();
        let &[window] = &windows[..] else { return Ok(None) };
        let at_once = plan.groups(facts.capacities, &window, size[1]) >= region[GROUPS].1;
        Ok(at_once.then_some(Pieces { count: plan.splits, plan, region, window }))
    }

    /// Records them into `memory`.
    pub fn record_pieces(&self, ops: &mut Recorder<'_, '_>, pieces: &Pieces, memory: Memory) -> Result<(), Error> {
        let Pieces { plan, region, window, .. } = pieces;
        self.partial_sums(ops, plan, region, window, memory).map(drop)
    }

    /// How v is read: four elements at a time where its rows are whole quads.
    fn read(&self, plan: &Plan, bindings: &Bindings<'_>) -> &'static str {
        // All invocations of a narrow tile read the same of v, which is little.
        let narrow = plan.product.tile.tile.family() == Family::Narrow;
        match (self.product.pass, !narrow && bindings.in_quads[0], self.v.dtype()) {
            (Pass::Windows, true, DType::F32) => READS[1],
            (Pass::Windows, true, _) => READS[2],
            _ => READS[0],
        }
    }

    /// How y is written: four positions at a time where each image's channel is whole quads.
    fn result(&self, bindings: &Bindings<'_>) -> &'static str {
        match (self.y.dtype(), self.product.pass) {
            (DType::F32, Pass::Windows) if bindings.in_quads[1] => RESULTS[2],
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
    fn sum_constants(&self, plan: &Plan, bindings: &Bindings<'_>) -> Constants {
        let shape = plan.product.tile;
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
        let depth = u64::from(bindings.params.depth);
        match shape.tile.family() {
            Family::Subgroup => {
                let length = plan.product.split_length.unwrap_or(depth);
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
