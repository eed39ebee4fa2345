//! The backward pass of the weight-normalized product and of rescaling. Shaders: `gradient.wgsl`, the dot products of
//! `norms.wgsl`, and `normalize_backward` of `normalize.wgsl`.
use crate::batch::Factors;
use crate::contract::{Layout, norms_shape};
use crate::gpu::Scratch;
use crate::kernel::{self, Constants, Kernel};
use crate::linear::{LinearEnd, Norm};
use crate::norms::{Dot, Form, Job};
use crate::product::{Bound, End, EndOf, Forced, Operand, Product, Stage, Window, are_halves};
use crate::record::{Arguments, View, expect_dtype, expect_gain, expect_shape};
use crate::{Axis, DType, Eps, Error, Gpu, LinearOptions, Recorder, Tensor, Tile, Weight, WeightNorm, Write};

/// Which gradients of a linear layer are wanted, and where. `Gradients::default()` wants none.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Gradients<'a> {
    /// Of x: shaped as x, any storage type.
    pub dx: Option<&'a Tensor>,
    /// Of v, or of an ordinary weight: shaped as it, any storage type.
    pub dv: Option<&'a Tensor>,
    /// Of g: any storage type, shaped as the norms or flat.
    pub dg: Option<&'a Tensor>,
    /// Of the bias: any storage type, `[out_features]`.
    pub dbias: Option<&'a Tensor>,
    /// Whether dv, dg and dbias are replaced or added to (micro-batches). dx is replaced.
    pub write: Write,
    /// Forces a tile, for tests and tuning. Its sums are whole unless `split_length` says otherwise.
    pub tile: Option<Tile>,
    /// Forces a split of the sums, for tests and tuning.
    pub split_length: Option<u32>,
}

impl<'a> Gradients<'a> {
    /// Wants dx.
    pub fn dx(mut self, dx: &'a Tensor) -> Self {
        self.dx = Some(dx);
        self
    }

    /// Wants dv.
    pub fn dv(mut self, dv: &'a Tensor) -> Self {
        self.dv = Some(dv);
        self
    }

    /// Wants dg.
    pub fn dg(mut self, dg: &'a Tensor) -> Self {
        self.dg = Some(dg);
        self
    }

    /// Wants dbias.
    pub fn dbias(mut self, dbias: &'a Tensor) -> Self {
        self.dbias = Some(dbias);
        self
    }

    /// Replaces what dv, dg and dbias hold, or adds to it.
    pub fn write(mut self, write: Write) -> Self {
        self.write = write;
        self
    }

    /// Forces a tile.
    pub fn tile(mut self, tile: Tile) -> Self {
        self.tile = Some(tile);
        self
    }

    /// Forces a split of the sums.
    pub fn split_length(mut self, split_length: u32) -> Self {
        self.split_length = Some(split_length);
        self
    }

    fn forced(&self) -> Forced {
        Forced { tile: self.tile, split_length: self.split_length }
    }
}

/// What the forward pass of a training step keeps for the backward pass.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Saved {
    /// The effective norms n̂, f32, with ones everywhere but at the kept axis; none for an ordinary weight.
    pub norms: Option<Tensor>,
    /// u = (x·v)/n̂, f32, shaped as y; for kept axis 0 and the whole tensor.
    pub u: Option<Tensor>,
}

/// The gradients of a linear layer, as [`Gpu::linear_backward`] returns them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LinearGradients {
    /// Of x, in its storage type.
    pub dx: Tensor,
    /// Of v, or of an ordinary weight, in its storage type.
    pub dv: Tensor,
    /// Of g, f32, in the norms' shape; none for an ordinary weight. Without g it is what a gain of 1 would get.
    pub dg: Option<Tensor>,
    /// Of the bias, f32, `[out_features]`.
    pub dbias: Tensor,
}

const OP: &str = "linear_backward";

