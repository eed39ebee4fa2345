//! The gradients that a backward pass is asked for.
use crate::{ArgumentError, Error, Tensor};

/// Which gradients are wanted, where they go, and whether they are added up: the outputs of the recorder's backward
/// operators. `Gradients::default()` wants none.
///
/// ```
/// # use weightnorm::{Gradients, Tensor};
/// # fn f(dv: &Tensor, dg: &Tensor, micro_batch: usize) {
/// let wanted = Gradients::default().dv(dv).dg(dg).accumulate(micro_batch > 0);
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct Gradients<'a> {
    pub(crate) dx: Option<&'a Tensor>,
    pub(crate) dv: Option<&'a Tensor>,
    pub(crate) dg: Option<&'a Tensor>,
    pub(crate) dbias: Option<&'a Tensor>,
    pub(crate) da: Option<&'a Tensor>,
    pub(crate) db: Option<&'a Tensor>,
    pub(crate) dalpha: Option<&'a Tensor>,
    pub(crate) dcondition: Option<&'a Tensor>,
    pub(crate) accumulate: bool,
}

impl<'a> Gradients<'a> {
    /// Of x, or of t in mean-only batch normalization: shaped as it, any storage type. Never added up.
    pub fn dx(self, dx: impl Into<Option<&'a Tensor>>) -> Self {
        Gradients { dx: dx.into(), ..self }
    }

    /// Of v, or of an ordinary weight: shaped as it, any storage type.
    pub fn dv(self, dv: impl Into<Option<&'a Tensor>>) -> Self {
        Gradients { dv: dv.into(), ..self }
    }

    /// Of g, or of the magnitude: any storage type, shaped as the norms or flat.
    pub fn dg(self, dg: impl Into<Option<&'a Tensor>>) -> Self {
        Gradients { dg: dg.into(), ..self }
    }

    /// Of the bias: any storage type, `[features]`.
    pub fn dbias(self, dbias: impl Into<Option<&'a Tensor>>) -> Self {
        Gradients { dbias: dbias.into(), ..self }
    }

    /// Of A of a [`DoraWeight`](crate::DoraWeight): shaped as it, any storage type.
    pub fn da(self, da: impl Into<Option<&'a Tensor>>) -> Self {
        Gradients { da: da.into(), ..self }
    }

    /// Of B of a [`DoraWeight`](crate::DoraWeight): shaped as it, any storage type.
    pub fn db(self, db: impl Into<Option<&'a Tensor>>) -> Self {
        Gradients { db: db.into(), ..self }
    }

    /// Of α of a [`Conv::input_snake`](crate::Conv::input_snake): any storage type, as many elements. It is summed up
    /// from dx, which has to be wanted too.
    pub fn dalpha(self, dalpha: impl Into<Option<&'a Tensor>>) -> Self {
        Gradients { dalpha: dalpha.into(), ..self }
    }

    /// Of a [`Conv::condition`](crate::Conv::condition): shaped as it, any storage type. Never added up.
    pub fn dcondition(self, dcondition: impl Into<Option<&'a Tensor>>) -> Self {
        Gradients { dcondition: dcondition.into(), ..self }
    }

    /// Adds dv, dg, dbias, da, db and dalpha to what their tensors hold, as PyTorch adds to `.grad`, instead of
    /// replacing it.
    pub fn accumulate(self, accumulate: bool) -> Self {
        Gradients { accumulate, ..self }
    }

    /// Whether there is one at all.
    pub(crate) fn any(&self) -> bool {
        [self.dx, self.dv, self.dg, self.dbias, self.da, self.db, self.dalpha, self.dcondition]
            .iter()
            .any(Option::is_some)
    }

    /// Refuses those of convolutions alone.
    pub(crate) fn expect_none_of_conv(&self, op: &'static str) -> Result<(), Error> {
        Gradients::expect_none(op, &[("dalpha", self.dalpha), ("dcondition", self.dcondition)])?;
        self.expect_none_of_dora(op)
    }

    /// Refuses those of DoRA alone.
    pub(crate) fn expect_none_of_dora(&self, op: &'static str) -> Result<(), Error> {
        Gradients::expect_none(op, &[("da", self.da), ("db", self.db)])
    }

    /// Refuses gradients of what an operator does not have.
    pub(crate) fn expect_none(op: &'static str, gradients: &[(&'static str, Option<&Tensor>)]) -> Result<(), Error> {
        match gradients.iter().find_map(|&(arg, tensor)| Some((arg, tensor?))) {
            None => Ok(()),
            Some((arg, tensor)) => {
                let expected = "none: the operator has no such gradient".to_owned();
                Err(ArgumentError::Shape { op, arg, got: tensor.shape().to_vec(), expected }.into())
            }
        }
    }
}
