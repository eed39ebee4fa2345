//! The gradients of convolutions, checked and recorded.
use super::Conv;
use super::fold::Fold;
use super::geometry::Sides;
use super::kernels::{CHANNEL_MODULE, CHANNEL_SUMS, CHANNEL_THREADS, ChannelParams};
use super::layer::Ends;
use super::plan::{Product, check_tile};
use super::record::{apply, check_ends, check_parameters, of_input, of_output, weights};
#[cfg(doc)]
use crate::LimitError;
use crate::activation::gradient::ActivationGradient;
use crate::arguments::{Arguments, expect_gain, expect_shape};
use crate::binding::bind;
use crate::contract::norms_shape;
use crate::linear::epilogue::NormSource;
use crate::memory::Scratch;
use crate::record::Dispatch;
use crate::vectors;
use crate::weight::backward::{adds_pieces, gradients_of_weight};
use crate::windows::{MAX_ITERATIONS, windows};
use crate::{Activation, ArgumentError, DType, Error, Gpu, Gradients, LinearGradients, Recorder, Tensor, WeightNorm};

impl Gpu {
    /// The gradients of a convolution, given dy, the gradient of its y: see [`Recorder::conv_backward`].
    ///
    /// # Errors
    /// As [`Recorder::conv_backward`].
    pub fn conv_backward(&self, conv: Conv<'_>, dy: &Tensor) -> Result<LinearGradients, Error> {
        self.allocated(&conv, |sides| sides.wide, |ops, wanted| ops.conv_backward(conv, dy, wanted))
    }

    /// The gradients of a transposed convolution, given dy: see [`Recorder::conv_transposed_backward`].
    ///
    /// # Errors
    /// As [`Recorder::conv_backward`].
    pub fn conv_transposed_backward(&self, conv: Conv<'_>, dy: &Tensor) -> Result<LinearGradients, Error> {
        let outs = |sides: &Sides| sides.groups * sides.channels;
        self.allocated(&conv, outs, |ops, wanted| ops.conv_transposed_backward(conv, dy, wanted))
    }

