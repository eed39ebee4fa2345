//! A step of recurrent cells, forward and back, as what becomes of a product. Shaders: `product/cell.wgsl` and
//! `product/cell_gradient.wgsl`.
use super::apart::Apart;
use crate::binding::{Bound, View, bind};
use crate::choose::Facts;
use crate::contract::stored_as;
use crate::kernel::{Constants, Kernel, kernels};
use crate::linear::epilogue::NormSource;
use crate::product::epilogue::{Epilogue, EpilogueBindings, ProductParams, ProductWindow, Stage};
use crate::product::plan::{ProductFacts, ProductPlan};
use crate::product::record::{Operand, Product, whole_sums};
use crate::product::selection::{Problem, Selection};
use crate::product::tile::{Family, Tile};
use crate::product::variant::{OperandRead, RESULTS};
use crate::source::Module;
use crate::windows::Capacities;
use crate::{Cell, DType, Error, LimitError, Recorder, Tensor};

kernels! {
    CELL = "product/cell" "cell", None, ProductParams,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Read, 5 Write, 6 Write, 7 Write];
    CELL_GRADIENT = "product/cell_gradient" "cell_gradient", None, ProductParams,
        [0 Read, 1 Read, 2 Write, 3 Write, 4 Read, 5 Write, 6 Read, 7 Read];
}

/// Every module.
pub(crate) fn modules() -> Vec<Module> {
    let mut all = vec![];
    for family in [Family::Tile, Family::Stream, Family::Subgroup] {
        for reads in OperandRead::BOTH.into_iter().filter(|reads| family.can_read(*reads)) {
            all.extend(RESULTS[..2].iter().map(|result| with_cell(family.module(CELL.file, reads, result))));
            all.push(family.module(CELL_GRADIENT.file, reads, RESULTS[0]));
        }
    }
    all
}

fn with_cell(module: Module) -> Module {
    module.fill("c", "product/c_cell")
}

/// The steps of a layer, as their products have them.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    pub cell: Cell,
    pub batch: usize,
    pub units: usize,
}

/// How a step is cut.
pub(crate) struct StepPlan {
    /// Of its end, and of the product in the same dispatch.
    plan: ProductPlan,
    /// Whether a product of its own makes the sums before, where the weight is past a binding or the sums past what one
    /// dispatch may do. It is cut as any other one; its result is in scratch memory, f32.
    apart: bool,
    /// Whether c before and behind a step have a binding each, since both together are past one.
    c_apart: bool,
}

/// What of a step is zero: ZERO_BEFORE, ZERO_BEHIND and BEFORE_ALL of `cells.wgsl`, and its sums.
#[derive(Clone, Copy, Default)]
pub(crate) struct Zeros {
    pub sums: bool,
    pub before: bool,
    pub behind: bool,
    pub before_all: bool,
}

impl Zeros {
    fn bits(self) -> u32 {
        let Zeros { before, behind, before_all, sums: _ } = self;
        u32::from(before) | u32::from(behind) << 1 | u32::from(before_all) << 2
    }
}

impl Steps {
    /// Rows of a weight, elements of the gates of a sequence.
    pub fn rows(self) -> usize {
        self.cell.gates() * self.units
    }

    /// Columns of the forward product: a quad of each unit, unless it has one gate.
    fn columns(self) -> u64 {
        self.units as u64 * if self.cell == Cell::Rnn { 1 } else { 4 }
    }

    /// How a forward step is cut: its end into windows of rows alone.
    pub fn forward_plan(
        self,
        ops: &Recorder<'_, '_>,
        dtypes: [DType; 2],
        selection: Selection,
        scaled: bool,
        keeps_c: bool,
    ) -> Result<StepPlan, Error> {
        let size = [self.batch as u64, self.columns(), self.units as u64];
        let problem = Problem { along_k: [true, true], dtypes, size };
        // c has the place of h then.
        let c_apart = keeps_c && self.c_is_past_a_binding(ops);
        let plan = plan(ops, problem, selection, if scaled { 8 } else { 0 }, c_apart)?;
        Ok(StepPlan { c_apart, ..plan })
    }

