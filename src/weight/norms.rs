//! Row norms: n̂_j = eps policy of sqrt(Σ v²) over all axes but one, and the sums Σ dw·v of the backward pass.
use crate::arguments::{Arguments, expect_per_norm};
use crate::binding::View;
use crate::contract::{Layout, norms_shape, stored_as};
use crate::kernel::Constants;
use crate::memory::Scratch;
use crate::weight::cut::{HAS_BESIDE, HAS_GAIN, OF_POLICY, unit_of, widest};
use crate::weight::plan::{self, Problem};
use crate::weight::record::{Operands, are_in_quads, record};
use crate::{ArgumentError, Axis, DType, Eps, Error, Gpu, Recorder, Tensor, WeightNorm};

/// What the kernels write for each norm; OUT of `sums.wgsl`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Norms,
    Scales,
    Wide,
    /// Both scales of the backward pass, from the sums of products.
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
    /// The norms as f32 beside `out`; dg of [`Form::Backward`].
    pub norms_too: Option<&'a Tensor>,
    /// For [`Form::Backward`].
    pub dot: Option<Dot<'a>>,
}

/// The backward pass's sums Σ dw·v: [`Form::Backward`].
#[derive(Clone)]
pub(crate) struct Dot<'a> {
    pub dw: &'a Tensor,
    /// n̂, but n under [`Eps::After`]; f32. Else the norms are summed up beside.
    pub known: Option<View<'a>>,
    /// Add to dg.
    pub add: bool,
}

impl Gpu {
    /// The effective norms n̂ of a [`WeightNorm`], whose g plays no part. With [`Eps::None`] the norms themselves.
    ///
    /// # Errors
    /// As [`WeightNorm`]; [`ArgumentError::KnownNorms`].
    pub fn row_norms(&self, weight: WeightNorm<'_>) -> Result<Tensor, Error> {
        let norms = self.zeros(&norms_shape(weight.v.shape(), weight.axis), DType::F32)?;
        self.run(|ops| ops.row_norms(weight, &norms))?;
        Ok(norms)
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::row_norms`] into `norms`: f32, shaped as there or flat.
    ///
    /// # Errors
    /// As [`Gpu::row_norms`].
    pub fn row_norms(&mut self, weight: WeightNorm<'_>, norms: &Tensor) -> Result<(), Error> {
        const OP: &str = "row_norms";
        let WeightNorm { v, axis, eps, .. } = weight;
        weight.check(OP)?;
        if weight.norms.is_some() {
            return Err(ArgumentError::KnownNorms { op: OP }.into());
        }
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
        record_norms(self, &job)
    }
}

impl Job<'_> {
    fn layout(&self) -> Result<Layout, Error> {
        let layout = Layout::new(self.v.shape(), self.axis)?;
        // Norms over nothing are norms of empty rows.
        Ok(if layout.len() == 0 { Layout { outer: 1, inner: 0, ..layout } } else { layout })
    }

    fn constants(&self) -> Constants {
        let mut constants: Constants = vec![];
        match &self.dot {
            Some(dot) => {
                constants.push(("DOT", 1));
                constants.extend(dot.known.as_ref().map(|_| ("KNOWN", 1)));
                constants.extend(dot.add.then_some(("ADD", 1)));
            }
            None => constants.push(("OUT", self.form as u32)),
        }
        constants.extend(stored_as("GAIN_DTYPE", self.gain));
        constants
    }
}

/// Records what `job` says; its arguments are checked.
pub(crate) fn record_norms(ops: &mut Recorder<'_, '_>, job: &Job<'_>) -> Result<(), Error> {
    let (facts, dw) = (ops.facts(), job.dot.as_ref().map(|dot| dot.dw));
    let types = [Some(job.v.dtype()), dw.map(Tensor::dtype)];
    let problem = Problem {
        layout: job.layout()?.wide(),
        widest: widest(&types),
        unit: unit_of(&types),
        norm_bytes: 4 * job.form.words(),
        sum_bytes: if dw.is_some() { 16 } else { 8 },
        target: None,
        first_sum: 0,
    };
    let (cuts, sums) = match job.known {
        Some(_) => (plan::known(facts, &problem), 0),
        None => {
            let plan = plan::sums(facts, &problem)?;
            (plan.cuts, plan.sums)
        }
    };
    let sums = View::scratch(ops.scratch(Scratch::Sums, sums * problem.sum_bytes)?, problem.sum_bytes);
    let known = job.dot.as_ref().and_then(|dot| dot.known.clone());
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    record(
        ops,
        &Operands {
            v: Some(job.v),
            dw,
            w: None,
            gain: job.gain.map(View::of),
            sums: Some(sums),
            out: Some(job.out.clone()),
            words: job.form.words(),
            beside: job.norms_too.map(View::of),
            known: known.or(job.known.map(View::of)),
            in_quads: are_in_quads([Some(job.v), dw].into_iter().flatten()),
            flags: job.eps.code() << OF_POLICY
                | flag(job.gain.is_some(), HAS_GAIN)
                | flag(job.norms_too.is_some(), HAS_BESIDE),
            eps: job.eps.value(),
            constants: job.constants(),
        },
        &cuts,
    )
}

/// The norms of a weight in scratch memory, as scales or wide numbers. The weight is checked.
pub(crate) fn scales(
    ops: &mut Recorder<'_, '_>,
    weight: WeightNorm<'_>,
    form: Form,
    norms_too: Option<&Tensor>,
) -> Result<View<'static>, Error> {
    let kept = Layout::new(weight.v.shape(), weight.axis)?.wide().kept;
    let out = View::scratch(ops.scratch(Scratch::Scales, kept * 8)?, 4);
    record_norms(
        ops,
        &Job {
            v: weight.v,
            axis: weight.axis,
            eps: weight.eps,
            known: weight.norms,
            gain: weight.g.filter(|_| form == Form::Scales),
            form,
            out: out.clone(),
            norms_too,
            dot: None,
        },
    )?;
    Ok(out)
}
