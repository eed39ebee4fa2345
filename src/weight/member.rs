//! The members of a set, and how an operator sees one.
use crate::arguments::{Arguments, expect_per_norm, expect_scales, expect_shape};
use crate::contract::norms_shape;
use crate::weight::job::{Action, Job, NormOutput};
use crate::weight::place::Region;
use crate::{ArgumentError, Error, Tensor, WeightNorm};
#[cfg(doc)]
use crate::{Recorder, WeightSet};

/// A weight of a [`WeightSet`], with the tensors that the operators on the set read and write beside it. Each operator
/// needs its own of them, of every member or of none.
#[derive(Debug, Clone, Copy)]
pub struct SetMember<'a> {
    weight: WeightNorm<'a>,
    pub(super) w: Option<&'a Tensor>,
    pub(super) norms: Option<&'a Tensor>,
    pub(super) scales: Option<&'a Tensor>,
    pub(super) dw: Option<&'a Tensor>,
    pub(super) dv: Option<&'a Tensor>,
    pub(super) dg: Option<&'a Tensor>,
}

impl<'a> SetMember<'a> {
    /// The weight alone, for the operators in place.
    pub fn new(weight: WeightNorm<'a>) -> Self {
        SetMember { weight, w: None, norms: None, scales: None, dw: None, dv: None, dg: None }
    }

    /// Where [`Recorder::normalize_set`] puts w: the shape of v, any storage type.
    pub fn w(self, w: &'a Tensor) -> Self {
        SetMember { w: Some(w), ..self }
    }

    /// Where [`Recorder::row_norms_set`] puts n̂: f32, one for each index of the kept axis.
    pub fn norms(self, norms: &'a Tensor) -> Self {
        SetMember { norms: Some(norms), ..self }
    }

    /// Where [`Recorder::row_norms_set`] puts g/n̂, as [`Conv::scales`](crate::Conv::scales) takes it, beside the norms
    /// or in their place: f32, `[kept, 2]`.
    pub fn scales(self, scales: &'a Tensor) -> Self {
        SetMember { scales: Some(scales), ..self }
    }

    /// Where [`Recorder::normalize_backward_set`] finds the gradient of w: the shape of v, any storage type.
    pub fn dw(self, dw: &'a Tensor) -> Self {
        SetMember { dw: Some(dw), ..self }
    }

    /// Where [`Recorder::normalize_backward_set`] puts the gradient of v, if it is wanted: the shape of v, any storage
    /// type.
    pub fn dv(self, dv: &'a Tensor) -> Self {
        SetMember { dv: Some(dv), ..self }
    }

    /// Where [`Recorder::normalize_backward_set`] puts the gradient of g, if it is wanted: f32, one for each index of
    /// the kept axis.
    pub fn dg(self, dg: &'a Tensor) -> Self {
        SetMember { dg: Some(dg), ..self }
    }
}

impl<'a> From<WeightNorm<'a>> for SetMember<'a> {
    fn from(weight: WeightNorm<'a>) -> Self {
        SetMember::new(weight)
    }
}

/// An operator on a [`WeightSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetOperator {
    /// [`Recorder::row_norms_set`].
    RowNorms,
    /// [`Recorder::normalize_set`].
    Normalize,
    /// [`Recorder::normalize_set_in_place`] and [`Recorder::normalize_direction_set`].
    InPlace,
    /// [`Recorder::normalize_backward_set`].
    Backward,
}

impl SetOperator {
    pub(super) const ALL: [SetOperator; 4] =
        [SetOperator::RowNorms, SetOperator::Normalize, SetOperator::InPlace, SetOperator::Backward];

    pub(super) fn name(self) -> &'static str {
        match self {
            SetOperator::RowNorms => "row_norms_set",
            SetOperator::Normalize => "normalize_set",
            SetOperator::InPlace => "normalize_set_in_place",
            SetOperator::Backward => "normalize_backward_set",
        }
    }
}

impl<'a> SetMember<'a> {
    /// What can be said of it alone.
    pub(super) fn check(&self) -> Result<(), Error> {
        const OP: &str = "weight_set";
        let SetMember { weight, w, norms, scales, dw, dv, dg } = *self;
        weight.check(OP)?;
        if weight.norms.is_some() {
            return Err(ArgumentError::KnownNorms { op: OP }.into());
        }
        let (shape, axis) = (weight.v.shape(), weight.axis);
        for (arg, tensor) in [("w", w), ("dw", dw), ("dv", dv)] {
            tensor.map_or(Ok(()), |tensor| expect_shape(OP, arg, tensor, shape))?;
        }
        for (arg, tensor) in [("norms", norms), ("dg", dg)] {
            tensor.map_or(Ok(()), |tensor| expect_per_norm(OP, arg, tensor, &norms_shape(shape, axis)))?;
        }
        let kept: usize = norms_shape(shape, axis).iter().product();
        scales.map_or(Ok(()), |scales| expect_scales(OP, scales, kept))
    }
}

impl SetOperator {
    /// What it does to a member.
    pub(super) fn job<'a>(self, member: &SetMember<'a>) -> Result<Job<'a>, Error> {
        let need = |arg, tensor: Option<&'a Tensor>| tensor.ok_or(ArgumentError::Missing { op: self.name(), arg });
        let job = Job::new(member.weight)?;
        Ok(match self {
            SetOperator::RowNorms => match member.scales {
                Some(scales) => {
                    Job { form: NormOutput::Scales, out: Some(Region::of(scales)), beside: member.norms, ..job }
                }
                None => Job { g: None, out: Some(Region::of(need("norms", member.norms)?)), ..job },
            },
            SetOperator::Normalize => Job { w: Some(need("w", member.w)?), form: NormOutput::Scales, ..job },
            SetOperator::InPlace => Job { w: Some(job.v), in_place: true, form: NormOutput::Scales, ..job },
            SetOperator::Backward => {
                need("dv", member.dv.or(member.dg))?;
                let (dw, w, beside) = (Some(need("dw", member.dw)?), member.dv, member.dg);
                Job { dw, w, beside, action: Action::Backward, form: NormOutput::Backward, ..job }
            }
        })
    }

    pub(super) fn arguments<'a>(self, member: &SetMember<'a>, all: Arguments<'a>) -> Arguments<'a> {
        let SetMember { weight: WeightNorm { v, g, .. }, w, norms, scales, dw, dv, dg } = *member;
        match self {
            SetOperator::RowNorms => all
                .input("v", v)
                .input("g", g.filter(|_| scales.is_some()))
                .output("norms", norms)
                .output("scales", scales),
            SetOperator::Normalize => all.input("v", v).input("g", g).output("w", w),
            SetOperator::InPlace => all.input("g", g).output_onto(true, "v", v),
            SetOperator::Backward => all.input("dw", dw).input("v", v).input("g", g).output("dv", dv).output("dg", dg),
        }
    }

    pub(super) fn operations(self, member: &SetMember<'_>) -> u64 {
        let each = match (self, member.dv) {
            (SetOperator::RowNorms, _) => 2,
            (SetOperator::Normalize | SetOperator::InPlace, _) => 3,
            (SetOperator::Backward, None) => 4,
            (SetOperator::Backward, Some(_)) => 7,
        };
        each * member.weight.v.len() as u64
    }
}
