use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::Initializer;
use burn::nn::conv::{ConvTranspose1d, ConvTranspose1dConfig};
use burn::tensor::ops::ConvTransposeOptions;
use burn::tensor::{Device, Tensor};
use weightnorm::Error;

/// Configuration of a [`WeightNormConvTranspose1d`]: that of [`burn::nn::conv::ConvTranspose1dConfig`].
#[derive(Config, Debug)]
pub struct WeightNormConvTranspose1dConfig {
    /// The numbers of input and output channels.
    pub channels: [usize; 2],
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
    /// Positions that are cut off either end of y.
    #[config(default = "0")]
    pub padding: usize,
    /// More positions at the end of y.
    #[config(default = "0")]
    pub padding_out: usize,
    /// Whether a bias is added.
    #[config(default = true)]
    pub bias: bool,
    /// How v and the bias are drawn; g is the norms of v.
    #[config(default = "Initializer::KaimingUniform{gain:1.0/3f64.sqrt(), fan_out_only:false}")]
    pub initializer: Initializer,
}

/// A weight-normalized transposed convolution in 1-D: PyTorch's `weight_norm(nn.ConvTranspose1d(..))`.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct WeightNormConvTranspose1d {
    /// The direction, `[channels_in, channels_out / groups, kernel_size]`.
    pub v: Param<Tensor<3>>,
    /// The gain, `[channels_in, 1, 1]`: axis 0 is kept, as in PyTorch.
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
    /// Positions that are cut off either end of y.
    pub padding: usize,
    /// More positions at the end of y.
    pub padding_out: usize,
    /// The numbers of input and output channels.
    pub channels: [usize; 2],
}

impl WeightNormConvTranspose1dConfig {
    /// Draws v and the bias as Burn does, and sets g to the norms of v, so that w is v at first.
    pub fn init(&self, device: &Device) -> WeightNormConvTranspose1d {
        let config = ConvTranspose1dConfig::new(self.channels, self.kernel_size)
            .with_stride(self.stride)
            .with_dilation(self.dilation)
            .with_groups(self.groups)
            .with_padding(self.padding)
            .with_padding_out(self.padding_out)
            .with_bias(self.bias)
            .with_initializer(self.initializer.clone());
        config.init(device).into()
    }
}

impl From<ConvTranspose1d> for WeightNormConvTranspose1d {
    /// With v = w and g the norms of w: the same function.
    fn from(conv: ConvTranspose1d) -> Self {
        let (v, g) = super::split(conv.weight.val());
        let ConvTranspose1d { bias, stride, kernel_size, dilation, groups, padding, padding_out, channels, .. } = conv;
        WeightNormConvTranspose1d { v, g, bias, stride, kernel_size, dilation, groups, padding, padding_out, channels }
    }
}

impl WeightNormConvTranspose1d {
    /// x: `[batch, channels_in, length]`. Gives `[batch, channels_out, length_out]`.
    ///
    /// # Panics
    /// As Burn's layers, where x does not fit; [`WeightNormConvTranspose1d::try_forward`] has an error.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.try_forward(x).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`WeightNormConvTranspose1d::forward`].
    ///
    /// # Errors
    /// As [`conv_transpose1d`](crate::conv_transpose1d).
    pub fn try_forward(&self, x: Tensor<3>) -> Result<Tensor<3>, Error> {
        let options =
            ConvTransposeOptions::new([self.stride], [self.padding], [self.padding_out], [self.dilation], self.groups);
        crate::conv_transpose1d(x, self.v.val(), self.g.val(), self.bias.as_ref().map(Param::val), options)
    }

    /// Burn's own layer with the weight w.
    pub fn fold(&self) -> ConvTranspose1d {
        ConvTranspose1d {
            weight: super::fold(&self.v, &self.g),
            bias: self.bias.clone(),
            stride: self.stride,
            kernel_size: self.kernel_size,
            dilation: self.dilation,
            groups: self.groups,
            padding: self.padding,
            padding_out: self.padding_out,
            channels: self.channels,
        }
    }
}

impl ModuleDisplay for WeightNormConvTranspose1d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add_debug_attribute("channels", &self.channels)
            .add("stride", &self.stride)
            .add("kernel_size", &self.kernel_size)
            .add("dilation", &self.dilation)
            .add("groups", &self.groups)
            .add("padding", &self.padding)
            .add("padding_out", &self.padding_out)
            .optional()
    }
}
