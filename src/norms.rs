//! Row norms: n̂_j = eps policy of sqrt(Σ v²) over all axes but one. Shader: `norms.wgsl`.
use bytemuck::Zeroable;

use crate::arguments::{Arguments, expect_per_norm};
use crate::binding::{Bound, View, bind, offsets};
use crate::choose::{self, ColumnQuads, Facts};
use crate::contract::{Layout, norms_shape, stored_as};
use crate::kernel::{Constants, kernels, params};
use crate::memory::Scratch;
use crate::record::Dispatch;
use crate::source::Module;
use crate::windows::{Capacities, MAX_ITERATIONS, windows};
use crate::{Axis, DType, Eps, Error, Gpu, Recorder, Tensor};

const SCALAR: Module = Module::new("weight/norms");
const VEC4: Module =
    Module::new("weight/norms").fill("access", "weight/access_vec4").fill("columns", "weight/columns_vec4");
pub(crate) const MODULES: [Module; 2] = [SCALAR, VEC4];

params! {
    struct Params {
        count: u32,
        length: u32,
        stride: u32,
        splits: u32,
        split_length: u32,
        split_first: u32,
        part_first: u32,
        offsets: u32,
        more_offsets: u32,
        policy: u32,
        eps: f32,
        has_gain: u32,
        has_norms_too: u32,
    }
}

/// What the kernels write for each norm; the words of it stand in `norms.wgsl`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Norms,
    Scales,
    Wide,
    /// Both scales of the backward pass, from dot products.
    Backward,
}

impl Form {
    /// f32 words for each norm.
    fn words(self) -> u64 {
        match self {
            Form::Norms => 1,
            Form::Scales | Form::Wide => 2,
            Form::Backward => 4,
        }
    }
}

/// Where the norms come from and where they go.
pub(crate) struct Job<'a> {
    pub v: &'a Tensor,
    pub axis: Axis,
    pub eps: Eps,
    /// Effective norms that are known: v is not read.
    pub known: Option<&'a Tensor>,
    /// For [`Form::Scales`].
    pub gain: Option<&'a Tensor>,
    pub form: Form,
    /// Of f32 words.
    pub out: View<'a>,
    /// The norms as f32 beside `out`, or dg of a dot product.
    pub norms_too: Option<&'a Tensor>,
    /// Dot products in the place of norms.
    pub dot: Option<Dot<'a>>,
}

/// The backward pass's sums Σ dw·v: [`Form::Backward`].
#[derive(Clone)]
pub(crate) struct Dot<'a> {
    pub dw: &'a Tensor,
    /// n̂, but n under [`Eps::After`]; f32. None only where [`Recorder::sums_whole_rows`]: there the norms are summed up beside.
    pub known: Option<View<'a>>,
    /// Add to dg.
    pub add: bool,
}

/// Invocations in a workgroup of `norms.wgsl`.
const THREADS: u64 = 64;
/// The shortest stretch worth a workgroup of its own, in elements.
const SHORTEST_STRETCH: u64 = 16_384;
/// Inner sizes from which stretches before the kept axis are summed as rows of their own; shorter ones as columns.
const ROW_FROM: u64 = 256;