impl Gpu {
    /// The gradients of [`Gpu::normalize`]. Returns (dv, dg).
    ///
    /// ```text
    /// dg_j = Σ dw·(v/n̂_j)        dv = (g_j/n̂_j)·(dw - dg_j·(v/d_j))
    /// ```
    ///
    /// d is n̂ but under [`Eps::After`], where it is n; where the clamp is active, or n = 0 under [`Eps::After`], the second
    /// term is absent. `dw`: v's shape, any storage type. dv has v's storage type, dg is f32 in the norms' shape and comes
    /// without g too. A zero row gives dg = 0 and dv = g·dw/n̂, under [`Eps::None`] NaN. Reference: PyTorch's
    /// `weight_norm` backward, in the factored form that stays in range.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Axis`], [`Error::Eps`], [`Error::OtherGpu`], [`Error::Usage`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn normalize_backward(&self, dw: &Tensor, weight: WeightNorm<'_>) -> Result<(Tensor, Tensor), Error> {
        let dv = self.zeros(weight.v.shape(), weight.v.dtype())?;
        let dg = self.zeros(&norms_shape(weight.v.shape(), weight.axis), DType::F32)?;
        self.run(|ops| ops.normalize_backward_into(dw, weight, Some(&dv), Some(&dg), Write::Replace))?;
        Ok((dv, dg))
    }

    /// [`Gpu::linear`] for training: y, and what [`Gpu::linear_backward`] wants of the forward pass. The dispatches are
    /// those of [`Gpu::linear`]: the norms and u come out of the product.
    ///
    /// # Errors
    /// As [`Gpu::linear`].
    pub fn linear_saved<'a>(
        &self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
    ) -> Result<(Tensor, Saved), Error> {
        let weight = weight.into();
        let y = self.zeros_of("linear_saved: y", &crate::linear::y_shape(x, weight.v())?, x.dtype())?;
        let normalized = weight.normalized();
        let norms = |w: WeightNorm<'_>| self.zeros(&norms_shape(w.v.shape(), w.axis), DType::F32);
        let norms = normalized.map(norms).transpose()?;
        let has_u = normalized.is_some_and(|w| w.axis != Axis::Kept(1));
        let u = if has_u { Some(self.zeros(y.shape(), DType::F32)?) } else { None };
        let options = LinearOptions { norms: norms.as_ref(), u: u.as_ref(), ..Default::default() };
        self.run(|ops| ops.linear_into_with(x, weight, bias, &y, &options))?;
        Ok((y, Saved { norms, u }))
    }

    /// The gradients of [`Gpu::linear`] without an activation, given dy and what [`Gpu::linear_saved`] kept.
    ///
    /// ```text
    /// dg_j = Σ_b dy[b,j]·u[b,j]        dbias_j = Σ_b dy[b,j]        dx = (dy ⊙ a)·v        a = g/n̂
    /// dv_j = a_j·((dyᵀx)_j - dg_j·(v_j/d_j))        d: see [`Gpu::normalize_backward`]
    /// ```
    ///
    /// for kept axis 0; for kept axis 1, with q = dy·v:
    ///
    /// ```text
    /// dx = q ⊙ a        dg_k = Σ_b x[b,k]·q[b,k]/n̂_k        dv_jk = a_k·((dyᵀx)_jk - dg_k·(v_jk/d_k))
    /// ```
    ///
    /// No buffer for dw = dyᵀx exists. An ordinary weight gets dw as dv. For dv to be right dg need not be representable,
    /// but u has to be, with kept axis 1 q/n̂.
    ///
    /// `dy`: y's shape, any storage type.
    ///
    /// # Errors
    /// As [`Gpu::linear`].
    pub fn linear_backward<'a>(
        &self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        dy: &Tensor,
        saved: &'a Saved,
    ) -> Result<LinearGradients, Error> {
        let weight = match weight.into() {
            Weight::Normalized(w) => Weight::Normalized(WeightNorm { norms: saved.norms.as_ref().or(w.norms), ..w }),
            plain => plain,
        };
        let v = weight.v();
        let dx = self.zeros(x.shape(), x.dtype())?;
        let dv = self.zeros(v.shape(), v.dtype())?;
        let dg = |w: WeightNorm<'_>| self.zeros(&norms_shape(w.v.shape(), w.axis), DType::F32);
        let dg = weight.normalized().map(dg).transpose()?;
        let dbias = self.zeros(&v.shape()[..v.shape().len().min(1)], DType::F32)?;
        let gradients =
            Gradients { dx: Some(&dx), dv: Some(&dv), dg: dg.as_ref(), dbias: Some(&dbias), ..Default::default() };
        self.run(|ops| ops.linear_backward_into(x, weight, dy, saved.u.as_ref(), &gradients))?;
        Ok(LinearGradients { dx, dv, dg, dbias })
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::normalize_backward`] into `dv`, v's shape and any storage type, and `dg`, any storage type, in the norms'
    /// shape or flat, each if wanted. With known norms ([`WeightNorm::norms`]) they are not computed, but under [`Eps::After`].
    ///
    /// The dispatches of [`Recorder::row_norms_into`] for the dot products, one for dv. Norms that are not known are summed up
    /// beside the dot products of contiguous rows that are not split over workgroups; else they take dispatches of their own. A dg
    /// that is not f32 takes one more, two with [`Write::Add`].
    ///
    /// # Errors
    /// As [`Gpu::normalize_backward`]; [`Error::Alias`], [`Error::Overlap`].
    pub fn normalize_backward_into(
        &mut self,
        dw: &Tensor,
        weight: WeightNorm<'_>,
        dv: Option<&Tensor>,
        dg: Option<&Tensor>,
        write: Write,
    ) -> Result<(), Error> {
        const OP: &str = "normalize_backward";
        weight.check(OP)?;
        let shape = weight.v.shape();
        expect_shape(OP, "dw", dw, shape)?;
        if let Some(dv) = dv {
            expect_shape(OP, "dv", dv, shape)?;
        }
        if let Some(dg) = dg {
            expect_gain(OP, "dg", dg, &norms_shape(shape, weight.axis))?;
        }
        Arguments::new(OP)
            .input("dw", dw)
            .input("v", weight.v)
            .input("g", weight.g)
            .input("norms", weight.norms)
            .output_onto(write == Write::Add, "dv", dv)
            .output_onto(write == Write::Add, "dg", dg)
            .operations(weight.norms_operations() + (if dv.is_some() { 5 } else { 2 }) * dw.len() as u64)
            .begin(self)?;
        if dv.is_none() && dg.is_none() {
            return Ok(());
        }
        self.in_f32((write == Write::Add, true), [dg], |ops, [dg]| ops.gradients_of_weight(dw, weight, dv, dg, write))
    }

    /// The gradients of checked arguments; dg is f32.
    fn gradients_of_weight(
        &mut self,
        dw: &Tensor,
        weight: WeightNorm<'_>,
        dv: Option<&Tensor>,
        dg: Option<&Tensor>,
        write: Write,
    ) -> Result<(), Error> {
        let kept = Layout::new(weight.v.shape(), weight.axis)?.wide().kept;
        let out = View::scratch(self.gpu().scratch(Scratch::Scales, kept * 16)?, 4);
        let job = |known| Job {
            v: weight.v,
            axis: weight.axis,
            eps: weight.eps,
            known: None,
            gain: weight.g,
            form: Form::Backward,
            out: out.clone(),
            norms_too: dg,
            dot: Some(Dot { dw, known, add: write == Write::Add }),
        };
        let are_known = weight.norms.is_some() && !matches!(weight.eps, Eps::After(_));
        let beside = !are_known && self.sums_whole_rows(&job(None))?;
        let known = if beside { None } else { Some(self.differentiable_norms(weight)?) };
        self.norms(&job(known))?;
        match dv {
            Some(dv) => self.rescale_backward(dw, weight, &out, dv, write == Write::Add),
            None => Ok(()),
        }
    }

    /// What the gradients want of the norms: n under [`Eps::After`], else n̂. Known, or in scratch memory.
    fn differentiable_norms<'a>(&mut self, weight: WeightNorm<'a>) -> Result<View<'a>, Error> {
        match (weight.norms, weight.eps) {
            (Some(norms), Eps::None | Eps::InsideSqrt(_) | Eps::Clamp(_)) => Ok(View::of(norms)),
            (_, Eps::After(_)) => self.norms_in_scratch(weight, Eps::None, 0),
            (None, eps) => self.norms_in_scratch(weight, eps, 0),
        }
    }

    /// n̂, known or in scratch memory behind what [`Self::differentiable_norms`] puts there.
    fn effective_norms<'a>(&mut self, weight: WeightNorm<'a>, like: &View<'a>) -> Result<View<'a>, Error> {
        match (weight.norms, weight.eps) {
            (Some(norms), _) => Ok(View::of(norms)),
            (None, Eps::After(_)) => self.norms_in_scratch(weight, weight.eps, 1),
            (None, _) => Ok(like.clone()),
        }
    }

    fn norms_in_scratch(&mut self, weight: WeightNorm<'_>, eps: Eps, place: u64) -> Result<View<'static>, Error> {
        let kept = Layout::new(weight.v.shape(), weight.axis)?.wide().kept;
        let buffer = self.gpu().scratch(Scratch::Norms, 2 * kept * 4)?;
        let out = View { offset: place * kept * 4, ..View::scratch(buffer, 4) };
        self.norms(&Job {
            v: weight.v,
            axis: weight.axis,
            eps,
            known: None,
            gain: None,
            form: Form::Norms,
            out: out.clone(),
            norms_too: None,
            dot: None,
        })?;
        Ok(out)
    }

    /// Records [`Gpu::linear_backward`] into the wanted ones of `gradients`.
    ///
    /// `u` from the forward pass ([`LinearOptions::u`]) is needed for dg and dv with kept axis 0 and the whole tensor.
    /// Norms that are known ([`WeightNorm::norms`], from [`LinearOptions::norms`]) are not computed again, but under
    /// [`Eps::After`], whose d is not among them.
    ///
    /// For kept axis 0, with known norms: one dispatch for dx, one for dv, one for dg and dbias together (two beyond a batch
    /// of 128), which also makes the factors of each norm that the other two want; dx alone takes one for them. A product
    /// whose sums are formed in pieces, as in [`Recorder::linear_into`], takes two, windows past the limit of a binding or a
    /// dispatch one more each. The whole tensor takes one or two more for dbias, kept axis 1 the product q besides. A dg or
    /// dbias that is not f32 takes one more, two with [`Write::Add`].
    ///
    /// # Errors
    /// As [`Gpu::linear_backward`]; [`Error::Shape`] if u is missing; [`Error::Alias`], [`Error::Overlap`],
    /// [`Error::Variant`].
    pub fn linear_backward_into<'a>(
        &mut self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        dy: &Tensor,
        u: Option<&Tensor>,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        let weight = weight.into();
        self.check_backward(x, weight, dy, u, gradients)?;
        let &Gradients { dg, dbias, write, .. } = gradients;
        self.in_f32((write == Write::Add, true), [dg, dbias], |ops, [dg, dbias]| {
            ops.gradients(x, weight, dy, u, &Gradients { dg, dbias, ..*gradients })
        })
    }

    /// The gradients of checked arguments; dg and dbias are f32.
    fn gradients(
        &mut self,
        x: &Tensor,
        weight: Weight<'_>,
        dy: &Tensor,
        u: Option<&Tensor>,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        let sizes = Sizes::new(x, weight.v());
        let &Gradients { dx, dv, dg, dbias, write, .. } = gradients;
        let Some(norm) = weight.normalized() else {
            self.column_dot_sums(dy, None, dbias.map(View::of), None, None, write)?;
            let end = GradientEnd::plain(write);
            if let Some(dv) = dv {
                self.weight_product(x, dy, &sizes, gradients, &GradientEnd { out: Some(dv), ..end.clone() })?;
            }
            if let Some(dx) = dx {
                let end = GradientEnd { out: Some(dx), add: false, ..end };
                self.input_product(dy, weight.v(), &sizes, gradients, &end)?;
            }
            return Ok(());
        };
        let known = self.differentiable_norms(norm)?;
        let wants_dg = dg.is_some() || dv.is_some();
        let (u, dg, dbias) = (u.map(View::of).filter(|_| wants_dg), dg.map(View::of), dbias.map(View::of));
        let kept = Layout::new(norm.v.shape(), norm.axis)?.wide().kept;
        let factors = self.gpu().scratch(Scratch::Factors, kept * 16)?;
        let (norms, g, eps) = (known.clone(), norm.g, norm.eps);
        // The products want the factors of each norm, which the reductions over the batch make of dg.
        let wanted = Some(Factors { norms, g, eps, out: View::scratch(factors.clone(), 4) });
        let wanted = wanted.filter(|_| dv.is_some() || (dx.is_some() && norm.axis != Axis::Kept(1)));
        let end = GradientEnd { factors: Some(View::scratch(factors, 16)), ..GradientEnd::plain(write) };
        let input_end = match norm.axis {
            Axis::Kept(0) => {
                self.column_dot_sums(dy, u, dbias, dg, wanted, write)?;
                Some(Scale::ByK)
            }
            Axis::Whole => {
                self.column_dot_sums(dy, None, dbias, None, None, write)?;
                self.column_dot_sums(&dy.reshape(&[dy.len(), 1])?, u, None, dg, wanted, write)?;
                Some(Scale::Whole)
            }
            Axis::Kept(_) => {
                self.column_dot_sums(dy, None, dbias, None, None, write)?;
                let effective = self.effective_norms(norm, &known)?;
                let quotients = self.gpu().scratch(Scratch::Scales, sizes.batch * sizes.ins * 4)?;
                let quotients = self.gpu().tensor(&quotients, 0, x.shape(), DType::F32)?;
                self.input_product_of_columns(dy, norm, effective, wants_dg.then_some(&quotients), &sizes, gradients)?;
                if wants_dg {
                    self.column_dot_sums(x, Some(View::of(&quotients)), None, dg, wanted, write)?;
                }
                None
            }
        };
        if let Some(dv) = dv {
            let of = match norm.axis {
                Axis::Kept(0) => Of::Rows,
                Axis::Kept(_) => Of::Columns,
                Axis::Whole => Of::Whole,
            };
            let end = GradientEnd { of, v: Some(norm.v), out: Some(dv), ..end.clone() };
            self.weight_product(x, dy, &sizes, gradients, &end)?;
        }
        if let (Some(dx), Some(scale)) = (dx, input_end) {
            let end = GradientEnd { scale, out: Some(dx), add: false, ..end };
            self.input_product(dy, norm.v, &sizes, gradients, &end)?;
        }
        Ok(())
    }

    fn check_backward(
        &mut self,
        x: &Tensor,
        weight: Weight<'_>,
        dy: &Tensor,
        u: Option<&Tensor>,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        let v = weight.v();
        let y_shape = crate::linear::y_shape(x, v)?;
        expect_shape(OP, "dy", dy, &y_shape)?;
        let &Gradients { dx, dv, dg, dbias, .. } = gradients;
        let normalized = weight.normalized();
        if let Some(weight) = normalized {
            weight.check(OP)?;
        }
        if let Some(u) = u {
            expect_dtype(OP, "u", u, DType::F32)?;
            expect_shape(OP, "u", u, &y_shape)?;
        }
        let needs_u = normalized.is_some_and(|w| w.axis != Axis::Kept(1)) && (dg.is_some() || dv.is_some());
        if needs_u && u.is_none() {
            return Err(Error::Missing { op: OP, arg: "u" });
        }
        for (arg, tensor, shape) in [("dx", dx, x.shape()), ("dv", dv, v.shape()), ("dbias", dbias, &v.shape()[..1])] {
            if let Some(tensor) = tensor {
                expect_shape(OP, arg, tensor, shape)?;
            }
        }
        match (dg, normalized) {
            (Some(dg), Some(w)) => expect_gain(OP, "dg", dg, &norms_shape(v.shape(), w.axis))?,
            (Some(dg), None) => {
                let expected = "none: an ordinary weight has no gain".to_owned();
                return Err(Error::Shape { op: OP, arg: "dg", got: dg.shape().to_vec(), expected });
            }
            (None, _) => {}
        }
        // What each gradient is made of. dv of a normalized weight takes dg, whether that is asked for or not.
        let of_inputs = normalized.is_some_and(|w| w.axis == Axis::Kept(1));
        let wants_dg = normalized.is_some() && (dg.is_some() || dv.is_some());
        let wants_product = dx.is_some() || (of_inputs && wants_dg);
        let reads_v = wants_product || (normalized.is_some() && dv.is_some());
        let reads_norms = normalized.is_some() && (wants_product || wants_dg);
        let onto = gradients.write == Write::Add;
        let products = u64::from(wants_product) + u64::from(dv.is_some());
        let sums = u64::from(dbias.is_some()) * dy.len() as u64
            + u64::from(wants_dg) * 2 * if of_inputs { x.len() } else { dy.len() } as u64;
        let norms = normalized.filter(|_| reads_norms).map_or(0, |w| w.norms_operations());
        Arguments::new(OP)
            .input_if(dv.is_some() || (of_inputs && wants_dg), "x", x)
            .input_if(reads_v, "weight", v)
            .input_if(wants_product || dv.is_some(), "g", normalized.and_then(|w| w.g))
            .input_if(reads_norms, "known norms", normalized.and_then(|w| w.norms))
            .input("dy", dy)
            .input_if(wants_dg && !of_inputs, "u", u)
            .output("dx", dx)
            .output_onto(onto, "dv", dv)
            .output_onto(onto, "dg", dg)
            .output_onto(onto, "dbias", dbias)
            .operations(products * 2 * x.products(v.shape()[0]) + sums + norms)
            .begin(self)?;
        let cooperative = (dv.is_none() || are_halves([dy, x]))
            && (!wants_product || (are_halves([dy, v]) && (of_inputs || normalized.is_none())));
        gradients.forced().check(OP, self.gpu(), cooperative)
    }

    /// dyᵀ x with an end.
    fn weight_product(
        &mut self,
        x: &Tensor,
        dy: &Tensor,
        sizes: &Sizes,
        gradients: &Gradients<'_>,
        end: &GradientEnd<'_>,
    ) -> Result<(), Error> {
        if sizes.outs * sizes.ins == 0 {
            return Ok(());
        }
        self.product(&Product {
            a: Operand { tensor: dy, along_k: false },
            b: Operand { tensor: x, along_k: false },
            c_bytes: end.c_bytes(),
            rows: sizes.outs,
            columns: sizes.ins,
            depth: sizes.batch,
            forced: gradients.forced(),
            end: &GradientEnd { columns: sizes.ins, ..end.clone() },
        })
    }

    /// dy · v with an end.
    fn input_product(
        &mut self,
        dy: &Tensor,
        v: &Tensor,
        sizes: &Sizes,
        gradients: &Gradients<'_>,
        end: &GradientEnd<'_>,
    ) -> Result<(), Error> {
        if sizes.batch * sizes.ins == 0 {
            return Ok(());
        }
        self.product(&Product {
            a: Operand { tensor: dy, along_k: true },
            b: Operand { tensor: v, along_k: false },
            c_bytes: end.c_bytes(),
            rows: sizes.batch,
            columns: sizes.ins,
            depth: sizes.outs,
            forced: gradients.forced(),
            end: &GradientEnd { columns: sizes.ins, ..end.clone() },
        })
    }

    /// Kept axis 1: q = dy·v, dx = g·(q/n̂) and `quotients` = q/n̂, by the ends of the forward product.
    fn input_product_of_columns(
        &mut self,
        dy: &Tensor,
        norm: WeightNorm<'_>,
        norms: View<'_>,
        quotients: Option<&Tensor>,
        sizes: &Sizes,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        // Without dx the quotients are the product's own result.
        let (y, g, u) = match (gradients.dx, quotients) {
            (Some(dx), quotients) => (dx, norm.g, quotients),
            (None, Some(quotients)) => (quotients, None, None),
            (None, None) => return Ok(()),
        };
        if sizes.batch * sizes.ins == 0 {
            return Ok(());
        }
        let end = LinearEnd {
            norm: Norm::Given,
            norms_in: Some(norms),
            g,
            bias: None,
            y,
            norms_out: None,
            u,
            policy: (0, 0.0),
            activation: crate::Activation::None,
            columns: sizes.ins,
        };
        self.product(&Product {
            a: Operand { tensor: dy, along_k: true },
            b: Operand { tensor: norm.v, along_k: false },
            c_bytes: if u.is_some() { 4 } else { y.dtype().size() },
            rows: sizes.batch,
            columns: sizes.ins,
            depth: sizes.outs,
            forced: gradients.forced(),
            end: &end,
        })
    }
}

/// The sizes of a linear layer.
struct Sizes {
    batch: u64,
    outs: u64,
    ins: u64,
}

impl Sizes {
    /// Of x `[.., ins]` and v `[outs, ins]`, which are checked.
    fn new(x: &Tensor, v: &Tensor) -> Sizes {
        let batch = x.shape()[..x.shape().len() - 1].iter().product::<usize>() as u64;
        Sizes { batch, outs: v.shape()[0] as u64, ins: v.shape()[1] as u64 }
    }
}

/// Which element of C belongs to which norm: END of `product/gradient.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Of {
    Nothing,
    Rows,
    Columns,
    Whole,
}

/// How B is scaled before it is multiplied.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Nothing,
    ByK,
    Whole,
}

