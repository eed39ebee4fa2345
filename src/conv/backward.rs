//! The gradients of convolutions, checked and recorded.
use super::Conv;
use super::ends_backward::{channel_sums, gate_gradient, snake_gradient};
use super::fold::Fold;
use super::geometry::Sides;
use super::layer::{Ends, Extra};
use super::plan::{Product, check_tile};
use super::record::{apply, check_ends, check_parameters, of_input, of_output, weights};
use super::record::{check_alpha, residual_name, y_shape};
use crate::activation::gradient::ActivationGradient;
use crate::arguments::{Arguments, expect_gain, expect_shape};
use crate::contract::norms_shape;
use crate::linear::epilogue::NormSource;
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::backward::{adds_pieces, gradients_of_weight};
use crate::weight::rescale::copy;
use crate::{Activation, ArgumentError, DType, Error, Gpu, Gradients, LimitError, Recorder, Tensor, WeightNorm};

/// The gradients of a convolution, as [`Gpu::conv_backward`] and [`Gpu::conv_transposed_backward`] return them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConvGradients {
    /// Of x, in its storage type.
    pub dx: Tensor,
    /// Of v, or of an ordinary weight, in its storage type.
    pub dv: Tensor,
    /// Of g, f32, in the norms' shape; none for an ordinary weight. Without g it is what a gain of 1 would get.
    pub dg: Option<Tensor>,
    /// Of the bias, f32, `[out]`.
    pub dbias: Tensor,
    /// Of α of [`Conv::input_snake`], f32, in its shape.
    pub dalpha: Option<Tensor>,
    /// Of [`Conv::condition`], in its storage type.
    pub dcondition: Option<Tensor>,
}

impl Gpu {
    /// The gradients of a convolution, given dy, the gradient of its y: see [`Recorder::conv_backward`].
    ///
    /// # Errors
    /// As [`Recorder::conv_backward`].
    pub fn conv_backward(&self, conv: Conv<'_>, dy: &Tensor) -> Result<ConvGradients, Error> {
        self.allocated("conv_backward", &conv, |sides| sides.wide, |ops, wanted| ops.conv_backward(conv, dy, wanted))
    }

    /// The gradients of a transposed convolution, given dy: see [`Recorder::conv_transposed_backward`].
    ///
    /// # Errors
    /// As [`Recorder::conv_backward`].
    pub fn conv_transposed_backward(&self, conv: Conv<'_>, dy: &Tensor) -> Result<ConvGradients, Error> {
        let outs = |sides: &Sides| sides.groups * sides.channels;
        self.allocated("conv_transposed_backward", &conv, outs, |ops, wanted| {
            ops.conv_transposed_backward(conv, dy, wanted)
        })
    }

    fn allocated(
        &self,
        op: &'static str,
        conv: &Conv<'_>,
        outs: impl Fn(&Sides) -> usize,
        record: impl FnOnce(&mut Recorder<'_, '_>, &Gradients<'_>) -> Result<(), Error>,
    ) -> Result<ConvGradients, Error> {
        let (x, v) = (conv.x, conv.weight.v());
        let sides = Sides::of_weight(op, &conv.geometry, v.shape())?;
        let (dx, dv) = (self.zeros(x.shape(), x.dtype())?, self.zeros(v.shape(), v.dtype())?);
        let dg = conv.weight.normalized().map(|w| self.zeros(&norms_shape(v.shape(), w.axis), DType::F32));
        let (dg, dbias) = (dg.transpose()?, self.zeros(&[outs(&sides)], DType::F32)?);
        let dalpha = conv.input_snake.map(|alpha| self.zeros(alpha.shape(), DType::F32)).transpose()?;
        let condition = conv.residual.filter(|_| conv.gate.is_some());
        let dcondition = condition.map(|condition| self.zeros(condition.shape(), condition.dtype())).transpose()?;
        let wanted = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias).dalpha(&dalpha).dcondition(&dcondition);
        self.run(|ops| record(ops, &wanted))?;
        Ok(ConvGradients { dx, dv, dg, dbias, dalpha, dcondition })
    }
}

