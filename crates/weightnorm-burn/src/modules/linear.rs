use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::{Initializer, Linear};
use burn::tensor::{Device, Tensor};
use weightnorm::Error;

/// Configuration of a [`WeightNormLinear`]: that of [`burn::nn::LinearConfig`].
#[derive(Config, Debug)]
pub struct WeightNormLinearConfig {
    /// The size of the input features.
    pub d_input: usize,
    /// The size of the output features.
    pub d_output: usize,
    /// Whether a bias is added.
    #[config(default = true)]
    pub bias: bool,
    /// How v and the bias are drawn; g is the norms of v.
    #[config(default = "Initializer::KaimingUniform{gain:1.0/3f64.sqrt(), fan_out_only:false}")]
    pub initializer: Initializer,
}

/// A weight-normalized linear layer, y = x·wᵀ + bias with w = g·v/n̂: PyTorch's `weight_norm(nn.Linear(..))`.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct WeightNormLinear {
    /// The direction, `[d_output, d_input]`: other than in Burn's [`Linear`], rows are outputs.
    pub v: Param<Tensor<2>>,
    /// The gain, `[d_output, 1]`.
    pub g: Param<Tensor<2>>,
    /// The bias, `[d_output]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl WeightNormLinearConfig {
    /// Draws v and the bias as Burn does, and sets g to the norms of v, so that w is v at first.
    pub fn init(&self, device: &Device) -> WeightNormLinear {
        let fans = (Some(self.d_input), Some(self.d_output));
        let v = self.initializer.init_with([self.d_output, self.d_input], fans.0, fans.1, device);
        let bias = self.bias.then(|| self.initializer.init_with([self.d_output], fans.0, fans.1, device));
        let (v, g) = super::split(v.val());
        WeightNormLinear { v, g, bias }
    }
}

impl WeightNormLinear {
    /// x: `[.., d_input]`. Gives `[.., d_output]`.
    ///
    /// # Panics
    /// As Burn's layers, where the last axis of x is not `d_input`; [`WeightNormLinear::try_forward`] has an error.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.try_forward(x).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`WeightNormLinear::forward`].
    ///
    /// # Errors
    /// As [`linear`](crate::linear).
    pub fn try_forward<const D: usize>(&self, x: Tensor<D>) -> Result<Tensor<D>, Error> {
        crate::linear(x, self.v.val(), self.g.val(), self.bias.as_ref().map(Param::val))
    }

    /// Burn's own layer with the weight w.
    pub fn fold(&self) -> Linear {
        let weight = super::fold(&self.v, &self.g).val().transpose();
        Linear { weight: Param::from_tensor(weight), bias: self.bias.clone() }
    }
}

impl From<Linear> for WeightNormLinear {
    /// With v = w and g the norms of w: the same function.
    fn from(linear: Linear) -> Self {
        // Through the host, once, so that v lies as the kernels read it.
        let weight = linear.weight.val();
        let weight = Tensor::from_data(weight.clone().transpose().into_data(), &weight.device());
        let (v, g) = super::split(weight);
        WeightNormLinear { v, g, bias: linear.bias }
    }
}

impl ModuleDisplay for WeightNormLinear {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_output, d_input] = self.v.dims();
        content.add("d_input", &d_input).add("d_output", &d_output).add("bias", &self.bias.is_some()).optional()
    }
}