/// The ends of `gradient.wgsl`.
#[derive(Clone)]
struct GradientEnd<'a> {
    of: Of,
    scale: Scale,
    /// Four f32 a norm.
    factors: Option<View<'a>>,
    v: Option<&'a Tensor>,
    out: Option<&'a Tensor>,
    add: bool,
    /// Columns of the whole result.
    columns: u64,
}

impl<'a> GradientEnd<'a> {
    fn plain(write: Write) -> Self {
        let (of, scale, add) = (Of::Nothing, Scale::Nothing, write == Write::Add);
        GradientEnd { of, scale, factors: None, v: None, out: None, add, columns: 0 }
    }

    fn c_bytes(&self) -> u64 {
        let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, |t| t.dtype().size());
        bytes(self.out).max(bytes(self.v))
    }
}

impl<'a> End<'a> for GradientEnd<'a> {
    fn kernels(&self) -> [&'static Kernel; 3] {
        [&kernel::GRADIENT, &kernel::GRADIENT_PARTIAL, &kernel::GRADIENT_FINISH]
    }

    fn out(&self) -> DType {
        self.out.map_or(DType::F32, Tensor::dtype)
    }

    fn of(&self, gpu: &Gpu, stage: Stage, window: &Window) -> EndOf<'a> {
        // The norms that the rows, columns or steps of the window belong to.
        let range = match (self.of, self.scale, stage) {
            (Of::Nothing, Scale::ByK, Stage::Whole | Stage::Partial) => Some((window.k, window.depth)),
            (Of::Nothing, Scale::Whole, Stage::Whole | Stage::Partial) => Some((0, 1)),
            (_, _, Stage::Partial) | (Of::Nothing, _, _) => None,
            (Of::Rows, _, _) => Some((window.row, window.rows)),
            (Of::Columns, _, _) => Some((window.column, window.columns)),
            (Of::Whole, _, _) => Some((0, 1)),
        };
        let factors: Bound<'a> = (self.factors.as_ref().zip(range))
            .map_or((None, 0), |(factors, (first, count))| factors.bind(gpu, first, count));
        let mut constants: Constants = vec![("END", self.of as u32)];
        if self.scale == Scale::Whole {
            constants.push(("ONE_SCALE", 1));
        }
        if let Some(dtype @ (DType::F16 | DType::Bf16)) = self.out.map(Tensor::dtype) {
            constants.push(("Y_DTYPE", dtype.code()));
        }
        if stage == Stage::Partial {
            let more_firsts = [0, 0, factors.1, 0];
            return EndOf { constants, buffers: vec![factors.0], firsts: [0, 0], more_firsts, quads: false };
        }
        let of_result = |tensor: Option<&'a Tensor>| -> Bound<'a> {
            tensor.map_or((None, 0), |t| window.of_result(gpu, &View::of(t), self.columns))
        };
        let (out, v) = (of_result(self.out), of_result(self.v));
        let v_dtype = self.v.map_or(DType::F32, Tensor::dtype);
        let quads =
            self.columns.is_multiple_of(4) && out.1.is_multiple_of(4) && v.1.is_multiple_of(4) && v_dtype == DType::F32;
        if !quads || stage == Stage::Finish {
            constants.push(("V_DTYPE", v_dtype.code()));
        }
        constants.push(("ADD", self.add.into()));
        let more_firsts = [0, v.1, factors.1, 0];
        EndOf { constants, buffers: vec![factors.0, out.0, v.0], firsts: [out.1, 0], more_firsts, quads }
    }

    fn scales_b(&self) -> bool {
        self.scale != Scale::Nothing
    }

    fn bytes_per_step(&self) -> u64 {
        if self.scale == Scale::ByK { 16 } else { 0 }
    }

    fn column_sums(&self) -> bool {
        false
    }

    fn policy(&self) -> (u32, f32) {
        (0, 0.0)
    }

    fn slope(&self) -> f32 {
        0.0
    }
}
