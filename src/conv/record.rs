//! Convolutions, checked and recorded.
use super::Conv;
use super::geometry::Sides;
use super::kernels::CONV_WHOLE;
use super::layer::{Ends, Layer};
use super::plan::{Product, check_tile};
use crate::arguments::{Arguments, expect_per_norm, expect_scales, expect_shape};
use crate::binding::View;
use crate::contract::{Range, norms_shape};
use crate::linear::epilogue::NormSource;
use crate::weight::job::NormOutput;
use crate::weight::norms::{norms_into, scales};
use crate::weight::place::Region;
use crate::{Activation, ArgumentError, Axis, DeviceError, Error, Gpu, ParameterPassing, Recorder, Tensor};

impl Gpu {
    /// A convolution: see [`Conv`].
    ///
    /// # Errors
    /// As [`Conv`] lists them.
    pub fn conv(&self, conv: Conv<'_>) -> Result<Tensor, Error> {
        let y = self.zeros_of("conv: y", &y_shape("conv", &conv)?, conv.x.dtype())?;
        self.run(|ops| ops.conv(conv, &y))?;
        Ok(y)
    }

    /// A transposed convolution: see [`Conv`].
    ///
    /// # Errors
    /// As [`Conv`] lists them.
    pub fn conv_transposed(&self, conv: Conv<'_>) -> Result<Tensor, Error> {
        let shape = conv.geometry.conv_transposed_shape(conv.x.shape(), conv.weight.v().shape())?;
        let y = self.zeros_of("conv_transposed: y", &shape, conv.x.dtype())?;
        self.run(|ops| ops.conv_transposed(conv, &y))?;
        Ok(y)
    }
}

impl Recorder<'_, '_> {
    /// Records a convolution into `y`: [`ConvGeometry::conv_shape`](crate::ConvGeometry::conv_shape), with half the
    /// channels behind a [`Conv::gate`]; any storage type.
    ///
    /// # Errors
    /// As [`Conv`] lists them.
    pub fn conv(&mut self, conv: Conv<'_>, y: &Tensor) -> Result<(), Error> {
        let op = "conv";
        let sides = Sides::of_conv(op, &conv.geometry, conv.x.shape(), conv.weight.v().shape())?;
        let product = Product::windows(&sides)?.gated(conv.gate);
        expect_shape(op, "y", y, &y_shape(op, &conv)?)?;
        let norm = of_output(&conv);
        check(self, op, &conv, y, [sides.wide, sides.groups * sides.channels], (&product, norm))?;
        apply(self, &conv, y, &product, norm)
    }

    /// Records a transposed convolution into `y`:
    /// [`ConvGeometry::conv_transposed_shape`](crate::ConvGeometry::conv_transposed_shape), any storage type.
    ///
    /// # Errors
    /// As [`Conv`] lists them.
    pub fn conv_transposed(&mut self, conv: Conv<'_>, y: &Tensor) -> Result<(), Error> {
        let op = "conv_transposed";
        let sides = Sides::of_transposed(op, &conv.geometry, conv.x.shape(), conv.weight.v().shape())?;
        expect_shape(op, "y", y, &sides.a_shape())?;
        let product = Product::phases(&sides, conv.taps_are_kept())?;
        let norm = of_input(&conv);
        check(self, op, &conv, y, [sides.groups * sides.channels, sides.wide], (&product, norm))?;
        apply(self, &conv, y, &product, norm)
    }
}

/// The shape of y of a convolution, behind a gate too.
pub(crate) fn y_shape(op: &'static str, conv: &Conv<'_>) -> Result<Vec<usize>, Error> {
    let v_shape = conv.weight.v().shape();
    let mut shape = Sides::of_conv(op, &conv.geometry, conv.x.shape(), v_shape)?.c_shape();
    if conv.gate.is_some() {
        if !shape[1].is_multiple_of(2) {
            let expected = "an even number of output channels, for a gate".to_owned();
            return Err(ArgumentError::Shape { op, arg: "weight", got: v_shape.to_vec(), expected }.into());
        }
        shape[1] /= 2;
    }
    Ok(shape)
}

/// Where the norms come from in a product whose columns are axis 0 of v.
pub(crate) fn of_output(conv: &Conv<'_>) -> NormSource {
    source_of(conv, |axis| if axis == 0 { NormSource::Fused } else { NormSource::In })
}

/// The same where they are axis 1, and phases.
pub(crate) fn of_input(conv: &Conv<'_>) -> NormSource {
    source_of(conv, |axis| if axis == 1 { NormSource::Given } else { NormSource::In })
}

