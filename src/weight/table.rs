//! The table of a set of weights: what the workgroups do stands on the device, made once, an item of 64 bytes for each.
//! The items of a member are those of its own dispatches ([`Cut::item`]); what can be reached together becomes one
//! dispatch.
use std::collections::HashMap;

use crate::arguments::Arguments;
use crate::choose::{Facts, Kind as DeviceKind};
use crate::contract::Layout;
use crate::kernel::Constants;
use crate::memory::Memory;
use crate::source::Module;
use crate::weight::cut::{Cut, DIRECT, Item, KEEPS, Kind, OF_DW, OF_GAIN, OF_V, OF_W, Operand, WHOLE, unit_of};
use crate::weight::member::{Job, SetMember, SetOperator, Share};
use crate::weight::plan::{self, Problem};
use crate::weight::spread::{self, Norms};
use crate::windows::GL_WORK;
use crate::{Cost, DType, Error, Gpu, LimitError, Tensor};

pub(super) const ITEM_BYTES: u64 = 64;
/// `MIXED` of the shader: a storage type or a flag of each member's own.
const MIXED: u32 = 3;

/// The tensors that an item reaches, in the order in which its first words give their places.
const V: usize = 0;
const DW: usize = 1;
const G: usize = 2;
const SUMS: usize = 3;
const OUT: usize = 4;
/// dg where sums are made, w or dv where elements are rescaled.
const LAST: usize = 5;
const SLOTS: usize = 6;

/// All dispatches of one operator on one set.
#[derive(Debug)]
pub(super) struct Table {
    pub table: Memory,
    pub sources: Vec<Source>,
    pub stages: Vec<Stage>,
    /// Bytes of scratch memory.
    pub sums: u64,
    pub scales: u64,
    pub work: Cost,
}

/// Where a binding lies.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
pub(super) enum Source {
    Tensors(Memory),
    Sums,
    Scales,
}

/// One dispatch.
#[derive(Debug)]
pub(super) struct Stage {
    pub kind: Kind,
    pub module: Module,
    pub constants: Constants,
    windows: Windows,
    pub first: u64,
    pub count: u64,
    pub work: u64,
}

/// A part of a buffer.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub source: usize,
    pub offset: u64,
    pub size: u64,
}

type Windows = [Option<Window>; SLOTS];

impl Stage {
    /// Of the kernel's bindings behind the table.
    pub fn windows(&self) -> Vec<&Option<Window>> {
        let window = |operand: &Operand| match operand {
            Operand::V => &self.windows[V],
            Operand::Dw => &self.windows[DW],
            Operand::G if self.kind != Kind::Rescale => &self.windows[G],
            Operand::Sums => &self.windows[SUMS],
            Operand::Out | Operand::Scales => &self.windows[OUT],
            Operand::W | Operand::Beside => &self.windows[LAST],
            Operand::G | Operand::Centers | Operand::Known => &None,
        };
        self.kind.operands().iter().map(window).collect()
    }
}

/// What an item needs of a buffer: bytes `begin` to `end`. Its place is that of byte `origin`, in units of `unit`
/// bytes.
#[derive(Debug, Clone)]
struct Place {
    source: usize,
    origin: u64,
    begin: u64,
    end: u64,
    unit: u64,
}

type Places = [Option<Place>; SLOTS];

/// An item whose places are not known yet.
#[derive(Debug)]
struct Draft {
    flags: u32,
    eps: f32,
    words: [u32; 8],
    places: Places,
    /// Whether all tensors can be reached in quads.
    quads: bool,
    work: u64,
    /// log2 of its lanes, and what [`Kind::HeldRows`] has to hold.
    lane_bits: u32,
    held: u64,
}

/// Makes a table.
struct Planner {
    facts: Facts,
    sources: Vec<Source>,
    numbers: HashMap<Source, usize>,
    /// Of each [`Kind`].
    drafts: [Vec<Draft>; 6],
    /// Partial sums and norms so far. A partial sum takes as many bytes in all members.
    sums: u64,
    norms: u64,
    /// Elements of a unit.
    unit: u64,
    /// Elements of an item.
    target: u64,
}

