//! What is done to one weight, alone or in a set: its plan, and what the kernels are told of it.
use crate::choose::{Facts, Kind as DeviceKind};
use crate::contract::Layout;
use crate::kernel::Constants;
use crate::memory::Memory;
use crate::weight::item::{
    Cut, DW, G, HAS_BESIDE, HAS_GAIN, Item, KEEPS, KNOWN, Kind, LAST, OF_DW, OF_GAIN, OF_OUT, OF_POLICY, OF_V, OF_W,
    OUT, SUMS, V, WHOLE, flag, unit_of,
};
use crate::weight::place::{Place, Places, Region, Source};
use crate::weight::spread::{self, Norms};
use crate::weight::sums::{self, Plan, Problem};
use crate::{DType, Eps, Error, Tensor, WeightNorm};

/// What is written or read for each norm: OUT of `sums.wgsl`, and what else there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum NormOutput {
    Norms,
    Scales,
    Wide,
    /// Both scales of the backward pass, from the sums of products.
    Backward,
}

impl NormOutput {
    /// Bytes.
    pub fn size(self) -> u64 {
        match self {
            NormOutput::Norms => 4,
            NormOutput::Scales | NormOutput::Wide => 8,
            NormOutput::Backward => 16,
        }
    }
}

/// What is done to every element: ACTION of `rescale.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Action {
    /// w = g v / n̂
    Scale,
    /// dv, which is w, = g / n̂ (dw - dg v / d)
    Backward,
    /// w = v
    Copy,
    /// w = v - center + bias
    Center,
}

/// One weight and what is done to it. The arguments are checked.
#[derive(Debug, Clone)]
pub(crate) struct Job<'a> {
    pub layout: Layout<u64>,
    pub eps: Eps,
    /// For w, if there is one. [`Action::Backward`] is of the sums of products too.
    pub action: Action,
    pub v: &'a Tensor,
    /// Shaped as v, or with one axis before: its pieces.
    pub dw: Option<&'a Tensor>,
    /// w, or dv. Without it there are only norms.
    pub w: Option<&'a Tensor>,
    /// w is v.
    pub in_place: bool,
    /// The gains, or the bias.
    pub g: Option<&'a Tensor>,
    /// What is written or read for the norms, and where.
    pub form: NormOutput,
    pub out: Option<Region>,
    /// The norms beside `out`, or dg.
    pub beside: Option<&'a Tensor>,
    /// Effective norms that are known: no squares are summed up.
    pub known: Option<&'a Tensor>,
}

/// What the plan of a member takes from its set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Elements of a unit.
    pub unit: u64,
    /// Elements of an item.
    pub target: u64,
    /// Partial sums that other members have before.
    pub first_sum: u64,
}

/// An item, but for its places within bindings.
#[derive(Debug)]
pub(crate) struct Draft {
    pub kind: Kind,
    pub flags: u32,
    pub eps: f32,
    pub words: [u32; 8],
    pub places: Places,
    /// Whether its tensors are reached in quads.
    pub in_quads: bool,
    pub work: u64,
    unit: u64,
    lane_bits: u32,
    run_bits: u32,
    held: u64,
    full: bool,
}

impl<'a> Job<'a> {
    /// The norms of a weight, or with `w` all that [`Action::Scale`] is. A weight without elements has norms of empty
    /// rows.
    pub fn new(weight: WeightNorm<'a>) -> Result<Job<'a>, Error> {
        let WeightNorm { v, g, axis, eps, norms: known } = weight;
        let layout = Layout::new(v.shape(), axis)?;
        let layout = if layout.len() == 0 { Layout { outer: 1, inner: 0, ..layout } } else { layout }.wide();
        let (action, form) = (Action::Scale, NormOutput::Norms);
        let (dw, w, out, beside, in_place) = (None, None, None, None, false);
        Ok(Job { layout, eps, action, v, dw, w, in_place, g, form, out, beside, known })
    }

    /// With what is written for the norms in scratch memory.
    pub fn into_scratch(self, form: NormOutput, memory: &Memory) -> Job<'a> {
        Job { form, out: Some(Region { source: Source::Given(memory.clone()), offset: 0 }), ..self }
    }