impl Gpu {
    /// The effective norms n̂ of `v`, one f32 for each index of the kept axis. With [`Eps::None`] the norms themselves.
    ///
    /// ```text
    /// n_j = sqrt( Σ_{o,i} v[o,j,i]² )        n̂_j = eps policy of n_j
    /// ```
    ///
    /// `v`: any shape and storage type. Returns the shape of `v` with ones everywhere but at the kept axis.
    /// Right for any finite `v` whose norm an f32 holds; NaN and infinity stay in their row. Reference: PyTorch's
    /// `torch.linalg.vector_norm` and `_weight_norm_interface`.
    ///
    /// # Errors
    /// [`Error::Axis`], [`Error::Eps`], [`Error::OtherGpu`], [`Error::Usage`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn row_norms(&self, v: &Tensor, axis: Axis, eps: Eps) -> Result<Tensor, Error> {
        let norms = self.zeros(&norms_shape(v.shape(), axis), DType::F32)?;
        self.run(|ops| ops.row_norms_into(v, axis, eps, &norms))?;
        Ok(norms)
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::row_norms`] into `norms`: f32, of the shape returned there or flat.
    ///
    /// One dispatch, two where rows are split over workgroups or are not contiguous, more past a binding's or a
    /// dispatch's limit.
    ///
    /// # Errors
    /// As [`Gpu::row_norms`]; [`Error::Shape`], [`Error::DType`], [`Error::Alias`].
    pub fn row_norms_into(&mut self, v: &Tensor, axis: Axis, eps: Eps, norms: &Tensor) -> Result<(), Error> {
        const OP: &str = "row_norms";
        Layout::new(v.shape(), axis)?;
        eps.check()?;
        expect_per_norm(OP, "norms", norms, &norms_shape(v.shape(), axis))?;
        Arguments::new(OP).input("v", v).output("norms", norms).operations(2 * v.len() as u64).begin(self)?;
        let job = Job {
            v,
            axis,
            eps,
            known: None,
            gain: None,
            form: Form::Norms,
            out: View::of(norms),
            norms_too: None,
            dot: None,
        };
        self.norms(&job)
    }

    /// Records what `job` says; its arguments are checked.
    pub(crate) fn norms(&mut self, job: &Job<'_>) -> Result<(), Error> {
        let layout = job.layout()?;
        if job.known.is_some() {
            return self.known_norms(job, layout);
        }
        match Plan::new(self.facts(), job, layout)? {
            Plan::Rows(rows) => self.row_sums(job, layout, rows),
            Plan::Columns(columns) => self.column_sums(job, layout, columns),
        }
    }

    /// Whether the sums of this job are those of whole contiguous rows, each by one workgroup.
    pub(crate) fn sums_whole_rows(&self, job: &Job<'_>) -> Result<bool, Error> {
        let layout = job.layout()?;
        Ok(match Plan::new(self.facts(), job, layout)? {
            Plan::Rows(rows) => rows.are_whole(layout),
            Plan::Columns(_) => false,
        })
    }

    fn row_sums(&mut self, job: &Job<'_>, layout: Layout, rows: Rows) -> Result<(), Error> {
        let Facts { traits, capacities } = self.facts();
        let Layout { outer, kept, inner } = layout.wide();
        let direct = rows.are_whole(layout);
        let Rows { module, lanes, splits, split_length } = rows;
        let row_count = outer * kept;
        let sums = sums_of(self, if direct { 0 } else { row_count * splits })?;
        let mut constants: Constants =
            vec![("V_DTYPE", job.v.dtype().code()), ("DIRECT", direct.into()), ("LANES", lanes as u32)];
        constants.extend(stored_as("GAIN_DTYPE", job.gain));
        constants.push(("RUN", traits.run(lanes) as u32));
        if direct {
            constants.push(("OUT", job.form as u32));
            constants.push(("OWN_NORMS", (job.dot.is_some() && job.known_norms().is_none()).into()));
        }
        constants.extend(job.dot_constants());
        let in_binding = (capacities.binding / job.element() / split_length.max(1)).max(1);
        let in_group = THREADS / lanes;
        let in_dispatch = capacities.groups * in_group;
        let out_words = if direct { job.form.words() } else { 0 };
        let in_out = (capacities.binding / 4).checked_div(out_words).unwrap_or(u64::MAX);
        let step = in_binding.min(in_dispatch).min(in_out).min(self.work_capacity(split_length));
        let v = View::of(job.v);
        for (first, count) in windows(row_count * splits, step) {
            let (row, split) = (first / splits, first % splits);
            let begin = row * inner + split * split_length;
            let last = first + count - 1;
            let end = last / splits * inner + (last % splits * split_length + split_length).min(inner);
            let (v_span, v_first) = v.bind(capacities, begin, end - begin);
            let (dw, dw_first) = job.bind_dw(capacities, begin, end - begin);
            let out = Out::bind(capacities, job, first, if direct { count } else { 0 });
            let (part, _) = sums.bind(capacities, 0, if direct { 0 } else { row_count * splits });
            self.dispatch(&Dispatch {
                kernel: &ROW_SUMS,
                module,
                constants: &constants,
                buffers: &[v_span, out.gain.0, part, out.out.0, out.norms_too.0, dw, out.known.0],
                params: Params {
                    count: count as u32,
                    length: inner as u32,
                    splits: splits as u32,
                    split_length: split_length as u32,
                    split_first: split as u32,
                    part_first: if direct { 0 } else { first as u32 },
                    offsets: offsets([v_first, out.gain.1, out.out.1, out.norms_too.1]),
                    more_offsets: offsets([dw_first, out.known.1, 0, 0]),
                    ..params(job)
                },
                groups: count.div_ceil(in_group),
                work: end - begin,
            })?;
        }
        if direct {
            return Ok(());
        }
        let partial = Partial { a: outer, a_stride: kept * splits, j_stride: splits, b: splits };
        self.finish_sums(job, &sums, row_count * splits, partial, 0, kept)
    }

    fn column_sums(&mut self, job: &Job<'_>, layout: Layout, columns: Columns) -> Result<(), Error> {
        let Facts { traits, capacities } = self.facts();
        let Layout { outer, kept, inner } = layout.wide();
        let Columns { module, kept_step, split_length, split_step } = columns;
        let splits = outer.div_ceil(split_length);
        let sums = sums_of(self, splits * kept_step * inner)?;
        let mut constants: Constants = vec![("V_DTYPE", job.v.dtype().code())];
        constants.extend(job.dot_constants());
        let shared = if module == VEC4 {
            let shared = ColumnQuads::new(traits, kept * inner / choose::quad(job.v.dtype()));
            constants.extend([("RUN", shared.run as u32), ("COLUMN_QUADS", shared.quads as u32)]);
            Some(shared)
        } else {
            None
        };
        let v = View::of(job.v);
        for (j, j_count) in windows(kept, kept_step) {
            let count = j_count * inner;
            let blocks = shared.as_ref().map_or(count, |shared| shared.blocks);
            for (split, split_count) in windows(splits, split_step) {
                let row = split * split_length;
                let rows = (split_count * split_length).min(outer - row);
                let span = (rows - 1) * kept * inner + count;
                let (v_span, v_first) = v.bind(capacities, row * kept * inner + j * inner, span);
                let (dw, dw_first) = job.bind_dw(capacities, row * kept * inner + j * inner, span);
                let (part, _) = sums.bind(capacities, 0, splits * count);
                self.dispatch(&Dispatch {
                    kernel: &COLUMN_SUMS,
                    module,
                    constants: &constants,
                    buffers: &[v_span, part, dw],
                    params: Params {
                        count: count as u32,
                        length: rows as u32,
                        stride: (kept * inner) as u32,
                        splits: split_count as u32,
                        split_length: split_length as u32,
                        part_first: (split * count) as u32,
                        offsets: offsets([v_first, 0, 0, 0]),
                        more_offsets: offsets([dw_first, 0, 0, 0]),
                        ..params(job)
                    },
                    groups: (blocks * split_count).div_ceil(THREADS),
                    work: rows * count,
                })?;
            }
            let partial = Partial { a: splits, a_stride: count, j_stride: inner, b: inner };
            self.finish_sums(job, &sums, splits * count, partial, j, j_count)?;
        }
        Ok(())
    }

    /// Norms `j_first` .. of the partial sums; the first of these sums belongs to norm `j_first`.
    fn finish_sums(
        &mut self,
        job: &Job<'_>,
        sums: &View<'_>,
        sum_count: u64,
        partial: Partial,
        j_first: u64,
        j_count: u64,
    ) -> Result<(), Error> {
        let Facts { traits, capacities } = self.facts();
        let each = partial.a * partial.b;
        // As many as can add up all of them, plainly and then with exponents.
        let least = each.div_ceil(MAX_ITERATIONS / 2).next_power_of_two();
        let lanes = traits.lanes(j_count, each).max(least);
        let mut constants: Constants =
            vec![("LANES", lanes as u32), ("DOT", job.dot.is_some().into()), ("OUT", job.form as u32)];
        constants.extend(stored_as("GAIN_DTYPE", job.gain));
        let in_out = capacities.binding / (4 * job.form.words());
        let step = in_out.min(capacities.groups * (THREADS / lanes));
        for (j, count) in windows(j_count, step) {
            let out = Out::bind(capacities, job, j_first + j, count);
            let (part, _) = sums.bind(capacities, 0, sum_count);
            self.dispatch(&Dispatch {
                kernel: &FINISH_SUMS,
                module: SCALAR,
                constants: &constants,
                buffers: &[out.gain.0, part, out.out.0, out.norms_too.0, out.known.0],
                params: Params {
                    count: count as u32,
                    length: partial.a as u32,
                    stride: partial.a_stride as u32,
                    splits: partial.j_stride as u32,
                    split_length: partial.b as u32,
                    part_first: (j * partial.j_stride) as u32,
                    offsets: offsets([0, out.gain.1, out.out.1, out.norms_too.1]),
                    more_offsets: offsets([0, out.known.1, 0, 0]),
                    ..params(job)
                },
                groups: count.div_ceil(THREADS / lanes),
                work: count * each,
            })?;
        }
        Ok(())
    }

    fn known_norms(&mut self, job: &Job<'_>, layout: Layout) -> Result<(), Error> {
        let capacities = self.facts().capacities;
        let Some(known) = job.known else { return Ok(()) };
        let kept = layout.wide().kept;
        let step = (capacities.binding / (4 * job.form.words())).min(capacities.groups * THREADS);
        let mut constants: Constants = vec![("OUT", job.form as u32)];
        constants.extend(stored_as("GAIN_DTYPE", job.gain));
        for (j, count) in windows(kept, step) {
            let out = Out::bind(capacities, job, j, count);
            let (known, known_first) = View::of(known).bind(capacities, j, count);
            self.dispatch(&Dispatch {
                kernel: &KNOWN_NORMS,
                module: SCALAR,
                constants: &constants,
                buffers: &[out.gain.0, out.out.0, out.norms_too.0, known],
                params: Params {
                    count: count as u32,
                    offsets: offsets([0, out.gain.1, out.out.1, out.norms_too.1]),
                    more_offsets: offsets([0, known_first, 0, 0]),
                    ..params(job)
                },
                groups: count.div_ceil(THREADS),
                work: count,
            })?;
        }
        Ok(())
    }
}

fn sums_of(ops: &mut Recorder<'_, '_>, count: u64) -> Result<View<'static>, Error> {
    Ok(View::scratch(ops.scratch(Scratch::Sums, count * 8)?, 8))
}

fn params(job: &Job<'_>) -> Params {
    Params {
        policy: job.eps.code(),
        eps: job.eps.value(),
        has_gain: job.gain.is_some().into(),
        has_norms_too: match (job.norms_too, &job.dot) {
            (None, _) => 0,
            (Some(_), Some(dot)) if dot.add => 2,
            (Some(_), _) => 1,
        },
        ..Params::zeroed()
    }
}

impl<'a> Job<'a> {
    fn dot_constants(&self) -> Constants {
        let dw = |dot: &Dot<'_>| vec![("DOT", 1), ("W_DTYPE", dot.dw.dtype().code())];
        self.dot.as_ref().map_or(vec![], dw)
    }

    fn layout(&self) -> Result<Layout, Error> {
        let layout = Layout::new(self.v.shape(), self.axis)?;
        // Norms over nothing are norms of empty rows.
        Ok(if layout.len() == 0 { Layout { outer: 1, inner: 0, ..layout } } else { layout })
    }

    /// Of a dot product.
    fn known_norms(&self) -> Option<&View<'a>> {
        self.dot.as_ref().and_then(|dot| dot.known.as_ref())
    }

    fn bind_dw(&self, capacities: Capacities, first: u64, count: u64) -> Bound<'a> {
        self.dot.as_ref().map_or((None, 0), |dot| View::of(dot.dw).bind(capacities, first, count))
    }

    /// How v and dw can be read, where `length` elements lie together.
    fn module(&self, length: u64) -> Module {
        let dw = self.dot.as_ref().map(|dot| dot.dw);
        let quads = choose::in_quads(dw.into_iter().chain([self.v]), length);
        if quads { VEC4 } else { SCALAR }
    }

    /// Bytes of the widest element that is read.
    fn element(&self) -> u64 {
        self.v.dtype().size().max(self.dot.as_ref().map_or(0, |dot| dot.dw.dtype().size()))
    }
}

/// The part of the outputs, of g and of known norms that belongs to some norms.
struct Out<'a> {
    gain: Bound<'a>,
    out: Bound<'a>,
    norms_too: Bound<'a>,
    known: Bound<'a>,
}

impl<'a> Out<'a> {
    fn bind(capacities: Capacities, job: &Job<'a>, j: u64, count: u64) -> Out<'a> {
        let words = job.form.words();
        Out {
            gain: bind(capacities, job.gain, j, count),
            out: job.out.bind(capacities, j * words, count * words),
            norms_too: bind(capacities, job.norms_too, j, count),
            known: job.known_norms().map_or((None, 0), |known| known.bind(capacities, j, count)),
        }
    }
}

/// Where the partial sums of norm j lie: a_stride * 0 .. a, j_stride * j, 0 .. b.
struct Partial {
    a: u64,
    a_stride: u64,
    j_stride: u64,
    b: u64,
}

/// How a tensor's norms are summed up.
#[derive(Debug, PartialEq)]
enum Plan {
    Rows(Rows),
    Columns(Columns),
}

/// outer * kept rows of `inner` contiguous elements, each in `splits` stretches.
#[derive(Debug, PartialEq)]
struct Rows {
    module: Module,
    lanes: u64,
    splits: u64,
    split_length: u64,
}

/// kept * inner columns of `outer` elements, `kept_step` norms at a time, in stretches of `split_length` rows, of which
/// one dispatch takes `split_step`.
#[derive(Debug, PartialEq)]
struct Columns {
    module: Module,
    kept_step: u64,
    split_length: u64,
    split_step: u64,
}

impl Plan {
    fn new(facts: Facts, job: &Job<'_>, layout: Layout) -> Result<Plan, Error> {
        let Layout { outer, kept, inner } = layout.wide();
        let capacities = facts.capacities;
        let in_binding = capacities.binding / job.element();
        let sums_in_binding = capacities.binding / 8;
        // Four elements of a dot product take a turn of a loop, eight where it has to be formed again, which takes them one by
        // one in a loop within a loop, and one for the squares beside it: ten of the twelve that 2 * passes leaves.
        let passes = if job.dot.is_some() { 6 } else { 2 };
        let rows = Rows::new(facts, job, outer * kept, inner, in_binding, passes);
        let rows_fit = outer * kept * rows.splits <= sums_in_binding && fits(outer * rows.splits);
        if outer == 1 || (inner >= ROW_FROM && rows_fit) {
            if !rows_fit && rows.splits > 1 {
                return Err(Error::TooLarge {
                    what: "partial sums in a binding",
                    size: outer * kept * rows.splits,
                    limit: sums_in_binding,
                });
            }
            return Ok(Plan::Rows(rows));
        }
        Columns::new(facts, job, layout.wide(), in_binding, sums_in_binding, passes).map(Plan::Columns)
    }
}

/// Whether one norm's partial sums can be added up by one workgroup.
fn fits(sums: u64) -> bool {
    sums.div_ceil(THREADS) <= MAX_ITERATIONS / 2
}

impl Rows {
    /// Whether each row is one norm's, summed up in one stretch.
    fn are_whole(&self, layout: Layout) -> bool {
        self.splits == 1 && layout.outer == 1
    }

    /// `passes`: how often a stretch is looped over, four words at a time.
    fn new(Facts { traits, .. }: Facts, job: &Job<'_>, rows: u64, length: u64, in_binding: u64, passes: u64) -> Rows {
        let module = job.module(length);
        let unit = match (module, &job.dot) {
            (m, _) if m == VEC4 => choose::quad(job.v.dtype()),
            (_, Some(_)) => 1,
            (_, None) => job.v.dtype().per_word(),
        };
        let useful = length.div_ceil(SHORTEST_STRETCH).min(traits.enough_groups().div_ceil(rows.max(1)));
        let lanes = traits.lanes(rows * useful.max(1), length.div_ceil(unit));
        let longest = (MAX_ITERATIONS / (2 * passes) * 4 * lanes).min(in_binding).max(1);
        let splits = length.div_ceil(longest).max(useful).max(1);
        // Whole quads, so that no stretch starts in the middle of one unless its row does.
        let whole = unit.max(choose::quad(job.v.dtype()));
        let longest = (longest / whole * whole).max(1);
        let split_length = length.div_ceil(splits).next_multiple_of(whole).min(longest);
        Rows { module, lanes, splits: length.div_ceil(split_length.max(1)).max(1), split_length }
    }
}

impl Columns {
    fn new(
        Facts { traits, capacities }: Facts,
        job: &Job<'_>,
        layout: Layout<u64>,
        in_binding: u64,
        sums_in_binding: u64,
        passes: u64,
    ) -> Result<Columns, Error> {
        let Layout { outer, kept, inner } = layout;
        let columns = kept * inner;
        let group_capacity = capacities.groups;
        // All columns in one window, since another one might start within a quad.
        let module = if columns <= in_binding { job.module(columns) } else { SCALAR };
        let (blocks, passes) = match module {
            // In quads each column of an invocation may have to be summed up again.
            VEC4 => {
                let quad = choose::quad(job.v.dtype());
                let shared = ColumnQuads::new(traits, columns / quad);
                (shared.blocks, (quad + 2) * shared.quads + 2)
            }
            _ => (columns, passes),
        };
        let rows_in_binding = (in_binding / columns).max(1);
        let useful = (traits.enough_groups() * THREADS).div_ceil(blocks).min(outer.div_ceil(16)).max(1);
        let split_length = outer.div_ceil(useful).min(MAX_ITERATIONS / passes).min(rows_in_binding);
        let splits = outer.div_ceil(split_length);
        let kept_step =
            kept.min(in_binding / inner).min(sums_in_binding / (splits * inner)).min(group_capacity * THREADS / inner);
        let module = if kept_step == kept { module } else { SCALAR };
        let blocks = if module == SCALAR { kept_step.max(1) * inner } else { blocks };
        let split_step = (rows_in_binding / split_length).min(group_capacity * THREADS / blocks);
        if kept_step == 0 || split_step == 0 || !fits(splits * inner) {
            let (size, limit) = (splits * inner, sums_in_binding);
            return Err(Error::TooLarge { what: "partial sums of one norm", size, limit });
        }
        // A GL dispatch stays short: its rows are few, or its columns.
        let split_step = if capacities.gl {
            split_step.min((crate::windows::GL_WORK / (split_length * kept_step * inner)).max(1))
        } else {
            split_step
        };
        Ok(Columns { module, kept_step, split_length, split_step })
    }
}

kernels! {
    ROW_SUMS = "weight/norms" "row_sums", Some(THREADS), Params,
        [0 Read, 1 Read, 2 Write, 3 Write, 4 Write, 5 Read, 6 Read];
    COLUMN_SUMS = "weight/norms" "column_sums", Some(THREADS), Params, [0 Read, 2 Write, 5 Read];
    FINISH_SUMS = "weight/norms" "finish_sums", Some(THREADS), Params, [1 Read, 2 Write, 3 Write, 4 Write, 6 Read];
    KNOWN_NORMS = "weight/norms" "known_norms", Some(THREADS), Params, [1 Read, 3 Write, 4 Write, 6 Read];
}