impl Table {
    pub fn new(gpu: &Gpu, operator: SetOperator, members: &[SetMember<'_>]) -> Result<Table, Error> {
        let facts = gpu.facts();
        let mut jobs = vec![];
        for (index, member) in members.iter().enumerate() {
            let job = Job::new(member, operator).map_err(|e| e.of_member(index))?;
            jobs.push(job);
        }
        let arguments = jobs.iter().fold(Arguments::new(operator.name()), |all, job| job.arguments(all));
        let work = arguments.operations(jobs.iter().map(Job::operations).sum()).check(gpu)?;
        let elements = jobs.iter().map(|job| job.v.len() as u64).sum();
        let types = jobs.iter().flat_map(|job| [Some(job.v), job.dw, job.w]).map(|t| t.map(Tensor::dtype));
        let mut planner = Planner {
            facts,
            sources: vec![],
            numbers: HashMap::new(),
            drafts: Default::default(),
            sums: 0,
            norms: 0,
            unit: unit_of(&types.collect::<Vec<_>>()),
            target: facts.traits.elements_of_an_item(elements),
        };
        for job in &mut jobs {
            planner.add(job)?;
        }
        let (sums, scales) = (planner.sums * 16, planner.norms * 16);
        let mut table = vec![];
        let mut stages = vec![];
        for (kind, drafts) in Kind::ALL.into_iter().zip(std::mem::take(&mut planner.drafts)) {
            planner.stages(kind, operator, drafts, &mut table, &mut stages);
        }
        let bytes: &[u8] = bytemuck::cast_slice(&table);
        let size = (bytes.len() as u64).max(16);
        let table = gpu.create_written_buffer("a table", size, wgpu::BufferUsages::STORAGE, |mut all| {
            all.slice(..bytes.len()).copy_from_slice(bytes)
        })?;
        Ok(Table { table: Memory::Buffer(table), sources: planner.sources, stages, sums, scales, work })
    }
}

impl Planner {
    fn share(&self) -> Share {
        Share { unit: self.unit, target: self.target, first_sum: self.sums }
    }

    /// All items of a member.
    fn add(&mut self, job: &mut Job<'_>) -> Result<(), Error> {
        let Layout { outer, kept, inner } = job.layout;
        if outer * kept * inner > u64::from(u32::MAX) - 16 {
            let (size, limit) = (outer * kept * inner, u64::from(u32::MAX) - 16);
            return Err(LimitError::TooLarge { what: "a member of a set in elements", size, limit }.into());
        }
        let facts = self.facts;
        if let Some(cuts) = self.held_rows(facts, job) {
            cuts.iter().for_each(|cut| self.expand(job, cut));
            return Ok(());
        }
        job.first_scale = self.norms;
        self.norms += job.layout.kept;
        let plan = plan::sums(facts, &job.problem(self.share(), false))?;
        self.sums += plan.sums;
        plan.cuts.iter().for_each(|cut| self.expand(job, cut));
        if job.w.is_some() {
            let cuts = spread::rescale(facts, &job.problem(self.share(), true), Norms::Read)?;
            cuts.iter().for_each(|cut| self.expand(job, cut));
        }
        Ok(())
    }

    /// Norm and rescaling of rows that a workgroup holds. (Drivers on CPUs had better read them twice.)
    fn held_rows(&self, facts: Facts, job: &Job<'_>) -> Option<Vec<Cut>> {
        let w = job.w.filter(|w| job.dw.is_none() && job.quads && w.dtype() == job.v.dtype())?;
        let pays = facts.traits.kind == DeviceKind::Gpu;
        let problem = Problem { unit: unit_of(&[Some(w.dtype())]), ..job.problem(self.share(), true) };
        if pays { plan::held_rows(facts, &problem, w.dtype()) } else { None }
    }

    fn expand(&mut self, job: &Job<'_>, cut: &Cut) {
        for id in 0..cut.params.count.into() {
            let item = cut.item(id);
            if cut.kind == Kind::Rescale && item.elements.count == 0 {
                continue;
            }
            let places = self.places(job, cut, &item);
            self.drafts[cut.kind as usize].push(Draft {
                flags: job.flags() | cut.params.flags,
                eps: job.eps.value(),
                words: item.words,
                places,
                quads: job.quads,
                work: item.work,
                lane_bits: cut.lane_bits,
                held: cut.held,
            });
        }
    }

    fn source(&mut self, source: Source) -> usize {
        let next = self.sources.len();
        let number = *self.numbers.entry(source.clone()).or_insert(next);
        if number == next {
            self.sources.push(source);
        }
        number
    }

