//! Rescaling: w = g·v/n̂, and the way back. Shader: `normalize.wgsl`.
use crate::arguments::{Arguments, expect_gain, expect_per_norm, expect_shape};
use crate::binding::{View, bind, offsets};
use crate::choose::{self, Facts, HeldRows, Pieces};
use crate::contract::{Layout, norms_shape, stored_as};
use crate::kernel::{Constants, Kernel, kernels, params};
use crate::memory::Scratch;
use crate::norms::{Form, Job};
use crate::record::Dispatch;
use crate::source::Module;
use crate::windows::windows;
use crate::{Axis, DType, Eps, Error, Gpu, Recorder, Tensor};

const WORDS: Module = Module::new("weight/normalize");
const QUADS: Module = Module::new("weight/normalize_quads");
const ROWS: Module = Module::new("weight/normalize_rows");
pub(crate) const MODULES: [Module; 3] = [WORDS, QUADS, ROWS];

params! {
    struct Params {
        count: u32,
        inner: u32,
        kept: u32,
        position: u32,
        skip: u32,
        scale_first: u32,
        offsets: u32,
    }
}

params! {
    /// Of `normalize_quads.wgsl`.
    struct QuadParams {
        row: u32,
        tasks: u32,
        count: u32,
        run: u32,
        each: u32,
        inner: u32,
        kept: u32,
        position: u32,
        offsets: u32,
    }
}

params! {
    /// Of `normalize_rows.wgsl`.
    struct RowParams {
        count: u32,
        length: u32,
        offsets: u32,
        policy: u32,
        eps: f32,
        has_gain: u32,
    }
}

/// A weight in two parts, w = g·v/n̂: direction v, gain g, the kept axis and the eps policy.
///
/// ```
/// # use weightnorm::{Axis, Eps, Tensor, WeightNorm};
/// # fn weights(v: Tensor, g: Tensor) {
/// let weight = WeightNorm::new(&v, &g); // axis 0, clamp 1e-12
/// let weight = WeightNorm::new(&v, &g).axis(Axis::Whole).eps(Eps::None);
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct WeightNorm<'a> {
    pub(crate) v: &'a Tensor,
    pub(crate) g: Option<&'a Tensor>,
    pub(crate) axis: Axis,
    pub(crate) eps: Eps,
    pub(crate) norms: Option<&'a Tensor>,
}

impl<'a> WeightNorm<'a> {
    /// Kept axis 0, eps policy clamp 1e-12. `g`: any storage type, one for each index of the kept axis, flat or
    /// with ones as in PyTorch.
    pub fn new(v: &'a Tensor, g: &'a Tensor) -> Self {
        WeightNorm { g: Some(g), ..WeightNorm::unit(v) }
    }

    /// Without a gain: w = v/n̂, rows of norm 1.
    pub fn unit(v: &'a Tensor) -> Self {
        WeightNorm { v, g: None, axis: Axis::default(), eps: Eps::default(), norms: None }
    }

    /// Another kept axis.
    pub fn axis(self, axis: Axis) -> Self {
        WeightNorm { axis, ..self }
    }

    /// Another eps policy.
    pub fn eps(self, eps: Eps) -> Self {
        WeightNorm { eps, ..self }
    }

    /// Effective norms that are known from an earlier call with the same v: no norm is computed. f32, shaped as g.
    /// A norm beyond the range of f32 cannot be handed over like this.
    pub fn norms(self, norms: &'a Tensor) -> Self {
        WeightNorm { norms: Some(norms), ..self }
    }

    /// Operations of [`Gpu::normalize`].
    fn operations(&self) -> u64 {
        self.norms_operations() + self.v.len() as u64
    }

    /// Operations for the norms, unless they are known.
    pub(crate) fn norms_operations(&self) -> u64 {
        if self.norms.is_some() { 0 } else { 2 * self.v.len() as u64 }
    }

    pub(crate) fn check(&self, op: &'static str) -> Result<(), Error> {
        Layout::new(self.v.shape(), self.axis)?;
        self.eps.check()?;
        let shape = norms_shape(self.v.shape(), self.axis);
        self.g.map_or(Ok(()), |g| expect_gain(op, "g", g, &shape))?;
        self.norms.map_or(Ok(()), |norms| expect_per_norm(op, "norms", norms, &shape))
    }
}