    /// Its dispatches, and the partial sums that they need.
    pub fn plan(&self, facts: Facts, share: Option<Share>) -> Result<Plan, Error> {
        let held = self.held_rows(facts, share).or_else(|| self.held_gradients(facts, share, self.pieces()));
        if let Some(cuts) = held {
            return Ok(Plan { cuts, sums: 0 });
        }
        let sums = self.problem(Kind::RowSums, share);
        let mut plan = match self.action {
            Action::Copy | Action::Center => Plan { cuts: vec![], sums: 0 },
            Action::Scale if self.known.is_some() => Plan { cuts: sums::known(facts, &sums), sums: 0 },
            Action::Scale | Action::Backward => sums::sums(facts, &sums)?,
        };
        if self.w.is_some() {
            let norms = if self.action == Action::Copy { Norms::Ignored } else { Norms::Read };
            plan.cuts.extend(spread::rescale(facts, &self.problem(Kind::Rescale, share), norms)?);
        }
        Ok(plan)
    }

    /// Norm and rescaling of rows that a workgroup holds. (In a set drivers on CPUs had better read them twice.)
    fn held_rows(&self, facts: Facts, share: Option<Share>) -> Option<Vec<Cut>> {
        let w =
            self.w.filter(|w| self.action == Action::Scale && self.known.is_none() && w.dtype() == self.v.dtype())?;
        let pays = share.is_none() || facts.traits.kind == DeviceKind::Gpu;
        let problem = Problem { unit: unit_of(&[w.dtype()]), ..self.problem(Kind::HeldRows, share) };
        if pays && self.are_in_quads(Kind::HeldRows) { sums::held_rows(facts, &problem, w.dtype()) } else { None }
    }

    /// Both gradients of rows that a workgroup holds, dw being so many pieces. (Not in sets yet.)
    pub fn held_gradients(&self, facts: Facts, share: Option<Share>, pieces: u64) -> Option<Vec<Cut>> {
        let in_words = self.w.is_none_or(|dv| dv.dtype() == DType::F32);
        // Whoever asks before there is a dw gets the same answer: as if it were f32, which pieces are.
        let problem = Problem { widest: DType::F32.size(), ..self.problem(Kind::HeldGradients, share) };
        let held = || sums::held_gradients(facts, &problem, pieces, in_words);
        (self.action == Action::Backward && share.is_none()).then(held).flatten()
    }

    /// Of dw.
    fn pieces(&self) -> u64 {
        self.dw.map_or(1, |dw| dw.len() as u64 / (self.v.len() as u64).max(1))
    }