    fn places(&mut self, job: &Job<'_>, cut: &Cut, item: &Item) -> Places {
        let mut places = Places::default();
        let elementwise = matches!(cut.kind, Kind::Rescale | Kind::HeldRows);
        if cut.elements.count > 0 {
            places[V] = self.elements(job, Some(job.v).filter(|_| !(elementwise && job.in_place)), cut, item);
            places[DW] = self.elements(job, job.dw, cut, item);
        }
        if item.sums.count > 0 {
            let unit = if job.dw.is_some() { 16 } else { 8 };
            let source = self.source(Source::Sums);
            let (begin, end) = (item.sums.first * unit, (item.sums.first + item.sums.count) * unit);
            places[SUMS] = Some(Place { source, origin: begin, begin, end, unit });
        }
        if cut.kind == Kind::Rescale {
            // Their places count from the first norm of the cut.
            places[OUT] = Some(self.scales(job, cut.norms.first, item, 8));
        } else if item.norms.count > 0 {
            places[G] = self.of_norms(job.g, item);
            if cut.kind != Kind::HeldRows {
                places[OUT] = match job.norms {
                    Some(norms) => self.of_norms(Some(norms), item),
                    None => Some(self.scales(job, item.norms.first, item, 4)),
                };
                places[LAST] = self.of_norms(job.dg, item);
            }
        }
        if elementwise {
            places[LAST] = self.elements(job, job.w, cut, item);
        }
        places
    }

    /// What an item has of a tensor, in whole units, as far as the tensor's buffer goes.
    fn elements(&mut self, job: &Job<'_>, tensor: Option<&Tensor>, cut: &Cut, item: &Item) -> Option<Place> {
        let tensor = tensor?;
        let size = tensor.dtype().size();
        let origin = tensor.offset() + cut.elements.first * size;
        let begin = origin + item.elements.first / 8 * 8 * size;
        let end = origin + ((item.elements.first + item.elements.count) * size).next_multiple_of(32);
        let end = tensor.buffer().map_or(end, |buffer| end.min(buffer.size() / 4 * 4));
        let unit = if job.quads { 16 } else { 4 };
        let source = self.source(Source::Tensors(tensor.memory().clone()));
        (item.elements.count > 0).then_some(Place { source, origin, begin, end, unit })
    }

    /// Elements of a tensor, one for each norm.
    fn of_norms(&mut self, tensor: Option<&Tensor>, item: &Item) -> Option<Place> {
        let tensor = tensor?;
        let unit = tensor.dtype().size();
        let origin = tensor.offset() + unit * item.norms.first;
        let end = (origin + unit * item.norms.count).next_multiple_of(4);
        let source = self.source(Source::Tensors(tensor.memory().clone()));
        Some(Place { source, origin, begin: origin / 4 * 4, end, unit })
    }

    /// The scales of an item's norms, in units of so many bytes, counted from norm `first` on.
    fn scales(&mut self, job: &Job<'_>, first: u64, item: &Item, unit: u64) -> Place {
        let bytes = job.out_bytes();
        let at = |norm: u64| (job.first_scale + norm) * bytes;
        let (begin, end) = (at(item.norms.first), at(item.norms.first + item.norms.count));
        Place { source: self.source(Source::Scales), origin: at(first), begin, end, unit }
    }

    /// Dispatches for these items: one for each combination of buffers, more where a limit wants it.
    fn stages(
        &self,
        kind: Kind,
        operator: SetOperator,
        drafts: Vec<Draft>,
        table: &mut Vec<[u32; 16]>,
        stages: &mut Vec<Stage>,
    ) {
        // What an item does not need may be anything.
        let mut groups: Vec<([Option<usize>; SLOTS], bool, Vec<Draft>)> = vec![];
        for draft in drafts {
            let own = draft.places.each_ref().map(|p| p.as_ref().map(|p| p.source));
            let fits =
                |key: &[Option<usize>; SLOTS]| key.iter().zip(&own).all(|(a, b)| a.is_none() || b.is_none() || a == b);
            match groups.iter_mut().find(|(key, quads, _)| *quads == draft.quads && fits(key)) {
                Some((key, _, members)) => {
                    key.iter_mut().zip(own).for_each(|(key, own)| *key = key.or(own));
                    members.push(draft);
                }
                None => groups.push((own, draft.quads, vec![draft])),
            }
        }
        for (_, quads, members) in groups {
            let module = kind.module(true, quads);
            let mut open: Vec<Draft> = vec![];
            let mut reach: Windows = Default::default();
            let mut work = 0;
            for draft in members {
                let wider = self.widened(&reach, &draft.places);
                let holds = wider.iter().flatten().all(|w| w.size <= self.facts.capacities.whole_binding)
                    && (open.len() as u64)
                        < (self.facts.capacities.binding / ITEM_BYTES).min(self.facts.capacities.groups)
                    && (!self.facts.capacities.gl || work + draft.work <= GL_WORK);
                if holds || open.is_empty() {
                    reach = wider;
                } else {
                    let all = std::mem::take(&mut open);
                    stages.push(self.stage(kind, operator, module, all, reach, table));
                    reach = self.widened(&Default::default(), &draft.places);
                    work = 0;
                }
                work += draft.work;
                open.push(draft);
            }
            if !open.is_empty() {
                stages.push(self.stage(kind, operator, module, open, reach, table));
            }
        }
    }