    fn allocated(
        &self,
        conv: &Conv<'_>,
        outs: impl Fn(&Sides) -> usize,
        record: impl FnOnce(&mut Recorder<'_, '_>, &Gradients<'_>) -> Result<(), Error>,
    ) -> Result<LinearGradients, Error> {
        let (x, v) = (conv.x, conv.weight.v());
        let sides = Sides::of_weight("conv_backward", &conv.geometry, v.shape())?;
        let (dx, dv) = (self.zeros(x.shape(), x.dtype())?, self.zeros(v.shape(), v.dtype())?);
        let dg = conv.weight.normalized().map(|w| self.zeros(&norms_shape(v.shape(), w.axis), DType::F32));
        let (dg, dbias) = (dg.transpose()?, self.zeros(&[outs(&sides)], DType::F32)?);
        let wanted =
            Gradients { dx: Some(&dx), dv: Some(&dv), dg: dg.as_ref(), dbias: Some(&dbias), ..Default::default() };
        self.run(|ops| record(ops, &wanted))?;
        Ok(LinearGradients { dx, dv, dg, dbias })
    }
}

impl Recorder<'_, '_> {
    /// Records the gradients of the convolution `conv` into the wanted ones of `gradients`, given dy.
    ///
    /// ```text
    /// dx[b, gI + i, t] = Σ_j,κ w[j, i, κ] · dy[b, j, u]                       over u·stride + κ·dilation − padding = t
    /// dw[j, i, κ] = Σ_b,u dy[b, j, u] · x[b, gI + i, u·stride + κ·dilation − padding]        dbias_j = Σ_b,u dy[b, j, u]
    /// dg_j = Σ dw·(v/n̂_j)        dv = (g_j/n̂_j)·(dw − dg_j·(v/d_j))
    /// ```
    ///
    /// - `conv`: what the forward pass was asked for; its bias plays no part. `dy`: y's shape. Of `gradients` dx has
    ///   the shape of x, dv that of v, dg that of the norms or flat, dbias is `[out]`; any storage types. dx is
    ///   written, the others as [`Gradients::accumulate`] says.
    /// - With ends, z = scale · (sums + bias + residual) + old and y = act(z): dy is first multiplied by scale · act'(z),
    ///   into scratch memory in its storage type, and dx at last by the derivative of the activation of x. The
    ///   derivative at z follows from y, which [`Conv::output`] names. What was added to y gets dy · act'(z), a residual
    ///   scale times that: see [`ActivationBackward`](crate::ActivationBackward).
    /// - dx is a transposed convolution, and needs what [`Conv`] says of one. No matrix of windows is stored. dw has to
    ///   be representable in f32, and so have its sums over pieces of the positions; of an ordinary weight it goes to
    ///   dv. In scratch memory it is whole, or those pieces alone, 64 MiB of them at most.
    /// - Beside a padding of other than zeros dx has first the size of the padded x, in scratch memory, f32; then each
    ///   element is the sum, in order, over all padded positions at which it was read.
    ///
    /// # Dispatches
    /// - dx: those of [`Gpu::conv_transposed`], one more beside a padding of other than zeros, and one through an
    ///   activation of x.
    /// - dv and dg together: one product, and those of [`NormalizeBackward`](crate::NormalizeBackward). Two in all
    ///   where these are one: where a workgroup can hold the rows. It adds up the pieces of sums that are formed in
    ///   pieces; where it cannot, that takes one more.
    /// - dbias: one. One for all together behind an activation of y or a scale. A dg or dbias that is not f32 takes one
    ///   more, two with [`Gradients::accumulate`].
    /// - Past limits more: see [`Conv`]; of dv images are parts of the sum, dbias has a dispatch for each window of dy.
    ///
    /// # Errors
    /// As [`Conv`]; [`ArgumentError::Missing`] without the y that an activation wants; [`ArgumentError::Variant`] for
    /// a snake, and for an activation of y whose derivative does not follow from y; [`LimitError::TooLarge`] where more
    /// than 60,000 padded positions repeat one element of x.
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
    fn y_shape(&self) -> Vec<usize> {
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
        let &Gradients { dg, dbias, accumulate, .. } = gradients;
        let conv = self.conv;
        let bent = conv.activation != Activation::None || conv.scale != 1.0;
        let dz = match bent && gradients.any() {
            true => {
                let at = ActivationGradient::new(conv.activation, conv.output, self.dy);
                Some(ActivationGradient { from_output: true, scale: conv.scale, ..at }.record_into_scratch(ops)?)
            }
            false => None,
        };
        // What follows is linear.
        let linear = Backward { dy: dz.as_ref().unwrap_or(self.dy), ..*self };
        vectors::in_f32(ops, (accumulate, true), [dg, dbias], |ops, [dg, dbias]| {
            linear.of_checked(ops, &Gradients { dg, dbias, ..*gradients }, (&dx, padded.as_ref()), &dv)
        })
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
        }
        let (c, a) = self.operands(dy);
        // x is read as the forward pass read it, whichever operand it is.
        let mut inputs = [conv.input_activation, Activation::None];
        if self.transposed {
            inputs.reverse();
        }
        let ends = Ends { inputs, ..Ends::default() };
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
        gradients.dbias.map_or(Ok(()), |dbias| channel_sums(ops, dy, &self.y_shape(), dbias, add))
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
        let &Gradients { dx, dv, dg, dbias, accumulate } = gradients;
        let (x, v, normalized) = (conv.x, conv.weight.v(), conv.weight.normalized());
        let y_shape = self.y_shape();
        expect_shape(op, "dy", dy, &y_shape)?;
        check_ends(op, conv)?;
        let refused =
            |got: String, reason: &str| Err(ArgumentError::Variant { op, got, reason: reason.to_owned() }.into());
        if conv.activation != Activation::None {
            conv.activation.check_from_output(op)?;
            let y = conv.output.ok_or(ArgumentError::Missing { op, arg: "output" })?;
            expect_shape(op, "output", y, &y_shape)?;
        }
        if conv.input_snake.is_some() || conv.snake.is_some() {
            return refused("snake".to_owned(), "it has no gradient here yet");
        }
        if let Some(weight) = normalized {
            weight.check(op)?;
        }
        for (arg, tensor, shape) in [("dx", dx, x.shape()), ("dv", dv, v.shape()), ("dbias", dbias, &y_shape[1..2])] {
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
        check_parameters(ops)?;
        let windows = if self.transposed { x } else { dy };
        let products = windows.len() as u64 * v.shape()[1..].iter().product::<usize>() as u64;
        let weights = dv.is_some() || dg.is_some();
        let norms = normalized.filter(|_| weights || dx.is_some()).map_or(0, |w| w.norms_operations());
        Arguments::new(op)
            .input_if(conv.activation != Activation::None, "output", conv.output)
            .input_if(weights || (dx.is_some() && conv.input_activation != Activation::None), "x", x)
            .input_if(weights || dx.is_some(), "weight", v)
            .input_if(weights || dx.is_some(), "g", normalized.and_then(|w| w.g))
            .input_if(weights || dx.is_some(), "known norms", normalized.and_then(|w| w.norms))
            .input("dy", dy)
            .output("dx", dx)
            .output_onto(accumulate, "dv", dv)
            .output_onto(accumulate, "dg", dg)
            .output_onto(accumulate, "dbias", dbias)
            .operations(2 * products * (u64::from(dx.is_some()) + u64::from(weights)) + norms)
            .begin(ops)
    }
}

fn channel_sums(
    ops: &mut Recorder<'_, '_>,
    dy: &Tensor,
    shape: &[usize],
    dbias: &Tensor,
    add: bool,
) -> Result<(), Error> {
    let capacities = ops.facts().capacities;
    let [images, channels] = [shape[0], shape[1]].map(|n| n as u64);
    let positions = shape[2..].iter().product::<usize>() as u64;
    let image = channels * positions;
    // What an invocation can loop over, and what a binding holds.
    let of_channel = MAX_ITERATIONS * CHANNEL_THREADS;
    let elements = capacities.step().bound(dy.dtype().size()).work(1).get();
    let at_once = channels.min((elements / positions.max(1)).max(1)).min(capacities.groups);
    let whole = at_once == channels && positions <= of_channel.min(elements);
    let images_at_once = if whole { (elements / image.max(1)).min(of_channel / positions.max(1)) } else { 1 };
    let part = positions.min(of_channel).min(elements).max(1);
    for (channel, channel_count) in windows(channels, at_once) {
        let (target, out_first) = bind(capacities, Some(dbias), channel, channel_count);
        // Without elements the sums are zero all the same.
        let pieces = windows(images.max(1), images_at_once.max(1))
            .flat_map(|images| windows(positions.max(1), part).map(move |part| (images, part)));
        for ((first_image, image_count), (first, count)) in pieces {
            let (image_count, count) = (image_count.min(images), count.min(positions));
            let range = match image_count * count {
                0 => 0,
                _ => (image_count - 1) * image + (channel_count - 1) * positions + count,
            };
            let (source, dy_first) =
                bind(capacities, Some(dy), first_image * image + channel * positions + first, range);
            let add = add || first_image > 0 || first > 0;
            ops.dispatch(&Dispatch {
                kernel: &CHANNEL_SUMS,
                module: CHANNEL_MODULE,
                constants: &vec![("DY_DTYPE", dy.dtype().code()), ("ADD", add.into())],
                buffers: &[source, target.clone()],
                params: ChannelParams {
                    channels: channel_count as u32,
                    positions: count as u32,
                    images: image_count as u32,
                    image: image as u32,
                    channel: positions as u32,
                    dy_first,
                    out_first,
                },
                groups: channel_count,
                work: image_count * channel_count * count,
            })?;
        }
    }
    Ok(())
}