    /// What a kernel reads and writes for each element.
    fn tensors(&self, kind: Kind) -> impl Iterator<Item = &'a Tensor> {
        [Some(self.v), self.dw, self.w.filter(|_| kind.is_elementwise())].into_iter().flatten()
    }

    pub fn dtypes(&self) -> Vec<DType> {
        self.tensors(Kind::Rescale).map(Tensor::dtype).collect()
    }

    /// Whether they can be read and written in whole quads.
    fn are_in_quads(&self, kind: Kind) -> bool {
        let whole = |t: &Tensor| t.offset() + t.bytes().next_multiple_of(16) <= end_of_memory(t);
        self.tensors(kind).all(|t| t.offset().is_multiple_of(16) && whole(t))
    }

    /// Whether a dispatch reaches them so. Stretches that are not whole are read element by element.
    fn in_quads(&self, cut: &Cut) -> bool {
        let in_units = match cut.kind {
            Kind::HeldRows | Kind::Rescale => true,
            Kind::HeldGradients | Kind::RowSums | Kind::ColumnSums => cut.params.flags & WHOLE != 0,
            Kind::FinishSums | Kind::KnownNorms => false,
        };
        in_units && self.are_in_quads(cut.kind)
    }

    /// Bytes of a partial sum.
    pub fn sum_bytes(&self) -> u64 {
        if self.dw.is_some() { 16 } else { 8 }
    }

    fn problem(&self, kind: Kind, share: Option<Share>) -> Problem {
        let dtypes: Vec<_> = self.tensors(kind).map(Tensor::dtype).collect();
        Problem {
            layout: self.layout,
            widest: dtypes.iter().map(|dtype| dtype.size()).max().unwrap_or(4),
            unit: share.map_or(unit_of(&dtypes), |share| share.unit),
            norm_bytes: self.form.size(),
            sum_bytes: self.sum_bytes(),
            target: share.map(|share| share.target),
            first_sum: share.map_or(0, |share| share.first_sum),
        }
    }

    pub fn draft(&self, cut: &Cut, item: &Item) -> Draft {
        let code = |tensor: Option<&Tensor>| tensor.map_or(0, |t| t.dtype().code());
        let &Cut { kind, ref params, unit, lane_bits, run_bits, held, full, .. } = cut;
        let mut places = Places::default();
        for &slot in kind.slots() {
            places[slot] = self.place(slot, cut, item);
        }
        Draft {
            kind,
            flags: params.flags
                | self.v.dtype().code() << OF_V
                | code(self.dw) << OF_DW
                | code(self.w) << OF_W
                | self.eps.code() << OF_POLICY
                | code(self.g) << OF_GAIN
                | flag(self.g.is_some(), HAS_GAIN)
                | flag(self.beside.is_some(), HAS_BESIDE)
                | (self.form as u32) << OF_OUT,
            eps: self.eps.value(),
            words: item.words,
            places,
            in_quads: self.in_quads(cut),
            work: item.work,
            unit,
            lane_bits,
            run_bits,
            held,
            full,
        }
    }

    /// What an item needs of a slot.
    fn place(&self, slot: usize, cut: &Cut, item: &Item) -> Option<Place> {
        let elementwise = cut.kind.is_elementwise();
        let rescales = cut.kind == Kind::Rescale;
        let of_norms = |tensor: Option<&Tensor>| {
            let tensor = tensor?;
            let size = tensor.dtype().size();
            norms_of(Region::of(tensor), size, size, cut, item)
        };
        match slot {
            V if elementwise && self.in_place => None,
            V => self.elements(Some(self.v), cut, item),
            DW => self.elements(self.dw, cut, item),
            LAST if elementwise => self.elements(self.w, cut, item),
            LAST => of_norms(self.beside),
            G if rescales && self.action != Action::Center => None,
            G => of_norms(self.g),
            SUMS => {
                let (unit, part) = (self.sum_bytes(), item.sums);
                let (begin, end) = (part.first * unit, (part.first + part.count) * unit);
                (part.count > 0).then_some(Place { source: Source::Sums, origin: begin, begin, end, unit })
            }
            OUT if cut.kind == Kind::HeldGradients => of_norms(self.beside),
            OUT if self.action == Action::Center => None,
            OUT => norms_of(self.out.clone()?, self.form.size(), if rescales { 8 } else { 4 }, cut, item),
            KNOWN if self.action == Action::Center => norms_of(self.out.clone()?, 4, 4, cut, item),
            KNOWN if rescales => None,
            KNOWN => of_norms(self.known),
            _ => None,
        }
    }

    /// What an item has of a tensor, in whole units, as far as the tensor's buffer goes.
    fn elements(&self, tensor: Option<&Tensor>, cut: &Cut, item: &Item) -> Option<Place> {
        let (tensor, part) = (tensor?, item.elements);
        let size = tensor.dtype().size();
        let origin = tensor.offset() + cut.elements.first * size;
        let begin = origin + part.first / cut.unit * cut.unit * size;
        // Of pieces of dw the same of each.
        let others = tensor.len().saturating_sub(self.v.len()) as u64;
        let end = origin + ((part.first + part.count).next_multiple_of(cut.unit) + others) * size;
        let end = end.min(end_of_memory(tensor).next_multiple_of(4));
        let unit = if self.in_quads(cut) { 16 } else { 4 };
        let source = Source::Given(tensor.memory().clone());
        (part.count > 0).then_some(Place { source, origin, begin, end, unit })
    }
}