    /// The windows that hold these places too.
    fn widened(&self, windows: &Windows, places: &Places) -> Windows {
        let alignment = self.facts.capacities.alignment.max(16);
        let mut wider = windows.clone();
        for (window, place) in wider.iter_mut().zip(places) {
            let Some(place) = place else { continue };
            let begin = place.begin / alignment * alignment;
            let (offset, end) = match window {
                None => (begin, place.end),
                Some(w) => (w.offset.min(begin), (w.offset + w.size).max(place.end)),
            };
            *window = Some(Window { source: place.source, offset, size: end - offset });
        }
        wider
    }

    /// Closes a dispatch: its items go to the table, with the places that its windows give them.
    fn stage(
        &self,
        kind: Kind,
        operator: SetOperator,
        module: Module,
        drafts: Vec<Draft>,
        windows: Windows,
        table: &mut Vec<[u32; 16]>,
    ) -> Stage {
        let drafts = self.facts.traits.balanced(drafts, |d| d.work);
        let constants = self.constants(kind, operator, &drafts);
        let first = table.len() as u64;
        let (count, work) = (drafts.len() as u64, drafts.iter().map(|d| d.work).sum());
        table.extend(drafts.iter().map(|draft| {
            let mut words = [0; 16];
            for ((word, place), window) in words.iter_mut().zip(&draft.places).zip(&windows) {
                if let (Some(place), Some(window)) = (place, window) {
                    // Modulo 2^32: a window may begin behind the origin.
                    *word = ((place.origin as i64 - window.offset as i64) / place.unit as i64) as u32;
                }
            }
            words[SLOTS] = draft.flags;
            words[SLOTS + 1] = draft.eps.to_bits();
            words[SLOTS + 2..].copy_from_slice(&draft.words);
            words
        }));
        Stage { kind, module, constants, windows, first, count, work }
    }

    fn constants(&self, kind: Kind, operator: SetOperator, drafts: &[Draft]) -> Constants {
        let common = |value: &dyn Fn(&Draft) -> u32| {
            let first = drafts.first().map_or(0, value);
            if drafts.iter().all(|draft| value(draft) == first) { first } else { MIXED }
        };
        let dtype = |bit: u32| common(&|draft| draft.flags >> bit & 3);
        let flag = |flag: u32| common(&|draft| (draft.flags & flag != 0).into());
        let (backward, in_place) = (operator == SetOperator::Backward, operator == SetOperator::InPlace);
        let mut constants: Constants = vec![];
        if kind != Kind::FinishSums {
            constants.push(("V_DTYPE", dtype(OF_V)));
        }
        if matches!(kind, Kind::RowSums | Kind::ColumnSums | Kind::Rescale) {
            constants.extend([("UNIT", self.unit as u32), ("ALL_WHOLE", flag(WHOLE))]);
            constants.extend(backward.then(|| ("DW_DTYPE", dtype(OF_DW))));
        }
        match kind {
            Kind::HeldRows => {
                let held = drafts.iter().map(|draft| draft.held).max().unwrap_or(1);
                constants.extend([("HELD", held as u32), ("IN_PLACE", in_place.into())]);
            }
            Kind::Rescale => {
                constants.extend([("W_DTYPE", dtype(OF_W)), ("ALL_KEEP", flag(KEEPS)), ("ACTION", backward.into())]);
                constants.push(("IN_PLACE", in_place.into()));
            }
            Kind::RowSums | Kind::ColumnSums | Kind::FinishSums | Kind::KnownNorms => {
                let scales = operator != SetOperator::RowNorms && !backward;
                constants.extend([("DOT", backward.into()), ("OUT", scales.into())]);
            }
        }
        if kind == Kind::RowSums {
            let one_lane = drafts.iter().all(|draft| draft.lane_bits == 0);
            constants.extend([("ALL_DIRECT", flag(DIRECT)), ("ONE_LANE", one_lane.into())]);
        }
        if matches!(kind, Kind::HeldRows | Kind::RowSums | Kind::FinishSums) {
            constants.extend(Some(("GAIN_DTYPE", dtype(OF_GAIN))).filter(|&(_, dtype)| dtype != DType::F32.code()));
        }
        constants
    }
}