/// Where the norms come from, given that for a kept axis. Known norms of an output channel need not be summed up.
fn source_of(conv: &Conv<'_>, kept: impl Fn(usize) -> NormSource) -> NormSource {
    let Some(weight) = conv.weight.normalized() else { return NormSource::Plain };
    match weight.axis {
        Axis::Whole => NormSource::Whole,
        Axis::Kept(axis) => match kept(axis) {
            NormSource::Fused if weight.norms.is_some() => NormSource::Given,
            source => source,
        },
    }
}

/// y = act(w·x + bias) of checked arguments, `product` being that of x and the weight.
pub(crate) fn apply(
    ops: &mut Recorder<'_, '_>,
    conv: &Conv<'_>,
    y: &Tensor,
    product: &Product,
    mut norm: NormSource,
) -> Result<(), Error> {
    let (v, normalized) = (conv.weight.v(), conv.weight.normalized());
    // Without anything to sum up, w plays no part in y.
    if y.is_empty() || product.depth == 0 {
        norm = NormSource::Plain;
    }
    if let (Some(weight), Some(norms)) = (normalized, conv.norms)
        && (norm == NormSource::Plain || (norm == NormSource::Given && weight.norms.is_some()))
    {
        norms_into(ops, weight, NormOutput::Norms, Region::of(norms))?;
    }
    if y.is_empty() {
        return Ok(());
    }
    let axis = normalized.map(|weight| weight.axis);
    let product = match (axis, norm) {
        (Some(Axis::Kept(axis)), NormSource::In) => product.scaled_by(axis),
        _ => *product,
    };
    let norms_in = match (normalized, norm) {
        (Some(weight), NormSource::Given) => match weight.norms {
            Some(norms) => Some((View::of(norms), norms.len() as u64)),
            None => Some((scales(ops, weight, NormOutput::Norms, conv.norms)?, v.shape()[1] as u64)),
        },
        (Some(weight), NormSource::Whole) => Some((scales(ops, weight, NormOutput::Wide, conv.norms)?, 2)),
        (Some(weight), NormSource::In) => {
            let norms: usize = norms_shape(v.shape(), weight.axis).iter().product();
            let view = match conv.scales {
                Some(scales) => View::of(scales),
                None => scales(ops, weight, NormOutput::Scales, conv.norms)?,
            };
            Some((view, 2 * norms as u64))
        }
        _ => None,
    };
    let layer = Layer {
        product,
        x: conv.x,
        v,
        // With Scales the gain is part of them.
        g: normalized.and_then(|w| w.g).filter(|_| norm != NormSource::In && norm != NormSource::Plain),
        bias: conv.bias,
        y,
        norm,
        norms_in,
        norms_out: conv.norms.filter(|_| norm == NormSource::Fused),
        axis,
        ends: Ends::of(conv),
        policy: normalized.map_or((0, 0.0), |w| (w.eps.code(), w.eps.value())),
    };
    layer.record(ops, conv.selection)
}

/// The product dw = Σ c·a of checked arguments, one of which goes through an activation as it is read.
pub(crate) fn weights<'a>(
    product: &Product,
    (a, c): (&'a Tensor, &'a Tensor),
    dw: &'a Tensor,
    ends: Ends<'a>,
) -> Layer<'a> {
    Layer {
        product: *product,
        x: a,
        v: c,
        g: None,
        bias: None,
        y: dw,
        norm: NormSource::Plain,
        norms_in: None,
        norms_out: None,
        axis: None,
        ends,
        policy: (0, 0.0),
    }
}

/// Convolutions have more parameters than a device need have immediates for.
pub(crate) fn check_parameters(ops: &Recorder<'_, '_>) -> Result<(), Error> {
    let Some(gpu) = ops.gpu().filter(|gpu| gpu.parameters_of(&CONV_WHOLE) != ParameterPassing::Auto) else {
        return Ok(());
    };
    let (limits, size) = (gpu.device().limits(), CONV_WHOLE.param_bytes());
    let fit =
        limits.max_uniform_buffers_per_shader_stage > 0 && limits.max_uniform_buffer_binding_size >= u64::from(size);
    let what =
        format!("room for the parameters of convolutions: {size} bytes of immediates, or a uniform buffer of {size}");
    if fit { Ok(()) } else { Err(DeviceError::Unsupported { what }.into()) }
}

