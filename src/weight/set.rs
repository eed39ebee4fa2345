//! Norms, normalization and its backward pass over many weights at once.
use std::borrow::Cow;

use crate::binding::View;
use crate::contract::norms_shape;
use crate::memory::Scratch;
use crate::record::Dispatch;
use crate::weight::backward::NormalizeBackward;
use crate::weight::item::TableParams;
use crate::weight::member::{SetMember, SetOperator};
use crate::weight::table::{ITEM_BYTES, Table};
use crate::{ArgumentError, DType, Error, Gpu, Recorder, Tensor, WeightNorm};

/// Weights whose norms, normalization and gradients take a few dispatches for all of them together, however many there
/// are: of any shapes, kept axes, storage types and eps policies. From [`Gpu::weight_set`].
///
/// ```
/// # use weightnorm::{Axis, DType, Error, Gpu, SetMember, WeightNorm};
/// # fn layers(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
/// // Tensors that share a buffer, since a dispatch reaches no others.
/// let v = gpu.tensors(&[(&[512, 80, 7], DType::F32), (&[512, 256, 16], DType::F32)])?;
/// let g = gpu.tensors(&[(&[512, 1, 1], DType::F32), (&[512, 1, 1], DType::F32)])?;
/// let w = gpu.tensors(&[(&[512, 80, 7], DType::F16), (&[512, 256, 16], DType::F16)])?;
/// let member = |i: usize| SetMember::new(WeightNorm::new(&v[i], &g[i])).w(&w[i]);
/// let set = gpu.weight_set(&[member(0), member(1)])?; // once
/// gpu.record(encoder).normalize_set(&set)?; // for every step
/// # Ok(()) }
/// ```
///
/// What it holds is the place of each tensor, not what is in it: the weights may change between the steps.
#[derive(Debug)]
pub struct WeightSet {
    gpu: Gpu,
    /// In the order of [`SetOperator::ALL`].
    plans: [Result<Table, Error>; 4],
}

impl WeightSet {
    /// The dispatches that an operator on the set takes.
    ///
    /// # Errors
    /// As the operator: [`ArgumentError::Missing`] if the members lack its tensors; [`ArgumentError::Alias`].
    pub fn dispatch_count(&self, operator: SetOperator) -> Result<u64, Error> {
        self.plan(operator).map(|plan| plan.stages.len() as u64)
    }

    fn plan(&self, operator: SetOperator) -> Result<&Table, Error> {
        self.plans[operator as usize].as_ref().map_err(Error::clone)
    }
}

impl Gpu {
    /// Many new tensors of zeros that share one buffer, each from a multiple of 16 bytes on, in a browser of the
    /// alignment of bindings: what a [`WeightSet`] wants, since one dispatch reaches one buffer of each kind.
    ///
    /// # Errors
    /// Those of every operator ([`Error`]).
    pub fn tensors(&self, tensors: &[(&[usize], DType)]) -> Result<Vec<Tensor>, Error> {
        Tensor::zeros_together(self, tensors)
    }