impl Recorder<'_, '_> {
    /// Records the gradients of the convolution `conv` into the wanted ones of `gradients`, given dy.
    ///
    /// ```text
    /// dx[b, gI + i, t] = Σ_j,κ w[j, i, κ] · dy[b, j, u]                       over u·stride + κ·dilation − padding = t
    /// dw[j, i, κ] = Σ_b,u dy[b, j, u] · x[b, gI + i, u·stride + κ·dilation − padding]        dbias_j = Σ_b,u dy[b, j, u]
    /// dα_i = Σ_b,t d[b, i, t] · (x·sin(2αx)/(α + 1e-9) − (sin(αx)/(α + 1e-9))²)        d: the gradient of snake(x)
    /// dg_j = Σ dw·(v/n̂_j)        dv = (g_j/n̂_j)·(dw − dg_j·(v/d_j))
    /// ```
    ///
    /// - `conv`: what the forward pass was asked for; its bias plays no part but where there is a gate. `dy`: y's
    ///   shape. Of `gradients` dx has the shape of x, dv that of v, dg that of the norms or flat, dbias is `[out]`; any
    ///   storage types. dx is written, the others as [`Gradients::accumulate`] says.
    /// - With ends, z = scale · (sums + bias + residual) + old and y = act(z): dy is first multiplied by scale · act'(z),
    ///   into scratch memory in its storage type, and dx at last by the derivative of the activation of x. The
    ///   derivative at z follows from y, which [`Conv::output`] names. What was added to y gets dy · act'(z), a residual
    ///   scale times that: see [`ActivationBackward`](crate::ActivationBackward).
    /// - With [`Conv::gate`] nothing that its gradient wants was kept: the sums are formed once more, and become dz in
    ///   scratch memory, f32, which has to fit a binding. dz, the scale included, is what
    ///   [`Gradients::dcondition`] gets.
    /// - With [`Conv::input_snake`] d, the gradient of snake(x), is stored in dx first, and dα summed up from it:
    ///   [`Gradients::dalpha`] wants dx too. Then dx = d · (1 + α·sin(2αx)/(α + 1e-9)). x has to fit a binding.
    /// - dx is a transposed convolution, and needs what [`Conv`] says of one. No matrix of windows is stored. dw has to
    ///   be representable in f32, and so have its sums over pieces of the positions; of an ordinary weight it goes to
    ///   dv. In scratch memory it is whole, or those pieces alone, 32 MiB of them at most.
    /// - Beside a padding of other than zeros dx has first the size of the padded x, in scratch memory, f32; then each
    ///   element is the sum, in order, over all padded positions at which it was read.
    ///
    /// # Dispatches
    /// - dx: those of [`Gpu::conv_transposed`], one more beside a padding of other than zeros, and one through an
    ///   activation or a snake of x. dalpha: one.
    /// - dv and dg together: one product, and those of [`NormalizeBackward`](crate::NormalizeBackward). Two in all
    ///   where these are one: where a workgroup can hold the rows. It adds up the pieces of sums that are formed in
    ///   pieces; where it cannot, that takes one more.
    /// - dbias: one. One for all together behind an activation of y or a scale. A dg or dbias that is not f32 takes one
    ///   more, two with [`Gradients::accumulate`].
    /// - A gate: those of the forward pass, one, and one for dcondition.
    /// - Past limits more: see [`Conv`]; of dv images are parts of the sum, dbias has a dispatch for each window of dy.
    ///
    /// # Errors
    /// As [`Conv`]; [`ArgumentError::Missing`] without the y that an activation wants, and for dalpha without dx;
    /// [`ArgumentError::Variant`] for a snake of y, and for an activation of y whose derivative does not follow from y;
    /// [`LimitError::TooLarge`] where more than some 60,000 padded positions repeat one element of x, and for z of a
    /// gate, or x or dx of a snake, past a binding.
    pub fn conv_backward(&mut self, conv: Conv<'_>, dy: &Tensor, gradients: &Gradients<'_>) -> Result<(), Error> {
        let op = "conv_backward";
        let sides = Sides::of_conv(op, &conv.geometry, conv.x.shape(), conv.weight.v().shape())?;
        let backward = Backward { op, conv: &conv, dy, sides, transposed: false };
        backward.record(self, gradients)
    }

