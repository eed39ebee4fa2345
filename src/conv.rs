//! Convolutions: what is asked of them.
pub(crate) mod backward;
pub(crate) mod cut;
pub(crate) mod ends_backward;
pub(crate) mod fold;
pub(crate) mod geometry;
pub(crate) mod kernels;
pub(crate) mod layer;
pub(crate) mod plan;
pub(crate) mod record;

use crate::product::selection::Selection;
use crate::{Activation, Axis, ConvGeometry, Gate, PadMode, PerAxis, Tensor, Tile, Weight};
#[cfg(doc)]
use crate::{ArgumentError, DeviceError, Error, Gpu, LimitError, Recorder, WeightNorm};

/// A convolution, weight-normalized or ordinary: the request of [`Gpu::conv`] and [`Gpu::conv_transposed`], of
/// [`Gpu::conv_backward`] and [`Gpu::conv_transposed_backward`], and of the same of a [`Recorder`]. In 1-D or 2-D by
/// the rank of the weight.
///
/// ```text
/// conv              c[b, j, u] = Σ_i,κ w[j, i, κ] · act_in(x)[b, gI + i, u·stride + κ·dilation − padding]
/// conv_transposed   c[b, gO + o, t] = Σ_i,κ w[i, o, κ] · act_in(x)[b, i, u]    over u·stride + κ·dilation − padding = t
///
/// y = act( scale · (c + bias + residual) + old y )        w = g·v/n̂        g: the group of output j, of input i
///
/// conv, gated       y[b, j, u] = tanh(z[b, j, u]) · sigmoid(z[b, H + j, u])    z = scale · (c + bias + condition)
/// ```
///
/// ```no_run
/// # use weightnorm::{Activation, Conv, Error, Gpu, Tensor, WeightNorm};
/// # fn f(gpu: &Gpu, x: Tensor, v: Tensor, g: Tensor, bias: Tensor) -> Result<Tensor, Error> {
/// let y = gpu.conv(Conv::new(&x, WeightNorm::new(&v, &g)).bias(&bias).padding(3).dilation(3))?;
/// gpu.conv_transposed(Conv::new(&y, &v).stride(2).padding(1))
/// # }
/// ```
///
/// - `x`: `[B, in, T]` or `[B, in, H, W]`. `weight`: of `conv` `[out, in / groups, k]` or `[.., kh, kw]`; of
///   `conv_transposed` `[in, out / groups, k]` or `[.., kh, kw]`: axis 0 is **in**, as in PyTorch, and with it g of
///   kept axis 0. `bias`: `[out]`. `y`: [`ConvGeometry::conv_shape`], [`ConvGeometry::conv_transposed_shape`]. All of
///   any storage type, in any mixture.
/// - The weight is a [`WeightNorm`] of any kept axis or the whole tensor, or a [`Tensor`] w. For kept axis 0 of `conv`
///   the norms are summed up inside the product. Neither w nor a matrix of windows is stored; of a transposed
///   convolution no inserted zero is multiplied, unless stride and dilation are both above 1 or a tap axis is kept.
/// - Padding is zeros, or with [`Conv::pad_mode`] reflected or replicated (`conv`).
/// - With [`Conv::gate`] y has half the channels, H = out / 2.
/// - All of these but w and x may be left out; `old y` is added with [`Conv::accumulate`]. act and act_in are an
///   [`Activation`] or snake, x + sin²(αx)/(α + 1e-9), which is to f32 accuracy for |αx| below 2¹⁷, and beyond x plus
///   something from 0 to 1/(α + 1e-9). What is reflected or replicated in the padding is activated as any element is.
/// - One more tensor can be read: of [`Conv::residual`] (or [`Conv::condition`]), [`Conv::input_snake`] and
///   [`Conv::snake`] one at a time. A y that holds what is to be added, x of the layer say, needs none:
///   [`Conv::accumulate`].
/// - y is right wherever it, and the sum of |x·w|, is representable. NaN and infinity in row j of v reach channel j of
///   y in `conv`, and in `conv_transposed` what it feeds. An infinite weight times the padding is NaN, as in a matrix
///   of windows. Error: a small multiple of in / groups · k · 2⁻²⁴ · Σ|x·w|, and y's rounding.
/// - Reference: PyTorch's `weight_norm(torch.nn.Conv1d(..))`, `ConvTranspose1d`, `Conv2d`, `ConvTranspose2d`.
///
/// # Dispatches
/// `conv`: one for an ordinary weight and for kept axis 0, with known norms too; else those of the norms besides
/// ([`WeightNorm`], or one if they are known). `conv_transposed`: one for an ordinary weight, else those of the norms
/// and one. One with [`Conv::scales`], which a set of weights has for all layers from one dispatch. One more where the
/// sums are formed in pieces, beyond some 23,000 taps of a channel's sum. A gate takes none.
///
/// Past a binding (128 MiB of x, v or y, unless the device has more) the product is that many windows: of as many
/// images as fit whole; else each image by itself, in as many groups as fit; else in as many channels of a group. Where
/// not all input channels of a group fit, the sums are formed in pieces: a dispatch for each window of these, and one
/// that adds them up. Positions are cut where the partial sums would be more than 2²³ (64 MiB), or fewer as a binding
/// has it. The bits of y are those of the same cuts each time.
///
/// # Not there yet
/// Gradients of activations of y that do not follow from y (GELU, SiLU, snake: give them to the next layer as its
/// activation or snake of x).
///
/// # Errors
/// [`ArgumentError::Shape`], [`ArgumentError::Number`] if tensors and geometry do not fit, for a slope or a scale that
/// is not finite; [`ArgumentError::Alias`] for a residual in y; [`ArgumentError::Variant`] for two of residual and
/// snakes, a snake beside an activation, a gate of groups, of a transposed convolution, or beside an activation of y or
/// [`Conv::accumulate`], a tile that convolutions do not have, and for a padding mode of a transposed convolution;
/// [`LimitError::TooLarge`] where a channel of an image, or the taps of a kernel, are past a binding, behind a gate all
/// channels of an image or of the weight, for strides, dilations, paddings, kernels and heights past 65,535, and for
/// sums of 2²⁰ products or more. Besides those of every operator ([`Error`](crate::Error)).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Conv<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) weight: Weight<'a>,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) geometry: ConvGeometry,
    pub(crate) input_activation: Activation,
    pub(crate) input_snake: Option<&'a Tensor>,
    pub(crate) residual: Option<&'a Tensor>,
    pub(crate) scale: f32,
    pub(crate) accumulate: bool,
    pub(crate) activation: Activation,
    pub(crate) snake: Option<&'a Tensor>,
    pub(crate) gate: Option<Gate>,
    pub(crate) output: Option<&'a Tensor>,
    pub(crate) norms: Option<&'a Tensor>,
    pub(crate) scales: Option<&'a Tensor>,
    pub(crate) selection: Selection,
}