impl Gpu {
    /// The normalized weight.
    ///
    /// ```text
    /// w = g·(v/n̂)        without g: v/n̂
    /// ```
    ///
    /// Returns shape and storage type of v. Right wherever w is representable, over the whole range of f32. A zero row
    /// gives 0, under [`Eps::None`] NaN. Reference: PyTorch's `weight_norm`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`] if g or the norms do not fit; [`Error::Axis`], [`Error::Eps`],
    /// [`Error::OtherGpu`], [`Error::Usage`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn normalize(&self, weight: WeightNorm<'_>) -> Result<Tensor, Error> {
        let w = self.zeros(weight.v.shape(), weight.v.dtype())?;
        self.run(|ops| ops.normalize_into(weight, &w))?;
        Ok(w)
    }

    /// [`Gpu::normalize`] with w in v's place. Without g this is the projection V ← V/‖V‖ after an optimizer step.
    ///
    /// # Errors
    /// As [`Gpu::normalize`].
    pub fn normalize_in_place(&self, weight: WeightNorm<'_>) -> Result<(), Error> {
        self.run(|ops| ops.normalize_in_place(weight))
    }

    /// Splits an ordinary weight into (v, g): v = w, g = n̂, so that [`Gpu::normalize`] of them, with the same axis and
    /// policy, gives w back. This is how frameworks attach weight normalization to a layer.
    ///
    /// v has w's storage type, g is f32 in the norms' shape. Where n̂ = 0 ([`Eps::None`] and a zero row) w comes back
    /// as NaN.
    ///
    /// # Errors
    /// As [`Gpu::row_norms`].
    pub fn split(&self, w: &Tensor, axis: Axis, eps: Eps) -> Result<(Tensor, Tensor), Error> {
        let v = self.zeros(w.shape(), w.dtype())?;
        let g = self.zeros(&norms_shape(w.shape(), axis), DType::F32)?;
        self.run(|ops| ops.split_into(w, axis, eps, &v, &g))?;
        Ok((v, g))
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::normalize`] into `w`: the shape of v, any storage type.
    ///
    /// One dispatch more than [`Recorder::row_norms_into`], or two with known norms. One in all where a workgroup can
    /// hold its rows: contiguous (kept axis 0), of whole 16 bytes and at most 16 KiB, in a v and w that start at multiples
    /// of 16 bytes and have one storage type. On a CPU only small tensors, and short rows, of which a few, up to 8, have to fill
    /// whole 16 bytes, and as many have to divide the rows.
    ///
    /// # Errors
    /// As [`Gpu::normalize`]; [`Error::Alias`].
    pub fn normalize_into(&mut self, weight: WeightNorm<'_>, w: &Tensor) -> Result<(), Error> {
        const OP: &str = "normalize";
        weight.check(OP)?;
        expect_shape(OP, "w", w, weight.v.shape())?;
        Arguments::new(OP)
            .input("v", weight.v)
            .input("g", weight.g)
            .input("norms", weight.norms)
            .output("w", w)
            .operations(weight.operations())
            .begin(self)?;
        if self.normalize_rows(weight, Some(weight.v), w)? {
            return Ok(());
        }
        let scales = self.scales(weight, Form::Scales, None)?;
        self.rescale(Some(weight.v), w, Some((&scales, weight.axis)))
    }

    /// Records [`Gpu::normalize_in_place`]. The dispatches are those of [`Recorder::normalize_into`].
    ///
    /// # Errors
    /// As [`Gpu::normalize`]; [`Error::Alias`] if g or the norms share v's buffer.
    pub fn normalize_in_place(&mut self, weight: WeightNorm<'_>) -> Result<(), Error> {
        const OP: &str = "normalize_in_place";
        weight.check(OP)?;
        Arguments::new(OP)
            .input("g", weight.g)
            .input("norms", weight.norms)
            .output_onto(true, "v", weight.v)
            .operations(weight.operations())
            .begin(self)?;
        if self.normalize_rows(weight, None, weight.v)? {
            return Ok(());
        }
        let scales = self.scales(weight, Form::Scales, None)?;
        self.rescale(None, weight.v, Some((&scales, weight.axis)))
    }

    /// Records [`Gpu::split`] into `v`, of w's shape and storage type, and `g`, any storage type, in the norms' shape or flat.
    ///
    /// One dispatch more than [`Recorder::row_norms_into`], two where g is not f32.
    ///
    /// # Errors
    /// As [`Gpu::row_norms`]; [`Error::Shape`], [`Error::DType`], [`Error::Alias`], [`Error::Overlap`].
    pub fn split_into(&mut self, w: &Tensor, axis: Axis, eps: Eps, v: &Tensor, g: &Tensor) -> Result<(), Error> {
        const OP: &str = "split";
        Layout::new(w.shape(), axis)?;
        eps.check()?;
        expect_shape(OP, "v", v, w.shape())?;
        crate::arguments::expect_dtype(OP, "v", v, w.dtype())?;
        expect_gain(OP, "g", g, &norms_shape(w.shape(), axis))?;
        Arguments::new(OP).input("w", w).output("v", v).output("g", g).operations(2 * w.len() as u64).begin(self)?;
        crate::vectors::in_f32(self, (false, true), [Some(g)], |ops, [norms]| {
            ops.nested(|ops| ops.row_norms_into(w, axis, eps, norms.unwrap_or(g)))
        })?;
        self.copy(w, v)
    }

    /// The norms of a weight in scratch memory, as scales or wide numbers. The weight is checked.
    pub(crate) fn scales(
        &mut self,
        weight: WeightNorm<'_>,
        form: Form,
        norms_too: Option<&Tensor>,
    ) -> Result<View<'static>, Error> {
        let kept = Layout::new(weight.v.shape(), weight.axis)?.wide().kept;
        let out = View::scratch(self.scratch(Scratch::Scales, kept * 8)?, 4);
        self.norms(&Job {
            v: weight.v,
            axis: weight.axis,
            eps: weight.eps,
            known: weight.norms,
            gain: weight.g.filter(|_| form == Form::Scales),
            form,
            out: out.clone(),
            norms_too,
            dot: None,
        })?;
        Ok(out)
    }

    /// Norm and rescaling in one dispatch, if that can be: whether it was recorded. Without v it is w.
    fn normalize_rows(&mut self, weight: WeightNorm<'_>, v: Option<&Tensor>, w: &Tensor) -> Result<bool, Error> {
        let Facts { traits, capacities } = self.facts();
        let Layout { outer, kept, inner } = Layout::new(w.shape(), weight.axis)?.wide();
        if outer != 1 || kept == 0 || weight.norms.is_some() {
            return Ok(false);
        }
        let quads = inner / choose::quad(w.dtype());
        let held = traits.held_rows(kept, quads).filter(|_| choose::in_quads(v.into_iter().chain([w]), inner));
        let Some(HeldRows { threads, lanes, held }) = held else { return Ok(false) };
        let in_group = threads / lanes;
        let in_binding = (capacities.binding / (inner * w.dtype().size())).min(capacities.binding / 4);
        let step = in_binding.min(capacities.groups * in_group).min(self.work_capacity(inner));
        if step == 0 {
            return Ok(false);
        }
        let mut constants: Constants = vec![
            ("V_DTYPE", w.dtype().code()),
            ("THREADS", threads as u32),
            ("LANES", lanes as u32),
            ("RUN", traits.run(lanes) as u32),
            ("HELD", held as u32),
            ("WHOLE", (quads == lanes * held).into()),
            ("IN_PLACE", v.is_none().into()),
        ];
        constants.extend(stored_as("GAIN_DTYPE", weight.g));
        for (row, count) in windows(kept, step) {
            let (v_span, v_first) = bind(capacities, v, row * inner, count * inner);
            let (w_span, w_first) = bind(capacities, Some(w), row * inner, count * inner);
            let (gain, gain_first) = bind(capacities, weight.g, row, count);
            self.dispatch(&Dispatch {
                kernel: &NORMALIZE_ROWS,
                module: ROWS,
                constants: &constants,
                buffers: &[v_span, gain, w_span],
                params: RowParams {
                    count: count as u32,
                    length: quads as u32,
                    offsets: offsets([v_first, w_first, gain_first, 0]),
                    policy: weight.eps.code(),
                    eps: weight.eps.value(),
                    has_gain: weight.g.is_some().into(),
                },
                groups: count.div_ceil(in_group),
                work: count * inner,
            })?;
        }
        Ok(true)
    }

    /// `to` = `from`, rounded to its storage type.
    pub(crate) fn copy(&mut self, from: &Tensor, to: &Tensor) -> Result<(), Error> {
        self.rescale(Some(from), to, None)
    }

    /// w by the scale of each norm, or a copy. Without v it is w.
    fn rescale(&mut self, v: Option<&Tensor>, w: &Tensor, scales: Option<(&View<'_>, Axis)>) -> Result<(), Error> {
        let (axis, does) = match scales {
            Some((scales, axis)) => (axis, Does::Scale(scales)),
            None => (Axis::Whole, Does::Copy),
        };
        self.elementwise(&Elementwise { does, v, w, axis })
    }

    /// dv from dw and the two scales of each norm.
    pub(crate) fn rescale_backward(
        &mut self,
        dw: &Tensor,
        weight: WeightNorm<'_>,
        scales: &View<'_>,
        dv: &Tensor,
        add: bool,
    ) -> Result<(), Error> {
        let does = Does::Backward { dw, scales, add };
        self.elementwise(&Elementwise { does, v: Some(weight.v), w: dv, axis: weight.axis })
    }

    /// y = t - centers + bias, one of each for an index of the last axis, four words at once, if that can be: whether it was
    /// recorded. (Word by word: `batch_words.wgsl`.)
    pub(crate) fn center_in_quads(
        &mut self,
        t: &Tensor,
        centers: &View<'_>,
        bias: Option<&View<'_>>,
        y: &Tensor,
    ) -> Result<bool, Error> {
        let does = Does::Center { centers, bias };
        self.in_quads(&Elementwise { does, v: Some(t), w: y, axis: Axis::Kept(t.shape().len() - 1) })
    }

    fn elementwise(&mut self, job: &Elementwise<'_>) -> Result<(), Error> {
        if self.in_quads(job)? { Ok(()) } else { self.in_words(job) }
    }

    fn in_words(&mut self, job: &Elementwise<'_>) -> Result<(), Error> {
        let capacities = self.facts().capacities;
        let &Elementwise { ref does, v, w, axis } = job;
        let [kernel, _] = does.kernels(v.is_none());
        let (dw, scales, words) = (does.dw(), does.of_norms(), does.words());
        let layout = Layout::new(w.shape(), axis)?;
        if layout.len() == 0 {
            return Ok(());
        }
        let total = layout.len() as u64;
        let Layout { kept, inner, .. } = layout.wide();
        let dtype = |tensor: Option<&Tensor>| tensor.map_or(w.dtype(), Tensor::dtype);
        let mut constants: Constants = vec![("V_DTYPE", dtype(v).code()), ("W_DTYPE", w.dtype().code())];
        constants.extend(does.constants());
        if dw.is_some() {
            constants.push(("G_DTYPE", dtype(dw).code()));
        }
        let element = [dtype(v), dtype(dw), w.dtype()].map(DType::size).into_iter().max().unwrap_or(4);
        let step = capacities.binding / element;
        let step = step.min(capacities.groups * GROUP).min(self.work_capacity(1));
        // Where their scales do not fit one binding, a window holds neighbouring norms only.
        let scales_in_binding = capacities.binding / (4 * words);
        let (slab, step) = if kept > scales_in_binding {
            (kept * inner, step.min((scales_in_binding - 2).saturating_mul(inner)))
        } else {
            (total, step)
        };
        // Whole words, with one element left for the half that a window skips.
        let step = (step.max(3) - 1) / 2 * 2;
        let slabs = (0..total / slab).map(|i| i * slab);
        for (e, count) in slabs.flat_map(|e| windows(slab, step).map(move |(first, count)| (e + first, count))) {
            let (j_first, j_count) = if kept > scales_in_binding {
                let (first, last) = (e / inner, (e + count - 1) / inner);
                (first % kept, last - first + 1)
            } else {
                (0, kept)
            };
            // A window that starts within a word of w starts with it, and skips the half that is not its own.
            let skip = e % w.dtype().per_word();
            let (e, count) = (e - skip, count + skip);
            let (v_span, v_first) = bind(capacities, v, e, count);
            let (w_span, w_first) = bind(capacities, Some(w), e, count);
            let (dw_span, dw_first) = bind(capacities, dw, e, count);
            let (scales, scales_first) =
                scales.map_or((None, 0), |scales| scales.bind(capacities, words * j_first, words * j_count));
            let mut buffers = vec![scales, w_span];
            if v.is_some() {
                buffers.insert(0, v_span);
            }
            if dw.is_some() {
                buffers.push(dw_span);
            }
            self.dispatch(&Dispatch {
                kernel,
                module: WORDS,
                constants: &constants,
                buffers: &buffers,
                params: Params {
                    count: count as u32,
                    inner: inner as u32,
                    kept: kept as u32,
                    position: ((e + skip) % (kept * inner)) as u32,
                    skip: skip as u32,
                    scale_first: j_first as u32,
                    offsets: offsets([v_first, w_first, scales_first, dw_first]),
                },
                groups: count.div_ceil(GROUP),
                work: count,
            })?;
        }
        Ok(())
    }

    /// The job four words at once, if that can be: whether it was recorded.
    fn in_quads(&mut self, job: &Elementwise<'_>) -> Result<bool, Error> {
        let Facts { traits, capacities } = self.facts();
        let &Elementwise { ref does, v, w, axis } = job;
        let [_, kernel] = does.kernels(v.is_none());
        let (dw, scales, words) = (does.dw(), does.of_norms(), does.words());
        let layout = Layout::new(w.shape(), axis)?;
        let total = layout.len() as u64;
        let Layout { outer, kept, inner } = layout.wide();
        let tensors = v.into_iter().chain(dw).chain([w]);
        let quad = choose::quad(w.dtype());
        // Along rows of one norm each, or down the rows of a matrix.
        let one_norm = choose::in_quads(tensors.clone(), inner);
        let along = one_norm && !traits.goes_down(outer, inner / quad);
        if !along && !choose::in_quads(tensors, kept * inner) {
            return Ok(false);
        }
        let row = if along { inner } else { kept * inner };
        if total == 0 || kept > capacities.binding / (4 * words) {
            return Ok(false);
        }
        let Pieces { run, each } =
            if along { traits.pieces(row / quad) } else { traits.pieces_down(outer, row / quad) };
        // Down the rows, all there is counts as one row.
        let row = if along { row } else { total };
        let tasks = |row: u64| (row / quad).div_ceil(run * each) * run;
        let step = (capacities.binding / w.dtype().size()).min(self.work_capacity(1));
        let most_tasks = capacities.groups * THREADS;
        // Whole rows in a window, or windows within each row, which are rows of their own.
        let (slab, step) = if row <= step {
            (total, (step / row).min(most_tasks / tasks(row)) * row)
        } else {
            (row, step.min(most_tasks.saturating_sub(run) * each * quad) / quad * quad)
        };
        if step == 0 {
            return Ok(false);
        }
        let mut constants: Constants = vec![("V_DTYPE", w.dtype().code()), ("ONE_EACH", one_norm.into())];
        constants.extend(does.constants());
        let slabs = (0..total / slab).map(|i| i * slab);
        for (e, count) in slabs.flat_map(|e| windows(slab, step).map(move |(first, count)| (e + first, count))) {
            let row = row.min(count);
            let (v_span, v_first) = bind(capacities, v, e, count);
            let (w_span, w_first) = bind(capacities, Some(w), e, count);
            let (dw_span, dw_first) = bind(capacities, dw, e, count);
            let (scales, scales_first) = scales.map_or((None, 0), |scales| scales.bind(capacities, 0, words * kept));
            let (bias, bias_first) = does.bias().map_or((None, 0), |bias| bias.bind(capacities, 0, kept));
            let buffers = match (v, dw) {
                (None, _) => vec![scales, w_span, bias],
                (_, None) => vec![v_span, scales, w_span, bias],
                _ => vec![v_span, scales, w_span, dw_span, bias],
            };
            self.dispatch(&Dispatch {
                kernel,
                module: QUADS,
                constants: &constants,
                buffers: &buffers,
                params: QuadParams {
                    row: (row / quad) as u32,
                    tasks: tasks(row) as u32,
                    count: (count / row) as u32,
                    run: run as u32,
                    each: each as u32,
                    inner: inner as u32,
                    kept: kept as u32,
                    position: (e % (kept * inner)) as u32,
                    // Of dw and the bias one is there.
                    offsets: offsets([v_first, w_first, scales_first, dw_first + bias_first]),
                },
                groups: (count / row * tasks(row)).div_ceil(THREADS),
                work: count,
            })?;
        }
        Ok(true)
    }
}

/// Something done to every element of a tensor.
struct Elementwise<'a> {
    does: Does<'a>,
    /// `None` where w is both.
    v: Option<&'a Tensor>,
    w: &'a Tensor,
    axis: Axis,
}

enum Does<'a> {
    /// w = v
    Copy,
    /// w = g v / n̂, the Scale of each norm.
    Scale(&'a View<'a>),
    /// w, which is dv, = g / n̂ (dw - dg v / d), or what it holds and that; the two Scales of each norm.
    Backward { dw: &'a Tensor, scales: &'a View<'a>, add: bool },
    /// w = v - center + bias, in quads alone.
    Center { centers: &'a View<'a>, bias: Option<&'a View<'a>> },
}

impl<'a> Does<'a> {
    /// Word by word, and in quads.
    fn kernels(&self, in_place: bool) -> [&'static Kernel; 2] {
        match self {
            Does::Backward { .. } => [&NORMALIZE_BACKWARD, &NORMALIZE_QUADS_BACKWARD],
            _ if in_place => [&NORMALIZE_IN_PLACE, &NORMALIZE_QUADS_IN_PLACE],
            _ => [&NORMALIZE, &NORMALIZE_QUADS],
        }
    }

    /// What is read of each norm: its Scales, or its center.
    fn of_norms(&self) -> Option<&'a View<'a>> {
        match *self {
            Does::Copy => None,
            Does::Scale(scales) | Does::Backward { scales, .. } => Some(scales),
            Does::Center { centers, .. } => Some(centers),
        }
    }

    /// Words of [`Does::of_norms`] for a norm.
    fn words(&self) -> u64 {
        match self {
            Does::Copy | Does::Center { .. } => 1,
            Does::Scale(_) => 2,
            Does::Backward { .. } => 4,
        }
    }

    fn dw(&self) -> Option<&'a Tensor> {
        if let Does::Backward { dw, .. } = *self { Some(dw) } else { None }
    }

    fn bias(&self) -> Option<&'a View<'a>> {
        if let Does::Center { bias, .. } = *self { bias } else { None }
    }

    fn constants(&self) -> Constants {
        match self {
            Does::Copy => vec![("COPY", 1)],
            Does::Scale(_) => vec![],
            Does::Backward { add, .. } => vec![("ADD", (*add).into())],
            Does::Center { bias, .. } => vec![("CENTER", 1), ("HAS_BIAS", bias.is_some().into())],
        }
    }
}

/// Invocations in a workgroup of the shaders.
const THREADS: u64 = 64;
/// Elements of one workgroup of `normalize.wgsl`: four an invocation.
const GROUP: u64 = 256;

kernels! {
    NORMALIZE = "weight/normalize" "normalize", Some(THREADS), Params, [0 Read, 1 Read, 2 Write];
    NORMALIZE_IN_PLACE = "weight/normalize" "normalize_in_place", Some(THREADS), Params, [1 Read, 2 Write];
    NORMALIZE_BACKWARD = "weight/normalize" "normalize_backward", Some(THREADS), Params,
        [0 Read, 1 Read, 2 Write, 3 Read];
    NORMALIZE_QUADS = "weight/normalize_quads" "normalize_quads", Some(THREADS), QuadParams,
        [0 Read, 1 Read, 2 Write, 4 Read];
    NORMALIZE_QUADS_IN_PLACE = "weight/normalize_quads" "normalize_quads_in_place", Some(THREADS), QuadParams,
        [1 Read, 2 Write, 4 Read];
    NORMALIZE_QUADS_BACKWARD = "weight/normalize_quads" "normalize_quads_backward", Some(THREADS), QuadParams,
        [0 Read, 1 Read, 2 Write, 3 Read, 4 Read];
    NORMALIZE_ROWS = "weight/normalize_rows" "normalize_rows", None, RowParams, [0 Read, 1 Read, 2 Write];
}
