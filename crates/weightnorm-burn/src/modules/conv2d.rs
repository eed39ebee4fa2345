use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Initializer, PaddingConfig2d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};
use weightnorm::Error;

use super::padding;

/// Configuration of a [`WeightNormConv2d`]: that of [`burn::nn::conv::Conv2dConfig`].
#[derive(Config, Debug)]
pub struct WeightNormConv2dConfig {
    /// The numbers of input and output channels.
    pub channels: [usize; 2],
    /// The size of the kernel.
    pub kernel_size: [usize; 2],
    /// The stride.
    #[config(default = "[1, 1]")]
    pub stride: [usize; 2],
    /// Positions from one tap to the next.
    #[config(default = "[1, 1]")]
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other.
    #[config(default = "1")]
    pub groups: usize,
    /// The padding.
    #[config(default = "PaddingConfig2d::Valid")]
    pub padding: PaddingConfig2d,
    /// Whether a bias is added.
    #[config(default = true)]
    pub bias: bool,
    /// How v and the bias are drawn; g is the norms of v.
    #[config(default = "Initializer::KaimingUniform{gain:1.0/3f64.sqrt(), fan_out_only:false}")]
    pub initializer: Initializer,
}

/// A weight-normalized convolution in 2-D: PyTorch's `weight_norm(nn.Conv2d(..))`.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct WeightNormConv2d {
    /// The direction, `[channels_out, channels_in / groups, kernel_height, kernel_width]`.
    pub v: Param<Tensor<4>>,
    /// The gain, `[channels_out, 1, 1, 1]`.
    pub g: Param<Tensor<4>>,
    /// The bias, `[channels_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The stride.
    pub stride: [usize; 2],
    /// The size of the kernel.
    pub kernel_size: [usize; 2],
    /// Positions from one tap to the next.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// The padding.
    #[module(skip)]
    pub padding: PaddingConfig2d,
}

impl WeightNormConv2dConfig {
    /// Draws v and the bias as Burn does, and sets g to the norms of v, so that w is v at first.
    pub fn init(&self, device: &Device) -> WeightNormConv2d {
        let config = Conv2dConfig::new(self.channels, self.kernel_size)
            .with_stride(self.stride)
            .with_dilation(self.dilation)
            .with_groups(self.groups)
            .with_padding(self.padding.clone())
            .with_bias(self.bias)
            .with_initializer(self.initializer.clone());
        config.init(device).into()
    }
}

impl From<Conv2d> for WeightNormConv2d {
    /// With v = w and g the norms of w: the same function.
    fn from(conv: Conv2d) -> Self {
        let (v, g) = super::split(conv.weight.val());
        let Conv2d { bias, stride, kernel_size, dilation, groups, padding, .. } = conv;
        WeightNormConv2d { v, g, bias, stride, kernel_size, dilation, groups, padding }
    }
}

impl WeightNormConv2d {
    /// x: `[batch, channels_in, height, width]`. Gives `[batch, channels_out, height_out, width_out]`.
    ///
    /// # Panics
    /// As Burn's layers, where x does not fit; [`WeightNormConv2d::try_forward`] has an error.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.try_forward(x).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`WeightNormConv2d::forward`].
    ///
    /// # Errors
    /// As [`conv2d`](crate::conv2d).
    pub fn try_forward(&self, x: Tensor<4>) -> Result<Tensor<4>, Error> {
        let [_, _, height, width] = x.dims();
        let padding = padding::pairs_2d(&self.padding, self.kernel_size, self.stride, [height, width]);
        let options = ConvOptions::new_with_padding(self.stride, padding, self.dilation, self.groups);
        crate::conv2d(x, self.v.val(), self.g.val(), self.bias.as_ref().map(Param::val), options)
    }

    /// Burn's own layer with the weight w.
    pub fn fold(&self) -> Conv2d {
        Conv2d {
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

impl ModuleDisplay for WeightNormConv2d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [channels_out, channels_in, _, _] = self.v.dims();
        content
            .add("ch_in", &(channels_in * self.groups))
            .add("ch_out", &channels_out)
            .add_debug_attribute("stride", &self.stride)
            .add_debug_attribute("kernel_size", &self.kernel_size)
            .add_debug_attribute("dilation", &self.dilation)
            .add("groups", &self.groups)
            .add_debug_attribute("padding", &self.padding)
            .optional()
    }
}