impl<'a> Conv<'a> {
    /// Stride and dilation 1, no padding, one group; without a bias or an activation.
    pub fn new(x: &'a Tensor, weight: impl Into<Weight<'a>>) -> Self {
        Conv {
            x,
            weight: weight.into(),
            bias: None,
            geometry: ConvGeometry::default(),
            input_activation: Activation::None,
            input_snake: None,
            residual: None,
            scale: 1.0,
            accumulate: false,
            activation: Activation::None,
            snake: None,
            gate: None,
            output: None,
            norms: None,
            scales: None,
            selection: Selection::default(),
        }
    }

    /// Whether the kept axis is one of taps.
    pub(crate) fn taps_are_kept(&self) -> bool {
        self.weight.normalized().is_some_and(|weight| matches!(weight.axis, Axis::Kept(2..)))
    }

    /// Adds a bias: any storage type, `[out]`.
    pub fn bias(self, bias: impl Into<Option<&'a Tensor>>) -> Self {
        Conv { bias: bias.into(), ..self }
    }

    /// All of stride, padding, dilation and groups at once.
    pub fn geometry(self, geometry: ConvGeometry) -> Self {
        Conv { geometry, ..self }
    }

    /// Sets the stride: `2`, or `[3, 1]` for height and width.
    pub fn stride(self, stride: impl Into<PerAxis<usize>>) -> Self {
        Conv { geometry: self.geometry.stride(stride), ..self }
    }

    /// Sets the padding: `3`, `[2, 0]` for height and width, `(6, 0)` before and after, or `[(2, 1), (0, 0)]`.
    pub fn padding(self, padding: impl Into<PerAxis<(usize, usize)>>) -> Self {
        Conv { geometry: self.geometry.padding(padding), ..self }
    }

    /// Sets what is read in the padding.
    pub fn pad_mode(self, pad_mode: PadMode) -> Self {
        Conv { geometry: self.geometry.pad_mode(pad_mode), ..self }
    }