    /// The same of a step back.
    pub fn backward_plan(self, ops: &Recorder<'_, '_>, weight: DType, selection: Selection) -> Result<StepPlan, Error> {
        let size = [self.batch as u64, self.units as u64, self.rows() as u64];
        let problem = Problem { along_k: [true, false], dtypes: [DType::F32, weight], size };
        let plan = plan(ops, problem, selection, 8, false)?;
        Ok(StepPlan { c_apart: self.c_is_past_a_binding(ops), ..plan })
    }

    /// That of two steps of an LSTM.
    pub fn c_is_past_a_binding(self, ops: &Recorder<'_, '_>) -> bool {
        let elements = 2 * (self.batch * self.units) as u64;
        self.cell == Cell::Lstm && elements > ops.facts().capacities.bound(DType::F32.size())
    }
}

/// Gates of a unit meet at the end, and what they become takes the place of what they were: so sums are whole there, and
/// all columns are in one dispatch.
fn plan(
    ops: &Recorder<'_, '_>,
    problem: Problem,
    selection: Selection,
    step: u64,
    apart: bool,
) -> Result<StepPlan, Error> {
    let Facts { traits, capacities } = ops.facts();
    // A plan is of something, even where nothing is computed.
    let problem = Problem { size: problem.size.map(|n| n.max(1)), ..problem };
    let tile = selection.tile.or_else(|| ops.choice(&problem, false).tile);
    let tile = tile.unwrap_or_else(|| Tile::choose(traits, false, &problem).0);
    let [rows, columns, depth] = problem.size;
    // What gates bind for a row is more than C has.
    let c_bytes = 4 * (depth / columns).max(1);
    let (cooperative, column_sums, row_sums, bound) = (false, false, false, false);
    let facts = ProductFacts {
        problem,
        c_bytes,
        cooperative,
        bytes_per_step: step,
        column_sums,
        row_sums,
        bound,
        gathered: false,
    };
    let forced = Selection { tile: Some(tile), split_length: None };
    let planned = |facts| ProductPlan::new(facts, traits, capacities, forced);
    let plan = planned(&facts)?;
    if !apart && plan.split_length.is_none() && plan.columns >= columns {
        return Ok(StepPlan { plan, apart, c_apart: false });
    }
    // The same product by itself has a plan, then; its end takes no steps of k.
    let problem = Problem { along_k: [true; 2], dtypes: problem.dtypes, size: [rows, columns, 1] };
    let plan = planned(&ProductFacts { problem, bytes_per_step: 0, ..facts })?;
    if plan.columns < columns {
        let (what, size) = ("gates of a sequence that one dispatch takes", columns);
        return Err(LimitError::TooLarge { what, size, limit: plan.columns }.into());
    }
    Ok(StepPlan { plan, apart: true, c_apart: false })
}

/// CELL_TIMES of `cells.wgsl`.
const TIMES: u32 = 3;

/// The end of a forward step: `c_cell.wgsl`.
#[derive(Clone)]
pub(crate) struct Step<'a> {
    pub steps: Steps,
    /// h before, `[B, H]`. Where it is zero another step, not to be read, so that the pipeline is that of other steps;
    /// none if there is no other.
    pub h: Option<&'a Tensor>,
    pub v: &'a Tensor,
    pub norm: NormSource,
    pub norms_in: Option<View<'a>>,
    pub g: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
    /// h behind, `[B, H]`.
    pub y: &'a Tensor,
    /// `[B, G·H]`
    pub gates: &'a Tensor,
    /// c of an LSTM, and `next` elements further where c' goes; q of a GRU where it is kept.
    pub beside: Option<&'a Tensor>,
    pub next: usize,
    pub zeros: Zeros,
    pub keep: bool,
    /// Whether there is no cell, but the product of z and q.
    pub times: bool,
    /// q of this step, `[B, G·H]`, where it was made before.
    pub ready: Option<&'a Tensor>,
    /// c', where `beside` has that of two steps.
    pub c_behind: Option<&'a Tensor>,
    /// Whether `h` is c, and `beside` c'.
    pub c_apart: bool,
}

