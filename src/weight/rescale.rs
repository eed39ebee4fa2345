//! What is done to every element without norms: copies, and centering.
use crate::binding::View;
use crate::weight::job::{Action, Job, NormOutput};
use crate::weight::place::Region;
use crate::weight::record::record;
use crate::{Axis, Error, Recorder, Tensor, WeightNorm};

/// `to` = `from`, rounded to its storage type.
pub(crate) fn copy(ops: &mut Recorder<'_, '_>, from: &Tensor, to: &Tensor) -> Result<(), Error> {
    let job = Job::new(WeightNorm::unit(from).axis(Axis::Whole))?;
    record(ops, &Job { w: Some(to), action: Action::Copy, ..job }, false)
}

/// y = t - centers + bias, one of each for an index of the last axis.
pub(crate) fn center(
    ops: &mut Recorder<'_, '_>,
    t: &Tensor,
    centers: &View<'_>,
    bias: Option<&Tensor>,
    y: &Tensor,
) -> Result<(), Error> {
    let job = Job::new(WeightNorm::unit(t).axis(Axis::Kept(t.shape().len() - 1)))?;
    let (form, out) = (NormOutput::Norms, Some(Region::view(centers)));
    record(ops, &Job { w: Some(y), action: Action::Center, g: bias, form, out, ..job }, false)
}