    /// Records the gradients of the transposed convolution `conv`, as [`Recorder::conv_backward`] has them: dx is a
    /// convolution of dy, with the dispatches of [`Gpu::conv`].
    ///
    /// # Errors
    /// As [`Recorder::conv_backward`].
    pub fn conv_transposed_backward(
        &mut self,
        conv: Conv<'_>,
        dy: &Tensor,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        let op = "conv_transposed_backward";
        let sides = Sides::of_transposed(op, &conv.geometry, conv.x.shape(), conv.weight.v().shape())?;
        Backward { op, conv: &conv, dy, sides, transposed: true }.record(self, gradients)
    }
}

struct Backward<'a> {
    op: &'static str,
    conv: &'a Conv<'a>,
    dy: &'a Tensor,
    sides: Sides,
    transposed: bool,
}

impl Backward<'_> {
    /// Of the sums: y's, but behind a gate.
    fn z_shape(&self) -> Vec<usize> {
        if self.transposed { self.sides.a_shape() } else { self.sides.c_shape() }
    }

    fn norm_of_dx(&self) -> NormSource {
        if self.transposed { of_output(self.conv) } else { of_input(self.conv) }
    }

    /// c and a, given dy or what stands for it.
    fn operands<'t>(&'t self, dy: &'t Tensor) -> (&'t Tensor, &'t Tensor) {
        if self.transposed { (self.conv.x, dy) } else { (dy, self.conv.x) }
    }

    fn record(&self, ops: &mut Recorder<'_, '_>, gradients: &Gradients<'_>) -> Result<(), Error> {
        let sides = &self.sides;
        // What is past a limit is found before anything is recorded.
        let by_taps = self.conv.taps_are_kept();
        let fold = if self.transposed || gradients.dx.is_none() { None } else { Fold::of(sides)? };
        let whole = fold.as_ref().map_or(sides, |fold| &fold.padded);
        let dx = if self.transposed { Product::windows(sides)? } else { Product::phases(whole, by_taps)? };
        let dv = Product::taps(sides)?;
        self.check(ops, gradients, [&dx, &dv], fold.is_some())?;
        let padded = fold.map(|fold| Ok::<_, Error>((fold, fold.scratch(ops)?))).transpose()?;
        let &Gradients { dg, dbias, dalpha, accumulate, .. } = gradients;
        let dz = self.record_dz(ops, gradients)?;
        // What follows is linear.
        let linear = Backward { dy: dz.as_ref().unwrap_or(self.dy), ..*self };
        vectors::in_f32(ops, (accumulate, true), [dg, dbias, dalpha], |ops, [dg, dbias, dalpha]| {
            linear.of_checked(ops, &Gradients { dg, dbias, dalpha, ..*gradients }, (&dx, padded.as_ref()), &dv)
        })
    }

    /// The gradient of the sums in scratch memory, where it is not dy; that of a condition with it.
    fn record_dz(&self, ops: &mut Recorder<'_, '_>, gradients: &Gradients<'_>) -> Result<Option<Tensor>, Error> {
        let conv = self.conv;
        if !gradients.any() {
            return Ok(None);
        }
        if let Some(gate) = conv.gate {
            let (shape, bytes) = (self.z_shape(), self.z_bytes());
            let scratch = ops.scratch(Scratch::ActivationGradient, bytes)?;
            let z = Tensor::in_scratch(ops.gpu(), scratch, 0, &shape);
            let ungated = Conv { gate: None, norms: None, scales: None, ..*conv };
            apply(ops, &ungated, &z, &Product::windows(&self.sides)?, of_output(conv))?;
            gate_gradient(ops, gate, self.dy, &z, conv.scale)?;
            gradients.dcondition.map_or(Ok(()), |dcondition| copy(ops, &z, dcondition))?;
            return Ok(Some(z));
        }
        if conv.activation == Activation::None && conv.scale == 1.0 {
            return Ok(None);
        }
        let at = ActivationGradient::new(conv.activation, conv.output, self.dy);
        ActivationGradient { from_output: true, scale: conv.scale, ..at }.record_into_scratch(ops).map(Some)
    }

    /// Of the sums in f32.
    fn z_bytes(&self) -> u64 {
        self.z_shape().iter().product::<usize>() as u64 * DType::F32.size()
    }

    fn of_checked(
        &self,
        ops: &mut Recorder<'_, '_>,
        gradients: &Gradients<'_>,
        (of_dx, padded): (&Product, Option<&(Fold, Tensor)>),
        of_dv: &Product,
    ) -> Result<(), Error> {
        let (conv, dy) = (self.conv, self.dy);
        let normalized = conv.weight.normalized();
        let (selection, add) = (conv.selection, gradients.accumulate);
        if let Some(dx) = gradients.dx {
            let of_dy = Conv::new(dy, conv.weight).geometry(conv.geometry);
            let of_dy = Conv { selection, ..of_dy };
            apply(ops, &of_dy, padded.map_or(dx, |(_, padded)| padded), of_dx, self.norm_of_dx())?;
            padded.map_or(Ok(()), |(fold, padded)| fold.record(ops, padded, dx))?;
            if conv.input_activation != Activation::None {
                ActivationGradient::new(conv.input_activation, Some(conv.x), dx).record(ops, dx)?;
            }
            if let Some(alpha) = conv.input_snake {
                let snake = Some((conv.x, alpha));
                gradients.dalpha.map_or(Ok(()), |dalpha| channel_sums(ops, dx, snake, dalpha, add))?;
                snake_gradient(ops, conv.x, alpha, dx)?;
            }
        }
        let (c, a) = self.operands(dy);
        // x is read as the forward pass read it, whichever operand it is.
        let mut inputs = [conv.input_activation, Activation::None];
        if self.transposed {
            inputs.reverse();
        }
        let snake = if self.transposed { Extra::SnakeOfB } else { Extra::InputSnake };
        let ends = Ends { inputs, extra: conv.input_snake.map(|alpha| (snake, alpha)), ..Ends::default() };
        match normalized {
            None => {
                if let Some(dv) = gradients.dv.filter(|dv| !dv.is_empty()) {
                    weights(of_dv, (a, c), dv, Ends { add, ..ends }).record(ops, selection)?;
                }
            }
            Some(weight) if gradients.dv.is_some() || gradients.dg.is_some() => {
                let dw = self.dw(ops, of_dv, (a, c), ends, weight, gradients.dv)?;
                gradients_of_weight(ops, &dw, weight, gradients.dv, gradients.dg, add)?;
            }
            Some(_) => {}
        }
        gradients.dbias.map_or(Ok(()), |dbias| channel_sums(ops, dy, None, dbias, add))
    }

    /// dw in scratch memory: the pieces of its sums, where the gradients add these up, else whole.
    fn dw(
        &self,
        ops: &mut Recorder<'_, '_>,
        product: &Product,
        operands: (&Tensor, &Tensor),
        ends: Ends<'_>,
        weight: WeightNorm<'_>,
        dv: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let (v, selection, facts) = (weight.v, self.conv.selection, ops.facts());
        if !v.is_empty() {
            // v stands for dw, which has its shape.
            let in_pieces = weights(product, operands, v, ends);
            if let Some(pieces) = in_pieces.pieces(facts, selection)?
                && adds_pieces(facts, weight, dv, pieces.count)?
            {
                let memory = ops.scratch(Scratch::Sums, pieces.count * v.len() as u64 * 4)?;
                in_pieces.record_pieces(ops, &pieces, memory.clone())?;
                let shape = [&[pieces.count as usize], v.shape()].concat();
                return Ok(Tensor::in_scratch(ops.gpu(), memory, 0, &shape));
            }
        }
        let memory = ops.scratch(Scratch::Factors, v.len() as u64 * 4)?;
        let dw = Tensor::in_scratch(ops.gpu(), memory, 0, v.shape());
        if !v.is_empty() {
            weights(product, operands, &dw, ends).record(ops, selection)?;
        }
        Ok(dw)
    }

    fn check(
        &self,
        ops: &mut Recorder<'_, '_>,
        gradients: &Gradients<'_>,
        [of_dx, of_dv]: [&Product; 2],
        folds: bool,
    ) -> Result<(), Error> {
        let &Backward { op, conv, dy, sides: _, transposed: _ } = self;
        let &Gradients { dx, dv, dg, dbias, dalpha, dcondition, accumulate, .. } = gradients;
        let (x, v, normalized) = (conv.x, conv.weight.v(), conv.weight.normalized());
        check_ends(op, conv)?;
        let (gate, z_shape) = (conv.gate.filter(|_| gradients.any()), self.z_shape());
        let y_shape = if conv.gate.is_some() { y_shape(op, conv)? } else { z_shape.clone() };
        expect_shape(op, "dy", dy, &y_shape)?;
        if conv.activation != Activation::None {
            conv.activation.check_from_output(op)?;
            let y = conv.output.ok_or(ArgumentError::Missing { op, arg: "output" })?;
            expect_shape(op, "output", y, &y_shape)?;
        }
        if conv.snake.is_some() {
            let reason = "its derivative does not follow from y: give it to the next layer as input_snake".to_owned();
            return Err(ArgumentError::Variant { op, got: "snake".to_owned(), reason }.into());
        }
        let condition = self.check_ends_gradients(gradients, &z_shape)?;
        if let Some(weight) = normalized {
            weight.check(op)?;
        }
        for (arg, tensor, shape) in [("dx", dx, x.shape()), ("dv", dv, v.shape()), ("dbias", dbias, &z_shape[1..2])] {
            tensor.map_or(Ok(()), |tensor| expect_shape(op, arg, tensor, shape))?;
        }
        match (dg, normalized) {
            (Some(dg), Some(w)) => expect_gain(op, "dg", dg, &norms_shape(v.shape(), w.axis))?,
            (Some(dg), None) => {
                let expected = "none: an ordinary weight has no gain".to_owned();
                return Err(ArgumentError::Shape { op, arg: "dg", got: dg.shape().to_vec(), expected }.into());
            }
            (None, _) => {}
        }
        check_tile(op, conv.selection.tile, dv.is_some() || dg.is_some())?;
        conv.selection.check_device(op, ops.facts().traits, false)?;
        if let Some(dx) = dx {
            let squares = self.norm_of_dx() == NormSource::Fused;
            let made = if folds { DType::F32 } else { dx.dtype() };
            of_dx.plan(ops.facts(), [dy.dtype(), v.dtype(), made], squares, conv.selection)?;
        }
        if dv.is_some() || dg.is_some() {
            let (c, a) = self.operands(dy);
            let dw = dv.filter(|_| normalized.is_none()).map_or(DType::F32, Tensor::dtype);
            of_dv.plan(ops.facts(), [a.dtype(), c.dtype(), dw], false, conv.selection)?;
        }
        if gate.is_some() {
            let dtypes = [x.dtype(), v.dtype(), DType::F32];
            let squares = of_output(conv) == NormSource::Fused;
            Product::windows(&self.sides)?.plan(ops.facts(), dtypes, squares, conv.selection)?;
        }
        self.check_whole(ops.facts().capacities.binding, gate.is_some(), dx)?;
        check_parameters(ops)?;
        let windows = if self.transposed { x.len() } else { z_shape.iter().product() };
        let products = windows as u64 * v.shape()[1..].iter().product::<usize>() as u64;
        let weights = dv.is_some() || dg.is_some();
        let read = weights || dx.is_some() || gate.is_some();
        let bent = conv.input_activation != Activation::None || conv.input_snake.is_some();
        let norms = normalized.filter(|_| read).map_or(0, |w| w.norms_operations());
        let times = [dx.is_some(), weights, gate.is_some()].into_iter().map(u64::from).sum::<u64>();
        Arguments::new(op)
            .input_if(conv.activation != Activation::None, "output", conv.output)
            .input_if(weights || gate.is_some() || (dx.is_some() && bent), "x", x)
            .input_if(read, "weight", v)
            .input_if(read, "g", normalized.and_then(|w| w.g))
            .input_if(read, "known norms", normalized.and_then(|w| w.norms))
            .input_if(read, "input_snake", conv.input_snake)
            .input("bias", conv.bias.filter(|_| gate.is_some()))
            .input("condition", condition)
            .input("dy", dy)
            .output("dx", dx)
            .output_onto(accumulate, "dv", dv)
            .output_onto(accumulate, "dg", dg)
            .output_onto(accumulate, "dbias", dbias)
            .output_onto(accumulate, "dalpha", dalpha)
            .output("dcondition", dcondition)
            .operations(2 * products * times + norms)
            .begin(ops)
    }

    /// What elementwise gradients bind whole: z, or x and dx.
    fn check_whole(&self, limit: u64, gated: bool, dx: Option<&Tensor>) -> Result<(), Error> {
        let at_most = |what, size| match size > limit {
            true => Err(Error::from(LimitError::TooLarge { what, size, limit })),
            false => Ok(()),
        };
        if gated {
            at_most("what the gate was given in bytes", self.z_bytes())?;
        }
        match dx.filter(|_| self.conv.input_snake.is_some()) {
            Some(dx) => at_most("x of a snake in bytes", self.conv.x.bytes().max(dx.bytes())),
            None => Ok(()),
        }
    }

    /// α, what the sums need once more where there is a gate, and the gradients of both. The gate's condition.
    fn check_ends_gradients(&self, gradients: &Gradients<'_>, z_shape: &[usize]) -> Result<Option<&Tensor>, Error> {
        let &Backward { op, conv, .. } = self;
        let &Gradients { dx, dalpha, dcondition, .. } = gradients;
        gradients.expect_none_of_dora(op)?;
        check_alpha(op, "input_snake", conv.input_snake, conv.x.shape()[1])?;
        match (dalpha, conv.input_snake) {
            (Some(_), Some(_)) if dx.is_none() => return Err(ArgumentError::Missing { op, arg: "dx" }.into()),
            (Some(_), Some(alpha)) => check_alpha(op, "dalpha", dalpha, alpha.len())?,
            _ => Gradients::expect_none(op, &[("dalpha", dalpha)])?,
        }
        let gated = conv.gate.is_some();
        let (bias, condition) = (conv.bias.filter(|_| gated), conv.residual.filter(|_| gated));
        bias.map_or(Ok(()), |bias| expect_shape(op, "bias", bias, &z_shape[1..2]))?;
        condition.map_or(Ok(()), |condition| expect_shape(op, residual_name(conv), condition, z_shape))?;
        match (dcondition, condition) {
            (Some(dcondition), Some(_)) => expect_shape(op, "dcondition", dcondition, z_shape)?,
            _ => Gradients::expect_none(op, &[("dcondition", dcondition)])?,
        }
        Ok(condition)
    }
}