    /// Sets the dilation.
    pub fn dilation(self, dilation: impl Into<PerAxis<usize>>) -> Self {
        Conv { geometry: self.geometry.dilation(dilation), ..self }
    }

    /// Sets the groups.
    pub fn groups(self, groups: usize) -> Self {
        Conv { geometry: self.geometry.groups(groups), ..self }
    }

    /// Sets the output padding of a transposed convolution.
    pub fn output_padding(self, output_padding: impl Into<PerAxis<usize>>) -> Self {
        Conv { geometry: self.geometry.output_padding(output_padding), ..self }
    }

    /// Applies an activation to x as it is read; x itself stays as it is.
    pub fn input_activation(self, input_activation: Activation) -> Self {
        Conv { input_activation, ..self }
    }

    /// Applies snake to x as it is read: x + sin²(αx)/(α + 1e-9), with an α for each input channel: `[in]`, or any
    /// shape of so many elements, any storage type.
    pub fn input_snake(self, alpha: impl Into<Option<&'a Tensor>>) -> Self {
        Conv { input_snake: alpha.into(), ..self }
    }

    /// Adds a tensor of y's shape, any storage type, before scale and activation. What y itself holds is added by
    /// [`Conv::accumulate`].
    pub fn residual(self, residual: impl Into<Option<&'a Tensor>>) -> Self {
        Conv { residual: residual.into(), ..self }
    }

    /// Multiplies sums, bias and residual; finite. By default 1.
    pub fn scale(self, scale: f32) -> Self {
        Conv { scale, ..self }
    }

    /// Adds to what y holds, before the activation.
    pub fn accumulate(self, accumulate: bool) -> Self {
        Conv { accumulate, ..self }
    }

    /// Applies an activation to y.
    pub fn activation(self, activation: Activation) -> Self {
        Conv { activation, ..self }
    }

    /// Applies snake to y, with an α for each output channel, as [`Conv::input_snake`] has it.
    pub fn snake(self, alpha: impl Into<Option<&'a Tensor>>) -> Self {
        Conv { snake: alpha.into(), ..self }
    }

    /// Makes each channel of y of two channels of the sums, so that y has half as many ([`Gate`]). With
    /// z = scale · (c + bias + condition) and H = out / 2:
    ///
    /// ```text
    /// y[b, j, u] = tanh(z[b, j, u]) · sigmoid(z[b, H + j, u])        j < H
    /// ```
    ///
    /// For `conv` of one group and an even number of output channels, without an activation of y, snake of y or
    /// [`Conv::accumulate`]. z is nowhere stored.
    pub fn gate(self, gate: impl Into<Option<Gate>>) -> Self {
        Conv { gate: gate.into(), ..self }
    }

    /// Adds a tensor to what a [`Conv::gate`] is given: shaped as the sums, `[B, out, U]`, any storage type. It is the
    /// residual of a gated convolution.
    pub fn condition(self, condition: impl Into<Option<&'a Tensor>>) -> Self {
        self.residual(condition)
    }

    /// For gradients alone: y, as the forward pass wrote it. Wanted if there is an activation of y, whose derivative
    /// follows from it.
    pub fn output(self, y: impl Into<Option<&'a Tensor>>) -> Self {
        Conv { output: y.into(), ..self }
    }

    /// Writes the effective norms n̂ out, as later calls want them: f32, shaped as g.
    pub fn norms(self, norms: impl Into<Option<&'a Tensor>>) -> Self {
        Conv { norms: norms.into(), ..self }
    }

    /// g/n̂ from [`SetMember::scales`](crate::SetMember::scales), where the norms lie along the sum: no norm is computed,
    /// and none is read. Gradients do not read them.
    pub fn scales(self, scales: impl Into<Option<&'a Tensor>>) -> Self {
        Conv { scales: scales.into(), ..self }
    }

    /// Forces a tile, for tests and tuning.
    pub fn tile(self, tile: impl Into<Option<Tile>>) -> Self {
        Conv { selection: Selection { tile: tile.into(), ..self.selection }, ..self }
    }

    /// Forces the split of the sums into pieces of so many products (rounded up to a multiple of 16), for tests and
    /// tuning.
    pub fn split_length(self, split_length: impl Into<Option<u32>>) -> Self {
        Conv { selection: Selection { split_length: split_length.into(), ..self.selection }, ..self }
    }
}