impl<'a> Step<'a> {
    pub fn record(&self, ops: &mut Recorder<'_, '_>, plan: &StepPlan, selection: Selection) -> Result<(), Error> {
        if !plan.apart {
            return self.end(ops, &plan.plan);
        }
        let &Step { steps, h, v, norm, g, bias, .. } = self;
        let (norms_in, b) = (self.norms_in.clone(), Operand { tensor: v, along_k: true });
        let a = h.unwrap_or(self.y);
        let apart = Apart { a, b, norm, norms_in, g, bias, columns: steps.rows(), selection };
        let q = apart.record(ops, steps.batch, if self.zeros.sums { 0 } else { steps.units })?;
        // A is h, of which a GRU reads, or c. Of B nothing is read; it may not overlap what is written.
        let h = if plan.c_apart { self.beside } else { h };
        let (first, zeros) = (q.part(0, &[1, steps.units]), Zeros { sums: true, ..self.zeros });
        let (g, bias, norm, norms_in, ready) = (None, None, NormSource::Plain, None, Some(&q));
        let ready = Step { h, v: &first, g, bias, norm, norms_in, ready, zeros, ..self.clone() };
        match plan.c_apart {
            true => Step { beside: self.c_behind, next: 0, c_apart: true, ..ready }.end(ops, &plan.plan),
            false => ready.end(ops, &plan.plan),
        }
    }

    fn end(&self, ops: &mut Recorder<'_, '_>, plan: &ProductPlan) -> Result<(), Error> {
        let product = Product {
            // Of a sum of nothing only the type matters.
            a: Operand { tensor: self.h.unwrap_or(self.y), along_k: true },
            b: Operand { tensor: self.v, along_k: true },
            c_bytes: DType::F32.size(),
            rows: self.steps.batch as u64,
            columns: self.steps.columns(),
            depth: if self.h.is_some() { self.steps.units as u64 } else { 0 },
            selection: Selection::default(),
            epilogue: self,
        };
        whole_sums(ops, &product, plan)
    }
}

/// The rows of a window of a matrix of such a width.
fn rows_of<'a>(
    capacities: Capacities,
    tensor: Option<&'a Tensor>,
    window: &ProductWindow,
    width: usize,
    further: usize,
) -> Bound<'a> {
    let width = width as u64;
    bind(capacities, tensor, window.row * width, window.rows * width + further as u64)
}