    /// Makes the table of a set of weights, and keeps it on the device. Outputs belong to the set, since their places
    /// stand in the table.
    ///
    /// An operator on the set takes one dispatch for each of its kernels: one that normalizes rows that a workgroup
    /// holds (see [`WeightNorm`]); one that sums up other rows; one that sums up columns, if there are
    /// members whose kept axis is not the first; one that adds up partial sums, if there are any; and one that
    /// rescales. That holds where all v share a buffer, all w another, all g, and so on ([`Gpu::tensors`]): members
    /// whose tensors lie in other buffers, which do not start at multiples of 16 bytes, or which lie further apart than
    /// a binding reaches, take as many again. [`WeightSet::dispatch_count`] tells.
    ///
    /// # Errors
    /// [`ArgumentError::Member`] with what is wrong with a member: a shape, a storage type, an axis, an eps, known
    /// norms, which a set does not take ([`ArgumentError::KnownNorms`]), or tensors that an operator lacks, while other
    /// members have them ([`ArgumentError::Missing`]). [`LimitError::TooLarge`](crate::LimitError::TooLarge) if more
    /// partial sums, or with another kept axis than the first more scales, belong together than a binding holds.
    /// Besides those of every operator ([`Error`]).
    pub fn weight_set(&self, members: &[SetMember<'_>]) -> Result<WeightSet, Error> {
        self.check()?;
        for (index, member) in members.iter().enumerate() {
            member.check().map_err(|e| e.of_member(index))?;
        }
        let plan = |operator: SetOperator| Table::new(self, operator, members);
        let [norms, normalize, in_place, backward] = SetOperator::ALL.map(plan);
        // What a member has tensors for has to work. In place is what nobody asked for yet.
        for (declared, plan) in [
            (members.iter().any(|m| m.norms.is_some() || m.scales.is_some()), &norms),
            (members.iter().any(|m| m.w.is_some()), &normalize),
            (members.iter().any(|m| m.dw.is_some() || m.dv.is_some() || m.dg.is_some()), &backward),
        ] {
            if let (true, Err(error)) = (declared, plan) {
                return Err(error.clone());
            }
        }
        Ok(WeightSet { gpu: self.clone(), plans: [norms, normalize, in_place, backward] })
    }

    /// [`Gpu::row_norms`] of many weights, a few dispatches in all: see [`Gpu::weight_set`]. For one call; a
    /// [`WeightSet`] does not make its table anew for every step.
    ///
    /// # Errors
    /// As [`Gpu::weight_set`].
    pub fn row_norms_set(&self, weights: &[WeightNorm<'_>]) -> Result<Vec<Tensor>, Error> {
        let norms = self.per_norm(weights)?;
        let members: Vec<_> = weights.iter().zip(&norms).map(|(&w, norms)| SetMember::new(w).norms(norms)).collect();
        let set = self.weight_set(&members)?;
        self.run(|ops| ops.row_norms_set(&set))?;
        Ok(norms)
    }

    /// [`Gpu::normalize`] of many weights, likewise.
    ///
    /// # Errors
    /// As [`Gpu::weight_set`].
    pub fn normalize_set(&self, weights: &[WeightNorm<'_>]) -> Result<Vec<Tensor>, Error> {
        let all = self.like(weights)?;
        let members: Vec<_> = weights.iter().zip(&all).map(|(&weight, w)| SetMember::new(weight).w(w)).collect();
        let set = self.weight_set(&members)?;
        self.run(|ops| ops.normalize_set(&set))?;
        Ok(all)
    }

    /// [`Gpu::normalize_backward`] of many weights, likewise. Returns (dv, dg) of each.
    ///
    /// # Errors
    /// As [`Gpu::weight_set`].
    pub fn normalize_backward_set(&self, weights: &[NormalizeBackward<'_>]) -> Result<Vec<(Tensor, Tensor)>, Error> {
        let all: Vec<_> = weights.iter().map(|backward| backward.weight).collect();
        let gradients: Vec<_> = self.like(&all)?.into_iter().zip(self.per_norm(&all)?).collect();
        let member = |(&NormalizeBackward { dw, weight }, (dv, dg))| SetMember::new(weight).dw(dw).dv(dv).dg(dg);
        let members: Vec<_> = weights.iter().zip(gradients.iter().map(|(dv, dg)| (dv, dg))).map(member).collect();
        let set = self.weight_set(&members)?;
        self.run(|ops| ops.normalize_backward_set(&set, false))?;
        Ok(gradients)
    }

    fn like(&self, weights: &[WeightNorm<'_>]) -> Result<Vec<Tensor>, Error> {
        self.tensors(&weights.iter().map(|w| (w.v.shape(), w.v.dtype())).collect::<Vec<_>>())
    }

    fn per_norm(&self, weights: &[WeightNorm<'_>]) -> Result<Vec<Tensor>, Error> {
        let shapes: Vec<_> = weights.iter().map(|w| norms_shape(w.v.shape(), w.axis)).collect();
        self.tensors(&shapes.iter().map(|shape| (&shape[..], DType::F32)).collect::<Vec<_>>())
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::row_norms`] of all members of a set, into their [`SetMember::norms`], [`SetMember::scales`]. Makes
    /// nothing anew.
    ///
    /// # Errors
    /// [`ArgumentError::Missing`] if the members lack these. Besides those of every operator ([`Error`]).
    pub fn row_norms_set(&mut self, set: &WeightSet) -> Result<(), Error> {
        record_set(self, set, SetOperator::RowNorms, "row_norms_set", true, false)
    }

    /// Records [`Gpu::normalize`] of all members of a set, into their [`SetMember::w`].
    ///
    /// # Errors
    /// As [`Recorder::row_norms_set`].
    pub fn normalize_set(&mut self, set: &WeightSet) -> Result<(), Error> {
        record_set(self, set, SetOperator::Normalize, "normalize_set", true, false)
    }

    /// Records [`Gpu::normalize_in_place`] of all members of a set: v becomes w.
    ///
    /// # Errors
    /// As [`Recorder::row_norms_set`]; [`ArgumentError::Alias`] if a g shares a buffer with a v.
    pub fn normalize_set_in_place(&mut self, set: &WeightSet) -> Result<(), Error> {
        record_set(self, set, SetOperator::InPlace, "normalize_set_in_place", true, false)
    }

    /// Records v ← v/n̂ of all members of a set: [`Recorder::normalize_set_in_place`] without their gains.
    ///
    /// # Errors
    /// As [`Recorder::normalize_set_in_place`].
    pub fn normalize_direction_set(&mut self, set: &WeightSet) -> Result<(), Error> {
        record_set(self, set, SetOperator::InPlace, "normalize_direction_set", false, false)
    }

    /// Records [`Gpu::normalize_backward`] of all members of a set: reads their [`SetMember::dw`], and replaces their
    /// [`SetMember::dv`] and [`SetMember::dg`] or, with `accumulate`, adds to them. The norms come out of the same
    /// sweep as the dot products.
    ///
    /// # Errors
    /// As [`Recorder::row_norms_set`].
    pub fn normalize_backward_set(&mut self, set: &WeightSet, accumulate: bool) -> Result<(), Error> {
        record_set(self, set, SetOperator::Backward, "normalize_backward_set", true, accumulate)
    }
}

fn record_set(
    ops: &mut Recorder<'_, '_>,
    set: &WeightSet,
    operator: SetOperator,
    op: &'static str,
    takes_gains: bool,
    accumulate: bool,
) -> Result<(), Error> {
    let other = Error::Argument(ArgumentError::OtherGpu { op, arg: "the set" });
    let Some(gpu) = ops.gpu() else { return Err(other) };
    gpu.reported()?;
    if !set.gpu.is_one_with(gpu) {
        return Err(other);
    }
    let plan = set.plan(operator)?;
    let capacities = ops.facts().capacities;
    let mut work = plan.work;
    if accumulate {
        work.read += work.written;
    }
    ops.begin(op, work);
    let sums = ops.scratch(Scratch::Sums, plan.sums)?;
    let scales = ops.scratch(Scratch::Scales, plan.scales)?;
    let table = View { memory: Cow::Borrowed(&plan.table), offset: 0, element: ITEM_BYTES };
    for stage in &plan.stages {
        let (items, first) = table.bind(capacities, stage.first, stage.count);
        let spans = stage.windows.spans(stage.kind, [&sums, &scales]);
        let mut constants = stage.constants.clone();
        constants.extend((accumulate).then_some(("ADD", 1)));
        ops.dispatch(&Dispatch {
            kernel: stage.kind.kernel(true),
            module: stage.module,
            constants: &constants,
            buffers: &[items].into_iter().chain(spans).collect::<Vec<_>>(),
            params: TableParams { count: stage.count as u32, first, takes_gains: takes_gains.into() },
            groups: stage.count,
            work: stage.work,
        })?;
    }
    Ok(())
}
