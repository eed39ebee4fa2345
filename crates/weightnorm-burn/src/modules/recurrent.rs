use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::{Initializer, LstmState};
use burn::tensor::activation::{sigmoid, tanh};
use burn::tensor::{Device, Tensor};
use weightnorm::Error;

use super::linear::{WeightNormLinear, WeightNormLinearConfig};

/// Configuration of a [`WeightNormLstm`].
#[derive(Config, Debug)]
pub struct WeightNormLstmConfig {
    /// The size of the input features.
    pub d_input: usize,
    /// The size of the hidden state.
    pub d_hidden: usize,
    /// Whether there are biases.
    pub bias: bool,
    /// How v and the biases are drawn; each g is the norms of its v.
    #[config(default = "Initializer::XavierNormal{gain:1.0}")]
    pub initializer: Initializer,
}

/// Configuration of a [`WeightNormGru`].
#[derive(Config, Debug)]
pub struct WeightNormGruConfig {
    /// The size of the input features.
    pub d_input: usize,
    /// The size of the hidden state.
    pub d_hidden: usize,
    /// Whether there are biases.
    pub bias: bool,
    /// How v and the biases are drawn; each g is the norms of its v.
    #[config(default = "Initializer::XavierNormal{gain:1.0}")]
    pub initializer: Initializer,
}

/// An LSTM with weight norm on the weights of input and hidden state: PyTorch's `nn.LSTM(.., batch_first=True)` of one
/// layer with `weight_norm` of `weight_ih_l0` and `weight_hh_l0`.
///
/// ```text
/// i, f, g, o = the rows of W·x[t] + b_W + U·h[t−1] + b_U, a quarter each
/// c[t] = σ(f)·c[t−1] + σ(i)·tanh(g)        h[t] = σ(o)·tanh(c[t])
/// ```
///
/// W of all steps is one product, and U is normalized once a sequence, by the kernels where the device has them. The
/// steps are Burn's operators: the kernels' one dispatch a step (`weightnorm::Recurrent`) is not reached from Burn yet.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct WeightNormLstm {
    /// W, `[4·d_hidden, d_input]`: the gates i, f, g, o below each other.
    pub input: WeightNormLinear,
    /// U, `[4·d_hidden, d_hidden]`.
    pub hidden: WeightNormLinear,
}

/// A GRU with weight norm on the weights of input and hidden state: PyTorch's `nn.GRU(.., batch_first=True)` of one
/// layer with `weight_norm` of `weight_ih_l0` and `weight_hh_l0`.
///
/// ```text
/// r, z = σ of the first two thirds of the rows of W·x[t] + b_W + U·h[t−1] + b_U
/// n = tanh((W·x[t] + b_W) + r·(U·h[t−1] + b_U)), of the last third        h[t] = (1 − z)·n + z·h[t−1]
/// ```
///
/// What the kernels do of it: see [`WeightNormLstm`].
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct WeightNormGru {
    /// W, `[3·d_hidden, d_input]`: r, z, n below each other.
    pub input: WeightNormLinear,
    /// U, `[3·d_hidden, d_hidden]`.
    pub hidden: WeightNormLinear,
}

fn layers(
    [gates, d_input, d_hidden]: [usize; 3],
    bias: bool,
    initializer: &Initializer,
    device: &Device,
) -> [WeightNormLinear; 2] {
    [d_input, d_hidden].map(|ins| {
        let config = WeightNormLinearConfig::new(ins, gates * d_hidden).with_bias(bias);
        config.with_initializer(initializer.clone()).init(device)
    })
}

impl WeightNormLstmConfig {
    /// Draws each v and bias, and sets each g to the norms of its v.
    pub fn init(&self, device: &Device) -> WeightNormLstm {
        let [input, hidden] = layers([4, self.d_input, self.d_hidden], self.bias, &self.initializer, device);
        WeightNormLstm { input, hidden }
    }
}

impl WeightNormGruConfig {
    /// Draws each v and bias, and sets each g to the norms of its v.
    pub fn init(&self, device: &Device) -> WeightNormGru {
        let [input, hidden] = layers([3, self.d_input, self.d_hidden], self.bias, &self.initializer, device);
        WeightNormGru { input, hidden }
    }
}

/// What a sequence needs of the weights: W·x + b_W of each step, and U as it is multiplied by.
struct Sequence {
    inputs: Vec<Tensor<2>>,
    u: Tensor<2>,
    bias: Option<Tensor<2>>,
    /// Of h: batch, units.
    size: [usize; 2],
}