impl<'a> Epilogue<'a> for Step<'a> {
    fn kernels(&self) -> [&'static Kernel; 3] {
        [&CELL; 3] // whole sums alone
    }

    fn out(&self) -> DType {
        self.y.dtype()
    }

    fn of(&self, capacities: Capacities, _: Stage, window: &ProductWindow) -> EpilogueBindings<'a> {
        let Steps { cell, units, .. } = self.steps;
        let rows = self.steps.rows();
        let whole = |tensor: Option<&'a Tensor>| bind(capacities, tensor, 0, tensor.map_or(0, |t| t.len() as u64));
        let norms_in = self.norms_in.as_ref().map_or((None, 0), |norms| match self.norm {
            NormSource::Whole => norms.bind(capacities, 0, 2),
            NormSource::In => norms.bind(capacities, 0, 2 * units as u64),
            _ => norms.bind(capacities, 0, rows as u64),
        });
        let norms_in = self.ready.map_or(norms_in, |q| rows_of(capacities, Some(q), window, rows, 0));
        let (g, bias) = (whole(self.g), whole(self.bias));
        let y = rows_of(capacities, Some(self.y), window, units, 0);
        let gates = rows_of(capacities, Some(self.gates), window, rows, 0);
        let beside = match cell {
            Cell::Lstm => rows_of(capacities, self.beside, window, units, self.next),
            _ => rows_of(capacities, self.beside, window, rows, 0),
        };
        let mut constants: Constants = vec![
            ("NORM", self.norm as u32),
            ("CELL", if self.times { TIMES } else { cell.code() }),
            ("GATES", cell.gates() as u32),
            ("KEEP", self.keep.into()),
            ("HAS_GAIN", self.g.is_some().into()),
            ("HAS_BIAS", self.bias.is_some().into()),
        ];
        if self.y.dtype() != DType::F32 {
            constants.push(("Y_DTYPE", self.y.dtype().code()));
        }
        constants.extend(self.ready.map(|_| ("READY", 1)).into_iter().chain(self.c_apart.then_some(("C_APART", 1))));
        constants.extend(stored_as("GAIN_DTYPE", self.g).into_iter().chain(stored_as("BIAS_DTYPE", self.bias)));
        EpilogueBindings {
            constants,
            buffers: vec![g.0, bias.0, norms_in.0, y.0, gates.0, beside.0],
            offsets: [y.1, gates.1],
            more_offsets: [g.1, bias.1, norms_in.1, beside.1],
            quads: false,
        }
    }

    fn scales_b(&self) -> bool {
        self.norm == NormSource::In
    }

    fn fill(&self, module: Module) -> Module {
        with_cell(module)
    }

    fn of_cells(&self) -> [u32; 2] {
        [self.next as u32, self.zeros.bits()]
    }

    fn has_no_sums(&self) -> bool {
        self.zeros.sums
    }
}

/// How w follows from v on the way back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum StepScale {
    Nothing,
    /// Of each row of the hidden weight, along the sum.
    Rows,
    /// Of each of its columns, a unit.
    Columns,
    Whole,
}

/// The end of a step back: `cell_gradient.wgsl`.
#[derive(Clone)]
pub(crate) struct StepBack<'a> {
    pub steps: Steps,
    /// The gradient of q of the step behind, `[B, G·H]`. Behind the last one another step, not to be read, as in
    /// [`Step::h`].
    pub behind: Option<&'a Tensor>,
    pub v: &'a Tensor,
    pub scale: StepScale,
    /// Scales.
    pub scales: Option<View<'a>>,
    /// dc, or what a GRU carries, `[B, H]`.
    pub carried: Option<&'a Tensor>,
    /// `[B, G·H]`. Before all steps another one's, as of what follows.
    pub gates: Option<&'a Tensor>,
    /// Of a GRU.
    pub of_hidden: Option<&'a Tensor>,
    pub dy: Option<&'a Tensor>,
    /// c, and `next` elements further c'; h of a GRU.
    pub before: Option<&'a Tensor>,
    pub next: usize,
    pub zeros: Zeros,
    /// c', where `before` has that of two steps.
    pub c_behind: Option<&'a Tensor>,
    pub c_apart: bool,
    /// Whether `behind` is what of dh comes through the weight, `[B, H]`, made before, but for scales of columns.
    pub ready: bool,
}