/// What the residual is called in an error.
pub(crate) fn residual_name(conv: &Conv<'_>) -> &'static str {
    if conv.gate.is_some() { "condition" } else { "residual" }
}

/// Numbers, and what excludes each other.
pub(crate) fn check_ends(op: &'static str, conv: &Conv<'_>) -> Result<(), Error> {
    let &Conv { activation, input_activation, input_snake, snake, residual, scale, accumulate, .. } = conv;
    activation.check(op)?;
    input_activation.check(op)?;
    Range::Finite.check(op, "the scale", scale.into())?;
    let refused = |got: &str, reason: &str| {
        Err(ArgumentError::Variant { op, got: got.to_owned(), reason: reason.to_owned() }.into())
    };
    let extras = [residual.is_some(), input_snake.is_some(), snake.is_some()];
    if extras.into_iter().filter(|&given| given).count() > 1 {
        return refused(
            &format!("more than one of {}, input_snake, snake", residual_name(conv)),
            "a dispatch reads one tensor more at most: what y holds is added by accumulate, without one",
        );
    }
    if input_snake.is_some() && input_activation != Activation::None {
        return refused("input_snake beside input_activation", "x goes through one of them");
    }
    if snake.is_some() && activation != Activation::None {
        return refused("snake beside activation", "y goes through one of them");
    }
    if conv.gate.is_some() {
        let bent = snake.is_some() || activation != Activation::None;
        let cases = [
            (bent, "a gate beside an activation of y", "y goes through one of them"),
            (accumulate, "a gate beside accumulate", "what y holds has not the shape of what the gate is given"),
            (conv.geometry.groups != 1, "a gate of groups", "the halves of the channels belong to one group"),
            (op.starts_with("conv_transposed"), "a gate", "transposed convolutions have none"),
        ];
        if let Some((_, got, reason)) = cases.into_iter().find(|&(found, ..)| found) {
            return refused(got, reason);
        }
    }
    Ok(())
}

/// α of a snake, or its gradient: any shape of so many elements.
pub(crate) fn check_alpha(
    op: &'static str,
    arg: &'static str,
    alpha: Option<&Tensor>,
    channels: usize,
) -> Result<(), Error> {
    match alpha.filter(|alpha| alpha.len() != channels) {
        Some(alpha) => {
            let expected = format!("{channels} elements, one for each channel");
            Err(ArgumentError::Shape { op, arg, got: alpha.shape().to_vec(), expected }.into())
        }
        None => Ok(()),
    }
}

fn check(
    ops: &mut Recorder<'_, '_>,
    op: &'static str,
    conv: &Conv<'_>,
    y: &Tensor,
    [outs, ins]: [usize; 2],
    (product, norm): (&Product, NormSource),
) -> Result<(), Error> {
    let &Conv { x, weight, bias, norms, selection, input_snake, snake, residual, accumulate, .. } = conv;
    let (v, normalized) = (weight.v(), weight.normalized());
    check_ends(op, conv)?;
    check_alpha(op, "input_snake", input_snake, ins)?;
    check_alpha(op, "snake", snake, outs)?;
    let (arg, mut shape) = (residual_name(conv), y.shape().to_vec());
    shape[1] *= if conv.gate.is_some() { 2 } else { 1 };
    residual.map_or(Ok(()), |residual| expect_shape(op, arg, residual, &shape))?;
    if let Some(weight) = normalized {
        weight.check(op)?;
    }
    if let Some(bias) = bias {
        expect_shape(op, "bias", bias, &[outs])?;
    }
    if let Some(norms) = norms {
        let Some(weight) = normalized else {
            let expected = "a weight with norms".to_owned();
            return Err(ArgumentError::Shape { op, arg: "norms", got: norms.shape().to_vec(), expected }.into());
        };
        expect_per_norm(op, "norms", norms, &norms_shape(v.shape(), weight.axis))?;
    }
    if let Some(scales) = conv.scales {
        let refused = |reason: &str| {
            Error::from(ArgumentError::Variant { op, got: "scales".to_owned(), reason: reason.to_owned() })
        };
        let Some(weight) = normalized.filter(|_| norm == NormSource::In) else {
            return Err(refused("the norms of this weight do not lie along the sum"));
        };
        if norms.is_some() {
            return Err(refused("norms are not computed then, and cannot be written"));
        }
        expect_scales(op, scales, norms_shape(v.shape(), weight.axis).iter().product())?;
    }
    check_tile(op, selection.tile, false)?;
    let facts = ops.facts();
    selection.check_device(op, facts.traits, false)?;
    let dtypes = [x.dtype(), v.dtype(), Ends::of(conv).widest(y.dtype())];
    product.plan(facts, dtypes, norm == NormSource::Fused, selection)?;
    check_parameters(ops)?;
    // Each element of the side of c goes through all taps.
    let windows = if op == "conv" { shape.iter().product() } else { x.len() };
    let taps = v.shape()[1..].iter().product::<usize>() as u64;
    Arguments::new(op)
        .input("x", x)
        .input("weight", v)
        .input("g", normalized.and_then(|w| w.g))
        .input("known norms", normalized.and_then(|w| w.norms))
        .input("scales", conv.scales)
        .input("bias", bias)
        .input(arg, residual)
        .input("input_snake", input_snake)
        .input("snake", snake)
        .output_onto(accumulate, "y", y)
        .output("norms", norms)
        .operations(2 * windows as u64 * taps + normalized.map_or(0, |w| w.norms_operations()))
        .begin(ops)
}