impl Sequence {
    fn new(x: Tensor<3>, input: &WeightNormLinear, hidden: &WeightNormLinear) -> Result<Sequence, Error> {
        let [batch, steps, _] = x.dims();
        let z = input.try_forward(x)?;
        let inputs = (0..steps).map(|t| z.clone().narrow(1, t, 1).squeeze_dim(1)).collect();
        let u = crate::weight(hidden.v.val(), hidden.g.val(), 0)?.transpose();
        let bias = hidden.bias.as_ref().map(|bias| bias.val().unsqueeze());
        Ok(Sequence { inputs, u, bias, size: [batch, hidden.v.dims()[1]] })
    }

    fn of_hidden(&self, h: Tensor<2>) -> Tensor<2> {
        let q = h.matmul(self.u.clone());
        match &self.bias {
            Some(bias) => q + bias.clone(),
            None => q,
        }
    }
}

/// Gate number `gate`.
fn gate(all: &Tensor<2>, gate: usize, units: usize) -> Tensor<2> {
    all.clone().narrow(1, gate * units, units)
}

/// h of all steps, `[batch, steps, units]`.
fn stacked(all: Vec<Tensor<2>>, [batch, units]: [usize; 2], device: &Device) -> Tensor<3> {
    if all.is_empty() { Tensor::zeros([batch, 0, units], device) } else { Tensor::stack(all, 1) }
}

impl WeightNormLstm {
    /// x: `[batch, steps, d_input]`; `state`: c and h before the first step, `[batch, d_hidden]`, zeros if there is
    /// none. Gives h of all steps, `[batch, steps, d_hidden]`, and c and h behind the last one.
    ///
    /// # Panics
    /// As Burn's layers, where sizes do not fit; [`WeightNormLstm::try_forward`] has an error for x.
    pub fn forward(&self, x: Tensor<3>, state: Option<LstmState<2>>) -> (Tensor<3>, LstmState<2>) {
        self.try_forward(x, state).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`WeightNormLstm::forward`].
    ///
    /// # Errors
    /// As [`linear`](crate::linear).
    pub fn try_forward(&self, x: Tensor<3>, state: Option<LstmState<2>>) -> Result<(Tensor<3>, LstmState<2>), Error> {
        let device = x.device();
        let sequence = Sequence::new(x, &self.input, &self.hidden)?;
        let (size, units) = (sequence.size, sequence.size[1]);
        let (mut c, mut h) = state.unwrap_or_else(|| LstmState::initial(size, &device)).unpack();
        let mut all = vec![];
        for z in &sequence.inputs {
            let gates = z.clone() + sequence.of_hidden(h);
            let [i, f, o] = [0, 1, 3].map(|number| sigmoid(gate(&gates, number, units)));
            c = f * c + i * tanh(gate(&gates, 2, units));
            h = o * tanh(c.clone());
            all.push(h.clone());
        }
        Ok((stacked(all, size, &device), LstmState::new(c, h)))
    }
}

impl WeightNormGru {
    /// x: `[batch, steps, d_input]`; `state`: h before the first step, `[batch, d_hidden]`, zeros if there is none.
    /// Gives h of all steps, `[batch, steps, d_hidden]`.
    ///
    /// # Panics
    /// As Burn's layers, where sizes do not fit; [`WeightNormGru::try_forward`] has an error for x.
    pub fn forward(&self, x: Tensor<3>, state: Option<Tensor<2>>) -> Tensor<3> {
        self.try_forward(x, state).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`WeightNormGru::forward`].
    ///
    /// # Errors
    /// As [`linear`](crate::linear).
    pub fn try_forward(&self, x: Tensor<3>, state: Option<Tensor<2>>) -> Result<Tensor<3>, Error> {
        let device = x.device();
        let sequence = Sequence::new(x, &self.input, &self.hidden)?;
        let (size, units) = (sequence.size, sequence.size[1]);
        let mut h = state.unwrap_or_else(|| Tensor::zeros(size, &device));
        let mut all = vec![];
        for z in &sequence.inputs {
            let q = sequence.of_hidden(h.clone());
            let [r, update] = [0, 1].map(|number| sigmoid(gate(z, number, units) + gate(&q, number, units)));
            let n = tanh(gate(z, 2, units) + r * gate(&q, 2, units));
            h = n.clone() + update * (h - n);
            all.push(h.clone());
        }
        Ok(stacked(all, size, &device))
    }
}

/// d_input and d_hidden.
fn sizes(input: &Param<Tensor<2>>, hidden: &Param<Tensor<2>>) -> [usize; 2] {
    [input.dims()[1], hidden.dims()[1]]
}

impl ModuleDisplay for WeightNormLstm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_input, d_hidden] = sizes(&self.input.v, &self.hidden.v);
        content.add("d_input", &d_input).add("d_hidden", &d_hidden).add("bias", &self.input.bias.is_some()).optional()
    }
}

impl ModuleDisplay for WeightNormGru {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_input, d_hidden] = sizes(&self.input.v, &self.hidden.v);
        content.add("d_input", &d_input).add("d_hidden", &d_hidden).add("bias", &self.input.bias.is_some()).optional()
    }
}
