//! The members of a set, and how an operator sees one.
use crate::arguments::{Arguments, expect_per_norm, expect_shape};
use crate::contract::{Layout, norms_shape};
use crate::weight::cut::{HAS_BESIDE, HAS_GAIN, OF_DW, OF_GAIN, OF_POLICY, OF_V, OF_W, widest};
use crate::weight::plan::Problem;
use crate::weight::record::are_in_quads;
use crate::{ArgumentError, Eps, Error, Tensor, WeightNorm};
#[cfg(doc)]
use crate::{Recorder, WeightSet};

/// A weight of a [`WeightSet`], with the tensors that the operators on the set read and write beside it. Each operator
/// needs its own of them, of every member or of none.
#[derive(Debug, Clone, Copy)]
pub struct SetMember<'a> {
    weight: WeightNorm<'a>,
    pub(super) w: Option<&'a Tensor>,
    pub(super) norms: Option<&'a Tensor>,
    pub(super) dw: Option<&'a Tensor>,
    pub(super) dv: Option<&'a Tensor>,
    pub(super) dg: Option<&'a Tensor>,
}

impl<'a> SetMember<'a> {
    /// The weight alone, for the operators in place.
    pub fn new(weight: WeightNorm<'a>) -> Self {
        SetMember { weight, w: None, norms: None, dw: None, dv: None, dg: None }
    }

    /// Where [`Recorder::normalize_set`] puts w: the shape of v, any storage type.
    pub fn w(self, w: &'a Tensor) -> Self {
        SetMember { w: Some(w), ..self }
    }

    /// Where [`Recorder::row_norms_set`] puts n̂: f32, one for each index of the kept axis.
    pub fn norms(self, norms: &'a Tensor) -> Self {
        SetMember { norms: Some(norms), ..self }
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
        let SetMember { weight, w, norms, dw, dv, dg } = *self;
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
        Ok(())
    }
}

/// What the plan of a member takes from its set.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Elements of a unit.
    pub unit: u64,
    /// Elements of an item.
    pub target: u64,
    /// Partial sums that other members have before.
    pub first_sum: u64,
}

pub(super) struct Job<'a> {
    pub v: &'a Tensor,
    pub g: Option<&'a Tensor>,
    pub dw: Option<&'a Tensor>,
    /// n̂, where that is all that is wanted.
    pub norms: Option<&'a Tensor>,
    pub dg: Option<&'a Tensor>,
    /// w, v in its place, or dv.
    pub w: Option<&'a Tensor>,
    pub in_place: bool,
    pub layout: Layout<u64>,
    pub eps: Eps,
    pub quads: bool,
    /// Where its scales begin, in norms.
    pub first_scale: u64,
}

impl<'a> Job<'a> {
    pub fn new(member: &SetMember<'a>, operator: SetOperator) -> Result<Job<'a>, Error> {
        let op = operator.name();
        let WeightNorm { v, g, axis, eps, .. } = member.weight;
        let need = |arg, tensor: Option<&'a Tensor>| {
            tensor.ok_or(Error::Argument(ArgumentError::Missing { op, arg })).map(Some)
        };
        let layout = Layout::new(v.shape(), axis)?;
        // Norms over nothing are norms of empty rows.
        let layout = if layout.len() == 0 { Layout { outer: 1, inner: 0, ..layout } } else { layout };
        let none = Job {
            v,
            g,
            dw: None,
            norms: None,
            dg: None,
            w: None,
            in_place: false,
            layout: layout.wide(),
            eps,
            quads: false,
            first_scale: 0,
        };
        let job = match operator {
            SetOperator::RowNorms => Job { g: None, norms: need("norms", member.norms)?, ..none },
            SetOperator::Normalize => Job { w: need("w", member.w)?, ..none },
            SetOperator::InPlace => Job { w: Some(v), in_place: true, ..none },
            SetOperator::Backward => {
                need("dv", member.dv.or(member.dg))?;
                Job { dw: need("dw", member.dw)?, w: member.dv, dg: member.dg, ..none }
            }
        };
        let quads = are_in_quads([Some(v), job.dw, job.w].into_iter().flatten());
        Ok(Job { quads, ..job })
    }

    pub fn arguments<'b>(&'b self, arguments: Arguments<'b>) -> Arguments<'b> {
        let written = match (self.in_place, self.dw) {
            (true, _) => return arguments.input("g", self.g).output_onto(true, "v", self.v),
            (_, Some(_)) => "dv",
            (_, None) => "w",
        };
        arguments
            .input("dw", self.dw)
            .input("v", self.v)
            .input("g", self.g)
            .output("norms", self.norms)
            .output(written, self.w)
            .output("dg", self.dg)
    }

    pub fn operations(&self) -> u64 {
        let each = match (self.dw, self.w) {
            (None, None) => 2,
            (None, Some(_)) => 3,
            (Some(_), None) => 4,
            (Some(_), Some(_)) => 7,
        };
        each * self.v.len() as u64
    }

    pub fn flags(&self) -> u32 {
        let code = |t: Option<&Tensor>| t.map_or(0, |t| t.dtype().code());
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        self.v.dtype().code() << OF_V
            | code(self.dw) << OF_DW
            | code(self.w) << OF_W
            | self.eps.code() << OF_POLICY
            | code(self.g) << OF_GAIN
            | flag(self.g.is_some(), HAS_GAIN)
            | flag(self.dg.is_some(), HAS_BESIDE)
    }

    /// For the sums, or for what is done to each element.
    pub fn problem(&self, share: Share, rescaled: bool) -> Problem {
        let types = [Some(self.v.dtype()), self.dw.map(Tensor::dtype), self.w.filter(|_| rescaled).map(Tensor::dtype)];
        Problem {
            layout: self.layout,
            widest: widest(&types),
            unit: share.unit,
            norm_bytes: self.out_bytes(),
            sum_bytes: if self.dw.is_some() { 16 } else { 8 },
            target: Some(share.target),
            first_sum: share.first_sum,
        }
    }

    /// Bytes that are written for a norm.
    pub fn out_bytes(&self) -> u64 {
        match (self.norms, self.dw) {
            (Some(_), _) => 4,
            (None, None) => 8,
            (None, Some(_)) => 16,
        }
    }
}