/// Bytes of the buffer that a tensor lies in, as far as they are known.
fn end_of_memory(tensor: &Tensor) -> u64 {
    match tensor.memory() {
        Memory::Buffer(buffer) => buffer.size() / 4 * 4,
        Memory::Numbered(_) => tensor.end(),
    }
}

/// What an item has of so many bytes for each norm. What is rescaled counts from the first norm of the cut on.
fn norms_of(region: Region, each: u64, unit: u64, cut: &Cut, item: &Item) -> Option<Place> {
    let part = item.norms;
    let at = |norm: u64| region.offset + norm * each;
    let origin = at(if cut.kind == Kind::Rescale { cut.norms.first } else { part.first });
    let (begin, end) = (at(part.first) / 4 * 4, at(part.first + part.count).next_multiple_of(4));
    (part.count > 0).then_some(Place { source: region.source, origin, begin, end, unit })
}

/// `MIXED` of the shaders: a storage type or a flag of each item's own.
const MIXED: u32 = 3;

/// The constants of a dispatch of these items, of one weight or of a set.
pub(crate) fn constants(job: &Job<'_>, drafts: &[Draft], in_table: bool) -> Constants {
    let Some(first) = drafts.first() else { return vec![] };
    let all = |holds: &dyn Fn(&Draft) -> bool| u32::from(drafts.iter().all(holds));
    let common = |value: &dyn Fn(&Draft) -> u32| {
        if drafts.iter().all(|draft| value(draft) == value(first)) { value(first) } else { MIXED }
    };
    let dtype = |bit: u32| common(&|draft| draft.flags >> bit & 3);
    let mut constants: Constants = vec![];
    let (kind, dot) = (first.kind, job.action == Action::Backward);
    if kind.sums_up() || kind.is_elementwise() {
        constants.push(("V_DTYPE", dtype(OF_V)));
    }
    if kind.sums_up() || matches!(kind, Kind::HeldGradients | Kind::Rescale) {
        let alone = kind == Kind::HeldGradients && first.flags & WHOLE == 0;
        constants.push(("UNIT", if alone { 1 } else { first.unit as u32 }));
        constants.extend(dot.then(|| ("DW_DTYPE", dtype(OF_DW))));
    }
    if kind.sums_up() {
        constants.push(("ALL_WHOLE", common(&|draft| u32::from(draft.flags & WHOLE != 0))));
    }
    match kind {
        Kind::HeldRows => {
            let held = drafts.iter().map(|draft| draft.held).max().unwrap_or(1);
            let full = all(&|draft| draft.full && draft.held == held);
            constants.extend([("HELD", held as u32), ("FULL", full), ("IN_PLACE", job.in_place.into())]);
        }
        Kind::HeldGradients => {
            let (known, has_dv) = (job.known.is_some().into(), job.w.is_some().into());
            constants.extend([("HELD", first.held as u32), ("KNOWN", known), ("HAS_DV", has_dv)]);
            constants.push(("W_DTYPE", dtype(OF_W)));
        }
        Kind::Rescale => {
            let keep = WHOLE | KEEPS;
            constants.extend([("W_DTYPE", dtype(OF_W)), ("ACTION", job.action as u32)]);
            constants.extend([("IN_PLACE", job.in_place.into()), ("ALL_KEEP", all(&|d| d.flags & keep == keep))]);
        }
        _ if dot => constants.extend([("DOT", 1), ("KNOWN", job.known.is_some().into())]),
        _ => {}
    }
    if kind == Kind::RowSums {
        constants.push(("ONE_LANE", all(&|draft| draft.lane_bits == 0)));
    }
    if !in_table && matches!(kind, Kind::HeldRows | Kind::HeldGradients | Kind::RowSums) {
        constants.push(("LANE_BITS", first.lane_bits));
    }
    if !in_table && (kind == Kind::RowSums || kind.is_elementwise()) {
        constants.push(("RUN_BITS", first.run_bits));
    }
    constants
}
