use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::nn::{Initializer, PaddingConfig1d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};
use weightnorm::Error;

use super::padding;

/// Configuration of a [`WeightNormConv1d`]: that of [`burn::nn::conv::Conv1dConfig`].
#[derive(Config, Debug)]
pub struct WeightNormConv1dConfig {
    /// The number of input channels.
    pub channels_in: usize,
    /// The number of output channels.
    pub channels_out: usize,
    /// The size of the kernel.
    pub kernel_size: usize,
    /// The stride.
    #[config(default = "1")]
    pub stride: usize,
    /// Positions from one tap to the next.
    #[config(default = "1")]
    pub dilation: usize,
    /// Groups of channels that do not see each other.
    #[config(default = "1")]
    pub groups: usize,
    /// The padding.
    #[config(default = "PaddingConfig1d::Valid")]
    pub padding: PaddingConfig1d,
    /// Whether a bias is added.
    #[config(default = true)]
    pub bias: bool,
    /// How v and the bias are drawn; g is the norms of v.
    #[config(default = "Initializer::KaimingUniform{gain:1.0/3f64.sqrt(), fan_out_only:false}")]
    pub initializer: Initializer,
}

/// A weight-normalized convolution in 1-D: PyTorch's `weight_norm(nn.Conv1d(..))`.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct WeightNormConv1d {
    /// The direction, `[channels_out, channels_in / groups, kernel_size]`.
    pub v: Param<Tensor<3>>,
    /// The gain, `[channels_out, 1, 1]`.
    pub g: Param<Tensor<3>>,
    /// The bias, `[channels_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The stride.
    pub stride: usize,
    /// The size of the kernel.
    pub kernel_size: usize,
    /// Positions from one tap to the next.
    pub dilation: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// The padding.
    #[module(skip)]
    pub padding: PaddingConfig1d,
}

impl WeightNormConv1dConfig {
    /// Draws v and the bias as Burn does, and sets g to the norms of v, so that w is v at first.
    pub fn init(&self, device: &Device) -> WeightNormConv1d {
        let config = Conv1dConfig::new(self.channels_in, self.channels_out, self.kernel_size)
            .with_stride(self.stride)
            .with_dilation(self.dilation)
            .with_groups(self.groups)
            .with_padding(self.padding.clone())
            .with_bias(self.bias)
            .with_initializer(self.initializer.clone());
        config.init(device).into()
    }
}

impl From<Conv1d> for WeightNormConv1d {
    /// With v = w and g the norms of w: the same function.
    fn from(conv: Conv1d) -> Self {
        let (v, g) = super::split(conv.weight.val());
        let Conv1d { bias, stride, kernel_size, dilation, groups, padding, .. } = conv;
        WeightNormConv1d { v, g, bias, stride, kernel_size, dilation, groups, padding }
    }
}

impl WeightNormConv1d {
    /// x: `[batch, channels_in, length]`. Gives `[batch, channels_out, length_out]`.
    ///
    /// # Panics
    /// As Burn's layers, where x does not fit; [`WeightNormConv1d::try_forward`] has an error.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.try_forward(x).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`WeightNormConv1d::forward`].
    ///
    /// # Errors
    /// As [`conv1d`](crate::conv1d).
    pub fn try_forward(&self, x: Tensor<3>) -> Result<Tensor<3>, Error> {
        let padding = padding::pair_1d(&self.padding, self.kernel_size, self.stride, x.dims()[2]);
        let options = ConvOptions::new_with_padding([self.stride], [padding], [self.dilation], self.groups);
        crate::conv1d(x, self.v.val(), self.g.val(), self.bias.as_ref().map(Param::val), options)
    }

    /// Burn's own layer with the weight w.
    pub fn fold(&self) -> Conv1d {
        Conv1d {
            weight: super::fold(&self.v, &self.g),
            bias: self.bias.clone(),
            stride: self.stride,
            kernel_size: self.kernel_size,
            dilation: self.dilation,
            groups: self.groups,
            padding: self.padding.clone(),
        }
    }
}

impl ModuleDisplay for WeightNormConv1d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [channels_out, channels_in, _] = self.v.dims();
        content
            .add("ch_in", &(channels_in * self.groups))
            .add("ch_out", &channels_out)
            .add("stride", &self.stride)
            .add("kernel_size", &self.kernel_size)
            .add("dilation", &self.dilation)
            .add("groups", &self.groups)
            .add_debug_attribute("padding", &self.padding)
            .optional()
    }
}