impl<'a> StepBack<'a> {
    /// `like`: any tensor in f32, for the type of what is not there.
    pub fn record(
        &self,
        ops: &mut Recorder<'_, '_>,
        plan: &StepPlan,
        selection: Selection,
        like: &Tensor,
    ) -> Result<(), Error> {
        let &StepBack { steps, v, scale, .. } = self;
        let step = match plan.c_apart {
            true => StepBack { c_apart: true, of_hidden: self.c_behind, next: 0, ..self.clone() },
            false => self.clone(),
        };
        let a = match step.behind {
            Some(behind) if plan.apart && !self.zeros.sums => behind,
            _ if plan.apart => return StepBack { behind: None, ..step }.end(ops, &plan.plan, like),
            _ => return step.end(ops, &plan.plan, like),
        };
        let along_sum = scale == StepScale::Rows;
        let norm = if along_sum { NormSource::In } else { NormSource::Plain };
        let (norms_in, b) = (self.scales.clone().filter(|_| along_sum), Operand { tensor: v, along_k: false });
        let apart = Apart { a, b, norm, norms_in, g: None, bias: None, columns: steps.units, selection };
        let sums = apart.record(ops, steps.batch, steps.rows())?;
        let (zeros, first) = (Zeros { sums: true, ..self.zeros }, sums.part(0, &[1, steps.units]));
        let scale = if along_sum { StepScale::Nothing } else { scale };
        StepBack { behind: Some(&sums), v: &first, scale, zeros, ready: true, ..step }.end(ops, &plan.plan, like)
    }

    fn end(&self, ops: &mut Recorder<'_, '_>, plan: &ProductPlan, like: &Tensor) -> Result<(), Error> {
        let depth = if self.ready { self.steps.units } else { self.steps.rows() };
        let product = Product {
            a: Operand { tensor: self.behind.unwrap_or(like), along_k: true },
            b: Operand { tensor: self.v, along_k: self.ready },
            c_bytes: DType::F32.size(),
            rows: self.steps.batch as u64,
            columns: self.steps.units as u64,
            depth: if self.behind.is_some() { depth as u64 } else { 0 },
            selection: Selection::default(),
            epilogue: self,
        };
        whole_sums(ops, &product, plan)
    }
}

impl<'a> Epilogue<'a> for StepBack<'a> {
    fn kernels(&self) -> [&'static Kernel; 3] {
        [&CELL_GRADIENT; 3] // whole sums alone
    }

    fn out(&self) -> DType {
        DType::F32
    }

    fn of(&self, capacities: Capacities, _: Stage, window: &ProductWindow) -> EpilogueBindings<'a> {
        let Steps { cell, units, .. } = self.steps;
        let rows = self.steps.rows();
        let scales = self.scales.as_ref().map_or((None, 0), |scales| match self.scale {
            StepScale::Nothing => (None, 0),
            StepScale::Rows => scales.bind(capacities, 0, 2 * rows as u64),
            StepScale::Columns => scales.bind(capacities, 0, 2 * units as u64),
            StepScale::Whole => scales.bind(capacities, 0, 2),
        });
        let of = |tensor: Option<&'a Tensor>, width: usize| rows_of(capacities, tensor, window, width, 0);
        let (carried, dy) = (of(self.carried, units), of(self.dy, units));
        let (gates, of_hidden) = (of(self.gates, rows), of(self.of_hidden, if self.c_apart { units } else { rows }));
        let before = rows_of(capacities, self.before, window, units, self.next);
        let of_columns = match self.scale {
            StepScale::Columns => 1,
            StepScale::Whole => 2,
            _ => 0,
        };
        let mut constants: Constants = vec![("CELL", cell.code()), ("SCALE_OF_COLUMNS", of_columns)];
        constants.extend(self.ready.then_some(("READY", 1)).into_iter().chain(self.c_apart.then_some(("C_APART", 1))));
        constants.extend(stored_as("DY_DTYPE", self.dy).into_iter().chain(stored_as("BEFORE_DTYPE", self.before)));
        EpilogueBindings {
            constants,
            buffers: vec![carried.0, of_hidden.0, scales.0, gates.0, dy.0, before.0],
            offsets: [gates.1, dy.1],
            more_offsets: [carried.1, before.1, scales.1, of_hidden.1],
            quads: false,
        }
    }

    fn scales_b(&self) -> bool {
        self.scale == StepScale::Rows
    }

    fn of_cells(&self) -> [u32; 2] {
        [self.next as u32, self.zeros.bits()]
    }

    fn has_no_sums(&self) -> bool {
        self.zeros.sums
    }
}
